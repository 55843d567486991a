//! Small networks for tests: host `n` of network `blue` leases 10.42.n.0/24 and fd42:0:0:n::/64 and
//! is at 192.0.2.n and 2001:db8::n.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use proptest::prelude::*;
use weft_kernel::net::{
    Address, FdbEntry, Link, LinkKind, LinkName, Mac, Neighbour, Route, RouteKey, RouteKind, State, Vni,
    Vxlan,
};

use crate::backend;
use crate::config::{Backend, NetworkConfig, Pool};
use crate::model::{Family, Me, Model, NodeId, Peer, Subnet, Transports, Underlay, VxlanEnd};
use crate::plan::{MAIN_TABLE, ROUTE_PROTOCOL, metric};

pub(crate) const UDP: Backend = Backend::Udp { port: 8285 };

pub(crate) fn vni(raw: u32) -> Vni {
    Vni::try_from(raw).expect("24 bits")
}

/// vxlan with flannel's defaults.
pub(crate) fn vxlan() -> Backend {
    Backend::Vxlan { vni: vni(1), port: 8472, mtu: None, gbp: false, learning: false, direct_routing: false }
}

/// vxlan with DirectRouting.
pub(crate) fn direct() -> Backend {
    Backend::Vxlan { vni: vni(1), port: 8472, mtu: None, gbp: false, learning: false, direct_routing: true }
}

pub(crate) fn name(name: &str) -> LinkName {
    name.parse().expect("a link name")
}

pub(crate) fn net(net: &str) -> IpNetwork {
    net.parse().expect("a network")
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId::try_from(format!("host-{n}")).expect("a node id")
}

/// Which families a network's pods have, and its hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Families {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

pub(crate) const V4: Families = Families { v4: true, v6: false };
pub(crate) const V6: Families = Families { v4: false, v6: true };
pub(crate) const DUAL: Families = Families { v4: true, v6: true };

pub(crate) fn config(backend: Backend, inner: Families) -> NetworkConfig {
    let v4 = |net: &str| net.parse::<Ipv4Network>().expect("a network");
    let v6 = |net: &str| net.parse::<Ipv6Network>().expect("a network");
    NetworkConfig {
        v4: inner.v4.then(|| Pool {
            network: v4("10.42.0.0/16"),
            subnet_len: 24,
            min: v4("10.42.1.0/24"),
            max: v4("10.42.255.0/24"),
        }),
        v6: inner.v6.then(|| Pool {
            network: v6("fd42::/48"),
            subnet_len: 64,
            min: v6("fd42:0:0:1::/64"),
            max: v6("fd42:0:0:ffff::/64"),
        }),
        backend,
        backend_given: true,
    }
}

pub(crate) fn subnet(n: u8, inner: Families) -> Subnet {
    Subnet {
        v4: inner.v4.then(|| Ipv4Network::new(Ipv4Addr::new(10, 42, n, 0), 24).expect("24 bits")),
        v6: inner.v6.then(|| {
            let segment = u16::from(n);
            Ipv6Network::new(Ipv6Addr::new(0xfd42, 0, 0, segment, 0, 0, 0, 0), 64).expect("64 bits")
        }),
    }
}

pub(crate) fn public_v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

pub(crate) fn public_v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n))
}

pub(crate) fn me(n: u8, inner: Families, outer: Families) -> Me {
    let own = [
        outer.v4.then(|| net(&format!("{}/24", public_v4(n)))),
        outer.v6.then(|| net(&format!("{}/64", public_v6(n)))),
    ];
    Me {
        node: node(n),
        network: "blue".to_owned(),
        subnet: Some(subnet(n, inner)),
        public_v4: outer.v4.then(|| public_v4(n)),
        public_v6: outer.v6.then(|| public_v6(n)),
        underlay: Underlay { link: name("eth0"), mtu: 1500, addresses: own.into_iter().flatten().collect() },
        adopted_mac_v4: None,
        adopted_mac_v6: None,
    }
}

/// Host 7 in a network without other hosts.
pub(crate) fn model(backend: Backend, inner: Families, outer: Families) -> Model {
    Model {
        me: me(7, inner, outer),
        config: config(backend, inner),
        peers: BTreeMap::new(),
        masquerade: false,
        masquerade_random: true,
        non_masquerade: BTreeSet::new(),
        forward_accept: true,
        anti_spoofing: true,
        extra_sources: BTreeSet::new(),
        blackhole: false,
    }
}

