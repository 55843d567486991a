//! The parts of the simulator that have rules of their own: memory, hash, words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::generators::scenarios;
use crate::host::ClientHash;
use crate::plan::slots;
use proptest::prelude::*;

#[test]
fn a_client_is_remembered_until_the_timeout_after_its_last_new_connection() {
    let port =
        PortName { service: ServiceName::new("shop", "web"), port: "http".into(), protocol: Protocol::Tcp };
    let other = PortName { port: "admin".into(), ..port.clone() };
    let (client, stranger): (IpAddr, IpAddr) = ("10.1.0.9".parse().unwrap(), "10.1.0.8".parse().unwrap());
    let endpoint: SocketAddr = "10.1.0.5:8080".parse().unwrap();
    let at = Duration::from_secs;
    let mut memory = Memory::default();
    memory.record(&port, client, endpoint, at(100));
    assert_eq!(memory.recall(&port, client, at(10), at(109)), Some(endpoint));
    assert_eq!(memory.recall(&port, client, at(10), at(110)), None, "the time is over");
    assert_eq!(memory.recall(&port, stranger, at(10), at(101)), None, "another client");
    assert_eq!(memory.recall(&other, client, at(10), at(101)), None, "another port");
    memory.record(&port, client, endpoint, at(109));
    assert_eq!(
        memory.recall(&port, client, at(10), at(118)),
        Some(endpoint),
        "counts from the last connection"
    );
}

fn endpoints(count: u8) -> Vec<SocketAddr> {
    (1..=count).map(|number| SocketAddr::from(([10, 1, 0, number], 8080))).collect()
}

/// The plan's table and the simulator's rule were written apart.
#[test]
fn the_table_of_slots_is_the_rule() {
    let v6 = SocketAddr::from(([0xfd00, 1, 0, 0, 0, 0, 0, 5], 53));
    for endpoints in [endpoints(1), endpoints(2), endpoints(7), vec![v6, endpoints(1)[0]]] {
        let table = slots(&endpoints);
        assert_eq!(table.len(), Balance::SLOTS as usize);
        for slot in 0..Balance::SLOTS {
            assert_eq!(Some(endpoints[table[slot as usize]]), hash::owner(&endpoints, slot), "slot {slot}");
        }
    }
    assert_eq!(slots(&[]), [0; 0]);
    assert_eq!(hash::owner(&[], 7), None);
}

#[test]
fn an_endpoint_that_goes_gives_away_only_its_own_slots() {
    let all = endpoints(10);
    let before: Vec<SocketAddr> = slots(&all).into_iter().map(|index| all[index]).collect();
    let gone = all[3];
    let rest: Vec<SocketAddr> = all.iter().copied().filter(|it| *it != gone).collect();
    let after: Vec<SocketAddr> = slots(&rest).into_iter().map(|index| rest[index]).collect();
    for (slot, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(before == after || *before == gone, "slot {slot} moved from {before} to {after}");
    }
}

#[test]
fn slots_are_shared_out_evenly() {
    let all = endpoints(10);
    let mut shares: BTreeMap<usize, usize> = BTreeMap::new();
    for index in slots(&all) {
        *shares.entry(index).or_default() += 1;
    }
    // 102 each on average; four standard deviations of the binomial distribution are 38.
    assert_eq!(shares.len(), all.len());
    assert!(shares.values().all(|share| (64..=141).contains(share)), "{shares:?}");
}

/// What `meta mark set jhash ip saddr mod 1024 seed 0x77656674` gave on Linux 6.18, x86-64.
#[test]
fn the_kernel_finds_the_same_slots() {
    let table = [
        ("10.1.0.1", 0x3a8),
        ("10.1.0.2", 0x32f),
        ("10.1.0.3", 0x17c),
        ("10.1.0.250", 0x144),
        ("fd00:1::1", 0x383),
        ("fd00:1::2", 0x274),
        ("fd00:1::3", 0x332),
        ("fd00:1::250", 0x284),
    ];
    for (client, slot) in table {
        assert_eq!(client_slot(client.parse().unwrap(), ClientHash::Jhash), slot, "{client}");
    }
}

/// Different addresses in different slots; every slot possible.
#[test]
fn clients_are_spread_over_all_slots() {
    let clients = (0..=u16::MAX).map(|number| {
        let [high, low] = number.to_be_bytes();
        IpAddr::from([10, 1, high, low])
    });
    let v6 = (0..5000u16).map(|number| IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, number]));
    for by in [ClientHash::Jhash, ClientHash::Murmur] {
        let used = |clients: &mut dyn Iterator<Item = IpAddr>| {
            clients.map(|client| client_slot(client, by)).collect::<BTreeSet<u32>>().len()
        };
        assert_eq!(used(&mut clients.clone()), Balance::SLOTS as usize);
        assert!(used(&mut v6.clone()) > 950);
    }
}

proptest! {
    /// A person who reads the words can follow: there is a reason for whatever happens.
    #[test]
    fn every_fate_has_a_reason(scenario in scenarios()) {
        for packet in &scenario.packets {
            let trace = simulate(&scenario.model, &scenario.host, packet);
            prop_assert!(!trace.why.is_empty());
            prop_assert!(trace.reached.is_some() || !matches!(trace.outcome, Outcome::Endpoints(_)));
        }
    }
}
