//! The kernel's events, brought to the reconciler that holds the host's network to its plan.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt as _;
use weft_daemon::reconcile::Trigger;
use weft_kernel::net::{Change, Event, Failure, LinkName, Mac, Net, NetError, Rtnetlink, State};

use crate::plan::Desired;
use crate::reconcile::{Kind, Reconciler, Report};

/// This network namespace, watched.
#[derive(Debug)]
pub(super) struct Kernel {
    reconciler: Reconciler<Rtnetlink>,
    pending: Arc<Mutex<Vec<Event>>>,
    /// Something was heard since the last pass began.
    unheeded: bool,
}

impl Kernel {
    /// Subscribes first, so that nothing falls between the list and the events. Every event that
    /// may matter fires the trigger.
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
        Ok(Self { reconciler: Reconciler::new(net), pending, unheeded: false })
    }

    /// The namespace, for what is asked of it directly.
    pub(super) fn net(&self) -> &Rtnetlink {
        self.reconciler.net()
    }

    /// Drift that was mended since the start, by kind.
    pub(super) fn heals(&self) -> &BTreeMap<Kind, u64> {
        self.reconciler.heals()
    }

    /// What the host's network is now. `fresh` asks the kernel, whatever the events said. To be let go
    /// before the network is changed, or it is copied.
    pub(super) async fn observe(&mut self, fresh: bool) -> Result<Arc<State>, NetError> {
        self.follow();
        if fresh {
            self.reconciler.doubt();
        }
        self.reconciler.observe().await
    }

    /// Makes the network hold what is desired, as far as it can be done now; `add_only`: nothing is
    /// taken away.
    pub(super) async fn reconcile(
        &mut self,
        desired: &Arc<Desired>,
        add_only: bool,
    ) -> Result<Report, NetError> {
        self.follow();
        self.reconciler.add_only(add_only);
        self.reconciler.reconcile(desired, Instant::now()).await
    }

    /// Applies changes that are not the plan's; what was refused comes back.
    pub(super) async fn apply(&mut self, changes: &[Change]) -> Vec<Failure> {
        self.reconciler.apply(changes).await
    }

    /// Asked when a pass begins: whether the kernel told anything new since the last one began. Most of
    /// what it tells repeats what we did. A pass listens at several places, but what it hears after its
    /// beginning it may have acted before, so that is news to the next one.
    pub(super) fn news(&mut self) -> bool {
        self.follow();
        std::mem::take(&mut self.unheeded)
    }

    fn follow(&mut self) {
        let events = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        for event in &events {
            self.unheeded |= !self.reconciler.knows(event);
            self.reconciler.absorb(event);
        }
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
