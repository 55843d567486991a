//! Tables and properties of the plan; whole plans are in the golden cases (`tests/cases`).

use proptest::prelude::*;
use weft_kernel::net::{LinkKind, Mac};

use super::*;
use crate::backend::vxlan::{derived_mac, link_name};
use crate::config::Backend;
use crate::fixtures::*;
use crate::model::VxlanEnd;

/// How packets of `inner` travel between a host of ours and a peer, in words.
fn way(model: Model, peer: Peer, inner: Family) -> String {
    let subnet = peer.subnet;
    let desired = plan(&with_peers(model, [peer]));
    match (desired.ways.get(&(subnet, inner)), desired.skipped.get(&(subnet, inner))) {
        (Some(way), None) => way.to_string(),
        (None, Some(skip)) => skip.to_string(),
        (None, None) => "no such subnet".to_owned(),
        (Some(_), Some(_)) => panic!("a way and a reason for none"),
    }
}

fn far(peer: Peer) -> Peer {
    Peer {
        public_v4: peer.public_v4.map(|_| "198.51.100.8".parse().expect("an address")),
        public_v6: peer.public_v6.map(|_| "2001:db8:1::8".parse().expect("an address")),
        ..peer
    }
}

#[test]
fn the_way_to_a_peer() {
    let weft = |backend: Backend| weft_peer(8, &backend, DUAL, DUAL);
    let flannel = |backend: &str| flannel_peer(8, backend, DUAL, DUAL);
    let ours = |backend| model(backend, DUAL, DUAL);
    let hostgw = || Backend::HostGw;
    let table = [
        // our backend, the peer, the way for IPv4
        (ours(vxlan()), weft(vxlan()), "vxlan over IPv4"),
        (ours(vxlan()), weft(direct()), "vxlan over IPv4"),
        (ours(direct()), weft(direct()), "direct over IPv4"),
        (ours(direct()), far(weft(direct())), "vxlan over IPv4"),
        (ours(hostgw()), weft(hostgw()), "direct over IPv4"),
        (ours(hostgw()), weft(direct()), "direct over IPv4"),
        (ours(hostgw()), far(weft(hostgw())), "vxlan over IPv4"),
        (ours(UDP), weft(UDP), "udp over IPv4"),
        // A fleet between two backends: each host knows the other's tunnel or UDP.
        (ours(vxlan()), weft(UDP), "udp over IPv4"),
        (ours(UDP), weft(hostgw()), "vxlan over IPv4"),
        // flanneld has the one transport of its BackendType.
        (ours(vxlan()), flannel("vxlan"), "vxlan over IPv4"),
        (ours(direct()), flannel("vxlan"), "direct over IPv4"),
        (ours(direct()), far(flannel("vxlan")), "vxlan over IPv4"),
        (ours(hostgw()), flannel("host-gw"), "direct over IPv4"),
        (
            ours(hostgw()),
            far(flannel("host-gw")),
            "198.51.100.8 is not on our segment, and host-gw knows no other way",
        ),
        (ours(UDP), flannel(""), "udp over IPv4"),
        (
            ours(vxlan()),
            flannel("host-gw"),
            "it offers direct routes, we offer vxlan, udp: nothing in common",
        ),
        (ours(vxlan()), flannel(""), "its lease offers no transport (BackendType ``)"),
        (ours(vxlan()), weft(Backend::Alloc), "its lease offers no transport (BackendType `alloc`)"),
        (
            ours(vxlan()),
            flannel("wireguard"),
            "its BackendType `wireguard` is none that weft speaks (vxlan, host-gw, udp)",
        ),
    ];
    for (model, peer, expected) in table {
        let case = format!(
            "{} with {} `{}`",
            model.config.backend.name(),
            if peer.node.is_some() { "weft" } else { "flanneld" },
            peer.backend
        );
        assert_eq!(way(model, peer, Family::V4), expected, "{case}");
    }
}

