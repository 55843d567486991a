//! One pass of the daemon: look at everything, plan, apply what differs, say how it went.
//!
//! A pass decides nothing by itself: what should be comes out of `plan` and its like, and each step
//! goes on when another has failed, because half a network is better than none.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};
use weft_daemon::health::Health;
use weft_daemon::settings::Settings;
use weft_kernel::net::Failure;
use weft_store::{Store, Txn};

use super::act::RunningTunnel;
use super::assemble;
use super::files::Files;
use super::filter::Filter;
use super::flannel::TakingOver;
use super::forwarding::Forwarding;
use super::kernel::Kernel;
use super::numbers::Numbers;
use super::status::Told;
use crate::admin::{self, AdminError};
use crate::attach::records::{Record, Records};
use crate::config::NetworkConfig;
use crate::key::Prefix;
use crate::lease::{Intent, LeaseState};
use crate::membership::{Listing, Membership, Verdict};
use crate::model::{Me, Model, NodeId, Subnet};
use crate::options::Options;
use crate::plan::{Desired, plan};
use crate::probe::{Outcomes, Target};
use crate::reconcile::Report;
use crate::registry::{Known, Registry};
use crate::underlay;

/// A look at everything the kernel holds takes at most one part in so many of the time: with
/// thousands of peers it costs tens of milliseconds, and events tell of nearly all changes before.
const LOOK_SELDOM: u32 = 300;
/// How long the store may take to answer before a host that starts goes by its cache.
pub(super) const STORE_GRACE: Duration = Duration::from_secs(2);

/// How long a daemon that stops tries to give its subnet back.
const RELEASE: Duration = Duration::from_secs(5);

/// Everything one daemon has in hand.
pub(super) struct Engine {
    pub(super) options: Options,
    pub(super) node: NodeId,
    pub(super) health: Health,
    pub(super) numbers: Numbers,
    /// What the store says, and what it said before this start.
    pub(super) known: watch::Receiver<Known>,
    pub(super) cached: Option<Arc<Registry>>,
    /// Our lease, and what the lease driver must know of us.
    pub(super) lease: watch::Receiver<LeaseState>,
    pub(super) intent: watch::Sender<Option<Intent>>,
    /// This run of the daemon.
    pub(super) instance: String,
    /// A subnet to take if it is free: from the subnet file.
    pub(super) remembered: Option<Subnet>,
    pub(super) membership: Membership,
    /// What it said last.
    pub(super) verdict: Arc<Verdict>,
    /// How often the store had turned out to be a new one, as far as the membership knows.
    pub(super) wipes: u64,
    /// What the registry said of the others when it was read last.
    pub(super) listed: Option<Listed>,
    /// The last model and what was planned from it.
    pub(super) planned: Option<(Arc<Model>, Arc<Desired>)>,
    /// When the membership wants to be asked again.
    pub(super) wake: watch::Sender<Option<Instant>>,
    pub(super) probes: watch::Sender<Vec<Target>>,
    pub(super) outcomes: watch::Receiver<Outcomes>,
    pub(super) kernel: Kernel,
    pub(super) filter: Filter,
    pub(super) forwarding: Forwarding,
    pub(super) settings: Settings,
    pub(super) records: Records,
    /// The pods whose wires were seen whole.
    pub(super) whole_pods: BTreeSet<Record>,
    pub(super) files: Files,
    /// The last pass, for whoever asks.
    pub(super) told: watch::Sender<Option<Arc<Told>>>,
    pub(super) plans: watch::Sender<Option<Arc<Desired>>>,
    pub(super) tunnel: Option<RunningTunnel>,
    /// The config that is in force since this start.
    pub(super) config: Option<NetworkConfig>,
    /// What of the config has no effect, as it was said last.
    pub(super) notes: Vec<String>,
    pub(super) underlay: Option<underlay::Chosen>,
    /// Plugins have been told that this host gives out no addresses.
    pub(super) closed: bool,
    /// When the daemon started.
    pub(super) started: Instant,
    /// How far taking over from flannel is.
    pub(super) flannel: TakingOver,
    /// When the other firewalls' FORWARD chains were looked at for the last time.
    pub(super) forwarding_looked: Option<Instant>,
    /// When the last pass asked the kernel for everything, and how long that pass took.
    pub(super) looked: Option<(Instant, Duration)>,
    /// How long the last pass took, without the other firewalls' programs.
    pub(super) look_cost: Duration,
    /// When the last pass that left nothing undone began.
    pub(super) rested: Option<Instant>,
}

/// A listing, and what it was made from. It holds the registry weakly: whoever follows the store need not
/// copy what is only remembered here.
#[derive(Debug)]
pub(super) struct Listed {
    registry: Weak<Registry>,
    me: Me,
    config: NetworkConfig,
    listing: Arc<Listing>,
}

/// A pass that left something undone; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Observe(#[from] weft_kernel::net::NetError),
    /// Steps that failed, each named.
    #[error("{0}")]
    Steps(String),
}

