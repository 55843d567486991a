//! Sharing the subnet with other allocators, such as Docker's bridge. Pure.
//!
//! Whoever is on such a link takes all of the subnet for its neighbours and asks there for our pods'
//! addresses, so this host answers for them. For IPv4 `proxy_arp` is enough: the kernel answers for
//! whatever it reaches by another link. For IPv6 `proxy_ndp` only permits it, and every address takes
//! an entry of its own (net/ipv6/ndisc.c, `ndisc_recv_ns`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_kernel::net::{Change, LinkName, Proxy, State};

use super::records::Record;
use super::site::{Mode, Site};
use super::wiring::ROUTE_PROTOCOL;

/// Links of others that have one of our subnets, or a part of it, as their own.
pub fn links(subnets: &[IpNetwork], observed: &State) -> BTreeSet<LinkName> {
    let whole = |network: &IpNetwork| network.prefix() == if network.is_ipv4() { 32 } else { 128 };
    let shares = |network: &IpNetwork| subnets.iter().any(|subnet| subnet.contains(network.ip()));
    let foreign = |link: &LinkName| {
        let alias = observed.links.get(link).and_then(|link| link.alias.as_deref());
        !alias.is_some_and(|alias| alias.starts_with("weft:"))
    };
    let sharing =
        observed.addresses.iter().filter(|address| shares(&address.network) && !whole(&address.network));
    sharing.filter(|address| foreign(&address.link)).map(|address| address.link.clone()).collect()
}

/// What must change so that the sharing links answer for every pod's IPv6 address, and for no other.
/// Entries that others made stay.
pub fn answers(site: Option<&Site>, records: &[Record], observed: &State) -> Vec<Change> {
    let subnets = site.map(|site| site.subnets.as_slice()).unwrap_or_default();
    let is_ours = |addr: IpAddr| subnets.iter().any(|subnet| subnet.contains(addr));
    let pods: BTreeSet<_> = records.iter().flat_map(|record| &record.addresses).copied().collect();
    let sharing = match site {
        Some(site) if site.mode == Mode::Routed => links(&site.subnets, observed),
        _ => BTreeSet::new(),
    };
    let answered = pods.iter().filter(|addr| is_ours(**addr)).filter_map(|addr| match addr {
        IpAddr::V6(addr) => Some(*addr),
        IpAddr::V4(_) => None,
    });
    let answered: Vec<_> = answered.collect();
    let entry = |link: &LinkName, addr| Proxy { link: link.clone(), addr, protocol: ROUTE_PROTOCOL };
    let wanted: BTreeSet<Proxy> =
        sharing.iter().flat_map(|link| answered.iter().map(|addr| entry(link, *addr))).collect();
    let there = |wanted: &Proxy| {
        observed.proxies.iter().any(|held| (&held.link, held.addr) == (&wanted.link, wanted.addr))
    };
    let missing = wanted.iter().filter(|wanted| !there(wanted)).cloned().map(Change::AddProxy);
    // Another weft network of this host marks its entries so, too.
    let ours = |held: &&Proxy| {
        held.protocol == ROUTE_PROTOCOL && (is_ours(held.addr.into()) || pods.contains(&held.addr.into()))
    };
    let stale = observed.proxies.iter().filter(ours).filter(|held| !wanted.contains(*held));
    missing.chain(stale.cloned().map(Change::DeleteProxy)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::believe;
    use weft_kernel::net::{Address, Link, LinkKind};

    fn site() -> Site {
        Site {
            network: "weft".into(),
            subnets: vec!["10.42.7.0/24".parse().unwrap(), "fd42:0:0:7::/64".parse().unwrap()],
            networks: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
            ranges: vec![],
            mtu: 1450,
            mode: Mode::Routed,
            bridge: None,
        }
    }

    fn pod(addresses: &[&str]) -> Record {
        Record {
            id: "a".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            link: "wefta".into(),
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            owner: None,
        }
    }

    fn with(links: &[(&str, Option<&str>, &str)]) -> State {
        let mut state = State::default();
        for (name, alias, network) in links {
            let name: LinkName = name.parse().unwrap();
            let alias = alias.map(str::to_owned);
            state.links.insert(
                name.clone(),
                Link {
                    name: name.clone(),
                    index: 0,
                    kind: LinkKind::Bridge,
                    mac: None,
                    mtu: 1500,
                    up: true,
                    carrier: true,
                    alias,
                    master: None,
                },
            );
            state.addresses.insert(Address { link: name, network: network.parse().unwrap() });
        }
        state
    }

    #[test]
    fn links_with_a_part_of_the_subnet_share_it() {
        let table = [
            (("docker0", None, "10.42.7.1/24"), true),
            (("docker0", None, "10.42.7.129/25"), true),
            (("docker0", None, "fd42:0:0:7::1/64"), true),
            (("weft-br", Some("weft:weft:bridge"), "10.42.7.1/24"), false),
            (("docker0", None, "10.42.8.1/24"), false),
            (("docker0", None, "10.42.7.1/32"), false),
            (("eth0", None, "192.0.2.1/24"), false),
        ];
        for (link, expected) in table {
            assert_eq!(links(&site().subnets, &with(&[link])).len(), usize::from(expected), "{link:?}");
        }
    }

    #[test]
    fn each_pod_is_answered_for_and_nobody_else() {
        let mut state = with(&[("docker0", None, "fd42:0:0:7::1/64"), ("eth0", None, "192.0.2.1/24")]);
        let link: LinkName = "docker0".parse().unwrap();
        let entry =
            |addr: &str, protocol| Proxy { link: link.clone(), addr: addr.parse().unwrap(), protocol };
        let foreign = entry("fd42:0:0:7::99", 0);
        state.proxies = [foreign.clone(), entry("fd42:0:0:7::77", 87), entry("fd42:0:0:9::1", 87)].into();
        let pods = [pod(&["10.42.7.9", "fd42:0:0:7::9"]), pod(&["10.42.7.8", "fd42:0:0:7::8"])];
        for change in answers(Some(&site()), &pods, &state) {
            believe::apply(&mut state, &change);
        }
        let others = [foreign, entry("fd42:0:0:9::1", 87)];
        let ours = [entry("fd42:0:0:7::8", 87), entry("fd42:0:0:7::9", 87)];
        assert_eq!(state.proxies, others.iter().chain(&ours).cloned().collect());
        assert_eq!(answers(Some(&site()), &pods, &state), vec![]);
        // The subnet is lost, or pods' wires are on a bridge of their own.
        let bridge = Site { mode: Mode::Bridge, ..site() };
        for site in [None, Some(&bridge)] {
            let gone = ours.iter().cloned().map(Change::DeleteProxy).collect::<Vec<_>>();
            assert_eq!(answers(site, &pods, &state), gone);
        }
    }
}
