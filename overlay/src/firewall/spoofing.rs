//! Who may send from which address: peers through tunnels, peers over plain routes, our own pods.
//!
//! Every check is of the form "what is known may pass, the rest is dropped". The other form, "drop
//! what is not in the set", lets through what cannot be looked at: a rule ends without effect at a
//! load of bytes that the packet does not have, for example in a fragment that is cut before them.
//!
//! Fragments of tunnel packets: IPv4 is put together before the input hook. IPv6 is, too, where
//! connection tracking is in use; else the first fragment is checked, which must reach as far as the
//! inner source, and later ones are worth nothing without it.
//!
//! Super-packets: VXLAN packets are joined by the receiver (GRO) only if their outer and inner
//! headers say that they belong to one flow, so one look at the first is enough. What this table
//! cannot see is a UDP packet that its *sender* left in one piece for segmentation (`UDP_SEGMENT`)
//! and that never crossed a wire, because sender and receiver are on one machine (namespaces, or
//! virtual machines with USO): it is segmented after the input hook, and only its first datagram was
//! looked at. The same holds for `ethtool -K ... rx-udp-gro-forwarding on` in front of a namespace.
//!
//! `udp` tunnels: the daemon's socket joins datagrams of one peer (UDP_GRO) before this hook, so
//! only the outer source is checked here, and each inner one by the daemon.
//!
//! host-gw: a neighbour whose MAC is known may send only from its own addresses, and nobody else
//! may send from those. A peer whose MAC is not known is not checked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_kernel::net::{LinkName, Vni};
use weft_kernel::nft::{
    Base, ChainKind, ChainName, CounterReading, DataType, Hook, Key, Part, PayloadBase, Rule, Selector, Set,
    SetName, SetSpec, Table,
};

use super::traffic::Counted;
use super::{Ip, Surroundings, Tunnel, add_chain, base, outer_families, peers_set, ranges, set_name};
use crate::config::Backend;
use crate::model::{Model, Peer};

/// Offsets from the outer UDP header: UDP 8, VXLAN 8 (RFC 7348), inner Ethernet 14.
const INNER_IP: u32 = 8 + 8 + 14;
/// Flags, reserved, then the VNI: RFC 7348, section 5.
pub(super) const VNI: Selector = transport(8 + 4, 3);
/// Behind the two inner Ethernet addresses.
const INNER_ETHERTYPE: Selector = transport(8 + 8 + 12, 2);

/// The comments of the rules that drop, by which their counters are found.
const TUNNEL: &str = "tunnel: not from a peer, or not from an address of that peer";
const POD: &str = "pod: not its own address";
const OUTSIDE: &str = "outside: an address of our own subnet";
const PLAIN: &str = "plain route: a pod's address from a host that is not its own";

/// How many packets each check has dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Tunnel packets whose outer and inner source do not belong together.
    pub tunnel: u64,
    /// Packets of pods here that are not from their own address.
    pub pod: u64,
    /// Packets from outside with a source in our own subnet.
    pub outside: u64,
    /// Packets over plain routes from a pod address that is not the sender's.
    pub plain: u64,
}

impl Drops {
    /// From the table's counters.
    pub fn from_counters(readings: &[CounterReading]) -> Self {
        let of = |wanted: &str| {
            let matching = |r: &&CounterReading| r.comment.as_ref().is_some_and(|c| c.as_str() == wanted);
            readings.iter().filter(matching).map(|reading| reading.packets).sum()
        };
        Self { tunnel: of(TUNNEL), pod: of(POD), outside: of(OUTSIDE), plain: of(PLAIN) }
    }
}

/// `arriving`: the rules for tunnel packets that arrive. They go into the chain that every packet
/// passes anyway: each further base chain at a hook costs every packet a visit.
pub(super) fn add(table: &mut Table, model: &Model, around: &Surroundings, arriving: &[Rule]) {
    add_tunnels(table, model, around);
    add_sources(table, model, around, arriving);
}

/// Packets that arrive at a tunnel's port.
fn add_tunnels(table: &mut Table, model: &Model, around: &Surroundings) {
    let mut entrance = Vec::new();
    for tunnel in &around.tunnels {
        let chain = match *tunnel {
            Tunnel::Vxlan { vni, port } => {
                let rules = vxlan_rules(table, model, vni);
                add_chain(table, &format!("vxlan-{port}"), None, None, rules)
            }
            Tunnel::Udp { port } => {
                let known = outer_families(model).map(|ip| {
                    let peers = peers_set(table, model, ip);
                    ip.only(Rule::new()).in_set([ip.saddr()], &peers).return_().comment("a peer")
                });
                let mut rules: Vec<Rule> = known.collect();
                rules.push(Rule::new().counter().drop().comment(TUNNEL));
                add_chain(table, &format!("udp-{port}"), None, None, rules)
            }
        };
        entrance.push(Rule::new().udp_dport(tunnel.port()).goto(&chain));
    }
    if !entrance.is_empty() {
        let hook = base(ChainKind::Filter, Hook::Input, Base::PRIORITY_FILTER);
        add_chain(table, "tunnel-in", Some(hook), None, entrance);
    }
}

