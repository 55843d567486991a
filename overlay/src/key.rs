//! The keys under the network's prefix: flannel's, to the letter, and weft's own beside them.
//!
//! ```text
//! <prefix>/config                    flannel: the network config
//! <prefix>/subnets/10.5.52.0-24      flannel: a lease; `10.5.52.0-24&fc00::-64` in two families,
//!                                    `0.0.0.0-0&fc00::-64` in IPv6 alone
//! <prefix>/weft/owner/10.5.52.0-24   weft: who wrote that lease
//! <prefix>/weft/live/<node>          weft: the node's daemon runs
//! <prefix>/weft/drain/<node>         weft: the node shall give its subnet up
//! <prefix>/weft/last-claim           weft: in two families, claims come one after the other by it
//! ```
//!
//! Nothing of ours begins with `<prefix>/subnets`: flannel watches that prefix without a slash, and
//! a key it cannot parse there makes it drop every route. Reading is strict: a key counts only if
//! it is written exactly as we would write it, so that one subnet never has two keys.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{Ipv4Network, Ipv6Network};

use crate::model::{NodeId, Subnet};

/// Where one network's keys begin, without a slash at the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

/// What a key under the prefix is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The network config.
    Config,
    /// flannel's lease of this subnet.
    Lease(Subnet),
    /// weft's record of who wrote that lease.
    Owner(Subnet),
    /// This node's daemon runs.
    Live(NodeId),
    /// This node shall give its subnet up.
    Drain(NodeId),
    /// Written with every claim in two families.
    LastClaim,
    /// Nothing we know, and why not.
    Strange(&'static str),
}

impl Prefix {
    /// flannel's default.
    pub const DEFAULT: &'static str = "/coreos.com/network";

    /// A prefix as given on the command line; slashes too many are dropped, as flannel's
    /// `path.Join` drops them.
    pub fn new(raw: &str) -> Self {
        let parts = raw.split('/').filter(|part| !part.is_empty() && *part != ".");
        let joined = parts.collect::<Vec<_>>().join("/");
        Self(if raw.starts_with('/') { format!("/{joined}") } else { joined })
    }

    /// Every key of the network, and no other network's, begins with this.
    pub fn all(&self) -> String {
        format!("{}/", self.0)
    }

    /// The network config's key.
    pub fn config(&self) -> String {
        format!("{}/config", self.0)
    }

    /// The key of flannel's lease of a subnet.
    pub fn lease(&self, subnet: &Subnet) -> String {
        format!("{}/subnets/{}", self.0, subnet_name(subnet))
    }

    /// The key of weft's owner record of a subnet.
    pub fn owner(&self, subnet: &Subnet) -> String {
        format!("{}/weft/owner/{}", self.0, subnet_name(subnet))
    }

    /// The key that says that a node's daemon runs.
    pub fn live(&self, node: &NodeId) -> String {
        format!("{}/weft/live/{node}", self.0)
    }

    /// The key that says that a node shall give its subnet up.
    pub fn drain(&self, node: &NodeId) -> String {
        format!("{}/weft/drain/{node}", self.0)
    }

    /// The key that is written with every claim in two families.
    pub fn last_claim(&self) -> String {
        format!("{}/weft/last-claim", self.0)
    }

