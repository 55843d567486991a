//! What the overlay asks of the kernel's packet filter, as pure data.
//!
//! - [`plan`] makes the table `inet weft-<network>`: masquerade, anti-spoofing, and no connection
//!   tracking for tunnel packets. Every rule carries its reason as a comment that `nft list` shows.
//!
//! Beside the table:
//!
//! - [`forward`] finds where iptables (Docker, above all) drops forwarded packets, and opens it for
//!   the pod network. Our own table cannot: a packet must pass every table. For the same reason it
//!   has no rule that accepts forwarded packets; it would do nothing.
//! - [`findings`] says in words which other firewalls are in the way, for `weft doctor`.
//! - [`leftovers`] removes what flanneld leaves behind.
//!
//! When a peer comes, goes or changes, or a pod does, only elements of sets differ between the old
//! plan and the new one, so `weft_kernel::nft::diff` gives a change of a few bytes.

pub mod findings;
pub mod forward;
pub mod leftovers;
mod masquerade;
mod spoofing;
mod trace;
pub mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_kernel::net::{LinkName, Mac, Vni};
use weft_kernel::nft::{
    BadName, Base, Chain, ChainKind, ChainName, DataType, Family, Hook, Key, Policy, Rule, Selector, SetName,
    SetSpec, Table, TableKey, TableName, merge_networks,
};

use crate::config::Backend;
use crate::model::{Model, Peer};
use traffic::Counted;

pub use spoofing::Drops;

/// The mark that kube-proxy puts on packets that it masquerades itself (`--iptables-masquerade-bit`
/// 14). Another program's packets may carry other bits, so only this one is looked at.
pub const KUBE_PROXY_MARK: Mark = Mark { value: 0x4000, mask: 0x4000 };

/// Bits of a packet's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// What they are.
    pub value: u32,
    /// Which they are.
    pub mask: u32,
}

/// What the plan needs to know of this host beside the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The tunnels that end on this host.
    pub tunnels: Vec<Tunnel>,
    /// The links on which packets come out of the kernel's tunnels (`weft.1`). Not the TUN of udp: what
    /// comes out there the daemon has checked, or has written itself.
    pub tunnel_links: BTreeSet<LinkName>,
    /// The links that pods' packets come by, with what their sources may be: a pod's own addresses
    /// on its veth, the whole subnet on a bridge.
    pub pods: BTreeMap<LinkName, Vec<IpNetwork>>,
    /// The underlay's Ethernet neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Packets that somebody else masquerades.
    pub masqueraded_elsewhere: Mark,
}

impl Surroundings {
    /// A host with the tunnel of its backend and no pods yet.
    pub fn new(backend: &Backend) -> Self {
        Self {
            tunnels: Tunnel::of(backend).into_iter().collect(),
            tunnel_links: BTreeSet::new(),
            pods: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            masqueraded_elsewhere: KUBE_PROXY_MARK,
        }
    }
}

/// A UDP port at which other hosts' pods' packets arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// VXLAN, decapsulated by the kernel.
    Vxlan {
        /// Of this network.
        vni: Vni,
        /// At this port, which other networks may share.
        port: u16,
    },
    /// Raw IP in UDP, decapsulated by the daemon, which looks at each datagram's inner source.
    Udp {
        /// At this port.
        port: u16,
    },
}

impl Tunnel {
    /// The tunnel of a backend, if it has one.
    pub fn of(backend: &Backend) -> Option<Self> {
        match backend {
            Backend::Vxlan { vni, port, .. } => Some(Self::Vxlan { vni: *vni, port: *port }),
            Backend::Udp { port } => Some(Self::Udp { port: *port }),
            Backend::HostGw | Backend::Alloc => None,
        }
    }

    /// Two networks may share VXLAN's port, and each looks after its own packets.
    fn only(self, rule: Rule) -> Rule {
        match self {
            Self::Vxlan { vni, .. } => rule.is(spoofing::VNI, spoofing::vni_bytes(vni)),
            Self::Udp { .. } => rule,
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Vxlan { port, .. } | Self::Udp { port } => port,
        }
    }
}

