//! `weft cleanup`: takes every trace of one network off this host, while its daemon is stopped.
//!
//! [`doomed`] decides what of the kernel's network is ours (pure); this file looks, removes, goes on
//! when something fails, and tells all. The state directory goes last, and only when all else has
//! gone: it holds what a second try needs.
//!
//! For flanneld to go on in place, its links and routes can be [given back](crate::takeover::give_back)
//! first: the tunnel is then no trace of ours any more.

mod doomed;
mod trail;

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use weft_daemon::log::chain;
use weft_daemon::settings::Settings;
use weft_kernel::iptables::programs;
use weft_kernel::net::{Change, Rtnetlink};
use weft_kernel::nft::{Nft, TableKey, Transaction};

use crate::firewall::{self, forward};
use crate::options::NetworkName;
use crate::plan::Scope;
use crate::takeover;
use doomed::{Doomed, doomed};
use trail::Trail;

/// Where a network's traces are on this host: what its daemon was told, or its defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// `--network`.
    pub network: NetworkName,
    /// `--run-dir`.
    pub run_dir: PathBuf,
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// `--subnet-file`.
    pub subnet_file: PathBuf,
    /// The tunnel becomes flannel's again, for flanneld to go on with.
    pub give_back_flannel: bool,
}

/// What became of the traces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What became flannel's again.
    pub given_back: Vec<String>,
    /// What was removed or put back, in that order.
    pub removed: Vec<String>,
    /// What looks like ours and was left, and why.
    pub left: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

/// The daemon runs, and would make everything anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`weft overlay` of network {network} runs ({sign}); stop it first")]
pub struct Running {
    network: NetworkName,
    sign: String,
}

/// Whether the daemon runs. It may start right after.
///
/// # Errors
/// If it does.
pub fn check(traces: &Traces) -> Result<(), Running> {
    let network = traces.network.as_str();
    refuse_if_running(traces, &traces.run_dir.join(network), &traces.state_dir.join(network)).map(drop)
}

/// Removes every trace of the network from this thread's network namespace and from the disk.
///
/// # Errors
/// While the daemon runs; then nothing is touched.
pub fn cleanup(traces: &Traces) -> Result<Report, Running> {
    let state = traces.state_dir.join(traces.network.as_str());
    let run = traces.run_dir.join(traces.network.as_str());
    // Held to the end, so that no daemon starts meanwhile.
    let _lock = refuse_if_running(traces, &run, &state)?;
    let mut trail = Trail::read(traces);
    let mut report = Report::default();
    if traces.give_back_flannel {
        give_back(&mut trail, &mut report);
        if !report.failed.is_empty() {
            // What could not be given back would be removed, and with it every connection.
            return Ok(report);
        }
    }
    // First what is offered to container runtimes, so that no pod is wired from now on.
    report.remove_dir(&run);
    network(&trail, &mut report);
    filters(traces, &mut report);
    report.settings(&state);
    subnet_file(traces, &trail, &mut report);
    if report.failed.is_empty() {
        report.remove_dir(&state);
        if !fs::exists(&state).unwrap_or(true) && trail.is_last {
            report.remove_file(&traces.state_dir.join("node-id"));
        }
        for shared in [&traces.run_dir, &traces.state_dir] {
            report.remove_if_empty(shared);
        }
    } else if fs::exists(&state).unwrap_or(false) {
        report.left.push(format!("{}, which is needed to try again", state.display()));
    }
    Ok(report)
}

/// The lock that the daemon holds while it runs, if there is a place for it.
fn refuse_if_running(traces: &Traces, run: &Path, state: &Path) -> Result<Option<Flock<File>>, Running> {
    let running = |sign: String| Running { network: traces.network.clone(), sign };
    let socket = run.join("overlay.sock");
    if UnixStream::connect(&socket).is_ok() {
        return Err(running(format!("{} answers", socket.display())));
    }
    let path = state.join("lock");
    let Ok(file) = File::options().create(true).truncate(false).write(true).open(&path) else {
        return Ok(None);
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err(_) => Err(running(format!("{} is held", path.display()))),
    }
}

/// VXLAN links and routes to other hosts get flannel's names and marks.
fn give_back(trail: &mut Trail, report: &mut Report) {
    if trail.ranges.is_empty() {
        let why = "the cache holds no network config that says which routes to give back";
        return report.failed.push(why.to_owned());
    }
    let (net, observed) =
        match Rtnetlink::open().and_then(|net| net.observe_blocking().map(|seen| (net, seen))) {
            Ok(found) => found,
            Err(error) => return report.failed.push(chain(&error)),
        };
    let scope = Scope { network: trail.network.clone(), ranges: trail.ranges.iter().copied().collect() };
    let changes = takeover::give_back(&observed, &scope);
    let failures = net.apply_blocking(&changes);
    let done = changes.iter().enumerate().filter(|(index, _)| !failures.iter().any(|f| f.index == *index));
    report.given_back.extend(done.filter_map(|(_, change)| match change {
        Change::RenameLink { from, to } => Some(format!("link {from} as {to}")),
        Change::ReplaceRoute(route) => Some(format!("route {}", route.key.dst)),
        _ => None,
    }));
    report.failed.extend(failures.iter().map(|failure| chain(failure)));
    match net.observe_blocking() {
        Ok(observed) => trail.follow(&observed),
        Err(error) => report.failed.push(chain(&error)),
    }
}

