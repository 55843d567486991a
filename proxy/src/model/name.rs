//! What services, slices, ports and nodes are called.

use std::fmt;
use std::sync::Arc;

use super::Protocol;

/// A Service: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Where it lives.
    pub namespace: Arc<str>,
    /// Its name there.
    pub name: Arc<str>,
}

/// An EndpointSlice: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName {
    /// Where it lives.
    pub namespace: Arc<str>,
    /// Its name there.
    pub name: Arc<str>,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(pub Arc<str>);

/// One port of a service. Two ports of one service differ in their name, and a slice's port belongs
/// to the service port with the same name and protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// The service.
    pub service: ServiceName,
    /// The port's name; empty for the only port of a service, if that has none.
    pub port: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
}

impl ServiceName {
    /// The service `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl SliceName {
    /// The slice `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl NodeName {
    /// The node of that name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `shop/web:http`, or `shop/web` for a port without a name, as kube-proxy writes it.
impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}
