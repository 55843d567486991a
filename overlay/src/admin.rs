//! What an operator does about leases: list, reserve, release, drain. No printing.
//!
//! Each is one look at the store and one guarded write; a write that somebody was faster than is
//! refused, not forced, because what the operator saw is no longer so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
pub use weft_store::{ConnectOptions, Store};
use weft_store::{StoreError, Txn, TxnOutcome};

use crate::key::Prefix;
use crate::lease_attrs::LeaseAttrs;
use crate::model::{NodeId, Subnet, Transports};
use crate::registry::{Holder, LeaseEntry, OwnerRecord, Registry};

/// One subnet that is leased, reserved or kept for somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The subnet, as people write it.
    #[serde(serialize_with = "as_text")]
    pub subnet: Subnet,
    /// The weft host that has it.
    pub node: Option<NodeId>,
    /// Where that host is reached.
    pub addresses: Vec<IpAddr>,
    /// `BackendType` as written; flannel's udp and alloc write none.
    pub backend: String,
    /// How long the lease still has, in seconds; for a subnet without a lease, how long it is kept.
    /// `None`: for ever.
    pub expires_in: Option<u64>,
    /// How things stand.
    pub state: State,
    /// The host is being drained.
    pub draining: bool,
}

/// How things stand with a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A weft host whose daemon runs.
    Live,
    /// A weft host whose daemon stopped or cannot reach the store; its lease still runs.
    Silent,
    /// A weft host whose lease ran out; the subnet is kept for it.
    Expired,
    /// A key without a lease, and no running host.
    Reserved,
    /// A host without an owner record: flanneld's.
    Foreign,
    /// Given up; others get it once no unused one is left.
    Released,
    /// A key whose value cannot be read.
    Unreadable,
}

/// Whom a reservation is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum For {
    /// A weft host.
    Node(NodeId),
    /// The host with this public address, flanneld's or weft's.
    Address(IpAddr),
    /// Whoever has it now; or nobody, to keep the subnet free.
    Holder,
}

/// Why an operator's wish was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The store could not be asked, or not told. A write may have been done all the same.
    #[error("the store could not be reached or refused")]
    Store(#[from] StoreError),
    /// Somebody wrote the same keys meanwhile.
    #[error("{0} changed meanwhile; look again with `weft lease ls`")]
    Changed(Subnet),
    /// The subnet is another's.
    #[error("{subnet} belongs to {holder}; release it first")]
    Taken {
        /// The subnet.
        subnet: Subnet,
        /// Who has it.
        holder: String,
    },
    /// The subnet overlaps another's.
    #[error("{subnet} overlaps {other}, which belongs to {holder}")]
    Overlaps {
        /// The subnet asked for.
        subnet: Subnet,
        /// The one that is there.
        other: Subnet,
        /// Who has that.
        holder: String,
    },
    /// Nothing is known of the subnet.
    #[error("{0} is neither leased nor reserved")]
    Unknown(Subnet),
    /// A running flanneld would not notice, and go on using the subnet.
    #[error(
        "{subnet} is leased by the flannel host at {addresses}; stop flanneld there and release with force, \
         or wait until the lease runs out"
    )]
    Foreign {
        /// The subnet.
        subnet: Subnet,
        /// Where that host is.
        addresses: String,
    },
    /// The subnet does not fit the network's config.
    #[error("{0} does not fit the network's config: not inside Network, or not of its SubnetLen")]
    Unfit(Subnet),
}

/// Every subnet that anybody has a claim on, by subnet.
pub async fn list(store: &Store, prefix: &Prefix) -> Result<Vec<Row>, AdminError> {
    let registry = look(store, prefix).await?;
    let mut rows: BTreeMap<Subnet, Row> = BTreeMap::new();
    let leases = registry.leases().map(|(subnet, _)| *subnet);
    let owners = registry.owners().map(|(subnet, _)| *subnet);
    for subnet in leases.chain(owners) {
        if rows.contains_key(&subnet) {
            continue;
        }
        let Some(mut row) = row(&registry, subnet) else { continue };
        let lease = registry.lease(&subnet).map(|entry| entry.lease);
        let etcd_lease = lease.unwrap_or_else(|| registry.owner(&subnet).and_then(|entry| entry.lease));
        if let Some(id) = etcd_lease {
            row.expires_in = match store.time_to_live(id).await {
                Ok(left) => Some(left.as_secs()),
                Err(StoreError::NoSuchLease(_)) => Some(Duration::ZERO.as_secs()),
                Err(error) => return Err(error.into()),
            };
        }
        rows.insert(subnet, row);
    }
    Ok(rows.into_values().collect())
}

