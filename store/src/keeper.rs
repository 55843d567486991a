//! A lease kept alive in the background, which tells "etcd says it is gone" from "I could not ask".

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backoff::Backoff;
use crate::fault::chain;
use crate::{LeaseId, Store, StoreError};

/// What is known of a kept lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// etcd confirmed it; without another confirmation it ends at `expires`.
    Alive {
        /// The end, if nothing more is heard.
        expires: Instant,
    },
    /// It could not be confirmed lately. It may live or not; after `expires` it is probably gone, but
    /// only etcd can say.
    Unreachable {
        /// Since when.
        since: Instant,
        /// The end, by the last confirmation.
        expires: Instant,
        /// For people.
        reason: String,
    },
    /// etcd says that there is no such lease. Its keys are gone too. Nothing is done any more.
    Lost,
}

/// Keeps a lease alive at a third of its TTL. Dropped, it stops, and the lease lives out its time.
#[derive(Debug)]
pub struct LeaseKeeper {
    store: Store,
    lease: LeaseId,
    state: watch::Receiver<LeaseState>,
    task: JoinHandle<()>,
}

impl LeaseKeeper {
    /// Grants a lease and keeps it.
    pub async fn grant(store: &Store, ttl: Duration) -> Result<LeaseKeeper, StoreError> {
        let asked = Instant::now();
        let lease = store.grant(ttl).await?;
        // The clock of the lease started after we asked, so this is the careful end.
        Ok(Self::spawn(store.clone(), lease, LeaseState::Alive { expires: asked + ttl }, asked + ttl / 3))
    }

    /// Keeps a lease that exists already; [`StoreError::NoSuchLease`] if it does not.
    pub async fn adopt(store: &Store, lease: LeaseId) -> Result<LeaseKeeper, StoreError> {
        let asked = Instant::now();
        let ttl = store.keep_alive(lease).await?;
        Ok(Self::spawn(store.clone(), lease, LeaseState::Alive { expires: asked + ttl }, asked + ttl / 3))
    }

    fn spawn(store: Store, lease: LeaseId, state: LeaseState, next: Instant) -> LeaseKeeper {
        let (sender, receiver) = watch::channel(state);
        let task = tokio::spawn(keep(store.clone(), lease, sender, next));
        LeaseKeeper { store, lease, state: receiver, task }
    }

    /// The lease.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// What is known now.
    pub fn state(&self) -> LeaseState {
        self.state.borrow().clone()
    }

    /// What is known, as it changes.
    pub fn watch(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Stops; the lease lives out its time.
    pub fn stop(self) -> LeaseId {
        self.lease
    }

    /// Stops and ends the lease, with its keys. One that is gone already is no error.
    pub async fn revoke(self) -> Result<(), StoreError> {
        self.task.abort();
        match self.store.revoke(self.lease).await {
            Err(StoreError::NoSuchLease(_)) => Ok(()),
            done => done,
        }
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(store: Store, lease: LeaseId, state: watch::Sender<LeaseState>, mut next: Instant) {
    let mut backoff = Backoff::default();
    loop {
        sleep_until(next).await;
        let asked = Instant::now();
        match store.keep_alive(lease).await {
            Ok(ttl) => {
                backoff.reset();
                next = asked + ttl / 3;
                state.send_replace(LeaseState::Alive { expires: asked + ttl });
            }
            Err(StoreError::NoSuchLease(_)) => {
                state.send_replace(LeaseState::Lost);
                return;
            }
            Err(error) => {
                state.send_modify(|state| *state = unreachable(state, asked, &error));
                sleep(backoff.next(rand::random())).await;
                next = Instant::now();
            }
        }
    }
}

fn unreachable(before: &LeaseState, now: Instant, error: &StoreError) -> LeaseState {
    let reason = chain(error);
    match *before {
        LeaseState::Alive { expires } => LeaseState::Unreachable { since: now, expires, reason },
        LeaseState::Unreachable { since, expires, .. } => LeaseState::Unreachable { since, expires, reason },
        LeaseState::Lost => LeaseState::Lost,
    }
}
