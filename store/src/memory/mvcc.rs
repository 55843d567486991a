//! What etcd does with keys, revisions, transactions and leases, written from its specification.
//!
//! Pure: no clock and no waiting; time is moved by [`Mvcc::advance`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::backend::{Batch, Header, Range, Select};
use crate::fault::Fault;
use crate::{Change, ClusterId, Guard, KeyValue, LeaseId, Op, Revision, Txn, TxnOutcome};

/// etcd's `--max-txn-ops`, the default.
const MAX_TXN_OPS: usize = 128;

type Keys = BTreeMap<String, KeyValue>;

/// A store's whole state, with its history since the last compaction.
#[derive(Clone, Debug)]
pub(crate) struct Mvcc {
    cluster: ClusterId,
    revision: Revision,
    compacted: Revision,
    /// The keys as of `compacted`.
    base: Keys,
    /// What happened after `compacted`, in order.
    history: Vec<Change>,
    keys: Keys,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: i64,
    now: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Duration,
    expires: Duration,
}

impl Mvcc {
    /// An empty store. `first_lease` differs from store to store, as etcd's random ids do.
    pub(crate) fn new(cluster: ClusterId, first_lease: i64) -> Self {
        Mvcc {
            cluster,
            // A fresh etcd is at revision 1: its first write gets 2.
            revision: Revision(1),
            compacted: Revision(0),
            base: Keys::new(),
            history: Vec::new(),
            keys: Keys::new(),
            leases: BTreeMap::new(),
            next_lease: first_lease,
            now: Duration::ZERO,
        }
    }

    pub(crate) fn header(&self) -> Header {
        Header { cluster: self.cluster, revision: self.revision }
    }

    pub(crate) fn range(&self, select: Select<'_>, at: Option<Revision>) -> Result<Range, Fault> {
        if matches!(select, Select::Key("")) {
            return refused("key is not provided");
        }
        let past;
        let keys = match at {
            Some(at) if at > self.revision => return Err(Fault::FutureRevision),
            Some(at) if at < self.compacted => return Err(Fault::Compacted),
            Some(at) => {
                past = self.keys_at(at);
                &past
            }
            None => &self.keys,
        };
        let wanted = |key: &str| match select {
            Select::Key(wanted) => key == wanted,
            Select::Prefix(prefix) => key.starts_with(prefix),
        };
        let entries = keys.values().filter(|kv| wanted(&kv.key)).cloned().collect();
        Ok(Range { header: self.header(), entries })
    }

    pub(crate) fn commit(&mut self, txn: &Txn) -> Result<TxnOutcome, Fault> {
        check(txn)?;
        if !txn.guards.iter().all(|guard| self.holds(guard)) {
            return Ok(TxnOutcome::Conflict);
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains_key(lease)
            {
                return Err(Fault::NoSuchLease);
            }
        }
        let revision = Revision(self.revision.0 + 1);
        let mut changes = Vec::new();
        for op in &txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    let create_revision = self.keys.get(key).map_or(revision, |kv| kv.create_revision);
                    changes.push(Change::Put(KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision,
                        mod_revision: revision,
                        lease: *lease,
                    }));
                }
                Op::Delete(key) => {
                    let again =
                        changes.iter().any(|c| matches!(c, Change::Delete { key: k, .. } if k == key));
                    if self.keys.contains_key(key) && !again {
                        changes.push(Change::Delete { key: key.clone(), revision });
                    }
                }
            }
        }
        self.record(changes);
        Ok(TxnOutcome::Committed(self.revision))
    }

    pub(crate) fn grant(&mut self, ttl: Duration) -> LeaseId {
        // etcd counts whole seconds.
        let ttl = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0))
            .max(Duration::from_secs(1));
        let lease = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(lease, Lease { ttl, expires: self.now + ttl });
        lease
    }

    pub(crate) fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, Fault> {
        let now = self.now;
        let lease = self.leases.get_mut(&lease).ok_or(Fault::NoSuchLease)?;
        lease.expires = now + lease.ttl;
        Ok(lease.ttl)
    }

    pub(crate) fn time_to_live(&self, lease: LeaseId) -> Result<Duration, Fault> {
        let lease = self.leases.get(&lease).ok_or(Fault::NoSuchLease)?;
        Ok(lease.expires.saturating_sub(self.now))
    }

    /// The lease goes, and its keys with it, in one revision.
    pub(crate) fn revoke(&mut self, lease: LeaseId) -> Result<(), Fault> {
        self.leases.remove(&lease).ok_or(Fault::NoSuchLease)?;
        let revision = Revision(self.revision.0 + 1);
        let bound = self.keys.values().filter(|kv| kv.lease == Some(lease));
        let changes = bound.map(|kv| Change::Delete { key: kv.key.clone(), revision }).collect();
        self.record(changes);
        Ok(())
    }

    /// Time goes by; leases that nobody kept alive run out, in the order of their ends.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.now += by;
        let mut over: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, l)| l.expires <= self.now)
            .map(|(id, l)| (l.expires, *id))
            .collect();
        over.sort();
        for (_, lease) in over {
            // It is there: only this loop removes, and ids are unique.
            let _ = self.revoke(lease);
        }
    }

    /// Forgets the history up to and including the present.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.base = self.keys.clone();
        self.history.clear();
    }

    pub(crate) fn leases(&self) -> Vec<LeaseId> {
        self.leases.keys().copied().collect()
    }

    /// What happened under the prefix from `from` on.
    pub(crate) fn since(&self, prefix: &str, from: Revision) -> Result<Batch, Fault> {
        if from <= self.compacted {
            return Err(Fault::Compacted);
        }
        let wanted = |change: &&Change| change.revision() >= from && change.key().starts_with(prefix);
        Ok(Batch {
            cluster: Some(self.cluster),
            complete_to: Some(self.revision),
            changes: self.history.iter().filter(wanted).cloned().collect(),
        })
    }

    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Unchanged(key, revision) => {
                self.keys.get(key).map_or(Revision(0), |kv| kv.mod_revision) == *revision
            }
            Guard::Absent(key) => !self.keys.contains_key(key),
        }
    }

    /// One revision with these changes; none without any.
    fn record(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.revision.0 += 1;
        for change in changes {
            replay(&mut self.keys, &change);
            self.history.push(change);
        }
    }

    fn keys_at(&self, at: Revision) -> Keys {
        let mut keys = self.base.clone();
        for change in self.history.iter().take_while(|change| change.revision() <= at) {
            replay(&mut keys, change);
        }
        keys
    }
}

