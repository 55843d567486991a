//! Netlink messages as plain data. Pure; what weft does not model becomes `None`, never a guess.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoTun, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteVia,
};

use crate::net::{
    Address, FdbEntry, Link, LinkKind, LinkName, Mac, Neighbour, Passing, Proxy, Route, RouteKey, RouteKind,
    Vni, Vxlan,
};

/// Link names by the kernel's numbers.
pub(super) type Names = HashMap<u32, LinkName>;

/// A link whose references to other links are still numbers.
#[derive(Clone, Debug)]
pub(super) struct RawLink {
    link: Link,
    master: Option<u32>,
    underlay: Option<u32>,
}

impl RawLink {
    pub(super) fn index(&self) -> u32 {
        self.link.index
    }

    pub(super) fn name(&self) -> &LinkName {
        &self.link.name
    }

    pub(super) fn is_vxlan(&self) -> bool {
        matches!(self.link.kind, LinkKind::Vxlan(_))
    }

    /// Whether names of other links are needed to resolve it.
    pub(super) fn refers(&self) -> bool {
        self.master.is_some() || self.underlay.is_some()
    }

    pub(super) fn resolve(self, names: &Names) -> Link {
        let mut link = self.link;
        link.master = self.master.and_then(|index| names.get(&index).cloned());
        if let LinkKind::Vxlan(vxlan) = &mut link.kind {
            vxlan.underlay = self.underlay.and_then(|index| names.get(&index).cloned());
        }
        link
    }
}

/// `IFLA_TUN_TYPE` (include/uapi/linux/if_link.h), with IFF_TUN; IFF_TAP is Ethernet.
const IFLA_TUN_TYPE: u16 = 3;
const IFF_TUN: u8 = 1;

pub(super) fn link(message: &LinkMessage) -> Option<RawLink> {
    let (mut name, mut mac, mut mtu, mut alias, mut master) = (None, None, 0, None, None);
    let (mut kind, mut data, mut elsewhere) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::IfAlias(text) => alias = Some(text.clone()),
            LinkAttribute::Controller(index) => master = Some(*index),
            // The link below is in another namespace: its number means nothing here.
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(value) => kind = Some(value),
                        LinkInfo::Data(value) => data = Some(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let mut underlay = None;
    let kind = match (kind, data) {
        (Some(InfoKind::Vxlan), Some(InfoData::Vxlan(attributes))) => {
            let (vxlan, below) = vxlan(attributes)?;
            underlay = below.filter(|_| !elsewhere);
            LinkKind::Vxlan(vxlan)
        }
        (Some(InfoKind::Veth), _) => LinkKind::Veth,
        (Some(InfoKind::Bridge), _) => LinkKind::Bridge,
        (Some(InfoKind::Tun), Some(InfoData::Tun(attributes))) if is_tun(attributes) => LinkKind::Tun,
        (kind, _) => LinkKind::Other(kind.map(ToString::to_string).unwrap_or_default()),
    };
    let link = Link {
        name: name?,
        index: message.header.index,
        kind,
        mac,
        mtu,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        alias,
        master: None,
    };
    Some(RawLink { link, master, underlay })
}

fn vxlan(attributes: &[InfoVxlan]) -> Option<(Vxlan, Option<u32>)> {
    let (mut vni, mut port, mut local, mut underlay) = (None, 0, None, None);
    let (mut learning, mut gbp) = (false, false);
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(raw) => vni = Vni::try_from(*raw).ok(),
            InfoVxlan::Port(value) => port = *value,
            InfoVxlan::Local(ip) => local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => local = Some(IpAddr::V6(*ip)),
            InfoVxlan::Link(index) => underlay = Some(*index),
            InfoVxlan::Learning(value) => learning = *value,
            InfoVxlan::Gbp => gbp = true,
            _ => {}
        }
    }
    let local = local.filter(|ip| !ip.is_unspecified());
    Some((
        Vxlan { vni: vni?, port, local, underlay: None, learning, gbp },
        underlay.filter(|index| *index != 0),
    ))
}

