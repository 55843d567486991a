//! Runs a [`Tenant`] against a store: commits what it decides, keeps the etcd leases alive, says how
//! things stand. Decides nothing itself.
//!
//! Everything is driven by news: a change of the registry, of the daemon's intent, of a kept lease.
//! Timers exist only to try again what failed. While the store cannot be reached nothing changes: the
//! host keeps what it has and says that it is degraded.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_store::{LeaseId, LeaseKeeper, LeaseState as Kept, Store, StoreError, TxnOutcome};

use super::allocate::mix;
use super::live::keep_live;
use super::{Ages, Bind, Claim, Loss, Step, Tenant, Tenure, Waiting, Wish};
use super::{LEASE_TTL, LIVE_TTL, RECLAIM_AFTER};
use crate::config::NetworkConfig;
use crate::model::Subnet;
use crate::registry::{Known, Registry};

/// How long things live in etcd without a KeepAlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// flannel's key.
    pub lease: Duration,
    /// The owner record: how long a subnet is kept for a host that is away (`--reclaim-after`).
    pub reclaim_after: Duration,
    /// The liveness record.
    pub live: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { lease: LEASE_TTL, reclaim_after: RECLAIM_AFTER, live: LIVE_TTL }
    }
}

/// What the daemon wants: the config in force, and itself under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The config in force, which is not always the newest (see [`crate::config::live_change`]).
    pub config: NetworkConfig,
    /// Who we are.
    pub wish: Wish,
}

/// How a host's lease stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LeaseState {
    /// The subnet that is ours as far as we know.
    pub subnet: Option<Subnet>,
    /// The store agreed, since we started and since it was last wiped. If not, the subnet comes from
    /// the cache.
    pub confirmed: bool,
    /// It is a reservation: it never runs out.
    pub reserved: bool,
    /// How often a weft host wrote this subnet.
    pub generation: u64,
    /// The etcd lease of flannel's key.
    pub flannel_lease: Option<LeaseId>,
    /// When that runs out unless it is kept alive again.
    pub expires: Option<Instant>,
    /// The host is being drained: attach no more pods, and set [`Wish::vacated`] once none is left.
    pub draining: bool,
    /// Why there is no subnet, or no agreement on it.
    pub waiting: Option<Waiting>,
    /// The last subnet that went away from us; pods in it must be taken down.
    pub lost: Option<Loss>,
    /// Why the store cannot be heard or told; what we know may be out of date.
    pub degraded: Option<String>,
}

impl LeaseState {
    /// Whether this host has a subnet, or knows that it has none. Not so while it starts: until the
    /// store has been asked, the subnet of an earlier run may still be ours.
    pub fn is_decided(&self) -> bool {
        let denied = match &self.waiting {
            None | Some(Waiting::NoStore | Waiting::NoConfig { .. } | Waiting::Unannounced) => {
                self.lost.is_some()
            }
            Some(_) => true,
        };
        self.subnet.is_some() || denied
    }
}

/// A running lease. Dropped, it stops; what is in the store stays until it runs out.
#[derive(Debug)]
pub struct Leasing {
    state: watch::Receiver<LeaseState>,
    _tasks: JoinSet<()>,
}

impl Leasing {
    /// Starts to lease, on the tokio runtime that this is called in. `held` is what the cache says that
    /// we held: it is ours until the store says otherwise. An intent of `None` waits for a config.
    pub fn start(
        store: Store,
        known: watch::Receiver<Known>,
        intent: watch::Receiver<Option<Intent>>,
        held: Option<Subnet>,
        times: Times,
        seed: u64,
    ) -> Self {
        let first = LeaseState { subnet: held, waiting: Some(Waiting::NoStore), ..LeaseState::default() };
        let (sender, state) = watch::channel(first);
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_live(store.clone(), known.clone(), intent.clone(), times.live));
        let driver = Driver {
            store,
            known,
            intent,
            times,
            tenant: Tenant::new(held, seed),
            state: sender,
            listed: None,
            wipes: 0,
            flannel: Slot::default(),
            owner: Slot::default(),
            ages: Ages::new(),
            trouble: None,
            failures: 0,
            seed,
        };
        tasks.spawn(driver.run());
        Self { state, _tasks: tasks }
    }

    /// How things stand, and how to wait for a change.
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }
}

