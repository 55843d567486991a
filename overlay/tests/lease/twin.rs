//! Stories on the in-memory twin: every misfortune on demand.

use weft_overlay::lease::{LostBy, Times, Waiting};
use weft_overlay::registry::Holder;
use weft_store::{Call, Store};

use crate::support::{FIFTY, FIFTY_DUAL, Network, WIDE, fifty_and_one_more, subnet};

#[tokio::test]
async fn fifty_hosts_share_fifty_subnets_and_the_next_one_waits() {
    fifty_and_one_more(Store::memory().0, FIFTY).await;
}

#[tokio::test]
async fn fifty_hosts_in_two_families_never_overlap() {
    fifty_and_one_more(Store::memory().0, FIFTY_DUAL).await;
}

#[tokio::test]
async fn a_lease_is_written_as_flannel_writes_it() {
    let vxlan = r#"{"Network":"10.42.0.0/16","SubnetMin":"10.42.7.0","SubnetMax":"10.42.7.0","Backend":{"Type":"udp"}}"#;
    let network = Network::new(Store::memory().0, vxlan).await;
    let host = network.start(network.wish("ash", 7));
    assert_eq!(host.leased().await, subnet("10.42.7.0/24"));
    assert_eq!(network.value(subnet("10.42.7.0/24")).await, r#"{"PublicIP":"192.0.2.7","PublicIPv6":null}"#);
    let state = host.until("under a lease", |state| state.expires.is_some()).await;
    let left = state.expires.unwrap() - tokio::time::Instant::now();
    let hours = left.as_secs_f64() / 3600.0;
    assert!((23.9..=24.0).contains(&hours), "{hours} h");
    network.until("alive", |registry| registry.live().any(|(node, _)| node.as_str() == "ash")).await;
}

#[tokio::test]
async fn a_restart_keeps_the_subnet_with_and_without_a_cache() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let first = network.start(network.wish("ash", 7));
    let mine = first.leased().await;
    drop(first);
    let second = network.start(network.wish("ash", 7));
    assert_eq!(second.leased().await, mine, "by its node id");
    drop(second);
    let moved = network.start(network.wish("ash", 8));
    // Its earlier run at the old address counts as another host until it is known to be gone.
    let waiting =
        moved.until("waiting", |state| matches!(state.waiting, Some(Waiting::DuplicateNode { .. }))).await;
    assert!(waiting.waiting.unwrap().to_string().contains("192.0.2.7"));
    network.delete(&network.prefix.live(&network.wish("ash", 8).node)).await;
    assert_eq!(moved.leased().await, mine, "at a new address too");
    assert!(network.value(mine).await.contains("192.0.2.8"));
}

#[tokio::test]
async fn a_running_host_that_gets_another_address_keeps_its_subnet() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let host = network.start(network.wish("ash", 7));
    let mine = host.leased().await;
    host.wants(|wish| wish.public_v4 = Some([192, 0, 2, 77].into()));
    network
        .until("the new address", |registry| {
            registry
                .lease(&mine)
                .is_some_and(|entry| entry.addresses() == [std::net::IpAddr::from([192, 0, 2, 77])])
        })
        .await;
    assert_eq!(host.leased().await, mine);
}

#[tokio::test]
async fn what_is_deleted_or_garbled_is_written_again() {
    let (store, control) = Store::memory();
    let network = Network::new(store, WIDE).await;
    let host = network.start(network.wish("ash", 7));
    let mine = host.leased().await;
    let good = |registry: &weft_overlay::registry::Registry| {
        matches!(registry.holder(&mine), Holder::Node(record) if record.node.as_str() == "ash")
            && registry.lease(&mine).is_some_and(|entry| entry.is_readable() && entry.lease.is_some())
    };
    let (lease, owner) = (network.prefix.lease(&mine), network.prefix.owner(&mine));
    network.delete(&lease).await;
    network.until("the lease again", good).await;
    network.delete(&owner).await;
    network.until("the record again", good).await;
    network.put(&lease, "garbage").await;
    network.until("a readable lease again", good).await;
    network.put(&owner, "garbage").await;
    network.until("a readable record again", good).await;
    for lease in control.leases() {
        control.expire(lease);
    }
    network.until("everything again, under new leases", good).await;
    assert_eq!(host.leasing.state().borrow().lost, None);
}