/// The outer source must be a peer's, and the inner one that peer's. ARP is dropped with everything
/// else that is not IP: neighbours are permanent here, so nobody who belongs to the network asks.
fn vxlan_rules(table: &mut Table, model: &Model, vni: Vni) -> Vec<Rule> {
    // Two networks may share a port; the other one's packets are its own table's to judge.
    let other = Rule::new().is_not(VNI, vni_bytes(vni)).return_();
    let mut rules = vec![other.comment("another network's")];
    let extra = model.extra_sources.iter().copied();
    for outer in outer_families(model) {
        for inner in Ip::BOTH.into_iter().filter(|ip| ip.cluster(model).is_some()) {
            let inner_packet = || outer.only(Rule::new()).is(INNER_ETHERTYPE, inner.ethertype());
            let sources = model.peers.values().filter_map(|peer| Some((outer.peer_address(peer)?, peer)));
            let pairs =
                sources.flat_map(|(address, peer)| own_sources(peer).map(move |net| (address.into(), net)));
            let lookup = PairLookup {
                sets: format!("pairs{}in{}", inner.digit(), outer.digit()),
                lengths: inner.subnet_len(model).into_iter().chain([8 * inner.bytes()]).collect(),
                first: (outer.saddr(), outer.data_type()),
                second: (inner.encapsulated_saddr(), inner),
                comment: "a peer, from an address of its own",
            };
            rules.extend(lookup.rules(table, inner_packet(), pairs));
            if extra.clone().any(|network| inner.is(&network)) {
                let (peers, extra) = (peers_set(table, model, outer), extra_set(table, model, inner));
                let rule = inner_packet()
                    .in_set([outer.saddr()], &peers)
                    .in_set([inner.encapsulated_saddr()], &extra)
                    .return_();
                rules.push(rule.comment("a peer, from an address that any peer may use"));
            }
        }
    }
    for outer in outer_families(model) {
        let refused = Counted::Refused.set(table, model, outer);
        let rule = outer.only(Rule::new()).in_set([outer.saddr()], &refused);
        rules.push(rule.comment("counts whose it was"));
    }
    rules.push(Rule::new().counter().drop().comment(TUNNEL));
    rules
}

/// As they stand in the packet.
pub(super) fn vni_bytes(vni: Vni) -> [u8; 3] {
    let [_, high, middle, low] = vni.get().to_be_bytes();
    [high, middle, low]
}

/// Something that must come with a source address out of a network.
///
/// Not a set of ranges: to take one range out of a set of 5,000 pairs costs the kernel 20 ms (its
/// pipapo sets), to look one up costs a packet more than a hash does, and ranges must not overlap.
/// Instead there is a set of exact keys for each prefix length in use, and the address is masked.
struct PairLookup {
    /// What the sets' names begin with.
    sets: String,
    /// Prefix lengths that are always there, so that the first host of all is only an element, too:
    /// leases' configured one and, where hosts' own addresses matter, the whole.
    lengths: Vec<u8>,
    first: (Selector, DataType),
    second: (Selector, Ip),
    comment: &'static str,
}

impl PairLookup {
    /// One rule and one set per prefix length.
    fn rules(
        &self,
        table: &mut Table,
        only: Rule,
        pairs: impl Iterator<Item = (Part, IpNetwork)>,
    ) -> Vec<Rule> {
        let (selector, ip) = self.second;
        let mut by_length: BTreeMap<u8, Vec<Key>> =
            self.lengths.iter().map(|len| (*len, Vec::new())).collect();
        for (first, network) in pairs.filter(|(_, network)| ip.is(network)) {
            let key = Key::concat([first, network.network().into()]);
            by_length.entry(network.prefix()).or_default().push(key);
        }
        let of_length = |(len, keys): (u8, Vec<Key>)| {
            let name = set_name(&format!("{}_{len}", self.sets));
            let spec = SetSpec::exact([self.first.1, ip.data_type()]);
            table.sets.insert(name.clone(), spec.comment(&format!("second field: a /{len}")).with(keys));
            let key = [self.first.0.into(), selector.prefix(len, ip.bytes().into())];
            only.clone().in_set(key, &name).return_().comment(self.comment)
        };
        by_length.into_iter().map(of_length).collect()
    }
}

