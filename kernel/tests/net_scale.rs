//! Five thousand peers: written in one go, seen whole, and told of without loss.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use futures::StreamExt;
use weft_kernel::net::*;
use weft_kernel::netns::NetNs;

const PEERS: u32 = 5_000;

fn vtep() -> LinkName {
    "weft.1".parse().unwrap()
}

/// What one peer takes, in flannel's order: neighbour, FDB entry, route.
fn peer(nth: u32) -> [Change; 3] {
    let subnet = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (nth << 8));
    let public = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + nth);
    let [_, a, b, c] = nth.to_be_bytes();
    let mac = Mac([0x4e, 0x11, 0, a, b, c]);
    let (link, via) = (vtep(), IpAddr::V4(subnet));
    let dst = ipnetwork::IpNetwork::new(via, 24).unwrap();
    [
        Change::ReplaceNeighbour(Neighbour { link: link.clone(), addr: via, mac, permanent: true }),
        Change::ReplaceFdb(FdbEntry { link: link.clone(), mac, dst: public.into(), permanent: true }),
        Change::ReplaceRoute(Route {
            key: RouteKey { table: 254, dst, metric: 0 },
            kind: RouteKind::Unicast,
            protocol: 87,
            via: Some(via),
            link: Some(link),
            onlink: true,
            src: None,
            mtu: None,
        }),
    ]
}

async fn must(net: &Rtnetlink, changes: &[Change]) {
    let failures = net.apply(changes).await;
    assert!(failures.is_empty(), "{} failures, first {:?}", failures.len(), failures.first());
}

fn undone(change: Change) -> Change {
    match change {
        Change::ReplaceNeighbour(neighbour) => Change::DeleteNeighbour(neighbour),
        Change::ReplaceFdb(entry) => Change::DeleteFdb(entry),
        Change::ReplaceRoute(route) => Change::DeleteRoute(route),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn five_thousand_peers_at_once() {
    let ns = NetNs::anonymous().unwrap();
    let net = Rtnetlink::open_in(&ns).unwrap();
    let kind = LinkKind::Vxlan(Vxlan {
        vni: Vni::try_from(1).unwrap(),
        port: 8472,
        local: Some("192.0.2.1".parse().unwrap()),
        underlay: None,
        learning: false,
        gbp: false,
    });
    let link = Link {
        name: vtep(),
        index: 0,
        kind,
        mac: None,
        mtu: 1450,
        up: true,
        carrier: true,
        alias: None,
        master: None,
    };
    let own = Address { link: vtep(), network: "10.255.0.0/32".parse().unwrap() };
    must(&net, &[Change::AddLink(link), Change::AddAddress(own)]).await;

    let mut events = net.events().unwrap();
    let mut state = net.observe().await.unwrap();
    let additions: Vec<Change> = (1..=PEERS).flat_map(peer).collect();
    let started = Instant::now();
    must(&net, &additions).await;
    let applied = started.elapsed();

    let started = Instant::now();
    let seen = net.observe().await.unwrap();
    let observed = started.elapsed();
    let ours = seen.routes.values().filter(|route| route.protocol == 87).count();
    assert_eq!((ours, seen.neighbours.len(), seen.fdb.len()), (5_000, 5_000, 5_000));

    // Nobody read events meanwhile, and none was lost.
    let started = Instant::now();
    while state != seen {
        let event = tokio::time::timeout(Duration::from_secs(60), events.next()).await.unwrap().unwrap();
        assert_eq!(state.absorb(&event), Absorbed::Followed, "{event:?}");
    }
    let absorbed = started.elapsed();

    let removals: Vec<Change> = additions.into_iter().rev().map(undone).collect();
    let started = Instant::now();
    must(&net, &removals).await;
    let removed = started.elapsed();
    let seen = net.observe().await.unwrap();
    assert!(seen.routes.values().all(|route| route.protocol != 87));
    assert_eq!((seen.neighbours.len(), seen.fdb.len()), (0, 0));
    eprintln!("apply {applied:?}, observe {observed:?}, absorb {absorbed:?}, remove {removed:?}");
}