#[tokio::test]
async fn a_wiped_store_gets_the_same_subnets_again() {
    let (store, control) = Store::memory();
    let network = Network::new(store, WIDE).await;
    let hosts: Vec<_> = (1..6).map(|n| network.start(network.wish(&format!("n{n}"), n))).collect();
    let mut subnets = Vec::new();
    for host in &hosts {
        subnets.push(host.leased().await);
    }
    for wipe in [weft_store::MemoryControl::wipe, weft_store::MemoryControl::wipe_keeping_cluster_id] {
        wipe(&control);
        for (host, mine) in hosts.iter().zip(&subnets) {
            network
                .until("the subnet of before", |registry| {
                    matches!(registry.holder(mine), Holder::Node(_)) && registry.live().count() == 5
                })
                .await;
            assert_eq!(host.leased().await, *mine);
            assert_eq!(host.leasing.state().borrow().lost, None);
        }
    }
}

#[tokio::test]
async fn flanneld_takes_a_subnet_and_keeps_it() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let host = network.start(network.wish("ash", 7));
    let mine = host.leased().await;
    let theirs = r#"{"PublicIP":"198.51.100.9","PublicIPv6":null,"BackendType":"host-gw"}"#;
    network.put(&network.prefix.lease(&mine), theirs).await;
    let state = host
        .until("on another subnet", |state| state.confirmed && state.subnet.is_some_and(|new| new != mine))
        .await;
    let loss = state.lost.expect("it says so");
    assert_eq!(loss.subnet, mine);
    assert_eq!(loss.by, LostBy::Host(vec!["198.51.100.9".parse().unwrap()]));
    assert_eq!(network.value(mine).await, theirs, "never written over");
    network.until("our void record gone", |registry| registry.owner(&mine).is_none()).await;
}

#[tokio::test]
async fn an_owner_who_comes_back_late_takes_a_new_subnet() {
    let (store, control) = Store::memory();
    let one = r#"{"Network":"10.42.0.0/16","SubnetMin":"10.42.7.0","SubnetMax":"10.42.8.0","Backend":{"Type":"host-gw"}}"#;
    let network = Network::new(store, one).await;
    let ash = network.start(network.wish("ash", 1));
    let mine = ash.leased().await;
    drop(ash);
    let elm = network.start(network.wish("elm", 2));
    let other = elm.leased().await;
    assert_ne!(other, mine, "kept for ash");
    // ash is away for longer than the lease, and is known not to run.
    let held = network.registry().await.lease(&mine).and_then(|entry| entry.lease).unwrap();
    control.expire(held);
    network.delete(&network.prefix.live(&network.wish("ash", 1).node)).await;
    let fir = network.start(network.wish("fir", 3));
    assert_eq!(fir.leased().await, mine, "the range is exhausted, so that the oldest claim goes");
    let back = network.start_with(network.wish("ash", 1), Some(mine), Times::default());
    let state = back.until("told", |state| state.lost.is_some() && state.subnet.is_none()).await;
    assert_eq!(state.lost.unwrap().by, LostBy::Node(network.wish("fir", 3).node));
    drop(elm);
    weft_overlay::admin::release(&network.store, &network.prefix, other, false).await.unwrap();
    assert_eq!(back.leased().await, other);
    assert_eq!(fir.leased().await, mine);
}

#[tokio::test]
async fn without_the_store_a_host_runs_on_its_cache() {
    let (store, control) = Store::memory();
    let network = Network::new(store, WIDE).await;
    control.disconnect();
    let mine = subnet("10.42.9.0/24");
    let host = network.start_with(network.wish("ash", 7), Some(mine), Times::default());
    let state = host.until("degraded", |state| state.degraded.is_some()).await;
    assert_eq!((state.subnet, state.confirmed), (Some(mine), false));
    control.reconnect();
    assert_eq!(host.leased().await, mine);
    host.until("no longer degraded", |state| state.degraded.is_none()).await;
    control.disconnect();
    let state = host.until("degraded again", |state| state.degraded.is_some()).await;
    assert_eq!((state.subnet, state.confirmed), (Some(mine), true), "an outage takes nothing away");
}

#[tokio::test]
async fn lost_answers_leave_one_lease() {
    let (store, control) = Store::memory();
    let network = Network::new(store, WIDE).await;
    for call in [Call::Commit, Call::Grant, Call::KeepAlive, Call::List] {
        control.lose_next_answer(call);
        control.lose_next_answer(call);
        control.fail_next(call);
    }
    let host = network.start(network.wish("ash", 7));
    let mine = host.leased().await;
    network
        .until("exactly one lease", |registry| {
            registry.leases().count() == 1
                && registry.owners().count() == 1
                && registry.lease(&mine).is_some()
        })
        .await;
}

