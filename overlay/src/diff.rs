//! The fewest changes that make an observed state hold what the plan wants.
//!
//! What weft owns it finds by its marks ([`Scope`]); it is made, corrected or removed. What carries
//! no mark of ours is never changed: where it stands in the way, that is a [`Conflict`]. Pure.
//!
//! The order of the changes: links, addresses, neighbours, FDB entries, routes, so that no packet
//! meets a route whose tunnel does not know the way; then what is too much, routes first. Addresses
//! that are too much go with the addresses: a former one of ours can be a peer's now, and the kernel
//! takes no route whose gateway is local.

mod links;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_kernel::net::{Change, FdbEntry, LinkName, Mac, Neighbour, Route, RouteKind, State, Vni};

use crate::plan::Scope;
use links::Links;

/// What is to be done, and what stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// In the order in which they must be applied.
    pub changes: Vec<Change>,
    /// Wanted objects whose place is taken by what is not ours.
    pub conflicts: Vec<Conflict>,
    /// Links that somebody else has to make first (the userspace tunnel its TUN device); what
    /// belongs on them waits.
    pub awaited: BTreeSet<LinkName>,
}

/// Something foreign in the place of something wanted. It is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A link has the name that ours needs.
    #[error(
        "link {name} is not ours (its alias is `{}`, not `{wanted}`); rename or delete it",
        .alias.as_deref().unwrap_or_default()
    )]
    Name {
        /// The name.
        name: LinkName,
        /// The alias it has.
        alias: Option<String>,
        /// The alias that ours has.
        wanted: String,
    },
    /// A VXLAN link has our VNI and port; the kernel allows no second one.
    #[error(
        "link {holder} already has VNI {vni} on port {port}, which {wanted} needs; delete it, or take it over if it is flannel's"
    )]
    Vni {
        /// The name of our link.
        wanted: LinkName,
        /// The link in its way.
        holder: LinkName,
        /// Their VNI.
        vni: Vni,
        /// Their UDP port.
        port: u16,
    },
    /// A route of somebody else has the same destination, table and metric.
    #[error("route `{held}` is not ours and in the way of `{wanted}`; delete it")]
    Route {
        /// The one that is there.
        held: Box<Route>,
        /// The one we want.
        wanted: Box<Route>,
    },
    /// A route that weft has no words for (several next hops, say) is where ours belongs.
    #[error("a route that is not ours, of a kind weft does not make, is in the way of `{wanted}`; delete it")]
    Opaque {
        /// The one we want.
        wanted: Box<Route>,
    },
    /// Ours is there, and a second one under the same key, so that IPv6 spreads traffic over both.
    #[error("another route stands beside `{wanted}`, with the same destination and metric; delete it")]
    Twin {
        /// The one we want.
        wanted: Box<Route>,
    },
}

/// Compares. `desired` is [`crate::plan::Desired::kernel`].
pub fn diff(desired: &State, observed: &State, scope: &Scope) -> Diff {
    let links = Links::compare(desired, observed, scope);
    let observed = links.after_renames(observed);
    let mut add = Vec::new();
    let mut remove = Removals::default();
    let mut conflicts = links.conflicts.clone();

    let bared = bared(desired, &observed, &links);
    addresses(desired, &observed, &links, &mut add);
    neighbours(desired, &observed, &links, &mut add, &mut remove.neighbours);
    fdb(desired, &observed, &links, &mut add, &mut remove.fdb);
    let routes = Routes { desired, observed: &observed, links: &links, bared: &bared, scope };
    routes.compare(&mut add, &mut remove.routes, &mut conflicts);

    let mut changes = links.first;
    changes.append(&mut add);
    changes.append(&mut remove.routes);
    changes.append(&mut remove.fdb);
    changes.append(&mut remove.neighbours);
    changes.extend(links.last);
    Diff { changes, conflicts, awaited: links.awaited }
}

#[derive(Default)]
struct Removals {
    routes: Vec<Change>,
    fdb: Vec<Change>,
    neighbours: Vec<Change>,
}

/// Links of ours that lose their last IPv4 address, and with it their IPv4 routes
/// (`fib_disable_ip` in net/ipv4/fib_frontend.c).
fn bared<'a>(desired: &State, observed: &'a State, links: &Links) -> BTreeSet<&'a LinkName> {
    let on = |state: &State, link: &LinkName| {
        state.addresses.iter().any(|address| address.link == *link && address.network.is_ipv4())
    };
    let kept = observed.links.keys().filter(|link| links.kept(link));
    kept.filter(|link| on(observed, link) && !on(desired, link)).collect()
}

