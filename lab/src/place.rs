//! A place where commands run and sockets open: a host, a pod, the router, the outside.

use std::ffi::OsString;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::lab::Inner;
use crate::process::{Output, Running, run};
use crate::{LabError, netns};

/// How long a command may take if nobody says.
const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace of a lab. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) lab: Arc<Inner>,
    name: String,
    netns: String,
    env: Vec<(String, OsString)>,
}

impl Place {
    pub(crate) fn new(
        lab: Arc<Inner>,
        name: impl Into<String>,
        netns: impl Into<String>,
        env: Vec<(String, OsString)>,
    ) -> Self {
        Self { lab, name: name.into(), netns: netns.into(), env }
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its namespace, as `ip netns` knows it.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Runs a shell command line (`sh -c`), for at most a minute. What it leaves in the background
    /// ends with it; see [`Place::spawn`].
    pub fn run(&self, line: impl AsRef<str>) -> Output {
        self.run_for(PATIENCE, line)
    }

    /// As [`Place::run`] with a limit of its own.
    pub fn run_for(&self, limit: Duration, line: impl AsRef<str>) -> Output {
        self.run_here(&["sh", "-c", line.as_ref()], line.as_ref(), b"", limit)
    }

    /// Runs a program with exactly these arguments, for at most a minute.
    pub fn run_args<S: AsRef<str>>(&self, args: &[S]) -> Output {
        self.run_with_stdin(args, b"")
    }

    /// As [`Place::run_args`], with something to read on stdin.
    pub fn run_with_stdin<S: AsRef<str>>(&self, args: &[S], stdin: &[u8]) -> Output {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        self.run_here(&args, &args.join(" "), stdin, PATIENCE)
    }

    /// Starts a program in the background; it ends when what is returned is dropped.
    pub fn spawn<S: AsRef<str>>(&self, args: &[S]) -> Result<Running, LabError> {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        Running::start(self.command(&args)?, self.shown(&args.join(" ")), b"")
    }

    /// A command that will run here, for callers that want to wire it up themselves.
    ///
    /// # Panics
    /// Without a program.
    pub fn command<S: AsRef<str>>(&self, args: &[S]) -> Result<Command, LabError> {
        let (program, args) = args.split_first().expect("a program and its arguments");
        let mut command = netns::command(&self.netns, program.as_ref())?;
        command.args(args.iter().map(AsRef::as_ref));
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }

    /// Does something in this namespace on a thread of its own. Sockets made there stay there,
    /// whoever uses them later; files under /proc/sys/net are this namespace's.
    pub fn within<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        Ok(netns::run_in(&self.netns, job)?)
    }

    /// One ICMP echo by `ping`, answered within two seconds.
    pub fn ping(&self, address: impl Into<IpAddr>) -> Result<(), LabError> {
        self.run_args(&["ping", "-n", "-c", "1", "-W", "2", &address.into().to_string()]).ok().map(drop)
    }

    fn run_here(&self, args: &[&str], shown: &str, stdin: &[u8], limit: Duration) -> Output {
        let shown = self.shown(shown);
        match self.command(args) {
            Ok(command) => run(command, shown, stdin, limit),
            Err(error) => Output::not_started(shown, &error),
        }
    }

    fn shown(&self, line: &str) -> String {
        format!("{}: {line}", self.name)
    }
}
