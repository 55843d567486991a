//! The table's sets and maps: what each is called and what its keys and values are.
//!
//! Nothing here belongs to one service. A service is elements: of [`Map::Addresses`], which leads a
//! frontend to the number of a way, and of [`Map::AddressEndpoints`], which leads a frontend and a slot
//! to an endpoint; node ports have the same without the address. Services whose clients stick, or are
//! hashed, are looked up by an id instead ([`Map::AddressIds`], [`Map::Slots`], [`Map::LiveCluster`]).
//!
//! Only [`Map::Ways`] holds verdicts, one for each way, and [`Map::Ends`] two that never change:
//! whenever an element that leads to a chain is added, the kernel walks through all elements of all
//! verdict maps (`nft_chain_validate`), which with an element for each service took 12 ms at 45,000 of
//! them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weft_kernel::nft::{
    Comment, DataType, Key, Part, Reg, Rule, Selector, SetName, SetSpec, TableKey, Value,
};

use crate::model::{Family, Policy, Protocol};
use crate::plan::Frontend;

/// What a frontend is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Shape {
    /// Address, protocol, port.
    Address,
    /// Protocol, port of the host.
    Port,
}

/// The most clients that stick to endpoints with one timeout; the next one is sent anywhere.
const STICKY_MAX: u32 = 1 << 18;

/// The number of the first slot with endpoints of the policy Local; those of Cluster begin at 0.
const LOCAL: u32 = 1 << 24;
/// The number of the first slot that clients' addresses are hashed to.
const HASHED: u32 = 1 << 28;

/// The number of the way to nowhere: what an address took must not go on to a node port.
pub(super) const NOWHERE: u32 = 0;
/// The number of what tells the client that nobody is there.
pub(super) const REJECT: u32 = 1;
/// The number of what tells the client nothing.
pub(super) const DROP: u32 = 2;
/// The first number for a way to endpoints.
pub(super) const FIRST_WAY: u32 = 16;

/// The table that holds everything.
pub(super) fn table() -> TableKey {
    TableKey {
        family: weft_kernel::nft::Family::Inet,
        name: "weft-proxy".parse().expect("a literal table name"),
    }
}

/// The table's remark. It says what the names and contents of its sets and chains mean: the number goes
/// up when a table of an older weft could be misread, and that table is replaced as a whole.
pub(super) fn layout() -> Comment {
    Comment::from("layout 1")
}

/// A set or map of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) map: Map,
    pub(super) family: Family,
}

/// What sets and maps there are, in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Map {
    /// The number of a way: the chain for it.
    Ways,
    /// The number of what becomes of who is led to no endpoint. Not a part of [`Map::Ways`], because
    /// filter chains look into it, and those must not lead to translations.
    Ends,
    /// Address, protocol, port: the number of the way for new connections.
    Addresses,
    /// Protocol, port of the host: likewise.
    Ports,
    /// Address, protocol, port, slot: the endpoint.
    AddressEndpoints,
    /// Protocol, port of the host, slot: the endpoint.
    PortEndpoints,
    /// Address, protocol, port: the service port's id.
    AddressIds,
    /// Protocol, port of the host: the service port's id.
    PortIds,
    /// Id, slot: a number that stands for an endpoint.
    Slots,
    /// Id, endpoint's number: the endpoint, if the policy Cluster has it.
    LiveCluster,
    /// Id, endpoint's number: the endpoint, if the policy Local has it.
    LiveLocal,
    /// Id, client: the number of the endpoint that it keeps for so many seconds.
    Sticky(u32),
    /// Address, protocol, port: the number of such an end.
    RefusedAddresses,
    /// Protocol, port of the host: likewise.
    RefusedPorts,
    /// Address, protocol, port: only listed sources come in.
    Guarded,
    /// Source, address, protocol, port: the listed ones.
    Allowed,
    /// An endpoint's address, twice: it talks to itself.
    Hairpin,
    /// Addresses of the host at which node ports are served.
    NodePortAddresses,
    /// Cluster addresses: what no frontend takes is rejected.
    ClusterIps,
    /// Cluster addresses that another proxy serves.
    Spared,
    /// Ranges of cluster addresses: what is to nobody's address is dropped.
    ServiceCidrs,
    /// Where local pods have their addresses from.
    Pods,
}

