//! The daemon: puts the parts together, then one pass after another until it is told to stop.
//!
//! ```text
//! etcd ──follow──> registry ─┐
//! leases ──────────────────┐ │      ┌> settings, tunnel, links and routes,
//! kernel's events ──────┐  │ │      │  pods' wires, nftables
//! nftables' events ──┐  └> one pass ┤
//! probes ────────────┴───> (engine) └> files, readiness, metrics, `weft peers`
//! ```

mod act;
mod api;
mod assemble;
mod engine;
mod files;
mod filter;
mod flannel;
mod forwarding;
mod kernel;
mod learn;
mod numbers;
mod reach;
pub mod status;
mod tell;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{Mutex, watch};
use weft_daemon::http::ServeError;
use weft_daemon::metrics::Metrics;
use weft_daemon::reconcile::schedule::Pace;
use weft_daemon::reconcile::{Loop, Trigger};
use weft_daemon::settings::Settings;
use weft_daemon::{Daemon, Env};
use weft_kernel::net::{NetError, Rtnetlink};
use weft_kernel::netconf::Netconf;
use weft_kernel::nft;
use weft_store::{Store, StoreError};

use crate::attach::records::Records;
use crate::cache::Cache;
use crate::doctor::responder;
use crate::firewall::Drops;
use crate::firewall::traffic::Traffic;
use crate::identity::{self, IdentityError};
use crate::key::Prefix;
use crate::lease::{Leasing, Times};
use crate::membership::{Membership, Verdict};
use crate::model::{NodeId, Subnet};
use crate::options::{BadOptions, Options};
use crate::plan::Desired;
use crate::probe;
use crate::registry::{Holder, Registry, follow};
use crate::subnet_file::SubnetFile;
use engine::{Engine, STORE_GRACE};
use files::Files;
use filter::Filter;
use flannel::TakingOver;
use forwarding::Forwarding;
use kernel::Kernel;
use numbers::Numbers;
use status::Told;

/// What must be known to be well before the daemon is ready.
const CONDITIONS: &[&str] = &["store", "config", "underlay", "lease", "kernel", "firewall", "peers"];

