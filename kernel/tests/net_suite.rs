//! What links, addresses, routes, neighbours and FDB entries do: on the real kernel, each case in a
//! network namespace of its own, and on the fake.

mod scene;

use scene::*;
use weft_kernel::net::*;

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

/// What the failures say, by the places of the changes.
async fn refusals(net: &impl Net, changes: &[Change]) -> Vec<(usize, i32)> {
    let failures = net.apply(changes).await;
    failures.iter().map(|failure| (failure.index, failure.source.raw_os_error().unwrap())).collect()
}

async fn failures_name_their_changes_and_the_rest_is_done(net: &impl Net) {
    let changes = [
        Change::AddAddress(address("none", "192.0.2.1/24")),
        Change::AddLink(link("br0", LinkKind::Bridge)),
        Change::ReplaceRoute(dev("10.42.7.0/24", "none")),
        Change::ReplaceRoute(dev("10.42.8.0/24", "br0")),
        Change::ReplaceNeighbour(neighbour("none", "10.42.7.0", "4e:11:00:00:00:07")),
        Change::ReplaceFdb(fdb("none", "4e:11:00:00:00:07", "192.0.2.7")),
        set("none", LinkPatch::default()),
        Change::RenameLink { from: name("none"), to: name("some") },
    ];
    let refused = refusals(net, &changes).await;
    assert_eq!(refused, [0, 2, 4, 5, 6, 7].map(|index| (index, libc::ENODEV)));
    assert!(net.observe().await.unwrap().routes.contains_key(&route("10.42.8.0/24").key));
}

async fn what_is_not_there_is_deleted_with_success(net: &impl Net) {
    tunnel(net).await;
    for on in ["none", "weft.1"] {
        must(
            net,
            &[
                Change::DeleteAddress(address(on, "10.42.99.0/32")),
                Change::DeleteRoute(onlink("10.42.7.0/24", "10.42.7.0", on)),
                Change::DeleteNeighbour(neighbour(on, "10.42.7.0", "4e:11:00:00:00:07")),
                Change::DeleteFdb(fdb(on, "4e:11:00:00:00:07", "192.0.2.7")),
                Change::DeleteLink(name("none")),
            ],
        )
        .await;
    }
}

async fn an_address_is_answered_for_until_the_link_goes_down(net: &impl Net) {
    tunnel(net).await;
    let proxy = |addr: &str, protocol| Proxy { link: name("up0"), addr: addr.parse().unwrap(), protocol };
    let (ours, other) = (proxy("2001:db8::5", 87), proxy("2001:db8::6", 0));
    must(net, &[ours.clone(), other.clone(), ours.clone()].map(Change::AddProxy)).await;
    let state = net.observe().await.unwrap();
    assert_eq!(state.proxies, [ours.clone(), other.clone()].into());
    assert!(!state.neighbours.keys().any(|(link, _)| *link == name("up0")), "an answer is no neighbour");
    // Twice, and where there is none: a success.
    must(net, &[ours.clone(), ours.clone()].map(Change::DeleteProxy)).await;
    assert_eq!(net.observe().await.unwrap().proxies, [other].into());
    must(net, &[up("up0", false)]).await;
    assert_eq!(net.observe().await.unwrap().proxies, [].into());
    let nowhere = Proxy { link: name("none"), ..ours };
    must(net, &[Change::DeleteProxy(nowhere.clone())]).await;
    assert_eq!(refusals(net, &[Change::AddProxy(nowhere)]).await, [(0, libc::ENODEV)]);
}

async fn a_link_is_made_once(net: &impl Net) {
    tunnel(net).await;
    // The same again: there already. Other settings under its name: no.
    must(net, &[Change::AddLink(vxlan("weft.1", 1, "192.0.2.1")), pair("up0", "far0")]).await;
    let other_mtu = Link { mtu: 1400, ..vxlan("weft.1", 1, "192.0.2.1") };
    // The same VNI and port under another name: no, but another VNI, or the other outer family, may.
    let changes = [
        Change::AddLink(other_mtu),
        Change::AddLink(vxlan("weft.2", 1, "192.0.2.1")),
        Change::AddLink(vxlan("weft.2", 2, "192.0.2.1")),
        Change::AddLink(vxlan("weft-v6.1", 1, "2001:db8::1")),
        pair("up0", "other"),
    ];
    assert_eq!(refusals(net, &changes).await, [0, 1, 4].map(|index| (index, libc::EEXIST)));
    let state = net.observe().await.unwrap();
    assert!(!state.links.contains_key(&name("other")));
    assert!(state.links.contains_key(&name("weft-v6.1")));
}