fn extra_set(table: &mut Table, model: &Model, ip: Ip) -> SetName {
    let name = ip.name("extra");
    let spec = SetSpec::intervals([ip.data_type()]).comment("sources that any peer may use");
    let keys = ranges(model.extra_sources.iter().copied(), ip);
    table.sets.entry(name.clone()).or_insert_with(|| spec.with(keys));
    name
}

/// What a peer may send from: its subnets, and its own addresses (its processes may be bound to them).
fn own_sources(peer: &Peer) -> impl Iterator<Item = IpNetwork> {
    peer.subnet.networks().chain(peer.addresses().map(IpNetwork::from))
}

/// Packets that are not in a tunnel (any more), before they are routed or tracked.
///
/// Every packet comes by, so what most packets are is found out first, and by as few lookups as can
/// be: the links of tunnels and the underlay are compared, as they are few.
fn add_sources(table: &mut Table, model: &Model, around: &Surroundings, arriving: &[Rule]) {
    let mut entrance = Vec::new();
    let tunnels = add_chain(table, "tunnel-sources", None, None, own_from_outside(model));
    for link in &around.tunnel_links {
        entrance.push(Rule::new().iifname(link).goto(&tunnels));
    }
    let underlay = add_underlay(table, model, around, arriving);
    entrance.push(Rule::new().iifname(&model.me.underlay.link).goto(&underlay));
    entrance.extend(Ip::BOTH.map(|ip| pod_by_address(table, around, ip)));
    let links = link_set(table, "pod_links", "where pods' packets come in", around.pods.keys());
    let pods = add_pods(table, around);
    entrance.push(Rule::new().in_set([Selector::IifName], &links).goto(&pods));
    // Peers may come by another link than the one that leads to most of them.
    entrance.extend_from_slice(arriving);
    let hook = base(ChainKind::Filter, Hook::Prerouting, Base::PRIORITY_RAW);
    add_chain(table, "sources", Some(hook), None, entrance);
}

/// Whole addresses of pods are looked up in one step; networks (bridges) are few and have rules.
fn pod_by_address(table: &mut Table, around: &Surroundings, ip: Ip) -> Rule {
    let name = ip.name("pods");
    let keys = pod_sources(around, ip).filter(|(_, source)| is_whole(*source));
    let keys = keys.map(|(link, source)| Key::concat([link.into(), source.ip().into()]));
    let spec = SetSpec::exact([DataType::LinkName, ip.data_type()]).comment("each pod's own address");
    table.sets.insert(name.clone(), spec.with(keys));
    let rule = ip.only(Rule::new()).in_set([Selector::IifName, ip.saddr()], &name).return_();
    rule.comment("a pod, from its own address")
}

fn pod_sources(around: &Surroundings, ip: Ip) -> impl Iterator<Item = (&LinkName, IpNetwork)> {
    let all = around.pods.iter().flat_map(|(link, sources)| sources.iter().map(move |s| (link, *s)));
    all.filter(move |(_, source)| ip.is(source))
}

fn is_whole(network: IpNetwork) -> bool {
    network.prefix() == if network.is_ipv4() { 32 } else { 128 }
}

/// What else may come in by pods' links.
fn add_pods(table: &mut Table, around: &Surroundings) -> ChainName {
    let mut rules = Vec::new();
    for ip in Ip::BOTH {
        for (link, network) in pod_sources(around, ip).filter(|(_, source)| !is_whole(*source)) {
            let rule = ip.only(Rule::new()).iifname(link).in_network(ip.saddr(), network).return_();
            rules.push(rule.comment("a bridge, from an address of its subnet"));
        }
    }
    let link_local = "fe80::/10".parse().expect("a constant network");
    let rule = Rule::new().ipv6().in_network(Selector::Ip6Saddr, link_local).return_();
    rules.push(rule.comment("neighbour discovery; never forwarded"));
    // IPPROTO_ICMPV6
    let rule = Rule::new().ipv6().protocol(58).is(Selector::Ip6Saddr, [0; 16]).return_();
    rules.push(rule.comment("duplicate address detection"));
    rules.push(Rule::new().counter().drop().comment(POD));
    add_chain(table, "pod-sources", None, None, rules)
}

/// What comes in by the link that leads to the other hosts.
fn add_underlay(table: &mut Table, model: &Model, around: &Surroundings, arriving: &[Rule]) -> ChainName {
    // From a peer to ourselves: what is in it is judged where it arrives, and where it comes out.
    let mut rules = arriving.to_vec();
    rules.extend(own_from_outside(model));
    let plain = add_plain(table, model, around);
    for ip in Ip::BOTH {
        let (Some(own), Some(cluster)) = (ip.own(model), ip.cluster(model)) else { continue };
        // Only what is meant for our pods: a peer's pod may well send to an address of this host
        // past the tunnel, where nobody masquerades.
        let rule =
            ip.only(Rule::new()).in_network(ip.saddr(), cluster).in_network(ip.daddr(), own).goto(&plain);
        rules.push(rule.comment("pod to pod past the tunnels"));
    }
    add_chain(table, "underlay-sources", None, None, rules)
}

