//! Sets and maps: what their keys look like, and their elements as plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::{Comment, Verdict};
use crate::net::{LinkName, Mac};

/// A set (keys only) or a map (keys with values).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What it is made for.
    pub spec: SetSpec,
    /// What it holds.
    pub elements: Elements,
}

/// A set's elements, ordered by key.
pub type Elements = BTreeMap<Key, Value>;

/// What a set is made for; cannot be changed while it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// The fields of its keys.
    pub key: KeyType,
    /// What a key leads to; `None` for a plain set.
    pub value: Option<KeyType>,
    /// Keys may be ranges. With several fields each field may be one (the kernel's pipapo set).
    pub interval: bool,
    /// Packets add elements; what it holds then is nobody's desired state.
    pub dynamic: bool,
    /// Each element counts the packets whose lookup finds it, and their bytes, which are read with
    /// `Nft::element_counters` and are no part of the element. Kernel 5.7 or newer.
    pub counted: bool,
    /// How long an element stays, unless it says otherwise.
    pub timeout: Option<Duration>,
    /// The most elements it takes.
    pub size: Option<u32>,
    /// A remark.
    pub comment: Option<Comment>,
    /// `NFT_SET_*` flags that are none of the above: observed only.
    pub other_flags: u32,
}

impl SetSpec {
    /// A set of exact keys.
    pub fn exact(fields: impl Into<Vec<DataType>>) -> Self {
        Self {
            key: KeyType(fields.into()),
            value: None,
            interval: false,
            dynamic: false,
            counted: false,
            timeout: None,
            size: None,
            comment: None,
            other_flags: 0,
        }
    }

    /// A set whose keys may be ranges.
    pub fn intervals(fields: impl Into<Vec<DataType>>) -> Self {
        Self { interval: true, ..Self::exact(fields) }
    }

    /// The same as a map to `value`.
    pub fn to(self, value: impl Into<KeyType>) -> Self {
        Self { value: Some(value.into()), ..self }
    }

    /// The same with a counter on each element.
    pub fn counted(self) -> Self {
        Self { counted: true, ..self }
    }

    /// The same with a remark.
    pub fn comment(self, comment: &str) -> Self {
        Self { comment: Some(comment.into()), ..self }
    }

    /// A set of this kind with these elements.
    pub fn with(self, keys: impl IntoIterator<Item = Key>) -> Set {
        Set { spec: self, elements: keys.into_iter().map(|key| (key, Value::None)).collect() }
    }

    /// Ranges over one field live in a red-black tree, which takes a range as two elements.
    pub(super) fn is_tree(&self) -> bool {
        self.interval && self.key.0.len() == 1
    }
}

/// A type of `nft`'s: how long a value is and how it is printed. The numbers are those of
/// `enum datatypes` in nftables' include/datatype.h; the kernel only hands them on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// What to do with the packet; only as a map's value.
    Verdict,
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// An Ethernet address.
    Ether,
    /// A transport protocol, one byte.
    Protocol,
    /// A port.
    Service,
    /// A packet mark, in the host's byte order.
    Mark,
    /// An interface's name, padded to 16 bytes.
    LinkName,
    /// Something else, by number and length; also a whole key whose fields are not known.
    Other {
        /// The number.
        id: u32,
        /// In bytes.
        len: u32,
    },
}

impl DataType {
    const KNOWN: [Self; 8] = [
        Self::Verdict,
        Self::Ipv4,
        Self::Ipv6,
        Self::Ether,
        Self::Protocol,
        Self::Service,
        Self::Mark,
        Self::LinkName,
    ];

    pub(super) fn id(self) -> u32 {
        match self {
            Self::Verdict => 1,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Ether => 9,
            Self::Protocol => 12,
            Self::Service => 13,
            Self::Mark => 19,
            Self::LinkName => 41,
            Self::Other { id, .. } => id,
        }
    }

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::KNOWN.into_iter().find(|known| known.id() == id)
    }

    /// In bytes, without the padding that fields of a concatenation get.
    pub fn len(self) -> u32 {
        match self {
            Self::Verdict | Self::LinkName | Self::Ipv6 => 16,
            Self::Ipv4 | Self::Mark => 4,
            Self::Ether => 6,
            Self::Protocol => 1,
            Self::Service => 2,
            Self::Other { len, .. } => len,
        }
    }

    /// Never: no type has zero bytes, except one that was observed broken.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// nftables' `enum byteorder`: 1 is the host's, 2 big endian.
    pub(super) fn byte_order(self) -> u32 {
        if matches!(self, Self::Mark | Self::LinkName) { 1 } else { 2 }
    }
}

/// The fields of a set's keys, or of a map's values, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyType(pub Vec<DataType>);

impl From<DataType> for KeyType {
    fn from(one: DataType) -> Self {
        Self(vec![one])
    }
}

