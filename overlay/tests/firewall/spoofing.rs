//! Forged packets: each is delivered, or dropped and counted, and nothing else.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
};
use weft_overlay::config::Backend;
use weft_overlay::firewall::Drops;
use weft_overlay::model::Model;

use crate::world::{World, around, heard, ip, model, net, subnet, vtep_mac, vxlan};

/// Where all packets here want to go: pod1.
const POD1: [&str; 2] = ["10.42.1.2", "fd42:0:0:1::2"];
const PORT: u16 = 9000;
const VXLAN: u16 = 8472;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// What becomes of a packet.
#[derive(Clone, Copy)]
enum Fate {
    Delivered,
    /// By this check.
    Dropped(fn(&Drops) -> u64),
}

const BY_TUNNEL: Fate = Fate::Dropped(|drops| drops.tunnel);
const BY_POD: Fate = Fate::Dropped(|drops| drops.pod);
const BY_OUTSIDE: Fate = Fate::Dropped(|drops| drops.outside);
const BY_PLAIN: Fate = Fate::Dropped(|drops| drops.plain);

/// Sends a packet and sees that it meets its fate: it is heard in pod1, or it is counted as dropped
/// and not heard before a later one, which `send_marker` sends by a way that is open.
fn meets(
    world: &World,
    model: &Model,
    (why, fate): (&str, Fate),
    receiver: &UdpSocket,
    mut send: impl FnMut(&[u8]),
    mut send_marker: impl FnMut(&[u8]),
) {
    match fate {
        Fate::Delivered => {
            heard(receiver, why.as_bytes(), || send(why.as_bytes()));
        }
        Fate::Dropped(counter) => {
            let before = counter(&world.drops("host1", model));
            let deadline = Instant::now() + Duration::from_secs(20);
            while counter(&world.drops("host1", model)) == before {
                assert!(Instant::now() < deadline, "{why}: not dropped, or not counted");
                send(why.as_bytes());
            }
            let marker = format!("behind {why}");
            let (_, earlier) = heard(receiver, marker.as_bytes(), || send_marker(marker.as_bytes()));
            assert!(!earlier.contains(&why.as_bytes().to_vec()), "{why}: delivered");
        }
    }
}

/// host1 with the plan in force and pod1; host2, a peer; mallory, who is not.
fn attacked(change: impl FnOnce(&mut Model)) -> (World, Model) {
    let mut world = World::new();
    world.vxlan_host(1, &[2]);
    world.pod(1);
    world.run("host1", "ip link set pod mtu 9000");
    world.run("pod1", "ip link set eth0 mtu 9000");
    world.machine("host2", &["192.0.2.2/24", "2001:db8::2/64"]);
    world.machine("mallory", &["192.0.2.66/24", "2001:db8::66/64"]);
    let mut model = model(1, &[2, 3], vxlan(false));
    model.extra_sources = [net("172.30.0.0/16"), net("fd30::/16")].into();
    change(&mut model);
    let mut around = around(&model);
    around.pods.insert("pod".parse().unwrap(), vec![net("10.42.1.2/32"), net("fd42:0:0:1::2/128")]);
    world.apply("host1", &model, &around);
    (world, model)
}

