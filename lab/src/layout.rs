//! Who is where in a lab: names, addresses and the `ip` commands that make it so. Pure.
//!
//! One `lan` namespace holds a bridge per segment and one port per host; every host is a namespace
//! whose `eth0` is the other end of its port. A `router` joins the segments. Nothing is in the root
//! namespace, so any number of labs use the same addresses at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::LabError;

/// The segments' networks: the three that RFC 5737 sets aside for examples, and as the last one,
/// for `outside`, the network that RFC 2544 sets aside for benchmarks.
const SEGMENTS: [(Ipv4Addr, Ipv6Addr); 4] = [
    (Ipv4Addr::new(192, 0, 2, 0), Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0)),
    (Ipv4Addr::new(198, 51, 100, 0), Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0)),
    (Ipv4Addr::new(203, 0, 113, 0), Ipv6Addr::new(0x2001, 0xdb8, 0, 3, 0, 0, 0, 0)),
    (Ipv4Addr::new(198, 18, 0, 0), Ipv6Addr::new(0x2001, 0xdb8, 0, 4, 0, 0, 0, 0)),
];
/// How many segments hosts can be on.
pub const MAX_SEGMENTS: u8 = 3;
/// The segment behind the router where `outside` is.
const OUTSIDE_SEGMENT: u8 = 4;
/// Every segment is a /24 and a /64.
const PREFIX_V4: u8 = 24;
const PREFIX_V6: u8 = 64;
/// The last octet of the router on every segment.
const ROUTER: u8 = 1;
/// The last octet of the first etcd member.
const FIRST_ETCD: u8 = 2;
/// The last octet of the first host.
const FIRST_HOST: u8 = 11;
/// The hosts that a /24 has room for after [`FIRST_HOST`].
pub const MAX_HOSTS: usize = 240;
/// What hosts are called if nobody says.
const TREES: [&str; 12] =
    ["ash", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ivy", "juniper", "larch", "maple"];
/// Names that a host cannot have.
const RESERVED: [&str; 4] = ["lan", "router", "outside", "etcd"];
/// A port of the lan bears its host's name, and a link's name has at most 15 bytes (IFNAMSIZ).
const LONGEST_HOST: usize = 15;
/// The longest lab name that leaves room for an API socket's path in its 107 bytes (unix(7)).
const LONGEST_LAB: usize = 32;

/// What a lab is made of. Everything else follows from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The lab's name.
    pub name: String,
    /// Its hosts, in order.
    pub hosts: Vec<HostSpec>,
    /// How many etcd members there are: 0, 1 or 3.
    pub etcd_members: u8,
    /// MTU of the underlay, in bytes.
    pub mtu: u32,
    /// The addresses that machines have on the underlay.
    #[serde(default)]
    pub families: Families,
    /// The `weft` binary that hosts run.
    pub weft: Option<std::path::PathBuf>,
    /// The overlay network's name.
    pub network: String,
    /// Where in etcd the network's keys are.
    pub etcd_prefix: String,
    /// What is written to `<prefix>/config`.
    pub config: Option<String>,
    /// Further arguments for every `weft overlay`.
    pub overlay_args: Vec<String>,
    /// Further arguments for every `weft proxy`; without a list, hosts start none.
    #[serde(default)]
    pub proxy_args: Option<Vec<String>>,
}

/// Which addresses machines have on the underlay, beside the link-local ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    /// IPv4 and IPv6.
    #[default]
    Both,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// One host, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// Its name.
    pub name: String,
    /// The segment it is on, from 1.
    pub segment: u8,
}

/// What a namespace is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A host with an overlay daemon and pods.
    Host,
    /// A member of the etcd cluster.
    Etcd,
    /// A machine behind the router that knows the hosts and nothing of the overlay.
    Outside,
}

/// A machine on the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, and its lan port's.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The segment it is on, from 1.
    pub segment: u8,
    /// Its IPv4 address; not on its link where the underlay is [`Families::V6`].
    pub v4: Ipv4Addr,
    /// Its IPv6 address; not on its link where the underlay is [`Families::V4`].
    pub v6: Ipv6Addr,
    /// Those that are on its link.
    pub families: Families,
    /// Its namespace.
    pub netns: String,
}

impl Node {
    /// An address that it has on the underlay: the IPv4 one, if it has both.
    pub fn address(&self) -> IpAddr {
        self.either(self.v4, self.v6)
    }

    /// The router's address on its segment, of the same family.
    pub fn gateway(&self) -> IpAddr {
        self.either(v4(self.segment, ROUTER), v6(self.segment, ROUTER))
    }

    fn either(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        match self.families {
            Families::Both | Families::V4 => v4.into(),
            Families::V6 => v6.into(),
        }
    }
}

