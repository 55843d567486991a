//! What must hold of cutting and putting together, for any traffic: they undo each other, byte for byte.

use std::net::IpAddr;

use proptest::prelude::*;
use weft_kernel::tun::{PartialChecksum, SegmentKind, Segmentation, VnetHeader};

use super::coalesce::Coalescer;
use super::packet::{Packet, protocol, pseudo_header};
use super::split::{finish_checksum, finish_ip, flag, split};

/// One flow's fixed part.
#[derive(Clone, Debug)]
struct Flow {
    v6: bool,
    tcp: bool,
    port: u16,
    tos: u8,
    ttl: u8,
    dont_fragment: bool,
    ack: u32,
    options: Vec<u8>,
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let options = prop_oneof![
        Just(vec![]),
        Just(vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
        Just(vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 2]),
    ];
    let header = (prop_oneof![Just(0u8), Just(2), Just(3)], prop_oneof![Just(64u8), Just(63)]);
    (any::<bool>(), any::<bool>(), 1u16..4, header, any::<bool>(), 1u32..3, options).prop_map(
        |(v6, tcp, port, (tos, ttl), dont_fragment, ack, options)| Flow {
            v6,
            tcp,
            port,
            tos,
            ttl,
            dont_fragment,
            ack,
            options,
        },
    )
}

/// A packet of a flow, checksums right: the sender's kernel, written from the RFCs and slowly.
fn packet(flow: &Flow, id: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut transport = Vec::new();
    transport.extend(4000u16.to_be_bytes());
    transport.extend(flow.port.to_be_bytes());
    if flow.tcp {
        transport.extend(sequence.to_be_bytes());
        transport.extend(flow.ack.to_be_bytes());
        transport.extend([(5 + flow.options.len() as u8 / 4) << 4, flags, 0x20, 0, 0, 0, 0, 0]);
        transport.extend(&flow.options);
    } else {
        transport.extend((8 + payload.len() as u16).to_be_bytes());
        transport.extend([0, 0]);
    }
    transport.extend(payload);
    let (next, at) = if flow.tcp { (protocol::TCP, 16) } else { (protocol::UDP, 6) };
    let (mut ip, src, dst): (_, IpAddr, IpAddr) = if flow.v6 {
        let (src, dst) = ([0xfd; 16], [0xfc; 16]);
        let mut ip = vec![0x60, flow.tos << 4, 0, 0, 0, 0, next, flow.ttl];
        ip.extend(src);
        ip.extend(dst);
        (ip, src.into(), dst.into())
    } else {
        let [hi, lo] = id.to_be_bytes();
        let df = if flow.dont_fragment { 0x40 } else { 0 };
        let ip = vec![0x45, flow.tos, 0, 0, hi, lo, df, 0, flow.ttl, next, 0, 0, 10, 0, 0, 1, 10, 0, 1, 2];
        (ip, [10, 0, 0, 1].into(), [10, 0, 1, 2].into())
    };
    let pseudo = pseudo_header(src, dst, next, transport.len() as u16).bytes(&transport);
    transport[at..at + 2].copy_from_slice(&if flow.tcp { pseudo.checksum() } else { pseudo.udp_checksum() });
    finish_ip(&mut ip, transport.len(), 0);
    ip.extend(transport);
    ip
}

/// What happens to one packet of a stream.
#[derive(Clone, Debug)]
struct Step {
    flow: usize,
    /// Full size, or this much.
    short: Option<usize>,
    flags: u8,
    /// Sequence number or id are not the next ones.
    jump: Option<u16>,
    /// Flip this bit of the packet.
    damage: Option<usize>,
}

fn any_step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        8 => Just(flag::ACK),
        1 => Just(flag::ACK | flag::PSH),
        1 => Just(flag::ACK | flag::FIN),
        1 => Just(flag::ACK | flag::CWR),
        1 => Just(flag::ACK | flag::URG),
        1 => Just(flag::SYN),
    ];
    let short = proptest::option::weighted(0.2, 0usize..60);
    let jump = proptest::option::weighted(0.1, 1u16..);
    let damage = proptest::option::weighted(0.1, any::<usize>());
    (0usize..3, short, flags, jump, damage).prop_map(|(flow, short, flags, jump, damage)| Step {
        flow,
        short,
        flags,
        jump,
        damage,
    })
}