#[test]
fn only_a_peer_s_own_addresses_come_out_of_vxlan() {
    let (world, model) = attacked(|_| ());
    let cases = [
        // sender, inner source, fate
        ("host2", "10.42.2.2", Fate::Delivered, "a pod of its"),
        ("host2", "10.42.2.0", Fate::Delivered, "its overlay address"),
        ("host2", "192.0.2.2", Fate::Delivered, "its public address"),
        ("host2", "172.30.0.5", Fate::Delivered, "an address that any peer may use"),
        ("host2", "10.42.3.7", BY_TUNNEL, "another peer's pod"),
        ("host2", "192.0.2.3", BY_TUNNEL, "another peer"),
        ("host2", "10.42.1.9", BY_TUNNEL, "an address of the receiver's subnet"),
        ("host2", "198.51.100.1", BY_TUNNEL, "an address from nowhere"),
        ("mallory", "10.42.2.2", BY_TUNNEL, "a stranger as a peer's pod"),
        ("mallory", "172.30.0.5", BY_TUNNEL, "a stranger with an address that any peer may use"),
        ("host2", "fd42:0:0:2::2", Fate::Delivered, "a pod of its, IPv6"),
        ("host2", "2001:db8::2", Fate::Delivered, "its public address, IPv6"),
        ("host2", "fd30::1", Fate::Delivered, "an address that any peer may use, IPv6"),
        ("host2", "fd42:0:0:3::7", BY_TUNNEL, "another peer's pod, IPv6"),
        ("mallory", "fd42:0:0:2::2", BY_TUNNEL, "a stranger as a peer's pod, IPv6"),
    ];
    let receivers = POD1.map(|addr| world.socket("pod1", ip(addr), PORT));
    for outer_v4 in [true, false] {
        let outer = |machine: &str| match (machine, outer_v4) {
            ("host2", true) => ip("192.0.2.2"),
            ("host2", false) => ip("2001:db8::2"),
            (_, true) => ip("192.0.2.66"),
            (_, false) => ip("2001:db8::66"),
        };
        let target: SocketAddr = (ip(if outer_v4 { "192.0.2.1" } else { "2001:db8::1" }), VXLAN).into();
        let good = world.socket("host2", outer("host2"), 0);
        for (sender, inner, fate, what) in cases {
            let inner = ip(inner);
            let [pod4, pod6] = &receivers;
            let receiver = if inner.is_ipv4() { pod4 } else { pod6 };
            let pod = receiver.local_addr().unwrap().ip();
            let forger = world.socket(sender, outer(sender), 0);
            let why = format!("{what}, in IPv{}", if outer_v4 { 4 } else { 6 });
            let send = |word: &[u8]| {
                forger.send_to(&encapsulated(1, outer_v4, inner, pod, word), target).unwrap();
            };
            let open_way = ip(if inner.is_ipv4() { "10.42.2.2" } else { "fd42:0:0:2::2" });
            let send_marker = |word: &[u8]| {
                good.send_to(&encapsulated(1, outer_v4, open_way, pod, word), target).unwrap();
            };
            meets(&world, &model, (&why, fate), receiver, send, send_marker);
        }
    }
}

/// Leases have one length, but not all of them: the configuration may have changed.
#[test]
fn a_lease_of_another_length_is_checked_as_such() {
    let (world, model) = attacked(|model| {
        let (key, mut peer) = model.peers.pop_first().unwrap();
        assert_eq!(key, subnet(2));
        peer.subnet.v4 = Some("10.42.2.0/25".parse().unwrap());
        model.peers.insert(peer.subnet, peer);
    });
    let pod = ip(POD1[0]);
    let receiver = world.socket("pod1", pod, PORT);
    let sender = world.socket("host2", ip("192.0.2.2"), 0);
    let send = |inner: &str, word: &[u8]| {
        sender.send_to(&encapsulated(1, true, ip(inner), pod, word), "192.0.2.1:8472").unwrap();
    };
    let marker = |word: &[u8]| send("10.42.2.127", word);
    let beyond = |word: &[u8]| send("10.42.2.128", word);
    meets(&world, &model, ("behind the lease's end", BY_TUNNEL), &receiver, beyond, marker);
}

