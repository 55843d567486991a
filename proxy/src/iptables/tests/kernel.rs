//! The real kernel, with both sets of programs: it takes the rules and prints them as they were meant;
//! modes take each other's place. Each test runs in a network namespace of its own. Needs root.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use weft_kernel::iptables::{Backend as Programs, Iptables as Rules, programs};
use weft_kernel::nft::{Events, Nft};

use super::*;
use crate::backend::{Backend, Doubt};
use crate::iptables::{Iptables, remove};
use crate::nftables::{self, Nftables};

const BOTH: [Programs; 2] = [Programs::Nft, Programs::Legacy];

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

fn run(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{script}");
}

fn load(backend: &mut dyn Backend, host: &Host, plans: &Plans) -> usize {
    let mut plans = plans.iter().map(|(name, plan)| (name.clone(), plan.clone()));
    backend.load(host, &mut plans).unwrap_or_else(|error| panic!("{error}")).changes
}

/// Everything that iptables says of this host, without what time changes.
fn printed() -> String {
    let tables = Nft::open().unwrap().tables().unwrap();
    let mut text = String::new();
    for rules in programs::in_use(&tables) {
        let saved = programs::save(rules).unwrap();
        let lines =
            saved.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(" [").next().unwrap());
        text.push_str(&format!("{rules:?}\n{}\n", lines.collect::<Vec<_>>().join("\n")));
    }
    text
}

fn weft_anywhere() -> bool {
    let table = Nft::open().unwrap().tables().unwrap().contains(&nftables::table_key());
    table || printed().contains("WEFT")
}

#[test]
fn rules_and_changes_are_taken_and_printed_as_they_were_meant() {
    for programs in BOTH {
        in_namespace(move || {
            let mut runner = TestRunner::deterministic();
            // Somebody else's rules, which stay.
            for ipv6 in [false, true] {
                let others = "*nat\n:THEIRS - [0:0]\n-A THEIRS -j RETURN\n-A OUTPUT -j THEIRS\nCOMMIT\n\
                    *filter\n-A FORWARD -m comment --comment \"say hi\" -j ACCEPT\nCOMMIT\n";
                programs::restore_text(Rules { backend: programs, ipv6 }, others).unwrap();
            }
            let before = printed();
            let mut backend = Iptables::with(programs);
            for _ in 0..6 {
                let scenario = mine(scenarios().new_tree(&mut runner).unwrap().current());
                let host = &scenario.host;
                let plans = everything(&scenario.model, host);
                load(&mut backend, host, &plans);
                assert_eq!(backend.differences().unwrap(), Vec::<String>::new());
                // A proxy that starts anew changes nothing.
                assert_eq!(load(&mut Iptables::with(programs), host, &plans), 0);
                // All go, half of them come back with other endpoints.
                let other = mine(scenarios().new_tree(&mut runner).unwrap().current());
                let next = everything(&other.model, host);
                let gone = ServicePlan::default();
                let names: BTreeSet<&ServiceName> = plans.keys().chain(next.keys()).collect();
                let change: Vec<_> = names
                    .into_iter()
                    .map(|name| (name.clone(), next.get(name).unwrap_or(&gone).clone()))
                    .collect();
                backend.change(&change).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(backend.differences().unwrap(), Vec::<String>::new());
                assert_eq!(load(&mut Iptables::with(programs), host, &next), 0);
            }
            assert!(remove().unwrap() > 0);
            assert_eq!(printed(), before);
        });
    }
}

/// Whichever programs and mode the host comes from.
#[test]
fn a_mode_takes_the_place_of_another() {
    in_namespace(|| {
        let mut runner = TestRunner::deterministic();
        let scenario = scenarios().prop_filter("services", |it| it.model.services().count() > 2);
        let scenario = mine(scenario.new_tree(&mut runner).unwrap().current());
        let plans = everything(&scenario.model, &scenario.host);
        let mut backends: Vec<Box<dyn Backend>> = vec![
            Box::new(Nftables::open().unwrap()),
            Box::new(Iptables::with(Programs::Nft)),
            Box::new(Iptables::with(Programs::Legacy)),
        ];
        let program = loaded(&scenario.host, &plans);
        let ways = [(0, 1), (1, 0), (0, 2), (2, 1), (1, 2), (2, 0)];
        for ((from, to), killed) in ways.into_iter().flat_map(|way| [(way, false), (way, true)]) {
            load(backends[from].as_mut(), &scenario.host, &plans);
            // As after a kill -9 in the middle: everything stands, of all modes.
            for backend in BOTH.into_iter().filter(|_| killed) {
                let rules = Rules { backend, ipv6: false };
                let text = program.repair(Family::V4, &programs::save(rules).unwrap()).text;
                programs::restore_text(rules, &text).unwrap();
            }
            load(backends[to].as_mut(), &scenario.host, &plans);
            assert_eq!(backends[to].differences().unwrap(), Vec::<String>::new());
            let of = |rules: &str| {
                printed().split("Iptables {").any(|part| part.contains(rules) && part.contains("WEFT"))
            };
            let table = Nft::open().unwrap().tables().unwrap().contains(&nftables::table_key());
            assert_eq!([table, of("Nft"), of("Legacy")], [to == 0, to == 1, to == 2], "{from} to {to}");
        }
        load(backends[0].as_mut(), &scenario.host, &Plans::new());
        assert!(weft_anywhere());
        let mut nft = Nft::open().unwrap();
        nft.commit(&weft_kernel::nft::Transaction::new().remove(&nftables::table_key())).unwrap();
        assert!(!weft_anywhere());
    });
}

