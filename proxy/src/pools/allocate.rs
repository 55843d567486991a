//! Which service has which address.
//!
//! Who has an address keeps it, also when its pool is gone or smaller: clients know it. Then those that
//! ask for a certain one are served, then all others, each group from the oldest service on. Several
//! services have one address only under MetalLB's conditions: all name the same sharing key, no two have
//! the same port and protocol, and whoever is `externalTrafficPolicy: Local` has the same pods as the
//! others, because one host has to serve all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{AddressRange, Pool, Pools};
use crate::model::{Family, Policy, Protocol, ServiceName, family_of};

/// What a service of type LoadBalancer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Seconds since 1970 when it was created, if known.
    pub created: Option<i64>,
    /// One address of each.
    pub families: BTreeSet<Family>,
    /// It takes what families it can get (`ipFamilyPolicy: PreferDualStack`).
    pub any_family: bool,
    /// Exactly these addresses; none asks for any.
    pub addresses: Vec<IpAddr>,
    /// Only addresses of this pool.
    pub pool: Option<Arc<str>>,
    /// It may share its addresses with services that name the same.
    pub sharing: Option<String>,
    /// What it answers at.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// `externalTrafficPolicy`.
    pub policy: Policy,
    /// Which pods it has.
    pub selector: BTreeMap<String, String>,
    /// The addresses that it has, as its status says.
    pub held: Vec<IpAddr>,
}

/// Who has what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// The addresses of each service that has any, at most one of each family.
    pub given: BTreeMap<ServiceName, Vec<IpAddr>>,
    /// What somebody should know.
    pub refusals: Vec<(ServiceName, Refusal)>,
}

/// Why a service does not have what it wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// All are taken.
    #[error("no {family} address is free in {}", pools_in_words(.pools))]
    Exhausted {
        /// Of this family.
        family: Family,
        /// The pools that were looked at.
        pools: Vec<Arc<str>>,
    },
    /// It names a pool that is not there.
    #[error("there is no address pool `{0}`")]
    UnknownPool(Arc<str>),
    /// It asks for an address that is not ours to give, or not of the pool that it names.
    #[error("{address} is in no address pool{}", .pool.as_ref().map(|pool| format!(" called `{pool}`")).unwrap_or_default())]
    NotInPool {
        /// The address.
        address: IpAddr,
        /// The pool that it names.
        pool: Option<Arc<str>>,
    },
    /// It asks for an address of a family that it does not have, or for two of one family.
    #[error("{0} is asked for, but the service has no such family, or another address of it already")]
    Family(IpAddr),
    /// Another service has it and they cannot share it.
    #[error("{address} is {other}'s: {why}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        other: ServiceName,
        /// Why it cannot be shared.
        why: NotShared,
    },
    /// It keeps an address that no pool has any more.
    #[error("{0} is in no address pool any more; the service keeps it until it asks for another one")]
    Orphaned(IpAddr),
}

/// Why two services cannot have one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotShared {
    /// One has no key, or theirs are different.
    #[error("they do not name the same sharing key")]
    Key,
    /// A port of both.
    #[error("both answer at port {1}/{0}")]
    Port(Protocol, u16),
    /// One of them answers only on hosts where its own pods are.
    #[error("one of them has externalTrafficPolicy Local, and their pods are others")]
    Pods,
}

fn pools_in_words(pools: &[Arc<str>]) -> String {
    match pools {
        [] => "any address pool: none gives addresses out by itself".to_owned(),
        [one] => format!("address pool {one}"),
        many => format!("address pools {}", many.join(", ")),
    }
}

/// Gives addresses out. The same wishes, holding what was given, get the same.
pub fn allocate(pools: &Pools, wishes: &BTreeMap<ServiceName, Wish>) -> Allocation {
    let mut order: Vec<(&ServiceName, &Wish)> = wishes.iter().collect();
    // Stable: those of one age in the order of their names.
    order.sort_by_key(|(_, wish)| (wish.created.is_none(), wish.created));
    let mut giving = Giving {
        pools,
        wishes,
        holders: BTreeMap::new(),
        full: BTreeMap::new(),
        result: Allocation::default(),
    };
    for (name, wish) in &order {
        giving.keep(name, wish);
    }
    for (name, wish) in order.iter().filter(|(_, wish)| !wish.addresses.is_empty()) {
        giving.as_asked(name, wish);
    }
    for (name, wish) in order.iter().filter(|(_, wish)| wish.addresses.is_empty()) {
        giving.any(name, wish);
    }
    giving.result
}

struct Giving<'a> {
    pools: &'a Pools,
    wishes: &'a BTreeMap<ServiceName, Wish>,
    holders: BTreeMap<IpAddr, Vec<&'a ServiceName>>,
    /// Up to which address all of a range have holders: nobody gives an address up meanwhile.
    full: BTreeMap<AddressRange, IpAddr>,
    result: Allocation,
}

impl<'a> Giving<'a> {
    fn given(&self, name: &ServiceName) -> &[IpAddr] {
        self.result.given.get(name).map_or(&[], Vec::as_slice)
    }

