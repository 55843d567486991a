//! The lab's etcd: real members in namespaces of their own, driven by `etcdctl`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::Inner;
use crate::layout::{Node, Role, in_url};
use crate::process::Output;
use crate::wait::wait_for;
use crate::{Host, LabError, http};

/// How long a member may take to serve: an election, on a starved machine with a slow disk.
const READY: Duration = Duration::from_secs(60);
/// How long a member may take to leave after SIGTERM.
const LEAVE: Duration = Duration::from_secs(20);
/// How long one answer about its health may take.
const LOOK: Duration = Duration::from_secs(2);
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// The lab's etcd cluster.
#[derive(Clone, Debug)]
pub struct Etcd {
    lab: Arc<Inner>,
}

impl Etcd {
    pub(crate) fn new(lab: Arc<Inner>) -> Self {
        Self { lab }
    }

    /// The client URLs, separated by commas.
    pub fn endpoints(&self) -> String {
        endpoints(&self.lab)
    }

    /// The members, as places: their names are `etcd`, `etcd-2`, `etcd-3`.
    pub fn members(&self) -> Vec<Host> {
        self.nodes().map(|node| Host::new(self.lab.clone(), node.clone())).collect()
    }

    /// Runs `etcdctl` with these arguments where the first member is, against all members.
    pub fn ctl<S: AsRef<str>>(&self, args: &[S]) -> Result<Output, LabError> {
        self.ctl_at(&self.endpoints(), args)
    }

    /// As [`Etcd::ctl`], against these endpoints.
    pub fn ctl_at<S: AsRef<str>>(&self, endpoints: &str, args: &[S]) -> Result<Output, LabError> {
        let member = self.members().into_iter().next().ok_or_else(|| self.lab.without("etcd"))?;
        let endpoints = format!("--endpoints={endpoints}");
        let program = ["etcdctl", &endpoints];
        let args: Vec<&str> = program.into_iter().chain(args.iter().map(AsRef::as_ref)).collect();
        Ok(member.run_args(&args))
    }

    /// Writes a key.
    pub fn put(&self, key: &str, value: &str) -> Result<(), LabError> {
        // `--` because a value may begin with a dash.
        self.ctl(&["put", "--", key, value])?.ok().map(drop)
    }

    /// A key's value.
    pub fn get(&self, key: &str) -> Result<Option<String>, LabError> {
        let answer = self.ctl(&["get", "--", key])?.ok()?;
        let value = answer.strip_prefix(key).and_then(|rest| rest.strip_prefix('\n'));
        Ok(value.map(|value| value.strip_suffix('\n').unwrap_or(value).to_owned()))
    }

