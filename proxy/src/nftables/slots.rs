//! Which endpoint is in which slot, and which number stands for it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Slots for the endpoints that are wanted, with as few moves as can be: who stays keeps its slot,
/// who comes takes a hole, and if holes are left the last ones move into them. So a change of one
/// endpoint changes at most two slots, and slot 0 has an endpoint while there is one.
pub(super) fn place(before: &[SocketAddr], wanted: &[SocketAddr]) -> Vec<SocketAddr> {
    let wanted_set: BTreeSet<&SocketAddr> = wanted.iter().collect();
    let mut seen = BTreeSet::new();
    let mut slots: Vec<Option<SocketAddr>> = before
        .iter()
        .map(|held| (wanted_set.contains(held) && seen.insert(*held)).then_some(*held))
        .collect();
    let mut coming = wanted.iter().filter(|it| !seen.contains(it)).copied().collect::<Vec<_>>().into_iter();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = coming.next();
    }
    slots.extend(coming.map(Some));
    let mut at = 0;
    while at < slots.len() {
        match slots.get(at) {
            Some(None) => {
                let last = slots.pop().flatten();
                // What was popped may have been this very hole, or another one.
                match slots.get_mut(at) {
                    Some(slot) if last.is_some() => *slot = last,
                    _ => {}
                }
            }
            _ => at += 1,
        }
    }
    slots.into_iter().flatten().collect()
}

/// A number for each endpoint of a service port. Who had one keeps it; a new one is found from the
/// address, so that a proxy that has forgotten everything finds nearly always the same.
pub(super) fn number(
    before: &BTreeMap<SocketAddr, u32>,
    wanted: impl IntoIterator<Item = SocketAddr>,
) -> BTreeMap<SocketAddr, u32> {
    let wanted: BTreeSet<SocketAddr> = wanted.into_iter().collect();
    let mut numbers: BTreeMap<SocketAddr, u32> = before
        .iter()
        .filter(|(held, _)| wanted.contains(held))
        .map(|(held, number)| (*held, *number))
        .collect();
    let mut taken: BTreeSet<u32> = numbers.values().copied().collect();
    for endpoint in wanted {
        numbers.entry(endpoint).or_insert_with(|| {
            let free = free_number(hash(&bytes(&endpoint)), |number| taken.contains(&number));
            taken.insert(free);
            free
        });
    }
    numbers
}

/// The first number that is free, from a wish on.
pub(super) fn free_number(wish: u32, taken: impl Fn(u32) -> bool) -> u32 {
    let mut number = wish;
    // As many are taken as there are services or endpoints, which is far fewer than 2^32.
    while taken(number) {
        number = number.wrapping_add(1);
    }
    number
}

/// FNV-1a, 32 bits (Fowler, Noll, Vo).
pub(super) fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn bytes(endpoint: &SocketAddr) -> Vec<u8> {
    let mut bytes = match endpoint.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend(endpoint.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 42, 0, n], 80))
    }

    fn some() -> impl Strategy<Value = Vec<SocketAddr>> {
        prop::collection::btree_set(0u8..40, 0..12).prop_map(|set| set.into_iter().map(endpoint).collect())
    }

    #[test]
    fn the_last_one_moves_into_the_hole() {
        let [a, b, c, d] = [1, 2, 3, 4].map(endpoint);
        let table = [
            (vec![], vec![a, b], vec![a, b]),
            (vec![b, a], vec![a, b], vec![b, a]),
            (vec![a, b, c], vec![b, c], vec![c, b]),
            (vec![a, b, c], vec![a, b], vec![a, b]),
            (vec![a, b, c], vec![b, c, d], vec![d, b, c]),
            (vec![a, b, c], vec![b], vec![b]),
            (vec![a, b, c, d], vec![d], vec![d]),
            (vec![a, a], vec![a], vec![a]),
            (vec![a, b], vec![], vec![]),
        ];
        for (before, wanted, after) in table {
            assert_eq!(place(&before, &wanted), after, "{before:?} to {wanted:?}");
        }
    }

    proptest! {
        #[test]
        fn slots_hold_what_is_wanted_with_few_moves(first in some(), second in some()) {
            let before = place(&[], &first);
            let after = place(&before, &second);
            let sorted = |list: &[SocketAddr]| list.iter().copied().collect::<BTreeSet<_>>();
            prop_assert_eq!(sorted(&after), sorted(&second));
            prop_assert_eq!(after.len(), second.len());
            let stayed = before.iter().zip(&after).filter(|(old, new)| old != new).count();
            let gone = before.iter().filter(|held| !second.contains(held)).count();
            prop_assert!(stayed <= gone, "only where somebody went is somebody else: {:?} to {:?}", before, after);
            prop_assert_eq!(place(&after, &second), after);
        }

        #[test]
        fn numbers_differ_and_stay(first in some(), second in some()) {
            let before = number(&BTreeMap::new(), first);
            let after = number(&before, second.clone());
            prop_assert_eq!(after.keys().copied().collect::<Vec<_>>(), second);
            let different: BTreeSet<u32> = after.values().copied().collect();
            prop_assert_eq!(different.len(), after.len());
            for (endpoint, number) in &after {
                if let Some(held) = before.get(endpoint) {
                    prop_assert_eq!(held, number);
                }
            }
        }
    }

    #[test]
    fn numbers_that_clash_give_way() {
        assert_eq!(free_number(7, |number| number < 9), 9);
        assert_eq!(free_number(u32::MAX, |number| number == u32::MAX), 0);
    }
}
