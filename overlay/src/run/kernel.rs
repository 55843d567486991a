//! The host's network as the daemon believes it to be: one list, then the kernel's events, and a
//! fresh list whenever an event leaves a doubt.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use weft_daemon::reconcile::Trigger;
use weft_kernel::net::{Absorbed, Change, Event, Failure, LinkName, Mac, Net, NetError, Rtnetlink, State};

use crate::believe;

/// This network namespace, watched.
#[derive(Debug)]
pub(super) struct Kernel {
    net: Rtnetlink,
    believed: Option<State>,
    pending: Arc<Mutex<Vec<Event>>>,
}

impl Kernel {
    /// Subscribes first, so that nothing falls between the list and the events. Every event fires
    /// the trigger.
    pub(super) fn watch(trigger: &Trigger) -> Result<Self, NetError> {
        let net = Rtnetlink::open()?;
        let mut events = net.events()?;
        let pending = Arc::new(Mutex::new(Vec::new()));
        let (queue, trigger) = (Arc::clone(&pending), trigger.clone());
        tokio::spawn(async move {
            let mut stations = BTreeMap::new();
            while let Some(event) = events.next().await {
                let old = is_old_news(&event, &mut stations);
                queue.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                if !old {
                    trigger.fire("kernel");
                }
            }
            tracing::error!("the kernel's events have ended; drift is found by the slow timer only");
        });
        Ok(Self { net, believed: None, pending })
    }

    /// The links' counters and other things that are asked for directly.
    pub(super) fn net(&self) -> &Rtnetlink {
        &self.net
    }

    /// What the host's network is now. `fresh` asks the kernel, whatever the events said.
    pub(super) async fn observe(&mut self, fresh: bool) -> Result<State, NetError> {
        let events = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(state) = self.believed.as_mut().filter(|_| !fresh) {
            let doubts = events.iter().filter(|event| state.absorb(event) == Absorbed::ObserveAgain).count();
            if doubts == 0 {
                return Ok(state.clone());
            }
        }
        self.believed = None;
        let state = self.net.observe().await?;
        self.believed = Some(state.clone());
        Ok(state)
    }

    /// Applies the changes; what was refused comes back. What was done is believed at once: its
    /// events only confirm it.
    pub(super) async fn apply(&mut self, changes: &[Change]) -> Vec<Failure> {
        if changes.is_empty() {
            return Vec::new();
        }
        let failures = self.net.apply(changes).await;
        if let Some(state) = &mut self.believed {
            let failed = |index: usize| failures.iter().any(|failure| failure.index == index);
            for (_, change) in changes.iter().enumerate().filter(|(index, _)| !failed(*index)) {
                believe::apply(state, change);
            }
        }
        failures
    }
}

/// The kernel tells of every neighbour that it looks at again, many times a minute on a busy host.
/// What we act upon is the address alone, so only a new one is worth a pass.
fn is_old_news(event: &Event, stations: &mut BTreeMap<(LinkName, IpAddr), Mac>) -> bool {
    match event {
        Event::Neighbour(neighbour) => {
            let key = (neighbour.link.clone(), neighbour.addr);
            if neighbour.permanent {
                stations.remove(&key);
                return false;
            }
            stations.insert(key, neighbour.mac) == Some(neighbour.mac)
        }
        Event::NeighbourGone(link, addr) => {
            // Learned ones come and go by themselves; a permanent one that goes was deleted.
            stations.remove(&(link.clone(), *addr)).is_some()
        }
        _ => false,
    }
}
