//! What a lease's value says, in flannel's JSON to the letter: which host, which backend.
//!
//! `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,
//! "VtepMAC":"4e:11:00:00:00:07"},"BackendV6Data":{...}}`: `PublicIP` is `0.0.0.0` on a host without
//! IPv4, `PublicIPv6` null without IPv6, and the last three are left out when they are empty. For
//! udp and alloc flannel writes no `BackendType` at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Serialize;
use weft_kernel::net::{Mac, Vni};

use crate::config::{Backend, NetworkConfig};
use crate::go_json::{Json, one_line};
use crate::model::{Transports, VxlanEnd};

/// A lease's value. What weft does not understand in it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseAttrs {
    /// `PublicIP`; `None` is 0.0.0.0.
    pub public_v4: Option<Ipv4Addr>,
    /// `PublicIPv6`.
    pub public_v6: Option<Ipv6Addr>,
    /// `BackendType` as written, often empty.
    pub backend: String,
    backend_data: Option<Json>,
    backend_v6_data: Option<Json>,
}

/// Why a lease's value cannot be read: which key, what it says, which rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {rule}")]
pub struct BadAttrs {
    /// The key, or `value` for all of it.
    pub key: &'static str,
    /// What stands there, on one line.
    pub value: String,
    /// What must be the case instead.
    pub rule: String,
}

/// The order is flannel's; so is what is left out.
#[derive(Serialize)]
struct Wire<'a> {
    #[serde(rename = "PublicIP")]
    public_v4: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_v6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<&'a Json>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<&'a Json>,
}

impl LeaseAttrs {
    /// What a host with these addresses writes, given the network's backend and its own VXLAN ends.
    pub fn of_host(
        config: &NetworkConfig,
        public_v4: Option<Ipv4Addr>,
        public_v6: Option<Ipv6Addr>,
        transports: &Transports,
    ) -> Self {
        let mut attrs =
            Self { public_v4, public_v6, backend: String::new(), backend_data: None, backend_v6_data: None };
        match config.backend {
            Backend::Vxlan { .. } => {
                let end = transports.vxlan;
                attrs.backend = "vxlan".to_owned();
                attrs.backend_data = public_v4.and(end).and_then(|end| vxlan_data(end.vni, end.mac_v4));
                attrs.backend_v6_data = public_v6.and(end).and_then(|end| vxlan_data(end.vni, end.mac_v6));
            }
            Backend::HostGw => attrs.backend = "host-gw".to_owned(),
            Backend::Udp { .. } | Backend::Alloc => {}
        }
        attrs
    }

    /// What a reservation writes for a host that has not come yet.
    pub fn reserved(public: Option<IpAddr>) -> Self {
        let (public_v4, public_v6) = match public {
            Some(IpAddr::V4(v4)) => (Some(v4), None),
            Some(IpAddr::V6(v6)) => (None, Some(v6)),
            None => (None, None),
        };
        Self { public_v4, public_v6, backend: String::new(), backend_data: None, backend_v6_data: None }
    }

    /// Reads a value by flannel's rules.
    pub fn parse(raw: &[u8]) -> Result<Self, BadAttrs> {
        let json = Json::parse(raw).map_err(|why| BadAttrs {
            key: "value",
            value: one_line(&String::from_utf8_lossy(raw)),
            rule: format!("must be JSON, but {why}"),
        })?;
        if !json.is_object() {
            return Err(bad("value", &json, "must be a JSON object"));
        }
        // Go calls an address's own decoder for null too, but leaves a pointer alone.
        let v4 = address(json.all("PublicIP").last(), "PublicIP", "must be an IPv4 address")?;
        let v6 = address(json.field("PublicIPv6"), "PublicIPv6", "must be an IPv6 address or null")?;
        let backend = match json.field("BackendType") {
            None => String::new(),
            Some(Json::Text(text)) => text.clone(),
            Some(other) => return Err(bad("BackendType", other, "must be a string")),
        };
        Ok(Self {
            public_v4: v4.filter(|v4: &Ipv4Addr| !v4.is_unspecified()),
            public_v6: v6.filter(|v6: &Ipv6Addr| !v6.is_unspecified()),
            backend,
            backend_data: json.field("BackendData").cloned(),
            backend_v6_data: json.field("BackendV6Data").cloned(),
        })
    }