struct Driver {
    store: Store,
    known: watch::Receiver<Known>,
    intent: watch::Receiver<Option<Intent>>,
    times: Times,
    tenant: Tenant,
    state: watch::Sender<LeaseState>,
    /// Our own look at the store, while it is newer than what the watch said.
    listed: Option<Arc<Registry>>,
    wipes: u64,
    flannel: Slot,
    owner: Slot,
    ages: Ages,
    /// The last call that failed.
    trouble: Option<String>,
    failures: u32,
    seed: u64,
}

/// What to do once a step is done.
enum Next {
    /// Step again at once.
    Again,
    /// Wait for news.
    News,
    /// Wait for news, but not longer than this; then look at the store.
    Retry(Duration),
}

impl Driver {
    async fn run(mut self) {
        loop {
            let next = self.step().await;
            let wait = match next {
                Next::Again => continue,
                Next::News => None,
                Next::Retry(pause) => Some(pause),
            };
            tokio::select! {
                // The daemon is going away: so do we.
                news = self.known.changed() => if news.is_err() { return },
                news = self.intent.changed() => if news.is_err() { return },
                () = self.flannel.news() => {}
                () = self.owner.news() => {}
                () = pause(wait) => self.look().await,
            }
        }
    }

    async fn step(&mut self) -> Next {
        let known = self.known.borrow_and_update().clone();
        let intent = self.intent.borrow_and_update().clone();
        if known.wipes != self.wipes {
            self.wipes = known.wipes;
            self.listed = None;
            self.tenant.wiped();
        }
        let Some(registry) = self.newest(&known) else {
            self.publish(&known, None, Some(Waiting::NoStore));
            return Next::News;
        };
        let Some(Intent { config, wish }) = intent else {
            self.publish(&known, None, Some(no_config(&registry)));
            return Next::News;
        };
        let step = self.tenant.step(&registry, &config, &wish, &self.ages);
        match step {
            Step::Hold(tenure) => self.hold(&known, tenure).await,
            Step::Wait(waiting) => {
                self.ages.clear();
                self.publish(&known, None, Some(waiting));
                Next::News
            }
            // Our own write is on its way to us; if the watch is cut, it may take long.
            Step::Behind => Next::Retry(Duration::from_secs(1)),
            Step::NeedAges(leases) => self.ask_ages(&known, leases).await,
            Step::Claim(claim) => {
                self.publish(&known, None, None);
                let outcome = self.claim(&registry, &claim).await;
                self.committed(&known, outcome).await
            }
            Step::GiveUp(subnet, txn) => {
                tracing::info!(%subnet, "giving up a subnet");
                let outcome = self.store.commit(txn).await;
                self.committed(&known, outcome).await
            }
        }
    }

    /// The newest registry there is: the watch's, or our own look if the watch has not caught up.
    fn newest(&mut self, known: &Known) -> Option<Arc<Registry>> {
        let watched = known.registry.clone()?;
        if self.listed.as_ref().is_some_and(|listed| listed.revision() <= watched.revision()) {
            self.listed = None;
        }
        Some(self.listed.clone().unwrap_or(watched))
    }

    /// Looks at the store itself, without waiting for the watch.
    async fn look(&mut self) {
        let Some(watched) = self.known.borrow().registry.clone() else { return };
        match self.store.list(&watched.prefix().all()).await {
            // Another store, or an older state of it: the watch will tell what to make of that.
            Ok(snapshot)
                if snapshot.cluster != watched.cluster() || snapshot.revision < watched.revision() => {}
            Ok(snapshot) => {
                let mut registry = (*watched).clone();
                registry.reset(&snapshot);
                self.listed = Some(Arc::new(registry));
            }
            Err(error) => self.trouble = Some(chain(&error)),
        }
    }

