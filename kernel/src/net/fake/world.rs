//! The rules of the fake: what the kernel accepts, what follows from it, and what it tells.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::net::{
    Address, Change, Event, FdbEntry, Link, LinkKind, LinkName, LinkPatch, Mac, Neighbour, Proxy, Route,
    RouteKey, RouteKind, State,
};

/// RTPROT_KERNEL (include/uapi/linux/rtnetlink.h).
const KERNEL: u8 = 2;
/// RT_TABLE_MAIN.
const MAIN: u32 = 254;
/// What an IPv6 route without a metric gets (IP6_RT_PRIO_USER), and one to an address's prefix
/// (IP6_RT_PRIO_ADDRCONF, include/net/ip6_fib.h).
const METRIC_V6: u32 = 1024;
const METRIC_V6_PREFIX: u32 = 256;

pub(super) struct World {
    pub(super) state: State,
    /// What listeners shall hear.
    pub(super) told: Vec<Event>,
    /// The other ends of veth pairs that are both here.
    peers: BTreeMap<LinkName, LinkName>,
    /// Those whose other end is in another namespace, and up.
    far_up: Vec<LinkName>,
    last_index: u32,
}

/// Why a change is refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) errno: Errno,
    pub(super) said: Option<&'static str>,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, said: None }
    }
}

fn refused<T>(errno: Errno, said: &'static str) -> Result<T, Refused> {
    Err(Refused { errno, said: Some(said) })
}

impl Default for World {
    fn default() -> Self {
        let mut world = Self {
            state: State::default(),
            told: vec![],
            peers: BTreeMap::new(),
            far_up: vec![],
            last_index: 0,
        };
        if let Ok(name) = "lo".parse::<LinkName>() {
            let kind = LinkKind::Other(String::new());
            let mac = Some(Mac([0; 6]));
            world.insert_link(&Link {
                name: name.clone(),
                index: 0,
                kind,
                mac,
                mtu: 65_536,
                up: true,
                carrier: true,
                alias: None,
                master: None,
            });
            world.settle_carriers();
            // What the kernel gives a loopback link that comes up.
            for own in ["127.0.0.1/8", "::1/128"].iter().filter_map(|own| own.parse::<IpNetwork>().ok()) {
                world.state.addresses.insert(Address { link: name.clone(), network: own });
            }
        }
        world.told.clear();
        world
    }
}

impl World {
    /// Makes one change, whole or not at all.
    pub(super) fn change(&mut self, change: &Change) -> Result<(), Refused> {
        match change {
            Change::AddLink(link) => self.add_link(link),
            Change::AddVethPair { host, peer, peer_netns } => self.add_pair(host, peer, peer_netns.is_some()),
            Change::DeleteLink(name) => {
                self.delete_link(name);
                Ok(())
            }
            Change::RenameLink { from, to } => self.rename(from, to),
            Change::SetLink(name, patch) => self.set_link(name, patch),
            Change::AddAddress(address) => self.add_address(address),
            Change::DeleteAddress(address) => {
                self.delete_address(address);
                Ok(())
            }
            Change::ReplaceRoute(route) => self.replace_route(route),
            Change::DeleteRoute(route) => {
                self.delete_route(route);
                Ok(())
            }
            Change::ReplaceNeighbour(neighbour) => self.replace_neighbour(neighbour),
            Change::DeleteNeighbour(neighbour) => {
                self.drop_neighbours(|held| held.link == neighbour.link && held.addr == neighbour.addr);
                Ok(())
            }
            Change::AddProxy(proxy) => self.add_proxy(proxy),
            Change::DeleteProxy(proxy) => {
                self.drop_proxies(|held| (&held.link, held.addr) == (&proxy.link, proxy.addr));
                Ok(())
            }
            Change::ReplaceFdb(entry) => self.replace_fdb(entry),
            Change::DeleteFdb(entry) => {
                self.drop_fdb(|held| (&held.link, held.mac, held.dst) == (&entry.link, entry.mac, entry.dst));
                Ok(())
            }
        }
    }

    fn link(&self, name: &LinkName) -> Result<&Link, Refused> {
        self.state.links.get(name).ok_or(Errno::ENODEV.into())
    }