    /// What a key is for.
    pub fn classify(&self, key: &str) -> Key {
        const NO_SUBNET: Key = Key::Strange(
            "names no subnet in the form 10.5.52.0-24, 10.5.52.0-24&fc00::-64 or 0.0.0.0-0&fc00::-64",
        );
        const NO_NODE: Key = Key::Strange("ends in no node id: 1 to 64 of the characters A-Z a-z 0-9 . _ -");
        let node = |name: &str| NodeId::try_from(name.to_owned()).ok();
        let Some(rest) = key.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix('/')) else {
            return Key::Strange("lies outside of the network's prefix");
        };
        match rest.split_once('/') {
            None if rest == "config" => Key::Config,
            Some(("subnets", name)) => parse_subnet_name(name).map_or(NO_SUBNET, Key::Lease),
            Some(("weft", "last-claim")) => Key::LastClaim,
            Some(("weft", own)) => match own.split_once('/') {
                Some(("owner", name)) => parse_subnet_name(name).map_or(NO_SUBNET, Key::Owner),
                Some(("live", name)) => node(name).map_or(NO_NODE, Key::Live),
                Some(("drain", name)) => node(name).map_or(NO_NODE, Key::Drain),
                _ => Key::Strange("is no record of weft's"),
            },
            _ => Key::Strange("is no key of flannel's or weft's"),
        }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A subnet as flannel's keys spell it (its pkg/subnet/subnet.go, MakeSubnetKey). IPv6 addresses
/// are in the text of RFC 5952, as Go and Rust both print them; the ranges where they differ
/// (`::/96`, `::ffff:0:0/96`) are refused by the config.
pub fn subnet_name(subnet: &Subnet) -> String {
    let v4 = match subnet.v4 {
        Some(net) => format!("{}-{}", net.network(), net.prefix()),
        None => "0.0.0.0-0".to_owned(),
    };
    match subnet.v6 {
        Some(net) => format!("{v4}&{}-{}", net.network(), net.prefix()),
        None => v4,
    }
}

/// Reads what [`subnet_name`] writes, and nothing else.
pub fn parse_subnet_name(name: &str) -> Option<Subnet> {
    let (first, second) = match name.split_once('&') {
        Some((first, second)) => (first, Some(second)),
        None => (name, None),
    };
    let v4 = match first {
        "0.0.0.0-0" => None,
        _ => {
            let (address, len) = first.split_once('-')?;
            // flannel reads the length as a number of 5 bits.
            let len = len.parse().ok().filter(|len| (1..32).contains(len))?;
            Some(Ipv4Network::new_checked(address.parse().ok()?, len)?)
        }
    };
    let v6 = match second {
        None => None,
        Some(second) => {
            let (address, len) = second.split_once('-')?;
            // And this one as a number of 7 bits.
            let len = len.parse().ok().filter(|len| (1..128).contains(len))?;
            Some(Ipv6Network::new_checked(address.parse().ok()?, len)?)
        }
    };
    let subnet = Subnet { v4, v6 };
    let known = v4.is_some() || v6.is_some();
    (known && subnet_name(&subnet) == name).then_some(subnet)
}

/// Why a text names no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no subnet: write 10.42.7.0/24, fd00:42:7::/64, or both with a comma between them")]
pub struct BadSubnet(pub String);

impl FromStr for Subnet {
    type Err = BadSubnet;

