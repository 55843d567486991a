//! The ways between two pods that are compared, by name. Pure.

use std::fmt;
use std::str::FromStr;

/// One way from a pod on one host to a pod on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// From host to host: no pods at all.
    Bare,
    /// Between pods by plain routes that the bench sets: no tunnel, no daemon.
    Direct,
    /// weft's daemon with the backend `host-gw`.
    HostGw,
    /// weft's daemon with the backend `vxlan`.
    Vxlan,
    /// What flannel sets up for `vxlan`, set up by the bench.
    FlannelLayout,
    /// flannel itself with the backend `vxlan`.
    FlanneldVxlan,
    /// weft's daemon with the backend `udp`.
    Udp,
    /// The wire format of `udp`, one packet per system call.
    UdpSingle,
    /// flannel itself with the backend `udp`.
    FlanneldUdp,
}

/// A path's name that is none.
#[derive(Debug, thiserror::Error)]
#[error("no path `{given}`; there are {}", Path::ALL.map(Path::name).join(", "))]
pub struct UnknownPath {
    given: String,
}

impl Path {
    /// All, in the order of tables: each beside what it is compared with.
    pub const ALL: [Self; 9] = [
        Self::Bare,
        Self::Direct,
        Self::HostGw,
        Self::Vxlan,
        Self::FlannelLayout,
        Self::FlanneldVxlan,
        Self::Udp,
        Self::UdpSingle,
        Self::FlanneldUdp,
    ];

    /// Its name in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Direct => "direct",
            Self::HostGw => "host-gw",
            Self::Vxlan => "vxlan",
            Self::Udp => "udp",
            Self::UdpSingle => "udp-single",
            Self::FlannelLayout => "flannel-layout",
            Self::FlanneldVxlan => "flanneld-vxlan",
            Self::FlanneldUdp => "flanneld-udp",
        }
    }

    /// The names of its client's and its server's host. A host's name has at most 15 bytes.
    pub fn hosts(self) -> [String; 2] {
        let stem = match self {
            Self::FlannelLayout => "layout",
            Self::FlanneldVxlan => "fl-vxlan",
            Self::FlanneldUdp => "fl-udp",
            other => other.name(),
        };
        ["a", "b"].map(|end| format!("{stem}-{end}"))
    }

    /// The backend of the daemon that makes this path, if one does.
    pub const fn backend(self) -> Option<&'static str> {
        match self {
            Self::HostGw => Some("host-gw"),
            Self::Vxlan | Self::FlanneldVxlan => Some("vxlan"),
            Self::Udp | Self::FlanneldUdp => Some("udp"),
            Self::Bare | Self::Direct | Self::UdpSingle | Self::FlannelLayout => None,
        }
    }

    /// The program that it needs and that is not weft's.
    pub const fn needs(self) -> Option<&'static str> {
        match self {
            Self::FlanneldVxlan | Self::FlanneldUdp => Some("flanneld"),
            _ => None,
        }
    }
}

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
    fn names_are_read_back_and_hosts_fit() {
        for path in Path::ALL {
            assert_eq!(path.name().parse::<Path>().unwrap(), path);
            assert!(path.hosts().iter().all(|host| host.len() <= 15), "{path}");
        }
        let error = "vxlam".parse::<Path>().unwrap_err().to_string();
        assert!(error.starts_with("no path `vxlam`; there are bare, direct, "), "{error}");
    }
}