fn stream(flows: &[Flow], steps: &[Step]) -> Vec<Vec<u8>> {
    let mut state = vec![(u16::MAX - 3, u32::MAX - 200); flows.len()];
    let mut packets = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let at = step.flow % flows.len();
        let (id, sequence) = &mut state[at];
        if let Some(jump) = step.jump {
            *id = id.wrapping_add(jump);
            *sequence = sequence.wrapping_add(u32::from(jump) * 7);
        }
        let len = step.short.unwrap_or(60);
        let payload: Vec<u8> = (0..len).map(|byte| (index * 7 + byte) as u8).collect();
        let mut bytes = packet(&flows[at], *id, *sequence, step.flags, &payload);
        *id = id.wrapping_add(1);
        *sequence = sequence.wrapping_add(len as u32);
        if let Some(bit) = step.damage {
            // Version and lengths stay, or it would be another packet altogether.
            let first = if flows[at].v6 { 7 } else { 8 };
            let bit = first * 8 + bit % ((bytes.len() - first) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        packets.push(bytes);
    }
    packets
}

/// One batch through the coalescer: vnet header, bytes, how many packets.
fn coalesce(packets: &[Vec<u8>], udp: bool) -> Vec<(VnetHeader, Vec<u8>, usize)> {
    let mut memory = packets.concat();
    let mut coalescer = Coalescer::new(udp);
    let mut start = 0;
    for bytes in packets {
        if let Ok(packet) = Packet::parse(&memory[start..start + bytes.len()]) {
            coalescer.push(&memory, start, &packet);
        }
        start += bytes.len();
    }
    let gather = |memory: &[u8], pieces: &[std::ops::Range<usize>]| {
        pieces.iter().flat_map(|range| memory[range.clone()].iter().copied()).collect::<Vec<u8>>()
    };
    let described: Vec<_> = coalescer
        .finish(&mut memory)
        .iter()
        .map(|output| (output.vnet, output.pieces.clone(), output.count()))
        .collect();
    described.into_iter().map(|(vnet, pieces, count)| (vnet, gather(&memory, &pieces), count)).collect()
}

/// What the peer's kernel, or ours, makes of a packet with its vnet header.
fn cut(vnet: &VnetHeader, bytes: &[u8]) -> Vec<Vec<u8>> {
    if vnet.segmentation.is_none() {
        let mut whole = bytes.to_vec();
        if let Some(checksum) = vnet.checksum {
            finish_checksum(checksum, &mut whole).unwrap();
        }
        return vec![whole];
    }
    let mut headers = vec![0xee; 3];
    let segments = split(vnet, bytes, &mut headers).unwrap();
    (0..segments.count)
        .map(|index| {
            let header = segments.header_of(index);
            [&headers[3 + header.start..3 + header.end], &bytes[segments.payload_of(index)]].concat()
        })
        .collect()
}

fn flow_of(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8, Vec<u8>)> {
    let packet = Packet::parse(bytes).ok()?;
    let ports = bytes.get(packet.transport..packet.transport + 4)?;
    Some((packet.src, packet.dst, packet.protocol, ports.to_vec()))
}

fn by_flow(packets: &[Vec<u8>]) -> std::collections::BTreeMap<String, Vec<Vec<u8>>> {
    let mut flows = std::collections::BTreeMap::<_, Vec<_>>::new();
    for bytes in packets {
        flows.entry(format!("{:?}", flow_of(bytes))).or_default().push(bytes.clone());
    }
    flows
}

/// A super-packet as a kernel hands it over, with its vnet header.
fn super_packet(flow: &Flow, size: u16, payload_len: usize, flags: u8) -> (VnetHeader, Vec<u8>) {
    let payload: Vec<u8> = (0..payload_len).map(|byte| (byte * 11) as u8).collect();
    let mut bytes = packet(flow, 65_530, u32::MAX - 2000, flags, &payload);
    let parsed = Packet::parse(&bytes).unwrap();
    let (header, offset, kind) = match (flow.tcp, flow.v6) {
        (false, _) => (8, 6, SegmentKind::Udp),
        (true, false) => (20 + flow.options.len(), 16, SegmentKind::Tcp4),
        (true, true) => (20 + flow.options.len(), 16, SegmentKind::Tcp6),
    };
    let at = parsed.transport + offset;
    let pseudo = parsed.pseudo_header((parsed.len - parsed.transport) as u16).partial();
    bytes[at..at + 2].copy_from_slice(&pseudo);
    let vnet = VnetHeader {
        checksum: Some(PartialChecksum { start: parsed.transport as u16, offset: offset as u16 }),
        segmentation: Some(Segmentation {
            kind,
            size,
            ecn: flow.tcp && flags & flag::CWR != 0,
            header_len: (parsed.transport + header) as u16,
        }),
    };
    (vnet, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Cutting what was put together gives what came in: every byte, and each flow in its order,
    /// damaged packets as damaged as they were.
    #[test]
    fn split_undoes_coalesce(
        flows in proptest::collection::vec(any_flow(), 1..4),
        steps in proptest::collection::vec(any_step(), 0..150),
        udp: bool,
    ) {
        let packets = stream(&flows, &steps);
        let parsable: Vec<_> = packets.iter().filter(|bytes| Packet::parse(bytes).is_ok()).cloned().collect();
        let outputs = coalesce(&packets, udp);
        let again: Vec<_> = outputs.iter().flat_map(|(vnet, bytes, _)| cut(vnet, bytes)).collect();
        prop_assert_eq!(outputs.iter().map(|output| output.2).sum::<usize>(), parsable.len());
        prop_assert_eq!(by_flow(&again), by_flow(&parsable));
    }

    /// Putting together what was cut gives the super-packet.
    #[test]
    fn coalesce_undoes_split(
        flow in any_flow(),
        size in 100u16..1500,
        segments in 2usize..40,
        rest in 1usize..100,
        last in prop_oneof![Just(0), Just(flag::PSH), Just(flag::FIN), Just(flag::PSH | flag::FIN)],
        cwr: bool,
    ) {
        let payload = usize::from(size) * (segments - 1) + rest;
        let flags = flag::ACK | last | if cwr { flag::CWR } else { 0 };
        let (vnet, bytes) = super_packet(&flow, size, payload, flags);
        let packets = cut(&vnet, &bytes);
        prop_assert_eq!(packets.len(), segments);
        let outputs = coalesce(&packets, true);
        prop_assert_eq!(outputs.len(), 1);
        prop_assert_eq!(&outputs[0].1, &bytes);
        prop_assert_eq!(outputs[0].0, vnet);
    }

    /// Each packet that a super-packet is cut into reads as a sender without offloads would have
    /// written it.
    #[test]
    fn split_makes_what_a_plain_sender_makes(
        flow in any_flow(),
        size in 1u16..300,
        payload_len in 1usize..3000,
        flags in prop_oneof![Just(flag::ACK), Just(flag::ACK | flag::PSH | flag::CWR), Just(flag::ACK | flag::FIN)],
    ) {
        let (vnet, bytes) = super_packet(&flow, size, payload_len, flags);
        let payload: Vec<u8> = (0..payload_len).map(|byte| (byte * 11) as u8).collect();
        let pieces: Vec<&[u8]> = payload.chunks(usize::from(size)).collect();
        let expected: Vec<Vec<u8>> = pieces.iter().enumerate().map(|(index, piece)| {
            let mut own = flags;
            if index > 0 { own &= !flag::CWR }
            if index + 1 < pieces.len() { own &= !(flag::PSH | flag::FIN) }
            let sequence = (u32::MAX - 2000).wrapping_add((index * usize::from(size)) as u32);
            packet(&flow, 65_530u16.wrapping_add(index as u16), sequence, own, piece)
        }).collect();
        prop_assert_eq!(cut(&vnet, &bytes), expected);
    }

    /// No bytes and no vnet header make the cutter panic or write outside.
    #[test]
    fn split_survives_anything(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60)],
        next in prop_oneof![Just(6u8), Just(17), Just(0), Just(1)],
        size: u16, start in 0u16..80, offset in 0u16..80,
        kind in prop_oneof![Just(SegmentKind::Tcp4), Just(SegmentKind::Tcp6), Just(SegmentKind::Udp)],
    ) {
        let len = bytes.len() as u16;
        if bytes.len() > 10 {
            bytes[0] = version;
            let (at, len) = if version == 0x60 { (4, len.saturating_sub(40)) } else { (2, len) };
            bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
            bytes[if version == 0x60 { 6 } else { 9 }] = next;
        }
        let checksum = PartialChecksum { start, offset };
        let segmentation = Segmentation { kind, size, ecn: false, header_len: 0 };
        let vnet = VnetHeader { checksum: Some(checksum), segmentation: Some(segmentation) };
        let mut headers = Vec::new();
        if let Ok(segments) = split(&vnet, &bytes, &mut headers) {
            prop_assert_eq!(headers.len(), segments.count * segments.header_len);
            let payload: usize = (0..segments.count).map(|index| segments.payload_of(index).len()).sum();
            prop_assert_eq!(payload + segments.header_len, segments.len);
        }
        let _ = finish_checksum(checksum, &mut bytes);
    }

    /// No bytes make the other direction panic either, and single packets pass untouched.
    #[test]
    fn coalesce_survives_anything(packets in proptest::collection::vec(
        (proptest::collection::vec(any::<u8>(), 1..100), any::<bool>(), any::<bool>()), 0..20)
    ) {
        let packets: Vec<Vec<u8>> = packets.into_iter().map(|(mut bytes, v6, tcp)| {
            bytes[0] = if v6 { 0x60 } else { 0x45 };
            let len = bytes.len() as u16;
            if bytes.len() > 40 {
                let (at, len, next) = if v6 { (4, len - 40, 6) } else { (2, len, 9) };
                bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
                bytes[next] = if tcp { 6 } else { 17 };
            }
            bytes
        }).collect();
        let whole: Vec<_> = packets.iter().filter_map(|bytes| {
            Packet::parse(bytes).ok().map(|packet| bytes[..packet.len].to_vec())
        }).collect();
        // Random checksums are wrong, so nothing may be merged.
        let outputs: Vec<_> = coalesce(&packets, true).into_iter().map(|output| output.1).collect();
        prop_assert_eq!(outputs, whole);
    }
}

