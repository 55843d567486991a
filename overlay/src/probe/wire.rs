//! ICMP echo on a raw socket: building requests and reading replies, IPv4 (RFC 792) and IPv6 (RFC 4443).

use std::net::IpAddr;

use pnet_packet::Packet;
use pnet_packet::icmp::echo_reply::EchoReplyPacket;
use pnet_packet::icmp::echo_request::MutableEchoRequestPacket;
use pnet_packet::icmp::{IcmpTypes, checksum};
use pnet_packet::icmpv6::echo_reply::EchoReplyPacket as EchoReplyV6Packet;
use pnet_packet::icmpv6::echo_request::MutableEchoRequestPacket as MutableEchoRequestV6Packet;
use pnet_packet::icmpv6::{Icmpv6Packet, Icmpv6Types};
use pnet_packet::ipv4::Ipv4Packet;

/// Header (8 bytes) and payload: as small as an echo can be and still say whose it is.
const LEN: usize = 16;
const PAYLOAD: [u8; 8] = *b"weftping";

/// An echo request for the address's family. The kernel fills in IPv6's checksum, which covers
/// addresses that only it knows (RFC 3542, section 3.1).
pub(super) fn echo_request(to: IpAddr, ident: u16, seq: u16) -> Vec<u8> {
    let mut bytes = vec![0u8; LEN];
    match to {
        IpAddr::V4(_) => {
            if let Some(mut packet) = MutableEchoRequestPacket::new(&mut bytes) {
                packet.set_icmp_type(IcmpTypes::EchoRequest);
                packet.set_identifier(ident);
                packet.set_sequence_number(seq);
                packet.set_payload(&PAYLOAD);
            }
            let sum = pnet_packet::icmp::IcmpPacket::new(&bytes).map_or(0, |packet| checksum(&packet));
            if let Some(mut packet) = MutableEchoRequestPacket::new(&mut bytes) {
                packet.set_checksum(sum);
            }
        }
        IpAddr::V6(_) => {
            if let Some(mut packet) = MutableEchoRequestV6Packet::new(&mut bytes) {
                packet.set_icmpv6_type(Icmpv6Types::EchoRequest);
                packet.set_identifier(ident);
                packet.set_sequence_number(seq);
                packet.set_payload(&PAYLOAD);
            }
        }
    }
    bytes
}

/// Identifier and sequence number, if the packet is an echo reply. A raw IPv4 socket delivers the
/// IP header too (raw(7)), an IPv6 one does not (RFC 3542, section 3).
pub(super) fn echo_reply(from: IpAddr, packet: &[u8]) -> Option<(u16, u16)> {
    match from {
        IpAddr::V4(_) => {
            let ip = Ipv4Packet::new(packet)?;
            let icmp = packet.get(usize::from(ip.get_header_length()) * 4..)?;
            let reply = EchoReplyPacket::new(icmp)?;
            let is_reply =
                reply.get_icmp_type() == IcmpTypes::EchoReply && reply.payload().starts_with(&PAYLOAD);
            is_reply.then(|| (reply.get_identifier(), reply.get_sequence_number()))
        }
        IpAddr::V6(_) => {
            if Icmpv6Packet::new(packet)?.get_icmpv6_type() != Icmpv6Types::EchoReply {
                return None;
            }
            let reply = EchoReplyV6Packet::new(packet)?;
            reply
                .payload()
                .starts_with(&PAYLOAD)
                .then(|| (reply.get_identifier(), reply.get_sequence_number()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4() -> IpAddr {
        IpAddr::from([10, 42, 7, 0])
    }

    fn v6() -> IpAddr {
        IpAddr::from([0xfd00, 0, 0, 7, 0, 0, 0, 0])
    }

    #[test]
    fn a_reply_is_recognised_by_type_identifier_and_payload() {
        let mut icmp = echo_request(v4(), 7, 9);
        icmp[0] = 0; // echo reply
        let ip_header = [0x45u8, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0, 10, 42, 7, 0, 10, 42, 1, 0];
        let packet = [&ip_header[..], &icmp].concat();
        assert_eq!(echo_reply(v4(), &packet), Some((7, 9)));

        let mut icmp = echo_request(v6(), 7, 9);
        assert_eq!(echo_reply(v6(), &icmp), None, "a request is no reply");
        icmp[0] = 129; // echo reply
        assert_eq!(echo_reply(v6(), &icmp), Some((7, 9)));
    }

    #[test]
    fn an_ipv4_request_carries_a_right_checksum() {
        let request = echo_request(v4(), 0x1234, 0x5678);
        let sum: u32 = request.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    proptest! {
        #[test]
        fn no_bytes_from_the_wire_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = echo_reply(v4(), &bytes);
            let _ = echo_reply(v6(), &bytes);
        }
    }
}
