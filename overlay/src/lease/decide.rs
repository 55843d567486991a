//! What one host should do next about its subnet: every rule of the protocol, and nothing else.
//!
//! Pure: the registry, the config, who we are and what we hold go in, one [`Decision`] comes out. No
//! clock, no socket; chance is a number passed in. The rules are told in [`crate::lease`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use weft_store::{LeaseId, Revision, Txn};

use super::allocate::{allocate, capacity};
use super::claim::{Bind, Claim};
use crate::config::NetworkConfig;
use crate::lease_attrs::LeaseAttrs;
use crate::model::{NodeId, Subnet, Transports};
use crate::registry::{Holder, LeaseEntry, OwnerEntry, OwnerRecord, Registry};

/// Who we are and what we want; the daemon's side of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Who we are, for good.
    pub node: NodeId,
    /// This run of the daemon: any text that no other run has.
    pub instance: String,
    /// The address other hosts reach us at.
    pub public_v4: Option<Ipv4Addr>,
    /// The same in IPv6.
    pub public_v6: Option<Ipv6Addr>,
    /// Every way we can be reached.
    pub transports: Transports,
    /// A subnet to take if it is free: from the subnet file, or flannel's before us.
    pub remembered: Option<Subnet>,
    /// The daemon has seen [`super::LeaseState::draining`], has no pods in the subnet and will attach
    /// none: the subnet may be given up. Only asked for when the host is being drained.
    pub vacated: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Nothing: the store says what it should. Keep the two leases of etcd's alive.
    Hold(Tenure),
    /// Write lease and record in one transaction.
    Claim(Box<Claim>),
    /// Give a subnet up that we do not use, in one transaction.
    GiveUp(Subnet, Txn),
    /// Ask how long these leases of etcd's still have, and decide again.
    NeedAges(Vec<LeaseId>),
    /// Nothing can be done now; a change of the registry or the wish may help.
    Wait(Waiting),
    /// What we held is another's. Forget it, and decide again.
    Lost(Loss),
}

/// A subnet that is ours by the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Which.
    pub subnet: Subnet,
    /// The etcd lease of flannel's key; a reservation has none.
    pub flannel_lease: Option<LeaseId>,
    /// The etcd lease of the owner record; a reservation's record has none.
    pub owner_lease: Option<LeaseId>,
    /// How often a weft host wrote this subnet.
    pub generation: u64,
    /// The host is being drained: no new pods.
    pub draining: bool,
}

/// Why there is no subnet (yet).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// The store has not answered yet.
    #[error("waiting for the store")]
    NoStore,
    /// There is no config, or none that can be used.
    #[error("waiting for a network config at {key}: {why}")]
    NoConfig {
        /// Where it must stand.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// We know no address of ours that others could reach.
    #[error("waiting for a public address: none is known, so no peer could reach this host")]
    NoAddress,
    /// Our liveness record is not there yet; nothing is written before.
    #[error("waiting until the store knows that this host runs")]
    Unannounced,
    /// Nothing is left.
    #[error(
        "waiting for a subnet: all {total} are in use ({leased} leased, {claimed} kept for hosts that may come back); \
         the next that frees is taken"
    )]
    Exhausted {
        /// How many the range has.
        total: u128,
        /// Leases and reservations.
        leased: usize,
        /// Owner records without a lease whose host is alive or whose reservation holds.
        claimed: usize,
    },
    /// `weft lease drain` was called for us.
    #[error("drained: `weft lease drain --undo {node}` lets this host lease again")]
    Drained {
        /// Us.
        node: NodeId,
    },
    /// Somebody else runs with our node id.
    #[error("node id {node} is in use by the host at {address}; give one of the two another `--node-id`")]
    DuplicateNode {
        /// The id.
        node: NodeId,
        /// Where the other is.
        address: String,
    },
}

/// A subnet that went away from us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Which.
    pub subnet: Subnet,
    /// To whom, or why.
    pub by: LostBy,
}

/// To whom a subnet was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostBy {
    /// Another weft host.
    Node(NodeId),
    /// A host without a record, so flanneld.
    Host(Vec<IpAddr>),
    /// A lease that shares addresses with ours, and was there before it or is flannel's.
    Overlap(Subnet),
    /// An operator released it, or the host was drained.
    Released,
    /// It does not fit the network config that is in force now.
    Unfit,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let subnet = self.subnet;
        match &self.by {
            LostBy::Node(node) => write!(f, "{subnet} belongs to node {node} now"),
            LostBy::Host(addresses) => {
                let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                write!(f, "{subnet} belongs to the flannel host at {} now", addresses.join(", "))
            }
            LostBy::Overlap(other) => write!(f, "{subnet} overlaps the lease of {other}"),
            LostBy::Released => write!(f, "{subnet} was released"),
            LostBy::Unfit => write!(f, "{subnet} does not fit the network config"),
        }
    }
}

