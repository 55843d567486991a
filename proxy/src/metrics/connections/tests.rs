//! Sums over readings, and a real kernel that counts. The latter runs in a network namespace of its own
//! and needs root.

use std::net::{TcpListener, TcpStream};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use weft_kernel::nft::{Events, Transaction};

use super::*;
use crate::host::{Host, Observed, Settings};
use crate::manifests::Folder;
use crate::model::{NodeName, Protocol, ServiceName};
use crate::nftables::Program;
use crate::plan::Claims;

fn port(name: &str) -> PortName {
    PortName { service: ServiceName::new("shop", name), port: "".into(), protocol: Protocol::Tcp }
}

fn counted(slot: u32, endpoint: &str, connections: u64) -> Counted {
    let key = Key::from(weft_kernel::nft::Part::bytes(slot.to_ne_bytes()));
    let element = ("live-cluster4".parse().unwrap(), key);
    Counted { element, of: Of::Id(Family::V4, 7), endpoint: endpoint.parse().unwrap(), connections }
}

#[test]
fn sums_only_grow_whatever_becomes_of_elements() {
    let (five, six) = ("10.1.0.5:80", "10.1.0.6:80");
    type Step<'a> = (&'a str, Vec<Counted>, u64, &'a [(&'a str, u64)]);
    let steps: [Step<'_>; 6] = [
        ("the first reading", vec![counted(0, five, 3), counted(1, six, 1)], 4, &[(five, 3), (six, 1)]),
        ("some more", vec![counted(0, five, 5), counted(1, six, 1)], 6, &[(five, 5), (six, 1)]),
        ("one moves into the hole", vec![counted(0, six, 2)], 8, &[(six, 3)]),
        ("a new table begins at nothing", vec![counted(0, six, 0)], 8, &[(six, 3)]),
        ("and counts on", vec![counted(0, six, 4)], 12, &[(six, 7)]),
        ("the same in two slots", vec![counted(0, six, 4), counted(9, six, 2)], 14, &[(six, 9)]),
    ];
    let mut tally = Tally::default();
    for (case, readings, service, endpoints) in steps {
        tally.take(readings, |_| Some(port("web")));
        assert_eq!(tally.services.get(&port("web")), Some(&service), "{case}");
        let found: Vec<(String, u64)> =
            tally.endpoints.iter().map(|((_, endpoint), total)| (endpoint.to_string(), *total)).collect();
        let expected: Vec<(String, u64)> =
            endpoints.iter().map(|(endpoint, total)| ((*endpoint).to_owned(), *total)).collect();
        assert_eq!(found, expected, "{case}");
    }
    tally.retain(|_| false);
    assert!(tally.services.is_empty());
}

