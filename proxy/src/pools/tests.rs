//! Pools and who has which of their addresses, case by case and at random.

use proptest::prelude::*;

use super::*;
use crate::model::{Family, Policy, Protocol, ServiceName, family_of};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(ranges: &[&str]) -> Pool {
    Pool { ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(), auto_assign: true }
}

fn pools(declared: &[(&str, &[&str])]) -> Pools {
    let declared = declared.iter().map(|(name, ranges)| (Arc::from(*name), pool(ranges)));
    let (pools, problems) = Pools::new(declared, &BTreeSet::new());
    assert_eq!(problems, []);
    pools
}

fn name(name: &str) -> ServiceName {
    ServiceName::new("shop", name)
}

/// A service with one port that takes any IPv4 address.
fn any(port: u16) -> Wish {
    Wish {
        created: None,
        families: [Family::V4].into(),
        any_family: false,
        addresses: Vec::new(),
        pool: None,
        sharing: None,
        ports: [(Protocol::Tcp, port)].into(),
        policy: Policy::Cluster,
        selector: BTreeMap::new(),
        held: Vec::new(),
    }
}

fn shares(port: u16) -> Wish {
    Wish { sharing: Some("front".to_owned()), ..any(port) }
}

/// Who has what, and what was said, in words.
fn words(pools: &Pools, wishes: &[(&str, Wish)]) -> (Vec<String>, Vec<String>) {
    let wishes = wishes.iter().map(|(it, wish)| (name(it), wish.clone())).collect();
    let Allocation { given, refusals } = allocate(pools, &wishes);
    let given = given.into_iter().map(|(name, addresses)| format!("{}: {addresses:?}", name.name));
    (given.collect(), refusals.iter().map(|(name, refusal)| format!("{}: {refusal}", name.name)).collect())
}

#[test]
fn ranges_are_read_and_written() {
    for (text, written, count) in [
        ("203.0.113.0/28", "203.0.113.0-203.0.113.15", 16),
        ("203.0.113.9/28", "203.0.113.0-203.0.113.15", 16),
        ("203.0.113.20 - 203.0.113.30", "203.0.113.20-203.0.113.30", 11),
        ("203.0.113.7", "203.0.113.7", 1),
        ("2001:db8::/126", "2001:db8::-2001:db8::3", 4),
    ] {
        let range: AddressRange = text.parse().unwrap();
        assert_eq!((range.to_string(), range.count()), (written.to_owned(), count));
        assert_eq!(written.parse(), Ok(range));
    }
    for (text, said) in [
        ("office", "`office` is no range of addresses; write 203.0.113.0/28"),
        ("203.0.113.0/33", "`203.0.113.0/33` is no range"),
        ("203.0.113.9-203.0.113.8", "does not lead from one address to a higher one"),
        ("203.0.113.9-2001:db8::1", "does not lead from one address to a higher one"),
        ("127.0.0.0/8", "holds 127.0.0.0, which no host can have for others"),
        ("224.0.0.1", "holds 224.0.0.1"),
        ("0.0.0.0/0", "holds 0.0.0.0"),
        ("fe80::1", "holds fe80::1"),
    ] {
        let error = text.parse::<AddressRange>().unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn pools_that_overlap_or_hold_nodes_are_told() {
    let declared = [
        ("b", pool(&["203.0.113.8-203.0.113.40", "2001:db8::/64"])),
        ("a", pool(&["203.0.113.0/28", "192.0.2.0/24", "203.0.113.15"])),
    ];
    let nodes = BTreeSet::from([ip("192.0.2.11")]);
    let (pools, problems) = Pools::new(declared.map(|(name, pool)| (name.into(), pool)), &nodes);
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "address pool a: 192.0.2.0-192.0.2.255 holds 192.0.2.11, which is an address of a node; it is left out",
            "address pool a: 203.0.113.15 overlaps 203.0.113.0-203.0.113.15 of address pool a; it is left out",
            "address pool b: 203.0.113.8-203.0.113.40 overlaps 203.0.113.0-203.0.113.15 of address pool a; it is left out",
        ]
    );
    assert_eq!(pools.pool_of(ip("203.0.113.9")).map(AsRef::as_ref), Some("a"));
    assert_eq!(pools.pool_of(ip("2001:db8::9")).map(AsRef::as_ref), Some("b"));
    assert_eq!(pools.pool_of(ip("203.0.113.20")), None);
}

