//! The rules of the userspace mode: connections over TCP come to the right door, everything else goes
//! where it always did.

use std::net::SocketAddr;

use super::*;
use crate::host::NodePortAddresses;
use crate::model::{Family, Policy, Protocol};
use crate::simulate::Packet;
use crate::userspace::testing::{Doors, closed, led, served_by};

fn doors() -> Vec<Doors> {
    let door = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
    let doors = |address: &str| Doors { cluster: door(address, 50_001), local: door(address, 50_002) };
    vec![doors("192.0.2.1"), doors("2001:db8:2::1")]
}

/// The table of a scenario in userspace mode.
fn carried(scenario: &Scenario) -> Table {
    let plans = everything(&scenario.model, &scenario.host);
    let led = plans.into_iter().map(|(name, plan)| (name, led(plan, &doors()))).chain([closed(&doors())]);
    Program::load(&scenario.host, led, None).table()
}

fn in_userspace(mut scenario: Scenario, localhost: bool) -> Scenario {
    scenario.host.settings.userspace = true;
    if localhost {
        scenario.host.settings.node_ports = NodePortAddresses::parse(["primary", "localhost"]).unwrap();
    }
    scenario
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Who the semantics lead to endpoints comes to the door of their set, with its own address, and we
    /// send it to just these. What becomes of all others is the same as ever.
    #[test]
    fn connections_come_to_the_door_of_their_endpoints(scenario in scenarios(), localhost in any::<bool>()) {
        let scenario = in_userspace(scenario, localhost);
        let table = carried(&scenario);
        let plans = everything(&scenario.model, &scenario.host);
        for at in 0..scenario.packets.len() {
            let packet = &scenario.packets[at];
            let seen: Vec<End> =
                ends(&table, &scenario, at, &Dynamic::new()).into_iter().map(|(end, _)| end).collect();
            let wanted = sorted(expected(&scenario, at, None));
            let is_led = matches!(wanted.first(), Some(End::To { .. }));
            if packet.protocol != Protocol::Tcp || !is_led {
                prop_assert_eq!(sorted(seen), wanted, "{}", packet);
                continue;
            }
            let [End::To { endpoint: door, masquerade: false }] = &seen[..] else {
                return Err(TestCaseError::fail(format!("{packet}: {seen:?}")));
            };
            let mine = |doors: &&Doors| [doors.cluster, doors.local].contains(door);
            let all = doors();
            let set = if all.iter().find(mine).unwrap().local == *door { Policy::Local } else { Policy::Cluster };
            let reached = served_by(&plans, packet.destination, set, packet.source);
            let reached = reached.into_iter().map(|endpoint| End::To { endpoint, masquerade: true });
            prop_assert_eq!(sorted(reached.collect()), wanted, "{} by {}", packet, door);
        }
    }

    /// What is not for a service never gets in by a door, nor by its address.
    #[test]
    fn doors_are_closed_to_who_knocks(scenario in scenarios(), local in any::<bool>()) {
        let mut scenario = in_userspace(scenario, false);
        let family = |packet: &Packet| packet.family() == Some(Family::V4);
        let door = doors()[0];
        scenario.packets.retain(family);
        for packet in &mut scenario.packets {
            packet.protocol = Protocol::Tcp;
            packet.destination = if local { door.local } else { door.cluster };
        }
        let table = carried(&scenario);
        for at in 0..scenario.packets.len() {
            let seen = ends(&table, &scenario, at, &Dynamic::new());
            prop_assert!(seen.iter().all(|(end, _)| *end == End::Rejected), "{:?}", seen);
        }
    }
}
