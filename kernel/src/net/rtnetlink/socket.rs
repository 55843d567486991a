//! A blocking rtnetlink socket: one request, a whole dump, or many requests in one system call.
//!
//! The kernel works on a request inside send(2), in the caller's own context (net/netlink/af_netlink.c,
//! `netlink_unicast_kernel`), so a batch costs one system call to send and few to read its answers.

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// The kernel answers within send(2), so this only ends a wait that would otherwise never end.
const ANSWER_TIMEOUT_SECONDS: i64 = 30;
/// Dumps come in pieces of at most 32 KiB (`netlink_dump`), single answers are smaller.
const RECEIVE: usize = 128 << 10;
/// A batch is sent when it has this many bytes. Its refusals (at most about 1 KiB each in the socket's
/// accounting, for some 600 messages) fit [`RECEIVE_BUFFER`] several times.
const WINDOW: usize = 64 << 10;
/// SO_RCVBUF; beyond net.core.rmem_max only with CAP_NET_ADMIN, else that limit holds.
pub(super) const RECEIVE_BUFFER: usize = 4 << 20;
/// A dump that links changed under is repeated this often (NLM_F_DUMP_INTR).
const DUMP_TRIES: usize = 20;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why the kernel refused a request.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) source: io::Error,
    /// Its explanation, if any.
    pub(super) said: Option<String>,
}

impl Refusal {
    pub(super) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { source, said: None }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Requests that wait to be sent together, each with the caller's tag.
#[derive(Debug, Default)]
pub(super) struct Batch<T> {
    bytes: Vec<u8>,
    /// Where each message begins, and whose it is.
    messages: Vec<(usize, T)>,
}

impl<T> Batch<T> {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), messages: Vec::new() }
    }

    pub(super) fn push(&mut self, message: RouteNetlinkMessage, flags: u16, tag: T) {
        let start = self.bytes.len();
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        self.bytes.resize(align(start + message.buffer_len()), 0);
        if let Some(room) = self.bytes.get_mut(start..) {
            message.serialize(room);
        }
        self.messages.push((start, tag));
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= WINDOW
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

/// An rtnetlink socket of the namespace that the opening thread was in.
pub(super) struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    received: Vec<u8>,
}

/// What became of a dump.
enum Dump<T> {
    Whole(Vec<T>),
    /// Links changed meanwhile; entries may be missing or doubled.
    Interrupted,
}

