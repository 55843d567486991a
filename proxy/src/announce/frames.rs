//! What is said on a LAN about who has an address: ARP (RFC 826, RFC 5227) and IPv6 neighbour discovery
//! (RFC 4861), as Ethernet frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket};
use pnet_packet::ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet_packet::icmpv6::ndp::{
    MutableNeighborAdvertPacket, NdpOptionTypes, NeighborAdvertFlags, NeighborAdvertPacket,
    NeighborSolicitPacket,
};
use pnet_packet::icmpv6::{Icmpv6Packet, Icmpv6Types, checksum};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet_packet::{MutablePacket as _, Packet as _};
use weft_kernel::net::Mac;

/// An Ethernet header without a VLAN tag.
const ETHERNET: usize = 14;
/// An ARP packet for IPv4 over Ethernet (RFC 826).
const ARP: usize = 28;
const IPV6: usize = 40;
/// A neighbour advertisement with the option of the target's link-layer address (RFC 4861, 4.4).
const ADVERTISEMENT: usize = 32;
/// Before its options.
const ADVERTISEMENT_BODY: usize = 24;
/// Neighbour discovery that a router has forwarded is void (RFC 4861, 7.1).
const HOP_LIMIT: u8 = 255;

const EVERYBODY: Mac = Mac([0xff; 6]);
/// All nodes of the link (RFC 4291, 2.7.1), and their MAC (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// What a frame says about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Somebody has it.
    Has {
        /// The address.
        address: IpAddr,
        /// At this MAC.
        mac: Mac,
    },
    /// Somebody asks who has it.
    Asks {
        /// The address.
        address: IpAddr,
        /// Who wants to know; none has an address yet and looks whether this one is free.
        asker: Option<Asker>,
    },
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Its own address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: Mac,
}

/// What a frame says; nothing if it is neither ARP nor neighbour discovery, or makes no sense.
pub fn read(frame: &[u8]) -> Vec<Said> {
    let Some(ethernet) = EthernetPacket::new(frame) else { return Vec::new() };
    match ethernet.get_ethertype() {
        EtherTypes::Arp => read_arp(ethernet.payload()),
        EtherTypes::Ipv6 => read_discovery(&ethernet).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// What tells all neighbours that this MAC has the address from now on, sent more than once because
/// frames are lost.
///
/// For IPv4 a request (an announcement of RFC 5227, 2.3) and a reply: some devices learn from one of
/// them only. For IPv6 an advertisement that nobody asked for (RFC 4861, 7.2.6).
pub fn announcements(address: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            let own = (mac, address);
            vec![
                arp(EVERYBODY, ArpOperations::Request, own, (Mac([0; 6]), address)),
                arp(EVERYBODY, ArpOperations::Reply, own, (EVERYBODY, address)),
            ]
        }
        IpAddr::V6(address) => {
            vec![advertisement((mac, address), (ALL_NODES_MAC, ALL_NODES), NeighborAdvertFlags::Override)]
        }
    }
}

/// The answer to who asks for an address that this MAC has.
pub fn answer(address: IpAddr, mac: Mac, asker: Option<Asker>) -> Vec<u8> {
    match (address, asker) {
        (IpAddr::V4(address), Some(Asker { address: IpAddr::V4(to), mac: of })) => {
            arp(of, ArpOperations::Reply, (mac, address), (of, to))
        }
        // A probe is answered to all: who probes has no address (RFC 5227, 2.1.1).
        (IpAddr::V4(address), _) => {
            arp(EVERYBODY, ArpOperations::Reply, (mac, address), (EVERYBODY, Ipv4Addr::UNSPECIFIED))
        }
        (IpAddr::V6(address), Some(Asker { address: IpAddr::V6(to), mac: of })) => {
            let flags = NeighborAdvertFlags::Solicited | NeighborAdvertFlags::Override;
            advertisement((mac, address), (of, to), flags)
        }
        // And so is who looks for duplicates (RFC 4861, 7.2.4).
        (IpAddr::V6(address), _) => {
            advertisement((mac, address), (ALL_NODES_MAC, ALL_NODES), NeighborAdvertFlags::Override)
        }
    }
}

/// Asks all neighbours whether somebody has an IPv4 address, without saying that this host does (RFC
/// 5227, 2.1.1).
pub fn probe(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    arp(EVERYBODY, ArpOperations::Request, (mac, Ipv4Addr::UNSPECIFIED), (Mac([0; 6]), address))
}

fn read_arp(payload: &[u8]) -> Vec<Said> {
    let Some(arp) = ArpPacket::new(payload) else { return Vec::new() };
    let is_ours = arp.get_hardware_type() == ArpHardwareTypes::Ethernet
        && arp.get_protocol_type() == EtherTypes::Ipv4
        && (arp.get_hw_addr_len(), arp.get_proto_addr_len()) == (6, 4);
    if !is_ours {
        return Vec::new();
    }
    let (sender, mac) = (arp.get_sender_proto_addr(), Mac(arp.get_sender_hw_addr().octets()));
    let target = arp.get_target_proto_addr();
    let asker = (!sender.is_unspecified()).then_some(Asker { address: sender.into(), mac });
    // Requests, too, say who has the sender's address.
    let has = asker.map(|Asker { address, mac }| Said::Has { address, mac });
    let asks = arp.get_operation() == ArpOperations::Request && target != sender;
    let asks = asks.then_some(Said::Asks { address: target.into(), asker });
    has.into_iter().chain(asks).collect()
}

