//! One IP packet, read as far as a tunnel needs: family, length, addresses, transport, fragmentation.
//!
//! Pure, and safe on any bytes: what does not parse is an error, never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;

/// Protocol numbers and IPv6 extension headers (IANA "Assigned Internet Protocol Numbers").
pub(super) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const AUTHENTICATION: u8 = 51;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION: u8 = 60;
}

/// What a packet's headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// Whence.
    pub(super) src: IpAddr,
    /// Whither.
    pub(super) dst: IpAddr,
    /// Its length by its own header; never more than the bytes given.
    pub(super) len: usize,
    /// The transport protocol.
    pub(super) protocol: u8,
    /// Where the transport header begins: behind all options and extension headers.
    pub(super) transport: usize,
    /// Which part of a datagram it is.
    pub(super) fragment: Fragment,
    /// It must not be fragmented on its way: IPv4's DF, or IPv6.
    pub(super) dont_fragment: bool,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    /// All of it.
    Whole,
    /// The part that holds the transport header.
    First,
    /// Another part.
    Later,
}

/// Why bytes are no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("shorter than its headers say")]
    Short,
    #[error("IP version {0}")]
    Version(u8),
    #[error("a header length that cannot be")]
    HeaderLength,
}

/// How many IPv6 extension headers are followed. RFC 8200 section 4.1 lets each appear once, and
/// destination options twice; more is an attempt to keep us busy.
const MAX_EXTENSIONS: usize = 8;

impl Packet {
    /// Reads the headers of the packet that these bytes begin with. Bytes behind it are ignored, as
    /// the kernel does.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.first().ok_or(Malformed::Short)? >> 4 {
            4 => parse_v4(bytes),
            6 => parse_v6(bytes),
            other => Err(Malformed::Version(other)),
        }
    }

    /// The transport's part of the pseudo header for its checksum (RFC 9293 3.1, RFC 8200 8.1).
    pub(super) fn pseudo_header(&self, transport_len: u16) -> Sum {
        pseudo_header(self.src, self.dst, self.protocol, transport_len)
    }
}

/// The destination alone, for the path that needs no more.
pub(super) fn destination(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.first()? >> 4 {
        4 => array(bytes, 16).map(|raw: [u8; 4]| IpAddr::V4(raw.into())),
        6 => array(bytes, 24).map(|raw: [u8; 16]| IpAddr::V6(raw.into())),
        _ => None,
    }
}

pub(super) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, transport_len: u16) -> Sum {
    let sum = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Sum::default().bytes(&src.octets()).bytes(&dst.octets()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Sum::default().bytes(&src.octets()).bytes(&dst.octets()),
        // One packet has one family; the parser makes no other.
        _ => Sum::default(),
    };
    sum.number(u16::from(protocol)).number(transport_len)
}

/// `N` bytes from an offset, if they are there.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// A big-endian number at an offset, if it is there.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn parse_v4(bytes: &[u8]) -> Result<Packet, Malformed> {
    let header: [u8; 20] = array(bytes, 0).ok_or(Malformed::Short)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_len < 20 || len < header_len {
        return Err(Malformed::HeaderLength);
    }
    if bytes.len() < len {
        return Err(Malformed::Short);
    }
    // RFC 791: three flags (the second is DF, the third MF), then the offset.
    let placing = u16::from_be_bytes([header[6], header[7]]);
    let fragment = match (placing & 0x1fff, placing & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    Ok(Packet {
        src: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
        dst: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
        len,
        protocol: header[9],
        transport: header_len,
        fragment,
        dont_fragment: placing & 0x4000 != 0,
    })
}

