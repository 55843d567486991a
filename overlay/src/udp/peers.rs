//! Who is where: the peers as plain data, and compiled for lookups that take no lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::counters::PeerLive;
use crate::model::{Model, Peer, Subnet};
use crate::plan::UdpPlan;

/// Everything the data path has to know of the network. Plain data; [`super::Tunnel::update`]
/// swaps it live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTable {
    /// What we lease. Its network addresses (10.42.7.0, fd00:7::) are the sources of our ICMP.
    pub own: Subnet,
    /// The whole pod networks: what lies in them and not in `own` is never taken in from a peer,
    /// because it could only leave by the tunnel again.
    pub networks: BTreeSet<IpNetwork>,
    /// The other hosts.
    pub peers: BTreeMap<Subnet, PeerEnd>,
    /// Drop packets whose outer and inner source do not belong together.
    pub anti_spoofing: bool,
    /// Inner sources that any known peer may send from, beside its own.
    pub extra_sources: BTreeSet<IpNetwork>,
}

/// The other end of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerEnd {
    /// Where packets for its IPv4 subnet are sent; `None`: not by this tunnel.
    pub v4_by: Option<SocketAddr>,
    /// The same for its IPv6 subnet. The outer family need not be the inner one.
    pub v6_by: Option<SocketAddr>,
    /// Its public addresses, those above included or not: the outer sources its packets may come
    /// from, and inner sources that it may use.
    pub addresses: BTreeSet<IpAddr>,
}

impl PeerTable {
    /// The table for what was planned. A peer that we reach in another way may still send by this
    /// tunnel (it decides for itself), so all are in.
    pub fn new(model: &Model, plan: &UdpPlan) -> Self {
        let by = |network: Option<IpNetwork>| network.and_then(|n| plan.peers.get(&n).copied());
        let end = |peer: &Peer| PeerEnd {
            v4_by: by(peer.subnet.v4.map(IpNetwork::V4)),
            v6_by: by(peer.subnet.v6.map(IpNetwork::V6)),
            addresses: peer.addresses().collect(),
        };
        let v4 = model.config.v4.map(|pool| IpNetwork::V4(pool.network));
        let v6 = model.config.v6.map(|pool| IpNetwork::V6(pool.network));
        Self {
            own: model.me.subnet.unwrap_or(Subnet { v4: None, v6: None }),
            networks: v4.into_iter().chain(v6).collect(),
            peers: model.peers.iter().map(|(subnet, peer)| (*subnet, end(peer))).collect(),
            anti_spoofing: model.anti_spoofing,
            extra_sources: model.extra_sources.clone(),
        }
    }
}

/// A [`PeerTable`], compiled. Immutable: a change is a new one.
#[derive(Debug)]
pub(super) struct Routes {
    peers: Vec<Source>,
    targets: Vec<Target>,
    v4: Ranges,
    v6: Ranges,
    /// By outer source address. Several peers may share one behind a NAT.
    senders: HashMap<IpAddr, Vec<usize>>,
    own: Subnet,
    networks: Vec<IpNetwork>,
    anti_spoofing: bool,
    extra_sources: Vec<IpNetwork>,
}

/// One peer, as whence packets come.
#[derive(Debug)]
pub(super) struct Source {
    /// What it leases.
    pub(super) subnet: Subnet,
    /// What has happened to its packets.
    pub(super) counters: Arc<PeerLive>,
    networks: Vec<IpNetwork>,
}

/// One peer's subnet, as whither packets go.
#[derive(Debug)]
pub(super) struct Target {
    /// Where they are sent.
    pub(super) endpoint: SocketAddr,
    /// The peer's.
    pub(super) counters: Arc<PeerLive>,
}

/// Why a received packet is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The outer source is no peer's address.
    UnknownSender,
    /// The inner source is not one that this peer may use.
    Spoofed {
        /// The peer.
        peer: usize,
    },
    /// The inner destination is another host's.
    NotOurs {
        /// The peer that sent it, if it is known.
        peer: Option<usize>,
    },
}

