//! Packets really sent, through a host with rules of this mode: from clients in one network namespace,
//! or the host itself, to endpoints in another. Needs root.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use weft_kernel::iptables::Backend as Programs;
use weft_kernel::netns::{InNetNs as _, NetNs, run_in};

use super::*;
use crate::backend::Backend;
use crate::iptables::Iptables;
use crate::model::Protocol;
use crate::nftables::Nftables;

/// A host between clients and endpoints.
struct Scene {
    host: NetNs,
    clients: NetNs,
    endpoints: NetNs,
}

const LINKS: [&str; 3] = ["pod0", "pod1", "uplink"];

fn sh(ns: &NetNs, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).in_netns(ns).status().unwrap();
    assert!(status.success(), "{script}");
}

/// One end of a wire, which knows the other: on a busy machine neighbours may be asked for in vain.
fn wired(link: &str, number: usize, end: usize) -> String {
    let other = 3 - end;
    format!(
        "ip link set {link} address 02:00:00:00:0{number}:0{end}
         ip addr add 100.64.{number}.{end}/24 dev {link}; ip addr add fd99:{number}::{end}/64 dev {link} nodad
         ip link set {link} up
         ip neigh add 100.64.{number}.{other} lladdr 02:00:00:00:0{number}:0{other} dev {link} nud permanent
         ip neigh add fd99:{number}::{other} lladdr 02:00:00:00:0{number}:0{other} dev {link} nud permanent"
    )
}

impl Scene {
    /// The addresses are those of [`crate::generators`].
    fn new() -> Self {
        let ns = || NetNs::anonymous().expect("these tests need root");
        let scene = Self { host: ns(), clients: ns(), endpoints: ns() };
        let path = |ns: &NetNs| format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd());
        let (clients, endpoints) = (path(&scene.clients), path(&scene.endpoints));
        let mut host = String::from(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.route_localnet=1 \
             net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.icmp_ratelimit=0 \
             net.ipv6.icmp.ratelimit=0 net.ipv6.conf.default.accept_dad=0 net.ipv4.icmp_msgs_per_sec=100000
             ip link set lo up
             for a in 192.0.2.1 192.0.2.11 203.0.113.1; do ip addr add $a/32 dev lo; done
             ip addr add 2001:db8:2::1/128 dev lo\n",
        );
        let mut there = String::from(
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv6.conf.default.accept_dad=0
             ip link set lo up\n",
        );
        for (number, link) in (1..).zip(LINKS) {
            host.push_str(&format!(
                "ip link add {link} type veth peer name {link} netns {clients}
                 {}\n",
                wired(link, number, 1)
            ));
            there.push_str(&format!("{}\n", wired(link, number, 2)));
        }
        host.push_str(&format!(
            "ip link add ends type veth peer name ends netns {endpoints}
             {}\n",
            wired("ends", 9, 1)
        ));
        sh(&scene.host, &host);
        for last in [1, 2] {
            there.push_str(&format!(
                "ip addr add 192.168.7.{last}/32 dev lo; ip addr add 2001:db8:7::{last}/128 dev lo nodad\n"
            ));
        }
        there.push_str("ip addr add 192.0.2.2/32 dev lo; ip addr add 2001:db8:2::2/128 dev lo nodad\n");
        let mut ends = String::from(
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.accept_local=1 net.ipv6.conf.default.accept_dad=0
             ip link set lo up\n",
        );
        ends.push_str(&wired("ends", 9, 2));
        ends.push_str("\nip route add default via 100.64.9.1; ip -6 route add default via fd99:9::1\n");
        for last in 1..6 {
            let add =
                format!("ip addr add 10.1.0.{last}/32 dev lo; ip addr add fd00:1::{last}/128 dev lo nodad\n");
            there.push_str(&add);
            ends.push_str(&add);
        }
        sh(&scene.clients, &there);
        sh(&scene.endpoints, &ends);
        sh(
            &scene.host,
            "ip route add 10.1.0.0/24 via 100.64.9.2; ip -6 route add fd00:1::/64 via fd99:9::2
             ip route add default via 100.64.3.2; ip -6 route add default via fd99:3::2",
        );
        scene
    }

    /// The way that the clients' packets take.
    fn take(&self, link: &str) {
        let number = 1 + LINKS.iter().position(|it| *it == link).unwrap();
        sh(
            &self.clients,
            &format!(
                "ip route replace default via 100.64.{number}.1; ip -6 route replace default via fd99:{number}::1"
            ),
        );
    }

    /// The way back to a client.
    fn way_back(&self, verb: &str, client: IpAddr, link: &str) {
        let number = 1 + LINKS.iter().position(|it| *it == link).unwrap();
        let via = if client.is_ipv4() { format!("100.64.{number}.2") } else { format!("fd99:{number}::2") };
        let (family, len) = if client.is_ipv4() { ("-4", 32) } else { ("-6", 128) };
        sh(&self.host, &format!("ip {family} route {verb} {client}/{len} via {via}"));
    }

    /// Whether such a packet can be made, and is one that networks carry.
    fn can_send(&self, packet: &Packet, outcome: &Outcome) -> bool {
        let masqueraded = match outcome {
            Outcome::Endpoints(chances) => chances.iter().all(|chance| chance.masquerade),
            _ => true,
        };
        let balancers: [ipnetwork::IpNetwork; 2] =
            ["203.0.113.0/24", "2001:db8:203::/64"].map(|it| it.parse().unwrap());
        match packet.input {
            // Clients have no addresses of services.
            Some(_) => {
                !packet.destination.ip().is_loopback()
                    && !balancers.iter().any(|it| it.contains(packet.source))
            }
            // A loopback address must not leave the host, and cannot in IPv6.
            None => !packet.source.is_loopback() || (masqueraded && packet.source.is_ipv4()),
        }
    }

    fn in_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_in(&self.host, work).unwrap()
    }
}

