//! Which of the other hosts are in the data path, and why.
//!
//! A wrong "gone" cuts pods off; a wrong "there" sends packets into the void that would be lost
//! anyway. So a host leaves only on good evidence:
//!
//! - A weft host leaves when its liveness record lapsed *and* probes through the tunnel fail. Each
//!   alone happens to hosts that work: a daemon that restarts, an ICMP filter.
//! - A flanneld host has no liveness record: it is there as long as its key is.
//! - If more than half of the weft hosts (and at least two) are silent together, the store or our
//!   own network is the likelier culprit: nothing leaves, and what left just before comes back.
//! - While the store cannot be reached nothing leaves: silence is then ours.
//! - After the store was wiped everything stays for three liveness times, in which the hosts
//!   register again; then the new list is believed.
//! - A lease that another host has taken over changes at once: the key wins.
//!
//! What a *vanished* key means depends on who had it. A flanneld host: it is gone. A weft host that
//! gave its subnet up says so in its owner record: it is gone. Any other weft host did not ask for
//! it: the lease ran out under a dead daemon, or somebody deleted the key. If the host lives it
//! writes the key again within moments, so until then it counts as if its record had lapsed; at the
//! latest after three liveness times with neither liveness nor answers it is gone, whatever the
//! others do.
//!
//! Pure: `now` is an argument, and the next time to look is part of the answer.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::NetworkConfig;
use crate::model::{Me, NodeId, Peer, Subnet};
use crate::probe::Outcomes;
use crate::registry::{Holder, Registry};

/// As many unanswered requests in a row are a failure; one or two are lost in any network.
const SILENT_PROBES: u32 = 3;
/// From the first suspicion until probes may count as failed: time for the quick ones that only
/// suspects get ([`crate::probe::Pace`]).
const GRACE: Duration = Duration::from_secs(2);
/// In liveness times: how long the list of a wiped store is not believed, how long a vanished key's
/// host is given to come back, and what counts as "together".
const PATIENCE: u32 = 3;

/// What the store says of the other hosts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Leases that make peers.
    pub peers: BTreeMap<Subnet, Peer>,
    /// Leases that make none, with the reason; such a host is in no path.
    pub unusable: BTreeMap<Subnet, String>,
    /// Subnets without a lease whose last owner gave them up.
    pub released: BTreeSet<Subnet>,
    /// Nodes whose liveness record is there.
    pub live: BTreeSet<NodeId>,
}

impl Listing {
    /// What a registry says, seen from this host.
    pub fn of(registry: &Registry, me: &Me, config: &NetworkConfig) -> Self {
        let peers = registry.peers(me, config);
        let released = registry.owners().map(|(subnet, _)| *subnet);
        Self {
            peers: peers.known.into_iter().map(|(subnet, known)| (subnet, known.peer)).collect(),
            unusable: peers.skipped,
            released: released
                .filter(|subnet| matches!(registry.holder(subnet), Holder::Released(_)))
                .collect(),
            live: registry.live().map(|(node, _)| node.clone()).collect(),
        }
    }
}

/// All that is known at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The moment.
    pub now: Instant,
    /// The store answers, and `listing` is what it says now.
    pub reachable: bool,
    /// What it says, or said when it was last reached.
    pub listing: &'a Listing,
    /// Where each peer is probed ([`crate::plan::Desired::probes`]).
    pub targets: &'a BTreeMap<Subnet, BTreeSet<IpAddr>>,
    /// What the probes found.
    pub outcomes: &'a Outcomes,
}

/// Who is in the data path, and what to do next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The peers to plan for.
    pub peers: BTreeMap<Subnet, Peer>,
    /// Every host that is or lately was there, and why.
    pub standing: BTreeMap<Subnet, Standing>,
    /// Whom to probe quickly.
    pub suspects: BTreeSet<Subnet>,
    /// When to ask again if nothing happens.
    pub wake: Option<Instant>,
}

/// How a host stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In the path: its daemon runs.
    Live,
    /// In the path: flanneld's, by its key.
    Leased,
    /// In the path: its daemon is silent, but probes are answered or not decided yet.
    Silent {
        /// Since when we know.
        since: Instant,
    },
    /// In the path, though it would have to leave.
    Kept(Because),
    /// Not in the path: its daemon is silent and probes fail.
    Gone {
        /// Since when.
        since: Instant,
    },
}

