//! Connection tracking over netlink: which flows there are, and forgetting some of them.
//!
//! Numbers are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::nft::answer::{Answer, NLMSG_ERROR};
use crate::nft::wire::{Attrs, Head, Malformed, Message, Messages, Writer};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
/// `IPCTNL_MSG_CT_NEW`, `_GET`, `_DELETE`.
const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;
/// `NLMSG_DONE`.
const NLMSG_DONE: u16 = 3;
/// `AF_INET`, `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A dump comes in pieces of at most 32 KiB (`netlink_dump`, net/netlink/af_netlink.c).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// The kernel answers within the call or not at all; this only keeps a surprise from lasting.
const PATIENCE_SECONDS: i64 = 10;

/// `CTA_*`: a flow's attributes.
mod attr {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const COUNTERS_ORIG: u16 = 9;
    pub(super) const COUNTERS_REPLY: u16 = 10;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const FILTER: u16 = 25;
}

/// `CTA_FILTER_F_CTA_PROTO_NUM` (net/netfilter/nf_internals.h): only flows of this protocol.
const FILTER_PROTOCOL: u32 = 1 << 3;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// `IPPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A direction of a flow: from whom to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// From whom.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// A tracked flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// As its first packet came, before any translation.
    pub original: Tuple,
    /// As an answer comes: its source is who really answers.
    pub reply: Tuple,
    /// Tells it from a later flow with the same tuples, unless that one lies at the same place in the
    /// kernel's memory (`nf_ct_get_id`).
    pub id: u32,
    /// The zone, 0 unless somebody uses zones.
    pub zone: u16,
    /// Packets and bytes there and back; zero unless `net.netfilter.nf_conntrack_acct` is on.
    pub counted: Counted,
}

/// What a flow has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counted {
    /// Packets, in both directions.
    pub packets: u64,
    /// Bytes, in both directions.
    pub bytes: u64,
}

impl Flow {
    /// Its destination was translated: who answers is not who was asked.
    pub fn is_translated(&self) -> bool {
        self.reply.source != self.original.destination
    }
}

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
        let doing = "list tracked flows";
        let failed = |source| ConntrackError::Io { doing, source };
        let family = if ipv6 { AF_INET6 } else { AF_INET };
        let seq = self
            .request(GET, NLM_F_DUMP, family, |w| {
                w.nest(attr::TUPLE_ORIG, |w| w.nest(2, |w| w.bytes(1, &[protocol.number()])));
                // Kernels before 5.8 know no filter; what they send too much is left out below.
                w.nest(attr::FILTER, |w| {
                    w.bytes(1, &FILTER_PROTOCOL.to_ne_bytes());
                    w.bytes(2, &0u32.to_ne_bytes());
                });
            })
            .map_err(failed)?;
        loop {
            let len = self.receive().map_err(failed)?;
            for message in Messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message?;
                if message.seq != seq {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        if let Some(source) = Answer::read(&message)?.error {
                            return Err(failed(source));
                        }
                    }
                    _ => {
                        if let Some(flow) = read(&message)?.filter(|flow| flow.protocol == protocol) {
                            take(flow);
                        }
                    }
                }
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

fn tuple(w: &mut Writer, protocol: Protocol, tuple: &Tuple) {
    w.nest(1, |w| match (tuple.source.ip(), tuple.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            w.bytes(1, &source.octets());
            w.bytes(2, &destination.octets());
        }
        (source, destination) => {
            w.bytes(3, &v6(source).octets());
            w.bytes(4, &v6(destination).octets());
        }
    });
    w.nest(2, |w| {
        w.bytes(1, &[protocol.number()]);
        w.bytes(2, &tuple.source.port().to_be_bytes());
        w.bytes(3, &tuple.destination.port().to_be_bytes());
    });
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A flow, if it is of a protocol with ports.
fn read(message: &Message<'_>) -> Result<Option<Flow>, Malformed> {
    if message.kind != SUBSYSTEM << 8 | NEW {
        return Ok(None);
    }
    let attrs = message.attrs();
    let (number, original) = read_tuple(attrs.need(attr::TUPLE_ORIG)?.attrs())?;
    let Some(protocol) = Protocol::ALL.into_iter().find(|protocol| protocol.number() == number) else {
        return Ok(None);
    };
    let (_, reply) = read_tuple(attrs.need(attr::TUPLE_REPLY)?.attrs())?;
    let mut counted = Counted::default();
    for direction in [attr::COUNTERS_ORIG, attr::COUNTERS_REPLY] {
        if let Some(counters) = attrs.find(direction)? {
            counted.packets = counted.packets.wrapping_add(counters.attrs().need(1)?.be64()?);
            counted.bytes = counted.bytes.wrapping_add(counters.attrs().need(2)?.be64()?);
        }
    }
    let zone =
        attrs.find(attr::ZONE)?.and_then(|zone| zone.value.try_into().ok()).map_or(0, u16::from_be_bytes);
    let id = attrs.find_be32(attr::ID)?.unwrap_or(0);
    Ok(Some(Flow { protocol, original, reply, id, zone, counted }))
}

/// A tuple with its protocol's number. Protocols without ports have port 0.
fn read_tuple(attrs: Attrs<'_>) -> Result<(u8, Tuple), Malformed> {
    let (ip, proto) = (attrs.need(1)?.attrs(), attrs.need(2)?.attrs());
    let address = |v4: u16, v6: u16| -> Result<IpAddr, Malformed> {
        let wrong = Malformed("an address has a wrong length");
        if let Some(found) = ip.find(v4)? {
            let octets: [u8; 4] = found.value.try_into().map_err(|_| wrong)?;
            return Ok(Ipv4Addr::from(octets).into());
        }
        let octets: [u8; 16] = ip.need(v6)?.value.try_into().map_err(|_| wrong)?;
        Ok(Ipv6Addr::from(octets).into())
    };
    let port = |attr: u16| -> Result<u16, Malformed> {
        Ok(proto.find(attr)?.and_then(|port| port.value.try_into().ok()).map_or(0, u16::from_be_bytes))
    };
    let number = proto.need(1)?.value.first().copied().ok_or(Malformed("a protocol without a number"))?;
    let source = SocketAddr::new(address(1, 3)?, port(2)?);
    let destination = SocketAddr::new(address(2, 4)?, port(3)?);
    Ok((number, Tuple { source, destination }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind: SUBSYSTEM << 8, flags: 0, seq: 0, port: 0, body: &body };
            let _ = read(&message);
        }
    }
}
