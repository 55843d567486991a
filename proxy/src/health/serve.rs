//! The task that serves health: the proxy's own at two addresses, and each `healthCheckNodePort`.

use std::collections::BTreeMap;
use std::future::ready;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use weft_daemon::http::{Response, Router};
use weft_daemon::metrics::{Counter, Family as Labelled, Metrics};
use weft_daemon::{CancellationToken, observability};

use super::answers;
use super::listeners::Listeners;
use super::pulse::Pulse;
use crate::host::Host;
use crate::model::{Family, ServiceName};
use crate::plan::{HealthCheck, NodePortScope};
use crate::run::{Committed, Shared};

/// The host's addresses are looked at this often.
const LOOK: Duration = Duration::from_secs(5);

/// What is served beside services' own ports.
#[derive(Clone, Debug)]
pub struct Served {
    /// Where `/healthz`, `/livez` and `/readyz` are.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is.
    pub metrics: Option<SocketAddr>,
    /// As kube-proxy's `/proxyMode` tells.
    pub mode: &'static str,
}

/// The counts that the handlers read.
type Counts = Arc<RwLock<BTreeMap<ServiceName, HealthCheck>>>;

/// Serves until `shutdown`; the kernel holds what is told.
pub async fn follow(
    served: Served,
    pulse: Pulse,
    health: weft_daemon::health::Health,
    metrics: Metrics,
    shared: Shared,
    mut commits: Receiver<Committed>,
    shutdown: CancellationToken,
) {
    let failing = metrics.gauge(
        "weft_proxy_unserved_addresses",
        "Addresses of health checks and metrics that cannot be listened on; each is tried again.",
    );
    let mut listeners = Listeners::new(failing, shutdown.clone());
    let public = own(&served, &pulse, observability(&health, &metrics), &metrics);
    let counts = Counts::default();
    let (mut scopes, mut differs) = (None, true);
    loop {
        let now = Some(scopes_of(&shared.read().host));
        if differs || scopes != now {
            let mut wanted = now.as_ref().map(|scopes| wanted(scopes, &counts, &pulse)).unwrap_or_default();
            for address in [served.healthz, served.metrics].into_iter().flatten() {
                wanted.insert(address, ("weft proxy".to_owned(), public.clone()));
            }
            listeners.want(wanted, Instant::now());
            (scopes, differs) = (now, false);
        }
        // The host's addresses may change without a change of any service.
        let look = Instant::now() + LOOK;
        let due = listeners.due().map_or(look, |due| due.min(look));
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep_until(due.into()) => listeners.retry(Instant::now()),
            committed = commits.recv() => differs |= match committed {
                Ok(committed) => learn(&counts, &shared, committed),
                Err(RecvError::Lagged(_)) => learn(&counts, &shared, Committed::All),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

fn scopes_of(host: &Host) -> [NodePortScope; 2] {
    Family::ALL.map(|family| NodePortScope::of(host, family))
}

/// The proxy's own routes, the same at each of its addresses.
fn own(served: &Served, pulse: &Pulse, rest: Router, metrics: &Metrics) -> Router {
    let counted = |name, help| metrics.counters(name, help, ["code"]);
    let healthz = counted("kubeproxy_proxy_healthz_total", "Answers of /healthz, by status code.");
    let livez = counted("kubeproxy_proxy_livez_total", "Answers of /livez, by status code.");
    let count = |family: &Labelled<Counter, 1>, response: Response| {
        family.with([response.status.as_str()]).inc();
        response
    };
    let (mode, of_healthz, of_livez) = (served.mode, pulse.clone(), pulse.clone());
    Router::new()
        .get("/healthz", move |_| {
            ready(count(&healthz, answers::healthz(&of_healthz.standing(), SystemTime::now())))
        })
        .get("/livez", move |_| ready(count(&livez, answers::livez(&of_livez.standing(), SystemTime::now()))))
        .get("/proxyMode", move |_| ready(Response::text(mode)))
        .merge(rest)
}

/// An address for each place at which this host serves node ports, for each service that is asked about.
fn wanted(
    scopes: &[NodePortScope; 2],
    counts: &Counts,
    pulse: &Pulse,
) -> BTreeMap<SocketAddr, (String, Router)> {
    let known = counts.read().unwrap_or_else(PoisonError::into_inner);
    let mut wanted = BTreeMap::new();
    for (family, scope) in Family::ALL.into_iter().zip(scopes) {
        let places = places(scope, family);
        for (name, check) in known.iter() {
            for place in &places {
                let address = SocketAddr::new(*place, check.port.get());
                // Of two services with one port, which the API does not allow, the first has it.
                wanted
                    .entry(address)
                    .or_insert_with(|| (name.to_string(), of_service(name, family, counts, pulse)));
            }
        }
    }
    wanted
}

fn places(scope: &NodePortScope, family: Family) -> Vec<IpAddr> {
    if scope.all {
        return vec![match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }];
    }
    let loopback = match family {
        Family::V4 => IpAddr::from(Ipv4Addr::LOCALHOST),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let localhost = (scope.localhost || scope.relayed).then_some(loopback);
    scope.listed.iter().copied().chain(localhost).collect()
}

/// On any path.
fn of_service(name: &ServiceName, family: Family, counts: &Counts, pulse: &Pulse) -> Router {
    let (name, counts, pulse) = (name.clone(), Arc::clone(counts), pulse.clone());
    Router::new().rest(move |_| {
        let known = counts.read().unwrap_or_else(PoisonError::into_inner);
        let local = known.get(&name).map_or(0, |check| match family {
            Family::V4 => check.local_v4,
            Family::V6 => check.local_v6,
        });
        ready(answers::service(&name, local, pulse.standing().healthy))
    })
}

/// Whether other ports are to be served from now on.
fn learn(counts: &Counts, shared: &Shared, committed: Committed) -> bool {
    let mut known = counts.write().unwrap_or_else(PoisonError::into_inner);
    match committed {
        Committed::Some(plans) => plans.iter().fold(false, |differs, (name, plan)| {
            let before = match plan.health_check {
                Some(check) => known.insert(name.clone(), check),
                None => known.remove(name),
            };
            differs | (port(before) != port(plan.health_check))
        }),
        Committed::All => {
            let world = shared.read();
            let asked = world.model.services().filter(|(_, service)| service.health_check_port.is_some());
            let checks = asked.filter_map(|(name, _)| Some((name.clone(), world.plan(name).health_check?)));
            *known = checks.collect();
            true
        }
    }
}

fn port(check: Option<HealthCheck>) -> Option<NonZeroU16> {
    check.map(|check| check.port)
}

#[cfg(test)]
mod tests;