impl Map {
    /// Those that are there whatever the services are.
    pub(super) const FIXED: [Self; 21] = [
        Self::Ways,
        Self::Ends,
        Self::Addresses,
        Self::Ports,
        Self::AddressEndpoints,
        Self::PortEndpoints,
        Self::AddressIds,
        Self::PortIds,
        Self::Slots,
        Self::LiveCluster,
        Self::LiveLocal,
        Self::RefusedAddresses,
        Self::RefusedPorts,
        Self::Guarded,
        Self::Allowed,
        Self::Hairpin,
        Self::NodePortAddresses,
        Self::ClusterIps,
        Self::Spared,
        Self::ServiceCidrs,
        Self::Pods,
    ];

    /// Elements of it may be needed by several services at once.
    pub(super) fn is_shared(self) -> bool {
        matches!(self, Self::Hairpin | Self::ClusterIps | Self::Spared)
    }

    /// It leads to an endpoint.
    pub(super) fn is_last(self) -> bool {
        matches!(self, Self::AddressEndpoints | Self::PortEndpoints | Self::LiveCluster | Self::LiveLocal)
    }

    pub(super) fn of(self, family: Family) -> Place {
        Place { map: self, family }
    }
}

impl Place {
    pub(super) fn name(self) -> SetName {
        let family = digit(self.family);
        let name = match self.map {
            Map::Ways => format!("ways{family}"),
            Map::Ends => format!("ends{family}"),
            Map::Addresses => format!("addresses{family}"),
            Map::Ports => format!("ports{family}"),
            Map::AddressEndpoints => format!("address-endpoints{family}"),
            Map::PortEndpoints => format!("port-endpoints{family}"),
            Map::AddressIds => format!("address-ids{family}"),
            Map::PortIds => format!("port-ids{family}"),
            Map::Slots => format!("slots{family}"),
            Map::LiveCluster => format!("live-cluster{family}"),
            Map::LiveLocal => format!("live-local{family}"),
            Map::Sticky(seconds) => format!("sticky{family}-{seconds}"),
            Map::RefusedAddresses => format!("refused-addresses{family}"),
            Map::RefusedPorts => format!("refused-ports{family}"),
            Map::Guarded => format!("guarded{family}"),
            Map::Allowed => format!("allowed{family}"),
            Map::Hairpin => format!("hairpin{family}"),
            Map::NodePortAddresses => format!("node-port-addresses{family}"),
            Map::ClusterIps => format!("cluster-ips{family}"),
            Map::Spared => format!("spared{family}"),
            Map::ServiceCidrs => format!("service-cidrs{family}"),
            Map::Pods => format!("pods{family}"),
        };
        name.parse().expect("letters, digits and dashes")
    }

    /// Ids, slots and numbers have the type of marks: four bytes in the host's order, which `nft` can
    /// list in any place.
    pub(super) fn spec(self) -> SetSpec {
        use DataType::{Mark, Protocol, Service, Verdict};
        let ip = match self.family {
            Family::V4 => DataType::Ipv4,
            Family::V6 => DataType::Ipv6,
        };
        let endpoint = [ip, Service];
        match self.map {
            Map::Ways | Map::Ends => SetSpec::exact([Mark]).to(Verdict),
            Map::Addresses | Map::RefusedAddresses => SetSpec::exact([ip, Protocol, Service]).to(Mark),
            Map::Ports | Map::RefusedPorts => SetSpec::exact([Protocol, Service]).to(Mark),
            Map::AddressEndpoints => SetSpec::exact([ip, Protocol, Service, Mark]).to(endpoint),
            Map::PortEndpoints => SetSpec::exact([Protocol, Service, Mark]).to(endpoint),
            Map::AddressIds => SetSpec::exact([ip, Protocol, Service]).to(Mark),
            Map::PortIds => SetSpec::exact([Protocol, Service]).to(Mark),
            Map::Slots => SetSpec::exact([Mark, Mark]).to(Mark),
            Map::LiveCluster | Map::LiveLocal => SetSpec::exact([Mark, Mark]).to(endpoint),
            Map::Sticky(seconds) => SetSpec {
                dynamic: true,
                timeout: Some(Duration::from_secs(seconds.into())),
                size: Some(STICKY_MAX),
                ..SetSpec::exact([Mark, ip]).to(Mark)
            },
            Map::Guarded => SetSpec::exact([ip, Protocol, Service]),
            Map::Allowed => SetSpec::intervals([ip, ip, Protocol, Service]),
            Map::Hairpin => SetSpec::exact([ip, ip]),
            Map::NodePortAddresses | Map::ClusterIps | Map::Spared => SetSpec::exact([ip]),
            Map::ServiceCidrs | Map::Pods => SetSpec::intervals([ip]),
        }
    }
}

