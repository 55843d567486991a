//! Received packets, put together again into super-packets (what the kernel calls GRO).
//!
//! A batch of packets goes in, in the order received; out come fewer, larger ones with vnet headers.
//! The rule is that cutting the result again gives the very bytes that came in (`split` is the
//! inverse), so nothing is merged that could not be told apart afterwards: other addresses, ports,
//! ToS or ECN, TTL, DF, options, TCP acknowledgement, window or flags, an IPv4 id or sequence number
//! that is not the next one. A wrong checksum is never made right: such packets stay as they are.
//! Packets of one flow keep their order. Pure: payload is not copied, only described by ranges.

use std::net::IpAddr;
use std::ops::Range;

use weft_kernel::tun::{PartialChecksum, SegmentKind, Segmentation, VnetHeader};

use super::checksum::Sum;
use super::packet::{Fragment, Packet, array, number, protocol, pseudo_header};
use super::split::{TCP_CHECKSUM, UDP_CHECKSUM, finish_ip, flag};

/// UDP datagrams in one super-packet: `UDP_MAX_SEGMENTS` of include/linux/udp.h before Linux 6.9,
/// beyond which the kernel refuses the packet.
const MAX_UDP_SEGMENTS: usize = 64;
/// An IPv4 packet's greatest length; IPv6 is held to the same.
const MAX_LEN: usize = 65_535;

/// Gathers one batch after the other.
#[derive(Debug, Default)]
pub(super) struct Coalescer {
    /// Super-packets and single packets in order of their first packet. Only the first `used` count;
    /// the others keep their memory for the next batch.
    outputs: Vec<Output>,
    used: usize,
    /// Those that may still grow, each flow at most once.
    open: Vec<(FlowKey, usize)>,
    /// The TUN takes UDP super-packets.
    udp: bool,
}

/// A packet to be written to the TUN.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Its bytes: ranges of the batch's memory.
    pub(super) pieces: Vec<Range<usize>>,
    /// What stands before it.
    pub(super) vnet: VnetHeader,
    growth: Option<Growth>,
}

/// What is needed to decide whether the next packet belongs.
#[derive(Clone, Copy, Debug)]
struct Growth {
    header: Header,
    len: usize,
    count: usize,
    next_sequence: u32,
    next_id: u16,
    /// The first packet's checksums were found right.
    verified: bool,
    /// FIN and PSH of the last packet.
    last_flags: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FlowKey {
    src: IpAddr,
    dst: IpAddr,
    ports: [u8; 4],
    protocol: u8,
}

/// The headers of a packet that can be part of a super-packet.
#[derive(Clone, Copy, Debug)]
struct Header {
    packet: Packet,
    /// Of IP and transport.
    len: usize,
    payload: usize,
    /// TCP's, else 0.
    flags: u8,
    /// TCP's, else 0.
    sequence: u32,
    /// IPv4's, else 0.
    id: u16,
}

impl Coalescer {
    /// `udp`: UDP may be merged too.
    pub(super) fn new(udp: bool) -> Self {
        Self { udp, ..Self::default() }
    }

    /// Forgets the last batch.
    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.open.clear();
    }

    /// Adds the packet that `memory[start..]` begins with, already parsed.
    pub(super) fn push(&mut self, memory: &[u8], start: usize, packet: &Packet) {
        let Some(bytes) = memory.get(start..start + packet.len) else { return };
        let range = start..start + packet.len;
        let Some((key, header)) = Header::of(bytes, packet, self.udp) else {
            self.close_before(bytes, packet);
            self.begin(range, None);
            return;
        };
        let Some(at) = self.open.iter().rposition(|(open, _)| *open == key) else {
            let output = self.begin(range, Some(header));
            if !header.ends() {
                self.open.push((key, output));
            }
            return;
        };
        let (_, index) = self.open[at];
        let output = &mut self.outputs[index];
        if output.try_grow(memory, start, bytes, &header) {
            if header.ends() || output.growth.is_some_and(|growth| header.payload < growth.header.payload) {
                self.open.swap_remove(at);
            }
            return;
        }
        // The flow goes on in a packet of its own; what came before it can no longer grow.
        self.open.swap_remove(at);
        let output = self.begin(range, Some(header));
        if !header.ends() {
            self.open.push((key, output));
        }
    }

