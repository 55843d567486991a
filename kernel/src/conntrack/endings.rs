//! Which tracked flows have ended, with what they carried in all.
//!
//! The kernel keeps what it has to tell for somebody who is slow only as far as there is room, and says
//! when there was none. Asking it to keep the flows themselves until they have been told of
//! (`NETLINK_BROADCAST_ERROR`) would make a slow listener fill the table of connections.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::flow::{Flow, read};
use super::{DELETE, SUBSYSTEM};
use crate::nft::wire::Messages;

/// `NFNLGRP_CONNTRACK_DESTROY`.
const GROUP: u32 = 3;

/// An event takes the kernel about 1.3 KiB, its own bookkeeping included, so that these are some
/// 25,000 events: it doubles what is asked for (`sock_setsockopt`).
const RECEIVE_SPACE: usize = 16 << 20;

/// One event is some 250 bytes (`ctnetlink_nlmsg_size`).
const RECEIVE_BUFFER: usize = 8 * 1024;

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// This flow is no more.
    Flow(Flow),
    /// Others ended, too, and nobody will say which: they were told faster than we read.
    Lost,
}

/// Listens for the ends of flows in the network namespace of the thread that called [`Endings::open`].
///
/// The kernel tells of a flow only if it began while somebody listened, or if
/// `net.netfilter.nf_conntrack_events` is 1; if that is 0 it tells of none.
#[derive(Debug)]
pub struct Endings {
    socket: Arc<AsyncFd<Socket>>,
    buffer: Vec<u8>,
    /// Read, and not yet handed on.
    ready: VecDeque<Ending>,
}

impl Endings {
    /// Starts to listen; needs a Tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn open() -> io::Result<Self> {
        Self::with_space(RECEIVE_SPACE)
    }

    /// The same with room for so many bytes of events that have not been read yet.
    ///
    /// # Errors
    /// As [`Endings::open`].
    pub fn with_space(bytes: usize) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        setsockopt(&socket, sockopt::RcvBufForce, &bytes)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.add_membership(GROUP)?;
        // SAFETY: the socket owns its descriptor, always the same one, and the `AsyncFd` owns the socket,
        // so the descriptor stays open until it is deregistered.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket: Arc::new(socket), buffer: vec![0; RECEIVE_BUFFER], ready: VecDeque::new() })
    }

    /// The next one, if there is one; never waits.
    ///
    /// # Errors
    /// When the socket is no good any more: open another one.
    pub fn try_next(&mut self) -> io::Result<Option<Ending>> {
        loop {
            if let Some(ending) = self.ready.pop_front() {
                return Ok(Some(ending));
            }
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(len) if len > self.buffer.len() => return Ok(Some(Ending::Lost)),
                Ok(len) => take(self.buffer.get(..len).unwrap_or_default(), &mut self.ready),
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ENOBUFS) => return Ok(Some(Ending::Lost)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// For who wants to wait without holding what reads.
    pub fn waiting(&self) -> Waiting {
        Waiting(Arc::clone(&self.socket))
    }
}

/// Waits for something to be read from [`Endings`].
#[derive(Clone, Debug)]
pub struct Waiting(Arc<AsyncFd<Socket>>);

impl Waiting {
    /// Returns when something may have come since it last returned. Who reads then has to read until
    /// there is nothing.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn something(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

/// Takes in one datagram.
fn take(datagram: &[u8], ready: &mut VecDeque<Ending>) {
    for message in Messages(datagram) {
        match message {
            Ok(message) if message.kind == SUBSYSTEM << 8 | DELETE => match read(&message) {
                Ok(flow) => ready.extend(flow.map(Ending::Flow)),
                Err(_) => ready.push_back(Ending::Lost),
            },
            Ok(_) => {}
            Err(_) => {
                ready.push_back(Ending::Lost);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_endings_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            take(&bytes, &mut VecDeque::new());
        }
    }
}
