//! `weft cleanup`: takes every trace of the proxy off this host, while its daemon is stopped.
//!
//! Everything is tried, whatever fails, and all of it told. The state directory goes last, and only when
//! all else has gone: it holds what settings were, which a second try needs.

pub(crate) mod base_chains;

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use weft_daemon::log::chain;

use crate::around::network;
use crate::{iptables, nftables};

/// Where the proxy's traces are on this host: what its daemon was told, or its defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// `--run-dir`.
    pub run_dir: PathBuf,
    /// `--state-dir`.
    pub state_dir: PathBuf,
}

/// What became of the traces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was removed or put back, in that order.
    pub removed: Vec<String>,
    /// What is needed to try again, and so was left.
    pub left: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

/// The daemon runs, and would make everything anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`weft proxy` runs ({0}); stop it first")]
pub struct Running(String);

/// Whether the daemon runs. It may start right after.
///
/// # Errors
/// If it does.
pub fn check(traces: &Traces) -> Result<(), Running> {
    refuse_if_running(&traces.run_dir.join("proxy"), &traces.state_dir.join("proxy")).map(drop)
}

/// Removes every trace of the proxy from this thread's network namespace and from the disk: the tables
/// and chains of both modes, routes, settings, sockets and files.
///
/// # Errors
/// While the daemon runs; then nothing is touched.
pub fn cleanup(traces: &Traces) -> Result<Report, Running> {
    let (run, state) = (traces.run_dir.join("proxy"), traces.state_dir.join("proxy"));
    // Held to the end, so that no daemon starts meanwhile.
    let _lock = refuse_if_running(&run, &state)?;
    let mut report = Report::default();
    report.remove_dir(&run);
    rules(&state, &mut report);
    let undone = network::undo(&state);
    report.counted(undone.routes, "route", "");
    report.counted(undone.settings, "kernel setting", ", put back");
    report.failed.extend(undone.failures);
    if report.failed.is_empty() {
        report.remove_dir(&state);
        for shared in [&traces.run_dir, &traces.state_dir] {
            report.remove_if_empty(shared);
        }
    } else if fs::exists(&state).unwrap_or(false) {
        report.left.push(format!("{}, which is needed to try again", state.display()));
    }
    Ok(report)
}

/// The lock that the daemon holds while it runs, if there is a place for it.
fn refuse_if_running(run: &Path, state: &Path) -> Result<Option<Flock<File>>, Running> {
    let socket = run.join("proxy.sock");
    if UnixStream::connect(&socket).is_ok() {
        return Err(Running(format!("{} answers", socket.display())));
    }
    let path = state.join("lock");
    let Ok(file) = File::options().create(true).truncate(false).write(true).open(&path) else {
        return Ok(None);
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err(_) => Err(Running(format!("{} is held", path.display()))),
    }
}

/// Both modes': the one before may have left something when it was killed.
fn rules(state: &Path, report: &mut Report) {
    match nftables::remove() {
        Ok(true) => report.removed.push(format!("nftables table {}", nftables::table_key())),
        Ok(false) => {}
        Err(error) => report.failed.push(chain(&error)),
    }
    match iptables::remove() {
        Ok(chains) => report.counted(chains, "iptables chain", ""),
        Err(error) => report.failed.push(chain(&error)),
    }
    match base_chains::forget(state) {
        Ok(count) => report.counted(count, "empty iptables chain", ""),
        Err(error) => report.failed.push(error),
    }
}

impl Report {
    fn counted(&mut self, count: usize, what: &str, then: &str) {
        match count {
            0 => {}
            1 => self.removed.push(format!("1 {what}{then}")),
            count => self.removed.push(format!("{count} {what}s{then}")),
        }
    }

    fn remove_dir(&mut self, path: &Path) {
        let done = fs::remove_dir_all(path);
        self.done(path, done);
    }

    /// A directory that the daemon made if it was not there, unless others use it too.
    fn remove_if_empty(&mut self, path: &Path) {
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) {
            let done = fs::remove_dir(path);
            self.done(path, done);
        }
    }

    fn done(&mut self, path: &Path, done: io::Result<()>) {
        match done {
            Ok(()) => self.removed.push(path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.failed.push(format!("cannot remove {}: {error}", path.display())),
        }
    }
}
