//! The loop, with a mode that does as it is told and a clock that stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, watch};
use weft_daemon::CancellationToken;
use weft_daemon::health::Health;
use weft_daemon::metrics::Metrics;
use weft_kernel::nft::{CommitError, DumpError};

use super::engine::{Ask, Engine, NOTHING, Told};
use super::numbers::Numbers;
use super::{Commits, Committed, Programmed, Shared};
use crate::backend::{Applied, Backend, BackendError, Doubt, Plans};
use crate::host::{Host, Observed, Settings};
use crate::model::{Change, Node, NodeName, Object, ServiceName};
use crate::plan::ServicePlan;
use crate::source::{News, Revisions, Source, Update};

/// What the mode was asked to do, and what it will answer.
#[derive(Debug, Default)]
struct Script {
    did: Vec<String>,
    services: BTreeMap<ServiceName, ServicePlan>,
    /// So many calls fail from now on.
    failures: usize,
    unfit: bool,
    unused: bool,
    /// What the next look finds to be wrong.
    wrong: usize,
}

#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    fn with<T>(&self, f: impl FnOnce(&mut Script) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    /// What was asked since this was asked last.
    fn did(&self) -> Vec<String> {
        self.with(|script| std::mem::take(&mut script.did))
    }

    fn answer(&self, did: String, changes: usize) -> Result<Applied, BackendError> {
        self.with(|script| {
            script.did.push(did);
            if script.failures == 0 {
                return Ok(Applied { changes });
            }
            script.failures -= 1;
            Err(CommitError::Socket(io::ErrorKind::Other.into()).into())
        })
    }
}

impl Backend for Fake {
    fn mode(&self) -> &'static str {
        "fake"
    }

    fn load(&mut self, _: &Host, plans: &mut Plans<'_>) -> Result<Applied, BackendError> {
        let plans: BTreeMap<_, _> = plans.collect();
        let did = format!("load {}", plans.len());
        self.with(|script| {
            script.services = plans;
            script.unfit = false;
        });
        self.answer(did, 1)
    }

    fn change(&mut self, plans: &[(ServiceName, ServicePlan)]) -> Result<Applied, BackendError> {
        self.with(|script| script.services.extend(plans.iter().cloned()));
        let names: Vec<&str> = plans.iter().map(|(name, _)| &*name.name).collect();
        self.answer(format!("change {}", names.join(" ")), 1)
    }

    fn fits(&self, _: &Host) -> bool {
        !self.with(|script| script.unfit)
    }

    fn look(&mut self) -> Result<Applied, BackendError> {
        let wrong = self.with(|script| std::mem::take(&mut script.wrong));
        self.answer("look".to_owned(), wrong)
    }

    fn differences(&mut self) -> Result<Vec<String>, BackendError> {
        Err(DumpError::Restless.into())
    }

    fn has_unused(&self) -> bool {
        self.with(|script| script.unused)
    }

    fn collect(&mut self) -> Result<Applied, BackendError> {
        self.with(|script| script.unused = false);
        self.answer("collect".to_owned(), 1)
    }

    fn watch(&mut self, _: Doubt) -> Result<(), BackendError> {
        Ok(())
    }
}

struct Channel {
    news: mpsc::UnboundedReceiver<News>,
}

impl Source for Channel {
    async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }
}

/// A daemon that runs, and all ends of it.
struct Running {
    fake: Fake,
    news: mpsc::UnboundedSender<News>,
    observed: watch::Sender<Observed>,
    doubt: Doubt,
    programmed: watch::Receiver<Programmed>,
    commits: broadcast::Receiver<Committed>,
    health: Health,
    metrics: Metrics,
    _asks: mpsc::Sender<Ask>,
}

fn start() -> Running {
    let (fake, metrics, health) = (Fake::default(), Metrics::new(), Health::needing(&["source", "kernel"]));
    let (news, told) = mpsc::unbounded_channel();
    let (observed, addresses) = watch::channel(Observed::default());
    let (programmed, known) = watch::channel(NOTHING);
    let (asks, asked) = mpsc::channel(1);
    let (commits, doubt, node) = (Commits::default(), Doubt::default(), NodeName::new("ash"));
    let heard = commits.subscribe();
    let world = Shared::new(Engine::empty(&node, &Settings::default(), Observed::default()));
    let (health_of, numbers) = (health.clone(), Numbers::new(&metrics));
    let ends = Told {
        world,
        commits,
        programmed,
        health: health_of,
        pulse: crate::health::pulse::Pulse::default(),
        numbers,
    };
    let backend = Box::new(fake.clone());
    let engine = Engine::new(node, Settings::default(), backend, addresses, Duration::from_secs(600), ends);
    tokio::spawn(engine.run(Channel { news: told }, doubt.clone(), asked, CancellationToken::new()));
    Running { fake, news, observed, doubt, programmed: known, commits: heard, health, metrics, _asks: asks }
}

