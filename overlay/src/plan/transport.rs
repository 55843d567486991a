//! How two hosts exchange packets of one family: directly, by VXLAN, or by UDP.
//!
//! Both hosts decide for themselves and must agree, or strict reverse-path filters drop what
//! arrives by the way not chosen. So the choice reads only what both can know, and swapping the
//! two ends changes nothing.

use std::fmt;
use std::net::IpAddr;

use weft_kernel::net::{Mac, Vni};

use crate::config::{Backend, NetworkConfig};
use crate::model::{Family, Me, Peer, Subnet, Transports, VxlanEnd};

/// What carries a packet from host to host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A plain route; the other host is the next hop.
    Direct,
    /// A VXLAN link of the kernel.
    Vxlan,
    /// Raw IP in UDP, in user space.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Vxlan => "vxlan",
            Self::Udp => "udp",
        })
    }
}

/// A transport, and which of the hosts' addresses it runs between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    /// What carries the packet.
    pub transport: Transport,
    /// The family of the addresses the hosts use between each other.
    pub outer: Family,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {}", self.transport, self.outer)
    }
}

/// Why a peer's subnet gets no way there. The other peers are not touched by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// A backend that weft does not have.
    #[error("its BackendType `{0}` is none that weft speaks (vxlan, host-gw, udp)")]
    UnknownBackend(String),
    /// `alloc`, or a flanneld that left its BackendType empty.
    #[error("its lease offers no transport (BackendType `{0}`)")]
    OffersNothing(String),
    /// A vxlan lease without usable BackendData.
    #[error("its BackendType is vxlan, but its BackendData gives no VNI and VtepMAC for {0}")]
    NoVtep(Family),
    /// Two VXLAN networks.
    #[error("its VNI is {theirs}, ours is {ours}")]
    OtherVni {
        /// In our configuration.
        ours: Vni,
        /// In its lease.
        theirs: Vni,
    },
    /// Two VXLAN ports.
    #[error("its VXLAN port is {theirs}, ours is {ours}")]
    OtherPort {
        /// In our configuration.
        ours: u16,
        /// In its record.
        theirs: u16,
    },
    /// One of the hosts has no address in a family both need.
    #[error("{0} has no public address that the other could use for {1} packets")]
    NoAddress(Whose, Family),
    /// host-gw across a router, and no tunnel that both have.
    #[error("{addr} is not on our segment, and host-gw knows no other way")]
    OffSegment {
        /// Its public address.
        addr: IpAddr,
    },
    /// Nothing both offer.
    #[error("it offers {theirs}, we offer {ours}: nothing in common")]
    NothingInCommon {
        /// Our transports, for people.
        ours: String,
        /// Its transports, for people.
        theirs: String,
    },
    /// The subnet is no part of the configured network.
    #[error("{0} is not inside the network {1}")]
    OutsideNetwork(ipnetwork::IpNetwork, ipnetwork::IpNetwork),
    /// The subnet would take packets for our own pods away.
    #[error("{0} overlaps our own subnet {1}")]
    OverlapsOurs(ipnetwork::IpNetwork, ipnetwork::IpNetwork),
    /// Two leases begin at the same address.
    #[error("its first address is also that of the lease {0}")]
    SameFirstAddress(Subnet),
    /// A tunnel to ourselves.
    #[error("its public address {0} is our own")]
    OurAddress(IpAddr),
    /// Not an address of one host.
    #[error("its public address {0} is not one host's")]
    NoHostAddress(IpAddr),
    /// Not one station's Ethernet address.
    #[error("its VtepMAC {0} is zero or a group address")]
    BadMac(Mac),
    /// Our VTEP has the same.
    #[error("its VtepMAC {0} is our own: do two hosts have one node id (a cloned machine)?")]
    OurMac(Mac),
    /// Two hosts with one VTEP MAC.
    #[error(
        "its VtepMAC {0} is also that of the lease {1}: do two hosts have one node id (a cloned machine)?"
    )]
    SameMac(Mac, Subnet),
    /// Less than IPv6 needs is left.
    #[error("IPv6 needs 1280 bytes, and {way} leaves {left} of the underlay's MTU")]
    TooSmallForV6 {
        /// The way that was chosen.
        way: Way,
        /// What it carries.
        left: u32,
    },
}

/// One of two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This host.
    Ours,
    /// The other host.
    Theirs,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "this host",
            Self::Theirs => "the peer",
        })
    }
}

/// All that the choice reads of one of the two hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// A weft host; flanneld's can do less.
    pub weft: bool,
    /// The backend it prefers, by flannel's name.
    pub backend: String,
    /// What it can.
    pub transports: Transports,
    /// Its public IPv4 address.
    pub v4: Option<IpAddr>,
    /// Its public IPv6 address.
    pub v6: Option<IpAddr>,
}

impl End {
    /// This host, as its lease describes it to others.
    pub fn ours(me: &Me, config: &NetworkConfig) -> Self {
        Self {
            weft: true,
            backend: config.backend.name().to_owned(),
            transports: crate::backend::offer(me, config),
            v4: me.public(Family::V4),
            v6: me.public(Family::V6),
        }
    }

