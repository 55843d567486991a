//! The protocol against everything that goes wrong at once, by the store's in-memory twin.
//!
//! Weft hosts step one at a time, each by a registry that may be stale; they crash with and without
//! their cache, are cut off, lose answers, and their writes arrive late. flanneld hosts Put whatever
//! they please, operators interfere, leases run out, the store is wiped. After every event no two weft
//! hosts may believe in overlapping subnets while the store backs both; when the faults end, all must
//! come to rest on subnets of their own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures::FutureExt;
use proptest::prelude::*;
use weft_store::{LeaseId, MemoryControl, Snapshot, Store, StoreError, Txn};

use super::*;
use crate::config::NetworkConfig;
use crate::key::Prefix;
use crate::model::{NodeId, Subnet, Transports};
use crate::registry::{Holder, Registry};

const HOUR: Duration = Duration::from_secs(3600);
const LEASE_TTL: Duration = HOUR.saturating_mul(24);
const RECLAIM_AFTER: Duration = HOUR.saturating_mul(24 * 7);
const LIVE_TTL: Duration = Duration::from_secs(10);

/// A weft host, up or down.
struct Host {
    wish: Wish,
    /// `None` while the daemon is down.
    tenant: Option<Tenant>,
    cache: Option<Subnet>,
    /// The store as the host last saw it.
    seen: Option<Registry>,
    wipes: u64,
    cut_off: bool,
    /// Its three leases of etcd's.
    leases: Vec<LeaseId>,
    live: Option<LeaseId>,
    /// A write on its way.
    late: Option<Txn>,
    ages: Ages,
    starts: u64,
}

struct World {
    store: Store,
    control: MemoryControl,
    prefix: Prefix,
    config: NetworkConfig,
    hosts: Vec<Host>,
    wipes: u64,
    /// Who had what after the event before.
    before: BTreeMap<Subnet, Owner>,
}

/// Who may lose a subnet only by giving it up, by its running out, or to flanneld.
#[derive(Clone, Debug, PartialEq)]
enum Owner {
    Weft(NodeId),
    Flanneld,
}

/// The simulation's flanneld hosts are at 198.51.100.x.
fn is_flanneld(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 198)
}

/// What can happen.
#[derive(Clone, Debug)]
enum Event {
    /// A host does one thing by what it last saw.
    Act(usize),
    /// A host hears the news.
    Hear(usize),
    /// A host looks and acts.
    LookAndAct(usize),
    /// A host keeps its leases alive.
    KeepAlive(usize),
    Crash(usize),
    Restart {
        host: usize,
        cache: bool,
    },
    CutOff(usize, bool),
    /// A host's next write is done and its answer lost.
    LoseAnswer(usize),
    /// A host's next write arrives at some later time, if at all.
    Delay(usize),
    Arrive(usize),
    NewAddress(usize, u8),
    FlanneldPuts {
        subnet: usize,
        host: u8,
        leased: bool,
    },
    SomebodyPuts {
        subnet: usize,
        value: &'static str,
    },
    SomebodyDeletes {
        subnet: usize,
        record: bool,
    },
    Reserve {
        subnet: usize,
        host: usize,
    },
    Drain(usize, bool),
    Pass(Duration),
    Compact,
    Wipe,
}

impl World {
    fn new(hosts: usize, config: &str) -> Self {
        let (store, control) = Store::memory();
        let prefix = Prefix::new("/n");
        let config = NetworkConfig::parse(config.as_bytes()).unwrap().config;
        let hosts = (0..hosts).map(Host::new).collect();
        World { store, control, prefix, config, hosts, wipes: 0, before: BTreeMap::new() }
    }

    fn snapshot(&self) -> Snapshot {
        now(self.store.list(&self.prefix.all())).expect("the twin is reachable")
    }

    fn registry(&self) -> Registry {
        Registry::new(self.prefix.clone(), &self.snapshot()).0
    }

