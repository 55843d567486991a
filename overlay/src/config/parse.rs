//! Reads flannel's config JSON by flannel's rules (its pkg/subnet/config.go and the backends' own
//! decoders), and says in one line which key breaks which rule.

use ipnetwork::{Ipv4Network, Ipv6Network};
use weft_kernel::net::Vni;

use super::pool::Family;
use super::{Backend, NetworkConfig, Pool};
use crate::go_json::{Json, one_line};

/// Why a config cannot be used: which key, what it says, which rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {rule}")]
pub struct BadConfig {
    /// The key as flannel spells it, inside the backend as `Backend.Port`; `config` for all of it.
    pub key: &'static str,
    /// What stands there, as JSON on one line, or `absent`.
    pub value: String,
    /// What must be the case instead.
    pub rule: String,
}

/// A config that can be used, and what its author should hear about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The config.
    pub config: NetworkConfig,
    /// One line each: keys that nothing reads, settings without effect.
    pub notes: Vec<String>,
}

/// Every key that flannel reads at the top level.
const KEYS: [&str; 12] = [
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "Network",
    "IPv6Network",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "SubnetLen",
    "IPv6SubnetLen",
    "Backend",
];

/// flannel's backends that weft does not have.
const ABSENT_BACKENDS: [&str; 5] = ["wireguard", "ipip", "ipsec", "extension", "tencent-vpc"];

/// flannel's default VNI (its vxlan.go), and the kernel's default VXLAN port (drivers/net/vxlan).
const DEFAULT_VNI: u32 = 1;
const DEFAULT_VXLAN_PORT: u16 = 8472;
/// flannel's udp_amd64.go.
const DEFAULT_UDP_PORT: u16 = 8285;

/// The least MTUs a link may have to carry a family (RFC 791 section 3.2, RFC 8200 section 5), and
/// what VXLAN takes from them at most: outer IPv6 40 + UDP 8 + VXLAN 8 + inner Ethernet 14.
const LEAST_MTU_V4: u32 = 68;
const LEAST_MTU_V6: u32 = 1280;
const VXLAN_OVERHEAD: u32 = 70;
/// The loopback link's, the largest that the kernel gives to any link.
const MOST_MTU: u32 = 65536;

impl NetworkConfig {
    /// Reads the value of `<prefix>/config`.
    pub fn parse(raw: &[u8]) -> Result<Parsed, BadConfig> {
        let json = Json::parse(raw).map_err(|why| BadConfig {
            key: "config",
            value: one_line(&String::from_utf8_lossy(raw)),
            rule: format!("must be JSON, but {why}"),
        })?;
        if !json.is_object() {
            return Err(bad("config", Some(&json), "must be a JSON object"));
        }
        let mut notes = Vec::new();
        for key in json.unknown_keys(&KEYS) {
            notes.push(format!("{}: no such key in a network config; ignored", one_line(key)));
        }
        if flag(&json, "EnableNFTables", "EnableNFTables", false)? {
            notes.push("EnableNFTables: has no effect; weft always uses nftables".to_owned());
        }
        let v4 = match flag(&json, "EnableIPv4", "EnableIPv4", true)? {
            true => Some(pool::<Ipv4Network>(&json)?),
            false => None,
        };
        let v6 = match flag(&json, "EnableIPv6", "EnableIPv6", false)? {
            true => Some(pool::<Ipv6Network>(&json)?),
            false => None,
        };
        if v4.is_none() && v6.is_none() {
            let rule = "must not be off while EnableIPv6 is off too: nothing is left to lease";
            return Err(bad("EnableIPv4", json.field("EnableIPv4"), rule));
        }
        // A raw field in Go keeps even a null, so the very last one counts.
        let given = json.all("Backend").last();
        let backend = match given {
            Some(section) => backend(section, v6.is_some(), &mut notes)?,
            None => vxlan(&Json::Null, v6.is_some(), &mut notes)?,
        };
        let config = NetworkConfig { v4, v6, backend, backend_given: given.is_some() };
        Ok(Parsed { config, notes })
    }
}

