//! What the registry makes of a store: tables of keys and values, and that its order of reading and
//! the store's garbage never matter.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::model::{Me, Transports, Underlay};

const CONFIG: &str = r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn prefix() -> Prefix {
    Prefix::new("/n")
}

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::try_from(name.to_owned()).unwrap()
}

fn kv(key: &str, value: impl Into<Vec<u8>>, revision: i64) -> KeyValue {
    let revision = Revision(revision);
    let lease = Some(LeaseId(1));
    KeyValue {
        key: key.to_owned(),
        value: value.into(),
        create_revision: revision,
        mod_revision: revision,
        lease,
    }
}

fn snapshot(revision: i64, entries: impl IntoIterator<Item = KeyValue>) -> Snapshot {
    let entries = entries.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    Snapshot { cluster: ClusterId(1), revision: Revision(revision), entries }
}

fn vxlan(ip: &str, last: u8) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"4e:11:00:00:00:{last:02x}"}}}}"#
    )
}

fn record(name: &str) -> Vec<u8> {
    let transports = Transports { udp: Some(9), ..Transports::default() };
    OwnerRecord { node: node(name), generation: 1, transports, released: false }.encode()
}

fn me() -> Me {
    Me {
        node: node("me"),
        network: "weft".to_owned(),
        subnet: Some(subnet("10.42.1.0/24")),
        public_v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
        public_v6: None,
        underlay: Underlay { link: "eth0".parse().unwrap(), mtu: 1500, addresses: BTreeSet::new() },
        adopted_mac_v4: None,
        adopted_mac_v6: None,
    }
}