    fn add_link(&mut self, link: &Link) -> Result<(), Refused> {
        if let Some(master) = &link.master {
            self.link(master)?;
        }
        let LinkKind::Vxlan(wanted) = &link.kind else {
            if link.kind != LinkKind::Bridge {
                return Err(Errno::EINVAL.into());
            }
            return self.add_checked(link);
        };
        if let Some(underlay) = &wanted.underlay {
            self.link(underlay)?;
        }
        // One link for a VNI and port in each outer family (drivers/net/vxlan/vxlan_core.c,
        // `vxlan_vni_in_use`).
        let is_v6 = |local: Option<IpAddr>| local.is_some_and(|local| local.is_ipv6());
        let taken = self.state.links.values().any(|held| match &held.kind {
            LinkKind::Vxlan(held) => {
                (held.vni, held.port, is_v6(held.local)) == (wanted.vni, wanted.port, is_v6(wanted.local))
            }
            _ => false,
        });
        if taken && !self.state.links.contains_key(&link.name) {
            return refused(Errno::EEXIST, "A VXLAN device with the specified VNI already exists");
        }
        if !self.fits_underlay(link) && !self.state.links.contains_key(&link.name) {
            return Err(Errno::EINVAL.into());
        }
        self.add_checked(link)
    }

    /// A tunnel's packets fit its underlay (drivers/net/vxlan/vxlan_core.c, `vxlan_change_mtu`).
    fn fits_underlay(&self, link: &Link) -> bool {
        let LinkKind::Vxlan(vxlan) = &link.kind else { return true };
        let Some(underlay) = vxlan.underlay.as_ref().and_then(|name| self.state.links.get(name)) else {
            return true;
        };
        // Outer Ethernet is not counted; outer IP, UDP, VXLAN and inner Ethernet are (RFC 7348).
        let headers = if vxlan.local.is_some_and(|local| local.is_ipv6()) { 70 } else { 50 };
        link.mtu + headers <= underlay.mtu
    }

    fn add_checked(&mut self, link: &Link) -> Result<(), Refused> {
        match self.state.links.get(&link.name) {
            Some(there) if there.is_as_wanted(link) => Ok(()),
            Some(_) => Err(Errno::EEXIST.into()),
            None => {
                self.insert_link(link);
                self.settle_carriers();
                Ok(())
            }
        }
    }

    fn add_pair(&mut self, host: &Link, peer: &Link, elsewhere: bool) -> Result<(), Refused> {
        if let Some(master) = &host.master {
            self.link(master)?;
        }
        let as_wanted =
            |wanted: &Link| self.state.links.get(&wanted.name).map(|there| there.is_as_wanted(wanted));
        match (as_wanted(host), as_wanted(peer).filter(|_| !elsewhere)) {
            (None, None) => {}
            (Some(true), Some(true)) => return Ok(()),
            (Some(true), None) if elsewhere => return Ok(()),
            _ => return Err(Errno::EEXIST.into()),
        }
        if elsewhere {
            if peer.up {
                self.far_up.push(host.name.clone());
            }
        } else {
            self.insert_link(peer);
            self.peers.insert(host.name.clone(), peer.name.clone());
            self.peers.insert(peer.name.clone(), host.name.clone());
        }
        self.insert_link(host);
        self.settle_carriers();
        Ok(())
    }

    fn insert_link(&mut self, wanted: &Link) {
        self.last_index += 1;
        let [_, a, b, c] = self.last_index.to_be_bytes();
        let default_mtu = if matches!(wanted.kind, LinkKind::Vxlan(_)) { 1450 } else { 1500 };
        let link = Link {
            index: self.last_index,
            mac: Some(wanted.mac.unwrap_or(Mac([0x02, 0, 0, a, b, c]))),
            mtu: if wanted.mtu == 0 { default_mtu } else { wanted.mtu },
            carrier: false,
            ..wanted.clone()
        };
        self.tell_link(link);
    }

    fn tell_link(&mut self, link: Link) {
        self.told.push(Event::Link(link.clone()));
        self.state.links.insert(link.name.clone(), link);
    }

    /// Carriers follow from what is up: a veth's from its other end.
    fn settle_carriers(&mut self) {
        loop {
            let links = &self.state.links;
            let carrier = |link: &Link| match &link.kind {
                _ if !link.up => false,
                LinkKind::Veth => match self.peers.get(&link.name) {
                    Some(peer) => links.get(peer).is_some_and(|peer| peer.up),
                    None => self.far_up.contains(&link.name),
                },
                _ => true,
            };
            let Some(changed) = links.values().find(|link| link.carrier != carrier(link)).cloned() else {
                return;
            };
            self.tell_link(Link { carrier: !changed.carrier, ..changed });
        }
    }