fn is_tun(attributes: &[InfoTun]) -> bool {
    use netlink_packet_core::Nla;
    attributes.iter().any(|attribute| {
        let mut value = [0];
        let is_type = attribute.kind() == IFLA_TUN_TYPE && attribute.value_len() == value.len();
        if is_type {
            attribute.emit_value(&mut value);
        }
        is_type && value == [IFF_TUN]
    })
}

/// An address that is in use. One whose uniqueness is still being checked (IFA_F_TENTATIVE) is not there
/// yet: nothing may use it, and the kernel tells of it only when the check is over
/// (net/ipv6/addrconf.c, `addrconf_dad_completed`).
pub(super) fn address(message: &AddressMessage, names: &Names) -> Option<Address> {
    let unchecked = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Tentative));
    if message.attributes.iter().any(unchecked) { None } else { any_address(message, names) }
}

pub(super) fn any_address(message: &AddressMessage, names: &Names) -> Option<Address> {
    let (mut local, mut far) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => far = Some(*ip),
            _ => {}
        }
    }
    // With a peer, IFA_ADDRESS is the peer's (rtnetlink(7)).
    let network = IpNetwork::new(local.or(far)?, message.header.prefix_len).ok()?;
    Some(Address { link: names.get(&message.header.index)?.clone(), network })
}

/// What is not simply permanent about an address.
pub(super) fn passing(message: &AddressMessage) -> Option<Passing> {
    // IFA_FLAGS has all 32 bits, the header the lower 8, where all of ours are.
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(flags.bits()),
        _ => None,
    });
    let flags = AddressFlags::from_bits_retain(wide.unwrap_or(message.header.flags.bits().into()));
    let passing = Passing {
        dynamic: !flags.contains(AddressFlags::Permanent),
        // The same bit says "secondary" for IPv4.
        temporary: message.header.family == AddressFamily::Inet6 && flags.contains(AddressFlags::Secondary),
        deprecated: flags.contains(AddressFlags::Deprecated),
    };
    (passing != Passing::default()).then_some(passing)
}

/// A route as [`crate::net::State`] sees it.
pub(super) enum SeenRoute {
    Modelled(Route),
    /// One it has no words for, and the key it is under.
    Other(RouteKey),
    /// It leaves by a link that is not known (yet, or any more).
    UnknownLink(RouteKey),
}

/// `None` is what no kernel route is: cached entries, other families, the kernel's IPv6 housekeeping.
pub(super) fn route(message: &RouteMessage, names: &Names) -> Option<SeenRoute> {
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0u8; 4]),
        AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
        _ => return None,
    };
    let (mut dst, mut via, mut src, mut mtu, mut oif) = (any, None, None, None, None);
    let (mut metric, mut table, mut plain) = (0, u32::from(header.table), true);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some(IpAddr::V6(*address)),
            RouteAttribute::Via(_) => plain = false,
            RouteAttribute::PrefSource(address) => src = ip(address),
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics
                    .iter()
                    .find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
            }
            RouteAttribute::MultiPath(_) | RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => {
                plain = false
            }
            _ => {}
        }
    }
    if is_housekeeping(dst) {
        return None;
    }
    let dst = IpNetwork::new(dst, header.destination_prefix_length).ok()?;
    let key = RouteKey { table, dst, metric };
    let kind = match u8::from(header.kind) {
        libc::RTN_UNICAST => RouteKind::Unicast,
        libc::RTN_BLACKHOLE => RouteKind::Blackhole,
        libc::RTN_UNREACHABLE => RouteKind::Unreachable,
        _ => return Some(SeenRoute::Other(key)),
    };
    if !plain || header.tos != 0 || header.source_prefix_length != 0 {
        return Some(SeenRoute::Other(key));
    }
    // IPv6 names the loopback link in routes that drop.
    let link = match oif.filter(|_| kind == RouteKind::Unicast) {
        None => None,
        Some(index) => match names.get(&index) {
            Some(name) => Some(name.clone()),
            None => return Some(SeenRoute::UnknownLink(key)),
        },
    };
    let onlink = header.flags.contains(RouteFlags::Onlink);
    let protocol = u8::from(header.protocol);
    Some(SeenRoute::Modelled(Route { key, kind, protocol, via, link, onlink, src, mtu }))
}

