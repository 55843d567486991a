//! Pools of addresses for services of type LoadBalancer: what is in them, and which service has which.
//! Pure.
//!
//! A pool is ranges of addresses that the network leads to these hosts. [`allocate`] gives each service
//! what it asks for, or any address that is free, and never moves one that has an address already.

mod allocate;
mod range;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use allocate::{Allocation, Refusal, Wish, allocate};
pub use range::{AddressRange, BadRange};

/// Some ranges of addresses under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its addresses, in the order in which they are given out.
    pub ranges: Vec<AddressRange>,
    /// Services that ask for nothing in particular get addresses of it.
    pub auto_assign: bool,
}

/// All pools. No address is in two of them, and none is a host's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools(BTreeMap<Arc<str>, Pool>);

/// Why a range of a pool is left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolProblem {
    /// Two hosts would answer for the address.
    #[error("address pool {pool}: {range} holds {address}, which is an address of a node; it is left out")]
    Node {
        /// The pool.
        pool: Arc<str>,
        /// Its range.
        range: AddressRange,
        /// The node's address.
        address: IpAddr,
    },
    /// Nobody could say whose rules hold for the address.
    #[error("address pool {pool}: {range} overlaps {with} of address pool {other}; it is left out")]
    Overlap {
        /// The pool.
        pool: Arc<str>,
        /// Its range.
        range: AddressRange,
        /// The range that was there first, in the order of the pools' names.
        with: AddressRange,
        /// The pool that it is of.
        other: Arc<str>,
    },
}

impl Pools {
    /// These pools, without ranges that overlap earlier ones (in the order of names, then of the lists)
    /// or hold addresses of nodes.
    pub fn new(
        declared: impl IntoIterator<Item = (Arc<str>, Pool)>,
        of_nodes: &BTreeSet<IpAddr>,
    ) -> (Self, Vec<PoolProblem>) {
        let declared: BTreeMap<Arc<str>, Pool> = declared.into_iter().collect();
        let mut taken: Vec<(AddressRange, Arc<str>)> = Vec::new();
        let (mut pools, mut problems) = (BTreeMap::new(), Vec::new());
        for (name, Pool { ranges, auto_assign }) in declared {
            let mut fit = Vec::new();
            for range in ranges {
                let overlapped = taken.iter().find(|(other, _)| other.overlaps(&range));
                let node = of_nodes.iter().find(|address| range.contains(**address));
                let pool = name.clone();
                if let Some((with, other)) = overlapped {
                    problems.push(PoolProblem::Overlap { pool, range, with: *with, other: other.clone() });
                } else if let Some(address) = node {
                    problems.push(PoolProblem::Node { pool, range, address: *address });
                } else {
                    taken.push((range, pool));
                    fit.push(range);
                }
            }
            pools.insert(name, Pool { ranges: fit, auto_assign });
        }
        (Self(pools), problems)
    }

    /// The pool of that name.
    pub fn get(&self, name: &str) -> Option<&Pool> {
        self.0.get(name)
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Pool)> {
        self.0.iter()
    }

    /// The pool that an address is of.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Arc<str>> {
        let mut holding = self.0.iter().filter(|(_, pool)| pool.contains(address));
        holding.next().map(|(name, _)| name)
    }
}

impl Pool {
    /// Whether the address is one of it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}
