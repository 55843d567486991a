//! etcd, once for everyone: list and watch that survive, compare-and-swap, leases; and an in-memory twin.
//!
//! [`Store`] is the one handle. It speaks to real etcd ([`Store::connect`]) or to memory
//! ([`Store::memory`]); one suite of tests holds both to the same behaviour.
//!
//! | file | what is in it |
//! |---|---|
//! | `types` | the words: keys, revisions, transactions, what a watch says |
//! | `options` | how to reach etcd, checked |
//! | `store` | the handle |
//! | `watch` | the endless watch: the task that talks (`mod`), what it decides (`tracker`, pure) |
//! | `keeper` | a lease kept alive in the background |
//! | `backend` | what a store must be able to do |
//! | `etcd` | real etcd: connections and failover (`link`), calls (`mod`), answers (`answer`, pure) |
//! | `memory` | the twin: etcd's rules (`mvcc`, pure), and misfortune on demand |

mod backend;
mod backoff;
mod etcd;
mod fault;
mod keeper;
mod memory;
mod options;
mod store;
mod types;
mod watch;

pub use keeper::{LeaseKeeper, LeaseState};
pub use memory::{Call, MemoryControl};
pub use options::{ConnectOptions, Secret};
pub use store::Store;
pub use types::{
    Change, ClusterId, Guard, KeyValue, LeaseId, Op, Revision, Snapshot, StoreError, Txn, TxnOutcome,
    WatchEvent,
};
pub use watch::Watch;
