//! Addresses and ranges as Kubernetes writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

/// An IP version. Each family is served for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// The family of an address.
pub fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// As in `addressType`.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address. Zeros in front of an IPv4 number are read as decimal, as Kubernetes does for the sake
/// of old objects, and an IPv4 address in IPv6 dress (`::ffff:192.0.2.1`) is an IPv4 address.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let parsed = dotted(text).map(IpAddr::V4).or_else(|| text.parse().ok());
    parsed.map(|address: IpAddr| address.to_canonical()).ok_or_else(|| format!("`{text}` is no IP address"))
}

/// An address that packets can be sent to from anywhere: the rule of the API for externalIPs and
/// endpoints.
pub(super) fn reachable_address(text: &str) -> Result<IpAddr, String> {
    let address = address(text)?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local {
        return Err(format!(
            "must not be an unspecified, loopback, link-local, multicast or broadcast address, is {address}"
        ));
    }
    Ok(address)
}

/// A range, its host bits cleared. Space around it is allowed: the API lets it pass.
pub(super) fn range(text: &str) -> Result<IpNetwork, String> {
    let wrong = || format!("`{text}` is no range such as 192.0.2.0/24");
    let (base, prefix) = text.trim().split_once('/').ok_or_else(wrong)?;
    let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix = prefix.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
    let range = IpNetwork::new(address(base)?, prefix).map_err(|_| wrong())?;
    IpNetwork::new(range.network(), prefix).map_err(|_| wrong())
}

fn dotted(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        // Zeros are stripped: only the value is bounded, not its length.
        let value = part.trim_start_matches('0');
        *octet = if value.is_empty() { 0 } else { value.parse().ok()? };
        if !digits {
            return None;
        }
    }
    parts.next().is_none().then_some(Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        let table = [
            // case                            text                  address
            ("plain", "192.0.2.1", Some("192.0.2.1")),
            ("zeros in front are decimal", "010.000.007.08", Some("10.0.7.8")),
            ("IPv6", "2001:DB8::1", Some("2001:db8::1")),
            ("IPv4 in IPv6 dress", "::ffff:192.0.2.1", Some("192.0.2.1")),
            ("a number too large", "256.0.0.1", None),
            ("too few numbers", "10.0.0", None),
            ("too many numbers", "10.0.0.0.1", None),
            ("hexadecimal", "0x10.0.0.1", None),
            ("a sign", "+1.0.0.1", None),
            ("a zone", "fe80::1%eth0", None),
            ("space", " 192.0.2.1", None),
            ("nothing", "", None),
        ];
        for (case, text, expected) in table {
            let expected: Option<IpAddr> = expected.map(|text| text.parse().unwrap());
            assert_eq!(address(text).ok(), expected, "{case}");
        }
    }

    #[test]
    fn addresses_that_lead_nowhere_are_refused() {
        let special = ["0.0.0.0", "::", "127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1"];
        for text in special.into_iter().chain(["255.255.255.255"]) {
            assert!(reachable_address(text).is_err(), "{text}");
        }
        assert!(reachable_address("203.0.113.7").is_ok());
    }

    #[test]
    fn ranges_are_read_as_kubernetes_reads_them() {
        let table = [
            ("plain", "192.0.2.0/24", Some("192.0.2.0/24")),
            ("host bits are cleared", "192.0.2.77/24", Some("192.0.2.0/24")),
            ("space around", " 192.0.2.0/24 ", Some("192.0.2.0/24")),
            ("everyone", "0.0.0.0/0", Some("0.0.0.0/0")),
            ("IPv6", "2001:db8::7/32", Some("2001:db8::/32")),
            ("no length", "192.0.2.0", None),
            ("a mask", "192.0.2.0/255.255.255.0", None),
            ("too long", "192.0.2.0/33", None),
            ("a sign", "192.0.2.0/+4", None),
        ];
        for (case, text, expected) in table {
            let expected: Option<IpNetwork> = expected.map(|text| text.parse().unwrap());
            assert_eq!(range(text).ok(), expected, "{case}");
        }
    }
}