    fn delete_link(&mut self, name: &LinkName) {
        let Some(link) = self.state.links.get(name).cloned() else { return };
        self.empty_link(&link.name, |_| true);
        self.drop_fdb(|held| held.link == link.name);
        self.state.links.remove(&link.name);
        self.told.push(Event::LinkGone(link.name.clone()));
        let ports: Vec<Link> =
            self.state.links.values().filter(|port| port.master.as_ref() == Some(name)).cloned().collect();
        for port in ports {
            self.tell_link(Link { master: None, ..port });
        }
        self.far_up.retain(|held| held != name);
        if let Some(peer) = self.peers.remove(name) {
            self.peers.remove(&peer);
            self.delete_link(&peer);
        }
        let on_it =
            |link: &&Link| matches!(&link.kind, LinkKind::Vxlan(v) if v.underlay.as_ref() == Some(name));
        let tunnels: Vec<LinkName> =
            self.state.links.values().filter(on_it).map(|link| link.name.clone()).collect();
        for tunnel in tunnels {
            self.delete_link(&tunnel);
        }
        self.settle_carriers();
    }

    /// What a link loses when it goes down: routes, neighbours and some addresses.
    fn empty_link(&mut self, name: &LinkName, addresses: impl Fn(IpAddr) -> bool) {
        self.drop_neighbours(|held| held.link == *name);
        self.drop_proxies(|held| held.link == *name);
        // IPv4 routes go without a word (net/ipv4/fib_trie.c, `fib_table_flush`).
        self.drop_routes(|route| route.link.as_ref() == Some(name));
        let gone: Vec<Address> = self
            .state
            .addresses
            .iter()
            .filter(|held| held.link == *name && addresses(held.network.ip()))
            .cloned()
            .collect();
        for address in gone {
            self.delete_address(&address);
        }
    }

    fn rename(&mut self, from: &LinkName, to: &LinkName) -> Result<(), Refused> {
        let link = self.link(from)?.clone();
        if from == to {
            return Ok(());
        }
        if self.state.links.contains_key(to) {
            return Err(Errno::EEXIST.into());
        }
        if let Some(peer) = self.peers.remove(from) {
            self.peers.insert(peer.clone(), to.clone());
            self.peers.insert(to.clone(), peer);
        }
        self.far_up.iter_mut().filter(|held| *held == from).for_each(|held| *held = to.clone());
        let event = Event::Link(Link { name: to.clone(), ..link });
        let _ = self.state.absorb(&event);
        self.told.push(event);
        Ok(())
    }

    fn set_link(&mut self, name: &LinkName, patch: &LinkPatch) -> Result<(), Refused> {
        let mut link = self.link(name)?.clone();
        if let Some(master) = &patch.master {
            let master = self.link(master)?;
            if master.kind != LinkKind::Bridge {
                return Err(Errno::EOPNOTSUPP.into());
            }
        }
        let before = link.clone();
        link.mac = patch.mac.or(link.mac);
        link.mtu = patch.mtu.unwrap_or(link.mtu);
        link.alias = patch.alias.clone().filter(|alias| !alias.is_empty()).or(link.alias);
        link.alias = link.alias.filter(|_| patch.alias.as_deref() != Some(""));
        link.master = patch.master.clone().or(link.master);
        link.up = patch.up.unwrap_or(link.up);
        if link.mtu != before.mtu && !self.fits_underlay(&link) {
            return Err(Errno::EINVAL.into());
        }
        if link != before {
            self.tell_link(link.clone());
        }
        if patch.mac.is_some() {
            // Permanent ones too, and even if it is the MAC it has (net/core/neighbour.c,
            // `neigh_changeaddr`).
            self.drop_neighbours(|held| held.link == *name);
        }
        if before.up && !link.up {
            self.empty_link(name, |ip| ip.is_ipv6());
        }
        if !before.up && link.up {
            let addresses: Vec<Address> =
                self.state.addresses.iter().filter(|held| held.link == *name).cloned().collect();
            for address in addresses {
                self.add_prefix_route(&address);
            }
        }
        self.settle_carriers();
        Ok(())
    }

