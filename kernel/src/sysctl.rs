//! Kernel settings under /proc/sys: read, write, and the former value for putting back.
//!
//! What is under `net` belongs to the network namespace of the *calling thread*; for another one use
//! [`crate::netns::run_in`]. Reading and writing are a system call or three and do not wait.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;

use crate::net::LinkName;

/// A setting, by its path below /proc/sys: `net/ipv4/ip_forward`.
///
/// Printed and parsed as sysctl(8) does it: dots between the parts, and `/` for a dot inside one
/// (`net.ipv4.conf.weft/1.forwarding`); a name whose first separator is `/` is a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sysctl(Vec<String>);

/// Why a string names no [`Sysctl`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no sysctl: parts with `.` between them, such as `net.ipv4.ip_forward`")]
pub struct BadSysctl(pub String);

/// An address family's half of `net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `net/ipv4`.
    V4,
    /// `net/ipv6`.
    V6,
}

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Reading failed: most often the kernel has no such setting (IPv6 off, a module not loaded).
    #[error("cannot read {name}")]
    Read {
        /// Which.
        name: Sysctl,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot set {name} to `{value}`")]
    Write {
        /// Which.
        name: Sysctl,
        /// To what.
        value: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The value is not what the caller expected.
    #[error("{name} is `{value}`, which is no {wanted}")]
    Odd {
        /// Which.
        name: Sysctl,
        /// What it is.
        value: String,
        /// What was expected.
        wanted: &'static str,
    },
}

impl SysctlError {
    /// The kernel has no such setting.
    pub fn is_absent(&self) -> bool {
        let (Self::Read { source, .. } | Self::Write { source, .. }) = self else { return false };
        source.kind() == io::ErrorKind::NotFound
    }
}

impl Sysctl {
    /// `net.ipv4.ip_forward`, or `net.ipv6.conf.all.forwarding`: forwarding as a whole. Writing either
    /// writes all links' (net/ipv4/devinet.c, `inet_forward_change`; net/ipv6/addrconf.c,
    /// `addrconf_forward_change`), and puts other settings back to their defaults for IPv4: set it first.
    pub fn forwarding(family: Family) -> Self {
        match family {
            Family::V4 => Self::of(&["net", "ipv4", "ip_forward"]),
            Family::V6 => Self::of(&["net", "ipv6", "conf", "all", "forwarding"]),
        }
    }

    /// `net.<family>.conf.<link>.<setting>`: a link's own.
    pub fn of_link(family: Family, link: &LinkName, setting: &str) -> Self {
        Self::of(&["net", family.part(), "conf", link.as_str(), setting])
    }

    /// `net.<family>.conf.all.<setting>`.
    pub fn of_all_links(family: Family, setting: &str) -> Self {
        Self::of(&["net", family.part(), "conf", "all", setting])
    }

    /// `net.<family>.neigh.<link>.<setting>`: how a link treats its neighbours.
    pub fn of_neighbours(family: Family, link: &LinkName, setting: &str) -> Self {
        Self::of(&["net", family.part(), "neigh", link.as_str(), setting])
    }

    fn of(parts: &[&str]) -> Self {
        Self(parts.iter().map(|part| (*part).to_owned()).collect())
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        let mut path = PathBuf::from("/proc/sys");
        path.extend(&self.0);
        path
    }

    /// Its value, without the line's end.
    pub fn read(&self) -> Result<String, SysctlError> {
        match fs::read_to_string(self.path()) {
            Ok(value) => Ok(value.trim_end().to_owned()),
            Err(source) => Err(SysctlError::Read { name: self.clone(), source }),
        }
    }

    /// Its value as a number.
    pub fn read_number(&self) -> Result<i64, SysctlError> {
        let value = self.read()?;
        value.parse().map_err(|_| SysctlError::Odd { name: self.clone(), value, wanted: "number" })
    }

    /// Sets it, and returns what it was, for putting back. What is so already is not written again:
    /// some settings do things when written (`forwarding` walks all links).
    pub fn set(&self, value: &str) -> Result<String, SysctlError> {
        let former = self.read()?;
        if former != value {
            self.write(value)?;
        }
        Ok(former)
    }

    fn write(&self, value: &str) -> Result<(), SysctlError> {
        // Never created: a missing setting is an error of its own.
        let written = fs::OpenOptions::new().write(true).open(self.path());
        written.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|source| SysctlError::Write {
            name: self.clone(),
            value: value.to_owned(),
            source,
        })
    }
}