impl Socket {
    pub(super) fn open(receive_buffer: usize) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Answers without the request in them, with an explanation, and dumps that refuse filters
        // they do not know instead of ignoring them (5.0).
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        socket.set_netlink_get_strict_chk(true)?;
        grow_receive_buffer(&socket, receive_buffer)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_SECONDS, 0))?;
        Ok(Self { socket, sequence: 0, received: vec![0; RECEIVE] })
    }

    /// Lists something, passing each message through `decode`. A dump that was interrupted by a change
    /// is made again.
    pub(super) fn dump<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        mut decode: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            if let Dump::Whole(items) = self.try_dump(request, &mut decode)? {
                return Ok(items);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "links kept changing while they were listed"))
    }

    fn try_dump<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        decode: &mut impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Dump<T>> {
        let mut batch = Batch::new();
        batch.push(request.clone(), NLM_F_DUMP, ());
        let sequence = self.send(&mut batch)?;
        let (mut items, mut interrupted) = (Vec::new(), false);
        loop {
            let received = self.receive()?;
            for message in Messages::new(self.received.get(..received).unwrap_or_default()) {
                if message.header.sequence_number != sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.header.message_type {
                    NLMSG_DONE => match message.code() {
                        0 if interrupted => return Ok(Dump::Interrupted),
                        0 => return Ok(Dump::Whole(items)),
                        // A consistency check inside the dump itself (IPv6, 6.10 and later).
                        code if code == -(Errno::EINTR as i32) => return Ok(Dump::Interrupted),
                        code => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    },
                    NLMSG_ERROR => return Err(message.refusal().source),
                    _ => items.extend(message.decode().and_then(&mut *decode)),
                }
            }
        }
    }

    /// Asks for one object, and gets it.
    pub(super) fn get(&mut self, request: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Refusal> {
        let mut batch = Batch::new();
        batch.push(request, 0, ());
        let sequence = self.send(&mut batch)?;
        loop {
            let received = self.receive()?;
            for message in Messages::new(self.received.get(..received).unwrap_or_default()) {
                if message.header.sequence_number != sequence {
                    continue;
                }
                if message.header.message_type == NLMSG_ERROR {
                    return Err(message.refusal());
                }
                let unreadable =
                    || io::Error::new(io::ErrorKind::InvalidData, "an answer that does not parse");
                return message.decode().ok_or_else(|| unreadable().into());
            }
        }
    }

    /// One request that changes something.
    pub(super) fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        let mut batch = Batch::new();
        batch.push(request, flags, ());
        match self.transact(batch).pop() {
            Some(((), refusal)) => Err(refusal),
            None => Ok(()),
        }
    }

    /// Sends a batch and returns the refused ones, in order. Only the last request asks for an
    /// acknowledgement: a refusal is always answered (`netlink_rcv_skb`), so silence is success.
    pub(super) fn transact<T>(&mut self, mut batch: Batch<T>) -> Vec<(T, Refusal)> {
        let refusals = match self.exchange(&mut batch) {
            Ok(refusals) => refusals,
            // Answers were lost. Everything was done, but what was refused is unknown; every request
            // may be made twice (see `encode`), so ask again, one at a time.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => self.one_by_one(&batch),
            Err(error) => {
                let again = || io::Error::new(error.kind(), error.to_string());
                return batch.messages.into_iter().map(|(_, tag)| (tag, again().into())).collect();
            }
        };
        let mut tags: Vec<Option<T>> = batch.messages.into_iter().map(|(_, tag)| Some(tag)).collect();
        let tag_of = |(nth, refusal): (usize, Refusal)| Some((tags.get_mut(nth)?.take()?, refusal));
        refusals.into_iter().filter_map(tag_of).collect()
    }

    /// Sends, then reads answers until the last request's. Returns the refused by their place.
    fn exchange<T>(&mut self, batch: &mut Batch<T>) -> io::Result<Vec<(usize, Refusal)>> {
        let Some(last) = batch.messages.len().checked_sub(1) else { return Ok(vec![]) };
        if let Some((start, _)) = batch.messages.last() {
            with_header(&mut batch.bytes, *start, |header| header.set_flags(header.flags() | NLM_F_ACK));
        }
        let first = self.send(batch)?;
        self.answers(first, last)
    }

    fn answers(&mut self, first: u32, last: usize) -> io::Result<Vec<(usize, Refusal)>> {
        let mut refused = Vec::new();
        loop {
            let received = self.receive()?;
            for message in Messages::new(self.received.get(..received).unwrap_or_default()) {
                let nth = message.header.sequence_number.wrapping_sub(first) as usize;
                if message.header.message_type != NLMSG_ERROR || nth > last {
                    continue;
                }
                if message.code() != 0 {
                    refused.push((nth, message.refusal()));
                }
                if nth == last {
                    return Ok(refused);
                }
            }
        }
    }

    fn one_by_one<T>(&mut self, batch: &Batch<T>) -> Vec<(usize, Refusal)> {
        self.drain();
        let ends = batch.messages.iter().skip(1).map(|(start, _)| *start).chain([batch.bytes.len()]);
        let mut refused = Vec::new();
        for (nth, ((start, _), end)) in batch.messages.iter().zip(ends).enumerate() {
            let mut single = Batch::new();
            single.bytes.extend_from_slice(batch.bytes.get(*start..end).unwrap_or_default());
            single.messages.push((0, ()));
            match self.exchange(&mut single) {
                Ok(refusals) => refused.extend(refusals.into_iter().map(|(_, refusal)| (nth, refusal))),
                Err(error) => refused.push((nth, error.into())),
            }
        }
        refused
    }

    /// Throws away what is left of answers after some were lost.
    fn drain(&mut self) {
        while recv_into(&self.socket, &mut self.received, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    /// Numbers the messages and sends them; returns the first one's number.
    fn send<T>(&mut self, batch: &mut Batch<T>) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        for (start, _) in &batch.messages {
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = self.sequence;
            with_header(&mut batch.bytes, *start, |header| header.set_sequence_number(sequence));
        }
        loop {
            match self.socket.send(&batch.bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(first),
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv_into(&self.socket, &mut self.received, MsgFlags::empty()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// One received message, not yet decoded.
pub(super) struct Received<'a> {
    pub(super) header: NetlinkHeader,
    payload: &'a [u8],
}

impl Received<'_> {
    /// The object in it. `None` is a message that does not parse: of a newer kernel, or of a kind of
    /// link with attributes that the decoder takes differently. It is left out, and said.
    pub(super) fn decode(&self) -> Option<RouteNetlinkMessage> {
        match RouteNetlinkMessage::deserialize(&self.header, self.payload) {
            Ok(message) => Some(message),
            Err(error) => {
                tracing::debug!(kind = self.header.message_type, %error, "netlink message left out");
                None
            }
        }
    }

    /// The code of NLMSG_ERROR and NLMSG_DONE: zero or a negative error number.
    fn code(&self) -> i32 {
        let code = self.payload.first_chunk().copied().unwrap_or_default();
        i32::from_ne_bytes(code)
    }

    fn refusal(&self) -> Refusal {
        // After the code comes the request's header alone (NETLINK_CAP_ACK), then attributes.
        let attributes = self.payload.get(4 + NLMSG_HEADER..).unwrap_or_default();
        let told = self.header.flags & NLM_F_ACK_TLVS != 0;
        let said = told.then(|| NlasIterator::new(attributes).flatten()).and_then(|mut attributes| {
            let text = attributes.find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
            let text = String::from_utf8_lossy(text.value()).trim_end_matches('\0').to_owned();
            (!text.is_empty()).then_some(text)
        });
        Refusal { source: io::Error::from_raw_os_error(self.code().saturating_neg()), said }
    }
}

/// The messages of one datagram; ends at the first that is cut short.
pub(super) struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    pub(super) fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Received<'a>;
    fn next(&mut self) -> Option<Received<'a>> {
        let buffer = NetlinkBuffer::new_checked(&self.0).ok()?;
        let length = buffer.length() as usize;
        let payload = self.0.get(NLMSG_HEADER..length)?;
        let mut header = NetlinkHeader::default();
        header.length = buffer.length();
        header.message_type = buffer.message_type();
        header.flags = buffer.flags();
        header.sequence_number = buffer.sequence_number();
        header.port_number = buffer.port_number();
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Received { header, payload })
    }
}