/// The weft host `n` as others see it, its backend being `backend`.
pub(crate) fn weft_peer(n: u8, backend: &Backend, inner: Families, outer: Families) -> Peer {
    let me = me(n, inner, outer);
    Peer {
        subnet: subnet(n, inner),
        node: Some(me.node.clone()),
        public_v4: me.public_v4,
        public_v6: me.public_v6,
        backend: backend.name().to_owned(),
        transports: backend::offer(&me, &config(backend.clone(), inner)),
    }
}

/// A host that runs flanneld.
pub(crate) fn flannel_peer(n: u8, backend: &str, inner: Families, outer: Families) -> Peer {
    let vxlan = (backend == "vxlan").then(|| VxlanEnd {
        vni: vni(1),
        port: 8472,
        mac_v4: outer.v4.then_some(Mac([0x02, 0xf1, 0, 0, 4, n])),
        mac_v6: outer.v6.then_some(Mac([0x02, 0xf1, 0, 0, 6, n])),
    });
    Peer {
        subnet: subnet(n, inner),
        node: None,
        public_v4: outer.v4.then(|| public_v4(n)),
        public_v6: outer.v6.then(|| public_v6(n)),
        backend: backend.to_owned(),
        transports: Transports { vxlan, udp: None, direct: backend == "host-gw" },
    }
}

pub(crate) fn with_peers(mut model: Model, peers: impl IntoIterator<Item = Peer>) -> Model {
    model.peers = peers.into_iter().map(|peer| (peer.subnet, peer)).collect();
    model
}

pub(crate) fn any_families() -> impl Strategy<Value = Families> {
    prop_oneof![Just(V4), Just(V6), Just(DUAL)]
}

pub(crate) fn any_backend() -> impl Strategy<Value = Backend> {
    let vxlan =
        (1u32..3, any::<bool>(), any::<bool>(), any::<bool>(), prop_oneof![Just(None), Just(Some(1400))])
            .prop_map(|(vni, gbp, learning, direct_routing, mtu)| Backend::Vxlan {
                vni: self::vni(vni),
                port: 8472,
                mtu,
                gbp,
                learning,
                direct_routing,
            });
    prop_oneof![4 => vxlan, 1 => Just(Backend::HostGw), 1 => Just(UDP), 1 => Just(Backend::Alloc)]
}

/// A peer of any kind, sane or not.
fn any_peer(inner: Families) -> impl Strategy<Value = Peer> {
    let flannel = prop_oneof![
        3 => Just("vxlan"), 1 => Just("host-gw"), 1 => Just(""), 1 => Just("wireguard"), 1 => Just("alloc")
    ];
    let kind = prop_oneof![
        2 => any_backend().prop_map(Ok),
        1 => flannel.prop_map(|backend: &str| Err(backend.to_owned())),
    ];
    (1u8..30, kind, any_families(), any::<bool>()).prop_map(move |(n, kind, outer, far)| {
        let mut peer = match kind {
            Ok(backend) => weft_peer(n, &backend, inner, outer),
            Err(backend) => flannel_peer(n, &backend, inner, outer),
        };
        if far {
            peer.public_v4 = peer.public_v4.map(|_| Ipv4Addr::new(198, 51, 100, n));
            peer.public_v6 = peer.public_v6.map(|_| Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n.into()));
        }
        peer
    })
}

pub(crate) fn any_model() -> impl Strategy<Value = Model> {
    (any_backend(), any_families(), any_families()).prop_flat_map(|(backend, inner, outer)| {
        let peers = proptest::collection::vec(any_peer(inner), 0..8);
        (peers, any::<bool>(), any::<bool>(), 1320u32..1600).prop_map(
            move |(peers, leased, blackhole, mtu)| {
                let mut model = with_peers(model(backend.clone(), inner, outer), peers);
                model.me.subnet = model.me.subnet.filter(|_| leased);
                model.blackhole = blackhole;
                model.me.underlay.mtu = mtu;
                model
            },
        )
    })
}

