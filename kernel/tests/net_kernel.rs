//! What only a real kernel has: other namespaces, IPv6's own addresses, statistics.

mod scene;

use std::path::PathBuf;

use scene::*;
use weft_kernel::net::*;
use weft_kernel::netns::NetNs;

struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.0);
    }
}

#[tokio::test]
async fn a_pairs_other_end_is_born_in_another_namespace() {
    let name_of_ns = format!("weft-t-net-pod-{}", std::process::id());
    let _guard = Named(name_of_ns.clone());
    let pod = NetNs::create(&name_of_ns).unwrap();
    let path = PathBuf::from("/run/netns").join(&name_of_ns);
    let host_net = fresh_kernel();
    let host = link("weft-pod-1", LinkKind::Veth);
    let peer = Link {
        mac: Some(mac("4e:11:00:00:00:aa")),
        alias: Some("weft:t:eth0".into()),
        mtu: 1400,
        ..link("eth0", LinkKind::Veth)
    };
    let pair = Change::AddVethPair { host, peer: peer.clone(), peer_netns: Some(path.clone()) };
    must(&host_net, std::slice::from_ref(&pair)).await;
    must(&host_net, &[pair]).await;

    let pod_net = Rtnetlink::open_in(&pod).unwrap();
    let state = pod_net.observe().await.unwrap();
    assert!(state.links[&name("eth0")].is_as_wanted(&peer), "{state:?}");
    assert!(!host_net.observe().await.unwrap().links.contains_key(&name("eth0")));

    // A peer that cannot be finished leaves nothing behind.
    let peer = Link { alias: Some("x".repeat(300)), ..link("eth1", LinkKind::Veth) };
    let host = link("weft-pod-2", LinkKind::Veth);
    let failures = host_net.apply(&[Change::AddVethPair { host, peer, peer_netns: Some(path) }]).await;
    assert_eq!(failures.len(), 1);
    assert!(!host_net.observe().await.unwrap().links.contains_key(&name("weft-pod-2")));
    assert!(!pod_net.observe().await.unwrap().links.contains_key(&name("eth1")));
}

#[tokio::test]
async fn a_vtep_has_no_ipv6_noise() {
    let net = fresh_kernel();
    let own = address("weft.1", "fd00:42:1::/128");
    must(&net, &[Change::AddLink(vxlan("weft.1", 1, "192.0.2.1")), Change::AddAddress(own.clone())]).await;
    let state = net.observe().await.unwrap();
    // Usable at once, the only one of its link, and without a route to itself.
    let there: Vec<&Address> = state.addresses.iter().filter(|held| held.link == own.link).collect();
    assert_eq!(there, [&own]);
    assert!(state.routes.is_empty(), "{:?}", state.routes);
}

#[tokio::test]
async fn traffic_is_counted() {
    let net = fresh_kernel();
    let before = net.link_stats().await.unwrap()[&name("lo")];
    let sent = weft_kernel::netns::run_in(net.netns(), || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[0; 100], socket.local_addr().unwrap()).unwrap()
    });
    assert_eq!(sent.unwrap(), 100);
    let after = net.link_stats().await.unwrap()[&name("lo")];
    assert_eq!(after.tx_packets, before.tx_packets + 1);
    // IP 20 + UDP 8.
    assert_eq!((after.tx_bytes - before.tx_bytes, after.rx_bytes - before.rx_bytes), (128, 128));
}