/// Sets SO_RCVBUF, beyond the system's limit where we may.
pub(super) fn grow_receive_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))
        .map_err(io::Error::from)
}

/// Receives one datagram; one that does not fit is an error, never half a message.
pub(super) fn recv_into(socket: &impl AsFd, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let received = recv(socket.as_fd().as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC)?;
    if received > buffer.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink answer larger than the buffer"));
    }
    Ok(received)
}

fn with_header(bytes: &mut [u8], start: usize, set: impl FnOnce(&mut NetlinkBuffer<&mut [u8]>)) {
    if let Some(message) = bytes.get_mut(start..) {
        set(&mut NetlinkBuffer::new(message));
    }
}

/// Messages begin at multiples of four (NLMSG_ALIGNTO).
fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::rtnetlink::encode;
    use crate::net::{Route, RouteKey, RouteKind};
    use crate::netns::{NetNs, run_in};
    use netlink_packet_core::NLM_F_CREATE;

    fn blackhole(nth: u32) -> Route {
        let dst = format!("10.{}.{}.0/24", nth / 256, nth % 256).parse().unwrap();
        let key = RouteKey { table: 254, dst, metric: 0 };
        let (via, link, src, mtu) = (None, None, None, None);
        Route { key, kind: RouteKind::Blackhole, protocol: 87, via, link, onlink: false, src, mtu }
    }

    /// A namespace in which routes to the even ones of 600 subnets are there, and a socket with this
    /// receive buffer.
    fn half_there(receive_buffer: usize) -> Socket {
        run_in(&NetNs::anonymous().unwrap(), || {
            let mut socket = Socket::open(receive_buffer).unwrap();
            let mut batch = Batch::new();
            for nth in (0..600).step_by(2) {
                batch.push(encode::replace_route(&blackhole(nth), None), NLM_F_CREATE, nth);
            }
            assert!(socket.transact(batch).is_empty());
            socket
        })
        .unwrap()
    }

    fn delete_all(socket: &mut Socket) -> Vec<u32> {
        let mut batch = Batch::new();
        for nth in 0..600 {
            batch.push(encode::delete_route(&blackhole(nth), None), 0, nth);
        }
        let refused = socket.transact(batch);
        assert!(refused.iter().all(|(_, refusal)| refusal.is(Errno::ESRCH)));
        refused.into_iter().map(|(nth, _)| nth).collect()
    }

    #[test]
    fn refusals_find_their_requests() {
        let odd: Vec<u32> = (1..600).step_by(2).collect();
        assert_eq!(delete_all(&mut half_there(RECEIVE_BUFFER)), odd);
    }

    #[test]
    fn lost_answers_are_asked_for_again() {
        let mut socket = half_there(RECEIVE_BUFFER);
        // The smallest buffer the kernel allows holds two or three of three hundred refusals.
        setsockopt(&socket.socket, sockopt::RcvBuf, &1).unwrap();
        // The first time round everything was deleted, so the second finds nothing to delete.
        assert_eq!(delete_all(&mut socket), (0..600).collect::<Vec<_>>());
        // And the socket is fit for use.
        assert_eq!(socket.dump(&encode::list_links(), Some).unwrap().len(), 1);
    }

    #[test]
    fn a_refusal_carries_the_kernels_explanation() {
        let mut socket = half_there(RECEIVE_BUFFER);
        let gone =
            Route { via: Some("192.0.2.1".parse().unwrap()), kind: RouteKind::Unicast, ..blackhole(1) };
        let refusal = socket.change(encode::replace_route(&gone, None), encode::REPLACE).unwrap_err();
        assert!(refusal.said.is_some(), "{refusal:?}");
    }
}