fn parse_v6(bytes: &[u8]) -> Result<Packet, Malformed> {
    let header: [u8; 40] = array(bytes, 0).ok_or(Malformed::Short)?;
    let len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let packet = bytes.get(..len).ok_or(Malformed::Short)?;
    let address = |at| array::<16>(&header, at).map(|raw| IpAddr::V6(Ipv6Addr::from(raw)));
    let (src, dst) = address(8).zip(address(24)).ok_or(Malformed::Short)?;

    let (mut protocol, mut transport, mut fragment) = (header[6], 40, Fragment::Whole);
    for _ in 0..MAX_EXTENSIONS {
        let [next, units]: [u8; 2] = match protocol {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                array(packet, transport).ok_or(Malformed::Short)?
            }
            protocol::AUTHENTICATION => array(packet, transport).ok_or(Malformed::Short)?,
            protocol::FRAGMENT => {
                let raw: [u8; 8] = array(packet, transport).ok_or(Malformed::Short)?;
                // RFC 8200 4.5: 13 bits of offset, two reserved, M.
                let placing = u16::from_be_bytes([raw[2], raw[3]]);
                fragment = match (placing >> 3, placing & 1) {
                    (0, 0) => fragment,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                [raw[0], 0]
            }
            _ => break,
        };
        // RFC 8200 counts 8-byte units behind the first 8 bytes, RFC 4302 4-byte words less two.
        transport += match protocol {
            protocol::AUTHENTICATION => (usize::from(units) + 2) * 4,
            _ => (usize::from(units) + 1) * 8,
        };
        protocol = next;
        if transport > len {
            return Err(Malformed::HeaderLength);
        }
        if fragment == Fragment::Later {
            break;
        }
    }
    Ok(Packet { src, dst, len, protocol, transport, fragment, dont_fragment: true })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, placing: u16, payload: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 1, 2];
        packet[6..8].copy_from_slice(&placing.to_be_bytes());
        packet.resize(20 + payload, 0);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        packet.extend([0xfd; 16]);
        packet.extend([0xfc; 16]);
        packet.extend(payload);
        packet
    }

    #[test]
    fn ipv4_fragments_are_told_apart() {
        let table = [
            (0x0000, Fragment::Whole, false),
            (0x4000, Fragment::Whole, true),
            (0x2000, Fragment::First, false),
            (0x2001, Fragment::Later, false),
            (0x0003, Fragment::Later, false),
        ];
        for (placing, fragment, dont_fragment) in table {
            let packet = Packet::parse(&v4(17, placing, 8)).unwrap();
            assert_eq!((packet.fragment, packet.dont_fragment), (fragment, dont_fragment), "{placing:#x}");
        }
    }

    #[test]
    fn ipv6_extension_headers_are_followed() {
        let hop = [17, 0, 0, 0, 0, 0, 0, 0];
        let fragment = |placing: u16| {
            let [a, b] = placing.to_be_bytes();
            [6, 0, a, b, 0, 0, 0, 9]
        };
        let udp = [0u8; 8];
        let table = [
            ("no extension", v6(17, &udp), 17, 40, Fragment::Whole),
            ("hop by hop", v6(0, &[hop, udp].concat()), 17, 48, Fragment::Whole),
            ("an atomic fragment", v6(44, &[fragment(0), udp].concat()), 6, 48, Fragment::Whole),
            ("a first fragment", v6(44, &[fragment(1), udp].concat()), 6, 48, Fragment::First),
            ("a later fragment", v6(44, &[fragment(0x10), udp].concat()), 6, 48, Fragment::Later),
        ];
        for (case, bytes, protocol, transport, fragment) in table {
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!(
                (packet.protocol, packet.transport, packet.fragment),
                (protocol, transport, fragment),
                "{case}"
            );
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let table = [
            ("nothing", vec![], Malformed::Short),
            ("version 5", vec![0x55; 40], Malformed::Version(5)),
            ("half a header", v4(17, 0, 0)[..19].to_vec(), Malformed::Short),
            ("cut off", v4(17, 0, 20)[..39].to_vec(), Malformed::Short),
            ("a header of 16 bytes", [&[0x44], &v4(17, 0, 8)[1..]].concat(), Malformed::HeaderLength),
            ("an extension beyond the end", v6(0, &[17, 9, 0, 0, 0, 0, 0, 0]), Malformed::HeaderLength),
        ];
        for (case, bytes, error) in table {
            assert_eq!(Packet::parse(&bytes), Err(error), "{case}");
        }
    }

    #[test]
    fn bytes_behind_the_packet_are_not_part_of_it() {
        let mut bytes = v4(17, 0, 8);
        bytes.extend([1; 18]);
        assert_eq!(Packet::parse(&bytes).map(|packet| packet.len), Ok(28));
    }

    proptest! {
        /// Any bytes give a packet that lies within them, or an error.
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x40 | (*first & 0x0f) };
            }
            if v6 && bytes.len() > 40 {
                bytes[4] = 0;
                bytes[6] = [0, 6, 17, 43, 44, 51, 60][usize::from(bytes[6]) % 7];
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.len <= bytes.len());
                prop_assert!(packet.transport <= packet.len);
                prop_assert_eq!(destination(&bytes), Some(packet.dst));
            }
        }
    }
}