/// One family's range. The rules are the same for both; keys and limits are the family's.
fn pool<N: Family>(json: &Json) -> Result<Pool<N>, BadConfig> {
    let network = network::<N>(json)?;
    let plen = network.prefix_len();
    let (len_value, len) = (json.field(N::LEN_KEY), number(json, N::LEN_KEY, N::LEN_KEY, 0..=u64::MAX)?);
    let subnet_len = match len.unwrap_or(0) {
        0 if plen > N::LONGEST_NETWORK => {
            let rule = format!("must be /{} or wider, to hold four subnets", N::LONGEST_NETWORK);
            return Err(bad(N::NETWORK_KEY, json.field(N::NETWORK_KEY), &rule));
        }
        0 => (plen + 2).max(N::DEFAULT_LEN),
        len if len > u64::from(N::LONGEST_SUBNET) => {
            let rule = format!(
                "must be at most {}, so that a subnet has room for the host's own addresses",
                N::LONGEST_SUBNET
            );
            return Err(bad(N::LEN_KEY, len_value, &rule));
        }
        len if len < u64::from(plen) + 2 => {
            let rule = format!("must be at least {}: {network} must hold four subnets", u64::from(plen) + 2);
            return Err(bad(N::LEN_KEY, len_value, &rule));
        }
        // In range, as the two arms above made sure.
        len => u8::try_from(len).unwrap_or(N::LONGEST_SUBNET),
    };
    let step = 1u128 << (N::BITS - subnet_len);
    let first = network.first();
    let last_subnet = first + ((1u128 << (N::BITS - plen)) - step);
    let min = bound::<N>(json, N::MIN_KEY, network, subnet_len)?.unwrap_or(first + step);
    let max = bound::<N>(json, N::MAX_KEY, network, subnet_len)?.unwrap_or(last_subnet);
    if min > max {
        let rule = format!("must not lie before {}", N::MIN_KEY);
        return Err(bad(N::MAX_KEY, json.field(N::MAX_KEY).or(json.field(N::MIN_KEY)), &rule));
    }
    Ok(Pool { network, subnet_len, min: N::subnet(min, subnet_len), max: N::subnet(max, subnet_len) })
}

fn network<N: Family>(json: &Json) -> Result<N, BadConfig> {
    let key = N::NETWORK_KEY;
    // Go calls the field's own decoder for null too, and that refuses it.
    let value = json.all(key).last();
    let rule = format!("must be {}", N::NETWORK_RULE);
    let network = match value {
        Some(Json::Text(text)) => N::parse_cidr(text),
        _ => None,
    };
    let network = network.ok_or_else(|| bad(key, value, &rule))?;
    if network.prefix_len() == 0 && network.first() == 0 {
        return Err(bad(key, value, "must not be everything"));
    }
    if let Some(reason) = network.unusable() {
        return Err(bad(key, value, reason));
    }
    Ok(network)
}

/// `SubnetMin` or `SubnetMax`; absent and the zero address mean the default.
fn bound<N: Family>(json: &Json, key: &'static str, network: N, len: u8) -> Result<Option<u128>, BadConfig> {
    let value = if N::NULL_BOUND { json.field(key) } else { json.all(key).last() };
    let Some(value) = value else { return Ok(None) };
    let refuse = |rule: &str| Err(bad(key, Some(value), rule));
    let Json::Text(text) = value else { return refuse(&format!("must be {}", N::ADDRESS_RULE)) };
    let Some(address) = N::parse_address(text) else {
        return refuse(&format!("must be {}", N::ADDRESS_RULE));
    };
    let size = 1u128 << (N::BITS - network.prefix_len());
    if address == 0 {
        Ok(None)
    } else if address < network.first() || address - network.first() >= size {
        refuse(&format!("must lie in {} {network}", N::NETWORK_KEY))
    } else if address % (1u128 << (N::BITS - len)) != 0 {
        refuse(&format!("must be the first address of a /{len}, the length of a host's subnet"))
    } else {
        Ok(Some(address))
    }
}