/// The kernel tells of what others do to the nft programs' tables, and which program it was.
#[test]
fn others_are_told_from_our_own_programs() {
    in_namespace(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let scenario = mine(scenarios().new_tree(&mut TestRunner::deterministic()).unwrap().current());
        let plans = everything(&scenario.model, &scenario.host);
        let mut backend = Iptables::with(Programs::Nft);
        let doubt = Doubt::default();
        // As many events as a load of ours makes.
        let mut events = Events::open().unwrap();
        {
            let _inside = runtime.enter();
            backend.watch(doubt.clone()).unwrap();
        }
        load(&mut backend, &scenario.host, &plans);
        let raised = |within: Duration| {
            runtime.block_on(async { tokio::time::timeout(within, doubt.raised()).await.is_ok() })
        };
        assert!(events.try_next().unwrap().is_some());
        // Ours are handled in order, so once the foreign one is heard of, ours were too.
        run("nft add table inet theirs");
        assert!(!raised(Duration::from_millis(500)), "our own transactions are no news");
        for deed in
            ["iptables-nft -t nat -F WEFT-SERVICES", "ip6tables-nft -F INPUT", "nft delete table ip nat"]
        {
            let started = Instant::now();
            run(deed);
            assert!(raised(Duration::from_secs(20)), "{deed}");
            assert_ne!(backend.differences().unwrap(), Vec::<String>::new(), "{deed}");
            assert!(backend.look().unwrap().changes > 0);
            assert_eq!(backend.differences().unwrap(), Vec::<String>::new(), "{deed}");
            assert!(started.elapsed() < Duration::from_secs(20));
        }
    });
}

/// What the programs cannot print is no reason to write everything a second time.
#[test]
fn a_spoiled_table_is_left_alone() {
    in_namespace(|| {
        let host = Host::on(
            &Model::default(),
            NodeName::new(crate::generators::HERE),
            crate::generators::observed(),
            Default::default(),
        );
        let mut backend = Iptables::with(Programs::Nft);
        load(&mut backend, &host, &Plans::new());
        run(
            "nft 'add set ip nat theirs { type ipv4_addr; }; add rule ip nat WEFT-SERVICES ip saddr @theirs numgen random mod 3 1 drop'",
        );
        let error = backend.look().unwrap_err().to_string();
        assert!(error.contains("iptables-nft-save cannot read the table nat"), "{error}");
    });
}

/// How long a load of a thousand services takes, and a change of one.
#[test]
fn a_thousand_services_take_seconds_and_a_change_less() {
    for programs in BOTH {
        in_namespace(move || {
            let service = |number: u16, endpoints: [u8; 2]| {
                let [high, low] = number.to_be_bytes();
                let ready = endpoints.map(|it| format!("{{addresses: [10.1.{low}.{it}]}}")).join(", ");
                format!(
                    "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: shop}}\n\
                     spec: {{type: NodePort, clusterIP: 10.96.{high}.{low}, clusterIPs: [10.96.{high}.{low}], ports: [{{port: 80, nodePort: {node}}}]}}\n\
                     ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {{name: s{number}-1, namespace: shop, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
                     addressType: IPv4\nendpoints: [{ready}]\nports: [{{name: '', port: 8080, protocol: TCP}}]\n",
                    node = 30000 + number,
                )
            };
            let many: String = (0..1000).map(|number| service(number, [1, 2])).collect();
            let model = model_of(&many);
            let host = Host::on(
                &model,
                NodeName::new(crate::generators::HERE),
                crate::generators::observed(),
                Default::default(),
            );
            let plans = everything(&model, &host);
            assert_eq!(plans.len(), 1000);
            let mut backend = Iptables::with(programs);
            let started = Instant::now();
            load(&mut backend, &host, &plans);
            let loaded = started.elapsed();
            let other = model_of(&service(7, [1, 3]));
            let change: Vec<_> = everything(&other, &host).into_iter().collect();
            let started = Instant::now();
            let applied = backend.change(&change).unwrap();
            let changed = started.elapsed();
            println!("{programs:?}: 1,000 x 2 in {loaded:?}, one change in {changed:?}");
            // The chain that leads to the endpoints, and those by which their addresses are found: one
            // that loses the old one, one for the new one, the one that leads there, and the root.
            assert!(applied.changes <= 5, "{applied:?}");
            assert_eq!(backend.differences().unwrap(), Vec::<String>::new());
            assert!(loaded < Duration::from_secs(60) && changed < loaded);
        });
    }
}
