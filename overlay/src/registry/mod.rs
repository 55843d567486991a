//! Everything under the network's prefix, typed: the config, the leases, who wrote them, who runs.
//!
//! A [`Registry`] comes from a store's snapshot and follows its changes; it decides nothing and does
//! no I/O ([`follow`] does). Two rules keep it safe to act upon:
//!
//! - *Malformed input takes nothing away.* A key that is none of ours is named once and skipped. A
//!   known key whose new value cannot be read keeps its last good one, and the fault is reported;
//!   only the key's deletion (or a lease of etcd that ran out) removes an entry. The config stays in
//!   force even when its key is deleted, since no daemon could do anything sensible with its absence.
//! - *Revisions are always the store's.* An entry with a bad value still carries its true mod
//!   revision, so that a guarded write acts on what is there and not on what we remember.

mod follow;
mod peers;
mod record;
#[cfg(test)]
mod tests;

pub use follow::{Followed, Known, follow};
pub use peers::{KnownPeer, Liveness, Peers};
pub use record::{LiveRecord, OwnerRecord};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_store::{Change, ClusterId, KeyValue, LeaseId, Revision, Snapshot};

use crate::config::{NetworkConfig, Parsed};
use crate::key::{Key, Prefix};
use crate::lease_attrs::LeaseAttrs;
use crate::model::{NodeId, Subnet};

/// The network as the store describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Registry {
    prefix: Prefix,
    cluster: ClusterId,
    revision: Revision,
    config: Option<Arc<ConfigEntry>>,
    leases: BTreeMap<Subnet, Arc<LeaseEntry>>,
    owners: BTreeMap<Subnet, Arc<OwnerEntry>>,
    live: BTreeMap<NodeId, Arc<LiveEntry>>,
    drained: BTreeSet<NodeId>,
    last_claim: Option<Revision>,
    faults: BTreeMap<String, String>,
}

/// The network config's key.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigEntry {
    /// The last value that could be used.
    pub good: Option<Parsed>,
    /// Why the value that stands there now is not that one.
    pub fault: Option<String>,
    /// The value that stands there now; empty once the key is gone.
    pub raw: Vec<u8>,
    /// When it was last written or deleted.
    pub mod_revision: Revision,
}

/// A key of flannel's: a lease or, without a lease of etcd's, a reservation.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseEntry {
    /// The last value that could be read; `None` if none could since we look.
    pub attrs: Option<LeaseAttrs>,
    /// When that value was written.
    pub attrs_revision: Revision,
    /// When the key was last written.
    pub mod_revision: Revision,
    /// When it was made.
    pub create_revision: Revision,
    /// The etcd lease that it dies with; a reservation has none.
    pub lease: Option<LeaseId>,
}

/// An owner record's key.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnerEntry {
    /// The last record that could be read; `None` if none could since we look.
    pub record: Option<OwnerRecord>,
    /// When that record was written.
    pub record_revision: Revision,
    /// When the key was last written.
    pub mod_revision: Revision,
    /// The etcd lease that it dies with.
    pub lease: Option<LeaseId>,
}

/// A liveness record's key.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveEntry {
    /// The record, if it can be read. A key with a broken value still says that somebody renews it.
    pub record: Option<LiveRecord>,
    /// When the key was last written.
    pub mod_revision: Revision,
}

