//! Random models, hosts and packets for property tests: of this crate, and, with the feature
//! `generators`, of others. The worlds are small on purpose, so that services share addresses and
//! packets hit something.
//!
//! Addresses come from fixed ranges, so that a test can also build such a world out of real links:
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | cluster addresses | 10.96.0.0/16 | fd00:96::/64 |
//! | load balancers | 203.0.113.0/24 | 2001:db8:203::/64 |
//! | external addresses | 198.51.100.0/24 | 2001:db8:198::/64 |
//! | pods and endpoints | 10.1.0.0/16 | fd00:1::/64 |
//! | hosts | 192.0.2.0/24 | 2001:db8:2::/64 |
//! | strangers | 192.168.7.0/24 | 2001:db8:7::/64 |

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::host::{DetectLocal, Host, NodePortAddresses, Observed, Settings, Strict};
use crate::model::{
    Balance, Change, Declared, Family, Ignored, Kind, Model, Node, NodeName, Object, Policy, Protocol,
    Service, ServiceName, ServicePort, Slice, SliceEndpoint, SliceName, SlicePort, family_of,
};
use crate::simulate::Packet;

/// The host whose proxy is tested.
pub const HERE: &str = "ash";
const NODES: [&str; 3] = [HERE, "birch", "cedar"];
const ZONES: [&str; 2] = ["east", "west"];
const SERVICES: [&str; 4] = ["api", "db", "mail", "web"];
const PORTS: [u16; 2] = [80, 81];
const NODE_PORTS: [u16; 3] = [30001, 30002, 30003];
/// The link that this host's pods are on, one that begins alike, and the one to the outside.
const LINKS: [&str; 3] = ["pod0", "pod1", "uplink"];

/// A world and packets in it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What is declared.
    pub model: Model,
    /// Where the packets are.
    pub host: Host,
    /// New connections.
    pub packets: Vec<Packet>,
}

/// Worlds with a few services and slices, and packets of which most are aimed at a service.
pub fn scenarios() -> impl Strategy<Value = Scenario> {
    let aims = option::weighted(0.8, any::<Index>());
    (vec(objects(), 4..24), nodes(), settings(), vec((shots(), aims), 1..16)).prop_map(
        |(mut objects, node, settings, shots)| {
            objects.push(Object::Node(NodeName::new(HERE), node));
            let model = Model::of(objects);
            let host = Host::on(&model, NodeName::new(HERE), observed(), settings);
            let targets = targets_of(&model);
            let packets = shots.into_iter().map(|(shot, aim)| match aim {
                Some(aim) if !targets.is_empty() => shot.at(*aim.get(&targets)),
                _ => shot.packet(),
            });
            Scenario { packets: packets.collect(), model, host }
        },
    )
}

/// An object appears, changes or goes.
pub fn changes() -> impl Strategy<Value = Change> {
    (objects(), prop::bool::weighted(0.75))
        .prop_map(|(object, stays)| if stays { Change::Put(object) } else { Change::Remove(object.name()) })
}

/// What the kernel of the host says; it never changes.
pub fn observed() -> Observed {
    let addresses = [address(Range::Hosts, 1, Family::V4), address(Range::Hosts, 1, Family::V6)];
    let second = [address(Range::Hosts, 11, Family::V4), address(Range::Balancers, 1, Family::V4)];
    Observed { addresses: addresses.into_iter().chain(second).collect(), primary: addresses.to_vec() }
}

/// How a proxy may be set.
pub fn settings() -> impl Strategy<Value = Settings> {
    (node_port_addresses(), detect_local(), any::<bool>(), option::of(strict())).prop_map(
        |(node_ports, detect_local, masquerade_all, strict)| Settings {
            node_ports,
            detect_local,
            masquerade_all,
            strict,
            ..Settings::default()
        },
    )
}

/// New connections from everywhere to everything that a world may have.
pub fn packets() -> impl Strategy<Value = Packet> {
    shots().prop_map(Shot::packet)
}

/// A packet whose family and destination are not final.
#[derive(Clone, Copy, Debug)]
struct Shot {
    client: Place,
    link: &'static str,
    target: Place,
    family: Family,
    port: u16,
    protocol: Protocol,
}

prop_compose! {
    fn shots()(
        client in clients(),
        link in select(&LINKS[..]),
        target in targets(),
        family in families(),
        port in select([&PORTS[..], &NODE_PORTS[..]].concat()),
        protocol in protocols(),
    ) -> Shot {
        Shot { client, link, target, family, port, protocol }
    }
}

impl Shot {
    fn packet(self) -> Packet {
        self.at((SocketAddr::new(self.target.in_family(self.family), self.port), self.protocol))
    }

