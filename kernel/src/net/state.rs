//! What a host's network holds, as plain data, and the steps between two such states.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{LinkName, Mac, Vni};

/// Links, addresses, routes, permanent neighbours and FDB entries of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// By name.
    pub links: BTreeMap<LinkName, Link>,
    /// Addresses on links, once they may be used: IPv6 ones after duplicate address detection.
    pub addresses: BTreeSet<Address>,
    /// Of the addresses that are not simply permanent, what they are. Observed only, and not followed
    /// by events.
    pub passing: BTreeMap<Address, Passing>,
    /// Unicast, blackhole and unreachable routes of every table. Not modelled, and so left out: routes
    /// with several next hops, a type of service, a source prefix or an encapsulation, and IPv6's own
    /// link-local and multicast routes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Keys under which the kernel holds more than one route (IPv6 allows it, and IPv4 with
    /// `ip route append`). `routes` has the one the kernel lists first. Empty in a desired state.
    pub twins: BTreeSet<RouteKey>,
    /// Keys under which stands a route that is not modelled, such as one with several next hops.
    /// Replacing what these keys stand for would take it away. Observed only.
    pub opaque: BTreeSet<RouteKey>,
    /// Neighbours, permanent ones and learned ones that are usable (REACHABLE, STALE, DELAY, PROBE).
    pub neighbours: BTreeMap<(LinkName, IpAddr), Neighbour>,
    /// Addresses that this host answers for on a link. The kernel tells nobody when they change.
    pub proxies: BTreeSet<Proxy>,
    /// `self` entries of VXLAN links' forwarding databases (the all-zero default ones included).
    pub fdb: BTreeSet<FdbEntry>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: LinkName,
    /// The kernel's number for it. In a desired state: 0, "whatever it gets".
    pub index: u32,
    /// What sort of link it is, with what that sort needs.
    pub kind: LinkKind,
    /// Its Ethernet address; `None` where it has none (TUN) or, desired, where any will do.
    pub mac: Option<Mac>,
    /// In bytes.
    pub mtu: u32,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// The carrier is there (IFF_LOWER_UP). Observed only; a desired state holds `true`.
    pub carrier: bool,
    /// `ip link ... alias`: where weft writes whose link it is.
    pub alias: Option<String>,
    /// The bridge it is a port of.
    pub master: Option<LinkName>,
}

impl Link {
    /// Whether this link, which exists, is what making `wanted` would have made. An index, a carrier
    /// and whatever the wish leaves open (no MAC, an MTU of 0) do not count.
    pub fn is_as_wanted(&self, wanted: &Self) -> bool {
        let wish = Self {
            index: self.index,
            carrier: self.carrier,
            mac: wanted.mac.or(self.mac),
            mtu: if wanted.mtu == 0 { self.mtu } else { wanted.mtu },
            ..wanted.clone()
        };
        *self == wish
    }
}

/// The sorts of link weft cares about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel end point.
    Vxlan(Vxlan),
    /// One end of a veth pair. `peer` is given when making one: the other end's name and, to make
    /// it directly in another namespace, a descriptor-holding path such as `/proc/7/ns/net`.
    Veth,
    /// A bridge.
    Bridge,
    /// A TUN device (made with `tun`, not through [`Change`]).
    Tun,
    /// Loopback, hardware and everything else, by the kernel's word (`IFLA_INFO_KIND`), or `""`.
    Other(String),
}

/// What makes two VXLAN links different for the kernel. None of it can be changed on a live link
/// without risk: a difference means delete and make anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// The outer source address; its family is the tunnel's outer family.
    pub local: Option<IpAddr>,
    /// The link that outer packets leave by.
    pub underlay: Option<LinkName>,
    /// Source-address learning.
    pub learning: bool,
    /// Group policy extension (carries skb->mark).
    pub gbp: bool,
}

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// On which link.
    pub link: LinkName,
    /// Address and prefix length: the host part is kept (10.42.7.1/24 is not 10.42.7.0/24).
    pub network: IpNetwork,
}

/// What an address is that does not simply stay (IFA_F_*, include/uapi/linux/if_addr.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passing {
    /// It has a lifetime: by DHCP or a router advertisement (no IFA_F_PERMANENT).
    pub dynamic: bool,
    /// An IPv6 privacy address, soon to be another (IFA_F_TEMPORARY with IPv6).
    pub temporary: bool,
    /// Not to be used for anything new (IFA_F_DEPRECATED).
    pub deprecated: bool,
}

