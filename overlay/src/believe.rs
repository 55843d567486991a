//! What a state becomes by a change that the kernel accepted: believed at once, before its events
//! ([`State::absorb`]) confirm it. Pure.

use std::net::IpAddr;

use weft_kernel::net::{Address, Change, FdbEntry, Link, LinkName, State};

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
        Change::RenameLink { from, to } => state.rename(from, to),
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
        Change::AddProxy(proxy) => {
            state.proxies.retain(|held| (&held.link, held.addr) != (&proxy.link, proxy.addr));
            state.proxies.insert(proxy.clone());
        }
        Change::DeleteProxy(proxy) => {
            state.proxies.retain(|held| (&held.link, held.addr) != (&proxy.link, proxy.addr));
        }
        Change::ReplaceFdb(entry) => {
            for other in of_station(state, entry) {
                state.fdb.remove(&other);
            }
            state.fdb.insert(entry.clone());
        }
        Change::DeleteFdb(entry) => {
            for other in of_station(state, entry).into_iter().filter(|other| other.dst == entry.dst) {
                state.fdb.remove(&other);
            }
        }
    }
}

/// A link is new or different.
fn set_link(state: &mut State, link: Link) {
    if let Some(held) = state.links.get(&link.name).cloned() {
        if held.up && !link.up {
            empty_link(state, &link.name, IpAddr::is_ipv6);
        } else if held.mac != link.mac {
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
    state.proxies.retain(|proxy| proxy.link != *name);
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

/// The entries for the same MAC on the same link. They stand together in the set.
fn of_station(state: &State, entry: &FdbEntry) -> Vec<FdbEntry> {
    let first = FdbEntry { dst: IpAddr::from([0; 4]), permanent: false, ..entry.clone() };
    let same = |held: &&FdbEntry| held.link == entry.link && held.mac == entry.mac;
    state.fdb.range(first..).take_while(same).cloned().collect()
}
