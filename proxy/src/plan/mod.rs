//! What the kernel should do with packets to services: per service port and family the endpoints,
//! and per frontend who gets which of them. Pure; the rule generators put it into rules.
//!
//! [`Claims`] says which service holds which frontend, [`service`] plans one service. A change of one
//! object plans only what it touches:
//!
//! ```
//! # use weft_proxy::{host::Host, model::{Change, Model}, plan::{self, Claims}};
//! # fn run(model: &mut Model, claims: &mut Claims, host: &Host, change: Change) {
//! let touched = model.apply(change);
//! for name in claims.absorb(model, &touched.services) {
//!     let plan = plan::service(model, claims, host, &name); // the empty plan if it is gone
//! }
//! # }
//! ```

#[cfg(test)]
pub(crate) mod agreement;
mod choice;
mod claims;
mod consistent;
mod scope;
mod treatment;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crate::host::Host;
use crate::model::{Balance, Declared, Family, Ignored, Model, PortName, Protocol, Service, ServiceName};

use choice::Candidates;
pub use claims::Claims;
pub use consistent::slots;
pub use scope::NodePortScope;
pub use treatment::{Path, Treatment};

/// Where a service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// At an address, wherever that is.
    Address(SocketAddr, Protocol),
    /// At those of this host's addresses that [`NodePortScope`] tells. An address frontend with the
    /// same destination comes first.
    NodePort(Family, NonZeroU16, Protocol),
}

/// What a service needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePlan {
    /// Its ports, in each family in which it has a cluster address.
    pub ports: Vec<PortPlan>,
    /// Its cluster addresses. With [`crate::host::Strict`], packets to them that no frontend takes
    /// are rejected. Two services may name the same one.
    pub cluster_ips: Vec<IpAddr>,
    /// Cluster addresses that another proxy serves: never to be dropped as unallocated.
    pub spared_ips: Vec<IpAddr>,
    /// What a load balancer is to be told.
    pub health_check: Option<HealthCheck>,
}

/// A service port in one family.
#[derive(Clone, Debug, PartialEq)]
pub struct PortPlan {
    /// Which port.
    pub name: PortName,
    /// Which family: all addresses here are of it.
    pub family: Family,
    /// The endpoints of [`Path::To`] with the policy Cluster, by address; empty if no path leads there.
    pub cluster: Vec<SocketAddr>,
    /// The endpoints of [`Path::To`] with the policy Local, by address; empty if no path leads there.
    pub local: Vec<SocketAddr>,
    /// How long a client keeps its endpoint after its last new connection. It keeps it across all
    /// frontends of the port, and only while the set that it is sent to has that endpoint.
    pub affinity: Option<Duration>,
    /// How an endpoint is picked for a client without one.
    pub balance: Balance,
    /// What becomes of new connections, for each frontend that is this port's.
    pub frontends: BTreeMap<Frontend, Treatment>,
}

/// `healthCheckNodePort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where it is asked.
    pub port: NonZeroU16,
    /// How many ready endpoints this host has in IPv4, each counted once however many ports it has.
    pub local_v4: usize,
    /// How many in IPv6.
    pub local_v6: usize,
}

/// What the service of that name needs on this host; nothing if there is none or it gets no rules.
pub fn service(model: &Model, claims: &Claims, host: &Host, name: &ServiceName) -> ServicePlan {
    match model.declared_as(name) {
        Some(Declared::Served(service)) => served(model, claims, host, name, service),
        Some(Declared::Ignored(Ignored::OtherProxy { cluster_ips, .. })) => {
            ServicePlan { spared_ips: cluster_ips.clone(), ..ServicePlan::default() }
        }
        Some(Declared::Ignored(_)) | None => ServicePlan::default(),
    }
}

/// What every service needs; one by one the same as [`service`].
pub fn everything(model: &Model, claims: &Claims, host: &Host) -> BTreeMap<ServiceName, ServicePlan> {
    let names = model.declared().map(|(name, _)| name);
    names.map(|name| (name.clone(), service(model, claims, host, name))).collect()
}

/// Whether every service has the same plan on both hosts, whatever the model: they differ in addresses
/// at most, of which only rules know.
pub fn is_alike(one: &Host, other: &Host) -> bool {
    Host { addresses: BTreeSet::new(), ..one.clone() } == Host { addresses: BTreeSet::new(), ..other.clone() }
}

fn served(model: &Model, claims: &Claims, host: &Host, name: &ServiceName, service: &Service) -> ServicePlan {
    let mut plan = ServicePlan { cluster_ips: service.cluster_ips.clone(), ..ServicePlan::default() };
    let mut local: BTreeMap<Family, BTreeSet<IpAddr>> = BTreeMap::new();
    for family in Family::ALL.into_iter().filter(|family| service.cluster_ip(*family).is_some()) {
        for (index, port) in service.ports.iter().enumerate() {
            let endpoints = model.endpoints(name, &port.name, port.protocol, family, &host.node);
            let candidates = Candidates::of(&endpoints, host);
            local.entry(family).or_default().extend(candidates.local_ready.iter().map(SocketAddr::ip));
            let held =
                claims.held(name).filter(|held| held.port == index && held.frontend.family() == family);
            let relayed = host.settings.userspace && port.protocol == Protocol::Tcp;
            let treat = |kind| {
                let treatment = treatment::treatment(service, kind, family, &candidates, host);
                if relayed { treatment.masquerading(true) } else { treatment }
            };
            let frontends: BTreeMap<Frontend, Treatment> =
                held.map(|held| (held.frontend, treat(held.kind))).collect();
            let led_to = |policy| frontends.values().any(|treatment| treatment.leads_to(policy));
            let (cluster, local) =
                (led_to(crate::model::Policy::Cluster), led_to(crate::model::Policy::Local));
            plan.ports.push(PortPlan {
                name: PortName { service: name.clone(), port: port.name.clone(), protocol: port.protocol },
                family,
                cluster: if cluster { candidates.cluster } else { Vec::new() },
                local: if local { candidates.local } else { Vec::new() },
                affinity: service.affinity,
                balance: service.balance,
                frontends,
            });
        }
    }
    let count = |family| local.get(&family).map_or(0, BTreeSet::len);
    plan.health_check = service.health_check_port.map(|port| HealthCheck {
        port,
        local_v4: count(Family::V4),
        local_v6: count(Family::V6),
    });
    plan
}

impl Frontend {
    /// The family of the packets that it takes.
    pub fn family(&self) -> Family {
        match self {
            Self::Address(address, _) => crate::model::family_of(address.ip()),
            Self::NodePort(family, ..) => *family,
        }
    }
}
