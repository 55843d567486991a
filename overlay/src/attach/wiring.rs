//! What a pod's wire consists of, on the host and in the pod. Pure.
//!
//! The same description makes the wire ([`super::attach`]) and keeps it (the daemon's plan), so
//! that both always agree.

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use weft_kernel::net::{
    Address, BadLinkName, Change, Link, LinkKind, LinkName, LinkPatch, Route, RouteKey, RouteKind,
};

use super::records::Record;
use super::site::{GATEWAY_V4, GATEWAY_V6, Mode, Site};

/// Routes that weft makes carry this number (`/etc/iproute2/rt_protos` leaves it free).
pub const ROUTE_PROTOCOL: u8 = 87;
/// The main routing table (RT_TABLE_MAIN).
const MAIN: u32 = 254;
/// The metric the kernel gives an IPv6 route without one (IP6_RT_PRIO_USER).
const METRIC_V6: u32 = 1024;

/// The host's side of one pod's wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSide {
    /// The host's end of the pair.
    pub link: Link,
    /// Addresses on it.
    pub addresses: Vec<Address>,
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
        mac: None,
        mtu: site.mtu,
        up: true,
        carrier: true,
        alias: Some(alias(&site.network, &record.id)),
        master,
    };
    let mut addresses = Vec::new();
    let mut routes = Vec::new();
    if routed {
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
    Ok(HostSide { link, addresses, routes })
}

/// The steps that make a pod's wire in the host's namespace.
///
/// # Errors
/// When a name is no link name.
pub fn host_changes(site: &Site, record: &Record, netns: &Path) -> Result<Vec<Change>, BadLinkName> {
    let HostSide { link, addresses, routes } = host_side(site, record)?;
    let peer = Link {
        name: record.ifname.parse()?,
        index: 0,
        kind: LinkKind::Veth,
        mac: None,
        mtu: site.mtu,
        up: true,
        carrier: true,
        alias: None,
        master: None,
    };
    let pair = Change::AddVethPair { host: link, peer, peer_netns: Some(netns.to_owned()) };
    let addresses = addresses.into_iter().map(Change::AddAddress);
    let routes = routes.into_iter().map(Change::ReplaceRoute);
    Ok([pair].into_iter().chain(addresses).chain(routes).collect())
}

/// The steps that finish the wire inside the pod.
///
/// # Errors
/// When the interface's name is no link name.
pub fn pod_changes(site: &Site, record: &Record) -> Result<Vec<Change>, BadLinkName> {
    let link: LinkName = record.ifname.parse()?;
    let up = |name: LinkName| Change::SetLink(name, LinkPatch { up: Some(true), ..LinkPatch::default() });
    let mut changes = vec![up("lo".parse()?), up(link.clone())];
    for addr in &record.addresses {
        let Some(network) = site.pod_network(*addr) else { continue };
        changes.push(Change::AddAddress(Address { link: link.clone(), network }));
    }
    for addr in &record.addresses {
        let Some(gateway) = site.gateway(*addr) else { continue };
        let everything = if addr.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let dst: IpNetwork = everything.parse().expect("a literal network");
        changes.push(Change::ReplaceRoute(Route {
            via: Some(gateway),
            // The gateway of a routed pod is in none of its networks.
            onlink: site.mode == Mode::Routed && addr.is_ipv4(),
            ..on_link(dst, &link)
        }));
    }
    Ok(changes)
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
        }
    }

    fn lines(changes: &[Change]) -> Vec<String> {
        changes.iter().map(Change::to_string).collect()
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
                format!("replace route 10.42.7.9/32 dev {link} proto 87"),
                format!("replace route fd00:0:0:7::9/128 dev {link} metric 1024 proto 87"),
            ]
        );
        assert_eq!(
            lines(&pod_changes(&site, &record).unwrap()),
            [
                "set link lo up",
                "set link eth0 up",
                "add address 10.42.7.9/32 dev eth0",
                "add address fd00:0:0:7::9/128 dev eth0",
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
        assert_eq!(
            lines(&pod_changes(&site, &record).unwrap()),
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
