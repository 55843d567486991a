//! The userspace tunnel between two hosts: everything arrives, nothing that should not does.

mod lab;
mod traffic;

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::Side::{A, B};
use lab::{Lab, MTU_OVER_V4, Outer, PATIENCE, PORT, Side, eventually};
use nix::sys::socket::{setsockopt, sockopt};
use traffic::{arrives, ping, receive_hash, send_hash, transfer, udp};
use weft_kernel::tun::{Framing, MAX_PACKET, Tun};
use weft_overlay::udp::{PeerCounters, Tunnel};

#[test]
fn packets_of_every_size_come_back_over_ipv4() {
    every_size(Outer::V4);
}

#[test]
fn packets_of_every_size_come_back_over_ipv6() {
    every_size(Outer::V6);
}

/// Beyond the MTU the pod's kernel fragments.
fn every_size(outer: Outer) {
    let lab = Lab::new(outer);
    let _tunnels = lab.start_both();
    for dst in B.pod() {
        lab.in_pod(A, || ping(dst, (0..=1480).chain([2000, 9000, 20_000])));
    }
}

#[test]
fn a_hundred_megabytes_arrive_with_the_same_hash() {
    let lab = Lab::new(Outer::V4);
    let (a, b) = lab.start_both();
    transfer(&lab, A, B.pod_v4().into(), 100_000_000);
    transfer(&lab, A, B.pod_v6().into(), 20_000_000);
    // What was sent is counted after it was sent, perhaps after it arrived.
    eventually("all is counted", || of_peer(&a).sent_bytes > 120_000_000);
    let received = of_peer(&b);
    assert_eq!(received.drop_spoofed + received.drop_not_ours, 0, "{received:?}");
    assert_eq!(b.counters().tunnel.drop_malformed, 0);
}

#[test]
fn streams_cross_an_ipv6_underlay_both_ways() {
    let lab = Lab::new(Outer::V6);
    let _tunnels = lab.start_both();
    for (from, dst) in [(A, B.pod()), (B, A.pod())] {
        for dst in dst {
            transfer(&lab, from, dst, 10_000_000);
        }
    }
}

/// Every packet comes to the tunnel by itself, and every segment leaves by itself: the tunnel has to
/// put packets together on both sides, and the kernel has to checksum what leaves.
#[test]
fn streams_cross_links_without_offloads() {
    let lab = Lab::new(Outer::V4);
    let (a, b) = lab.start_both();
    lab.no_offloads();
    for (from, dst) in [(A, B.pod()), (B, A.pod())] {
        for dst in dst {
            transfer(&lab, from, dst, 5_000_000);
        }
    }
    let lost = of_peer(&a).drop_send_failed + of_peer(&b).drop_send_failed;
    assert_eq!(lost, 0);
}

/// A program that sends by UDP_SEGMENT, such as a QUIC server: each datagram arrives whole, in order.
#[test]
fn segmented_udp_arrives_datagram_by_datagram() {
    let lab = Lab::new(Outer::V4);
    let (a, _b) = lab.start_both();
    for (from, to) in A.pod().into_iter().zip(B.pod()) {
        let (sender, receiver) = (udp(&lab, A, from), udp(&lab, B, to));
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        setsockopt(&sender, sockopt::UdpGsoSegment, &1200).unwrap();
        let datagrams: Vec<Vec<u8>> = (0..41u8).map(|n| vec![n; if n == 40 { 77 } else { 1200 }]).collect();
        for round in 0..10 {
            sender.send(&datagrams.concat()).unwrap();
            for expected in &datagrams {
                let mut buffer = [0; 2000];
                let len = receiver.recv(&mut buffer).unwrap_or_else(|e| panic!("{to}, round {round}: {e}"));
                assert!(buffer[..len] == **expected, "{to}, round {round}, datagram {}", expected[0]);
            }
        }
    }
    // Cut into datagrams: one message on the wire would be one packet.
    eventually("each is counted", || of_peer(&a).sent_packets >= 2 * 10 * 41);
}

