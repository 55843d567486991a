//! Whose a kernel object is: the marks by which weft knows its own, for this network alone.

use ipnetwork::IpNetwork;
use weft_kernel::net::{Link, Route, State};

use super::{MAIN_TABLE, ROUTE_PROTOCOL};
use crate::model::{Family, Model};

/// What a link of the plan is for. Pods' links have roles of their own and are not the plan's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The VXLAN link with this outer family.
    Vxlan(Family),
    /// The TUN device of the userspace tunnel.
    Udp,
}

impl Role {
    /// All of them.
    const ALL: [Role; 3] = [Role::Vxlan(Family::V4), Role::Vxlan(Family::V6), Role::Udp];

    /// The alias of a link with this role: `weft:<network>:<role>`.
    pub fn alias(self, network: &str) -> String {
        format!("weft:{network}:{}", self.word())
    }

    fn word(self) -> &'static str {
        match self {
            Self::Vxlan(Family::V4) => "vxlan",
            Self::Vxlan(Family::V6) => "vxlan-v6",
            Self::Udp => "udp",
        }
    }
}

/// What of a host's network belongs to one weft network's plan. Two networks on one host have
/// different names and different ranges, and never touch each other's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The network's name on this host.
    pub network: String,
    /// The pod network's ranges. While a configuration changes, the old ones as well.
    pub ranges: Vec<IpNetwork>,
}

impl Scope {
    /// The model's network.
    pub fn of(model: &Model) -> Self {
        Self { network: model.me.network.clone(), ranges: model.config.networks().collect() }
    }

    /// The role of a link by its alias, when it is ours and the plan's.
    pub fn role(&self, link: &Link) -> Option<Role> {
        // Asked once per route of thousands, so nothing is put together here.
        let word =
            link.alias.as_deref()?.strip_prefix("weft:")?.strip_prefix(&self.network)?.strip_prefix(':')?;
        Role::ALL.into_iter().find(|role| role.word() == word)
    }

    /// Whether a route is the plan's: our protocol, in the main table, and by a link of the plan; or
    /// to a part of our ranges, and not by a pod's link or another network's. A route to a single
    /// address by any other link is a pod's, always: the smallest subnet has four addresses.
    pub fn owns_route(&self, route: &Route, observed: &State) -> bool {
        let dst = route.key.dst;
        let single = match dst {
            IpNetwork::V4(dst) => dst.prefix() == 32,
            IpNetwork::V6(dst) => dst.prefix() == 128,
        };
        if route.protocol != ROUTE_PROTOCOL || route.key.table != MAIN_TABLE {
            return false;
        }
        let link = route.link.as_ref().and_then(|name| observed.links.get(name));
        match link {
            Some(link) if self.role(link).is_some() => true,
            Some(Link { alias: Some(alias), .. }) if alias.starts_with("weft:") => false,
            _ if single => false,
            _ => self
                .ranges
                .iter()
                .any(|range| Family::of(range.ip()) == Family::of(dst.ip()) && range.contains(dst.network())),
        }
    }
}