/// What the kernel tells two routes apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Routing table; 254 is main.
    pub table: u32,
    /// Destination, host bits zero.
    pub dst: IpNetwork,
    /// Priority, 0 the best. IPv6 has no 0: the kernel writes 1024, and so must a desired state.
    pub metric: u32,
}

/// A route with at most one next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it is known by.
    pub key: RouteKey,
    /// What happens to the packet.
    pub kind: RouteKind,
    /// Who made it (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// The link it leaves by.
    pub link: Option<LinkName>,
    /// The next hop is on that link even if no address says so (RTNH_F_ONLINK).
    pub onlink: bool,
    /// Preferred source address.
    pub src: Option<IpAddr>,
    /// Path MTU for this route (RTAX_MTU), in bytes.
    pub mtu: Option<u32>,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Drops it without a word.
    Blackhole,
    /// Drops it with ICMP unreachable.
    Unreachable,
    /// `local`, `broadcast`, `multicast`, `prohibit`, ...: observed, never written by weft.
    Other(u8),
}

/// An IP address's Ethernet address on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// On which link.
    pub link: LinkName,
    /// Whose address.
    pub addr: IpAddr,
    /// The Ethernet address.
    pub mac: Mac,
    /// NUD_PERMANENT: written by somebody, not learned by ARP.
    pub permanent: bool,
}

/// An IPv6 address that this host answers neighbour solicitations for on a link, as if it were its own
/// (NTF_PROXY). It takes the link's `proxy_ndp` to have an effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proxy {
    /// On which link.
    pub link: LinkName,
    /// For which address.
    pub addr: Ipv6Addr,
    /// Who made it, as with routes (NDA_PROTOCOL); 0 if it does not say.
    pub protocol: u8,
}

/// Where a VXLAN link sends frames for an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The VXLAN link.
    pub link: LinkName,
    /// Inner destination.
    pub mac: Mac,
    /// Outer destination (a remote VTEP).
    pub dst: IpAddr,
    /// NUD_PERMANENT / NOARP: not learned.
    pub permanent: bool,
}

/// One step from one state to another. `Display` prints one readable line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a link (VXLAN, bridge or veth), with MAC, MTU, alias and master, and brings it up if asked.
    AddLink(Link),
    /// Makes a veth pair, the second end in the namespace behind the path, if one is given.
    AddVethPair {
        /// The end that stays here.
        host: Link,
        /// The other end.
        peer: Link,
        /// Where the other end goes: a path such as `/run/netns/pod`.
        peer_netns: Option<std::path::PathBuf>,
    },
    /// Deletes a link with all that hangs on it.
    DeleteLink(LinkName),
    /// Gives a link another name, live where the kernel can (6.2), else down and up again.
    RenameLink {
        /// The name it has.
        from: LinkName,
        /// The name it gets.
        to: LinkName,
    },
    /// Changes what can change on a live link.
    SetLink(LinkName, LinkPatch),
    /// Adds an address.
    AddAddress(Address),
    /// Deletes an address.
    DeleteAddress(Address),
    /// Makes a route or overwrites the one with the same key.
    ReplaceRoute(Route),
    /// Deletes exactly this route (kind, protocol and next hop must match).
    DeleteRoute(Route),
    /// Makes a permanent neighbour or overwrites it.
    ReplaceNeighbour(Neighbour),
    /// Deletes a neighbour.
    DeleteNeighbour(Neighbour),
    /// Answers for an address on a link.
    AddProxy(Proxy),
    /// No longer answers for an address on a link.
    DeleteProxy(Proxy),
    /// Makes the one FDB entry of this MAC on this link.
    ReplaceFdb(FdbEntry),
    /// Deletes an FDB entry.
    DeleteFdb(FdbEntry),
}

/// What [`Change::SetLink`] changes; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkPatch {
    /// Ethernet address. Setting one, even the one it has, takes all the link's neighbours away,
    /// permanent ones too (net/core/neighbour.c, `neigh_changeaddr`).
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Administrative state.
    pub up: Option<bool>,
    /// Alias.
    pub alias: Option<String>,
    /// Bridge to join.
    pub master: Option<LinkName>,
}

