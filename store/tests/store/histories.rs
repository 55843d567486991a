//! Random histories: etcd and its twin must answer alike and tell the same watch history, whatever is
//! done to the watch's connection meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use weft_store::{
    Change, KeyValue, LeaseId, Revision, Snapshot, Store, StoreError, Txn, TxnOutcome, Watch, WatchEvent,
};

use crate::support::harness::Harness;
use crate::support::next;

/// How many histories. Each is up to thirty steps, with a cut or two.
const CASES: u32 = 40;

const KEYS: [&str; 5] = ["a", "a/1", "a/2", "a0", "b"];

#[derive(Clone, Debug)]
enum Step {
    Commit { guards: Vec<(usize, Seen)>, ops: Vec<Write> },
    Grant,
    Revoke(usize),
    Cut,
    Heal,
    Compact,
}

/// What a guard expects.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Absent,
    /// As it is now.
    Current,
    /// One revision earlier than it is.
    Stale,
}

#[derive(Clone, Debug)]
enum Write {
    Put { key: usize, value: u8, lease: Option<usize> },
    Delete(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS.len();
    let seen = prop_oneof![2 => Just(Seen::Absent), 4 => Just(Seen::Current), 1 => Just(Seen::Stale)];
    let write = prop_oneof![
        3 => (key.clone(), any::<u8>(), prop::option::weighted(0.3, 0..4usize))
            .prop_map(|(key, value, lease)| Write::Put { key, value, lease }),
        1 => key.clone().prop_map(Write::Delete),
    ];
    let commit = (prop::collection::vec((key, seen), 0..2), prop::collection::vec(write, 0..4))
        .prop_map(|(guards, ops)| Step::Commit { guards, ops });
    prop_oneof![
        20 => commit,
        2 => Just(Step::Grant),
        2 => (0..4usize).prop_map(Step::Revoke),
        2 => Just(Step::Cut),
        3 => Just(Step::Heal),
        1 => Just(Step::Compact),
    ]
}

/// What a step answered, the same words for both stores: leases by number, revisions from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Committed(i64),
    Conflict,
    Refused,
    NoSuchLease,
    Done,
}

/// Keys without prefix, revisions from the start, leases by number.
type Plain = BTreeMap<String, (Vec<u8>, i64, i64, Option<usize>)>;

/// A change in the same terms; `None` is a deletion.
type Told = (i64, String, Option<(Vec<u8>, i64, Option<usize>)>);

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    answers: Vec<Answer>,
    /// Every revision's changes, as long as history was whole.
    history: Vec<Told>,
    /// What a replica made from the watch's events holds in the end.
    replica: Plain,
}

/// One store in one case, under a prefix of its own.
struct Player<'a> {
    harness: &'a Harness,
    /// Never cut.
    store: Store,
    prefix: String,
    start: Revision,
    leases: Vec<LeaseId>,
}

