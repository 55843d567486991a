//! What of the kernel's network one weft network has made. Pure.

use std::net::IpAddr;

use weft_kernel::net::{Change, Link, Route, State};

use super::trail::{Trail, is_weft};
use crate::model::Family;
use crate::plan::{MAIN_TABLE, ROUTE_PROTOCOL};

/// What must go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Doomed {
    /// The steps, in order.
    pub(super) changes: Vec<Change>,
    /// Routes of weft's that may be another network's.
    pub(super) left: Vec<String>,
}

/// Links by their alias; addresses, neighbours, FDB entries and routes go with them. What is left are
/// routes by others' links (the underlay's, or none: a blackhole).
pub(super) fn doomed(trail: &Trail, observed: &State) -> Doomed {
    let mut doomed = Doomed::default();
    for route in observed.routes.values() {
        let link = route.link.as_ref().and_then(|name| observed.links.get(name));
        let marked = route.protocol == ROUTE_PROTOCOL && route.key.table == MAIN_TABLE;
        if !marked || link.is_some_and(is_weft) {
            continue;
        }
        // Without another network there is nobody else whose it could be.
        if is_inside(trail, route) || trail.is_last {
            doomed.changes.push(Change::DeleteRoute(route.clone()));
        } else if trail.ranges.is_empty() {
            let why = "no config is known any more that says whose it is";
            doomed.left.push(format!("route {route}: there are several weft networks here and {why}"));
        }
    }
    for proxy in &observed.proxies {
        let inside = trail.ranges.iter().any(|range| range.contains(IpAddr::V6(proxy.addr)));
        if proxy.protocol == ROUTE_PROTOCOL && (inside || trail.is_last) {
            doomed.changes.push(Change::DeleteProxy(proxy.clone()));
        }
    }
    let ours = observed.links.values().filter(|link: &&Link| trail.owns(link));
    doomed.changes.extend(ours.map(|link| Change::DeleteLink(link.name.clone())));
    doomed
}

fn is_inside(trail: &Trail, route: &Route) -> bool {
    let dst = route.key.dst;
    let family = Family::of(dst.ip());
    let holds = |range: &&ipnetwork::IpNetwork| {
        Family::of(range.ip()) == family && range.prefix() <= dst.prefix() && range.contains(dst.network())
    };
    trail.ranges.iter().any(|range| holds(&range))
}
