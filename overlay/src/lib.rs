//! The overlay: a per-host daemon that leases a subnet from etcd and gives pods a flat network.
//!
//! Data flows one way: `watch` (etcd, the kernel's events) -> [`model`] -> `plan` (pure) -> `apply`.

pub mod admin;
pub mod attach;
pub mod backend;
pub mod believe;
pub mod cache;
pub mod cleanup;
pub mod cni;
pub mod config;
pub mod diff;
pub mod docker_opts;
pub mod doctor;
pub mod firewall;
mod go_json;
pub mod identity;
pub mod key;
pub mod lease;
pub mod lease_attrs;
pub mod membership;
pub mod model;
pub mod mtu;
pub mod options;
pub mod plan;
pub mod probe;
pub mod reconcile;
pub mod registry;
pub mod run;
pub mod subnet_file;
pub mod takeover;
pub mod udp;
pub mod underlay;

#[cfg(test)]
mod fixtures;
