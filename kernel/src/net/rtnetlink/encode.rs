//! Changes as netlink messages. Pure: link names are numbers already.
//!
//! Every message here may be sent twice without harm: replacing and deleting are of that nature, and
//! adding is with NLM_F_EXCL, so that the second time is refused.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::net::{Address, FdbEntry, Link, LinkName, LinkPatch, Neighbour, Proxy, Route, RouteKind, Vxlan};

pub(super) const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;
pub(super) const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The loopback link is the first of every namespace (include/net/flow.h).
const LOOPBACK_IFINDEX: u32 = 1;

/// Without statistics, which are most of a link's message.
pub(super) fn list_links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

pub(super) fn list_links_with_statistics() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

pub(super) fn list_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

pub(super) fn list_routes(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    RouteNetlinkMessage::GetRoute(message)
}

pub(super) fn list_neighbours(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Without the flag, proxy entries are not listed (net/core/neighbour.c, `neigh_dump_info`).
pub(super) fn list_proxies() -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.flags = NeighbourFlags::Proxy;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// The FDB of one link: without the link every device of the host would list its own
/// (net/core/rtnetlink.c, `rtnl_fdb_dump`).
pub(super) fn list_fdb(link: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    RouteNetlinkMessage::GetNeighbour(message)
}

pub(super) fn get_link(name: &LinkName) -> RouteNetlinkMessage {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// A new VXLAN or bridge, down: with all that the kernel takes at birth (`rtnl_create_link`). The MAC
/// belongs to that: an address given at birth is NET_ADDR_SET, which udev's MACAddressPolicy leaves alone.
pub(super) fn add_link(link: &Link, info: Vec<LinkInfo>, master: Option<u32>) -> RouteNetlinkMessage {
    let mut message = at_birth(link, info);
    message.attributes.extend(master.map(LinkAttribute::Controller));
    RouteNetlinkMessage::NewLink(message)
}

pub(super) fn vxlan_info(vxlan: &Vxlan, underlay: Option<u32>) -> Vec<LinkInfo> {
    let mut data = vec![InfoVxlan::Id(vxlan.vni.get()), InfoVxlan::Port(vxlan.port)];
    data.extend(underlay.map(InfoVxlan::Link));
    data.extend(vxlan.local.map(|local| match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }));
    data.push(InfoVxlan::Learning(vxlan.learning));
    data.extend(vxlan.gbp.then_some(InfoVxlan::Gbp));
    vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]
}

pub(super) fn bridge_info() -> Vec<LinkInfo> {
    vec![LinkInfo::Kind(InfoKind::Bridge)]
}

/// A veth pair's kind; the peer is born in the namespace behind the descriptor, under its own name.
pub(super) fn veth_info(peer: &Link, peer_netns: Option<i32>) -> Vec<LinkInfo> {
    let mut message = at_birth(peer, vec![]);
    message.attributes.extend(peer_netns.map(LinkAttribute::NetNsFd));
    vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(message)))]
}

fn at_birth(link: &Link, info: Vec<LinkInfo>) -> LinkMessage {
    let mut message = named(&link.name);
    message.attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    // Desired 0: whatever the kernel thinks right.
    message.attributes.extend((link.mtu != 0).then_some(LinkAttribute::Mtu(link.mtu)));
    if !info.is_empty() {
        message.attributes.push(LinkAttribute::LinkInfo(info));
    }
    message
}

pub(super) fn delete_link(name: &LinkName) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(named(name))
}