async fn a_next_hop_is_reachable_or_onlink(net: &impl Net) {
    tunnel(net).await;
    let changes = [
        Change::ReplaceRoute(via("10.42.7.0/24", "198.51.100.9", "up0")),
        Change::ReplaceRoute(via("10.42.7.0/24", "192.0.2.9", "weft.1")),
        Change::ReplaceRoute(via("10.42.7.0/24", "192.0.2.9", "up0")),
        Change::ReplaceRoute(onlink("10.42.8.0/24", "198.51.100.9", "up0")),
        // A host's own address is no next hop.
        Change::ReplaceRoute(onlink("10.42.9.0/24", "10.42.1.0", "weft.1")),
    ];
    let refused = refusals(net, &changes).await;
    assert_eq!(refused, [(0, libc::ENETUNREACH), (1, libc::ENETUNREACH), (4, libc::EINVAL)]);
}

async fn a_route_replaces_the_one_under_its_key(net: &impl Net) {
    tunnel(net).await;
    for (old, new) in [
        (via("10.42.7.0/24", "192.0.2.9", "up0"), onlink("10.42.7.0/24", "10.42.7.0", "weft.1")),
        (onlink("10.42.7.0/24", "10.42.7.0", "weft.1"), blackhole("10.42.7.0/24")),
        (onlink("fd00:7::/64", "fd00:7::", "weft.1"), onlink("fd00:7::/64", "fd00:8::", "up0")),
        (onlink("fd00:7::/64", "fd00:8::", "up0"), blackhole("fd00:7::/64")),
        (blackhole("fd00:7::/64"), dev("fd00:7::/64", "weft.1")),
        (dev("fd00:7::/64", "weft.1"), blackhole("fd00:7::/64")),
        (blackhole("10.42.7.0/24"), dev("10.42.7.0/24", "up0")),
        (
            dev("10.42.6.0/24", "up0"),
            Route { mtu: Some(1300), src: Some(ip("10.42.1.0")), ..dev("10.42.6.0/24", "up0") },
        ),
    ] {
        must(net, &[Change::ReplaceRoute(old.clone()), Change::ReplaceRoute(new.clone())]).await;
        // The former is not there any more; deleting it leaves the new one.
        if (old.kind, old.via, &old.link) != (new.kind, new.via, &new.link) {
            must(net, &[Change::DeleteRoute(old)]).await;
        }
        let state = net.observe().await.unwrap();
        assert_eq!(state.routes.get(&new.key), Some(&new));
        assert_eq!(state.twins.len(), 0);
    }
}

async fn routes_of_tables_and_metrics_stand_side_by_side(net: &impl Net) {
    tunnel(net).await;
    let at = |table, metric| {
        let plain = dev("10.42.7.0/24", "up0");
        Route { key: RouteKey { table, metric, ..plain.key.clone() }, ..plain }
    };
    let routes = [at(254, 0), at(254, 100), at(100, 0), at(70_000, 50)];
    let replace: Vec<Change> = routes.iter().cloned().map(Change::ReplaceRoute).collect();
    must(net, &replace).await;
    let state = net.observe().await.unwrap();
    for route in &routes {
        assert_eq!(state.routes.get(&route.key), Some(route));
    }
    must(net, &[Change::DeleteRoute(at(254, 100)), Change::DeleteRoute(at(70_000, 50))]).await;
    let state = net.observe().await.unwrap();
    let there = routes.each_ref().map(|route| state.routes.contains_key(&route.key));
    assert_eq!(there, [true, false, true, false]);
}

async fn an_fdb_entry_has_one_destination(net: &impl Net) {
    tunnel(net).await;
    for station in ["4e:11:00:00:00:07", "00:00:00:00:00:00"] {
        let (old, new) = (fdb("weft.1", station, "192.0.2.7"), fdb("weft.1", station, "192.0.2.8"));
        must(net, &[Change::ReplaceFdb(old.clone()), Change::ReplaceFdb(new.clone())]).await;
        let state = net.observe().await.unwrap();
        assert!(state.fdb.contains(&new) && !state.fdb.contains(&old), "{:?}", state.fdb);
        // The former is gone; deleting it leaves the new one.
        must(net, &[Change::DeleteFdb(old)]).await;
        assert!(net.observe().await.unwrap().fdb.contains(&new));
        must(net, &[Change::DeleteFdb(new)]).await;
        assert!(net.observe().await.unwrap().fdb.is_empty());
    }
    let changes = [
        Change::ReplaceFdb(fdb("weft.1", "4e:11:00:00:00:07", "2001:db8::7")),
        Change::ReplaceFdb(fdb("up0", "4e:11:00:00:00:07", "192.0.2.7")),
    ];
    assert_eq!(refusals(net, &changes).await.len(), 2, "the wrong family, and no VXLAN");
}

