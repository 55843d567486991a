//! The host's network, watched: tells its addresses, keeps the routes to cluster addresses and the
//! kernel's settings.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _};
use ipnetwork::IpNetwork;
use tokio::sync::{broadcast, watch};
use weft_daemon::health::Health;
use weft_daemon::log::chain;
use weft_daemon::settings::Settings;
use weft_kernel::net::{Absorbed, Change, Event, Events, Net as _, NetError, RouteKey, Rtnetlink, State};
use weft_kernel::netconf::Netconf;

use super::settings::{Wishes, wanted};
use super::{addresses, routes};
use crate::host::Observed;
use crate::run::{Committed, Shared};

/// Everything is looked at so often even if nothing happened, and a while after a failure.
const PERIOD: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
/// A look at the whole network is at most one part in so many of the time: events that leave open what
/// is there now may come in bursts.
const SHARE: u32 = 10;

/// What the readiness report calls what is kept here.
const ROUTES: &str = "routes";
const SETTINGS: &str = "settings";

/// This network namespace.
#[derive(Debug)]
pub struct Network {
    net: Rtnetlink,
    events: Events,
    /// Only what matters here: no neighbours, and of the routes those that could cover cluster addresses.
    state: State,
    service_cidrs: Vec<IpNetwork>,
    told: watch::Sender<Observed>,
    /// What a look at everything last took, and when it ended.
    looked: (Duration, Instant),
}

/// What was taken back.
#[derive(Debug, Default)]
pub struct Undone {
    /// Routes that were deleted.
    pub routes: usize,
    /// Settings that were put back to what they were.
    pub settings: usize,
    /// What failed, a line each; it can be tried again.
    pub failures: Vec<String>,
}

