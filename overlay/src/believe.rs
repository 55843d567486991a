//! What a state becomes by a change or by a kernel's event: how a daemon keeps a true picture of
//! the kernel without listing everything again. Pure.
//!
//! The kernel does not report all that it does: IPv4 routes that go with a link or with its last
//! address vanish without an event. Those rules are written here.

use std::net::IpAddr;

use weft_kernel::net::{Address, Change, Event, FdbEntry, Link, LinkName, RouteKey, State};

/// What the kernel holds after a change that it accepted.
pub fn apply(state: &mut State, change: &Change) {
    match change {
        Change::AddLink(link) => set_link(state, link.clone()),
        Change::AddVethPair { host, peer, peer_netns } => {
            set_link(state, host.clone());
            if peer_netns.is_none() {
                set_link(state, peer.clone());
            }
        }
        Change::DeleteLink(name) => remove_link(state, name),
        Change::RenameLink { from, to } => rename(state, from, to),
        Change::SetLink(name, patch) => {
            let Some(link) = state.links.get(name) else { return };
            let mut link = link.clone();
            link.mac = patch.mac.or(link.mac);
            link.mtu = patch.mtu.unwrap_or(link.mtu);
            link.up = patch.up.unwrap_or(link.up);
            link.alias = patch.alias.clone().or(link.alias);
            link.master = patch.master.clone().or(link.master);
            set_link(state, link);
        }
        Change::AddAddress(address) => {
            state.addresses.insert(address.clone());
        }
        Change::DeleteAddress(address) => remove_address(state, address),
        Change::ReplaceRoute(route) => {
            state.routes.insert(route.key.clone(), route.clone());
        }
        Change::DeleteRoute(route) => {
            if state.routes.get(&route.key).is_some_and(|held| crate::diff::same_route(held, route)) {
                state.routes.remove(&route.key);
            }
        }
        Change::ReplaceNeighbour(neighbour) => {
            state.neighbours.insert((neighbour.link.clone(), neighbour.addr), neighbour.clone());
        }
        Change::DeleteNeighbour(neighbour) => {
            state.neighbours.remove(&(neighbour.link.clone(), neighbour.addr));
        }
        Change::ReplaceFdb(entry) => {
            state.fdb.retain(|held| !same_station(held, entry));
            state.fdb.insert(entry.clone());
        }
        Change::DeleteFdb(entry) => remove_fdb(state, entry),
    }
}

/// What the kernel holds when it says this. Some events leave a route's key in doubt: the kernel may
/// hold several routes under one key, and says only that one came or went. Then the key comes back,
/// and only a fresh list tells. [`Event::Lost`] leaves everything in doubt.
pub fn absorb(state: &mut State, event: &Event) -> Option<Doubt> {
    match event {
        Event::Link(link) => set_link(state, link.clone()),
        Event::LinkGone(name) => remove_link(state, name),
        Event::Address(address) => {
            state.addresses.insert(address.clone());
        }
        Event::AddressGone(address) => remove_address(state, address),
        Event::Route(route) => {
            let before = state.routes.insert(route.key.clone(), route.clone());
            let other = before.is_some_and(|before| !crate::diff::same_route(&before, route));
            if other || state.twins.contains(&route.key) {
                return Some(Doubt::Route(route.key.clone()));
            }
        }
        Event::RouteGone(route) => {
            if state.twins.contains(&route.key) {
                return Some(Doubt::Route(route.key.clone()));
            }
            // What another route has replaced meanwhile is not what is gone.
            if state.routes.get(&route.key).is_some_and(|held| crate::diff::same_route(held, route)) {
                state.routes.remove(&route.key);
            }
        }
        Event::OtherRoute(key) => return Some(Doubt::Route(key.clone())),
        Event::Neighbour(neighbour) => {
            state.neighbours.insert((neighbour.link.clone(), neighbour.addr), neighbour.clone());
        }
        Event::NeighbourGone(link, addr) => {
            state.neighbours.remove(&(link.clone(), *addr));
        }
        Event::Fdb(entry) => {
            // The same entry may have been learned before and be permanent now.
            remove_fdb(state, entry);
            state.fdb.insert(entry.clone());
        }
        Event::FdbGone(entry) => remove_fdb(state, entry),
        Event::Lost => return Some(Doubt::Everything),
    }
    None
}