    /// The n-th subnet of the range, for the ones who interfere.
    fn subnet(&self, index: usize) -> Subnet {
        let nth = |count: u128| u128::try_from(index).unwrap() % count;
        let v4 = self.config.v4.map(|pool| pool.nth(nth(pool.count())));
        // Paired crosswise, so that keys overlap in one family.
        let v6 = self.config.v6.map(|pool| pool.nth(nth(pool.count().min(3))));
        Subnet { v4, v6 }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Act(host) => self.act(host),
            Event::Hear(host) => self.hear(host),
            Event::LookAndAct(host) => {
                self.hear(host);
                self.act(host);
            }
            Event::KeepAlive(host) => self.keep_alive(host),
            Event::Crash(host) => {
                let host = self.host(host);
                host.tenant = None;
                host.seen = None;
            }
            Event::Restart { host, cache } => {
                let host = self.host(host);
                if host.tenant.is_none() {
                    host.start(cache);
                }
            }
            Event::CutOff(host, cut_off) => self.host(host).cut_off = cut_off,
            Event::LoseAnswer(host) => {
                let txn = self.prepare(host);
                // The host learns nothing of it.
                let _ = txn.map(|txn| now(self.store.commit(txn)));
            }
            Event::Delay(host) => {
                let txn = self.prepare(host);
                if txn.is_some() {
                    self.host(host).late = txn;
                }
            }
            Event::Arrive(host) => {
                let txn = self.host(host).late.take();
                let _ = txn.map(|txn| now(self.store.commit(txn)));
            }
            Event::NewAddress(host, last) => {
                self.host(host).wish.public_v4 = Some(Ipv4Addr::new(192, 0, 2, last));
            }
            Event::FlanneldPuts { subnet, host, leased } => {
                let lease = leased.then(|| now(self.store.grant(LEASE_TTL)).unwrap());
                let value = format!(r#"{{"PublicIP":"198.51.100.{host}","PublicIPv6":null}}"#);
                let key = self.prefix.lease(&self.subnet(subnet));
                now(self.store.commit(Txn::new().put(key, value, lease))).unwrap();
            }
            Event::SomebodyPuts { subnet, value } => {
                let key = self.prefix.lease(&self.subnet(subnet));
                now(self.store.commit(Txn::new().put(key, value, None))).unwrap();
            }
            Event::SomebodyDeletes { subnet, record } => {
                let subnet = self.subnet(subnet);
                let key = if record { self.prefix.owner(&subnet) } else { self.prefix.lease(&subnet) };
                now(self.store.commit(Txn::new().delete(key))).unwrap();
            }
            Event::Reserve { subnet, host } => {
                let subnet = self.subnet(subnet);
                let node = self.host(host).wish.node.clone();
                let wanted = crate::admin::For::Node(node);
                // Refusals (somebody else's subnet) are part of the game.
                let _ = now(crate::admin::reserve(&self.store, &self.prefix, subnet, &wanted));
            }
            Event::Drain(host, on) => {
                let node = self.host(host).wish.node.clone();
                now(crate::admin::drain(&self.store, &self.prefix, &node, on)).unwrap();
            }
            Event::Pass(time) => self.control.advance(time),
            Event::Compact => self.control.compact(),
            Event::Wipe => {
                self.control.wipe();
                self.wipes += 1;
                self.before.clear();
            }
        }
        self.vacate();
    }

    fn host(&mut self, index: usize) -> &mut Host {
        let count = self.hosts.len();
        &mut self.hosts[index % count]
    }

    /// The host's registry becomes what the store says.
    fn hear(&mut self, index: usize) {
        let (snapshot, wipes, prefix) = (self.snapshot(), self.wipes, self.prefix.clone());
        let host = self.host(index);
        if host.cut_off || host.tenant.is_none() {
            return;
        }
        match &mut host.seen {
            Some(registry) if host.wipes == wipes => drop(registry.reset(&snapshot)),
            Some(registry) => {
                registry.wiped(&snapshot);
                host.tenant.iter_mut().for_each(Tenant::wiped);
            }
            None => host.seen = Some(Registry::new(prefix, &snapshot).0),
        }
        host.wipes = wipes;
    }