/// All that a peer takes, on `weft.1`, beside one of the underlay's.
async fn peer(net: &impl Net) {
    tunnel(net).await;
    must(
        net,
        &[
            Change::AddAddress(address("weft.1", "fd00:42:1::/128")),
            Change::ReplaceNeighbour(neighbour("weft.1", "10.42.7.0", "4e:11:00:00:00:07")),
            Change::ReplaceNeighbour(neighbour("weft.1", "fd00:42:7::", "4e:11:00:00:00:07")),
            Change::ReplaceFdb(fdb("weft.1", "4e:11:00:00:00:07", "192.0.2.7")),
            Change::ReplaceRoute(onlink("10.42.7.0/24", "10.42.7.0", "weft.1")),
            Change::ReplaceRoute(onlink("fd00:42:7::/64", "fd00:42:7::", "weft.1")),
            Change::ReplaceRoute(via("10.42.9.0/24", "192.0.2.9", "up0")),
        ],
    )
    .await;
}

/// How many of a link's IPv4 routes, IPv6 routes, neighbours and FDB entries there are.
async fn count(net: &impl Net, on: &str) -> [usize; 4] {
    let (state, on) = (net.observe().await.unwrap(), name(on));
    let routes = |v4: bool| {
        let of_link =
            state.routes.values().filter(|route| route.link.as_ref() == Some(&on) && route.protocol == 87);
        of_link.filter(|route| route.key.dst.is_ipv4() == v4).count()
    };
    let neighbours = state.neighbours.values().filter(|held| held.link == on && held.permanent).count();
    [routes(true), routes(false), neighbours, state.fdb.iter().filter(|entry| entry.link == on).count()]
}

async fn a_link_that_goes_down_keeps_only_its_fdb(net: &impl Net) {
    peer(net).await;
    assert_eq!(count(net, "weft.1").await, [1, 1, 2, 1]);
    must(net, &[up("weft.1", false)]).await;
    assert_eq!(count(net, "weft.1").await, [0, 0, 0, 1]);
    let state = net.observe().await.unwrap();
    assert!(state.addresses.contains(&address("weft.1", "10.42.1.0/32")));
    assert!(!state.addresses.contains(&address("weft.1", "fd00:42:1::/128")));
    let refused = refusals(net, &[Change::ReplaceRoute(onlink("10.42.7.0/24", "10.42.7.0", "weft.1"))]).await;
    assert_eq!(refused, [(0, libc::ENETDOWN)]);
    assert_eq!(count(net, "up0").await, [1, 0, 0, 0], "another link's are untouched");
}

async fn a_link_that_is_deleted_takes_all_along(net: &impl Net) {
    peer(net).await;
    must(net, &[Change::DeleteLink(name("weft.1"))]).await;
    assert_eq!(count(net, "weft.1").await, [0; 4]);
    // Made anew, it is empty.
    must(net, &[Change::AddLink(vxlan("weft.1", 1, "192.0.2.1"))]).await;
    assert_eq!(count(net, "weft.1").await, [0; 4]);
    // One end of a pair takes the other, and an underlay its tunnels.
    let mut tunnel = vxlan("weft.2", 2, "192.0.2.1");
    tunnel.mtu = 1400;
    if let LinkKind::Vxlan(vxlan) = &mut tunnel.kind {
        vxlan.underlay = Some(name("up0"));
    }
    let too_large = Link { mtu: 1401, ..tunnel.clone() };
    assert_eq!(refusals(net, &[Change::AddLink(too_large)]).await, [(0, libc::EINVAL)]);
    must(net, &[Change::AddLink(tunnel)]).await;
    let LinkKind::Vxlan(seen) = net.observe().await.unwrap().links[&name("weft.2")].kind.clone() else {
        panic!()
    };
    assert_eq!(seen.underlay, Some(name("up0")));
    must(net, &[Change::DeleteLink(name("far0"))]).await;
    let state = net.observe().await.unwrap();
    for gone in ["up0", "far0", "weft.2"] {
        assert!(!state.links.contains_key(&name(gone)), "{gone}");
    }
}

async fn the_last_ipv4_address_takes_ipv4_along(net: &impl Net) {
    peer(net).await;
    must(net, &[Change::AddAddress(address("weft.1", "10.42.1.1/32"))]).await;
    must(net, &[Change::DeleteAddress(address("weft.1", "10.42.1.1/32"))]).await;
    assert_eq!(count(net, "weft.1").await, [1, 1, 2, 1]);
    must(net, &[Change::DeleteAddress(address("weft.1", "10.42.1.0/32"))]).await;
    assert_eq!(count(net, "weft.1").await, [0, 1, 1, 1]);
}