/// Why nothing leaves at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// The store cannot be reached.
    StoreUnreachable,
    /// The store was wiped a moment ago.
    StoreWiped,
    /// More than half of the hosts are silent.
    MostAreSilent,
}

impl Standing {
    /// Whether the host is in the data path.
    pub fn in_path(&self) -> bool {
        !matches!(self, Self::Gone { .. })
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Leased => "leased",
            Self::Silent { .. } => "silent, not given up: its daemon is silent, its host may not be",
            Self::Kept(Because::StoreUnreachable) => "kept: the store cannot be reached",
            Self::Kept(Because::StoreWiped) => "kept: the store was wiped",
            Self::Kept(Because::MostAreSilent) => "kept: more than half of the hosts are silent",
            Self::Gone { .. } => "gone: its daemon is silent and probes fail",
        })
    }
}

/// What is remembered between two moments.
#[derive(Clone, Debug)]
pub struct Membership {
    liveness_ttl: Duration,
    members: BTreeMap<Subnet, Member>,
    wiped: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Member {
    peer: Peer,
    /// Its liveness lapsed (or its key vanished); since when we know.
    silent: Option<Instant>,
    /// Its key is not there; since when we know.
    vanished: Option<Instant>,
    /// It was taken out of the path.
    left: Option<Instant>,
}

impl Membership {
    /// Nobody is known. `liveness_ttl` is the life of a liveness record (`--liveness-ttl`).
    pub fn new(liveness_ttl: Duration) -> Self {
        Self { liveness_ttl, members: BTreeMap::new(), wiped: None }
    }

    /// The store was wiped; the next listing is the new one's.
    pub fn wiped(&mut self, now: Instant) {
        self.wiped = Some(now);
    }

    /// Takes the evidence in and decides.
    pub fn update(&mut self, evidence: &Evidence<'_>) -> Verdict {
        let now = evidence.now;
        self.follow(evidence);
        let wiped = self.wiped.filter(|at| now < *at + self.patience());
        if !evidence.reachable {
            // Whatever was suspected must be suspected anew once the store tells again.
            self.members.values_mut().for_each(|member| member.silent = None);
        }
        if wiped.is_none() && evidence.reachable {
            self.believe_the_new_list();
        }
        let most_silent = self.most_are_silent(now);
        if most_silent {
            self.readmit_who_left_just_now(now);
        }
        let keep = match (evidence.reachable, wiped, most_silent) {
            (false, _, _) => Some(Because::StoreUnreachable),
            (true, Some(_), _) => Some(Because::StoreWiped),
            (true, None, true) => Some(Because::MostAreSilent),
            (true, None, false) => None,
        };
        self.let_go(evidence, keep);
        self.verdict(now, keep, wiped)
    }

    fn patience(&self) -> Duration {
        self.liveness_ttl * PATIENCE
    }

    /// Takes over what the listing says: new and changed peers, vanished ones, who is silent.
    fn follow(&mut self, evidence: &Evidence<'_>) {
        let Evidence { now, listing, .. } = evidence;
        for (subnet, peer) in &listing.peers {
            let member = self.members.entry(*subnet).or_insert_with(|| Member::new(peer));
            if member.peer.node != peer.node {
                // Somebody else has the subnet now: nothing of what was known counts.
                *member = Member::new(peer);
            }
            if member.peer != *peer {
                member.peer = peer.clone();
            }
            member.vanished = None;
        }
        if !evidence.reachable {
            return;
        }
        let in_a_wipe = self.wiped.is_some();
        self.members.retain(|subnet, member| {
            if listing.peers.contains_key(subnet) {
                return true;
            }
            let given_up = listing.released.contains(subnet) || listing.unusable.contains_key(subnet);
            let taken = listing.peers.keys().any(|other| other.overlaps(subnet));
            let flannels = member.peer.node.is_none() && !in_a_wipe;
            member.vanished.get_or_insert(*now);
            !(given_up || taken || flannels)
        });
        for member in self.members.values_mut() {
            let Some(node) = &member.peer.node else { continue };
            if listing.live.contains(node) {
                member.silent = None;
                member.left = None;
            } else {
                member.silent.get_or_insert(*now);
            }
        }
    }