impl Family {
    fn part(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl FromStr for Sysctl {
    type Err = BadSysctl;
    fn from_str(raw: &str) -> Result<Self, BadSysctl> {
        let by_path = raw.find(['.', '/']).is_some_and(|at| raw[at..].starts_with('/'));
        let parts: Vec<String> = if by_path {
            raw.split('/').map(str::to_owned).collect()
        } else {
            raw.split('.').map(|part| part.replace('/', ".")).collect()
        };
        let sound = |part: &String| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if parts.len() > 1 && parts.iter().all(sound) {
            Ok(Self(parts))
        } else {
            Err(BadSysctl(raw.to_owned()))
        }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|part| part.replace('.', "/")).collect();
        f.write_str(&parts.join("."))
    }
}

/// What an uplink's `accept_ra` must become where IPv6 forwarding gets switched on, if anything.
///
/// A host that forwards ignores router advertisements unless `accept_ra` is 2
/// (net/ipv6/ndisc.c, `ipv6_accept_ra`), and switching forwarding on drops the default routes that came
/// from them (net/ipv6/route.c, `rt6_purge_dflt_routers`, which spares links with 2). So an uplink that
/// took its routes from advertisements gets 2, *before* forwarding is switched on. 0 stays: somebody else
/// (a network manager) reads the advertisements, or nobody shall.
pub fn accept_ra_to_keep_routers(accept_ra: i64, uses_advertisements: bool) -> Option<i64> {
    (accept_ra == 1 && uses_advertisements).then_some(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::net::{Change, Link, LinkKind, Rtnetlink};
    use crate::netns::{NetNs, run_in};

    #[test]
    fn names_are_read_and_printed_as_sysctl_does() {
        let table = [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            (
                "net.ipv4.conf.weft/1.forwarding",
                "net/ipv4/conf/weft.1/forwarding",
                "net.ipv4.conf.weft/1.forwarding",
            ),
            (
                "net/ipv4/conf/weft.1/forwarding",
                "net/ipv4/conf/weft.1/forwarding",
                "net.ipv4.conf.weft/1.forwarding",
            ),
        ];
        for (raw, path, printed) in table {
            let sysctl: Sysctl = raw.parse().unwrap();
            assert_eq!(sysctl.path(), Path::new("/proc/sys").join(path), "{raw}");
            assert_eq!(sysctl.to_string(), printed, "{raw}");
        }
        for raw in ["", "net", "..", "net..x", "net/../../etc/passwd", "/net/ipv4/x", "net.//.x"] {
            assert!(raw.parse::<Sysctl>().is_err(), "{raw:?}");
        }
    }

    #[test]
    fn a_link_with_a_dot_in_its_name_has_settings_and_they_are_the_namespaces() {
        let ns = NetNs::anonymous().unwrap();
        let net = Rtnetlink::open_in(&ns).unwrap();
        let name: LinkName = "weft.9".parse().unwrap();
        let link = Link {
            name: name.clone(),
            index: 0,
            kind: LinkKind::Bridge,
            mac: None,
            mtu: 0,
            up: true,
            carrier: true,
            alias: None,
            master: None,
        };
        assert!(net.apply_blocking(&[Change::AddLink(link)]).is_empty());
        let filter = Sysctl::of_link(Family::V4, &name, "rp_filter");
        run_in(&ns, || {
            let before = filter.read().unwrap();
            assert_eq!(filter.set("2").unwrap(), before);
            assert_eq!(filter.read_number().unwrap(), 2);
            assert_eq!(filter.set(&before).unwrap(), "2");
            assert!(filter.set("nonsense").is_err());
            assert_eq!(Sysctl::forwarding(Family::V4).set("1").unwrap(), "0");
        })
        .unwrap();
        assert!(filter.read().unwrap_err().is_absent(), "seen from outside");
    }

    #[test]
    fn only_an_uplink_that_lives_by_advertisements_is_changed() {
        let table = [
            // accept_ra, uses them, becomes
            (0, true, None),
            (0, false, None),
            (1, true, Some(2)),
            (1, false, None),
            (2, true, None),
            (2, false, None),
        ];
        for (accept_ra, uses, becomes) in table {
            assert_eq!(accept_ra_to_keep_routers(accept_ra, uses), becomes, "{accept_ra} {uses}");
        }
    }
}
