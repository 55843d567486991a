//! New connections of services and endpoints, out of the counters in the kernel, which begin anew with
//! each element: sums that only grow, for as long as who they are of is there.
//!
//! Counters are read when somebody scrapes, and what an element had counted since then comes with the
//! kernel's word that it was deleted. Lost is only what the kernel does not tell, or we do not hear: a table
//! that is deleted as a whole, thousands of elements that go at once. Series are bounded: there is one only
//! for who ever had a connection, and of endpoints no more than ten thousand; the services' sums have those
//! of all.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_daemon::log::Repeated;
use weft_daemon::metrics::{Counter, Family as Labelled, Gauge, Metrics};
use weft_kernel::nft::{Key, Nft, SetName};

use super::{MOST, has, holder, labels, show};
use crate::model::{Family, Model, PortName};
use crate::nftables::connections::{self, Counted, Of};
use crate::run::{Shared, World};

/// Sums are held of no more endpoints than that. The largest cluster that we know of has 250,011
/// (kubernetes/kubernetes#135639).
const HELD: usize = 1 << 19;

/// For so many readings an element that was not there any more waits for the word of its end, which may
/// come later than a reading that was begun later.
const PATIENCE: u64 = 2;

type Element = (SetName, Key);

/// Sums, by service port and by its endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// How many readings there were.
    readings: u64,
    /// What each element had counted when it was last read.
    last: HashMap<Element, (SocketAddr, u64)>,
    /// The same of those that were gone at a later reading, and at which. Their end may not have been told.
    missing: HashMap<(Element, SocketAddr), (u64, u64)>,
    services: BTreeMap<PortName, u64>,
    endpoints: BTreeMap<(PortName, SocketAddr), u64>,
}

impl Tally {
    /// Takes a reading of everything in. `whose` tells the service port of what was counted.
    pub fn take(&mut self, readings: Vec<Counted>, whose: impl Fn(&Of) -> Option<PortName>) {
        self.readings += 1;
        let now = self.readings;
        let mut before = std::mem::replace(&mut self.last, HashMap::with_capacity(readings.len()));
        let known: HashSet<SocketAddr> = self.endpoints.keys().map(|(_, endpoint)| *endpoint).collect();
        let mut there = BTreeSet::new();
        for Counted { element, of, endpoint, connections } in readings {
            let earlier = match before.remove(&element) {
                Some((same, count)) if same == endpoint && count <= connections => count,
                // Another endpoint has the slot now, or it is the same one in a new table.
                Some((other, count)) => {
                    self.missing.insert((element.clone(), other), (count, now));
                    0
                }
                None => 0,
            };
            self.last.insert(element, (endpoint, connections));
            // Most elements never count anything.
            if connections == 0 && !known.contains(&endpoint) {
                continue;
            }
            let Some(port) = whose(&of) else { continue };
            self.add(port.clone(), endpoint, connections - earlier);
            there.insert((port, endpoint));
        }
        let gone = before.into_iter().map(|(element, (endpoint, count))| ((element, endpoint), (count, now)));
        self.missing.extend(gone);
        self.missing.retain(|_, (_, since)| *since + PATIENCE > now);
        self.endpoints.retain(|who, _| there.contains(who));
    }

    /// Takes in what elements had counted when they were deleted.
    pub fn end(&mut self, ended: Vec<Counted>, whose: impl Fn(&Of) -> Option<PortName>) {
        for Counted { element, of, endpoint, connections } in ended {
            let missing = self.missing.remove(&(element.clone(), endpoint)).map(|(count, _)| count);
            let earlier = missing.unwrap_or_else(|| match self.last.get(&element) {
                Some((same, _)) if *same == endpoint => {
                    self.last.remove(&element).map_or(0, |(_, count)| count)
                }
                _ => 0,
            });
            let more = connections.saturating_sub(earlier);
            if let (Some(port), true) = (whose(&of), more > 0) {
                self.add(port, endpoint, more);
            }
        }
    }

    fn add(&mut self, port: PortName, endpoint: SocketAddr, more: u64) {
        if more == 0 {
            return;
        }
        *self.services.entry(port.clone()).or_default() += more;
        // Readings take those away that are gone; maybe nobody reads.
        let (room, who) = (self.endpoints.len() < HELD, (port, endpoint));
        if room || self.endpoints.contains_key(&who) {
            *self.endpoints.entry(who).or_default() += more;
        }
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

/// Reads the counters before each scrape. What is returned takes in what elements had counted when they were
/// deleted.
pub fn register(metrics: &Metrics, shared: Shared) -> impl Fn(Vec<Counted>) + Send + 'static {
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
    let state = Arc::new(Mutex::new(State::default()));
    let (of_ends, world) = (state.clone(), shared.clone());
    let end = move |ended: Vec<Counted>| {
        let mut state = lock(&of_ends);
        let world = world.read();
        let State { tally, ids, .. } = &mut *state;
        tally.end(ended, |of| whose(&world, ids, of));
    };
    metrics.before_scrape(move || {
        let mut state = lock(&state);
        let read = Nft::open().map(|mut nft| connections::read(&mut nft));
        let State { tally, ids, failures } = &mut *state;
        match read {
            Ok(Ok(readings)) => {
                failures.recovered("reading connection counters");
                let world = shared.read();
                *ids = known_ids(&world.model);
                tally.take(readings, |of| whose(&world, ids, of));
                tally.retain(|port| has(&world.model, port));
            }
            Ok(Err(error)) => failures.warn("reading connection counters", &error),
            Err(error) => failures.warn("reading connection counters", &error),
        }
        series.show(tally);
    });
    end
}

#[derive(Debug, Default)]
struct State {
    tally: Tally,
    /// As of the last reading: to make them takes a walk through all services.
    ids: Ids,
    failures: Repeated,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
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

type Ids = HashMap<u32, Option<PortName>>;

/// Which ports have which id, where clients stick or are hashed. Of two that wish for the same one
/// nothing is known.
fn known_ids(model: &Model) -> Ids {
    let mut ids = HashMap::new();
    for (name, service) in model.services().filter(|(_, service)| service.picks_by_id()) {
        for port in &service.ports {
            let port = PortName { service: name.clone(), port: port.name.clone(), protocol: port.protocol };
            ids.entry(connections::id_of(&port)).and_modify(|known| *known = None).or_insert(Some(port));
        }
    }
    ids
}

fn whose(world: &World, ids: &Ids, of: &Of) -> Option<PortName> {
    match of {
        Of::Id(Family::V4 | Family::V6, id) => ids.get(id)?.clone(),
        Of::Frontend(frontend) => holder(world, frontend),
    }
}

#[cfg(test)]
mod tests;
