//! A super-packet, cut into the packets that go on the wire.
//!
//! The kernel hands over up to 64 KiB of one TCP or UDP flow with one set of headers. Each packet on
//! the wire gets its own copy of them: lengths, IPv4 id, TCP sequence number, flags and checksums
//! made right. The payload is not copied: a packet is a slice of `headers` and a slice of the
//! super-packet. Pure.

use weft_kernel::tun::{PartialChecksum, SegmentKind, Segmentation, VnetHeader};

use super::checksum::Sum;
use super::packet::{Malformed, Packet, array, number, protocol};

// TCP's flags, in the byte at offset 13 of its header (RFC 9293 3.1, RFC 3168 for CWR).
pub(super) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const URG: u8 = 0x20;
    pub(crate) const CWR: u8 = 0x80;
}

/// How a super-packet falls into packets, each a header and a piece of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    /// Bytes of headers in each packet.
    pub(super) header_len: usize,
    /// Payload bytes in each packet but the last.
    pub(super) payload: usize,
    /// Length of the super-packet.
    pub(super) len: usize,
    /// How many packets.
    pub(super) count: usize,
}

impl Segments {
    /// Where packet `index`'s payload lies in the super-packet.
    pub(super) fn payload_of(&self, index: usize) -> std::ops::Range<usize> {
        let start = self.header_len + index * self.payload;
        start.min(self.len)..(start + self.payload).min(self.len)
    }

    /// Where packet `index`'s headers lie behind the place where `headers` ended before.
    pub(super) fn header_of(&self, index: usize) -> std::ops::Range<usize> {
        index * self.header_len..(index + 1) * self.header_len
    }

    /// The length of all packets but perhaps the last.
    pub(super) fn packet_len(&self) -> usize {
        self.payload_of(0).len() + self.header_len
    }
}

/// Why a super-packet cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SplitError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("its vnet header does not fit its headers")]
    Inconsistent,
}

/// Cuts a super-packet: appends the headers of all its packets to `headers`.
pub(super) fn split(
    vnet: &VnetHeader,
    super_packet: &[u8],
    headers: &mut Vec<u8>,
) -> Result<Segments, SplitError> {
    let packet = Packet::parse(super_packet)?;
    // Virtio 1.3, 5.1.6.2: whoever asks for segmentation also leaves the checksum unfinished.
    let (Some(segmentation), Some(checksum)) = (vnet.segmentation, vnet.checksum) else {
        return Err(SplitError::Inconsistent);
    };
    let transport = Transport::of(&packet, segmentation, checksum, super_packet)?;
    let header_len = packet.transport + transport.header_len;
    let payload_len = packet.len.checked_sub(header_len).ok_or(SplitError::Inconsistent)?;
    let size = usize::from(segmentation.size);
    if size == 0 {
        return Err(SplitError::Inconsistent);
    }
    let count = payload_len.div_ceil(size).max(1);
    let segments = Segments { header_len, payload: size, len: packet.len, count };

    let template = super_packet.get(..header_len).ok_or(SplitError::Inconsistent)?;
    // The field holds the pseudo header's sum for the whole length: that length comes off here and
    // each packet's own is added below. This also holds behind a routing header.
    let whole = u16::try_from(packet.len - packet.transport).map_err(|_| SplitError::Inconsistent)?;
    let pseudo = Sum::default().field(transport.partial).without(whole);
    for index in 0..count {
        let payload = super_packet.get(segments.payload_of(index)).ok_or(SplitError::Inconsistent)?;
        let start = headers.len();
        headers.extend_from_slice(template);
        let (ip, rest) = headers[start..].split_at_mut(packet.transport);
        finish_ip(ip, rest.len() + payload.len(), index);
        transport.finish(rest, payload, pseudo, index, index + 1 == count, size);
    }
    Ok(segments)
}

