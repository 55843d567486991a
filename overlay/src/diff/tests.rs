//! Properties of the diff; what single kinds of drift give is in the golden cases (`tests/cases`).

use proptest::prelude::*;
use proptest::sample::Index;
use weft_kernel::net::{Address, Change, FakeNet, Link, LinkKind, LinkName, RouteKey, State};

use super::*;
use crate::believe;
use crate::fixtures::*;
use crate::plan::{Desired, ROUTE_PROTOCOL, plan};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// From anything to the plan in one pass, and then rest.
    #[test]
    fn any_state_becomes_the_desired_one(model in any_model(), observed in any_observed()) {
        let desired = plan(&model);
        let first = diff(&desired.kernel, &observed, &desired.scope);
        let after = applied(&observed, &first.changes);
        let again = diff(&desired.kernel, &after, &desired.scope);
        prop_assert_eq!(&again.changes, &vec![]);
        prop_assert_eq!(&again.conflicts, &first.conflicts);
        holds_what_it_should(&desired, &after, &first)?;
    }

    /// The kernel's rules (as the fake has them, held against a real kernel) allow every change, in
    /// the order given, and what is believed afterwards is what it holds.
    #[test]
    fn the_kernel_takes_every_change(model in any_model(), observed in any_observed()) {
        let desired = plan(&model);
        let mut observed = observed;
        // The underlay has room for whatever is planned on it, as it is in the model.
        let underlay = observed.links.get_mut(&name("eth0")).expect("there");
        underlay.mtu = model.me.underlay.mtu;
        // Nobody else has a peer's address: the kernel would take no route by it.
        let ours: BTreeSet<LinkName> =
            observed.links.values().filter(|link| marked(link)).map(|link| link.name.clone()).collect();
        observed.addresses.retain(|address| ours.contains(&address.link));
        let fake = FakeNet::holding(observed);
        let host = model.me.underlay.addresses.iter();
        let host: Vec<Change> =
            host.map(|network| Change::AddAddress(Address { link: name("eth0"), network: *network })).collect();
        prop_assert!(fake.disturb(&host).is_empty());
        let changes = diff(&desired.kernel, &fake.state(), &desired.scope).changes;
        let refused: Vec<String> = fake.disturb(&changes).iter().map(|failure| failure.to_string()).collect();
        prop_assert_eq!(refused, Vec::<String>::new());
        let again = diff(&desired.kernel, &fake.state(), &desired.scope).changes;
        prop_assert_eq!(again, vec![], "nothing is left to do");
    }

    /// What carries no mark of ours is as it was.
    #[test]
    fn the_foreign_is_untouched(model in any_model(), observed in any_observed()) {
        let desired = plan(&model);
        let changes = diff(&desired.kernel, &observed, &desired.scope).changes;
        let after = applied(&observed, &changes);
        prop_assert_eq!(foreign(&after, &observed), foreign(&observed, &observed));
    }

    /// kill -9 after any change: the next start ends in the same place.
    #[test]
    fn half_a_batch_and_a_restart_end_in_the_same_place(
        model in any_model(), observed in any_observed(), cut in any::<Index>()
    ) {
        let desired = plan(&model);
        let changes = diff(&desired.kernel, &observed, &desired.scope).changes;
        let whole = applied(&observed, &changes);
        let half = applied(&observed, &changes[..cut.index(changes.len() + 1)]);
        let rest = diff(&desired.kernel, &half, &desired.scope).changes;
        prop_assert_eq!(applied(&half, &rest), whole);
    }

    /// A new plan over an old one, with nothing else in the kernel: no conflict, nothing left over.
    #[test]
    fn a_plan_replaces_another(old in any_model(), new in any_model()) {
        let (old, new) = (plan(&old), plan(&new));
        let scope = Scope { ranges: old.scope.ranges.iter().chain(&new.scope.ranges).copied().collect(), ..new.scope.clone() };
        let mut kernel = State::default();
        kernel.links.insert(name("eth0"), plain_link("eth0", 2));
        for desired in [&old, &new] {
            for tun in desired.kernel.links.values().filter(|link| link.kind == LinkKind::Tun) {
                kernel.links.entry(tun.name.clone()).or_insert_with(|| Link { alias: None, ..tun.clone() });
            }
            let diff = diff(&desired.kernel, &kernel, &scope);
            prop_assert_eq!(&diff.conflicts, &vec![]);
            kernel = applied(&kernel, &diff.changes);
        }
        kernel.links.remove(&name("eth0"));
        prop_assert_eq!(kernel, new.kernel);
    }
}

fn applied(state: &State, changes: &[Change]) -> State {
    let mut state = state.clone();
    for change in changes {
        believe::apply(&mut state, change);
    }
    state
}

