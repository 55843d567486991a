//! Which subnets are free, and a fair pick among them.
//!
//! Pure. A pool may have 2^62 subnets (an IPv6 /64 in a /2), so that nothing here walks over it: what
//! is taken becomes a few ranges of subnet numbers, and the pick is the n-th number between them.
//! Every free subnet is equally likely (flannel looks at the first hundred only, which makes hosts
//! that start at once collide).

use crate::config::{Family, NetworkConfig, Pool};
use crate::model::Subnet;

/// A subnet that shares no address with any of `taken`. A family of `wanted` that is free is kept,
/// the rest is picked by `seed`. `None` if a family has nothing left.
pub(crate) fn allocate(
    config: &NetworkConfig,
    taken: &[Subnet],
    wanted: Option<Subnet>,
    seed: u64,
) -> Option<Subnet> {
    let v4 = match &config.v4 {
        None => None,
        Some(pool) => {
            let taken = taken.iter().filter_map(|subnet| subnet.v4);
            Some(pick(pool, taken, wanted.and_then(|subnet| subnet.v4), seed)?)
        }
    };
    let v6 = match &config.v6 {
        None => None,
        Some(pool) => {
            let taken = taken.iter().filter_map(|subnet| subnet.v6);
            // Another stream than the first family's, so that the two numbers are unrelated.
            Some(pick(pool, taken, wanted.and_then(|subnet| subnet.v6), mix(seed))?)
        }
    };
    Some(Subnet { v4, v6 })
}

/// How many subnets the smaller of the two families may hand out.
pub(crate) fn capacity(config: &NetworkConfig) -> u128 {
    let v4 = config.v4.map_or(u128::MAX, |pool| pool.count());
    v4.min(config.v6.map_or(u128::MAX, |pool| pool.count()))
}

fn pick<N: Family>(
    pool: &Pool<N>,
    taken: impl Iterator<Item = N>,
    wanted: Option<N>,
    seed: u64,
) -> Option<N> {
    let taken = merge(taken.filter_map(|net| pool.overlap(net)).collect());
    let wanted = wanted.filter(|net| pool.fits(*net)).and_then(|net| pool.overlap(net));
    if let Some((index, _)) = wanted
        && taken.iter().all(|(first, last)| index < *first || index > *last)
    {
        return Some(pool.nth(index));
    }
    let used: u128 = taken.iter().map(|(first, last)| last - first + 1).sum();
    let free = pool.count() - used;
    if free == 0 {
        return None;
    }
    // The n-th free number is n plus every taken range that begins at or below it.
    let n = u128::from(mix(seed)) % free;
    let index =
        taken.iter().fold(n, |at, (first, last)| if *first <= at { at + last - first + 1 } else { at });
    Some(pool.nth(index))
}

/// Sorted ranges that neither overlap nor touch the same number twice.
fn merge(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// SplitMix64's finisher (Steele, Lea, Flood 2014): near seeds give unrelated numbers.
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap().config
    }

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    const TINY: &str = r#"{"Network":"10.1.0.0/28","SubnetLen":30}"#;
    const DUAL: &str =
        r#"{"Network":"10.1.0.0/28","SubnetLen":30,"EnableIPv6":true,"IPv6Network":"fc00::/8"}"#;

    #[test]
    fn what_is_wanted_is_taken_if_it_is_free() {
        let table = [
            (TINY, "10.1.0.4/30", vec![], true),
            (TINY, "10.1.0.4/30", vec!["10.1.0.4/30"], false),
            (TINY, "10.1.0.4/30", vec!["10.1.0.0/29"], false),
            (TINY, "10.1.0.4/30", vec!["10.1.0.5/32"], false),
            (TINY, "10.1.0.0/30", vec![], false), // before SubnetMin
            (TINY, "10.1.0.0/29", vec![], false), // not the length of a subnet
            (DUAL, "10.1.0.4/30,fc00:1::/64", vec!["10.1.0.8/30,fc00:2::/64"], true),
        ];
        for (text, wanted, taken, kept) in table {
            let wanted = subnet_loose(wanted);
            let taken: Vec<Subnet> = taken.into_iter().map(subnet_loose).collect();
            let found = allocate(&config(text), &taken, Some(wanted), 1).unwrap();
            assert_eq!(found == wanted, kept, "{wanted} beside {taken:?}: {found}");
        }
        let halves = allocate(
            &config(DUAL),
            &[subnet("10.1.0.4/30,fc00:2::/64")],
            Some(subnet("10.1.0.4/30,fc00:1::/64")),
            1,
        )
        .unwrap();
        assert_eq!(halves.v6, subnet("fc00:1::/64").v6, "the free half is kept");
        assert_ne!(halves.v4, subnet("10.1.0.4/30").v4);
    }

    /// Host routes are no leases, but a foreign key may say anything.
    fn subnet_loose(text: &str) -> Subnet {
        let mut parts = text.split(',');
        let v4 = parts.next().map(|net| net.parse().unwrap());
        Subnet { v4, v6: parts.next().map(|net| net.parse().unwrap()) }
    }

    #[test]
    fn every_free_subnet_is_found_and_then_no_more() {
        let config = config(r#"{"Network":"10.1.0.0/24","SubnetLen":28,"SubnetMax":"10.1.0.192"}"#);
        assert_eq!(capacity(&config), 12);
        let mut taken = Vec::new();
        for seed in 0..12 {
            taken.push(allocate(&config, &taken, None, seed).expect("one is left"));
        }
        assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 12);
        assert_eq!(allocate(&config, &taken, None, 99), None);
    }

    #[test]
    fn the_pick_is_fair_beyond_the_first_hundred() {
        let config = config(r#"{"Network":"10.0.0.0/8"}"#);
        let far = (0..200).filter(|seed| {
            let found = allocate(&config, &[], None, *seed).unwrap();
            found.v4.unwrap().ip() >= std::net::Ipv4Addr::new(10, 128, 0, 0)
        });
        let far = far.count();
        assert!((60..140).contains(&far), "{far} of 200 in the upper half");
    }

    proptest! {
        #[test]
        fn a_pick_is_free_and_in_the_pool(
            taken in prop::collection::vec((0u32..0x1000, 20u8..32), 0..40), seed: u64,
        ) {
            let config = config(r#"{"Network":"10.1.0.0/20","SubnetLen":26}"#);
            let pool = config.v4.unwrap();
            let taken: Vec<Subnet> = taken
                .into_iter()
                .map(|(host, len)| {
                    let net = ipnetwork::Ipv4Network::new((0x0a01_0000 + host).into(), len).unwrap();
                    Subnet { v4: Some(ipnetwork::Ipv4Network::new(net.network(), len).unwrap()), v6: None }
                })
                .collect();
            let free = (0..pool.count())
                .filter(|i| taken.iter().all(|t| !t.v4.unwrap().overlaps(pool.nth(*i))))
                .count();
            match allocate(&config, &taken, None, seed) {
                None => prop_assert_eq!(free, 0),
                Some(found) => {
                    prop_assert!(taken.iter().all(|t| !t.overlaps(&found)));
                    prop_assert!(config.fits(&found));
                    prop_assert!(pool.min <= found.v4.unwrap() && found.v4.unwrap() <= pool.max);
                }
            }
        }

        #[test]
        fn the_largest_pools_are_no_problem(len in 1u8..60, seed: u64) {
            let text = format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"8000::/{len}"}}"#);
            let config = config(&text);
            let found = allocate(&config, &[], None, seed).unwrap();
            prop_assert!(config.fits(&found));
            prop_assert_ne!(allocate(&config, &[found], None, seed), Some(found));
        }
    }
}
