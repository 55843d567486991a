//! The registry as it changes: one watch of the store, turned into the newest [`Known`].
//!
//! The only I/O of `registry`. Readers wait on a channel that holds the latest state, so that a slow
//! one skips states and never holds the others up.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_store::{Store, WatchEvent};

use super::Registry;
use crate::key::Prefix;

/// What is known of the store at a moment.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The registry as last heard of; `None` before the store answered for the first time.
    pub registry: Option<Arc<Registry>>,
    /// How often the store turned out to be a new one. What was decided before the count went up
    /// was about keys that are gone.
    pub wipes: u64,
    /// Why the store cannot be heard now; the registry may be out of date.
    pub disconnected: Option<String>,
    /// Since when it cannot be heard.
    pub silent_since: Option<Instant>,
}

impl Known {
    fn heard(&mut self) {
        (self.disconnected, self.silent_since) = (None, None);
    }
}

/// A running watch. Dropped, it stops.
#[derive(Debug)]
pub struct Followed {
    known: watch::Receiver<Known>,
    task: JoinHandle<()>,
}

/// Watches everything under the prefix, from now on and through every outage. Must be called on a
/// tokio runtime. Every fault is logged once, when it appears.
pub fn follow(store: &Store, prefix: Prefix) -> Followed {
    let mut events = store.watch(&prefix.all());
    let (sender, known) = watch::channel(Known::default());
    let task = tokio::spawn(async move {
        loop {
            let event = events.next().await;
            let mut faults = Vec::new();
            sender.send_modify(|known| faults = absorb(known, &prefix, event));
            for fault in faults {
                tracing::warn!(key = fault.key, reason = fault.reason, "skipped what cannot be used");
            }
        }
    });
    Followed { known, task }
}

impl Followed {
    /// The newest state, and how to wait for the next.
    pub fn known(&self) -> watch::Receiver<Known> {
        self.known.clone()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn absorb(known: &mut Known, prefix: &Prefix, event: WatchEvent) -> Vec<super::Fault> {
    match event {
        WatchEvent::Snapshot(snapshot) => {
            known.heard();
            match &mut known.registry {
                // Entries are shared, so that making a copy for the readers costs no more than its maps.
                Some(registry) => Arc::make_mut(registry).reset(&snapshot),
                None => {
                    let (registry, faults) = Registry::new(prefix.clone(), &snapshot);
                    known.registry = Some(Arc::new(registry));
                    faults
                }
            }
        }
        WatchEvent::Wiped(snapshot) => {
            known.heard();
            known.wipes += 1;
            match &mut known.registry {
                Some(registry) => Arc::make_mut(registry).wiped(&snapshot),
                None => {
                    let (registry, faults) = Registry::new(prefix.clone(), &snapshot);
                    known.registry = Some(Arc::new(registry));
                    faults
                }
            }
        }
        WatchEvent::Changes { revision, changes } => match &mut known.registry {
            Some(registry) => Arc::make_mut(registry).absorb(revision, &changes),
            // A watch begins with a snapshot; changes of what we never saw mean nothing.
            None => Vec::new(),
        },
        WatchEvent::Disconnected { reason } => {
            known.disconnected = Some(reason);
            known.silent_since.get_or_insert_with(Instant::now);
            Vec::new()
        }
        WatchEvent::Reconnected => {
            known.heard();
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_store::Txn;

    use super::*;

    async fn until(known: &mut watch::Receiver<Known>, what: &str, holds: impl Fn(&Known) -> bool) -> Known {
        let wait = known.wait_for(|known| holds(known));
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(seen) => seen.expect("the watch runs").clone(),
            Err(_) => panic!("not within 20 s: {what}"),
        }
    }

    #[tokio::test]
    async fn it_follows_through_outages_compaction_and_a_wipe() {
        let (store, control) = Store::memory();
        let prefix = Prefix::new("/n");
        let lease = prefix.lease(&"10.42.7.0/24".parse().unwrap());
        let put = |value: &'static str| store.commit(Txn::new().put(lease.clone(), value, None));
        let leases = |known: &Known| known.registry.as_ref().map(|registry| registry.leases().count());
        let followed = follow(&store, prefix.clone());
        let mut known = followed.known();

        until(&mut known, "an empty registry", |known| leases(known) == Some(0)).await;
        put(r#"{"PublicIP":"192.0.2.7"}"#).await.unwrap();
        until(&mut known, "the lease", |known| leases(known) == Some(1)).await;

        control.disconnect();
        let seen = until(&mut known, "the outage", |known| known.disconnected.is_some()).await;
        assert_eq!(leases(&seen), Some(1), "an outage deletes nothing");
        control.reconnect();
        until(&mut known, "the end of it", |known| known.disconnected.is_none()).await;

        control.disconnect();
        control.reconnect();
        put(r#"{"PublicIP":"192.0.2.8"}"#).await.unwrap();
        control.compact();
        let address = |known: &Known| {
            let registry = known.registry.as_ref()?;
            registry.leases().next().map(|(_, entry)| entry.addresses())
        };
        let new: Vec<std::net::IpAddr> = vec!["192.0.2.8".parse().unwrap()];
        until(&mut known, "what changed meanwhile", |known| address(known).as_ref() == Some(&new)).await;

        control.wipe();
        until(&mut known, "the new store", |known| known.wipes == 1 && leases(known) == Some(0)).await;
    }
}