impl Engine {
    /// One pass; says how many changes it made.
    pub(super) async fn pass(&mut self, reasons: &BTreeSet<&'static str>) -> Result<usize, PassError> {
        let news = self.kernel.news();
        let rested = self.rested.is_some_and(|at| at.elapsed() < self.options.resync);
        if rested && !news && reasons.iter().all(|reason| *reason == "kernel") {
            // The kernel repeats what the last pass did.
            return Ok(0);
        }
        if reasons.contains("filter") {
            self.filter.doubt();
            self.forwarding.doubt();
        }
        let start = Instant::now();
        let fresh = self
            .looked
            .is_none_or(|(at, took)| start.duration_since(at) >= self.options.resync.max(took * LOOK_SELDOM));
        if fresh {
            self.filter.doubt();
        }
        // iptables-legacy tells nobody of its changes; looking is a program or two, however many peers.
        if self.forwarding_looked.is_none_or(|at| start.duration_since(at) >= self.options.resync) {
            self.forwarding_looked = Some(start);
            self.forwarding.doubt();
        }
        self.rested = None;
        let result = self.look_and_act(fresh).await;
        self.rested = result.is_ok().then_some(start);
        if fresh && result.is_ok() {
            self.looked = Some((start, self.look_cost));
        }
        result
    }

    async fn look_and_act(&mut self, fresh: bool) -> Result<usize, PassError> {
        let start = Instant::now();
        let observed = self.kernel.observe(fresh).await?;
        let known = self.known.borrow_and_update().clone();
        let lease = self.lease.borrow_and_update().clone();
        self.tell_store(&known);
        // The kernel may know better than the cache, and what works must not suffer from a restart: so
        // the cache has its say only when the store does not answer.
        let silent = known.disconnected.is_some() || self.started.elapsed() >= STORE_GRACE;
        let registry = known.registry.clone().or_else(|| self.cached.clone().filter(|_| silent));
        let Some(registry) = registry else {
            let cache = if self.cached.is_some() { "" } else { ": there is no cache of an earlier run" };
            self.health.not_ready("config", format!("waiting for the store{cache}"));
            return Ok(0);
        };
        let Some(config) = self.config(&registry) else { return Ok(0) };
        let Some(chosen) = self.choose_underlay(&config, &observed) else { return Ok(0) };

        let mut me = Me {
            node: self.node.clone(),
            network: self.options.network.as_str().to_owned(),
            subnet: lease.subnet,
            public_v4: chosen.public_v4,
            public_v6: chosen.public_v6,
            underlay: chosen.underlay,
            adopted_mac_v4: None,
            adopted_mac_v6: None,
        };
        self.adopt_macs(&mut me, &registry, &lease);
        let mut done = Done::default();
        if self.options.take_over_flannel {
            done.count(self.take_over_links(&observed, &mut me, &config).await);
        }
        self.update_intent(&me, &config, &lease);
        if lease.subnet.is_none() {
            self.tell_lease(&lease);
        }
        if !lease.is_decided() {
            // Whatever an earlier run left in the kernel may be right; pods live by it.
            return done.end();
        }

        let listing = self.list(&registry, &me, &config);
        let members = self.members(&listing, &known);
        let (model, desired) = self.plan(assemble::model(&self.options, me, &config, members.peers.clone()));

        done.step("settings", self.make_settings(&model, &desired, &observed));
        drop(observed);
        done.step("tunnel", self.run_tunnel(&model, &desired));
        // The cache may be older than what the kernel holds: it adds, it does not take away.
        let report = self.kernel.reconcile(&desired, known.registry.is_none()).await?;
        done.reconciled(&report);
        self.tell_kernel(&report.conflicts, &report.failures);
        self.set_probes(&desired, &members);
        self.wake.send_replace([members.wake, report.retry].into_iter().flatten().min());
        // The plan is the one of the last pass, and still a wire lacks something: somebody else did it.
        let drifted = self.plans.borrow().as_deref().is_some_and(|last| last.kernel == desired.kernel);

        let (site, records) = self.offer(&model, &desired, &lease);
        let keeping = self.keep_pods(site.as_ref(), &records, drifted).await?;
        done.changes(keeping.0.changes.len(), &keeping.1);
        let observed = self.kernel.observe(false).await?;
        let filter = self.make_filter(&model, &desired, &observed, &records, site.as_ref());
        self.look_cost = start.elapsed();
        let forwarding = self.keep_forwarding(&model).await;
        if self.options.take_over_flannel && filter.is_ok() && forwarding.is_ok() {
            done.step("flannel's rules", self.take_over_rules(&model).await);
        }
        done.step("firewall", filter);
        done.step("forwarding", forwarding);

        let (offer, newest) = (site.as_ref(), known.registry.as_ref());
        if let Some(error) = self.files.write(&model, &desired, offer, newest).await {
            done.failed.push(format!("files: {error}"));
        }
        self.closed = done.failed.is_empty() && site.as_ref().is_some_and(|site| site.ranges.is_empty());
        if lease.draining {
            // Only now can no pod come any more, and the subnet be given up.
            self.update_intent(&model.me, &config, &lease);
        }
        // Good news last: whoever hears them finds the files written.
        self.tell_lease(&lease);
        self.tell_peers(&listing.unusable, &desired, &lease);
        self.numbers.healed_kernel(self.kernel.heals());
        self.numbers.state(&desired, &observed);
        self.numbers.programmed(&registry);
        let counters = self.tunnel.as_ref().map(|running| running.tunnel.counters());
        let told = Told { model, desired: Arc::clone(&desired), listing, members, counters };
        self.told.send_replace(Some(Arc::new(told)));
        self.plans.send_replace(Some(desired));
        done.end()
    }

