//! One face for etcd and its twin, so that one suite holds both to the same behaviour.

use weft_store::{LeaseId, MemoryControl, Store};

use super::etcd::{Etcd, store_at};
use super::relay::Relay;

/// A store and the power over it.
pub(crate) enum Harness {
    Memory { store: Store, control: MemoryControl },
    Etcd { etcd: Box<Etcd>, relay: Relay },
}

impl Harness {
    pub(crate) fn memory() -> Harness {
        let (store, control) = Store::memory();
        Harness::Memory { store, control }
    }

    pub(crate) async fn etcd() -> Harness {
        let etcd = Etcd::start().await;
        let relay = Relay::to(&etcd.host).await;
        Harness::Etcd { etcd: Box::new(etcd), relay }
    }

    /// A store whose connection can be cut.
    pub(crate) fn store(&self) -> Store {
        match self {
            Harness::Memory { store, .. } => store.clone(),
            Harness::Etcd { relay, .. } => store_at(&[relay.url()]),
        }
    }

    pub(crate) fn cut(&self) {
        match self {
            Harness::Memory { control, .. } => control.disconnect(),
            Harness::Etcd { relay, .. } => relay.cut(),
        }
    }

    pub(crate) fn heal(&self) {
        match self {
            Harness::Memory { control, .. } => control.reconnect(),
            Harness::Etcd { relay, .. } => relay.heal(),
        }
    }

    /// Another host's store, whose connection is never cut.
    pub(crate) fn another(&self) -> Store {
        match self {
            Harness::Memory { control, .. } => control.another().0,
            Harness::Etcd { etcd, .. } => etcd.store(),
        }
    }

    pub(crate) async fn compact(&self) {
        match self {
            Harness::Memory { control, .. } => control.compact(),
            Harness::Etcd { etcd, .. } => etcd.compact().await,
        }
    }

    pub(crate) async fn wipe(&mut self, keep_cluster_id: bool) {
        match self {
            Harness::Memory { control, .. } if keep_cluster_id => control.wipe_keeping_cluster_id(),
            Harness::Memory { control, .. } => control.wipe(),
            Harness::Etcd { etcd, .. } => etcd.wipe(keep_cluster_id).await,
        }
    }

    /// Ends a lease without the store's doing.
    pub(crate) async fn expire(&self, lease: LeaseId) {
        match self {
            Harness::Memory { control, .. } => assert!(control.expire(lease)),
            Harness::Etcd { etcd, .. } => etcd.store().revoke(lease).await.expect("it was there"),
        }
    }
}