impl<const N: usize> From<[DataType; N]> for KeyType {
    fn from(fields: [DataType; N]) -> Self {
        Self(fields.into())
    }
}

/// Bits that each field's number takes in a concatenation's (`TYPE_BITS`, nftables).
const TYPE_BITS: u32 = 6;

impl KeyType {
    /// What a verdict map leads to.
    pub fn is_verdict(&self) -> bool {
        self.0 == [DataType::Verdict]
    }

    /// The number that `nft` knows this combination by.
    pub(super) fn id(&self) -> u32 {
        self.0.iter().fold(0, |id, field| (id << TYPE_BITS) | field.id())
    }

    /// Bytes of a key: fields of a concatenation are padded to four.
    pub(super) fn len(&self) -> u32 {
        match self.0.as_slice() {
            [one] => one.len(),
            many => many.iter().map(|field| field.len().next_multiple_of(4)).sum(),
        }
    }

    /// From number and length; unknown or inconsistent ones become one opaque field.
    pub(super) fn observed(id: u32, len: u32) -> Self {
        let mut fields = Vec::new();
        let mut rest = id;
        while rest != 0 {
            match DataType::from_id(rest & ((1 << TYPE_BITS) - 1)) {
                Some(field) => fields.insert(0, field),
                None => return Self(vec![DataType::Other { id, len }]),
            }
            rest >>= TYPE_BITS;
        }
        let known = Self(fields);
        if known.len() == len { known } else { Self(vec![DataType::Other { id, len }]) }
    }
}

/// One field of a key: a value, or a range with both ends in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Part {
    /// A value in the byte order of the wire.
    pub fn bytes(value: impl Into<Vec<u8>>) -> Self {
        let from = value.into();
        Self { to: from.clone(), from }
    }

    /// The value, or a range's first.
    pub fn into_bytes(self) -> Vec<u8> {
        self.from
    }
}

impl From<Ipv4Addr> for Part {
    fn from(addr: Ipv4Addr) -> Self {
        Self::bytes(addr.octets())
    }
}

impl From<Ipv6Addr> for Part {
    fn from(addr: Ipv6Addr) -> Self {
        Self::bytes(addr.octets())
    }
}

impl From<IpAddr> for Part {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => addr.into(),
            IpAddr::V6(addr) => addr.into(),
        }
    }
}

impl From<Ipv4Network> for Part {
    fn from(network: Ipv4Network) -> Self {
        Self { from: network.network().octets().into(), to: network.broadcast().octets().into() }
    }
}

impl From<Ipv6Network> for Part {
    fn from(network: Ipv6Network) -> Self {
        Self { from: network.network().octets().into(), to: network.broadcast().octets().into() }
    }
}

impl From<IpNetwork> for Part {
    fn from(network: IpNetwork) -> Self {
        match network {
            IpNetwork::V4(network) => network.into(),
            IpNetwork::V6(network) => network.into(),
        }
    }
}

impl From<Mac> for Part {
    fn from(mac: Mac) -> Self {
        Self::bytes(mac.0)
    }
}

impl From<&LinkName> for Part {
    fn from(name: &LinkName) -> Self {
        let mut padded = name.as_str().as_bytes().to_vec();
        padded.resize(16, 0);
        Self::bytes(padded)
    }
}

/// An element's key: from here to there, both ends in it, fields padded and joined.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    from: Box<[u8]>,
    /// `None` if it is no range: most are none, and there are hundreds of thousands.
    to: Option<Box<[u8]>>,
}

impl Key {
    /// A key from its two ends, as [`Key::first`] and [`Key::last`] give them.
    pub fn range(first: &[u8], last: &[u8]) -> Self {
        Self::new(first.to_vec(), last.to_vec())
    }

    /// A key from its two ends.
    pub(super) fn new(from: Vec<u8>, to: Vec<u8>) -> Self {
        let to = (to != from).then(|| to.into());
        Self { from: from.into(), to }
    }

    /// A key of several fields.
    pub fn concat<const N: usize>(parts: [Part; N]) -> Self {
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for part in parts {
            for (joined, field) in [(&mut from, part.from), (&mut to, part.to)] {
                joined.extend(field);
                joined.resize(joined.len().next_multiple_of(4), 0);
            }
        }
        Self::new(from, to)
    }

    /// The first key of the range, fields padded to four bytes if there are several.
    pub fn first(&self) -> &[u8] {
        &self.from
    }

    /// The last key of the range; equal to the first if it is no range.
    pub fn last(&self) -> &[u8] {
        self.to.as_deref().unwrap_or(&self.from)
    }
}