    /// A peer. flanneld has exactly the transport of its BackendType; that it routes directly with
    /// DirectRouting follows from the configuration, which it shares with us.
    pub fn of_peer(peer: &Peer, config: &NetworkConfig) -> Self {
        let weft = peer.node.is_some();
        let transports = match (weft, peer.backend.as_str()) {
            (true, _) => peer.transports.clone(),
            (false, "vxlan") => Transports {
                vxlan: peer.transports.vxlan,
                udp: None,
                direct: matches!(config.backend, Backend::Vxlan { direct_routing: true, .. }),
            },
            (false, "host-gw") => Transports { vxlan: None, udp: None, direct: true },
            // flanneld leaves BackendType empty for udp, and its BackendData names no port.
            (false, "" | "udp") => match config.backend {
                Backend::Udp { port } => {
                    Transports { vxlan: None, udp: Some(peer.transports.udp.unwrap_or(port)), direct: false }
                }
                _ => Transports::default(),
            },
            (false, _) => Transports::default(),
        };
        Self {
            weft,
            backend: peer.backend.clone(),
            transports,
            v4: peer.public(Family::V4),
            v6: peer.public(Family::V6),
        }
    }

    fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    fn prefers_udp(&self) -> bool {
        matches!(self.backend.as_str(), "udp" | "") && self.transports.udp.is_some()
    }

    fn offers(&self) -> String {
        let t = &self.transports;
        let words = [("direct routes", t.direct), ("vxlan", t.vxlan.is_some()), ("udp", t.udp.is_some())];
        let words: Vec<_> = words.into_iter().filter(|(_, has)| *has).map(|(word, _)| word).collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
    }
}

/// The way for packets of family `inner` between two hosts; `one_segment` says that each is on the
/// other's link in that family. The order: a plain route if both are set up for it, then the tunnel
/// both prefer, then VXLAN, then UDP; each over the same family, else (weft only) over the other.
pub fn choose(inner: Family, ours: &End, theirs: &End, one_segment: bool) -> Result<Way, Skip> {
    if ours.transports.direct && theirs.transports.direct && one_segment {
        return Ok(Way { transport: Transport::Direct, outer: inner });
    }
    let order = if ours.prefers_udp() && theirs.prefers_udp() {
        [Transport::Udp, Transport::Vxlan]
    } else {
        [Transport::Vxlan, Transport::Udp]
    };
    for transport in order {
        for outer in [inner, inner.other()] {
            let way = Way { transport, outer };
            if both_can(inner, way, ours, theirs) {
                return Ok(way);
            }
        }
    }
    Err(why_not(inner, ours, theirs))
}

fn both_can(inner: Family, way: Way, a: &End, b: &End) -> bool {
    let weft = a.weft && b.weft;
    let addressed = a.public(way.outer).is_some() && b.public(way.outer).is_some();
    if !addressed || (way.outer != inner && !weft) {
        return false;
    }
    match way.transport {
        // Decided before, by the segment.
        Transport::Direct => false,
        Transport::Vxlan => match (a.transports.vxlan, b.transports.vxlan) {
            (Some(a), Some(b)) => {
                (a.vni, a.port) == (b.vni, b.port) && a.mac(way.outer).is_some() && b.mac(way.outer).is_some()
            }
            _ => false,
        },
        Transport::Udp => {
            // flanneld's udp backend knows IPv4 only.
            let spoken = weft || (inner, way.outer) == (Family::V4, Family::V4);
            spoken && a.transports.udp.is_some() && b.transports.udp.is_some()
        }
    }
}

/// The most telling reason why two ends found no way.
fn why_not(inner: Family, ours: &End, theirs: &End) -> Skip {
    if !matches!(theirs.backend.as_str(), "vxlan" | "host-gw" | "udp" | "alloc" | "") {
        return Skip::UnknownBackend(theirs.backend.clone());
    }
    for (end, whose) in [(ours, Whose::Ours), (theirs, Whose::Theirs)] {
        let reachable =
            end.public(inner).is_some() || (ours.weft && theirs.weft && end.public(inner.other()).is_some());
        if !reachable {
            return Skip::NoAddress(whose, inner);
        }
    }
    if theirs.backend == "vxlan" && theirs.transports.vxlan.is_none_or(|end| end.mac(inner).is_none()) {
        return Skip::NoVtep(inner);
    }
    if let (Some(VxlanEnd { vni, port, .. }), Some(other)) = (ours.transports.vxlan, theirs.transports.vxlan)
    {
        if vni != other.vni {
            return Skip::OtherVni { ours: vni, theirs: other.vni };
        }
        if port != other.port {
            return Skip::OtherPort { ours: port, theirs: other.port };
        }
    }
    if theirs.transports == Transports::default() {
        return Skip::OffersNothing(theirs.backend.clone());
    }
    match theirs.public(inner) {
        Some(addr) if ours.transports.direct && theirs.transports.direct => Skip::OffSegment { addr },
        _ => Skip::NothingInCommon { ours: ours.offers(), theirs: theirs.offers() },
    }
}