#[test]
fn an_unknown_destination_is_answered() {
    let lab = Lab::new(Outer::V4);
    let (a, _b) = lab.start_both();
    for (from, nowhere) in A.pod().into_iter().zip(["10.42.99.1", "fd00:99::1"]) {
        let socket = udp(&lab, A, from);
        socket.connect((nowhere.parse::<IpAddr>().unwrap(), 9)).unwrap();
        // "No network" may pass (ip(7)), so programs hear of it only if they ask.
        match from {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap(),
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap(),
        }
        socket.send(b"anybody?").unwrap();
        let error = socket.recv(&mut [0; 10]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{nowhere}: {error}");
    }
    let counted = || a.counters().tunnel;
    eventually("both answers are counted", || counted().icmp_sent == 2);
    assert_eq!(counted().drop_unknown_destination, 2, "{:?}", counted());
}

/// TCP learns at once that nobody is there, instead of waiting for minutes.
#[test]
fn a_connection_to_nowhere_fails_at_once() {
    let lab = Lab::new(Outer::V6);
    let _tunnels = lab.start_both();
    let started = Instant::now();
    let error = lab.in_pod(A, || TcpStream::connect("10.42.99.1:80")).unwrap_err();
    assert!(
        matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)),
        "after {:?}: {error}",
        started.elapsed()
    );
}

#[test]
fn only_packets_whose_sources_belong_together_come_in() {
    let lab = Lab::new(Outer::V4);
    let (_a, b) = lab.start_both();
    let pod = udp(&lab, B, B.pod_v4().into());
    let port = pod.local_addr().unwrap().port();
    let to = SocketAddr::from((B.host_v4(), PORT));
    let stranger = lab.at("router", || UdpSocket::bind("0.0.0.0:0").unwrap());
    // Another port of the right host: the port is not looked at, as peers may be behind a NAT.
    let peer = lab.on(A, || UdpSocket::bind("0.0.0.0:0").unwrap());
    let inner = |src: &str, dst: Ipv4Addr| plain_udp(src.parse().unwrap(), dst, port, b"hello");
    let ours = B.pod_v4();

    stranger.send_to(&inner("10.42.1.2", ours), to).unwrap();
    for src in ["10.42.3.3", "10.42.2.2", "1.1.1.1", "192.0.2.1"] {
        peer.send_to(&inner(src, ours), to).unwrap();
    }
    peer.send_to(&inner("10.42.1.2", "10.42.3.9".parse().unwrap()), to).unwrap();
    peer.send_to(b"not an IP packet", to).unwrap();
    for src in ["10.42.1.2", "192.0.1.1", "203.0.113.9"] {
        peer.send_to(&inner(src, ours), to).unwrap();
        let (_, from) = pod.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(from.ip(), src.parse::<IpAddr>().unwrap(), "and nothing else");
    }
    eventually("each of the others is counted for what it was", || {
        let (tunnel, peer) = (b.counters().tunnel, of_peer(&b));
        let strange = (tunnel.drop_unknown_sender, tunnel.drop_malformed) == (1, 1);
        strange && (peer.drop_spoofed, peer.drop_not_ours) == (4, 1)
    });
}

#[test]
fn a_narrow_path_is_found_out_and_used() {
    for (outer, mtu) in [(Outer::V4, 1400), (Outer::V6, 1400), (Outer::V6, 1290)] {
        let lab = Lab::new(outer);
        let (a, _b) = lab.start_both();
        lab.ip("b", &format!("link set up0 mtu {mtu}"));
        lab.ip("router", &format!("link set to-b mtu {mtu}"));
        for dst in B.pod() {
            transfer(&lab, A, dst, 2_000_000);
        }
        let (peer, tunnel) = (of_peer(&a), a.counters().tunnel);
        assert!(peer.drop_too_big > 0 && tunnel.icmp_sent > 0, "{mtu}: {peer:?} {tunnel:?}");
    }
}

#[test]
fn a_datagram_that_may_be_fragmented_crosses_a_narrow_path() {
    let lab = Lab::new(Outer::V4);
    let (_a, _b) = lab.start_both();
    lab.ip("b", "link set up0 mtu 1300");
    lab.ip("router", "link set to-b mtu 1300");
    let (sender, receiver) = (udp(&lab, A, A.pod_v4().into()), udp(&lab, B, B.pod_v4().into()));
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let to = receiver.local_addr().unwrap();
    let datagram: Vec<u8> = (0..1400).map(|at| at as u8).collect();

    // Without DF: at first the router has to say that it does not fit, so some are lost.
    discover(&sender, libc::IP_PMTUDISC_DONT);
    eventually("a datagram of 1400 bytes arrives in fragments", || {
        sender.send_to(&datagram, to).unwrap();
        let mut buffer = [0; 2000];
        receiver.recv(&mut buffer).is_ok_and(|len| buffer[..len] == datagram[..])
    });

    // With DF: the pod is told what fits.
    discover(&sender, libc::IP_PMTUDISC_DO);
    eventually("the pod's kernel refuses what does not fit", || {
        let sent = sender.send_to(&datagram, to);
        sent.is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
    });
    let fits = vec![5; 1300 - 28 - 28];
    sender.send_to(&fits, to).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 2000];
    while receiver.recv(&mut buffer).unwrap() != fits.len() {}
    let one_more = vec![5; fits.len() + 1];
    assert_eq!(sender.send_to(&one_more, to).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
}

