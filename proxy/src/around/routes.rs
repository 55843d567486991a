//! The way to cluster addresses on hosts without a default route. Pure.
//!
//! A process that connects to a cluster address needs a route before any rule sees its packet: without
//! one the kernel says "network is unreachable", and nothing is translated, rejected or dropped. So
//! where no route covers a range of cluster addresses, it gets one of ours, by the link that the host is
//! known by; packets that a rule translates are routed anew, so hardly any ever leave that way. It goes
//! when another route covers the range.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use weft_kernel::net::{Change, Route, RouteKey, RouteKind, State};

use super::addresses::{MAIN_TABLE, primary};
use crate::model::family_of;

/// The protocol number of every route that weft makes: unused in iproute2's `rt_protos`.
const ROUTE_PROTOCOL: u8 = 87;
/// Tells our routes from the overlay's, and comes after everybody else's.
const METRIC: u32 = 100_087;

/// The steps to the routes that are needed, from what is there.
pub fn changes(state: &State, service_cidrs: &[IpNetwork]) -> Vec<Change> {
    let wanted = wanted(state, service_cidrs);
    let old = ours(state).filter(|route| !wanted.contains_key(&route.key));
    let gone = old.map(|route| Change::DeleteRoute(route.clone()));
    let new = wanted.values().filter(|route| state.routes.get(&route.key) != Some(route));
    gone.chain(new.map(|route| Change::ReplaceRoute(route.clone()))).collect()
}

/// The steps that leave none of ours.
pub fn removal(state: &State) -> Vec<Change> {
    ours(state).map(|route| Change::DeleteRoute(route.clone())).collect()
}

/// Whether a route can matter here: what [`super::network`] follows.
pub(super) fn matters(key: &RouteKey, service_cidrs: &[IpNetwork]) -> bool {
    let everywhere = key.dst.prefix() == 0;
    key.table == MAIN_TABLE
        && (everywhere || key.metric == METRIC || service_cidrs.iter().any(|range| covers(&key.dst, range)))
}

fn wanted(state: &State, service_cidrs: &[IpNetwork]) -> BTreeMap<RouteKey, Route> {
    let mut wanted = BTreeMap::new();
    for range in service_cidrs.iter().filter(|range| !is_covered(state, range)) {
        let Some((link, src)) = primary(state, family_of(range.ip())) else { continue };
        let key = RouteKey { table: MAIN_TABLE, dst: *range, metric: METRIC };
        let route = Route {
            key: key.clone(),
            kind: RouteKind::Unicast,
            protocol: ROUTE_PROTOCOL,
            via: None,
            link: Some(link.clone()),
            onlink: false,
            src: Some(src),
            mtu: None,
        };
        wanted.insert(key, route);
    }
    wanted
}

/// Whether packets to the range leave by somebody else's route.
fn is_covered(state: &State, range: &IpNetwork) -> bool {
    let others = state.routes.values().filter(|route| route.kind == RouteKind::Unicast && !is_ours(route));
    // One with several next hops is not modelled, but it is there.
    let keys = others.map(|route| &route.key).chain(&state.opaque);
    keys.filter(|key| key.table == MAIN_TABLE).any(|key| covers(&key.dst, range))
}

fn covers(wide: &IpNetwork, narrow: &IpNetwork) -> bool {
    wide.is_ipv4() == narrow.is_ipv4() && wide.prefix() <= narrow.prefix() && wide.contains(narrow.network())
}

fn ours(state: &State) -> impl Iterator<Item = &Route> {
    state.routes.values().filter(|route| is_ours(route))
}

