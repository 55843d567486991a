//! Which link and which addresses lead to the other hosts: flannel's rules, over an observed state.
//!
//! The order is flannel's: `--iface` (each in turn), `--iface-regex` (each in turn, held against
//! addresses and then names), `--iface-can-reach`; with none of them given, the link that has
//! `--public-ip` or `--public-ipv6`; else that of the default route. Pure.
//!
//! flannel carries each family over itself, so its link must have both where pods have both. Between
//! weft hosts either carries the other ([`crossing`]): pods with IPv6 need no IPv6 between the hosts.

use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use weft_kernel::net::{Address, Link, LinkName, Passing, RouteKind, State};

use crate::model::{Family, Underlay};
use crate::options::{LinkPattern, LinkRef, UnderlayChoice};
use crate::plan::MAIN_TABLE;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted<'a> {
    /// `--iface`, `--iface-regex`, `--iface-can-reach`.
    pub choice: &'a UnderlayChoice,
    /// `--public-ip`.
    pub public_v4: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_v6: Option<Ipv6Addr>,
    /// The network has IPv4 (IPv6); the link then needs such an address.
    pub v4: bool,
    /// See `v4`.
    pub v6: bool,
    /// By which link, and with which source, the kernel would send to `--iface-can-reach`.
    pub reach: Option<(LinkName, Option<IpAddr>)>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The link.
    pub underlay: Underlay,
    /// The address other hosts reach us at: `--public-ip`, else the link's best.
    pub public_v4: Option<Ipv4Addr>,
    /// The same in IPv6.
    pub public_v6: Option<Ipv6Addr>,
}

/// Nothing fits. Every attempt is named, with what there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no link to the other hosts: {}; there are {candidates}", .tried.join("; "))]
pub struct NoUnderlay {
    /// One line per attempt: the flag, its value, why not.
    pub tried: Vec<String>,
    /// The links there are, with their addresses.
    pub candidates: String,
}

impl Chosen {
    /// It has an address of each family that is wanted.
    pub fn serves(&self, wanted: &Wanted<'_>) -> bool {
        (!wanted.v4 || self.public_v4.is_some()) && (!wanted.v6 || self.public_v6.is_some())
    }
}

/// Chooses as flannel does: an address of every family that pods have, on one link.
///
/// # Errors
/// When no link fits; the message names each flag and value that was tried, and the candidates.
pub fn choose(wanted: &Wanted<'_>, observed: &State) -> Result<Chosen, NoUnderlay> {
    let mut tried = Vec::new();
    for attempt in attempts(wanted) {
        match attempt.link(wanted, observed).and_then(|found| chosen(wanted, observed, found)) {
            Ok(chosen) => return Ok(chosen),
            Err(why) => tried.push(format!("{attempt}: {why}")),
        }
    }
    Err(NoUnderlay { tried, candidates: candidates(observed) })
}

/// Chooses where [`choose`] finds nothing: a link with one family, which then carries both. Of the
/// families that pods have, IPv4 first; then the other.
pub fn crossing(wanted: &Wanted<'_>, observed: &State) -> Option<Chosen> {
    let (v4, v6) =
        (Wanted { v6: false, v4: true, ..wanted.clone() }, Wanted { v4: false, v6: true, ..wanted.clone() });
    let order = if wanted.v4 { [v4, v6] } else { [v6, v4] };
    order.iter().find_map(|one| choose(one, observed).ok())
}

/// One way to find the link.
enum Attempt<'a> {
    Given(&'a LinkRef),
    Pattern(&'a LinkPattern),
    Reach(IpAddr),
    Public(&'static str, IpAddr),
    DefaultRoute,
}

impl fmt::Display for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(link) => write!(f, "--iface={link}"),
            Self::Pattern(pattern) => write!(f, "--iface-regex={pattern}"),
            Self::Reach(addr) => write!(f, "--iface-can-reach={addr}"),
            Self::Public(flag, addr) => write!(f, "--{flag}={addr}"),
            Self::DefaultRoute => f.write_str("default route"),
        }
    }
}

