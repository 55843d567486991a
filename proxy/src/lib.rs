//! Services on a host: what a person declared, which endpoint a new connection gets, and what the
//! kernel should hold so that it does.
//!
//! - [`model`]: Services, EndpointSlices and Nodes as small, validated, plain data;
//! - [`host`]: what this host adds: its name, zone, addresses, settings.
//!
//! The semantics are kube-proxy's, from Kubernetes' documentation and enhancement proposals; where
//! weft differs on purpose, the place says so.

pub mod host;
pub mod model;
