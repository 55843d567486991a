//! What one service needs of the table: elements, and the chains that they lead to. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use weft_kernel::nft::{Key, Part, merge_networks};

use super::layout::{
    DROP, Map, NOWHERE, Place, REJECT, Shape, endpoint, first_hashed, first_slot, frontend, frontend_slot,
    live, number, number_value,
};
use super::leaf::{Leaf, Pick, Way};
use super::slots;
use crate::model::{Balance, Policy, PortName, family_of};
use crate::plan::{self, Frontend, Path, PortPlan, ServicePlan, Treatment};

/// What a service needs. Sorted lists and not maps: there are tens of thousands of services with a
/// handful of each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parts {
    /// Each place's key once.
    pub(super) elements: Box<[Element]>,
    /// The chains, each once. Those that frontends lead to have numbers.
    pub(super) ways: Box<[Way]>,
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Element {
    pub(super) place: Place,
    pub(super) key: Key,
    /// None in a plain set. Never a verdict: [`super::layout`] says why.
    pub(super) value: Option<Box<[u8]>>,
}

impl Element {
    /// What it is found by.
    pub(super) fn at(&self) -> (Place, &Key) {
        (self.place, &self.key)
    }
}

/// Parts that are being put together.
#[derive(Debug, Default)]
struct Draft {
    elements: Vec<Element>,
    ways: Vec<Way>,
}

/// The numbers of ways, given out as they are asked for.
pub(super) trait Numbers {
    /// The number of a way.
    fn number(&mut self, way: &Way) -> u32;
}

/// Where the endpoints of a service port are, which must not change without need.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seats {
    /// The endpoint in each slot, of the policy Cluster.
    pub(super) cluster: Vec<SocketAddr>,
    /// Likewise, of the policy Local.
    pub(super) local: Vec<SocketAddr>,
    /// What stands for an endpoint where clients stick.
    pub(super) numbers: BTreeMap<SocketAddr, u32>,
}

impl Seats {
    /// For what is wanted now.
    pub(super) fn next(&self, port: &PortPlan) -> Self {
        let numbers = match pick(port) {
            Pick::Any => BTreeMap::new(),
            Pick::ById { .. } => {
                slots::number(&self.numbers, port.cluster.iter().chain(&port.local).copied())
            }
        };
        Self {
            cluster: slots::place(&self.cluster, &port.cluster),
            local: slots::place(&self.local, &port.local),
            numbers,
        }
    }

    pub(super) fn of(&self, set: Policy) -> &[SocketAddr] {
        match set {
            Policy::Cluster => &self.cluster,
            Policy::Local => &self.local,
        }
    }
}

/// How the endpoints of a port are picked.
pub(super) fn pick(port: &PortPlan) -> Pick {
    let hash = port.balance == Balance::ClientHash;
    match port.affinity {
        None if !hash => Pick::Any,
        sticky => Pick::ById {
            hash,
            sticky: sticky.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1)),
        },
    }
}

impl Parts {
    /// What a service needs, with the seats and ids of its ports.
    pub(super) fn of<'a>(
        plan: &ServicePlan,
        ways: &mut impl Numbers,
        port: impl Fn(&PortPlan) -> (&'a Seats, u32),
    ) -> Self {
        let mut draft = Draft::default();
        for wanted in &plan.ports {
            let (seats, id) = port(wanted);
            draft.port(wanted, ways, seats, id);
        }
        let single = |ip: IpAddr| Key::from(Part::from(ip));
        for ip in &plan.cluster_ips {
            draft.add(Map::ClusterIps.of(family_of(*ip)), single(*ip), None);
        }
        for ip in &plan.spared_ips {
            draft.add(Map::Spared.of(family_of(*ip)), single(*ip), None);
        }
        draft.finish()
    }
}

impl Draft {
    fn finish(self) -> Parts {
        let Self { mut elements, mut ways } = self;
        elements.sort_by(|a, b| a.at().cmp(&b.at()));
        elements.dedup_by(|a, b| a.at() == b.at());
        ways.sort();
        ways.dedup();
        Parts { elements: elements.into(), ways: ways.into() }
    }

    fn add(&mut self, place: Place, key: Key, value: impl Into<Option<Box<[u8]>>>) {
        self.elements.push(Element { place, key, value: value.into() });
    }

    fn port(&mut self, port: &PortPlan, ways: &mut impl Numbers, seats: &Seats, id: u32) {
        let pick = pick(port);
        for (at, treatment) in &port.frontends {
            self.frontend(port, ways, seats, at, treatment);
            if pick != Pick::Any && leads_anywhere(treatment) {
                let map = if shape(at) == Shape::Address { Map::AddressIds } else { Map::PortIds };
                self.add(map.of(port.family), frontend(at), number_value(id));
            }
        }
        if let Pick::ById { hash, .. } = pick {
            for set in [Policy::Cluster, Policy::Local] {
                self.by_id(port, seats, set, id, hash);
            }
        }
        for address in port.cluster.iter().chain(&port.local) {
            let ip = Part::from(address.ip());
            self.add(Map::Hairpin.of(port.family), Key::concat([ip.clone(), ip]), None);
        }
    }

