//! What a pod's wire consists of, on the host and in the pod. Pure.
//!
//! The same description makes the wire ([`super::attach`]) and keeps it (the daemon's plan), so
//! that both always agree.
//!
//! A routed pod's wire needs no ARP and no neighbour discovery: both ends' Ethernet addresses follow
//! from the record, and each side holds the other's for good. A request that is lost while a link
//! comes back would cost a second, the pause before the next (RETRANS_TIMER, RFC 4861 10).

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use weft_kernel::net::{
    Address, BadLinkName, Change, Link, LinkKind, LinkName, LinkPatch, Mac, Neighbour, Route, RouteKey,
    RouteKind, State,
};

use super::records::Record;
use super::site::{GATEWAY_V4, GATEWAY_V6, Mode, Site};

/// Routes that weft makes carry this number (`/etc/iproute2/rt_protos` leaves it free).
pub const ROUTE_PROTOCOL: u8 = 87;
/// The main routing table (RT_TABLE_MAIN).
const MAIN: u32 = 254;
/// The metric the kernel gives an IPv6 route without one (IP6_RT_PRIO_USER).
const METRIC_V6: u32 = 1024;
/// The host's end of every routed wire: locally administered, `weft` in ASCII. There is nobody else
/// on a wire who could have the same.
const GATEWAY_MAC: Mac = Mac([0x02, b'w', b'e', b'f', b't', 0x01]);

/// The host's side of one pod's wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSide {
    /// The host's end of the pair.
    pub link: Link,
    /// Addresses on it.
    pub addresses: Vec<Address>,
    /// The pod's Ethernet address, by each of its addresses.
    pub neighbours: Vec<Neighbour>,
    /// How the host reaches the pod.
    pub routes: Vec<Route>,
}

/// The name of the host's end.
///
/// # Errors
/// Never for names built here; the kernel's rule is checked all the same.
pub fn host_link(id: &str, ifname: &str) -> Result<LinkName, BadLinkName> {
    format!("weft{}", super::link_suffix(id, ifname)).parse()
}

/// The alias of the host's end: says whose it is, and for whom.
pub fn alias(network: &str, id: &str) -> String {
    let short: String = id.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
    format!("weft:{network}:pod:{short}")
}

/// The Ethernet address of the pod's end: `0a:58` and the four bytes of its IPv4 address, as CNI's
/// plugins make it, or the last four of its IPv6 address. A pod that gets an address anew has the
/// same one again, so nobody's neighbour table is wrong.
pub fn pod_mac(record: &Record) -> Option<Mac> {
    let addr = record.addresses.iter().find(|addr| addr.is_ipv4()).or(record.addresses.first())?;
    let [a, b, c, d] = match addr {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
    };
    Some(Mac([0x0a, 0x58, a, b, c, d]))
}

/// The Ethernet address of the host's end.
pub fn host_mac(site: &Site, record: &Record) -> Mac {
    if site.mode == Mode::Routed {
        return GATEWAY_MAC;
    }
    // Every port of a bridge needs one of its own.
    let [a, b, c, d] = super::digest_of(&record.id, &record.ifname);
    Mac([0x02, 0x77, a, b, c, d])
}

/// What the host must hold for a pod.
///
/// # Errors
/// When the record's link is no link name: it was not written by us.
pub fn host_side(site: &Site, record: &Record) -> Result<HostSide, BadLinkName> {
    let name: LinkName = record.link.parse()?;
    let routed = site.mode == Mode::Routed;
    let master = if routed { None } else { site.bridge.as_deref().map(str::parse).transpose()? };
    let link = Link {
        name: name.clone(),
        index: 0,
        kind: LinkKind::Veth,
        mac: Some(host_mac(site, record)),
        mtu: site.mtu,
        up: true,
        carrier: true,
        alias: Some(alias(&site.network, &record.id)),
        master,
    };
    let mut addresses = Vec::new();
    let mut neighbours = Vec::new();
    let mut routes = Vec::new();
    if routed {
        neighbours.extend(pod_mac(record).iter().flat_map(|mac| {
            let name = &name;
            record.addresses.iter().map(move |addr| neighbour(name, *addr, *mac))
        }));
        for addr in &record.addresses {
            let (gateway, len) = match addr {
                IpAddr::V4(_) => (IpAddr::V4(GATEWAY_V4), 32),
                // A prefix of 64, as for every link-local address: the pod's own one is on the link.
                IpAddr::V6(_) => (IpAddr::V6(GATEWAY_V6), 64),
            };
            addresses
                .extend(IpNetwork::new(gateway, len).map(|network| Address { link: name.clone(), network }));
            routes.push(on_link(IpNetwork::from(*addr), &name));
        }
    }
    Ok(HostSide { link, addresses, neighbours, routes })
}

