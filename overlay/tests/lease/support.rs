//! Hosts that lease, and how to wait for what must come true.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_overlay::admin::release;
use weft_overlay::config::NetworkConfig;
use weft_overlay::key::Prefix;
use weft_overlay::lease::{Intent, LeaseState, Leasing, Times, Wish};
use weft_overlay::model::{NodeId, Subnet, Transports};
use weft_overlay::registry::{Followed, Known, Registry, follow};
use weft_store::{Store, Txn, TxnOutcome};

/// Far more than anything here takes, for machines that are busy with something else.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) const WIDE: &str = r#"{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// The network's keys in a store.
pub(crate) struct Network {
    pub(crate) store: Store,
    pub(crate) prefix: Prefix,
    config: NetworkConfig,
}

/// A running host.
pub(crate) struct Host {
    pub(crate) leasing: Leasing,
    pub(crate) intent: watch::Sender<Option<Intent>>,
    pub(crate) known: watch::Receiver<Known>,
    _followed: Followed,
}

impl Network {
    pub(crate) async fn new(store: Store, config: &str) -> Self {
        let prefix = Prefix::new("/coreos.com/network");
        let network = Self { config: parse(config), store, prefix };
        network.put(&network.prefix.config(), config).await;
        network
    }

    pub(crate) fn wish(&self, node: &str, last: u8) -> Wish {
        Wish {
            node: NodeId::try_from(node.to_owned()).expect("a good id"),
            instance: format!("{node} {}", rand::random::<u64>()),
            public_v4: Some(Ipv4Addr::new(192, 0, 2, last)),
            public_v6: None,
            transports: Transports { direct: true, ..Transports::default() },
            remembered: None,
            vacated: false,
        }
    }

    pub(crate) fn start(&self, wish: Wish) -> Host {
        self.start_with(wish, None, Times::default())
    }

    pub(crate) fn start_with(&self, wish: Wish, held: Option<Subnet>, times: Times) -> Host {
        let followed = follow(&self.store, self.prefix.clone());
        let (intent, wanted) = watch::channel(Some(Intent { config: self.config.clone(), wish }));
        let known = followed.known();
        let leasing = Leasing::start(self.store.clone(), known.clone(), wanted, held, times, rand::random());
        Host { leasing, intent, known, _followed: followed }
    }

    pub(crate) async fn put(&self, key: &str, value: &str) {
        let done = self.store.commit(Txn::new().put(key, value, None)).await.expect("the store answers");
        assert!(matches!(done, TxnOutcome::Committed(_)));
    }

    pub(crate) async fn delete(&self, key: &str) {
        self.store.commit(Txn::new().delete(key)).await.expect("the store answers");
    }

    pub(crate) async fn value(&self, subnet: Subnet) -> String {
        let found = self.store.get(&self.prefix.lease(&subnet)).await.expect("the store answers");
        String::from_utf8(found.expect("the lease is there").value).expect("JSON")
    }

    pub(crate) async fn registry(&self) -> Registry {
        let snapshot = self.store.list(&self.prefix.all()).await.expect("the store answers");
        Registry::new(self.prefix.clone(), &snapshot).0
    }

    /// Waits until the store says this.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Registry) -> bool) {
        let followed = follow(&self.store, self.prefix.clone());
        let mut known = followed.known();
        let seen = known.wait_for(|known| known.registry.as_ref().is_some_and(|registry| holds(registry)));
        if tokio::time::timeout(PATIENCE, seen).await.is_err() {
            panic!("the store never said: {what}; it says {:#?}", self.registry().await);
        }
    }
}

impl Host {
    /// Waits until the host's state is this.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&LeaseState) -> bool) -> LeaseState {
        let mut state = self.leasing.state();
        let seen = tokio::time::timeout(PATIENCE, state.wait_for(|state| holds(state))).await;
        match seen {
            Ok(seen) => seen.expect("the host runs").clone(),
            Err(_) => panic!("never {what}; it is {:?}", *self.leasing.state().borrow()),
        }
    }

    /// Waits until it has a subnet by the store, and none but this is at work.
    pub(crate) async fn leased(&self) -> Subnet {
        let state = self
            .until("leased", |state| state.confirmed && state.waiting.is_none() && state.subnet.is_some())
            .await;
        state.subnet.expect("as waited for")
    }

    pub(crate) fn wants(&self, change: impl FnOnce(&mut Wish)) {
        self.intent.send_modify(|intent| change(&mut intent.as_mut().expect("it has one").wish));
    }

    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.known.borrow().registry.clone().expect("it has seen the store")
    }
}

pub(crate) fn parse(config: &str) -> NetworkConfig {
    NetworkConfig::parse(config.as_bytes()).expect("a good config").config
}

pub(crate) fn subnet(text: &str) -> Subnet {
    text.parse().expect("a subnet")
}

/// Fifty hosts start at once on a range of exactly fifty subnets; then a fifty-first.
pub(crate) async fn fifty_and_one_more(store: Store, config: &str) {
    let network = Network::new(store, config).await;
    let hosts: Vec<Host> = (0..50).map(|n| network.start(network.wish(&format!("n{n}"), n + 1))).collect();
    let mut subnets = BTreeSet::new();
    for host in &hosts {
        let subnet = host.leased().await;
        assert!(subnets.iter().all(|other: &Subnet| !other.overlaps(&subnet)), "{subnet} twice");
        subnets.insert(subnet);
    }
    assert_eq!(subnets.len(), 50);

    let late = network.start(network.wish("late", 99));
    let waiting = late.until("waiting", |state| state.waiting.as_ref().is_some_and(is_exhausted)).await;
    assert!(waiting.waiting.expect("as waited for").to_string().contains("all 50 are in use"));

    // One daemon goes for good, and the operator releases what it had.
    let mut hosts = hosts;
    let freed = hosts.remove(7).leased().await;
    release(&network.store, &network.prefix, freed, false).await.expect("released");
    assert_eq!(late.leased().await.v4, freed.v4);
    for host in &hosts {
        assert_eq!(host.leasing.state().borrow().lost, None);
    }
}

pub(crate) fn is_exhausted(waiting: &weft_overlay::lease::Waiting) -> bool {
    matches!(waiting, weft_overlay::lease::Waiting::Exhausted { .. })
}

/// Exactly fifty subnets.
pub(crate) const FIFTY: &str = r#"{"Network":"10.42.0.0/16","SubnetMin":"10.42.1.0","SubnetMax":"10.42.50.0",
    "Backend":{"Type":"host-gw"}}"#;
/// Exactly fifty in IPv4, more in IPv6.
pub(crate) const FIFTY_DUAL: &str = r#"{"Network":"10.42.0.0/16","SubnetMin":"10.42.1.0","SubnetMax":"10.42.50.0",
    "EnableIPv6":true,"IPv6Network":"fd00:42::/48","Backend":{"Type":"host-gw"}}"#;
