//! The services that are served, by what clients connect to: their endpoints, how these stand, who
//! keeps which, and what is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::carry::Meter;
use super::choice::{Candidates, Tried, choose};
use super::standing::Standing;
use crate::host::ClientHash;
use crate::model::{Balance, Family, Policy, PortName, Protocol, ServiceName, family_of};
use crate::plan::{self, Frontend, PortPlan, ServicePlan};
use crate::simulate::client_slot;

/// The most clients that keep an endpoint of one service port; the next one is sent anywhere.
const KEPT: usize = 1 << 18;

/// All services, for whoever accepts connections. Written by the daemon's loop alone.
#[derive(Debug, Default)]
pub(super) struct Services(RwLock<Table>);

#[derive(Debug, Default)]
struct Table {
    frontends: HashMap<Frontend, Arc<Port>>,
    ports: BTreeMap<ServiceName, Vec<Served>>,
}

/// A port, and what leads to it.
#[derive(Debug)]
struct Served {
    port: Arc<Port>,
    frontends: BTreeSet<Frontend>,
}

/// What leads to which ports of a service.
#[derive(Clone, Debug, Default)]
pub(super) struct Outline(BTreeMap<(PortName, Family), BTreeSet<Frontend>>);

impl Outline {
    pub(super) fn of(plan: &ServicePlan) -> Self {
        let carried = plan.ports.iter().filter(|port| is_carried(port));
        let led = |port: &PortPlan| port.frontends.keys().copied().collect();
        Self(carried.map(|port| ((port.name.clone(), port.family), led(port))).collect())
    }
}

/// A service port in one family.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: PortName,
    family: Family,
    chosen: RwLock<Arc<Chosen>>,
    kept: Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>,
    pub(super) counts: Counts,
}

/// What is counted of a service port.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Clients' connections.
    pub(super) connections: AtomicU64,
    /// Tries after the first one of a connection.
    pub(super) retries: AtomicU64,
    /// Connections that no endpoint was found for.
    pub(super) failures: AtomicU64,
}

/// What a plan says of a port.
#[derive(Debug, Default)]
struct Chosen {
    cluster: Set,
    local: Set,
    affinity: Option<Duration>,
}

/// A set of endpoints.
#[derive(Debug, Default)]
struct Set {
    endpoints: Vec<Arc<Endpoint>>,
    /// Which of them has which of the slots that clients are hashed to; empty unless they are.
    slots: Vec<usize>,
}

/// An endpoint of one service port.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) active: AtomicUsize,
    pub(super) connections: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) ejections: AtomicU64,
    pub(super) meter: Meter,
    /// Whether its standing is worth a look.
    stained: AtomicBool,
    standing: Mutex<Standing>,
}

impl Services {
    /// Takes in what a service has, and nothing away: until the rules are changed, clients may come
    /// by what it had before. An empty plan changes nothing yet.
    pub(super) fn put(&self, name: &ServiceName, plan: &ServicePlan) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Table { frontends, ports } = &mut *table;
        for wanted in plan.ports.iter().filter(|port| is_carried(port)) {
            let known = ports.entry(name.clone()).or_default();
            let index = known.iter().position(|served| served.port.is(wanted)).unwrap_or_else(|| {
                known.push(Served { port: Arc::new(Port::new(wanted)), frontends: BTreeSet::new() });
                known.len() - 1
            });
            let Some(served) = known.get_mut(index) else { continue };
            served.port.choose_from(wanted);
            served.frontends.extend(wanted.frontends.keys());
            frontends.extend(wanted.frontends.keys().map(|at| (*at, served.port.clone())));
        }
    }

    /// Takes away what a service does not have any more: the rules are changed.
    pub(super) fn sweep(&self, name: &ServiceName, outline: &Outline) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Table { frontends, ports } = &mut *table;
        let Some(known) = ports.get_mut(name) else { return };
        known.retain_mut(|Served { port, frontends: led }| {
            let wanted = outline.0.get(&(port.name.clone(), port.family));
            led.retain(|at| {
                let stays = wanted.is_some_and(|wanted| wanted.contains(at));
                // Another service may have it by now.
                if !stays && frontends.get(at).is_some_and(|holder| Arc::ptr_eq(holder, port)) {
                    frontends.remove(at);
                }
                stays
            });
            wanted.is_some()
        });
        if known.is_empty() {
            ports.remove(name);
        }
    }

    /// The names of all services there are.
    pub(super) fn names(&self) -> Vec<ServiceName> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.ports.keys().cloned().collect()
    }

    /// The port that a client meant: an address comes before a node port.
    pub(super) fn at(&self, destination: SocketAddr) -> Option<Arc<Port>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let by_address = table.frontends.get(&Frontend::Address(destination, Protocol::Tcp));
        let node_port = || {
            let port = NonZeroU16::new(destination.port())?;
            table.frontends.get(&Frontend::NodePort(family_of(destination.ip()), port, Protocol::Tcp))
        };
        by_address.or_else(node_port).cloned()
    }

    /// The endpoint that a client keeps.
    pub(super) fn kept(&self, name: &PortName, client: IpAddr) -> Option<SocketAddr> {
        let port = self.ports().into_iter().find(|it| it.name == *name && it.family == family_of(client))?;
        let affinity = port.chosen().affinity?;
        port.keeps(client, affinity, Instant::now())
    }

    /// All ports there are.
    pub(super) fn ports(&self) -> Vec<Arc<Port>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.ports.values().flatten().map(|served| served.port.clone()).collect()
    }
}