/// The daemon could not start. Once it runs it does not end by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Options that do not go together.
    #[error(transparent)]
    Options(#[from] BadOptions),
    /// The host has no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// etcd's settings cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A directory of ours cannot be made.
    #[error("cannot make {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another daemon runs for this network on this host.
    #[error("another `weft overlay` runs for network {network} on this host ({} is locked)", path.display())]
    Running {
        /// The network.
        network: String,
        /// Its lock.
        path: PathBuf,
    },
    /// The kernel cannot be watched.
    #[error(transparent)]
    Kernel(#[from] NetError),
    /// nftables cannot be used.
    #[error("nftables cannot be used: is the kernel 5.13 or newer, and is this root?")]
    Nftables(#[source] io::Error),
    /// The local API cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Signals or the service manager cannot be served.
    #[error("cannot start the daemon")]
    Daemon(#[source] io::Error),
}

/// Runs until SIGINT or SIGTERM. The data path stays as it is after that.
///
/// # Errors
/// When it cannot start; each says what is wrong and where.
pub async fn run(options: Options, env: &Env) -> Result<(), RunError> {
    options.check()?;
    let node = identity::node_id(&options)?;
    let _lock = lock(&options)?;
    let store = Store::connect(options.etcd.clone())?;
    let daemon = Daemon::new(CONDITIONS, env).map_err(RunError::Daemon)?;
    let shutdown = daemon.shutdown.clone();
    let trigger = Trigger::new();

    // Watches first, so that nothing falls between looking and listening.
    let kernel = Kernel::watch(&trigger)?;
    let api_net = kernel.net().clone();
    let events = nft::Events::open().map_err(RunError::Nftables)?;
    let filter = Filter::open().map_err(RunError::Nftables)?;
    watch_settings(&trigger);
    watch_filter(events, &filter, options.network.as_str(), &trigger);

    let prefix = Prefix::new(&options.etcd_prefix);
    let state_dir = options.network_state_dir();
    let cached = Cache::new(&state_dir).read(&prefix).map(Arc::new);
    let followed = follow(&store, prefix);
    let (intent, wanted) = watch::channel(None);
    let held = cached.as_deref().and_then(|registry| held(registry, &node));
    let times =
        Times { lease: options.lease_ttl, reclaim_after: options.reclaim_after, live: options.liveness_ttl };
    let leasing = Leasing::start(store.clone(), followed.known(), wanted, held, times, rand::random());

    let (probes, targets) = watch::channel(Vec::new());
    let (results, outcomes) = watch::channel(probe::Outcomes::new());
    tokio::spawn(async move {
        if let Err(error) = probe::run(targets, results).await {
            tracing::error!(%error, "no probes: silent peers will not be dropped");
        }
    });
    forward(followed.known(), &trigger, "store");
    forward(leasing.state(), &trigger, "lease");
    forward(outcomes.clone(), &trigger, "probe");

    let (told, seen) = watch::channel(None::<Arc<Told>>);
    let (plans, planned) = watch::channel(None);
    let numbers = Numbers::new(&daemon.metrics);
    count_links(&daemon.metrics, &numbers, kernel.net(), planned.clone());
    tokio::spawn(responder::follow(planned.clone()));
    count_drops(&daemon.metrics, &numbers, options.network.as_str());
    let (news, standing, tell) = (followed.known(), leasing.state(), numbers.clone());
    let (last, answers) = (seen.clone(), outcomes.clone());
    let table = crate::firewall::table_key(options.network.as_str()).ok();
    daemon.metrics.before_scrape(move || {
        tell.store(&news.borrow());
        tell.lease(&standing.borrow());
        if let Some(told) = last.borrow().clone() {
            tell.status(&told.status(&answers.borrow()).with_traffic(&traffic(table.as_ref())));
        }
    });
    let started = Instant::now();
    let (wake, wakes) = watch::channel(Some(started + STORE_GRACE));
    fire_at(wakes, &trigger);
    let engine = Engine {
        node,
        membership: Membership::new(options.liveness_ttl),
        verdict: Arc::new(Verdict::default()),
        wipes: 0,
        listed: None,
        planned: None,
        wake,
        health: daemon.health.clone(),
        numbers,
        known: followed.known(),
        cached,
        lease: leasing.state(),
        intent,
        instance: format!("{:016x}", rand::random::<u64>()),
        remembered: remembered(&options),
        probes,
        outcomes: outcomes.clone(),
        kernel,
        filter,
        forwarding: Forwarding::new(&trigger),
        settings: Settings::new(&state_dir),
        records: Records::new(&state_dir),
        whole_pods: BTreeSet::new(),
        files: Files::new(&options),
        told,
        plans,
        tunnel: None,
        config: None,
        notes: Vec::new(),
        underlay: None,
        closed: false,
        started,
        flannel: TakingOver::default(),
        looked: None,
        look_cost: Duration::ZERO,
        rested: None,
        forwarding_looked: None,
        options: options.clone(),
    };
    let metrics = daemon.metrics.clone();
    let running = daemon
        .serve(
            api::router(seen, outcomes, planned, api_net, options.network.as_str()),
            &options.socket(),
            options.healthz,
        )
        .await?;
    let pace = Pace { period: options.resync, limit: Duration::from_secs(60), ..Pace::default() };
    let engine = Arc::new(Mutex::new(engine));
    Loop::new("overlay", pace, &metrics)
        .run(&trigger, &shutdown, |reasons: BTreeSet<&'static str>| {
            let engine = Arc::clone(&engine);
            async move { engine.lock().await.pass(&reasons).await }
        })
        .await;
    drop(leasing);
    engine.lock().await.stop(&store).await;
    running.stopped().await;
    Ok(())
}

/// The tunnel's links are counted by the kernel; it is asked whenever the metrics are.
fn count_links(
    metrics: &Metrics,
    numbers: &Numbers,
    net: &Rtnetlink,
    planned: watch::Receiver<Option<Arc<Desired>>>,
) {
    let (net, numbers) = (net.clone(), numbers.clone());
    metrics.before_scrape(move || {
        let Some(desired) = planned.borrow().clone() else { return };
        let Ok(stats) = net.link_stats_blocking() else { return };
        for (name, stats) in stats.iter().filter(|(name, _)| desired.kernel.links.contains_key(name)) {
            numbers.link(name.as_str(), stats);
        }
    });
}

/// So are the packets that anti-spoofing dropped, by nftables.
fn count_drops(metrics: &Metrics, numbers: &Numbers, network: &str) {
    let Ok(table) = crate::firewall::table_key(network) else { return };
    let numbers = numbers.clone();
    metrics.before_scrape(move || {
        // There may be no table yet, or somebody deleted it just now.
        let Ok(readings) = nft::Nft::open().map(|mut nft| nft.counters(&table)) else { return };
        if let Ok(readings) = readings {
            numbers.dropped(Drops::from_counters(&readings));
        }
    });
}

/// And those of each peer in the kernel's tunnel: nothing if there is no table, or none that counts.
fn traffic(table: Option<&nft::TableKey>) -> Traffic {
    let readings = table.and_then(|table| nft::Nft::open().ok()?.element_counters(table).ok());
    Traffic::from_readings(&readings.unwrap_or_default())
}

/// One daemon per network and host: two would undo each other's work.
fn lock(options: &Options) -> Result<Flock<File>, RunError> {
    for path in [options.network_state_dir(), options.network_run_dir()] {
        fs::create_dir_all(&path).map_err(|source| RunError::Directory { path, source })?;
    }
    let path = options.network_state_dir().join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| RunError::Directory { path: path.clone(), source })?;
    let network = options.network.as_str().to_owned();
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| RunError::Running { network, path })
}