/// The marks of ours, written anew from the conventions, so that a slip in [`Scope`] shows.
fn marked(link: &Link) -> bool {
    ["weft:blue:vxlan", "weft:blue:vxlan-v6", "weft:blue:udp"].contains(&link.alias.as_deref().unwrap_or(""))
}

/// What is not ours, and does not hang on a link of ours that was there at the start (with such a
/// link the kernel deletes whatever is on it).
fn foreign(state: &State, start: &State) -> State {
    let on_foreign = |link: &LinkName| start.links.get(link).is_some_and(|link| !marked(link));
    let mut state = state.clone();
    state.links.retain(|name, _| on_foreign(name));
    state.addresses.retain(|address| on_foreign(&address.link));
    state.neighbours.retain(|(link, _), _| on_foreign(link));
    state.fdb.retain(|entry| on_foreign(&entry.link));
    state.routes.retain(|_, route| {
        let pods_or_greens = |link: &LinkName| {
            let alias = start.links.get(link).and_then(|link| link.alias.as_deref()).unwrap_or("");
            alias.starts_with("weft:") && !start.links.get(link).is_some_and(marked)
        };
        let single = route.key.dst.prefix() == if route.key.dst.is_ipv4() { 32 } else { 128 };
        let not_planned = |link| route.protocol != ROUTE_PROTOCOL || single || pods_or_greens(link);
        let foreign = |link| on_foreign(link) && not_planned(link);
        route.link.as_ref().is_some_and(foreign)
    });
    state
}

/// Every desired object is there as desired, unless its place is foreign or its TUN is not made;
/// and there is nothing of ours beside.
fn holds_what_it_should(desired: &Desired, after: &State, first: &Diff) -> Result<(), TestCaseError> {
    let blocked: BTreeSet<&LinkName> = first
        .conflicts
        .iter()
        .filter_map(|conflict| match conflict {
            Conflict::Name { name, .. } => Some(name),
            Conflict::Vni { wanted, .. } => Some(wanted),
            Conflict::Route { .. } | Conflict::Twin { .. } | Conflict::Opaque { .. } => None,
        })
        .chain(&first.awaited)
        .collect();
    let possible = |link: &LinkName| !blocked.contains(link);

    for (name, link) in desired.kernel.links.iter().filter(|(name, _)| possible(name)) {
        let held = after.links.get(name).map(|held| Link { index: 0, carrier: true, ..held.clone() });
        prop_assert_eq!(held.as_ref(), Some(link));
    }
    for (name, _) in after.links.iter().filter(|(_, link)| marked(link)) {
        prop_assert!(desired.kernel.links.contains_key(name), "{} is left over", name);
    }
    let ours = |link: &LinkName| after.links.get(link).is_some_and(marked);
    for address in desired.kernel.addresses.iter().filter(|address| possible(&address.link)) {
        prop_assert!(after.addresses.contains(address), "{} is missing", address);
    }
    for address in after.addresses.iter().filter(|address| ours(&address.link)) {
        let wanted = desired.kernel.addresses.contains(address) || address.network == net("fe80::1/64");
        prop_assert!(wanted, "{} is left over", address);
    }
    for (key, neighbour) in desired.kernel.neighbours.iter().filter(|((link, _), _)| possible(link)) {
        prop_assert_eq!(after.neighbours.get(key), Some(neighbour));
    }
    for (key, neighbour) in after.neighbours.iter().filter(|((link, _), held)| ours(link) && held.permanent) {
        prop_assert!(desired.kernel.neighbours.contains_key(key), "{} is left over", neighbour);
    }
    for entry in desired.kernel.fdb.iter().filter(|entry| possible(&entry.link)) {
        let held: Vec<_> =
            after.fdb.iter().filter(|held| (&held.link, held.mac) == (&entry.link, entry.mac)).collect();
        prop_assert_eq!(held, vec![entry]);
    }
    for entry in after.fdb.iter().filter(|entry| ours(&entry.link) && entry.permanent) {
        prop_assert!(desired.kernel.fdb.contains(entry), "{} is left over", entry);
    }
    let in_the_way = |key: &RouteKey| {
        first
            .conflicts
            .iter()
            .any(|conflict| matches!(conflict, Conflict::Route { wanted, .. } if wanted.key == *key))
    };
    for (key, route) in &desired.kernel.routes {
        let on_possible = route.link.as_ref().is_none_or(possible);
        if on_possible && !in_the_way(key) {
            prop_assert_eq!(after.routes.get(key), Some(route));
        }
    }
    for route in after.routes.values().filter(|route| route.link.as_ref().is_some_and(ours)) {
        let wanted = desired.kernel.routes.contains_key(&route.key);
        prop_assert!(wanted || route.protocol != ROUTE_PROTOCOL, "{} is left over", route);
    }
    Ok(())
}