/// The TUN stays when its process goes, so connections live on; forwarding pauses for less than 1 s.
#[test]
fn a_restart_is_hardly_noticed() {
    let lab = Lab::new(Outer::V4);
    let (mut a, mut b) = lab.start_both();
    let listener = lab.in_pod(B, || TcpListener::bind((B.pod_v4(), 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let (probe, seen) = (udp(&lab, A, A.pod_v4().into()), udp(&lab, B, B.pod_v4().into()));
    let (done, last) = (AtomicBool::new(false), AtomicUsize::new(0));
    let gap = thread::scope(|scope| {
        let received = scope.spawn(|| receive_hash(listener.accept().unwrap().0));
        let sent = scope.spawn(|| {
            let mut stream = lab.in_pod(A, || TcpStream::connect(to).unwrap());
            send_hash(&mut stream, 60_000_000)
        });
        // Small datagrams all the time; the longest silence between two is the gap.
        let gap = scope.spawn(|| {
            let (mut longest, mut heard) = (Duration::ZERO, Instant::now());
            while !done.load(Ordering::Relaxed) {
                if arrives(&probe, &seen) {
                    longest = longest.max(heard.elapsed());
                    heard = Instant::now();
                    last.fetch_add(1, Ordering::Relaxed);
                }
            }
            longest
        });
        let heard_more = |than: usize| eventually("datagrams arrive", || last.load(Ordering::Relaxed) > than);
        for _ in 0..3 {
            heard_more(last.load(Ordering::Relaxed) + 2);
            a.stop();
            a = lab.start(A);
            heard_more(last.load(Ordering::Relaxed) + 2);
            b.stop();
            b = lab.start(B);
        }
        heard_more(last.load(Ordering::Relaxed) + 2);
        let (hash, len) = received.join().unwrap();
        assert_eq!((hash, len), (sent.join().unwrap(), 60_000_000));
        done.store(true, Ordering::Relaxed);
        gap.join().unwrap()
    });
    println!("the longest pause of six restarts was {gap:?}");
    assert!(gap < Duration::from_secs(1), "forwarding paused for {gap:?}");
}

#[test]
fn link_mtu_and_address_may_change_under_it() {
    let lab = Lab::new(Outer::V4);
    let (a, b) = lab.start_both();
    let (from, to) = (udp(&lab, A, A.pod_v4().into()), udp(&lab, B, B.pod_v4().into()));
    let works = |why: &str| eventually(why, || arrives(&from, &to));
    works("to begin with");

    lab.ip("b", "link set tun0 down");
    eventually("a TUN that is down takes nothing", || {
        !arrives(&from, &to) && b.counters().tunnel.drop_tun > 0
    });
    lab.configure_tun(B);
    works("after the TUN was down at the receiver");
    lab.ip("a", "link set tun0 down");
    eventually("a TUN that is down gives nothing", || !arrives(&from, &to));
    lab.configure_tun(A);
    works("after the TUN was down at the sender");

    lab.ip("a", "link set tun0 mtu 1300");
    transfer(&lab, A, B.pod_v4().into(), 1_000_000);
    lab.ip("a", "link set tun0 mtu 1472");
    transfer(&lab, A, B.pod_v4().into(), 1_000_000);

    lab.ip("a", "addr del 192.0.1.1/24 dev up0");
    eventually("no address, no tunnel", || !arrives(&from, &to));
    lab.ip("a", "addr add 192.0.1.1/24 dev up0\nroute replace default via 192.0.1.254");
    works("after the address came back");
    assert_eq!((a.failure(), b.failure()), (None, None));
}

#[test]
fn a_deleted_tun_is_noticed_and_made_again() {
    let lab = Lab::new(Outer::V4);
    let (a, b) = lab.start_both();
    let (from, to) = (udp(&lab, A, A.pod_v4().into()), udp(&lab, B, B.pod_v4().into()));
    eventually("to begin with", || arrives(&from, &to));
    lab.ip("b", "link del tun0");
    eventually("the receiver says so", || b.failure().is_some());
    b.stop();
    let _again = lab.start(B);
    lab.configure_tun(B);
    eventually("with a new one", || arrives(&from, &to));
    drop(a);
}

#[test]
fn peers_come_and_go_while_it_runs() {
    let lab = Lab::new(Outer::V4);
    let (a, _b) = lab.start_both();
    let (from, to) = (udp(&lab, A, A.pod_v4().into()), udp(&lab, B, B.pod_v4().into()));
    eventually("to begin with", || arrives(&from, &to));
    let mut table = lab.table(A);
    let (subnet, end) = table.peers.pop_first().unwrap();
    a.update(&table);
    eventually("without the peer", || !arrives(&from, &to));
    assert_eq!(a.counters().peers, BTreeMap::new());
    table.peers.insert(subnet, end);
    a.update(&table);
    eventually("with the peer again", || arrives(&from, &to));
}

#[test]
fn two_tunnels_cannot_share_a_tun() {
    let lab = Lab::new(Outer::V4);
    let _tunnels = lab.start_both();
    let again = lab.on(A, || Tun::open(&"tun0".parse().unwrap(), Framing::Vnet));
    assert!(matches!(again, Err(weft_kernel::tun::TunError::Busy(_))), "{again:?}");
}

/// A peer as flannel's proxy is: each datagram is written to its TUN as it came, each packet sent as
/// it is. Neither side is ever sent more than one packet in a datagram.
#[test]
fn it_speaks_with_a_peer_that_knows_one_packet_a_datagram() {
    let lab = Lab::new(Outer::V4);
    let _a = lab.start(A);
    let tun = lab.tun(B, Framing::Plain);
    lab.configure_tun(A);
    lab.configure_tun(B);
    let socket = lab.on(B, || UdpSocket::bind((B.host_v4(), PORT)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let (done, datagrams) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let inward = scope.spawn(|| {
            let mut packet = vec![0; MAX_PACKET];
            while !done.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut packet) else { continue };
                assert_eq!(from, SocketAddr::from((A.host_v4(), PORT)), "flannel sends from its port");
                assert_eq!(len, ip_length(&packet), "a datagram is one packet");
                assert!(len <= MTU_OVER_V4 as usize, "{len} bytes");
                datagrams.fetch_add(1, Ordering::Relaxed);
                tun.send(&[IoSlice::new(&packet[..len])]).unwrap();
            }
        });
        let outward = scope.spawn(|| {
            let mut packet = vec![0; MAX_PACKET];
            while !done.load(Ordering::Relaxed) {
                match tun.receive_plain(&mut packet) {
                    Ok(len) => {
                        socket.send_to(&packet[..len], (A.host_v4(), PORT)).unwrap();
                    }
                    Err(_) => thread::park_timeout(Duration::from_millis(1)),
                }
            }
        });
        // The threads must end even if the transfer panics.
        let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (from, to) in [(A, B.pod()), (B, A.pod())] {
                for dst in to {
                    lab.in_pod(from, || ping(dst, [0, 1, 100, 1400].into_iter()));
                    transfer(&lab, from, dst, 3_000_000);
                }
            }
        }));
        done.store(true, Ordering::Relaxed);
        inward.join().unwrap();
        outward.join().unwrap();
        story.unwrap();
    });
    assert!(datagrams.load(Ordering::Relaxed) > 2 * 3_000_000 / 1472);
}