    fn at(self, (destination, protocol): (SocketAddr, Protocol)) -> Packet {
        let source = self.client.in_family(family_of(destination.ip()));
        let own = source.is_loopback() || observed().addresses.contains(&source);
        Packet { source, destination, protocol, input: (!own).then(|| self.link.to_owned()) }
    }
}

/// Every place where a service may answer.
fn targets_of(model: &Model) -> Vec<(SocketAddr, Protocol)> {
    let mut targets = Vec::new();
    for (_, service) in model.services() {
        for port in &service.ports {
            let addresses =
                service.cluster_ips.iter().chain(&service.load_balancer_ips).chain(&service.external_ips);
            targets.extend(addresses.map(|ip| (SocketAddr::new(*ip, port.port), port.protocol)));
            if let Some(number) = port.node_port {
                let own = Family::ALL.map(|family| address(Range::Hosts, 1, family));
                targets.extend(own.map(|ip| (SocketAddr::new(ip, number.get()), port.protocol)));
            }
        }
    }
    targets
}

/// An address in both families.
#[derive(Clone, Copy, Debug)]
struct Place(Range, u8);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Range {
    Cluster,
    Balancers,
    External,
    Pods,
    Hosts,
    Strangers,
    Loopback,
}

impl Place {
    fn in_family(self, family: Family) -> IpAddr {
        address(self.0, self.1, family)
    }
}