/// Nobody outside has an address of our own subnet.
fn own_from_outside(model: &Model) -> Vec<Rule> {
    let with_own = Ip::BOTH.into_iter().filter_map(|ip| Some((ip, ip.own(model)?)));
    let drop = |(ip, own): (Ip, IpNetwork)| {
        ip.only(Rule::new()).in_network(ip.saddr(), own).counter().drop().comment(OUTSIDE)
    };
    with_own.map(drop).collect()
}

/// Pods' packets on the underlay itself: from peers that may use a plain route, and by the MAC that
/// they are known by.
fn add_plain(table: &mut Table, model: &Model, around: &Surroundings) -> ChainName {
    let mut rules = Vec::new();
    let direct: Vec<&Peer> = model.peers.values().filter(|peer| may_come_directly(model, peer)).collect();
    let mac = |peer: &Peer| peer.addresses().find_map(|addr| around.neighbours.get(&addr).copied());
    for ip in Ip::BOTH.into_iter().filter(|ip| ip.cluster(model).is_some()) {
        let known = direct.iter().filter_map(|peer| Some((mac(peer)?, peer)));
        let pairs = known.flat_map(|(mac, peer)| peer.subnet.networks().map(move |net| (mac.into(), net)));
        let lookup = PairLookup {
            sets: ip.name("neighbours").to_string(),
            lengths: ip.subnet_len(model).into_iter().collect(),
            first: (Selector::EtherSaddr, DataType::Ether),
            second: (ip.saddr(), ip),
            comment: "a neighbour, from an address of its own",
        };
        rules.extend(lookup.rules(table, ip.only(Rule::new().from_ethernet()), pairs));

        let name = ip.name("unchecked");
        let subnets =
            direct.iter().filter(|peer| mac(peer).is_none()).flat_map(|peer| peer.subnet.networks());
        let spec = SetSpec::intervals([ip.data_type()]).comment("peers whose MAC is not known");
        table.sets.insert(name.clone(), spec.with(ranges(subnets, ip)));
        let rule = ip.only(Rule::new()).in_set([ip.saddr()], &name).return_();
        rules.push(rule.comment("a neighbour that cannot be checked"));
    }
    rules.push(Rule::new().counter().drop().comment(PLAIN));
    add_chain(table, "plain-sources", None, None, rules)
}

/// Whether a peer may send us its pods' packets without a tunnel. The choice is the peer's, so what
/// matters is what it may do, not what we do.
fn may_come_directly(model: &Model, peer: &Peer) -> bool {
    let direct_routing = matches!(model.config.backend, Backend::Vxlan { direct_routing: true, .. });
    let same_segment = |addr: IpAddr| model.me.underlay.addresses.iter().any(|net| net.contains(addr));
    let near = peer.addresses().any(same_segment);
    model.config.backend == Backend::HostGw || near && (direct_routing || peer.transports.direct)
}

fn link_set<'a>(
    table: &mut Table,
    name: &str,
    comment: &str,
    links: impl IntoIterator<Item = &'a LinkName>,
) -> SetName {
    let set: Set =
        SetSpec::exact([DataType::LinkName]).comment(comment).with(links.into_iter().map(Key::from));
    let name = set_name(name);
    table.sets.insert(name.clone(), set);
    name
}

const fn transport(offset: u32, len: u32) -> Selector {
    Selector::Payload { base: PayloadBase::Transport, offset, len }
}

impl Ip {
    /// Of an address.
    fn bytes(self) -> u8 {
        if self == Self::V4 { 4 } else { 16 }
    }

    /// The prefix length of leases.
    fn subnet_len(self, model: &Model) -> Option<u8> {
        match self {
            Self::V4 => model.config.v4.map(|pool| pool.subnet_len),
            Self::V6 => model.config.v6.map(|pool| pool.subnet_len),
        }
    }

    fn digit(self) -> u8 {
        if self == Self::V4 { 4 } else { 6 }
    }

    /// `ETH_P_IP`, `ETH_P_IPV6`.
    fn ethertype(self) -> [u8; 2] {
        match self {
            Self::V4 => [0x08, 0x00],
            Self::V6 => [0x86, 0xdd],
        }
    }

    /// The source address of the packet within a VXLAN packet (RFC 791, RFC 8200).
    fn encapsulated_saddr(self) -> Selector {
        match self {
            Self::V4 => transport(INNER_IP + 12, 4),
            Self::V6 => transport(INNER_IP + 8, 16),
        }
    }
}
