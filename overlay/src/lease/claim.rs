//! One write of the protocol: flannel's key and the owner record together, under guards.

use weft_store::{LeaseId, Revision, Txn};

use crate::key::Prefix;
use crate::lease_attrs::LeaseAttrs;
use crate::model::Subnet;
use crate::registry::OwnerRecord;

/// Lease and record as they should be, guarded by what the registry says is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Which subnet.
    pub subnet: Subnet,
    /// What flannel's key shall say.
    pub attrs: LeaseAttrs,
    /// What the owner record shall say.
    pub record: OwnerRecord,
    /// The mod revision that flannel's key must still have; `None`: it must not be there.
    pub lease_at: Option<Revision>,
    /// The same for the owner record.
    pub owner_at: Option<Revision>,
    /// The mod revision of our liveness record. A store that was wiped starts its revisions over, and
    /// might by chance have another's key at just the revision that we saw; our own record it cannot
    /// have before we have seen the new store.
    pub announced_at: Revision,
    /// In two families two keys can share addresses, so that guards on the keys alone are not enough:
    /// every claim also writes the network's one last-claim key, which must still be as last seen.
    /// Whoever decided without having seen the claim before is refused. `None`: not needed.
    pub after: Option<Option<Revision>>,
    /// Records of others that overlap the subnet and go with this write, at their mod revisions.
    pub stale: Vec<(Subnet, Revision)>,
    /// What flannel's key dies with.
    pub flannel_lease: Bind,
    /// What the owner record dies with.
    pub owner_lease: Bind,
}

/// Which lease of etcd's a key is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// None: it stays until somebody deletes it.
    Forever,
    /// The one it has.
    Keep(LeaseId),
    /// A new one.
    Fresh,
}

impl Claim {
    /// The transaction, once the leases are granted.
    pub fn txn(&self, prefix: &Prefix, flannel: Option<LeaseId>, owner: Option<LeaseId>) -> Txn {
        let (lease_key, owner_key) = (prefix.lease(&self.subnet), prefix.owner(&self.subnet));
        let mut txn = Txn::new().if_unchanged(prefix.live(&self.record.node), self.announced_at);
        txn = guarded(txn, &lease_key, self.lease_at);
        txn = guarded(txn, &owner_key, self.owner_at);
        if let Some(last) = self.after {
            let key = prefix.last_claim();
            txn = guarded(txn, &key, last).put(key, self.record.node.as_str(), None);
        }
        for (subnet, revision) in &self.stale {
            let key = prefix.owner(subnet);
            txn = txn.if_unchanged(key.clone(), *revision).delete(key);
        }
        txn.put(lease_key, self.attrs.encode(), flannel).put(owner_key, self.record.encode(), owner)
    }
}

fn guarded(txn: Txn, key: &str, at: Option<Revision>) -> Txn {
    match at {
        Some(revision) => txn.if_unchanged(key, revision),
        None => txn.if_absent(key),
    }
}
