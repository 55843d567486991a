//! Words for tests: links, addresses and the like, made from short strings.

#![allow(dead_code, reason = "each test target uses some of it")]

use std::net::IpAddr;

use weft_kernel::net::*;
use weft_kernel::netns::NetNs;

pub(crate) fn name(raw: &str) -> LinkName {
    raw.parse().unwrap()
}

pub(crate) fn ip(raw: &str) -> IpAddr {
    raw.parse().unwrap()
}

pub(crate) fn mac(raw: &str) -> Mac {
    raw.parse().unwrap()
}

/// A link as one would wish for it: up, everything else as it comes.
pub(crate) fn link(raw: &str, kind: LinkKind) -> Link {
    Link {
        name: name(raw),
        index: 0,
        kind,
        mac: None,
        mtu: 1450,
        up: true,
        carrier: true,
        alias: None,
        master: None,
    }
}

pub(crate) fn vxlan(raw: &str, vni: u32, local: &str) -> Link {
    let vni = Vni::try_from(vni).unwrap();
    let local = Some(ip(local));
    let kind = LinkKind::Vxlan(Vxlan { vni, port: 8472, local, underlay: None, learning: false, gbp: false });
    Link { mac: Some(mac("4e:11:00:00:00:01")), ..link(raw, kind) }
}

pub(crate) fn pair(host: &str, peer: &str) -> Change {
    let (host, peer) = (link(host, LinkKind::Veth), link(peer, LinkKind::Veth));
    Change::AddVethPair { host, peer, peer_netns: None }
}

pub(crate) fn address(on: &str, network: &str) -> Address {
    Address { link: name(on), network: network.parse().unwrap() }
}

pub(crate) fn route(dst: &str) -> Route {
    let dst: ipnetwork::IpNetwork = dst.parse().unwrap();
    let metric = if dst.is_ipv6() { 1024 } else { 0 };
    let key = RouteKey { table: 254, dst, metric };
    Route {
        key,
        kind: RouteKind::Unicast,
        protocol: 87,
        via: None,
        link: None,
        onlink: false,
        src: None,
        mtu: None,
    }
}

pub(crate) fn dev(dst: &str, link: &str) -> Route {
    Route { link: Some(name(link)), ..route(dst) }
}

pub(crate) fn via(dst: &str, via: &str, link: &str) -> Route {
    Route { via: Some(ip(via)), ..dev(dst, link) }
}

pub(crate) fn onlink(dst: &str, router: &str, link: &str) -> Route {
    Route { onlink: true, ..via(dst, router, link) }
}

pub(crate) fn blackhole(dst: &str) -> Route {
    Route { kind: RouteKind::Blackhole, ..route(dst) }
}

pub(crate) fn neighbour(on: &str, addr: &str, raw: &str) -> Neighbour {
    Neighbour { link: name(on), addr: ip(addr), mac: mac(raw), permanent: true }
}

pub(crate) fn fdb(on: &str, raw: &str, dst: &str) -> FdbEntry {
    FdbEntry { link: name(on), mac: mac(raw), dst: ip(dst), permanent: true }
}

pub(crate) fn set(link: &str, patch: LinkPatch) -> Change {
    Change::SetLink(name(link), patch)
}

pub(crate) fn up(link: &str, up: bool) -> Change {
    set(link, LinkPatch { up: Some(up), ..LinkPatch::default() })
}

pub(crate) async fn must(net: &impl Net, changes: &[Change]) {
    let failures = net.apply(changes).await;
    assert!(failures.is_empty(), "{failures:#?}");
}

/// A namespace as hosts are: with its loopback link up, as [`FakeNet::new`] has it.
pub(crate) fn fresh_kernel() -> Rtnetlink {
    let ns = NetNs::anonymous().unwrap();
    let net = Rtnetlink::open_in(&ns).unwrap();
    assert!(net.apply_blocking(&[up("lo", true)]).is_empty());
    net
}