    async fn hold(&mut self, known: &Known, tenure: Tenure) -> Next {
        self.ages.clear();
        self.failures = 0;
        let store = &self.store;
        let kept = match self.flannel.keep(store, tenure.flannel_lease).await {
            Ok(()) => self.owner.keep(store, tenure.owner_lease).await,
            failed => failed,
        };
        let next = match kept {
            Ok(()) => {
                self.trouble = None;
                Next::News
            }
            // The key goes with the lease, so that the registry is about to say so.
            Err(StoreError::NoSuchLease(_)) => Next::Retry(Duration::from_secs(1)),
            Err(error) => self.failed(&error),
        };
        self.publish(known, Some(&tenure), None);
        next
    }

    async fn ask_ages(&mut self, known: &Known, leases: Vec<LeaseId>) -> Next {
        for lease in leases {
            let left = match self.store.time_to_live(lease).await {
                Ok(left) => left,
                Err(StoreError::NoSuchLease(_)) => Duration::ZERO,
                Err(error) => {
                    let next = self.failed(&error);
                    self.publish(known, None, None);
                    return next;
                }
            };
            self.ages.insert(lease, left);
        }
        Next::Again
    }

    async fn claim(&mut self, registry: &Registry, claim: &Claim) -> Result<TxnOutcome, StoreError> {
        let flannel = self.flannel.bind(&self.store, claim.flannel_lease, self.times.lease).await?;
        let owner = self.owner.bind(&self.store, claim.owner_lease, self.times.reclaim_after).await?;
        self.store.commit(claim.txn(registry.prefix(), flannel, owner)).await
    }

    async fn committed(&mut self, known: &Known, outcome: Result<TxnOutcome, StoreError>) -> Next {
        match outcome {
            Ok(outcome @ TxnOutcome::Committed(_)) => {
                self.failures = 0;
                self.trouble = None;
                self.tenant.committed(outcome);
                Next::Again
            }
            Ok(outcome @ TxnOutcome::Conflict) => {
                self.tenant.committed(outcome);
                // A short, random pause takes the crowd apart; the look comes after it.
                self.failures = self.failures.saturating_add(1);
                let most = 5u64 << self.failures.min(5);
                self.seed = mix(self.seed);
                Next::Retry(Duration::from_millis(1 + self.seed % most))
            }
            Err(StoreError::NoSuchLease(_)) => {
                // One of the leases ran out between grant and use.
                self.flannel.forget();
                self.owner.forget();
                Next::Retry(Duration::from_millis(50))
            }
            Err(error) => {
                let next = self.failed(&error);
                self.publish(known, None, None);
                next
            }
        }
    }

    /// A call failed; it may have been done all the same, so that the next thing is a look.
    fn failed(&mut self, error: &StoreError) -> Next {
        self.trouble = Some(chain(error));
        self.failures = self.failures.saturating_add(1);
        let pause = Duration::from_millis(100 << self.failures.min(6));
        self.seed = mix(self.seed);
        Next::Retry(pause / 2 + pause.mul_f64((self.seed % 1000) as f64 / 2000.0))
    }

    /// Says how things stand, and logs what changed.
    fn publish(&mut self, known: &Known, tenure: Option<&Tenure>, waiting: Option<Waiting>) {
        let before = self.state.borrow().clone();
        let mut lost = before.lost.clone();
        while let Some(loss) = self.tenant.take_loss() {
            tracing::warn!(subnet = %loss.subnet, reason = %loss, "lost the subnet");
            lost = Some(loss);
        }
        let held = self.tenant.held();
        // Between two steps what was known of the same subnet still is.
        let same = before.subnet == held && held.is_some();
        let now = LeaseState {
            subnet: held,
            confirmed: self.tenant.is_confirmed(),
            reserved: tenure.map_or(same && before.reserved, |tenure| tenure.flannel_lease.is_none()),
            generation: tenure.map_or(if same { before.generation } else { 0 }, |tenure| tenure.generation),
            flannel_lease: tenure
                .map_or(before.flannel_lease.filter(|_| same), |tenure| tenure.flannel_lease),
            expires: tenure.map_or(before.expires.filter(|_| same), |_| self.flannel.expires()),
            draining: tenure.map_or(same && before.draining, |tenure| tenure.draining),
            waiting,
            lost,
            degraded: known.disconnected.clone().or_else(|| self.trouble.clone()),
        };
        let news = now.confirmed && (now.subnet, now.confirmed) != (before.subnet, before.confirmed);
        if let Some(subnet) = now.subnet.filter(|_| news) {
            tracing::info!(%subnet, generation = now.generation, reserved = now.reserved, "leased");
        }
        if let Some(waiting) = now.waiting.as_ref().filter(|_| now.waiting != before.waiting) {
            tracing::info!(reason = %waiting, "no subnet yet");
        }
        if now.degraded.is_some() && before.degraded.is_none() {
            tracing::warn!(reason = now.degraded, "the store cannot be reached; keeping what we have");
        }
        self.state.send_if_modified(|state| {
            let changed = *state != now;
            *state = now;
            changed
        });
    }
}

