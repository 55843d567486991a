//! What every store does: each story runs on real etcd and on its twin.

use std::time::Duration;

use tokio::time::timeout;
use weft_store::{
    Change, LeaseId, LeaseKeeper, LeaseState, Revision, Store, StoreError, Txn, TxnOutcome, WatchEvent,
};

use crate::support::harness::Harness;
use crate::support::{PATIENCE, changes, disconnected, next, until};

/// Each story as two tests.
macro_rules! stories {
    ($($story:ident)*) => {
        mod twin {
            $(#[tokio::test]
            async fn $story() {
                super::$story(super::Harness::memory()).await;
            })*
        }
        mod etcd {
            $(#[tokio::test]
            async fn $story() {
                super::$story(super::Harness::etcd().await).await;
            })*
        }
    };
}

stories! {
    keys_are_written_read_and_deleted
    a_prefix_is_a_prefix_of_bytes
    a_transaction_is_all_or_nothing
    what_writes_nothing_moves_no_revision
    impossible_transactions_are_refused
    leases_take_their_keys_along
    an_unknown_lease_is_named
    a_list_is_one_revision_however_long
    a_failed_call_is_no_empty_store
    a_watch_tells_whole_revisions
    a_watch_sees_only_its_prefix
    an_interrupted_watch_misses_nothing
    compaction_during_an_outage_gives_a_snapshot
    compaction_of_what_was_seen_is_not_noticed
    a_wiped_store_is_told_apart
    a_wiped_store_with_the_same_id_is_told_apart
    a_wiped_store_that_overtook_us_is_told_apart
    a_slow_consumer_misses_nothing
    a_kept_lease_outlives_its_time
    a_kept_lease_that_is_gone_is_lost
    an_outage_is_not_a_lost_lease
}

/// Commits, and says at which revision.
async fn committed(store: &Store, txn: Txn) -> Revision {
    match store.commit(txn).await.expect("a commit") {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict => panic!("the guards hold"),
    }
}

async fn put(store: &Store, key: &str, value: &str) -> Revision {
    committed(store, Txn::new().put(key, value, None)).await
}

async fn keys(store: &Store, prefix: &str) -> Vec<String> {
    store.list(prefix).await.expect("a list").entries.into_keys().collect()
}

fn said(changes: &[Change]) -> Vec<(String, Option<String>)> {
    changes
        .iter()
        .map(|change| match change {
            Change::Put(kv) => (kv.key.clone(), Some(String::from_utf8_lossy(&kv.value).into_owned())),
            Change::Delete { key, .. } => (key.clone(), None),
        })
        .collect()
}

/// Shorthand for what `said` gives.
fn puts(pairs: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned()))).collect()
}

async fn keys_are_written_read_and_deleted(harness: Harness) {
    let store = harness.store();
    assert_eq!(store.get("/k").await.unwrap(), None);
    let first = put(&store, "/k", "one").await;
    let kv = store.get("/k").await.unwrap().unwrap();
    assert_eq!(
        (kv.value.as_slice(), kv.create_revision, kv.mod_revision, kv.lease),
        (&b"one"[..], first, first, None)
    );
    let second = put(&store, "/k", "two").await;
    assert_eq!(second, first.next());
    let kv = store.get("/k").await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (first, second));
    let gone = committed(&store, Txn::new().delete("/k")).await;
    assert_eq!(gone, second.next());
    assert_eq!(store.get("/k").await.unwrap(), None);
    let again = put(&store, "/k", "three").await;
    assert_eq!(store.get("/k").await.unwrap().unwrap().create_revision, again, "a new life");
}

async fn a_prefix_is_a_prefix_of_bytes(harness: Harness) {
    let store = harness.store();
    for key in ["/a", "/a/", "/a/1", "/a/é", "/a0", "/b", "/a/\u{10ffff}", "0"] {
        put(&store, key, "").await;
    }
    assert_eq!(keys(&store, "/a/").await, ["/a/", "/a/1", "/a/é", "/a/\u{10ffff}"]);
    assert_eq!(keys(&store, "/a").await, ["/a", "/a/", "/a/1", "/a/é", "/a/\u{10ffff}", "/a0"]);
    assert_eq!(keys(&store, "/x").await, [""; 0]);
    assert_eq!(keys(&store, "").await.len(), 8);
    let snapshot = store.list("/x").await.unwrap();
    assert_eq!(snapshot.revision, Revision(9), "the store's revision, though nothing is there");
}

