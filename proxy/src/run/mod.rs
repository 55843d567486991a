//! The daemon: puts the parts together and runs the loop until it is told to stop.
//!
//! ```text
//! source (manifests, API) ──> model, claims ──> plans ──> mode (nftables) ──> kernel
//! the host's addresses ───────────┘                         ^     │
//! others' changes of our table ──────── doubt ──────────────┘     └> who follows: Commits, Programmed
//! ```

mod api;
mod engine;
pub(crate) mod kube_proxy;
mod memory;
mod numbers;
mod once;
mod options;
mod programmed;
mod questions;
mod schedule;
#[cfg(test)]
mod tests;
mod world;

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{mpsc, watch};
use weft_daemon::http::ServeError;
use weft_daemon::{Daemon, Env};
use weft_kernel::net::NetError;

use crate::api::{self as kubernetes, AccessError, Patience};
use crate::around::flows;
use crate::around::network::Network;
use crate::around::release::{self, TooOld};
use crate::backend::{Backend, BackendError, Doubt};
use crate::cleanup::base_chains;
use crate::config::Mode;
use crate::health::pulse::Pulse;
use crate::health::{self, Served};
use crate::iptables::Iptables;
use crate::manifests::{Follow, SourceError};
use crate::metrics;
use crate::nftables::Nftables;
use crate::source::{News, Source};
use crate::userspace::{Relay, Userspace};
use engine::{Engine, Told};
use numbers::Numbers;

pub use numbers::Latency;
pub use once::{Once, read_once};
pub use options::{Options, SourceOptions};
pub use programmed::{Answer, Programmed};
pub use world::{Commits, Committed, Shared, World};

/// What must be known to be well before the daemon is ready.
const CONDITIONS: &[&str] = &["source", "kernel"];