impl Routes {
    /// Compiles a table. Peers that were there before keep their counters.
    pub(super) fn compile(table: &PeerTable, before: Option<&Routes>) -> Self {
        let old: HashMap<Subnet, &Arc<PeerLive>> = before
            .iter()
            .flat_map(|routes| &routes.peers)
            .map(|peer| (peer.subnet, &peer.counters))
            .collect();
        let mut routes = Self {
            peers: Vec::new(),
            targets: Vec::new(),
            v4: Ranges::default(),
            v6: Ranges::default(),
            senders: HashMap::new(),
            own: table.own,
            networks: table.networks.iter().copied().collect(),
            anti_spoofing: table.anti_spoofing,
            extra_sources: table.extra_sources.iter().copied().collect(),
        };
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (index, (subnet, end)) in table.peers.iter().enumerate() {
            let counters = old.get(subnet).map_or_else(Arc::default, |live| Arc::clone(live));
            let ways = [(subnet.v4.map(IpNetwork::V4), end.v4_by), (subnet.v6.map(IpNetwork::V6), end.v6_by)];
            for (network, by) in ways {
                if let (Some(network), Some(endpoint)) = (network, by) {
                    let spans = if network.is_ipv4() { &mut v4 } else { &mut v6 };
                    spans.push((network, routes.targets.len()));
                    routes.targets.push(Target { endpoint, counters: Arc::clone(&counters) });
                }
            }
            let endpoints = [end.v4_by, end.v6_by].into_iter().flatten().map(|endpoint| endpoint.ip());
            let outer = end.addresses.iter().copied().chain(endpoints);
            for address in outer.map(|address| address.to_canonical()).collect::<BTreeSet<_>>() {
                routes.senders.entry(address).or_default().push(index);
            }
            let addresses = end.addresses.iter().map(|address| (*address).into());
            let networks = subnet.networks().chain(addresses).collect();
            routes.peers.push(Source { subnet: *subnet, counters, networks });
        }
        routes.v4 = Ranges::new(v4.into_iter());
        routes.v6 = Ranges::new(v6.into_iter());
        routes
    }

    /// Which target an inner destination belongs to: longest prefix first.
    pub(super) fn to(&self, dst: IpAddr) -> Option<usize> {
        match dst {
            IpAddr::V4(dst) => self.v4.find(u32::from(dst).into()),
            IpAddr::V6(dst) => self.v6.find(dst.into()),
        }
    }

    /// The targets, by the number that [`Routes::to`] gives.
    pub(super) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The peers, by the number that [`Routes::admit`] gives.
    pub(super) fn peers(&self) -> &[Source] {
        &self.peers
    }

    /// Who may have sent a datagram from this outer address.
    pub(super) fn senders(&self, outer: IpAddr) -> &[usize] {
        self.senders.get(&outer.to_canonical()).map_or(&[], Vec::as_slice)
    }

    /// Decides on a received packet; `senders` is what [`Routes::senders`] said. `Ok` holds the peer
    /// that it is accounted to.
    pub(super) fn admit(
        &self,
        senders: &[usize],
        src: IpAddr,
        dst: IpAddr,
    ) -> Result<Option<usize>, Refusal> {
        // Our own subnet's packets never come from outside: true even where sources are not checked,
        // since the TUN accepts local sources for the sake of our ICMP.
        if self.own.networks().any(|network| network.contains(src)) {
            return Err(match senders.first() {
                Some(peer) => Refusal::Spoofed { peer: *peer },
                None => Refusal::UnknownSender,
            });
        }
        let owns = |index: &&usize| self.peers[**index].networks.iter().any(|network| network.contains(src));
        let peer = match senders.iter().find(owns).or(senders.first()).copied() {
            None if self.anti_spoofing => return Err(Refusal::UnknownSender),
            None => None,
            Some(peer) => {
                let known = self.peers[peer].networks.iter().chain(&self.extra_sources);
                if self.anti_spoofing && !known.into_iter().any(|network| network.contains(src)) {
                    return Err(Refusal::Spoofed { peer });
                }
                Some(peer)
            }
        };
        let contains = |network: IpNetwork| network.contains(dst);
        let ours = self.own.networks().any(contains);
        let would_loop = self.networks.iter().copied().any(contains) || self.to(dst).is_some();
        if would_loop && !ours { Err(Refusal::NotOurs { peer }) } else { Ok(peer) }
    }

    /// The address our ICMP to this destination comes from.
    pub(super) fn icmp_source(&self, to: IpAddr) -> Option<IpAddr> {
        match to {
            IpAddr::V4(_) => self.own.v4.map(|subnet| subnet.network().into()),
            IpAddr::V6(_) => self.own.v6.map(|subnet| subnet.network().into()),
        }
    }
}

