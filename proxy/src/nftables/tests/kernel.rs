//! The real kernel takes the tables and the changes, shows them as they were meant, and Debian's `nft`
//! lists them. Each test runs in a network namespace of its own. Needs root.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use weft_kernel::nft::{Elements, Key, Nft, Part, Transaction, Value};

use super::*;
use crate::backend::{Applied, Backend as _};
use crate::explain::packet::Object;
use crate::host::{Observed, Settings};
use crate::model::{Family, Protocol};
use crate::nftables::{Nftables, table_key};
use crate::plan::Frontend;

/// Runs a test in a fresh network namespace, on a thread that ends with it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn listed() -> String {
    let output = Command::new("nft").args(["-s", "list", "ruleset"]).output().expect("nft is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tables_and_changes_are_taken_and_listed() {
    in_namespace(|| {
        let mut runner = TestRunner::deterministic();
        let mut nft = Nft::open().unwrap();
        for _ in 0..12 {
            let scenario = scenarios().new_tree(&mut runner).unwrap().current();
            let plans = everything(&scenario.model, &scenario.host);
            let mut program = Program::load(&scenario.host, plans.clone(), None);
            let table = program.table();
            nft.commit(&Transaction::new().replace(&table)).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(nft.table(&table.key).unwrap().as_ref(), Some(&table));
            // All go, half of them come back with other endpoints.
            let other = scenarios().new_tree(&mut runner).unwrap().current();
            let next = everything(&other.model, &scenario.host);
            let gone = ServicePlan::default();
            let names: BTreeSet<&ServiceName> = plans.keys().chain(next.keys()).collect();
            let change =
                program.update(names.into_iter().map(|name| (name, next.get(name).unwrap_or(&gone))));
            nft.commit(&change).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(nft.table(&table.key).unwrap(), Some(program.table()));
            assert!(listed().contains("table inet weft-proxy"));
            nft.commit(&program.collect()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(nft.table(&table.key).unwrap(), Some(program.table()));
        }
    });
}

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.1
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.96.0.2
  sessionAffinity: ClientIP
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.42.0.5]}, {addresses: [10.42.0.6]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.42.0.7]}]
";

/// The shop's plans on a host of one address.
fn shop(manifests: &str) -> (Host, BTreeMap<ServiceName, ServicePlan>) {
    let mut model = Model::default();
    for change in crate::manifests::Folder::default().put("shop.yaml", manifests).changes {
        model.apply(change);
    }
    let address = "192.0.2.1".parse().unwrap();
    let observed = Observed { addresses: [address].into(), primary: vec![address] };
    let host = Host::on(&model, NodeName::new("ash"), observed, Settings::default());
    let plans = everything(&model, &host);
    (host, plans)
}

fn load(nftables: &mut Nftables, (host, plans): &(Host, BTreeMap<ServiceName, ServicePlan>)) -> Applied {
    nftables.load(host, &mut plans.clone().into_iter()).unwrap()
}