    /// The value as flannel writes it.
    pub fn encode(&self) -> Vec<u8> {
        let wire = Wire {
            public_v4: self.public_v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_v6: self.public_v6,
            backend: &self.backend,
            backend_data: self.backend_data.as_ref(),
            backend_v6_data: self.backend_v6_data.as_ref(),
        };
        serde_json::to_vec(&wire).expect("text, numbers and addresses always become JSON")
    }

    /// Does it name one of these addresses?
    pub fn is_of(&self, public_v4: Option<Ipv4Addr>, public_v6: Option<Ipv6Addr>) -> bool {
        (self.public_v4.is_some() && self.public_v4 == public_v4)
            || (self.public_v6.is_some() && self.public_v6 == public_v6)
    }

    /// Does it name any host at all? Reservations for nobody in particular do not.
    pub fn names_a_host(&self) -> bool {
        self.public_v4.is_some() || self.public_v6.is_some()
    }

    /// How the host can be reached, as far as flannel's value tells. `Err` says why not at all.
    ///
    /// The value says neither ports nor whether plain routes are welcome: the network's own port is
    /// assumed, and plain routes are, because flannel's DirectRouting does not ask either.
    pub fn transports(&self, config: &NetworkConfig) -> Result<Transports, String> {
        match self.backend.as_str() {
            "vxlan" => {
                let (vni, port) = match config.backend {
                    Backend::Vxlan { vni, port, .. } => (vni, port),
                    // What flannel's vxlan does where nothing is configured.
                    _ => (Vni::try_from(1).map_err(|bad| bad.to_string())?, 8472),
                };
                let v4 = vxlan_end("BackendData", self.backend_data.as_ref())?;
                let v6 = vxlan_end("BackendV6Data", self.backend_v6_data.as_ref())?;
                let said = v4.and_then(|(vni, _)| vni).or(v6.and_then(|(vni, _)| vni));
                let (mac_v4, mac_v6) = (v4.map(|(_, mac)| mac), v6.map(|(_, mac)| mac));
                if mac_v4.is_none() && mac_v6.is_none() {
                    return Err("BackendData = absent: must hold a VtepMAC".to_owned());
                }
                let end = VxlanEnd { vni: said.unwrap_or(vni), port, mac_v4, mac_v6 };
                Ok(Transports { vxlan: Some(end), udp: None, direct: true })
            }
            "host-gw" => Ok(Transports { direct: true, ..Transports::default() }),
            "" => match config.backend {
                Backend::Udp { port } => Ok(Transports { udp: Some(port), ..Transports::default() }),
                Backend::Alloc => Ok(Transports::default()),
                Backend::Vxlan { .. } | Backend::HostGw => {
                    Err("BackendType = absent: a host of another backend, out of reach from here".to_owned())
                }
            },
            other => Err(format!("BackendType = {:?}: no backend of weft's", one_line(other))),
        }
    }
}

fn address<A: FromStr>(value: Option<&Json>, key: &'static str, rule: &str) -> Result<Option<A>, BadAttrs> {
    let Some(value) = value else { return Ok(None) };
    let parsed = if let Json::Text(text) = value { text.parse().ok() } else { None };
    parsed.map(Some).ok_or_else(|| bad(key, value, rule))
}

fn vxlan_data(vni: Vni, mac: Option<Mac>) -> Option<Json> {
    let mac = Json::Text(mac?.to_string());
    let vni = Json::Number(vni.get().into());
    Some(Json::Object(vec![("VNI".to_owned(), vni), ("VtepMAC".to_owned(), mac)]))
}