/// As in names.
pub(super) fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// Registers of four bytes that an address takes.
pub(super) fn address_slots(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// A register of four bytes, by number.
pub(super) fn reg(slot: u32) -> Reg {
    Reg::try_from(slot).expect("rules here use registers below 16")
}

/// Loads what the packet's frontend is found by from that register on; says which comes behind.
pub(super) fn load_frontend(rule: Rule, shape: Shape, family: Family, first: u32) -> (Rule, u32) {
    let (rule, at) = match shape {
        Shape::Address => (rule.load(destination(family), reg(first)), first + address_slots(family)),
        Shape::Port => (rule, first),
    };
    (rule.load(Selector::L4Proto, reg(at)).load(Selector::UdpDport, reg(at + 1)), at + 2)
}

pub(super) fn source(family: Family) -> Selector {
    match family {
        Family::V4 => Selector::Ip4Saddr,
        Family::V6 => Selector::Ip6Saddr,
    }
}

pub(super) fn destination(family: Family) -> Selector {
    match family {
        Family::V4 => Selector::Ip4Daddr,
        Family::V6 => Selector::Ip6Daddr,
    }
}

/// The number of the first slot with endpoints of this policy.
pub(super) fn first_slot(set: Policy) -> u32 {
    match set {
        Policy::Cluster => 0,
        Policy::Local => LOCAL,
    }
}

/// The number of the first slot that clients are hashed to.
pub(super) fn first_hashed(set: Policy) -> u32 {
    HASHED + first_slot(set)
}

/// Which map has the endpoints of this policy that are still there.
pub(super) fn live(set: Policy) -> Map {
    match set {
        Policy::Cluster => Map::LiveCluster,
        Policy::Local => Map::LiveLocal,
    }
}

fn protocol(protocol: Protocol) -> Part {
    Part::bytes([protocol.number()])
}

fn port(port: u16) -> Part {
    Part::bytes(port.to_be_bytes())
}

/// A number in the host's byte order.
pub(super) fn number(number: u32) -> Part {
    Part::bytes(number.to_ne_bytes())
}

/// The fields that a frontend is found by.
pub(super) fn frontend(of: &Frontend) -> Key {
    match of {
        Frontend::Address(address, with) => {
            Key::concat([address.ip().into(), protocol(*with), port(address.port())])
        }
        Frontend::NodePort(_, number, with) => Key::concat([protocol(*with), port(number.get())]),
    }
}

/// The same with a slot.
pub(super) fn frontend_slot(of: &Frontend, slot: u32) -> Key {
    match of {
        Frontend::Address(address, with) => {
            Key::concat([address.ip().into(), protocol(*with), port(address.port()), number(slot)])
        }
        Frontend::NodePort(_, it, with) => Key::concat([protocol(*with), port(it.get()), number(slot)]),
    }
}

/// An endpoint as a map's value: address and port, padded to four bytes.
pub(super) fn endpoint(of: &SocketAddr) -> Box<[u8]> {
    let mut bytes = match of.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend(of.port().to_be_bytes());
    bytes.extend([0, 0]);
    bytes.into()
}

/// The other way round; `None` for what is none.
pub(super) fn read_endpoint(value: &Value) -> Option<SocketAddr> {
    let Value::Bytes(bytes) = value else { return None };
    let ip: IpAddr = match bytes.len() {
        8 => <[u8; 4]>::try_from(bytes.get(..4)?).ok()?.into(),
        20 => <[u8; 16]>::try_from(bytes.get(..16)?).ok()?.into(),
        _ => return None,
    };
    let at = bytes.len() - 4;
    let port = <[u8; 2]>::try_from(bytes.get(at..at + 2)?).ok()?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
}

/// The value of a map to numbers.
pub(super) fn number_value(number: u32) -> Box<[u8]> {
    number.to_ne_bytes().into()
}

/// The other way round.
pub(super) fn read_number(value: &Value) -> Option<u32> {
    let Value::Bytes(bytes) = value else { return None };
    bytes.as_slice().try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(bytes: Box<[u8]>) -> Value {
        Value::Bytes(bytes.into())
    }

    #[test]
    fn endpoints_and_numbers_are_read_back() {
        for address in ["10.42.7.9:8443", "[fd42::9]:53"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(read_endpoint(&held(endpoint(&address))), Some(address));
        }
        assert_eq!(read_number(&held(number_value(7))), Some(7));
        assert_eq!(read_endpoint(&held(number_value(7))), None);
        assert_eq!(read_number(&Value::None), None);
    }

    #[test]
    fn names_differ() {
        let places = Map::FIXED.iter().flat_map(|map| Family::ALL.map(|family| map.of(family)));
        let names: Vec<SetName> = places.map(Place::name).collect();
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
