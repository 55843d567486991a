//! At which of the host's addresses node ports are served, in one family.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::host::{Host, NodePortAddress};
use crate::model::{Family, family_of};

/// Where node ports are served in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePortScope {
    /// At every address of the host but loopback addresses: `listed` is of no use then.
    pub all: bool,
    /// At these addresses of the host.
    pub listed: BTreeSet<IpAddr>,
    /// At 127.0.0.0/8; never for IPv6. It takes the sysctl `route_localnet`: without it the kernel
    /// drops what would leave the host with a loopback address.
    pub localhost: bool,
    /// At 127.0.0.0/8 or ::1 for TCP: our own process answers there, and the kernel has to route nothing.
    pub relayed: bool,
}

impl NodePortScope {
    /// Where this host serves node ports.
    pub fn of(host: &Host, family: Family) -> Self {
        let mut scope = Self::default();
        let userspace = host.settings.userspace;
        let own = || host.addresses.iter().copied().filter(|ip| family_of(*ip) == family);
        for entry in host.settings.node_ports.in_family(family) {
            match entry {
                NodePortAddress::All => scope.all = true,
                NodePortAddress::Primary => scope.listed.extend(host.primary(family)),
                NodePortAddress::Localhost if userspace => scope.relayed = true,
                NodePortAddress::Localhost => scope.localhost = family == Family::V4,
                NodePortAddress::Range(range) if range.prefix() == 0 => scope.all = true,
                NodePortAddress::Range(range) => {
                    scope.relayed |= userspace && range.ip().is_loopback();
                    scope.localhost |= !userspace && family == Family::V4 && range.ip().is_loopback();
                    scope.listed.extend(own().filter(|ip| range.contains(*ip)));
                }
            }
        }
        if scope.all {
            scope.listed.clear();
        }
        scope
    }
}
