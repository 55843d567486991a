//! weft's own records as JSON: who wrote a lease and how that host can be reached; who runs.
//!
//! Keys that a later version adds are skipped, so that versions can be mixed while a fleet upgrades.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use weft_kernel::net::{Mac, Vni};

use crate::go_json::one_line;
use crate::model::{NodeId, Transports, VxlanEnd};

/// Who wrote a lease. It is valid while the lease still is the one it was written with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRecord {
    /// The host.
    pub node: NodeId,
    /// One more for every time that the subnet was written by a weft host.
    pub generation: u64,
    /// Every way the host can be reached; flannel's value has room for one.
    pub transports: Transports,
    /// The host gave the subnet up: the record only remembers that it was in use.
    pub released: bool,
}

/// A daemon that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRecord {
    /// Which run of the daemon: a node id that two hosts share shows itself here.
    pub instance: String,
    /// The address that the host is reached at.
    pub public_v4: Option<Ipv4Addr>,
    /// The same in IPv6.
    pub public_v6: Option<Ipv6Addr>,
}

#[derive(Serialize, Deserialize)]
struct OwnerWire {
    node: NodeId,
    generation: u64,
    #[serde(default)]
    transports: TransportsWire,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    released: bool,
}

#[derive(Default, Serialize, Deserialize)]
struct TransportsWire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vxlan: Option<VxlanWire>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    udp: Option<u16>,
    #[serde(default)]
    direct: bool,
}

#[derive(Serialize, Deserialize)]
struct VxlanWire {
    vni: u32,
    port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac_v4: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac_v6: Option<String>,
}

impl OwnerRecord {
    /// Reads a record; the error is one line that names the rule.
    pub fn parse(raw: &[u8]) -> Result<Self, String> {
        let wire: OwnerWire = serde_json::from_slice(raw).map_err(|e| one_line(&e.to_string()))?;
        let vxlan = wire.transports.vxlan.map(VxlanWire::end).transpose()?;
        let transports = Transports { vxlan, udp: wire.transports.udp, direct: wire.transports.direct };
        Ok(Self { node: wire.node, generation: wire.generation, transports, released: wire.released })
    }

    /// The record as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let Transports { vxlan, udp, direct } = &self.transports;
        let vxlan = vxlan.map(|end| VxlanWire {
            vni: end.vni.get(),
            port: end.port,
            mac_v4: end.mac_v4.map(|mac| mac.to_string()),
            mac_v6: end.mac_v6.map(|mac| mac.to_string()),
        });
        let wire = OwnerWire {
            node: self.node.clone(),
            generation: self.generation,
            transports: TransportsWire { vxlan, udp: *udp, direct: *direct },
            released: self.released,
        };
        serde_json::to_vec(&wire).expect("text, numbers and booleans always become JSON")
    }
}

impl VxlanWire {
    fn end(self) -> Result<VxlanEnd, String> {
        let mac = |text: Option<String>| -> Result<Option<Mac>, String> {
            text.map(|text| text.parse::<Mac>().map_err(|bad| one_line(&bad.to_string()))).transpose()
        };
        let vni = Vni::try_from(self.vni).map_err(|bad| bad.to_string())?;
        Ok(VxlanEnd { vni, port: self.port, mac_v4: mac(self.mac_v4)?, mac_v6: mac(self.mac_v6)? })
    }
}

impl LiveRecord {
    /// Reads a record; the error is one line that names the rule.
    pub fn parse(raw: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(raw).map_err(|e| one_line(&e.to_string()))
    }

    /// The record as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and addresses always become JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::try_from("ash".to_owned()).unwrap()
    }

    #[test]
    fn owner_records_read_back() {
        let end = VxlanEnd {
            vni: Vni::try_from(7).unwrap(),
            port: 4789,
            mac_v4: Some("4e:11:00:00:00:07".parse().unwrap()),
            mac_v6: None,
        };
        let transports = Transports { vxlan: Some(end), udp: Some(8285), direct: true };
        let record = OwnerRecord { node: node(), generation: 3, transports, released: false };
        let text = r#"{"node":"ash","generation":3,"transports":{"vxlan":{"vni":7,"port":4789,"mac_v4":"4e:11:00:00:00:07"},"udp":8285,"direct":true}}"#;
        assert_eq!(String::from_utf8(record.encode()).unwrap(), text);
        assert_eq!(OwnerRecord::parse(text.as_bytes()), Ok(record));
        let released =
            OwnerRecord { node: node(), generation: 4, transports: Transports::default(), released: true };
        assert_eq!(OwnerRecord::parse(&released.encode()), Ok(released));
    }

    #[test]
    fn later_keys_are_skipped_and_broken_records_say_why() {
        let record = OwnerRecord::parse(br#"{"node":"ash","generation":1,"colour":"red"}"#).unwrap();
        assert_eq!(record.node, node());
        for raw in [
            "",
            "7",
            r#"{"node":"a b","generation":1}"#,
            r#"{"node":"ash"}"#,
            r#"{"node":"ash","generation":1,"transports":{"vxlan":{"vni":16777216,"port":1}}}"#,
            r#"{"node":"ash","generation":1,"transports":{"vxlan":{"vni":1,"port":1,"mac_v4":"zz"}}}"#,
        ] {
            let why = OwnerRecord::parse(raw.as_bytes()).unwrap_err();
            assert!(!why.is_empty() && !why.contains('\n'), "{raw}: {why}");
        }
    }

    #[test]
    fn live_records_read_back() {
        let record =
            LiveRecord { instance: "a1".to_owned(), public_v4: Some([192, 0, 2, 7].into()), public_v6: None };
        assert_eq!(LiveRecord::parse(&record.encode()), Ok(record));
        assert!(LiveRecord::parse(b"{}").is_err());
    }
}
