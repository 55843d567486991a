//! The whole of a namespace's network, by dumps.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::decode::{self, Names, RawLink, SeenFdb, SeenNeighbour, SeenRoute};
use super::encode;
use super::socket::Socket;
use crate::net::{LinkName, NetError, State};

/// Dumps are separate requests, so a link can come between two of them. Then all is listed again, so
/// often; after that what hangs on an unknown link is left out (its event will follow).
const TRIES: usize = 3;

/// Traffic of one link since it was made, as the kernel counts it (`rtnl_link_stats64`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received and thrown away.
    pub rx_dropped: u64,
    /// Packets received damaged.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets thrown away instead of sent.
    pub tx_dropped: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
}

pub(super) fn observe(socket: &mut Socket) -> Result<State, NetError> {
    for _ in 1..TRIES {
        let (state, complete) = try_observe(socket)?;
        if complete {
            return Ok(state);
        }
    }
    Ok(try_observe(socket)?.0)
}

fn try_observe(socket: &mut Socket) -> Result<(State, bool), NetError> {
    let (mut state, mut complete) = (State::default(), true);
    let (links, names) = links(socket)?;

    let vxlans: Vec<(u32, LinkName)> =
        links.iter().filter(|link| link.is_vxlan()).map(|link| (link.index(), link.name().clone())).collect();
    state.links = links.into_iter().map(|link| (link.name().clone(), link.resolve(&names))).collect();

    let addresses = list(socket, "addresses", &encode::list_addresses(), |message| match message {
        RouteNetlinkMessage::NewAddress(message) => {
            complete &= names.contains_key(&message.header.index);
            decode::address(&message, &names).map(|address| (address, decode::passing(&message)))
        }
        _ => None,
    })?;
    for (address, passing) in addresses {
        state.passing.extend(passing.map(|passing| (address.clone(), passing)));
        state.addresses.insert(address);
    }

    for (what, family) in [("IPv4 routes", AddressFamily::Inet), ("IPv6 routes", AddressFamily::Inet6)] {
        let routes = list(socket, what, &encode::list_routes(family), |message| match message {
            RouteNetlinkMessage::NewRoute(message) => decode::route(&message, &names),
            _ => None,
        })?;
        for route in routes {
            match route {
                SeenRoute::Modelled(route) if state.routes.contains_key(&route.key) => {
                    state.twins.insert(route.key);
                }
                SeenRoute::Modelled(route) => {
                    state.routes.insert(route.key.clone(), route);
                }
                SeenRoute::UnknownLink(_) => complete = false,
                // The local table is the kernel's own.
                SeenRoute::Other(key) if key.table == u32::from(libc::RT_TABLE_LOCAL) => {}
                SeenRoute::Other(key) => {
                    state.opaque.insert(key);
                }
            }
        }
    }

    for (what, family) in
        [("IPv4 neighbours", AddressFamily::Inet), ("IPv6 neighbours", AddressFamily::Inet6)]
    {
        let neighbours = list(socket, what, &encode::list_neighbours(family), |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => decode::neighbour(&message, &names),
            _ => None,
        })?;
        state.neighbours.extend(neighbours.into_iter().filter_map(|neighbour| match neighbour {
            SeenNeighbour::Usable(neighbour) => Some(((neighbour.link.clone(), neighbour.addr), neighbour)),
            SeenNeighbour::Gone(..) => None,
        }));
    }

    state.proxies.extend(list(socket, "proxy entries", &encode::list_proxies(), |message| match message {
        RouteNetlinkMessage::NewNeighbour(message) => decode::proxy(&message, &names),
        _ => None,
    })?);

    for (index, name) in vxlans {
        let listed = list(socket, "FDB entries", &encode::list_fdb(index), |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => decode::fdb(&message, &name),
            _ => None,
        });
        match listed {
            Ok(entries) => state.fdb.extend(entries.into_iter().filter_map(|entry| match entry {
                SeenFdb::Plain(entry) => Some(entry),
                SeenFdb::Other(_) => None,
            })),
            // The link went away since it was listed.
            Err(NetError::Dump { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
                complete = false
            }
            Err(error) => return Err(error),
        }
    }
    Ok((state, complete))
}

/// All links, and their names by number.
pub(super) fn links(socket: &mut Socket) -> Result<(Vec<RawLink>, Names), NetError> {
    let links = list(socket, "links", &encode::list_links(), |message| match message {
        RouteNetlinkMessage::NewLink(message) => decode::link(&message),
        _ => None,
    })?;
    let names = links.iter().map(|link| (link.index(), link.name().clone())).collect();
    Ok((links, names))
}

pub(super) fn statistics(socket: &mut Socket) -> Result<BTreeMap<LinkName, LinkStats>, NetError> {
    let links = list(socket, "links", &encode::list_links_with_statistics(), |message| match message {
        RouteNetlinkMessage::NewLink(message) => statistics_of(&message),
        _ => None,
    })?;
    Ok(links.into_iter().collect())
}

fn statistics_of(message: &LinkMessage) -> Option<(LinkName, LinkStats)> {
    let name = decode::link(message)?.name().clone();
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some((
            name.clone(),
            LinkStats {
                rx_bytes: stats.rx_bytes,
                rx_packets: stats.rx_packets,
                rx_dropped: stats.rx_dropped,
                rx_errors: stats.rx_errors,
                tx_bytes: stats.tx_bytes,
                tx_packets: stats.tx_packets,
                tx_dropped: stats.tx_dropped,
                tx_errors: stats.tx_errors,
            },
        )),
        _ => None,
    })
}

fn list<T>(
    socket: &mut Socket,
    what: &'static str,
    request: &RouteNetlinkMessage,
    decode: impl FnMut(RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, NetError> {
    socket.dump(request, decode).map_err(|source: io::Error| NetError::Dump { what, source })
}