impl Player<'_> {
    async fn play(mut self, steps: &[Step]) -> Outcome {
        let mut watch = self.harness.store().watch(&self.prefix);
        let mut replica = match next(&mut watch).await {
            WatchEvent::Snapshot(snapshot) => snapshot,
            other => panic!("{other:?}"),
        };
        let mut answers = Vec::new();
        for step in steps {
            answers.push(self.step(step).await);
        }
        self.harness.heal();
        // The last write is the sign that everything before it was told.
        let (end, last) = (format!("{}end", self.prefix), Txn::new());
        let TxnOutcome::Committed(end) = self.store.commit(last.put(end, "", None)).await.unwrap() else {
            panic!("it has no guard")
        };
        let history = self.follow(&mut watch, &mut replica, end).await;
        let listed = self.store.list(&self.prefix).await.unwrap();
        assert_eq!(replica.entries, listed.entries, "the watch's replica is the store");
        let compacted = steps.iter().any(|step| matches!(step, Step::Compact));
        Outcome {
            answers,
            history: if compacted { Vec::new() } else { history },
            replica: replica.entries.values().map(|kv| self.plain(kv)).collect(),
        }
    }

    async fn step(&mut self, step: &Step) -> Answer {
        match step {
            Step::Commit { guards, ops } => {
                let txn = self.txn(guards, ops).await;
                match self.store.commit(txn).await {
                    Ok(TxnOutcome::Committed(at)) => Answer::Committed(self.since(at)),
                    Ok(TxnOutcome::Conflict) => Answer::Conflict,
                    Err(StoreError::Refused { .. }) => Answer::Refused,
                    Err(StoreError::NoSuchLease(_)) => Answer::NoSuchLease,
                    Err(error) => panic!("{error:?}"),
                }
            }
            Step::Grant => {
                self.leases.push(self.store.grant(Duration::from_secs(600)).await.unwrap());
                Answer::Done
            }
            Step::Revoke(number) => match self.store.revoke(self.lease(*number)).await {
                Ok(()) => Answer::Done,
                Err(StoreError::NoSuchLease(_)) => Answer::NoSuchLease,
                Err(error) => panic!("{error:?}"),
            },
            Step::Cut => {
                self.harness.cut();
                Answer::Done
            }
            Step::Heal => {
                self.harness.heal();
                Answer::Done
            }
            Step::Compact => {
                self.harness.compact().await;
                Answer::Done
            }
        }
    }

    async fn txn(&self, guards: &[(usize, Seen)], ops: &[Write]) -> Txn {
        let key = |number: usize| format!("{}{}", self.prefix, KEYS[number]);
        let mut txn = Txn::new();
        for (number, seen) in guards {
            let now = self.store.get(&key(*number)).await.unwrap().map_or(Revision(0), |kv| kv.mod_revision);
            txn = match seen {
                Seen::Absent => txn.if_absent(key(*number)),
                Seen::Current => txn.if_unchanged(key(*number), now),
                Seen::Stale => txn.if_unchanged(key(*number), Revision(now.0 - 1)),
            };
        }
        for write in ops {
            txn = match write {
                Write::Put { key: number, value, lease } => {
                    txn.put(key(*number), [*value], lease.map(|lease| self.lease(lease)))
                }
                Write::Delete(number) => txn.delete(key(*number)),
            };
        }
        txn
    }

    /// The lease of this number, or one that nobody has.
    fn lease(&self, number: usize) -> LeaseId {
        self.leases.get(number).copied().unwrap_or(LeaseId(1))
    }

    /// Follows the watch up to a revision. Says what it told, having checked its promises.
    async fn follow(&self, watch: &mut Watch, replica: &mut Snapshot, end: Revision) -> Vec<Told> {
        let mut told = Vec::new();
        let mut down = false;
        while replica.revision < end {
            match next(watch).await {
                WatchEvent::Snapshot(snapshot) => {
                    assert!(snapshot.revision >= replica.revision);
                    (*replica, down) = (snapshot, false);
                }
                WatchEvent::Changes { revision, changes } => {
                    assert!(!down, "changes come from a connected watch");
                    assert_eq!(changes.iter().map(Change::revision).max(), Some(revision), "{changes:?}");
                    assert!(changes.iter().map(Change::revision).is_sorted(), "{changes:?}");
                    // Nothing of a revision comes later than the event that it is in.
                    assert!(changes[0].revision() > replica.revision, "{changes:?}");
                    replica.revision = revision;
                    for change in changes {
                        told.push(self.told(&change));
                        match change {
                            Change::Put(kv) => replica.entries.insert(kv.key.clone(), kv),
                            Change::Delete { key, .. } => replica.entries.remove(&key),
                        };
                    }
                }
                WatchEvent::Disconnected { .. } => assert!(!std::mem::replace(&mut down, true)),
                WatchEvent::Reconnected => assert!(std::mem::replace(&mut down, false)),
                other @ WatchEvent::Wiped(_) => panic!("nobody wiped it: {other:?}"),
            }
        }
        told
    }

    fn told(&self, change: &Change) -> Told {
        let key = self.short(change.key());
        let value = match change {
            Change::Put(kv) => {
                Some((kv.value.clone(), self.since(kv.create_revision), self.number(kv.lease)))
            }
            Change::Delete { .. } => None,
        };
        (self.since(change.revision()), key, value)
    }

    fn plain(&self, kv: &KeyValue) -> (String, (Vec<u8>, i64, i64, Option<usize>)) {
        let revisions = (self.since(kv.create_revision), self.since(kv.mod_revision));
        (self.short(&kv.key), (kv.value.clone(), revisions.0, revisions.1, self.number(kv.lease)))
    }

    fn short(&self, key: &str) -> String {
        key.strip_prefix(&self.prefix).expect("the watch sees only its prefix").to_owned()
    }

    fn since(&self, revision: Revision) -> i64 {
        revision.0 - self.start.0
    }

    fn number(&self, lease: Option<LeaseId>) -> Option<usize> {
        lease.map(|lease| self.leases.iter().position(|known| *known == lease).expect("one of ours"))
    }
}

async fn player(harness: &Harness, case: u32) -> Player<'_> {
    let store = harness.another();
    let prefix = format!("/{case}/");
    let start = store.list(&prefix).await.unwrap().revision;
    Player { harness, store, prefix, start, leases: Vec::new() }
}

#[test]
fn etcd_and_its_twin_tell_the_same_history() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let etcd = runtime.block_on(Harness::etcd());
    let case = std::cell::Cell::new(0);
    let config =
        ProptestConfig { cases: CASES, max_shrink_iters: 200, ..ProptestConfig::with_source_file(file!()) };
    TestRunner::new(config)
        .run(&prop::collection::vec(any_step(), 1..30), |steps| {
            case.set(case.get() + 1);
            let twin = Harness::memory();
            runtime.block_on(async {
                etcd.heal();
                let real = player(&etcd, case.get()).await.play(&steps).await;
                let twin = player(&twin, case.get()).await.play(&steps).await;
                prop_assert_eq!(real, twin);
                Ok(())
            })
        })
        .unwrap();
}