/// The steps that make a pod's wire in the host's namespace.
///
/// # Errors
/// When a name is no link name.
pub fn host_changes(site: &Site, record: &Record, netns: &Path) -> Result<Vec<Change>, BadLinkName> {
    let HostSide { link, addresses, neighbours, routes } = host_side(site, record)?;
    let peer = Link {
        name: record.ifname.parse()?,
        index: 0,
        kind: LinkKind::Veth,
        mac: pod_mac(record),
        mtu: site.mtu,
        up: true,
        carrier: true,
        alias: None,
        master: None,
    };
    let pair = Change::AddVethPair { host: link, peer, peer_netns: Some(netns.to_owned()) };
    let addresses = addresses.into_iter().map(Change::AddAddress);
    let neighbours = neighbours.into_iter().map(Change::ReplaceNeighbour);
    let routes = routes.into_iter().map(Change::ReplaceRoute);
    Ok([pair].into_iter().chain(addresses).chain(neighbours).chain(routes).collect())
}

/// The steps that finish the wire inside the pod.
///
/// # Errors
/// When the interface's name is no link name.
pub fn pod_changes(site: &Site, record: &Record, routes: &[Route]) -> Result<Vec<Change>, BadLinkName> {
    let link: LinkName = record.ifname.parse()?;
    let up = |name: LinkName| Change::SetLink(name, LinkPatch { up: Some(true), ..LinkPatch::default() });
    let mut changes = vec![up("lo".parse()?), up(link.clone())];
    for addr in &record.addresses {
        let Some(network) = site.pod_network(*addr) else { continue };
        changes.push(Change::AddAddress(Address { link: link.clone(), network }));
    }
    if site.mode == Mode::Routed {
        let gateways = record.addresses.iter().filter_map(|addr| site.gateway(*addr));
        changes
            .extend(gateways.map(|gateway| Change::ReplaceNeighbour(neighbour(&link, gateway, GATEWAY_MAC))));
    }
    changes.extend(routes.iter().cloned().map(Change::ReplaceRoute));
    Ok(changes)
}

/// What the pod sends over this wire, given what is in the pod already: everything, but beside
/// another network that had the default route first, only what is for pods.
///
/// # Errors
/// When the interface's name is no link name.
pub fn pod_routes(site: &Site, record: &Record, there: &State) -> Result<Vec<Route>, BadLinkName> {
    let link: LinkName = record.ifname.parse()?;
    let mut routes = Vec::new();
    for addr in &record.addresses {
        let Some(gateway) = site.gateway(*addr) else { continue };
        let everything: IpNetwork =
            if addr.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().expect("a literal network");
        let foreign = |key: &RouteKey| (key.table, key.dst) == (MAIN, everything);
        let has_default = there.opaque.iter().any(foreign)
            || there.routes.values().any(|route| foreign(&route.key) && route.link.as_ref() != Some(&link));
        let destinations = if has_default {
            site.networks.iter().filter(|net| net.is_ipv4() == addr.is_ipv4()).copied().collect()
        } else {
            vec![everything]
        };
        routes.extend(destinations.into_iter().map(|dst| Route {
            via: Some(gateway),
            // The gateway of a routed pod is in none of its networks.
            onlink: site.mode == Mode::Routed && addr.is_ipv4(),
            ..on_link(dst, &link)
        }));
    }
    Ok(routes)
}

fn neighbour(link: &LinkName, addr: IpAddr, mac: Mac) -> Neighbour {
    Neighbour { link: link.clone(), addr, mac, permanent: true }
}

