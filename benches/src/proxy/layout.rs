//! kube-proxy's nftables layout, as rules for `nft -f`: what weft's is compared with. Pure.
//!
//! A chain for each service port, one more for its external frontends, and one for each endpoint; maps
//! from frontends to the chains (Kubernetes 1.33, `pkg/proxy/nftables`; the README there says why each
//! base chain hooks where it does). No pod counts as local, as kube-proxy has it without
//! `--cluster-cidr`, and as weft runs here: cluster addresses are not masqueraded.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::services::{Load, NAMESPACE, PORT, Service, TARGET_PORT, Target};

/// The mark of packets to masquerade (`iptablesMasqueradeBit`, 14).
const MARK: &str = "0x4000";

/// Everything but services.
const FRAME: &str = "\
table ip kube-proxy {
	set cluster-ips { type ipv4_addr; }
	set nodeport-ips { type ipv4_addr; }
	map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
	map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; }

	chain filter-prerouting { type filter hook prerouting priority dstnat - 10; policy accept;
		ct state new jump firewall-check
	}
	chain filter-input { type filter hook input priority -110; policy accept;
		ct state new jump nodeport-endpoints-check
		ct state new jump service-endpoints-check
	}
	chain filter-forward { type filter hook forward priority -110; policy accept;
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}
	chain filter-output { type filter hook output priority -110; policy accept;
		ct state new jump service-endpoints-check
		ct state new jump firewall-check
	}
	chain filter-output-post-dnat { type filter hook output priority -90; policy accept;
		ct state new jump cluster-ips-check
	}
	chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept;
		jump services
	}
	chain nat-output { type nat hook output priority -100; policy accept;
		jump services
	}
	chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept;
		jump masquerading
	}
	chain firewall-check {
		ip daddr . meta l4proto . th dport vmap @firewall-ips
	}
	chain service-endpoints-check {
		ip daddr . meta l4proto . th dport vmap @no-endpoint-services
	}
	chain nodeport-endpoints-check {
		ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
	}
	chain cluster-ips-check {
		ip daddr @cluster-ips reject
	}
	chain reject-chain {
		reject
	}
	chain mark-for-masquerade {
		meta mark set meta mark or MARK
	}
	chain masquerading {
		meta mark and MARK == 0 return
		meta mark set meta mark xor MARK
		masquerade fully-random
	}
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
}
";

/// A port of a service, as the layout sees it.
struct ServicePort {
    /// `namespace/service/tcp/port`.
    name: String,
    cluster: Ipv4Addr,
    port: u16,
    node_port: Option<u16>,
    target_port: u16,
}

/// All rules, for a host with this address.
pub(super) fn rules(load: Load, target: Option<&Target>, host: Ipv4Addr) -> String {
    let mut text = FRAME.replace("MARK", MARK);
    add(&mut text, format_args!("element ip kube-proxy nodeport-ips {{ {host} }}"));
    for service in load.services() {
        let endpoints =
            load.at_first().into_iter().map(|number| service.endpoint(number)).collect::<Vec<_>>();
        whole(&mut text, &ServicePort::of(service), &endpoints);
    }
    for (target, port) in target.iter().flat_map(|target| target.ports.map(|port| (target, port))) {
        let port = ServicePort {
            name: format!("{NAMESPACE}/{}/tcp/p{port}", Target::NAME),
            cluster: Target::CLUSTER,
            port,
            node_port: None,
            target_port: port,
        };
        whole(&mut text, &port, &target.endpoints);
    }
    text
}

/// What kube-proxy sends to the kernel when a service's endpoints change: chains for those that are
/// new, the service's chain anew, and then the chains that nobody needs.
pub(super) fn change(service: Service, was: &[u8], is: &[u8]) -> String {
    let port = ServicePort::of(service);
    let address = |number: &u8| service.endpoint(*number);
    let mut text = String::new();
    for new in is.iter().filter(|number| !was.contains(number)) {
        port.endpoint(&mut text, address(new));
    }
    writeln!(text, "flush chain ip kube-proxy {}", port.chain("service"))
        .expect("a String takes every write");
    port.balance(&mut text, &is.iter().map(address).collect::<Vec<_>>());
    for old in was.iter().filter(|number| !is.contains(number)) {
        let chain = port.endpoint_chain(address(old));
        writeln!(text, "flush chain ip kube-proxy {chain}\ndelete chain ip kube-proxy {chain}")
            .expect("a String takes every write");
    }
    text
}

/// A service port with everything that belongs to it.
fn whole(text: &mut String, port: &ServicePort, endpoints: &[Ipv4Addr]) {
    for endpoint in endpoints {
        port.endpoint(text, *endpoint);
    }
    port.balance(text, endpoints);
    let (cluster, number) = (port.cluster, port.port);
    add(text, format_args!("element ip kube-proxy cluster-ips {{ {cluster} }}"));
    let chain = port.chain("service");
    add(
        text,
        format_args!("element ip kube-proxy service-ips {{ {cluster} . tcp . {number} : goto {chain} }}"),
    );
    if let Some(node_port) = port.node_port {
        let external = port.chain("external");
        add(text, format_args!("chain ip kube-proxy {external}"));
        add(text, format_args!("rule ip kube-proxy {external} jump mark-for-masquerade"));
        add(text, format_args!("rule ip kube-proxy {external} goto {chain}"));
        add(
            text,
            format_args!("element ip kube-proxy service-nodeports {{ tcp . {node_port} : goto {external} }}"),
        );
    }
}

impl ServicePort {
    fn of(service: Service) -> Self {
        Self {
            name: format!("{NAMESPACE}/{}/tcp/http", service.name()),
            cluster: service.cluster(),
            port: PORT,
            node_port: Some(service.node_port()),
            target_port: TARGET_PORT,
        }
    }