/// What an event left unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Which route holds this key.
    Route(RouteKey),
    /// All of it.
    Everything,
}

/// A link is new or different. An index that had another name was renamed.
fn set_link(state: &mut State, link: Link) {
    let renamed = (link.index != 0)
        .then(|| state.links.values().find(|held| held.index == link.index && held.name != link.name))
        .flatten()
        .map(|held| held.name.clone());
    if let Some(from) = renamed {
        rename(state, &from, &link.name);
    }
    let held = state.links.get(&link.name).map(|held| (held.index, held.up, held.mac));
    if let Some((index, up, mac)) = held {
        if index != 0 && link.index != 0 && index != link.index {
            // Deleted and made anew; the deletion's event was overtaken or lost.
            remove_link(state, &link.name);
        } else if up && !link.up {
            empty_link(state, &link.name, IpAddr::is_ipv6);
        } else if mac != link.mac {
            // `neigh_changeaddr` in net/core/neighbour.c: permanent neighbours go as well.
            state.neighbours.retain(|(on, _), _| *on != link.name);
        }
    }
    state.links.insert(link.name.clone(), link);
}

fn remove_link(state: &mut State, name: &LinkName) {
    state.links.remove(name);
    empty_link(state, name, |_| true);
    state.fdb.retain(|entry| entry.link != *name);
    for link in state.links.values_mut().filter(|link| link.master.as_ref() == Some(name)) {
        link.master = None;
    }
}

/// Routes and neighbours go when a link goes down, and IPv6 addresses; permanent FDB entries stay.
fn empty_link(state: &mut State, name: &LinkName, addresses: impl Fn(&IpAddr) -> bool) {
    state.addresses.retain(|address| address.link != *name || !addresses(&address.network.ip()));
    state.routes.retain(|_, route| route.link.as_ref() != Some(name));
    state.neighbours.retain(|(link, _), _| link != name);
}

/// With a link's last IPv4 address the kernel drops all its IPv4 routes (`fib_disable_ip` in
/// net/ipv4/fib_frontend.c), and says nothing of it.
fn remove_address(state: &mut State, address: &Address) {
    state.addresses.remove(address);
    let v4 = |network: &ipnetwork::IpNetwork| network.is_ipv4();
    let last = !state.addresses.iter().any(|other| other.link == address.link && v4(&other.network));
    if v4(&address.network) && last {
        state.routes.retain(|key, route| route.link.as_ref() != Some(&address.link) || !v4(&key.dst));
    }
}

fn remove_fdb(state: &mut State, entry: &FdbEntry) {
    for permanent in [false, true] {
        state.fdb.remove(&FdbEntry { permanent, ..entry.clone() });
    }
}

fn same_station(a: &FdbEntry, b: &FdbEntry) -> bool {
    (&a.link, a.mac) == (&b.link, b.mac)
}

/// Gives a link another name, with all that hangs on it.
pub fn rename(state: &mut State, from: &LinkName, to: &LinkName) {
    let Some(mut link) = state.links.remove(from) else { return };
    link.name = to.clone();
    state.links.insert(to.clone(), link);
    for link in state.links.values_mut().filter(|link| link.master.as_ref() == Some(from)) {
        link.master = Some(to.clone());
    }
    let moved = |name: &LinkName| if name == from { to.clone() } else { name.clone() };
    state.addresses = std::mem::take(&mut state.addresses)
        .into_iter()
        .map(|address| Address { link: moved(&address.link), ..address })
        .collect();
    state.neighbours = std::mem::take(&mut state.neighbours)
        .into_values()
        .map(|mut neighbour| {
            neighbour.link = moved(&neighbour.link);
            ((neighbour.link.clone(), neighbour.addr), neighbour)
        })
        .collect();
    state.fdb = std::mem::take(&mut state.fdb)
        .into_iter()
        .map(|entry| FdbEntry { link: moved(&entry.link), ..entry })
        .collect();
    for route in state.routes.values_mut() {
        route.link = route.link.as_ref().map(moved);
    }
}