    fn lacks(&self, name: &ServiceName, family: Family) -> bool {
        !self.given(name).iter().any(|address| family_of(*address) == family)
    }

    fn give(&mut self, name: &'a ServiceName, address: IpAddr) {
        self.holders.entry(address).or_default().push(name);
        self.result.given.entry(name.clone()).or_default().push(address);
    }

    fn refuse(&mut self, name: &ServiceName, refusal: Refusal) {
        self.result.refusals.push((name.clone(), refusal));
    }

    /// Who stands in the way of having an address, and why.
    fn taken(&self, address: IpAddr, wish: &Wish) -> Option<(&'a ServiceName, NotShared)> {
        let holders = self.holders.get(&address).into_iter().flatten();
        holders.copied().find_map(|other| {
            let there = self.wishes.get(other)?;
            not_shared(wish, there).map(|why| (other, why))
        })
    }

    /// What a service has and still wants stays its own.
    fn keep(&mut self, name: &'a ServiceName, wish: &Wish) {
        for address in &wish.held {
            let wanted = wish.addresses.is_empty() || wish.addresses.contains(address);
            let of_family = wish.families.contains(&family_of(*address));
            let pool = self.pools.pool_of(*address);
            // A pool that is named is one that is asked for; one that is gone cannot be.
            let of_pool = match (&wish.pool, pool) {
                (Some(asked), Some(pool)) => asked == pool,
                _ => true,
            };
            let is_ours = wanted && of_family && of_pool && self.lacks(name, family_of(*address));
            if is_ours && self.taken(*address, wish).is_none() {
                if pool.is_none() {
                    self.refuse(name, Refusal::Orphaned(*address));
                }
                self.give(name, *address);
            }
        }
    }

    /// Exactly what is asked for, as far as it can be had.
    fn as_asked(&mut self, name: &'a ServiceName, wish: &Wish) {
        for address in &wish.addresses {
            if self.given(name).contains(address) {
                continue;
            }
            let family = family_of(*address);
            let pool = self.pools.pool_of(*address).cloned();
            let refusal = if !wish.families.contains(&family) || !self.lacks(name, family) {
                Some(Refusal::Family(*address))
            } else if pool.is_none() || wish.pool.is_some() && wish.pool != pool {
                Some(Refusal::NotInPool { address: *address, pool: wish.pool.clone() })
            } else {
                let taken = self.taken(*address, wish);
                taken.map(|(other, why)| Refusal::Taken { address: *address, other: other.clone(), why })
            };
            match refusal {
                Some(refusal) => self.refuse(name, refusal),
                None => self.give(name, *address),
            }
        }
    }

    /// The lowest address of a range that a service can have.
    fn first_of(&mut self, range: &AddressRange, family: Family, wish: &Wish) -> Option<IpAddr> {
        if range.family() != family {
            return None;
        }
        let shared = wish.sharing.as_ref().and_then(|_| {
            let mut held = self.holders.range(range.first()..=range.last()).map(|(address, _)| *address);
            held.find(|address| self.taken(*address, wish).is_none())
        });
        let from = self.full.get(range).copied().unwrap_or(range.first());
        let free = range.from(from).find(|address| !self.holders.contains_key(address));
        self.full.insert(*range, free.unwrap_or(range.last()));
        [shared, free].into_iter().flatten().min()
    }

    /// The first address that is free, of each family that is lacking.
    fn any(&mut self, name: &'a ServiceName, wish: &Wish) {
        let pools: Vec<(Arc<str>, &Pool)> = match &wish.pool {
            Some(asked) => match self.pools.get(asked) {
                Some(pool) => vec![(asked.clone(), pool)],
                None if self.given(name).is_empty() => {
                    return self.refuse(name, Refusal::UnknownPool(asked.clone()));
                }
                None => return,
            },
            None => {
                let automatic = self.pools.iter().filter(|(_, pool)| pool.auto_assign);
                automatic.map(|(name, pool)| (name.clone(), pool)).collect()
            }
        };
        let mut lacking = Vec::new();
        for family in wish.families.iter().copied() {
            if !self.lacks(name, family) {
                continue;
            }
            let mut ranges = pools.iter().flat_map(|(_, pool)| &pool.ranges);
            match ranges.find_map(|range| self.first_of(range, family, wish)) {
                Some(address) => self.give(name, address),
                None => lacking.push(family),
            }
        }
        let is_content = wish.any_family && !self.given(name).is_empty();
        for family in lacking.into_iter().filter(|_| !is_content) {
            let pools = pools.iter().map(|(name, _)| name.clone()).collect();
            self.refuse(name, Refusal::Exhausted { family, pools });
        }
    }
}

fn not_shared(one: &Wish, other: &Wish) -> Option<NotShared> {
    if one.sharing.is_none() || one.sharing != other.sharing {
        return Some(NotShared::Key);
    }
    if let Some((protocol, port)) = one.ports.intersection(&other.ports).next() {
        return Some(NotShared::Port(*protocol, *port));
    }
    let both_cluster = one.policy == Policy::Cluster && other.policy == Policy::Cluster;
    (!both_cluster && one.selector != other.selector).then_some(NotShared::Pods)
}
