//! etcd, once for everyone: list and watch that survive, compare-and-swap, leases; and an in-memory twin.
//!
//! [`Store`] is the one handle. It speaks to real etcd ([`Store::connect`]) or to memory
//! ([`Store::memory`]); one suite of tests holds both to the same behaviour.

mod types;

pub use types::{
    Change, ClusterId, Guard, KeyValue, LeaseId, Op, Revision, Snapshot, StoreError, Txn, TxnOutcome,
    WatchEvent,
};
