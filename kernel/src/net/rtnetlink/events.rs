//! Multicast messages as [`Event`]s.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::MsgFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::decode::{self, Names, SeenFdb, SeenNeighbour, SeenRoute};
use super::observe;
use super::socket::{Messages, Socket, grow_receive_buffer, recv_into};
use super::{inside, socket_in};
use crate::net::{Event, Events, LinkName, NetError};
use crate::netns::NetNs;

/// Room for what may happen while nobody reads: adding 5,000 peers makes 15,000 messages of about
/// 1 KiB each in the socket's accounting.
pub(super) const RECEIVE_BUFFER: usize = 32 << 20;

// include/uapi/linux/rtnetlink.h, `enum rtnetlink_groups`
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
/// FDB entries of VXLAN links are told to RTNLGRP_NEIGH too (`vxlan_fdb_notify`).
const GROUPS: [u32; 6] = [
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
];

/// Subscribes, then learns the links' names: a message about a link that neither that list nor an
/// earlier message names is about a link that is gone.
pub(super) fn subscribe(ns: &NetNs, receive_buffer: usize) -> Result<Events, NetError> {
    let socket = inside(ns, || -> io::Result<_> {
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        grow_receive_buffer(&socket, receive_buffer)?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(socket)
    })?;
    let socket = socket.map_err(NetError::Open)?;
    // SAFETY: the socket owns its descriptor, always the same one, and the `AsyncFd` owns the socket,
    // so the descriptor stays open until it is deregistered.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
        .map_err(|error| NetError::Open(error.into()))?;
    let mut asking = socket_in(ns)?;
    let decoder = Decoder::new(&mut asking)?;
    Ok(Events::new(Multicast { socket, asking, decoder, buffer: vec![0; 128 << 10], ready: VecDeque::new() }))
}

struct Multicast {
    socket: AsyncFd<netlink_sys::Socket>,
    /// For asking the links' names again when messages were lost.
    asking: Socket,
    decoder: Decoder,
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
}

impl Stream for Multicast {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            let mut guard = match ready!(this.socket.poll_read_ready(context)) {
                Ok(guard) => guard,
                // The runtime is shutting down.
                Err(_) => return Poll::Ready(None),
            };
            let socket = guard.get_inner();
            let received = match recv_into(socket, &mut this.buffer, MsgFlags::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    guard.clear_ready();
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received,
            };
            match received {
                Ok(length) => {
                    let datagram = this.buffer.get(..length).unwrap_or_default();
                    let messages = Messages::new(datagram).filter_map(|message| message.decode());
                    this.ready.extend(messages.filter_map(|message| this.decoder.event(message)));
                }
                // ENOBUFS, or a message too large: the truth is elsewhere now.
                Err(error) => {
                    tracing::debug!(%error, fd = socket.as_raw_fd(), "netlink events were lost");
                    match Decoder::new(&mut this.asking) {
                        Ok(decoder) => this.decoder = decoder,
                        Err(error) => tracing::warn!(%error, "cannot learn the links' names again"),
                    }
                    this.ready.push_back(Event::Lost);
                }
            }
        }
    }
}

/// Turns messages into events; knows the links' names as of the last message.
struct Decoder {
    names: Names,
    vxlans: std::collections::HashSet<u32>,
}

impl Decoder {
    fn new(asking: &mut Socket) -> Result<Self, NetError> {
        let (links, names) = observe::links(asking)?;
        let vxlans = links.iter().filter(|link| link.is_vxlan()).map(|link| link.index()).collect();
        Ok(Self { names, vxlans })
    }