/// The port of the client of this number: one that no other client had for long, since connection tracking
/// remembers where that one was led.
fn client_port(number: u64) -> u16 {
    32_768 + (number % 28_000) as u16
}

/// One datagram: whether it was refused at once.
fn send(ns: &NetNs, packet: &Packet, mark: u64, wait: Duration) -> bool {
    run_in(ns, || {
        let from = (packet.source, client_port(mark));
        let socket = UdpSocket::bind(from).unwrap_or_else(|error| panic!("{packet}: {error}"));
        socket.connect(packet.destination).unwrap();
        socket.set_read_timeout(Some(wait)).unwrap();
        // Who sends on the host itself is told that its packet is dropped; whether it is refused as
        // well, the next call says.
        let _ = socket.send(&mark.to_be_bytes());
        let refused = socket.recv(&mut [0; 8]);
        refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    })
    .unwrap()
}

/// UDP packets of random worlds arrive where the simulator says, with the source it says, or are
/// rejected or dropped as it says.
#[test]
fn packets_arrive_where_the_simulator_says() {
    let scene = Scene::new();
    let servers: Vec<(SocketAddr, UdpSocket)> = run_in(&scene.endpoints, || {
        let ips = (1..6u16).flat_map(|last| {
            [IpAddr::from([10, 1, 0, last as u8]), IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, last])]
        });
        let addresses = ips.flat_map(|ip| [8080, 8081].map(|port| SocketAddr::new(ip, port)));
        addresses
            .map(|at| {
                let socket = UdpSocket::bind(at).unwrap();
                socket.set_nonblocking(true).unwrap();
                (at, socket)
            })
            .collect()
    })
    .unwrap();
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut mark = 0u64;
    for round in 0..100 {
        let programs = [Programs::Nft, Programs::Legacy][round % 2];
        let scenario = mine(scenarios().new_tree(&mut runner).unwrap().current());
        let host = &scenario.host;
        let plans = everything(&scenario.model, host);
        scene.in_host(|| {
            let mut plans = plans.iter().map(|(name, plan)| (name.clone(), plan.clone()));
            Iptables::with(programs).load(host, &mut plans).unwrap();
        });
        // Session affinity is another test's: each packet is its client's first.
        for packet in scenario.packets.iter().filter(|packet| packet.protocol == Protocol::Udp) {
            let trace = simulate_remembering(&scenario.model, host, packet, |_| None);
            let sticks = trace.reached.as_ref().and_then(|(name, _)| {
                let service = scenario.model.service(&name.service)?;
                service.affinity
            });
            if sticks.is_some() || !scene.can_send(packet, &trace.outcome) {
                continue;
            }
            let from = match &packet.input {
                Some(link) => {
                    scene.take(link);
                    &scene.clients
                }
                None => &scene.host,
            };
            mark += 1;
            let answered = packet.input.is_none() && trace.outcome == Outcome::Reject;
            let wait = Duration::from_millis(if answered { 10_000 } else { 20 });
            let refused = send(from, packet, mark, wait);
            let arrived = || {
                servers.iter().find_map(|(at, socket)| {
                    let mut data = [0; 8];
                    std::iter::from_fn(|| {
                        socket.recv_from(&mut data).ok().map(|(_, from)| (u64::from_be_bytes(data), from))
                    })
                    .find(|(it, _)| *it == mark)
                    .map(|(_, from)| (*at, from.ip()))
                })
            };
            let deadline = Instant::now() + Duration::from_secs(10);
            let wants = matches!(trace.outcome, Outcome::Endpoints(_));
            let mut got = arrived();
            while wants && got.is_none() && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(5));
                got = arrived();
            }
            match &trace.outcome {
                Outcome::Endpoints(chances) => {
                    let (endpoint, source) =
                        got.unwrap_or_else(|| panic!("{packet} is lost: {:?}", trace.why));
                    let chance = chances.iter().find(|it| it.endpoint == endpoint);
                    let chance =
                        chance.unwrap_or_else(|| panic!("{packet} went to {endpoint}: {:?}", trace.why));
                    assert_eq!(
                        source != packet.source,
                        chance.masquerade,
                        "{packet} from {source}: {:?}",
                        trace.why
                    );
                    *seen.entry(if chance.masquerade { "masqueraded" } else { "as it was" }).or_default() +=
                        1;
                }
                Outcome::Untouched => assert_eq!(got, None, "{packet}: {:?}", trace.why),
                Outcome::Reject | Outcome::Drop => {
                    assert_eq!(got, None, "{packet}: {:?}", trace.why);
                    let mut refused = refused;
                    let wanted = trace.outcome == Outcome::Reject;
                    if let Some(link) = &packet.input {
                        // With a way back for the answer.
                        scene.way_back("replace", packet.source, link);
                        mark += 1;
                        let wait = Duration::from_millis(if wanted { 10_000 } else { 200 });
                        refused = send(from, packet, mark, wait);
                        scene.way_back("del", packet.source, link);
                    }
                    assert_eq!(refused, wanted, "{packet}: {:?}", trace.why);
                    *seen.entry(if wanted { "rejected" } else { "dropped" }).or_default() += 1;
                }
            }
        }
    }
    for what in ["masqueraded", "as it was", "rejected", "dropped"] {
        assert!(seen.get(what).is_some_and(|times| *times > 3), "too few: {seen:?}");
    }
}