/// Networks, possibly nested, flattened into ranges of which each has one owner: a lookup is one
/// binary search.
#[derive(Debug, Default)]
struct Ranges {
    /// Where each range begins; it ends where the next begins.
    starts: Vec<u128>,
    owners: Vec<Option<usize>>,
}

impl Ranges {
    fn new(networks: impl Iterator<Item = (IpNetwork, usize)>) -> Self {
        let mut spans: Vec<(u128, u128, usize)> =
            networks.map(|(network, owner)| (number(network.network()), last(network), owner)).collect();
        // A network comes before those nested in it.
        spans.sort_by_key(|(first, last, _)| (*first, std::cmp::Reverse(*last)));
        let mut ranges = Self::default();
        let mut around: Vec<(u128, usize)> = Vec::new();
        for (first, last, owner) in spans {
            ranges.leave(&mut around, |end| end < first);
            ranges.boundary(first, Some(owner));
            around.push((last, owner));
        }
        ranges.leave(&mut around, |_| true);
        ranges
    }

    fn find(&self, address: u128) -> Option<usize> {
        let after = self.starts.partition_point(|start| *start <= address);
        self.owners.get(after.checked_sub(1)?).copied().flatten()
    }

    /// Closes the networks that end, the innermost first; behind each, the one around it goes on.
    fn leave(&mut self, around: &mut Vec<(u128, usize)>, ends: impl Fn(u128) -> bool) {
        while let Some((end, _)) = around.pop_if(|(end, _)| ends(*end)) {
            let outer = around.last().map(|(_, owner)| *owner);
            if let Some(next) = end.checked_add(1) {
                self.boundary(next, outer);
            }
        }
    }

