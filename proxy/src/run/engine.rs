//! The loop: what is declared, and what the host is, go into plans, and these into the kernel; what
//! others do to the kernel is put right. When anything is due is [`super::schedule`]'s to say.

use std::collections::BTreeSet;
use std::future::ready;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use weft_daemon::CancellationToken;
use weft_daemon::health::Health;
use weft_daemon::log::{Repeated, chain};
use weft_daemon::reconcile::schedule::Pace;

use super::kube_proxy::WithoutLocal;
use super::memory;
use super::numbers::Numbers;
use super::programmed::{Book, Programmed};
use super::schedule::{Schedule, Task};
use super::world::{Commits, Committed, Shared, World};
use crate::backend::{Applied, Backend, BackendError, Doubt};
use crate::health::pulse::Pulse;
use crate::host::{Host, Observed, Settings};
use crate::model::{Model, NodeName, ServiceName};
use crate::plan::{self, Claims, ServicePlan};
use crate::source::{News, Revisions, Source, SourceProblem, Update};

/// So many changes that are waiting are taken in as one; more wait for the next turn.
const BURST: usize = 20_000;
/// So many services are written as one transaction when all are planned again.
const CHUNK: usize = 1_000;
/// So many different mistakes are remembered as said already.
const SAID: usize = 10_000;

/// Runs in the loop, between two changes: what only the mode can tell.
pub(super) type Ask = Box<dyn FnOnce(&mut dyn Backend) + Send>;

/// Who the loop works for.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) world: Shared,
    pub(super) commits: Commits,
    pub(super) programmed: watch::Sender<Programmed>,
    pub(super) health: Health,
    pub(super) pulse: Pulse,
    pub(super) numbers: Numbers,
}

/// The daemon's loop.
pub(super) struct Engine {
    node: NodeName,
    settings: Settings,
    backend: Box<dyn Backend>,
    observed: watch::Receiver<Observed>,
    schedule: Schedule,
    book: Book,
    told: Told,
    /// When what is not yet in the kernel happened.
    triggered: Vec<SystemTime>,
    /// A change was refused, so nobody has been told of it.
    owed: bool,
    without_local: WithoutLocal,
    /// Mistakes that were logged.
    said: BTreeSet<u64>,
    failures: Repeated,
}

impl Engine {
    pub(super) fn new(
        node: NodeName,
        settings: Settings,
        backend: Box<dyn Backend>,
        observed: watch::Receiver<Observed>,
        resync: Duration,
        told: Told,
    ) -> Self {
        let schedule = Schedule::new(Pace { period: resync, ..Pace::default() }, now());
        let (book, triggered, owed, without_local, said, failures) = Default::default();
        Self {
            node,
            settings,
            backend,
            observed,
            schedule,
            book,
            told,
            triggered,
            owed,
            without_local,
            said,
            failures,
        }
    }

    /// A world in which nothing has been declared yet.
    pub(super) fn empty(node: &NodeName, settings: &Settings, observed: Observed) -> World {
        let model = Model::default();
        let host = Host::on(&model, node.clone(), observed, settings.clone());
        World { model, claims: Claims::default(), host }
    }