/// A connection, or why there is none: refused (`Some`), or nobody said anything (`None`).
fn connect(ns: &NetNs, packet: &Packet, number: u64, wait: Duration) -> Result<OwnedFd, Option<Errno>> {
    run_in(ns, || {
        let family = if packet.source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let from = SockaddrStorage::from(SocketAddr::new(packet.source, client_port(number)));
        bind(client.as_raw_fd(), &from).unwrap_or_else(|error| panic!("{packet}: {error}"));
        // It bounds how long a connection may take to be made, too (socket(7)).
        let wait = TimeVal::milliseconds(wait.as_millis() as i64);
        setsockopt(&client, SendTimeout, &wait).unwrap();
        match nix::sys::socket::connect(client.as_raw_fd(), &SockaddrStorage::from(packet.destination)) {
            Ok(()) => Ok(client),
            Err(Errno::EINPROGRESS) => Err(None),
            Err(error) => Err(Some(error)),
        }
    })
    .unwrap()
}

/// TCP connections of random worlds are made with whom the simulator says, with the source it says, or are
/// refused or dropped as it says.
#[test]
fn connections_are_made_where_the_simulator_says() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let scene = Scene::new();
    let pods: Vec<IpAddr> = (1..6u16)
        .flat_map(|last| [[10, 1, 0, last as u8].into(), [0xfd00, 1, 0, 0, 0, 0, 0, last].into()])
        .collect();
    let servers: Vec<(SocketAddr, TcpListener)> = run_in(&scene.endpoints, || {
        let addresses = pods.iter().flat_map(|ip| [8080, 8081].map(|port| SocketAddr::new(*ip, port)));
        let listen = |at| {
            let listener = TcpListener::bind(at).unwrap();
            listener.set_nonblocking(true).unwrap();
            (at, listener)
        };
        addresses.map(listen).collect()
    })
    .unwrap();
    // Whose connections there are that nobody has asked for yet.
    let accepted = || -> Vec<(SocketAddr, SocketAddr)> {
        let all = servers.iter().map(|(at, listener)| {
            std::iter::from_fn(move || listener.accept().ok()).map(move |(_, from)| (*at, from))
        });
        all.flatten().collect()
    };
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut number = 0;
    for round in 0..100 {
        let programs = [Programs::Nft, Programs::Legacy][round % 2];
        let scenario = mine(scenarios().new_tree(&mut runner).unwrap().current());
        let host = &scenario.host;
        let plans = everything(&scenario.model, host);
        scene.in_host(|| {
            let mut plans = plans.iter().map(|(name, plan)| (name.clone(), plan.clone()));
            Iptables::with(programs).load(host, &mut plans).unwrap();
        });
        for packet in scenario.packets.iter().filter(|packet| packet.protocol == Protocol::Tcp) {
            let trace = simulate_remembering(&scenario.model, host, packet, |_| None);
            let sticks = trace.reached.as_ref().and_then(|(name, _)| {
                let service = scenario.model.service(&name.service)?;
                service.affinity
            });
            // Clients with an endpoint's address would be answered by way of the endpoint; datagrams, which
            // need no answer, are another test's.
            let has_way_back = packet.input.is_none() || !pods.contains(&packet.source);
            if sticks.is_some() || !scene.can_send(packet, &trace.outcome) || !has_way_back {
                continue;
            }
            let from = match &packet.input {
                Some(link) => {
                    scene.take(link);
                    scene.way_back("replace", packet.source, link);
                    &scene.clients
                }
                None => &scene.host,
            };
            number += 1;
            let silent = matches!(trace.outcome, Outcome::Drop | Outcome::Untouched);
            let wait = if silent { Duration::from_millis(200) } else { PATIENCE };
            let made = connect(from, packet, number, wait);
            match (&trace.outcome, &made) {
                (Outcome::Endpoints(chances), Ok(_)) => {
                    let [(endpoint, source)] = accepted()[..] else { panic!("{packet}: {:?}", trace.why) };
                    let chance = chances.iter().find(|it| it.endpoint == endpoint);
                    let chance =
                        chance.unwrap_or_else(|| panic!("{packet} came to {endpoint}: {:?}", trace.why));
                    assert_eq!(
                        source.ip() != packet.source,
                        chance.masquerade,
                        "{packet} from {source}: {:?}",
                        trace.why
                    );
                    *seen.entry(if chance.masquerade { "masqueraded" } else { "as it was" }).or_default() +=
                        1;
                }
                (Outcome::Reject, Err(Some(Errno::ECONNREFUSED))) => {
                    *seen.entry("rejected").or_default() += 1;
                }
                (Outcome::Drop, Err(None)) => *seen.entry("dropped").or_default() += 1,
                (Outcome::Untouched, _) => assert_eq!(accepted(), [], "{packet}: {:?}", trace.why),
                _ => panic!("{packet}: {made:?}: {:?}", trace.why),
            }
            if let Some(link) = &packet.input {
                scene.way_back("del", packet.source, link);
            }
        }
    }
    for what in ["masqueraded", "as it was", "rejected", "dropped"] {
        assert!(seen.get(what).is_some_and(|times| *times > 3), "too few: {seen:?}");
    }
}

