//! What `weft peers`, `weft diff` and the metrics are told: the last pass, as plain data.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_kernel::net::State;

use crate::diff::{Conflict, diff};
use crate::firewall::traffic::{PeerTraffic, Traffic};
use crate::membership::{Listing, Standing, Verdict};
use crate::model::{Family, Model, Peer, Subnet};
use crate::plan::{Desired, Scope};
use crate::probe::Outcomes;
use crate::udp::Counters;

/// How this host sees its network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The network's name on this host.
    pub network: String,
    /// Who this host is.
    pub node: String,
    /// What it leases.
    pub subnet: Option<String>,
    /// The configured backend.
    pub backend: String,
    /// MTU of pods' links, in bytes.
    pub pod_mtu: u32,
    /// The other hosts.
    pub peers: Vec<PeerStatus>,
    /// What the userspace tunnel counted.
    pub udp: BTreeMap<String, u64>,
}

/// How this host sees another one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its subnet.
    pub subnet: String,
    /// Its node id; flanneld's hosts have none.
    pub node: Option<String>,
    /// Its public addresses.
    pub addresses: Vec<String>,
    /// The backend it prefers, as its lease says.
    pub backend: String,
    /// `live`, `leased` (flanneld's), `silent`, `kept`, `gone` or `skipped`.
    pub state: String,
    /// Why, where there is something to say.
    pub reason: String,
    /// How packets get there, per family: "vxlan over IPv4".
    pub ways: Vec<String>,
    /// What its probes say.
    pub probes: Vec<ProbeStatus>,
    /// What the userspace tunnel counted for it.
    pub udp: BTreeMap<String, u64>,
    /// What the kernel's VXLAN tunnel carried for it.
    #[serde(default)]
    pub vxlan: BTreeMap<String, u64>,
}

impl Status {
    /// The same with what the kernel's tunnel has carried.
    pub fn with_traffic(mut self, traffic: &Traffic) -> Self {
        for peer in &mut self.peers {
            let of_peer = peer.addresses.iter().filter_map(|raw| traffic.0.get(&raw.parse().ok()?)).copied();
            if let Some(sum) = of_peer.reduce(PeerTraffic::plus) {
                peer.vxlan = sum.each().map(|(name, value)| (name.to_owned(), value)).into();
            }
        }
        self
    }
}

/// What is known from probing one address of a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// The address.
    pub address: String,
    /// Probes whose answer came or is overdue.
    pub asked: u64,
    /// Of these, without an answer.
    pub lost: u64,
    /// Round trip of the last answer, in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// What the kernel lacks or has too much, now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// The changes that would put it right, one line each; empty when nothing is wrong.
    pub changes: Vec<String>,
    /// What stands in the way of it, one line each.
    pub conflicts: Vec<String>,
}

/// Compares the plan with a fresh look at the kernel.
pub fn drift(desired: &State, observed: &State, scope: &Scope) -> Drift {
    let comparison = diff(desired, observed, scope);
    Drift {
        changes: comparison.changes.iter().map(ToString::to_string).collect(),
        conflicts: comparison.conflicts.iter().map(Conflict::to_string).collect(),
    }
}

/// A host's standing as one word, and the whole of it.
fn told(standing: &Standing) -> (String, String) {
    let word = match standing {
        Standing::Live => "live",
        Standing::Leased => "leased",
        Standing::Silent { .. } => "silent",
        Standing::Kept(_) => "kept",
        Standing::Gone { .. } => "gone",
    };
    let reason = if matches!(standing, Standing::Live | Standing::Leased) {
        String::new()
    } else {
        standing.to_string()
    };
    (word.to_owned(), reason)
}

/// What a pass knew and decided, kept for whoever asks: to put it into words for a thousand peers costs
/// more than the pass.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) model: Arc<Model>,
    pub(super) desired: Arc<Desired>,
    pub(super) listing: Arc<Listing>,
    pub(super) members: Arc<Verdict>,
    /// The userspace tunnel's.
    pub(super) counters: Option<Counters>,
}

impl Told {
    /// In words, with what the probes say now.
    pub(super) fn status(&self, outcomes: &Outcomes) -> Status {
        let Self { model, desired, listing, members, counters } = self;
        of(model, desired, listing, members, outcomes, counters.as_ref())
    }
}

fn of(
    model: &Model,
    desired: &Desired,
    listing: &Listing,
    members: &Verdict,
    outcomes: &Outcomes,
    counters: Option<&Counters>,
) -> Status {
    let named = |each: &mut dyn Iterator<Item = (&'static str, u64)>| -> BTreeMap<String, u64> {
        each.map(|(name, value)| (name.to_owned(), value)).collect()
    };
    let peer = |peer: &Peer| {
        let standing = members.standing.get(&peer.subnet);
        let unreached: Vec<String> = desired
            .skipped
            .range(both_families(peer.subnet))
            .map(|((_, family), why)| format!("{family}: {why}"))
            .collect();
        let (mut state, mut reason) = standing.map(told).unwrap_or_default();
        if !unreached.is_empty() {
            (state, reason) = ("skipped".to_owned(), unreached.join("; "));
        }
        let ways = desired.ways.range(both_families(peer.subnet));
        let probed = desired.probes.get(&peer.subnet).into_iter().flatten();
        let of_udp = counters.and_then(|counters| counters.peers.get(&peer.subnet));
        PeerStatus {
            subnet: peer.subnet.to_string(),
            node: peer.node.as_ref().map(ToString::to_string),
            addresses: peer.addresses().map(|address| address.to_string()).collect(),
            backend: peer.backend.clone(),
            state,
            reason,
            ways: ways.map(|(_, way)| way.to_string()).collect(),
            probes: probed
                .map(|address| {
                    let outcome = outcomes.get(address).cloned().unwrap_or_default();
                    ProbeStatus {
                        address: address.to_string(),
                        asked: outcome.asked,
                        lost: outcome.lost,
                        rtt_ms: outcome.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                    }
                })
                .collect(),
            udp: of_udp.map(|counters| named(&mut counters.each())).unwrap_or_default(),
            vxlan: BTreeMap::new(),
        }
    };
    // The hosts in the path, and those that are listed and not in it.
    let known: BTreeMap<&Subnet, &Peer> = listing.peers.iter().chain(&members.peers).collect();
    let left_out = listing.unusable.iter().map(|(subnet, why)| PeerStatus {
        subnet: subnet.to_string(),
        state: "skipped".to_owned(),
        reason: why.clone(),
        ..PeerStatus::default()
    });
    Status {
        network: model.me.network.clone(),
        node: model.me.node.to_string(),
        subnet: model.me.subnet.map(|subnet| subnet.to_string()),
        backend: model.config.backend.name().to_owned(),
        pod_mtu: desired.pod_mtu,
        peers: known.into_values().map(peer).chain(left_out).collect(),
        udp: counters.map(|counters| named(&mut counters.tunnel.each())).unwrap_or_default(),
    }
}

/// The keys of one subnet in what is known per subnet and family.
fn both_families(subnet: Subnet) -> std::ops::RangeInclusive<(Subnet, Family)> {
    (subnet, Family::V4)..=(subnet, Family::V6)
}
