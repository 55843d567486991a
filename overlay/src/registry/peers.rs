//! The other hosts, as the registry describes them: who they are, how they are reached, whether
//! their daemons run. What cannot be a peer is named with a reason and hides nobody else.

use std::collections::BTreeMap;

use crate::config::NetworkConfig;
use crate::model::{Me, NodeId, Peer, Subnet};

use super::{Holder, Registry};

/// Every lease that is not ours: those that can be peers and those that cannot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peers {
    /// By the subnet of their lease.
    pub known: BTreeMap<Subnet, KnownPeer>,
    /// Why a lease makes no peer, on one line each.
    pub skipped: BTreeMap<Subnet, String>,
}

/// A peer and how sure we are that it is there.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownPeer {
    /// The peer.
    pub peer: Peer,
    /// Does its daemon run?
    pub liveness: Liveness,
}

/// Does a peer's daemon run?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// A weft host whose liveness record is there.
    Live,
    /// A weft host whose liveness record ran out: its daemon stopped, or cannot reach the store.
    Silent,
    /// A host without an owner record (flanneld's): its lease is all there is to know.
    Unrecorded,
}

impl Registry {
    /// The other hosts, under the config in force. Ours, and so never among them, is what our node id
    /// recorded, what names one of our public addresses, and the subnet that we hold.
    pub fn peers(&self, me: &Me, config: &NetworkConfig) -> Peers {
        let mut peers = Peers::default();
        for subnet in self.leases.keys() {
            match self.peer(subnet, me, config) {
                Ok(Some(peer)) => {
                    peers.known.insert(*subnet, peer);
                }
                Ok(None) => {}
                Err(why) => {
                    peers.skipped.insert(*subnet, why);
                }
            }
        }
        peers
    }

    fn peer(&self, subnet: &Subnet, me: &Me, config: &NetworkConfig) -> Result<Option<KnownPeer>, String> {
        let Some(entry) = self.leases.get(subnet) else { return Ok(None) };
        // The last good value: garbage over it takes no peer away, and is named as a fault.
        let Some(attrs) = entry.attrs.as_ref().filter(|attrs| attrs.names_a_host()) else {
            return Ok(None);
        };
        let (node, transports) = match self.holder(subnet) {
            Holder::Node(record) if record.node == me.node => return Ok(None),
            _ if me.subnet == Some(*subnet) => return Ok(None),
            Holder::Node(record) => (Some(record.node.clone()), record.transports.clone()),
            _ if attrs.is_of(me.public_v4, me.public_v6) => return Ok(None),
            // A reservation whose host has not come yet says nothing of its backend.
            _ if entry.is_reservation() && attrs.backend.is_empty() => {
                (None, attrs.transports(config).unwrap_or_default())
            }
            _ => (None, attrs.transports(config)?),
        };
        let subnet = inside(subnet, config)?;
        if me.subnet.is_some_and(|mine| mine.overlaps(&subnet)) {
            return Err(format!("{subnet} overlaps this host's own subnet"));
        }
        let liveness = self.liveness(node.as_ref());
        let (public_v4, public_v6) = (attrs.public_v4, attrs.public_v6);
        let backend = attrs.backend.clone();
        let peer = Peer { subnet, node, public_v4, public_v6, backend, transports };
        Ok(Some(KnownPeer { peer, liveness }))
    }

    fn liveness(&self, node: Option<&NodeId>) -> Liveness {
        match node {
            None => Liveness::Unrecorded,
            Some(node) if self.live.contains_key(node) => Liveness::Live,
            Some(_) => Liveness::Silent,
        }
    }
}

/// The part of a lease that lies in the families we run. A lease that leaves the network would draw
/// foreign traffic into the tunnel.
fn inside(subnet: &Subnet, config: &NetworkConfig) -> Result<Subnet, String> {
    let (v4, v6) = (config.v4.map(|pool| pool.network), config.v6.map(|pool| pool.network));
    let part = Subnet { v4: subnet.v4.filter(|_| v4.is_some()), v6: subnet.v6.filter(|_| v6.is_some()) };
    if part.v4.is_none() && part.v6.is_none() {
        return Err(format!("{subnet} is in no address family of this network"));
    }
    let v4_inside = part.v4.zip(v4).is_none_or(|(net, all)| net.is_subnet_of(all));
    let v6_inside = part.v6.zip(v6).is_none_or(|(net, all)| net.is_subnet_of(all));
    if v4_inside && v6_inside { Ok(part) } else { Err(format!("{subnet} is not inside the network")) }
}