    /// Writes the headers of the super-packets; the outputs are then ready.
    pub(super) fn finish(&mut self, memory: &mut [u8]) -> &[Output] {
        for output in &mut self.outputs[..self.used] {
            output.finish(memory);
        }
        &self.outputs[..self.used]
    }

    /// Nothing of this flow may be sent before what now stands alone. A fragment may belong to any
    /// flow between two hosts, since most lack the ports.
    fn close_before(&mut self, bytes: &[u8], packet: &Packet) {
        let ports = match packet.fragment {
            Fragment::Whole => array(bytes, packet.transport),
            Fragment::First | Fragment::Later => None,
        };
        self.open.retain(|(key, _)| {
            let same_hosts = key.src == packet.src && key.dst == packet.dst;
            let other_flow = ports.is_some_and(|ports| key.ports != ports || key.protocol != packet.protocol);
            !same_hosts || other_flow
        });
    }

    fn begin(&mut self, range: Range<usize>, header: Option<Header>) -> usize {
        if self.used == self.outputs.len() {
            self.outputs.push(Output::default());
        }
        let index = self.used;
        self.used += 1;
        let output = &mut self.outputs[index];
        output.pieces.clear();
        output.pieces.push(range);
        output.vnet = VnetHeader::default();
        output.growth = header.map(|header| Growth {
            header,
            len: header.packet.len,
            count: 1,
            next_sequence: header.next_sequence(),
            next_id: header.next_id(),
            verified: false,
            last_flags: 0,
        });
        index
    }
}

impl Output {
    /// How many packets it holds.
    pub(super) fn count(&self) -> usize {
        self.growth.map_or(1, |growth| growth.count)
    }

    fn try_grow(&mut self, memory: &[u8], start: usize, bytes: &[u8], new: &Header) -> bool {
        let Some(first) = self.pieces.first().and_then(|range| memory.get(range.clone())) else {
            return false;
        };
        let Some(growth) = &mut self.growth else { return false };
        let room = match new.packet.protocol {
            protocol::UDP => growth.count < MAX_UDP_SEGMENTS,
            _ => true,
        };
        let fits = room
            && new.payload <= growth.header.payload
            && growth.len + new.payload <= MAX_LEN
            && new.sequence == growth.next_sequence
            && new.id == growth.next_id
            && new.flags & flag::CWR == 0
            && (new.flags ^ growth.header.flags) & !(flag::FIN | flag::PSH | flag::CWR) == 0
            && same_headers(first, &growth.header, bytes, new);
        if !fits || !new.checksums_hold(bytes) {
            return false;
        }
        if !growth.verified {
            if !growth.header.checksums_hold(first) {
                return false;
            }
            growth.verified = true;
        }
        growth.count += 1;
        growth.len += new.payload;
        growth.next_sequence = new.next_sequence();
        growth.next_id = new.next_id();
        growth.last_flags = new.flags & (flag::FIN | flag::PSH);
        self.pieces.push(start + new.len..start + new.packet.len);
        true
    }