    /// What the registry says of the others; read again only if something it depends on changed.
    fn list(&mut self, registry: &Arc<Registry>, me: &Me, config: &NetworkConfig) -> Arc<Listing> {
        let same = |listed: &&Listed| {
            listed.registry.ptr_eq(&Arc::downgrade(registry)) && (&listed.me, &listed.config) == (me, config)
        };
        if let Some(listed) = self.listed.as_ref().filter(same) {
            return Arc::clone(&listed.listing);
        }
        let listing = Arc::new(Listing::of(registry, me, config));
        self.listed = Some(Listed {
            registry: Arc::downgrade(registry),
            me: me.clone(),
            config: config.clone(),
            listing: Arc::clone(&listing),
        });
        listing
    }

    /// The plan for a model; the last one again if the model is the same.
    fn plan(&mut self, model: Model) -> (Arc<Model>, Arc<Desired>) {
        if let Some((before, desired)) = self.planned.as_ref().filter(|(before, _)| **before == model) {
            return (Arc::clone(before), Arc::clone(desired));
        }
        let desired = Arc::new(plan(&model));
        let model = Arc::new(model);
        self.planned = Some((Arc::clone(&model), Arc::clone(&desired)));
        (model, desired)
    }

    /// The last thing a daemon does. Traffic goes on; only what was asked for is given back.
    /// Nobody must hold the lease any more, or what is given back would be taken again.
    pub(super) async fn stop(&mut self, store: &Store) {
        if let Some(running) = self.tunnel.take() {
            running.tunnel.stop();
        }
        let (known, lease) = (self.known.borrow().clone(), self.lease.borrow().clone());
        let kept = match &known.registry {
            Some(registry) => self.files.remember(registry, lease.subnet).await,
            None => Ok(()),
        };
        if let Err(error) = kept {
            warn!(error = %weft_daemon::log::chain(&error), "the cache for the next start is not up to date");
        }
        if !self.options.release_on_exit {
            return;
        }
        match lease.subnet {
            Some(subnet) if lease.reserved => info!(%subnet, "a reservation is not released"),
            Some(subnet) => match tokio::time::timeout(RELEASE, self.release(store, subnet)).await {
                Ok(Ok(())) => info!(%subnet, "released"),
                Ok(Err(error)) => warn!(%subnet, error = %weft_daemon::log::chain(&error), "not released"),
                Err(_) => warn!(%subnet, "not released: etcd does not answer"),
            },
            None => {}
        }
    }

    /// Gives the subnet up, and says that nobody runs here any more.
    async fn release(&self, store: &Store, subnet: Subnet) -> Result<(), AdminError> {
        let prefix = Prefix::new(&self.options.etcd_prefix);
        admin::release(store, &prefix, subnet, false).await?;
        store.commit(Txn::new().delete(prefix.live(&self.node))).await?;
        Ok(())
    }

    /// No pod is attached, and none is just being attached.
    pub(super) fn is_empty(&self) -> bool {
        self.records.lock().is_ok_and(|_lock| self.records.list().is_ok_and(|records| records.is_empty()))
    }
}

/// How a pass went so far.
#[derive(Default)]
struct Done {
    changes: usize,
    failed: Vec<String>,
}

impl Done {
    fn step(&mut self, what: &str, result: Result<usize, String>) {
        match result {
            Ok(changes) => self.changes += changes,
            Err(error) => self.failed.push(format!("{what}: {error}")),
        }
    }

    fn changes(&mut self, tried: usize, failures: &[Failure]) {
        self.changes += tried.saturating_sub(failures.len());
        self.failed.extend(failures.iter().take(8).map(Failure::to_string));
    }

    fn reconciled(&mut self, report: &Report) {
        self.changes += report.applied.len();
        // Refused changes have a time of their own to be tried again; the pass itself went well.
        self.failed.extend(report.failures.iter().take(8).map(Failure::to_string));
    }

    fn count(&mut self, (tried, failures): (usize, Vec<Failure>)) {
        self.changes(tried, &failures);
    }

    fn end(self) -> Result<usize, PassError> {
        if self.failed.is_empty() { Ok(self.changes) } else { Err(PassError::Steps(self.failed.join("; "))) }
    }
}
