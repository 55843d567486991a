//! A lab that is up: its hosts, its etcd, its daemons; and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::builder::Builder;
use crate::layout::{Layout, Node, Role, Spec, check_lab_name};
use crate::process::ProcessId;
use crate::record::{Home, Record};
use crate::{Etcd, Host, LabError, Place, Pod, down, netns, proxy};

/// How long a daemon may take to be ready: a join takes two seconds, a starved machine many more.
pub(crate) const READY: Duration = Duration::from_secs(60);
/// How many lines of each log a failed test shows, and how much of each line.
const TAIL: usize = 40;
const TAIL_WIDTH: usize = 400;

/// A lab. Dropping it takes everything down, unless it was [`Lab::left_standing`].
///
/// With `WEFT_LAB_KEEP=1` in the environment a lab whose test failed stays, to be looked into.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
    ends_on_drop: bool,
}

/// What every handle of a lab shares. What changes is in the record on disk.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) home: Home,
    pub(crate) spec: Spec,
    pub(crate) layout: Layout,
    /// Daemons that are our own children, to be reaped; after [`Lab::open`] there are none.
    children: Mutex<BTreeMap<String, Child>>,
    /// How often manifests were declared from here.
    pub(crate) declared: Mutex<u32>,
}

impl Lab {
    /// A lab for a test or a bench: its name is unique, it ends with this value or this process.
    #[expect(clippy::new_ret_no_self, reason = "`Lab::new(\"story\").hosts(...).up()` reads as a sentence")]
    pub fn new(story: &str) -> Builder {
        Builder::for_story(story)
    }

    /// A lab with a name of its own, which stays until it is taken [`down`](crate::down).
    pub fn named(name: &str) -> Builder {
        Builder::named(name, true)
    }

    /// A lab that is up. It stays when this handle is dropped.
    pub fn open(labs: &Path, name: &str) -> Result<Self, LabError> {
        check_lab_name(name)?;
        let home = Home::of(labs, name);
        let spec = home.existing()?.spec;
        let layout = Layout::of(&spec)?;
        Ok(Self::over(Inner::new(home, spec, layout), false))
    }

