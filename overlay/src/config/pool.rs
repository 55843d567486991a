//! The arithmetic of a [`Pool`], once for both address families.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

use super::Pool;

/// What differs between the families: how addresses are written, flannel's keys and limits.
/// Addresses are numbers here, so that every rule is written once.
pub trait Family: Copy + Ord + std::fmt::Display {
    /// Bits of an address.
    const BITS: u8;
    /// The key of the whole network.
    const NETWORK_KEY: &'static str;
    /// The key of a host's prefix length.
    const LEN_KEY: &'static str;
    /// The key of the first subnet handed out.
    const MIN_KEY: &'static str;
    /// The key of the last subnet handed out.
    const MAX_KEY: &'static str;
    /// What a network must look like, for messages.
    const NETWORK_RULE: &'static str;
    /// What an address must look like, for messages.
    const ADDRESS_RULE: &'static str;
    /// A host's prefix length where the network is wide enough.
    const DEFAULT_LEN: u8;
    /// The longest prefix that a host's subnet may have.
    const LONGEST_SUBNET: u8;
    /// The longest prefix of a network that gives no subnet length.
    const LONGEST_NETWORK: u8;
    /// Does a bound that is null count as absent?
    const NULL_BOUND: bool;

    /// A network in CIDR notation; host bits are dropped, as Go's ParseCIDR does.
    fn parse_cidr(text: &str) -> Option<Self>;
    /// An address.
    fn parse_address(text: &str) -> Option<u128>;
    /// Why flannel's formats cannot carry this network.
    fn unusable(&self) -> Option<&'static str>;
    /// The prefix length.
    fn prefix_len(&self) -> u8;
    /// The first address.
    fn first(&self) -> u128;
    /// The network of this length that holds this address.
    fn subnet(address: u128, len: u8) -> Self;
}

impl<N: Family> Pool<N> {
    /// Could this be a host's subnet? `SubnetMin` and `SubnetMax` are not asked: they bound what
    /// is handed out, and a host keeps what it has when they move.
    pub fn fits(&self, net: N) -> bool {
        let plen = self.network.prefix_len();
        net.prefix_len() == self.subnet_len && N::subnet(net.first(), plen) == self.network
    }

    /// How many subnets may be handed out.
    pub fn count(&self) -> u128 {
        (self.max.first() - self.min.first()) / self.step() + 1
    }

    /// The subnet with this number, counted from `min`.
    pub fn nth(&self, index: u128) -> N {
        N::subnet(self.min.first() + index * self.step(), self.subnet_len)
    }

    /// The numbers, first and last, of the subnets that share an address with `net`.
    pub fn overlap(&self, net: N) -> Option<(u128, u128)> {
        let (from, to) = (self.min.first(), last(self.max));
        let (first, last) = (net.first().max(from), last(net).min(to));
        (first <= last).then(|| ((first - from) / self.step(), (last - from) / self.step()))
    }

    fn step(&self) -> u128 {
        1 << (N::BITS - self.subnet_len)
    }
}

/// The last address of a network.
fn last<N: Family>(net: N) -> u128 {
    let host_bits = u32::from(N::BITS - net.prefix_len());
    net.first() | 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1)
}

/// The keys and limits of an IPv4 range.
impl Family for Ipv4Network {
    const BITS: u8 = 32;
    const NETWORK_KEY: &'static str = "Network";
    const LEN_KEY: &'static str = "SubnetLen";
    const MIN_KEY: &'static str = "SubnetMin";
    const MAX_KEY: &'static str = "SubnetMax";
    const NETWORK_RULE: &'static str = "an IPv4 network such as \"10.42.0.0/16\"";
    const ADDRESS_RULE: &'static str = "an IPv4 address such as \"10.42.1.0\"";
    const DEFAULT_LEN: u8 = 24;
    const LONGEST_SUBNET: u8 = 30;
    const LONGEST_NETWORK: u8 = 28;
    const NULL_BOUND: bool = false;

    fn parse_cidr(text: &str) -> Option<Self> {
        let (address, len) = split_cidr(text)?;
        Self::new_checked(address.parse().ok()?, len).map(|net| Self::subnet(net.first(), len))
    }
    fn parse_address(text: &str) -> Option<u128> {
        let mapped = || text.parse::<Ipv6Addr>().ok().and_then(|a| a.to_ipv4_mapped());
        let address: Ipv4Addr = text.parse().ok().or_else(mapped)?;
        Some(u128::from(address.to_bits()))
    }
    fn unusable(&self) -> Option<&'static str> {
        None
    }
    fn prefix_len(&self) -> u8 {
        self.prefix()
    }
    fn first(&self) -> u128 {
        u128::from(self.network().to_bits())
    }
    fn subnet(first: u128, len: u8) -> Self {
        // A number below 2^32 by construction; the mask takes nothing away.
        let address = Ipv4Addr::from_bits((first & u128::from(u32::MAX)) as u32);
        Self::new_checked(address, len)
            .map_or(Ipv4Network::from(address), |net| Self::new_checked(net.network(), len).unwrap_or(net))
    }
}

/// The keys and limits of an IPv6 range.
impl Family for Ipv6Network {
    const BITS: u8 = 128;
    const NETWORK_KEY: &'static str = "IPv6Network";
    const LEN_KEY: &'static str = "IPv6SubnetLen";
    const MIN_KEY: &'static str = "IPv6SubnetMin";
    const MAX_KEY: &'static str = "IPv6SubnetMax";
    const NETWORK_RULE: &'static str = "an IPv6 network such as \"fd00:42::/48\"";
    const ADDRESS_RULE: &'static str = "an IPv6 address such as \"fd00:42:0:1::\"";
    const DEFAULT_LEN: u8 = 64;
    const LONGEST_SUBNET: u8 = 126;
    const LONGEST_NETWORK: u8 = 124;
    // A pointer in flannel's struct, so that null is the same as absent.
    const NULL_BOUND: bool = true;

    fn parse_cidr(text: &str) -> Option<Self> {
        let (address, len) = split_cidr(text)?;
        Self::new_checked(address.parse().ok()?, len).map(|net| Self::subnet(net.first(), len))
    }
    fn parse_address(text: &str) -> Option<u128> {
        text.parse::<Ipv6Addr>().ok().map(Ipv6Addr::to_bits)
    }
    fn unusable(&self) -> Option<&'static str> {
        let inside = |bits: u128| self.prefix() >= 96 && self.first() >> 32 == bits;
        let v4_text = inside(0) || inside(0xffff);
        v4_text.then_some("must not lie in ::/96 or ::ffff:0:0/96, which flannel writes as IPv4")
    }
    fn prefix_len(&self) -> u8 {
        self.prefix()
    }
    fn first(&self) -> u128 {
        self.network().to_bits()
    }
    fn subnet(first: u128, len: u8) -> Self {
        let address = Ipv6Addr::from_bits(first);
        Self::new_checked(address, len)
            .map_or(Ipv6Network::from(address), |net| Self::new_checked(net.network(), len).unwrap_or(net))
    }
}

/// Address and prefix length as Go's `net.ParseCIDR` splits them: digits only, no default length.
fn split_cidr(text: &str) -> Option<(&str, u8)> {
    let (address, len) = text.split_once('/')?;
    let digits = !len.is_empty() && len.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| len.parse().ok()).flatten().map(|len| (address, len))
}