/// Every namespace of a lab, with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The namespace that holds the bridges.
    pub lan: String,
    /// The namespace that joins the segments.
    pub router: String,
    /// The machines: etcd members, hosts, `outside`.
    pub nodes: Vec<Node>,
    mtu: u32,
}

impl Layout {
    /// Lays a lab out, or says what does not fit.
    pub fn of(spec: &Spec) -> Result<Self, LabError> {
        check_lab_name(&spec.name)?;
        let bad = |why: String| LabError::BadSpec { lab: spec.name.clone(), why };
        if spec.hosts.len() > MAX_HOSTS {
            return Err(bad(format!("{} hosts; at most {MAX_HOSTS} fit", spec.hosts.len())));
        }
        if ![0, 1, 3].contains(&spec.etcd_members) {
            return Err(bad(format!("{} etcd members; use 0, 1 or 3", spec.etcd_members)));
        }
        let netns = |name: &str| format!("weft-{}-{name}", spec.name);
        let node = |name: &str, role, segment: u8, octet: u8| Node {
            name: name.to_owned(),
            role,
            segment,
            v4: v4(segment, octet),
            v6: v6(segment, octet),
            families: spec.families,
            netns: netns(name),
        };
        let mut nodes: Vec<Node> = (0..spec.etcd_members)
            .map(|member| node(&etcd_name(member), Role::Etcd, 1, FIRST_ETCD + member))
            .collect();
        for (octet, host) in (FIRST_HOST..).zip(&spec.hosts) {
            check_host_name(&host.name)?;
            if !(1..=MAX_SEGMENTS).contains(&host.segment) {
                let (name, segment) = (&host.name, host.segment);
                return Err(bad(format!("{name} is on segment {segment}; there are 1 to {MAX_SEGMENTS}")));
            }
            if nodes.iter().any(|known| known.name == host.name) {
                return Err(bad(format!("two hosts are called {}", host.name)));
            }
            nodes.push(node(&host.name, Role::Host, host.segment, octet));
        }
        nodes.push(node("outside", Role::Outside, OUTSIDE_SEGMENT, FIRST_HOST));
        Ok(Self { lan: netns("lan"), router: netns("router"), nodes, mtu: spec.mtu })
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The nodes with this role, in order.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &Node> + Clone {
        self.nodes.iter().filter(move |node| node.role == role)
    }

    /// Every namespace that a fresh lab consists of. The lan is first: with it all links go.
    pub fn namespaces(&self) -> Vec<String> {
        let nodes = self.nodes.iter().map(|node| node.netns.clone());
        [self.lan.clone(), self.router.clone()].into_iter().chain(nodes).collect()
    }

    /// The segments in use.
    pub fn segments(&self) -> Vec<u8> {
        let mut segments: Vec<u8> = self.nodes.iter().map(|node| node.segment).chain([1]).collect();
        segments.sort_unstable();
        segments.dedup();
        segments
    }

    /// `ip -batch` for the lan: bridges, and the router's ports.
    pub fn lan_batch(&self) -> String {
        let mut batch = String::from("link set lo up\n");
        for segment in self.segments() {
            batch += &format!("link add name {} type bridge stp_state 0 mcast_snooping 0\n", bridge(segment));
            batch += &format!("link set {} up\n", bridge(segment));
            batch += &self.port(&router_port(segment), segment, &router_link(segment), &self.router, ROUTER);
        }
        batch
    }

    /// `ip -batch` for the router: its addresses. Routes between segments are the connected ones.
    pub fn router_batch(&self) -> String {
        let mut batch = String::from("link set lo up\n");
        for segment in self.segments() {
            let (v4, v6) = (v4(segment, ROUTER), v6(segment, ROUTER));
            batch += &addresses(&router_link(segment), v4, v6, Families::Both);
        }
        batch
    }

    /// `ip -batch` for the lan: a node's port.
    pub fn port_batch(&self, node: &Node) -> String {
        let [.., octet] = node.v4.octets();
        self.port(&node.name, node.segment, "eth0", &node.netns, octet)
    }

    /// `ip -batch` for a node: its addresses, and the router as the way out.
    pub fn node_batch(&self, node: &Node) -> String {
        let mut batch = format!("link set lo up\n{}", addresses("eth0", node.v4, node.v6, node.families));
        if node.families != Families::V6 {
            batch += &format!("route add default via {} dev eth0\n", v4(node.segment, ROUTER));
        }
        if node.families != Families::V4 {
            batch += &format!("route add default via {} dev eth0\n", v6(node.segment, ROUTER));
        }
        batch
    }

    /// `ip -batch` for the router: the hop between segments takes packets up to `mtu`, and answers
    /// larger ones that may not be fragmented with ICMP. A route's MTU rather than a link's, because
    /// a veth whose peer has the larger MTU drops in silence. `None` takes the limit away.
    pub fn router_mtu_batch(&self, mtu: Option<u32>) -> String {
        let mut batch = String::new();
        let lock = mtu.map(|mtu| format!(" mtu lock {mtu}")).unwrap_or_default();
        for segment in self.segments() {
            let (link, net4, net6) = (router_link(segment), v4(segment, 0), v6(segment, 0));
            let source = v4(segment, ROUTER);
            batch += &format!(
                "route replace {net4}/{PREFIX_V4} dev {link} proto kernel scope link src {source}{lock}\n"
            );
            batch += &format!("route replace {net6}/{PREFIX_V6} dev {link} proto kernel metric 256{lock}\n");
        }
        batch
    }

    /// A veth from the lan to a namespace. The hardware address follows from segment and octet, so
    /// that a machine that was powered off comes back with the network card it had.
    fn port(&self, port: &str, segment: u8, link: &str, netns: &str, octet: u8) -> String {
        let (mtu, bridge) = (self.mtu, bridge(segment));
        format!(
            "link add name {port} mtu {mtu} type veth peer name {link} address 02:77:66:74:{segment:02x}:{octet:02x} mtu {mtu} netns {netns}\n\
             link set {port} master {bridge} up\n"
        )
    }
}

/// The names of the first `count` hosts.
pub fn default_hosts(count: usize) -> Vec<String> {
    let trees = TREES.iter().map(|tree| (*tree).to_owned());
    let rest = (TREES.len() + 1..).map(|number| format!("host-{number}"));
    trees.chain(rest).take(count).collect()
}

/// The name of a namespace for a pod, or for anything else that hangs off a host.
pub fn pod_netns(node: &Node, pod: &str) -> Result<String, LabError> {
    check_name(pod, LONGEST_LAB)?;
    Ok(format!("{}-{pod}", node.netns))
}

/// An address in the form that a URL wants.
pub fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The lan's port for the router on this segment.
pub fn router_port(segment: u8) -> String {
    format!("router.{segment}")
}

/// The router's addresses on the first segment, which every lab has.
pub(crate) fn first_router() -> [IpAddr; 2] {
    [v4(1, ROUTER).into(), v6(1, ROUTER).into()]
}

fn bridge(segment: u8) -> String {
    format!("segment.{segment}")
}

fn router_link(segment: u8) -> String {
    format!("eth{segment}")
}

fn etcd_name(member: u8) -> String {
    if member == 0 { "etcd".into() } else { format!("etcd-{}", member + 1) }
}

fn v4(segment: u8, octet: u8) -> Ipv4Addr {
    let [a, b, c, _] = network(segment).0.octets();
    Ipv4Addr::new(a, b, c, octet)
}

fn v6(segment: u8, octet: u8) -> Ipv6Addr {
    Ipv6Addr::from_bits(network(segment).1.to_bits() | u128::from(octet))
}

fn network(segment: u8) -> (Ipv4Addr, Ipv6Addr) {
    SEGMENTS[usize::from(segment) - 1] // `Layout::of` let no other segment in
}

/// `nodad`: duplicate detection would hold the address back for a second, and nobody else is there.
fn addresses(link: &str, v4: Ipv4Addr, v6: Ipv6Addr, families: Families) -> String {
    let mut batch = String::new();
    if families != Families::V6 {
        batch += &format!("addr add {v4}/{PREFIX_V4} dev {link}\n");
    }
    if families != Families::V4 {
        batch += &format!("addr add {v6}/{PREFIX_V6} dev {link} nodad\n");
    }
    batch + &format!("link set {link} up\n")
}

/// A lab's name is a directory's and the beginning of namespaces' names.
pub(crate) fn check_lab_name(name: &str) -> Result<(), LabError> {
    check_name(name, LONGEST_LAB)
}

fn check_host_name(name: &str) -> Result<(), LabError> {
    check_name(name, LONGEST_HOST)?;
    if RESERVED.contains(&name) || name.starts_with("etcd-") {
        let rule = "`lan`, `router`, `outside`, `etcd` and `etcd-...` are the lab's own";
        return Err(LabError::BadName { name: name.to_owned(), rule });
    }
    Ok(())
}

fn check_name(name: &str, longest: usize) -> Result<(), LabError> {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = !name.is_empty() && name.len() <= longest && name.bytes().all(letters);
    if fits && !name.starts_with('-') {
        return Ok(());
    }
    let rule = match longest {
        LONGEST_HOST => "a host's name is 1 to 15 of a-z, 0-9 and -, and does not begin with -",
        _ => "a name is 1 to 32 of a-z, 0-9 and -, and does not begin with -",
    };
    Err(LabError::BadName { name: name.to_owned(), rule })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Hosts<'a> = &'a [(&'a str, u8)];

    fn spec(hosts: Hosts<'_>) -> Spec {
        let host = |(name, segment): &(&str, u8)| HostSpec { name: (*name).into(), segment: *segment };
        Spec {
            name: "blue".into(),
            hosts: hosts.iter().map(host).collect(),
            etcd_members: 1,
            mtu: 1500,
            families: Families::Both,
            weft: None,
            network: "weft".into(),
            etcd_prefix: "/coreos.com/network".into(),
            config: None,
            overlay_args: vec![],
            proxy_args: None,
        }
    }

    #[test]
    fn every_machine_has_its_place() {
        let layout = Layout::of(&spec(&[("ash", 1), ("birch", 2)])).expect("fits");
        let places: Vec<_> = layout
            .nodes
            .iter()
            .map(|node| format!("{} {} {} {}", node.netns, node.segment, node.v4, node.v6))
            .collect();
        assert_eq!(
            places,
            [
                "weft-blue-etcd 1 192.0.2.2 2001:db8:0:1::2",
                "weft-blue-ash 1 192.0.2.11 2001:db8:0:1::b",
                "weft-blue-birch 2 198.51.100.12 2001:db8:0:2::c",
                "weft-blue-outside 4 198.18.0.11 2001:db8:0:4::b",
            ]
        );
        assert_eq!(layout.segments(), [1, 2, 4]);
    }

    #[test]
    fn a_node_is_made_by_these_commands() {
        let layout = Layout::of(&spec(&[("ash", 1)])).expect("fits");
        let ash = layout.node("ash").expect("asked for");
        assert_eq!(
            layout.port_batch(ash) + &layout.node_batch(ash),
            "link add name ash mtu 1500 type veth peer name eth0 address 02:77:66:74:01:0b mtu 1500 netns weft-blue-ash\n\
             link set ash master segment.1 up\n\
             link set lo up\n\
             addr add 192.0.2.11/24 dev eth0\n\
             addr add 2001:db8:0:1::b/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 192.0.2.1 dev eth0\n\
             route add default via 2001:db8:0:1::1 dev eth0\n"
        );
    }

    #[test]
    fn an_underlay_of_one_family_has_no_address_of_the_other() {
        for (families, has, lacks, address, gateway) in [
            (Families::V4, "192.0.2.", "2001:db8:", "192.0.2.11", "192.0.2.1"),
            (Families::V6, "2001:db8:0:1:", "192.0.2.", "2001:db8:0:1::b", "2001:db8:0:1::1"),
        ] {
            let layout = Layout::of(&Spec { families, ..spec(&[("ash", 1)]) }).expect("fits");
            let ash = layout.node("ash").expect("asked for");
            let batch = layout.node_batch(ash);
            assert!(batch.matches(has).count() == 2 && !batch.contains(lacks), "{batch}");
            assert_eq!(
                (ash.address().to_string(), ash.gateway().to_string()),
                (address.into(), gateway.into())
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_rule() {
        let many: Vec<(String, u8)> = default_hosts(241).into_iter().map(|name| (name, 1)).collect();
        let many: Vec<(&str, u8)> = many.iter().map(|(name, segment)| (name.as_str(), *segment)).collect();
        let table: [(&str, Hosts<'_>, &str); 7] = [
            ("a dot", &[("a.b", 1)], "a-z, 0-9 and -"),
            ("too long", &[("sixteen-letters-", 1)], "1 to 15"),
            ("the lab's own", &[("router", 1)], "the lab's own"),
            ("an etcd member's", &[("etcd-2", 1)], "the lab's own"),
            ("twice", &[("ash", 1), ("ash", 1)], "two hosts are called ash"),
            ("nowhere", &[("ash", 4)], "there are 1 to 3"),
            ("too many", &many, "at most 240"),
        ];
        for (case, hosts, words) in table {
            let error = Layout::of(&spec(hosts)).expect_err(case);
            assert!(error.to_string().contains(words), "{case}: {error}");
        }
    }

    #[test]
    fn as_many_hosts_as_allowed_have_addresses_of_their_own() {
        let names = default_hosts(MAX_HOSTS);
        let hosts: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let layout = Layout::of(&spec(&hosts)).expect("fits");
        let mut addresses: Vec<_> = layout.nodes.iter().map(|node| node.v4).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), layout.nodes.len());
    }
}