fn replay(keys: &mut Keys, change: &Change) {
    match change {
        Change::Put(kv) => {
            keys.insert(kv.key.clone(), kv.clone());
        }
        Change::Delete { key, .. } => {
            keys.remove(key);
        }
    }
}

/// What etcd refuses before it looks at any key.
fn check(txn: &Txn) -> Result<(), Fault> {
    if txn.guards.len() > MAX_TXN_OPS || txn.ops.len() > MAX_TXN_OPS {
        return refused("too many operations in txn request");
    }
    let guarded = txn.guards.iter().map(|guard| match guard {
        Guard::Unchanged(key, _) | Guard::Absent(key) => key,
    });
    let written = txn.ops.iter().map(|op| match op {
        Op::Put { key, .. } | Op::Delete(key) => key,
    });
    if guarded.chain(written).any(String::is_empty) {
        return refused("key is not provided");
    }
    let mut put = BTreeSet::new();
    for op in &txn.ops {
        if let Op::Put { key, .. } = op
            && !put.insert(key)
        {
            return refused("duplicate key given in txn request");
        }
    }
    if txn.ops.iter().any(|op| matches!(op, Op::Delete(key) if put.contains(key))) {
        return refused("duplicate key given in txn request");
    }
    Ok(())
}

fn refused<T>(why: &str) -> Result<T, Fault> {
    Err(Fault::Refused(format!("etcdserver: {why}").into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_can_be_read_until_it_is_compacted() {
        let mut store = Mvcc::new(ClusterId(1), 1);
        for value in ["one", "two", "three"] {
            store.commit(&Txn::new().put("k", value, None)).unwrap();
        }
        let value_at = |store: &Mvcc, at: i64| {
            store.range(Select::Key("k"), Some(Revision(at))).map(|range| range.entries[0].value.clone())
        };
        assert_eq!(value_at(&store, 2).unwrap(), b"one");
        assert_eq!(value_at(&store, 4).unwrap(), b"three");
        assert!(matches!(value_at(&store, 5), Err(Fault::FutureRevision)));
        store.compact();
        assert!(matches!(value_at(&store, 3), Err(Fault::Compacted)));
        assert_eq!(value_at(&store, 4).unwrap(), b"three");
        assert!(matches!(store.since("", Revision(4)), Err(Fault::Compacted)));
        assert!(store.since("", Revision(5)).unwrap().changes.is_empty());
    }

    #[test]
    fn leases_end_when_time_went_by_and_not_before() {
        let mut store = Mvcc::new(ClusterId(1), 1);
        let (short, long) = (store.grant(Duration::from_millis(1500)), store.grant(Duration::from_secs(10)));
        store.commit(&Txn::new().put("short", "", Some(short)).put("long", "", Some(long))).unwrap();
        store.advance(Duration::from_millis(1999));
        assert_eq!(store.keep_alive(short).unwrap(), Duration::from_secs(2));
        store.advance(Duration::from_secs(2));
        assert_eq!(store.leases(), [long]);
        let left: Vec<_> =
            store.range(Select::Prefix(""), None).unwrap().entries.into_iter().map(|kv| kv.key).collect();
        assert_eq!(left, ["long"]);
        assert!(matches!(store.keep_alive(short), Err(Fault::NoSuchLease)));
    }
}