/// The key of a network's table: `inet weft-<network>`.
///
/// # Errors
/// When the network's name has characters that `nft` cannot read.
pub fn table_key(network: &str) -> Result<TableKey, BadName> {
    let name: TableName = format!("weft-{network}").parse()?;
    Ok(TableKey { family: Family::Inet, name })
}

/// The table that this host should have.
///
/// # Errors
/// When the network's name has characters that `nft` cannot read.
pub fn plan(model: &Model, around: &Surroundings) -> Result<Table, BadName> {
    let key = table_key(&model.me.network)?;
    let mut table = Table::new(key.family, key.name);
    table.comment = Some("made by weft overlay; changes are undone".into());
    let Untracked { arriving, leaving } = untracked(&mut table, model, around);
    if model.anti_spoofing {
        spoofing::add(&mut table, model, around, &arriving);
    } else {
        add_untracked(&mut table, "untracked-in", Hook::Prerouting, arriving);
    }
    add_untracked(&mut table, "untracked-out", Hook::Output, leaving);
    if model.masquerade {
        masquerade::add(&mut table, model, around);
    }
    Ok(table)
}

/// Rules that keep connection tracking away from tunnel packets.
#[derive(Debug, Default)]
struct Untracked {
    arriving: Vec<Rule>,
    leaving: Vec<Rule>,
}

/// Tunnel packets are not tracked: every inner flow has an outer source port of its own, so tracking
/// would fill the table of connections with entries that nobody asks for, and cost a lookup each.
/// The lookup that remains counts what each peer sends and gets.
/// Only between peers and ourselves: what we forward or translate for others must be tracked.
fn untracked(table: &mut Table, model: &Model, around: &Surroundings) -> Untracked {
    let mut tunnels = around.tunnels.clone();
    tunnels.sort_by_key(|tunnel| tunnel.port());
    let mut rules = Untracked::default();
    for ip in outer_families(model).filter(|_| !tunnels.is_empty()) {
        for tunnel in &tunnels {
            let packet = || tunnel.only(ip.only(Rule::new()).udp_dport(tunnel.port()));
            // The daemon counts what its own tunnel carries.
            let (from, to) = match tunnel {
                Tunnel::Vxlan { .. } => {
                    (Counted::Heard.set(table, model, ip), Counted::Sent.set(table, model, ip))
                }
                Tunnel::Udp { .. } => (peers_set(table, model, ip), peers_set(table, model, ip)),
            };
            // The set that counts comes last: only what the whole rule fits is counted.
            let arriving = here(table, model, ip, packet(), ip.daddr()).in_set([ip.saddr()], &from);
            let arriving = arriving.notrack().accept();
            rules.arriving.push(arriving.comment("tunnel packets fill no table of connections"));
            let leaving = here(table, model, ip, packet(), ip.saddr()).in_set([ip.daddr()], &to);
            rules.leaving.push(leaving.notrack().accept());
        }
    }
    rules
}

fn add_untracked(table: &mut Table, chain: &str, hook: Hook, rules: Vec<Rule>) {
    if rules.is_empty() {
        return;
    }
    let hook = base(ChainKind::Filter, hook, Base::PRIORITY_RAW);
    add_chain(table, chain, Some(hook), Some("tunnel packets fill no table of connections"), rules);
}

/// One of the two families, with what differs between them in rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ip {
    V4,
    V6,
}

impl Ip {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn is(self, network: &IpNetwork) -> bool {
        self == Self::of(network.ip())
    }

    fn saddr(self) -> Selector {
        match self {
            Self::V4 => Selector::Ip4Saddr,
            Self::V6 => Selector::Ip6Saddr,
        }
    }

    fn daddr(self) -> Selector {
        match self {
            Self::V4 => Selector::Ip4Daddr,
            Self::V6 => Selector::Ip6Daddr,
        }
    }

    /// Only packets of this family.
    fn only(self, rule: Rule) -> Rule {
        match self {
            Self::V4 => rule.ipv4(),
            Self::V6 => rule.ipv6(),
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Self::V4 => DataType::Ipv4,
            Self::V6 => DataType::Ipv6,
        }
    }

