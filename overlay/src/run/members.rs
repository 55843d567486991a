//! Who is in the data path: for now, everybody with a lease that can be a peer.
use crate::model::{Peer, Subnet};
use crate::registry::{KnownPeer, Liveness};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    pub(super) path: BTreeMap<Subnet, Peer>,
    pub(super) suspects: BTreeSet<Subnet>,
    live: BTreeMap<Subnet, Liveness>,
}

impl Members {
    pub(super) fn of(known: &BTreeMap<Subnet, KnownPeer>) -> Self {
        Self {
            path: known.iter().map(|(s, k)| (*s, k.peer.clone())).collect(),
            suspects: BTreeSet::new(),
            live: known.iter().map(|(s, k)| (*s, k.liveness)).collect(),
        }
    }
    pub(super) fn all(&self) -> impl Iterator<Item = &Peer> {
        self.path.values()
    }
    pub(super) fn standing(&self, subnet: &Subnet) -> (String, String) {
        (format!("{:?}", self.live.get(subnet)), String::new())
    }
}