/// VNI and MAC out of `{"VNI":1,"VtepMAC":"..."}`; older flannels wrote no VNI.
fn vxlan_end(key: &'static str, data: Option<&Json>) -> Result<Option<(Option<Vni>, Mac)>, String> {
    let Some(data) = data else { return Ok(None) };
    let refuse = |rule: &str| Err(format!("{key} = {data}: {rule}"));
    let vni = match data.field("VNI") {
        None => None,
        Some(Json::Number(number)) => {
            let vni = number.as_u64().and_then(|n| u32::try_from(n).ok()).and_then(|n| Vni::try_from(n).ok());
            let Some(vni) = vni else { return refuse("VNI must have at most 24 bits") };
            Some(vni)
        }
        Some(_) => return refuse("VNI must be a number"),
    };
    match data.field("VtepMAC") {
        Some(Json::Text(text)) => match parse_mac(text) {
            Some(mac) => Ok(Some((vni, mac))),
            None => refuse("VtepMAC must be a MAC address"),
        },
        _ => refuse("must hold a VtepMAC"),
    }
}

/// The three spellings that Go's `net.ParseMAC` reads: `4e:11:..`, `4e-11-..`, `4e11.0000.0007`.
fn parse_mac(text: &str) -> Option<Mac> {
    if text.len() == 14 && text.split('.').map(str::len).eq([4, 4, 4]) && text.is_ascii() {
        let hex: String = text.split('.').collect();
        let pairs: Vec<&str> = (0..6).filter_map(|i| hex.get(2 * i..2 * i + 2)).collect();
        return pairs.join(":").parse().ok();
    }
    if text.contains('-') && !text.contains(':') {
        return text.replace('-', ":").parse().ok();
    }
    text.parse().ok()
}