    pub(crate) fn over(inner: Inner, ends_on_drop: bool) -> Self {
        Self { inner: Arc::new(inner), ends_on_drop }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    /// What it is made of.
    pub fn spec(&self) -> &Spec {
        &self.inner.spec
    }

    /// The directory with its record, logs and the hosts' files.
    pub fn dir(&self) -> &Path {
        self.inner.home.dir()
    }

    /// What is known of it at the moment.
    pub fn record(&self) -> Result<Record, LabError> {
        self.inner.home.existing()
    }

    /// A host that was asked for.
    ///
    /// # Panics
    /// If there is none of this name; see [`Lab::find_host`].
    #[track_caller]
    pub fn host(&self, name: &str) -> Host {
        match self.find_host(name) {
            Ok(host) => host,
            Err(error) => panic!("{error}"),
        }
    }

    /// The host of this name.
    pub fn find_host(&self, name: &str) -> Result<Host, LabError> {
        let hosts = self.inner.layout.with_role(Role::Host);
        hosts.clone().find(|node| node.name == name).map(|node| self.host_of(node)).ok_or_else(|| {
            LabError::NoSuchHost {
                host: name.to_owned(),
                lab: self.name().to_owned(),
                known: hosts.map(|node| node.name.clone()).collect(),
            }
        })
    }

    /// Its hosts, in the order they were asked for.
    pub fn hosts(&self) -> Vec<Host> {
        self.inner.layout.with_role(Role::Host).map(|node| self.host_of(node)).collect()
    }

    /// Its etcd.
    pub fn etcd(&self) -> Etcd {
        Etcd::new(self.inner.clone())
    }

    /// The machine behind the router that knows the hosts, and nothing of the overlay.
    pub fn outside(&self) -> Host {
        let node = self.inner.layout.with_role(Role::Outside).next();
        self.host_of(node.expect("every layout has one"))
    }

    /// A place by what a person calls it: a host, `host/pod`, an etcd member, `router`, `outside`
    /// or `lan`.
    pub fn place(&self, name: &str) -> Result<Place, LabError> {
        if let Some((host, pod)) = name.split_once('/') {
            let found = self.find_host(host)?.find_pod(pod)?;
            return found
                .map(|pod| (*pod).clone())
                .ok_or_else(|| LabError::NoSuchPod { host: host.to_owned(), pod: pod.to_owned() });
        }
        match (name, self.inner.layout.node(name)) {
            ("router", _) => Ok(self.router()),
            ("lan", _) => Ok(self.lan()),
            (_, Some(node)) => Ok((*self.host_of(node)).clone()),
            (_, None) => Ok((*self.find_host(name)?).clone()),
        }
    }

    /// The namespace that joins the segments.
    pub fn router(&self) -> Place {
        Place::new(self.inner.clone(), "router", self.inner.layout.router.clone(), vec![])
    }

    /// The namespace with the bridges. Its links bear the hosts' names: a place to listen.
    pub fn lan(&self) -> Place {
        Place::new(self.inner.clone(), "lan", self.inner.layout.lan.clone(), vec![])
    }

    /// A new pod on this host. Its name is made up; [`Host::pod`] takes one.
    pub fn pod_on(&self, host: &str) -> Result<Pod, LabError> {
        self.find_host(host)?.new_pod()
    }

    /// The pods there are.
    pub fn pods(&self) -> Result<Vec<Pod>, LabError> {
        let record = self.record()?;
        record.pods.iter().map(|pod| Ok(Pod::over(self.find_host(&pod.host)?, pod))).collect()
    }

    /// Lets it stand when this handle is dropped and this process ends.
    pub fn left_standing(mut self) -> Result<Self, LabError> {
        self.inner.home.update(|record| record.owner = None)?;
        self.ends_on_drop = false;
        Ok(self)
    }

    /// Takes it down and says what could not be removed. Dropping does the same in silence.
    pub fn down(mut self) -> Result<(), LabError> {
        self.ends_on_drop = false;
        self.end()
    }

    fn end(&self) -> Result<(), LabError> {
        let result = down::tear_down(&self.inner.home);
        self.inner.reap_all();
        result
    }

    /// The end of a lab in which something failed, for those whose failures are no panics of the thread
    /// that holds it: logs are shown, and with `WEFT_LAB_KEEP=1` it stays.
    pub fn failed(mut self) {
        self.ends_on_drop = false;
        self.end_of_failed();
    }

    fn end_of_failed(&self) {
        self.show_logs();
        if std::env::var_os("WEFT_LAB_KEEP").is_some_and(|keep| keep == "1") {
            eprintln!("---- lab {0} stays; `weft down --name {0}` removes it", self.name());
        } else if let Err(error) = self.end() {
            eprintln!("{}", error.chain());
        }
    }

    fn host_of(&self, node: &Node) -> Host {
        Host::new(self.inner.clone(), node.clone())
    }

    /// For a failed test: the end of every log on stderr, and all logs in a directory that is named.
    fn show_logs(&self) {
        let kept = std::env::temp_dir().join(format!("weft-lab-{}", self.name()));
        let _ = std::fs::create_dir_all(&kept);
        for (name, log) in self.inner.logs() {
            eprintln!("---- {} {name}: the last lines", self.name());
            // etcd is talkative, and seldom the one to blame.
            let etcd = self.inner.layout.node(&name).is_some_and(|node| node.role == Role::Etcd);
            eprintln!("{}", tail(&log, if etcd { TAIL / 8 } else { TAIL }));
            let _ = std::fs::copy(&log, kept.join(format!("{}.log", name.replace('/', "-"))));
        }
        eprintln!("---- the whole logs of {} are in {}", self.name(), kept.display());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.ends_on_drop {
            return;
        }
        if std::thread::panicking() {
            self.end_of_failed();
        } else if let Err(error) = self.end() {
            eprintln!("{}", error.chain());
        }
    }
}

impl Inner {
    pub(crate) fn new(home: Home, spec: Spec, layout: Layout) -> Self {
        Self { home, spec, layout, children: Mutex::default(), declared: Mutex::default() }
    }

    /// A node's own directory.
    pub(crate) fn node_dir(&self, name: &str) -> PathBuf {
        self.home.dir().join(name)
    }

    /// Where a daemon logs to.
    pub(crate) fn log_path(&self, daemon: &str) -> PathBuf {
        match daemon.split_once('/') {
            None => self.node_dir(daemon).join("log"),
            Some((node, second)) => self.node_dir(node).join(format!("{second}.log")),
        }
    }

