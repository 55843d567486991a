//! The two things a tunnel has to say to a sender: no way there, and too big.
//!
//! Pure: packets in, a packet out or the rule that forbids one. [`RateLimit`] takes the time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::checksum::Sum;
use super::packet::{Fragment, Packet, protocol, pseudo_header};
use super::split::finish_ip;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// Nobody leases the destination: net unreachable, as flannel's proxy answers (ICMP 3/0), or
    /// ICMPv6's no route to destination (1/0).
    NoRoute,
    /// The packet must not be fragmented and does not fit (ICMP 3/4, RFC 1191; ICMPv6 2/0).
    TooBig {
        /// The longest inner packet that fits, in bytes.
        mtu: u16,
    },
}

/// RFC 8200, section 5: every IPv6 link carries packets of this length.
pub(super) const IPV6_MIN_MTU: u16 = 1280;
/// RFC 1812, section 4.3.2.3: an ICMP error quotes as much as fits in 576 bytes.
const ICMP_MAX: usize = 576;
const TTL: u8 = 64;

/// The packet that tells `original`'s sender, from `source`; `None` where the rules forbid an answer
/// (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)) or the families differ.
pub(super) fn answer(complaint: Complaint, original: &[u8], source: IpAddr) -> Option<Vec<u8>> {
    let packet = Packet::parse(original).ok()?;
    let original = original.get(..packet.len)?;
    if !may_be_answered(original, &packet) {
        return None;
    }
    match (source, packet.src) {
        (IpAddr::V4(source), IpAddr::V4(to)) => Some(answer_v4(complaint, original, source, to)),
        (IpAddr::V6(source), IpAddr::V6(to)) => Some(answer_v6(complaint, original, source, to)),
        _ => None,
    }
}

fn may_be_answered(original: &[u8], packet: &Packet) -> bool {
    let one_host = match packet.src {
        IpAddr::V4(src) => {
            // Class E and "this network" are nobody's address.
            let [first, ..] = src.octets();
            first != 0 && first < 240 && !src.is_multicast() && !src.is_loopback()
        }
        IpAddr::V6(src) => !src.is_unspecified() && !src.is_multicast() && !src.is_loopback(),
    };
    let to_one_host = match packet.dst {
        IpAddr::V4(dst) => !dst.is_multicast() && !dst.is_broadcast(),
        IpAddr::V6(dst) => !dst.is_multicast(),
    };
    let icmp_type = original.get(packet.transport).copied();
    let is_error = match (packet.protocol, packet.fragment) {
        (_, Fragment::Later) => return false,
        // A message without a type may be an error for all we know.
        (protocol::ICMP, _) => icmp_type.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
        (protocol::ICMPV6, _) => icmp_type.is_none_or(|kind| kind < 128 || kind == 137),
        _ => false,
    };
    one_host && to_one_host && !is_error
}

fn answer_v4(complaint: Complaint, original: &[u8], source: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let (code, mtu) = match complaint {
        Complaint::NoRoute => (0, 0),
        Complaint::TooBig { mtu } => (4, mtu),
    };
    let mut message = vec![3, code, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&original[..original.len().min(ICMP_MAX - 28)]);
    let checksum = Sum::default().bytes(&message).checksum();
    message[2..4].copy_from_slice(&checksum);

    // ToS 0xc0, "internetwork control", is what routers mark their errors with (RFC 1812 4.3.2.5).
    let mut packet = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, TTL, protocol::ICMP, 0, 0];
    packet.extend(source.octets());
    packet.extend(to.octets());
    finish_ip(&mut packet, message.len(), 0);
    packet.extend(message);
    packet
}

fn answer_v6(complaint: Complaint, original: &[u8], source: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let (kind, mtu) = match complaint {
        Complaint::NoRoute => (1, 0),
        Complaint::TooBig { mtu } => (2, u32::from(mtu.max(IPV6_MIN_MTU))),
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&original[..original.len().min(usize::from(IPV6_MIN_MTU) - 48)]);
    let pseudo = pseudo_header(source.into(), to.into(), protocol::ICMPV6, message.len() as u16);
    let checksum = pseudo.bytes(&message).checksum();
    message[2..4].copy_from_slice(&checksum);

    let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol::ICMPV6, TTL];
    packet.extend(source.octets());
    packet.extend(to.octets());
    finish_ip(&mut packet, message.len(), 0);
    packet.extend(message);
    packet
}

/// A token bucket: so many at once, then so many a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateLimit {
    burst: u32,
    interval: Duration,
    /// When the bucket is full again.
    full_at: Option<Instant>,
}

