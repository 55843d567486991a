//! `udp`: a TUN device whose packets travel as they are in UDP, moved by `crate::udp` in user
//! space. Here is only what that needs: the device's settings, the routes, the table of peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use weft_kernel::net::{Link, LinkKind, LinkName, Route, RouteKey, RouteKind};

use crate::config::{Backend, NetworkConfig};
use crate::model::{Family, Me, Model};
use crate::mtu;
use crate::plan::{MAIN_TABLE, ROUTE_PROTOCOL, Role, Way, metric};

/// flannel's port for raw IP in UDP.
const FLANNEL_PORT: u16 = 8285;

/// What the userspace tunnel needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpPlan {
    /// The TUN device; the tunnel makes it, persistent, and the diff configures it.
    pub link: LinkName,
    /// The port to listen on.
    pub port: u16,
    /// The device's MTU: no larger packet comes out of it.
    pub mtu: u32,
    /// Inner destinations and where their packets go.
    pub peers: BTreeMap<IpNetwork, SocketAddr>,
}

/// The port we take packets at.
pub(crate) fn offer(me: &Me, config: &NetworkConfig) -> Option<u16> {
    (me.public_v4.is_some() || me.public_v6.is_some()).then_some(port(config))
}

/// The configured port; flannel's under another backend.
pub(crate) fn port(config: &NetworkConfig) -> u16 {
    match config.backend {
        Backend::Udp { port } => port,
        _ => FLANNEL_PORT,
    }
}

/// The name of the TUN device.
pub fn link_name(port: u16) -> LinkName {
    format!("weft-udp.{port}").parse().expect("at most 14 bytes")
}

/// The TUN device as it should be: as large as the roomiest way by it; routes by the others say
/// what they carry.
pub(crate) fn link(model: &Model, ways: impl Iterator<Item = Way>, carries_v6: bool) -> Link {
    let base = mtu::base(&model.config, &model.me.underlay);
    let roomiest = ways.map(|way| mtu::of_way(base, way)).max().unwrap_or(base);
    Link {
        name: link_name(port(&model.config)),
        index: 0,
        kind: LinkKind::Tun,
        mac: None,
        mtu: if carries_v6 { roomiest.max(mtu::IPV6_MINIMUM) } else { roomiest },
        up: true,
        carrier: true,
        alias: Some(Role::Udp.alias(&model.me.network)),
        master: None,
    }
}

/// The route to a peer's subnet by the TUN device.
pub(crate) fn route(link: &Link, dst: IpNetwork, carries: u32) -> Route {
    let family = Family::of(dst.ip());
    let carries = if family == Family::V6 { carries.max(mtu::IPV6_MINIMUM) } else { carries };
    Route {
        key: RouteKey { table: MAIN_TABLE, dst, metric: metric(family) },
        kind: RouteKind::Unicast,
        protocol: ROUTE_PROTOCOL,
        via: None,
        link: Some(link.name.clone()),
        onlink: false,
        src: None,
        mtu: (carries < link.mtu).then_some(carries),
    }
}
