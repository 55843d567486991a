//! Which service holds which frontend. Nothing keeps two services from naming the same external
//! address or node port, and somebody who may create services must not be able to take over another
//! one's cluster address by naming it (CVE-2020-8554). So a cluster address comes before a load
//! balancer's, that before an external one; then the older service, then the name, decides.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::Frontend;
use crate::model::{FrontendKind, Model, Service, ServiceName, family_of};

/// Who claims which frontend, and who has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    /// The claims of each frontend, the one that holds it first.
    of_frontend: BTreeMap<Frontend, Vec<Claim>>,
    /// What each service claims, in order. Not a set: tens of thousands of these are kept.
    of_service: BTreeMap<ServiceName, Box<[Frontend]>>,
}

/// A service's wish for a frontend. The least claim holds the frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    kind: FrontendKind,
    /// A service of unknown age counts as the youngest.
    created: i64,
    service: ServiceName,
    /// The index in the service's ports.
    port: usize,
}

/// A frontend that a service holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) frontend: Frontend,
    pub(super) kind: FrontendKind,
    /// The index in the service's ports.
    pub(super) port: usize,
}

impl Claims {
    /// The claims of all services of the model.
    pub fn of(model: &Model) -> Self {
        let mut claims = Self::default();
        for (name, service) in model.services() {
            claims.set(name, Some(service));
        }
        claims
    }

    /// Takes in what the model says now of the touched services. Returns all services that have to
    /// be planned again: those and the ones that gained or lost a frontend by it.
    pub fn absorb(&mut self, model: &Model, touched: &BTreeSet<ServiceName>) -> BTreeSet<ServiceName> {
        let mut again = touched.clone();
        for name in touched {
            again.extend(self.set(name, model.service(name)));
        }
        again
    }

    /// The service that holds a frontend, and the index of its port.
    pub fn holder(&self, frontend: &Frontend) -> Option<(&ServiceName, usize)> {
        let claim = self.of_frontend.get(frontend)?.first()?;
        Some((&claim.service, claim.port))
    }

    /// The frontends that more than one service claims: each with the service that has it and those
    /// that go without.
    pub fn contested(&self) -> impl Iterator<Item = (Frontend, &ServiceName, BTreeSet<&ServiceName>)> {
        self.of_frontend.iter().filter_map(|(frontend, claims)| {
            let (first, rest) = claims.split_first()?;
            let without: BTreeSet<_> =
                rest.iter().map(|it| &it.service).filter(|it| **it != first.service).collect();
            (!without.is_empty()).then_some((*frontend, &first.service, without))
        })
    }

    /// The frontends that a service claims and goes without, each with the service that has it.
    pub fn without<'a>(
        &'a self,
        name: &'a ServiceName,
    ) -> impl Iterator<Item = (Frontend, &'a ServiceName)> + 'a {
        self.of_service.get(name).into_iter().flatten().filter_map(move |frontend| {
            let (holder, _) = self.holder(frontend)?;
            (holder != name).then_some((*frontend, holder))
        })
    }

    /// What a service holds.
    pub(super) fn held<'a>(&'a self, name: &'a ServiceName) -> impl Iterator<Item = Held> + 'a {
        self.of_service.get(name).into_iter().flatten().filter_map(move |frontend| {
            let first = self.of_frontend.get(frontend)?.first()?;
            let held = Held { frontend: *frontend, kind: first.kind, port: first.port };
            (first.service == *name).then_some(held)
        })
    }

    /// Replaces the claims of a service; returns the other services that gained or lost by it.
    fn set(&mut self, name: &ServiceName, service: Option<&Service>) -> BTreeSet<ServiceName> {
        let wanted = service.map(|service| wanted(name, service)).unwrap_or_default();
        let frontends: BTreeSet<Frontend> = wanted.iter().map(|(frontend, _)| *frontend).collect();
        let before = match frontends.is_empty() {
            true => self.of_service.remove(name),
            false => self.of_service.insert(name.clone(), frontends.iter().copied().collect()),
        };
        let before = before.unwrap_or_default();
        let concerned: BTreeSet<Frontend> = before.iter().chain(&frontends).copied().collect();
        let held: Vec<_> = concerned.iter().map(|frontend| self.other(frontend, name)).collect();
        for frontend in before {
            if let Some(claims) = self.of_frontend.get_mut(&frontend) {
                claims.retain(|claim| claim.service != *name);
                if claims.is_empty() {
                    self.of_frontend.remove(&frontend);
                }
            }
        }
        for (frontend, claim) in wanted {
            match self.of_frontend.entry(frontend) {
                // Hardly ever are there two, so room for one is made.
                Entry::Vacant(free) => drop(free.insert(vec![claim])),
                Entry::Occupied(mut claims) => {
                    let at = claims.get().partition_point(|known| *known < claim);
                    claims.get_mut().insert(at, claim);
                }
            }
        }
        let holds = concerned.iter().map(|frontend| self.other(frontend, name));
        let changed = held.into_iter().zip(holds).filter(|(before, after)| before != after);
        changed.flat_map(|(before, after)| before.into_iter().chain(after)).collect()
    }

    /// Who holds the frontend, if that is not `name`.
    fn other(&self, frontend: &Frontend, name: &ServiceName) -> Option<ServiceName> {
        self.holder(frontend).map(|(holder, _)| holder).filter(|holder| *holder != name).cloned()
    }
}

/// Everything a service claims, in the families in which it has a cluster address.
fn wanted(name: &ServiceName, service: &Service) -> Vec<(Frontend, Claim)> {
    let cluster = service.cluster_ips.iter().map(|ip| (*ip, FrontendKind::ClusterIp));
    let balancer = service.load_balancer_ips.iter().map(|ip| (*ip, FrontendKind::LoadBalancer));
    let external = service.external_ips.iter().map(|ip| (*ip, FrontendKind::ExternalIp));
    let addresses: Vec<_> = cluster.chain(balancer).chain(external).collect();
    let created = service.created.unwrap_or(i64::MAX);
    let claim = |kind, port| Claim { kind, created, service: name.clone(), port };
    let mut wanted = Vec::new();
    for (index, port) in service.ports.iter().enumerate() {
        for (ip, kind) in &addresses {
            if service.cluster_ip(family_of(*ip)).is_some() {
                let frontend = Frontend::Address(SocketAddr::new(*ip, port.port), port.protocol);
                wanted.push((frontend, claim(*kind, index)));
            }
        }
        if let Some(number) = port.node_port {
            let frontends = service
                .cluster_ips
                .iter()
                .map(|ip| Frontend::NodePort(family_of(*ip), number, port.protocol));
            wanted.extend(frontends.map(|frontend| (frontend, claim(FrontendKind::NodePort, index))));
        }
    }
    wanted
}
