//! Which addresses of the host's subnet pods may get, and which one comes next. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// A run of addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is no [`Range`], or why a range does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// Neither `FIRST-LAST` nor a CIDR.
    #[error("`{0}` is no range: write FIRST-LAST or a CIDR, such as 10.42.7.64-10.42.7.127 or 10.42.7.64/26")]
    Syntax(String),
    /// The ends are of two families or in the wrong order.
    #[error("`{0}` is no range: both ends must be of one family, the lower first")]
    Order(String),
    /// Not inside the host's subnet.
    #[error("range {range} is not inside this host's subnet {subnet}")]
    Outside {
        /// The range.
        range: Range,
        /// The subnet.
        subnet: IpNetwork,
    },
}

impl Range {
    /// Every address of a subnet that a pod may get: all but the network address (the VTEP's), the
    /// next one (the gateway of a bridge, and what `FLANNEL_SUBNET` names) and, in IPv4, the
    /// broadcast address. `None` when nothing is left.
    pub fn of_subnet(subnet: IpNetwork) -> Option<Self> {
        let (first, last) = match subnet {
            IpNetwork::V4(net) => {
                let last = u32::from(net.broadcast()).checked_sub(1)?;
                let first = u32::from(net.network()).checked_add(2)?;
                (IpAddr::V4(Ipv4Addr::from(first)), IpAddr::V4(Ipv4Addr::from(last)))
            }
            IpNetwork::V6(net) => {
                let first = u128::from(net.network()).checked_add(2)?;
                (IpAddr::V6(Ipv6Addr::from(first)), IpAddr::V6(net.broadcast()))
            }
        };
        (first <= last).then_some(Self { first, last })
    }

    /// This range, if it lies within what a pod may get of the subnet.
    ///
    /// # Errors
    /// [`BadRange::Outside`] when it does not.
    pub fn within(self, subnet: IpNetwork) -> Result<Self, BadRange> {
        let inside = Self::of_subnet(subnet)
            .is_some_and(|whole| whole.contains(self.first) && whole.contains(self.last));
        if inside { Ok(self) } else { Err(BadRange::Outside { range: self, subnet }) }
    }

    /// The range holds the address.
    pub fn contains(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.first.is_ipv4() && self.first <= addr && addr <= self.last
    }

    /// It is a range of IPv4 addresses.
    pub fn is_ipv4(self) -> bool {
        self.first.is_ipv4()
    }

    /// The next free address after the one given out last, starting over at the end: an address
    /// that was just given back is used again as late as possible, so that nobody's stale
    /// neighbour or connection entry leads to the wrong pod. `None` when all are taken.
    pub fn next_free(self, taken: &BTreeSet<IpAddr>, last_given: Option<IpAddr>) -> Option<IpAddr> {
        let start = last_given.filter(|last| self.contains(*last)).and_then(successor);
        let start = start.filter(|start| self.contains(*start)).unwrap_or(self.first);
        self.first_free(start, self.last, taken).or_else(|| self.first_free(self.first, start, taken))
    }

    /// Steps over taken addresses only, so the cost is the number of pods, not the size of a /64.
    fn first_free(self, from: IpAddr, to: IpAddr, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let mut candidate = from;
        for used in taken.range(from..=to) {
            if *used != candidate {
                return Some(candidate);
            }
            candidate = successor(candidate)?;
        }
        (candidate <= to).then_some(candidate)
    }
}

fn successor(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

impl FromStr for Range {
    type Err = BadRange;
    fn from_str(raw: &str) -> Result<Self, BadRange> {
        let syntax = || BadRange::Syntax(raw.to_owned());
        let (first, last) = match raw.split_once('-') {
            Some((first, last)) => {
                (first.trim().parse().map_err(|_| syntax())?, last.trim().parse().map_err(|_| syntax())?)
            }
            None => {
                let net: IpNetwork = raw.trim().parse().map_err(|_| syntax())?;
                (net.network(), net.broadcast())
            }
        };
        let (first, last): (IpAddr, IpAddr) = (first, last);
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(BadRange::Order(raw.to_owned()));
        }
        Ok(Self { first, last })
    }
}