#[tokio::test]
async fn flannels_own_lease_is_taken_over_and_anothers_is_not() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let (mine, theirs) = (subnet("10.42.20.0/24"), subnet("10.42.21.0/24"));
    let value =
        |last: u8| format!(r#"{{"PublicIP":"192.0.2.{last}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
    network.put(&network.prefix.lease(&theirs), &value(8)).await;
    network.put(&network.prefix.lease(&mine), &value(7)).await;
    let host = network.start(network.wish("ash", 7));
    assert_eq!(host.leased().await, mine);
    assert_eq!(network.value(theirs).await, value(8));
    let peers = host.registry();
    assert!(matches!(peers.holder(&theirs), Holder::Host(_)));
}

#[tokio::test]
async fn the_remembered_subnet_is_taken_if_nobody_has_a_claim_on_it() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let wanted = subnet("10.42.33.0/24");
    let mut wish = network.wish("ash", 7);
    wish.remembered = Some(wanted);
    let ash = network.start(wish);
    assert_eq!(ash.leased().await, wanted);
    let mut wish = network.wish("elm", 8);
    wish.remembered = Some(wanted);
    let elm = network.start(wish);
    assert_ne!(elm.leased().await, wanted);
}

#[tokio::test]
async fn a_reservation_stays_one() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let host = network.start(network.wish("ash", 7));
    let mine = host.leased().await;
    weft_overlay::admin::reserve(&network.store, &network.prefix, mine, &weft_overlay::admin::For::Holder)
        .await
        .unwrap();
    let state = host.until("reserved", |state| state.reserved).await;
    assert_eq!((state.subnet, state.lost), (Some(mine), None));
    host.until("nothing to run out", |state| state.expires.is_none()).await;
    // A restart at another address rewrites it, and must not give it a lease.
    host.wants(|wish| wish.public_v4 = Some([192, 0, 2, 77].into()));
    network
        .until("rewritten, and still without a lease", |registry| {
            let lease = registry.lease(&mine).expect("never away");
            assert!(lease.is_reservation());
            lease.addresses() == [std::net::IpAddr::from([192, 0, 2, 77])]
        })
        .await;
}

#[tokio::test]
async fn a_host_finds_what_is_reserved_for_it() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let (by_node, by_address) = (subnet("10.42.50.0/24"), subnet("10.42.51.0/24"));
    let ash = network.wish("ash", 7);
    let elm = network.wish("elm", 8);
    use weft_overlay::admin::{For, reserve};
    reserve(&network.store, &network.prefix, by_node, &For::Node(ash.node.clone())).await.unwrap();
    reserve(&network.store, &network.prefix, by_address, &For::Address([192, 0, 2, 8].into())).await.unwrap();
    assert_eq!(network.start(ash).leased().await, by_node);
    assert_eq!(network.start(elm).leased().await, by_address);
    let registry = network.registry().await;
    assert!(registry.leases().all(|(_, entry)| entry.is_reservation()));
}

#[tokio::test]
async fn a_drained_host_gives_its_subnet_up_once_it_is_empty() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let host = network.start(network.wish("ash", 7));
    let mine = host.leased().await;
    let node = network.wish("ash", 7).node;
    let drain =
        async |on| weft_overlay::admin::drain(&network.store, &network.prefix, &node, on).await.unwrap();
    drain(true).await;
    let state = host.until("draining", |state| state.draining).await;
    assert_eq!(state.subnet, Some(mine), "as long as it has pods");
    host.wants(|wish| wish.vacated = true);
    let state = host.until("without", |state| state.subnet.is_none()).await;
    assert!(matches!(state.waiting, Some(Waiting::Drained { .. })), "{state:?}");
    network.until("released", |registry| matches!(registry.holder(&mine), Holder::Released(_))).await;
    host.wants(|wish| wish.vacated = false);
    drain(false).await;
    host.leased().await;
}

#[tokio::test]
async fn two_hosts_with_one_node_id_do_not_share_a_subnet() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let first = network.start(network.wish("cloned", 1));
    let mine = first.leased().await;
    network.until("the first is alive", |registry| registry.live().count() == 1).await;
    let second = network.start(network.wish("cloned", 2));
    let state =
        second.until("waiting", |state| matches!(state.waiting, Some(Waiting::DuplicateNode { .. }))).await;
    assert_eq!(state.subnet, None);
    assert!(state.waiting.unwrap().to_string().contains("192.0.2.1"));
    assert_eq!(first.leased().await, mine);
}