    fn finish(&mut self, memory: &mut [u8]) {
        let Some(growth) = self.growth.filter(|growth| growth.count > 1) else { return };
        let header = growth.header;
        let Some(bytes) =
            self.pieces.first().and_then(|range| memory.get_mut(range.start..range.start + header.len))
        else {
            return;
        };
        let packet = header.packet;
        let (ip, transport) = bytes.split_at_mut(packet.transport);
        finish_ip(ip, growth.len - packet.transport, 0);
        let transport_len = (growth.len - packet.transport) as u16;
        let pseudo = packet.pseudo_header(transport_len).partial();
        let (kind, checksum_at) = match packet.protocol {
            protocol::UDP => {
                transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
                (SegmentKind::Udp, UDP_CHECKSUM)
            }
            _ => {
                transport[13] |= growth.last_flags;
                let kind = if packet.src.is_ipv4() { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
                (kind, TCP_CHECKSUM)
            }
        };
        transport[checksum_at..checksum_at + 2].copy_from_slice(&pseudo);
        self.vnet = VnetHeader {
            checksum: Some(PartialChecksum { start: packet.transport as u16, offset: checksum_at as u16 }),
            segmentation: Some(Segmentation {
                kind,
                size: header.payload as u16,
                ecn: header.flags & flag::CWR != 0,
                header_len: header.len as u16,
            }),
        };
    }
}

impl Header {
    /// A packet's flow and headers, if it can be part of a super-packet at all.
    fn of(bytes: &[u8], packet: &Packet, udp: bool) -> Option<(FlowKey, Self)> {
        // With options or extension headers the transport is further back: those stay single.
        let (bare, id) = if packet.src.is_ipv4() { (20, number(bytes, 4)?) } else { (40, 0) };
        if packet.fragment != Fragment::Whole || packet.transport != bare {
            return None;
        }
        let transport = bytes.get(packet.transport..)?;
        let (transport_len, flags, sequence) = match packet.protocol {
            protocol::TCP => {
                let header: [u8; 20] = array(transport, 0)?;
                let flags = header[13];
                if flags & flag::ACK == 0 || flags & (flag::SYN | flag::RST | flag::URG) != 0 {
                    return None;
                }
                let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                (usize::from(header[12] >> 4) * 4, flags, sequence)
            }
            protocol::UDP if udp => {
                let whole = usize::from(number(transport, 4)?) == transport.len();
                let has_checksum = number(transport, UDP_CHECKSUM)? != 0;
                (whole && has_checksum).then_some((8, 0, 0))?
            }
            _ => return None,
        };
        let len = packet.transport + transport_len;
        let payload = packet.len.checked_sub(len).filter(|payload| *payload > 0)?;
        let fixed = if packet.protocol == protocol::TCP { 20 } else { 8 };
        if transport_len < fixed {
            return None;
        }
        let ports = array(transport, 0)?;
        let key = FlowKey { src: packet.src, dst: packet.dst, ports, protocol: packet.protocol };
        Some((key, Self { packet: *packet, len, payload, flags, sequence, id }))
    }

    /// The sequence number that goes on; UDP has none, each datagram is "the next".
    fn next_sequence(&self) -> u32 {
        match self.packet.protocol {
            protocol::TCP => self.sequence.wrapping_add(self.payload as u32),
            _ => 0,
        }
    }

    /// The id that goes on; IPv6 has none.
    fn next_id(&self) -> u16 {
        if self.packet.src.is_ipv4() { self.id.wrapping_add(1) } else { 0 }
    }

    /// Nothing may follow it: PSH and FIN belong to a super-packet's last packet.
    fn ends(&self) -> bool {
        self.flags & (flag::FIN | flag::PSH) != 0
    }

    /// Both checksums are right, and written as we would write them. 0xffff is the other zero in
    /// one's complement: right, but cutting again would give 0.
    fn checksums_hold(&self, bytes: &[u8]) -> bool {
        let packet = &self.packet;
        let (ip, transport) = bytes.split_at(packet.transport);
        if packet.src.is_ipv4() && (!is_zero(Sum::default().bytes(ip)) || ip[10..12] == [0xff, 0xff]) {
            return false;
        }
        let other_zero =
            packet.protocol == protocol::TCP && transport[TCP_CHECKSUM..TCP_CHECKSUM + 2] == [0xff, 0xff];
        let pseudo = pseudo_header(packet.src, packet.dst, packet.protocol, transport.len() as u16);
        !other_zero && is_zero(pseudo.bytes(transport))
    }
}

fn is_zero(sum: Sum) -> bool {
    sum.partial() == [0xff, 0xff]
}

/// All that must not differ does not. What may (lengths, ids, sequence numbers, checksums, three TCP
/// flags) is judged elsewhere; addresses and ports are equal already, as the flow's key.
fn same_headers(a: &[u8], a_header: &Header, b: &[u8], b_header: &Header) -> bool {
    if a_header.len != b_header.len {
        return false;
    }
    let same = |range: Range<usize>| a.get(range.clone()) == b.get(range);
    let ip = if a_header.packet.src.is_ipv4() {
        // Version, header length and ToS; flags and offset, TTL, protocol.
        same(0..2) && same(6..10)
    } else {
        // Version, traffic class and flow label; next header and hop limit.
        same(0..4) && same(6..8)
    };
    let at = a_header.packet.transport;
    let transport = match a_header.packet.protocol {
        // Acknowledgement and header length; window; urgent pointer and options.
        protocol::TCP => same(at + 8..at + 13) && same(at + 14..at + 16) && same(at + 18..a_header.len),
        _ => true,
    };
    ip && transport
}
