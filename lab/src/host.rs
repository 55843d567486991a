//! A host: a namespace with an address on the underlay, an overlay daemon, and power.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use weft_kernel::netns::NetNs;

use crate::http::{self, Response};
use crate::lab::{Inner, READY};
use crate::layout::Node;
use crate::process::ProcessId;
use crate::wait::{TimedOut, wait_for};
use crate::{LabError, Place, netns, proxy};

/// How long the daemon may take to answer one request.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the daemon may take to leave after SIGTERM.
const LEAVE: Duration = Duration::from_secs(10);

/// A machine of the lab. It is a [`Place`] and more.
#[derive(Clone, Debug)]
pub struct Host {
    place: Place,
    pub(crate) node: Node,
}

impl Deref for Host {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Host {
    pub(crate) fn new(lab: Arc<Inner>, node: Node) -> Self {
        let env = environment(&lab, &node);
        let place = Place::new(lab, node.name.clone(), node.netns.clone(), env);
        Self { place, node }
    }

    /// Its IPv4 address on the underlay.
    pub fn v4(&self) -> Ipv4Addr {
        self.node.v4
    }

    /// Its IPv6 address on the underlay.
    pub fn v6(&self) -> Ipv6Addr {
        self.node.v6
    }

    /// An address that it has on the underlay: the IPv4 one, if it has both.
    pub fn address(&self) -> IpAddr {
        self.node.address()
    }

    /// The router's address on its segment.
    pub fn gateway(&self) -> IpAddr {
        self.node.gateway()
    }

    /// Its own directory: state that survives a power cut, and the log.
    pub fn dir(&self) -> PathBuf {
        self.lab.node_dir(self.name())
    }

    /// `--run-dir`: gone after a power cut.
    pub fn run_dir(&self) -> PathBuf {
        run_dir(&self.lab, self.name())
    }

    /// `--state-dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// `--subnet-file`: under the run dir, as `/run/flannel` is under `/run`.
    pub fn subnet_file(&self) -> PathBuf {
        self.run_dir().join("subnet.env")
    }

    /// The daemon's API socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join(&self.lab.spec.network).join("overlay.sock")
    }