/// The daemon could not start. Once it runs it does not end by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory of ours cannot be made.
    #[error("cannot make {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another daemon runs on this host.
    #[error("another `weft proxy` runs on this host ({} is locked)", path.display())]
    Running {
        /// Its lock.
        path: PathBuf,
    },
    /// The manifests cannot be followed.
    #[error(transparent)]
    Manifests(#[from] SourceError),
    /// The API cannot be asked at all.
    #[error(transparent)]
    Api(#[from] AccessError),
    /// The kernel cannot do what the mode needs.
    #[error(transparent)]
    Kernel(#[from] TooOld),
    /// The source cannot be asked, and there is no time to wait for it.
    #[error("{0}")]
    Away(String),
    /// The host's addresses cannot be read.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The kernel cannot be used as the mode needs it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The local API cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Signals or the service manager cannot be served.
    #[error("cannot start the daemon")]
    Daemon(#[source] io::Error),
}

/// Runs until SIGINT or SIGTERM. What is in the kernel stays as it is after that.
///
/// The loop blocks its thread while the kernel works, so the requests are other threads' to answer: it
/// wants a runtime with threads of its own, of which this is none (`Runtime::block_on`).
///
/// # Errors
/// When it cannot start; each says what is wrong and where.
pub async fn run(options: Options, env: &Env) -> Result<(), RunError> {
    let _lock = lock(&options)?;
    let daemon = Daemon::new(CONDITIONS, env).map_err(RunError::Daemon)?;
    let shutdown = daemon.shutdown.clone();

    // Watches first, so that nothing falls between looking and listening.
    let doubt = Doubt::default();
    let mut relay: Option<Relay> = None;
    let (ends, mut ended) = mpsc::unbounded_channel();
    let mut backend: Box<dyn Backend> = match options.mode {
        Mode::Nftables => {
            release::check()?;
            let nftables = Nftables::open()?;
            Box::new(if options.settings.count_connections { nftables.telling(ends) } else { nftables })
        }
        Mode::Iptables => {
            base_chains::remember(&options.proxy_state_dir());
            Box::new(Iptables::open()?.counted(&daemon.metrics))
        }
        Mode::Userspace => {
            release::check()?;
            let started = Relay::start(options.userspace).map_err(RunError::Daemon)?;
            Box::new(Userspace::open(relay.insert(started).clone())?)
        }
    };
    backend.watch(doubt.clone())?;
    let (network, observed) = Network::open(options.service_cidrs.clone()).await?;
    let source = Declared::open(&options).await?;

    let world = Shared::new(Engine::empty(&options.node, &options.settings, observed.borrow().clone()));
    let commits = Commits::default();
    let (state_dir, health) = (options.proxy_state_dir(), daemon.health.clone());
    tokio::spawn(network.keep(options.wishes, state_dir, world.clone(), commits.subscribe(), health));
    let counts = flows::Counts::new(&daemon.metrics);
    tokio::spawn(flows::follow(world.clone(), commits.subscribe(), counts));
    match options.mode {
        _ if !options.settings.count_connections => {}
        Mode::Nftables => {
            let take = metrics::connections::register(&daemon.metrics, world.clone());
            tokio::spawn(async move {
                while let Some(ended) = ended.recv().await {
                    take(ended);
                }
            });
        }
        Mode::Iptables => tracing::warn!("new connections are counted in nftables mode only"),
        // It has numbers of its own.
        Mode::Userspace => {}
    }
    if let Some(relay) = &relay {
        metrics::relayed::register(&daemon.metrics, relay);
    }
    // What the userspace mode carries it counts itself; a flow of such a connection leads to us.
    if options.wishes.accounting && options.mode != Mode::Userspace {
        tokio::spawn(metrics::traffic::follow(world.clone(), commits.subscribe(), daemon.metrics.clone()));
    }
    let mode = backend.mode();
    let served = Served { healthz: options.healthz, metrics: options.metrics, mode };
    let pulse = Pulse::default();
    let serving = tokio::spawn(health::follow(
        served,
        pulse.clone(),
        daemon.health.clone(),
        daemon.metrics.clone(),
        world.clone(),
        commits.subscribe(),
        shutdown.clone(),
    ));
    let (programmed, known) = watch::channel(engine::NOTHING);
    let numbers = Numbers::new(&daemon.metrics);
    let health = daemon.health.clone();
    let told = Told { world: world.clone(), commits, programmed, health, pulse, numbers: numbers.clone() };
    let engine =
        Engine::new(options.node.clone(), options.settings.clone(), backend, observed, options.resync, told);
    let (asks, asked) = mpsc::channel(8);
    let questions = questions::router(world.clone(), asks.clone(), mode);
    let api = api::router(known, asks, numbers).merge(questions);
    let running = daemon.serve(api, &options.socket(), None).await?;
    engine.run(source, doubt, asked, shutdown).await;
    running.stopped().await;
    // It has no way to fail but a panic, which has been reported already.
    let _ = serving.await;
    if let Some(relay) = relay {
        tracing::info!(connections = relay.active(), "waiting for connections to end");
        match relay.drained().await {
            0 => {}
            left => tracing::warn!(connections = left, "broken off: they did not end in time"),
        }
    }
    Ok(())
}

/// The one source that was asked for.
enum Declared {
    Manifests(Follow),
    Api(kubernetes::Source),
}

impl Declared {
    async fn open(options: &Options) -> Result<Self, RunError> {
        Ok(match &options.source {
            SourceOptions::Manifests(folder) => Self::Manifests(Follow::open(folder)?),
            SourceOptions::Api(access) => {
                let (access, node) = (access.clone(), options.node.clone());
                Self::Api(kubernetes::Source::open(access, node, Patience::default()).await?)
            }
        })
    }
}

impl Source for Declared {
    async fn next(&mut self) -> News {
        match self {
            Self::Manifests(source) => source.next().await,
            Self::Api(source) => source.next().await,
        }
    }
}

/// One daemon per host: two would undo each other's work.
fn lock(options: &Options) -> Result<Flock<File>, RunError> {
    let path = options.proxy_state_dir();
    fs::create_dir_all(&path).map_err(|source| RunError::Directory { path: path.clone(), source })?;
    let path = path.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| RunError::Directory { path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| RunError::Running { path })
}