    /// Reads what people write: `10.42.7.0/24`, `fd00:42:7::/64`, `10.42.7.0/24,fd00:42:7::/64`;
    /// and a key's form, as copied from etcdctl.
    fn from_str(raw: &str) -> Result<Self, BadSubnet> {
        let bad = || BadSubnet(raw.to_owned());
        if let Some(subnet) = parse_subnet_name(raw) {
            return Ok(subnet);
        }
        let mut subnet = Subnet { v4: None, v6: None };
        for part in raw.split(',') {
            let (address, len) = part.trim().split_once('/').ok_or_else(bad)?;
            let len = len.parse().ok().filter(|len| *len > 0).ok_or_else(bad)?;
            if let Ok(address) = address.parse::<Ipv4Addr>() {
                let net = Ipv4Network::new_checked(address, len).filter(|net| net.network() == address);
                let before = subnet.v4.replace(net.ok_or_else(bad)?);
                before.is_none().then_some(()).ok_or_else(bad)?;
            } else {
                let address: Ipv6Addr = address.parse().map_err(|_| bad())?;
                let net = Ipv6Network::new_checked(address, len).filter(|net| net.network() == address);
                let before = subnet.v6.replace(net.ok_or_else(bad)?);
                before.is_none().then_some(()).ok_or_else(bad)?;
            }
        }
        // What flannel's keys cannot say is no subnet of ours.
        parse_subnet_name(&subnet_name(&subnet)).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_flannels_to_the_letter() {
        let table = [
            ("10.5.52.0/24", "10.5.52.0-24"),
            ("10.5.52.0/24,fc00::/64", "10.5.52.0-24&fc00::-64"),
            ("10.5.52.0/24,fd00:12:13::/56", "10.5.52.0-24&fd00:12:13::-56"),
            ("fc00:0:0:1::/64", "0.0.0.0-0&fc00:0:0:1::-64"),
            ("2001:db8:0:1:1::/80", "0.0.0.0-0&2001:db8:0:1:1::-80"),
            ("2001:db8:0:0:1::/80", "0.0.0.0-0&2001:db8:0:0:1::-80"),
            ("fc00:0:0:1:0:0:0:4/126", "0.0.0.0-0&fc00:0:0:1::4-126"),
        ];
        let prefix = Prefix::new("/coreos.com/network");
        for (text, name) in table {
            let subnet: Subnet = text.parse().unwrap();
            assert_eq!(subnet_name(&subnet), name);
            assert_eq!(parse_subnet_name(name), Some(subnet), "{name}");
            assert_eq!(name.parse(), Ok(subnet), "{name}");
            assert_eq!(subnet.to_string().parse(), Ok(subnet), "{name}");
            let key = format!("/coreos.com/network/subnets/{name}");
            assert_eq!(prefix.lease(&subnet), key);
            assert_eq!(prefix.classify(&key), Key::Lease(subnet));
            assert_eq!(prefix.classify(&prefix.owner(&subnet)), Key::Owner(subnet));
        }
    }

    #[test]
    fn what_is_not_exactly_a_key_is_strange() {
        let prefix = Prefix::new("/coreos.com/network");
        let under = [
            "",
            "subnets",
            "subnets/",
            "subnets/garbage",
            "subnets/10",
            "subnets/10.12.13.0",
            "subnets/10.12.13-24",
            "subnets/10.12.13.300-24",
            "subnets/10.12.13.0-24hi",
            "subnets/x10.12.13.0-24",
            "subnets/10.12.13.7-24",
            "subnets/10.12.013.0-24",
            "subnets/10.12.13.0-024",
            "subnets/10.12.13.0-+24",
            "subnets/10.12.13.0-32",
            "subnets/0.0.0.0-0",
            "subnets/&2001::-56",
            "subnets/10.12.13.0-24&:12:13:-56",
            "subnets/10.12.13.0-24&2001::",
            "subnets/10.12.13.0-24&2001::-56hi",
            "subnets/10.12.13.0-24&2001::-128",
            "subnets/10.12.13.0-24&FC00::-64",
            "subnets/10.12.13.0-24&fc00:0::-64",
            "subnets/10.12.13.0-24&",
            "subnets-backup/10.12.13.0-24",
            "subnets/10.12.13.0-24/x",
            "config/",
            "config2",
            "weft",
            "weft/owner/x",
            "weft/live/",
            "weft/live/a b",
            "weft/what/ever",
            "weft/drain/a/b",
        ];
        for rest in under {
            let key = format!("/coreos.com/network/{rest}");
            assert!(matches!(prefix.classify(&key), Key::Strange(_)), "{key}");
        }
        for key in ["/coreos.com/network2/config", "/coreos.com/networkconfig", "config", ""] {
            assert!(matches!(prefix.classify(key), Key::Strange(_)), "{key}");
        }
    }

    #[test]
    fn prefixes_lose_their_extra_slashes() {
        let table = [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("//a/./b//", "/a/b/config"),
            ("a/b", "a/b/config"),
        ];
        for (raw, key) in table {
            assert_eq!(Prefix::new(raw).config(), key, "{raw}");
            assert_eq!(Prefix::new(raw).classify(key), Key::Config, "{raw}");
        }
    }

    #[test]
    fn what_people_write_wrongly_is_refused() {
        for raw in [
            "",
            "10.42.7.0",
            "10.42.7.1/24",
            "10.42.7.0/33",
            "10.42.7.0/24,10.42.8.0/24",
            "fc00::1/64",
            "fc00::/64,",
            "10.42.7.0/0",
            "ash",
        ] {
            assert_eq!(raw.parse::<Subnet>(), Err(BadSubnet(raw.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic(key in ".{0,60}", under in ".{0,40}") {
            let prefix = Prefix::new("/n");
            prefix.classify(&key);
            let _ = (under.parse::<Subnet>(), prefix.classify(&format!("/n/subnets/{under}")));
        }

        #[test]
        fn every_subnet_reads_back(v4: u32, v4_len in 1u8..32, v6: u128, v6_len in 1u8..128, families in 1u8..4) {
            let v4 = Ipv4Network::new(v4.into(), v4_len).unwrap();
            let v4 = Ipv4Network::new(v4.network(), v4_len).unwrap();
            let v6 = Ipv6Network::new(v6.into(), v6_len).unwrap();
            let v6 = Ipv6Network::new(v6.network(), v6_len).unwrap();
            let subnet = Subnet { v4: (families & 1 != 0).then_some(v4), v6: (families & 2 != 0).then_some(v6) };
            prop_assert_eq!(parse_subnet_name(&subnet_name(&subnet)), Some(subnet));
        }
    }
}
