//! The userspace mode: connections over TCP are carried by this process.
//!
//! ```text
//! client ──> rules (nftables mode's) ──DNAT──> a door of ours ──> an endpoint, or the next one
//! ```
//!
//! - [`led`]: what the kernel is told: the same plans, with us as the one endpoint;
//! - [`relay`]: the threads and their doors;
//! - [`accept`]: from a client's connection to an endpoint's;
//! - [`carry`]: the bytes between them;
//! - [`dial`]: connections to endpoints;
//! - [`services`]: who is served by whom;
//! - [`choice`], [`standing`]: which endpoint, and which not for now; pure;
//! - [`sources`]: how many connections a client may have;
//! - [`backend`]: the mode, as the daemon's loop sees it;
//! - [`proxy_protocol`]: headers that tell whose connection is carried; nothing is said in them yet.
//!
//! The kernel keeps to what it does best: which packets are for services, who is let in, refused or
//! dropped, and UDP and SCTP. What is carried differs from what the kernel leads in this: an endpoint
//! sees an address of this host, one that cannot be reached is passed over without the client noticing,
//! and node ports at 127.0.0.1 and ::1 need no settings of the kernel.

mod accept;
mod backend;
mod carry;
mod choice;
pub(crate) mod dial;
mod led;
pub mod proxy_protocol;
mod relay;
mod services;
mod sources;
mod standing;

pub use backend::Userspace;
pub use relay::{Options, Relay};

/// For tests of the rules.
#[cfg(test)]
pub(crate) mod testing {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, SocketAddr};

    pub(crate) use super::led::{closed, led};
    pub(crate) use super::relay::Doors;
    use super::services::Services;
    use crate::model::{Policy, ServiceName};
    use crate::plan::ServicePlan;

    /// All endpoints that a client may be sent to, once it came in by the door of a set.
    pub(crate) fn served_by(
        plans: &BTreeMap<ServiceName, ServicePlan>,
        destination: SocketAddr,
        set: Policy,
        client: IpAddr,
    ) -> Vec<SocketAddr> {
        let services = Services::default();
        plans.iter().for_each(|(name, plan)| services.put(name, plan));
        services.at(destination).map(|port| port.may_reach(set, client)).unwrap_or_default()
    }
}