/// Only TCP is carried; the kernel leads the rest.
pub(super) fn is_carried(port: &PortPlan) -> bool {
    port.name.protocol == Protocol::Tcp
}

impl Port {
    fn new(wanted: &PortPlan) -> Self {
        Self {
            name: wanted.name.clone(),
            family: wanted.family,
            chosen: RwLock::default(),
            kept: Mutex::default(),
            counts: Counts::default(),
        }
    }

    fn is(&self, wanted: &PortPlan) -> bool {
        self.name == wanted.name && self.family == wanted.family
    }

    fn chosen(&self) -> Arc<Chosen> {
        self.chosen.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on new connections go to these endpoints. Those that were there before stay who they
    /// are.
    fn choose_from(&self, wanted: &PortPlan) {
        let before = self.chosen();
        let known: HashMap<SocketAddr, &Arc<Endpoint>> =
            before.endpoints().map(|endpoint| (endpoint.address, endpoint)).collect();
        let mut new: HashMap<SocketAddr, Arc<Endpoint>> = HashMap::new();
        let mut set = |addresses: &[SocketAddr]| {
            let endpoint = |address: &SocketAddr| match known.get(address) {
                Some(known) => (*known).clone(),
                None => new.entry(*address).or_insert_with(|| Arc::new(Endpoint::new(*address))).clone(),
            };
            let hash = wanted.balance == Balance::ClientHash;
            Set {
                endpoints: addresses.iter().map(endpoint).collect(),
                slots: if hash { plan::slots(addresses) } else { Vec::new() },
            }
        };
        let chosen =
            Chosen { cluster: set(&wanted.cluster), local: set(&wanted.local), affinity: wanted.affinity };
        *self.chosen.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(chosen);
    }

    /// All its endpoints, each once.
    pub(super) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let chosen = self.chosen();
        let by_address: BTreeMap<SocketAddr, &Arc<Endpoint>> =
            chosen.endpoints().map(|endpoint| (endpoint.address, endpoint)).collect();
        by_address.into_values().cloned().collect()
    }

    /// The endpoint for a try of a client's new connection; `tried` are those that were no use.
    pub(super) fn next(
        &self,
        set: Policy,
        client: IpAddr,
        tried: &[(SocketAddr, Tried)],
        now: Instant,
    ) -> Option<Arc<Endpoint>> {
        let chosen = self.chosen();
        let set = chosen.set(set);
        let first = if tried.is_empty() { self.meant(&chosen, set, client, now) } else { None };
        let endpoint = first.or_else(|| {
            let candidates = Now { endpoints: &set.endpoints, tried, now };
            let index = choose(&candidates, |below| rand::random_range(0..below))?;
            set.endpoints.get(index).cloned()
        })?;
        endpoint.chosen(now);
        Some(endpoint)
    }