fn on_link(dst: IpNetwork, link: &LinkName) -> Route {
    let metric = if dst.is_ipv4() { 0 } else { METRIC_V6 };
    Route {
        key: RouteKey { table: MAIN, dst, metric },
        kind: RouteKind::Unicast,
        protocol: ROUTE_PROTOCOL,
        via: None,
        link: Some(link.clone()),
        onlink: false,
        src: None,
        mtu: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(mode: Mode) -> Site {
        Site {
            network: "weft".into(),
            subnets: vec!["10.42.7.0/24".parse().unwrap(), "fd00:0:0:7::/64".parse().unwrap()],
            networks: vec!["10.42.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
            ranges: vec![],
            mtu: 1450,
            mode,
            bridge: (mode == Mode::Bridge).then(|| Site::bridge_name("weft").to_string()),
        }
    }

    fn record() -> Record {
        Record {
            id: "c1".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/c1".into(),
            link: host_link("c1", "eth0").unwrap().to_string(),
            addresses: vec!["10.42.7.9".parse().unwrap(), "fd00:0:0:7::9".parse().unwrap()],
            owner: None,
        }
    }

    #[test]
    fn a_pod_without_ipv4_is_told_by_the_end_of_its_address() {
        let mut record = record();
        record.addresses.remove(0);
        assert_eq!(pod_mac(&record).unwrap().to_string(), "0a:58:00:00:00:09");
        record.addresses.clear();
        assert_eq!(pod_mac(&record), None);
    }

    fn lines(changes: &[Change]) -> Vec<String> {
        changes.iter().map(Change::to_string).collect()
    }

    fn inside(site: &Site, record: &Record, there: &State) -> Vec<Change> {
        pod_changes(site, record, &pod_routes(site, record, there).unwrap()).unwrap()
    }

    #[test]
    fn a_default_route_of_another_network_stays() {
        let (site, record) = (site(Mode::Routed), record());
        let others = Route {
            via: Some("192.0.2.1".parse().unwrap()),
            ..on_link("0.0.0.0/0".parse().unwrap(), &"eth1".parse().unwrap())
        };
        let there = State { routes: [(others.key.clone(), others)].into(), ..State::default() };
        assert_eq!(
            lines(&inside(&site, &record, &there))[6..],
            [
                "replace route 10.42.0.0/16 via 169.254.1.1 dev eth0 onlink proto 87",
                "replace route ::/0 via fe80::1 dev eth0 metric 1024 proto 87",
            ]
        );
    }

    #[test]
    fn a_routed_pod() {
        let (site, record) = (site(Mode::Routed), record());
        let link = &record.link;
        assert_eq!(
            lines(&host_changes(&site, &record, &record.netns).unwrap()),
            [
                format!("add veth {link} peer eth0"),
                format!("add address 169.254.1.1/32 dev {link}"),
                format!("add address fe80::1/64 dev {link}"),
                format!("replace neighbour 10.42.7.9 lladdr 0a:58:0a:2a:07:09 dev {link}"),
                format!("replace neighbour fd00:0:0:7::9 lladdr 0a:58:0a:2a:07:09 dev {link}"),
                format!("replace route 10.42.7.9/32 dev {link} proto 87"),
                format!("replace route fd00:0:0:7::9/128 dev {link} metric 1024 proto 87"),
            ]
        );
        assert_eq!(
            lines(&inside(&site, &record, &State::default())),
            [
                "set link lo up",
                "set link eth0 up",
                "add address 10.42.7.9/32 dev eth0",
                "add address fd00:0:0:7::9/128 dev eth0",
                "replace neighbour 169.254.1.1 lladdr 02:77:65:66:74:01 dev eth0",
                "replace neighbour fe80::1 lladdr 02:77:65:66:74:01 dev eth0",
                "replace route 0.0.0.0/0 via 169.254.1.1 dev eth0 onlink proto 87",
                "replace route ::/0 via fe80::1 dev eth0 metric 1024 proto 87",
            ]
        );
    }

    #[test]
    fn a_pod_on_the_bridge() {
        let (site, record) = (site(Mode::Bridge), record());
        let link = &record.link;
        let host = host_changes(&site, &record, &record.netns).unwrap();
        assert_eq!(lines(&host), [format!("add veth {link} peer eth0")]);
        let Change::AddVethPair { host, .. } = &host[0] else { panic!("a pair") };
        assert_eq!(host.master, Some("weft-br".parse().unwrap()));
        assert_ne!(host.mac, Some(GATEWAY_MAC), "two ports of a bridge never have the same");
        assert_eq!(
            lines(&inside(&site, &record, &State::default())),
            [
                "set link lo up",
                "set link eth0 up",
                "add address 10.42.7.9/24 dev eth0",
                "add address fd00:0:0:7::9/64 dev eth0",
                "replace route 0.0.0.0/0 via 10.42.7.1 dev eth0 proto 87",
                "replace route ::/0 via fd00:0:0:7::1 dev eth0 metric 1024 proto 87",
            ]
        );
    }
}