    fn act(&mut self, index: usize) {
        if let Some(txn) = self.prepare(index) {
            let outcome = now(self.store.commit(txn));
            let host = self.host(index);
            if let (Ok(outcome), Some(tenant)) = (outcome, &mut host.tenant) {
                tenant.committed(outcome);
            }
        }
    }

    /// What the host would commit now.
    fn prepare(&mut self, index: usize) -> Option<Txn> {
        let (store, config, prefix) = (self.store.clone(), self.config.clone(), self.prefix.clone());
        let host = self.host(index);
        if host.cut_off {
            return None;
        }
        let (tenant, registry) = (host.tenant.as_mut()?, host.seen.as_ref()?);
        let mut step = tenant.step(registry, &config, &host.wish, &host.ages);
        if let Step::NeedAges(leases) = &step {
            for lease in leases {
                let age = match now(store.time_to_live(*lease)) {
                    Err(StoreError::NoSuchLease(_)) => Duration::ZERO,
                    age => age.unwrap(),
                };
                host.ages.insert(*lease, age);
            }
            step = tenant.step(registry, &config, &host.wish, &host.ages);
        }
        while tenant.take_loss().is_some() {}
        host.cache = tenant.held();
        match step {
            Step::Hold(tenure) => {
                host.leases = tenure.flannel_lease.into_iter().chain(tenure.owner_lease).collect();
                None
            }
            Step::Wait(_) | Step::Behind => None,
            Step::NeedAges(_) => panic!("asked twice for the same ages"),
            Step::GiveUp(_, txn) => Some(txn),
            Step::Claim(claim) => {
                let bind = |bind, ttl| match bind {
                    Bind::Forever => None,
                    Bind::Keep(lease) if now(store.keep_alive(lease)).is_ok() => Some(lease),
                    Bind::Keep(_) | Bind::Fresh => Some(now(store.grant(ttl)).unwrap()),
                };
                let (flannel, owner) =
                    (bind(claim.flannel_lease, LEASE_TTL), bind(claim.owner_lease, RECLAIM_AFTER));
                Some(claim.txn(&prefix, flannel, owner))
            }
        }
    }

    fn keep_alive(&mut self, index: usize) {
        let (store, prefix) = (self.store.clone(), self.prefix.clone());
        let host = self.host(index);
        if host.cut_off || host.tenant.is_none() {
            return;
        }
        for lease in &host.leases {
            let _ = now(store.keep_alive(*lease));
        }
        let _ = host.live.map(|lease| now(store.keep_alive(lease)));
        if let Some(txn) = host.seen.as_ref().and_then(|registry| live::missing(registry, &host.wish)) {
            let lease = now(store.grant(LIVE_TTL)).unwrap();
            let record = live::record(&host.wish).encode();
            now(store.commit(txn.put(prefix.live(&host.wish.node), record, Some(lease)))).unwrap();
            host.live = Some(lease);
        }
    }

    /// A drained host without pods says so after it has seen the mark.
    fn vacate(&mut self) {
        for host in &mut self.hosts {
            let drained = host.seen.as_ref().is_some_and(|seen| seen.is_drained(&host.wish.node));
            host.wish.vacated = drained;
        }
    }

