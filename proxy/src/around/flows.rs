//! Forgets the UDP flows that [`crate::stale`] finds, after each change that may have left some.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::spawn_blocking;
use weft_daemon::log::Repeated;
use weft_daemon::metrics::{Counter, Histogram, Metrics, SECONDS};
use weft_kernel::conntrack::{Conntrack, ConntrackError, Flow, Protocol};

use crate::model::{self, Family, ServiceName};
use crate::plan::ServicePlan;
use crate::run::kube_proxy::ip_family;
use crate::run::{Committed, Shared, World};
use crate::stale::{Answering, Answers};

/// A look at all flows is at most one part in so many of the time: a full table of a busy host has
/// hundreds of thousands.
const SHARE: u32 = 4;
/// After a look that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What is counted, under kube-proxy's names.
#[derive(Clone, Debug)]
pub struct Counts {
    /// By family, in the order of [`Family::ALL`].
    deleted: [Counter; 2],
    took: [Histogram; 2],
}

impl Counts {
    /// In that registry.
    pub fn new(metrics: &Metrics) -> Self {
        let deleted = metrics.counters(
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "Tracked UDP flows that were forgotten because their endpoint is gone.",
            ["ip_family"],
        );
        let took = metrics.histograms(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "How long a look at the tracked UDP flows took, with forgetting the stale ones.",
            ["ip_family"],
            SECONDS,
        );
        Self {
            deleted: Family::ALL.map(|family| deleted.with([ip_family(family)])),
            took: Family::ALL.map(|family| took.with([ip_family(family)])),
        }
    }
}

/// Follows the acknowledged changes for as long as there are any; flows are looked at when the kernel
/// has a change, so that one that is forgotten begins anew by the new rules.
pub async fn follow(shared: Shared, mut commits: Receiver<Committed>, counts: Counts) {
    let mut answering = Answering::default();
    let mut failures = Repeated::default();
    let mut due = false;
    loop {
        if !due {
            match commits.recv().await {
                Ok(committed) => due |= learn(&mut answering, &shared, committed),
                Err(RecvError::Lagged(_)) => due |= learn(&mut answering, &shared, Committed::All),
                Err(RecvError::Closed) => return,
            }
        }
        // What came meanwhile is one look.
        loop {
            match commits.try_recv() {
                Ok(committed) => due |= learn(&mut answering, &shared, committed),
                Err(TryRecvError::Lagged(_)) => due |= learn(&mut answering, &shared, Committed::All),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Closed) => return,
            }
        }
        due &= !answering.is_empty();
        if !due {
            continue;
        }
        let started = Instant::now();
        let world = shared.clone();
        let looked = spawn_blocking(move || {
            let found = clean(&answering, &world);
            (answering, found)
        });
        let found;
        (answering, found) = match looked.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => return,
            },
        };
        let took = started.elapsed();
        for (counter, deleted) in counts.deleted.iter().zip(found.deleted) {
            counter.add(deleted);
        }
        for (histogram, took) in counts.took.iter().zip(found.took) {
            histogram.observe_duration(took);
        }
        let flows: u64 = found.deleted.iter().sum();
        if flows > 0 {
            tracing::info!(flows, ?took, "forgot UDP flows to endpoints that are gone");
        }
        due = found.error.is_some();
        match &found.error {
            None => failures.recovered("looking for stale UDP flows"),
            Some(error) => failures.warn("looking for stale UDP flows", error),
        }
        tokio::time::sleep(if due { RETRY } else { took * (SHARE - 1) }).await;
    }
}

/// What a look came to.
struct Found {
    /// By family, and how long the look at its flows took.
    deleted: [u64; 2],
    took: [Duration; 2],
    /// It may have missed some.
    error: Option<ConntrackError>,
}

/// Whether flows may be stale now.
fn learn(answering: &mut Answering, shared: &Shared, committed: Committed) -> bool {
    let world = shared.read();
    match committed {
        Committed::Some(plans) => {
            let mut stale = false;
            for (name, plan) in plans.iter() {
                stale |= answering.set(name, answers(&world, name, plan));
            }
            stale
        }
        Committed::All => {
            let has_udp =
                |ports: &[model::ServicePort]| ports.iter().any(|it| it.protocol == model::Protocol::Udp);
            let known: Vec<ServiceName> = answering.services().cloned().collect();
            let gone = known.iter().filter(|name| world.model.service(name).is_none());
            for name in gone {
                answering.set(name, Vec::new());
            }
            let mut stale = false;
            let known: HashSet<ServiceName> = known.into_iter().collect();
            for (name, service) in world.model.services() {
                if has_udp(&service.ports) || known.contains(name) {
                    stale |= answering.set(name, answers(&world, name, &world.plan(name)));
                }
            }
            stale
        }
    }
}

fn answers(world: &World, name: &ServiceName, plan: &ServicePlan) -> Vec<Answers> {
    Answers::of(&world.model, &world.host.node, name, plan)
}

/// Lists the flows of this thread's network namespace and deletes the stale ones, and no others.
fn clean(answering: &Answering, shared: &Shared) -> Found {
    let mut found = Found { deleted: [0; 2], took: [Duration::ZERO; 2], error: None };
    let mut conntrack = match Conntrack::open() {
        Ok(conntrack) => conntrack,
        Err(source) => {
            let doing = "open connection tracking's netlink socket";
            return Found { error: Some(ConntrackError::Io { doing, source }), ..found };
        }
    };
    let host = shared.read().host.clone();
    let is_own = |address: IpAddr| host.owns(address);
    for (family, (deleted, took)) in
        Family::ALL.into_iter().zip(found.deleted.iter_mut().zip(&mut found.took))
    {
        let started = Instant::now();
        let mut stale: Vec<Flow> = Vec::new();
        let mut services: BTreeSet<&ServiceName> = BTreeSet::new();
        let listed = conntrack.each(Protocol::Udp, family == Family::V6, |flow| {
            if let Some(service) = answering.stale(&flow, is_own) {
                stale.push(flow);
                services.insert(service);
            }
        });
        // Of a list that was cut short the part that came is used; all is looked at again.
        if let Err(error) = listed {
            found.error.get_or_insert(error);
        }
        let now = answering_now(shared, &services);
        for flow in stale.iter().filter(|flow| now.stale(flow, is_own).is_some()) {
            match conntrack.delete(flow) {
                Ok(was_there) => *deleted += u64::from(was_there),
                Err(error) => {
                    found.error.get_or_insert(error);
                }
            }
        }
        *took = started.elapsed();
    }
    found
}

/// Who answers for these services by now. The world is never behind the kernel: a flow to an endpoint
/// that came while flows were listed is not stale by it.
fn answering_now(shared: &Shared, services: &BTreeSet<&ServiceName>) -> Answering {
    let (world, mut now) = (shared.read(), Answering::default());
    for name in services {
        now.set(name, answers(&world, name, &world.plan(name)));
    }
    now
}

#[cfg(test)]
mod tests;
