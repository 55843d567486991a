//! The backends: what each offers to other hosts and puts into the plan.
//!
//! The configured backend is the one a host prefers. A weft host also offers the tunnels beside
//! it, so that hosts with different backends (a fleet on its way from one to another) and hosts
//! across a router still reach each other; their links exist only while a peer is reached by them.

pub mod alloc;
pub mod host_gw;
pub mod udp;
pub mod vxlan;

use std::net::IpAddr;

use crate::config::{Backend, NetworkConfig};
use crate::model::{Family, Me, Model, Transports, Underlay};
use crate::plan::{Transport, Way};

/// Every way by which other hosts may send to this one: what its lease and record publish.
pub fn offer(me: &Me, config: &NetworkConfig) -> Transports {
    match config.backend {
        Backend::Alloc => alloc::offer(),
        _ => Transports {
            vxlan: vxlan::offer(me, config),
            udp: udp::offer(me, config),
            direct: host_gw::offer(config),
        },
    }
}

/// The ways that the configured backend runs by on this host, one per inner family: over the same
/// family where the host has such an address, else over the other.
pub(crate) fn home_ways(model: &Model, transport: Transport) -> impl Iterator<Item = Way> + use<'_> {
    inner_families(&model.config)
        .filter_map(move |inner| home_outer(&model.me, inner))
        .map(move |outer| Way { transport, outer })
}

/// The families that pods use.
pub(crate) fn inner_families(config: &NetworkConfig) -> impl Iterator<Item = Family> + use<> {
    let (v4, v6) = (config.v4.is_some(), config.v6.is_some());
    Family::ALL.into_iter().filter(move |family| match family {
        Family::V4 => v4,
        Family::V6 => v6,
    })
}

/// Over which family packets of family `inner` travel when nothing of the other host speaks against.
pub(crate) fn home_outer(me: &Me, inner: Family) -> Option<Family> {
    [inner, inner.other()].into_iter().find(|outer| me.public(*outer).is_some())
}

/// The address that outer packets leave with: the public one if the underlay has it, else (behind
/// a NAT) one it has. Without any, the public one: the underlay is being set up.
pub(crate) fn local_address(me: &Me, underlay: &Underlay, outer: Family) -> Option<IpAddr> {
    let public = me.public(outer)?;
    let mut held = underlay.addresses.iter().map(ipnetwork::IpNetwork::ip).filter(|ip| {
        Family::of(*ip) == outer
            && match ip {
                IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
                IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
            }
    });
    if held.clone().any(|ip| ip == public) { Some(public) } else { held.next().or(Some(public)) }
}
