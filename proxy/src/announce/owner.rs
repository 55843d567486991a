//! Which of some hosts answers for an address.

use std::net::IpAddr;

use crate::model::NodeName;

/// The host that answers for an address, of those that can: the one whose name and the address have the
/// highest hash together (rendezvous hashing: Thaler and Ravishankar, "Using name-based mappings to
/// increase hit rates", 1998). All hosts agree without a word, addresses spread over hosts, and when one
/// comes or goes only its own addresses move.
pub fn owner<'a>(
    address: IpAddr,
    candidates: impl IntoIterator<Item = &'a NodeName>,
) -> Option<&'a NodeName> {
    // Two names with one hash: the smaller name, whatever the order.
    candidates
        .into_iter()
        .max_by(|one, other| (weight(address, one), *other).cmp(&(weight(address, other), *one)))
}

/// FNV-1a with 64 bits (draft-eastlake-fnv), its bits mixed by the finalizer of SplitMix64: names that
/// differ in one digit must not have weights that are alike. It must never change: hosts with different
/// versions of weft have to agree.
fn weight(address: IpAddr, node: &NodeName) -> u64 {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let bytes = octets.iter().chain(node.0.as_bytes());
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn nodes(count: u8) -> Vec<NodeName> {
        (1..=count).map(|number| NodeName::new(&format!("node-{number}"))).collect()
    }

    /// Other hosts, of other versions, come to the same.
    #[test]
    fn the_owner_never_changes_with_the_version() {
        let nodes = nodes(4);
        let of = |address: &str| owner(address.parse().unwrap(), &nodes).map(|node| node.0.to_string());
        let owners = ["203.0.113.1", "203.0.113.2", "203.0.113.3", "2001:db8::1"].map(|it| of(it).unwrap());
        assert_eq!(owners, ["node-3", "node-3", "node-2", "node-2"]);
        assert_eq!(owner("203.0.113.1".parse().unwrap(), []), None);
    }

    #[test]
    fn addresses_spread_over_hosts() {
        let nodes = nodes(5);
        let mut shares: BTreeMap<&NodeName, u32> = BTreeMap::new();
        for number in 0..1000u32 {
            let address = IpAddr::from(Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + number));
            *shares.entry(owner(address, &nodes).unwrap()).or_default() += 1;
        }
        // Five standard deviations of a fair choice: sqrt(1000 * 0.2 * 0.8) is 12.6.
        assert!(shares.len() == 5 && shares.values().all(|share| share.abs_diff(200) < 63), "{shares:?}");
    }

    proptest! {
        #[test]
        fn only_addresses_of_who_comes_or_goes_move(number: u32, count in 2u8..20, gone in 0usize..20) {
            let (address, nodes) = (IpAddr::from(Ipv4Addr::from(number)), nodes(count));
            let before = owner(address, &nodes).unwrap();
            let gone = &nodes[gone % nodes.len()];
            let left: BTreeSet<&NodeName> = nodes.iter().filter(|node| *node != gone).collect();
            let after = owner(address, left.into_iter().rev()).unwrap();
            prop_assert!(after == before || before == gone);
        }
    }
}