    /// The name of a thing that there is once per family.
    fn name(self, what: &str) -> SetName {
        let digit = match self {
            Self::V4 => 4,
            Self::V6 => 6,
        };
        set_name(&format!("{what}{digit}"))
    }

    /// The pod network in this family.
    fn cluster(self, model: &Model) -> Option<IpNetwork> {
        match self {
            Self::V4 => model.config.v4.map(|pool| pool.network.into()),
            Self::V6 => model.config.v6.map(|pool| pool.network.into()),
        }
    }

    /// Our own subnet in this family.
    fn own(self, model: &Model) -> Option<IpNetwork> {
        let subnet = model.me.subnet?;
        match self {
            Self::V4 => subnet.v4.map(IpNetwork::V4),
            Self::V6 => subnet.v6.map(IpNetwork::V6),
        }
    }

    fn peer_address(self, peer: &Peer) -> Option<IpAddr> {
        match self {
            Self::V4 => peer.public_v4.map(IpAddr::V4),
            Self::V6 => peer.public_v6.map(IpAddr::V6),
        }
    }
}

/// The families that this host has an underlay address of.
fn outer_families(model: &Model) -> impl Iterator<Item = Ip> {
    let (v4, v6) = (model.me.public_v4.is_some(), model.me.public_v6.is_some());
    Ip::BOTH.into_iter().filter(move |ip| if *ip == Ip::V4 { v4 } else { v6 })
}

/// The peers' underlay addresses; the set is made once.
fn peers_set(table: &mut Table, model: &Model, ip: Ip) -> SetName {
    let name = ip.name("peers");
    let addresses = model.peers.values().filter_map(|peer| ip.peer_address(peer)).map(Key::from);
    let spec = SetSpec::exact([ip.data_type()]).comment("the other hosts");
    table.sets.entry(name.clone()).or_insert_with(|| spec.with(addresses));
    name
}

/// Our own underlay addresses.
fn here_addresses(model: &Model, ip: Ip) -> BTreeSet<IpAddr> {
    let public = [model.me.public_v4.map(IpAddr::V4), model.me.public_v6.map(IpAddr::V6)];
    let on_link = model.me.underlay.addresses.iter().map(|network| network.ip());
    on_link.chain(public.into_iter().flatten()).filter(|addr| Ip::of(*addr) == ip).collect()
}

/// The same as a set; it is made once.
fn here_set(table: &mut Table, model: &Model, ip: Ip) -> SetName {
    let name = ip.name("here");
    let addresses = here_addresses(model, ip).into_iter().map(Key::from);
    let spec = SetSpec::exact([ip.data_type()]).comment("this host");
    table.sets.entry(name.clone()).or_insert_with(|| spec.with(addresses));
    name
}

/// Only packets whose address there is our own. Most hosts have one, and every tunnel packet comes
/// by: to compare it costs less than to look it up.
fn here(table: &mut Table, model: &Model, ip: Ip, rule: Rule, address: Selector) -> Rule {
    match here_addresses(model, ip).into_iter().collect::<Vec<_>>().as_slice() {
        [only] => rule.in_network(address, IpNetwork::from(*only)),
        _ => rule.in_set([address], &here_set(table, model, ip)),
    }
}

/// Ranges without overlaps, which the kernel would refuse.
fn ranges(networks: impl IntoIterator<Item = IpNetwork>, ip: Ip) -> impl Iterator<Item = Key> {
    let of_family = networks.into_iter().filter(move |network| ip.is(network));
    merge_networks(of_family).into_iter().map(Key::from)
}

fn base(kind: ChainKind, hook: Hook, priority: i32) -> Base {
    Base { kind, hook, priority, policy: Policy::Accept }
}

fn add_chain(
    table: &mut Table,
    name: &str,
    base: Option<Base>,
    comment: Option<&str>,
    rules: Vec<Rule>,
) -> ChainName {
    let name: ChainName = name.parse().expect("the names of chains are letters and hyphens");
    table.chains.insert(name.clone(), Chain { base, comment: comment.map(Into::into), rules });
    name
}

fn set_name(raw: &str) -> SetName {
    raw.parse().expect("the names of sets are letters, digits and underscores")
}

#[cfg(test)]
mod tests;
