//! Says that this host's daemon runs: its liveness record, under a short etcd lease.
//!
//! The record is written whenever it is not there as it should be, and then only kept alive. A record
//! of another host that runs with our node id is left alone: that one was first.

use std::time::Duration;

use tokio::sync::watch;
use weft_store::{LeaseKeeper, LeaseState as Kept, Store, StoreError, Txn, TxnOutcome};

use super::Wish;
use super::driver::{Intent, chain};
use crate::registry::{Known, LiveRecord, Registry};

/// Keeps the record until the channels close.
pub(super) async fn keep_live(
    store: Store,
    mut known: watch::Receiver<Known>,
    mut intent: watch::Receiver<Option<Intent>>,
    ttl: Duration,
) {
    let mut keeper: Option<LeaseKeeper> = None;
    let mut warned = false;
    loop {
        let registry = known.borrow_and_update().registry.clone();
        let wish = intent.borrow_and_update().as_ref().map(|intent| intent.wish.clone());
        let mut pause = None;
        if let (Some(registry), Some(wish)) = (registry, wish)
            && let Some(txn) = missing(&registry, &wish)
        {
            match write(&store, &mut keeper, txn, &wish, &registry, ttl).await {
                Ok(TxnOutcome::Committed(_)) => warned = false,
                // Somebody wrote it meanwhile; the news of that are on their way.
                Ok(TxnOutcome::Conflict) => pause = Some(ttl / 10),
                Err(error) => {
                    if !warned {
                        tracing::warn!(
                            reason = chain(&error),
                            "cannot say that this host is alive; trying on"
                        );
                    }
                    warned = true;
                    pause = Some(ttl / 10);
                }
            }
        }
        tokio::select! {
            news = known.changed() => if news.is_err() { return },
            news = intent.changed() => if news.is_err() { return },
            () = ended(keeper.as_ref()) => keeper = None,
            () = super::driver::pause(pause) => {}
        }
    }
}

/// The start of the write that mends our record; `None` if it is as it should be, or not ours to write.
pub(super) fn missing(registry: &Registry, wish: &Wish) -> Option<Txn> {
    let key = registry.prefix().live(&wish.node);
    let Some(entry) = registry.live_entry(&wish.node) else { return Some(Txn::new().if_absent(key)) };
    let as_it_should_be = entry.record.as_ref() == Some(&record(wish));
    if as_it_should_be || wish.is_doubled(registry).is_some() {
        return None;
    }
    Some(Txn::new().if_unchanged(key, entry.mod_revision))
}

pub(super) fn record(wish: &Wish) -> LiveRecord {
    let instance = wish.instance.clone();
    LiveRecord { instance, public_v4: wish.public_v4, public_v6: wish.public_v6 }
}

async fn write(
    store: &Store,
    keeper: &mut Option<LeaseKeeper>,
    txn: Txn,
    wish: &Wish,
    registry: &Registry,
    ttl: Duration,
) -> Result<TxnOutcome, StoreError> {
    let lease = match keeper.as_ref().filter(|keeper| keeper.state() != Kept::Lost) {
        Some(keeper) => keeper.lease(),
        None => keeper.insert(LeaseKeeper::grant(store, ttl).await?).lease(),
    };
    let done =
        store.commit(txn.put(registry.prefix().live(&wish.node), record(wish).encode(), Some(lease))).await;
    if let Err(StoreError::NoSuchLease(_)) = done {
        *keeper = None;
    }
    done
}

/// Waits until etcd says that the lease is gone; for ever if there is none.
async fn ended(keeper: Option<&LeaseKeeper>) {
    let Some(keeper) = keeper else { return std::future::pending().await };
    // An error means that the keeper has ended, which it does only then.
    let _ = keeper.watch().wait_for(|state| *state == Kept::Lost).await;
}