/// Keeps a subnet for somebody for ever: a flannel key without a lease of etcd's. A subnet that is
/// leased can be reserved for the host that has it, which does not disturb it.
pub async fn reserve(store: &Store, prefix: &Prefix, subnet: Subnet, whom: &For) -> Result<(), AdminError> {
    let registry = look(store, prefix).await?;
    if registry.config().is_some_and(|config| !config.fits(&subnet)) {
        return Err(AdminError::Unfit(subnet));
    }
    let holder = registry.holder(&subnet);
    let (attrs, record) = match (&holder, whom) {
        // As it is, but without a lease.
        (Holder::Node(record), For::Holder) => (attrs(&registry, subnet), Some((*record).clone())),
        (Holder::Node(record), For::Node(node)) if record.node == *node => {
            (attrs(&registry, subnet), Some((*record).clone()))
        }
        (Holder::Node(record), For::Address(address))
            if attrs(&registry, subnet).is_some_and(|attrs| names(&attrs, *address)) =>
        {
            (attrs(&registry, subnet), Some((*record).clone()))
        }
        (Holder::Host(attrs), For::Holder) => (Some((*attrs).clone()), None),
        (Holder::Host(attrs), For::Address(address)) if names(attrs, *address) => {
            (Some((*attrs).clone()), None)
        }
        (Holder::Claimed(record), For::Holder) => (None, Some((*record).clone())),
        (Holder::Claimed(record), For::Node(node)) if record.node == *node => (None, Some((*record).clone())),
        (Holder::Node(_) | Holder::Host(_) | Holder::Claimed(_), _) => {
            return Err(AdminError::Taken { subnet, holder: name(&registry, &subnet) });
        }
        (Holder::Nobody | Holder::Released(_) | Holder::Nameless, For::Node(node)) => {
            (None, Some(fresh(&registry, &subnet, node)))
        }
        (Holder::Nobody | Holder::Released(_) | Holder::Nameless, _) => (None, None),
    };
    let others = registry.leases().map(|(other, _)| *other);
    let kept = registry.owners().map(|(other, _)| *other);
    let kept = kept.filter(|other| matches!(registry.holder(other), Holder::Claimed(_)));
    if let Some(other) = others.chain(kept).find(|other| *other != subnet && other.overlaps(&subnet)) {
        return Err(AdminError::Overlaps { subnet, other, holder: name(&registry, &other) });
    }
    let address = if let For::Address(address) = whom { Some(*address) } else { None };
    let attrs = attrs.unwrap_or_else(|| LeaseAttrs::reserved(address));
    let txn = guarded(&registry, &subnet).put(prefix.lease(&subnet), attrs.encode(), None);
    let txn = match record {
        Some(record) => txn.put(prefix.owner(&subnet), record.encode(), None),
        None => txn.delete(prefix.owner(&subnet)),
    };
    commit(store, txn, subnet).await
}

/// Takes a subnet away from whoever has it, reservations too; others may get it once no unused one is
/// left. A weft host notices and takes another; its pods in the subnet are taken down. A flanneld does
/// not notice, so that its lease is released only by `force`.
pub async fn release(store: &Store, prefix: &Prefix, subnet: Subnet, force: bool) -> Result<(), AdminError> {
    let registry = look(store, prefix).await?;
    let (lease_key, owner_key) = (prefix.lease(&subnet), prefix.owner(&subnet));
    let txn = guarded(&registry, &subnet);
    let owner_lease = registry.owner(&subnet).and_then(|entry| entry.lease);
    let txn = match registry.holder(&subnet) {
        Holder::Nobody | Holder::Released(_) => return Err(AdminError::Unknown(subnet)),
        Holder::Host(attrs) if !force && !attrs.backend.is_empty() => {
            let entry = registry.lease(&subnet).map(LeaseEntry::addresses).unwrap_or_default();
            let addresses: Vec<String> = entry.iter().map(IpAddr::to_string).collect();
            return Err(AdminError::Foreign { subnet, addresses: addresses.join(", ") });
        }
        Holder::Node(record) | Holder::Claimed(record) => {
            // The mark tells the host that this was no accident. Without an etcd lease the record would
            // stay for ever, so a reservation's gets one that ends like any other's.
            let generation = record.generation.saturating_add(1);
            let transports = Transports::default();
            let gone = OwnerRecord { generation, transports, released: true, ..record.clone() };
            let lease = match owner_lease {
                Some(lease) => lease,
                None => store.grant(crate::lease::RECLAIM_AFTER).await?,
            };
            txn.delete(lease_key).put(owner_key, gone.encode(), Some(lease))
        }
        Holder::Host(_) | Holder::Nameless => txn.delete(lease_key).delete(owner_key),
    };
    commit(store, txn, subnet).await
}