    /// The keys that begin with `prefix`, sorted.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, LabError> {
        let answer = self.ctl(&["get", "--prefix", "--keys-only", "--", prefix])?.ok()?;
        Ok(answer.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Deletes a key; true if it was there.
    pub fn delete(&self, key: &str) -> Result<bool, LabError> {
        Ok(self.ctl(&["del", "--", key])?.ok()?.trim() != "0")
    }

    /// Deletes every key that begins with `prefix`.
    pub fn delete_prefix(&self, prefix: &str) -> Result<(), LabError> {
        self.ctl(&["del", "--prefix", "--", prefix])?.ok().map(drop)
    }

    /// The current revision.
    pub fn revision(&self) -> Result<i64, LabError> {
        let output = self.ctl(&["endpoint", "status", "-w", "json"])?;
        let (command, answer) = (output.command.clone(), output.stdout.clone());
        let status = output.json()?;
        status[0]["Status"]["header"]["revision"].as_i64().ok_or_else(|| LabError::Answer {
            command,
            answer,
            source: serde::de::Error::missing_field("[0].Status.header.revision"),
        })
    }

    /// Compacts everything before the current revision.
    pub fn compact(&self) -> Result<(), LabError> {
        let revision = self.revision()?;
        self.ctl(&["compact", &revision.to_string()])?.ok().map(drop)
    }

    /// Starts every member that does not run, and waits until each serves.
    pub fn start(&self) -> Result<(), LabError> {
        self.nodes().try_for_each(|node| self.launch(&node.name))?;
        self.nodes().try_for_each(|node| self.wait_until_healthy(node))
    }

    /// Starts one member, and does not wait.
    pub fn launch(&self, member: &str) -> Result<(), LabError> {
        if self.lab.daemon(member)?.is_none() {
            let args = self.arguments(self.node(member)?)?;
            self.lab.start_daemon(member, &args)?;
        }
        Ok(())
    }

    /// SIGTERM to every member.
    pub fn stop(&self) -> Result<(), LabError> {
        self.end(Signal::SIGTERM)
    }

    /// SIGKILL to every member.
    pub fn kill(&self) -> Result<(), LabError> {
        self.end(Signal::SIGKILL)
    }

    /// SIGKILL to one member.
    pub fn kill_member(&self, member: &str) -> Result<(), LabError> {
        self.lab.stop_daemon(member, Signal::SIGKILL, LEAVE).map(drop)
    }

    /// The member that leads, by name.
    pub fn leader(&self) -> Result<Option<String>, LabError> {
        let status = self.ctl(&["endpoint", "status", "-w", "json"])?.json()?;
        let rows = status.as_array().map(Vec::as_slice).unwrap_or_default();
        let leads =
            |row: &&serde_json::Value| row["Status"]["leader"] == row["Status"]["header"]["member_id"];
        let url = rows.iter().find(leads).and_then(|row| row["Endpoint"].as_str()).map(str::to_owned);
        Ok(url
            .and_then(|url| self.nodes().find(|node| client_url(node) == url).map(|node| node.name.clone())))
    }

    /// Loses all data: stopped, emptied, started. The cluster's id is another one.
    pub fn wipe(&self) -> Result<(), LabError> {
        self.lab.home.update(|record| record.etcd_generation += 1)?;
        self.wipe_keeping_id()
    }

    /// Loses all data, as from a restored disk image: the cluster's id stays, revisions go backwards.
    pub fn wipe_keeping_id(&self) -> Result<(), LabError> {
        self.kill()?;
        for node in self.nodes() {
            let data = self.lab.node_dir(&node.name).join("data");
            std::fs::remove_dir_all(&data).map_err(LabError::io(format!("remove {}", data.display())))?;
        }
        self.start()
    }

    /// Stops time for every member (SIGSTOP): connections stay open and nothing answers.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets time go on after [`Etcd::freeze`].
    pub fn thaw(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), LabError> {
        for node in self.nodes() {
            if let Some(process) = self.lab.daemon(&node.name)? {
                process.signal(signal);
            }
        }
        Ok(())
    }

    fn end(&self, signal: Signal) -> Result<(), LabError> {
        self.nodes().try_for_each(|node| self.lab.stop_daemon(&node.name, signal, LEAVE).map(drop))
    }

    fn wait_until_healthy(&self, node: &Node) -> Result<(), LabError> {
        let member = Host::new(self.lab.clone(), node.clone());
        let ask = || {
            let stream = member.tcp_connect(SocketAddr::new(node.address(), CLIENT_PORT))?;
            let health = stream.set_read_timeout(Some(LOOK)).and_then(|()| http::get(stream, "/health"));
            health.map_err(LabError::io("ask for its health"))
        };
        wait_for(READY, || match ask() {
            Ok(answer) if answer.status == 200 && answer.body.contains("true") => Ok(()),
            Ok(answer) => Err(format!("{} {}", answer.status, answer.body.trim())),
            Err(error) => Err(error.chain()),
        })
        .map_err(|timed_out| LabError::Late {
            what: format!("{} does not serve", node.name),
            timed_out,
            log: self.lab.log_tail(&node.name),
        })
    }

    fn arguments(&self, node: &Node) -> Result<Vec<String>, LabError> {
        let generation = self.lab.home.existing()?.etcd_generation;
        let peer = |node: &Node| format!("http://{}:{PEER_PORT}", in_url(node.address()));
        let cluster: Vec<String> = self.nodes().map(|node| format!("{}={}", node.name, peer(node))).collect();
        let flags = [
            ("name", node.name.clone()),
            ("data-dir", self.lab.node_dir(&node.name).join("data").display().to_string()),
            ("listen-client-urls", format!("{},http://127.0.0.1:{CLIENT_PORT}", client_url(node))),
            ("advertise-client-urls", client_url(node)),
            ("listen-peer-urls", peer(node)),
            ("initial-advertise-peer-urls", peer(node)),
            ("initial-cluster", cluster.join(",")),
            ("initial-cluster-token", format!("{}-{generation}", self.lab.spec.name)),
            ("initial-cluster-state", "new".into()),
            ("logger", "zap".into()),
            ("log-outputs", "stderr".into()),
        ];
        let flags = flags.into_iter().map(|(name, value)| format!("--{name}={value}"));
        Ok(["etcd".to_owned()].into_iter().chain(flags).collect())
    }

    fn node(&self, member: &str) -> Result<&Node, LabError> {
        self.nodes().find(|node| node.name == member).ok_or_else(|| self.lab.without("such etcd member"))
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.lab.layout.with_role(Role::Etcd)
    }
}

pub(crate) fn endpoints(lab: &Inner) -> String {
    let urls: Vec<String> = lab.layout.with_role(Role::Etcd).map(client_url).collect();
    urls.join(",")
}

fn client_url(node: &Node) -> String {
    format!("http://{}:{CLIENT_PORT}", in_url(node.address()))
}