    fn add_address(&mut self, address: &Address) -> Result<(), Refused> {
        self.link(&address.link)?;
        if self.state.addresses.contains(address) {
            return Ok(());
        }
        let ip = address.network.ip();
        let same = |held: &Address| held.link == address.link && held.network.ip() == ip;
        if ip.is_ipv6() && self.state.addresses.iter().any(same) {
            return refused(Errno::EEXIST, "address already assigned");
        }
        self.state.addresses.insert(address.clone());
        self.told.push(Event::Address(address.clone()));
        self.add_prefix_route(address);
        Ok(())
    }

    /// The kernel's own route to an address's subnet.
    fn add_prefix_route(&mut self, address: &Address) {
        let up = self.state.links.get(&address.link).is_some_and(|link| link.up);
        let Some(route) = prefix_route(address).filter(|_| up) else { return };
        if !self.state.routes.contains_key(&route.key) {
            self.insert_route(route);
        }
    }

    fn delete_address(&mut self, address: &Address) {
        if !self.state.addresses.remove(address) {
            return;
        }
        let ip = address.network.ip();
        self.told.push(Event::AddressGone(address.clone()));
        let on_link = |held: &&Address| held.link == address.link;
        let subnet = |held: &Address| IpNetwork::new(held.network.network(), held.network.prefix()).ok();
        let others: Vec<Address> = self.state.addresses.iter().filter(on_link).cloned().collect();
        if !others.iter().any(|held| subnet(held) == subnet(address))
            && let Some(route) = prefix_route(address)
            && self.state.routes.get(&route.key) == Some(&route)
        {
            self.state.routes.remove(&route.key);
            self.told.push(Event::RouteGone(route));
        }
        if ip.is_ipv4() && !others.iter().any(|held| held.network.is_ipv4()) {
            // IPv4 is over on this link (net/ipv4/fib_frontend.c, `fib_disable_ip`).
            self.drop_routes(|route| route.key.dst.is_ipv4() && route.link.as_ref() == Some(&address.link));
            self.drop_neighbours(|held| held.link == address.link && held.addr.is_ipv4());
        }
        if !self.is_local(ip) {
            // IPv4 drops the routes that name it as their source, IPv6 only the mention of it
            // (`fib_sync_down_addr`, `rt6_remove_prefsrc`); neither says so.
            self.state.routes.retain(|key, route| key.dst.is_ipv6() || route.src != Some(ip));
            for route in self.state.routes.values_mut().filter(|route| route.src == Some(ip)) {
                route.src = None;
            }
        }
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        self.state.addresses.iter().any(|held| held.network.ip() == ip)
    }

    fn replace_route(&mut self, route: &Route) -> Result<(), Refused> {
        let mut route = route.clone();
        let is_v6 = route.key.dst.is_ipv6();
        if is_v6 && route.key.metric == 0 {
            route.key.metric = METRIC_V6;
        }
        if route.kind != RouteKind::Unicast {
            route.link = None;
        }
        let link = route.link.as_ref().map(|name| self.link(name)).transpose()?;
        let down = link.is_some_and(|link| !link.up);
        // A next hop that is to be found is looked for first.
        if down && route.onlink {
            return Err(Errno::ENETDOWN.into());
        }
        if route.kind == RouteKind::Unicast {
            self.check_next_hop(&route)?;
        }
        if down {
            return Err(Errno::ENETDOWN.into());
        }
        if route.src.is_some_and(|src| !self.is_local(src)) {
            return refused(
                Errno::EINVAL,
                if is_v6 { "Invalid source address" } else { "Invalid prefsrc address" },
            );
        }
        self.insert_route(route);
        Ok(())
    }

    fn check_next_hop(&self, route: &Route) -> Result<(), Refused> {
        let is_v6 = route.key.dst.is_ipv6();
        let Some(via) = route.via else {
            return if route.link.is_some() { Ok(()) } else { Err(Errno::ENODEV.into()) };
        };
        if self.is_local(via) {
            return refused(Errno::EINVAL, "Nexthop has invalid gateway");
        }
        if route.onlink {
            return if route.link.is_some() { Ok(()) } else { Err(Errno::ENODEV.into()) };
        }
        // The way to the next hop: the longest prefix in the main table that holds it.
        let held =
            self.state.routes.values().filter(|held| held.key.table == MAIN && held.key.dst.contains(via));
        let way = held.max_by_key(|held| (held.key.dst.prefix(), std::cmp::Reverse(held.key.metric)));
        match way {
            None => Err(if is_v6 { Errno::EHOSTUNREACH } else { Errno::ENETUNREACH }.into()),
            Some(way) if way.kind != RouteKind::Unicast => {
                Err(if is_v6 { Errno::EHOSTUNREACH } else { Errno::EINVAL }.into())
            }
            Some(way) if way.via.is_some() || (route.link.is_some() && way.link != route.link) => {
                let errno = if is_v6 { Errno::EHOSTUNREACH } else { Errno::ENETUNREACH };
                refused(errno, "Nexthop has invalid gateway")
            }
            Some(_) => Ok(()),
        }
    }

