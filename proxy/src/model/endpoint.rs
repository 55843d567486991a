//! The endpoints of one service port in one family, out of all slices of the service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Family, Model, NodeName, Protocol, ServiceName, SliceEndpoint};

/// An endpoint of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Wants new connections.
    pub ready: bool,
    /// Could answer new connections.
    pub serving: bool,
    /// Is on its way out.
    pub terminating: bool,
    /// Where it runs.
    pub node: Option<NodeName>,
    /// The zones that should use it.
    pub zone_hints: Vec<Arc<str>>,
    /// The nodes that should use it.
    pub node_hints: Vec<NodeName>,
    /// The pod behind it.
    pub pod: Option<Arc<str>>,
}

impl Model {
    /// The endpoints of a service port, by address. One that is in several slices (it moves from one
    /// to another) counts once: the entry that says it is on `me`, else the one that is ready, else
    /// serving, else the one in the slice whose name comes first.
    pub fn endpoints(
        &self,
        service: &ServiceName,
        port: &str,
        protocol: Protocol,
        family: Family,
        me: &NodeName,
    ) -> Vec<Endpoint> {
        let mut merged: BTreeMap<SocketAddr, &SliceEndpoint> = BTreeMap::new();
        for (_, slice) in self.slices_of(service).filter(|(_, slice)| slice.family == family) {
            let ports = slice.ports.iter().filter(|it| &*it.name == port && it.protocol == protocol);
            for number in ports.map(|port| port.port.get()) {
                for endpoint in &slice.endpoints {
                    let address = SocketAddr::new(endpoint.address, number);
                    let standing = |it: &SliceEndpoint| (it.node.as_ref() == Some(me), it.ready, it.serving);
                    let better = |known: &&SliceEndpoint| standing(endpoint) > standing(known);
                    if merged.get(&address).is_none_or(better) {
                        merged.insert(address, endpoint);
                    }
                }
            }
        }
        merged.into_iter().map(|(address, endpoint)| Endpoint::of(address, endpoint)).collect()
    }
}

impl Endpoint {
    fn of(address: SocketAddr, endpoint: &SliceEndpoint) -> Self {
        Self {
            address,
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            node: endpoint.node.clone(),
            zone_hints: endpoint.zone_hints.clone(),
            node_hints: endpoint.node_hints.clone(),
            pod: endpoint.pod.clone(),
        }
    }
}