    /// No two weft hosts believe in overlapping subnets while the store backs both, and no weft host
    /// ever writes over another's valid lease or over flanneld's.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let registry = self.registry();
        let backed: Vec<(&NodeId, Subnet)> = self
            .hosts
            .iter()
            .filter_map(|host| {
                let tenant = host.tenant.as_ref().filter(|tenant| tenant.is_confirmed())?;
                let subnet = tenant.held()?;
                let valid = matches!(registry.holder(&subnet), Holder::Node(r) if r.node == host.wish.node);
                valid.then_some((&host.wish.node, subnet))
            })
            .collect();
        for (i, (node, subnet)) in backed.iter().enumerate() {
            for (other, second) in &backed[i + 1..] {
                prop_assert!(!subnet.overlaps(second), "{node} has {subnet}, {other} has {second}");
            }
        }
        let mut owners = BTreeMap::new();
        for (subnet, lease) in registry.leases() {
            let before = self.before.get(subnet);
            match registry.holder(subnet) {
                Holder::Node(record) => {
                    let same = before.is_none_or(|owner| *owner == Owner::Weft(record.node.clone()));
                    prop_assert!(same, "{subnet}: {before:?} lost it to {record:?}");
                    owners.insert(*subnet, Owner::Weft(record.node.clone()));
                }
                Holder::Host(_) if lease.addresses().iter().any(is_flanneld) => {
                    owners.insert(*subnet, Owner::Flanneld);
                }
                _ => {}
            }
        }
        self.before = owners;
        Ok(())
    }

    /// The faults end: everybody runs, hears and acts until nothing changes any more.
    fn calm(&mut self) -> Result<(), TestCaseError> {
        for index in 0..self.hosts.len() {
            let host = self.host(index);
            host.cut_off = false;
            host.late = None;
            if host.tenant.is_none() {
                host.start(true);
            }
            let node = host.wish.node.clone();
            now(crate::admin::drain(&self.store, &self.prefix, &node, false)).unwrap();
        }
        // An earlier run at an old address counts as alive until its record runs out.
        self.control.advance(LIVE_TTL);
        for _ in 0..60 {
            let before = self.control.revision();
            for index in 0..self.hosts.len() {
                self.hear(index);
                self.vacate();
                self.act(index);
                self.keep_alive(index);
                self.check()?;
            }
            if self.control.revision() == before {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("no rest within 60 rounds"))
    }

    /// Everybody at rest: each holds a subnet, or waits because nothing is left.
    fn check_rest(&mut self) -> Result<(), TestCaseError> {
        let registry = self.registry();
        let (config, hosts) = (self.config.clone(), &mut self.hosts);
        let mut owners: BTreeMap<Subnet, NodeId> = BTreeMap::new();
        for host in hosts.iter_mut() {
            let tenant = host.tenant.as_mut().expect("all were started");
            match tenant.step(&registry, &config, &host.wish, &host.ages) {
                Step::Hold(tenure) => {
                    let double = owners.keys().find(|other| other.overlaps(&tenure.subnet));
                    prop_assert_eq!(double, None, "{} at {}", &host.wish.node, tenure.subnet);
                    owners.insert(tenure.subnet, host.wish.node.clone());
                    let lease = registry.lease(&tenure.subnet).expect("held by the store");
                    prop_assert!(lease.attrs.as_ref().is_some_and(|a| a.is_of(host.wish.public_v4, None)));
                }
                Step::Wait(Waiting::Exhausted { .. }) => {
                    let leased: Vec<Subnet> = registry.leases().map(|(subnet, _)| *subnet).collect();
                    let claimed = registry.owners().filter(|(subnet, owner)| {
                        matches!(registry.holder(subnet), Holder::Claimed(_))
                            && (owner.lease.is_none() || registry.live().count() > 0)
                    });
                    let taken: Vec<Subnet> = leased.into_iter().chain(claimed.map(|(s, _)| *s)).collect();
                    prop_assert_eq!(
                        allocate::allocate(&config, &taken, None, 1),
                        None,
                        "{} waits for nothing",
                        &host.wish.node
                    );
                }
                other => {
                    return Err(TestCaseError::fail(format!("{} is not at rest: {other:?}", host.wish.node)));
                }
            }
        }
        Ok(())
    }
}

impl Host {
    fn new(index: usize) -> Self {
        let last = u8::try_from(index + 1).expect("few hosts");
        let mut host = Host {
            wish: Wish {
                node: NodeId::try_from(format!("n{index}")).expect("a good id"),
                instance: String::new(),
                public_v4: Some(Ipv4Addr::new(192, 0, 2, last)),
                public_v6: None,
                transports: Transports { direct: true, ..Transports::default() },
                remembered: None,
                vacated: false,
            },
            tenant: None,
            cache: None,
            seen: None,
            wipes: 0,
            cut_off: false,
            leases: Vec::new(),
            live: None,
            late: None,
            ages: Ages::new(),
            starts: 0,
        };
        host.start(false);
        host
    }

