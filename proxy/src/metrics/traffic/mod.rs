//! Packets and bytes of services and endpoints, by connection tracking's accounting, in each direction.
//!
//! A host counts the connections that it translates: those of its own pods and programs, and those that
//! come to its node ports. The ends of flows are heard as they come; the live ones are read when
//! somebody scrapes, a piece at a time. [`tally`] sees to it that each byte is counted once.

mod tally;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use weft_daemon::log::Repeated;
use weft_daemon::metrics::{Counter, Family as Labelled, Gauge, Metrics};
use weft_kernel::conntrack::{self, Carried, Conntrack, Counted, Ending, Endings, Flow, Waiting};

use super::{MOST, has, holder, labels, show};
use crate::model::{Family, PortName, Protocol, family_of};
use crate::plan::Frontend;
use crate::run::{Committed, Shared, World};
use tally::Tally;

/// Reading all flows is at most one part in so many of the time, however often somebody scrapes.
const SHARE: u32 = 4;
/// Between two turns of reading ends, so that many are read in one: the kernel has room for 25,000.
const REST: Duration = Duration::from_millis(50);
/// The kernel is asked for ends so often at least, in case the socket failed while a scrape read it.
const PERIOD: Duration = Duration::from_secs(10);
/// So many ends are taken in at once.
const SOME: usize = 200;
/// After the kernel gave no socket.
const RETRY: Duration = Duration::from_secs(1);

const HEARING: &str = "hearing of the ends of connections";
const LISTING: &str = "listing connections for what they carried";

/// The values of the label `direction`.
const TO: &str = "to_endpoint";
const FROM: &str = "from_endpoint";

/// Counts for as long as there are changes to follow, from the first acknowledged one on: before it
/// nobody can say whose a flow is.
pub async fn follow(shared: Shared, mut commits: Receiver<Committed>, metrics: Metrics) {
    if let Err(RecvError::Closed) = commits.recv().await {
        return;
    }
    // Nobody's ear any more; the world tells who is there.
    drop(commits);
    let reader = Arc::new(Mutex::new(Reader::new(shared)));
    let mut is_shown = false;
    loop {
        let turn = Arc::clone(&reader);
        let waiting = match spawn_blocking(move || lock(&turn).hear()).await {
            Ok(waiting) => waiting,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => return,
            },
        };
        let Some(waiting) = waiting else {
            sleep(RETRY).await;
            continue;
        };
        if !is_shown {
            let (series, reader) = (Series::new(&metrics), Arc::clone(&reader));
            metrics.before_scrape(move || {
                let mut reader = lock(&reader);
                reader.look_if_due();
                series.show(&reader);
            });
            is_shown = true;
        }
        match timeout(PERIOD, waiting.something()).await {
            Ok(Err(_)) => return,
            Ok(Ok(())) => sleep(REST).await,
            Err(_) => {}
        }
    }
}

/// Who panicked has left the sums whole.
fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sockets, in the network namespace of the thread that makes them, and the sums.
struct Reader {
    shared: Shared,
    /// None before the first turn, and after a failure.
    endings: Option<Endings>,
    conntrack: Option<Conntrack>,
    tally: Tally,
    /// What a look at all flows last took, and when it ended.
    looked: Option<(Duration, Instant)>,
    /// How often ends were lost.
    lost: u64,
    hearing: Repeated,
    listing: Repeated,
}

impl Reader {
    fn new(shared: Shared) -> Self {
        let (endings, conntrack, looked) = (None, None, None);
        let (tally, lost, hearing, listing) = Default::default();
        Self { shared, endings, conntrack, tally, looked, lost, hearing, listing }
    }

    /// Reads what there is of ends, and says where to wait for more. The first time it begins to listen,
    /// and then takes in all flows there are.
    fn hear(&mut self) -> Option<Waiting> {
        if self.endings.is_none() {
            match Endings::open() {
                Ok(endings) => {
                    self.hearing.recovered(HEARING);
                    self.endings = Some(endings);
                }
                Err(error) => self.hearing.warn(HEARING, &error),
            }
        }
        let waiting = self.endings.as_ref()?.waiting();
        if self.looked.is_none() {
            self.look();
        } else {
            self.drain();
        }
        Some(waiting)
    }

    fn look_if_due(&mut self) {
        let is_due = |(took, ended): (Duration, Instant)| ended.elapsed() >= took * (SHARE - 1);
        if self.looked.is_none_or(is_due) {
            self.look();
        }
    }

    /// Takes in all flows.
    fn look(&mut self) {
        let started = Instant::now();
        let mut conntrack = match self.conntrack.take().map_or_else(Conntrack::open, Ok) {
            Ok(conntrack) => conntrack,
            Err(error) => return self.listing.warn(LISTING, &error),
        };
        self.tally.dump_begins(started);
        let listed = conntrack.pieces(|piece| {
            self.drain();
            let world = self.shared.read();
            piece.iter().for_each(|flow| self.tally.seen(flow, || whose(&world, flow)));
        });
        self.tally.dump_ended(listed.is_ok());
        self.looked = Some((started.elapsed(), Instant::now()));
        match listed {
            Ok(()) => {
                self.listing.recovered(LISTING);
                // A socket that failed is not used again.
                self.conntrack = Some(conntrack);
                let shared = self.shared.clone();
                self.tally.retain(|port| endpoints(&shared.read(), port));
            }
            Err(error) => self.listing.warn(LISTING, &error),
        }
    }