fn is_ours(route: &Route) -> bool {
    route.protocol == ROUTE_PROTOCOL && route.key.table == MAIN_TABLE && route.key.metric == METRIC
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::around::addresses::tests::{host, route, with_route};
    use proptest::prelude::*;

    fn cidrs(list: &[&str]) -> Vec<IpNetwork> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn told(state: &State, ranges: &[&str]) -> Vec<String> {
        changes(state, &cidrs(ranges)).iter().map(Change::to_string).collect()
    }

    #[test]
    fn a_range_that_nothing_covers_gets_a_route() {
        let plain = || host(&["lo 127.0.0.1/8", "eth0 192.0.2.1/24", "eth0 2001:db8::1/64"]);
        let v4 = "10.96.0.0/12 dev eth0 src 192.0.2.1";
        let blackhole = Route { kind: RouteKind::Blackhole, link: None, ..route("10.0.0.0/8", "eth0", 0) };
        let several = {
            let mut state = plain();
            state.opaque.insert(route("0.0.0.0/0", "eth0", 0).key);
            state
        };
        let elsewhere = {
            let mut other = route("0.0.0.0/0", "eth0", 0);
            other.key.table = 100;
            with_route(plain(), other)
        };
        let table = [
            ("no default route", plain(), vec![v4]),
            ("a default route", with_route(plain(), route("0.0.0.0/0", "eth0", 0)), vec![]),
            ("a default route with several next hops", several, vec![]),
            ("one in another table", elsewhere, vec![v4]),
            ("a route to the range", with_route(plain(), route("10.96.0.0/12", "eth0", 0)), vec![]),
            ("a route to more", with_route(plain(), route("10.0.0.0/8", "eth0", 0)), vec![]),
            ("a route to less", with_route(plain(), route("10.96.0.0/16", "eth0", 0)), vec![v4]),
            ("a route to nowhere", with_route(plain(), blackhole), vec![v4]),
            ("no address that others know", host(&["lo 127.0.0.1/8"]), vec![]),
        ];
        for (case, state, expected) in table {
            let lines = told(&state, &["10.96.0.0/12"]);
            assert_eq!(lines.len(), expected.len(), "{case}: {lines:?}");
            for (line, expected) in lines.iter().zip(expected) {
                assert!(line.starts_with(&format!("replace route {expected}")), "{case}: {line}");
            }
        }
        assert_eq!(told(&plain(), &["fd00:96::/112"]).len(), 1, "IPv6 by its own address");
    }

    #[test]
    fn ours_goes_when_it_is_not_needed_and_others_stay() {
        let state = host(&["eth0 192.0.2.1/24"]);
        let Some(Change::ReplaceRoute(made)) = changes(&state, &cidrs(&["10.96.0.0/12"])).pop() else {
            panic!("no route")
        };
        let state = with_route(with_route(state, made.clone()), route("10.42.0.0/16", "eth0", 0));
        assert_eq!(changes(&state, &cidrs(&["10.96.0.0/12"])), []);
        let gone = vec![Change::DeleteRoute(made)];
        assert_eq!(changes(&state, &[]), gone, "another range");
        assert_eq!(removal(&state), gone);
        let with_default = with_route(state.clone(), route("0.0.0.0/0", "eth0", 0));
        assert_eq!(changes(&with_default, &cidrs(&["10.96.0.0/12"])), gone);
    }

    proptest! {
        /// Whatever is there: what is done brings about what is wanted, and touches nothing of others'.
        #[test]
        fn changes_lead_to_rest(
            present in prop::collection::vec((any::<bool>(), 0u8..3, any::<bool>()), 0..6),
            before in any::<bool>(),
        ) {
            let mut state = host(&["lo 127.0.0.1/8", "eth0 192.0.2.1/24", "eth1 198.51.100.1/24"]);
            for (at, (default, metric, second)) in present.into_iter().enumerate() {
                let dst = if default { "0.0.0.0/0".to_owned() } else { format!("10.{at}.0.0/16") };
                let link = if second { "eth1" } else { "eth0" };
                state = with_route(state, route(&dst, link, metric.into()));
            }
            if before {
                for change in changes(&host(&["eth1 198.51.100.1/24"]), &cidrs(&["10.96.0.0/12"])) {
                    if let Change::ReplaceRoute(route) = change {
                        state = with_route(state, route);
                    }
                }
            }
            let others = |state: &State| state.routes.values().filter(|it| !is_ours(it)).cloned().collect::<Vec<_>>();
            let foreign = others(&state);
            for change in changes(&state, &cidrs(&["10.96.0.0/12"])) {
                match change {
                    Change::ReplaceRoute(route) => { state.routes.insert(route.key.clone(), route); }
                    Change::DeleteRoute(route) => { state.routes.remove(&route.key); }
                    other => prop_assert!(false, "{other}"),
                }
            }
            prop_assert_eq!(changes(&state, &cidrs(&["10.96.0.0/12"])), []);
            prop_assert_eq!(others(&state), foreign);
        }
    }
}
