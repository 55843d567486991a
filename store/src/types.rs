//! The words that every store speaks: keys with revisions, transactions, what a watch says.

use std::collections::BTreeMap;
use std::fmt;

/// etcd's store-wide, ever-growing number: one more for every transaction that wrote.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Revision(pub i64);

impl Revision {
    /// The one after.
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

/// An etcd lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// Which cluster answered. A different one means that the store was wiped and made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ClusterId(pub u64);

/// A key as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key. Keys that are not UTF-8 are skipped with a warning: none of ours is.
    pub key: String,
    /// The value, raw.
    pub value: Vec<u8>,
    /// When it was made.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
    /// The lease it dies with.
    pub lease: Option<LeaseId>,
}

/// Every key under a prefix at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Who answered.
    pub cluster: ClusterId,
    /// As of when.
    pub revision: Revision,
    /// By key.
    pub entries: BTreeMap<String, KeyValue>,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The key was last written at exactly this revision.
    Unchanged(String, Revision),
    /// The key does not exist.
    Absent(String),
}

/// A write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key, bound to a lease or to none.
    Put {
        /// The whole key.
        key: String,
        /// The value, raw.
        value: Vec<u8>,
        /// The lease it shall die with.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; one that is not there is no error.
    Delete(String),
}

/// All the writes, if all the guards hold; else nothing.
///
/// etcd refuses more than 128 guards or writes, and two writes of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must be true.
    pub guards: Vec<Guard>,
    /// What is then done.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Nothing yet.
    pub fn new() -> Self {
        Txn::default()
    }

    /// Only if the key was last written at exactly this revision.
    #[must_use]
    pub fn if_unchanged(mut self, key: impl Into<String>, revision: Revision) -> Self {
        self.guards.push(Guard::Unchanged(key.into(), revision));
        self
    }

    /// Only if the key does not exist.
    #[must_use]
    pub fn if_absent(mut self, key: impl Into<String>) -> Self {
        self.guards.push(Guard::Absent(key.into()));
        self
    }

    /// Then write the key.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>, lease: Option<LeaseId>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease });
        self
    }

    /// Then delete the key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete(key.into()));
        self
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Every write is in the store, at this revision (also the writes' mod revision). Where there
    /// was nothing to write (only deletes of absent keys), the store's newest revision.
    Committed(Revision),
    /// A guard did not hold; nothing was written.
    Conflict,
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Written.
    Put(KeyValue),
    /// Deleted, or its lease ran out.
    Delete {
        /// The whole key.
        key: String,
        /// When.
        revision: Revision,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(kv) => &kv.key,
            Change::Delete { key, .. } => key,
        }
    }

    /// When it changed.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put(kv) => kv.mod_revision,
            Change::Delete { revision, .. } => *revision,
        }
    }
}

/// What a watch says, in order, each revision once and whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Everything under the prefix: the first event, and again when history was lost (compaction).
    Snapshot(Snapshot),
    /// What happened since: never empty, never half a revision.
    Changes {
        /// The newest revision among them.
        revision: Revision,
        /// In the store's order.
        changes: Vec<Change>,
    },
    /// The cluster id changed or the revision went backwards: what we knew is not this store's
    /// past. The snapshot is the new store's.
    Wiped(Snapshot),
    /// The store cannot be reached or does not answer; said once per outage. Nothing is known to
    /// have changed.
    Disconnected {
        /// For people.
        reason: String,
    },
    /// Events flow again after [`WatchEvent::Disconnected`]; nothing was missed. Where history was
    /// lost, a snapshot comes instead of this.
    Reconnected,
}

/// A call that failed. Nothing may be concluded about what the store holds.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No endpoint answered in time. A commit, grant or revoke may have been done all the same.
    #[error("cannot reach etcd at {endpoints}")]
    Unreachable {
        /// The endpoints tried, comma-separated.
        endpoints: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// User, password or a certificate was refused (ours by etcd, or etcd's by us), or the user's role
    /// does not allow this.
    #[error("no access to etcd at {endpoints}")]
    Denied {
        /// The endpoints tried.
        endpoints: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The lease is not there (any more).
    #[error("etcd knows no lease {0}")]
    NoSuchLease(LeaseId),
    /// The connection's settings cannot be used: a file that cannot be read, a bad URL.
    #[error("{what}")]
    Config {
        /// What is wrong, where, and what to do.
        what: String,
        /// The cause, where there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// etcd answered with an error.
    #[error("etcd could not {what}")]
    Refused {
        /// What was asked: "list /coreos.com/network".
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl fmt::Display for LeaseId {
    /// As etcdctl prints it: hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
