//! What goes wrong with a real etcd: members die, endpoints swallow requests, processes stop.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use weft_store::{Change, ConnectOptions, Store, StoreError, Txn, TxnOutcome, WatchEvent};

use crate::support::etcd::{Etcd, own_address, store_at};
use crate::support::relay::Relay;
use crate::support::{PATIENCE, changes, disconnected, next, until};

/// Options that notice quickly.
fn quick(endpoints: &[String]) -> ConnectOptions {
    ConnectOptions {
        endpoints: endpoints.to_vec(),
        connect_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_secs(3),
        keepalive_interval: Duration::from_millis(500),
        keepalive_timeout: Duration::from_millis(500),
        ..Default::default()
    }
}

fn connect(options: ConnectOptions) -> Store {
    Store::connect(options).expect("good options")
}

/// Writes until it is done; the same value again is harmless here.
async fn put(store: &Store, key: &str, value: &str) {
    until(&format!("writing {key}"), async || store.commit(Txn::new().put(key, value, None)).await).await;
}

/// Waits until the watch has told this value of this key.
async fn hears(watch: &mut weft_store::Watch, key: &str, value: &str) {
    loop {
        let told = |change: &Change| matches!(change, Change::Put(kv) if kv.key == key && kv.value == value.as_bytes());
        if changes(watch).await.iter().any(told) {
            return;
        }
    }
}

