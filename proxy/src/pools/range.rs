//! Addresses from one to another.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;

use crate::model::{Family, family_of};

/// All addresses from the first to the last one, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// What is no range of addresses for load balancers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// Neither form.
    #[error("`{0}` is no range of addresses; write 203.0.113.0/28, 203.0.113.20-203.0.113.30 or 203.0.113.7")]
    Form(String),
    /// From a higher address to a lower one, or between families.
    #[error("`{0}` does not lead from one address to a higher one of its family")]
    Order(String),
    /// Nobody can be reached there by others.
    #[error(
        "`{range}` holds {address}, which no host can have for others: unspecified, loopback, link-local, \
         multicast or broadcast"
    )]
    Unreachable {
        /// As it was written.
        range: String,
        /// Its first or last address.
        address: IpAddr,
    },
}

impl AddressRange {
    /// IPv4 or IPv6.
    pub fn family(&self) -> Family {
        family_of(self.first)
    }

    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        family_of(address) == self.family() && self.first <= address && address <= self.last
    }

    /// Whether they have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest one.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// From this address on, upwards.
    pub fn from(&self, first: IpAddr) -> impl Iterator<Item = IpAddr> + use<> {
        let family = self.family();
        (number(first.max(self.first))..=number(self.last)).map(move |number| address(family, number))
    }

    /// How many there are; as many as a `u128` can tell, if there are more.
    pub fn count(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match (family, u32::try_from(number)) {
        (Family::V4, Ok(number)) => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

impl FromStr for AddressRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let form = || BadRange::Form(text.to_owned());
        let one = |part: &str| part.trim().parse::<IpAddr>().map_err(|_| form());
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (one(first)?, one(last)?)
        } else if text.contains('/') {
            let network: IpNetwork = text.trim().parse().map_err(|_| form())?;
            (network.network(), network.broadcast())
        } else {
            (one(text)?, one(text)?)
        };
        if family_of(first) != family_of(last) || first > last {
            return Err(BadRange::Order(text.to_owned()));
        }
        match [first, last].into_iter().find(|address| is_unreachable(*address)) {
            Some(address) => Err(BadRange::Unreachable { range: text.to_owned(), address }),
            None => Ok(Self { first, last }),
        }
    }
}

fn is_unreachable(address: IpAddr) -> bool {
    let of_its_family = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    of_its_family || address.is_unspecified() || address.is_loopback() || address.is_multicast()
}

/// As it can be read again.
impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}
