//! Connection tracking over netlink: which flows there are and what they carried, which have ended
//! ([`Endings`]), and forgetting some of them.
//!
//! Numbers are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.

mod endings;
mod flow;

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::nft::answer::{Answer, NLMSG_ERROR};
use crate::nft::wire::{Head, Malformed, Messages, Writer};
use flow::{attr, read, tuple};

pub use endings::{Ending, Endings, Waiting};
pub use flow::{Carried, Counted, Flow, Protocol, Tuple};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
/// `IPCTNL_MSG_CT_NEW`, `_GET`, `_DELETE`.
const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;
/// What a dump is made of.
const FLOW: u16 = SUBSYSTEM << 8 | NEW;
/// `NLMSG_DONE`.
const NLMSG_DONE: u16 = 3;
/// `AF_UNSPEC`, `AF_INET`, `AF_INET6`.
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A dump comes in pieces of at most 32 KiB (`netlink_dump`, net/netlink/af_netlink.c).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// The kernel answers within the call or not at all; this only keeps a surprise from lasting.
const PATIENCE_SECONDS: i64 = 10;

/// `CTA_FILTER_F_CTA_PROTO_NUM` (net/netfilter/nf_internals.h): only flows of this protocol.
const FILTER_PROTOCOL: u32 = 1 << 3;

/// Why connection tracking could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// It could not be asked, or refused.
    #[error("cannot {doing}")]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its answer makes no sense.
    #[error("cannot understand what the kernel says about tracked flows")]
    Malformed(#[from] Malformed),
}

/// Connection tracking in the network namespace of the thread that called [`Conntrack::open`].
///
/// Calls block for as long as the kernel takes.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    seq: u32,
    buffer: Vec<u8>,
}

impl Conntrack {
    /// Opens a socket in this thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Self { socket, seq: 1, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Hands over every flow of a protocol, of IPv4 or IPv6. The table changes while it is read: a
    /// flow may be missing or come twice, as with every reader of it.
    pub fn each(
        &mut self,
        protocol: Protocol,
        ipv6: bool,
        mut take: impl FnMut(Flow),
    ) -> Result<(), ConntrackError> {
        let of_protocol = |w: &mut Writer| {
            w.nest(attr::TUPLE_ORIG, |w| w.nest(2, |w| w.bytes(1, &[protocol.number()])));
            // Kernels before 5.8 know no filter; what they send too much is left out below.
            w.nest(attr::FILTER, |w| {
                w.bytes(1, &FILTER_PROTOCOL.to_ne_bytes());
                w.bytes(2, &0u32.to_ne_bytes());
            });
        };
        self.dump(if ipv6 { AF_INET6 } else { AF_INET }, of_protocol, |piece| {
            piece.iter().filter(|flow| flow.protocol == protocol).for_each(|flow| take(*flow));
        })
    }

    /// Hands over every flow of a protocol with ports, some hundred at a time, so that nobody has to
    /// hold all of them. A piece was made while the one before it was received: it may speak of flows
    /// that have ended meanwhile. What [`Conntrack::each`] says of the table is true here, too.
    pub fn pieces(&mut self, take: impl FnMut(&[Flow])) -> Result<(), ConntrackError> {
        self.dump(AF_UNSPEC, |_| {}, take)
    }

    fn dump(
        &mut self,
        family: u8,
        wanted: impl FnOnce(&mut Writer),
        mut take: impl FnMut(&[Flow]),
    ) -> Result<(), ConntrackError> {
        let doing = "list tracked flows";
        let failed = |source| ConntrackError::Io { doing, source };
        let seq = self.request(GET, NLM_F_DUMP, family, wanted).map_err(failed)?;
        let mut piece = Vec::new();
        loop {
            let len = self.receive().map_err(failed)?;
            let mut done = false;
            for message in Messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message?;
                if message.seq != seq {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => {
                        if let Some(source) = Answer::read(&message)?.error {
                            return Err(failed(source));
                        }
                    }
                    FLOW => piece.extend(read(&message)?),
                    _ => {}
                }
            }
            take(&piece);
            piece.clear();
            if done {
                return Ok(());
            }
        }
    }

    /// Forgets a flow; its next packet begins a new one. False if it was gone already.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool, ConntrackError> {
        let doing = "forget a tracked flow";
        let failed = |source| ConntrackError::Io { doing, source };
        let family = if flow.original.source.is_ipv6() { AF_INET6 } else { AF_INET };
        let seq = self
            .request(DELETE, NLM_F_ACK, family, |w| {
                w.nest(attr::TUPLE_ORIG, |w| tuple(w, flow.protocol, &flow.original));
                // Without it a new flow with the same tuples would surely go instead.
                w.be32(attr::ID, flow.id);
                if flow.zone != 0 {
                    w.bytes(attr::ZONE, &flow.zone.to_be_bytes());
                }
            })
            .map_err(failed)?;
        loop {
            let len = self.receive().map_err(failed)?;
            for message in Messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message?;
                if message.seq != seq || message.kind != NLMSG_ERROR {
                    continue;
                }
                return match Answer::read(&message)?.error {
                    None => Ok(true),
                    Some(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    Some(source) => Err(failed(source)),
                };
            }
        }
    }

    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
    ) -> io::Result<u32> {
        let seq = self.seq;
        self.seq = self.seq.wrapping_add(1);
        let mut writer = Writer::default();
        writer.message(Head { kind: SUBSYSTEM << 8 | kind, flags, seq, family, resource: 0 }, body);
        let bytes = writer.finish().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.socket.send(&bytes, 0)?;
        Ok(seq)
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
                other => return Ok(other?),
            }
        }
    }
}