#[test]
fn the_outer_family_is_the_inner_one_where_possible() {
    let v6_in_v4 = "vxlan over IPv4";
    let table = [
        // pods' family, our hosts' families, the peer's, the way for a weft peer, for flanneld
        (Family::V4, DUAL, DUAL, "vxlan over IPv4", "vxlan over IPv4"),
        (Family::V6, DUAL, DUAL, "vxlan over IPv6", "vxlan over IPv6"),
        (
            Family::V6,
            DUAL,
            V4,
            v6_in_v4,
            "the peer has no public address that the other could use for IPv6 packets",
        ),
        (
            Family::V6,
            V4,
            DUAL,
            v6_in_v4,
            "this host has no public address that the other could use for IPv6 packets",
        ),
        (
            Family::V4,
            V6,
            V6,
            "vxlan over IPv6",
            "this host has no public address that the other could use for IPv4 packets",
        ),
        (
            Family::V4,
            V4,
            V6,
            "its BackendType is vxlan, but its BackendData gives no VNI and VtepMAC for IPv4",
            "the peer has no public address that the other could use for IPv4 packets",
        ),
    ];
    for (inner, ours, theirs, weft, flannel) in table {
        let ours = || model(vxlan(), DUAL, ours);
        assert_eq!(way(ours(), weft_peer(8, &vxlan(), DUAL, theirs), inner), weft, "{inner} {theirs:?}");
        assert_eq!(way(ours(), flannel_peer(8, "vxlan", DUAL, theirs), inner), flannel, "{inner} {theirs:?}");
    }
}

#[test]
fn a_lease_that_cannot_be_right_is_left_out_and_says_why() {
    type Harm = fn(&mut Peer);
    fn end(peer: &mut Peer) -> &mut VxlanEnd {
        peer.transports.vxlan.as_mut().expect("a vxlan peer")
    }
    let table: &[(&str, Harm)] = &[
        ("its VNI is 2, ours is 1", |peer| end(peer).vni = vni(2)),
        ("its VXLAN port is 4789, ours is 8472", |peer| end(peer).port = 4789),
        ("its BackendType is vxlan, but its BackendData gives no VNI and VtepMAC for IPv4", |peer| {
            peer.transports.vxlan = None
        }),
        ("its VtepMAC 00:00:00:00:00:00 is zero or a group address", |peer| {
            end(peer).mac_v4 = Some(Mac([0; 6]));
        }),
        ("its VtepMAC 01:00:5e:00:00:01 is zero or a group address", |peer| {
            end(peer).mac_v4 = Some(Mac([1, 0, 0x5e, 0, 0, 1]));
        }),
        ("its public address 192.0.2.7 is our own", |peer| peer.public_v4 = Some(public_v4(7))),
        ("its public address 224.0.0.1 is not one host's", |peer| {
            peer.public_v4 = Some([224, 0, 0, 1].into());
        }),
        ("its public address 127.0.0.1 is not one host's", |peer| {
            peer.public_v4 = Some([127, 0, 0, 1].into());
        }),
        ("10.43.8.0/24 is not inside the network 10.42.0.0/16", |peer| {
            peer.subnet.v4 = Some("10.43.8.0/24".parse().expect("a network"));
        }),
        ("10.0.0.0/8 is not inside the network 10.42.0.0/16", |peer| {
            peer.subnet.v4 = Some("10.0.0.0/8".parse().expect("a network"));
        }),
        ("10.42.7.128/25 overlaps our own subnet 10.42.7.0/24", |peer| {
            peer.subnet.v4 = Some("10.42.7.128/25".parse().expect("a network"));
        }),
        ("10.42.0.0/16 overlaps our own subnet 10.42.7.0/24", |peer| {
            peer.subnet.v4 = Some("10.42.0.0/16".parse().expect("a network"));
        }),
    ];
    for (expected, harm) in table {
        let mut peer = flannel_peer(8, "vxlan", V4, V4);
        harm(&mut peer);
        let healthy = plan(&with_peers(model(vxlan(), V4, V4), [flannel_peer(9, "vxlan", V4, V4)]));
        let both =
            plan(&with_peers(model(vxlan(), V4, V4), [peer.clone(), flannel_peer(9, "vxlan", V4, V4)]));
        assert_eq!(both.kernel, healthy.kernel, "nothing else changes: {expected}");
        assert_eq!(way(model(vxlan(), V4, V4), peer, Family::V4), *expected);
    }
}