    fn insert_route(&mut self, route: Route) {
        self.told.push(Event::Route(route.clone()));
        self.state.routes.insert(route.key.clone(), route);
    }

    fn delete_route(&mut self, route: &Route) {
        let key = RouteKey {
            metric: if route.key.dst.is_ipv6() && route.key.metric == 0 {
                METRIC_V6
            } else {
                route.key.metric
            },
            ..route.key.clone()
        };
        let matches = |held: &Route| {
            (held.kind, held.protocol, held.via, &held.link)
                == (route.kind, route.protocol, route.via, &route.link)
                && (route.src.is_none() || route.src == held.src)
        };
        if self.state.routes.get(&key).is_some_and(matches) {
            self.state.routes.remove(&key);
            self.told.push(Event::RouteGone(Route { key, ..route.clone() }));
        }
    }

    fn drop_routes(&mut self, which: impl Fn(&Route) -> bool) {
        let told = &mut self.told;
        self.state.routes.retain(|key, route| {
            let gone = which(route);
            if gone && key.dst.is_ipv6() {
                told.push(Event::RouteGone(route.clone()));
            }
            !gone
        });
    }

    fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Refused> {
        // A link that is down takes them too, until it next goes down.
        self.link(&neighbour.link)?;
        self.told.push(Event::Neighbour(neighbour.clone()));
        self.state.neighbours.insert((neighbour.link.clone(), neighbour.addr), neighbour.clone());
        Ok(())
    }

    fn drop_neighbours(&mut self, which: impl Fn(&Neighbour) -> bool) {
        let told = &mut self.told;
        self.state.neighbours.retain(|(link, addr), held| {
            let gone = which(held);
            if gone {
                told.push(Event::NeighbourGone(link.clone(), *addr));
            }
            !gone
        });
    }

    /// One entry for an address on a link; who made it last is said to have made it.
    fn add_proxy(&mut self, proxy: &Proxy) -> Result<(), Refused> {
        self.link(&proxy.link)?;
        self.drop_proxies(|held| (&held.link, held.addr) == (&proxy.link, proxy.addr));
        self.state.proxies.insert(proxy.clone());
        Ok(())
    }

    fn drop_proxies(&mut self, which: impl Fn(&Proxy) -> bool) {
        self.state.proxies.retain(|held| !which(held));
    }

    fn replace_fdb(&mut self, entry: &FdbEntry) -> Result<(), Refused> {
        match &self.link(&entry.link)?.kind {
            LinkKind::Vxlan(vxlan)
                if vxlan.local.is_some_and(|local| local.is_ipv4() != entry.dst.is_ipv4()) =>
            {
                return Err(Errno::EAFNOSUPPORT.into());
            }
            LinkKind::Vxlan(_) => {}
            _ => return Err(Errno::EOPNOTSUPP.into()),
        }
        let event = Event::Fdb(entry.clone());
        // "The one entry of this MAC": also where the kernel would keep several.
        self.drop_fdb(|held| held.link == entry.link && held.mac == entry.mac && held.dst != entry.dst);
        let _ = self.state.absorb(&event);
        self.told.push(event);
        Ok(())
    }

    fn drop_fdb(&mut self, which: impl Fn(&FdbEntry) -> bool) {
        let told = &mut self.told;
        self.state.fdb.retain(|held| {
            let gone = which(held);
            if gone {
                told.push(Event::FdbGone(held.clone()));
            }
            !gone
        });
    }
}

fn prefix_route(address: &Address) -> Option<Route> {
    let network = address.network;
    let (full, metric) = if network.is_ipv4() { (32, 0) } else { (128, METRIC_V6_PREFIX) };
    let dst =
        IpNetwork::new(network.network(), network.prefix()).ok().filter(|_| network.prefix() != full)?;
    Some(Route {
        key: RouteKey { table: MAIN, dst, metric },
        kind: RouteKind::Unicast,
        protocol: KERNEL,
        via: None,
        link: Some(address.link.clone()),
        onlink: false,
        src: network.is_ipv4().then(|| network.ip()),
        mtu: None,
    })
}
