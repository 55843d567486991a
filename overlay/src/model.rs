//! What a host knows of the network: itself, its lease, the other hosts. Plain data; no clock, no handle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use weft_kernel::net::{LinkName, Mac, Vni};

use crate::config::NetworkConfig;

/// Who a host is, for good: does not change with its address or name. At most 64 characters of
/// `[A-Za-z0-9._-]`, by default the machine id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

/// Why a string is no [`NodeId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no node id: 1 to 64 of the characters A-Z a-z 0-9 . _ -")]
pub struct BadNodeId(pub String);

impl NodeId {
    /// The id as it stands in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeId {
    type Error = BadNodeId;
    fn try_from(raw: String) -> Result<Self, BadNodeId> {
        let clean = raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if (1..=64).contains(&raw.len()) && clean { Ok(Self(raw)) } else { Err(BadNodeId(raw)) }
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one lease covers: a subnet in one family or in both. It is also the lease's key in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    /// The IPv4 subnet, host bits zero.
    pub v4: Option<Ipv4Network>,
    /// The IPv6 subnet, host bits zero.
    pub v6: Option<Ipv6Network>,
}

/// An IP version: of the packets that pods send (inner), or of those between hosts (outer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The one it is not.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Subnet {
    /// Its network of one family.
    pub fn of(&self, family: Family) -> Option<IpNetwork> {
        match family {
            Family::V4 => self.v4.map(IpNetwork::V4),
            Family::V6 => self.v6.map(IpNetwork::V6),
        }
    }

    /// Its networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let (v4, v6) = (self.v4.map(IpNetwork::V4), self.v6.map(IpNetwork::V6));
        v4.into_iter().chain(v6)
    }

    /// Do they share an address in either family?
    pub fn overlaps(&self, other: &Subnet) -> bool {
        let v4 = self.v4.zip(other.v4).is_some_and(|(a, b)| a.overlaps(b));
        let v6 = self.v6.zip(other.v6).is_some_and(|(a, b)| a.overlaps(b));
        v4 || v6
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4},{v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => f.write_str("(empty)"),
        }
    }
}

/// A way by which a host can be reached, with what the sender must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transports {
    /// By VXLAN.
    pub vxlan: Option<VxlanEnd>,
    /// By raw IP in UDP, at this port.
    pub udp: Option<u16>,
    /// By a plain route, if the hosts share a segment: its backend is host-gw, or vxlan with
    /// DirectRouting.
    pub direct: bool,
}

/// A VXLAN tunnel end point, ours or another host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanEnd {
    /// Network identifier; two ends talk only if it is equal.
    pub vni: Vni,
    /// UDP port it listens on; flannel's leases do not say, so ours is assumed.
    pub port: u16,
    /// Inner Ethernet address of the end whose outer family is IPv4.
    pub mac_v4: Option<Mac>,
    /// Inner Ethernet address of the end whose outer family is IPv6.
    pub mac_v6: Option<Mac>,
}

impl VxlanEnd {
    /// Inner Ethernet address of the end with this outer family.
    pub fn mac(&self, outer: Family) -> Option<Mac> {
        match outer {
            Family::V4 => self.mac_v4,
            Family::V6 => self.mac_v6,
        }
    }
}

/// Another host, as its lease describes it. A lease in our own name is never here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which addresses live there.
    pub subnet: Subnet,
    /// Its identity, when it is a weft host; flanneld's have none.
    pub node: Option<NodeId>,
    /// `PublicIP`; `None` when it is 0.0.0.0.
    pub public_v4: Option<Ipv4Addr>,
    /// `PublicIPv6`.
    pub public_v6: Option<Ipv6Addr>,
    /// `BackendType` as written: the backend it prefers.
    pub backend: String,
    /// Every way it says it can be reached.
    pub transports: Transports,
}

/// This host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// Who we are.
    pub node: NodeId,
    /// The network's name on this host (`--network`): in aliases, tables, paths.
    pub network: String,
    /// What we lease; `None` before, or after it was lost.
    pub subnet: Option<Subnet>,
    /// The address other hosts reach us at.
    pub public_v4: Option<Ipv4Addr>,
    /// The same in IPv6.
    pub public_v6: Option<Ipv6Addr>,
    /// The link that traffic to other hosts leaves by.
    pub underlay: Underlay,
    /// A VTEP MAC taken over from flannel's link, kept as long as peers may know it.
    pub adopted_mac_v4: Option<Mac>,
    /// The same for flannel's IPv6 link.
    pub adopted_mac_v6: Option<Mac>,
}

/// The link that traffic to other hosts leaves by, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Its name.
    pub link: LinkName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its own addresses with their prefixes: who is on the same segment.
    pub addresses: BTreeSet<IpNetwork>,
}

/// Everything the plan needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// This host.
    pub me: Me,
    /// The network's configuration in force.
    pub config: NetworkConfig,
    /// The other hosts in the data path, by subnet.
    pub peers: BTreeMap<Subnet, Peer>,
    /// Masquerade pod traffic that leaves the network (`--ip-masq`).
    pub masquerade: bool,
    /// Masquerade with fully random ports (unless `--ip-masq-fully-random-disable`).
    pub masquerade_random: bool,
    /// Destinations, beside the network itself, that see pods' own addresses.
    pub non_masquerade: BTreeSet<IpNetwork>,
    /// Accept forwarded pod traffic (`--iptables-forward-rules`).
    pub forward_accept: bool,
    /// Refuse tunnel packets whose outer and inner source do not belong together.
    pub anti_spoofing: bool,
    /// Inner sources, beside the sender's own, that any peer may send from.
    pub extra_sources: BTreeSet<IpNetwork>,
    /// Blackhole our own subnet, so that packets to no pod do not loop (`--ip-blackhole-route`).
    pub blackhole: bool,
}

impl Me {
    /// The address of one family that other hosts reach us at.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.public_v4.map(IpAddr::V4),
            Family::V6 => self.public_v6.map(IpAddr::V6),
        }
    }
}

impl Peer {
    /// Its public address of one family.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.public_v4.map(IpAddr::V4),
            Family::V6 => self.public_v6.map(IpAddr::V6),
        }
    }

    /// Its public addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (v4, v6) = (self.public_v4.map(IpAddr::V4), self.public_v6.map(IpAddr::V6));
        v4.into_iter().chain(v6)
    }
}