    /// The logs there are, by daemon.
    fn logs(&self) -> Vec<(String, PathBuf)> {
        let daemons = |node: &Node| [node.name.clone(), proxy::daemon(&node.name)];
        let logs =
            self.layout.nodes.iter().flat_map(daemons).map(|name| (name.clone(), self.log_path(&name)));
        logs.filter(|(_, log)| log.exists()).collect()
    }

    /// Starts a daemon, its output appended to its log. It is named after its node; a node's second
    /// one is `node/second`.
    pub(crate) fn start_daemon(&self, name: &str, args: &[String]) -> Result<ProcessId, LabError> {
        use std::os::unix::process::CommandExt;
        let io = |source| LabError::Io { what: format!("start the daemon of {name}"), source };
        let node = name.split('/').next().and_then(|node| self.layout.node(node));
        let node = node.ok_or_else(|| self.without("such node"))?;
        std::fs::create_dir_all(self.node_dir(&node.name)).map_err(io)?;
        let log = OpenOptions::new().append(true).create(true).open(self.log_path(name)).map_err(io)?;
        let (program, args) = args.split_first().expect("a program and its arguments");
        let mut command = netns::command(&node.netns, program)?;
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().map_err(io)?).stderr(log);
        // A group of its own: the terminal's Ctrl-C is for the one who typed `weft up`.
        let child = command.process_group(0).spawn().map_err(io)?;
        let pid = i32::try_from(child.id()).expect("Linux pids fit 22 bits");
        let process = ProcessId::of(pid);
        if let Some(mut old) = self.children().insert(name.to_owned(), child) {
            let _ = old.wait();
        }
        let process = process.ok_or_else(|| LabError::Without {
            lab: self.spec.name.clone(),
            what: "daemon: it ended at once",
        })?;
        self.home.update(|record| record.daemons.insert(name.to_owned(), process))?;
        Ok(process)
    }

    /// A daemon, if it runs.
    pub(crate) fn daemon(&self, name: &str) -> Result<Option<ProcessId>, LabError> {
        let record = self.home.existing()?;
        Ok(record.daemons.get(name).copied().filter(|process| process.is_alive()))
    }

    /// Ends a daemon. True if it obeyed before SIGKILL; false also if there was none.
    pub(crate) fn stop_daemon(
        &self,
        name: &str,
        signal: Signal,
        patience: Duration,
    ) -> Result<bool, LabError> {
        let process = self.home.update(|record| record.daemons.remove(name))?;
        let obeyed = process.is_some_and(|process| process.end(signal, patience));
        if let Some(mut child) = self.children().remove(name) {
            let _ = child.wait();
        }
        Ok(obeyed)
    }

    /// Ends everything that runs in these namespaces, at once.
    pub(crate) fn kill_inhabitants(&self, names: &[String]) -> Result<(), LabError> {
        down::kill_all(names).map_err(|timed_out| LabError::Late {
            what: format!("everything in {} killed", names.join(", ")),
            timed_out,
            log: String::new(),
        })?;
        self.children().retain(|_, child| matches!(child.try_wait(), Ok(None)));
        Ok(())
    }

    /// Makes a node's namespace, link and addresses.
    pub(crate) fn plug_in(&self, node: &Node) -> Result<(), LabError> {
        netns::add(&node.netns)?;
        netns::batch(&self.layout.lan, &self.layout.port_batch(node))?;
        netns::batch(&node.netns, &self.layout.node_batch(node))
    }

    /// The last lines of a daemon's log, for an error.
    pub(crate) fn log_tail(&self, name: &str) -> String {
        let log = self.log_path(name);
        format!("\n---- the end of {}:\n{}", log.display(), tail(&log, TAIL))
    }

    pub(crate) fn without(&self, what: &'static str) -> LabError {
        LabError::Without { lab: self.spec.name.clone(), what }
    }

    /// The names of the machines that are powered off.
    pub(crate) fn off(&self) -> Result<BTreeSet<String>, LabError> {
        Ok(self.home.existing()?.off)
    }

    fn reap_all(&self) {
        for child in self.children().values_mut() {
            let _ = child.wait();
        }
    }

    fn children(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last lines of a file; an unreadable one is said to be so.
fn tail(path: &Path, lines: usize) -> String {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => return format!("({}: {error})", path.display()),
    };
    let text = String::from_utf8_lossy(&text);
    let short = |line: &str| line.chars().take(TAIL_WIDTH).collect::<String>();
    let skipped = text.lines().count().saturating_sub(lines);
    text.lines().skip(skipped).map(short).collect::<Vec<_>>().join("\n")
}
