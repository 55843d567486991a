//! The small values of networking with their rules: link names, MAC addresses, VNIs.

use std::fmt;
use std::str::FromStr;

/// A network interface's name: 1 to 15 bytes, no `/`, no white space, not `.` or `..`
/// (`dev_valid_name` in the kernel's net/core/dev.c).
///
/// Held in place, not on the heap: every route, neighbour and FDB entry of thousands has one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName {
    /// UTF-8, filled up with zeros, so that names sort as text does.
    bytes: [u8; LONGEST_NAME],
    len: u8,
}

/// IFNAMSIZ without the zero at the end (include/uapi/linux/if.h).
const LONGEST_NAME: usize = 15;

/// Why a string is no [`LinkName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no interface name: 1 to 15 bytes, without `/`, `:` or spaces")]
pub struct BadLinkName(pub String);

impl LinkName {
    /// The name as the kernel knows it.
    pub fn as_str(&self) -> &str {
        let name = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(name).expect("it was a string when it was taken")
    }
}

impl FromStr for LinkName {
    type Err = BadLinkName;
    fn from_str(raw: &str) -> Result<Self, BadLinkName> {
        let clean = !raw.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0');
        let mut bytes = [0; LONGEST_NAME];
        match (bytes.get_mut(..raw.len()), u8::try_from(raw.len())) {
            (Some(room), Ok(len)) if len > 0 && clean && raw != "." && raw != ".." => {
                room.copy_from_slice(raw.as_bytes());
                Ok(Self { bytes, len })
            }
            _ => Err(BadLinkName(raw.to_owned())),
        }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkName({:?})", self.as_str())
    }
}

/// An Ethernet address (48 bits), printed and parsed as `4e:11:00:00:00:07`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// Why a string is no [`Mac`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no MAC address: six hexadecimal bytes with `:` between them")]
pub struct BadMac(pub String);

impl Mac {
    /// Whether an FDB keeps a list of destinations for it, instead of one: the all-zero MAC (the default
    /// entry) and multicast ones (drivers/net/vxlan/vxlan_core.c, `vxlan_fdb_update_existing`).
    pub fn has_many_destinations(self) -> bool {
        self.0 == [0; 6] || self.0[0] & 1 == 1
    }
}

impl FromStr for Mac {
    type Err = BadMac;
    fn from_str(raw: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(raw.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = raw.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            let hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = hex.then(|| u8::from_str_radix(part, 16).ok()).flatten().ok_or_else(bad)?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

/// Why a number is no [`Vni`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no VNI: a VNI has 24 bits, so at most 16777215")]
pub struct BadVni(pub u32);

impl Vni {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = BadVni;
    fn try_from(raw: u32) -> Result<Self, BadVni> {
        if raw >> 24 == 0 { Ok(Self(raw)) } else { Err(BadVni(raw)) }
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_follow_the_kernel() {
        let table = [
            ("weft.1", true),
            ("flannel-v6.4096", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("a:b", false),
            ("exactly15bytes_", true),
            ("sixteen_bytes_xx", false),
        ];
        for (raw, valid) in table {
            let name = raw.parse::<LinkName>();
            assert_eq!(name.as_ref().ok().map(LinkName::as_str), valid.then_some(raw));
        }
    }

    #[test]
    fn link_names_sort_as_text() {
        let texts = ["a", "a.1", "aa", "weft-v6.1", "weft.1", "weft.10", "weft.2", "z\u{e9}"];
        let mut names: Vec<LinkName> = texts.iter().rev().map(|text| text.parse().unwrap()).collect();
        names.sort();
        assert_eq!(names.iter().map(LinkName::as_str).collect::<Vec<_>>(), texts);
        assert_eq!(format!("{:?}", names[0]), "LinkName(\"a\")");
    }

    #[test]
    fn macs_are_read_and_printed_alike() {
        let mac: Mac = "4E:11:00:00:00:07".parse().unwrap();
        assert_eq!(mac.to_string(), "4e:11:00:00:00:07");
        for raw in ["", "4e:11:00:00:00", "4e:11:00:00:00:07:01", "4e:11:0:0:0:7", "+e:11:00:00:00:07"] {
            assert!(raw.parse::<Mac>().is_err(), "{raw:?}");
        }
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert!(Vni::try_from(0xff_ffff).is_ok());
        assert!(Vni::try_from(0x100_0000).is_err());
    }
}
