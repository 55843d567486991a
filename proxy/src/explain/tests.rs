//! Overviews and explanations as people read them, from manifests.

use std::collections::BTreeSet;

use super::packet::Object;
use super::*;
use crate::host::{DetectLocal, Host, NodePortAddresses, Observed, Settings, Strict};
use crate::manifests::Folder;
use crate::model::{Model, NodeName, Protocol};
use crate::plan::{Claims, Frontend};
use crate::simulate::Packet;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  externalIPs: [198.51.100.7]
  externalTrafficPolicy: Local
  healthCheckNodePort: 30999
  loadBalancerSourceRanges: [192.168.0.0/16]
  ports: [{name: http, port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.5}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.1.0.5], nodeName: ash, targetRef: {kind: Pod, namespace: shop, name: web-a}}
- {addresses: [10.1.1.5], nodeName: birch}
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec:
  clusterIP: 10.96.0.53
  clusterIPs: [10.96.0.53, "fd00::53"]
  externalIPs: [198.51.100.7]
  internalTrafficPolicy: Local
  sessionAffinity: ClientIP
  ports: [{port: 53, protocol: UDP}, {name: web, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: shop, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: "", port: 5353, protocol: UDP}]
endpoints: [{addresses: [10.1.1.6], nodeName: birch}]
---
apiVersion: v1
kind: Service
metadata: {name: hashed, namespace: shop, annotations: {weft.dev/balance: client-hash}}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: quiet, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
"#;

fn world() -> (Model, Claims, Host) {
    let mut model = Model::default();
    let update = Folder::default().put("all.yaml", MANIFESTS);
    assert_eq!(update.problems, []);
    for change in update.changes {
        model.apply(change);
    }
    let settings = Settings {
        detect_local: DetectLocal::ClusterCidr(vec!["10.1.0.0/16".parse().unwrap()]),
        node_ports: NodePortAddresses::parse(["primary", "localhost"]).unwrap(),
        strict: Some(Strict { service_cidrs: vec!["10.96.0.0/16".parse().unwrap()] }),
        ..Settings::default()
    };
    let address = "192.0.2.1".parse().unwrap();
    let observed = Observed { addresses: BTreeSet::from([address]), primary: vec![address] };
    let host = Host::on(&model, NodeName::new("ash"), observed, settings);
    (model.clone(), Claims::of(&model), host)
}

#[test]
fn what_is_programmed_in_words() {
    let (model, claims, host) = world();
    let all = overview(&model, &claims, &host, "nftables", |_| true);
    let expected = "\
node ash, mode nftables
local pods: from 10.1.0.0/16
node ports at: 192.0.2.1, 127.0.0.0/8

shop/dns udp, IPv4: at random, kept for 3h
  10.96.0.53:53/udp (cluster address)
    everybody: dropped, because all endpoints are on other hosts
  198.51.100.7:53/udp (external address)
    everybody: the one endpoint, masqueraded
  endpoints: 10.1.1.6:5353
shop/dns:web tcp, IPv4: at random, kept for 3h
  10.96.0.53:80/tcp (cluster address)
    everybody: rejected, because there is no endpoint anywhere
shop/dns udp, IPv6: at random, kept for 3h
  [fd00::53]:53/udp (cluster address)
    everybody: rejected, because there is no endpoint anywhere
shop/dns:web tcp, IPv6: at random, kept for 3h
  [fd00::53]:80/tcp (cluster address)
    everybody: rejected, because there is no endpoint anywhere
shop/dns: goes without 198.51.100.7:80/tcp, which is shop/web's

shop/hashed tcp, IPv4: by a hash of the client's address
  10.96.0.20:80/tcp (cluster address)
    everybody: rejected, because there is no endpoint anywhere

shop/quiet: no rules, it is headless: DNS answers for it

shop/web:http tcp, IPv4: at random
  10.96.0.10:80/tcp (cluster address)
    local pods: one of 2 endpoints
    this host and others: one of 2 endpoints, masqueraded
  198.51.100.7:80/tcp (external address)
    local pods: one of 2 endpoints
    this host: one of 2 endpoints, masqueraded
    others: the one endpoint of this host
  203.0.113.5:80/tcp (load balancer)
    only from 192.168.0.0/16; others are dropped
    local pods: one of 2 endpoints
    this host: one of 2 endpoints, masqueraded
    others: the one endpoint of this host
  IPv4 node port 30080/tcp (node port)
    local pods: one of 2 endpoints
    this host: one of 2 endpoints, masqueraded
    others: the one endpoint of this host
  endpoints: 10.1.0.5:8080, 10.1.1.5:8080
  endpoints here: 10.1.0.5:8080
shop/web: load balancers ask for endpoints of this host at port 30999
";
    assert_eq!(words::overview(&all), expected);
    assert!(!all.is_declared && all.has_endpoints);
    assert_eq!(all.other_nodes, ["birch"]);
    let json = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<Overview>(&json).unwrap(), all);
    let one = overview(&model, &claims, &host, "iptables", |name| &*name.name == "quiet");
    assert_eq!(one.services.len(), 1);
    assert!(
        words::overview(&Overview { services: Vec::new(), ..all }).ends_with("\nno service is declared\n")
    );
}