#[test]
fn what_two_leases_claim_the_first_gets() {
    let first = weft_peer(8, &vxlan(), V4, V4);
    let cloned = Peer { subnet: subnet(9, V4), public_v4: Some(public_v4(9)), ..first.clone() };
    let desired = plan(&with_peers(model(vxlan(), V4, V4), [first.clone(), cloned.clone()]));
    let mac = derived_mac(&node(8), vni(1), Family::V4);
    assert_eq!(desired.skipped[&(cloned.subnet, Family::V4)], Skip::SameMac(mac, first.subnet));

    // One host with two leases is no clone.
    let second = Peer { subnet: subnet(9, V4), ..first.clone() };
    let desired = plan(&with_peers(model(vxlan(), V4, V4), [first.clone(), second]));
    assert_eq!(desired.skipped, BTreeMap::new());
    assert_eq!((desired.kernel.routes.len(), desired.kernel.fdb.len()), (2, 1));

    let mut half = weft_peer(9, &vxlan(), V4, V4);
    half.subnet.v4 = Some("10.42.8.0/25".parse().expect("a network"));
    let desired = plan(&with_peers(model(vxlan(), V4, V4), [first.clone(), half.clone()]));
    assert_eq!(desired.skipped[&(half.subnet, Family::V4)], Skip::SameFirstAddress(first.subnet));
}

#[test]
fn mtus_follow_the_way_and_the_underlay() {
    let table = [
        // backend, pods, hosts, underlay, links, pods' MTU
        (vxlan(), V4, V4, 1500, "weft.1 1450", 1450),
        (vxlan(), V6, V6, 1500, "weft-v6.1 1430", 1430),
        (vxlan(), DUAL, DUAL, 1500, "weft-v6.1 1430 weft.1 1450", 1430),
        (vxlan(), DUAL, V4, 1500, "weft.1 1450", 1450),
        (vxlan(), DUAL, DUAL, 9000, "weft-v6.1 8930 weft.1 8950", 8930),
        (vxlan(), DUAL, DUAL, 1340, "weft-v6.1 1270 weft.1 1290", 1280),
        (UDP, V4, V4, 1500, "weft-udp.8285 1472", 1472),
        (UDP, DUAL, DUAL, 1500, "weft-udp.8285 1472", 1452),
        (UDP, V6, V6, 1300, "weft-udp.8285 1280", 1280),
        (Backend::HostGw, V4, V4, 1500, "", 1500),
        (Backend::Alloc, V4, V4, 1500, "", 1500),
    ];
    for (backend, inner, outer, underlay, links, pods) in table {
        let mut model = model(backend, inner, outer);
        model.me.underlay.mtu = underlay;
        let desired = plan(&model);
        let found: Vec<_> =
            desired.kernel.links.values().map(|link| format!("{} {}", link.name, link.mtu)).collect();
        let case = format!("{:?} {inner:?} {outer:?} {underlay}", model.config.backend);
        assert_eq!((found.join(" ").as_str(), desired.pod_mtu), (links, pods), "{case}");
    }
}

/// `Backend.MTU` stands for the underlay's, as in flannel: the tunnel's is 50 less.
#[test]
fn a_configured_mtu_is_the_underlays() {
    for (configured, link, pods) in [(1400, 1350, 1350), (9000, 1450, 1450)] {
        let backend = Backend::Vxlan {
            vni: vni(1),
            port: 8472,
            mtu: Some(configured),
            gbp: false,
            learning: false,
            direct_routing: true,
        };
        let near = weft_peer(8, &backend, V4, V4);
        let desired = plan(&with_peers(model(backend, V4, V4), [near]));
        assert_eq!(desired.kernel.links[&name("weft.1")].mtu, link);
        assert_eq!(desired.pod_mtu, pods);
        let route = desired.kernel.routes.values().next().expect("one peer");
        assert_eq!(route.mtu, (configured < 1500).then_some(configured), "a plain route says so itself");
    }
}

#[test]
fn the_route_says_where_a_tunnel_carries_less_than_its_device() {
    let peers = [weft_peer(8, &UDP, DUAL, DUAL), weft_peer(9, &UDP, DUAL, V6)];
    let desired = plan(&with_peers(model(UDP, DUAL, DUAL), peers));
    let mtu = |dst| desired.kernel.routes.values().find(|r| r.key.dst == net(dst)).expect("planned").mtu;
    assert_eq!(desired.kernel.links[&name("weft-udp.8285")].mtu, 1472);
    assert_eq!(mtu("10.42.8.0/24"), None);
    assert_eq!(mtu("10.42.9.0/24"), Some(1452), "over IPv6");
    assert_eq!(mtu("fd42:0:0:8::/64"), Some(1452));
}