/// The subnet that was ours when the cache was written.
fn held(registry: &Registry, node: &NodeId) -> Option<Subnet> {
    let ours =
        |subnet: &&Subnet| matches!(registry.holder(subnet), Holder::Node(record) if record.node == *node);
    registry.leases().map(|(subnet, _)| subnet).find(ours).copied()
}

/// The subnet that an earlier run, ours or flannel's, wrote to the subnet file.
fn remembered(options: &Options) -> Option<Subnet> {
    let text = fs::read_to_string(&options.subnet_file).ok()?;
    let file = SubnetFile::parse(&text);
    let subnet = Subnet { v4: file.subnet, v6: file.subnet_v6 };
    (subnet.v4.is_some() || subnet.v6.is_some()).then_some(subnet)
}

/// Every change of a channel asks for a pass.
fn forward<T: Send + Sync + 'static>(mut news: watch::Receiver<T>, trigger: &Trigger, reason: &'static str) {
    let trigger = trigger.clone();
    tokio::spawn(async move {
        while news.changed().await.is_ok() {
            trigger.fire(reason);
        }
    });
}

/// Asks for a pass at the time that the last one named.
fn fire_at(mut wakes: watch::Receiver<Option<Instant>>, trigger: &Trigger) {
    let trigger = trigger.clone();
    tokio::spawn(async move {
        loop {
            let at = *wakes.borrow_and_update();
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wakes.changed() => if changed.is_err() { return },
                () = due => {
                    trigger.fire("membership");
                    if wakes.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    });
}

/// Changes of forwarding and the like ask for a pass, which looks at the settings that matter.
fn watch_settings(trigger: &Trigger) {
    let trigger = trigger.clone();
    tokio::spawn(async move {
        let watched = async {
            let mut netconf = Netconf::open()?;
            loop {
                netconf.changed().await?;
                trigger.fire("settings");
            }
        };
        let ended: std::io::Result<()> = watched.await;
        if let Err(error) = ended {
            tracing::error!(%error, "settings are not watched; their drift is found by the slow timer only");
        }
    });
}

/// Others' changes of our table, and of the chains that may drop our pods' packets, ask for a pass.
fn watch_filter(mut events: nft::Events, filter: &Filter, network: &str, trigger: &Trigger) {
    let (ours, trigger) = (filter.port(), trigger.clone());
    let table = crate::firewall::table_key(network).ok();
    tokio::spawn(async move {
        loop {
            match events.next().await {
                Ok(nft::Event::Commit { port, .. }) if port == ours => {}
                Ok(nft::Event::Commit { tables, .. }) => {
                    let foreign_filter = |key: &nft::TableKey| key.name.to_string() == "filter";
                    if tables.iter().any(|key| table.as_ref() == Some(key) || foreign_filter(key)) {
                        trigger.fire("filter");
                    }
                }
                Ok(nft::Event::Lost) => trigger.fire("filter"),
                Err(error) => {
                    tracing::error!(%error, "nftables' events have ended; changes are found by the slow timer only");
                    return;
                }
            }
        }
    });
}
