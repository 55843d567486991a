//! What a host adds to the model: who it is, its addresses, and how its proxy is set. Plain data.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{Family, Model, NodeName, family_of};

/// A host, as its proxy sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Its name in the cluster. Endpoints on the node of that name are local.
    pub node: NodeName,
    /// Its zone, if its Node has one.
    pub zone: Option<String>,
    /// Every address it has, loopback addresses aside.
    pub addresses: BTreeSet<IpAddr>,
    /// The addresses it is known by, at most one per family.
    pub primary: Vec<IpAddr>,
    /// How packets of its own pods are told from others.
    pub local_pods: LocalPods,
    /// How its proxy is set.
    pub settings: Settings,
}

/// What the kernel says of a host, as far as services care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every address, loopback addresses aside.
    pub addresses: BTreeSet<IpAddr>,
    /// The addresses it is known by, for families in which its Node gives none.
    pub primary: Vec<IpAddr>,
}

/// How a proxy is set, in kube-proxy's terms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `nodePortAddresses`.
    pub node_ports: NodePortAddresses,
    /// `detectLocalMode` with what belongs to it.
    pub detect_local: DetectLocal,
    /// `masqueradeAll`: every packet to a cluster address is masqueraded.
    pub masquerade_all: bool,
    /// What becomes of packets to cluster addresses that no service answers at.
    pub strict: Option<Strict>,
    /// By which hash a client's address finds its slot: what the mode can compute.
    pub client_hash: ClientHash,
    /// New connections are counted for each endpoint, where the mode can do so.
    pub count_connections: bool,
    /// Connections over TCP are carried by this process, in its own name: endpoints see an address of
    /// this host, and node ports at loopback addresses need nothing of the kernel.
    pub userspace: bool,
}

/// By which hash a client's address finds its slot, with `weft.dev/balance: client-hash`. Neither may
/// ever change, or clients would move when weft is upgraded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientHash {
    /// nftables': the kernel's `jhash`.
    #[default]
    Jhash,
    /// iptables': MurmurHash3's 32-bit finalizer. The words of an IPv6 address are folded into one
    /// before, each time multiplied by 0x9e3779b1 and put together by "exclusive or" with the next.
    Murmur,
}

/// Packets to ports of a cluster address that its service does not have are rejected (nftables mode).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strict {
    /// In these ranges, packets to addresses that no service has are dropped.
    pub service_cidrs: Vec<IpNetwork>,
}

/// `detectLocalMode`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum DetectLocal {
    /// Not set: no packet counts as a local pod's.
    #[default]
    Off,
    /// `ClusterCIDR`: by the range of all pods of the cluster.
    ClusterCidr(Vec<IpNetwork>),
    /// `NodeCIDR`: by the ranges that the Node has for its pods.
    NodeCidr,
    /// `BridgeInterface`: by the link that the packet came in on.
    Bridge(String),
    /// `InterfaceNamePrefix`: by the beginning of that link's name.
    InterfacePrefix(String),
}

/// How packets of local pods are told from others.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum LocalPods {
    /// They are not.
    #[default]
    Unknown,
    /// Their source is in one of these. A family without a range is as if unknown.
    Ranges(Vec<IpNetwork>),
    /// They come in on the link of that name.
    Link(String),
    /// They come in on a link whose name begins so.
    LinkPrefix(String),
}

/// `nodePortAddresses`: at which of the host's addresses node ports are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddresses(Vec<NodePortAddress>);

/// An entry of `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// `all`: every address of the host but loopback addresses.
    All,
    /// `primary`: the addresses that the host is known by.
    Primary,
    /// `localhost`: 127.0.0.0/8. There is no such thing for IPv6: the kernel routes nothing to `::1`. In
    /// userspace mode it is that address, too, and both for TCP alone.
    Localhost,
    /// Those of the host's addresses that are in the range. 0.0.0.0/0 and ::/0 are `all` for their
    /// family.
    Range(IpNetwork),
}

/// Why a string is no entry of `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no place for node ports; use `primary`, `localhost`, `all` or a range such as 192.0.2.0/24"
)]
pub struct BadNodePortAddress(pub String);

impl Host {
    /// The host `node` of the model, with what its kernel says. A host whose Node is not known (yet)
    /// has no zone and no range of pods.
    pub fn on(model: &Model, node: NodeName, observed: Observed, settings: Settings) -> Self {
        let known = model.node(&node).cloned().unwrap_or_default();
        let mut primary = known.addresses;
        for address in observed.primary {
            if !primary.iter().any(|known| family_of(*known) == family_of(address)) {
                primary.push(address);
            }
        }
        let local_pods = match &settings.detect_local {
            DetectLocal::Off => LocalPods::Unknown,
            DetectLocal::ClusterCidr(ranges) => LocalPods::Ranges(ranges.clone()),
            DetectLocal::NodeCidr => LocalPods::Ranges(known.pod_cidrs),
            DetectLocal::Bridge(link) => LocalPods::Link(link.clone()),
            DetectLocal::InterfacePrefix(prefix) => LocalPods::LinkPrefix(prefix.clone()),
        };
        Self { node, zone: known.zone, addresses: observed.addresses, primary, local_pods, settings }
    }