impl TryFrom<String> for Range {
    type Error = BadRange;
    fn try_from(raw: String) -> Result<Self, BadRange> {
        raw.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(raw: &str) -> IpAddr {
        raw.parse().unwrap()
    }

    #[test]
    fn a_subnet_gives_all_but_the_vtep_the_gateway_and_the_broadcast_address() {
        let table = [
            ("10.42.7.0/24", Some("10.42.7.2-10.42.7.254")),
            ("10.42.7.8/30", Some("10.42.7.10-10.42.7.10")),
            ("10.42.7.8/31", None),
            ("10.42.7.8/32", None),
            ("fd00:0:0:7::/64", Some("fd00:0:0:7::2-fd00::7:ffff:ffff:ffff:ffff")),
            ("fd00::/128", None),
        ];
        for (subnet, range) in table {
            let got = Range::of_subnet(subnet.parse().unwrap()).map(|range| range.to_string());
            assert_eq!(got.as_deref(), range, "{subnet}");
        }
    }

    #[test]
    fn ranges_are_read_as_ends_or_as_cidr() {
        let table = [
            ("10.42.7.64-10.42.7.127", Ok("10.42.7.64-10.42.7.127")),
            ("10.42.7.64/26", Ok("10.42.7.64-10.42.7.127")),
            ("10.42.7.9-10.42.7.8", Err(BadRange::Order("10.42.7.9-10.42.7.8".into()))),
            ("10.42.7.9-fd00::1", Err(BadRange::Order("10.42.7.9-fd00::1".into()))),
            ("pods", Err(BadRange::Syntax("pods".into()))),
        ];
        for (raw, expected) in table {
            assert_eq!(
                raw.parse::<Range>().map(|range| range.to_string()),
                expected.map(str::to_owned),
                "{raw}"
            );
        }
    }

    #[test]
    fn a_range_must_leave_the_vtep_and_the_gateway_alone() {
        let subnet: IpNetwork = "10.42.7.0/24".parse().unwrap();
        assert!("10.42.7.2-10.42.7.99".parse::<Range>().unwrap().within(subnet).is_ok());
        for raw in ["10.42.7.0/25", "10.42.7.1-10.42.7.9", "10.42.7.128/25", "10.42.8.2-10.42.8.9"] {
            assert!(raw.parse::<Range>().unwrap().within(subnet).is_err(), "{raw}");
        }
    }

    #[test]
    fn addresses_go_round_before_one_is_used_again() {
        let range: Range = "10.42.7.2-10.42.7.4".parse().unwrap();
        let mut taken = BTreeSet::new();
        assert_eq!(range.next_free(&taken, None), Some(ip("10.42.7.2")));
        assert_eq!(range.next_free(&taken, Some(ip("10.42.7.2"))), Some(ip("10.42.7.3")));
        assert_eq!(range.next_free(&taken, Some(ip("10.42.7.4"))), Some(ip("10.42.7.2")));
        taken.extend([ip("10.42.7.3"), ip("10.42.7.4")]);
        assert_eq!(range.next_free(&taken, Some(ip("10.42.7.2"))), Some(ip("10.42.7.2")));
        taken.insert(ip("10.42.7.2"));
        assert_eq!(range.next_free(&taken, Some(ip("10.42.7.2"))), None);
    }

    proptest! {
        #[test]
        fn what_comes_next_is_free_inside_and_found_if_there_is_any(
            taken in proptest::collection::btree_set(0u8..40, 0..40),
            last in proptest::option::of(0u8..40),
        ) {
            let addr = |n: u8| IpAddr::from([10, 0, 0, n]);
            let range = Range { first: addr(5), last: addr(30) };
            let taken: BTreeSet<IpAddr> = taken.into_iter().map(addr).collect();
            let free = (5..=30).map(addr).any(|candidate| !taken.contains(&candidate));
            match range.next_free(&taken, last.map(addr)) {
                Some(next) => prop_assert!(range.contains(next) && !taken.contains(&next)),
                None => prop_assert!(!free),
            }
        }
    }
}