#[tokio::test]
async fn etcd_may_come_later() {
    let mut etcd = Etcd::new("http", &[]);
    let store = etcd.store();
    match store.list("/").await {
        Err(error @ StoreError::Unreachable { .. }) => {
            assert_eq!(error.to_string(), format!("cannot reach etcd at {}", etcd.url()));
            let cause = std::error::Error::source(&error).expect("a cause").to_string();
            assert!(cause.contains("Connection refused"), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    let mut watch = store.watch("/");
    disconnected(&mut watch).await;
    etcd.run();
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    put(&store, "/k", "1").await;
    hears(&mut watch, "/k", "1").await;
}

#[tokio::test]
async fn a_restarted_etcd_is_the_same_store() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    store.commit(Txn::new().put("/k", "", Some(lease))).await.unwrap();
    let mut watch = store.watch("/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(s) if s.entries.len() == 1));
    etcd.kill();
    disconnected(&mut watch).await;
    etcd.run();
    assert_eq!(next(&mut watch).await, WatchEvent::Reconnected);
    until("the store is back", async || store.keep_alive(lease).await).await;
}

/// The leader dies. The others elect a new one, and the watch goes on without a snapshot.
#[tokio::test]
async fn a_dead_leader_costs_no_event() {
    let mut members = Etcd::cluster(3).await;
    let store = store_at(&members.iter().map(Etcd::url).collect::<Vec<_>>());
    let mut watch = store.watch("/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    put(&store, "/k", "0").await;
    hears(&mut watch, "/k", "0").await;

    let leader = leader(&members).await;
    members[leader].kill();
    put(&store, "/k", "1").await;
    hears(&mut watch, "/k", "1").await;

    // Without a second one there is no leader: the one left alone must not look healthy.
    let second = (leader + 1) % 3;
    members[second].kill();
    disconnected(&mut watch).await;
    let error = store.list("/").await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");

    members[second].run();
    assert_eq!(next(&mut watch).await, WatchEvent::Reconnected);
    put(&store, "/k", "2").await;
    hears(&mut watch, "/k", "2").await;
}

async fn leader(members: &[Etcd]) -> usize {
    for (number, member) in members.iter().enumerate() {
        let status = member.raw().await.status().await.expect("it answers");
        if status.leader() == status.header().expect("a header").member_id() {
            return number;
        }
    }
    panic!("nobody leads");
}

/// An endpoint that accepts connections and never says a word.
#[tokio::test]
async fn a_black_hole_among_the_endpoints_is_passed_by() {
    let etcd = Etcd::start().await;
    let hole = tokio::net::TcpListener::bind(format!("{}:2379", own_address())).await.unwrap();
    let hole = format!("http://{}", hole.local_addr().unwrap());
    // The first endpoint is chance: of eight stores, half meet the hole first.
    for _ in 0..8 {
        let store = connect(quick(&[hole.clone(), etcd.url()]));
        let started = Instant::now();
        store.get("/k").await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(3));
        assert!(matches!(store.commit(Txn::new().put("/k", "", None)).await, Ok(TxnOutcome::Committed(_))));
    }
    let alone = connect(quick(std::slice::from_ref(&hole)));
    let started = Instant::now();
    let error = alone.get("/k").await.unwrap_err();
    assert!(started.elapsed() < PATIENCE);
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    // The only endpoint is named where the failure is told, and not a second time.
    assert_eq!(cause, "no answer within 500ms");
    assert!(error.to_string().contains(&hole), "{error}");
}

/// The network swallows everything on a connection in use; nothing is closed.
#[tokio::test]
async fn a_connection_gone_silent_is_left() {
    let etcd = Etcd::start().await;
    let relays = [Relay::to(&etcd.host).await, Relay::to(&etcd.host).await];
    let store = connect(quick(&relays.each_ref().map(Relay::url)));
    let mut watch = store.watch("/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    for round in ["1", "2", "3"] {
        put(&store, "/k", round).await;
        hears(&mut watch, "/k", round).await;
        // Each in turn, so that the one in use is among them for certain.
        for relay in &relays {
            relay.freeze();
            store.get("/k").await.expect("the other endpoint answers in time");
            put(&etcd.store(), "/k", "meanwhile").await;
            timeout(PATIENCE, hears(&mut watch, "/k", "meanwhile")).await.expect("the watch moves over");
            relay.heal();
        }
    }
}

/// The process is stopped: its kernel still acknowledges every packet.
#[tokio::test]
async fn a_stopped_process_is_noticed() {
    let etcd = Etcd::start().await;
    let store = connect(quick(&[etcd.url()]));
    let mut watch = store.watch("/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    etcd.signal("-STOP");
    let started = Instant::now();
    disconnected(&mut watch).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    etcd.signal("-CONT");
    assert_eq!(next(&mut watch).await, WatchEvent::Reconnected);
}

/// A write whose answer got lost is an error, never a second try.
#[tokio::test]
async fn a_commit_is_never_done_twice() {
    let etcd = Etcd::start().await;
    let relay = Relay::to(&etcd.host).await;
    let store = connect(quick(&[relay.url()]));
    let other = etcd.store();
    let mut expected = other.list("/").await.unwrap().revision;
    for _ in 0..3 {
        until("a connection", async || store.get("/k").await).await;
        // New connections work: a second try would succeed.
        relay.swallow_answers();
        let error = store.commit(Txn::new().put("/k", "", None)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
        expected = expected.next();
        assert_eq!(other.list("/").await.unwrap().revision, expected, "it was done, once");
        relay.heal();
    }
}

#[tokio::test]
async fn a_lease_nobody_keeps_runs_out() {
    let etcd = Etcd::start().await;
    let store = etcd.store();
    let lease = store.grant(Duration::from_millis(1500)).await.unwrap();
    store.commit(Txn::new().put("/mine", "", Some(lease))).await.unwrap();
    let mut watch = store.watch("/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    let changes = changes(&mut watch).await;
    assert!(matches!(&changes[..], [Change::Delete { key, .. }] if key == "/mine"), "{changes:?}");
    let error = store.keep_alive(lease).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSuchLease(_)), "{error:?}");
}

/// Somebody else's binary keys neither stop a list nor a watch.
#[tokio::test]
async fn keys_that_are_not_utf8_are_skipped() {
    let etcd = Etcd::start().await;
    let store = etcd.store();
    let mut raw = etcd.raw().await;
    raw.put(&b"/w/\xff\xfe"[..], "x", None).await.unwrap();
    put(&store, "/w/good", "1").await;
    let mut watch = store.watch("/w/");
    match next(&mut watch).await {
        WatchEvent::Snapshot(snapshot) => {
            assert_eq!(snapshot.entries.keys().collect::<Vec<_>>(), ["/w/good"])
        }
        other => panic!("{other:?}"),
    }
    raw.put(&b"/w/\xff\xfe"[..], "y", None).await.unwrap();
    raw.delete(&b"/w/\xff\xfe"[..], None).await.unwrap();
    put(&store, "/w/good", "2").await;
    let changes = changes(&mut watch).await;
    assert!(matches!(&changes[..], [Change::Put(kv)] if kv.value == b"2"), "{changes:?}");
    assert_eq!(store.list("/w/").await.unwrap().entries.len(), 1);
}

/// One revision may be larger than gRPC's usual limit for a message of 4 MB, if it is replayed with
/// others.
#[tokio::test]
async fn a_backlog_of_large_values_comes_through() {
    let etcd = Etcd::start().await;
    let relay = Relay::to(&etcd.host).await;
    let (store, other) = (store_at(&[relay.url()]), etcd.store());
    let mut watch = store.watch("/w/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    relay.cut();
    disconnected(&mut watch).await;
    for n in 0..8u8 {
        other.commit(Txn::new().put(format!("/w/{n}"), vec![n; 1 << 20], None)).await.unwrap();
    }
    relay.heal();
    assert_eq!(next(&mut watch).await, WatchEvent::Reconnected);
    let mut heard = Vec::new();
    while heard.len() < 8 {
        heard.extend(changes(&mut watch).await.into_iter().map(|change| match change {
            Change::Put(kv) => (kv.key, kv.value.len()),
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(heard, (0..8).map(|n| (format!("/w/{n}"), 1 << 20)).collect::<Vec<_>>());
    assert_eq!(store.list("/w/").await.unwrap().entries.len(), 8);
}