/// What the kernel says when somebody, we included, changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link is new or different.
    Link(Link),
    /// A link is gone, with all that hung on it.
    LinkGone(LinkName),
    /// An address is there.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is there.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
    /// A route that [`State`] does not model came or went, under a key that it might share with one
    /// that is modelled.
    OtherRoute(RouteKey),
    /// A neighbour is there.
    Neighbour(Neighbour),
    /// A neighbour is gone or no longer usable.
    NeighbourGone(LinkName, IpAddr),
    /// An FDB entry is there.
    Fdb(FdbEntry),
    /// An FDB entry is gone.
    FdbGone(FdbEntry),
    /// Events were lost (ENOBUFS): only a fresh [`super::Net::observe`] tells the truth.
    Lost,
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unicast => f.write_str("unicast"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Other(raw) => write!(f, "type {raw}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != RouteKind::Unicast {
            write!(f, "{} ", self.kind)?;
        }
        write!(f, "{}", self.key.dst)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(link) = &self.link {
            write!(f, " dev {link}")?;
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        if let Some(src) = self.src {
            write!(f, " src {src}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if self.key.table != 254 {
            write!(f, " table {}", self.key.table)?;
        }
        if self.key.metric != 0 {
            write!(f, " metric {}", self.key.metric)?;
        }
        write!(f, " proto {}", self.protocol)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match &self.kind {
            LinkKind::Vxlan(vxlan) => write!(f, " {vxlan}")?,
            LinkKind::Veth => f.write_str(" veth")?,
            LinkKind::Bridge => f.write_str(" bridge")?,
            LinkKind::Tun => f.write_str(" tun")?,
            LinkKind::Other(kind) if kind.is_empty() => {}
            LinkKind::Other(kind) => write!(f, " {kind}")?,
        }
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        if self.mtu != 0 {
            write!(f, " mtu {}", self.mtu)?;
        }
        if let Some(master) = &self.master {
            write!(f, " master {master}")?;
        }
        f.write_str(if self.up { " up" } else { " down" })?;
        if let Some(alias) = &self.alias {
            write!(f, " alias {alias}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Vxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vxlan vni {} port {}", self.vni, self.port)?;
        if let Some(local) = self.local {
            write!(f, " local {local}")?;
        }
        if let Some(underlay) = &self.underlay {
            write!(f, " dev {underlay}")?;
        }
        if self.learning {
            f.write_str(" learning")?;
        }
        if self.gbp {
            f.write_str(" gbp")?;
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.network, self.link)
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lladdr {} dev {}", self.addr, self.mac, self.link)
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {} proto {}", self.addr, self.link, self.protocol)
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dst {} dev {}", self.mac, self.dst, self.link)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink(link) => write!(f, "add link {link}"),
            Self::AddVethPair { host, peer, .. } => write!(f, "add veth {} peer {}", host.name, peer.name),
            Self::DeleteLink(name) => write!(f, "delete link {name}"),
            Self::RenameLink { from, to } => write!(f, "rename link {from} to {to}"),
            Self::SetLink(name, patch) => {
                write!(f, "set link {name}")?;
                if let Some(mac) = patch.mac {
                    write!(f, " address {mac}")?;
                }
                if let Some(mtu) = patch.mtu {
                    write!(f, " mtu {mtu}")?;
                }
                if let Some(up) = patch.up {
                    f.write_str(if up { " up" } else { " down" })?;
                }
                match patch.alias.as_deref() {
                    Some("") => f.write_str(" without alias")?,
                    Some(alias) => write!(f, " alias {alias}")?,
                    None => {}
                }
                if let Some(master) = &patch.master {
                    write!(f, " master {master}")?;
                }
                Ok(())
            }
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::DeleteAddress(address) => write!(f, "delete address {address}"),
            Self::ReplaceRoute(route) => write!(f, "replace route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::ReplaceNeighbour(neighbour) => write!(f, "replace neighbour {neighbour}"),
            Self::DeleteNeighbour(neighbour) => write!(f, "delete neighbour {neighbour}"),
            Self::AddProxy(proxy) => write!(f, "add proxy {proxy}"),
            Self::DeleteProxy(proxy) => write!(f, "delete proxy {proxy}"),
            Self::ReplaceFdb(entry) => write!(f, "replace fdb {entry}"),
            Self::DeleteFdb(entry) => write!(f, "delete fdb {entry}"),
        }
    }
}
