//! An EndpointSlice: some of the endpoints of one service, in one family.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::{Family, NodeName, Protocol, ServiceName};

/// Some of the endpoints of one service. A service may have many slices, and an endpoint may be in
/// two of them while it moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Whose endpoints these are: the label `kubernetes.io/service-name`.
    pub service: ServiceName,
    /// `addressType`; every address is of it.
    pub family: Family,
    /// The ports that every endpoint here has.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the service port it belongs to.
    pub name: Arc<str>,
    /// The protocol of that.
    pub protocol: Protocol,
    /// Where the endpoint listens.
    pub port: NonZeroU16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address: the first of the list, all of which mean the same endpoint.
    pub address: IpAddr,
    /// Wants new connections. Not given means yes.
    pub ready: bool,
    /// Could answer new connections, terminating or not. Not given means yes.
    pub serving: bool,
    /// Is on its way out.
    pub terminating: bool,
    /// Where it runs.
    pub node: Option<NodeName>,
    /// The zones that should use it; empty without a hint.
    pub zone_hints: Vec<Arc<str>>,
    /// The nodes that should use it; empty without a hint.
    pub node_hints: Vec<NodeName>,
    /// The pod behind it, if one is named.
    pub pod: Option<Arc<str>>,
}
