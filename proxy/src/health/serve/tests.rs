//! The servers as load balancers meet them, on loopback addresses.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use weft_daemon::health::Health;

use super::*;
use crate::host::{NodePortAddresses, Observed, Settings};
use crate::manifests::Folder;
use crate::model::{Model, NodeName};
use crate::plan::Claims;
use crate::run::{Commits, World};

const LONG: Duration = Duration::from_secs(30);

/// Status line, headers and body of an answer; nothing if nobody listens.
fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LONG)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Asks until the answer holds all of these.
async fn says(address: SocketAddr, path: &'static str, parts: &[&str]) {
    let deadline = Instant::now() + LONG;
    loop {
        let answer = tokio::task::spawn_blocking(move || ask(address, path)).await.unwrap();
        if answer.as_ref().is_some_and(|answer| parts.iter().all(|part| answer.contains(part))) {
            return;
        }
        assert!(Instant::now() < deadline, "{address}{path} never says {parts:?}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn manifests(port: u16, ready: usize) -> [(&'static str, String); 2] {
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  type: LoadBalancer\n  \
         clusterIP: 10.96.0.10\n  externalTrafficPolicy: Local\n  healthCheckNodePort: {port}\n  \
         ports: [{{port: 80, nodePort: 30080}}]\n"
    );
    let endpoint = |number: usize| {
        let node = if number == 9 { "birch" } else { "ash" };
        format!("{{addresses: [10.1.0.{number}], nodeName: {node}, conditions: {{ready: true}}}}")
    };
    let endpoints: Vec<String> = (1..=ready).chain([9]).map(endpoint).collect();
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: shop, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    );
    [("service.yaml", service), ("slice.yaml", slice)]
}

#[tokio::test]
async fn load_balancers_hear_which_hosts_have_endpoints() {
    let (healthz, metrics_at, asked) = (free(), free(), free());
    let model = Model::default();
    let settings =
        Settings { node_ports: NodePortAddresses::parse(["localhost"]).unwrap(), ..Settings::default() };
    let host = Host::on(&model, NodeName::new("ash"), Observed::default(), settings);
    let shared = Shared::new(World { model, claims: Claims::default(), host });
    let (pulse, commits, metrics) = (Pulse::default(), Commits::default(), Metrics::new());
    let (health, shutdown) = (Health::needing(&["kernel"]), CancellationToken::new());
    let served = Served { healthz: Some(healthz), metrics: Some(metrics_at), mode: "nftables" };
    let serving = tokio::spawn(follow(
        served,
        pulse.clone(),
        health.clone(),
        metrics.clone(),
        shared.clone(),
        commits.subscribe(),
        shutdown.clone(),
    ));
    let mut folder = Folder::default();
    let mut declare = |port: u16, ready: usize| {
        let changes = manifests(port, ready).into_iter().flat_map(|(file, text)| {
            let update = folder.put(file, &text);
            assert!(update.problems.is_empty(), "{:?}", update.problems);
            update.changes
        });
        let changes: Vec<_> = changes.collect();
        let plans: Vec<_> = shared.change(|world| {
            for change in changes {
                let touched = world.model.apply(change);
                let _ = world.claims.absorb(&world.model, &touched.services);
            }
            world.plans().collect()
        });
        commits.tell(Committed::Some(plans.into()));
    };

    says(healthz, "/healthz", &["HTTP/1.1 200 OK", r#""nodeEligible":true,"healthy":true"#]).await;
    says(healthz, "/readyz", &["503", "kernel not ready"]).await;
    health.ok("kernel");
    says(healthz, "/readyz", &["200 OK", "ready"]).await;
    says(metrics_at, "/proxyMode", &["200 OK", "nftables"]).await;
    pulse.node(Some(true));
    says(healthz, "/healthz", &["HTTP/1.1 503", r#""nodeEligible":false,"healthy":false"#]).await;
    says(healthz, "/livez", &["HTTP/1.1 200 OK", r#""healthy":true"#]).await;
    says(metrics_at, "/metrics", &[r#"kubeproxy_proxy_healthz_total{code="503"} 1"#]).await;

    assert_eq!(ask(asked, "/"), None, "no service asks for it yet");
    declare(asked.port(), 2);
    let weight = "x-load-balancing-endpoint-weight: 2";
    says(asked, "/", &["HTTP/1.1 200 OK", weight, "\"localEndpoints\": 2", "\"name\": \"web\""]).await;
    says(asked, "/any/path", &["HTTP/1.1 200 OK"]).await;
    declare(asked.port(), 0);
    says(asked, "/", &["HTTP/1.1 503", "x-load-balancing-endpoint-weight: 0"]).await;
    let other = free();
    declare(other.port(), 1);
    says(other, "/", &["HTTP/1.1 200 OK", "\"localEndpoints\": 1"]).await;
    let deadline = Instant::now() + LONG;
    while ask(asked, "/").is_some() {
        assert!(Instant::now() < deadline, "the former port is still served");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shutdown.cancel();
    tokio::time::timeout(LONG, serving).await.unwrap().unwrap();
}