/// A key of one field.
impl<T: Into<Part>> From<T> for Key {
    fn from(part: T) -> Self {
        let part = part.into();
        Self::new(part.from, part.to)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        f.write_str("0x")?;
        hex(f, &self.from)?;
        if let Some(to) = &self.to {
            f.write_str("-0x")?;
            hex(f, to)?;
        }
        Ok(())
    }
}

/// What a key of a map leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: an element of a plain set.
    None,
    /// A verdict.
    Verdict(Verdict),
    /// A value in the byte order of the wire.
    Bytes(Vec<u8>),
}

/// The same addresses in the fewest networks, none of which overlap: what an interval set needs,
/// because the kernel refuses ranges that overlap.
pub fn merge_networks(networks: impl IntoIterator<Item = IpNetwork>) -> Vec<IpNetwork> {
    let mut sorted: Vec<IpNetwork> = networks
        .into_iter()
        .filter_map(|network| IpNetwork::new(network.network(), network.prefix()).ok())
        .collect();
    // At equal first addresses the wider network comes first and swallows the others.
    sorted.sort_by_key(|network| (network.network(), network.prefix()));
    let mut merged: Vec<IpNetwork> = Vec::new();
    for network in sorted {
        if merged.last().is_some_and(|last| last.contains(network.network())) {
            continue;
        }
        merged.push(network);
        // Two halves of one network become it, and that may be a half in turn.
        while let [.., left, right] = merged.as_slice() {
            let Some(whole) = parent(*left).filter(|whole| parent(*right) == Some(*whole)) else { break };
            merged.truncate(merged.len() - 2);
            merged.push(whole);
        }
    }
    merged
}

/// The network twice as wide; `None` for a whole family.
fn parent(network: IpNetwork) -> Option<IpNetwork> {
    let prefix = network.prefix().checked_sub(1)?;
    let wider = IpNetwork::new(network.network(), prefix).ok()?;
    IpNetwork::new(wider.network(), prefix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_of_a_concatenation_are_padded() {
        let key = Key::concat([Mac([1, 2, 3, 4, 5, 6]).into(), Ipv4Addr::new(10, 0, 0, 1).into()]);
        assert_eq!(key.first(), [1, 2, 3, 4, 5, 6, 0, 0, 10, 0, 0, 1]);
        assert_eq!(KeyType(vec![DataType::Ether, DataType::Ipv4]).len(), 12);
        let alone: Key = Mac([1, 2, 3, 4, 5, 6]).into();
        assert_eq!(alone.first(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn key_types_have_the_numbers_of_nft() {
        let table = [
            (vec![DataType::Ipv4], 7),
            (vec![DataType::Ipv4, DataType::Ipv6], 0x1c8),
            (vec![DataType::LinkName, DataType::Ipv4], 0xa47),
        ];
        for (fields, id) in table {
            let key = KeyType(fields);
            assert_eq!(key.id(), id);
            assert_eq!(KeyType::observed(id, key.len()), key);
        }
        let odd = KeyType::observed(7, 5);
        assert_eq!(odd.0, [DataType::Other { id: 7, len: 5 }]);
    }

    #[test]
    fn networks_merge() {
        let table = [
            (vec!["10.0.0.0/8", "10.42.0.0/16"], vec!["10.0.0.0/8"]),
            (vec!["10.0.0.0/9", "10.128.0.0/9"], vec!["10.0.0.0/8"]),
            (vec!["10.0.1.0/24", "10.0.2.0/24"], vec!["10.0.1.0/24", "10.0.2.0/24"]),
            (vec!["10.0.0.3/24"], vec!["10.0.0.0/24"]),
            (vec!["0.0.0.0/1", "128.0.0.0/1", "fd00::/8"], vec!["0.0.0.0/0", "fd00::/8"]),
            (vec!["::/0", "fd00::/8"], vec!["::/0"]),
        ];
        for (given, wanted) in table {
            let given = given.iter().map(|raw| raw.parse().unwrap());
            let wanted: Vec<IpNetwork> = wanted.iter().map(|raw| raw.parse().unwrap()).collect();
            assert_eq!(merge_networks(given), wanted);
        }
    }

    proptest! {
        #[test]
        fn merging_keeps_every_address_and_leaves_no_overlap(
            raw in prop::collection::vec((0u32..64, 26u8..=32), 0..12),
            probe in 0u32..64,
        ) {
            let networks: Vec<IpNetwork> = raw
                .iter()
                .map(|(addr, len)| IpNetwork::new(Ipv4Addr::from(*addr).into(), *len).unwrap())
                .collect();
            let merged = merge_networks(networks.clone());
            let probe = IpAddr::from(Ipv4Addr::from(probe));
            let before = networks.iter().any(|network| network.contains(probe));
            let after = merged.iter().filter(|network| network.contains(probe)).count();
            prop_assert_eq!(after, usize::from(before));
        }
    }
}