    /// The time after a wipe is over: who has not registered again is not there.
    fn believe_the_new_list(&mut self) {
        if self.wiped.take().is_some() {
            self.members.retain(|_, member| member.vanished.is_none());
        }
    }

    /// Whether so many weft hosts are silent, counting those that left a moment ago, that it is not
    /// their fault. One host alone is no majority.
    fn most_are_silent(&self, now: Instant) -> bool {
        let recent = |at: Instant| now < at + self.patience();
        let (mut all, mut silent) = (0_usize, 0_usize);
        for member in self.members.values().filter(|member| member.peer.node.is_some()) {
            match member.left {
                Some(left) if !recent(left) => {}
                _ => {
                    all += 1;
                    silent += usize::from(member.silent.is_some() || member.left.is_some());
                }
            }
        }
        silent >= 2 && silent * 2 > all
    }

    fn readmit_who_left_just_now(&mut self, now: Instant) {
        let patience = self.patience();
        for member in self.members.values_mut() {
            member.left = member.left.filter(|left| now >= *left + patience);
        }
    }

    /// Takes out of the path who is silent and does not answer.
    fn let_go(&mut self, evidence: &Evidence<'_>, keep: Option<Because>) {
        let now = evidence.now;
        let patience = self.patience();
        for (subnet, member) in &mut self.members {
            let Some(since) = member.silent else { continue };
            let overdue = member.vanished.is_some_and(|vanished| now >= vanished + patience);
            let may = match keep {
                None => true,
                Some(Because::MostAreSilent) => overdue,
                Some(Because::StoreUnreachable | Because::StoreWiped) => false,
            };
            if may && member.left.is_none() && now >= since + GRACE && member.is_unreachable(subnet, evidence)
            {
                member.left = Some(now);
            }
        }
        self.members.retain(|_, member| {
            let forgotten = |left: Instant| now >= left + patience;
            !(member.vanished.is_some() && member.left.is_some_and(forgotten))
        });
    }

    fn verdict(&self, now: Instant, keep: Option<Because>, wiped: Option<Instant>) -> Verdict {
        let standing: BTreeMap<Subnet, Standing> =
            self.members.iter().map(|(subnet, member)| (*subnet, member.standing(keep))).collect();
        let in_path = || self.members.iter().filter(|(_, member)| member.left.is_none());
        let suspects: BTreeSet<Subnet> =
            in_path().filter(|(_, member)| member.silent.is_some()).map(|(subnet, _)| *subnet).collect();
        let decisions = in_path().filter_map(|(_, member)| member.silent).map(|since| since + GRACE);
        let overdue = in_path().filter_map(|(_, member)| member.vanished).map(|at| at + self.patience());
        let believed = wiped.map(|at| at + self.patience());
        Verdict {
            peers: in_path().map(|(subnet, member)| (*subnet, member.peer.clone())).collect(),
            standing,
            suspects,
            // What has passed already waits for probes or the store, not for time.
            wake: decisions.chain(overdue).chain(believed).filter(|at| *at > now).min(),
        }
    }
}

impl Member {
    fn new(peer: &Peer) -> Self {
        Self { peer: peer.clone(), silent: None, vanished: None, left: None }
    }

    /// Every place it is probed at is silent. A host that cannot be probed is not called unreachable
    /// while its lease is there.
    fn is_unreachable(&self, subnet: &Subnet, evidence: &Evidence<'_>) -> bool {
        let targets = evidence.targets.get(subnet).into_iter().flatten();
        let mut known = targets.filter_map(|addr| evidence.outcomes.get(addr)).peekable();
        match known.peek() {
            None => self.vanished.is_some(),
            Some(_) => known.all(|outcome| outcome.silent >= SILENT_PROBES),
        }
    }

    fn standing(&self, keep: Option<Because>) -> Standing {
        match (self.left, self.silent, &self.peer.node) {
            (Some(since), _, _) => Standing::Gone { since },
            (None, Some(since), _) => keep.map_or(Standing::Silent { since }, Standing::Kept),
            (None, None, _) if self.vanished.is_some() => keep.map_or(Standing::Live, Standing::Kept),
            (None, None, None) => Standing::Leased,
            (None, None, Some(_)) => match keep {
                Some(because @ Because::StoreUnreachable) => Standing::Kept(because),
                _ => Standing::Live,
            },
        }
    }
}
