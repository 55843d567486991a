//! What may stand in the plan only once, or not at all: a lease that would take another host's
//! packets, or our own, is left out with a reason.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_kernel::net::Mac;

use super::transport::{End, Skip, Transport, Way, Whose};
use crate::model::{Family, Model, Peer, Subnet};
use crate::mtu;

/// What the peers before have taken, in the order of their subnets.
pub(super) struct Claims<'a> {
    model: &'a Model,
    ours: &'a End,
    base: u32,
    first_addresses: HashMap<IpAddr, Subnet>,
    macs: HashMap<(Family, Mac), (IpAddr, Subnet)>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(model: &'a Model, ours: &'a End) -> Self {
        let base = mtu::base(&model.config, &model.me.underlay);
        Self { model, ours, base, first_addresses: HashMap::new(), macs: HashMap::new() }
    }

    /// Checks one peer's subnet and takes what it needs. Gives the address that outer packets go to.
    pub(super) fn stake(&mut self, peer: &Peer, end: &End, dst: IpNetwork, way: Way) -> Result<IpAddr, Skip> {
        self.check_subnet(dst)?;
        let outer = peer.public(way.outer).ok_or(Skip::NoAddress(Whose::Theirs, way.outer))?;
        self.check_address(outer, way.outer)?;
        let inner = Family::of(dst.ip());
        if inner == Family::V6 && !mtu::carries_v6(self.base, way) {
            return Err(Skip::TooSmallForV6 { way, left: mtu::of_way(self.base, way) });
        }
        let mac = match way.transport {
            Transport::Vxlan => Some(self.check_mac(end, way.outer, outer)?),
            Transport::Direct | Transport::Udp => None,
        };
        if let Some(other) = self.first_addresses.get(&dst.network()) {
            return Err(Skip::SameFirstAddress(*other));
        }
        self.first_addresses.insert(dst.network(), peer.subnet);
        if let Some(mac) = mac {
            self.macs.entry((way.outer, mac)).or_insert((outer, peer.subnet));
        }
        Ok(outer)
    }

    fn check_subnet(&self, dst: IpNetwork) -> Result<(), Skip> {
        let config = &self.model.config;
        let network = match dst {
            IpNetwork::V4(_) => config.v4.map(|pool| IpNetwork::V4(pool.network)),
            IpNetwork::V6(_) => config.v6.map(|pool| IpNetwork::V6(pool.network)),
        };
        if let Some(network) = network.filter(|network| !inside(dst, *network)) {
            return Err(Skip::OutsideNetwork(dst, network));
        }
        let own = self.model.me.subnet.and_then(|own| own.of(Family::of(dst.ip())));
        match own.filter(|own| inside(dst, *own) || inside(*own, dst)) {
            Some(own) => Err(Skip::OverlapsOurs(dst, own)),
            None => Ok(()),
        }
    }

    fn check_address(&self, outer: IpAddr, family: Family) -> Result<(), Skip> {
        if self.model.me.public(family) == Some(outer) {
            return Err(Skip::OurAddress(outer));
        }
        let broadcast = matches!(outer, IpAddr::V4(addr) if addr.is_broadcast());
        if outer.is_unspecified() || outer.is_multicast() || outer.is_loopback() || broadcast {
            return Err(Skip::NoHostAddress(outer));
        }
        Ok(())
    }

    /// The all-zero MAC would be the FDB's entry for everything unknown.
    fn check_mac(&self, end: &End, family: Family, outer: IpAddr) -> Result<Mac, Skip> {
        let mac = |end: &End| end.transports.vxlan.and_then(|end| end.mac(family));
        let theirs = mac(end).ok_or(Skip::NoVtep(family))?;
        let Mac([first, ..]) = theirs;
        if first & 1 == 1 || theirs == Mac([0; 6]) {
            return Err(Skip::BadMac(theirs));
        }
        if mac(self.ours) == Some(theirs) {
            return Err(Skip::OurMac(theirs));
        }
        match self.macs.get(&(family, theirs)) {
            Some((held, subnet)) if *held != outer => Err(Skip::SameMac(theirs, *subnet)),
            _ => Ok(theirs),
        }
    }
}

/// Whether the whole of `small` lies in `large`.
fn inside(small: IpNetwork, large: IpNetwork) -> bool {
    large.prefix() <= small.prefix() && large.contains(small.network())
}