/// The bench's rival moves packets too.
#[test]
fn the_single_packet_mode_works() {
    let lab = Lab::new(Outer::V4);
    let start = |side: Side| {
        let tun = lab.tun(side, Framing::Plain);
        let start =
            || weft_overlay::udp::single::SingleTunnel::start(tun, side.host_v4(), PORT, &lab.table(side));
        lab.on(side, start).unwrap()
    };
    let _tunnels = (start(A), start(B));
    lab.configure_tun(A);
    lab.configure_tun(B);
    lab.in_pod(A, || ping(B.pod_v4().into(), [0, 1, 1400, 1444].into_iter()));
    transfer(&lab, A, B.pod_v4().into(), 3_000_000);
}

fn of_peer(tunnel: &Tunnel) -> PeerCounters {
    *tunnel.counters().peers.values().next().expect("one peer")
}

fn discover(socket: &UdpSocket, mode: libc::c_int) {
    use std::os::fd::AsRawFd;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option reads one int, which lives to the end of the call.
    let result = unsafe {
        let value = (&raw const mode).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value, len)
    };
    assert_eq!(result, 0);
}

/// The length that an IP packet claims.
fn ip_length(packet: &[u8]) -> usize {
    let number = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if packet[0] >> 4 == 4 { number(2) } else { 40 + number(4) }
}

/// An IPv4 packet with a UDP datagram without a checksum.
fn plain_udp(src: Ipv4Addr, dst: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let len = 28 + payload.len();
    let mut packet = vec![0x45, 0, 0, len as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend(4000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