    /// Takes in all ends that were told.
    fn drain(&mut self) {
        while self.endings.is_some() && self.drain_some() {}
    }

    /// Takes in some, because changes wait for who looks at the world; false if there are no more.
    fn drain_some(&mut self) -> bool {
        let Some(endings) = &mut self.endings else { return false };
        let (now, world) = (Instant::now(), self.shared.read());
        for _ in 0..SOME {
            match endings.try_next() {
                Ok(Some(Ending::Flow(flow))) => self.tally.ended(&flow, now, || whose(&world, &flow)),
                Ok(Some(Ending::Lost)) => self.lost += 1,
                Ok(None) => return false,
                Err(error) => {
                    self.lost += 1;
                    self.hearing.warn(HEARING, &error);
                    self.endings = None;
                    return false;
                }
            }
        }
        true
    }
}

/// The series.
struct Series {
    services: [Labelled<Counter, 5>; 2],
    endpoints: [Labelled<Counter, 6>; 2],
    left_out: Gauge,
    lost: Counter,
}

impl Series {
    fn new(metrics: &Metrics) -> Self {
        let service = ["namespace", "service", "port", "protocol", "direction"];
        let endpoint = ["namespace", "service", "port", "protocol", "endpoint", "direction"];
        Self {
            services: [
                metrics.counters(
                    "weft_proxy_service_packets_total",
                    "Packets of the connections to a service port that this host translated, since this process began to read.",
                    service,
                ),
                metrics.counters(
                    "weft_proxy_service_bytes_total",
                    "The bytes of these packets, IP headers included.",
                    service,
                ),
            ],
            endpoints: [
                metrics.counters(
                    "weft_proxy_endpoint_packets_total",
                    "The same packets by endpoint, of those that are there or that a connection leads to.",
                    endpoint,
                ),
                metrics.counters(
                    "weft_proxy_endpoint_bytes_total",
                    "The bytes of these packets, IP headers included.",
                    endpoint,
                ),
            ],
            left_out: metrics.gauge(
                "weft_proxy_endpoints_without_traffic_series",
                "Endpoints with traffic that have no series of their own, because there are too many.",
            ),
            lost: metrics.counter(
                "weft_proxy_traffic_lost_total",
                "Times that connections ended faster than was read, so that what they carried last is not counted.",
            ),
        }
    }

    fn show(&self, Reader { tally, lost, .. }: &Reader) {
        let ports: Vec<([String; 4], Carried)> =
            tally.services().map(|(port, sum)| (labels(port), sum)).collect();
        let (mut endpoints, mut left_out) = (Vec::new(), 0);
        for (port, endpoint, sum) in tally.endpoints() {
            if endpoints.len() < MOST {
                endpoints.push((labels(port), endpoint.to_string(), sum));
            } else {
                left_out += 1;
            }
        }
        for (kind, number) in [packets, bytes].into_iter().enumerate() {
            let mut sums = BTreeMap::new();
            for ([namespace, service, port, protocol], sum) in &ports {
                for (direction, counted) in [(TO, &sum.original), (FROM, &sum.reply)] {
                    let labels = [namespace, service, port, protocol, direction].map(str::to_owned);
                    sums.insert(labels, number(counted));
                }
            }
            show(&self.services[kind], &sums);
            let mut sums = BTreeMap::new();
            for ([namespace, service, port, protocol], endpoint, sum) in &endpoints {
                for (direction, counted) in [(TO, &sum.original), (FROM, &sum.reply)] {
                    let labels = [namespace, service, port, protocol, endpoint, direction].map(str::to_owned);
                    sums.insert(labels, number(counted));
                }
            }
            show(&self.endpoints[kind], &sums);
        }
        self.left_out.set_count(left_out);
        self.lost.mirror(*lost);
    }
}

fn packets(counted: &Counted) -> u64 {
    counted.packets
}

fn bytes(counted: &Counted) -> u64 {
    counted.bytes
}

/// The service port whose frontend a flow asked. A flow that this host did not translate is another
/// host's to count, or leads nowhere.
fn whose(world: &World, flow: &Flow) -> Option<PortName> {
    if !flow.is_translated() {
        return None;
    }
    let (asked, protocol) = (flow.original.destination, protocol(flow.protocol));
    holder(world, &Frontend::Address(asked, protocol)).or_else(|| {
        let number = NonZeroU16::new(asked.port()).filter(|_| world.host.owns(asked.ip()))?;
        holder(world, &Frontend::NodePort(family_of(asked.ip()), number, protocol))
    })
}

fn protocol(tracked: conntrack::Protocol) -> Protocol {
    match tracked {
        conntrack::Protocol::Tcp => Protocol::Tcp,
        conntrack::Protocol::Udp => Protocol::Udp,
        conntrack::Protocol::Sctp => Protocol::Sctp,
    }
}

/// The endpoints of a service port, whatever they do just now; none at all if there is no such port.
fn endpoints(world: &World, port: &PortName) -> Option<Vec<SocketAddr>> {
    has(&world.model, port).then(|| {
        let of = |family| {
            world.model.endpoints(&port.service, &port.port, port.protocol, family, &world.host.node)
        };
        Family::ALL.into_iter().flat_map(of).map(|endpoint| endpoint.address).collect()
    })
}

#[cfg(test)]
mod tests;
