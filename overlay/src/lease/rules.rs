//! The rules of [`super::decide`], one row each: what the store holds, what we hold, what is next.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_store::{ClusterId, KeyValue, LeaseId, Revision, Snapshot};

use super::*;
use crate::config::NetworkConfig;
use crate::key::Prefix;
use crate::lease_attrs::LeaseAttrs;
use crate::model::{NodeId, Subnet, Transports};
use crate::registry::{LiveRecord, OwnerRecord, Registry};

/// Four subnets: 10.1.0.0/26 has .16, .32 and .48 to give (and .0, which is never given).
const CONFIG: &str = r#"{"Network":"10.1.0.0/26","SubnetLen":28,"Backend":{"Type":"host-gw"}}"#;

/// What stands in the store for one subnet, named by its last byte; the numbers are mod revisions.
enum Has {
    /// A lease of the host at 192.0.2.x.
    Lease(u8, u8, i64),
    /// The same, without a lease of etcd's.
    Reservation(u8, u8, i64),
    /// A lease that nobody can read.
    Garbage(u8, i64),
    /// A record of a node, under the etcd lease with the subnet's number.
    Record(u8, &'static str, i64),
    /// A record of a node that never said how to reach it: an operator's.
    Aside(u8, &'static str, i64),
    /// A record that is marked as released.
    Released(u8, &'static str, i64),
    /// A node whose daemon runs, at 192.0.2.x.
    Live(&'static str, u8),
    /// A node that is to be drained.
    Drained(&'static str),
}
use Has::*;

fn subnet(last: u8) -> Subnet {
    format!("10.1.0.{last}/28").parse().unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::try_from(name.to_owned()).unwrap()
}

fn me() -> Wish {
    Wish {
        node: node("me"),
        instance: "this run".to_owned(),
        public_v4: Some([192, 0, 2, 1].into()),
        public_v6: None,
        transports: Transports { direct: true, ..Transports::default() },
        remembered: None,
        vacated: false,
    }
}

fn record(name: &str, direct: bool, released: bool) -> Vec<u8> {
    let transports = Transports { direct, ..Transports::default() };
    OwnerRecord { node: node(name), generation: 3, transports, released }.encode()
}

fn registry(has: &[Has]) -> Registry {
    let prefix = Prefix::new("/n");
    let config = NetworkConfig::parse(CONFIG.as_bytes()).unwrap().config;
    let attrs = |last: u8| match last {
        0 => LeaseAttrs::reserved(None).encode(),
        last => {
            let public = Some([192, 0, 2, last].into());
            LeaseAttrs::of_host(&config, public, None, &Transports::default()).encode()
        }
    };
    let entries = has.iter().map(|has| {
        let etcd = |number: u8| Some(LeaseId(number.into()));
        let (key, value, revision, lease) = match has {
            Lease(net, host, at) => (prefix.lease(&subnet(*net)), attrs(*host), *at, Some(LeaseId(1000))),
            Reservation(net, host, at) => (prefix.lease(&subnet(*net)), attrs(*host), *at, None),
            Garbage(net, at) => (prefix.lease(&subnet(*net)), b"?".to_vec(), *at, None),
            Record(net, name, at) => {
                (prefix.owner(&subnet(*net)), record(name, true, false), *at, etcd(*net))
            }
            Aside(net, name, at) => (prefix.owner(&subnet(*net)), record(name, false, false), *at, None),
            Released(net, name, at) => {
                (prefix.owner(&subnet(*net)), record(name, true, true), *at, etcd(*net))
            }
            Live(name, host) => {
                let record = LiveRecord {
                    instance: "that run".to_owned(),
                    public_v4: Some([192, 0, 2, *host].into()),
                    public_v6: None,
                };
                (prefix.live(&node(name)), record.encode(), 9, Some(LeaseId(2000)))
            }
            Drained(name) => (prefix.drain(&node(name)), b"{}".to_vec(), 9, None),
        };
        let revision = Revision(revision);
        KeyValue { key, value, create_revision: revision, mod_revision: revision, lease }
    });
    let run = LiveRecord { instance: "this run".to_owned(), public_v4: None, public_v6: None };
    let announced = KeyValue {
        key: prefix.live(&node("me")),
        value: run.encode(),
        create_revision: Revision(8),
        mod_revision: Revision(8),
        lease: Some(LeaseId(2000)),
    };
    // Another record of us in the list takes its place.
    let entries = std::iter::once(announced).chain(entries).map(|kv| (kv.key.clone(), kv)).collect();
    Registry::new(prefix, &Snapshot { cluster: ClusterId(1), revision: Revision(99), entries }).0
}

/// A decision in a few words.
fn words(decision: &Decision) -> String {
    let name = |subnet: &Subnet| match subnet.v4 {
        Some(net) => format!(".{}", net.ip().octets()[3]),
        None => subnet.to_string(),
    };
    match decision {
        Decision::Hold(tenure) if tenure.draining => format!("hold {}, draining", name(&tenure.subnet)),
        Decision::Hold(tenure) => format!("hold {}", name(&tenure.subnet)),
        Decision::Claim(claim) => {
            let at = |revision: Option<Revision>| revision.map_or("new".to_owned(), |at| at.to_string());
            let lease = match claim.flannel_lease {
                Bind::Forever => "for ever",
                Bind::Keep(_) => "same lease",
                Bind::Fresh => "new lease",
            };
            let (lease_at, owner_at) = (at(claim.lease_at), at(claim.owner_at));
            format!("claim {} over {lease_at}/{owner_at}, {lease}", name(&claim.subnet))
        }
        Decision::GiveUp(subnet, _) => format!("give up {}", name(subnet)),
        Decision::NeedAges(leases) => format!("ages of {:?}", leases.iter().map(|l| l.0).collect::<Vec<_>>()),
        Decision::Wait(Waiting::Exhausted { .. }) => "wait: exhausted".to_owned(),
        Decision::Wait(Waiting::Drained { .. }) => "wait: drained".to_owned(),
        Decision::Wait(Waiting::DuplicateNode { address, .. }) => format!("wait: also at {address}"),
        Decision::Wait(waiting) => format!("wait: {waiting}"),
        Decision::Lost(loss) => format!("lost {}: {:?}", name(&loss.subnet), loss.by),
    }
}

fn next(has: &[Has], held: Option<u8>, wish: &Wish) -> String {
    let config = NetworkConfig::parse(CONFIG.as_bytes()).unwrap().config;
    words(&decide(&registry(has), &config, wish, held.map(subnet), &BTreeMap::new(), 7))
}

#[test]
fn what_we_hold_is_kept_mended_or_lost() {
    let ours = || vec![Lease(16, 1, 5), Record(16, "me", 5)];
    let with = |more: Vec<Has>| ours().into_iter().chain(more).collect::<Vec<_>>();
    let by_host = "lost .16: Host([192.0.2.9])";
    let table: Vec<(&str, Vec<Has>, &str)> = vec![
        ("all is well", ours(), "hold .16"),
        ("others do not matter", with(vec![Lease(32, 9, 6), Record(48, "elm", 7)]), "hold .16"),
        ("wiped", vec![], "claim .16 over new/new, new lease"),
        ("the lease ran out", vec![Record(16, "me", 5)], "claim .16 over new/5, new lease"),
        ("the record is gone", vec![Lease(16, 1, 5)], "claim .16 over 5/new, new lease"),
        (
            "flanneld of this host wrote",
            vec![Lease(16, 1, 6), Record(16, "me", 5)],
            "claim .16 over 6/5, new lease",
        ),
        (
            "our address was another",
            vec![Lease(16, 8, 5), Record(16, "me", 5)],
            "claim .16 over 5/5, same lease",
        ),
        ("garbage", vec![Garbage(16, 6), Record(16, "me", 5)], "claim .16 over 6/5, new lease"),
        ("garbage alone", vec![Garbage(16, 6)], "claim .16 over 6/new, new lease"),
        (
            "a reservation at an old address",
            vec![Reservation(16, 8, 5), Record(16, "me", 5)],
            "claim .16 over 5/5, for ever",
        ),
        ("reserved", vec![Reservation(16, 1, 5), Record(16, "me", 5)], "hold .16"),
        (
            "reserved by hand, flannel's way",
            vec![Reservation(16, 1, 6), Record(16, "me", 5)],
            "claim .16 over 6/5, for ever",
        ),
        ("flanneld elsewhere wrote", vec![Lease(16, 9, 6), Record(16, "me", 5)], by_host),
        ("flanneld elsewhere alone", vec![Lease(16, 9, 6)], by_host),
        ("another weft host", vec![Lease(16, 9, 6), Record(16, "elm", 6)], "lost .16: Node(NodeId(\"elm\"))"),
        ("another's claim", vec![Record(16, "elm", 6)], "lost .16: Node(NodeId(\"elm\"))"),
        (
            "another's claim under garbage",
            vec![Garbage(16, 7), Record(16, "elm", 6)],
            "lost .16: Node(NodeId(\"elm\"))",
        ),
        ("an operator released it", vec![Released(16, "me", 6)], "lost .16: Released"),
        ("another's leftovers", vec![Released(16, "elm", 6)], "claim .16 over new/6, new lease"),
        ("two of ours", with(vec![Lease(32, 1, 6), Record(32, "me", 6)]), "give up .32"),
        ("a reservation of ours", with(vec![Reservation(32, 1, 6), Record(32, "me", 6)]), "give up .32"),
        ("an unused reservation of ours", with(vec![Reservation(32, 0, 6), Aside(32, "me", 6)]), "hold .16"),
        ("an old claim of ours", with(vec![Record(32, "me", 4)]), "give up .32"),
        ("our void record", with(vec![Lease(32, 9, 6), Record(32, "me", 4)]), "give up .32"),
        ("our own earlier run", with(vec![Live("me", 1)]), "hold .16"),
        ("a second host with our id", with(vec![Live("me", 9)]), "wait: also at 192.0.2.9"),
        ("being drained", with(vec![Drained("me")]), "hold .16, draining"),
        ("another is drained", with(vec![Drained("elm")]), "hold .16"),
    ];
    for (case, has, expected) in table {
        assert_eq!(next(&has, Some(16), &me()), expected, "{case}");
    }
    assert_eq!(next(&ours(), Some(64), &me()), "lost .64: Unfit");
    let nowhere = Wish { public_v4: None, ..me() };
    assert!(next(&ours(), Some(16), &nowhere).starts_with("wait: waiting for a public address"));
}

#[test]
fn a_subnet_is_found_in_the_documented_order() {
    let all_leased = || vec![Lease(16, 7, 5), Lease(32, 8, 5), Lease(48, 9, 5)];
    let table: Vec<(&str, Vec<Has>, &str)> = vec![
        ("ours by the store", vec![Lease(32, 1, 5), Record(32, "me", 5)], "hold .32"),
        (
            "the one in use before the reserved",
            vec![Reservation(16, 0, 5), Aside(16, "me", 5), Lease(32, 1, 6), Record(32, "me", 6)],
            "hold .32",
        ),
        (
            "a record whose lease ran out",
            vec![Record(32, "me", 5), Lease(48, 1, 6)],
            "claim .32 over new/5, new lease",
        ),
        ("a lease at our address", vec![Lease(48, 1, 6)], "claim .48 over 6/new, new lease"),
        (
            "one at our address, void record",
            vec![Lease(48, 1, 6), Record(48, "elm", 5)],
            "claim .48 over 6/5, new lease",
        ),
        (
            "one at our address, of another node",
            vec![Lease(48, 1, 5), Record(48, "elm", 5), Lease(16, 8, 5)],
            "claim .32 over new/new, new lease",
        ),
        ("a reservation for our address", vec![Reservation(48, 1, 6)], "claim .48 over 6/new, for ever"),
        (
            "never used before released",
            vec![Released(16, "elm", 5), Released(32, "me", 5)],
            "claim .48 over new/new, new lease",
        ),
        (
            "never used before claimed",
            vec![Record(16, "elm", 5), Record(32, "fir", 5)],
            "claim .48 over new/new, new lease",
        ),
        (
            "released before claimed",
            vec![Record(16, "elm", 5), Released(32, "fir", 5), Lease(48, 9, 5)],
            "claim .32 over new/5, new lease",
        ),
        (
            "exhausted but for claims",
            vec![Record(16, "elm", 5), Record(32, "fir", 6), Lease(48, 9, 5)],
            "ages of [16, 32]",
        ),
        (
            "a claim of a host that runs",
            vec![Record(16, "elm", 5), Live("elm", 4), Lease(32, 8, 5), Lease(48, 9, 5)],
            "wait: exhausted",
        ),
        ("exhausted", all_leased(), "wait: exhausted"),
        (
            "garbage is in the way, not ours",
            vec![Garbage(16, 5), Lease(32, 8, 5), Lease(48, 9, 5)],
            "wait: exhausted",
        ),
        ("drained", vec![Drained("me")], "wait: drained"),
        ("drained, with leftovers", vec![Drained("me"), Lease(32, 1, 5), Record(32, "me", 5)], "give up .32"),
        ("our id elsewhere", vec![Live("me", 9)], "wait: also at 192.0.2.9"),
    ];
    for (case, has, expected) in table {
        assert_eq!(next(&has, None, &me()), expected, "{case}");
    }
    let remembering = Wish { remembered: Some(subnet(32)), ..me() };
    let table: Vec<(&str, Vec<Has>, &str)> = vec![
        ("free", vec![], "claim .32 over new/new, new lease"),
        ("released", vec![Released(32, "elm", 5)], "claim .32 over new/5, new lease"),
        (
            "claimed by another",
            vec![Record(32, "elm", 5), Lease(16, 8, 5)],
            "claim .48 over new/new, new lease",
        ),
        ("leased by another", vec![Lease(32, 9, 5), Lease(16, 8, 5)], "claim .48 over new/new, new lease"),
        ("but another is ours", vec![Lease(16, 1, 5), Record(16, "me", 5)], "hold .16"),
    ];
    for (case, has, expected) in table {
        assert_eq!(next(&has, None, &remembering), expected, "remembered, {case}");
    }
}

#[test]
fn the_claim_that_was_left_for_longest_goes_first() {
    let has = [Record(16, "elm", 5), Record(32, "fir", 4), Record(48, "oak", 6)];
    let config = NetworkConfig::parse(CONFIG.as_bytes()).unwrap().config;
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let ages = [(LeaseId(16), hours(50)), (LeaseId(32), hours(90)), (LeaseId(48), hours(7))].into();
    let decision = decide(&registry(&has), &config, &me(), None, &ages, 7);
    assert_eq!(words(&decision), "claim .48 over new/6, new lease");
}

#[test]
fn a_host_keeps_its_ipv4_subnet_when_ipv6_is_switched_on() {
    let dual = r#"{"Network":"10.1.0.0/26","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"host-gw"}}"#;
    let config = NetworkConfig::parse(dual.as_bytes()).unwrap().config;
    let registry = registry(&[Lease(32, 1, 5), Record(32, "me", 5), Lease(16, 9, 6)]);
    let mut tenant = Tenant::new(Some(subnet(32)), 7);
    match tenant.step(&registry, &config, &me(), &Ages::new()) {
        Step::Claim(claim) => {
            assert_eq!(claim.subnet.v4, subnet(32).v4);
            assert!(claim.subnet.v6.is_some());
            assert_eq!(claim.after, Some(None), "two families: one claim after the other");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(tenant.take_loss().map(|loss| loss.by), Some(LostBy::Unfit));
}
