//! New connections of services and endpoints, out of the counters in the kernel, which begin anew with
//! each element: sums that only grow, for as long as who they are of is there.
//!
//! Counters are read when somebody scrapes. What an endpoint got between the last scrape and its end is
//! not counted. Series are bounded: there is one only for who ever had a connection, and of endpoints no
//! more than ten thousand; the services' sums have those of all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use weft_daemon::log::Repeated;
use weft_daemon::metrics::{Counter, Family as Labelled, Gauge, Metrics};
use weft_kernel::nft::{Key, Nft, SetName};

use super::{MOST, has, holder, labels, show};
use crate::model::{Family, Model, PortName};
use crate::nftables::connections::{self, Counted, Of};
use crate::run::{Shared, World};

/// Sums, by service port and by its endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// What each element had counted when it was last read.
    last: HashMap<(SetName, Key), (SocketAddr, u64)>,
    services: BTreeMap<PortName, u64>,
    endpoints: BTreeMap<(PortName, SocketAddr), u64>,
}

impl Tally {
    /// Takes a reading of everything in. `whose` tells the service port of what was counted.
    pub fn take(&mut self, readings: Vec<Counted>, whose: impl Fn(&Of) -> Option<PortName>) {
        let mut last = HashMap::with_capacity(readings.len());
        let mut there = BTreeSet::new();
        for Counted { element, of, endpoint, connections } in readings {
            let before = match self.last.get(&element) {
                Some((same, before)) if *same == endpoint && *before <= connections => *before,
                // Another endpoint has the slot now, or it is the same one in a new table.
                _ => 0,
            };
            last.insert(element, (endpoint, connections));
            if connections == 0 {
                continue;
            }
            let Some(port) = whose(&of) else { continue };
            let more = connections - before;
            *self.services.entry(port.clone()).or_default() += more;
            *self.endpoints.entry((port.clone(), endpoint)).or_default() += more;
            there.insert((port, endpoint));
        }
        self.last = last;
        self.endpoints.retain(|who, _| there.contains(who));
    }

    /// Forgets the services that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&PortName) -> bool) {
        self.services.retain(|port, _| is_there(port));
    }
}

/// The series.
struct Series {
    services: Labelled<Counter, 4>,
    endpoints: Labelled<Counter, 5>,
    left_out: Gauge,
}

/// Reads the counters before each scrape.
pub fn register(metrics: &Metrics, shared: Shared) {
    let series = Series {
        services: metrics.counters(
            "weft_proxy_service_connections_total",
            "New connections that a service port has got since this process began to read, from this host's counters.",
            ["namespace", "service", "port", "protocol"],
        ),
        endpoints: metrics.counters(
            "weft_proxy_endpoint_connections_total",
            "The same of each endpoint of it that is there.",
            ["namespace", "service", "port", "protocol", "endpoint"],
        ),
        left_out: metrics.gauge(
            "weft_proxy_endpoints_without_series",
            "Endpoints with connections that have no series of their own, because there are too many.",
        ),
    };
    let state = Mutex::new((Tally::default(), Repeated::default()));
    metrics.before_scrape(move || {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let (tally, failures) = &mut *state;
        let read = Nft::open().map(|mut nft| connections::read(&mut nft));
        match read {
            Ok(Ok(readings)) => {
                failures.recovered("reading connection counters");
                let world = shared.read();
                let ids = ids(&world.model);
                tally.take(readings, |of| whose(&world, &ids, of));
                tally.retain(|port| has(&world.model, port));
            }
            Ok(Err(error)) => failures.warn("reading connection counters", &error),
            Err(error) => failures.warn("reading connection counters", &error),
        }
        series.show(tally);
    });
}

impl Series {
    fn show(&self, tally: &Tally) {
        show(&self.services, &tally.services.iter().map(|(port, total)| (labels(port), *total)).collect());
        let endpoints = tally.endpoints.iter().take(MOST).map(|((port, endpoint), total)| {
            let [namespace, service, port, protocol] = labels(port);
            ([namespace, service, port, protocol, endpoint.to_string()], *total)
        });
        show(&self.endpoints, &endpoints.collect());
        self.left_out.set_count(tally.endpoints.len().saturating_sub(MOST));
    }
}

/// Which ports have which id, where clients stick or are hashed. Of two that wish for the same one
/// nothing is known.
fn ids(model: &Model) -> HashMap<u32, Option<PortName>> {
    let mut ids = HashMap::new();
    for (name, service) in model.services().filter(|(_, service)| service.picks_by_id()) {
        for port in &service.ports {
            let port = PortName { service: name.clone(), port: port.name.clone(), protocol: port.protocol };
            ids.entry(connections::id_of(&port)).and_modify(|known| *known = None).or_insert(Some(port));
        }
    }
    ids
}

fn whose(world: &World, ids: &HashMap<u32, Option<PortName>>, of: &Of) -> Option<PortName> {
    match of {
        Of::Id(Family::V4 | Family::V6, id) => ids.get(id)?.clone(),
        Of::Frontend(frontend) => holder(world, frontend),
    }
}

#[cfg(test)]
mod tests;