    fn frontend(
        &mut self,
        port: &PortPlan,
        ways: &mut impl Numbers,
        seats: &Seats,
        at: &Frontend,
        treatment: &Treatment,
    ) {
        let (family, shape, pick) = (port.family, shape(at), pick(port));
        let (led, endpoints, refused) = match shape {
            Shape::Address => (Map::Addresses, Map::AddressEndpoints, Map::RefusedAddresses),
            Shape::Port => (Map::Ports, Map::PortEndpoints, Map::RefusedPorts),
        };
        let leaf = |path: Path| match path {
            Path::To { set, masquerade } => {
                let count = u32::try_from(seats.of(set).len()).unwrap_or(u32::MAX);
                (count > 0).then_some(Leaf { family, shape, set, masquerade, count, pick })
            }
            Path::Reject | Path::Drop => None,
        };
        let [pods, host, others] = [treatment.pods, treatment.host, treatment.others].map(leaf);
        let way = match (pods, host, others) {
            (None, None, None) => None,
            (Some(leaf), host, others) if host == Some(leaf) && others == Some(leaf) => Some(Way::Leaf(leaf)),
            _ => Some(Way::Split { family, pods, host, others }),
        };
        if let Some(way) = &way {
            self.add(led.of(family), frontend(at), number_value(ways.number(way)));
            self.ways.extend(way.needs().into_iter().map(Way::Leaf));
            self.ways.push(way.clone());
        }
        // Taken by nobody, a packet to an address must not go on to a node port of the same number.
        let nowhere = way.is_none() && shape == Shape::Address;
        if nowhere {
            self.add(led.of(family), frontend(at), number_value(NOWHERE));
        }
        if let Some(end) = refusal(treatment) {
            self.add(refused.of(family), frontend(at), number_value(end));
        }
        if pick == Pick::Any {
            for set in [Policy::Cluster, Policy::Local].into_iter().filter(|set| treatment.leads_to(*set)) {
                for (slot, to) in (first_slot(set)..).zip(seats.of(set)) {
                    self.add(endpoints.of(family), frontend_slot(at, slot), endpoint(to));
                }
            }
        }
        if let (Some(sources), Frontend::Address(address, protocol)) = (&treatment.sources, at) {
            self.add(Map::Guarded.of(family), frontend(at), None);
            for range in merge_networks(sources.iter().copied()) {
                let key = Key::concat([
                    Part::from(range),
                    address.ip().into(),
                    Part::bytes([protocol.number()]),
                    Part::bytes(address.port().to_be_bytes()),
                ]);
                self.add(Map::Allowed.of(family), key, None);
            }
        }
    }

    /// What is found by the service port's id.
    fn by_id(&mut self, port: &PortPlan, seats: &Seats, set: Policy, id: u32, hash: bool) {
        let numbered = |to: &SocketAddr| seats.numbers.get(to).copied();
        let seated = seats.of(set);
        for (slot, to) in (first_slot(set)..).zip(seated) {
            let Some(stands_for) = numbered(to) else { continue };
            let slot = Key::concat([number(id), number(slot)]);
            self.add(Map::Slots.of(port.family), slot, number_value(stands_for));
            let key = Key::concat([number(id), number(stands_for)]);
            self.add(live(set).of(port.family), key, endpoint(to));
        }
        if hash {
            // By address, so that every host has the same table.
            let mut sorted = seated.to_vec();
            sorted.sort();
            for (slot, index) in (first_hashed(set)..).zip(plan::slots(&sorted)) {
                let Some(stands_for) = sorted.get(index).and_then(numbered) else { continue };
                let slot = Key::concat([number(id), number(slot)]);
                self.add(Map::Slots.of(port.family), slot, number_value(stands_for));
            }
        }
    }
}

fn shape(at: &Frontend) -> Shape {
    match at {
        Frontend::Address(..) => Shape::Address,
        Frontend::NodePort(..) => Shape::Port,
    }
}

fn leads_anywhere(treatment: &Treatment) -> bool {
    treatment.leads_to(Policy::Cluster) || treatment.leads_to(Policy::Local)
}

/// What becomes of whom no path leads to an endpoint. Paths that lead to none all do the same: they
/// reject if there is no endpoint anywhere, or else drop.
fn refusal(treatment: &Treatment) -> Option<u32> {
    let paths = [treatment.pods, treatment.host, treatment.others];
    if paths.contains(&Path::Reject) {
        Some(REJECT)
    } else if paths.contains(&Path::Drop) {
        Some(DROP)
    } else {
        None
    }
}

/// The wish for an id: from the port's name, so that a proxy that has forgotten everything finds
/// nearly always the same.
pub(super) fn wished_id(name: &PortName) -> u32 {
    slots::hash(name.to_string().as_bytes())
}