    /// The endpoint that a client keeps, or is hashed to.
    fn meant(&self, chosen: &Chosen, set: &Set, client: IpAddr, now: Instant) -> Option<Arc<Endpoint>> {
        let of = |address: SocketAddr| set.endpoints.iter().find(|it| it.address == address).cloned();
        let kept = chosen.affinity.and_then(|affinity| of(self.keeps(client, affinity, now)?));
        let endpoint = kept.or_else(|| {
            let slot = client_slot(client, ClientHash::Jhash) as usize;
            set.endpoints.get(*set.slots.get(slot)?).cloned()
        })?;
        endpoint.admits(now).then_some(endpoint)
    }

    fn keeps(&self, client: IpAddr, affinity: Duration, now: Instant) -> Option<SocketAddr> {
        let (address, since) = *lock(&self.kept).get(&client)?;
        (now.saturating_duration_since(since) < affinity).then_some(address)
    }

    /// A client's connection went to this endpoint.
    pub(super) fn reached(&self, client: IpAddr, endpoint: &Endpoint, now: Instant) {
        endpoint.succeeded(now);
        let Some(affinity) = self.chosen().affinity else {
            return;
        };
        let mut kept = lock(&self.kept);
        if kept.len() >= KEPT && !kept.contains_key(&client) {
            kept.retain(|_, (_, since)| now.saturating_duration_since(*since) < affinity);
        }
        if kept.len() < KEPT || kept.contains_key(&client) {
            kept.insert(client, (endpoint.address, now));
        }
    }
}

impl Chosen {
    fn set(&self, set: Policy) -> &Set {
        match set {
            Policy::Cluster => &self.cluster,
            Policy::Local => &self.local,
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.cluster.endpoints.iter().chain(&self.local.endpoints)
    }
}

impl Endpoint {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            active: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            meter: Meter::default(),
            stained: AtomicBool::new(false),
            standing: Mutex::default(),
        }
    }

    fn admits(&self, now: Instant) -> bool {
        !self.stained.load(Ordering::Relaxed) || lock(&self.standing).admits(now)
    }

    fn chosen(&self, now: Instant) {
        if self.stained.load(Ordering::Relaxed) {
            lock(&self.standing).chosen(now);
        }
    }

    fn succeeded(&self, now: Instant) {
        if self.stained.load(Ordering::Relaxed) {
            let mut standing = lock(&self.standing);
            if standing.is_out() {
                tracing::info!(endpoint = %self.address, "gets connections again");
            }
            standing.succeeded(now);
            self.stained.store(false, Ordering::Relaxed);
        }
    }

    /// It could not be dialled. Says whether that put it out.
    pub(super) fn failed(&self, now: Instant) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut standing = lock(&self.standing);
        self.stained.store(true, Ordering::Relaxed);
        let out = standing.failed(now);
        if out {
            self.ejections.fetch_add(1, Ordering::Relaxed);
        }
        out
    }

    /// Whether it gets no connections for the time being.
    pub(super) fn is_out(&self) -> bool {
        self.stained.load(Ordering::Relaxed) && lock(&self.standing).is_out()
    }
}

/// The endpoints of a set, for one connection.
struct Now<'a> {
    endpoints: &'a [Arc<Endpoint>],
    tried: &'a [(SocketAddr, Tried)],
    now: Instant,
}

impl Candidates for Now<'_> {
    fn count(&self) -> usize {
        self.endpoints.len()
    }

    fn active(&self, index: usize) -> usize {
        self.endpoints.get(index).map_or(usize::MAX, |it| it.active.load(Ordering::Relaxed))
    }

    fn admits(&self, index: usize) -> bool {
        self.endpoints.get(index).is_some_and(|it| it.admits(self.now))
    }

    fn tried(&self, index: usize) -> Option<Tried> {
        let address = self.endpoints.get(index)?.address;
        self.tried.iter().rev().find(|(it, _)| *it == address).map(|(_, how)| *how)
    }
}

#[cfg(test)]
impl Port {
    /// Whom a client's first connection may be sent to.
    pub(super) fn may_reach(&self, set: Policy, client: IpAddr) -> Vec<SocketAddr> {
        let chosen = self.chosen();
        let set = chosen.set(set);
        match self.meant(&chosen, set, client, Instant::now()) {
            Some(one) => vec![one.address],
            None => set.endpoints.iter().map(|endpoint| endpoint.address).collect(),
        }
    }
}

/// Nobody leaves these locks with half of something done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