impl RateLimit {
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        Self { burst, interval: Duration::from_secs(1) / per_second.max(1), full_at: None }
    }

    /// Takes a token, if there is one.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.unwrap_or(now).max(now);
        let allowed = full_at.duration_since(now) + self.interval <= self.interval * self.burst;
        if allowed {
            self.full_at = Some(full_at + self.interval);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use pnet_packet::Packet as _;
    use pnet_packet::{icmp, icmpv6, ipv4, ipv6};

    use super::*;

    const OURS_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 7, 0));
    const OURS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0));

    fn v4(src: [u8; 4], dst: [u8; 4], protocol: u8, placing: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
        packet[6..8].copy_from_slice(&placing.to_be_bytes());
        packet.extend(src);
        packet.extend(dst);
        finish_ip(&mut packet, payload.len(), 0);
        packet.extend(payload);
        packet
    }

    fn v6(dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend(Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 9).octets());
        packet.extend(dst.octets());
        finish_ip(&mut packet, payload.len(), 0);
        packet.extend(payload);
        packet
    }

    const POD: [u8; 4] = [10, 42, 7, 9];
    const FAR: [u8; 4] = [10, 42, 9, 9];

    #[test]
    fn an_ipv4_answer_is_what_an_independent_reader_expects() {
        let original = v4(POD, FAR, 17, 0, &[7; 1000]);
        for (complaint, code, mtu) in
            [(Complaint::NoRoute, 0, 0), (Complaint::TooBig { mtu: 1372 }, 4, 1372u16)]
        {
            let bytes = answer(complaint, &original, OURS_V4).unwrap();
            let packet = ipv4::Ipv4Packet::new(&bytes).unwrap();
            assert_eq!((bytes.len(), packet.get_total_length()), (576, 576));
            assert_eq!(packet.get_checksum(), ipv4::checksum(&packet));
            assert_eq!(IpAddr::V4(packet.get_source()), OURS_V4);
            assert_eq!(packet.get_destination(), Ipv4Addr::from(POD));
            let message = icmp::IcmpPacket::new(packet.payload()).unwrap();
            assert_eq!(message.get_icmp_type(), icmp::IcmpTypes::DestinationUnreachable);
            assert_eq!(message.get_icmp_code().0, code);
            assert_eq!(message.get_checksum(), icmp::checksum(&message));
            assert_eq!(packet.payload()[6..8], mtu.to_be_bytes());
            assert_eq!(packet.payload()[8..], original[..576 - 28]);
        }
    }

    #[test]
    fn an_ipv6_answer_is_what_an_independent_reader_expects() {
        let far = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9);
        let original = v6(far, 17, &[7; 1400]);
        // Less than 1280 is never reported: the tunnel fragments instead (RFC 2473 7.1).
        for (complaint, kind, mtu) in [
            (Complaint::NoRoute, 1, 0u32),
            (Complaint::TooBig { mtu: 1372 }, 2, 1372),
            (Complaint::TooBig { mtu: 900 }, 2, 1280),
        ] {
            let bytes = answer(complaint, &original, OURS_V6).unwrap();
            let packet = ipv6::Ipv6Packet::new(&bytes).unwrap();
            assert_eq!(bytes.len(), 1280);
            assert_eq!(usize::from(packet.get_payload_length()), bytes.len() - 40);
            let message = icmpv6::Icmpv6Packet::new(packet.payload()).unwrap();
            assert_eq!(message.get_icmpv6_type().0, kind);
            let checksum = icmpv6::checksum(&message, &packet.get_source(), &packet.get_destination());
            assert_eq!(message.get_checksum(), checksum);
            assert_eq!(packet.payload()[4..8], mtu.to_be_bytes());
            assert_eq!(packet.payload()[8..], original[..1280 - 48]);
        }
    }

    #[test]
    fn some_packets_get_no_answer() {
        let echo = [8, 0, 0, 0, 0, 0, 0, 0];
        let error = |kind| [kind, 0, 0, 0, 0, 0, 0, 0];
        let far6 = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9);
        let table = [
            ("udp", v4(POD, FAR, 17, 0, &[0; 8]), true),
            ("an echo request", v4(POD, FAR, 1, 0, &echo), true),
            ("a first fragment", v4(POD, FAR, 17, 0x2000, &[0; 8]), true),
            ("a later fragment", v4(POD, FAR, 17, 0x2001, &[0; 8]), false),
            ("an unreachable", v4(POD, FAR, 1, 0, &error(3)), false),
            ("a time exceeded", v4(POD, FAR, 1, 0, &error(11)), false),
            ("an ICMP message of no bytes", v4(POD, FAR, 1, 0, &[]), false),
            ("to a group", v4(POD, [224, 0, 0, 1], 17, 0, &[0; 8]), false),
            ("to everybody", v4(POD, [255; 4], 17, 0, &[0; 8]), false),
            ("from nobody", v4([0; 4], FAR, 17, 0, &[0; 8]), false),
            ("from class E", v4([240, 0, 0, 1], FAR, 17, 0, &[0; 8]), false),
            ("from itself", v4([127, 0, 0, 1], FAR, 17, 0, &[0; 8]), false),
            ("v6 udp", v6(far6, 17, &[0; 8]), true),
            ("v6 echo request", v6(far6, 58, &error(128)), true),
            ("v6 unreachable", v6(far6, 58, &error(1)), false),
            ("v6 redirect", v6(far6, 58, &error(137)), false),
            ("v6 to a group", v6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 17, &[0; 8]), false),
        ];
        for (case, packet, answered) in table {
            let source = if packet[0] >> 4 == 4 { OURS_V4 } else { OURS_V6 };
            assert_eq!(answer(Complaint::NoRoute, &packet, source).is_some(), answered, "{case}");
        }
        assert_eq!(answer(Complaint::NoRoute, &v4(POD, FAR, 17, 0, &[]), OURS_V6), None);
    }

    #[test]
    fn the_rate_is_a_burst_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut limit = RateLimit::new(3, 10);
        let at = |ms| start + Duration::from_millis(ms);
        let table = [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (99, false),
            (101, true),
            (102, false),
            (5000, true),
            (5000, true),
            (5000, true),
            (5000, false),
        ];
        for (step, (ms, allowed)) in table.into_iter().enumerate() {
            assert_eq!(limit.allows(at(ms)), allowed, "step {step} at {ms} ms");
        }
    }
}