fn attempts<'a>(wanted: &Wanted<'a>) -> Vec<Attempt<'a>> {
    let UnderlayChoice { links, patterns, can_reach } = wanted.choice;
    let given = links.iter().map(Attempt::Given);
    let attempts: Vec<_> =
        given.chain(patterns.iter().map(Attempt::Pattern)).chain(can_reach.map(Attempt::Reach)).collect();
    if !attempts.is_empty() {
        return attempts;
    }
    let v4 = wanted.public_v4.filter(|_| wanted.v4).map(|addr| Attempt::Public("public-ip", addr.into()));
    let v6 = wanted.public_v6.filter(|_| wanted.v6).map(|addr| Attempt::Public("public-ipv6", addr.into()));
    vec![v4.or(v6).unwrap_or(Attempt::DefaultRoute)]
}

/// A link, and its addresses where the attempt says which.
struct Found<'a> {
    link: &'a Link,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl<'a> Found<'a> {
    fn at(link: &'a Link, addr: Option<IpAddr>) -> Self {
        let of = |family| addr.filter(|addr| Family::of(*addr) == family);
        Self { link, v4: of(Family::V4), v6: of(Family::V6) }
    }
}

impl Attempt<'_> {
    fn link<'s>(&self, wanted: &Wanted<'_>, observed: &'s State) -> Result<Found<'s>, String> {
        match self {
            Self::Given(LinkRef::Name(name)) => observed
                .links
                .get(name)
                .map(|link| Found::at(link, None))
                .ok_or("there is no such link".into()),
            Self::Given(LinkRef::Address(addr)) => holder(observed, *addr),
            Self::Public(_, addr) => holder(observed, *addr)
                .map_err(|why| format!("{why}; if it is a router's (NAT), name the link with --iface")),
            Self::Pattern(pattern) => by_pattern(pattern, wanted, observed),
            Self::Reach(_) => {
                let (name, source) = wanted.reach.as_ref().ok_or("there is no route to it")?;
                let link = observed.links.get(name).ok_or(format!("its link {name} is not there"))?;
                Ok(Found::at(link, *source))
            }
            Self::DefaultRoute => by_default_route(wanted, observed),
        }
    }
}

fn holder(observed: &State, addr: IpAddr) -> Result<Found<'_>, String> {
    let held =
        in_order(observed).find(|link| addresses(observed, link).any(|held| held.network.ip() == addr));
    held.map(|link| Found::at(link, Some(addr))).ok_or("no link has this address".to_owned())
}

/// As flannel: an address of every wanted family must match, on one link; else a name.
fn by_pattern<'s>(
    pattern: &LinkPattern,
    wanted: &Wanted<'_>,
    observed: &'s State,
) -> Result<Found<'s>, String> {
    let by_address = in_order(observed).find_map(|link| {
        let matching = |family| {
            ranked(observed, link, family).into_iter().find(|addr| pattern.is_match(&addr.to_string()))
        };
        let v4 = if wanted.v4 { Some(matching(Family::V4)?) } else { None };
        let v6 = if wanted.v6 { Some(matching(Family::V6)?) } else { None };
        Some(Found { link, v4, v6 })
    });
    let by_name = || in_order(observed).find(|link| pattern.is_match(link.name.as_str()));
    by_address
        .or_else(|| by_name().map(|link| Found::at(link, None)))
        .ok_or("it matches no address and no name".to_owned())
}

