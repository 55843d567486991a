//! How a [`State`] follows [`Event`]s, with what the kernel does without saying so. Pure.

use std::net::IpAddr;

use Absorbed::{Followed, ObserveAgain};

use super::{Address, Event, FdbEntry, Link, LinkKind, LinkName, Route, State};

/// What came of taking an event in.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absorbed {
    /// The state is again what the kernel holds, as far as events so far tell.
    Followed,
    /// The event leaves open what the kernel holds now: only [`super::Net::observe`] tells.
    ObserveAgain,
}

/// RT_TABLE_LOCAL (include/uapi/linux/rtnetlink.h).
const LOCAL_TABLE: u32 = 255;

impl State {
    /// Takes an event in. Events may come twice, or be older than this state (subscribed first, then
    /// observed): taking in all of them, in order, leads to the same end.
    ///
    /// The kernel drops some things without an event of their own; they are dropped here too:
    /// - a link that goes down, or loses its last IPv4 address, loses its IPv4 routes
    ///   (net/ipv4/fib_frontend.c, `fib_disable_ip`; `fib_table_flush` tells nobody);
    /// - a link that goes down loses what it answers for others (net/core/neighbour.c, `pneigh_ifdown`);
    /// - a link that is deleted takes everything with it.
    ///
    /// One change it keeps to itself: another alias for a link that is down. The next event of that link
    /// tells.
    ///
    /// Where it is not clear what is left, the answer is [`ObserveAgain`]: several routes under one
    /// key; a route that is not modelled; an address that goes while routes name it as their source (IPv4 drops them, IPv6 drops
    /// only the mention).
    pub fn absorb(&mut self, event: &Event) -> Absorbed {
        match event {
            Event::Link(link) => self.absorb_link(link),
            Event::LinkGone(name) => self.absorb_link_gone(name),
            Event::Address(address) => {
                self.addresses.insert(address.clone());
                Followed
            }
            Event::AddressGone(address) => self.absorb_address_gone(address),
            Event::Route(route) => self.absorb_route(route),
            Event::RouteGone(route) => match self.routes.get(&route.key) {
                None => Followed,
                Some(held) if held == route && !self.twins.contains(&route.key) => {
                    self.routes.remove(&route.key);
                    Followed
                }
                Some(_) => ObserveAgain,
            },
            // The kernel's own table changes with every address, and nothing of it is held.
            Event::OtherRoute(key) if key.table == LOCAL_TABLE => Followed,
            Event::OtherRoute(_) => ObserveAgain,
            Event::Neighbour(neighbour) => {
                let key = (neighbour.link.clone(), neighbour.addr);
                self.neighbours.insert(key, neighbour.clone());
                Followed
            }
            Event::NeighbourGone(link, addr) => {
                self.neighbours.remove(&(link.clone(), *addr));
                Followed
            }
            Event::Fdb(entry) => {
                self.forget_fdb(entry);
                self.fdb.insert(entry.clone());
                Followed
            }
            Event::FdbGone(entry) => {
                self.forget_fdb(entry);
                Followed
            }
            Event::Lost => ObserveAgain,
        }
    }

    fn absorb_link(&mut self, link: &Link) -> Absorbed {
        let former = self.links.values().find(|held| held.index == link.index).map(|held| held.name.clone());
        if let Some(former) = former.filter(|former| *former != link.name) {
            self.rename(&former, &link.name);
        }
        let before = self.links.insert(link.name.clone(), link.clone());
        if before.is_some_and(|before| before.up && !link.up) {
            self.drop_ipv4_routes(&link.name);
            self.proxies.retain(|proxy| proxy.link != link.name);
            return self.followed_if_plain();
        }
        Followed
    }

    fn absorb_link_gone(&mut self, name: &LinkName) -> Absorbed {
        let addresses: Vec<Address> =
            self.addresses.iter().filter(|address| address.link == *name).cloned().collect();
        self.links.remove(name);
        self.addresses.retain(|address| address.link != *name);
        self.passing.retain(|address, _| address.link != *name);
        self.routes.retain(|_, route| route.link.as_ref() != Some(name));
        self.neighbours.retain(|(link, _), _| link != name);
        self.proxies.retain(|proxy| proxy.link != *name);
        self.fdb.retain(|entry| entry.link != *name);
        let sources = addresses.iter().any(|address| self.is_source(address.network.ip()));
        if sources { ObserveAgain } else { self.followed_if_plain() }
    }

