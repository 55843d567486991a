//! The ways from a client to an endpoint that are compared, by name. Pure.

use std::fmt;
use std::str::FromStr;

/// One way from a pod to another pod on the same host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// By the server's own address, past weft's rules: what there is to lose.
    Direct,
    /// Through a service by `weft proxy`.
    Nftables,
    /// The same with `--conntrack-accounting`.
    Accounted,
    /// Through a service by `weft proxy --mode iptables`.
    Iptables,
    /// Through a service by `weft proxy --mode userspace`.
    Userspace,
    /// The nftables rules that kube-proxy would make, loaded by the bench.
    KubeProxyLayout,
    /// kube-proxy itself, in nftables mode.
    KubeProxy,
    /// haproxy in TCP mode at the service's address.
    Haproxy,
}

/// A path's name that is none.
#[derive(Debug, thiserror::Error)]
#[error("no path `{given}`; there are {}", Path::ALL.map(Path::name).join(", "))]
pub struct UnknownPath {
    given: String,
}

impl Path {
    /// All, in the order of tables.
    pub const ALL: [Self; 8] = [
        Self::Direct,
        Self::Nftables,
        Self::Accounted,
        Self::Iptables,
        Self::Userspace,
        Self::KubeProxyLayout,
        Self::KubeProxy,
        Self::Haproxy,
    ];

    /// Its name in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nftables => "nftables",
            Self::Accounted => "nftables-acct",
            Self::Iptables => "iptables",
            Self::Userspace => "userspace",
            Self::KubeProxyLayout => "kube-proxy-layout",
            Self::KubeProxy => "kube-proxy",
            Self::Haproxy => "haproxy",
        }
    }

    /// What the names of its hosts begin with. A host's name has at most 15 bytes.
    pub(super) const fn stem(self) -> &'static str {
        match self {
            Self::Accounted => "acct",
            Self::KubeProxyLayout => "layout",
            other => other.name(),
        }
    }

    /// The mode of the `weft proxy` on its host, if one runs there.
    pub(super) const fn mode(self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::Nftables | Self::Accounted => Some("nftables"),
            Self::Iptables => Some("iptables"),
            Self::Userspace => Some("userspace"),
            Self::KubeProxyLayout | Self::KubeProxy | Self::Haproxy => None,
        }
    }

    /// The program that it needs and that is not weft's.
    pub const fn needs(self) -> Option<&'static str> {
        match self {
            Self::KubeProxy => Some("kube-proxy"),
            Self::Haproxy => Some("haproxy"),
            _ => None,
        }
    }

    /// At how many services its first packets are timed. The layout is loaded where that takes seconds:
    /// at 10,000 services it takes most of a minute. haproxy and the userspace mode accept a connection
    /// before they have one to an endpoint, so they have no first packet that could be compared.
    pub(super) const fn first_at(self, quick: bool) -> &'static [u32] {
        match (self, quick) {
            (Self::Direct | Self::KubeProxy, _) => &[BASE],
            (Self::Nftables, true) => &[100, 45_000],
            (Self::Nftables, false) => &[100, BASE, 10_000, 45_000],
            (Self::Iptables, true) => &[100, BASE],
            (Self::Iptables, false) => &[100, BASE, 10_000],
            (Self::KubeProxyLayout, true) => &[100, BASE],
            (Self::KubeProxyLayout, false) => &[100, BASE, 5000],
            (Self::Accounted | Self::Userspace | Self::Haproxy, _) => &[],
        }
    }

    /// At how many services its programming is timed.
    pub(super) const fn programmed_at(self, quick: bool) -> &'static [u32] {
        match (self, quick) {
            (Self::Nftables, _) => &[100, 1000, 10_000, 45_000],
            (Self::Iptables, false) => &[100, 1000, 10_000],
            (Self::KubeProxyLayout, false) => &[100, 1000, 5000],
            (Self::Iptables | Self::KubeProxyLayout, true) => &[100, 1000],
            // In userspace mode the same rules are programmed as in nftables mode.
            (Self::Direct | Self::Accounted | Self::Userspace | Self::KubeProxy | Self::Haproxy, _) => &[],
        }
    }
}

/// How many services there are on every host that bulk traffic crosses.
pub(super) const BASE: u32 = 1000;

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Path {
    type Err = UnknownPath;

    fn from_str(given: &str) -> Result<Self, UnknownPath> {
        let found = Self::ALL.into_iter().find(|path| path.name() == given);
        found.ok_or_else(|| UnknownPath { given: given.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for path in Path::ALL {
            assert_eq!(path.name().parse::<Path>().unwrap(), path);
        }
        let error = "nft".parse::<Path>().unwrap_err().to_string();
        assert!(error.starts_with("no path `nft`; there are direct, nftables, "), "{error}");
    }

    /// A ratio between scales needs both in every run, the quick one too.
    #[test]
    fn our_own_path_is_measured_at_both_ends_of_the_scale() {
        for quick in [true, false] {
            for scales in [Path::Nftables.first_at(quick), Path::Nftables.programmed_at(quick)] {
                assert_eq!((scales.first(), scales.last()), (Some(&100), Some(&45_000)));
            }
        }
    }
}