fn backend(section: &Json, v6: bool, notes: &mut Vec<String>) -> Result<Backend, BadConfig> {
    if !section.is_object() {
        return Err(bad("Backend", Some(section), "must be a JSON object with a Type"));
    }
    let named = section.field("Type");
    let name = match named {
        Some(Json::Text(name)) => name.to_lowercase(),
        _ => return Err(bad("Backend.Type", named, "must be one of vxlan, host-gw, udp, alloc")),
    };
    match name.as_str() {
        "vxlan" => vxlan(section, v6, notes),
        "udp" => {
            note_unknown(section, &["Type", "Port"], notes);
            let port = number(section, "Port", "Backend.Port", 1..=u64::from(u16::MAX))?;
            // In range, as `number` made sure.
            let port = port.and_then(|port| u16::try_from(port).ok());
            Ok(Backend::Udp { port: port.unwrap_or(DEFAULT_UDP_PORT) })
        }
        "host-gw" | "alloc" => {
            note_unknown(section, &["Type"], notes);
            Ok(if name == "alloc" { Backend::Alloc } else { Backend::HostGw })
        }
        name if ABSENT_BACKENDS.contains(&name) => {
            let rule = "is a backend of flannel that weft does not have; use vxlan, host-gw, udp or alloc";
            Err(bad("Backend.Type", named, rule))
        }
        _ => Err(bad("Backend.Type", named, "must be one of vxlan, host-gw, udp, alloc")),
    }
}

fn vxlan(section: &Json, v6: bool, notes: &mut Vec<String>) -> Result<Backend, BadConfig> {
    let on_windows = ["MacPrefix", "Name"];
    let known = ["Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting"];
    note_unknown(section, &[&known[..], &on_windows[..]].concat(), notes);
    for key in on_windows {
        if section.field(key).is_some() {
            notes.push(format!("Backend.{key}: read on Windows only; ignored"));
        }
    }
    let vni = number(section, "VNI", "Backend.VNI", 0..=0xff_ffff)?.unwrap_or(u64::from(DEFAULT_VNI));
    let vni = u32::try_from(vni).ok().and_then(|vni| Vni::try_from(vni).ok());
    let vni = vni.ok_or_else(|| bad("Backend.VNI", section.field("VNI"), "must have at most 24 bits"))?;
    let port = number(section, "Port", "Backend.Port", 0..=u64::from(u16::MAX))?;
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let least = VXLAN_OVERHEAD + if v6 { LEAST_MTU_V6 } else { LEAST_MTU_V4 };
    let mtu = number(section, "MTU", "Backend.MTU", 0..=u64::from(MOST_MTU))?;
    let mtu = mtu.and_then(|mtu| u32::try_from(mtu).ok()).filter(|mtu| *mtu != 0);
    if mtu.is_some_and(|mtu| mtu < least) {
        let rule = format!("must be at least {least}: less leaves no legal MTU inside the tunnel");
        return Err(bad("Backend.MTU", section.field("MTU"), &rule));
    }
    Ok(Backend::Vxlan {
        vni,
        port: port.unwrap_or(DEFAULT_VXLAN_PORT),
        mtu,
        gbp: flag(section, "GBP", "Backend.GBP", false)?,
        learning: flag(section, "Learning", "Backend.Learning", false)?,
        direct_routing: flag(section, "DirectRouting", "Backend.DirectRouting", false)?,
    })
}

fn note_unknown(section: &Json, known: &[&str], notes: &mut Vec<String>) {
    for key in section.unknown_keys(known) {
        notes.push(format!("Backend.{}: no such key for this backend; ignored", one_line(key)));
    }
}

fn flag(json: &Json, name: &str, key: &'static str, default: bool) -> Result<bool, BadConfig> {
    match json.field(name) {
        None => Ok(default),
        Some(Json::Bool(value)) => Ok(*value),
        Some(other) => Err(bad(key, Some(other), "must be true or false")),
    }
}

/// A whole number; like Go, `24.0` and `"24"` are none.
fn number(
    json: &Json,
    name: &str,
    key: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, BadConfig> {
    let Some(value) = json.field(name) else { return Ok(None) };
    let number = if let Json::Number(number) = value { number.as_u64() } else { None };
    match number.filter(|number| range.contains(number)) {
        Some(number) => Ok(Some(number)),
        None if *range.end() == u64::MAX => Err(bad(key, Some(value), "must be a whole number")),
        None => {
            let rule = format!("must be a whole number from {} to {}", range.start(), range.end());
            Err(bad(key, Some(value), &rule))
        }
    }
}

fn bad(key: &'static str, value: Option<&Json>, rule: &str) -> BadConfig {
    let value = value.map_or_else(|| "absent".to_owned(), Json::to_string);
    BadConfig { key, value, rule: rule.to_owned() }
}
