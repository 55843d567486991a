//! The source against the test server: what is listed, followed, missed and heard again.

mod access;
mod faults;
mod history;
mod hostile;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::backoff::Backoff;
use super::testing::{Security, Server};
use super::{Access, Patience, Source};
use crate::model::{Model, NodeName, ServiceName, SliceName};
use crate::source::{News, Revisions, Source as _, Update};

/// Long enough for the slowest machine; nothing waits for it when all is well.
const LONG: Duration = Duration::from_secs(60);

/// Waits for nothing long when it fails.
fn patience() -> Patience {
    let backoff = Backoff::between(Duration::from_millis(2), Duration::from_millis(20));
    Patience { answer: LONG, silence: LONG, watch: LONG, backoff }
}

/// A source and what it has told.
struct Proxy {
    source: Source,
    model: Model,
    revisions: Revisions,
    complete: bool,
    away: Option<String>,
    problems: BTreeSet<String>,
    triggered: usize,
    _home: tempfile::TempDir,
    kubeconfig: PathBuf,
}

impl Proxy {
    async fn of(server: &Server) -> Self {
        Self::with(server, patience()).await
    }

    async fn with(server: &Server, patience: Patience) -> Self {
        let home = tempfile::tempdir().unwrap();
        let kubeconfig = home.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        let access = Access::Kubeconfig(kubeconfig.clone());
        let source = Source::open(access, NodeName::new("ash"), patience).await.unwrap();
        Self {
            source,
            model: Model::default(),
            revisions: Revisions::default(),
            complete: false,
            away: None,
            problems: BTreeSet::new(),
            triggered: 0,
            _home: home,
            kubeconfig,
        }
    }

    /// Takes in what comes next.
    async fn step(&mut self) {
        let News::Update(Update { changes, problems, revisions, complete, triggered, away, .. }) =
            self.source.next().await
        else {
            panic!("this source says in its updates that something is away");
        };
        changes.into_iter().for_each(|change| drop(self.model.apply(change)));
        self.problems.extend(problems.iter().map(ToString::to_string));
        (self.revisions, self.complete, self.away) = (revisions, complete, away);
        self.triggered += triggered.len();
    }

    async fn until(&mut self, wanted: impl Fn(&Self) -> bool) {
        let wait = async {
            while !wanted(self) {
                self.step().await;
            }
        };
        let in_time = tokio::time::timeout(LONG, wait).await.is_ok();
        let (revisions, complete) = (self.revisions, self.complete);
        assert!(
            in_time,
            "not in time: {revisions:?}, {complete}, {:?}, {:?}, {:#?}",
            self.away, self.problems, self.model
        );
    }

    /// Everything that the server has now was told.
    async fn caught_up(&mut self, server: &Server) {
        server.bookmark();
        let now = Some(server.revision());
        self.until(|it| it.complete && it.revisions == Revisions { services: now, slices: now }).await;
    }

    fn port_of(&self, service: &str) -> Option<u16> {
        Some(self.model.service(&ServiceName::new("shop", service))?.ports[0].port)
    }

    fn port_of_slice(&self, slice: &str) -> Option<u16> {
        let wanted = SliceName::new("shop", slice);
        let services = self.model.declared().map(|(name, _)| name.clone());
        let mut slices = services.chain([ServiceName::new("shop", "web")]);
        slices.find_map(|service| {
            let (_, slice) = self.model.slices_of(&service).find(|(name, _)| **name == wanted)?;
            Some(slice.ports[0].port.get())
        })
    }
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port}]},
    })
}

fn slice(name: &str, port: u16) -> Value {
    json!({
        "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"port": port}],
        "endpoints": [{"addresses": ["10.1.0.5"]}],
    })
}

fn node(name: &str, zone: &str) -> Value {
    json!({"kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
}

fn labelled(mut object: Value, label: &str) -> Value {
    object["metadata"]["labels"][label] = "".into();
    object
}

#[tokio::test]
async fn everything_is_listed_and_then_followed() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    server.put(slice("web-1", 8080));
    server.put(node("ash", "east"));
    server.put(node("birch", "west"));
    let mut proxy = Proxy::of(&server).await;
    proxy.until(|it| it.complete).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of_slice("web-1")), (Some(80), Some(8080)));
    let nodes: Vec<String> =
        proxy.model.nodes().map(|(name, node)| format!("{name} {:?}", node.zone)).collect();
    assert_eq!(nodes, [r#"ash Some("east")"#], "the others' nodes concern nobody here");

    server.put(service("web", 81));
    server.put(slice("web-1", 8081));
    server.put(node("ash", "west"));
    server.put(service("api", 90));
    server.remove("Service", "shop", "web");
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of("api")), (None, Some(90)));
    assert_eq!(proxy.port_of_slice("web-1"), Some(8081));
    proxy.until(|it| it.model.node(&NodeName::new("ash")).unwrap().zone.as_deref() == Some("west")).await;
    assert_eq!((&proxy.away, proxy.problems.len()), (&None, 0));
}