/// How long leases of etcd's still have, as far as anybody asked.
pub type Ages = BTreeMap<LeaseId, Duration>;

/// What to do next. `held` is what we believe to hold; `seed` decides between equals.
pub fn decide(
    registry: &Registry,
    config: &NetworkConfig,
    wish: &Wish,
    held: Option<Subnet>,
    ages: &Ages,
    seed: u64,
) -> Decision {
    if wish.public_v4.is_none() && wish.public_v6.is_none() {
        return Decision::Wait(Waiting::NoAddress);
    }
    if let Some(address) = wish.is_doubled(registry) {
        return Decision::Wait(Waiting::DuplicateNode { node: wish.node.clone(), address });
    }
    let announced = registry
        .live_entry(&wish.node)
        .filter(|entry| entry.record.as_ref().is_some_and(|record| record.instance == wish.instance));
    let announced_at = announced.map(|entry| entry.mod_revision);
    let view = View { registry, config, wish, announced_at: announced_at.unwrap_or_default() };
    match view.next(held, ages, seed) {
        Decision::Claim(_) | Decision::GiveUp(..) if announced_at.is_none() => {
            Decision::Wait(Waiting::Unannounced)
        }
        decision => decision,
    }
}

impl Wish {
    /// Where another run with our node id lives that is not on this host: machine ids get cloned with
    /// disks. Our own earlier run at another address looks the same until its liveness runs out.
    pub(super) fn is_doubled(&self, registry: &Registry) -> Option<String> {
        let record = registry.live_entry(&self.node)?.record.as_ref()?;
        let ours = record.instance == self.instance
            || (record.public_v4.is_some() && record.public_v4 == self.public_v4)
            || (record.public_v6.is_some() && record.public_v6 == self.public_v6);
        let address = record.public_v4.map(IpAddr::V4).or(record.public_v6.map(IpAddr::V6))?;
        (!ours).then(|| address.to_string())
    }
}

/// Everything the rules look at.
struct View<'a> {
    registry: &'a Registry,
    config: &'a NetworkConfig,
    wish: &'a Wish,
    /// When our liveness record was written.
    announced_at: Revision,
}