/// Ours first: a link without any IPv4 address loses its routes.
fn addresses(desired: &State, observed: &State, links: &Links, changes: &mut Vec<Change>) {
    for address in desired.addresses.iter().filter(|address| links.usable(&address.link)) {
        if links.made(&address.link) || !observed.addresses.contains(address) {
            changes.push(Change::AddAddress(address.clone()));
        }
    }
    for address in observed.addresses.iter().filter(|address| links.kept(&address.link)) {
        // The kernel gives every link that speaks IPv6 a link-local address.
        let kernels = matches!(address.network.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
        if !kernels && !desired.addresses.contains(address) {
            changes.push(Change::DeleteAddress(address.clone()));
        }
    }
    // A link that goes last takes its addresses along, too late for one that is a gateway now.
    for address in observed.addresses.iter().filter(|address| links.removed(&address.link)) {
        let ip = address.network.ip();
        if desired.routes.values().any(|route| route.via == Some(ip)) {
            changes.push(Change::DeleteAddress(address.clone()));
        }
    }
}

fn neighbours(
    desired: &State,
    observed: &State,
    links: &Links,
    add: &mut Vec<Change>,
    remove: &mut Vec<Change>,
) {
    for (key, neighbour) in desired.neighbours.iter().filter(|((link, _), _)| links.usable(link)) {
        if links.lost_neighbours(&key.0) || observed.neighbours.get(key) != Some(neighbour) {
            add.push(Change::ReplaceNeighbour(neighbour.clone()));
        }
    }
    for (key, neighbour) in observed.neighbours.iter().filter(|((link, _), _)| links.kept(link)) {
        // What the kernel learned by itself it also forgets by itself.
        let Neighbour { permanent, .. } = neighbour;
        if *permanent && !links.lost_neighbours(&key.0) && !desired.neighbours.contains_key(key) {
            remove.push(Change::DeleteNeighbour(neighbour.clone()));
        }
    }
}

fn fdb(desired: &State, observed: &State, links: &Links, add: &mut Vec<Change>, remove: &mut Vec<Change>) {
    let mut held: BTreeMap<(&LinkName, Mac), Vec<&FdbEntry>> = BTreeMap::new();
    for entry in observed.fdb.iter().filter(|entry| links.kept(&entry.link)) {
        held.entry((&entry.link, entry.mac)).or_default().push(entry);
    }
    for entry in desired.fdb.iter().filter(|entry| links.usable(&entry.link)) {
        let there = held.remove(&(&entry.link, entry.mac)).unwrap_or_default();
        if !there.contains(&entry) {
            add.push(Change::ReplaceFdb(entry.clone()));
        }
        // A replacement takes the place of a single destination. Of several (somebody appended
        // one) the kernel replaces the first, or none if ours is among them: the others must go.
        if there.len() > 1 {
            let others = there.into_iter().filter(|there| there.dst != entry.dst);
            remove.extend(others.map(|other| Change::DeleteFdb(other.clone())));
        }
    }
    for entry in held.into_values().flatten() {
        if entry.permanent || !links.learning(&entry.link) {
            remove.push(Change::DeleteFdb(entry.clone()));
        }
    }
}

/// What the routes' comparison reads.
struct Routes<'a> {
    desired: &'a State,
    observed: &'a State,
    links: &'a Links,
    bared: &'a BTreeSet<&'a LinkName>,
    scope: &'a Scope,
}

impl Routes<'_> {
    fn compare(&self, add: &mut Vec<Change>, remove: &mut Vec<Change>, conflicts: &mut Vec<Conflict>) {
        let Self { desired, observed, scope, .. } = *self;
        for (key, route) in desired.routes.iter().filter(|(_, route)| self.possible(route)) {
            match observed.routes.get(key).filter(|held| self.stays(held)) {
                Some(held) if same_route(held, route) => {
                    // IPv4 takes the first and never looks at the second.
                    if observed.twins.contains(key) && key.dst.is_ipv6() {
                        conflicts.push(Conflict::Twin { wanted: Box::new(route.clone()) });
                    }
                }
                Some(held) if !scope.owns_route(held, observed) => conflicts
                    .push(Conflict::Route { held: Box::new(held.clone()), wanted: Box::new(route.clone()) }),
                None if observed.opaque.contains(key) => {
                    conflicts.push(Conflict::Opaque { wanted: Box::new(route.clone()) })
                }
                _ => add.push(Change::ReplaceRoute(route.clone())),
            }
        }
        for (key, route) in observed.routes.iter().filter(|(_, route)| self.stays(route)) {
            // One that is wanted otherwise, but cannot be made so now, stays: better than none.
            let wanted = desired.routes.contains_key(key);
            if !wanted && scope.owns_route(route, observed) {
                remove.push(Change::DeleteRoute(route.clone()));
            }
        }
    }

    /// The link that a wanted route leaves by is there, or will be.
    fn possible(&self, route: &Route) -> bool {
        route.link.as_ref().is_none_or(|link| self.links.usable(link))
    }

    /// An observed route is still there when ours are made: one goes with the link it leaves by,
    /// and an IPv4 route with that link's last address, whosesoever it is.
    fn stays(&self, route: &Route) -> bool {
        let bared = |link: &LinkName| route.key.dst.is_ipv4() && self.bared.contains(link);
        route
            .link
            .as_ref()
            .is_none_or(|link| !self.links.made(link) && !self.links.removed(link) && !bared(link))
    }
}

/// Whether a route is as wanted. What drops packets has no next hop; the kernel shows one for IPv6
/// (`dev lo`).
pub(crate) fn same_route(held: &Route, wanted: &Route) -> bool {
    match wanted.kind {
        RouteKind::Unicast => held == wanted,
        _ => (held.kind, held.protocol) == (wanted.kind, wanted.protocol),
    }
}