/// Who has a subnet.
#[derive(Clone, Debug, PartialEq)]
pub enum Holder<'a> {
    /// Nobody, and nobody claims it.
    Nobody,
    /// A weft host: lease and record were written together.
    Node(&'a OwnerRecord),
    /// A host that wrote the lease without a record, so flanneld; by its public addresses.
    Host(&'a LeaseAttrs),
    /// A key that names no host: a reservation for somebody to come, or a value nobody can read.
    Nameless,
    /// No lease, but a record: this weft host may come back to it.
    Claimed(&'a OwnerRecord),
    /// No lease, and the host that had it gave it up.
    Released(&'a OwnerRecord),
}

/// Something under the prefix that weft skips, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The whole key.
    pub key: String,
    /// Why, on one line.
    pub reason: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

impl Registry {
    /// Reads a whole snapshot. The faults are all that it holds.
    pub fn new(prefix: Prefix, snapshot: &Snapshot) -> (Self, Vec<Fault>) {
        let mut registry = Self {
            prefix,
            cluster: snapshot.cluster,
            revision: Revision(0),
            config: None,
            leases: BTreeMap::new(),
            owners: BTreeMap::new(),
            live: BTreeMap::new(),
            drained: BTreeSet::new(),
            last_claim: None,
            faults: BTreeMap::new(),
        };
        let faults = registry.reset(snapshot);
        (registry, faults)
    }

    /// Becomes what a later snapshot of the same store says, but for values that cannot be read: they
    /// keep their last good one. The faults are the ones not yet named.
    pub fn reset(&mut self, snapshot: &Snapshot) -> Vec<Fault> {
        let known = std::mem::take(&mut self.faults);
        let gone = self.keys().into_iter().filter(|key| !snapshot.entries.contains_key(key));
        for key in gone.collect::<Vec<_>>() {
            self.delete(&key, snapshot.revision);
        }
        for entry in snapshot.entries.values() {
            self.put(entry);
        }
        self.cluster = snapshot.cluster;
        self.revision = snapshot.revision;
        self.faults().filter(|fault| known.get(&fault.key) != Some(&fault.reason)).collect()
    }

    /// Becomes what a new store says, after the old one was wiped. Revisions of two stores must not
    /// be compared, so nothing is kept but the config.
    pub fn wiped(&mut self, snapshot: &Snapshot) -> Vec<Fault> {
        self.leases.clear();
        self.owners.clear();
        self.live.clear();
        self.drained.clear();
        self.last_claim = None;
        self.reset(snapshot)
    }

    /// Follows what changed since. The faults are the ones not yet named.
    pub fn absorb(&mut self, revision: Revision, changes: &[Change]) -> Vec<Fault> {
        let mut fresh = Vec::new();
        for change in changes {
            let key = match change {
                Change::Put(entry) => &entry.key,
                Change::Delete { key, .. } => key,
            };
            let before = self.faults.remove(key);
            match change {
                Change::Put(entry) => self.put(entry),
                Change::Delete { key, revision } => self.delete(key, *revision),
            }
            if let Some(reason) = self.faults.get(key).filter(|now| Some(*now) != before.as_ref()) {
                fresh.push(Fault { key: key.clone(), reason: reason.clone() });
            }
        }
        self.revision = revision;
        fresh
    }

    /// Where its keys are.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Which store it comes from.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// As of when.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The network config's key; `None` if there never was one.
    pub fn config_entry(&self) -> Option<&ConfigEntry> {
        self.config.as_deref()
    }

    /// The last config that could be used.
    pub fn config(&self) -> Option<&NetworkConfig> {
        Some(&self.config.as_ref()?.good.as_ref()?.config)
    }

    /// What in that config has no effect, one line each.
    pub fn config_notes(&self) -> &[String] {
        let good = self.config.as_ref().and_then(|entry| entry.good.as_ref());
        good.map(|parsed| &*parsed.notes).unwrap_or_default()
    }

    /// Every lease and reservation.
    pub fn leases(&self) -> impl Iterator<Item = (&Subnet, &LeaseEntry)> {
        self.leases.iter().map(|(subnet, entry)| (subnet, &**entry))
    }

    /// One lease.
    pub fn lease(&self, subnet: &Subnet) -> Option<&LeaseEntry> {
        self.leases.get(subnet).map(|entry| &**entry)
    }

    /// Every owner record, void ones too.
    pub fn owners(&self) -> impl Iterator<Item = (&Subnet, &OwnerEntry)> {
        self.owners.iter().map(|(subnet, entry)| (subnet, &**entry))
    }

    /// One owner record, void or not.
    pub fn owner(&self, subnet: &Subnet) -> Option<&OwnerEntry> {
        self.owners.get(subnet).map(|entry| &**entry)
    }

    /// The nodes whose daemons run.
    pub fn live(&self) -> impl Iterator<Item = (&NodeId, &LiveEntry)> {
        self.live.iter().map(|(node, entry)| (node, &**entry))
    }

    /// One node's liveness.
    pub fn live_entry(&self, node: &NodeId) -> Option<&LiveEntry> {
        self.live.get(node).map(|entry| &**entry)
    }

    /// Shall this node give its subnet up?
    pub fn is_drained(&self, node: &NodeId) -> bool {
        self.drained.contains(node)
    }

    /// The nodes that shall give their subnets up.
    pub fn drained(&self) -> impl Iterator<Item = &NodeId> {
        self.drained.iter()
    }

    /// When a claim in two families was last written; `None` if none ever was.
    pub fn last_claim(&self) -> Option<Revision> {
        self.last_claim
    }

    /// Everything that is skipped now, by key.
    pub fn faults(&self) -> impl Iterator<Item = Fault> {
        self.faults.iter().map(|(key, reason)| Fault { key: key.clone(), reason: reason.clone() })
    }

    /// Who has a subnet. The flannel key wins: a record counts only beside the very lease that it was
    /// written with, so equal revisions; or alone, when there is no lease. A value that nobody
    /// can read names no host, even if an earlier one did: who wrote in between may never have been
    /// heard.
    pub fn holder(&self, subnet: &Subnet) -> Holder<'_> {
        let owner = self.owners.get(subnet);
        let record = owner.and_then(|entry| entry.record.as_ref());
        let Some(lease) = self.leases.get(subnet) else {
            return match record {
                Some(record) if record.released => Holder::Released(record),
                Some(record) => Holder::Claimed(record),
                None => Holder::Nobody,
            };
        };
        let together = owner.is_some_and(|entry| entry.record_revision == lease.attrs_revision);
        match (record.filter(|_| together && lease.attrs.is_some()), &lease.attrs) {
            (Some(record), _) => Holder::Node(record),
            (None, Some(attrs)) if attrs.names_a_host() && lease.is_readable() => Holder::Host(attrs),
            _ => Holder::Nameless,
        }
    }

    /// The key of every entry.
    fn keys(&self) -> Vec<String> {
        let prefix = &self.prefix;
        let mut keys = Vec::new();
        keys.extend(self.config.as_ref().map(|_| prefix.config()));
        keys.extend(self.leases.keys().map(|subnet| prefix.lease(subnet)));
        keys.extend(self.owners.keys().map(|subnet| prefix.owner(subnet)));
        keys.extend(self.live.keys().map(|node| prefix.live(node)));
        keys.extend(self.drained.iter().map(|node| prefix.drain(node)));
        keys.extend(self.last_claim.map(|_| prefix.last_claim()));
        keys
    }

    fn put(&mut self, kv: &KeyValue) {
        let fault = match self.prefix.classify(&kv.key) {
            Key::Config => self.put_config(kv),
            Key::Lease(subnet) => self.put_lease(subnet, kv),
            Key::Owner(subnet) => self.put_owner(subnet, kv),
            Key::Live(node) => {
                let record = LiveRecord::parse(&kv.value);
                let fault = record.as_ref().err().cloned();
                let entry = LiveEntry { record: record.ok(), mod_revision: kv.mod_revision };
                self.live.insert(node, Arc::new(entry));
                fault
            }
            Key::Drain(node) => {
                self.drained.insert(node);
                None
            }
            Key::LastClaim => {
                self.last_claim = Some(kv.mod_revision);
                None
            }
            Key::Strange(why) => Some(why.to_owned()),
        };
        if let Some(reason) = fault {
            self.faults.insert(kv.key.clone(), reason);
        }
    }

    fn put_config(&mut self, kv: &KeyValue) -> Option<String> {
        let before = self.config.take();
        let (good, fault) = match NetworkConfig::parse(&kv.value) {
            Ok(parsed) => (Some(parsed), None),
            Err(bad) => (before.and_then(|entry| entry.good.clone()), Some(bad.to_string())),
        };
        let raw = kv.value.clone();
        let entry = ConfigEntry { good, fault: fault.clone(), raw, mod_revision: kv.mod_revision };
        self.config = Some(Arc::new(entry));
        fault
    }

    fn put_lease(&mut self, subnet: Subnet, kv: &KeyValue) -> Option<String> {
        let (attrs, attrs_revision, fault) = match LeaseAttrs::parse(&kv.value) {
            Ok(attrs) => (Some(attrs), kv.mod_revision, None),
            Err(bad) => {
                let before = self.leases.get(&subnet);
                let (attrs, revision) = before.map_or((None, Revision(0)), |entry| {
                    // The same bad value in a new snapshot must not forget the good one.
                    (entry.attrs.clone(), entry.attrs_revision)
                });
                (attrs, revision, Some(bad.to_string()))
            }
        };
        let entry = LeaseEntry {
            attrs,
            attrs_revision,
            mod_revision: kv.mod_revision,
            create_revision: kv.create_revision,
            lease: kv.lease,
        };
        self.leases.insert(subnet, Arc::new(entry));
        fault
    }

    fn put_owner(&mut self, subnet: Subnet, kv: &KeyValue) -> Option<String> {
        let (record, record_revision, fault) = match OwnerRecord::parse(&kv.value) {
            Ok(record) => (Some(record), kv.mod_revision, None),
            Err(why) => {
                let before = self.owners.get(&subnet);
                let (record, revision) =
                    before.map_or((None, Revision(0)), |entry| (entry.record.clone(), entry.record_revision));
                (record, revision, Some(why))
            }
        };
        let entry = OwnerEntry { record, record_revision, mod_revision: kv.mod_revision, lease: kv.lease };
        self.owners.insert(subnet, Arc::new(entry));
        fault
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        match self.prefix.classify(key) {
            Key::Config => {
                if let Some(before) = self.config.take() {
                    let fault = "deleted; the last good config stays in force".to_owned();
                    self.faults.insert(key.to_owned(), fault.clone());
                    let good = before.good.clone();
                    let gone =
                        ConfigEntry { good, fault: Some(fault), raw: Vec::new(), mod_revision: revision };
                    self.config = Some(Arc::new(gone));
                }
            }
            Key::Lease(subnet) => {
                self.leases.remove(&subnet);
            }
            Key::Owner(subnet) => {
                self.owners.remove(&subnet);
            }
            Key::Live(node) => {
                self.live.remove(&node);
            }
            Key::Drain(node) => {
                self.drained.remove(&node);
            }
            Key::LastClaim => self.last_claim = None,
            Key::Strange(_) => {}
        }
    }
}

impl LeaseEntry {
    /// A reservation: it has no lease of etcd's, so it never runs out.
    pub fn is_reservation(&self) -> bool {
        self.lease.is_none()
    }

    /// Can the value that stands there now be read?
    pub fn is_readable(&self) -> bool {
        self.attrs.is_some() && self.attrs_revision == self.mod_revision
    }

    /// The host's public addresses, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let attrs = self.attrs.as_ref();
        let v4 = attrs.and_then(|attrs| attrs.public_v4).map(IpAddr::V4);
        let v6 = attrs.and_then(|attrs| attrs.public_v6).map(IpAddr::V6);
        v4.into_iter().chain(v6).collect()
    }
}
