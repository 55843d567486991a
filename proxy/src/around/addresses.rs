//! Which addresses a host has and is known by, out of all that its kernel lists. Pure.

use std::net::IpAddr;

use weft_kernel::net::{Address, Link, LinkName, Passing, Route, RouteKind, State};

use crate::host::Observed;
use crate::model::{Family, family_of};

/// RT_TABLE_MAIN (include/uapi/linux/rtnetlink.h).
pub(crate) const MAIN_TABLE: u32 = 254;

/// What the kernel says of a host, as far as services care.
pub fn observed(state: &State) -> Observed {
    let addresses = state.addresses.iter().map(|address| address.network.ip());
    Observed {
        addresses: addresses.filter(|address| !address.is_loopback()).collect(),
        primary: Family::ALL.into_iter().filter_map(|family| Some(primary(state, family)?.1)).collect(),
    }
}

/// The address that others reach the host at, with its link: that of the default route or, without
/// one, that of the link which looks most like one to other hosts.
pub(super) fn primary(state: &State, family: Family) -> Option<(&LinkName, IpAddr)> {
    let by_default = default_route(state, family).and_then(|route| {
        let link = route.link.as_ref()?;
        let src = route.src.filter(|src| state.addresses.iter().any(|address| address.network.ip() == *src));
        Some((link, src.or_else(|| best(state, link, family))?))
    });
    by_default.or_else(|| {
        let mut links: Vec<&Link> = state.links.values().filter(|link| link.up).collect();
        links.sort_by_key(|link| (is_made_up(link), !link.carrier, link.index));
        links.into_iter().find_map(|link| Some((&link.name, best(state, &link.name, family)?)))
    })
}

/// The default route that counts: in the main table, with the least metric.
fn default_route(state: &State, family: Family) -> Option<&Route> {
    let defaults = state.routes.values().filter(|route| {
        let key = &route.key;
        let everywhere = key.dst.prefix() == 0 && family_of(key.dst.ip()) == family;
        everywhere && key.table == MAIN_TABLE && route.kind == RouteKind::Unicast
    });
    defaults.min_by_key(|route| route.key.metric)
}

/// The link's address that is worth telling: one that stays before one that passes.
fn best(state: &State, link: &LinkName, family: Family) -> Option<IpAddr> {
    let of_link = state.addresses.iter().filter(|address| address.link == *link);
    let global = of_link.filter(|it| family_of(it.network.ip()) == family && is_global(it.network.ip()));
    let passing = |address: &Address| {
        let Passing { dynamic, temporary, deprecated } =
            state.passing.get(address).copied().unwrap_or_default();
        (deprecated, temporary, dynamic)
    };
    global.min_by_key(|address| passing(address)).map(|address| address.network.ip())
}

/// Whether it is an address that others may know.
pub(crate) fn is_global(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !link_local && !address.is_loopback()
}

/// A link that is inside of this host, or goes over another one: loopback, bridges, tunnels, pods' ends.
fn is_made_up(link: &Link) -> bool {
    use weft_kernel::net::LinkKind::{Bridge, Tun, Vxlan};
    let ours = link.alias.as_ref().is_some_and(|alias| alias.starts_with("weft:"));
    ours || link.name.as_str() == "lo" || matches!(link.kind, Bridge | Tun | Vxlan(_))
}

#[cfg(test)]
pub(crate) mod tests {
    use weft_kernel::net::{LinkKind, RouteKey};

    use super::*;

    /// A host with these addresses (`eth0 192.0.2.1/24`); its links are what their names say, and their
    /// numbers are in the order of their first mention.
    pub(crate) fn host(addresses: &[&str]) -> State {
        let mut state = State::default();
        for text in addresses {
            let (link, network) = text.split_once(' ').unwrap();
            let name: LinkName = link.parse().unwrap();
            let index = u32::try_from(state.links.len()).unwrap() + 1;
            state.links.entry(name.clone()).or_insert_with(|| Link {
                name: name.clone(),
                index,
                kind: if link.starts_with("br") { LinkKind::Bridge } else { LinkKind::Veth },
                mac: None,
                mtu: 1500,
                up: true,
                carrier: true,
                alias: None,
                master: None,
            });
            state.addresses.insert(Address { link: name, network: network.parse().unwrap() });
        }
        state
    }