    fn chain(&self, kind: &str) -> String {
        format!("{kind}-{}-{}", hash(&self.name), self.name)
    }

    fn endpoint_chain(&self, address: Ipv4Addr) -> String {
        let end = format!("__{address}/{}", self.target_port);
        format!("endpoint-{}-{}{end}", hash(&format!("{}{end}", self.name)), self.name)
    }

    /// The chain of an endpoint. It masquerades what a pod sends to itself.
    fn endpoint(&self, text: &mut String, address: Ipv4Addr) {
        let (chain, port) = (self.endpoint_chain(address), self.target_port);
        add(text, format_args!("chain ip kube-proxy {chain}"));
        add(text, format_args!("rule ip kube-proxy {chain} ip saddr {address} jump mark-for-masquerade"));
        add(text, format_args!("rule ip kube-proxy {chain} meta l4proto tcp dnat to {address}:{port}"));
    }

    /// What is in the chain of the service.
    fn balance(&self, text: &mut String, endpoints: &[Ipv4Addr]) {
        let (chain, count) = (self.chain("service"), endpoints.len());
        add(text, format_args!("chain ip kube-proxy {chain}"));
        let ways = endpoints.iter().enumerate();
        let ways = ways.map(|(n, address)| format!("{n} : goto {}", self.endpoint_chain(*address)));
        let ways = ways.collect::<Vec<_>>().join(" , ");
        add(text, format_args!("rule ip kube-proxy {chain} numgen random mod {count} vmap {{ {ways} }}"));
    }
}

fn add(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "add {what}").expect("a String takes every write");
}

/// Eight letters, where kube-proxy has as many of a SHA-256 in base 32 (RFC 4648): FNV-1a does for a
/// name that only has to be its own.
fn hash(name: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (0..8).map(|letter| char::from(ALPHABET[(hash >> (letter * 5) & 31) as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use weft_lab::Lab;

    const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);

    fn target() -> Target {
        Target { endpoints: [Ipv4Addr::new(10, 42, 1, 3), Ipv4Addr::new(10, 42, 1, 4)], ports: [1, 2, 3] }
    }

    #[test]
    fn a_service_is_a_chain_one_for_outside_and_one_per_endpoint() {
        let text = rules(Load::of(1), None, HOST);
        let (of_service, frame) = (text.strip_prefix(&FRAME.replace("MARK", MARK)).unwrap(), "ip kube-proxy");
        let name = "bench/s00000/tcp/http";
        let lines: Vec<String> = of_service
            .lines()
            .map(|line| {
                let line = line.replace(frame, "_");
                let words = line.split(' ').map(|word| match word.split_once(&format!("-{name}")) {
                    Some((kind_and_hash, rest)) => {
                        format!("{}{rest}", kind_and_hash.split('-').next().unwrap())
                    }
                    None => word.to_owned(),
                });
                words.collect::<Vec<_>>().join(" ")
            })
            .collect();
        let expected = "\
add element _ nodeport-ips { 192.0.2.11 }
add chain _ endpoint__10.128.1.0/8080
add rule _ endpoint__10.128.1.0/8080 ip saddr 10.128.1.0 jump mark-for-masquerade
add rule _ endpoint__10.128.1.0/8080 meta l4proto tcp dnat to 10.128.1.0:8080
add chain _ endpoint__10.128.1.1/8080
add rule _ endpoint__10.128.1.1/8080 ip saddr 10.128.1.1 jump mark-for-masquerade
add rule _ endpoint__10.128.1.1/8080 meta l4proto tcp dnat to 10.128.1.1:8080
add chain _ service
add rule _ service numgen random mod 2 vmap { 0 : goto endpoint__10.128.1.0/8080 , 1 : goto endpoint__10.128.1.1/8080 }
add element _ cluster-ips { 10.96.1.0 }
add element _ service-ips { 10.96.1.0 . tcp . 80 : goto service }
add chain _ external
add rule _ external jump mark-for-masquerade
add rule _ external goto service
add element _ service-nodeports { tcp . 10000 : goto external }
";
        assert_eq!(lines.join("\n") + "\n", expected);
    }

    #[test]
    fn no_two_chains_have_the_same_name() {
        let text = rules(Load::of(1000), Some(&target()), HOST);
        let chains = text.lines().filter_map(|line| line.strip_prefix("add chain ip kube-proxy "));
        let chains: Vec<&str> = chains.collect();
        assert_eq!(chains.len(), 1000 * 4 + 3 * 3);
        assert_eq!(chains.iter().collect::<BTreeSet<_>>().len(), chains.len());
    }

    /// The kernel takes all of it, every kind of change too, and at the end holds what it began with.
    #[test]
    fn the_kernel_takes_the_rules_and_every_change() {
        let lab = Lab::new("kp-layout").etcd_members(0).hosts(["ash"]).up().unwrap();
        let ash = lab.host("ash");
        let nft = |rules: &str| ash.run_with_stdin(&["nft", "-f", "-"], rules.as_bytes()).ok().unwrap();
        let list = || ash.run_args(&["nft", "-n", "list", "table", "ip", "kube-proxy"]).ok().unwrap();
        let load = Load::of(20);
        nft(&rules(load, Some(&target()), HOST));
        let at_first = list();
        assert_eq!(at_first.matches("\tchain endpoint-").count(), 20 * 2 + 3 * 2);
        let mut was = load.at_first();
        for turn in 0..3 {
            let is = load.after(turn);
            nft(&change(load.changed(turn), &was, &is));
            was = is;
            let chains = list().matches("\tchain endpoint-").count();
            assert_eq!(chains, 19 * 2 + 3 * 2 + was.len(), "turn {turn}");
        }
        assert_eq!(list(), at_first);
    }
}