/// What a careless administrator, a crash, another program or a second weft network leaves in a
/// kernel: things like ours and things near ours, in any mixture. Links are consistent with what
/// hangs on them, as in a kernel.
pub(crate) fn any_observed() -> impl Strategy<Value = State> {
    let links = proptest::sample::subsequence(noise_links(), 0..=noise_links().len());
    let picks = proptest::collection::vec((0usize..16, 0u8..30, 0u8..8, any::<bool>()), 0..40);
    (links, picks).prop_map(|(links, picks)| {
        let mut state = State::default();
        let eth0 = plain_link("eth0", 2);
        for (index, mut link) in std::iter::once(eth0).chain(links).enumerate() {
            link.index = u32::try_from(index).expect("few links") + 2;
            // As in a kernel: one link for a VNI.
            let vni = |link: &Link| match &link.kind {
                LinkKind::Vxlan(vxlan) => Some(vxlan.vni),
                _ => None,
            };
            if vni(&link).is_none_or(|own| state.links.values().all(|other| vni(other) != Some(own))) {
                state.links.insert(link.name.clone(), link);
            }
        }
        let names: Vec<LinkName> = state.links.keys().cloned().collect();
        for (what, n, variant, flag) in picks {
            let link = names[usize::from(variant) % names.len()].clone();
            put_noise(&mut state, what, n, link, flag);
        }
        state
    })
}

fn put_noise(state: &mut State, what: usize, n: u8, link: LinkName, flag: bool) {
    let v6 = what % 2 == 1;
    let dst = if v6 { subnet(n, V6).of(Family::V6) } else { subnet(n, V4).of(Family::V4) };
    let dst = dst.expect("made in this family");
    let up = state.links[&link].up;
    let vxlan = matches!(state.links[&link].kind, LinkKind::Vxlan(_));
    match what {
        0..=5 if up => {
            let key = RouteKey { table: MAIN_TABLE, dst, metric: metric(Family::of(dst.ip())) };
            let protocol = if flag { ROUTE_PROTOCOL } else { 3 };
            // Some to a single address, as pods have them.
            let dst = if what > 3 { IpNetwork::from(dst.network()) } else { dst };
            let key = RouteKey { dst, ..key };
            let (kind, via) = (RouteKind::Unicast, Some(dst.network()));
            let route =
                Route { key, kind, protocol, via, link: Some(link), onlink: true, src: None, mtu: None };
            state.routes.insert(route.key.clone(), route);
        }
        6..=9 if vxlan && up => {
            let (addr, mac) = (dst.network(), Mac([2, 0, 0, 0, 0, n]));
            let neighbour = Neighbour { link: link.clone(), addr, mac, permanent: flag };
            state.neighbours.insert((link, addr), neighbour);
        }
        10..=13 if vxlan => {
            let mac = Mac([0x02, 0xf1, 0, 0, 4, n]);
            state.fdb.insert(FdbEntry { link, mac, dst: public_v4(n).into(), permanent: flag });
        }
        14 if vxlan => {
            let network = IpNetwork::from(IpAddr::from([10, 42, n, u8::from(flag)]));
            state.addresses.insert(Address { link, network });
        }
        15 if vxlan && up => {
            let network = if flag { net("fe80::1/64") } else { net("fd42:0:0:9::/128") };
            state.addresses.insert(Address { link, network });
        }
        _ => {}
    }
}

pub(crate) fn plain_link(link: &str, index: u32) -> Link {
    Link {
        name: name(link),
        index,
        kind: LinkKind::Other(String::new()),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu: 1500,
        up: true,
        carrier: true,
        alias: None,
        master: None,
    }
}

pub(crate) fn vxlan_link(link: &str, vni: u32, alias: Option<&str>) -> Link {
    let vxlan = Vxlan {
        vni: self::vni(vni),
        port: 8472,
        local: Some(public_v4(7).into()),
        underlay: Some(name("eth0")),
        learning: false,
        gbp: false,
    };
    Link { kind: LinkKind::Vxlan(vxlan), mtu: 1450, alias: alias.map(str::to_owned), ..plain_link(link, 0) }
}

fn learning(mut link: Link) -> Link {
    if let LinkKind::Vxlan(vxlan) = &mut link.kind {
        vxlan.learning = true;
    }
    link
}

fn noise_links() -> Vec<Link> {
    let ours = Some("weft:blue:vxlan");
    let mac = backend::vxlan::derived_mac(&node(7), vni(1), Family::V4);
    vec![
        learning(vxlan_link("obsolete", 1, ours)),
        learning(vxlan_link("obsolete2", 2, ours)),
        vxlan_link("weft.1", 1, ours),
        Link { up: false, mac: Some(mac), ..vxlan_link("weft.2", 2, ours) },
        vxlan_link("obsolete9", 9, ours),
        vxlan_link("weft.77", 77, Some("weft:green:vxlan")),
        vxlan_link("flannel.5", 5, None),
        Link { kind: LinkKind::Tun, mac: None, ..vxlan_link("weft-udp.8285", 1, Some("weft:blue:udp")) },
        Link { kind: LinkKind::Veth, ..vxlan_link("pod1", 1, Some("weft:blue:pod:1")) },
    ]
}