/// The kernel takes IPv6 off a link under 1280, and lets no VXLAN link be larger than its underlay.
#[test]
fn ipv6_that_does_not_fit_is_left_out_and_says_why() {
    let mut model = with_peers(model(vxlan(), DUAL, DUAL), [weft_peer(8, &vxlan(), DUAL, DUAL)]);
    model.me.underlay.mtu = 1340;
    let desired = plan(&model);
    let skip = &desired.skipped[&(subnet(8, DUAL), Family::V6)];
    assert_eq!(
        skip.to_string(),
        "IPv6 needs 1280 bytes, and vxlan over IPv6 leaves 1270 of the underlay's MTU"
    );
    assert!(desired.kernel.addresses.iter().all(|address| address.network.is_ipv4()));
}

#[test]
fn vtep_macs_are_stable_and_apart() {
    let mac = derived_mac(&node(7), vni(1), Family::V4);
    // A changed derivation would cut every host off from its peers until they hear of it.
    assert_eq!(mac.to_string(), "be:e0:44:cf:4b:fc");
    for other in [(8, 1, Family::V4), (7, 2, Family::V4), (7, 1, Family::V6)] {
        assert_ne!(derived_mac(&node(other.0), vni(other.1), other.2), mac);
    }
    let mut model = model(vxlan(), DUAL, DUAL);
    model.me.adopted_mac_v4 = Some(Mac([2, 9, 9, 9, 9, 9]));
    let desired = plan(&model);
    assert_eq!(desired.kernel.links[&name("weft.1")].mac, model.me.adopted_mac_v4);
    let derived = derived_mac(&node(7), vni(1), Family::V6);
    assert_eq!(desired.kernel.links[&name("weft-v6.1")].mac, Some(derived));
}

#[test]
fn every_vni_gives_names_that_the_kernel_takes() {
    for raw in [0, 1, 4096, 9_999_999, 10_000_000, 0xff_ffff] {
        for outer in Family::ALL {
            assert!(link_name(vni(raw), outer).as_str().ends_with(&format!(".{raw}")));
        }
    }
}

#[test]
fn behind_a_nat_the_tunnel_leaves_with_an_address_that_we_have() {
    let mut model = model(direct(), V4, V4);
    model.me.public_v4 = Some([203, 0, 113, 7].into());
    let desired = plan(&with_peers(model, [weft_peer(8, &direct(), V4, V4)]));
    let LinkKind::Vxlan(vxlan) = &desired.kernel.links[&name("weft.1")].kind else { panic!("vxlan") };
    assert_eq!(vxlan.local, Some(public_v4(7).into()));
    let way = desired.ways[&(subnet(8, V4), Family::V4)];
    assert_eq!(way.transport, Transport::Vxlan, "a neighbour would send to the public address");
}

#[test]
fn forwarding_is_switched_on_where_pods_are() {
    let paths = |model: &Model| {
        let wanted = plan(model).sysctls;
        wanted.into_iter().map(|sysctl| format!("{}={}", sysctl.path, sysctl.value)).collect::<Vec<_>>()
    };
    let (ip4, ip6) = ("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1");
    let ra = "net/ipv6/conf/eth0/accept_ra=2";
    assert_eq!(paths(&model(vxlan(), V4, V4)), [ip4]);
    assert_eq!(paths(&model(vxlan(), DUAL, DUAL)), [ip4, ra, ip6], "accept_ra before forwarding");
    assert!(paths(&model(Backend::Alloc, DUAL, DUAL)).is_empty());
    let mut landless = model(vxlan(), V4, V4);
    landless.me.subnet = None;
    assert!(paths(&landless).is_empty());
}

#[test]
fn a_lost_lease_takes_our_addresses_and_leaves_the_rest() {
    let mut model = with_peers(model(vxlan(), V4, V4), [weft_peer(8, &vxlan(), V4, V4)]);
    let with = plan(&model).kernel;
    model.me.subnet = None;
    let without = plan(&model).kernel;
    assert!(without.addresses.is_empty());
    assert_eq!(without, State { addresses: BTreeSet::new(), ..with });
}

