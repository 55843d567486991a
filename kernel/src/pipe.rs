//! Pipes that carry bytes from one socket to another without a copy: splice(2).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// A pipe, and how much is in it. Nothing here blocks.
#[derive(Debug)]
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

impl Pipe {
    /// A pipe with room for so many bytes in whole pages, or with what room the kernel gives
    /// (`fs.pipe-max-size`, `fs.pipe-user-pages-soft`): less room only takes more calls.
    ///
    /// # Errors
    /// When there is none to be had: out of descriptors, or of memory.
    pub fn new(size: usize) -> io::Result<Self> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused for who may not have as much.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(i32::try_from(size).unwrap_or(i32::MAX)));
        Ok(Self { out, into, held: 0 })
    }

    /// How many bytes are in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves at most so many bytes from a socket into the pipe; 0 are the end of what the peer sends.
    /// With a pipe that is not empty, nobody can tell whether `WouldBlock` means the socket or the pipe.
    ///
    /// # Errors
    /// What reading the socket would say.
    pub fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        let moved = splice(from, None, &self.into, None, most, FLAGS)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what is in the pipe, as far as it goes, to a socket.
    ///
    /// # Errors
    /// What writing to the socket would say.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.out, None, to, None, self.held, FLAGS)?;
        self.held -= moved;
        Ok(moved)
    }
}

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_go_from_socket_to_socket() {
        let ((mut client, from), (to, mut server)) = (pair(), pair());
        let mut pipe = Pipe::new(1 << 16).unwrap();
        client.write_all(b"hello").unwrap();
        assert_eq!(pipe.fill(&from, 1 << 16).unwrap(), 5);
        assert_eq!(pipe.held(), 5);
        assert_eq!(pipe.drain(&to).unwrap(), 5);
        assert_eq!(pipe.held(), 0);
        let mut read = [0; 5];
        server.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
        drop(client);
        assert_eq!(pipe.fill(&from, 1 << 16).unwrap(), 0, "the end");
    }
}