fn nft(command: &str) {
    let output = Command::new("nft").arg(command).output().expect("nft is installed");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_start_writes_what_differs_and_nothing_else() {
    in_namespace(|| {
        let whole = load(&mut Nftables::open().unwrap(), &shop(SHOP));
        assert!(whole.changes > 100, "{whole:?}");
        let before = listed();
        let mut kernel = Nft::open().unwrap();
        let generation = kernel.generation().unwrap();
        // The same again: not one transaction.
        let mut again = Nftables::open().unwrap();
        assert_eq!(load(&mut again, &shop(SHOP)), Applied::default());
        assert_eq!(kernel.generation().unwrap(), generation);
        assert_eq!(again.differences().unwrap(), [""; 0]);
        // While nobody looked, an endpoint went and another one came: its element under two frontends
        // and its hairpin, away and there.
        let other = shop(&SHOP.replace("10.42.0.6", "10.42.0.9"));
        assert_eq!(load(&mut Nftables::open().unwrap(), &other), Applied { changes: 6 });
        // A service had three endpoints: its chains stay for packets on their way, then they go.
        let three = shop(
            &SHOP.replace("{addresses: [10.42.0.6]}", "{addresses: [10.42.0.6]}, {addresses: [10.42.0.8]}"),
        );
        load(&mut Nftables::open().unwrap(), &three);
        let mut back = Nftables::open().unwrap();
        load(&mut back, &shop(SHOP));
        assert!(back.has_unused());
        assert!(listed().contains("address-3"));
        back.collect().unwrap();
        assert!(!back.has_unused());
        assert_eq!(listed(), before);
    });
}

#[test]
fn what_others_do_to_the_table_is_put_right() {
    in_namespace(|| {
        nft("table ip theirs { chain c { type filter hook input priority 0; counter; }; }");
        let mut nftables = Nftables::open().unwrap();
        load(&mut nftables, &shop(SHOP));
        let before = listed();
        assert_eq!(nftables.look().unwrap(), Applied::default());
        for (harm, complaint) in [
            ("delete table inet weft-proxy", "table inet weft-proxy is missing"),
            ("flush table inet weft-proxy", "chain guard4 has other rules"),
            ("flush chain inet weft-proxy services4", "chain services4 has other rules"),
            ("flush map inet weft-proxy addresses4", "set addresses4: 10.96.0.1 . tcp . 80 is missing"),
            (
                "delete element inet weft-proxy addresses4 { 10.96.0.1 . tcp . 80 }",
                "set addresses4: 10.96.0.1 . tcp . 80 is missing",
            ),
            (
                "add element inet weft-proxy port-endpoints4 { tcp . 30081 . 0 : 10.42.0.66 . 80 }",
                "set port-endpoints4: tcp . 30081 . 0x0 is too much",
            ),
            (
                "add chain inet weft-proxy evil { type filter hook input priority 0; policy drop; }",
                "chain evil is too much",
            ),
            ("insert rule inet weft-proxy services4 accept", "chain services4 has other rules"),
            ("add table inet weft-proxy { flags dormant; }", "made anew"),
        ] {
            nft(harm);
            let found = nftables.differences().unwrap();
            assert!(found.iter().any(|line| line.contains(complaint)), "{harm}: {found:?}");
            assert!(nftables.look().unwrap().changes > 0, "{harm}");
            assert_eq!(listed(), before, "{harm}");
            assert_eq!(nftables.differences().unwrap(), [""; 0], "{harm}");
        }
    });
}

#[test]
fn a_change_that_fails_is_made_good_by_a_look() {
    in_namespace(|| {
        let mut nftables = Nftables::open().unwrap();
        load(&mut nftables, &shop(SHOP));
        nft("delete element inet weft-proxy hairpin4 { 10.42.0.6 . 10.42.0.6 }");
        let broken = listed();
        // It deletes what is no longer there, so the kernel refuses all of it.
        let (_, plans) = shop(&SHOP.replace("10.42.0.6", "10.42.0.9"));
        let plans: Vec<_> = plans.into_iter().collect();
        nftables.change(&plans).unwrap_err();
        assert_eq!(listed(), broken, "nothing is taken away");
        nftables.look().unwrap();
        let repaired = listed();
        assert!(repaired.contains("10.42.0.9 . 8080") && !repaired.contains("10.42.0.6"), "{repaired}");
        assert_eq!(nftables.differences().unwrap(), [""; 0]);
        assert_eq!(nftables.change(&plans).unwrap(), Applied::default());
    });
}

#[test]
fn the_table_is_taken_away_and_others_stay() {
    in_namespace(|| {
        nft("table inet weft-proxy-2 { }");
        let before = listed();
        load(&mut Nftables::open().unwrap(), &shop(SHOP));
        assert_ne!(listed(), before);
        assert!(crate::nftables::remove().unwrap());
        assert_eq!(listed(), before);
        assert!(!crate::nftables::remove().unwrap(), "there is none any more");
    });
}

/// A table of another layout is replaced in one go, and clients keep their endpoints.
#[test]
fn another_layout_is_replaced_and_clients_stick() {
    in_namespace(|| {
        load(&mut Nftables::open().unwrap(), &shop(SHOP));
        let mut kernel = Nft::open().unwrap();
        let mut old = kernel.table(&table_key()).unwrap().unwrap();
        old.comment = Some("layout 0".into());
        let sticky = "sticky4-10800".parse().unwrap();
        let stuck: Elements = [(
            Key::concat([
                Part::bytes(7u32.to_ne_bytes()),
                "192.0.2.77".parse::<std::net::Ipv4Addr>().unwrap().into(),
            ]),
            Value::Bytes(9u32.to_ne_bytes().to_vec()),
        )]
        .into();
        old.sets.get_mut(&sticky).expect("the cart's clients stick").elements = stuck.clone();
        old.chains.insert("to4.address-17".parse().unwrap(), Default::default());
        kernel.commit(&Transaction::new().replace(&old)).unwrap();
        let generation = kernel.generation().unwrap();
        let mut nftables = Nftables::open().unwrap();
        load(&mut nftables, &shop(SHOP));
        assert_eq!(kernel.generation().unwrap(), generation + 1, "one transaction");
        let new = kernel.table(&table_key()).unwrap().unwrap();
        assert_eq!(new.sets[&sticky].elements, stuck);
        assert!(
            !new.chains.contains_key(&"to4.address-17".parse().unwrap()),
            "what an old name means is not known"
        );
        assert_eq!(nftables.differences().unwrap(), [""; 0]);
    });
}

/// Node ports at 127.0.0.1 take a rule against strangers there; the host's own connections must pass it.
#[test]
fn a_host_reaches_itself_where_node_ports_are_on_localhost() {
    in_namespace(|| {
        let output = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is installed");
        assert!(output.success());
        let node_ports = crate::host::NodePortAddresses::parse(["primary", "localhost"]).unwrap();
        let settings = crate::host::Settings { node_ports, ..Default::default() };
        let host = Host::on(&Model::default(), NodeName::new("ash"), Default::default(), settings);
        let table = Program::load(&host, [], None).table();
        Nft::open().unwrap().commit(&Transaction::new().replace(&table)).unwrap();
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = server.local_addr().unwrap();
        std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(30)).unwrap();
    });
}