/// With both families, both default routes must leave by one link.
fn by_default_route<'s>(wanted: &Wanted<'_>, observed: &'s State) -> Result<Found<'s>, String> {
    let mut links = Vec::new();
    for (family, asked) in [(Family::V4, wanted.v4), (Family::V6, wanted.v6)] {
        if asked {
            let name = default_route(observed, family).ok_or(format!("there is none for {family}"))?;
            links.push(observed.links.get(name).ok_or(format!("its link {name} is not there"))?);
        }
    }
    match links.as_slice() {
        [] => Err("the network has no address family".to_owned()),
        [link] => Ok(Found::at(link, None)),
        [v4, v6, ..] if v4.name == v6.name => Ok(Found::at(v4, None)),
        [v4, v6, ..] => {
            Err(format!("IPv4's leaves by {}, IPv6's by {}; name one with --iface", v4.name, v6.name))
        }
    }
}

fn default_route(observed: &State, family: Family) -> Option<&LinkName> {
    let default = observed.routes.values().filter(|route| {
        let key = &route.key;
        key.table == MAIN_TABLE
            && key.dst.prefix() == 0
            && Family::of(key.dst.ip()) == family
            && route.kind == RouteKind::Unicast
    });
    default.min_by_key(|route| route.key.metric)?.link.as_ref()
}

/// The link's settings and our addresses on it.
fn chosen(wanted: &Wanted<'_>, observed: &State, found: Found<'_>) -> Result<Chosen, String> {
    let link = found.link;
    if link.mtu == 0 {
        return Err(format!("{} has no MTU", link.name));
    }
    let reaches_far = |family| ranked(observed, link, family).iter().any(|addr| !is_link_local(*addr));
    let best = |family: Family, asked: bool, named: Option<IpAddr>| match named {
        _ if !asked => Ok(None),
        Some(addr) => Ok(Some(addr)),
        None => match ranked(observed, link, family).first() {
            // Every link has fe80::; beside a real address of the other family it is not a way to hosts.
            Some(addr) if !is_link_local(*addr) || !reaches_far(family.other()) => Ok(Some(*addr)),
            _ => Err(format!("{} has no {family} address that can be used", link.name)),
        },
    };
    let v4 = best(Family::V4, wanted.v4, found.v4)?;
    let v6 = best(Family::V6, wanted.v6, found.v6)?;
    let underlay = Underlay {
        link: link.name.clone(),
        mtu: link.mtu,
        addresses: addresses(observed, link).map(|address| address.network).collect(),
    };
    let public_v4 = v4.and_then(|addr| match addr {
        IpAddr::V4(addr) => Some(wanted.public_v4.unwrap_or(addr)),
        IpAddr::V6(_) => None,
    });
    let public_v6 = v6.and_then(|addr| match addr {
        IpAddr::V6(addr) => Some(wanted.public_v6.unwrap_or(addr)),
        IpAddr::V4(_) => None,
    });
    Ok(Chosen { underlay, public_v4, public_v6 })
}

/// The link as it is now, for a choice made before: its MTU and addresses may have changed.
/// `None` when it is gone; then what was known stays in force.
pub fn refreshed(chosen: &Underlay, observed: &State) -> Option<Underlay> {
    let link = observed.links.get(&chosen.link)?;
    let addresses = addresses(observed, link).map(|address| address.network).collect();
    Some(Underlay { link: link.name.clone(), mtu: link.mtu, addresses })
}

/// A link's addresses of one family that others can use, the best first, in flannel's order
/// (`compareAddrs`): global before link-local, permanent before dynamic, no privacy address if
/// there is another; never a deprecated one. Equal ones stay in the kernel's order of addresses.
fn ranked(observed: &State, link: &Link, family: Family) -> Vec<IpAddr> {
    let passing = |address: &Address| observed.passing.get(address).copied().unwrap_or_default();
    let mut held: Vec<(IpAddr, Passing)> = addresses(observed, link)
        .map(|address| (address.network.ip(), passing(address)))
        .filter(|(addr, passing)| Family::of(*addr) == family && usable(*addr) && !passing.deprecated)
        .collect();
    held.sort_by_key(|(addr, passing)| {
        (Reverse(!is_link_local(*addr)), Reverse(!passing.dynamic), Reverse(!passing.temporary))
    });
    held.into_iter().map(|(addr, _)| addr).collect()
}