impl View<'_> {
    /// What to do by the leases and records alone.
    fn next(&self, held: Option<Subnet>, ages: &Ages, seed: u64) -> Decision {
        let drained = self.registry.is_drained(&self.wish.node);
        match held {
            Some(subnet) if drained && self.wish.vacated => {
                self.give_up(subnet).unwrap_or(Decision::Lost(Loss { subnet, by: LostBy::Released }))
            }
            Some(subnet) => self.judge(subnet, drained, true),
            None if drained => match self.surplus(None) {
                Some(decision) => decision,
                None => Decision::Wait(Waiting::Drained { node: self.wish.node.clone() }),
            },
            // What the store gives us may be lost already, by an overlap; then the next best counts.
            None => self
                .homes()
                .into_iter()
                .map(|subnet| self.judge(subnet, false, false))
                .find(|decision| !matches!(decision, Decision::Lost(_)))
                .unwrap_or_else(|| self.settle(ages, seed)),
        }
    }

    /// A subnet that we hold or that the store gives us: is all as it should be?
    fn judge(&self, subnet: Subnet, draining: bool, held: bool) -> Decision {
        let lost = |by| Decision::Lost(Loss { subnet, by });
        if !self.config.fits(&subnet) {
            return lost(LostBy::Unfit);
        }
        let lease = self.registry.lease(&subnet);
        let owner = self.registry.owner(&subnet);
        let ours = |record: &OwnerRecord| record.node == self.wish.node;
        match self.registry.holder(&subnet) {
            Holder::Node(record) if ours(record) => {}
            Holder::Node(record) | Holder::Claimed(record) if !ours(record) => {
                return lost(LostBy::Node(record.node.clone()));
            }
            Holder::Host(attrs) if !self.is_me(attrs) => {
                return lost(LostBy::Host(lease.map(LeaseEntry::addresses).unwrap_or_default()));
            }
            Holder::Released(record) if ours(record) && held => return lost(LostBy::Released),
            // A value that nobody can read, or that names nobody, is no claim; the record tells.
            Holder::Nameless => match owner.and_then(|entry| entry.record.as_ref()) {
                Some(record) if !ours(record) => return lost(LostBy::Node(record.node.clone())),
                _ => {}
            },
            _ => {}
        }
        if let Some(other) = self.overlap(&subnet, lease) {
            return lost(LostBy::Overlap(other));
        }
        let claim = self.claim(subnet, Vec::new());
        let (Some(lease), Some(owner)) = (lease, owner) else { return Decision::Claim(claim) };
        let written = lease.attrs.as_ref() == Some(&claim.attrs)
            && lease.is_readable()
            && owner.mod_revision == lease.mod_revision;
        let Some(record) = owner.record.as_ref().filter(|_| written) else {
            return Decision::Claim(claim);
        };
        let same = OwnerRecord { generation: record.generation, ..claim.record.clone() };
        if *record != same {
            return Decision::Claim(claim);
        }
        if let Some(decision) = self.surplus(Some(subnet)) {
            return decision;
        }
        Decision::Hold(Tenure {
            subnet,
            flannel_lease: lease.lease,
            owner_lease: owner.lease,
            generation: record.generation,
            draining,
        })
    }

    /// A lease under another key that shares addresses with ours, and before which ours must yield.
    /// Two keys can do so because flannel picks the families apart, and because a network's SubnetLen
    /// may have changed. Among weft hosts the older key stays. flanneld never yields, so we do; but only
    /// to a host with exactly one of our networks, since any other overlap is a mistake that should cost
    /// nobody his pods.
    fn overlap(&self, subnet: &Subnet, lease: Option<&LeaseEntry>) -> Option<Subnet> {
        let others = self.registry.leases().filter(|(other, _)| *other != subnet && other.overlaps(subnet));
        let ours = lease.map(|entry| entry.create_revision);
        others
            .filter(|(other, entry)| match self.registry.holder(other) {
                Holder::Node(record) if record.node == self.wish.node => false,
                Holder::Node(_) => ours.is_none_or(|ours| entry.create_revision < ours),
                Holder::Host(attrs) => {
                    let equal = (other.v4.is_some() && other.v4 == subnet.v4)
                        || (other.v6.is_some() && other.v6 == subnet.v6);
                    equal && !self.is_me(attrs)
                }
                _ => false,
            })
            .map(|(other, _)| *other)
            .next()
    }

    /// The subnets that the store gives us, best first.
    fn homes(&self) -> Vec<Subnet> {
        let remembered = |subnet: &Subnet| self.wish.remembered == Some(*subnet);
        let mut homes: Vec<((u8, bool, u64), Subnet)> = Vec::new();
        let mut offer = |class: u8, generation: u64, subnet: Subnet| {
            if self.config.fits(&subnet) {
                homes.push(((class, remembered(&subnet), generation), subnet));
            }
        };
        for (subnet, owner) in self.registry.owners() {
            let Some(record) = owner.record.as_ref().filter(|record| record.node == self.wish.node) else {
                continue;
            };
            match self.registry.holder(subnet) {
                Holder::Node(_) | Holder::Nameless => {
                    let reserved = self.registry.lease(subnet).is_some_and(LeaseEntry::is_reservation);
                    // What was in use comes first, so that a restart keeps it; then what an operator
                    // set aside; then what a lapsed lease leaves.
                    let in_use = record.transports != Transports::default();
                    offer(if in_use || !reserved { 5 } else { 4 }, record.generation, *subnet);
                }
                Holder::Claimed(_) => offer(3, record.generation, *subnet),
                _ => {}
            }
        }
        for (subnet, _) in self.registry.leases() {
            if let Holder::Host(attrs) = self.registry.holder(subnet)
                && self.is_me(attrs)
            {
                offer(2, 0, *subnet);
            }
        }
        homes.sort_by(|(a, first), (b, second)| b.cmp(a).then(first.cmp(second)));
        homes.into_iter().map(|(_, subnet)| subnet).collect()
    }

    /// A new subnet: the remembered one if nobody has a claim on it, else one never used, else one
    /// given up, else the one whose host has been away for longest.
    fn settle(&self, ages: &Ages, seed: u64) -> Decision {
        let mut leased = Vec::new();
        for (subnet, _) in self.registry.leases() {
            match self.registry.holder(subnet) {
                // Our own key of another shape (one family more or less) must not block its successor.
                Holder::Node(record) if record.node == self.wish.node => {}
                _ => leased.push(*subnet),
            }
        }
        let (mut released, mut reclaimable, mut claimed) = (Vec::new(), Vec::new(), Vec::new());
        for (subnet, owner) in self.registry.owners() {
            match self.registry.holder(subnet) {
                Holder::Released(_) => released.push((*subnet, owner)),
                Holder::Claimed(record) if record.node == self.wish.node => released.push((*subnet, owner)),
                Holder::Claimed(record) => match owner.lease {
                    Some(lease) if self.registry.live_entry(&record.node).is_none() => {
                        reclaimable.push((lease, *subnet, owner));
                    }
                    // Its host is up and about to come back to it, or an operator set it aside.
                    _ => claimed.push(*subnet),
                },
                _ => {}
            }
        }
        let fixed: Vec<Subnet> = leased.iter().chain(&claimed).copied().collect();
        let kept: Vec<Subnet> = reclaimable.iter().map(|(_, subnet, _)| *subnet).collect();
        let used: Vec<Subnet> = released.iter().map(|(subnet, _)| *subnet).collect();

        let unclaimed = [&fixed[..], &kept[..]].concat();
        let wanted = self.wanted(&unclaimed);
        let never_used = [&unclaimed[..], &used[..]].concat();
        // What was ours before is as good as never used: nobody else was given it since.
        if let Some(subnet) = wanted.filter(|wanted| self.config.fits(wanted)) {
            return self.take(subnet, &released, &[]);
        }
        if let Some(subnet) = allocate(self.config, &never_used, wanted, seed) {
            return self.take(subnet, &released, &[]);
        }
        if let Some(subnet) = allocate(self.config, &unclaimed, wanted, seed) {
            return self.take(subnet, &released, &[]);
        }
        let unknown = reclaimable.iter().map(|(lease, ..)| *lease).filter(|lease| !ages.contains_key(lease));
        let unknown: Vec<LeaseId> = unknown.collect();
        let total = capacity(self.config);
        // Worth asking only if giving all of them up would make room.
        let exhausted =
            Waiting::Exhausted { total, leased: leased.len(), claimed: claimed.len() + kept.len() };
        if allocate(self.config, &fixed, wanted, seed).is_none() {
            return Decision::Wait(exhausted);
        }
        if !unknown.is_empty() {
            return Decision::NeedAges(unknown);
        }
        reclaimable.sort_by_key(|(lease, subnet, owner)| (ages.get(lease), owner.mod_revision, *subnet));
        for oldest in 1..=reclaimable.len() {
            let (gone, stay) = reclaimable.split_at(oldest);
            let stay = stay.iter().map(|(_, subnet, _)| *subnet);
            let taken: Vec<Subnet> = fixed.iter().copied().chain(stay).collect();
            if let Some(subnet) = allocate(self.config, &taken, wanted, seed) {
                let gone: Vec<_> = gone.iter().map(|(_, subnet, owner)| (*subnet, *owner)).collect();
                return self.take(subnet, &released, &gone);
            }
        }
        Decision::Wait(exhausted)
    }

    /// The remembered subnet, if it is free; or else the networks of a lease of ours that no longer
    /// has the right shape, so that a host keeps its IPv4 subnet when IPv6 is switched on.
    fn wanted(&self, unclaimed: &[Subnet]) -> Option<Subnet> {
        let free = |subnet: &Subnet| !unclaimed.iter().any(|taken| taken.overlaps(subnet));
        let own = self.registry.leases().map(|(subnet, _)| *subnet).find(|subnet| {
            matches!(self.registry.holder(subnet), Holder::Node(record) if record.node == self.wish.node)
        });
        self.wish.remembered.filter(free).or(own.filter(|own| !self.config.fits(own)))
    }

    /// Claims a subnet; the records in `free` and `gone` that overlap it are removed with it.
    fn take(
        &self,
        subnet: Subnet,
        free: &[(Subnet, &OwnerEntry)],
        gone: &[(Subnet, &OwnerEntry)],
    ) -> Decision {
        let stale = free.iter().chain(gone).filter(|(other, _)| *other != subnet && other.overlaps(&subnet));
        Decision::Claim(
            self.claim(subnet, stale.map(|(other, entry)| (*other, entry.mod_revision)).collect()),
        )
    }

    /// Lease and record as they should be, guarded by what is there now.
    fn claim(&self, subnet: Subnet, stale: Vec<(Subnet, Revision)>) -> Box<Claim> {
        let wish = self.wish;
        let lease = self.registry.lease(&subnet);
        let owner = self.registry.owner(&subnet);
        let before = owner.and_then(|entry| entry.record.as_ref());
        let ours = before.is_some_and(|record| record.node == wish.node && !record.released);
        let together =
            lease.zip(owner).is_some_and(|(lease, owner)| owner.record_revision == lease.attrs_revision);
        // A reservation stays one: a key without a lease is never given one. A value that nobody can
        // read reserves nothing.
        let flannel_lease = match lease {
            Some(entry) if entry.is_reservation() && entry.is_readable() => Bind::Forever,
            Some(LeaseEntry { lease: Some(id), .. }) if ours && together => Bind::Keep(*id),
            _ => Bind::Fresh,
        };
        let owner_lease = match owner {
            Some(OwnerEntry { lease: Some(id), .. }) if ours => Bind::Keep(*id),
            Some(OwnerEntry { lease: None, .. }) if ours && flannel_lease == Bind::Forever => Bind::Forever,
            _ => Bind::Fresh,
        };
        let both_families = self.config.v4.is_some() && self.config.v6.is_some();
        let rewrite = ours && together;
        Box::new(Claim {
            subnet,
            announced_at: self.announced_at,
            after: (both_families && !rewrite).then(|| self.registry.last_claim()),
            attrs: LeaseAttrs::of_host(self.config, wish.public_v4, wish.public_v6, &wish.transports),
            record: OwnerRecord {
                node: wish.node.clone(),
                generation: before.map_or(1, |record| record.generation.saturating_add(1)),
                transports: wish.transports.clone(),
                released: false,
            },
            lease_at: lease.map(|entry| entry.mod_revision),
            owner_at: owner.map(|entry| entry.mod_revision),
            stale,
            flannel_lease,
            owner_lease,
        })
    }

    /// Something in our name that we do not use: a subnet taken by a write whose answer was lost, a
    /// record of one that went to another. Reservations stay.
    fn surplus(&self, held: Option<Subnet>) -> Option<Decision> {
        let ours = self.registry.owners().filter(|(subnet, owner)| {
            let record = owner.record.as_ref();
            Some(**subnet) != held && record.is_some_and(|record| record.node == self.wish.node)
        });
        ours.filter_map(|(subnet, _)| self.give_up(*subnet)).next()
    }

    /// Gives a subnet of ours up; `None` if there is nothing to do. A reservation stays, but says no
    /// longer how to reach us.
    fn give_up(&self, subnet: Subnet) -> Option<Decision> {
        let prefix = self.registry.prefix();
        let (lease_key, owner_key) = (prefix.lease(&subnet), prefix.owner(&subnet));
        let owner = self.registry.owner(&subnet)?;
        let record = owner.record.as_ref().filter(|record| record.node == self.wish.node)?;
        let txn = Txn::new()
            .if_unchanged(prefix.live(&self.wish.node), self.announced_at)
            .if_unchanged(owner_key.clone(), owner.mod_revision);
        let generation = record.generation.saturating_add(1);
        let gone = OwnerRecord { generation, transports: Transports::default(), ..record.clone() };
        let txn = match (self.registry.lease(&subnet), self.registry.holder(&subnet)) {
            (Some(lease), Holder::Node(_)) if lease.is_reservation() => {
                let empty = LeaseAttrs::reserved(None);
                if lease.attrs.as_ref() == Some(&empty) {
                    return None;
                }
                txn.if_unchanged(lease_key.clone(), lease.mod_revision)
                    .put(lease_key, empty.encode(), None)
                    .put(owner_key, gone.encode(), owner.lease)
            }
            (Some(lease), Holder::Node(_)) => {
                let released = OwnerRecord { released: true, ..gone };
                txn.if_unchanged(lease_key.clone(), lease.mod_revision).delete(lease_key).put(
                    owner_key,
                    released.encode(),
                    owner.lease,
                )
            }
            (None, Holder::Claimed(_)) if owner.lease.is_some() => {
                let released = OwnerRecord { released: true, ..gone };
                txn.if_absent(lease_key).put(owner_key, released.encode(), owner.lease)
            }
            // The lease is another's by now; our record says nothing any more.
            (Some(_), Holder::Host(_)) => txn.delete(owner_key),
            _ => return None,
        };
        Some(Decision::GiveUp(subnet, txn))
    }

    fn is_me(&self, attrs: &LeaseAttrs) -> bool {
        attrs.is_of(self.wish.public_v4, self.wish.public_v6)
    }
}
