//! Network namespaces: opening, making, naming them as `ip netns` does, and running code inside one.
//!
//! A namespace belongs to a *thread* (setns(2)). So code runs inside a foreign one on a thread made for
//! it, which ends there: no thread of a pool is ever left in the wrong namespace. A socket stays in
//! the namespace it was made in, whoever uses it later.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where iproute2 keeps named namespaces (`NETNS_RUN_DIR`), so that both see the same ones.
pub const RUN_DIR: &str = "/run/netns";

/// Something about a namespace failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} network namespace {name}")]
pub struct NetNsError {
    /// What was tried: open, make, enter...
    action: &'static str,
    /// Which one: a path or a name.
    name: String,
    /// The kernel's answer.
    #[source]
    source: io::Error,
}

impl NetNsError {
    fn new(action: &'static str, name: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        Self { action, name: name.to_string(), source: source.into() }
    }

    /// The kernel's answer by its kind, for example `NotFound`.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// A handle on a network namespace. It keeps the namespace alive; clones share one descriptor.
#[derive(Clone, Debug)]
pub struct NetNs {
    file: Arc<OwnedFd>,
    id: NetNsId,
    name: String,
}

/// What tells two namespaces apart: device and inode of their nsfs file (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNsId {
    /// Device of nsfs.
    pub device: u64,
    /// Inode, as `ls -L -i` shows it.
    pub inode: u64,
}