    /// Goes on until `shutdown`. What is in the kernel stays there.
    pub(super) async fn run(
        mut self,
        mut source: impl Source,
        doubt: Doubt,
        mut asks: mpsc::Receiver<Ask>,
        shutdown: CancellationToken,
    ) {
        let mut hosts = self.observed.clone();
        let mut follows = true;
        loop {
            let due = self.schedule.next();
            let timer = async {
                match due {
                    Some((at, task)) => {
                        tokio::time::sleep_until(at.into()).await;
                        task
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.leave(),
                () = doubt.raised() => self.doubted(),
                task = timer => self.perform(task),
                news = source.next() => {
                    let (update, away) = gather(news, &mut source).await;
                    if let Some(update) = update {
                        self.update(update);
                    }
                    if let Some(why) = away {
                        self.away(why);
                    }
                }
                changed = hosts.changed(), if follows => match changed {
                    Ok(()) => self.reconsider_host(now()),
                    // Who watches the addresses has ended and said why.
                    Err(_) => follows = false,
                },
                Some(ask) = asks.recv() => ask(self.backend.as_mut()),
            }
        }
    }

    fn leave(&mut self) {
        if self.schedule.is_loaded() {
            let world = self.told.world.read();
            match self.backend.leave(&world.host, &mut world.plans()) {
                Ok(Applied { changes: 0 }) => {}
                Ok(Applied { changes }) => tracing::info!(changes, "the kernel goes on by itself"),
                Err(error) => tracing::error!(error = chain(&error), "the kernel does not go on by itself"),
            }
        }
    }

    fn away(&mut self, why: String) {
        if self.told.world.read().model == Model::default() && self.schedule.next().is_none() {
            self.told.health.not_ready("source", why);
        } else {
            self.told.health.degraded("source", why);
        }
    }

    fn doubted(&mut self) {
        self.schedule.doubt();
        self.settle();
    }

    fn update(&mut self, update: Update) {
        let Update { changes, problems, revisions, complete, parsed, triggered, away } = update;
        self.told.numbers.kube_proxy().heard(&changes);
        self.triggered.extend(triggered);
        self.say(&problems);
        let node = &self.node;
        let (again, is_host) = self.told.world.change(|world| {
            let (mut services, mut is_host) = (BTreeSet::new(), false);
            for change in changes {
                let touched = world.model.apply(change);
                services.extend(touched.services);
                is_host |= touched.nodes.contains(node);
            }
            (world.claims.absorb(&world.model, &services), is_host)
        });
        if is_host {
            self.told.pulse.node(self.told.world.read().model.node(node).map(|node| node.leaving));
        }
        self.book.read(revisions);
        if !complete {
            if let Some(why) = away {
                self.told.health.not_ready("source", why);
            }
            return;
        }
        self.queued();
        match away {
            None => self.told.health.ok("source"),
            Some(why) => self.told.health.degraded("source", why),
        }
        self.told.numbers.complete();
        self.schedule.complete();
        if is_host {
            self.reconsider_host(parsed);
        }
        if self.schedule.is_loaded() {
            self.change(again, parsed);
        } else if let Some((at, task)) = self.schedule.next()
            && at <= now()
        {
            self.perform(task);
        }
    }

    /// The host may be another one: its addresses, or its Node.
    fn reconsider_host(&mut self, since: Instant) {
        let observed = self.observed.borrow().clone();
        let (node, settings) = (self.node.clone(), self.settings.clone());
        let (before, now) = self.told.world.change(|world| {
            let now = Host::on(&world.model, node, observed, settings);
            (std::mem::replace(&mut world.host, now.clone()), now)
        });
        if before == now || !self.schedule.is_loaded() {
            return;
        }
        if !self.backend.fits(&now) {
            tracing::info!("the host's addresses or ranges changed: everything is programmed anew");
            self.schedule.unfit();
            self.perform(Task::Load);
        } else if !plan::is_alike(&before, &now) {
            let names: Vec<ServiceName> = {
                let world = self.told.world.read();
                world.model.declared().map(|(name, _)| name.clone()).collect()
            };
            for chunk in names.chunks(CHUNK) {
                self.change(chunk.iter().cloned().collect(), since);
            }
        }
    }

    /// These services may have other plans.
    fn change(&mut self, names: BTreeSet<ServiceName>, parsed: Instant) {
        let plans: Vec<(ServiceName, ServicePlan)> = {
            let world = self.told.world.read();
            names
                .into_iter()
                .map(|name| {
                    let plan = world.plan(&name);
                    (name, plan)
                })
                .collect()
        };
        if !plans.is_empty() {
            plans.iter().for_each(|(name, plan)| self.without_local.absorb(name, plan));
            let started = now();
            let result = self.backend.change(&plans);
            if self.concluded("change", started, &result) {
                self.schedule.left(now(), self.backend.has_unused());
                self.told.numbers.changed(parsed);
                self.told.commits.tell(Committed::Some(plans.into()));
            } else {
                self.owed = true;
            }
        }
        self.settle();
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::Load => self.load(),
            Task::Look => {
                let started = now();
                let result = self.backend.look();
                if self.concluded("look", started, &result) {
                    let changes = result.map_or(0, |applied| applied.changes);
                    if changes > 0 {
                        tracing::info!(changes, "the kernel was not as it should be; put right");
                        self.told.numbers.repaired(changes);
                    }
                    // What a change was refused, this look has made good.
                    if changes > 0 || std::mem::take(&mut self.owed) {
                        self.told.commits.tell(Committed::All);
                    }
                    self.schedule.settled(now(), self.backend.has_unused());
                    memory::trim();
                }
            }
            Task::Collect => {
                self.schedule.collected();
                let started = now();
                let result = self.backend.collect();
                self.concluded("collect", started, &result);
            }
        }
        self.settle();
    }

    fn load(&mut self) {
        let started = now();
        let mut without_local = WithoutLocal::default();
        let result = {
            let world = self.told.world.read();
            let mut plans = world.plans().inspect(|(name, plan)| without_local.absorb(name, plan));
            self.backend.load(&world.host, &mut plans)
        };
        self.without_local = without_local;
        if self.concluded("load", started, &result) {
            let took = started.elapsed();
            if let Ok(Applied { changes }) = result {
                tracing::info!(mode = self.backend.mode(), changes, ?took, "everything is programmed");
            }
            self.schedule.settled(now(), self.backend.has_unused());
            self.owed = false;
            self.told.numbers.loaded(took);
            self.told.commits.tell(Committed::All);
            memory::trim();
        }
    }

    /// Takes down how it went, and says whether well.
    fn concluded(
        &mut self,
        what: &'static str,
        started: Instant,
        result: &Result<Applied, BackendError>,
    ) -> bool {
        self.told.numbers.did(self.backend.mode(), what, result.is_ok(), started.elapsed());
        match result {
            Ok(_) => true,
            Err(error) => {
                self.failures.warn("kernel", error);
                self.told.health.set(
                    "kernel",
                    if self.schedule.is_loaded() {
                        weft_daemon::health::State::Degraded
                    } else {
                        weft_daemon::health::State::NotReady
                    },
                    chain(error),
                );
                self.schedule.failed(now());
                false
            }
        }
    }

    /// Says how far the kernel is.
    fn settle(&mut self) {
        let whole = self.schedule.is_whole();
        self.told.numbers.services(self.told.world.read().model.declared().len());
        if whole {
            self.told.pulse.updated();
            self.failures.recovered("kernel");
            self.told.health.ok("kernel");
            self.told.numbers.kube_proxy().happened(self.triggered.drain(..));
            self.told.numbers.kube_proxy().whole();
        } else if self.schedule.next().is_some() {
            self.queued();
        }
        self.told.numbers.kube_proxy().no_local(&self.without_local);
        let programmed = self.book.settle(whole);
        self.told.numbers.programmed(&programmed);
        self.told.programmed.send_if_modified(|known| std::mem::replace(known, programmed) != programmed);
    }

    /// Something is due.
    fn queued(&self) {
        self.told.pulse.queued();
        self.told.numbers.kube_proxy().queued();
    }

    /// Each mistake is said once, and counted.
    fn say(&mut self, problems: &[SourceProblem]) {
        self.told.numbers.problems(problems.len());
        for problem in problems {
            let line = problem.to_string();
            let mut hasher = DefaultHasher::new();
            line.hash(&mut hasher);
            if self.said.len() < SAID && self.said.insert(hasher.finish()) {
                tracing::warn!("{line}");
            }
        }
    }
}

/// What else is there already, so that a burst is one change.
async fn gather(first: News, source: &mut impl Source) -> (Option<Update>, Option<String>) {
    let mut update = match first {
        News::Update(update) => update,
        News::Away(why) => return (None, Some(why)),
    };
    while update.changes.len() < BURST {
        tokio::select! {
            biased;
            news = source.next() => match news {
                News::Update(later) => update.join(later),
                News::Away(why) => return (Some(update), Some(why)),
            },
            () = ready(()) => break,
        }
    }
    (Some(update), None)
}

/// Nothing to be told of is programmed yet.
pub(super) const NOTHING: Programmed =
    Programmed { revisions: Revisions { services: None, slices: None }, whole: false };

/// The runtime's time, which tests can make stand still.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