    fn event(&mut self, message: RouteNetlinkMessage) -> Option<Event> {
        match message {
            // With family AF_BRIDGE it is about a bridge's port: RTM_DELLINK then means that the
            // link left its bridge (net/bridge/br_netlink.c, `br_ifinfo_notify`).
            RouteNetlinkMessage::NewLink(m) if m.header.interface_family == AddressFamily::Unspec => {
                let link = decode::link(&m)?;
                self.names.insert(link.index(), link.name().clone());
                if link.is_vxlan() {
                    self.vxlans.insert(link.index());
                }
                Some(Event::Link(link.resolve(&self.names)))
            }
            RouteNetlinkMessage::DelLink(m) if m.header.interface_family == AddressFamily::Unspec => {
                self.vxlans.remove(&m.header.index);
                self.names.remove(&m.header.index).map(Event::LinkGone)
            }
            RouteNetlinkMessage::NewAddress(m) => decode::address(&m, &self.names).map(Event::Address),
            RouteNetlinkMessage::DelAddress(m) => decode::address(&m, &self.names).map(Event::AddressGone),
            RouteNetlinkMessage::NewRoute(m) => route(decode::route(&m, &self.names)?, Event::Route),
            RouteNetlinkMessage::DelRoute(m) => route(decode::route(&m, &self.names)?, Event::RouteGone),
            RouteNetlinkMessage::NewNeighbour(m) if m.header.family == AddressFamily::Bridge => {
                Some(match decode::fdb(&m, self.vxlan(&m)?)? {
                    SeenFdb::Plain(entry) => Event::Fdb(entry),
                    SeenFdb::Other(entry) => Event::FdbGone(entry),
                })
            }
            RouteNetlinkMessage::DelNeighbour(m) if m.header.family == AddressFamily::Bridge => {
                match decode::fdb(&m, self.vxlan(&m)?)? {
                    SeenFdb::Plain(entry) | SeenFdb::Other(entry) => Some(Event::FdbGone(entry)),
                }
            }
            RouteNetlinkMessage::NewNeighbour(m) => Some(match decode::neighbour(&m, &self.names)? {
                SeenNeighbour::Usable(neighbour) => Event::Neighbour(neighbour),
                SeenNeighbour::Gone(link, addr) => Event::NeighbourGone(link, addr),
            }),
            RouteNetlinkMessage::DelNeighbour(m) => Some(match decode::neighbour(&m, &self.names)? {
                SeenNeighbour::Usable(neighbour) => Event::NeighbourGone(neighbour.link, neighbour.addr),
                SeenNeighbour::Gone(link, addr) => Event::NeighbourGone(link, addr),
            }),
            _ => None,
        }
    }

    fn vxlan(&self, message: &NeighbourMessage) -> Option<&LinkName> {
        let index = message.header.ifindex;
        self.names.get(&index).filter(|_| self.vxlans.contains(&index))
    }
}

fn route(seen: SeenRoute, event: fn(crate::net::Route) -> Event) -> Option<Event> {
    Some(match seen {
        SeenRoute::Modelled(route) => event(route),
        SeenRoute::Other(key) | SeenRoute::UnknownLink(key) => Event::OtherRoute(key),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Change, LinkPatch, Net, Rtnetlink};
    use futures::StreamExt;
    use std::time::Duration;
    use tokio::time::{Instant, timeout_at};

    #[tokio::test]
    async fn lost_events_are_told_and_the_next_ones_come() {
        let ns = NetNs::anonymous().unwrap();
        let net = Rtnetlink::open_in(&ns).unwrap();
        // The smallest buffer the kernel allows holds less than two messages about links.
        let mut events = subscribe(&ns, 1).unwrap();
        let up =
            |up| Change::SetLink("lo".parse().unwrap(), LinkPatch { up: Some(up), ..LinkPatch::default() });
        assert!(net.apply(&[up(true), up(false), up(true), up(false)]).await.is_empty());

        let deadline = Instant::now() + Duration::from_secs(60);
        while timeout_at(deadline, events.next()).await.expect("told in time") != Some(Event::Lost) {}
        // What was still waiting may have left no room, so it is said until it is heard.
        loop {
            assert!(net.apply(&[up(false), up(true)]).await.is_empty());
            let soon = Instant::now() + Duration::from_millis(20);
            while let Ok(event) = timeout_at(soon, events.next()).await {
                if matches!(event, Some(Event::Link(_))) {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "nothing is heard after a loss");
        }
    }
}