#[test]
fn what_is_no_ip_packet_of_ours_does_not_come_out_of_vxlan() {
    let (world, model) = attacked(|_| ());
    let (from, pod) = (ip("10.42.2.2"), ip(POD1[0]));
    let target: SocketAddr = (ip("192.0.2.1"), VXLAN).into();
    let sender = world.socket("host2", ip("192.0.2.2"), 0);
    let receiver = world.socket("pod1", pod, PORT);
    let whole = |word: &[u8]| encapsulated(1, true, from, pod, word);
    type Forge<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let odd: [(&str, Forge<'_>); 5] = [
        ("ARP", &|word| vxlan_packet(1, &frame(true, 0x0806, &arp(word)))),
        ("a VLAN tag", &|word| {
            let mut tagged = vec![0, 5];
            tagged.extend(IPV4.to_be_bytes());
            tagged.extend(ip_packet(from, pod, word));
            vxlan_packet(1, &frame(true, 0x8100, &tagged))
        }),
        ("IPv6 said to be IPv4", &|word| {
            let packet = ip_packet(ip("fd42:0:0:2::2"), ip(POD1[1]), word);
            vxlan_packet(1, &frame(true, IPV4, &packet))
        }),
        ("cut before the inner source", &|word| whole(word)[..8 + 14 + 10].to_vec()),
        ("nothing but the header", &|word| whole(word)[..8].to_vec()),
    ];
    for (why, packet) in odd {
        meets(
            &world,
            &model,
            (why, BY_TUNNEL),
            &receiver,
            |word| assert!(sender.send_to(&packet(word), target).is_ok()),
            |word| assert!(sender.send_to(&whole(word), target).is_ok()),
        );
    }
    // Another network's packets on this port are not for this table to judge, so not counted.
    let before = world.drops("host1", &model);
    let (_, earlier) = heard(&receiver, b"behind another VNI", || {
        sender.send_to(&encapsulated(2, true, ip("10.9.9.9"), pod, b"another VNI"), target).unwrap();
        sender.send_to(&whole(b"behind another VNI"), target).unwrap();
    });
    assert_eq!(earlier, [b""; 0]);
    assert_eq!(world.drops("host1", &model), before);
}

/// A datagram of 4,000 bytes over links of 1,500, and one that is cut on purpose before the bytes that
/// are checked. With and without masquerade: connection tracking reassembles IPv6 early.
#[test]
fn fragments_hide_nothing() {
    for masquerade in [true, false] {
        let (world, model) = attacked(|model| model.masquerade = masquerade);
        let pod = ip(POD1[0]);
        let receiver = world.socket("pod1", pod, PORT);
        for (source, target, raw_from) in
            [("192.0.2.2", "192.0.2.1", None), ("2001:db8::2", "2001:db8::1", Some("2001:db8::2"))]
        {
            let target: SocketAddr = (ip(target), VXLAN).into();
            let outer_v4 = target.is_ipv4();
            let sender = world.socket("host2", ip(source), 0);
            let whole = |inner: &str, word: &[u8]| {
                sender.send_to(&encapsulated(1, outer_v4, ip(inner), pod, word), target).unwrap();
            };
            let long = |word: &[u8]| [word, &[b'.'; 4000]].concat();
            let (_, earlier) = heard(&receiver, &long(b"own"), || whole("10.42.2.2", &long(b"own")));
            assert!(!earlier.iter().any(|word| word.starts_with(b"foreign")));
            let send = |word: &[u8]| whole("10.42.3.3", &long(word));
            let marker = |word: &[u8]| whole("10.42.2.2", word);
            meets(&world, &model, ("foreign, in fragments", BY_TUNNEL), &receiver, send, marker);

            let (Some(from), SocketAddr::V6(to)) = (raw_from, target) else { continue };
            let raw = world.inside("host2", || {
                socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap()
            });
            let mut id = 0;
            let send = |word: &[u8]| {
                id += 1;
                let datagram = encapsulated(1, false, ip("10.42.3.3"), pod, word);
                for fragment in cut_behind_udp(from.parse().unwrap(), *to.ip(), &datagram, id) {
                    let to = SockaddrIn6::from(std::net::SocketAddrV6::new(*to.ip(), 0, 0, 0));
                    sendto(raw.as_raw_fd(), &fragment, &to, MsgFlags::empty()).unwrap();
                }
            };
            meets(&world, &model, ("foreign, cut on purpose", BY_TUNNEL), &receiver, send, marker);
        }
    }
}

/// Segmentation offload hands over packets of up to 64 KiB: they must be looked at, and pass, as one.
#[test]
fn bulk_traffic_passes_and_is_not_tracked() {
    let mut world = World::new();
    world.vxlan_host(1, &[2]);
    world.vxlan_host(2, &[1]);
    let mut models = Vec::new();
    for n in [1u8, 2] {
        world.pod(n);
        let model = model(n, &[3 - n], vxlan(false));
        let mut around = around(&model);
        let own = [net(&format!("10.42.{n}.2/32")), net(&format!("fd42:0:0:{n}::2/128"))];
        around.pods.insert("pod".parse().unwrap(), own.to_vec());
        world.apply(&format!("host{n}"), &model, &around);
        models.push(model);
    }
    const BYTES: usize = 16 << 20;
    for addr in POD1 {
        let listener = world.inside("pod1", || TcpListener::bind((ip(addr), PORT)).unwrap());
        let mut client = world.inside("pod2", || TcpStream::connect((ip(addr), PORT)).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        client.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let sender = std::thread::spawn(move || client.write_all(&vec![7; BYTES]).unwrap());
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        sender.join().unwrap();
        assert_eq!(received.len(), BYTES);
    }
    for (host, model) in [("host1", &models[0]), ("host2", &models[1])] {
        assert_eq!(world.drops(host, model), Drops::default());
        let tracked = world.run(host, "conntrack -L");
        assert!(tracked.contains("dport=9000"), "pods' connections are tracked: {tracked}");
        assert!(!tracked.contains("dport=8472"), "the tunnel's packets are not: {tracked}");
    }
}

#[test]
fn a_pod_sends_from_its_own_address_only() {
    let (world, model) = attacked(|_| ());
    world.run("pod1", "ip addr add 10.42.1.99/32 dev eth0");
    world.run("pod1", "ip addr add fd42:0:0:1::99/128 dev eth0");
    for (own, other, to) in [(POD1[0], "10.42.1.99", "192.0.2.1"), (POD1[1], "fd42:0:0:1::99", "2001:db8::1")]
    {
        let receiver = world.socket("host1", ip(to), PORT);
        let [own, other] = [own, other].map(|addr| world.socket("pod1", ip(addr), 0));
        let send = |socket: &UdpSocket, word: &[u8]| drop(socket.send_to(word, (ip(to), PORT)));
        meets(
            &world,
            &model,
            ("another address", BY_POD),
            &receiver,
            |word| send(&other, word),
            |word| send(&own, word),
        );
    }
}

/// Past the tunnel: the checks at its door would be worth little if the house had a window.
#[test]
fn nobody_sends_pods_addresses_over_the_underlay() {
    let (world, model) = attacked(|_| ());
    let outside = world.socket("mallory", ip("192.0.2.66"), 0);
    let cases = [
        ("10.42.2.2", BY_PLAIN, "a peer's pod"),
        ("10.42.77.7", BY_PLAIN, "a pod of no known host"),
        ("10.42.1.77", BY_OUTSIDE, "an address of the receiver's subnet"),
    ];
    let receiver = world.socket("pod1", ip(POD1[0]), PORT);
    world.run("mallory", "ip route add 10.42.1.2/32 via 192.0.2.1");
    for (source, fate, why) in cases {
        world.run("mallory", &format!("ip addr add {source}/32 dev lo"));
        let forger = world.socket("mallory", ip(source), 0);
        let send = |socket: &UdpSocket, word: &[u8]| {
            drop(socket.send_to(word, (ip(POD1[0]), PORT)));
        };
        meets(&world, &model, (why, fate), &receiver, |w| send(&forger, w), |w| send(&outside, w));
    }
}

#[test]
fn over_plain_routes_a_known_mac_is_asked_for() {
    let mut world = World::new();
    world.machine("host1", &["192.0.2.1/24"]);
    world.pod(1);
    world.machine("host2", &["192.0.2.2/24"]);
    world.machine("mallory", &["192.0.2.66/24"]);
    let model = model(1, &[2, 3], Backend::HostGw);
    let mut around = around(&model);
    around.neighbours.insert(ip("192.0.2.2"), world.mac("host2", "eth0"));
    world.apply("host1", &model, &around);
    let receiver = world.socket("pod1", ip(POD1[0]), PORT);
    for machine in ["host2", "mallory"] {
        world.run(machine, "ip route add 10.42.1.0/24 via 192.0.2.1");
        for source in ["10.42.2.2", "10.42.3.3"] {
            world.run(machine, &format!("ip addr add {source}/32 dev lo"));
        }
    }
    let cases = [
        ("host2", "10.42.2.2", Fate::Delivered, "a neighbour's pod"),
        ("mallory", "10.42.2.2", BY_PLAIN, "a stranger as a neighbour's pod"),
        ("mallory", "10.42.3.3", Fate::Delivered, "as the pod of a host whose MAC is not known: unprotected"),
    ];
    let good = world.socket("host2", ip("10.42.2.2"), 0);
    let send = |socket: &UdpSocket, word: &[u8]| drop(socket.send_to(word, (ip(POD1[0]), PORT)));
    for (machine, source, fate, why) in cases {
        let forger = world.socket(machine, ip(source), 0);
        meets(&world, &model, (why, fate), &receiver, |w| send(&forger, w), |w| send(&good, w));
    }
}

#[test]
fn only_peers_reach_the_udp_tunnel() {
    let mut world = World::new();
    world.machine("host1", &["192.0.2.1/24"]);
    world.machine("host2", &["192.0.2.2/24"]);
    world.machine("mallory", &["192.0.2.66/24"]);
    let model = model(1, &[2], Backend::Udp { port: 8285 });
    world.apply("host1", &model, &around(&model));
    let daemon = world.socket("host1", ip("192.0.2.1"), 8285);
    let [peer, stranger] = [("host2", "192.0.2.2"), ("mallory", "192.0.2.66")]
        .map(|(machine, addr)| world.socket(machine, ip(addr), 0));
    let send = |socket: &UdpSocket, word: &[u8]| drop(socket.send_to(word, "192.0.2.1:8285"));
    meets(&world, &model, ("a stranger", BY_TUNNEL), &daemon, |w| send(&stranger, w), |w| send(&peer, w));
}

/// A UDP datagram to pod1 within VXLAN.
fn encapsulated(vni: u8, outer_v4: bool, from: IpAddr, to: IpAddr, word: &[u8]) -> Vec<u8> {
    let ethertype = if from.is_ipv4() { IPV4 } else { IPV6 };
    vxlan_packet(vni, &frame(outer_v4, ethertype, &ip_packet(from, to, word)))
}

/// RFC 7348, section 5.
fn vxlan_packet(vni: u8, frame: &[u8]) -> Vec<u8> {
    [&[0x08, 0, 0, 0, 0, 0, vni, 0], frame].concat()
}

fn frame(outer_v4: bool, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&vtep_mac(1, outer_v4).0[..], &vtep_mac(2, outer_v4).0, &ethertype.to_be_bytes(), payload].concat()
}

fn arp(word: &[u8]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 1], &[0u8; 20][..], word].concat()
}

