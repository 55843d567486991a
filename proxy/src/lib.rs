//! Services on a host: what a person declared, which endpoint a new connection gets, and what the
//! kernel should hold so that it does.
//!
//! - [`model`]: Services, EndpointSlices and Nodes as small, validated, plain data;
//! - [`manifests`]: a folder of YAML and JSON files as their source;
//! - [`api`]: a Kubernetes API server as their source;
//! - [`cleanup`]: takes every trace of the proxy off a host;
//! - [`config`]: how a proxy is told what to do, in kube-proxy's words and ours;
//! - [`doctor`]: what is wrong with services on a host, and what to run;
//! - [`explain`]: what is programmed, and where a connection goes, in words;
//! - [`host`]: what this host adds: its name, zone, addresses, settings;
//! - [`plan`]: per service port and family the endpoints and, per frontend, who gets which of them;
//! - [`announce`]: who answers for such an address on the LAN, and in which words;
//! - [`pools`]: which service of type LoadBalancer has which address;
//! - [`nftables`]: the same as nftables rules, without an object for each service;
//! - [`iptables`]: the same as iptables' rules;
//! - [`source`]: what any source of them tells;
//! - [`backend`]: what any way to have plans in the kernel offers;
//! - [`around`]: what a host needs beside rules: addresses, routes, settings, flows that are forgotten;
//! - [`health`]: what load balancers and probes are told;
//! - [`metrics`]: connections by service and endpoint;
//! - [`stale`]: UDP flows whose endpoint is gone;
//! - [`simulate`]: where one packet goes, straight from the semantics: the oracle of the tests and
//!   the engine of `weft explain`. It shares the model and the host with `plan`, and no decision.
//!
//! The semantics are kube-proxy's, from Kubernetes' documentation and enhancement proposals; where
//! weft differs on purpose, the place says so.

pub mod announce;
pub mod api;
pub mod around;
pub mod backend;
pub mod cleanup;
pub mod config;
pub mod doctor;
pub mod explain;
#[cfg(any(test, feature = "generators"))]
pub mod generators;
pub mod health;
pub mod host;
pub mod iptables;
mod listen;
pub mod manifests;
pub mod metrics;
pub mod model;
pub mod nftables;
pub mod plan;
pub mod pools;
pub mod run;
#[cfg(test)]
mod semantics;
pub mod simulate;
pub mod source;
pub mod stale;
pub mod userspace;