#[test]
fn two_networks_on_one_host_share_nothing() {
    let mut green = model(Backend::HostGw, V4, V4);
    green.me.network = "green".to_owned();
    green.config.v4.as_mut().expect("v4").network = "10.43.0.0/16".parse().expect("a network");
    let blue = model(Backend::HostGw, V4, V4);
    let offer = |model: &Model| crate::backend::offer(&model.me, &model.config).vxlan.expect("a tunnel").vni;
    assert_ne!(offer(&green), offer(&blue), "the kernel refuses one VNI twice");
    assert_eq!(offer(&blue), offer(&model(UDP, V4, V4)), "hosts of one network agree");
}

proptest! {
    /// Each end reads its own configuration and the other's lease, and both say the same.
    #[test]
    fn both_ends_choose_one_way(
        backends in (any_backend(), any_backend()),
        outer in (any_families(), any_families()),
        inner in any_families(),
        apart in any::<bool>(),
    ) {
        let here = model(backends.0.clone(), inner, outer.0);
        let mut there = model(backends.1.clone(), inner, outer.1);
        there.me = me(8, inner, outer.1);
        let (mut peer_there, peer_here) =
            (weft_peer(8, &backends.1, inner, outer.1), weft_peer(7, &backends.0, inner, outer.0));
        if apart {
            peer_there = far(peer_there);
            there.me.public_v4 = peer_there.public_v4;
            there.me.public_v6 = peer_there.public_v6;
            there.me.underlay.addresses = peer_there.addresses().map(IpNetwork::from).collect();
        }
        let ours = plan(&with_peers(here, [peer_there]));
        let theirs = plan(&with_peers(there, [peer_here]));
        let ways = |desired: &Desired| -> Vec<_> {
            desired.ways.iter().map(|((_, inner), way)| (*inner, *way)).collect()
        };
        // `alloc` plans nothing, and to it nothing is planned.
        prop_assert_eq!(ways(&ours), ways(&theirs));
    }

    /// Every entry that a packet needs on its way is there: route, neighbour, FDB, address, link.
    #[test]
    fn nothing_in_a_plan_hangs_in_the_air(model in any_model()) {
        let Desired { kernel, ways, skipped, udp, probes, .. } = plan(&model);
        for route in kernel.routes.values().filter(|route| route.kind == RouteKind::Unicast) {
            let link = route.link.as_ref().expect("a unicast route of ours names its link");
            if *link == model.me.underlay.link {
                continue;
            }
            let link = &kernel.links[link];
            if let LinkKind::Vxlan(_) = link.kind {
                let via = route.via.expect("by the peer's first address");
                let neighbour = &kernel.neighbours[&(link.name.clone(), via)];
                let at: Vec<_> = kernel
                    .fdb
                    .iter()
                    .filter(|entry| (&entry.link, entry.mac) == (&link.name, neighbour.mac))
                    .collect();
                prop_assert_eq!(at.len(), 1, "one place for {}", neighbour.mac);
                prop_assert_ne!(Some(neighbour.mac), link.mac);
            } else {
                let peers = &udp.as_ref().expect("a TUN needs its table").peers;
                // The network itself leads there too, for what nobody leases.
                let networks = [model.config.v4.map(|pool| pool.network.into()), model.config.v6.map(|pool| pool.network.into())];
                prop_assert!(peers.contains_key(&route.key.dst) || networks.contains(&Some(route.key.dst)));
            }
        }
        prop_assert_eq!(udp.is_some(), kernel.links.values().any(|link| link.kind == LinkKind::Tun));
        for subnet in model.peers.keys().filter(|_| model.config.backend != Backend::Alloc) {
            for inner in backend::inner_families(&model.config).filter(|inner| subnet.of(*inner).is_some()) {
                let key = (*subnet, inner);
                prop_assert!(ways.contains_key(&key) != skipped.contains_key(&key), "{} {}", subnet, inner);
                prop_assert!(!ways.contains_key(&key) || probes.contains_key(subnet));
            }
        }
        for link in kernel.links.values() {
            prop_assert!(link.mtu <= model.me.underlay.mtu);
            let speaks_v6 = kernel.addresses.iter().any(|a| a.link == link.name && a.network.is_ipv6());
            prop_assert!(!speaks_v6 || link.mtu >= 1280);
        }
    }
}