fn read_discovery(ethernet: &EthernetPacket<'_>) -> Option<Said> {
    let ip = Ipv6Packet::new(ethernet.payload())?;
    if ip.get_next_header() != IpNextHeaderProtocols::Icmpv6 || ip.get_hop_limit() != HOP_LIMIT {
        return None;
    }
    let body = ethernet.payload().get(IPV6..IPV6 + usize::from(ip.get_payload_length()))?;
    let icmp = Icmpv6Packet::new(body)?;
    let (source, destination) = (ip.get_source(), ip.get_destination());
    if icmp.get_icmpv6_code().0 != 0 || icmp.get_checksum() != checksum(&icmp, &source, &destination) {
        return None;
    }
    match icmp.get_icmpv6_type() {
        Icmpv6Types::NeighborSolicit => {
            let address = NeighborSolicitPacket::new(body)?.get_target_addr().into();
            let mac = Mac(ethernet.get_source().octets());
            let asker = (!source.is_unspecified()).then_some(Asker { address: source.into(), mac });
            Some(Said::Asks { address, asker })
        }
        Icmpv6Types::NeighborAdvert => {
            let address = NeighborAdvertPacket::new(body)?.get_target_addr().into();
            let named = target_mac(body.get(ADVERTISEMENT_BODY..)?);
            let mac = named.unwrap_or_else(|| Mac(ethernet.get_source().octets()));
            Some(Said::Has { address, mac })
        }
        _ => None,
    }
}

/// The option with the target's link-layer address (RFC 4861, 4.6.1): type, length in units of eight
/// bytes, MAC.
fn target_mac(mut options: &[u8]) -> Option<Mac> {
    while let [kind, length, ..] = *options {
        // One that ends nowhere makes the whole packet void (RFC 4861, 4.6).
        if length == 0 {
            return None;
        }
        let (option, rest) = options.split_at_checked(usize::from(length) * 8)?;
        if kind == NdpOptionTypes::TargetLLAddr.0 {
            return option.get(2..8)?.try_into().ok().map(Mac);
        }
        options = rest;
    }
    None
}

fn ethernet(from: Mac, to: Mac, kind: EtherType, length: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + length];
    if let Some(mut packet) = MutableEthernetPacket::new(&mut frame) {
        packet.set_source(from.0.into());
        packet.set_destination(to.0.into());
        packet.set_ethertype(kind);
        fill(packet.payload_mut());
    }
    frame
}

fn arp(to: Mac, operation: ArpOperation, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    ethernet(sender.0, to, EtherTypes::Arp, ARP, |payload| {
        if let Some(mut arp) = MutableArpPacket::new(payload) {
            arp.set_hardware_type(ArpHardwareTypes::Ethernet);
            arp.set_protocol_type(EtherTypes::Ipv4);
            arp.set_hw_addr_len(6);
            arp.set_proto_addr_len(4);
            arp.set_operation(operation);
            arp.set_sender_hw_addr(sender.0.0.into());
            arp.set_sender_proto_addr(sender.1);
            arp.set_target_hw_addr(target.0.0.into());
            arp.set_target_proto_addr(target.1);
        }
    })
}