/// A label that comes later makes the slice another proxy's, and for the server that is a deletion. A
/// service stays known: its cluster address is not ours to reject.
#[tokio::test]
async fn what_is_for_other_proxies_is_left_to_them() {
    let label = "service.kubernetes.io/service-proxy-name";
    let server = Server::start(Security::None);
    server.put(labelled(slice("other", 1), "service.kubernetes.io/headless"));
    server.put(slice("web-1", 8080));
    server.put(service("web", 80));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of_slice("other"), proxy.port_of_slice("web-1")), (None, Some(8080)));
    server.put(labelled(slice("web-1", 8080), label));
    server.put(labelled(service("web", 80), label));
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of_slice("web-1")), (None, None));
    assert!(proxy.model.declared_as(&ServiceName::new("shop", "web")).is_some());
    server.put(slice("web-1", 8080));
    server.put(service("web", 80));
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of_slice("web-1")), (Some(80), Some(8080)));
}

/// A host whose services came and whose slices did not must not program the half of it.
#[tokio::test]
async fn half_a_list_is_not_complete() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    server.stall(true);
    let mut proxy = Proxy::of(&server).await;
    server.asked(|it| it.starts_with("/api/v1/services?")).await;
    server.asked(|it| it.starts_with("/apis/discovery.k8s.io/v1/endpointslices?")).await;
    assert!(!proxy.complete);
    server.stall(false);
    proxy.until(|it| it.port_of("web").is_some()).await;
    assert_eq!(proxy.complete, proxy.revisions.services.is_some() && proxy.revisions.slices.is_some());
    proxy.until(|it| it.complete).await;
    assert!(proxy.revisions.services.is_some() && proxy.revisions.slices.is_some());
}

#[tokio::test]
async fn long_lists_come_in_pages_of_one_moment() {
    let server = Server::start(Security::None);
    for index in 0..1203 {
        server.put(service(&format!("s{index:04}"), 80));
    }
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    assert_eq!(proxy.model.services().count(), 1203);
    let lists = server.requests();
    let lists: Vec<&str> =
        lists.iter().filter_map(|it| it.strip_prefix("/api/v1/services?limit=500")).collect();
    assert_eq!(lists, ["", "&continue=1", "&continue=1"], "{lists:?}");
}

/// Events and bookmarks bring versions; both are told apart, and neither runs ahead.
#[tokio::test]
async fn revisions_advance_by_events_and_by_bookmarks() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    let before = server.revision();
    let services = server.put(service("web", 81));
    proxy.until(|it| it.revisions.services == Some(services)).await;
    assert_eq!(proxy.port_of("web"), Some(81));
    assert_eq!(proxy.revisions.slices, Some(before), "no slice was heard of since");
    server.bookmark();
    proxy.until(|it| it.revisions.slices == Some(services)).await;
}

/// The beginning of kube-proxy's programming latency: of what is watched, not of what is listed.
#[tokio::test]
async fn slices_tell_when_their_change_happened() {
    let server = Server::start(Security::None);
    let timed = |port| {
        let mut slice = slice("web-1", port);
        slice["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"] =
            "2026-11-23T10:00:00.25Z".into();
        slice
    };
    server.put(timed(1));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    assert_eq!(proxy.triggered, 0);
    server.put(timed(2));
    server.put(slice("web-1", 3));
    proxy.caught_up(&server).await;
    assert_eq!(proxy.triggered, 1);
}

#[tokio::test]
async fn an_object_with_a_mistake_stays_as_it_was_and_is_named() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    server.put(slice("web-1", 8080));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    let mut wrong = service("web", 81);
    wrong["spec"]["type"] = "Teleport".into();
    server.put(wrong);
    let mut wrong = slice("web-1", 8081);
    wrong["ports"][0]["port"] = "http".into();
    server.put(wrong);
    proxy.caught_up(&server).await;
    let still = (proxy.port_of("web"), proxy.port_of_slice("web-1"));
    assert_eq!(still, (Some(80), Some(8080)));
    let said: Vec<&String> = proxy.problems.iter().collect();
    assert!(said[0].starts_with("EndpointSlice shop/web-1: ports[0].port: "), "{said:?}");
    let teleport = "Service shop/web: spec.type: must be ClusterIP, NodePort, LoadBalancer or ExternalName, is `Teleport`";
    assert_eq!(said[1], teleport);

    server.forget();
    server.put(service("api", 90));
    server.forget();
    server.cut();
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of_slice("web-1")), still, "listed anew, and still there");
    server.remove("Service", "shop", "web");
    server.put(slice("web-1", 8082));
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of_slice("web-1")), (None, Some(8082)));
}