fn explained(source: &str, destination: &str, protocol: Protocol) -> (Explanation, Option<packet::Reached>) {
    let (model, _, host) = world();
    let packet = Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        input: None,
    };
    explain(&model, &host, &packet, |_| None)
}

#[test]
fn where_a_connection_goes_in_words() {
    let (explanation, reached) = explained("10.1.0.5", "10.96.0.10:80", Protocol::Tcp);
    let expected = "\
10.1.0.5 -> 10.96.0.10:80/tcp, as node ash sees it
  service   shop/web:http
  frontend  10.96.0.10:80/tcp, cluster address
  policy    internalTrafficPolicy Cluster
  outcome   goes to one of 2 endpoints
  to        10.1.0.5:8080 (50.0 %), pod web-a, on ash, masqueraded
            10.1.1.5:8080 (50.0 %), on birch
  why       10.96.0.10:80 is service shop/web:http, through its cluster address
            ready endpoints: 2
            10.1.0.5:8080 talks to itself, so it is masqueraded
";
    assert_eq!(words::explanation(&explanation), expected);
    let at = Frontend::Address("10.96.0.10:80".parse().unwrap(), Protocol::Tcp);
    assert_eq!(reached.unwrap().frontend, at);
    let json = serde_json::to_string(&explanation).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation);

    let (explanation, reached) = explained("192.168.1.1", "192.0.2.1:30080", Protocol::Tcp);
    let text = words::explanation(&explanation);
    assert!(text.contains("  frontend  IPv4 node port 30080/tcp\n"), "{text}");
    assert!(
        text.contains("  policy    externalTrafficPolicy Local\n  outcome   goes to one endpoint\n"),
        "{text}"
    );
    let number = 30080.try_into().unwrap();
    let at = Frontend::NodePort(crate::model::Family::V4, number, Protocol::Tcp);
    assert_eq!(reached.unwrap().frontend, at);

    for (source, destination, protocol, outcome) in [
        ("10.1.0.9", "10.96.0.53:53", Protocol::Udp, "dropped: the client is told nothing"),
        ("10.1.0.9", "10.96.0.53:80", Protocol::Tcp, "rejected: the client is told that nobody is there"),
        ("10.1.0.9", "10.96.0.10:81", Protocol::Tcp, "rejected: the client is told that nobody is there"),
        ("10.1.0.9", "10.96.9.9:80", Protocol::Tcp, "dropped: the client is told nothing"),
        ("10.1.0.9", "192.0.2.9:80", Protocol::Tcp, "left alone: it is for no service"),
    ] {
        let (explanation, _) = explained(source, destination, protocol);
        let text = words::explanation(&explanation);
        assert!(text.contains(&format!("  outcome   {outcome}\n")), "{destination}: {text}");
    }
}

#[test]
fn what_the_kernel_has_in_words() {
    let (mut explanation, _) = explained("10.1.0.9", "10.96.0.20:80", Protocol::Tcp);
    let object = |what: &str, wrong: Option<&str>| Object { what: what.into(), wrong: wrong.map(Into::into) };
    explanation.objects = vec![object("set a: x", None), object("chain b", None)];
    let text = words::explanation(&explanation);
    let expected =
        "  kernel    set a: x\n            chain b\n  agrees    yes: the kernel holds all of that\n";
    assert!(text.ends_with(expected), "{text}");
    explanation.objects.push(object("chain c", Some("is missing")));
    let text = words::explanation(&explanation);
    let expected = "            chain c  (is missing)\n  agrees    no: 1 of 3 are not as they should be\n";
    assert!(text.ends_with(expected), "{text}");
    let explanation = Explanation { objects: Vec::new(), unseen: Some("no root".into()), ..explanation };
    assert!(words::explanation(&explanation).ends_with("  kernel    not looked at: no root\n"));
}

#[test]
fn times_in_the_largest_exact_unit() {
    for (seconds, text) in [(0, "0s"), (1, "1s"), (90, "90s"), (60, "1m"), (5400, "90m"), (10_800, "3h")] {
        assert_eq!(words::time(seconds), text);
    }
}

#[test]
fn many_endpoints_are_counted() {
    let (model, claims, host) = world();
    let mut all = overview(&model, &claims, &host, "nftables", |name| &*name.name == "web");
    all.services[0].ports[0].cluster = (1..=11).map(|n| ([10, 1, 1, n], 80).into()).collect();
    let text = words::overview(&all);
    assert!(text.contains("10.1.1.8:80 and 3 more\n") && !text.contains("10.1.1.9:80"), "{text}");
}
