//! The daemon's Unix socket: for root alone, and never taken from a daemon that still listens.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// A listening socket; its file goes when this does.
pub(super) struct OwnedSocket {
    path: PathBuf,
    /// Which file is ours: by now another daemon's may have this name.
    inode: (u64, u64),
    /// As long as this lives the kernel cannot give our inode's number to another file, so it is
    /// compared before this is closed.
    listener: UnixListener,
}

impl OwnedSocket {
    /// Listens at `path` with mode 0600; missing directories are made. A socket on which nobody listens
    /// (left by a crash) is replaced; anything else in the way is an error.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        // Two daemons that start at once must not both find the socket stale: a lock on the directory,
        // which leaves no file behind, covers looking and binding.
        let _lock = Flock::lock(File::open(directory)?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
        remove_stale(path)?;
        let (family, kind) = (AddressFamily::Unix, SockType::Stream);
        let socket: OwnedFd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        // Linux gives the file the mode that the socket has when it is bound (less the umask), so there
        // is no moment in which others may connect: net/unix/af_unix.c, unix_bind_bsd.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        let found = fs::symlink_metadata(path)?;
        let inode = (found.dev(), found.ino());
        let owned = Self { path: path.to_owned(), inode, listener: UnixListener::from(socket) };
        listen(&owned.listener, Backlog::MAXCONN)?;
        Ok(owned)
    }

    /// The listening socket, non-blocking.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // If it cannot be removed, the next start finds it stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon listens there")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_root_may_connect_and_the_file_goes_with_its_owner() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("blue/overlay.sock");
        let owned = OwnedSocket::listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(owned);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_socket_in_use_is_left_alone_and_a_stale_one_replaced() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("overlay.sock");
        let first = UnixListener::bind(&path).unwrap();
        let error = OwnedSocket::listen(&path).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists());
        let _owned = OwnedSocket::listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("overlay.sock");
        fs::write(&path, "precious").unwrap();
        assert!(OwnedSocket::listen(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_successors_socket_survives_our_end() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("overlay.sock");
        let owned = OwnedSocket::listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = OwnedSocket::listen(&path).unwrap();
        drop(owned);
        UnixStream::connect(&path).unwrap();
    }

    /// Of many that start at once over a stale socket, one listens and all others are told so.
    #[test]
    fn a_race_has_one_winner() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("overlay.sock");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let results: Vec<_> = std::thread::scope(|scope| {
                let starters: Vec<_> = (0..8).map(|_| scope.spawn(|| OwnedSocket::listen(&path))).collect();
                starters.into_iter().map(|starter| starter.join().unwrap()).collect()
            });
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
            let in_use = |result: &io::Result<_>| {
                result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
            };
            assert_eq!(results.iter().filter(|result| in_use(result)).count(), 7);
        }
    }
}
