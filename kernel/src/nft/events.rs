//! Who changed what: one event for each transaction of anybody's.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::decode;
use super::wire::{Malformed, Message, Messages, msg};
use super::{ElementReading, Family, SetName, TableKey};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// One change of 10,000 elements is about a megabyte of events.
const RECEIVE_SPACE: usize = 16 << 20;

/// A notification has at most two pages (`NLMSG_GOODSIZE`), except for one huge object.
const RECEIVE_BUFFER: usize = 256 * 1024;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody's transaction is in force.
    Commit {
        /// The netlink port that it came from; ours is [`super::Nft::port`].
        port: u32,
        /// The program that sent it, such as `nft` or `dockerd`, as the kernel cuts it (15 bytes).
        process: String,
        /// The tables in which anything was made, changed or deleted.
        tables: BTreeSet<TableKey>,
    },
    /// Events were lost because we read too slowly: only a fresh dump tells the truth.
    Lost,
}

/// Listens to nftables in the network namespace of the thread that called [`Events::open`].
///
/// It does not hear what `iptables-legacy` does.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
    heard: Heard,
}

#[derive(Debug, Default)]
struct Heard {
    /// Tables touched by the transaction whose end has not come yet.
    touched: BTreeSet<TableKey>,
    /// Read, and not yet handed on.
    ready: VecDeque<Event>,
    /// Of which table deleted elements are kept.
    counting: Option<TableKey>,
    /// What they had counted.
    deleted: Vec<(SetName, ElementReading)>,
}

impl Events {
    /// Starts to listen.
    pub fn open() -> io::Result<Self> {
        Self::with_space(RECEIVE_SPACE)
    }

    /// The same with room for so many bytes of events that have not been read yet.
    pub fn with_space(bytes: usize) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        setsockopt(&socket, sockopt::RcvBufForce, &bytes)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.add_membership(GROUP)?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BUFFER], heard: Heard::default() })
    }

    /// From now on keeps what the elements of this table's counted sets had counted when they were deleted,
    /// for [`Events::take_deleted`]. Sets and tables that go as a whole are not told element by element.
    pub fn counting(mut self, table: TableKey) -> Self {
        self.heard.counting = Some(table);
        self
    }

    /// What the elements had counted of which events have told that they were deleted.
    pub fn take_deleted(&mut self) -> Vec<(SetName, ElementReading)> {
        std::mem::take(&mut self.heard.deleted)
    }

    /// A handle by which whoever sends a big transaction makes these events pause.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn membership(&self) -> io::Result<Membership> {
        let same = self.socket.as_fd().try_clone_to_owned()?.into_raw_fd();
        // SAFETY: the descriptor was made just now, and nobody else has it.
        Ok(Membership(unsafe { Socket::from_raw_fd(same) }))
    }

    /// The next event; waits for it. Nothing is lost if the future is dropped. Needs a Tokio runtime.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            // Events are rare, so registering anew each time costs nothing that matters.
            // SAFETY: the socket is ours, and borrowed until the registration ends with this turn.
            let readiness =
                unsafe { AsyncFd::register_with_interest(self.socket.as_fd(), Interest::READABLE) }?;
            readiness.readable().await?.retain_ready();
        }
    }

    /// The next event, if there is one.
    pub fn try_next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(event) = self.heard.ready.pop_front() {
                return Ok(Some(event));
            }
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(len) if len > self.buffer.len() => self.lost(),
                Ok(len) => {
                    let datagram = self.buffer.get(..len).unwrap_or_default();
                    self.heard.read(datagram);
                }
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ENOBUFS) => self.lost(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn lost(&mut self) {
        self.heard.touched.clear();
        self.heard.ready.push_back(Event::Lost);
    }
}

/// Whether [`Events`] get to hear anything.
///
/// While anybody listens, the kernel allocates a message of two pages for each element of a
/// transaction and keeps them all until it is committed (`nf_tables_setelem_notify` and
/// `nft_commit_notify`, net/netfilter/nf_tables_api.c): 2 GB for 270,000 elements, and most of the time
/// that these take.
#[derive(Debug)]
pub struct Membership(Socket);

impl Membership {
    /// Nothing is heard from now on.
    ///
    /// # Errors
    /// None that the kernel is known to give.
    pub fn leave(&self) -> io::Result<()> {
        self.0.drop_membership(GROUP)
    }

    /// Everything is heard again. Whether something was missed, [`super::Nft::generation`] tells.
    ///
    /// # Errors
    /// None that the kernel is known to give.
    pub fn join(&self) -> io::Result<()> {
        self.0.add_membership(GROUP)
    }
}

impl Heard {
    /// Takes in one datagram. A transaction's objects come first, its end (`NEWGEN`) last.
    fn read(&mut self, datagram: &[u8]) {
        for message in Messages(datagram) {
            let Ok(message) = message else {
                self.ready.push_back(Event::Lost);
                return;
            };
            match message.nft() {
                Some(msg::NEWGEN) => {
                    let process = match message.attrs().find(3) {
                        Ok(Some(name)) => String::from_utf8_lossy(name.string()).into_owned(),
                        _ => String::new(),
                    };
                    let tables = std::mem::take(&mut self.touched);
                    self.ready.push_back(Event::Commit { port: message.port, process, tables });
                }
                Some(kind) => {
                    let understood = self.object(kind, &message);
                    if understood.is_err() {
                        self.ready.push_back(Event::Lost);
                    }
                }
                None => {}
            }
        }
    }

    fn object(&mut self, kind: u16, message: &Message<'_>) -> Result<(), Malformed> {
        let (family, name) = (Family::from_raw(message.family()?), decode::table_of(message.attrs())?);
        let table = TableKey { family, name };
        if kind == msg::DELSETELEM && self.counting.as_ref() == Some(&table) {
            let set = SetName::observed(message.attrs().need(2)?.string());
            let readings = decode::element_counters(message.attrs())?;
            self.deleted.extend(readings.into_iter().map(|reading| (set.clone(), reading)));
        }
        self.touched.insert(table);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_events_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            Heard::default().read(&bytes);
        }
    }
}