    /// Everything the daemon has logged since the lab was made.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.lab.log_path(self.name())).unwrap_or_default()
    }

    /// The variables of the subnet file.
    pub fn subnet_env(&self) -> Result<BTreeMap<String, String>, LabError> {
        let path = self.subnet_file();
        let text =
            std::fs::read_to_string(&path).map_err(LabError::io(format!("read {}", path.display())))?;
        let variables = text.lines().filter_map(|line| line.split_once('='));
        Ok(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// GET over the daemon's socket.
    pub fn api(&self, path: &str) -> Result<Response, LabError> {
        ask(&self.socket(), path)
    }

    /// Starts the overlay daemon and waits until `/readyz` says so.
    pub fn start_overlay(&self) -> Result<(), LabError> {
        self.launch_overlay()?;
        self.wait_until_ready(READY)
    }

    /// Starts the overlay daemon and does not wait.
    pub fn launch_overlay(&self) -> Result<(), LabError> {
        self.launch_overlay_with::<&str>(&[])
    }

    /// As [`Host::launch_overlay`], with further arguments.
    pub fn launch_overlay_with<S: AsRef<str>>(&self, further: &[S]) -> Result<(), LabError> {
        let spec = &self.lab.spec;
        let weft = spec.weft.as_ref().ok_or_else(|| self.lab.without("weft binary"))?;
        let mut args: Vec<String> = vec![
            weft.display().to_string(),
            "overlay".into(),
            format!("--network={}", spec.network),
            format!("--node-id={}", self.name()),
            format!("--run-dir={}", self.run_dir().display()),
            format!("--state-dir={}", self.state_dir().display()),
            format!("--subnet-file={}", self.subnet_file().display()),
        ];
        if spec.etcd_members > 0 {
            args.push(format!("--etcd-endpoints={}", crate::etcd::endpoints(&self.lab)));
            args.push(format!("--etcd-prefix={}", spec.etcd_prefix));
        }
        args.extend(spec.overlay_args.iter().cloned());
        args.extend(further.iter().map(|arg| arg.as_ref().to_owned()));
        self.lab.start_daemon(self.name(), &args).map(drop)
    }

    /// Waits until `/readyz` answers 200. Ends early if the daemon does.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<(), LabError> {
        self.lab.wait_until_ready(self.name(), &self.socket(), limit)
    }

    /// The daemon's process, if it runs.
    pub fn overlay(&self) -> Option<ProcessId> {
        self.lab.daemon(self.name()).ok().flatten()
    }

    /// SIGTERM, and waits for its end. True if it left by itself, false if it had to be killed.
    pub fn stop_overlay(&self) -> Result<bool, LabError> {
        self.lab.stop_daemon(self.name(), Signal::SIGTERM, LEAVE)
    }

    /// SIGKILL, and waits for its end.
    pub fn kill_overlay(&self) -> Result<(), LabError> {
        self.lab.stop_daemon(self.name(), Signal::SIGKILL, LEAVE).map(drop)
    }

    /// Stops and starts the daemon, and waits until it is ready.
    pub fn restart_overlay(&self) -> Result<(), LabError> {
        self.stop_overlay()?;
        self.start_overlay()
    }

    /// Pulls the plug: nothing runs on, no link answers, pods are gone. Files stay, except under
    /// the run dir.
    pub fn die(&self) -> Result<(), LabError> {
        let name = self.name().to_owned();
        // First the cable: not one packet more, as with a real power cut.
        netns::batch(&self.lab.layout.lan, &format!("link del {name}\n"))?;
        let pods = self.lab.home.update(|record| {
            record.off.insert(name.clone());
            record.daemons.remove(&name);
            record.daemons.remove(&proxy::daemon(&name));
            let (gone, stay) = std::mem::take(&mut record.pods).into_iter().partition(|pod| pod.host == name);
            record.pods = stay;
            gone as Vec<crate::record::PodRecord>
        })?;
        let mut namespaces: Vec<String> = pods.into_iter().map(|pod| pod.netns).collect();
        namespaces.push(self.node.netns.clone());
        self.lab.kill_inhabitants(&namespaces)?;
        namespaces.iter().try_for_each(|name| NetNs::delete(name))?;
        match std::fs::remove_dir_all(self.run_dir()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(LabError::io(format!("empty {}", self.run_dir().display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Powers it on after [`Host::die`]: the same name, addresses and network card, an empty kernel.
    /// Starts no daemon.
    pub fn boot(&self) -> Result<(), LabError> {
        self.lab.plug_in(&self.node)?;
        self.lab.home.update(|record| record.off.remove(self.name())).map(drop)
    }

    /// It is powered on.
    pub fn is_on(&self) -> Result<bool, LabError> {
        Ok(!self.lab.off()?.contains(self.name()))
    }
}

impl Inner {
    /// Waits until a daemon's `/readyz` answers 200. Ends early if the daemon does.
    pub(crate) fn wait_until_ready(
        &self,
        daemon: &str,
        socket: &Path,
        limit: Duration,
    ) -> Result<(), LabError> {
        let mut ended = false;
        let looked = wait_for(limit, || {
            if !self.daemon(daemon).is_ok_and(|process| process.is_some()) {
                ended = true;
                return Ok(());
            }
            let answer = ask(socket, "/readyz").map_err(|error| error.chain())?;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(format!("{} {}", answer.status, answer.body.trim()))
            }
        });
        let timed_out = match looked {
            Ok(()) if !ended => return Ok(()),
            Ok(()) => TimedOut { limit, last: "the daemon has ended".into() },
            Err(timed_out) => timed_out,
        };
        let what = format!("the daemon of {daemon} is not ready");
        Err(LabError::Late { what, timed_out, log: self.log_tail(daemon) })
    }
}

/// GET over a daemon's socket.
pub(crate) fn ask(socket: &Path, path: &str) -> Result<Response, LabError> {
    let ask = || {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        http::get(stream, path)
    };
    ask().map_err(LabError::io(format!("get {path} from {}", socket.display())))
}

/// What a command on a host finds in its environment: `weft peers` just works.
fn environment(lab: &Inner, node: &Node) -> Vec<(String, OsString)> {
    let (spec, dir) = (&lab.spec, lab.node_dir(&node.name));
    let run = run_dir(lab, &node.name);
    let mut env: Vec<(String, OsString)> = vec![
        ("WEFT_NETWORK".into(), spec.network.clone().into()),
        ("WEFT_RUN_DIR".into(), run.clone().into()),
        ("WEFT_STATE_DIR".into(), dir.join("state").into()),
        ("WEFT_PROXY_RUN_DIR".into(), run.clone().into()),
        ("WEFT_PROXY_STATE_DIR".into(), dir.join("state").into()),
        ("WEFT_SUBNET_FILE".into(), run.join("subnet.env").into()),
        ("ETCDCTL_API".into(), "3".into()),
    ];
    if spec.etcd_members > 0 {
        env.push(("WEFT_ETCD_ENDPOINTS".into(), crate::etcd::endpoints(lab).into()));
        env.push(("WEFT_ETCD_PREFIX".into(), spec.etcd_prefix.clone().into()));
    }
    if let Some(dir) = spec.weft.as_ref().and_then(|weft| weft.parent()) {
        let mut path = dir.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        env.push(("PATH".into(), path));
    }
    env
}

fn run_dir(lab: &Inner, host: &str) -> PathBuf {
    lab.node_dir(host).join("run")
}