    fn start(&mut self, cache: bool) {
        self.starts += 1;
        self.wish.instance = format!("{} run {}", self.wish.node, self.starts);
        let seed = self.starts * 1000 + u64::from(self.wish.public_v4.map_or(0, |v4| v4.octets()[3]));
        self.tenant = Some(Tenant::new(self.cache.filter(|_| cache), seed));
        (self.seen, self.live, self.ages) = (None, None, Ages::new());
        self.leases.clear();
    }
}

/// The twin's calls never wait.
fn now<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().expect("the twin answers at once")
}

fn any_event() -> impl Strategy<Value = Event> {
    let host = 0usize..4;
    let subnet = 0usize..6;
    let values = prop_oneof![
        Just("garbage"),
        Just(r#"{"PublicIP":"0.0.0.0"}"#),
        Just(r#"{"PublicIP":"192.0.2.1"}"#),
        Just(r#"{"PublicIP":"192.0.2.2","BackendType":"host-gw"}"#),
    ];
    prop_oneof![
        8 => host.clone().prop_map(Event::LookAndAct),
        6 => host.clone().prop_map(Event::Act),
        6 => host.clone().prop_map(Event::Hear),
        4 => host.clone().prop_map(Event::KeepAlive),
        1 => host.clone().prop_map(Event::Crash),
        2 => (host.clone(), any::<bool>()).prop_map(|(host, cache)| Event::Restart { host, cache }),
        2 => (host.clone(), any::<bool>()).prop_map(|(host, cut)| Event::CutOff(host, cut)),
        2 => host.clone().prop_map(Event::LoseAnswer),
        2 => host.clone().prop_map(Event::Delay),
        2 => host.clone().prop_map(Event::Arrive),
        1 => (host.clone(), 1u8..9).prop_map(|(host, last)| Event::NewAddress(host, last)),
        1 => (subnet.clone(), 1u8..4, any::<bool>())
            .prop_map(|(subnet, host, leased)| Event::FlanneldPuts { subnet, host, leased }),
        1 => (subnet.clone(), values).prop_map(|(subnet, value)| Event::SomebodyPuts { subnet, value }),
        2 => (subnet.clone(), any::<bool>())
            .prop_map(|(subnet, record)| Event::SomebodyDeletes { subnet, record }),
        1 => (subnet, host.clone()).prop_map(|(subnet, host)| Event::Reserve { subnet, host }),
        1 => (host, any::<bool>()).prop_map(|(host, on)| Event::Drain(host, on)),
        2 => prop_oneof![Just(LIVE_TTL), Just(HOUR), Just(LEASE_TTL), Just(RECLAIM_AFTER)].prop_map(Event::Pass),
        1 => Just(Event::Compact),
        1 => Just(Event::Wipe),
    ]
}

const FIVE: &str = r#"{"Network":"10.1.0.0/24","SubnetLen":28,"SubnetMin":"10.1.0.16","SubnetMax":"10.1.0.80","Backend":{"Type":"host-gw"}}"#;
const THREE: &str = r#"{"Network":"10.1.0.0/28","SubnetLen":30,"Backend":{"Type":"host-gw"}}"#;
const DUAL: &str = r#"{"Network":"10.1.0.0/24","SubnetLen":28,"SubnetMax":"10.1.0.80","EnableIPv6":true,
    "IPv6Network":"fc00::/60","Backend":{"Type":"host-gw"}}"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_registry_never_has_two_weft_owners(
        config in prop_oneof![Just(FIVE), Just(THREE), Just(DUAL)],
        events in prop::collection::vec(any_event(), 0..120),
    ) {
        let mut world = World::new(4, config);
        for event in &events {
            world.happen(event);
            world.check()?;
        }
        world.calm()?;
        world.check_rest()?;
    }
}