    fn boundary(&mut self, start: u128, owner: Option<usize>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.owners.pop();
        }
        self.starts.push(start);
        self.owners.push(owner);
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn last(network: IpNetwork) -> u128 {
    number(match network {
        IpNetwork::V4(network) => network.broadcast().into(),
        IpNetwork::V6(network) => network.broadcast().into(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnetwork::Ipv4Network;
    use proptest::prelude::*;

    use super::*;

    fn subnet(v4: &str, v6: Option<&str>) -> Subnet {
        Subnet { v4: Some(v4.parse().unwrap()), v6: v6.map(|raw| raw.parse().unwrap()) }
    }

    fn end(addresses: &[&str]) -> PeerEnd {
        let addresses: BTreeSet<IpAddr> = addresses.iter().map(|raw| raw.parse().unwrap()).collect();
        let by = Some(SocketAddr::new(*addresses.first().unwrap(), 8285));
        PeerEnd { v4_by: by, v6_by: by, addresses }
    }

    fn table() -> PeerTable {
        PeerTable {
            own: subnet("10.42.7.0/24", Some("fd00:7::/64")),
            networks: ["10.42.0.0/16".parse().unwrap(), "fd00::/16".parse().unwrap()].into(),
            peers: [
                (subnet("10.42.8.0/24", Some("fd00:8::/64")), end(&["192.0.2.8", "2001:db8::8"])),
                (subnet("10.42.9.0/24", None), end(&["192.0.2.9"])),
                // Two hosts behind one NAT.
                (subnet("10.42.10.0/24", None), end(&["198.51.100.1"])),
                (subnet("10.42.11.0/24", None), end(&["198.51.100.1"])),
            ]
            .into(),
            anti_spoofing: true,
            extra_sources: ["203.0.113.0/24".parse().unwrap()].into(),
        }
    }

    #[test]
    fn a_packet_is_taken_in_when_outer_and_inner_source_belong_together() {
        let routes = Routes::compile(&table(), None);
        let ours = "10.42.7.5";
        let peer = |v4: &str| {
            let wanted: Ipv4Network = v4.parse().unwrap();
            routes.peers().iter().position(|peer| peer.subnet.v4 == Some(wanted)).unwrap()
        };
        let (eight, nine, eleven) = (peer("10.42.8.0/24"), peer("10.42.9.0/24"), peer("10.42.11.0/24"));
        let table = [
            ("its pod", "192.0.2.8", "10.42.8.3", ours, Ok(Some(eight))),
            ("over its other address", "2001:db8::8", "10.42.8.3", ours, Ok(Some(eight))),
            ("as a mapped address", "::ffff:192.0.2.8", "10.42.8.3", ours, Ok(Some(eight))),
            ("its IPv6 pod", "192.0.2.8", "fd00:8::3", "fd00:7::5", Ok(Some(eight))),
            ("the host itself", "192.0.2.8", "192.0.2.8", ours, Ok(Some(eight))),
            ("a listed network", "192.0.2.9", "203.0.113.4", ours, Ok(Some(nine))),
            ("behind a shared address", "198.51.100.1", "10.42.11.4", ours, Ok(Some(eleven))),
            ("another's pod", "192.0.2.8", "10.42.9.3", ours, Err(Refusal::Spoofed { peer: eight })),
            ("our own pod", "192.0.2.8", "10.42.7.3", ours, Err(Refusal::Spoofed { peer: eight })),
            ("anywhere", "192.0.2.8", "1.1.1.1", ours, Err(Refusal::Spoofed { peer: eight })),
            ("a stranger as us", "192.0.2.66", "10.42.7.3", ours, Err(Refusal::UnknownSender)),
            ("a stranger", "192.0.2.66", "10.42.8.3", ours, Err(Refusal::UnknownSender)),
            (
                "for a third",
                "192.0.2.8",
                "10.42.8.3",
                "10.42.9.1",
                Err(Refusal::NotOurs { peer: Some(eight) }),
            ),
            (
                "for nobody",
                "192.0.2.8",
                "10.42.8.3",
                "10.42.99.1",
                Err(Refusal::NotOurs { peer: Some(eight) }),
            ),
            ("for the host", "192.0.2.8", "10.42.8.3", "192.0.2.7", Ok(Some(eight))),
        ];
        for (case, outer, src, dst, verdict) in table {
            let senders = routes.senders(outer.parse().unwrap());
            assert_eq!(routes.admit(senders, src.parse().unwrap(), dst.parse().unwrap()), verdict, "{case}");
        }
    }

    #[test]
    fn without_anti_spoofing_only_loops_and_our_own_sources_are_refused() {
        let routes = Routes::compile(&PeerTable { anti_spoofing: false, ..table() }, None);
        let (src, ours): (IpAddr, IpAddr) = ("1.1.1.1".parse().unwrap(), "10.42.7.5".parse().unwrap());
        assert_eq!(routes.admit(&[], src, ours), Ok(None));
        assert_eq!(routes.admit(&[], ours, ours), Err(Refusal::UnknownSender), "never as ourselves");
        let third = "10.42.9.1".parse().unwrap();
        assert_eq!(routes.admit(&[], src, third), Err(Refusal::NotOurs { peer: None }));
    }

    #[test]
    fn counters_outlive_a_new_table() {
        let before = Routes::compile(&table(), None);
        let mut changed = table();
        changed.peers.insert(subnet("10.42.9.0/24", None), end(&["192.0.2.99"]));
        let after = Routes::compile(&changed, Some(&before));
        for (old, new) in before.peers().iter().zip(after.peers()) {
            assert!(Arc::ptr_eq(&old.counters, &new.counters), "{}", new.subnet);
        }
    }

    fn any_network() -> impl Strategy<Value = Ipv4Network> {
        // Few addresses and short prefixes, so that nesting and the ends of the space are common.
        (any::<u8>(), 0u8..=8, any::<bool>()).prop_map(|(first, len, end)| {
            let raw = if end { u32::MAX } else { u32::from(first) << 24 };
            Ipv4Network::new(Ipv4Addr::from(raw), len).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_lookup_finds_the_longest_prefix(networks in proptest::collection::vec(any_network(), 0..20), address: u32) {
            let unique: BTreeMap<(u32, u8), Ipv4Network> =
                networks.iter().map(|n| ((n.network().into(), n.prefix()), *n)).collect();
            let networks: Vec<Ipv4Network> = unique.into_values().collect();
            let ranges = Ranges::new(networks.iter().enumerate().map(|(i, n)| (IpNetwork::V4(*n), i)));
            let address = Ipv4Addr::from(address);
            let best = networks.iter().enumerate().filter(|(_, n)| n.contains(address)).max_by_key(|(_, n)| n.prefix());
            prop_assert_eq!(ranges.find(u32::from(address).into()), best.map(|(index, _)| index));
        }
    }
}
