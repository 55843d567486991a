//! What this host's kernel should hold so that pods reach every leased subnet.
//!
//! In: who we are, the configuration, the peers in the data path (`model`). Out: links, addresses,
//! routes, neighbours and FDB entries as plain data, what user space must know beside them, and
//! for every peer the way to it or the reason why there is none. Pure: no clock, no socket.

mod claims;
mod scope;
mod sysctls;
mod transport;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use weft_daemon::settings::Setting;
use weft_kernel::net::{Address, LinkName, Route, RouteKey, RouteKind, State};

pub use crate::backend::udp::UdpPlan;
pub use scope::{Role, Scope};
pub use sysctls::keep_router_advertisements;
pub use transport::{End, Skip, Transport, Way, Whose, choose};

use crate::backend::{self, host_gw, udp, vxlan};
use crate::config::Backend;
use crate::model::{Family, Model, Peer, Subnet};
use crate::mtu;
use claims::Claims;

/// The protocol number of every route that weft makes: unused in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 87;
/// The kernel's main routing table (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;
/// Our own subnet's blackhole comes after any real route to it, such as a bridge's.
const BLACKHOLE_METRIC: u32 = 100_000;

/// Everything this host should hold and know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Links, addresses, routes, neighbours, FDB entries. A TUN link is here with its settings;
    /// the userspace tunnel makes it.
    pub kernel: State,
    /// Which part of an observed state is ours to change.
    pub scope: Scope,
    /// Kernel settings, in the order in which they must be made.
    pub sysctls: Vec<Setting>,
    /// What the userspace tunnel needs, when it is in use.
    pub udp: Option<UdpPlan>,
    /// The way to each peer's subnet, per inner family.
    pub ways: BTreeMap<(Subnet, Family), Way>,
    /// The subnets without a way, and why.
    pub skipped: BTreeMap<(Subnet, Family), Skip>,
    /// Addresses to probe: an answer means that packets reach the peer by its way.
    pub probes: BTreeMap<Subnet, BTreeSet<IpAddr>>,
    /// The MTU of pods' interfaces, and `FLANNEL_MTU`.
    pub pod_mtu: u32,
}

/// The metric of a route that names none: IPv6 has no 0, the kernel writes IP6_RT_PRIO_USER
/// (include/net/ip6_fib.h).
pub(crate) fn metric(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

/// Decides everything. Equal models give equal plans.
pub fn plan(model: &Model) -> Desired {
    let mut desired = Desired {
        kernel: State::default(),
        scope: Scope::of(model),
        sysctls: sysctls::wanted(model),
        udp: None,
        ways: BTreeMap::new(),
        skipped: BTreeMap::new(),
        probes: BTreeMap::new(),
        pod_mtu: mtu::of_pods(model),
    };
    if model.config.backend == Backend::Alloc {
        return desired;
    }
    let reached = ways(model, &mut desired);
    let devices = Devices::make(model, &desired.ways, &mut desired.kernel);
    addresses(model, &devices, &mut desired.kernel);
    unleased(model, &devices, &mut desired.kernel);
    for way in &reached {
        entries(model, &devices, way, &mut desired);
    }
    desired.udp = devices.udp_plan(model, &reached, &desired.kernel);
    desired
}

/// A peer's subnet of one family and how to reach it.
struct Reached<'a> {
    peer: &'a Peer,
    end: End,
    dst: IpNetwork,
    way: Way,
    /// The peer's address that outer packets go to.
    outer: IpAddr,
}

/// Finds every peer's way, or the reason why there is none.
fn ways<'a>(model: &'a Model, desired: &mut Desired) -> Vec<Reached<'a>> {
    let ours = End::ours(&model.me, &model.config);
    let mut claims = Claims::new(model, &ours);
    let mut reached = Vec::with_capacity(model.peers.len());
    for (subnet, peer) in &model.peers {
        let theirs = End::of_peer(peer, &model.config);
        for inner in backend::inner_families(&model.config) {
            let Some(dst) = subnet.of(inner) else { continue };
            let one_segment = host_gw::one_segment(&model.me, peer.public(inner), inner);
            let found = choose(inner, &ours, &theirs, one_segment)
                .and_then(|way| Ok((way, claims.stake(peer, &theirs, dst, way)?)));
            match found {
                Ok((way, outer)) => {
                    desired.ways.insert((*subnet, inner), way);
                    reached.push(Reached { peer, end: theirs.clone(), dst, way, outer });
                }
                Err(skip) => {
                    desired.skipped.insert((*subnet, inner), skip);
                }
            }
        }
    }
    reached
}

/// The tunnel devices in use, and which inner families each carries.
struct Devices {
    vxlan: BTreeMap<Family, (LinkName, BTreeSet<Family>)>,
    tun: Option<(LinkName, BTreeSet<Family>)>,
}