impl Network {
    /// Subscribes, then looks, so that nothing falls between. The receiver has the host's addresses
    /// from the start, and hears of each change once [`Network::keep`] runs.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn open(service_cidrs: Vec<IpNetwork>) -> Result<(Self, watch::Receiver<Observed>), NetError> {
        let net = Rtnetlink::open()?;
        let events = net.events()?;
        let (told, addresses) = watch::channel(Observed::default());
        let (state, looked) = (State::default(), (Duration::ZERO, Instant::now()));
        let mut network = Self { net, events, state, service_cidrs, told, looked };
        network.look().await?;
        Ok((network, addresses))
    }

    /// Keeps routes and settings as they should be, and tells changes of the addresses, for as long as
    /// somebody polls it. What settings were is kept in `state_dir`.
    pub async fn keep(
        mut self,
        wishes: Wishes,
        state_dir: PathBuf,
        shared: Shared,
        mut commits: broadcast::Receiver<Committed>,
        health: Health,
    ) {
        let mut settings = Settings::new(&state_dir);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let mut netconf = Netconf::open().map_err(|error| {
            tracing::warn!(%error, "settings are not watched; their drift is found by the slow timer only");
        });
        // Connection tracking may be loaded by the first rules, and has no settings before.
        let mut before_rules = true;
        loop {
            let kept = self.keep_routes(&health).await;
            let wanted = wanted(&wishes, &shared.read().host, &self.state, cpus);
            let made = settings.apply(&wanted);
            match &made {
                Ok(_) => health.ok(SETTINGS),
                Err(error) => health.degraded(SETTINGS, chain(error)),
            }
            let pause = if kept && made.is_ok() { PERIOD } else { RETRY };
            tokio::select! {
                event = self.events.next() => match event {
                    Some(event) => self.hear(event, &health).await,
                    // The runtime is shutting down.
                    None => return,
                },
                () = settings_changed(&mut netconf) => {}
                committed = commits.recv(), if before_rules => {
                    before_rules = false;
                    if let Err(broadcast::error::RecvError::Closed) = committed {
                        return;
                    }
                }
                () = tokio::time::sleep(pause) => self.look_again(&health).await,
            }
        }
    }

    /// Takes in an event with those that came with it.
    async fn hear(&mut self, first: Event, health: &Health) {
        let mut clear = self.absorb(&first);
        while let Some(Some(event)) = self.events.next().now_or_never() {
            clear &= self.absorb(&event);
        }
        if clear {
            self.tell();
            return;
        }
        let (took, ended) = self.looked;
        tokio::time::sleep_until((ended + took * (SHARE - 1)).into()).await;
        self.look_again(health).await;
    }

    /// Whether it is clear what is there now.
    fn absorb(&mut self, event: &Event) -> bool {
        let key: &RouteKey = match event {
            Event::Neighbour(_) | Event::NeighbourGone(..) | Event::Fdb(_) | Event::FdbGone(_) => {
                return true;
            }
            Event::Route(route) | Event::RouteGone(route) => &route.key,
            Event::OtherRoute(key) => key,
            other => return self.state.absorb(other) == Absorbed::Followed,
        };
        !routes::matters(key, &self.service_cidrs) || self.state.absorb(event) == Absorbed::Followed
    }

    async fn look_again(&mut self, health: &Health) {
        if let Err(error) = self.look().await {
            health.degraded(ROUTES, chain(&error));
        }
    }

    async fn look(&mut self) -> Result<(), NetError> {
        let started = Instant::now();
        let mut state = self.net.observe().await?;
        let matters = |key: &RouteKey| routes::matters(key, &self.service_cidrs);
        state.routes.retain(|key, _| matters(key));
        state.twins.retain(matters);
        state.opaque.retain(matters);
        state.neighbours.clear();
        state.proxies.clear();
        state.fdb.clear();
        self.state = state;
        self.looked = (started.elapsed(), Instant::now());
        self.tell();
        Ok(())
    }

    fn tell(&self) {
        let observed = addresses::observed(&self.state);
        self.told.send_if_modified(|told| {
            let differs = *told != observed;
            *told = observed;
            differs
        });
    }

    /// Whether all is as it should be.
    async fn keep_routes(&mut self, health: &Health) -> bool {
        let changes = routes::changes(&self.state, &self.service_cidrs);
        let failures = self.net.apply(&changes).await;
        for (index, change) in changes.iter().enumerate() {
            if failures.iter().any(|failure| failure.index == index) {
                continue;
            }
            match change {
                Change::ReplaceRoute(route) => {
                    tracing::info!(%route, "no other route leads to these cluster addresses: this one does now");
                    self.state.routes.insert(route.key.clone(), route.clone());
                }
                Change::DeleteRoute(route) => {
                    tracing::info!(%route, "route to cluster addresses is no longer needed: deleted");
                    self.state.routes.remove(&route.key);
                }
                _ => {}
            }
        }
        match failures.first() {
            None => health.ok(ROUTES),
            Some(failure) => health.degraded(ROUTES, chain(failure)),
        }
        failures.is_empty()
    }
}

/// Takes our routes away and puts settings back to what they were before any run with this state
/// directory. Blocks.
pub fn undo(state_dir: &Path) -> Undone {
    let mut undone = Undone::default();
    let found = Rtnetlink::open().and_then(|net| Ok((net.observe_blocking()?, net)));
    match found {
        Ok((state, net)) => {
            let changes = routes::removal(&state);
            let failures = net.apply_blocking(&changes);
            undone.routes = changes.len() - failures.len();
            undone.failures.extend(failures.iter().map(|failure| chain(failure)));
        }
        Err(error) => undone.failures.push(chain(&error)),
    }
    match Settings::new(state_dir).restore() {
        Ok(count) => undone.settings = count,
        Err(error) => undone.failures.push(chain(&error)),
    }
    undone
}

async fn settings_changed(netconf: &mut Result<Netconf, ()>) {
    match netconf {
        Ok(watch) => {
            if watch.changed().await.is_err() {
                *netconf = Err(());
                pending().await
            }
        }
        Err(()) => pending().await,
    }
}

#[cfg(test)]
mod tests;
