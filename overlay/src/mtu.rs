//! How large a packet may be: what each way between two hosts takes from the underlay's MTU.
//!
//! The underlay's MTU is read from the model, so a NIC whose MTU changes gives a new plan.

use crate::config::{Backend, NetworkConfig};
use crate::model::{Family, Model, Underlay};
use crate::plan::{Transport, Way};

/// VXLAN over IPv4: IP 20 + UDP 8 + VXLAN 8 + inner Ethernet 14 (RFC 7348, section 5).
const VXLAN_OVER_V4: u32 = 50;
/// VXLAN over IPv6: IP 40 + UDP 8 + VXLAN 8 + inner Ethernet 14. flannel subtracts 50 here too.
const VXLAN_OVER_V6: u32 = 70;
/// Raw IP in UDP over IPv4: IP 20 + UDP 8.
const UDP_OVER_V4: u32 = 28;
/// Raw IP in UDP over IPv6: IP 40 + UDP 8.
const UDP_OVER_V6: u32 = 48;
/// What every IPv4 link must carry (RFC 791); also the least that Linux lets a VXLAN link have.
const IPV4_MINIMUM: u32 = 68;
/// What every IPv6 link must carry (RFC 8200, section 5); below it Linux takes IPv6 off the link.
pub const IPV6_MINIMUM: u32 = 1280;

/// What a way takes from the underlay's MTU, in bytes.
pub fn overhead(way: Way) -> u32 {
    match (way.transport, way.outer) {
        (Transport::Direct, _) => 0,
        (Transport::Vxlan, Family::V4) => VXLAN_OVER_V4,
        (Transport::Vxlan, Family::V6) => VXLAN_OVER_V6,
        (Transport::Udp, Family::V4) => UDP_OVER_V4,
        (Transport::Udp, Family::V6) => UDP_OVER_V6,
    }
}

/// The MTU to reckon with: the underlay's, or `Backend.MTU`, which as in flannel stands for the
/// underlay's (the tunnel's is less). A larger one than the underlay has is of no use: the kernel
/// refuses a VXLAN link that does not fit its underlay.
pub fn base(config: &NetworkConfig, underlay: &Underlay) -> u32 {
    match config.backend {
        Backend::Vxlan { mtu: Some(mtu), .. } => mtu.min(underlay.mtu),
        _ => underlay.mtu,
    }
}

/// The largest packet that a way carries in one piece.
pub fn of_way(base: u32, way: Way) -> u32 {
    base.saturating_sub(overhead(way)).max(IPV4_MINIMUM)
}

/// Whether IPv6 can use a way at all. A VXLAN link cannot be larger than its underlay allows, and
/// under 1280 the kernel takes IPv6 off it. A plain route needs as much of the underlay. The udp
/// tunnel may: its outer packets are fragmented where they must be.
pub fn carries_v6(base: u32, way: Way) -> bool {
    way.transport == Transport::Udp || of_way(base, way) >= IPV6_MINIMUM
}

/// What pods' interfaces get, and `FLANNEL_MTU`: the smallest over the ways that the configured
/// backend uses on this host. A peer reached by another way announces less by ICMP.
pub fn of_pods(model: &Model) -> u32 {
    let base = base(&model.config, &model.me.underlay);
    let transport = match model.config.backend {
        Backend::Vxlan { .. } => Transport::Vxlan,
        Backend::Udp { .. } => Transport::Udp,
        Backend::HostGw | Backend::Alloc => Transport::Direct,
    };
    let smallest = crate::backend::home_ways(model, transport).map(|way| of_way(base, way)).min();
    let least = if model.config.v6.is_some() { IPV6_MINIMUM } else { IPV4_MINIMUM };
    smallest.unwrap_or(base).max(least)
}