fn address(range: Range, number: u8, family: Family) -> IpAddr {
    let v4 = |a, b, c| IpAddr::V4(Ipv4Addr::new(a, b, c, number));
    let v6 = |a, b, c| IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, number.into()));
    match (family, range) {
        (Family::V4, Range::Cluster) => v4(10, 96, 0),
        (Family::V4, Range::Balancers) => v4(203, 0, 113),
        (Family::V4, Range::External) => v4(198, 51, 100),
        (Family::V4, Range::Pods) => v4(10, 1, 0),
        (Family::V4, Range::Hosts) => v4(192, 0, 2),
        (Family::V4, Range::Strangers) => v4(192, 168, 7),
        (Family::V4, Range::Loopback) => v4(127, 0, 0),
        (Family::V6, Range::Cluster) => v6(0xfd00, 0x96, 0),
        (Family::V6, Range::Balancers) => v6(0x2001, 0xdb8, 0x203),
        (Family::V6, Range::External) => v6(0x2001, 0xdb8, 0x198),
        (Family::V6, Range::Pods) => v6(0xfd00, 1, 0),
        (Family::V6, Range::Hosts) => v6(0x2001, 0xdb8, 2),
        (Family::V6, Range::Strangers) => v6(0x2001, 0xdb8, 7),
        (Family::V6, Range::Loopback) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// All of a range.
fn network(range: Range, family: Family) -> IpNetwork {
    let prefix = if family == Family::V4 { 24 } else { 64 };
    IpNetwork::new(address(range, 0, family), prefix).expect("a prefix of its family")
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![3 => Just(Family::V4), 1 => Just(Family::V6)]
}

fn protocols() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn clients() -> impl Strategy<Value = Place> {
    prop_oneof![
        4 => (1u8..6).prop_map(|number| Place(Range::Pods, number)),
        2 => (1u8..3).prop_map(|number| Place(Range::Strangers, number)),
        2 => Just(Place(Range::Hosts, 1)),
        1 => Just(Place(Range::Hosts, 2)),
        1 => (1u8..3).prop_map(|number| Place(Range::Balancers, number)),
        1 => Just(Place(Range::Loopback, 1)),
    ]
}

fn targets() -> impl Strategy<Value = Place> {
    prop_oneof![
        6 => (1u8..6).prop_map(|number| Place(Range::Cluster, number)),
        3 => (1u8..3).prop_map(|number| Place(Range::Balancers, number)),
        3 => (1u8..3).prop_map(|number| Place(Range::External, number)),
        3 => Just(Place(Range::Hosts, 1)),
        1 => Just(Place(Range::Hosts, 11)),
        1 => Just(Place(Range::Hosts, 2)),
        1 => Just(Place(Range::Loopback, 1)),
        1 => (1u8..3).prop_map(|number| Place(Range::Pods, number)),
    ]
}

fn objects() -> impl Strategy<Value = Object> {
    prop_oneof![
        5 => (select(&SERVICES[..]), declared()).prop_map(|(name, it)| Object::Service(service_name(name), it)),
        8 => (0u8..8, slices()).prop_map(|(number, slice)| {
            let name = format!("{}-{number}", slice.service.name);
            Object::Slice(SliceName::new(&slice.service.namespace, &name), Arc::new(slice))
        }),
        1 => (select(&NODES[..]), nodes()).prop_map(|(name, node)| Object::Node(NodeName::new(name), node)),
    ]
}

fn service_name(name: &str) -> ServiceName {
    ServiceName::new("shop", name)
}

fn declared() -> impl Strategy<Value = Declared> {
    let other_proxy = (1u8..6).prop_map(|number| Ignored::OtherProxy {
        proxy: "mesh".to_owned(),
        cluster_ips: vec![address(Range::Cluster, number, Family::V4)],
    });
    prop_oneof![
        9 => services().prop_map(|service| Declared::Served(Arc::new(service))),
        1 => other_proxy.prop_map(Declared::Ignored),
        1 => Just(Declared::Ignored(Ignored::Headless)),
    ]
}

prop_compose! {
    fn services()(
        created in option::of(0i64..3),
        kind in select(vec![Kind::ClusterIp, Kind::NodePort, Kind::LoadBalancer]),
        cluster_ips in cluster_ips(),
        external_ips in vec(external_ips(), 0..3),
        load_balancer_ips in vec((1u8..3, families()), 0..3),
        source_ranges in option::weighted(0.3, vec(source_ranges(), 0..3)),
        ports in ports(),
        internal_policy in policies(),
        external_policy in policies(),
        affinity in option::weighted(0.3, 1u64..10),
        balance in prop_oneof![3 => Just(Balance::Random), 1 => Just(Balance::ClientHash)],
        health_check_port in option::of(32000u16..32003),
    ) -> Service {
        let outside = kind != Kind::ClusterIp || !external_ips.is_empty();
        let balancer = kind == Kind::LoadBalancer;
        let node_ports = kind != Kind::ClusterIp;
        let balancers = load_balancer_ips.into_iter().filter(|_| balancer);
        let external_policy = if outside { external_policy } else { Policy::Cluster };
        let health = health_check_port.filter(|_| balancer && external_policy == Policy::Local);
        Service {
            created,
            kind,
            cluster_ips,
            external_ips: unique(external_ips),
            load_balancer_ips: unique(balancers.map(|(number, family)| address(Range::Balancers, number, family))),
            source_ranges,
            ports: ports.into_iter().map(|port| ServicePort {
                node_port: port.node_port.filter(|_| node_ports),
                ..port
            }).collect(),
            internal_policy,
            external_policy,
            affinity: affinity.map(Duration::from_secs),
            balance,
            health_check_port: health.and_then(NonZeroU16::new),
        }
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    select(vec![Policy::Cluster, Policy::Local])
}

fn cluster_ips() -> impl Strategy<Value = Vec<IpAddr>> {
    let families = prop_oneof![
        2 => Just(vec![Family::V4]),
        2 => Just(vec![Family::V4, Family::V6]),
        1 => Just(vec![Family::V6]),
    ];
    (1u8..5, families).prop_map(|(number, families)| {
        families.iter().map(|family| address(Range::Cluster, number, *family)).collect()
    })
}

/// Now and then somebody names another one's address.
fn external_ips() -> impl Strategy<Value = IpAddr> {
    let range =
        prop_oneof![6 => Just(Range::External), 1 => Just(Range::Cluster), 1 => Just(Range::Balancers)];
    (range, 1u8..3, families()).prop_map(|(range, number, family)| address(range, number, family))
}

fn source_ranges() -> impl Strategy<Value = IpNetwork> {
    let range = select(vec![Range::Pods, Range::Strangers, Range::Hosts]);
    (range, families()).prop_map(|(range, family)| network(range, family))
}

/// Ports with different names, and different numbers or protocols.
fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = (select(&PORTS[..]), protocols(), option::of(select(&NODE_PORTS[..])));
    vec(port, 1..4).prop_map(|drawn| {
        let mut seen = BTreeSet::new();
        let drawn = drawn.into_iter().filter(|(port, protocol, _)| seen.insert((*port, *protocol)));
        let named = drawn.enumerate().map(|(index, (port, protocol, node_port))| ServicePort {
            name: port_name(index),
            protocol,
            port,
            node_port: node_port.and_then(NonZeroU16::new),
        });
        named.collect()
    })
}

fn port_name(index: usize) -> std::sync::Arc<str> {
    ["", "http", "admin"][index].into()
}

/// Each port name with each protocol.
const NAMED_PORTS: usize = 9;

prop_compose! {
    fn slices()(
        service in select(&SERVICES[..]),
        family in families(),
        ports in vec(option::weighted(0.7, 8080u16..8082), NAMED_PORTS),
        endpoints in vec(endpoints(), 0..5),
    ) -> Slice {
        let port = |(index, port): (usize, Option<u16>)| Some(SlicePort {
            name: port_name(index % 3),
            protocol: Protocol::ALL[index / 3],
            port: NonZeroU16::new(port?)?,
        });
        let endpoint = |(number, endpoint): (u8, SliceEndpoint)| SliceEndpoint {
            address: address(Range::Pods, number, family),
            ..endpoint
        };
        Slice {
            service: service_name(service),
            family,
            ports: ports.into_iter().enumerate().filter_map(port).collect(),
            endpoints: endpoints.into_iter().map(endpoint).collect(),
        }
    }
}

prop_compose! {
    fn endpoints()(
        number in 1u8..6,
        ready in prop::bool::weighted(0.6),
        serving in prop::bool::weighted(0.7),
        terminating in prop::bool::weighted(0.4),
        node in option::weighted(0.9, select(&NODES[..])),
        zones in hints(&ZONES),
        nodes in hints(&NODES),
    ) -> (u8, SliceEndpoint) {
        (number, SliceEndpoint {
            address: address(Range::Pods, number, Family::V4),
            ready,
            serving,
            terminating,
            node: node.map(NodeName::new),
            zone_hints: zones.into_iter().map(Into::into).collect(),
            node_hints: nodes.into_iter().map(NodeName::new).collect(),
            pod: None,
        })
    }
}

/// Mostly given, or hints would hardly ever count.
fn hints(names: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![1 => Just(Vec::new()), 5 => vec(select(names), 1..3)]
}

prop_compose! {
    fn nodes()(zone in option::weighted(0.8, select(&ZONES[..])), leaving in any::<bool>(), pod_cidr in option::of(families())) -> Node {
        Node {
            zone: zone.map(str::to_owned),
            addresses: Vec::new(),
            pod_cidrs: pod_cidr.into_iter().map(|family| network(Range::Pods, family)).collect(),
            leaving,
        }
    }
}

fn node_port_addresses() -> impl Strategy<Value = NodePortAddresses> {
    let hosts = network(Range::Hosts, Family::V4).to_string();
    let entry =
        select(vec!["all".to_owned(), "primary".into(), "localhost".into(), "127.0.0.0/8".into(), hosts]);
    vec(entry, 0..3).prop_map(|entries| {
        NodePortAddresses::parse(entries.iter().map(String::as_str)).expect("all are entries")
    })
}

fn detect_local() -> impl Strategy<Value = DetectLocal> {
    prop_oneof![
        Just(DetectLocal::Off),
        families().prop_map(|family| DetectLocal::ClusterCidr(vec![network(Range::Pods, family)])),
        Just(DetectLocal::NodeCidr),
        Just(DetectLocal::Bridge("pod0".to_owned())),
        Just(DetectLocal::InterfacePrefix("pod".to_owned())),
    ]
}

fn strict() -> impl Strategy<Value = Strict> {
    any::<bool>().prop_map(|known| Strict {
        service_cidrs: if known {
            Family::ALL.map(|family| network(Range::Cluster, family)).to_vec()
        } else {
            Vec::new()
        },
    })
}

fn unique(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    addresses.into_iter().filter(|address| seen.insert(*address)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::simulate::{Outcome, simulate};

    /// A generator that misses a case makes every property blind to it.
    #[test]
    fn every_outcome_and_frontend_occurs_often_enough() {
        let mut runner = TestRunner::deterministic();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..500 {
            let scenario = scenarios().new_tree(&mut runner).expect("draws").current();
            for packet in &scenario.packets {
                assert!(packet.family() == Some(family_of(packet.source)));
                let trace = simulate(&scenario.model, &scenario.host, packet);
                let outcome = match trace.outcome {
                    Outcome::Untouched => "untouched",
                    Outcome::Endpoints(chances) if chances.len() > 1 => "several endpoints",
                    Outcome::Endpoints(_) => "one endpoint",
                    Outcome::Reject => "reject",
                    Outcome::Drop => "drop",
                };
                *seen.entry(outcome.to_owned()).or_default() += 1;
                if let Some((_, kind)) = trace.reached {
                    *seen.entry(kind.to_string()).or_default() += 1;
                }
                for why in trace.why {
                    let words =
                        why.split(' ').filter(|word| word.bytes().all(|byte| byte.is_ascii_alphabetic()));
                    *seen.entry(words.collect::<Vec<_>>().join(" ")).or_default() += 1;
                }
            }
        }
        let least = 20;
        for wanted in [
            "untouched",
            "several endpoints",
            "one endpoint",
            "reject",
            "drop",
            "its cluster address",
            "an address of its load balancer",
            "an external address of it",
            "its node port",
            "is in none of loadBalancerSourceRanges",
            "external traffic with the policy Cluster is masqueraded",
            "externalTrafficPolicy Local does not concern local pods",
            "ready endpoints hinted for zone",
            "ready endpoints hinted for node",
        ] {
            let times: usize =
                seen.iter().filter(|(words, _)| words.contains(wanted)).map(|(_, times)| times).sum();
            assert!(times >= least, "`{wanted}` occurs {times} times: {seen:#?}");
        }
    }
}