    fn absorb_address_gone(&mut self, address: &Address) -> Absorbed {
        let ip = address.network.ip();
        let was_there = self.addresses.remove(address);
        self.passing.remove(address);
        let others = || self.addresses.iter().filter(|other| other.link == address.link);
        if was_there && ip.is_ipv4() && !others().any(|other| other.network.is_ipv4()) {
            self.drop_ipv4_routes(&address.link);
            if self.followed_if_plain() == ObserveAgain {
                return ObserveAgain;
            }
        }
        if self.is_source(ip) { ObserveAgain } else { Followed }
    }

    fn absorb_route(&mut self, route: &Route) -> Absorbed {
        match self.routes.get(&route.key) {
            // Overwritten, or a second one beside it: the event does not tell.
            Some(held) if held != route => ObserveAgain,
            Some(_) => Followed,
            None => {
                self.routes.insert(route.key.clone(), route.clone());
                Followed
            }
        }
    }

    fn drop_ipv4_routes(&mut self, link: &LinkName) {
        self.routes.retain(|key, route| key.dst.is_ipv6() || route.link.as_ref() != Some(link));
    }

    /// A route under a shared key, or one that is not modelled, may have gone along.
    fn followed_if_plain(&self) -> Absorbed {
        if self.twins.is_empty() && self.opaque.is_empty() { Followed } else { ObserveAgain }
    }

    fn is_source(&self, ip: IpAddr) -> bool {
        self.routes.values().any(|route| route.src == Some(ip))
    }

    /// Takes out what an entry (or its end) replaces: a unicast MAC has one destination.
    fn forget_fdb(&mut self, entry: &FdbEntry) {
        let first = FdbEntry { dst: IpAddr::from([0u8; 4]), permanent: false, ..entry.clone() };
        let same = |held: &&FdbEntry| held.link == entry.link && held.mac == entry.mac;
        let one_of_many = entry.mac.has_many_destinations();
        let gone: Vec<FdbEntry> = self
            .fdb
            .range(first..)
            .take_while(same)
            .filter(|held| !one_of_many || held.dst == entry.dst)
            .cloned()
            .collect();
        for held in gone {
            self.fdb.remove(&held);
        }
    }

    /// Gives a link another name, with all that hangs on it.
    pub fn rename(&mut self, from: &LinkName, to: &LinkName) {
        let renamed = |name: &mut LinkName| {
            if name == from {
                *name = to.clone();
            }
        };
        if let Some(link) = self.links.remove(from) {
            self.links.insert(to.clone(), Link { name: to.clone(), ..link });
        }
        for link in self.links.values_mut() {
            link.master.iter_mut().for_each(renamed);
            if let LinkKind::Vxlan(vxlan) = &mut link.kind {
                vxlan.underlay.iter_mut().for_each(renamed);
            }
        }
        for route in self.routes.values_mut() {
            route.link.iter_mut().for_each(renamed);
        }
        self.addresses = std::mem::take(&mut self.addresses)
            .into_iter()
            .map(|mut address| {
                renamed(&mut address.link);
                address
            })
            .collect();
        self.passing = std::mem::take(&mut self.passing)
            .into_iter()
            .map(|(mut address, passing)| {
                renamed(&mut address.link);
                (address, passing)
            })
            .collect();
        self.neighbours = std::mem::take(&mut self.neighbours)
            .into_values()
            .map(|mut neighbour| {
                renamed(&mut neighbour.link);
                ((neighbour.link.clone(), neighbour.addr), neighbour)
            })
            .collect();
        self.proxies = std::mem::take(&mut self.proxies)
            .into_iter()
            .map(|mut proxy| {
                renamed(&mut proxy.link);
                proxy
            })
            .collect();
        self.fdb = std::mem::take(&mut self.fdb)
            .into_iter()
            .map(|mut entry| {
                renamed(&mut entry.link);
                entry
            })
            .collect();
    }
}