fn bad(key: &'static str, value: &Json, rule: &str) -> BadAttrs {
    BadAttrs { key, value: value.to_string(), rule: rule.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: &str = r#""Network":"10.3.0.0/16""#;

    fn config(backend: &str) -> NetworkConfig {
        let text = format!(r#"{{{V4},"Backend":{{"Type":"{backend}"}}}}"#);
        NetworkConfig::parse(text.as_bytes()).unwrap().config
    }

    fn mac(text: &str) -> Option<Mac> {
        Some(text.parse().unwrap())
    }

    fn vxlan(mac_v4: Option<Mac>, mac_v6: Option<Mac>) -> Transports {
        let end = VxlanEnd { vni: Vni::try_from(1).unwrap(), port: 8472, mac_v4, mac_v6 };
        Transports { vxlan: Some(end), udp: None, direct: true }
    }

    #[test]
    fn values_are_written_as_flannel_writes_them() {
        let v4 = Some(Ipv4Addr::new(192, 168, 64, 3));
        let v6: Option<Ipv6Addr> = Some("2001:db8::3".parse().unwrap());
        let (a, b) = (mac("c6:d2:32:6f:8f:44"), mac("0e:00:00:00:00:01"));
        let table = [
            (
                "vxlan",
                v4,
                None,
                vxlan(a, None),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            (
                "vxlan",
                v4,
                v6,
                vxlan(a, b),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}"#,
            ),
            (
                "vxlan",
                None,
                v6,
                vxlan(None, b),
                r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::3","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}"#,
            ),
            (
                "host-gw",
                v4,
                None,
                Transports::default(),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#,
            ),
            ("udp", v4, None, Transports::default(), r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#),
            ("alloc", v4, None, Transports::default(), r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#),
        ];
        for (backend, v4, v6, transports, text) in table {
            let attrs = LeaseAttrs::of_host(&config(backend), v4, v6, &transports);
            assert_eq!(String::from_utf8(attrs.encode()).unwrap(), text);
            assert_eq!(LeaseAttrs::parse(text.as_bytes()).unwrap(), attrs);
        }
    }

    #[test]
    fn values_are_read_as_flannel_reads_them() {
        let full = vxlan(mac("c6:d2:32:6f:8f:44"), None);
        let direct = Transports { direct: true, ..Transports::default() };
        let udp = Transports { udp: Some(8285), ..Transports::default() };
        let table = [
            (
                "vxlan",
                r#"{"publicip":"1.2.3.4","backendtype":"vxlan","backenddata":{"vtepmac":"C6-D2-32-6F-8F-44"}}"#,
                full.clone(),
            ),
            (
                "vxlan",
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6d2.326f.8f44"},"BackendV6Data":null,"x":[]}"#,
                full.clone(),
            ),
            (
                "udp",
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
                full,
            ),
            ("vxlan", r#"{"PublicIP":"1.2.3.4","BackendType":"host-gw","BackendData":null}"#, direct),
            ("udp", r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#, udp),
            ("alloc", r#"{"PublicIP":"1.2.3.4"}"#, Transports::default()),
        ];
        for (backend, text, transports) in table {
            let attrs = LeaseAttrs::parse(text.as_bytes()).unwrap();
            assert_eq!(attrs.transports(&config(backend)), Ok(transports), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_reached_says_why_and_hides_nothing() {
        let table = [
            ("vxlan", r#"{"PublicIP":"1.2.3.4"}"#, "BackendType = absent"),
            (
                "vxlan",
                r#"{"PublicIP":"1.2.3.4","BackendType":"wireguard","BackendData":{"PublicKey":"k"}}"#,
                "BackendType = \"wireguard\"",
            ),
            (
                "vxlan",
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan"}"#,
                "BackendData = absent: must hold a VtepMAC",
            ),
            (
                "vxlan",
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":7}"#,
                "BackendData = 7: must hold",
            ),
            (
                "vxlan",
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"zz"}}"#,
                "BackendData = {\"VtepMAC\":\"zz\"}: VtepMAC must be",
            ),
            (
                "vxlan",
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":16777216,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
                "BackendData",
            ),
        ];
        for (backend, text, why) in table {
            let attrs = LeaseAttrs::parse(text.as_bytes()).unwrap();
            let error = attrs.transports(&config(backend)).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
            assert_eq!(LeaseAttrs::parse(&attrs.encode()).unwrap(), attrs, "foreign data is preserved");
        }
    }

    #[test]
    fn broken_values_are_named() {
        let table = [
            ("", "value"),
            ("not json", "value = not json: must be JSON"),
            ("[]", "value = []"),
            (r#"{"PublicIP":"::1"}"#, "PublicIP = \"::1\""),
            (r#"{"PublicIP":null}"#, "PublicIP = null"),
            (r#"{"PublicIP":"1.2.3.4","PublicIPv6":"1.2.3.4"}"#, "PublicIPv6"),
            (r#"{"PublicIP":"1.2.3.4","BackendType":{}}"#, "BackendType = {}"),
        ];
        for (text, said) in table {
            let error = LeaseAttrs::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }

    #[test]
    fn nobodys_address_is_never_ours() {
        let nobody = LeaseAttrs::parse(br#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#).unwrap();
        assert!(!nobody.is_of(None, None) && !nobody.names_a_host());
        assert!(!nobody.is_of(Some(Ipv4Addr::UNSPECIFIED), None));
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(raw in prop::collection::vec(any::<u8>(), 0..120), kind in "[a-z-]{0,7}", data in ".{0,30}") {
            let _ = LeaseAttrs::parse(&raw);
            let text = format!(r#"{{"PublicIP":"1.2.3.4","BackendType":"{kind}","BackendData":{data:?}}}"#);
            if let Ok(attrs) = LeaseAttrs::parse(text.as_bytes()) {
                let _ = attrs.transports(&config("vxlan"));
            }
        }
    }
}