/// Every step that a random walk through a small network may take.
pub(crate) fn steps() -> Vec<Change> {
    let with_src = |route: Route, src: &str| Route { src: Some(ip(src)), ..route };
    let mut steps = vec![
        pair("up0", "far0"),
        pair("up0", "far0"),
        pair("p1", "p2"),
        Change::DeleteLink(name("up0")),
        Change::DeleteLink(name("p2")),
        Change::AddLink(link("br0", LinkKind::Bridge)),
        Change::DeleteLink(name("br0")),
        set("p1", LinkPatch { master: Some(name("br0")), ..LinkPatch::default() }),
        Change::AddLink(vxlan("weft.1", 1, "192.0.2.1")),
        Change::AddLink(vxlan("weft.1", 1, "192.0.2.1")),
        Change::AddLink(vxlan("weft.2", 2, "192.0.2.1")),
        Change::DeleteLink(name("weft.1")),
        Change::RenameLink { from: name("weft.1"), to: name("weft.3") },
        Change::RenameLink { from: name("weft.3"), to: name("weft.1") },
        Change::RenameLink { from: name("up0"), to: name("up1") },
        Change::RenameLink { from: name("up1"), to: name("up0") },
        set("weft.1", LinkPatch { mtu: Some(1400), ..LinkPatch::default() }),
        set("weft.1", LinkPatch { mac: Some(mac("4e:11:00:00:00:99")), ..LinkPatch::default() }),
        set("weft.1", LinkPatch { alias: Some("weft:t:vxlan".into()), ..LinkPatch::default() }),
    ];
    for link in ["up0", "far0", "weft.1", "p1"] {
        steps.extend([up(link, false), up(link, true), up(link, true)]);
    }
    for address in [
        address("up0", "192.0.2.1/24"),
        address("up0", "192.0.2.2/24"),
        address("up0", "2001:db8::1/64"),
        address("weft.1", "10.42.1.0/32"),
        address("weft.1", "fd00:42:1::/128"),
        address("p1", "198.51.100.1/24"),
    ] {
        steps.extend([Change::AddAddress(address.clone()), Change::AddAddress(address.clone())]);
        steps.push(Change::DeleteAddress(address));
    }
    for route in [
        onlink("10.42.7.0/24", "10.42.7.0", "weft.1"),
        onlink("10.42.7.0/24", "10.42.8.0", "weft.1"),
        onlink("fd00:42:7::/64", "fd00:42:7::", "weft.1"),
        via("10.42.7.0/24", "192.0.2.7", "up0"),
        via("10.42.9.0/24", "192.0.2.9", "up0"),
        via("fd00:42:9::/64", "2001:db8::9", "up0"),
        with_src(via("10.42.10.0/24", "192.0.2.9", "up0"), "10.42.1.0"),
        with_src(dev("10.42.11.0/24", "p1"), "192.0.2.1"),
        with_src(via("fd00:42:11::/64", "2001:db8::9", "up0"), "2001:db8::1"),
        dev("10.42.12.5/32", "p1"),
        dev("fd00:42:12::5/128", "p1"),
        blackhole("10.42.0.0/16"),
        blackhole("fd00:42::/48"),
        Route { mtu: Some(1300), ..dev("10.42.13.0/24", "p1") },
    ] {
        steps.extend([Change::ReplaceRoute(route.clone()), Change::ReplaceRoute(route.clone())]);
        steps.push(Change::DeleteRoute(route));
    }
    for neighbour in [
        neighbour("weft.1", "10.42.7.0", "4e:11:00:00:00:07"),
        neighbour("weft.1", "10.42.7.0", "4e:11:00:00:00:08"),
        neighbour("weft.1", "fd00:42:7::", "4e:11:00:00:00:07"),
        neighbour("up0", "192.0.2.7", "4e:11:00:00:00:17"),
        neighbour("p1", "10.42.12.5", "4e:11:00:00:00:27"),
    ] {
        steps.push(Change::ReplaceNeighbour(neighbour.clone()));
        steps.push(Change::DeleteNeighbour(neighbour));
    }
    for entry in [
        fdb("weft.1", "4e:11:00:00:00:07", "192.0.2.7"),
        fdb("weft.1", "4e:11:00:00:00:07", "192.0.2.8"),
        fdb("weft.1", "00:00:00:00:00:00", "192.0.2.7"),
        fdb("weft.1", "00:00:00:00:00:00", "192.0.2.8"),
        fdb("weft.2", "4e:11:00:00:00:07", "192.0.2.7"),
    ] {
        steps.push(Change::ReplaceFdb(entry.clone()));
        steps.push(Change::DeleteFdb(entry));
    }
    steps
}