impl NetNs {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace behind a path, such as `/run/netns/blue` or `/proc/7/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetNsError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (about, file) = opened.map_err(|source| NetNsError::new("open", &name, source))?;
        let id = NetNsId { device: about.dev(), inode: about.ino() };
        Ok(Self { file: Arc::new(file.into()), id, name })
    }

    /// The namespace a process is in.
    pub fn of_process(pid: u32) -> Result<Self, NetNsError> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The namespace that `ip netns` knows by this name.
    pub fn named(name: &str) -> Result<Self, NetNsError> {
        Self::open(path_of(name)?)
    }

    /// Makes a namespace without a name: it lives as long as a handle, a process or a socket does.
    pub fn anonymous() -> Result<Self, NetNsError> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetNsError::new("make", "(anonymous)", e))?;
            Self::current()
        })
    }

    /// Makes a namespace that `ip netns` knows by this name; it lives until [`NetNs::delete`]d.
    pub fn create(name: &str) -> Result<Self, NetNsError> {
        let path = path_of(name)?;
        let failed = |source: io::Error| NetNsError::new("make", name, source);
        share_run_dir().map_err(failed)?;
        // O_EXCL and no permissions: what iproute2 does, so that a half-made name cannot be entered.
        fs::OpenOptions::new().write(true).create_new(true).mode(0o0).open(&path).map_err(failed)?;
        let made = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Path::new("/proc/thread-self/ns/net");
            mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(failed(error.into()));
        }
        Self::open(&path)
    }

    /// Takes a name away; the namespace goes with its last handle, process and socket. Deleting what
    /// is not there is a success.
    pub fn delete(name: &str) -> Result<(), NetNsError> {
        let path = path_of(name)?;
        // EINVAL: a plain file left by a crash between creating and mounting it.
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(NetNsError::new("delete", name, error)),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetNsError::new("delete", name, error))
            }
            _ => Ok(()),
        }
    }

    /// The names `ip netns` would list, sorted.
    pub fn list() -> Result<Vec<String>, NetNsError> {
        let entries = match fs::read_dir(RUN_DIR) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(NetNsError::new("list", RUN_DIR, error)),
        };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// What tells it apart from others.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Whether the calling thread is in it.
    pub fn is_current(&self) -> bool {
        Self::current().is_ok_and(|current| current.id == self.id)
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Runs a closure inside a namespace and waits for it. It runs on a thread of its own, which ends
/// with it; a panic inside is a panic here. It blocks: from async code call it by `spawn_blocking`.
pub fn run_in<T: Send>(ns: &NetNs, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
    on_own_thread(|| {
        setns(ns, CloneFlags::CLONE_NEWNET).map_err(|e| NetNsError::new("enter", ns, e))?;
        Ok(work())
    })
}

/// Makes a child process start inside a namespace.
pub trait InNetNs {
    /// The child joins the namespace before it executes. It also gets a mount namespace of its own
    /// with a fresh `/sys`, as `ip netns exec` does: `/sys/class/net` shows the namespace that sysfs
    /// was mounted in, not the one that looks.
    fn in_netns(&mut self, ns: &NetNs) -> &mut Self;
}

impl InNetNs for std::process::Command {
    fn in_netns(&mut self, ns: &NetNs) -> &mut Self {
        let ns = ns.clone();
        // SAFETY: `enter` only makes system calls (setns, unshare, mount, umount2), with arguments
        // that exist already, and allocates nothing: it is safe between fork and exec.
        unsafe { std::os::unix::process::CommandExt::pre_exec(self, move || enter(&ns)) }
    }
}

impl InNetNs for tokio::process::Command {
    fn in_netns(&mut self, ns: &NetNs) -> &mut Self {
        let ns = ns.clone();
        // SAFETY: as above.
        unsafe { self.pre_exec(move || enter(&ns)) }
    }
}

/// Runs in the child between fork and exec: system calls only, nothing allocates (nix copies a short
/// path to the stack, and an errno becomes an `io::Error` in place).
fn enter(ns: &NetNs) -> io::Result<()> {
    const NONE: Option<&std::ffi::CStr> = None;
    setns(ns, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Mounts made outside still come in; ours do not go out.
    mount(NONE, c"/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    // Not mounted (some containers): then there is nothing to replace.
    let _ = umount2(c"/sys", MntFlags::MNT_DETACH);
    mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), MsFlags::empty(), NONE)?;
    Ok(())
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(payload) => panic::resume_unwind(payload),
    })
}

fn path_of(name: &str) -> Result<PathBuf, NetNsError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) || name.len() > 255 {
        let wrong = io::Error::new(io::ErrorKind::InvalidInput, "a name is one component of a path");
        return Err(NetNsError::new("name", name, wrong));
    }
    Ok(Path::new(RUN_DIR).join(name))
}

/// Makes `/run/netns` a shared mount, so that names made in one mount namespace are seen (and, when
/// deleted, let go) in all others; iproute2 does the same (ip/ipnetns.c, `create_netns_dir`).
fn share_run_dir() -> io::Result<()> {
    const NONE: Option<&str> = None;
    fs::create_dir_all(RUN_DIR)?;
    // Two at once would mount the directory over itself twice; iproute2 takes the same lock.
    let lock = Flock::lock(File::open(RUN_DIR)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let share = || mount(NONE, RUN_DIR, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
    match share() {
        // EINVAL: not a mount point yet.
        Err(nix::Error::EINVAL) => {
            mount(Some(RUN_DIR), RUN_DIR, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
            share()?;
        }
        other => other?,
    }
    drop(lock);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn unique(what: &str) -> String {
        format!("weft-t-net-{what}-{}", std::process::id())
    }

    struct Named(String);
    impl Drop for Named {
        fn drop(&mut self) {
            let _ = NetNs::delete(&self.0);
        }
    }

    #[test]
    fn an_anonymous_namespace_is_another_one_and_leaves_the_caller_where_it_was() {
        let before = NetNs::current().unwrap();
        let ns = NetNs::anonymous().unwrap();
        assert_ne!(ns.id(), before.id());
        assert!(run_in(&ns, || ns.is_current()).unwrap());
        assert!(before.is_current());
    }

    #[test]
    fn a_panic_inside_is_a_panic_outside() {
        let ns = NetNs::anonymous().unwrap();
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| run_in(&ns, || panic!("inside"))));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"inside"));
    }

    #[test]
    fn a_named_namespace_is_the_one_ip_netns_knows() {
        let name = unique("named");
        let _guard = Named(name.clone());
        let ns = NetNs::create(&name).unwrap();
        assert_eq!(NetNs::create(&name).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(NetNs::named(&name).unwrap().id(), ns.id());
        assert!(NetNs::list().unwrap().contains(&name));
        let readlink = ["netns", "exec", &name, "readlink", "/proc/self/ns/net"];
        let said = Command::new("ip").args(readlink).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), format!("net:[{}]", ns.id().inode));
        NetNs::delete(&name).unwrap();
        NetNs::delete(&name).unwrap();
        assert!(!NetNs::list().unwrap().contains(&name));
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for name in ["", ".", "..", "../etc", "a/b", "a\0b"] {
            assert_eq!(NetNs::create(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }

    #[test]
    fn a_child_sees_its_namespace_in_sysfs_too() {
        let ns = NetNs::anonymous().unwrap();
        let output = Command::new("ls").arg("/sys/class/net").in_netns(&ns).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "lo");
        let output = Command::new("readlink").arg("/proc/self/ns/net").in_netns(&ns).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("net:[{}]", ns.id().inode));
    }
}