#[test]
fn the_flannel_key_wins_over_a_record() {
    let (lease, owner) = ("/n/subnets/10.42.7.0-24", "/n/weft/owner/10.42.7.0-24");
    let released = OwnerRecord { released: true, ..OwnerRecord::parse(&record("ash")).unwrap() }.encode();
    let table: Vec<(&str, Vec<KeyValue>, &str)> = vec![
        ("nothing at all", vec![], "nobody"),
        (
            "written together",
            vec![kv(lease, vxlan("192.0.2.7", 7), 5), kv(owner, record("ash"), 5)],
            "node ash",
        ),
        (
            "flanneld wrote later",
            vec![kv(lease, vxlan("192.0.2.7", 7), 6), kv(owner, record("ash"), 5)],
            "host",
        ),
        (
            "somebody wrote the record alone",
            vec![kv(lease, vxlan("192.0.2.7", 7), 5), kv(owner, record("ash"), 6)],
            "host",
        ),
        ("flanneld alone", vec![kv(lease, vxlan("192.0.2.7", 7), 5)], "host"),
        ("the lease ran out", vec![kv(owner, record("ash"), 5)], "claimed ash"),
        ("given up", vec![kv(owner, released, 5)], "released ash"),
        ("reserved for nobody yet", vec![kv(lease, r#"{"PublicIP":"0.0.0.0"}"#, 5)], "nameless"),
        (
            "reserved for a node",
            vec![kv(lease, r#"{"PublicIP":"0.0.0.0"}"#, 5), kv(owner, record("ash"), 5)],
            "node ash",
        ),
        ("garbage", vec![kv(lease, "garbage", 5)], "nameless"),
        ("garbage over a record", vec![kv(lease, "garbage", 6), kv(owner, record("ash"), 5)], "nameless"),
        ("a broken record", vec![kv(lease, vxlan("192.0.2.7", 7), 5), kv(owner, "garbage", 5)], "host"),
    ];
    for (case, entries, expected) in table {
        let (registry, _) = Registry::new(prefix(), &snapshot(9, entries));
        let holder = match registry.holder(&subnet("10.42.7.0/24")) {
            Holder::Nobody => "nobody".to_owned(),
            Holder::Node(record) => format!("node {}", record.node),
            Holder::Host(_) => "host".to_owned(),
            Holder::Nameless => "nameless".to_owned(),
            Holder::Claimed(record) => format!("claimed {}", record.node),
            Holder::Released(record) => format!("released {}", record.node),
        };
        assert_eq!(holder, expected, "{case}");
    }
}

#[test]
fn garbage_is_named_once_and_hides_nothing() {
    let good = kv("/n/subnets/10.42.7.0-24", vxlan("192.0.2.7", 7), 2);
    let (mut registry, faults) = Registry::new(
        prefix(),
        &snapshot(
            5,
            [
                kv("/n/config", CONFIG, 1),
                good.clone(),
                kv("/n/subnets-backup/x", "?", 3),
                kv("/n/subnets/garbage", "?", 4),
                kv("/n/subnets/10.42.8.0-24", "{", 5),
            ],
        ),
    );
    let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["/n/subnets-backup/x", "/n/subnets/10.42.8.0-24", "/n/subnets/garbage"]);
    assert_eq!(registry.peers(&me(), registry.config().unwrap()).known.len(), 1);

    let again = [Change::Put(kv("/n/subnets/garbage", "!", 6))];
    assert_eq!(registry.absorb(Revision(6), &again), vec![], "the same fault is not said twice");
    let worse = [Change::Put(kv("/n/subnets/10.42.8.0-24", "[]", 7))];
    assert_eq!(registry.absorb(Revision(7), &worse).len(), 1, "a different fault is");
    let mended = [Change::Put(kv("/n/subnets/10.42.8.0-24", vxlan("192.0.2.8", 8), 8))];
    assert_eq!(registry.absorb(Revision(8), &mended), vec![]);
    assert_eq!(registry.faults().count(), 2);
    assert_eq!(registry.peers(&me(), registry.config().unwrap()).known.len(), 2);
    let gone = [Change::Delete { key: "/n/subnets/garbage".to_owned(), revision: Revision(9) }];
    assert_eq!(registry.absorb(Revision(9), &gone), vec![]);
    assert_eq!(registry.faults().count(), 1);
}

#[test]
fn a_broken_value_keeps_the_last_good_one() {
    let (lease, owner) = ("/n/subnets/10.42.7.0-24", "/n/weft/owner/10.42.7.0-24");
    let start = snapshot(
        5,
        [kv("/n/config", CONFIG, 1), kv(lease, vxlan("192.0.2.7", 7), 5), kv(owner, record("ash"), 5)],
    );
    let (mut registry, _) = Registry::new(prefix(), &start);
    let config = registry.config().unwrap().clone();
    let peers = registry.peers(&me(), &config);

    let broken = [
        Change::Put(kv("/n/config", "{", 6)),
        Change::Put(kv(lease, "garbage", 6)),
        Change::Put(kv(owner, "garbage", 6)),
    ];
    assert_eq!(registry.absorb(Revision(6), &broken).len(), 3);
    let check = |registry: &Registry| {
        assert_eq!(registry.config(), Some(&config));
        assert_eq!(registry.peers(&me(), &config), peers);
        assert_eq!(registry.lease(&subnet("10.42.7.0/24")).unwrap().mod_revision, Revision(6));
        assert!(registry.config_entry().unwrap().fault.is_some());
    };
    check(&registry);
    // A re-list after compaction says the same garbage; nothing may be forgotten by it.
    let relist = snapshot(8, [kv("/n/config", "{", 6), kv(lease, "garbage", 6), kv(owner, "garbage", 6)]);
    assert_eq!(registry.reset(&relist), vec![]);
    check(&registry);

    let gone = [Change::Delete { key: lease.to_owned(), revision: Revision(9) }];
    registry.absorb(Revision(9), &gone);
    assert_eq!(registry.peers(&me(), &config).known.len(), 0, "a deletion does remove");
}

#[test]
fn a_deleted_config_stays_in_force_and_is_a_fault() {
    let (mut registry, _) = Registry::new(prefix(), &snapshot(1, [kv("/n/config", CONFIG, 1)]));
    let faults = registry
        .absorb(Revision(2), &[Change::Delete { key: "/n/config".to_owned(), revision: Revision(2) }]);
    assert_eq!(faults.len(), 1);
    assert!(registry.config().is_some());
    assert_eq!(registry.wiped(&snapshot(1, [])), vec![], "a wiped store says nothing new");
    assert!(registry.config().is_some());
    assert_eq!(registry.absorb(Revision(3), &[Change::Put(kv("/n/config", CONFIG, 3))]), vec![]);
    assert_eq!(registry.faults().count(), 0);
}

#[test]
fn a_wiped_store_is_not_mixed_with_the_old_one() {
    let (lease, owner) = ("/n/subnets/10.42.7.0-24", "/n/weft/owner/10.42.7.0-24");
    let start = snapshot(5, [kv(lease, vxlan("192.0.2.7", 7), 5), kv(owner, record("ash"), 5)]);
    let (mut registry, _) = Registry::new(prefix(), &start);
    // By chance the same revision: a record remembered from the old store would look valid.
    registry.wiped(&snapshot(5, [kv(lease, vxlan("192.0.2.9", 9), 5), kv(owner, "garbage", 4)]));
    assert!(matches!(registry.holder(&subnet("10.42.7.0/24")), Holder::Host(_)));
}

#[test]
fn peers_are_everybody_else_who_can_be_one() {
    let lease = |net: &str, value: String| kv(&format!("/n/subnets/{net}"), value, 5);
    let reservation = |net: &str, value: &str| KeyValue { lease: None, ..lease(net, value.to_owned()) };
    let (registry, _) = Registry::new(
        prefix(),
        &snapshot(
            9,
            [
                kv("/n/config", CONFIG, 1),
                lease("10.42.1.0-24", vxlan("192.0.2.1", 1)), // held by us
                lease("10.42.2.0-24", vxlan("192.0.2.1", 2)), // named by our address
                lease("10.42.3.0-24", vxlan("192.0.2.3", 3)), // recorded by us, at an old address
                kv("/n/weft/owner/10.42.3.0-24", record("me"), 5),
                lease("10.42.4.0-24", vxlan("192.0.2.4", 4)), // flanneld
                lease("10.42.5.0-24", vxlan("192.0.2.5", 5)), // weft, running
                kv("/n/weft/owner/10.42.5.0-24", record("elm"), 5),
                kv("/n/weft/live/elm", r#"{"instance":"x"}"#, 6),
                lease("10.42.6.0-24", vxlan("192.0.2.6", 6)), // weft, silent
                kv("/n/weft/owner/10.42.6.0-24", record("fir"), 5),
                lease("10.42.7.0-24", r#"{"PublicIP":"192.0.2.7","BackendType":"ipip"}"#.to_owned()),
                lease("10.9.0.0-24", vxlan("192.0.2.9", 9)), // not in the network
                lease("10.42.0.0-16", vxlan("192.0.2.10", 10)), // overlaps ours
                lease("0.0.0.0-0&fc00::-64", vxlan("192.0.2.11", 11)),
                lease("10.42.12.0-24&fc00::-64", vxlan("192.0.2.12", 12)),
                reservation("10.42.13.0-24", r#"{"PublicIP":"0.0.0.0"}"#),
                reservation("10.42.14.0-24", r#"{"PublicIP":"192.0.2.14"}"#),
            ],
        ),
    );
    let peers = registry.peers(&me(), registry.config().unwrap());
    let table: Vec<String> = peers
        .known
        .values()
        .map(|known| {
            let transports = &known.peer.transports;
            format!(
                "{} {:?} vxlan={} udp={:?}",
                known.peer.subnet,
                known.liveness,
                transports.vxlan.is_some(),
                transports.udp
            )
        })
        .collect();
    assert_eq!(
        table,
        [
            "10.42.4.0/24 Unrecorded vxlan=true udp=None",
            "10.42.5.0/24 Live vxlan=false udp=Some(9)",
            "10.42.6.0/24 Silent vxlan=false udp=Some(9)",
            "10.42.12.0/24 Unrecorded vxlan=true udp=None",
            "10.42.14.0/24 Unrecorded vxlan=false udp=None",
        ]
    );
    let skipped: Vec<&str> = peers.skipped.values().map(String::as_str).collect();
    assert_eq!(
        skipped,
        [
            "fc00::/64 is in no address family of this network",
            "10.9.0.0/24 is not inside the network",
            "10.42.0.0/16 overlaps this host's own subnet",
            "BackendType = \"ipip\": no backend of weft's",
        ]
    );
}

fn any_change() -> impl Strategy<Value = (String, Option<String>)> {
    let key = prop_oneof![
        Just("/n/config".to_owned()),
        (0u8..4).prop_map(|n| format!("/n/subnets/10.42.{n}.0-24")),
        (0u8..4).prop_map(|n| format!("/n/weft/owner/10.42.{n}.0-24")),
        (0u8..3).prop_map(|n| format!("/n/weft/live/n{n}")),
        (0u8..3).prop_map(|n| format!("/n/weft/drain/n{n}")),
        Just("/n/subnets/garbage".to_owned()),
        Just("/n/subnets-backup/x".to_owned()),
    ];
    let value = prop_oneof![
        Just(CONFIG.to_owned()),
        (0u8..4).prop_map(|n| vxlan(&format!("192.0.2.{n}"), n)),
        (0u8..3).prop_map(|n| String::from_utf8(record(&format!("n{n}"))).unwrap()),
        Just(r#"{"instance":"x"}"#.to_owned()),
    ];
    (key, prop::option::of(value))
}

proptest! {
    /// Following the changes and reading the end are the same, as long as every value can be read
    /// (one that cannot keeps what was there before, which a reader of the end never saw).
    #[test]
    fn following_ends_where_reading_ends(changes in prop::collection::vec(any_change(), 0..30)) {
        let fits = |key: &str, value: &str| match prefix().classify(key) {
            Key::Config => NetworkConfig::parse(value.as_bytes()).is_ok(),
            Key::Lease(_) => LeaseAttrs::parse(value.as_bytes()).is_ok(),
            Key::Owner(_) => OwnerRecord::parse(value.as_bytes()).is_ok(),
            _ => true,
        };
        let (mut followed, _) = Registry::new(prefix(), &snapshot(0, []));
        let mut store = BTreeMap::new();
        let mut revision = 0;
        for (key, value) in changes {
            let value = value.filter(|value| fits(&key, value));
            // A deleted config stays in force, so a reader of the end knows less.
            if value.is_none() && (key == "/n/config" || !store.contains_key(&key)) { continue; }
            revision += 1;
            let change = match value {
                Some(value) => {
                    let entry = kv(&key, value, revision);
                    store.insert(key, entry.clone());
                    Change::Put(entry)
                }
                None => {
                    store.remove(&key);
                    Change::Delete { key, revision: Revision(revision) }
                }
            };
            followed.absorb(Revision(revision), &[change]);
        }
        let end = snapshot(revision, store.into_values());
        let (read, _) = Registry::new(prefix(), &end);
        prop_assert_eq!(&followed, &read);
        followed.reset(&end);
        prop_assert_eq!(&followed, &read);
    }

    #[test]
    fn no_keys_or_values_make_it_panic(entries in prop::collection::vec((".{0,12}", prop::collection::vec(any::<u8>(), 0..20)), 0..10)) {
        let under = ["config", "subnets/10.42.1.0-24", "weft/owner/10.42.1.0-24", "weft/live/a", ""];
        let entries = entries.into_iter().enumerate().map(|(i, (key, value))| {
            kv(&format!("/n/{}{}", under[i % under.len()], if i < 4 { "" } else { &key }), value, i as i64)
        });
        let (registry, _) = Registry::new(prefix(), &snapshot(99, entries));
        let parsed = NetworkConfig::parse(CONFIG.as_bytes()).unwrap();
        registry.peers(&me(), &parsed.config);
    }
}