/// Go's IsGlobalUnicast or IsLinkLocalUnicast.
fn usable(addr: IpAddr) -> bool {
    let broadcast = matches!(addr, IpAddr::V4(addr) if addr.is_broadcast());
    !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || broadcast)
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

fn addresses<'s>(observed: &'s State, link: &Link) -> impl Iterator<Item = &'s Address> + Clone + use<'s> {
    let name = link.name.clone();
    observed.addresses.iter().filter(move |address| address.link == name)
}

/// Links in the kernel's order, as flannel lists them.
fn in_order(observed: &State) -> impl Iterator<Item = &Link> {
    let mut links: Vec<&Link> = observed.links.values().collect();
    links.sort_by_key(|link| link.index);
    links.into_iter()
}

fn candidates(observed: &State) -> String {
    let describe = |link: &Link| {
        let held: Vec<String> =
            addresses(observed, link).map(|address| IpNetwork::ip(&address.network).to_string()).collect();
        if held.is_empty() { link.name.to_string() } else { format!("{} ({})", link.name, held.join(", ")) }
    };
    let links: Vec<String> = in_order(observed).map(describe).collect();
    if links.is_empty() { "no links at all".to_owned() } else { links.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{name, net, plain_link};
    use weft_kernel::net::{Route, RouteKey};

    /// lo, eth0 with everything, eth1 with IPv4 only, and default routes by eth0.
    fn host() -> State {
        let mut state = State::default();
        for (index, link) in ["lo", "eth0", "eth1"].into_iter().enumerate() {
            let index = u32::try_from(index).expect("few") + 1;
            state.links.insert(name(link), plain_link(link, index));
        }
        for (link, network) in [
            ("lo", "127.0.0.1/8"),
            ("eth0", "192.0.2.7/24"),
            ("eth0", "2001:db8::7/64"),
            ("eth0", "fe80::7/64"),
            ("eth1", "198.51.100.7/24"),
        ] {
            state.addresses.insert(Address { link: name(link), network: net(network) });
        }
        add_default(&mut state, "0.0.0.0/0", "eth0", 100);
        add_default(&mut state, "::/0", "eth0", 1024);
        state
    }

    fn add_default(state: &mut State, dst: &str, link: &str, metric: u32) {
        let key = RouteKey { table: 254, dst: net(dst), metric };
        let (kind, protocol, link) = (RouteKind::Unicast, 16, Some(name(link)));
        let route = Route { key, kind, protocol, via: None, link, onlink: false, src: None, mtu: None };
        state.routes.insert(route.key.clone(), route);
    }

    fn choice(links: &[&str], patterns: &[&str], can_reach: Option<&str>) -> UnderlayChoice {
        UnderlayChoice {
            links: links.iter().map(|link| link.parse().expect("a link")).collect(),
            patterns: patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect(),
            can_reach: can_reach.map(|addr| addr.parse().expect("an address")),
        }
    }

    fn wanted<'a>(choice: &'a UnderlayChoice, families: &str) -> Wanted<'a> {
        let (v4, v6) = (families.contains('4'), families.contains('6'));
        Wanted { choice, public_v4: None, public_v6: None, v4, v6, reach: None }
    }

    fn in_words(chosen: Result<Chosen, NoUnderlay>) -> String {
        match chosen {
            Ok(Chosen { underlay, public_v4, public_v6 }) => {
                let addr = |addr: Option<IpAddr>| addr.map(|addr| format!(" {addr}")).unwrap_or_default();
                let (v4, v6) = (addr(public_v4.map(IpAddr::V4)), addr(public_v6.map(IpAddr::V6)));
                format!("{}{v4}{v6}", underlay.link)
            }
            Err(error) => error.tried.join("; "),
        }
    }

    #[test]
    fn the_link_by_flags_and_families() {
        let none: &[&str] = &[];
        let table = [
            // --iface, --iface-regex, families, what is chosen
            (none, none, "4", "eth0 192.0.2.7"),
            (none, none, "6", "eth0 2001:db8::7"),
            (none, none, "46", "eth0 192.0.2.7 2001:db8::7"),
            (&["eth1"], none, "4", "eth1 198.51.100.7"),
            (&["eth1"], none, "46", "--iface=eth1: eth1 has no IPv6 address that can be used"),
            (&["eth1", "eth0"], none, "46", "eth0 192.0.2.7 2001:db8::7"),
            (&["198.51.100.7"], none, "4", "eth1 198.51.100.7"),
            (&["2001:db8::7"], none, "46", "eth0 192.0.2.7 2001:db8::7"),
            (&["nope0"], none, "4", "--iface=nope0: there is no such link"),
            (&["203.0.113.1"], none, "4", "--iface=203.0.113.1: no link has this address"),
            (&["nope0"], &["^198\\.51\\."], "4", "eth1 198.51.100.7"),
            (none, &["^198\\.51\\.", "^eth0$"], "46", "eth0 192.0.2.7 2001:db8::7"),
            (none, &["^eth\\d$"], "4", "eth0 192.0.2.7"),
            (none, &["^192\\.0\\.2\\.|^2001:"], "46", "eth0 192.0.2.7 2001:db8::7"),
            (none, &["^wlan"], "4", "--iface-regex=^wlan: it matches no address and no name"),
        ];
        for (links, patterns, families, expected) in table {
            let choice = choice(links, patterns, None);
            let found = in_words(super::choose(&wanted(&choice, families), &host()));
            assert_eq!(found, expected, "{links:?} {patterns:?} {families}");
        }
    }

    #[test]
    fn one_family_carries_both_where_the_hosts_have_no_more() {
        let only = |kept: &str| {
            let mut state = host();
            let is_kept = |ip: IpAddr| Family::of(ip).to_string() == kept;
            state.routes.retain(|key, _| is_kept(key.dst.ip()));
            state.addresses.retain(|held| is_kept(held.network.ip()) || is_link_local(held.network.ip()));
            state
        };
        let (none, eth0) = (choice(&[], &[], None), choice(&["eth0"], &[], None));
        let table = [
            // the hosts have, --iface, the pods have, flannel's choice, else ours
            ("IPv4", &none, "6", "default route: there is none for IPv6", "eth0 192.0.2.7"),
            ("IPv4", &none, "46", "default route: there is none for IPv6", "eth0 192.0.2.7"),
            ("IPv4", &eth0, "6", "--iface=eth0: eth0 has no IPv6 address that can be used", "eth0 192.0.2.7"),
            ("IPv6", &none, "4", "default route: there is none for IPv4", "eth0 2001:db8::7"),
            ("IPv6", &none, "46", "default route: there is none for IPv4", "eth0 2001:db8::7"),
            (
                "IPv6",
                &eth0,
                "4",
                "--iface=eth0: eth0 has no IPv4 address that can be used",
                "eth0 2001:db8::7",
            ),
        ];
        for (hosts, choice, pods, flannels, ours) in table {
            let (state, wanted) = (only(hosts), wanted(choice, pods));
            assert_eq!(in_words(super::choose(&wanted, &state)), flannels, "{hosts} {pods}");
            let crossing = super::crossing(&wanted, &state).expect("a link");
            assert!(!crossing.serves(&wanted), "{hosts} {pods}");
            assert_eq!(in_words(Ok(crossing)), ours, "{hosts} {pods}");
        }
        assert_eq!(super::crossing(&wanted(&none, "46"), &State::default()), None);
    }

    #[test]
    fn a_public_address_finds_its_link_unless_one_is_named() {
        let (none, eth0) = (choice(&[], &[], None), choice(&["eth0"], &[], None));
        let public = |choice, addr: [u8; 4]| {
            let wanted = Wanted { public_v4: Some(addr.into()), ..wanted(choice, "4") };
            in_words(super::choose(&wanted, &host()))
        };
        assert_eq!(public(&none, [198, 51, 100, 7]), "eth1 198.51.100.7");
        assert_eq!(public(&eth0, [203, 0, 113, 9]), "eth0 203.0.113.9", "behind a NAT");
        assert_eq!(
            public(&none, [203, 0, 113, 9]),
            "--public-ip=203.0.113.9: no link has this address; \
             if it is a router's (NAT), name the link with --iface"
        );
    }

    #[test]
    fn the_kernels_answer_says_how_a_host_is_reached() {
        let choice = choice(&[], &[], Some("203.0.113.1"));
        let mut wanted = wanted(&choice, "4");
        assert_eq!(
            in_words(super::choose(&wanted, &host())),
            "--iface-can-reach=203.0.113.1: there is no route to it"
        );
        wanted.reach = Some((name("eth1"), Some([198, 51, 100, 7].into())));
        assert_eq!(in_words(super::choose(&wanted, &host())), "eth1 198.51.100.7");
    }

    #[test]
    fn default_routes_count_by_metric_and_must_agree() {
        let none = choice(&[], &[], None);
        let mut state = host();
        add_default(&mut state, "0.0.0.0/0", "eth1", 50);
        assert_eq!(in_words(super::choose(&wanted(&none, "4"), &state)), "eth1 198.51.100.7");
        assert_eq!(
            in_words(super::choose(&wanted(&none, "46"), &state)),
            "default route: IPv4's leaves by eth1, IPv6's by eth0; name one with --iface"
        );
        state.routes.clear();
        assert_eq!(
            in_words(super::choose(&wanted(&none, "6"), &state)),
            "default route: there is none for IPv6"
        );
    }

    #[test]
    fn addresses_are_ranked_as_flannel_does() {
        let dynamic = Passing { dynamic: true, ..Passing::default() };
        let table = [
            // the first address, what it is, the second, what it is, which is taken
            ("2001:db8::1/64", Passing::default(), "2001:db8::2/64", dynamic, "2001:db8::1"),
            ("2001:db8::1/64", dynamic, "2001:db8::2/64", Passing::default(), "2001:db8::2"),
            (
                "2001:db8::1/64",
                Passing { temporary: true, ..dynamic },
                "2001:db8::2/64",
                dynamic,
                "2001:db8::2",
            ),
            ("fe80::1/64", Passing::default(), "2001:db8::2/64", dynamic, "2001:db8::2"),
            (
                "2001:db8::1/64",
                Passing { deprecated: true, ..Passing::default() },
                "fe80::2/64",
                Passing::default(),
                "fe80::2",
            ),
            ("2001:db8::1/64", Passing::default(), "2001:db8::2/64", Passing::default(), "2001:db8::1"),
        ];
        for (first, is, second, and, expected) in table {
            let mut state = State::default();
            state.links.insert(name("eth0"), plain_link("eth0", 2));
            for (network, passing) in [(first, is), (second, and)] {
                let address = Address { link: name("eth0"), network: net(network) };
                state.addresses.insert(address.clone());
                state.passing.insert(address, passing);
            }
            let best = ranked(&state, &state.links[&name("eth0")], Family::V6);
            assert_eq!(best.first().map(IpAddr::to_string).as_deref(), Some(expected), "{first} {second}");
        }
    }

    #[test]
    fn the_error_names_flags_values_and_candidates() {
        let choice = choice(&["nope0"], &["^wlan"], None);
        let error = super::choose(&wanted(&choice, "4"), &host()).expect_err("nothing fits");
        assert_eq!(
            error.to_string(),
            "no link to the other hosts: --iface=nope0: there is no such link; \
             --iface-regex=^wlan: it matches no address and no name; there are lo (127.0.0.1), \
             eth0 (192.0.2.7, 2001:db8::7, fe80::7), eth1 (198.51.100.7)"
        );
    }
}
