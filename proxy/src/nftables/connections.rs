//! Which endpoint got how many new connections, read from the counters of the elements that lead to
//! endpoints. Only a connection's first packet is looked up, so packets counted there are connections.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use weft_kernel::nft::{DumpError, ElementReading, Events, Key, Nft, SetName};

use super::layout::{Map, Place, read_endpoint, table};
use super::parts::wished_id;
use crate::model::{Family, PortName, Protocol};
use crate::plan::Frontend;

/// What one element has counted since it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Tells the element from others: the set, and the key in it.
    pub element: (SetName, Key),
    /// By what its service port is found.
    pub of: Of,
    /// Where it leads.
    pub endpoint: SocketAddr,
    /// How many connections.
    pub connections: u64,
}

/// By what a service port is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    /// By the frontend that was asked.
    Frontend(Frontend),
    /// By its id, where clients stick or are hashed.
    Id(Family, u32),
}

/// The id that a service port has, unless another one of the same family was there first: of ten thousand
/// ports with an id that is about one in a hundred hosts' affair.
pub fn id_of(port: &PortName) -> u32 {
    wished_id(port)
}

/// Reads all counters of this thread's network namespace; nothing if there is no table, or none that
/// counts. Blocks; a hundred thousand elements take some tens of milliseconds.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn read(nft: &mut Nft) -> Result<Vec<Counted>, DumpError> {
    let mut all = Vec::new();
    for (name, readings) in nft.element_counters(&table())? {
        let Some(place) = place_of(&name) else { continue };
        all.extend(readings.into_iter().filter_map(|reading| counted(place, &name, reading)));
    }
    Ok(all)
}

/// Who is told what elements had counted when they were deleted.
pub type Ends = tokio::sync::mpsc::UnboundedSender<Vec<Counted>>;

/// What the elements had counted of which these events have told that they were deleted. They are to be
/// [`Events::counting`].
pub(crate) fn ended(events: &mut Events) -> Vec<Counted> {
    let deleted = events.take_deleted().into_iter();
    deleted.filter_map(|(name, reading)| counted(place_of(&name)?, &name, reading)).collect()
}

fn place_of(set: &SetName) -> Option<Place> {
    let mut places = Map::FIXED.iter().flat_map(|map| Family::ALL.map(|family| map.of(family)));
    places.find(|place| place.name() == *set)
}

fn counted(place: Place, set: &SetName, reading: ElementReading) -> Option<Counted> {
    let endpoint = read_endpoint(&reading.value)?;
    let of = of(place, reading.key.first())?;
    Some(Counted { element: (set.clone(), reading.key), of, endpoint, connections: reading.packets })
}

/// Fields of a key are padded to four bytes each.
fn of(place: Place, key: &[u8]) -> Option<Of> {
    let field = |at: usize| key.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let frontend = |at: usize| {
        let number = field(at)?[0];
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)?;
        let [high, low, ..] = field(at + 4)?;
        Some((protocol, u16::from_be_bytes([high, low])))
    };
    match place.map {
        Map::AddressEndpoints => {
            let (address, at): (IpAddr, usize) = match place.family {
                Family::V4 => (field(0)?.into(), 4),
                Family::V6 => (<[u8; 16]>::try_from(key.get(..16)?).ok()?.into(), 16),
            };
            let (protocol, port) = frontend(at)?;
            Some(Of::Frontend(Frontend::Address(SocketAddr::new(address, port), protocol)))
        }
        Map::PortEndpoints => {
            let (protocol, port) = frontend(0)?;
            Some(Of::Frontend(Frontend::NodePort(place.family, NonZeroU16::new(port)?, protocol)))
        }
        Map::LiveCluster | Map::LiveLocal => Some(Of::Id(place.family, u32::from_ne_bytes(field(0)?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nftables::layout::{frontend_slot, number};

    #[test]
    fn whose_an_element_is_is_read_from_its_key() {
        let address = |text: &str| Frontend::Address(text.parse().unwrap(), Protocol::Udp);
        let port = |family| Frontend::NodePort(family, NonZeroU16::new(30080).unwrap(), Protocol::Tcp);
        let (v4, v6) = (address("10.96.0.1:53"), address("[fd00:96::1]:53"));
        let table = [
            (Map::AddressEndpoints.of(Family::V4), frontend_slot(&v4, 3), Some(Of::Frontend(v4))),
            (Map::AddressEndpoints.of(Family::V6), frontend_slot(&v6, 3), Some(Of::Frontend(v6))),
            (
                Map::PortEndpoints.of(Family::V6),
                frontend_slot(&port(Family::V6), 1 << 24),
                Some(Of::Frontend(port(Family::V6))),
            ),
            (
                Map::LiveLocal.of(Family::V4),
                Key::concat([number(77), number(2)]),
                Some(Of::Id(Family::V4, 77)),
            ),
            (Map::Slots.of(Family::V4), Key::concat([number(77), number(2)]), None),
            (Map::AddressEndpoints.of(Family::V4), Key::from(number(1)), None),
        ];
        for (place, key, expected) in table {
            assert_eq!(of(place, key.first()), expected, "{}", place.name());
        }
    }
}