/// Two neighbours in one flow, and the one thing that differs.
#[test]
fn what_may_not_be_merged_is_not() {
    let tcp = Flow {
        v6: false,
        tcp: true,
        port: 1,
        tos: 0,
        ttl: 64,
        dont_fragment: true,
        ack: 1,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
    };
    let tcp6 = Flow { v6: true, ..tcp.clone() };
    let udp = Flow { tcp: false, options: vec![], ..tcp.clone() };
    let (full, short) = ([7u8; 60], [7u8; 59]);
    let first = packet(&tcp, 1, 100, flag::ACK, &full);
    let next = |flow: &Flow| packet(flow, 2, 160, flag::ACK, &full);
    let with = |flags| packet(&tcp, 2, 160, flags, &full);
    let damaged = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 1;
        bytes
    };
    let no_checksum = |mut bytes: Vec<u8>| {
        bytes[26..28].fill(0);
        bytes
    };
    let udp_first = packet(&udp, 1, 0, 0, &full);
    let table = [
        ("the next one", first.clone(), next(&tcp), true),
        ("a shorter one", first.clone(), packet(&tcp, 2, 160, flag::ACK, &short), true),
        ("with PSH", first.clone(), with(flag::ACK | flag::PSH), true),
        ("with FIN", first.clone(), with(flag::ACK | flag::FIN), true),
        ("a longer one", first.clone(), packet(&tcp, 2, 160, flag::ACK, &[7; 61]), false),
        ("no payload", first.clone(), packet(&tcp, 2, 160, flag::ACK, &[]), false),
        ("a gap", first.clone(), packet(&tcp, 2, 161, flag::ACK, &full), false),
        ("a repeated id", first.clone(), packet(&tcp, 1, 160, flag::ACK, &full), false),
        ("after PSH", packet(&tcp, 1, 100, flag::ACK | flag::PSH, &full), next(&tcp), false),
        ("CWR on the second", first.clone(), with(flag::ACK | flag::CWR), false),
        ("CWR on the first", packet(&tcp, 1, 100, flag::ACK | flag::CWR, &full), next(&tcp), true),
        ("URG", first.clone(), with(flag::ACK | flag::URG), false),
        ("ECE", first.clone(), with(flag::ACK | 0x40), false),
        ("RST", first.clone(), with(flag::ACK | flag::RST), false),
        ("another acknowledgement", first.clone(), next(&Flow { ack: 2, ..tcp.clone() }), false),
        ("other timestamps", first.clone(), next(&Flow { options: vec![1; 12], ..tcp.clone() }), false),
        ("no options", first.clone(), next(&Flow { options: vec![], ..tcp.clone() }), false),
        ("congestion experienced", first.clone(), next(&Flow { tos: 3, ..tcp.clone() }), false),
        ("another TTL", first.clone(), next(&Flow { ttl: 63, ..tcp.clone() }), false),
        ("without DF", first.clone(), next(&Flow { dont_fragment: false, ..tcp.clone() }), false),
        ("another port", first.clone(), next(&Flow { port: 2, ..tcp.clone() }), false),
        ("damaged payload", first.clone(), damaged(next(&tcp), 70), false),
        ("damaged IP checksum", first.clone(), damaged(next(&tcp), 10), false),
        ("damaged first", damaged(first.clone(), 70), next(&tcp), false),
        ("IPv6", packet(&tcp6, 0, 100, flag::ACK, &full), next(&tcp6), true),
        (
            "IPv6, another class",
            packet(&tcp6, 0, 100, flag::ACK, &full),
            next(&Flow { tos: 3, ..tcp6.clone() }),
            false,
        ),
        ("UDP", udp_first.clone(), next(&udp), true),
        ("UDP damaged", udp_first.clone(), damaged(next(&udp), 50), false),
        ("UDP without checksums", no_checksum(udp_first.clone()), no_checksum(next(&udp)), false),
    ];
    for (case, one, two, merged) in table {
        let outputs = coalesce(&[one.clone(), two.clone()], true);
        assert_eq!(outputs.len() == 1, merged, "{case}");
        let again: Vec<_> = outputs.iter().flat_map(|(vnet, bytes, _)| cut(vnet, bytes)).collect();
        assert_eq!(again, [one, two], "{case}");
    }
    assert_eq!(coalesce(&[udp_first, next(&udp)], false).len(), 2, "UDP, where the TUN takes none");
}

/// A fragment may be part of any datagram between the two hosts: what follows it stays behind it.
#[test]
fn nothing_overtakes_a_fragment() {
    let flow = Flow {
        v6: false,
        tcp: false,
        port: 1,
        tos: 0,
        ttl: 64,
        dont_fragment: false,
        ack: 0,
        options: vec![],
    };
    let mut fragment = packet(&flow, 9, 0, 0, &[1; 60]);
    fragment[7] = 5;
    let packets = [packet(&flow, 1, 0, 0, &[7; 60]), fragment, packet(&flow, 2, 0, 0, &[7; 60])];
    let outputs: Vec<_> = coalesce(&packets, true).into_iter().map(|output| output.1).collect();
    assert_eq!(outputs, packets);
}
