//! The one handle on a store: calls that end in time and errors that say what was asked.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, Range, Select};
use crate::etcd::Etcd;
use crate::fault::Fault;
use crate::memory::{Call, Memory, MemoryControl};
use crate::options::Settings;
use crate::{ConnectOptions, KeyValue, LeaseId, Op, Snapshot, StoreError, Txn, TxnOutcome, Watch};

/// A store of keys: real etcd or memory. Clones share the connection.
///
/// Every call ends within [`ConnectOptions::request_timeout`] (a long list: within that per
/// 2,000 keys). A call that only reads, or may be repeated without harm, moves on to the next endpoint
/// by itself; a commit does so only if it certainly was not done.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
}

impl Store {
    /// A store on etcd. Checks the options and reads their files, but connects with the first call:
    /// an etcd that is down is no error here.
    pub fn connect(options: ConnectOptions) -> Result<Store, StoreError> {
        let settings = Settings::try_from(options)?;
        Ok(Store { backend: Backend::Etcd(Arc::new(Etcd::new(settings))) })
    }

    /// A store in memory, and the hand that moves it.
    pub fn memory() -> (Store, MemoryControl) {
        Store::on_memory(Memory::new())
    }

    pub(crate) fn on_memory(memory: Arc<Memory>) -> (Store, MemoryControl) {
        (Store { backend: Backend::Memory(memory.clone()) }, MemoryControl::new(memory))
    }

    /// One key.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let call = self.backend.range(Select::Key(key), None, false);
        let found =
            self.hazard(Call::Get, call).await.map_err(|e| self.error(e, || format!("get {key}"), None))?;
        Ok(found.entries.into_iter().next())
    }

    /// Every key that begins with `prefix`, at one revision.
    pub async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let call = self.backend.range(Select::Prefix(prefix), None, false);
        let found = self
            .hazard(Call::List, call)
            .await
            .map_err(|e| self.error(e, || format!("list {prefix}"), None))?;
        Ok(snapshot(found))
    }

    /// All the writes, if all the guards hold; else nothing. After [`StoreError::Unreachable`] it may
    /// have happened or not: look.
    pub async fn commit(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let lease = txn.ops.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete(_) => None,
        });
        let first = txn.ops.first().map(|op| match op {
            Op::Put { key, .. } | Op::Delete(key) => key.clone(),
        });
        let call = self.backend.commit(txn);
        self.hazard(Call::Commit, call)
            .await
            .map_err(|e| self.error(e, || format!("write {}", first.unwrap_or_default()), lease))
    }

    /// A new lease. etcd counts whole seconds (we round up) and has a minimum of about two.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let call = self.backend.grant(ttl);
        self.hazard(Call::Grant, call).await.map_err(|e| self.error(e, || "grant a lease".into(), None))
    }

    /// Keeps the lease for another TTL, once. How long it now has.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let call = self.backend.keep_alive(lease);
        self.hazard(Call::KeepAlive, call)
            .await
            .map_err(|e| self.error(e, || format!("keep lease {lease} alive"), Some(lease)))
    }

    /// How long the lease still has.
    pub async fn time_to_live(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let call = self.backend.time_to_live(lease);
        self.hazard(Call::TimeToLive, call)
            .await
            .map_err(|e| self.error(e, || format!("look at lease {lease}"), Some(lease)))
    }

    /// Ends the lease and deletes its keys, in one revision.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let call = self.backend.revoke(lease);
        self.hazard(Call::Revoke, call)
            .await
            .map_err(|e| self.error(e, || format!("revoke lease {lease}"), Some(lease)))
    }

    /// Watches every key that begins with `prefix`: see [`crate::WatchEvent`]. Starts at once, on the
    /// tokio runtime that this is called in.
    pub fn watch(&self, prefix: &str) -> Watch {
        Watch::spawn(self.backend.clone(), prefix.to_owned())
    }

    async fn hazard<T>(&self, call: Call, run: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        match &self.backend {
            Backend::Etcd(_) => run.await,
            Backend::Memory(memory) => memory.hazard(call, run).await,
        }
    }

    fn error(&self, fault: Fault, what: impl FnOnce() -> String, lease: Option<LeaseId>) -> StoreError {
        fault.into_error(&self.backend.endpoints(), &what(), lease)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.backend.endpoints()).finish()
    }
}

pub(crate) fn snapshot(range: Range) -> Snapshot {
    Snapshot {
        cluster: range.header.cluster,
        revision: range.header.revision,
        entries: range.entries.into_iter().map(|kv| (kv.key.clone(), kv)).collect(),
    }
}
