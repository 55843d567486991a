//! Which source address arrives: pods, hosts and an outside machine send to each other.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;

use weft_overlay::config::Backend;

use crate::world::{World, around, heard, ip, model, net, vxlan};

/// The address that a datagram from `from` (bound to `source`) to `to` has when it arrives there.
struct Path {
    why: &'static str,
    from: (&'static str, &'static str),
    to: (&'static str, &'static str),
    mark: u32,
    arrives_from: &'static str,
}

const ANY: &str = "0.0.0.0";
const ANY6: &str = "::";

fn path(
    why: &'static str,
    from: (&'static str, &'static str),
    to: (&'static str, &'static str),
    arrives_from: &'static str,
) -> Path {
    Path { why, from, to, mark: 0, arrives_from }
}

fn walk(world: &World, paths: &[Path]) {
    for (number, path) in paths.iter().enumerate() {
        // A port of its own, so that no path meets another one's connection.
        let port = 20_000 + u16::try_from(number).unwrap();
        let to: IpAddr = ip(path.to.1);
        let receiver = world.socket(path.to.0, to, port);
        let sender: UdpSocket = world.socket(path.from.0, ip(path.from.1), 0);
        nix::sys::socket::setsockopt(&sender.as_fd(), nix::sys::socket::sockopt::Mark, &path.mark).unwrap();
        let (from, _) = heard(&receiver, b"hello", || {
            // Before a neighbour is known the kernel may say EHOSTUNREACH once.
            let _ = sender.send_to(b"hello", (to, port));
        });
        assert_eq!(from, ip(path.arrives_from), "{}", path.why);
    }
}

/// host1 and host2 with a pod each; beyond host1 an outside machine whose router it is.
fn two_hosts_and_outside() -> World {
    let mut world = World::new();
    world.vxlan_host(1, &[2]);
    world.vxlan_host(2, &[1]);
    with_pods_and_outside(&mut world);
    world
}

fn with_pods_and_outside(world: &mut World) {
    world.pod(1);
    world.pod(2);
    world.machine("outside", &[]);
    world.cable("wan", "host1", "outside");
    world.run("host1", "ip addr add 198.51.100.1/24 dev wan");
    world.run("host1", "ip addr add 2001:db8:9::1/64 dev wan");
    world.run("outside", "ip addr add 198.51.100.9/24 dev wan");
    world.run("outside", "ip addr add 2001:db8:9::9/64 dev wan");
    world.run("outside", "ip addr add 203.0.113.9/32 dev lo");
    world.run("host1", "ip route add 203.0.113.0/24 via 198.51.100.9");
    world.run("outside", "ip route add default via 198.51.100.1");
    world.run("outside", "ip route add default via 2001:db8:9::1");
}

