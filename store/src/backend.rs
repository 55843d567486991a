//! What a store must be able to do, so that [`crate::Store`] and [`crate::Watch`] can stand on it:
//! real etcd and the in-memory twin.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::etcd::{Etcd, EtcdStream};
use crate::fault::Fault;
use crate::memory::{Memory, MemoryStream};
use crate::{Change, ClusterId, KeyValue, LeaseId, Revision, Txn, TxnOutcome};

/// Who answered, as of when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) cluster: ClusterId,
    pub(crate) revision: Revision,
}

/// Which keys to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Select<'a> {
    Key(&'a str),
    Prefix(&'a str),
}

/// Keys at one revision.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    /// The revision is that of the keys where none was asked for, else the store's newest.
    pub(crate) header: Header,
    pub(crate) entries: Vec<KeyValue>,
}

/// One message of a watch: whole revisions, maybe none.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Who sent it, if it says so.
    pub(crate) cluster: Option<ClusterId>,
    /// Everything up to here has been said.
    pub(crate) complete_to: Option<Revision>,
    pub(crate) changes: Vec<Change>,
}

/// The store behind a [`crate::Store`].
#[derive(Clone)]
pub(crate) enum Backend {
    Etcd(Arc<Etcd>),
    Memory(Arc<Memory>),
}

impl Backend {
    /// For messages.
    pub(crate) fn endpoints(&self) -> String {
        match self {
            Backend::Etcd(etcd) => etcd.endpoints(),
            Backend::Memory(_) => "memory".to_owned(),
        }
    }

    /// The keys, at one revision. `keys_only` leaves the values out.
    pub(crate) async fn range(
        &self,
        select: Select<'_>,
        at: Option<Revision>,
        keys_only: bool,
    ) -> Result<Range, Fault> {
        match self {
            Backend::Etcd(etcd) => etcd.range(select, at, keys_only).await,
            Backend::Memory(memory) => memory.range(select, at),
        }
    }

    pub(crate) async fn commit(&self, txn: Txn) -> Result<TxnOutcome, Fault> {
        match self {
            Backend::Etcd(etcd) => etcd.commit(txn).await,
            Backend::Memory(memory) => memory.commit(txn),
        }
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId, Fault> {
        match self {
            Backend::Etcd(etcd) => etcd.grant(ttl).await,
            Backend::Memory(memory) => memory.grant(ttl),
        }
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Fault> {
        match self {
            Backend::Etcd(etcd) => etcd.keep_alive(lease).await,
            Backend::Memory(memory) => memory.keep_alive(lease),
        }
    }

    pub(crate) async fn time_to_live(&self, lease: LeaseId) -> Result<Duration, Fault> {
        match self {
            Backend::Etcd(etcd) => etcd.time_to_live(lease).await,
            Backend::Memory(memory) => memory.time_to_live(lease),
        }
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), Fault> {
        match self {
            Backend::Etcd(etcd) => etcd.revoke(lease).await,
            Backend::Memory(memory) => memory.revoke(lease),
        }
    }

    /// Changes under the prefix from `from` on. Returns once the store confirmed that it watches.
    pub(crate) async fn watch(&self, prefix: &str, from: Revision) -> Result<Stream, Fault> {
        match self {
            Backend::Etcd(etcd) => Ok(Stream::Etcd(Box::new(etcd.watch(prefix, from).await?))),
            Backend::Memory(memory) => Ok(Stream::Memory(memory.watch(prefix, from)?)),
        }
    }

    /// Waits until trying again makes sense. Memory has no clock: there it is when the
    /// connection is back.
    pub(crate) async fn wait_to_retry(&self, backoff: &mut Backoff) {
        match self {
            Backend::Etcd(_) => tokio::time::sleep(backoff.next(rand::random())).await,
            Backend::Memory(memory) => memory.connected().await,
        }
    }
}

/// An open watch.
pub(crate) enum Stream {
    Etcd(Box<EtcdStream>),
    Memory(MemoryStream),
}

impl Stream {
    /// The next message. After an error the stream is finished.
    pub(crate) async fn next(&mut self) -> Result<Batch, Fault> {
        match self {
            Stream::Etcd(stream) => stream.next().await,
            Stream::Memory(stream) => stream.next().await,
        }
    }
}