#[test]
fn who_gets_what() {
    let some = pools(&[("lan", &["203.0.113.1-203.0.113.3", "2001:db8::1-2001:db8::2"])]);
    let at = |address: &str| Wish { addresses: vec![ip(address)], ..any(80) };
    let held = |address: &str| Wish { held: vec![ip(address)], ..any(80) };
    let both = || Wish { families: Family::ALL.into(), ..any(80) };
    type Case<'a> = (&'a str, Vec<(&'a str, Wish)>, &'a [&'a str], &'a [&'a str]);
    let cases: [Case; 13] = [
        ("by name", vec![("b", any(80)), ("a", any(80))], &["a: [203.0.113.1]", "b: [203.0.113.2]"], &[]),
        (
            "the older one first",
            vec![("a", Wish { created: Some(9), ..any(80) }), ("b", Wish { created: Some(5), ..any(80) })],
            &["a: [203.0.113.2]", "b: [203.0.113.1]"],
            &[],
        ),
        (
            "what is held stays, also with a newcomer before it",
            vec![("a", any(80)), ("b", held("203.0.113.1"))],
            &["a: [203.0.113.2]", "b: [203.0.113.1]"],
            &[],
        ),
        (
            "who asks for one comes before who takes any",
            vec![("a", any(80)), ("b", at("203.0.113.1"))],
            &["a: [203.0.113.2]", "b: [203.0.113.1]"],
            &[],
        ),
        (
            "another one is asked for than was held",
            vec![("a", Wish { held: vec![ip("203.0.113.1")], ..at("203.0.113.3") })],
            &["a: [203.0.113.3]"],
            &[],
        ),
        (
            "what another one has",
            vec![("a", at("203.0.113.1")), ("b", held("203.0.113.1"))],
            &["b: [203.0.113.1]"],
            &["a: 203.0.113.1 is shop/b's: they do not name the same sharing key"],
        ),
        (
            "what no pool has",
            vec![("a", at("198.51.100.1"))],
            &[],
            &["a: 198.51.100.1 is in no address pool"],
        ),
        (
            "a family that it does not have",
            vec![("a", at("2001:db8::1"))],
            &[],
            &[
                "a: 2001:db8::1 is asked for, but the service has no such family, or another address of it already",
            ],
        ),
        (
            "no pool has it any more",
            vec![("a", held("198.51.100.1")), ("b", any(80))],
            &["a: [198.51.100.1]", "b: [203.0.113.1]"],
            &[
                "a: 198.51.100.1 is in no address pool any more; the service keeps it until it asks for another one",
            ],
        ),
        (
            "more than there are",
            vec![("a", both()), ("b", both()), ("c", both()), ("d", any(80))],
            &["a: [203.0.113.1, 2001:db8::1]", "b: [203.0.113.2, 2001:db8::2]", "c: [203.0.113.3]"],
            &[
                "c: no IPv6 address is free in address pool lan",
                "d: no IPv4 address is free in address pool lan",
            ],
        ),
        (
            "one family is enough for it",
            vec![("a", both()), ("b", both()), ("c", Wish { any_family: true, ..both() })],
            &["a: [203.0.113.1, 2001:db8::1]", "b: [203.0.113.2, 2001:db8::2]", "c: [203.0.113.3]"],
            &[],
        ),
        (
            "a pool that is not there",
            vec![("a", Wish { pool: Some("wan".into()), ..any(80) })],
            &[],
            &["a: there is no address pool `wan`"],
        ),
        (
            "a pool that goes by name only",
            vec![("a", Wish { pool: Some("lan".into()), ..at("198.51.100.1") })],
            &[],
            &["a: 198.51.100.1 is in no address pool called `lan`"],
        ),
    ];
    for (case, wishes, given, said) in cases {
        assert_eq!(
            words(&some, &wishes),
            (
                given.iter().map(|it| (*it).to_owned()).collect(),
                said.iter().map(|it| (*it).to_owned()).collect()
            ),
            "{case}"
        );
    }
}

#[test]
fn an_address_is_shared_under_conditions() {
    let some = pools(&[("lan", &["203.0.113.1-203.0.113.2"])]);
    let of = |app: &str| BTreeMap::from([("app".to_owned(), app.to_owned())]);
    let local = |port, app| Wish { policy: Policy::Local, selector: of(app), ..shares(port) };
    let asks = |wish: Wish| Wish { addresses: vec![ip("203.0.113.1")], ..wish };
    let refused = |second: Wish, why: &str| {
        let (given, said) = words(&some, &[("a", asks(shares(80))), ("b", asks(second))]);
        assert_eq!((given.len(), said), (1, vec![format!("b: 203.0.113.1 is shop/a's: {why}")]));
    };
    refused(any(443), "they do not name the same sharing key");
    refused(shares(80), "both answer at port 80/tcp");
    refused(local(443, "web"), "one of them has externalTrafficPolicy Local, and their pods are others");
    let udp = Wish { ports: [(Protocol::Udp, 80)].into(), ..shares(80) };
    for (first, second) in
        [(shares(80), shares(443)), (shares(80), udp), (local(80, "web"), local(443, "web"))]
    {
        let both = vec!["a: [203.0.113.1]".to_owned(), "b: [203.0.113.1]".to_owned()];
        assert_eq!(words(&some, &[("a", first.clone()), ("b", second.clone())]), (both.clone(), vec![]));
        assert_eq!(words(&some, &[("a", asks(first)), ("b", asks(second))]), (both, vec![]));
    }
}

#[test]
fn a_pool_for_those_who_name_it() {
    let quiet = Pool { auto_assign: false, ..pool(&["203.0.113.1"]) };
    let (some, _) = Pools::new([(Arc::from("quiet"), quiet)], &BTreeSet::new());
    let named = Wish { pool: Some("quiet".into()), ..any(80) };
    let (given, said) = words(&some, &[("a", any(80)), ("b", named)]);
    assert_eq!(given, ["b: [203.0.113.1]"]);
    assert_eq!(said, ["a: no IPv4 address is free in any address pool: none gives addresses out by itself"]);
}

/// As many as there may be in a cluster, at once.
#[test]
fn many_services_at_once_take_little_time() {
    let some = pools(&[("lan", &["10.0.0.0/12"])]);
    let wishes: BTreeMap<_, _> = (0..50_000).map(|it| (name(&format!("s{it:05}")), any(80))).collect();
    let given = allocate(&some, &wishes).given;
    let all: BTreeSet<IpAddr> = given.values().flatten().copied().collect();
    assert_eq!((given.len(), all.len(), all.last().copied()), (50_000, 50_000, Some(ip("10.0.195.79"))));
}

fn wishes() -> impl Strategy<Value = BTreeMap<ServiceName, Wish>> {
    let addresses =
        || prop_oneof![Just("203.0.113.1"), Just("203.0.113.3"), Just("198.51.100.1"), Just("2001:db8::1")];
    let list = move || prop::collection::vec(addresses().prop_map(ip), 0..2);
    let families = prop_oneof![Just(vec![Family::V4]), Just(vec![Family::V6]), Just(Family::ALL.to_vec())];
    let wish = (
        families,
        any_bool(),
        list(),
        prop::option::of(prop_oneof![Just("lan"), Just("gone")]),
        prop::option::of(prop_oneof![Just("one"), Just("two")]),
        (80u16..83, any_bool(), prop::option::of(0i64..3), 0u8..2),
        list(),
    );
    let wish = wish.prop_map(|(families, any_family, addresses, pool, sharing, rest, held)| {
        let (port, local, created, app) = rest;
        Wish {
            created,
            families: families.into_iter().collect(),
            any_family,
            addresses,
            pool: pool.map(Arc::from),
            sharing: sharing.map(str::to_owned),
            ports: [(Protocol::Tcp, port)].into(),
            policy: if local { Policy::Local } else { Policy::Cluster },
            selector: BTreeMap::from([("app".to_owned(), app.to_string())]),
            held,
        }
    });
    prop::collection::btree_map((0u8..8).prop_map(|it| name(&format!("s{it}"))), wish, 0..8)
}

fn any_bool() -> impl Strategy<Value = bool> {
    proptest::bool::ANY
}

fn holding(
    wishes: &BTreeMap<ServiceName, Wish>,
    given: &BTreeMap<ServiceName, Vec<IpAddr>>,
) -> BTreeMap<ServiceName, Wish> {
    let held = |name| given.get(name).cloned().unwrap_or_default();
    wishes.iter().map(|(name, wish)| (name.clone(), Wish { held: held(name), ..wish.clone() })).collect()
}

proptest! {
    #[test]
    fn nobody_is_given_what_another_one_has_to_himself(wishes in wishes()) {
        let some = pools(&[("lan", &["203.0.113.1-203.0.113.3", "2001:db8::1-2001:db8::2"])]);
        let given = allocate(&some, &wishes).given;
        for (name, addresses) in &given {
            let wish = &wishes[name];
            let families: BTreeSet<Family> = addresses.iter().map(|it| family_of(*it)).collect();
            prop_assert_eq!(families.len(), addresses.len(), "one of each family");
            prop_assert!(families.is_subset(&wish.families));
            for address in addresses {
                prop_assert!(some.pool_of(*address).is_some() || wish.held.contains(address));
                prop_assert!(wish.addresses.is_empty() || wish.addresses.contains(address));
                for (other, theirs) in given.iter().filter(|(other, _)| *other != name) {
                    if theirs.contains(address) {
                        prop_assert!(wish.sharing.is_some() && wish.sharing == wishes[other].sharing);
                        prop_assert!(wish.ports.is_disjoint(&wishes[other].ports));
                    }
                }
            }
        }
    }

    /// What was given stays, whoever comes or goes.
    #[test]
    fn nobody_is_moved(wishes in wishes(), gone in 0u8..8, newcomer in wishes()) {
        let some = pools(&[("lan", &["203.0.113.1-203.0.113.3", "2001:db8::1-2001:db8::2"])]);
        let given = allocate(&some, &wishes).given;
        let mut later = holding(&wishes, &given);
        prop_assert_eq!(&allocate(&some, &later).given, &given);
        later.remove(&name(&format!("s{gone}")));
        let new = newcomer.into_iter().map(|(it, wish)| (name(&format!("new-{}", it.name)), Wish { held: vec![], ..wish }));
        later.extend(new);
        let after = allocate(&some, &later).given;
        for (name, before) in given.iter().filter(|(name, _)| later.contains_key(*name)) {
            let kept = before.iter().all(|address| after.get(name).is_some_and(|now| now.contains(address)));
            prop_assert!(kept, "{name}: {before:?}, then {:?}", after.get(name));
        }
    }

    #[test]
    fn no_text_makes_a_range_panic(text in ".{0,40}") {
        let _ = text.parse::<AddressRange>();
    }
}