#[test]
fn sources_over_vxlan() {
    let world = two_hosts_and_outside();
    for (host, me, other) in [("host1", 1, 2), ("host2", 2, 1)] {
        let mut model = model(me, &[other], vxlan(false));
        model.non_masquerade = [net("203.0.113.0/24")].into();
        world.apply(host, &model, &around(&model));
    }
    let mut paths = vec![
        path("pod to pod keeps its source", ("pod1", ANY), ("pod2", "10.42.2.2"), "10.42.1.2"),
        path(
            "a host to another's pod is its overlay address",
            ("host1", ANY),
            ("pod2", "10.42.2.2"),
            "10.42.1.0",
        ),
        path(
            "... also when bound to the public one",
            ("host1", "192.0.2.1"),
            ("pod2", "10.42.2.2"),
            "10.42.1.0",
        ),
        path(
            "a host to its own pod keeps its source",
            ("host1", "192.0.2.1"),
            ("pod1", "10.42.1.2"),
            "192.0.2.1",
        ),
        path("a pod to the outside is its host", ("pod1", ANY), ("outside", "198.51.100.9"), "198.51.100.1"),
        path("a pod to another host is its host", ("pod1", ANY), ("host2", "192.0.2.2"), "192.0.2.1"),
        path("a pod to a listed network is itself", ("pod1", ANY), ("outside", "203.0.113.9"), "10.42.1.2"),
        path(
            "the outside to a pod there keeps its source",
            ("outside", ANY),
            ("pod1", "10.42.1.2"),
            "198.51.100.9",
        ),
        path(
            "the outside through a host to another's pod",
            ("outside", ANY),
            ("pod2", "10.42.2.2"),
            "10.42.1.0",
        ),
        path("pod to pod, IPv6", ("pod1", ANY6), ("pod2", "fd42:0:0:2::2"), "fd42:0:0:1::2"),
        path(
            "a host to another's pod, IPv6",
            ("host1", "2001:db8::1"),
            ("pod2", "fd42:0:0:2::2"),
            "fd42:0:0:1::",
        ),
        path(
            "a host to its own pod, IPv6",
            ("host1", "2001:db8::1"),
            ("pod1", "fd42:0:0:1::2"),
            "2001:db8::1",
        ),
        path("a pod to the outside, IPv6", ("pod1", ANY6), ("outside", "2001:db8:9::9"), "2001:db8:9::1"),
        path("the outside to a pod, IPv6", ("outside", ANY6), ("pod1", "fd42:0:0:1::2"), "2001:db8:9::9"),
        path(
            "the outside to another's pod, IPv6",
            ("outside", ANY6),
            ("pod2", "fd42:0:0:2::2"),
            "fd42:0:0:1::",
        ),
    ];
    // kube-proxy's bit among others: its own rules would masquerade this, ours do not.
    let marked = path("what kube-proxy marked", ("host1", "192.0.2.1"), ("pod2", "10.42.2.2"), "192.0.2.1");
    paths.push(Path { mark: 0x4001, ..marked });
    let other_bits = path("another bit", ("host1", "192.0.2.1"), ("pod2", "10.42.2.2"), "10.42.1.0");
    paths.push(Path { mark: 0x8001, ..other_bits });
    walk(&world, &paths);
}

#[test]
fn sources_over_plain_routes() {
    let mut world = World::new();
    world.machine("host1", &["192.0.2.1/24", "2001:db8::1/64"]);
    world.machine("host2", &["192.0.2.2/24", "2001:db8::2/64"]);
    for (host, other) in [("host1", 2), ("host2", 1)] {
        world.run(host, &format!("ip route add 10.42.{other}.0/24 via 192.0.2.{other}"));
        world.run(host, &format!("ip route add fd42:0:0:{other}::/64 via 2001:db8::{other}"));
    }
    with_pods_and_outside(&mut world);
    for (host, me, other) in [("host1", 1, 2), ("host2", 2, 1)] {
        let model = model(me, &[other], Backend::HostGw);
        world.apply(host, &model, &around(&model));
    }
    let paths = [
        path("pod to pod keeps its source", ("pod1", ANY), ("pod2", "10.42.2.2"), "10.42.1.2"),
        path("a host is its public address", ("host1", ANY), ("pod2", "10.42.2.2"), "192.0.2.1"),
        path("the outside through a host", ("outside", ANY), ("pod2", "10.42.2.2"), "192.0.2.1"),
        path("the outside to a pod there", ("outside", ANY), ("pod1", "10.42.1.2"), "198.51.100.9"),
        path("pod to pod, IPv6", ("pod1", ANY6), ("pod2", "fd42:0:0:2::2"), "fd42:0:0:1::2"),
        path("the outside through a host, IPv6", ("outside", ANY6), ("pod2", "fd42:0:0:2::2"), "2001:db8::1"),
    ];
    walk(&world, &paths);
}

/// Without it, everybody keeps the source address, which is what the rules above change.
#[test]
fn sources_without_masquerade() {
    let world = two_hosts_and_outside();
    for (host, me, other) in [("host1", 1, 2), ("host2", 2, 1)] {
        let mut model = model(me, &[other], vxlan(false));
        model.masquerade = false;
        model.anti_spoofing = false;
        world.apply(host, &model, &around(&model));
    }
    let paths = [
        path("a pod to the outside", ("pod1", ANY), ("outside", "198.51.100.9"), "10.42.1.2"),
        path("the outside through a host", ("outside", ANY), ("pod2", "10.42.2.2"), "198.51.100.9"),
        path("a host by its public address", ("host1", "192.0.2.1"), ("pod2", "10.42.2.2"), "192.0.2.1"),
    ];
    walk(&world, &paths);
}
