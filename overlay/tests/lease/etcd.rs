//! Stories on real etcd: races over a real network, and time that passes by itself.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use weft_overlay::lease::Times;
use weft_overlay::registry::Holder;
use weft_store::{ConnectOptions, Store, Txn};

use crate::support::{FIFTY, FIFTY_DUAL, Network, WIDE, fifty_and_one_more};

/// One etcd on a loopback address of its own; killed when dropped.
struct Etcd {
    child: Child,
    url: String,
    _dir: TempDir,
}

impl Etcd {
    async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = TempDir::with_prefix("weft-t-lease-").expect("a temporary directory");
        let [.., high, low] = std::process::id().to_be_bytes();
        let last = COUNT.fetch_add(1, Ordering::Relaxed) % 250 + 2;
        let (url, peer) =
            (format!("http://127.{high}.{low}.{last}:2379"), format!("http://127.{high}.{low}.{last}:2380"));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--name", "solo", "--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args([
                "--initial-cluster",
                &format!("solo={peer}"),
                "--logger",
                "zap",
                "--log-outputs",
                "stderr",
            ])
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).expect("a log file"))
            .spawn()
            .expect("etcd runs (Debian: etcd-server)");
        let etcd = Self { child, url, _dir: dir };
        let store = etcd.store();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while let Err(error) = store.get("ready").await {
            assert!(tokio::time::Instant::now() < deadline, "etcd does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        etcd
    }

    fn store(&self) -> Store {
        Store::connect(ConnectOptions { endpoints: vec![self.url.clone()], ..Default::default() })
            .expect("good options")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Our own child; if it is gone already, so much the better.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_hosts_share_fifty_subnets_and_the_next_one_waits() {
    let etcd = Etcd::start().await;
    fifty_and_one_more(etcd.store(), FIFTY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_hosts_in_two_families_never_overlap() {
    let etcd = Etcd::start().await;
    fifty_and_one_more(etcd.store(), FIFTY_DUAL).await;
}

/// Renewal is KeepAlive: a lease outlives its time many times over, and no key is ever written again.
/// A host that dies is first silent, then without a lease, then forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn leases_live_by_keep_alive_and_die_in_order() {
    let etcd = Etcd::start().await;
    let network = Network::new(etcd.store(), WIDE).await;
    let times = Times {
        lease: Duration::from_secs(4),
        reclaim_after: Duration::from_secs(9),
        live: Duration::from_secs(2),
    };
    let host = network.start_with(network.wish("ash", 7), None, times);
    let mine = host.leased().await;
    network.until("alive", |registry| registry.live().count() == 1).await;
    // What nobody keeps alive measures the time by etcd's own clock: longer than any of the three.
    let nobody = network.wish("nobody", 9).node;
    let store = &network.store;
    let clock = store.grant(Duration::from_secs(11)).await.expect("granted");
    let txn = Txn::new().put(network.prefix.live(&nobody), r#"{"instance":"-"}"#, Some(clock));
    store.commit(txn).await.expect("written");
    let before = network.registry().await;
    network.until("eleven seconds passed", |registry| registry.live_entry(&nobody).is_none()).await;
    let after = network.registry().await;
    assert!(matches!(after.holder(&mine), Holder::Node(_)));
    assert_eq!(after.live().count(), 1);
    assert_eq!(after.lease(&mine), before.lease(&mine), "not written meanwhile");
    assert_eq!(after.owner(&mine), before.owner(&mine));
    assert_eq!(after.live().next(), before.live().find(|(node, _)| **node != nobody));

    drop(host);
    network.until("silent", |registry| registry.live().count() == 0).await;
    assert!(matches!(network.registry().await.holder(&mine), Holder::Node(_)), "its lease still runs");
    network.until("without a lease", |registry| matches!(registry.holder(&mine), Holder::Claimed(_))).await;
    network.until("forgotten", |registry| matches!(registry.holder(&mine), Holder::Nobody)).await;
}
