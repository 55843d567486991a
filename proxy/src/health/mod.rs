//! What load balancers and probes are told over HTTP: whether this proxy is well, and how many ready
//! endpoints of a service this host has. Bodies, headers and status codes are kube-proxy's.
//!
//! - [`pulse`]: whether what was declared gets into the kernel in time, and whether the node stays (pure);
//! - [`answers`]: how that is told (pure);
//! - [`listeners`]: the sockets, opened, retried and closed as they are wanted.

pub mod answers;
pub mod listeners;
pub mod pulse;
mod serve;

pub use serve::{Served, follow};