async fn a_transaction_is_all_or_nothing(harness: Harness) {
    let store = harness.store();
    let made = put(&store, "/a", "1").await;
    let both = |guard: Txn| guard.put("/a", "2", None).put("/b", "2", None);
    let table = [
        ("exists", Txn::new().if_absent("/a")),
        ("older", Txn::new().if_unchanged("/a", Revision(made.0 - 1))),
        ("newer", Txn::new().if_unchanged("/a", made.next())),
        ("absent", Txn::new().if_unchanged("/b", made)),
        ("one of two", Txn::new().if_unchanged("/a", made).if_absent("/a")),
    ];
    for (case, guards) in table {
        assert_eq!(store.commit(both(guards)).await.unwrap(), TxnOutcome::Conflict, "{case}");
    }
    assert_eq!(keys(&store, "/").await, ["/a"]);
    let revision = committed(&store, both(Txn::new().if_unchanged("/a", made).if_absent("/b"))).await;
    assert_eq!(revision, made.next());
    let snapshot = store.list("/").await.unwrap();
    assert!(snapshot.entries.values().all(|kv| kv.mod_revision == revision && kv.value == b"2"));
    // Zero is the revision of what does not exist.
    committed(&store, Txn::new().if_unchanged("/c", Revision(0)).put("/c", "", None)).await;
}

async fn what_writes_nothing_moves_no_revision(harness: Harness) {
    let store = harness.store();
    let now = put(&store, "/a", "").await;
    assert_eq!(committed(&store, Txn::new()).await, now);
    assert_eq!(committed(&store, Txn::new().delete("/nothing").delete("/nothing")).await, now);
    assert_eq!(store.list("/").await.unwrap().revision, now);
    // The same value again is a write.
    assert_eq!(put(&store, "/a", "").await, now.next());
}

async fn impossible_transactions_are_refused(harness: Harness) {
    let store = harness.store();
    let many = (0..129).fold(Txn::new(), |txn, n| txn.put(format!("/{n}"), "", None));
    let many_guards = (0..129).fold(Txn::new(), |txn, n| txn.if_absent(format!("/{n}")));
    let table = [
        ("two puts", Txn::new().put("/a", "1", None).put("/a", "2", None), "duplicate key"),
        ("put and delete", Txn::new().put("/a", "1", None).delete("/a"), "duplicate key"),
        ("delete and put", Txn::new().delete("/a").put("/a", "1", None), "duplicate key"),
        ("no key", Txn::new().put("", "1", None), "key is not provided"),
        ("no key to delete", Txn::new().delete(""), "key is not provided"),
        ("no key to look at", Txn::new().if_absent(""), "key is not provided"),
        ("too many writes", many, "too many operations"),
        ("too many guards", many_guards, "too many operations"),
    ];
    for (case, txn, why) in table {
        match store.commit(txn).await {
            Err(StoreError::Refused { source, .. }) => {
                assert!(source.to_string().contains(why), "{case}: {source}");
            }
            other => panic!("{case}: {other:?}"),
        }
    }
    let error = store.get("").await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
    assert_eq!(keys(&store, "").await, [""; 0]);
}

async fn leases_take_their_keys_along(harness: Harness) {
    let store = harness.store();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    assert!(store.keep_alive(lease).await.unwrap() >= Duration::from_secs(60));
    let left = store.time_to_live(lease).await.unwrap();
    assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(60), "{left:?}");
    committed(&store, Txn::new().put("/b", "", Some(lease)).put("/a", "", Some(lease))).await;
    committed(&store, Txn::new().put("/moved", "", Some(lease))).await;
    assert_eq!(store.get("/moved").await.unwrap().unwrap().lease, Some(lease));
    let last = put(&store, "/moved", "on its own").await;
    assert_eq!(store.get("/moved").await.unwrap().unwrap().lease, None);

    let mut watch = store.watch("/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    harness.expire(lease).await;
    let expected: Vec<_> =
        ["/a", "/b"].map(|key| Change::Delete { key: key.into(), revision: last.next() }).to_vec();
    assert_eq!(changes(&mut watch).await, expected, "in one revision, in order");
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::NoSuchLease(gone)) if gone == lease));

    // A lease without keys leaves no trace.
    let empty = store.grant(Duration::from_secs(60)).await.unwrap();
    store.revoke(empty).await.unwrap();
    assert_eq!(store.list("/").await.unwrap().revision, last.next());
}

