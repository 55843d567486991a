//! Real etcd on loopback addresses of its own, so that no port is ever taken.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use weft_store::{ConnectOptions, Store, StoreError};

use super::until;

/// One etcd process; killed when dropped.
pub(crate) struct Etcd {
    dir: TempDir,
    child: Option<Child>,
    pub(crate) host: String,
    scheme: &'static str,
    name: String,
    cluster: Option<String>,
    token: u32,
    flags: Vec<String>,
}

impl Etcd {
    /// A single member that answers.
    pub(crate) async fn start() -> Etcd {
        let mut etcd = Etcd::new("http", &[]);
        etcd.run();
        etcd.ready().await;
        etcd
    }

    /// A member that is not started yet.
    pub(crate) fn new(scheme: &'static str, flags: &[String]) -> Etcd {
        Etcd {
            dir: TempDir::with_prefix("weft-t-store-").expect("a temporary directory"),
            child: None,
            host: own_address(),
            scheme,
            name: "solo".to_owned(),
            cluster: None,
            token: 0,
            flags: flags.to_vec(),
        }
    }

    /// Members of one cluster that answers.
    pub(crate) async fn cluster(size: usize) -> Vec<Etcd> {
        let mut members: Vec<_> = (0..size).map(|_| Etcd::new("http", &[])).collect();
        for (number, member) in members.iter_mut().enumerate() {
            member.name = format!("member{number}");
        }
        let peers: Vec<_> = members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect();
        for member in &mut members {
            member.cluster = Some(peers.join(","));
            member.run();
        }
        for member in &members {
            member.ready().await;
        }
        members
    }

    /// Starts the process (again).
    pub(crate) fn run(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let (client, peer) = (self.url(), self.peer_url());
        let cluster = self.cluster.clone().unwrap_or_else(|| format!("{}={peer}", self.name));
        let log =
            File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log file");
        let child = Command::new("etcd")
            .args(["--name", &self.name, "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster, "--initial-cluster-token", &self.token.to_string()])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            // So that tests can ask a connection for life more often than every 5 s.
            .args(["--grpc-keepalive-min-time", "100ms"])
            .args(&self.flags)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd runs (Debian: etcd-server)");
        self.child = Some(child);
    }

    /// Replaces the extra flags, for the next start.
    pub(crate) fn set_flags(&mut self, flags: &[String]) {
        self.flags = flags.to_vec();
    }

    /// Waits until it answers.
    pub(crate) async fn ready(&self) {
        self.ready_for(&self.store()).await;
    }

    /// Waits until it answers this store.
    pub(crate) async fn ready_for(&self, store: &Store) {
        until(&format!("etcd, whose log is {:?}", self.dir.path().join("log")), async || {
            match store.get("ready").await {
                // An answer as well.
                Err(StoreError::Denied { .. }) => Ok(()),
                answer => answer.map(drop),
            }
        })
        .await;
    }

    /// Waits until its log says this.
    pub(crate) async fn logs(&self, words: &str) {
        let file = self.dir.path().join("log");
        until(&format!("`{words}` in etcd's log"), async || {
            let log = std::fs::read_to_string(&file).expect("its log");
            if log.contains(words) { Ok(()) } else { Err(()) }
        })
        .await;
    }

    /// Kills the process.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// Stops the process from running for a while, connections open.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().expect("kill runs");
        assert!(status.success());
    }

    /// An empty one in its place.
    pub(crate) async fn wipe(&mut self, keep_cluster_id: bool) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("its data");
        if !keep_cluster_id {
            self.token += 1;
        }
        self.run();
        self.ready().await;
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}:2379", self.scheme, self.host)
    }

    fn peer_url(&self) -> String {
        format!("http://{}:2380", self.host)
    }

    /// A store straight on it.
    pub(crate) fn store(&self) -> Store {
        store_at(&[self.url()])
    }

    /// The raw client, for what the store does not do.
    pub(crate) async fn raw(&self) -> etcd_client::Client {
        etcd_client::Client::connect([self.url()], None).await.expect("etcd answers")
    }

    /// Forgets history up to now.
    pub(crate) async fn compact(&self) {
        let mut raw = self.raw().await;
        let now = raw.get("x", None).await.expect("etcd answers");
        let revision = now.header().expect("a header").revision();
        match raw.compact(revision, None).await {
            Ok(_) => {}
            // Nothing was written since the last time.
            Err(etcd_client::Error::GRpcStatus(status))
                if status.message().contains("has been compacted") => {}
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A store on plain endpoints.
pub(crate) fn store_at(endpoints: &[String]) -> Store {
    Store::connect(ConnectOptions { endpoints: endpoints.to_vec(), ..Default::default() })
        .expect("good options")
}

/// An address in 127.0.0.0/8 that nobody else has: by process and count. All of them are local.
pub(crate) fn own_address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) % 250 + 2;
    let [.., high, low] = std::process::id().to_be_bytes();
    // The last byte is never 0 or 255.
    format!("127.{high}.{low}.{count}")
}
