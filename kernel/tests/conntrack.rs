//! Connection tracking on a real kernel: flows are listed as they are, and one is forgotten alone.
//!
//! Each test runs in a network namespace of its own. Needs root.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use weft_kernel::conntrack::{Conntrack, Flow, Protocol, Tuple};

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