/// Finishes the checksum of a packet that is no super-packet.
pub(super) fn finish_checksum(partial: PartialChecksum, packet: &mut [u8]) -> Result<(), SplitError> {
    let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
    let summed = packet.get_mut(start..).ok_or(SplitError::Inconsistent)?;
    // The field holds the pseudo header's sum, and so is part of what is summed.
    let sum = Sum::default().bytes(summed);
    let field = summed.get_mut(offset..offset + 2).ok_or(SplitError::Inconsistent)?;
    field.copy_from_slice(&match offset {
        UDP_CHECKSUM => sum.udp_checksum(),
        _ => sum.checksum(),
    });
    Ok(())
}

/// Where the checksum is in a TCP header.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Where the checksum is in a UDP header.
pub(super) const UDP_CHECKSUM: usize = 6;

struct Transport {
    header_len: usize,
    kind: SegmentKind,
    partial: [u8; 2],
    sequence: u32,
}

impl Transport {
    fn of(
        packet: &Packet,
        segmentation: Segmentation,
        checksum: PartialChecksum,
        bytes: &[u8],
    ) -> Result<Self, SplitError> {
        let header = bytes.get(packet.transport..).ok_or(SplitError::Inconsistent)?;
        let is_v4 = packet.src.is_ipv4();
        let fits = match segmentation.kind {
            SegmentKind::Tcp4 => packet.protocol == protocol::TCP && is_v4,
            SegmentKind::Tcp6 => packet.protocol == protocol::TCP && !is_v4,
            SegmentKind::Udp => packet.protocol == protocol::UDP,
        };
        let (header_len, at, sequence) = match segmentation.kind {
            SegmentKind::Udp => (8, UDP_CHECKSUM, 0),
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => {
                let offset = *header.get(12).ok_or(SplitError::Inconsistent)? >> 4;
                let sequence = array(header, 4).ok_or(SplitError::Inconsistent)?;
                (usize::from(offset) * 4, TCP_CHECKSUM, u32::from_be_bytes(sequence))
            }
        };
        let placed = usize::from(checksum.start) == packet.transport && usize::from(checksum.offset) == at;
        if !fits || !placed || header_len < at + 2 {
            return Err(SplitError::Inconsistent);
        }
        let partial = array(header, at).ok_or(SplitError::Inconsistent)?;
        Ok(Self { header_len, kind: segmentation.kind, partial, sequence })
    }

    fn finish(&self, header: &mut [u8], payload: &[u8], pseudo: Sum, index: usize, last: bool, size: usize) {
        let len = (header.len() + payload.len()) as u16;
        match self.kind {
            SegmentKind::Udp => {
                header[4..6].copy_from_slice(&len.to_be_bytes());
                header[UDP_CHECKSUM..UDP_CHECKSUM + 2].fill(0);
                let sum = pseudo.number(len).bytes(header).bytes(payload);
                header[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&sum.udp_checksum());
            }
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => {
                let sequence = self.sequence.wrapping_add((index * size) as u32);
                header[4..8].copy_from_slice(&sequence.to_be_bytes());
                if !last {
                    header[13] &= !(flag::FIN | flag::PSH);
                }
                if index > 0 {
                    header[13] &= !flag::CWR;
                }
                header[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
                let sum = pseudo.number(len).bytes(header).bytes(payload);
                header[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.checksum());
            }
        }
    }
}

/// Sets an IP header's length for this much behind it and, in IPv4, the packet's own id and the
/// header's checksum.
pub(super) fn finish_ip(header: &mut [u8], behind: usize, index: usize) {
    if header[0] >> 4 == 4 {
        let len = (header.len() + behind) as u16;
        let id = number(header, 4).unwrap_or_default().wrapping_add(index as u16);
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[4..6].copy_from_slice(&id.to_be_bytes());
        header[10..12].fill(0);
        let checksum = Sum::default().bytes(header).checksum();
        header[10..12].copy_from_slice(&checksum);
    } else {
        let len = (header.len() - 40 + behind) as u16;
        header[4..6].copy_from_slice(&len.to_be_bytes());
    }
}
