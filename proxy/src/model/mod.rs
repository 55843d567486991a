//! What was declared: Services, EndpointSlices and Nodes as small, validated, plain data. No handles,
//! no clocks; objects of the Kubernetes API become these types in [`read`] and only there.
//!
//! A [`Model`] changes object by object ([`Change`]) and says which services that touches, so that a
//! change of one endpoint costs the same among a hundred services and among forty-five thousand.

mod address;
mod endpoint;
mod name;
pub mod problem;
pub mod read;
mod service;
mod slice;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use address::{Family, family_of};
pub use endpoint::Endpoint;
pub use name::{NodeName, PortName, ServiceName, SliceName};
pub use problem::{ObjectRef, Problem};
pub use service::{Balance, Declared, FrontendKind, Ignored, Kind, Policy, Protocol, Service, ServicePort};
pub use slice::{Slice, SliceEndpoint, SlicePort};

use ipnetwork::IpNetwork;

/// Everything declared that concerns services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    services: BTreeMap<ServiceName, Declared>,
    slices: BTreeMap<SliceName, Arc<Slice>>,
    /// In order. Mostly there is one, for which a set would make room for eleven.
    slices_of: BTreeMap<ServiceName, Vec<SliceName>>,
    nodes: BTreeMap<NodeName, Node>,
}

/// One object as it is now, or that it is gone.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is this from now on.
    Put(Object),
    /// There is no such object (any more), or it is none of ours.
    Remove(ObjectName),
}

/// An object that the model holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service, or why it has no rules here.
    Service(ServiceName, Declared),
    /// An EndpointSlice that belongs to a service; shared with whoever told of it.
    Slice(SliceName, Arc<Slice>),
    /// A Node.
    Node(NodeName, Node),
}

/// What an object is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice.
    Slice(SliceName),
    /// A Node.
    Node(NodeName),
}

/// What a change concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services that have to be planned again.
    pub services: BTreeSet<ServiceName>,
    /// Nodes that are different now. If this host's is among them, [`crate::host::Host::on`] is due,
    /// and if that differs, every service.
    pub nodes: BTreeSet<NodeName>,
}

/// A machine of the cluster, as far as services care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Its own addresses, at most one per family: InternalIP before ExternalIP, as kube-proxy
    /// picks them.
    pub addresses: Vec<IpAddr>,
    /// The ranges that its pods get their addresses from.
    pub pod_cidrs: Vec<IpNetwork>,
    /// It is being deleted, or the cluster autoscaler is about to: load balancers should not send
    /// new connections here.
    pub leaving: bool,
}

impl Object {
    /// What it is known by.
    pub fn name(&self) -> ObjectName {
        match self {
            Self::Service(name, _) => ObjectName::Service(name.clone()),
            Self::Slice(name, _) => ObjectName::Slice(name.clone()),
            Self::Node(name, _) => ObjectName::Node(name.clone()),
        }
    }
}

impl Touched {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty()
    }

    /// Both together.
    pub fn join(&mut self, other: Self) {
        self.services.extend(other.services);
        self.nodes.extend(other.nodes);
    }
}

impl Model {
    /// The model that these objects make; a later one replaces an earlier one of the same name.
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut model = Self::default();
        for object in objects {
            model.apply(Change::Put(object));
        }
        model
    }

    /// Takes one change in. What is equal to what is known touches nothing.
    pub fn apply(&mut self, change: Change) -> Touched {
        match change {
            Change::Put(Object::Service(name, declared)) => self.set_service(name, Some(declared)),
            Change::Put(Object::Slice(name, slice)) => self.set_slice(name, Some(slice)),
            Change::Put(Object::Node(name, node)) => self.set_node(name, Some(node)),
            Change::Remove(ObjectName::Service(name)) => self.set_service(name, None),
            Change::Remove(ObjectName::Slice(name)) => self.set_slice(name, None),
            Change::Remove(ObjectName::Node(name)) => self.set_node(name, None),
        }
    }

    /// Every service that gets rules, by name.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &Service)> {
        self.services.iter().filter_map(|(name, declared)| Some((name, declared.served()?)))
    }

    /// Every service, those that get no rules included.
    pub fn declared(&self) -> impl ExactSizeIterator<Item = (&ServiceName, &Declared)> {
        self.services.iter()
    }

    /// The service of that name, if it gets rules.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)?.served()
    }

    /// What is known of a service, rules or not.
    pub fn declared_as(&self, name: &ServiceName) -> Option<&Declared> {
        self.services.get(name)
    }

    /// The slices of a service, by name.
    pub fn slices_of(&self, service: &ServiceName) -> impl Iterator<Item = (&SliceName, &Slice)> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get_key_value(name)).map(|(name, slice)| (name, &**slice))
    }

    /// A node by its name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Node)> {
        self.nodes.iter()
    }

    /// The names of all objects held.
    pub fn names(&self) -> impl Iterator<Item = ObjectName> {
        let services = self.services.keys().cloned().map(ObjectName::Service);
        let slices = self.slices.keys().cloned().map(ObjectName::Slice);
        services.chain(slices).chain(self.nodes.keys().cloned().map(ObjectName::Node))
    }

    fn set_service(&mut self, name: ServiceName, declared: Option<Declared>) -> Touched {
        let mut touched = Touched::default();
        if set(&mut self.services, name.clone(), declared) {
            touched.services.insert(name);
        }
        touched
    }

    fn set_slice(&mut self, name: SliceName, slice: Option<Arc<Slice>>) -> Touched {
        let mut touched = Touched::default();
        let before = self.slices.get(&name).map(|slice| slice.service.clone());
        let after = slice.as_ref().map(|slice| slice.service.clone());
        if !set(&mut self.slices, name.clone(), slice) {
            return touched;
        }
        if let Some(service) = before {
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.retain(|known| *known != name);
                if slices.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            touched.services.insert(service);
        }
        if let Some(service) = after {
            let slices = self.slices_of.entry(service.clone()).or_insert_with(|| Vec::with_capacity(1));
            let at = slices.partition_point(|known| *known < name);
            slices.insert(at, name);
            touched.services.insert(service);
        }
        touched
    }

    fn set_node(&mut self, name: NodeName, node: Option<Node>) -> Touched {
        let mut touched = Touched::default();
        if set(&mut self.nodes, name.clone(), node) {
            touched.nodes.insert(name);
        }
        touched
    }
}

/// Whether anything is different afterwards.
fn set<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}
