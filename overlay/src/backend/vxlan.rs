//! `vxlan`: one VXLAN link per outer family; per peer a route, a neighbour and an FDB entry, as
//! flannel lays them out, so that flanneld hosts and weft hosts tunnel to each other.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};
use weft_kernel::net::{
    FdbEntry, Link, LinkKind, LinkName, Mac, Neighbour, Route, RouteKey, RouteKind, State, Vni, Vxlan,
};

use crate::config::{Backend, NetworkConfig};
use crate::model::{Family, Me, Model, NodeId, VxlanEnd};
use crate::mtu;
use crate::plan::{MAIN_TABLE, ROUTE_PROTOCOL, Role, Transport, Way, metric};

/// Linux's VXLAN port, older than the IANA's 4789 (drivers/net/vxlan); flannel's default too.
const KERNEL_PORT: u16 = 8472;

/// What two ends must agree on, and what the link is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Network identifier.
    pub(crate) vni: Vni,
    /// UDP port.
    pub(crate) port: u16,
    gbp: bool,
    learning: bool,
}

impl Settings {
    /// The configured ones. Under another backend, VXLAN is the way to hosts that need a tunnel:
    /// then the VNI follows from the pod network, which all its hosts know and which tells two
    /// networks on one host apart (the kernel refuses a second link with the same VNI and port).
    pub(crate) fn of(config: &NetworkConfig) -> Self {
        match config.backend {
            Backend::Vxlan { vni, port, gbp, learning, .. } => Self { vni, port, gbp, learning },
            _ => {
                let v4 = config.v4.map(|pool| pool.network.to_string()).unwrap_or_default();
                let v6 = config.v6.map(|pool| pool.network.to_string()).unwrap_or_default();
                let [a, b, c, ..] = digest(&["vni", &v4, &v6]);
                // 24 bits with the highest set: valid, and apart from the small numbers people choose.
                let vni =
                    Vni::try_from(u32::from_be_bytes([0, a | 0x80, b, c])).expect("three bytes are 24 bits");
                Self { vni, port: KERNEL_PORT, gbp: false, learning: false }
            }
        }
    }
}

/// Our end, with a MAC for every outer family that we can be reached by.
pub(crate) fn offer(me: &Me, config: &NetworkConfig) -> Option<VxlanEnd> {
    let Settings { vni, port, .. } = Settings::of(config);
    let mac = |outer| me.public(outer).map(|_| our_mac(me, vni, outer));
    let end = VxlanEnd { vni, port, mac_v4: mac(Family::V4), mac_v6: mac(Family::V6) };
    (end.mac_v4.is_some() || end.mac_v6.is_some()).then_some(end)
}

/// Our VTEP's MAC: the adopted one while there is one, else derived, so that it survives reboots
/// and recreations of the link without being stored.
fn our_mac(me: &Me, vni: Vni, outer: Family) -> Mac {
    let adopted = match outer {
        Family::V4 => me.adopted_mac_v4,
        Family::V6 => me.adopted_mac_v6,
    };
    adopted.unwrap_or_else(|| derived_mac(&me.node, vni, outer))
}

/// The MAC that a node's VTEP has for good: a hash, as a locally administered unicast address
/// (IEEE 802c: bit 1 of the first octet set, bit 0 clear).
pub fn derived_mac(node: &NodeId, vni: Vni, outer: Family) -> Mac {
    let [a, b, c, d, e, f, ..] = digest(&["vtep", node.as_str(), &vni.to_string(), &outer.to_string()]);
    Mac([(a | 0b10) & !0b01, b, c, d, e, f])
}

fn digest(words: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for word in words {
        hash.update(word.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// The name of our VXLAN link with this outer family.
pub fn link_name(vni: Vni, outer: Family) -> LinkName {
    let name = match outer {
        Family::V4 => format!("weft.{vni}"),
        Family::V6 => format!("weft-v6.{vni}"),
    };
    // At most "weft-v6." and eight digits (24 bits): 16 bytes, one too many for the kernel.
    let name = if name.len() > 15 { name.replacen("weft-v6.", "weft6.", 1) } else { name };
    name.parse().expect("at most 15 bytes without `/`, `:` or spaces")
}

/// Our VXLAN link with this outer family.
pub(crate) fn link(model: &Model, outer: Family) -> Link {
    let Settings { vni, port, gbp, learning } = Settings::of(&model.config);
    let (me, underlay) = (&model.me, &model.me.underlay);
    let way = Way { transport: Transport::Vxlan, outer };
    let vxlan = Vxlan {
        vni,
        port,
        local: super::local_address(me, underlay, outer),
        underlay: Some(underlay.link.clone()),
        learning,
        gbp,
    };
    Link {
        name: link_name(vni, outer),
        index: 0,
        kind: LinkKind::Vxlan(vxlan),
        mac: Some(our_mac(me, vni, outer)),
        mtu: mtu::of_way(mtu::base(&model.config, underlay), way),
        up: true,
        carrier: true,
        alias: Some(Role::Vxlan(outer).alias(&me.network)),
        master: None,
    }
}

/// One peer's entries on our link: its subnet lies behind its first address (nobody's own, as in
/// flannel), that address has the VTEP's MAC, and that MAC is at the peer's public address.
pub(crate) fn entries(into: &mut State, link: &LinkName, dst: IpNetwork, mac: Mac, outer: IpAddr) {
    let via = dst.network();
    into.neighbours
        .insert((link.clone(), via), Neighbour { link: link.clone(), addr: via, mac, permanent: true });
    into.fdb.insert(FdbEntry { link: link.clone(), mac, dst: outer, permanent: true });
    let route = Route {
        key: RouteKey { table: MAIN_TABLE, dst, metric: metric(Family::of(via)) },
        kind: RouteKind::Unicast,
        protocol: ROUTE_PROTOCOL,
        via: Some(via),
        link: Some(link.clone()),
        onlink: true,
        src: None,
        mtu: None,
    };
    into.routes.insert(route.key.clone(), route);
}