    /// Whether the address is one of this host's.
    pub fn owns(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// The address it is known by in that family.
    pub fn primary(&self, family: Family) -> Option<IpAddr> {
        self.primary.iter().copied().find(|address| family_of(*address) == family)
    }
}

impl NodePortAddresses {
    /// The entries as a person wrote them; none are the default, `primary`.
    ///
    /// # Errors
    /// Names the entry that is none.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, BadNodePortAddress> {
        let entries: Result<Vec<_>, _> = entries.into_iter().map(NodePortAddress::parse).collect();
        entries.map(|entries| if entries.is_empty() { Self::default() } else { Self(entries) })
    }

    /// The same without loopback addresses.
    pub fn without_localhost(&self) -> Self {
        let stays = |entry: &&NodePortAddress| match entry {
            NodePortAddress::Localhost => false,
            NodePortAddress::Range(range) => !range.ip().is_loopback(),
            NodePortAddress::All | NodePortAddress::Primary => true,
        };
        let mut entries: Vec<_> = self.0.iter().filter(stays).cloned().collect();
        if entries.is_empty() {
            // An empty list would be the default. Nobody has these addresses (RFC 5737, RFC 3849).
            let nowhere = ["192.0.2.0/32", "2001:db8::/128"];
            entries = nowhere.iter().filter_map(|range| NodePortAddress::parse(range).ok()).collect();
        }
        Self(entries)
    }

    /// The entries that say something about a family. A list of nothing but ranges, none of them of
    /// this family, means `all` here: so kube-proxy reads it.
    pub fn in_family(&self, family: Family) -> Vec<NodePortAddress> {
        let of_family = |entry: &&NodePortAddress| match entry {
            NodePortAddress::Range(range) => range.is_ipv4() == (family == Family::V4),
            _ => true,
        };
        let entries: Vec<_> = self.0.iter().filter(of_family).cloned().collect();
        if entries.is_empty() { vec![NodePortAddress::All] } else { entries }
    }
}

/// kube-proxy's default in nftables mode.
impl Default for NodePortAddresses {
    fn default() -> Self {
        Self(vec![NodePortAddress::Primary])
    }
}

impl NodePortAddress {
    fn parse(text: &str) -> Result<Self, BadNodePortAddress> {
        let wrong = || BadNodePortAddress(text.to_owned());
        match text {
            "all" => Ok(Self::All),
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            range if range.contains('/') => range.parse().map(Self::Range).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Node, Object};

    #[test]
    fn what_the_node_says_of_itself_comes_before_what_was_observed() {
        let mut model = Model::default();
        let node = NodeName::new("ash");
        let observed = Observed {
            addresses: BTreeSet::from(["192.0.2.1".parse().unwrap()]),
            primary: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        };
        let settings = Settings { detect_local: DetectLocal::NodeCidr, ..Settings::default() };
        let unknown = Host::on(&model, node.clone(), observed.clone(), settings.clone());
        assert_eq!(unknown.primary, observed.primary);
        assert_eq!(unknown.local_pods, LocalPods::Ranges(Vec::new()));

        let known = Node {
            zone: Some("east".to_owned()),
            addresses: vec!["198.51.100.1".parse().unwrap()],
            pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
            leaving: false,
        };
        model.apply(Change::Put(Object::Node(node.clone(), known.clone())));
        let host = Host::on(&model, node, observed, settings);
        assert_eq!(host.zone, known.zone);
        assert_eq!(host.primary(Family::V4), Some("198.51.100.1".parse().unwrap()));
        assert_eq!(host.primary(Family::V6), Some("2001:db8::1".parse().unwrap()), "the node gives none");
        assert_eq!(host.local_pods, LocalPods::Ranges(known.pod_cidrs));
    }

    #[test]
    fn node_port_addresses_are_words_and_ranges() {
        let v4 =
            |list: &[&str]| NodePortAddresses::parse(list.iter().copied()).map(|it| it.in_family(Family::V4));
        let range = |text: &str| NodePortAddress::Range(text.parse().unwrap());
        assert_eq!(v4(&[]), Ok(vec![NodePortAddress::Primary]));
        assert_eq!(v4(&["all", "localhost"]), Ok(vec![NodePortAddress::All, NodePortAddress::Localhost]));
        assert_eq!(v4(&["192.0.2.0/24", "2001:db8::/32"]), Ok(vec![range("192.0.2.0/24")]));
        assert_eq!(v4(&["2001:db8::/32"]), Ok(vec![NodePortAddress::All]), "nothing said about this family");
        assert_eq!(v4(&["2001:db8::/32", "primary"]), Ok(vec![NodePortAddress::Primary]));
        for wrong in ["everywhere", "192.0.2.1", "192.0.2.0/40", ""] {
            assert_eq!(v4(&[wrong]), Err(BadNodePortAddress(wrong.to_owned())));
        }
    }
}