/// IPv4 or IPv6 with UDP to [`PORT`].
fn ip_packet(from: IpAddr, to: IpAddr, word: &[u8]) -> Vec<u8> {
    let udp = udp_datagram(from, to, 4000, PORT, word);
    let len = udp.len();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(20 + len).unwrap().to_be_bytes();
            let mut header = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 17, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            [header, udp].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => [ipv6_header(from, to, 17, len), udp].concat(),
        _ => panic!("two families in one packet"),
    }
}

fn ipv6_header(from: Ipv6Addr, to: Ipv6Addr, next: u8, len: usize) -> Vec<u8> {
    let len = u16::try_from(len).unwrap().to_be_bytes();
    [&[0x60, 0, 0, 0, len[0], len[1], next, 64][..], &from.octets(), &to.octets()].concat()
}

fn udp_datagram(from: IpAddr, to: IpAddr, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    let mut udp = [sport, dport, len, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    let pseudo = [octets(from), octets(to), vec![0, 17], len.to_be_bytes().to_vec(), udp.clone()].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    udp[6..8].copy_from_slice(&sum);
    udp
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Two fragments, of which the first ends with the UDP header (RFC 8200, section 4.5).
fn cut_behind_udp(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8], id: u32) -> [Vec<u8>; 2] {
    let datagram = udp_datagram(from.into(), to.into(), 4001, VXLAN, payload);
    let fragment = |offset: u16, more: u16, part: &[u8]| {
        let header = [&[17, 0][..], &(offset | more).to_be_bytes(), &id.to_be_bytes()].concat();
        [ipv6_header(from, to, 44, 8 + part.len()), header, part.to_vec()].concat()
    };
    [fragment(0, 1, &datagram[..8]), fragment(8, 0, &datagram[8..])]
}