/// Links with all that hangs on them, and routes on others' links.
fn network(trail: &Trail, report: &mut Report) {
    /// IPv6 may hold several routes under one key, of which a list shows the first: look again.
    const ROUNDS: usize = 4;
    let net = match Rtnetlink::open() {
        Ok(net) => net,
        Err(error) => return report.failed.push(chain(&error)),
    };
    for _ in 0..ROUNDS {
        let observed = match net.observe_blocking() {
            Ok(observed) => observed,
            Err(error) => return report.failed.push(chain(&error)),
        };
        let Doomed { changes, left } = doomed(trail, &observed);
        report.left = left;
        if changes.is_empty() {
            return;
        }
        let failures = net.apply_blocking(&changes);
        let failed = |index: usize| failures.iter().any(|failure| failure.index == index);
        for (_, change) in changes.iter().enumerate().filter(|(index, _)| !failed(*index)) {
            report.removed.push(match change {
                Change::DeleteLink(name) => format!("link {name}"),
                Change::DeleteRoute(route) => format!("route {route}"),
                Change::DeleteProxy(proxy) => format!("proxy entry {proxy}"),
                other => other.to_string(),
            });
        }
        report.failed.extend(failures.iter().map(|failure| chain(failure)));
        if !failures.is_empty() {
            return;
        }
    }
}

/// The network's own nftables table, and its rules in iptables' chains.
fn filters(traces: &Traces, report: &mut Report) {
    let network = traces.network.as_str();
    let (mut nft, tables) = match look() {
        Ok(found) => found,
        Err(error) => return report.failed.push(error),
    };
    match firewall::table_key(network) {
        Ok(key) if tables.contains(&key) => match nft.commit(&Transaction::new().remove(&key)) {
            Ok(()) => report.removed.push(format!("nftables table {key}")),
            Err(error) => report.failed.push(chain(&error)),
        },
        Ok(_) => {}
        Err(error) => report.failed.push(chain(&error)),
    }
    for set in programs::in_use(&tables) {
        let done = programs::save(set).and_then(|saved| {
            let steps = forward::close(&saved, network);
            programs::restore(set, &steps)?;
            Ok(!steps.is_empty())
        });
        match done {
            Ok(true) => report.removed.push(format!("rules that {} lists", set.save_program())),
            Ok(false) => {}
            Err(error) => report.failed.push(chain(&error)),
        }
    }
}

fn look() -> Result<(Nft, Vec<TableKey>), String> {
    let mut nft = Nft::open().map_err(|error| format!("cannot open a netlink socket: {error}"))?;
    let tables = nft.tables().map_err(|error| chain(&error))?;
    Ok((nft, tables))
}

/// The file is removed if it speaks of this network. Where flannel's links are, flanneld has come
/// back and the file is its own: in the same subnet it writes the same words.
fn subnet_file(traces: &Traces, trail: &Trail, report: &mut Report) {
    let path = &traces.subnet_file;
    let Ok(text) = fs::read_to_string(path) else { return };
    if !trail.wrote(&text) {
        return;
    }
    if let Some(flannel) = &trail.flannel {
        let shown = path.display();
        return report.left.push(format!("{shown}, because link {flannel} says that flanneld has come back"));
    }
    if report.remove_file(path)
        && let Some(dir) = path.parent()
    {
        report.remove_if_empty(dir);
    }
}

impl Report {
    fn settings(&mut self, state: &Path) {
        match Settings::new(state).restore() {
            Ok(0) => {}
            Ok(1) => self.removed.push("1 kernel setting, put back".to_owned()),
            Ok(count) => self.removed.push(format!("{count} kernel settings, put back")),
            Err(error) => self.failed.push(chain(&error)),
        }
    }

    fn remove_dir(&mut self, path: &Path) {
        let done = fs::remove_dir_all(path);
        self.done(path, done);
    }

    fn remove_file(&mut self, path: &Path) -> bool {
        let done = fs::remove_file(path);
        self.done(path, done)
    }

    /// A directory that the daemon made if it was not there, unless others use it too.
    fn remove_if_empty(&mut self, path: &Path) {
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) {
            let done = fs::remove_dir(path);
            self.done(path, done);
        }
    }

    fn done(&mut self, path: &Path, done: io::Result<()>) -> bool {
        match done {
            Ok(()) => self.removed.push(path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(error) => {
                self.failed.push(format!("cannot remove {}: {error}", path.display()));
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
