//! Network namespaces by name: make, remove, look who is inside, and do something in one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::process::{Output, ProcessId, run};

/// Long enough for a starved machine; each of these takes milliseconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a named namespace is bound (ip-netns(8)).
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Makes a namespace.
pub(crate) fn add(name: &str) -> Output {
    ip(&["netns", "add", name])
}

/// Removes a namespace; its links go with it unless something else still holds it.
pub(crate) fn delete(name: &str) -> Output {
    ip(&["netns", "del", name])
}

/// Runs `ip` in the root namespace.
pub(crate) fn ip(args: &[&str]) -> Output {
    let mut command = Command::new("ip");
    command.args(args);
    run(command, format!("ip {}", args.join(" ")), b"", LIMIT)
}

/// Runs a batch of `ip` commands in a namespace; stops at the first that fails.
pub(crate) fn batch(name: &str, commands: &str) -> Output {
    let mut command = Command::new("ip");
    command.args(["-n", name, "-batch", "-"]);
    run(command, format!("ip -n {name} -batch -"), commands.as_bytes(), LIMIT)
}

/// Does something in a namespace, on a thread of its own. Sockets made there stay there, whoever
/// uses them later.
pub(crate) fn run_in<T: Send>(name: &str, job: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(path(name))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(job())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The processes whose namespace is one of these: everything that runs in the lab. Never ourselves.
pub(crate) fn inhabitants(names: &[String]) -> Vec<ProcessId> {
    let inodes: BTreeSet<u64> =
        names.iter().filter_map(|name| path(name).metadata().ok()).map(|meta| meta.ino()).collect();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        // Taken before the namespace is read: if the pid is recycled in between, the start time tells.
        let process = ProcessId::of(pid)?;
        let inode = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
        inodes.contains(&inode).then_some(process)
    });
    pids.filter(|process| Some(*process) != ProcessId::own()).collect()
}