impl Devices {
    /// The configured backend's devices, which must be there before the first peer sends, and
    /// those that a peer is reached by.
    fn make(model: &Model, ways: &BTreeMap<(Subnet, Family), Way>, kernel: &mut State) -> Self {
        let home = match model.config.backend {
            Backend::Vxlan { .. } => Some(Transport::Vxlan),
            Backend::Udp { .. } => Some(Transport::Udp),
            Backend::HostGw | Backend::Alloc => None,
        };
        let home = home.into_iter().flat_map(|transport| {
            backend::inner_families(&model.config).filter_map(move |inner| {
                backend::home_outer(&model.me, inner).map(|outer| (inner, Way { transport, outer }))
            })
        });
        let used: BTreeSet<(Family, Way)> =
            home.chain(ways.iter().map(|((_, inner), way)| (*inner, *way))).collect();

        let mut vxlan: BTreeMap<Family, (LinkName, BTreeSet<Family>)> = BTreeMap::new();
        for (inner, way) in used.iter().filter(|(_, way)| way.transport == Transport::Vxlan) {
            let (_, carried) = vxlan.entry(way.outer).or_insert_with(|| {
                let link = vxlan::link(model, way.outer);
                let name = link.name.clone();
                kernel.links.insert(name.clone(), link);
                (name, BTreeSet::new())
            });
            if *inner == Family::V4 || mtu::carries_v6(base(model), *way) {
                carried.insert(*inner);
            }
        }
        let by_tun = || used.iter().filter(|(_, way)| way.transport == Transport::Udp);
        let carried: BTreeSet<Family> = by_tun().map(|(inner, _)| *inner).collect();
        let tun = (!carried.is_empty()).then(|| {
            let link = udp::link(model, by_tun().map(|(_, way)| *way), carried.contains(&Family::V6));
            let name = link.name.clone();
            kernel.links.insert(name.clone(), link);
            (name, carried)
        });
        Self { vxlan, tun }
    }

    fn all(&self) -> impl Iterator<Item = &(LinkName, BTreeSet<Family>)> {
        self.vxlan.values().chain(&self.tun)
    }

    fn udp_plan(&self, model: &Model, reached: &[Reached<'_>], kernel: &State) -> Option<UdpPlan> {
        let (link, _) = self.tun.as_ref()?;
        let peers =
            reached.iter().filter(|reached| reached.way.transport == Transport::Udp).filter_map(|reached| {
                Some((reached.dst, SocketAddr::new(reached.outer, reached.end.transports.udp?)))
            });
        Some(UdpPlan {
            link: link.clone(),
            port: udp::port(&model.config),
            mtu: kernel.links.get(link)?.mtu,
            peers: peers.collect(),
        })
    }
}

fn base(model: &Model) -> u32 {
    mtu::base(&model.config, &model.me.underlay)
}

/// Our own subnet's first address on every device that carries its family: the source of packets
/// from the host itself to pods elsewhere. A /32 (/128), so that no broadcast route comes with it.
fn addresses(model: &Model, devices: &Devices, kernel: &mut State) {
    let Some(own) = model.me.subnet else { return };
    for (link, carried) in devices.all() {
        for network in carried.iter().filter_map(|inner| own.of(*inner)) {
            let network = IpNetwork::from(network.network());
            kernel.addresses.insert(Address { link: link.clone(), network });
        }
    }
    if model.blackhole {
        for network in own.networks() {
            let key = RouteKey { table: MAIN_TABLE, dst: network, metric: BLACKHOLE_METRIC };
            let (kind, protocol) = (RouteKind::Blackhole, ROUTE_PROTOCOL);
            let route =
                Route { key, kind, protocol, via: None, link: None, onlink: false, src: None, mtu: None };
            kernel.routes.insert(route.key.clone(), route);
        }
    }
}

/// With udp as the backend the whole network leads into the TUN, as flannel has it: the tunnel
/// answers for what nobody leases. Else such packets would take the default route into the underlay.
fn unleased(model: &Model, devices: &Devices, kernel: &mut State) {
    let Backend::Udp { .. } = model.config.backend else { return };
    let Some((name, carried)) = &devices.tun else { return };
    let Some(link) = kernel.links.get(name) else { return };
    let v4 = model.config.v4.map(|pool| IpNetwork::from(pool.network));
    let v6 = model.config.v6.map(|pool| IpNetwork::from(pool.network));
    let networks = v4.into_iter().chain(v6).filter(|network| carried.contains(&Family::of(network.ip())));
    let routes: Vec<Route> = networks.map(|network| udp::route(link, network, link.mtu)).collect();
    kernel.routes.extend(routes.into_iter().map(|route| (route.key.clone(), route)));
}

/// One peer's routes, neighbours and FDB entries, and where to probe it.
fn entries(model: &Model, devices: &Devices, reached: &Reached<'_>, desired: &mut Desired) {
    let Reached { peer, end, dst, way, outer } = reached;
    let kernel = &mut desired.kernel;
    let probe = match way.transport {
        Transport::Direct => {
            let route = host_gw::route(&model.config, &model.me.underlay, *dst, *outer);
            kernel.routes.insert(route.key.clone(), route);
            // A host-gw host need not have its subnet's first address anywhere.
            *outer
        }
        Transport::Vxlan => {
            let mac = end.transports.vxlan.and_then(|end| end.mac(way.outer));
            let (Some((link, _)), Some(mac)) = (devices.vxlan.get(&way.outer), mac) else { return };
            vxlan::entries(kernel, link, *dst, mac, *outer);
            dst.network()
        }
        Transport::Udp => {
            let Some(link) = devices.tun.as_ref().and_then(|(name, _)| kernel.links.get(name)) else {
                return;
            };
            let route = udp::route(link, *dst, mtu::of_way(base(model), *way));
            kernel.routes.insert(route.key.clone(), route);
            dst.network()
        }
    };
    desired.probes.entry(peer.subnet).or_default().insert(probe);
}