/// One etcd lease that is kept alive, or was granted for a write that did not happen.
#[derive(Default)]
struct Slot {
    keeper: Option<LeaseKeeper>,
    /// No key is bound to it yet.
    spare: bool,
}

impl Slot {
    /// The lease for a write.
    async fn bind(
        &mut self,
        store: &Store,
        bind: Bind,
        ttl: Duration,
    ) -> Result<Option<LeaseId>, StoreError> {
        match bind {
            Bind::Forever => Ok(None),
            Bind::Keep(lease) => {
                match self.keep(store, Some(lease)).await {
                    Ok(()) => Ok(Some(lease)),
                    // It ran out a moment ago; what is written needs one that lives.
                    Err(StoreError::NoSuchLease(_)) => self.grant(store, ttl).await,
                    Err(error) => Err(error),
                }
            }
            Bind::Fresh => self.grant(store, ttl).await,
        }
    }

    async fn grant(&mut self, store: &Store, ttl: Duration) -> Result<Option<LeaseId>, StoreError> {
        if !(self.spare && self.lives()) {
            self.keeper = Some(LeaseKeeper::grant(store, ttl).await?);
            self.spare = true;
        }
        Ok(self.keeper.as_ref().map(LeaseKeeper::lease))
    }

    /// Keeps this lease alive, and no other.
    async fn keep(&mut self, store: &Store, lease: Option<LeaseId>) -> Result<(), StoreError> {
        let kept = self.keeper.as_ref().map(LeaseKeeper::lease);
        if kept == lease && (lease.is_none() || self.lives()) {
            self.spare = false;
            return Ok(());
        }
        let unused = self.keeper.take().filter(|_| self.spare);
        self.spare = false;
        if let Some(lease) = lease {
            self.keeper = Some(LeaseKeeper::adopt(store, lease).await?);
        }
        if let Some(unused) = unused {
            // No key hangs on it; if this fails, it runs out by itself.
            let _ = unused.revoke().await;
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.keeper = None;
        self.spare = false;
    }

    fn lives(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| keeper.state() != Kept::Lost)
    }

    /// When it runs out unless it is kept alive again.
    fn expires(&self) -> Option<Instant> {
        match self.keeper.as_ref()?.state() {
            Kept::Alive { expires } | Kept::Unreachable { expires, .. } => Some(expires),
            Kept::Lost => None,
        }
    }

    /// Waits until there is something new to say of it; for ever if there is no lease.
    async fn news(&self) {
        match &self.keeper {
            // A keeper that has ended says nothing any more.
            Some(keeper) if keeper.state() != Kept::Lost => {
                let mut state = keeper.watch();
                state.mark_unchanged();
                let _ = state.changed().await;
            }
            _ => std::future::pending().await,
        }
    }
}

pub(super) async fn pause(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn no_config(registry: &Registry) -> Waiting {
    let fault = registry.config_entry().and_then(|entry| entry.fault.clone());
    let why = match registry.config() {
        Some(_) => "it is being read".to_owned(),
        None => fault.unwrap_or_else(|| "there is none".to_owned()),
    };
    Waiting::NoConfig { key: registry.prefix().config(), why }
}

/// An error and its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        line = format!("{line}: {next}");
        cause = next.source();
    }
    crate::go_json::one_line(&line)
}
