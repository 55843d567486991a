//! How a host and its two pods are set up: `ip` batches, settings, haproxy's configuration. Pure.
//!
//! Both pods are wired as weft does it, by a routed veth. The server holds every address of the
//! endpoints' range, and nothing listens there but one socket.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::services::{ENDPOINTS, Target};

/// The client's own address.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 2);
/// The server's own addresses: the endpoints of the service that bulk traffic goes to.
pub(super) const SERVER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 42, 1, 3), Ipv4Addr::new(10, 42, 1, 4)];
/// The pods' next hop; nobody has it but the hosts' ends of their veths.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// What is set on every host, below /proc/sys/net: it forwards, and forgets a closed connection at
/// once, so that no measurement finds the traces of the one before.
pub(super) const SETTINGS: [(&str, &str); 3] = [
    ("ipv4/ip_forward", "1"),
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
    ("netfilter/nf_conntrack_tcp_timeout_close", "1"),
];
/// Conntrack counts packets and bytes (nf_conntrack-sysctl.rst): the daemon sets it where it is to count.
pub(super) const ACCOUNTING: &str = "net.netfilter.nf_conntrack_acct";
/// What the daemon shows once it counts.
pub(super) const COUNTED: &str = "weft_proxy_traffic_lost_total";

/// For the host: a veth to each pod, by their namespaces.
pub(super) fn host(client: &str, server: &str) -> String {
    let mut batch = String::new();
    for (link, netns) in [("client", client), ("server", server)] {
        write!(
            batch,
            "link add {link} mtu 1500 type veth peer name eth0 mtu 1500 netns {netns}\n\
             addr add {GATEWAY}/32 dev {link}\n\
             link set {link} up\n"
        )
        .expect("a String takes every write");
    }
    let [one, two] = SERVER;
    batch
        + &format!(
            "route add {CLIENT} dev client\n\
             route add {one} dev server\n\
             route add {two} dev server\n\
             route add {ENDPOINTS} via {one} dev server onlink\n"
        )
}

/// For the client.
pub(super) fn client() -> String {
    pod(&[CLIENT])
}

/// For the server.
pub(super) fn server() -> String {
    pod(&SERVER) + &format!("route add local {ENDPOINTS} dev lo\n")
}

fn pod(addresses: &[Ipv4Addr]) -> String {
    let addresses = addresses.iter().map(|address| format!("addr add {address}/32 dev eth0\n"));
    addresses.collect::<String>()
        + &format!(
            "link set eth0 up\n\
             route add {GATEWAY}/32 dev eth0 scope link\n\
             route add default via {GATEWAY} dev eth0\n"
        )
}

/// For the host of haproxy: the service's address is its own.
pub(super) fn own_the_service() -> String {
    format!("addr add {}/32 dev lo\n", Target::CLUSTER)
}

/// haproxy as a TCP proxy of a service: as it comes, with splicing where it helps.
pub(super) fn haproxy(target: &Target) -> String {
    let mut text = "\
global
    maxconn 4096
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"
    .to_owned();
    for port in target.ports {
        write!(text, "listen p{port}\n    bind {}:{port}\n", Target::CLUSTER)
            .expect("a String takes every write");
        for (number, endpoint) in target.endpoints.iter().enumerate() {
            writeln!(text, "    server e{number} {endpoint}:{port}").expect("a String takes every write");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxy_balances_every_port_over_both_endpoints() {
        let text = haproxy(&Target { endpoints: SERVER, ports: [1, 2, 3] });
        let expected = "\
listen p2
    bind 10.96.0.10:2
    server e0 10.42.1.3:2
    server e1 10.42.1.4:2
listen p3
";
        assert!(text.contains(expected), "{text}");
    }
}
