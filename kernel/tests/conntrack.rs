//! Connection tracking on a real kernel: flows are listed as they are, one is forgotten alone, and the
//! ends of flows are told with what they carried.
//!
//! Each test runs in a network namespace of its own. Needs root.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use weft_kernel::conntrack::{Carried, Conntrack, Counted, Ending, Endings, Flow, Protocol, Tuple, Waiting};

/// Runs a test in a fresh network namespace with a loopback that is up and tracked, on a thread that
/// ends with it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip link set lo up");
        // A rule about connections is what switches tracking on, and the translation is the story.
        run("nft add table inet t");
        run("nft add chain inet t c { type nat hook output priority -100 ; }");
        run("nft add rule inet t c ip daddr 127.0.0.7 udp dport 53 dnat ip to 127.0.0.1:5353");
        run("nft add rule inet t c ip6 daddr ::1 udp dport 53 dnat ip6 to [::1]:5353");
        run("nft add chain inet t r { type nat hook input priority 100 ; }");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn flows(conntrack: &mut Conntrack, protocol: Protocol, ipv6: bool) -> Vec<Flow> {
    let mut flows = Vec::new();
    conntrack.each(protocol, ipv6, |flow| flows.push(flow)).unwrap();
    flows.sort();
    flows
}

/// One datagram from a socket of its own to `to`; the answer shows that it arrived.
fn send(server: &UdpSocket, client: SocketAddr, to: &str) -> SocketAddr {
    let socket = UdpSocket::bind(client).unwrap();
    socket.send_to(b"?", to).unwrap();
    let mut buffer = [0; 8];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    from
}

#[test]
fn flows_are_listed_and_forgotten_one_by_one() {
    in_namespace(|| {
        let address = |raw: &str| -> SocketAddr { raw.parse().unwrap() };
        for (service, server, client, ipv6) in [
            ("127.0.0.7:53", "127.0.0.1:5353", "127.0.0.1:0", false),
            ("[::1]:53", "[::1]:5353", "[::1]:0", true),
        ] {
            let socket = UdpSocket::bind(server).unwrap();
            let clients = [(); 2].map(|()| send(&socket, address(client), service));
            let direct = send(&socket, address(client), server);
            let mut conntrack = Conntrack::open().unwrap();
            let seen = flows(&mut conntrack, Protocol::Udp, ipv6);
            assert_eq!(seen.len(), 3, "{seen:?}");
            assert_eq!(flows(&mut conntrack, Protocol::Tcp, ipv6), []);
            for client in clients {
                let flow = seen.iter().find(|flow| flow.original.source == client).unwrap();
                assert!(flow.is_translated());
                assert_eq!(flow.original.destination, address(service));
                assert_eq!(flow.reply, Tuple { source: address(server), destination: client });
            }
            let plain = seen.iter().find(|flow| flow.original.source == direct).unwrap();
            assert!(!plain.is_translated());

            let gone = seen.iter().find(|flow| flow.original.source == clients[0]).unwrap();
            assert!(conntrack.delete(gone).unwrap());
            assert!(!conntrack.delete(gone).unwrap(), "it is gone already");
            let left: Vec<Flow> = seen.iter().filter(|flow| *flow != gone).copied().collect();
            assert_eq!(flows(&mut conntrack, Protocol::Udp, ipv6), left);
        }
    });
}

/// Every flow, in order.
fn pieces(conntrack: &mut Conntrack) -> Vec<Flow> {
    let mut flows = Vec::new();
    conntrack.pieces(|piece| flows.extend(piece)).unwrap();
    flows.sort();
    flows
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns when there may be something to read; fails if nothing comes.
async fn something(waiting: &Waiting) {
    tokio::time::timeout(Duration::from_secs(30), waiting.something()).await.unwrap().unwrap();
}

#[test]
fn a_flow_says_what_it_carried_while_it_lives_and_when_it_ends() {
    in_namespace(|| {
        let runtime = runtime();
        let _inside = runtime.enter();
        let mut endings = Endings::open().unwrap();
        let waiting = endings.waiting();
        let server = UdpSocket::bind("127.0.0.1:5353").unwrap();
        let service: SocketAddr = "127.0.0.7:53".parse().unwrap();
        let before = send(&server, "127.0.0.1:0".parse().unwrap(), "127.0.0.7:53");
        run("sysctl -qw net.netfilter.nf_conntrack_acct=1");
        let six = UdpSocket::bind("[::1]:5353").unwrap();
        let other = send(&six, "[::1]:0".parse().unwrap(), "[::1]:53");

        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut buffer = [0; 2000];
        for size in [10, 20, 30] {
            client.send_to(&buffer[..size], service).unwrap();
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..1000], from).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (1000, service));
        }
        // IPv4's header has 20 bytes (RFC 791), IPv6's 40 (RFC 8200), UDP's 8 (RFC 768).
        let carried = Carried {
            original: Counted { packets: 3, bytes: 3 * 28 + 60 },
            reply: Counted { packets: 3, bytes: 3 * 1028 },
        };
        let once = Carried { original: Counted { packets: 1, bytes: 49 }, reply: Counted::default() };
        let from = client.local_addr().unwrap();
        let mut conntrack = Conntrack::open().unwrap();
        let flows = pieces(&mut conntrack);
        let of = |client: SocketAddr| flows.iter().find(|flow| flow.original.source == client).unwrap();
        assert_eq!(flows.len(), 3, "both families at once: {flows:?}");
        assert_eq!(of(from).carried, carried);
        assert_eq!(of(other).carried, once);
        assert_eq!(of(before).carried, Carried::default(), "it began before anything was counted");

        assert_eq!(endings.try_next().unwrap(), None, "all of them live");
        for client in [from, other, before] {
            assert!(conntrack.delete(of(client)).unwrap());
            runtime.block_on(something(&waiting));
            assert_eq!(endings.try_next().unwrap(), Some(Ending::Flow(*of(client))));
            assert_eq!(endings.try_next().unwrap(), None);
        }
    });
}

#[test]
fn who_reads_too_slowly_is_told_so() {
    in_namespace(|| {
        let runtime = runtime();
        let _inside = runtime.enter();
        let mut endings = Endings::with_space(4096).unwrap();
        let server = UdpSocket::bind("127.0.0.1:5353").unwrap();
        let mut conntrack = Conntrack::open().unwrap();
        let mut forget = |count: usize| {
            // Ports that the kernel picks may be the same twice, and so would the flows be.
            for port in (20_000..).take(count) {
                send(&server, SocketAddr::from(([127, 0, 0, 1], port)), "127.0.0.7:53");
            }
            let flows = pieces(&mut conntrack);
            flows.iter().for_each(|flow| assert!(conntrack.delete(flow).unwrap()));
            flows.len()
        };
        let ended = forget(100);
        let mut heard = Vec::new();
        while let Some(ending) = endings.try_next().unwrap() {
            heard.push(ending);
        }
        assert_eq!(ended, 100);
        assert!(heard.contains(&Ending::Lost) && heard.len() < ended, "{heard:?}");
        // And it goes on.
        assert_eq!(forget(1), 1);
        assert!(matches!(endings.try_next().unwrap(), Some(Ending::Flow(_))));
    });
}