impl Running {
    fn tell(&self, complete: bool, revision: u64, changes: Vec<Change>) {
        let revisions = Revisions { services: Some(revision), slices: Some(revision) };
        let update = Update { changes, revisions, complete, ..Update::of_nothing(Instant::now()) };
        self.news.send(News::Update(update)).unwrap();
    }

    /// Lets the loop do what it can do without time going by.
    async fn rest(&self) {
        // Each step of it takes a turn of the runtime or two; there is nobody else.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    fn held(&self) -> (Option<u64>, bool) {
        let Programmed { revisions, whole } = *self.programmed.borrow();
        assert_eq!(revisions.services, revisions.slices);
        (revisions.services, whole)
    }
}

fn service(name: &str, ip: u8) -> Change {
    let manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{ip}, ports: [{{port: 80}}]}}\n"
    );
    let parsed = crate::manifests::parse("x.yaml", &manifest);
    parsed.objects.into_iter().next().unwrap().1.change.unwrap()
}

fn node(zone: &str) -> Change {
    let node = Node { zone: Some(zone.to_owned()), ..Node::default() };
    Change::Put(Object::Node(NodeName::new("ash"), node))
}

#[tokio::test(start_paused = true)]
async fn nothing_is_programmed_before_everything_is_listed() {
    let mut it = start();
    it.tell(false, 1, vec![service("a", 1)]);
    it.rest().await;
    assert_eq!((it.fake.did(), it.held()), (vec![], (None, false)));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(it.fake.did(), [""; 0], "whatever the time");
    assert!(!it.health.report().ready);
    it.tell(true, 2, vec![service("b", 2)]);
    it.rest().await;
    assert_eq!((it.fake.did(), it.held()), (vec!["load 2".to_owned()], (Some(2), true)));
    assert!(it.health.report().ready);
    assert!(matches!(it.commits.try_recv(), Ok(Committed::All)));
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_change_and_a_bookmark_is_none() {
    let mut it = start();
    it.tell(true, 1, vec![]);
    it.rest().await;
    assert_eq!(it.fake.did(), ["load 0"]);
    for n in 0..100u8 {
        it.tell(true, 2 + u64::from(n), vec![service(&format!("s{}", n % 3), n)]);
    }
    it.rest().await;
    assert_eq!((it.fake.did(), it.held()), (vec!["change s0 s1 s2".to_owned()], (Some(101), true)));
    it.tell(true, 500, vec![]);
    it.rest().await;
    assert_eq!((it.fake.did(), it.held()), (vec![], (Some(500), true)));
    assert!(matches!(it.commits.try_recv(), Ok(Committed::All)));
    let Ok(Committed::Some(plans)) = it.commits.try_recv() else { panic!("the change is told") };
    assert_eq!(plans.len(), 3);
    assert!(it.commits.try_recv().is_err(), "a bookmark changes nothing");
    assert!(it.metrics.render().contains("weft_proxy_change_seconds_count 1\n"));
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_refuses_is_not_programmed_and_is_tried_again() {
    let mut it = start();
    let pending = |it: &Running| {
        let name = "kubeproxy_sync_proxy_rules_service_changes_pending ";
        let metrics = it.metrics.render();
        metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
    };
    it.fake.with(|script| script.failures = 2);
    it.tell(true, 1, vec![service("a", 1)]);
    it.rest().await;
    assert_eq!((it.fake.did(), it.held()), (vec!["load 1".to_owned()], (None, false)));
    assert_eq!(pending(&it), "1");
    assert!(!it.health.report().ready);
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!((it.fake.did(), it.held()), (vec!["load 1".to_owned(); 2], (Some(1), true)));
    assert_eq!(pending(&it), "0");
    assert!(it.health.report().ready);
    // A change that fails: the next one is not held up, and neither counts before a look went well.
    it.fake.with(|script| script.failures = 1);
    it.tell(true, 2, vec![service("b", 2)]);
    it.rest().await;
    it.tell(true, 3, vec![service("c", 3)]);
    it.rest().await;
    assert_eq!(
        (it.fake.did(), it.held()),
        (vec!["change b".to_owned(), "change c".into()], (Some(1), false))
    );
    assert_eq!(pending(&it), "2");
    let report = it.health.report();
    assert!(report.ready && report.degraded, "{report:?}");
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!((it.fake.did(), it.held()), (vec!["look".to_owned()], (Some(3), true)));
    assert_eq!(pending(&it), "0");
    assert!(it.metrics.render().contains("kubeproxy_sync_proxy_rules_service_changes_total 3\n"));
    assert!(!it.health.report().degraded);
    assert_eq!(it.fake.with(|script| script.services.len()), 3);
    // Who follows has heard of the load, of the change that went well, and that there was more.
    let heard: Vec<bool> =
        std::iter::from_fn(|| it.commits.try_recv().ok()).map(|it| matches!(it, Committed::All)).collect();
    assert_eq!(heard, [true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn what_others_did_is_put_right_at_once_and_never_in_a_whirl() {
    let mut it = start();
    it.tell(true, 1, vec![]);
    it.rest().await;
    it.fake.did();
    let _ = it.commits.try_recv();
    it.fake.with(|script| script.wrong = 7);
    it.doubt.raise();
    it.rest().await;
    assert_eq!((it.fake.did(), it.held()), (vec!["look".to_owned()], (Some(1), true)));
    assert!(matches!(it.commits.try_recv(), Ok(Committed::All)));
    assert!(it.metrics.render().contains("weft_proxy_repaired_total 7\n"));
    // Refused, while somebody else is at it all the time.
    it.fake.with(|script| script.failures = usize::MAX);
    for _ in 0..1000 {
        it.doubt.raise();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let looks = it.fake.did().len();
    assert!((3..=8).contains(&looks), "{looks} looks in a second");
    assert_eq!(it.held(), (Some(1), false));
}

#[tokio::test(start_paused = true)]
async fn the_slow_timer_looks_and_what_is_unused_goes() {
    let it = start();
    it.tell(true, 1, vec![]);
    it.rest().await;
    it.fake.did();
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert_eq!(it.fake.did(), ["look"]);
    it.fake.with(|script| script.unused = true);
    it.tell(true, 2, vec![service("a", 1)]);
    it.rest().await;
    assert_eq!(it.fake.did(), ["change a"]);
    tokio::time::sleep(Duration::from_millis(1900)).await;
    assert_eq!(it.fake.did(), [""; 0], "packets may be on their way there");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(it.fake.did(), ["collect"]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_changes_costs_what_it_changes() {
    let it = start();
    it.tell(true, 1, vec![service("a", 1), service("b", 2), node("east")]);
    it.rest().await;
    assert_eq!(it.fake.did(), ["load 2"]);
    let address = |ip: &str| BTreeSet::from([ip.parse().unwrap()]);
    it.observed.send_modify(|observed| observed.addresses = address("192.0.2.1"));
    it.rest().await;
    assert_eq!(it.fake.did(), [""; 0], "an address that no rule is about");
    it.tell(true, 2, vec![node("west")]);
    it.rest().await;
    assert_eq!(it.fake.did(), ["change a b"], "hints of the zone may count");
    it.fake.with(|script| script.unfit = true);
    it.observed.send_modify(|observed| observed.addresses = address("192.0.2.2"));
    it.rest().await;
    assert_eq!((it.fake.did(), it.held()), (vec!["load 2".to_owned()], (Some(2), true)));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_away_takes_nothing_away() {
    let it = start();
    let source = |it: &Running| {
        let report = it.health.report();
        report.conditions.into_iter().find(|it| it.name == "source").map(|it| (it.state, it.reason)).unwrap()
    };
    use weft_daemon::health::State;
    it.news.send(News::Away("no answer".into())).unwrap();
    it.rest().await;
    assert_eq!(source(&it), (State::NotReady, "no answer".to_owned()));
    let away = |complete, why: &str| {
        let away = (!why.is_empty()).then(|| why.to_owned());
        let revisions = Revisions { services: Some(1), slices: Some(1) };
        News::Update(Update { complete, away, revisions, ..Update::of_nothing(Instant::now()) })
    };
    it.news.send(away(false, "no slices")).unwrap();
    it.rest().await;
    assert_eq!(source(&it), (State::NotReady, "no slices".to_owned()));
    it.tell(true, 1, vec![service("a", 1)]);
    it.rest().await;
    assert_eq!(source(&it), (State::Ok, String::new()));
    it.news.send(News::Away("no answer".into())).unwrap();
    it.rest().await;
    assert_eq!(source(&it), (State::Degraded, "no answer".to_owned()));
    it.news.send(away(true, "no node")).unwrap();
    it.rest().await;
    assert_eq!(source(&it), (State::Degraded, "no node".to_owned()));
    it.news.send(away(true, "")).unwrap();
    it.rest().await;
    assert_eq!(source(&it), (State::Ok, String::new()));
    assert_eq!((it.fake.did(), it.held()), (vec!["load 1".to_owned()], (Some(1), true)));
}
