//! `host-gw`, and vxlan's DirectRouting: a plain route by the other host's address.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_kernel::net::{Route, RouteKey, RouteKind};

use crate::config::{Backend, NetworkConfig};
use crate::model::{Family, Me, Underlay};
use crate::mtu;
use crate::plan::{MAIN_TABLE, ROUTE_PROTOCOL, metric};

/// Whether this host takes plain routes to its neighbours. It says so in its record, so that both
/// ends of a pair decide alike.
pub(crate) fn offer(config: &NetworkConfig) -> bool {
    matches!(config.backend, Backend::HostGw | Backend::Vxlan { direct_routing: true, .. })
}

/// Whether both public addresses lie in one network of the underlay. Our own must: a neighbour
/// sends to it, and behind a NAT that is not us.
pub(crate) fn one_segment(me: &Me, theirs: Option<IpAddr>, inner: Family) -> bool {
    let (Some(ours), Some(theirs)) = (me.public(inner), theirs) else { return false };
    me.underlay.addresses.iter().any(|network| network.contains(ours) && network.contains(theirs))
}

/// The route to a neighbour's subnet.
pub(crate) fn route(config: &NetworkConfig, underlay: &Underlay, dst: IpNetwork, via: IpAddr) -> Route {
    let base = mtu::base(config, underlay);
    Route {
        key: RouteKey { table: MAIN_TABLE, dst, metric: metric(Family::of(via)) },
        kind: RouteKind::Unicast,
        protocol: ROUTE_PROTOCOL,
        via: Some(via),
        link: Some(underlay.link.clone()),
        onlink: false,
        src: None,
        mtu: (base < underlay.mtu).then_some(base),
    }
}