/// The end of an element may be told before or after a reading that does not have it any more, and counts
/// once what no reading had.
#[test]
fn what_an_element_counted_last_is_counted_once() {
    type Step = (bool, Vec<Counted>);
    let (five, six) = ("10.1.0.5:80", "10.1.0.6:80");
    let (read, told) = (|of: Vec<Counted>| (true, of), |of: Counted| (false, vec![of]));
    let table: [(&str, Vec<Step>, u64); 7] = [
        ("never read", vec![told(counted(0, five, 3))], 3),
        ("read, then told", vec![read(vec![counted(0, five, 2)]), told(counted(0, five, 3))], 3),
        (
            "told after a reading without it",
            vec![read(vec![counted(0, five, 2)]), read(vec![]), told(counted(0, five, 3))],
            3,
        ),
        (
            "told after another one has its slot",
            vec![
                read(vec![counted(0, five, 2)]),
                read(vec![counted(0, six, 4)]),
                told(counted(0, five, 3)),
                read(vec![counted(0, six, 5)]),
            ],
            8,
        ),
        (
            "told after it came again",
            vec![
                read(vec![counted(0, five, 7)]),
                read(vec![counted(0, five, 1)]),
                told(counted(0, five, 9)),
                read(vec![counted(0, five, 2)]),
            ],
            11,
        ),
        (
            "told before it came again",
            vec![read(vec![counted(0, five, 7)]), told(counted(0, five, 9)), read(vec![counted(0, five, 9)])],
            18,
        ),
        ("nothing", vec![read(vec![counted(0, five, 0)]), told(counted(0, five, 0))], 0),
    ];
    for (case, steps, expected) in table {
        let mut tally = Tally::default();
        for (is_read, of) in steps {
            if is_read {
                tally.take(of, |_| Some(port("web")));
            } else {
                tally.end(of, |_| Some(port("web")));
            }
        }
        assert_eq!(tally.services.get(&port("web")).copied().unwrap_or_default(), expected, "{case}");
    }
    let mut tally = Tally::default();
    tally.take(vec![counted(0, five, 1), counted(1, six, 1)], |_| Some(port("web")));
    tally.end(vec![counted(0, five, 2)], |_| Some(port("web")));
    for _ in 0..=PATIENCE {
        tally.take(vec![counted(1, six, 1)], |_| Some(port("web")));
    }
    assert!(tally.missing.is_empty() && tally.last.len() == 1 && tally.endpoints.len() == 1, "{tally:?}");
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: kept, namespace: shop}
spec: {clusterIP: 10.96.0.11, sessionAffinity: ClientIP, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.5]}, {addresses: [10.1.0.6]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kept-1, namespace: shop, labels: {kubernetes.io/service-name: kept}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.1.0.5]}, {addresses: [10.1.0.6]}]
";

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn connections_are_counted_once_each_and_by_name() {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip link set lo up");
        run("ip route add 10.96.0.0/12 dev lo");
        run("ip address add 10.1.0.5/32 dev lo");
        run("ip address add 10.1.0.6/32 dev lo");
        story();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn story() {
    let mut model = Model::default();
    let update = Folder::default().put("all.yaml", SERVICES);
    assert!(update.problems.is_empty(), "{:?}", update.problems);
    for change in update.changes {
        model.apply(change);
    }
    let claims = Claims::of(&model);
    let settings = Settings { count_connections: true, ..Settings::default() };
    let host = Host::on(&model, NodeName::new("ash"), Observed::default(), settings);
    let world = World { model, claims, host };
    let plans: Vec<_> = world.plans().collect();
    let table = Program::load(&world.host, plans, None).table();
    let mut nft = Nft::open().unwrap();
    nft.commit(&Transaction::new().replace(&table)).unwrap();
    assert_eq!(nft.table(&table.key).unwrap().as_ref(), Some(&table), "counters are no difference");

    let metrics = Metrics::new();
    let take = register(&metrics, Shared::new(world));
    let servers = ["10.1.0.5:8080", "10.1.0.6:8080"].map(|at| TcpListener::bind(at).unwrap());
    let connect = |to: &str, times: usize| -> Vec<TcpStream> {
        (0..times).map(|_| TcpStream::connect(to).unwrap()).collect()
    };
    let mut kept = connect("10.96.0.10:80", 9);
    kept.extend(connect("10.96.0.11:80", 5));
    let value = |series: &str| -> u64 {
        let text = metrics.render();
        let line = text.lines().filter_map(|line| line.rsplit_once(' ')).find(|(name, _)| *name == series);
        line.map_or(0, |(_, value)| value.parse().unwrap())
    };
    let web = r#"{namespace="shop",service="web",port="http",protocol="tcp"}"#;
    let sticky = r#"{namespace="shop",service="kept",port="",protocol="tcp"}"#;
    assert_eq!(value(&format!("weft_proxy_service_connections_total{web}")), 9);
    assert_eq!(value(&format!("weft_proxy_service_connections_total{sticky}")), 5);
    let of_endpoint = |labels: &str, endpoint: &str| {
        let labels = labels.replace('}', &format!(",endpoint=\"{endpoint}\"}}"));
        value(&format!("weft_proxy_endpoint_connections_total{labels}"))
    };
    let each =
        |labels: &str| ["10.1.0.5:8080", "10.1.0.6:8080"].map(|endpoint| of_endpoint(labels, endpoint));
    assert_eq!(each(web).iter().sum::<u64>(), 9);
    let mut sticks = each(sticky);
    sticks.sort_unstable();
    assert_eq!(sticks, [0, 5], "one endpoint has them all");
    kept.extend(connect("10.96.0.10:80", 2));
    assert_eq!(value(&format!("weft_proxy_service_connections_total{web}")), 11);
    // Not read any more before they go.
    let mut events = Events::open().unwrap().counting(table.key.clone());
    kept.extend(connect("10.96.0.10:80", 3));
    for slot in ["0x0", "0x1"] {
        let element = format!("{{ 10.96.0.10 . tcp . 80 . {slot} }}");
        run(&format!("nft delete element inet weft-proxy address-endpoints4 {element}"));
    }
    while events.try_next().unwrap().is_some() {}
    take(connections::ended(&mut events));
    assert_eq!(value(&format!("weft_proxy_service_connections_total{web}")), 14);
    drop((kept, servers));
    // `nft` lists counted maps without an error.
    let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