async fn an_unknown_lease_is_named(harness: Harness) {
    let store = harness.store();
    let nobody = LeaseId(0x77);
    let named = |error: Option<StoreError>| {
        let error = error.expect("an error");
        assert!(matches!(error, StoreError::NoSuchLease(lease) if lease == nobody), "{error:?}");
        assert_eq!(error.to_string(), "etcd knows no lease 77");
    };
    named(store.keep_alive(nobody).await.err());
    named(store.time_to_live(nobody).await.err());
    named(store.revoke(nobody).await.err());
    named(LeaseKeeper::adopt(&store, nobody).await.err());
    named(store.commit(Txn::new().put("/a", "", None).put("/b", "", Some(nobody))).await.err());
    assert_eq!(keys(&store, "/").await, [""; 0], "nothing of it was written");
    // Guards come first.
    let guarded = Txn::new().if_unchanged("/a", Revision(1)).put("/b", "", Some(nobody));
    assert_eq!(store.commit(guarded).await.unwrap(), TxnOutcome::Conflict);
}

async fn a_list_is_one_revision_however_long(harness: Harness) {
    let store = harness.store();
    let all: Vec<_> = (0..5000).map(|n| format!("/many/{n:05}")).collect();
    for some in all.chunks(128) {
        committed(&store, some.iter().fold(Txn::new(), |txn, key| txn.put(key, "0", None))).await;
    }
    // A writer gives the first and the last key the same value, always in one transaction.
    let (first, last) = (all[0].clone(), all[all.len() - 1].clone());
    let writing = {
        let (store, first, last) = (harness.another(), first.clone(), last.clone());
        tokio::spawn(async move {
            for n in 1u64.. {
                committed(
                    &store,
                    Txn::new().put(&first, n.to_string(), None).put(&last, n.to_string(), None),
                )
                .await;
                tokio::task::yield_now().await;
            }
        })
    };
    for _ in 0..3 {
        let snapshot = store.list("/many/").await.unwrap();
        assert!(snapshot.entries.keys().eq(&all));
        assert_eq!(snapshot.entries[&first].value, snapshot.entries[&last].value);
        assert!(snapshot.entries.values().all(|kv| kv.mod_revision <= snapshot.revision));
        tokio::task::yield_now().await;
    }
    writing.abort();
}

async fn a_failed_call_is_no_empty_store(harness: Harness) {
    let store = harness.store();
    put(&store, "/k", "").await;
    harness.cut();
    let lease = LeaseId(1);
    let unreachable = |error: Option<StoreError>| {
        assert!(matches!(error, Some(StoreError::Unreachable { .. })), "{error:?}");
    };
    unreachable(store.get("/k").await.err());
    unreachable(store.list("/").await.err());
    unreachable(store.commit(Txn::new().delete("/k")).await.err());
    unreachable(store.grant(Duration::from_secs(5)).await.err());
    unreachable(store.keep_alive(lease).await.err());
    unreachable(store.time_to_live(lease).await.err());
    unreachable(store.revoke(lease).await.err());
    let mut watch = store.watch("/");
    disconnected(&mut watch).await;
    harness.heal();
    match next(&mut watch).await {
        WatchEvent::Snapshot(snapshot) => assert!(snapshot.entries.contains_key("/k")),
        other => panic!("{other:?}"),
    }
    until("the store is back", async || store.get("/k").await).await;
}

async fn a_watch_tells_whole_revisions(harness: Harness) {
    let store = harness.store();
    let before = put(&store, "/w/old", "0").await;
    let mut watch = store.watch("/w/");
    match next(&mut watch).await {
        WatchEvent::Snapshot(snapshot) => {
            assert_eq!(snapshot, store.list("/w/").await.unwrap());
            assert_eq!(snapshot.revision, before);
        }
        other => panic!("{other:?}"),
    }
    let txn = Txn::new().put("/w/b", "1", None).delete("/w/old").put("/w/a", "1", None);
    let revision = committed(&store, txn).await;
    match next(&mut watch).await {
        WatchEvent::Changes { revision: newest, changes } => {
            assert_eq!(newest, revision);
            assert!(changes.iter().all(|change| change.revision() == revision));
            let expected = vec![
                ("/w/b".into(), Some("1".into())),
                ("/w/old".into(), None),
                ("/w/a".into(), Some("1".into())),
            ];
            assert_eq!(said(&changes), expected, "in the transaction's order");
        }
        other => panic!("{other:?}"),
    }
}