pub(super) fn rename_link(index: u32, to: &LinkName) -> RouteNetlinkMessage {
    let mut message = named(to);
    message.header.index = index;
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn set_link(index: u32, patch: &LinkPatch, master: Option<u32>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let attributes = &mut message.attributes;
    attributes.extend(patch.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(patch.mtu.map(LinkAttribute::Mtu));
    attributes.extend(patch.alias.clone().map(LinkAttribute::IfAlias));
    attributes.extend(master.map(LinkAttribute::Controller));
    if let Some(up) = patch.up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    RouteNetlinkMessage::SetLink(message)
}

/// No link-local address, so no duplicate address detection and no router solicitations either: on a
/// VXLAN link they would be sent to nobody, and the address would be one more thing to tell apart.
pub(super) fn no_link_local(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn add_address(address: &Address, link: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(self::address(address, link))
}

pub(super) fn delete_address(address: &Address, link: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(self::address(address, link))
}

fn address(address: &Address, link: u32) -> AddressMessage {
    let (ip, prefix) = (address.network.ip(), address.network.prefix());
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = prefix;
    message.header.index = link;
    message.header.scope = if ip.is_loopback() { AddressScope::Host } else { AddressScope::Universe };
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    let mut flags = AddressFlags::empty();
    if ip.is_ipv6() {
        // Leases and allocation files make addresses unique; detection would only delay them.
        message.header.flags = AddressHeaderFlags::Nodad;
        flags |= AddressFlags::Nodad;
    }
    if prefix == if ip.is_ipv4() { 32 } else { 128 } {
        // IPv6 would make a route to the address itself (net/ipv6/addrconf.c, `inet6_addr_add`).
        flags |= AddressFlags::Noprefixroute;
    }
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

pub(super) fn replace_route(route: &Route, link: Option<u32>) -> RouteNetlinkMessage {
    let mut message = self::route(route, link);
    // A next hop on the link itself is `scope link`: without a gateway the kernel wants it said.
    let direct = route.kind == RouteKind::Unicast && route.via.is_none() && route.key.dst.is_ipv4();
    message.header.scope = if direct { RouteScope::Link } else { RouteScope::Universe };
    RouteNetlinkMessage::NewRoute(message)
}

pub(super) fn delete_route(route: &Route, link: Option<u32>) -> RouteNetlinkMessage {
    // An IPv6 route that drops hangs on the loopback link. Its kind does not count when deleting
    // (net/ipv6/route.c, `ip6_route_del`), that link does.
    let drops = route.key.dst.is_ipv6() && route.kind != RouteKind::Unicast;
    let mut message = self::route(route, if drops { Some(LOOPBACK_IFINDEX) } else { link });
    // Any scope (net/ipv4/fib_trie.c, `fib_table_delete`); kind, protocol and next hop must match.
    message.header.scope = RouteScope::NoWhere;
    RouteNetlinkMessage::DelRoute(message)
}

fn route(route: &Route, link: Option<u32>) -> RouteMessage {
    let dst = route.key.dst;
    let mut message = RouteMessage::default();
    message.header.address_family = family(dst.ip());
    message.header.destination_prefix_length = dst.prefix();
    // Tables beyond a byte are in the attribute alone (RT_TABLE_COMPAT).
    message.header.table = u8::try_from(route.key.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.kind = RouteType::from(match route.kind {
        RouteKind::Unicast => libc::RTN_UNICAST,
        RouteKind::Blackhole => libc::RTN_BLACKHOLE,
        RouteKind::Unreachable => libc::RTN_UNREACHABLE,
        RouteKind::Other(raw) => raw,
    });
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.key.table));
    attributes.push(RouteAttribute::Destination(RouteAddress::from(dst.network())));
    attributes.push(RouteAttribute::Priority(route.key.metric));
    attributes.extend(route.via.map(|via| match via {
        // An IPv4 destination behind an IPv6 router (RFC 5549) has an attribute of its own.
        IpAddr::V6(router) if dst.is_ipv4() => RouteAttribute::Via(RouteVia::from(router)),
        router => RouteAttribute::Gateway(RouteAddress::from(router)),
    }));
    attributes.extend(link.map(RouteAttribute::Oif));
    attributes.extend(route.src.map(|src| RouteAttribute::PrefSource(RouteAddress::from(src))));
    attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

pub(super) fn replace_neighbour(neighbour: &Neighbour, link: u32) -> RouteNetlinkMessage {
    let mut message = self::neighbour(neighbour, link);
    message.header.state =
        if neighbour.permanent { NeighbourState::Permanent } else { NeighbourState::Reachable };
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()));
    RouteNetlinkMessage::NewNeighbour(message)
}

pub(super) fn delete_neighbour(neighbour: &Neighbour, link: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(self::neighbour(neighbour, link))
}

fn neighbour(neighbour: &Neighbour, link: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.addr);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(neighbour.addr)));
    message
}

pub(super) fn add_proxy(proxy: &Proxy, link: u32) -> RouteNetlinkMessage {
    let mut message = self::proxy(proxy, link);
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(proxy.protocol)));
    RouteNetlinkMessage::NewNeighbour(message)
}

pub(super) fn delete_proxy(proxy: &Proxy, link: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(self::proxy(proxy, link))
}

fn proxy(proxy: &Proxy, link: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = link;
    message.header.flags = NeighbourFlags::Proxy;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(proxy.addr)));
    message
}

/// With [`REPLACE`] a unicast MAC's one destination is overwritten; the all-zero and multicast MACs
/// take [`NLM_F_CREATE`](netlink_packet_core::NLM_F_CREATE) | NLM_F_APPEND, and keep a list
/// (drivers/net/vxlan/vxlan_core.c, `vxlan_fdb_update_existing`).
pub(super) fn replace_fdb(entry: &FdbEntry, link: u32) -> RouteNetlinkMessage {
    let mut message = fdb(entry, link);
    // A learned-like entry (NUD_REACHABLE) ages away as learned ones do.
    message.header.state =
        if entry.permanent { NeighbourState::Permanent } else { NeighbourState::Reachable };
    RouteNetlinkMessage::NewNeighbour(message)
}

pub(super) fn delete_fdb(entry: &FdbEntry, link: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(fdb(entry, link))
}

fn fdb(entry: &FdbEntry, link: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(entry.dst)));
    message
}

fn named(name: &LinkName) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.as_str().to_owned()));
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
