//! A host's service proxy: the daemon beside the overlay's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::host::ask;
use crate::lab::READY;
use crate::overlay::{drift, sum};
use crate::process::ProcessId;
use crate::{Host, LabError, Response};

/// How long the daemon may take to leave after SIGTERM.
const LEAVE: Duration = Duration::from_secs(10);

/// The name of a node's proxy among the lab's daemons.
pub(crate) fn daemon(node: &str) -> String {
    format!("{node}/proxy")
}

/// The service proxy of a host.
#[derive(Clone, Debug)]
pub struct Proxy {
    host: Host,
}

impl Host {
    /// Its service proxy.
    pub fn proxy(&self) -> Proxy {
        Proxy { host: self.clone() }
    }
}

impl Proxy {
    /// Starts it and waits until `/readyz` says so.
    pub fn start(&self) -> Result<(), LabError> {
        self.launch()?;
        self.wait_until_ready(READY)
    }

    /// Starts it and does not wait.
    pub fn launch(&self) -> Result<(), LabError> {
        self.launch_with::<&str>(&[])
    }

    /// As [`Proxy::launch`], with further arguments.
    pub fn launch_with<S: AsRef<str>>(&self, further: &[S]) -> Result<(), LabError> {
        self.launch_from(&self.host.manifests().dir()?, further)
    }

    /// As [`Proxy::launch_with`], with a folder of manifests that is not the lab's.
    pub fn launch_from<S: AsRef<str>>(&self, manifests: &Path, further: &[S]) -> Result<(), LabError> {
        let lab = &self.host.lab;
        let weft = lab.spec.weft.as_ref().ok_or_else(|| lab.without("weft binary"))?;
        let mut args: Vec<String> = vec![
            weft.display().to_string(),
            "proxy".into(),
            format!("--manifests={}", manifests.display()),
            format!("--node-name={}", self.host.name()),
            format!("--run-dir={}", self.host.run_dir().display()),
            format!("--state-dir={}", self.host.state_dir().display()),
        ];
        args.extend(lab.spec.proxy_args.iter().flatten().cloned());
        args.extend(further.iter().map(|arg| arg.as_ref().to_owned()));
        lab.start_daemon(&self.name(), &args).map(drop)
    }

    /// Waits until `/readyz` answers 200. Ends early if the daemon does.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<(), LabError> {
        self.host.lab.wait_until_ready(&self.name(), &self.socket(), limit)
    }

    /// Its process, if it runs.
    pub fn process(&self) -> Option<ProcessId> {
        self.host.lab.daemon(&self.name()).ok().flatten()
    }

    /// SIGTERM, and waits for its end. True if it left by itself, false if it had to be killed.
    pub fn stop(&self) -> Result<bool, LabError> {
        self.host.lab.stop_daemon(&self.name(), Signal::SIGTERM, LEAVE)
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&self) -> Result<(), LabError> {
        self.host.lab.stop_daemon(&self.name(), Signal::SIGKILL, LEAVE).map(drop)
    }

    /// Stops and starts it, and waits until it is ready.
    pub fn restart(&self) -> Result<(), LabError> {
        self.stop()?;
        self.start()
    }

    /// Its API socket.
    pub fn socket(&self) -> PathBuf {
        self.host.run_dir().join("proxy/proxy.sock")
    }

    /// GET over its socket.
    pub fn api(&self, path: &str) -> Result<Response, LabError> {
        ask(&self.socket(), path)
    }

    /// Everything it has logged since the lab was made.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.host.lab.log_path(&self.name())).unwrap_or_default()
    }

    /// The sum of all samples of `/metrics` that begin so: `name`, or `name{label="value"`.
    pub fn metric(&self, prefix: &str) -> Result<f64, LabError> {
        Ok(sum(&self.api("/metrics")?.body, prefix))
    }

    /// What its kernel lacks or has too much, by the daemon's own fresh look, as an error while there
    /// is any.
    pub fn as_planned(&self) -> Result<(), LabError> {
        let drift = drift(&self.api("/diff")?)?;
        if drift.is_empty() { Ok(()) } else { Err(LabError::Traffic { what: drift.join("; ") }) }
    }

    fn name(&self) -> String {
        daemon(self.host.name())
    }
}
