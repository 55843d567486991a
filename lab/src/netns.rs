//! The lab's dealings with namespaces: `ip` in one, commands in one, and who is inside.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use weft_kernel::netns::{self, InNetNs, NetNs, NetNsError};

use crate::LabError;
use crate::process::{Output, ProcessId, run};

/// Long enough for a starved machine; each of these takes milliseconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a named namespace is bound.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(netns::RUN_DIR).join(name)
}

/// Makes a namespace.
pub(crate) fn add(name: &str) -> Result<(), LabError> {
    Ok(NetNs::create(name).map(drop)?)
}

/// Makes a namespace whose loopback is up.
pub(crate) fn add_with_loopback(name: &str) -> Result<(), LabError> {
    add(name)?;
    batch(name, "link set lo up\n")
}

/// Runs a batch of `ip` commands in a namespace; stops at the first that fails.
pub(crate) fn batch(name: &str, commands: &str) -> Result<(), LabError> {
    let mut command = Command::new("ip");
    command.args(["-n", name, "-batch", "-"]);
    run(command, format!("ip -n {name} -batch -"), commands.as_bytes(), LIMIT).ok().map(drop)
}

/// Runs a program in a namespace.
pub(crate) fn exec(name: &str, program: &str, args: &[&str], stdin: &str) -> Output {
    let shown = format!("{program} {} in {name}", args.join(" "));
    match command(name, program) {
        Ok(mut command) => {
            command.args(args);
            run(command, shown, stdin.as_bytes(), LIMIT)
        }
        Err(error) => Output::not_started(shown, &error),
    }
}

/// A command that will run in a namespace.
pub(crate) fn command(name: &str, program: &str) -> Result<Command, LabError> {
    let mut command = Command::new(program);
    command.in_netns(&NetNs::named(name)?);
    Ok(command)
}

/// Does something in a namespace, on a thread of its own.
pub(crate) fn run_in<T: Send>(name: &str, job: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
    netns::run_in(&NetNs::named(name)?, job)
}

/// The processes whose namespace is one of these: everything that runs in the lab. Never ourselves.
pub(crate) fn inhabitants(names: &[String]) -> Vec<ProcessId> {
    let named = names.iter().filter_map(|name| NetNs::named(name).ok());
    let ids: BTreeSet<(u64, u64)> = named.map(|ns| (ns.id().device, ns.id().inode)).collect();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        // Taken before the namespace is read: if the pid is recycled in between, the start time tells.
        let process = ProcessId::of(pid)?;
        let about = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
        ids.contains(&(about.dev(), about.ino())).then_some(process)
    });
    pids.filter(|process| Some(*process) != ProcessId::own()).collect()
}