/// A service of two endpoints, whatever the mode, while the mode changes.
#[test]
fn changing_the_mode_breaks_no_connection() {
    let scene = Scene::new();
    let address: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let manifest = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]
ports: [{name: http, port: 8080, protocol: TCP}]
"#;
    let model = model_of(manifest);
    let host = Host::on(
        &model,
        NodeName::new(crate::generators::HERE),
        crate::generators::observed(),
        crate::host::Settings { client_hash: ClientHash::Murmur, ..Default::default() },
    );
    let plans = everything(&model, &host);
    let stop = Arc::new(AtomicBool::new(false));
    let (made, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // Endpoints say back what they hear.
    for last in [1, 2] {
        let listener = run_in(&scene.endpoints, || {
            TcpListener::bind(SocketAddr::from(([10, 1, 0, last], 8080))).unwrap()
        })
        .unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut data = [0; 4];
                    while stream.read_exact(&mut data).is_ok() && stream.write_all(&data).is_ok() {}
                });
            }
        });
    }
    scene.take("uplink");
    let load = |backend: &mut (dyn Backend + Send)| {
        let mut plans = plans.iter().map(|(name, plan)| (name.clone(), plan.clone()));
        backend.load(&host, &mut plans).unwrap_or_else(|error| panic!("{error}"));
    };
    let mut backends: Vec<Box<dyn Backend>> = scene.in_host(|| {
        vec![
            Box::new(Nftables::open().unwrap()) as Box<dyn Backend>,
            Box::new(Iptables::with(Programs::Nft)),
            Box::new(Iptables::with(Programs::Legacy)),
        ]
    });
    scene.in_host(|| load(backends[0].as_mut()));
    let connect = move || {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok::<_, std::io::Error>(stream)
    };
    let talk = |stream: &mut TcpStream| {
        let mut answer = [0; 4];
        stream.write_all(b"weft")?;
        stream.read_exact(&mut answer)
    };
    let mut kept = run_in(&scene.clients, connect).unwrap().unwrap();
    talk(&mut kept).unwrap();
    let flood = {
        let (clients, stop) = (scene.clients.clone(), stop.clone());
        let (made, failed) = (made.clone(), failed.clone());
        std::thread::spawn(move || {
            run_in(&clients, || {
                while !stop.load(Ordering::Relaxed) {
                    match connect().and_then(|mut stream| talk(&mut stream)) {
                        Ok(()) => made.fetch_add(1, Ordering::Relaxed),
                        Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                    };
                }
            })
            .unwrap();
        })
    };
    for to in [1, 0, 2, 1, 2, 0, 1, 0, 2, 0] {
        let before = made.load(Ordering::Relaxed);
        scene.in_host(|| load(backends[to].as_mut()));
        talk(&mut kept).unwrap_or_else(|error| panic!("the kept connection, to {to}: {error}"));
        // New connections were made by the new mode's rules alone.
        let deadline = Instant::now() + Duration::from_secs(30);
        while made.load(Ordering::Relaxed) < before + 20 && failed.load(Ordering::Relaxed) == 0 {
            assert!(Instant::now() < deadline, "no connections any more");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    let (made, failed) = (made.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    assert_eq!(failed, 0, "of {made}");
    assert!(made > 200);
}
