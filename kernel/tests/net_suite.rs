//! What links, addresses, routes, neighbours and FDB entries do, on the real kernel.
//!
//! Each case gets a network namespace of its own.

mod scene;

use scene::*;
use weft_kernel::net::*;
use weft_kernel::netns::NetNs;

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