/// fe80::/64 and ff00::/8, one per link and all under one key.
fn is_housekeeping(dst: IpAddr) -> bool {
    matches!(dst, IpAddr::V6(dst) if dst.is_unicast_link_local() || dst.is_multicast())
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A neighbour: there, or named but not usable.
pub(super) enum SeenNeighbour {
    Usable(Neighbour),
    Gone(LinkName, IpAddr),
}

// include/uapi/linux/neighbour.h
const NUD_REACHABLE: u16 = 0x02;
const NUD_STALE: u16 = 0x04;
const NUD_DELAY: u16 = 0x08;
const NUD_PROBE: u16 = 0x10;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;

pub(super) fn neighbour(message: &NeighbourMessage, names: &Names) -> Option<SeenNeighbour> {
    // Proxy entries are answers given for others, not neighbours.
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let link = names.get(&message.header.ifindex)?.clone();
    let (mac, addr) = mac_and_destination(message);
    let addr = match message.header.family {
        AddressFamily::Inet | AddressFamily::Inet6 => addr?,
        _ => return None,
    };
    let state = u16::from(message.header.state);
    let usable = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT;
    let permanent = state & NUD_PERMANENT != 0;
    Some(match mac {
        Some(mac) if state & usable != 0 => SeenNeighbour::Usable(Neighbour { link, addr, mac, permanent }),
        _ => SeenNeighbour::Gone(link, addr),
    })
}

/// An address that a link answers for.
pub(super) fn proxy(message: &NeighbourMessage, names: &Names) -> Option<Proxy> {
    if !message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let link = names.get(&message.header.ifindex)?.clone();
    let (_, Some(IpAddr::V6(addr))) = mac_and_destination(message) else { return None };
    let protocol = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
        _ => None,
    });
    Some(Proxy { link, addr, protocol: protocol.unwrap_or(0) })
}

/// An FDB entry of a VXLAN link: one that is modelled, or one of a MAC that now has none that is.
pub(super) enum SeenFdb {
    Plain(FdbEntry),
    /// It sends to another port, VNI or link than its own.
    Other(FdbEntry),
}

/// The caller knows that the link is a VXLAN.
pub(super) fn fdb(message: &NeighbourMessage, link: &LinkName) -> Option<SeenFdb> {
    // Without NTF_SELF it is the bridge's entry for that port.
    if message.header.family != AddressFamily::Bridge || !message.header.flags.contains(NeighbourFlags::Own) {
        return None;
    }
    let (mac, dst) = mac_and_destination(message);
    let state = u16::from(message.header.state);
    let permanent = state & (NUD_PERMANENT | NUD_NOARP) != 0;
    let entry = FdbEntry { link: link.clone(), mac: mac?, dst: dst?, permanent };
    let special = message.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            NeighbourAttribute::Port(_) | NeighbourAttribute::Vni(_) | NeighbourAttribute::IfIndex(_)
        )
    });
    Some(if special { SeenFdb::Other(entry) } else { SeenFdb::Plain(entry) })
}

