//! What links, addresses, routes, neighbours and FDB entries do, on the real kernel.
//!
//! Each case gets a network namespace of its own.

use std::net::IpAddr;

use weft_kernel::net::*;
use weft_kernel::netns::NetNs;

fn name(raw: &str) -> LinkName {
    raw.parse().unwrap()
}

fn ip(raw: &str) -> IpAddr {
    raw.parse().unwrap()
}

fn mac(raw: &str) -> Mac {
    raw.parse().unwrap()
}

/// A link as one would wish for it: up, everything else as it comes.
fn link(raw: &str, kind: LinkKind) -> Link {
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

fn vxlan(raw: &str, vni: u32, local: &str) -> Link {
    let vni = Vni::try_from(vni).unwrap();
    let local = Some(ip(local));
    let kind = LinkKind::Vxlan(Vxlan { vni, port: 8472, local, underlay: None, learning: false, gbp: false });
    Link { mac: Some(mac("4e:11:00:00:00:01")), ..link(raw, kind) }
}

fn pair(host: &str, peer: &str) -> Change {
    let (host, peer) = (link(host, LinkKind::Veth), link(peer, LinkKind::Veth));
    Change::AddVethPair { host, peer, peer_netns: None }
}

fn address(on: &str, network: &str) -> Address {
    Address { link: name(on), network: network.parse().unwrap() }
}

fn route(dst: &str) -> Route {
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

fn onlink(dst: &str, via: &str, link: &str) -> Route {
    Route { via: Some(ip(via)), link: Some(name(link)), onlink: true, ..route(dst) }
}

fn neighbour(on: &str, addr: &str, raw: &str) -> Neighbour {
    Neighbour { link: name(on), addr: ip(addr), mac: mac(raw), permanent: true }
}

fn fdb(on: &str, raw: &str, dst: &str) -> FdbEntry {
    FdbEntry { link: name(on), mac: mac(raw), dst: ip(dst), permanent: true }
}

async fn must(net: &impl Net, changes: &[Change]) {
    let failures = net.apply(changes).await;
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The scene most cases start from: an underlay and a VXLAN link on it.
async fn tunnel(net: &impl Net) {
    must(
        net,
        &[
            pair("up0", "far0"),
            Change::AddAddress(address("up0", "192.0.2.1/24")),
            Change::AddLink(vxlan("weft.1", 1, "192.0.2.1")),
            Change::AddAddress(address("weft.1", "10.42.1.0/32")),
        ],
    )
    .await;
}

async fn what_is_made_is_there(net: &impl Net) {
    tunnel(net).await;
    let state = net.observe().await.unwrap();
    let made = &state.links[&name("weft.1")];
    let LinkKind::Vxlan(vxlan) = &made.kind else { panic!("{made:?}") };
    assert_eq!((vxlan.vni.get(), vxlan.port, vxlan.local), (1, 8472, Some(ip("192.0.2.1"))));
    assert_eq!((made.mac, made.mtu, made.up), (Some(mac("4e:11:00:00:00:01")), 1450, true));
    assert!(state.addresses.contains(&address("weft.1", "10.42.1.0/32")));

    let wanted = [
        Change::ReplaceNeighbour(neighbour("weft.1", "10.42.7.0", "4e:11:00:00:00:07")),
        Change::ReplaceFdb(fdb("weft.1", "4e:11:00:00:00:07", "192.0.2.7")),
        Change::ReplaceRoute(onlink("10.42.7.0/24", "10.42.7.0", "weft.1")),
    ];
    must(net, &wanted).await;
    // A second time changes nothing and is no failure.
    must(net, &wanted).await;
    let state = net.observe().await.unwrap();
    let there = onlink("10.42.7.0/24", "10.42.7.0", "weft.1");
    assert_eq!(state.routes.get(&there.key), Some(&there));
    let there = neighbour("weft.1", "10.42.7.0", "4e:11:00:00:00:07");
    assert_eq!(state.neighbours.get(&(name("weft.1"), ip("10.42.7.0"))), Some(&there));
    assert!(state.fdb.contains(&fdb("weft.1", "4e:11:00:00:00:07", "192.0.2.7")));
}

macro_rules! suite {
    ($($case:ident,)*) => {
        mod kernel {
            $(#[test]
            fn $case() {
                let ns = super::NetNs::anonymous().unwrap();
                let net = super::Rtnetlink::open_in(&ns).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(super::$case(&net));
            })*
        }
    };
}

suite! {
    what_is_made_is_there,
}
