//! Tables and chains as plain data.

use std::collections::BTreeMap;
use std::fmt;

use super::{ChainName, Comment, Rule, Set, SetName, TableName};

/// Which packets a table sees (`NFPROTO_*`, include/uapi/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Any other: `arp`, `netdev`, `bridge`, by number. Observed in events; weft makes none.
    Other(u8),
}

impl Family {
    /// The kernel's number.
    pub(super) fn raw(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Other(raw) => raw,
        }
    }

    /// From the kernel's number.
    pub(super) fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::Inet,
            2 => Self::Ip,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet => f.write_str("inet"),
            Self::Ip => f.write_str("ip"),
            Self::Ip6 => f.write_str("ip6"),
            Self::Other(raw) => write!(f, "family {raw}"),
        }
    }
}

/// What a table is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableKey {
    /// Which packets it sees.
    pub family: Family,
    /// Its name within the family.
    pub name: TableName,
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A table with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it is known by.
    pub key: TableKey,
    /// A remark.
    pub comment: Option<Comment>,
    /// Its base chains are unhooked, so nothing in it has an effect.
    pub dormant: bool,
    /// Its sets and maps.
    pub sets: BTreeMap<SetName, Set>,
    /// Its chains.
    pub chains: BTreeMap<ChainName, Chain>,
}

impl Table {
    /// An empty table.
    pub fn new(family: Family, name: TableName) -> Self {
        let key = TableKey { family, name };
        Self { key, comment: None, dormant: false, sets: BTreeMap::new(), chains: BTreeMap::new() }
    }
}

/// A list of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets enter it by themselves; `None`: only by jump or goto.
    pub base: Option<Base>,
    /// A remark.
    pub comment: Option<Comment>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What its rules may do.
    pub kind: ChainKind,
    /// On which of a packet's stations it lies.
    pub hook: Hook,
    /// Among the chains of one hook, the lowest comes first.
    pub priority: i32,
    /// What happens to a packet that no rule decides.
    pub policy: Policy,
}

/// What a base chain's rules may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Accept and drop.
    Filter,
    /// Translate addresses: only the first packet of a connection passes.
    Nat,
    /// Reroute when the packet was changed (output only).
    Route,
}

impl ChainKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// A station of a packet's way through the kernel (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Just arrived, not yet routed.
    Prerouting = 0,
    /// For this host.
    Input = 1,
    /// Passing through.
    Forward = 2,
    /// From this host.
    Output = 3,
    /// About to leave.
    Postrouting = 4,
}

impl Hook {
    pub(super) fn from_raw(raw: u32) -> Option<Self> {
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting]
            .into_iter()
            .find(|hook| *hook as u32 == raw)
    }
}

/// What happens to a packet that no rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Policy {
    /// It is dropped (NF_DROP).
    Drop = 0,
    /// It goes on (NF_ACCEPT).
    Accept = 1,
}

impl Base {
    /// `NF_IP_PRI_RAW`: before connection tracking.
    pub const PRIORITY_RAW: i32 = -300;
    /// `NF_IP_PRI_FILTER`.
    pub const PRIORITY_FILTER: i32 = 0;
    /// `NF_IP_PRI_NAT_SRC`.
    pub const PRIORITY_SRCNAT: i32 = 100;
}
