//! The network's configuration: flannel's `<prefix>/config` JSON as typed, valid data.

mod live;
mod parse;
mod pool;

pub use live::{LiveChange, live_change};
pub use parse::{BadConfig, Parsed};
pub use pool::Family;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use weft_kernel::net::Vni;

use crate::model::Subnet;

/// A whole, valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `Network`, `SubnetLen`, `SubnetMin`, `SubnetMax`; `None` when `EnableIPv4` is false.
    pub v4: Option<Pool<Ipv4Network>>,
    /// `IPv6Network`, ...; `None` unless `EnableIPv6` is true.
    pub v6: Option<Pool<Ipv6Network>>,
    /// How packets travel between hosts.
    pub backend: Backend,
    /// The `Backend` key was there. If not, vxlan is assumed, and the daemon says so in its log.
    pub backend_given: bool,
}

/// The range that hosts lease their subnets from, in one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool<N> {
    /// The whole pod network.
    pub network: N,
    /// Prefix length of one host's subnet.
    pub subnet_len: u8,
    /// The first subnet that may be leased.
    pub min: N,
    /// The last subnet that may be leased.
    pub max: N,
}

/// How packets travel between hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN by the kernel.
    Vxlan {
        /// `VNI`, default 1.
        vni: Vni,
        /// `Port`, default 8472 (flannel's 0 means the kernel's default, which is 8472).
        port: u16,
        /// `MTU` of the underlay to reckon with instead of the link's own, in bytes.
        mtu: Option<u32>,
        /// `GBP`.
        gbp: bool,
        /// `Learning`.
        learning: bool,
        /// `DirectRouting`: plain routes to hosts on the same segment.
        direct_routing: bool,
    },
    /// Plain routes by the other hosts' addresses; all hosts on one segment.
    HostGw,
    /// Raw IP in UDP, in user space.
    Udp {
        /// `Port`, default 8285.
        port: u16,
    },
    /// A lease and nothing else.
    Alloc,
}

impl Backend {
    /// `Type` as flannel spells it.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Vxlan { .. } => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Udp { .. } => "udp",
            Backend::Alloc => "alloc",
        }
    }
}

impl NetworkConfig {
    /// Could this be a host's lease: the right families, each in its network and of its length?
    /// `SubnetMin` and `SubnetMax` are not asked: they bound what is handed out, and a host keeps
    /// what it has when they move.
    pub fn fits(&self, subnet: &Subnet) -> bool {
        let v4 = match (&self.v4, subnet.v4) {
            (Some(pool), Some(net)) => pool.fits(net),
            (None, None) => true,
            _ => false,
        };
        let v6 = match (&self.v6, subnet.v6) {
            (Some(pool), Some(net)) => pool.fits(net),
            (None, None) => true,
            _ => false,
        };
        v4 && v6
    }

    /// The networks that all subnets lie in, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let v4 = self.v4.map(|pool| IpNetwork::V4(pool.network));
        let v6 = self.v6.map(|pool| IpNetwork::V6(pool.network));
        v4.into_iter().chain(v6)
    }
}

#[cfg(test)]
mod tests;