async fn a_watch_sees_only_its_prefix(harness: Harness) {
    let store = harness.store();
    let mut watch = store.watch("/w/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(s) if s.entries.is_empty()));
    put(&store, "/w", "no").await;
    put(&store, "/w0", "no").await;
    committed(&store, Txn::new().put("/other", "no", None).put("/w/mine", "yes", None)).await;
    assert_eq!(said(&changes(&mut watch).await), puts(&[("/w/mine", "yes")]));
}

async fn an_interrupted_watch_misses_nothing(harness: Harness) {
    let (store, other) = (harness.store(), harness.another());
    let mut watch = store.watch("/w/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    put(&store, "/w/a", "1").await;
    assert_eq!(said(&changes(&mut watch).await), puts(&[("/w/a", "1")]));
    for round in 2..5 {
        harness.cut();
        disconnected(&mut watch).await;
        let value = round.to_string();
        put(&other, "/w/a", &value).await;
        put(&other, "/w/b", &value).await;
        committed(&other, Txn::new().delete("/w/b")).await;
        harness.heal();
        assert_eq!(next(&mut watch).await, WatchEvent::Reconnected);
        let mut heard = Vec::new();
        while heard.len() < 3 {
            heard.extend(said(&changes(&mut watch).await));
        }
        let expected =
            vec![("/w/a".into(), Some(value.clone())), ("/w/b".into(), Some(value)), ("/w/b".into(), None)];
        assert_eq!(heard, expected, "each once, in order");
    }
}

async fn compaction_during_an_outage_gives_a_snapshot(harness: Harness) {
    let (store, other) = (harness.store(), harness.another());
    put(&store, "/w/gone", "").await;
    let mut watch = store.watch("/w/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    harness.cut();
    disconnected(&mut watch).await;
    committed(&other, Txn::new().delete("/w/gone").put("/w/new", "1", None)).await;
    put(&other, "/elsewhere", "").await;
    harness.compact().await;
    harness.heal();
    match next(&mut watch).await {
        WatchEvent::Snapshot(snapshot) => {
            assert_eq!(snapshot.entries.keys().collect::<Vec<_>>(), ["/w/new"]);
        }
        other => panic!("{other:?}"),
    }
    put(&other, "/w/more", "2").await;
    assert_eq!(said(&changes(&mut watch).await), puts(&[("/w/more", "2")]));
}

async fn compaction_of_what_was_seen_is_not_noticed(harness: Harness) {
    let (store, other) = (harness.store(), harness.another());
    let mut watch = store.watch("/w/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    put(&other, "/w/a", "1").await;
    assert_eq!(said(&changes(&mut watch).await), puts(&[("/w/a", "1")]));
    harness.compact().await;
    put(&other, "/w/a", "2").await;
    assert_eq!(said(&changes(&mut watch).await), puts(&[("/w/a", "2")]));
    harness.compact().await;
    harness.cut();
    disconnected(&mut watch).await;
    harness.heal();
    assert_eq!(next(&mut watch).await, WatchEvent::Reconnected, "nothing was lost by it");
}

/// Fills a store, wipes it, and says what the watch makes of it. `rewrites` is how much the new store
/// has seen before the watch meets it.
async fn wipe_story(mut harness: Harness, keep_cluster_id: bool, rewrites: usize) {
    let store = harness.store();
    for n in 0..10 {
        put(&store, &format!("/w/{n}"), "old").await;
    }
    let mut watch = store.watch("/w/");
    let before = match next(&mut watch).await {
        WatchEvent::Snapshot(snapshot) => snapshot,
        other => panic!("{other:?}"),
    };
    harness.cut();
    disconnected(&mut watch).await;
    harness.wipe(keep_cluster_id).await;
    let other = harness.another();
    for _ in 0..rewrites {
        put(&other, "/w/3", "new").await;
    }
    harness.heal();
    let after = match next(&mut watch).await {
        WatchEvent::Wiped(snapshot) => snapshot,
        other => panic!("{other:?}"),
    };
    assert_eq!(after.cluster == before.cluster, keep_cluster_id);
    assert_eq!(after.revision > before.revision, rewrites > 10);
    assert_eq!(after.entries.keys().collect::<Vec<_>>(), if rewrites > 0 { vec!["/w/3"] } else { vec![] });
    put(&other, "/w/more", "2").await;
    assert_eq!(said(&changes(&mut watch).await), puts(&[("/w/more", "2")]));
}

async fn a_wiped_store_is_told_apart(harness: Harness) {
    wipe_story(harness, false, 20).await;
}

async fn a_wiped_store_with_the_same_id_is_told_apart(harness: Harness) {
    wipe_story(harness, true, 0).await;
}

async fn a_wiped_store_that_overtook_us_is_told_apart(harness: Harness) {
    wipe_story(harness, true, 20).await;
}

async fn a_slow_consumer_misses_nothing(harness: Harness) {
    let store = harness.store();
    let mut watch = store.watch("/w/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    // More than the watch holds for its consumer, who reads nothing meanwhile.
    let count = 3000;
    for n in 0..count {
        put(&store, "/w/k", &n.to_string()).await;
    }
    let mut heard = Vec::new();
    while heard.len() < count {
        match next(&mut watch).await {
            WatchEvent::Changes { changes, .. } => {
                heard.extend(said(&changes).into_iter().map(|(_, value)| value))
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        heard.iter().map(Option::as_deref).eq((0..count)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .iter()
            .map(|n| Some(n.as_str())))
    );
}

async fn a_kept_lease_outlives_its_time(harness: Harness) {
    let store = harness.store();
    let keeper = LeaseKeeper::grant(&store, Duration::from_secs(2)).await.unwrap();
    committed(&store, Txn::new().put("/mine", "", Some(keeper.lease()))).await;
    let mut states = keeper.watch();
    let LeaseState::Alive { expires: first } = keeper.state() else { panic!("{:?}", keeper.state()) };
    let kept_on = |state: &LeaseState| matches!(state, LeaseState::Alive { expires } if *expires > first + Duration::from_secs(2));
    timeout(PATIENCE, states.wait_for(kept_on)).await.expect("it is kept alive").unwrap();
    assert!(store.get("/mine").await.unwrap().is_some());
    let lease = keeper.lease();
    keeper.revoke().await.unwrap();
    assert_eq!(store.get("/mine").await.unwrap(), None);
    assert!(matches!(store.time_to_live(lease).await, Err(StoreError::NoSuchLease(_))));
}

async fn a_kept_lease_that_is_gone_is_lost(harness: Harness) {
    let store = harness.store();
    let keeper = LeaseKeeper::grant(&store, Duration::from_secs(2)).await.unwrap();
    let mut states = keeper.watch();
    harness.expire(keeper.lease()).await;
    timeout(PATIENCE, states.wait_for(|state| *state == LeaseState::Lost))
        .await
        .expect("it is noticed")
        .unwrap();
    keeper.revoke().await.expect("gone is what was wanted");
}

async fn an_outage_is_not_a_lost_lease(harness: Harness) {
    let store = harness.store();
    let keeper = LeaseKeeper::grant(&store, Duration::from_secs(4)).await.unwrap();
    let lease = keeper.lease();
    let mut states = keeper.watch();
    harness.cut();
    let noticed = timeout(PATIENCE, states.wait_for(|state| matches!(state, LeaseState::Unreachable { .. })));
    match noticed.await.expect("it is noticed").unwrap().clone() {
        LeaseState::Unreachable { since, expires, reason } => {
            assert!(since < expires && !reason.is_empty(), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    harness.another().keep_alive(lease).await.expect("etcd still has it");
    harness.heal();
    let back = timeout(PATIENCE, states.wait_for(|state| matches!(state, LeaseState::Alive { .. })));
    back.await.expect("it is kept again").unwrap();
    assert_eq!(keeper.stop(), lease);
    assert!(harness.another().time_to_live(lease).await.is_ok(), "stopping ends nothing");
}
