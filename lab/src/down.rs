//! The end of labs: everything that runs in their namespaces, the namespaces, the directory.
//!
//! Nothing is remembered by pid alone: what runs in a lab's namespace is the lab's, whoever started
//! it and however the lab ended.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use weft_kernel::netns::NetNs;

use crate::layout::check_lab_name;
use crate::record::{self, Home};
use crate::wait::{TimedOut, wait_for};
use crate::{LabError, netns};

/// How long killed processes may take to be gone.
const DEATH: Duration = Duration::from_secs(30);

/// What [`down_all`] did with one lab.
#[derive(Debug)]
pub enum Ending {
    /// It is gone.
    Gone,
    /// It belongs to a process that runs, a test for instance; that one will take it down.
    InUse {
        /// Its owner.
        pid: i32,
    },
    /// It could not be removed.
    Failed(LabError),
}

/// The names of the labs that are up in this directory, sorted.
pub fn list(labs: &Path) -> Result<Vec<String>, LabError> {
    record::names(labs)
}

/// Takes a lab down, crashed or not. `Ok(false)` if there is none of this name.
pub fn down(labs: &Path, name: &str) -> Result<bool, LabError> {
    check_lab_name(name)?;
    let home = Home::of(labs, name);
    if home.read()?.is_none() {
        return Ok(false);
    }
    tear_down(&home).map(|()| true)
}

/// Takes every lab down that nobody uses: those that were left standing and those whose owner is gone.
pub fn down_all(labs: &Path) -> Result<Vec<(String, Ending)>, LabError> {
    let end = |name: String| {
        let home = Home::of(labs, &name);
        let owner = home.read().map(|record| record.and_then(|record| record.owner));
        let ending = match owner {
            Ok(Some(owner)) if owner.is_alive() => Ending::InUse { pid: owner.pid },
            Ok(_) => tear_down(&home).map_or_else(Ending::Failed, |()| Ending::Gone),
            Err(error) => Ending::Failed(error),
        };
        (name, ending)
    };
    Ok(list(labs)?.into_iter().map(end).collect())
}

/// Carries on when something fails, and says at the end what is left.
pub(crate) fn tear_down(home: &Home) -> Result<(), LabError> {
    let record = home.existing()?;
    let mut left = vec![];
    if let Err(timed_out) = kill_all(&record.namespaces) {
        left.push(timed_out.to_string());
    }
    for name in record.namespaces.iter() {
        if let Err(error) = NetNs::delete(name) {
            left.push(LabError::from(error).chain());
        }
    }
    if !left.is_empty() {
        return Err(LabError::Leftovers { lab: record.spec.name, left });
    }
    home.remove().map_err(LabError::io(format!("remove {}", home.dir().display())))
}

/// Kills until nobody is left: a process may be forking while we look.
pub(crate) fn kill_all(namespaces: &[String]) -> Result<(), TimedOut> {
    wait_for(DEATH, || {
        let left = netns::inhabitants(namespaces);
        left.iter().for_each(|process| process.signal(Signal::SIGKILL));
        let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
        if pids.is_empty() { Ok(()) } else { Err(format!("running: {}", pids.join(" "))) }
    })
}