fn mac_and_destination(message: &NeighbourMessage) -> (Option<Mac>, Option<IpAddr>) {
    let (mut mac, mut destination) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            NeighbourAttribute::Destination(address) => {
                destination = match address {
                    NeighbourAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
                    NeighbourAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
                    // In AF_BRIDGE messages the length tells the family.
                    NeighbourAddress::Other(bytes) => ip_of(bytes),
                    _ => None,
                }
            }
            _ => {}
        }
    }
    (mac, destination)
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::rtnetlink::encode;
    use crate::net::rtnetlink::socket::Messages;
    use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use proptest::prelude::*;

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn name(raw: &str) -> LinkName {
        raw.parse().unwrap()
    }

    fn vxlan_link() -> Link {
        let vni = Vni::try_from(1).unwrap();
        let local = Some("192.0.2.1".parse().unwrap());
        Link {
            name: name("weft.1"),
            index: 0,
            kind: LinkKind::Vxlan(Vxlan {
                vni,
                port: 8472,
                local,
                underlay: None,
                learning: true,
                gbp: true,
            }),
            mac: Some(Mac([0x4e, 0x11, 0, 0, 0, 1])),
            mtu: 1450,
            up: false,
            carrier: false,
            alias: None,
            master: None,
        }
    }

    fn a_route() -> Route {
        let key = RouteKey { table: 70_000, dst: "10.42.7.0/24".parse().unwrap(), metric: 5 };
        let via = Some("10.42.7.0".parse().unwrap());
        let (link, src) = (Some(name("weft.1")), Some("10.42.1.0".parse().unwrap()));
        Route { key, kind: RouteKind::Unicast, protocol: 87, via, link, onlink: true, src, mtu: Some(1300) }
    }

    fn a_neighbour() -> Neighbour {
        let addr = "fd00:42:7::".parse().unwrap();
        Neighbour { link: name("weft.1"), addr, mac: Mac([0x4e, 0x11, 0, 0, 0, 7]), permanent: true }
    }

    fn a_proxy() -> Proxy {
        Proxy { link: name("weft.1"), addr: "fd00:42:7::9".parse().unwrap(), protocol: 87 }
    }

    fn an_entry() -> FdbEntry {
        let dst = "2001:db8::7".parse().unwrap();
        FdbEntry { link: name("weft.1"), mac: Mac([0x4e, 0x11, 0, 0, 0, 7]), dst, permanent: true }
    }

    fn an_address() -> Address {
        Address { link: name("weft.1"), network: "10.42.1.1/24".parse().unwrap() }
    }

    fn names() -> Names {
        Names::from([(7, name("weft.1"))])
    }

    fn messages() -> Vec<RouteNetlinkMessage> {
        let LinkKind::Vxlan(vxlan) = vxlan_link().kind else { unreachable!() };
        vec![
            encode::add_link(&vxlan_link(), encode::vxlan_info(&vxlan, Some(3)), Some(4)),
            encode::add_address(&an_address(), 7),
            encode::replace_route(&a_route(), Some(7)),
            encode::replace_neighbour(&a_neighbour(), 7),
            encode::replace_fdb(&an_entry(), 7),
            encode::add_proxy(&a_proxy(), 7),
        ]
    }

    /// Everything that is done with a message; returns what it says, for comparison.
    fn take_in(datagram: &[u8]) -> Vec<String> {
        let names = names();
        let link_name = name("weft.1");
        let mut said = vec![];
        for message in Messages::new(datagram).filter_map(|message| message.decode()) {
            match message {
                RouteNetlinkMessage::NewLink(m) => {
                    said.extend(link(&m).map(|raw| format!("{:?}", raw.resolve(&names))));
                }
                RouteNetlinkMessage::NewAddress(m) => {
                    said.extend(address(&m, &names).map(|address| address.to_string()));
                    let _ = passing(&m);
                }
                RouteNetlinkMessage::NewRoute(m) => {
                    if let Some(SeenRoute::Modelled(route)) = route(&m, &names) {
                        said.push(format!("{route:?}"));
                    }
                }
                RouteNetlinkMessage::NewNeighbour(m) => {
                    if let Some(SeenNeighbour::Usable(neighbour)) = neighbour(&m, &names) {
                        said.push(format!("{neighbour:?}"));
                    }
                    said.extend(proxy(&m, &names).map(|proxy| proxy.to_string()));
                    if let Some(SeenFdb::Plain(entry)) = fdb(&m, &link_name) {
                        said.push(format!("{entry:?}"));
                    }
                }
                _ => {}
            }
        }
        said
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let said: Vec<String> = messages().into_iter().flat_map(|message| take_in(&bytes(message))).collect();
        let expected = [
            format!("{:?}", vxlan_link()),
            an_address().to_string(),
            format!("{:?}", a_route()),
            format!("{:?}", a_neighbour()),
            format!("{:?}", an_entry()),
            a_proxy().to_string(),
        ];
        assert_eq!(said, expected);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            which in 0usize..6,
            wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
            noise in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut datagram = bytes(messages().swap_remove(which));
            for (at, byte) in wrong {
                let at = at.index(datagram.len());
                datagram[at] = byte;
            }
            datagram.truncate(cut.index(datagram.len()) + 1);
            take_in(&datagram);
            datagram.extend(noise);
            take_in(&datagram);
        }
    }
}