/// Each part of what leads to a frontend is looked up in the kernel, and what is wrong with it is told.
#[test]
fn what_leads_to_a_frontend_is_found_in_the_kernel() {
    in_namespace(|| {
        let (host, mut plans) = shop(SHOP);
        let cart = ServiceName::new("shop", "cart");
        let guarded = ["10.0.0.0/8", "192.0.2.0/24"].map(|range| range.parse().unwrap());
        let cluster = Frontend::Address("10.96.0.2:80".parse().unwrap(), Protocol::Tcp);
        let port = &mut plans.get_mut(&cart).unwrap().ports[0];
        port.frontends.get_mut(&cluster).unwrap().sources = Some(guarded.to_vec());
        let name = port.name.clone();
        let mut nftables = Nftables::open().unwrap();
        load(&mut nftables, &(host, plans));
        let node_port = Frontend::NodePort(Family::V4, 30080.try_into().unwrap(), Protocol::Tcp);
        let web = ServiceName::new("shop", "web");
        let mut of = |service: &ServiceName, at| nftables.objects(service, at).unwrap();
        let whats =
            |objects: &[Object]| objects.iter().map(|it| it.what.clone()).collect::<Vec<_>>().join("\n");
        for (service, at, expected) in [
            (&web, &node_port, "set port-endpoints4: tcp . 30080 . 0x1 : 10.42.0.6 . 8080"),
            (&web, &node_port, "chain to4.port-masquerade-2"),
            (&cart, &cluster, "chain to4.address-id-sticky10800-1"),
            (&cart, &cluster, "set guarded4: 10.96.0.2 . tcp . 80"),
            (
                &cart,
                &cluster,
                "set allowed4: 10.0.0.0 . 10.96.0.2 . tcp . 80 to 10.255.255.255 . 10.96.0.2 . tcp . 80",
            ),
        ] {
            let objects = of(service, at);
            assert!(whats(&objects).contains(expected), "{expected}: {}", whats(&objects));
            assert!(objects.iter().all(|it| it.wrong.is_none()), "{objects:?}");
        }
        nft("delete element inet weft-proxy port-endpoints4 { tcp . 30080 . 0x1 }");
        nft("flush chain inet weft-proxy to4.port-masquerade-2");
        let wrong: Vec<String> = of(&web, &node_port).into_iter().filter_map(|it| it.wrong).collect();
        assert_eq!(wrong, ["is missing", "has other rules"]);

        // A client that sticks.
        let client = "192.0.2.77".parse().unwrap();
        assert_eq!(nftables.kept(&name, client).unwrap(), None);
        let mut kernel = Nft::open().unwrap();
        let table = kernel.table(&table_key()).unwrap().unwrap();
        let number = |map: &str| table.sets[&map.parse().unwrap()].elements.iter().next().unwrap();
        let (Value::Bytes(id), Value::Bytes(endpoint)) = (number("address-ids4").1, number("slots4").1)
        else {
            panic!("both are numbers");
        };
        let key = Key::concat([
            Part::bytes(id.clone()),
            "192.0.2.77".parse::<std::net::Ipv4Addr>().unwrap().into(),
        ]);
        let sticky = "sticky4-10800".parse().unwrap();
        let stuck: Elements = [(key, Value::Bytes(endpoint.clone()))].into();
        let spec = table.sets[&sticky].spec.clone();
        kernel.commit(&Transaction::new().add_elements(&table_key(), &sticky, &spec, stuck)).unwrap();
        assert_eq!(nftables.kept(&name, client).unwrap(), Some("10.42.0.7:8080".parse().unwrap()));
        nft("delete table inet weft-proxy");
        assert!(nftables.objects(&web, &node_port).unwrap().iter().all(|it| it.wrong.is_some()));
    });
}