    /// A route of somebody's.
    pub(in crate::around) fn route(dst: &str, link: &str, metric: u32) -> Route {
        Route {
            key: RouteKey { table: MAIN_TABLE, dst: dst.parse().unwrap(), metric },
            kind: RouteKind::Unicast,
            protocol: 3,
            via: None,
            link: Some(link.parse().unwrap()),
            onlink: false,
            src: None,
            mtu: None,
        }
    }

    pub(in crate::around) fn with_route(mut state: State, route: Route) -> State {
        state.routes.insert(route.key.clone(), route);
        state
    }

    #[test]
    fn a_host_is_known_by_its_default_routes_address() {
        let plain =
            || host(&["lo 127.0.0.1/8", "br0 172.17.0.1/16", "eth0 192.0.2.1/24", "eth1 198.51.100.1/24"]);
        let source = |src: &str| Route { src: Some(src.parse().unwrap()), ..route("0.0.0.0/0", "eth1", 0) };
        let blackhole = Route { kind: RouteKind::Blackhole, link: None, ..route("0.0.0.0/0", "eth1", 0) };
        let down = {
            let mut state = plain();
            state.links.get_mut(&"eth0".parse::<LinkName>().unwrap()).unwrap().up = false;
            state
        };
        let table = [
            ("no default route: a link that leads to other hosts", plain(), Some("192.0.2.1")),
            ("that link is down", down, Some("198.51.100.1")),
            ("by eth1", with_route(plain(), route("0.0.0.0/0", "eth1", 0)), Some("198.51.100.1")),
            (
                "the least metric",
                with_route(
                    with_route(plain(), route("0.0.0.0/0", "eth1", 200)),
                    route("0.0.0.0/0", "eth0", 100),
                ),
                Some("192.0.2.1"),
            ),
            ("the route names its source", with_route(plain(), source("172.17.0.1")), Some("172.17.0.1")),
            ("which is none of ours", with_route(plain(), source("203.0.113.1")), Some("198.51.100.1")),
            ("a blackhole leads nowhere", with_route(plain(), blackhole), Some("192.0.2.1")),
            ("only a bridge", host(&["lo 127.0.0.1/8", "br0 172.17.0.1/16"]), Some("172.17.0.1")),
            ("link-local is not enough", host(&["lo 127.0.0.1/8", "eth0 169.254.1.1/16"]), None),
            ("nothing", State::default(), None),
        ];
        for (case, state, expected) in table {
            let expected: Option<IpAddr> = expected.map(|text| text.parse().unwrap());
            assert_eq!(primary(&state, Family::V4).map(|(_, address)| address), expected, "{case}");
        }
    }

    #[test]
    fn addresses_that_stay_are_told_before_those_that_pass() {
        let mut state = host(&["eth0 2001:db8::1/64", "eth0 2001:db8::2/64", "eth0 fe80::1/64"]);
        let first = |state: &State| primary(state, Family::V6).map(|(_, address)| address.to_string());
        assert_eq!(first(&state).as_deref(), Some("2001:db8::1"));
        let address = state.addresses.iter().next().unwrap().clone();
        state.passing.insert(address, Passing { temporary: true, ..Passing::default() });
        assert_eq!(first(&state).as_deref(), Some("2001:db8::2"));
    }

    #[test]
    fn every_address_but_loopback_counts() {
        let state = host(&[
            "lo 127.0.0.1/8",
            "lo ::1/128",
            "lo 203.0.113.1/32",
            "eth0 192.0.2.1/24",
            "eth0 fe80::1/64",
        ]);
        let Observed { addresses, primary } = observed(&state);
        let expected = ["192.0.2.1", "203.0.113.1", "fe80::1"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(addresses, expected.into());
        assert_eq!(primary, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }
}
