//! What the kernel's tunnel carries, by peer: sets whose elements count, in places where each packet is
//! looked up anyway.
//!
//! Packets are counted as the kernel moves them: those that offloads have joined count as one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weft_kernel::nft::{ElementReading, Key, SetName, SetSpec, Table};

use super::Ip;
use crate::model::{Family, Model};
use crate::mtu;
use crate::plan::{Transport, Way};

/// What the elements of a set count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// What arrived from each peer.
    Heard,
    /// What went to each peer.
    Sent,
    /// What of the first was refused.
    Refused,
}

impl Counted {
    const ALL: [Self; 3] = [Self::Heard, Self::Sent, Self::Refused];

    /// The set of the peers' addresses; it is made once.
    pub(super) fn set(self, table: &mut Table, model: &Model, ip: Ip) -> SetName {
        let comment = match self {
            Self::Heard => "the other hosts, and what came from each",
            Self::Sent => "the other hosts, and what went to each",
            Self::Refused => "the other hosts, and what of each was dropped",
        };
        let addresses = model.peers.values().filter_map(|peer| ip.peer_address(peer)).map(Key::from);
        let spec = SetSpec::exact([ip.data_type()]).counted().comment(comment);
        let name = self.name(ip);
        table.sets.entry(name.clone()).or_insert_with(|| spec.with(addresses));
        name
    }

    fn name(self, ip: Ip) -> SetName {
        ip.name(match self {
            Self::Heard => "heard",
            Self::Sent => "sent",
            Self::Refused => "refused",
        })
    }
}

/// What was carried to and from one peer, as IP packets without the tunnel's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerTraffic {
    /// Packets sent to it.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that came from it, dropped ones among them.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets from it with an inner source that is not its own.
    pub drop_spoofed: u64,
}

impl PeerTraffic {
    /// Each counter's name and value, in a fixed order; the names are those of the udp tunnel's.
    pub fn each(&self) -> [(&'static str, u64); 5] {
        [
            ("sent_packets", self.sent_packets),
            ("sent_bytes", self.sent_bytes),
            ("received_packets", self.received_packets),
            ("received_bytes", self.received_bytes),
            ("drop_spoofed", self.drop_spoofed),
        ]
    }

    fn add(&mut self, counted: Counted, packets: u64, bytes: u64) {
        match counted {
            Counted::Heard => {
                self.received_packets += packets;
                self.received_bytes += bytes;
            }
            Counted::Sent => {
                self.sent_packets += packets;
                self.sent_bytes += bytes;
            }
            Counted::Refused => self.drop_spoofed += packets,
        }
    }

    /// Both together: one peer has an address in each family.
    pub fn plus(mut self, other: Self) -> Self {
        self.add(Counted::Heard, other.received_packets, other.received_bytes);
        self.add(Counted::Sent, other.sent_packets, other.sent_bytes);
        self.add(Counted::Refused, other.drop_spoofed, 0);
        self
    }
}

/// What was carried, by the peers' addresses. Empty without a tunnel of the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic(pub BTreeMap<IpAddr, PeerTraffic>);

impl Traffic {
    /// From what the elements of the table's sets have counted.
    pub fn from_readings(readings: &BTreeMap<SetName, Vec<ElementReading>>) -> Self {
        let mut all = Self::default();
        for (counted, ip) in Counted::ALL.into_iter().flat_map(|of| Ip::BOTH.map(|ip| (of, ip))) {
            for reading in readings.get(&counted.name(ip)).into_iter().flatten() {
                let Some(address) = ip.address(&reading.key) else { continue };
                let headers = reading.packets.saturating_mul(u64::from(mtu::overhead(ip.vxlan())));
                let bytes = reading.bytes.saturating_sub(headers);
                all.0.entry(address).or_default().add(counted, reading.packets, bytes);
            }
        }
        all
    }
}

impl Ip {
    fn address(self, key: &Key) -> Option<IpAddr> {
        match self {
            Self::V4 => <[u8; 4]>::try_from(key.first()).ok().map(IpAddr::from),
            Self::V6 => <[u8; 16]>::try_from(key.first()).ok().map(IpAddr::from),
        }
    }

    /// VXLAN over this family.
    fn vxlan(self) -> Way {
        let outer = if self == Self::V4 { Family::V4 } else { Family::V6 };
        Way { transport: Transport::Vxlan, outer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_become_what_each_peer_sent_and_got() {
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
        let reading = |address: IpAddr, packets, bytes| {
            vec![ElementReading {
                key: Key::from(address),
                value: weft_kernel::nft::Value::None,
                packets,
                bytes,
            }]
        };
        let readings = [
            ("heard4", reading(v4, 2, 3000)),
            ("refused4", reading(v4, 1, 84)),
            ("sent4", reading(v4, 1, 134)),
            ("sent6", reading(v6, 1, 154)),
            // Sets that are not about peers, and a key that is no address.
            ("peers4", reading(v4, 9, 9)),
            ("heard6", reading(v4, 9, 9)),
        ];
        let readings = readings.map(|(name, list)| (name.parse().unwrap(), list)).into();
        let Traffic(all) = Traffic::from_readings(&readings);
        // IP 20 or 40, UDP 8, VXLAN 8, Ethernet 14 are the tunnel's.
        let over_v4 = PeerTraffic {
            sent_packets: 1,
            sent_bytes: 84,
            received_packets: 2,
            received_bytes: 2900,
            drop_spoofed: 1,
        };
        let over_v6 = PeerTraffic { sent_packets: 1, sent_bytes: 84, ..PeerTraffic::default() };
        assert_eq!(all, [(v4, over_v4), (v6, over_v6)].into());
        let both = over_v4.plus(over_v6);
        assert_eq!((both.sent_bytes, both.received_bytes, both.drop_spoofed), (168, 2900, 1));
    }
}