/// Marks a host so that it takes no new pods and, once it has none, gives its subnet up and waits; or
/// takes the mark away. A host that never comes, or whose pods never leave, changes nothing by it.
pub async fn drain(store: &Store, prefix: &Prefix, node: &NodeId, on: bool) -> Result<(), AdminError> {
    let key = prefix.drain(node);
    let txn = if on { Txn::new().put(key, "{}", None) } else { Txn::new().delete(key) };
    store.commit(txn).await?;
    Ok(())
}

async fn look(store: &Store, prefix: &Prefix) -> Result<Registry, AdminError> {
    Ok(Registry::new(prefix.clone(), &store.list(&prefix.all()).await?).0)
}

async fn commit(store: &Store, txn: Txn, subnet: Subnet) -> Result<(), AdminError> {
    match store.commit(txn).await? {
        TxnOutcome::Committed(_) => Ok(()),
        TxnOutcome::Conflict => Err(AdminError::Changed(subnet)),
    }
}

/// Only if both keys still are what the registry says.
fn guarded(registry: &Registry, subnet: &Subnet) -> Txn {
    let prefix = registry.prefix();
    let txn = match registry.lease(subnet) {
        Some(entry) => Txn::new().if_unchanged(prefix.lease(subnet), entry.mod_revision),
        None => Txn::new().if_absent(prefix.lease(subnet)),
    };
    match registry.owner(subnet) {
        Some(entry) => txn.if_unchanged(prefix.owner(subnet), entry.mod_revision),
        None => txn.if_absent(prefix.owner(subnet)),
    }
}

fn fresh(registry: &Registry, subnet: &Subnet, node: &NodeId) -> OwnerRecord {
    let before = registry.owner(subnet).and_then(|entry| entry.record.as_ref());
    let generation = before.map_or(0, |record| record.generation);
    OwnerRecord { node: node.clone(), generation, transports: Transports::default(), released: false }
}

fn attrs(registry: &Registry, subnet: Subnet) -> Option<LeaseAttrs> {
    registry.lease(&subnet)?.attrs.clone()
}

fn names(attrs: &LeaseAttrs, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => attrs.public_v4 == Some(v4),
        IpAddr::V6(v6) => attrs.public_v6 == Some(v6),
    }
}

/// Who has a subnet, for people.
fn name(registry: &Registry, subnet: &Subnet) -> String {
    match registry.holder(subnet) {
        Holder::Node(record) | Holder::Claimed(record) | Holder::Released(record) => {
            format!("node {}", record.node)
        }
        Holder::Host(_) => {
            let addresses = registry.lease(subnet).map(LeaseEntry::addresses).unwrap_or_default();
            let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            format!("the host at {}", addresses.join(", "))
        }
        Holder::Nameless | Holder::Nobody => "a reservation for nobody in particular".to_owned(),
    }
}

fn row(registry: &Registry, subnet: Subnet) -> Option<Row> {
    let lease = registry.lease(&subnet);
    let reserved = lease.is_some_and(LeaseEntry::is_reservation);
    let holder = registry.holder(&subnet);
    let node = match &holder {
        Holder::Node(record) | Holder::Claimed(record) | Holder::Released(record) => {
            Some(record.node.clone())
        }
        _ => None,
    };
    let live = node.as_ref().is_some_and(|node| registry.live_entry(node).is_some());
    let state = match holder {
        Holder::Nobody => return None,
        Holder::Node(_) if live && lease.is_some_and(in_use) => State::Live,
        Holder::Node(_) if reserved => State::Reserved,
        Holder::Node(_) => State::Silent,
        Holder::Host(attrs) if reserved && attrs.backend.is_empty() => State::Reserved,
        Holder::Host(_) => State::Foreign,
        Holder::Nameless if lease.is_some_and(LeaseEntry::is_readable) => State::Reserved,
        Holder::Nameless => State::Unreadable,
        Holder::Claimed(_) => State::Expired,
        Holder::Released(_) => State::Released,
    };
    Some(Row {
        subnet,
        draining: node.as_ref().is_some_and(|node| registry.is_drained(node)),
        node,
        addresses: lease.map(LeaseEntry::addresses).unwrap_or_default(),
        backend: lease.and_then(|entry| entry.attrs.as_ref()).map(|a| a.backend.clone()).unwrap_or_default(),
        expires_in: None,
        state,
    })
}

/// A reservation whose host has not come names no address.
fn in_use(entry: &LeaseEntry) -> bool {
    !entry.addresses().is_empty()
}

fn as_text<S: serde::Serializer>(subnet: &Subnet, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(subnet)
}