async fn a_new_mac_takes_the_neighbours_along(net: &impl Net) {
    peer(net).await;
    let patch = LinkPatch { mac: Some(mac("4e:11:00:00:00:99")), ..LinkPatch::default() };
    must(net, &[set("weft.1", patch)]).await;
    assert_eq!(count(net, "weft.1").await, [1, 1, 0, 1]);
    assert_eq!(net.observe().await.unwrap().links[&name("weft.1")].mac, Some(mac("4e:11:00:00:00:99")));
}

async fn a_live_link_is_renamed_with_all_it_has(net: &impl Net) {
    peer(net).await;
    must(
        net,
        &[
            Change::RenameLink { from: name("weft.1"), to: name("flannel.1") },
            // Names mean the new links at once, in the same call.
            Change::ReplaceRoute(onlink("10.42.8.0/24", "10.42.8.0", "flannel.1")),
        ],
    )
    .await;
    assert_eq!(count(net, "flannel.1").await, [2, 1, 2, 1]);
    let taken = Change::RenameLink { from: name("flannel.1"), to: name("up0") };
    assert_eq!(refusals(net, &[taken]).await, [(0, libc::EEXIST)]);
}

async fn a_link_is_patched(net: &impl Net) {
    tunnel(net).await;
    must(net, &[Change::AddLink(link("br0", LinkKind::Bridge)), pair("p1", "p2")]).await;
    let alias = Some("weft:t:pod:1".to_owned());
    let patch = LinkPatch {
        mtu: Some(1400),
        alias: alias.clone(),
        master: Some(name("br0")),
        ..LinkPatch::default()
    };
    must(net, &[set("p1", patch)]).await;
    let state = net.observe().await.unwrap();
    let p1 = &state.links[&name("p1")];
    assert_eq!((p1.mtu, &p1.alias, &p1.master), (1400, &alias, &Some(name("br0"))));
    assert_eq!(state.links[&name("br0")].mtu, 1450, "a bridge's MTU is its own, whatever its ports'");
    must(net, &[Change::DeleteLink(name("br0"))]).await;
    assert_eq!(net.observe().await.unwrap().links[&name("p1")].master, None);
}

async fn a_source_must_be_ours_and_goes_with_its_address(net: &impl Net) {
    tunnel(net).await;
    let from = |src: &str| Route { src: Some(ip(src)), ..via("10.42.9.0/24", "192.0.2.9", "up0") };
    assert_eq!(refusals(net, &[Change::ReplaceRoute(from("203.0.113.1"))]).await, [(0, libc::EINVAL)]);
    must(net, &[Change::ReplaceRoute(from("10.42.1.0"))]).await;
    must(net, &[Change::DeleteAddress(address("weft.1", "10.42.1.0/32"))]).await;
    assert_eq!(count(net, "up0").await, [0, 0, 0, 0]);
}

async fn an_ipv6_address_has_one_prefix_length(net: &impl Net) {
    tunnel(net).await;
    must(net, &[Change::AddAddress(address("up0", "2001:db8::1/64"))]).await;
    must(net, &[Change::AddAddress(address("up0", "2001:db8::1/64"))]).await;
    let other = Change::AddAddress(address("up0", "2001:db8::1/56"));
    assert_eq!(refusals(net, &[other]).await, [(0, libc::EEXIST)]);
}

macro_rules! suite {
    ($($case:ident,)*) => {
        mod kernel {
            $(#[test]
            fn $case() {
                super::run(super::$case(&super::fresh_kernel()));
            })*
        }
        mod fake {
            $(#[test]
            fn $case() {
                super::run(super::$case(&super::FakeNet::new()));
            })*
        }
    };
}

fn run(case: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(case);
}

suite! {
    what_is_made_is_there,
    failures_name_their_changes_and_the_rest_is_done,
    what_is_not_there_is_deleted_with_success,
    an_address_is_answered_for_until_the_link_goes_down,
    a_link_is_made_once,
    a_next_hop_is_reachable_or_onlink,
    a_route_replaces_the_one_under_its_key,
    routes_of_tables_and_metrics_stand_side_by_side,
    an_fdb_entry_has_one_destination,
    a_link_that_goes_down_keeps_only_its_fdb,
    a_link_that_is_deleted_takes_all_along,
    the_last_ipv4_address_takes_ipv4_along,
    a_new_mac_takes_the_neighbours_along,
    a_live_link_is_renamed_with_all_it_has,
    a_link_is_patched,
    a_source_must_be_ours_and_goes_with_its_address,
    an_ipv6_address_has_one_prefix_length,
}