/// Comes from the address itself: the host has it, and neighbours may filter what has no address of
/// theirs.
fn advertisement(own: (Mac, Ipv6Addr), to: (Mac, Ipv6Addr), flags: u8) -> Vec<u8> {
    let ((mac, address), (to_mac, to_address)) = (own, to);
    ethernet(mac, to_mac, EtherTypes::Ipv6, IPV6 + ADVERTISEMENT, |payload| {
        let Some(mut ip) = MutableIpv6Packet::new(payload) else { return };
        ip.set_version(6);
        ip.set_payload_length(ADVERTISEMENT as u16);
        ip.set_next_header(IpNextHeaderProtocols::Icmpv6);
        ip.set_hop_limit(HOP_LIMIT);
        ip.set_source(address);
        ip.set_destination(to_address);
        let body = ip.payload_mut();
        if let Some(mut advert) = MutableNeighborAdvertPacket::new(body) {
            advert.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
            advert.set_flags(flags);
            advert.set_target_addr(address);
        }
        if let Some(option) = body.get_mut(ADVERTISEMENT_BODY..) {
            option.copy_from_slice(&[&[NdpOptionTypes::TargetLLAddr.0, 1], mac.0.as_slice()].concat());
        }
        let sum = Icmpv6Packet::new(body).map_or(0, |icmp| checksum(&icmp, &address, &to_address));
        if let Some(mut advert) = MutableNeighborAdvertPacket::new(body) {
            advert.set_checksum(sum);
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIR: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn hex(frame: &[u8]) -> String {
        frame.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Byte by byte, as RFC 826 and RFC 5227 have them.
    #[test]
    fn arp_frames_are_those_of_the_standards() {
        let [request, reply] = announcements(ip("203.0.113.5"), OWN).try_into().unwrap();
        let head = "ffffffffffff0200000000010806 0001 0800 06 04".replace(' ', "");
        assert_eq!(hex(&request), format!("{head}0001020000000001cb007105000000000000cb007105"));
        assert_eq!(hex(&reply), format!("{head}0002020000000001cb007105ffffffffffffcb007105"));
        let probe = probe(Ipv4Addr::new(203, 0, 113, 5), OWN);
        assert_eq!(hex(&probe), format!("{head}000102000000000100000000000000000000cb007105"));
        let asker = Asker { address: ip("203.0.113.9"), mac: THEIR };
        let answer = answer(ip("203.0.113.5"), OWN, Some(asker));
        assert_eq!(
            hex(&answer),
            "0200000000090200000000010806000108000604000202000000000 1cb007105020000000009cb007109"
                .replace(' ', "")
        );
    }

    /// What is read is what was written, and what it says of whom.
    #[test]
    fn frames_are_read_back() {
        let (v4, v6) = (ip("203.0.113.5"), ip("2001:db8::5"));
        for address in [v4, v6] {
            let has = Said::Has { address, mac: OWN };
            for frame in announcements(address, OWN) {
                assert_eq!(read(&frame), std::slice::from_ref(&has));
            }
            let other = if address.is_ipv4() { ip("203.0.113.9") } else { ip("fe80::9") };
            for asker in [None, Some(Asker { address: other, mac: THEIR })] {
                assert_eq!(read(&answer(address, OWN, asker)), std::slice::from_ref(&has));
            }
        }
        let probe = probe(Ipv4Addr::new(203, 0, 113, 5), OWN);
        assert_eq!(read(&probe), [Said::Asks { address: v4, asker: None }]);
    }

    #[test]
    fn a_request_says_two_things() {
        let sender = (THEIR, Ipv4Addr::new(203, 0, 113, 9));
        let frame =
            arp(EVERYBODY, ArpOperations::Request, sender, (Mac([0; 6]), Ipv4Addr::new(203, 0, 113, 5)));
        let asker = Asker { address: ip("203.0.113.9"), mac: THEIR };
        assert_eq!(
            read(&frame),
            [
                Said::Has { address: ip("203.0.113.9"), mac: THEIR },
                Said::Asks { address: ip("203.0.113.5"), asker: Some(asker) }
            ]
        );
    }

    /// A solicitation as a Linux host sent it (tcpdump -xx): fe80::ff:fe00:9 asks for 2001:db8::5.
    #[test]
    fn a_solicitation_of_the_kernel_s_is_understood() {
        let frame = solicitation("fe80::ff:fe00:9");
        let asker = Asker { address: ip("fe80::ff:fe00:9"), mac: THEIR };
        assert_eq!(read(&frame), [Said::Asks { address: ip("2001:db8::5"), asker: Some(asker) }]);
        let duplicate_detection = solicitation("::");
        assert_eq!(read(&duplicate_detection), [Said::Asks { address: ip("2001:db8::5"), asker: None }]);
        for (at, what) in [(21, "a hop limit below 255"), (56, "another checksum"), (55, "another code")] {
            let mut forged = frame.clone();
            forged[at] ^= 1;
            assert_eq!(read(&forged), [], "{what}");
        }
    }

    fn solicitation(source: &str) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        let target = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 5);
        let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &THEIR.0].concat();
        let sum = checksum(&Icmpv6Packet::new(&body).unwrap(), &source, &group).to_be_bytes();
        let head = [&[0x60, 0, 0, 0, 0, 32, 58, 255][..], &source.octets(), &group.octets()].concat();
        let macs = [&[0x33, 0x33, 0xff, 0, 0, 5][..], &THEIR.0, &[0x86, 0xdd]].concat();
        let mut frame = [macs, head, body].concat();
        frame[56..58].copy_from_slice(&sum);
        frame
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..120),
            kind in prop_oneof![Just([0x08, 0x06]), Just([0x86, 0xdd])],
        ) {
            let mut frame = bytes;
            let _ = read(&frame);
            if let Some(ethertype) = frame.get_mut(12..14) {
                ethertype.copy_from_slice(&kind);
            }
            let _ = read(&frame);
        }

        /// Also with a checksum that is right, so that options are looked at.
        #[test]
        fn no_option_makes_it_panic(options in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut frame = announcements(ip("2001:db8::5"), OWN).remove(0);
            frame.truncate(ETHERNET + IPV6 + ADVERTISEMENT_BODY);
            frame.extend(&options);
            frame[18..20].copy_from_slice(&u16::try_from(ADVERTISEMENT_BODY + options.len()).unwrap().to_be_bytes());
            frame[56..58].fill(0);
            let own = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
            let sum = checksum(&Icmpv6Packet::new(&frame[54..]).unwrap(), &own, &ALL_NODES);
            frame[56..58].copy_from_slice(&sum.to_be_bytes());
            prop_assert_eq!(read(&frame).len(), 1);
        }
    }
}
