//! The rules do what the semantics say, and each change of them is what leads there.

mod connections;
mod evaluate;
mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proptest::prelude::*;

use super::Program;
use super::rule::Table;
use super::saved::remove_all;
use crate::generators::{Scenario, changes, scenarios, settings};
use crate::host::{ClientHash, Host};
use crate::model::{Family, Model, NodeName, ServiceName};
use crate::plan::{self, Claims, ServicePlan};
use crate::simulate::{Outcome, Packet, simulate_remembering};
use evaluate::{End, Fake, Lists, ends};

pub(super) type Plans = BTreeMap<ServiceName, ServicePlan>;

/// What a manifest declares.
fn model_of(manifest: &str) -> Model {
    let update = crate::manifests::Folder::default().put("test.yaml", manifest);
    assert_eq!(update.problems.len(), 0);
    let mut model = Model::default();
    for change in update.changes {
        model.apply(change);
    }
    model
}

pub(super) fn everything(model: &Model, host: &Host) -> Plans {
    plan::everything(model, &Claims::of(model), host)
}

pub(super) fn loaded(host: &Host, plans: &Plans) -> Program {
    let mut program = Program::new(host);
    program.update(plans);
    program
}

/// Both families' rules, of a host that had none.
fn fakes(program: &Program) -> [Fake; 2] {
    Family::ALL.map(|family| {
        let mut fake = Fake::new();
        fake.restore(&program.repair(family, &fake.save()).text);
        fake
    })
}

fn of<'a>(fakes: &'a [Fake; 2], packet: &Packet) -> &'a Fake {
    &fakes[usize::from(packet.source.is_ipv6())]
}

/// As iptables mode is set.
pub(super) fn mine(mut scenario: Scenario) -> Scenario {
    scenario.host.settings.client_hash = ClientHash::Murmur;
    scenario
}

/// The ends that the semantics allow, with their probabilities.
fn expected(scenario: &Scenario, packet: &Packet, remembered: Option<SocketAddr>) -> Vec<(f64, End)> {
    let host = &scenario.host;
    match simulate_remembering(&scenario.model, host, packet, |_| remembered).outcome {
        Outcome::Untouched => vec![(1.0, End::Untouched)],
        Outcome::Drop => vec![(1.0, End::Dropped)],
        Outcome::Reject => vec![(1.0, End::Rejected)],
        Outcome::Endpoints(chances) => chances
            .iter()
            .map(|it| (it.probability, End::To { endpoint: it.endpoint, masquerade: it.masquerade }))
            .collect(),
    }
}

/// Sorted, so that they can be compared; probabilities to a millionth.
fn sorted(ends: impl IntoIterator<Item = (f64, End)>) -> Vec<(u32, End)> {
    let mut ends: Vec<_> = ends.into_iter().map(|(p, end)| ((p * 1e6).round() as u32, end)).collect();
    ends.sort_by_key(|(_, end)| format!("{end:?}"));
    ends
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// The rules, interpreted, do with random packets what the simulator says, by chance and again.
    #[test]
    fn the_rules_do_what_the_semantics_say(scenario in scenarios()) {
        let scenario = mine(scenario);
        let host = &scenario.host;
        let fakes = fakes(&loaded(host, &everything(&scenario.model, host)));
        for packet in &scenario.packets {
            let fake = of(&fakes, packet);
            let first = ends(fake, host, packet, &Lists::new());
            let seen = first.iter().map(|(p, end, _)| (*p, end.clone()));
            prop_assert_eq!(sorted(seen), sorted(expected(&scenario, packet, None)), "{}", packet);
            for (_, end, lists) in first {
                let End::To { endpoint, .. } = end else { continue };
                // The same client comes again, and sticks if it should.
                let again = ends(fake, host, packet, &lists).into_iter().map(|(p, end, _)| (p, end));
                let wanted = expected(&scenario, packet, Some(endpoint));
                prop_assert_eq!(sorted(again), sorted(wanted), "{} again", packet);
            }
        }
    }

    /// A client that comes by one frontend and then by another keeps its last endpoint.
    #[test]
    fn a_client_keeps_its_last_endpoint(scenario in scenarios(), way in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 2..6)) {
        let scenario = mine(scenario);
        let host = &scenario.host;
        let fakes = fakes(&loaded(host, &everything(&scenario.model, host)));
        let client = scenario.packets[0].source;
        let of_client: Vec<Packet> = scenario.packets.iter().filter(|it| it.source.is_ipv4() == client.is_ipv4())
            .map(|it| Packet { source: client, input: scenario.packets[0].input.clone(), ..it.clone() }).collect();
        let mut lists = Lists::new();
        let mut last: BTreeMap<crate::model::PortName, SocketAddr> = BTreeMap::new();
        for (which, chance) in way {
            let packet = which.get(&of_client);
            let found = ends(of(&fakes, packet), host, packet, &lists);
            let trace = simulate_remembering(&scenario.model, host, packet, |port| last.get(port).copied());
            let remembered = trace.reached.as_ref().and_then(|(port, _)| last.get(port).copied());
            let seen = found.iter().map(|(p, end, _)| (*p, end.clone()));
            prop_assert_eq!(sorted(seen), sorted(expected(&scenario, packet, remembered)), "{}", packet);
            let (_, end, after) = chance.get(&found);
            lists = after.clone();
            if let (End::To { endpoint, .. }, Some((port, _))) = (end, trace.reached) {
                last.insert(port, *endpoint);
            }
        }
    }

    /// Change by change the rules get where one load would have got them. In between a packet meets what
    /// it met before, or what it will meet, or is dropped, so that who asks again is served.
    #[test]
    fn changes_lead_where_a_load_leads(changes in prop::collection::vec(changes(), 1..30), settings in settings(), scenario in scenarios()) {
        let (mut model, mut claims) = (Model::default(), Claims::default());
        let me = NodeName::new(crate::generators::HERE);
        let mut host = Host::on(&model, me, crate::generators::observed(), settings);
        host.settings.client_hash = ClientHash::Murmur;
        let mut program = Program::new(&host);
        let mut fakes = fakes(&program);
        for change in changes {
            let touched = model.apply(change);
            let again = claims.absorb(&model, &touched.services);
            let plans: Plans =
                again.into_iter().map(|name| (name.clone(), plan::service(&model, &claims, &host, &name))).collect();
            let before = fakes.clone();
            let steps = program.update(&plans);
            let mut between = Vec::new();
            for ((_, steps), fake) in steps.iter().zip(&mut fakes) {
                let mut states = Vec::new();
                for part in steps.text.split_inclusive("COMMIT\n") {
                    fake.restore(part);
                    states.push(fake.clone());
                }
                between.push(states);
            }
            for packet in &scenario.packets {
                let index = usize::from(packet.source.is_ipv6());
                let met = |fake: &Fake| -> Vec<End> {
                    ends(fake, &host, packet, &Lists::new()).into_iter().map(|(_, end, _)| end).collect()
                };
                let (was, will) = (met(&before[index]), met(&fakes[index]));
                for end in between[index].iter().flat_map(met) {
                    let known = end == End::Dropped || was.contains(&end) || will.contains(&end);
                    prop_assert!(known, "{}: {:?}, {:?}, {:?}", packet, was, end, will);
                }
            }
        }
        let whole = loaded(&host, &everything(&model, &host));
        for (family, fake) in Family::ALL.into_iter().zip(fakes) {
            // A proxy that starts anew finds nothing to change.
            prop_assert_eq!(whole.repair(family, &fake.save()).text, "");
            prop_assert_eq!(whole.differences(family, &fake.save()), Vec::<String>::new());
            let counted = |program: &Program| Table::ALL.map(|table| program.rules(family, table));
            prop_assert_eq!(counted(&program), counted(&whole));
        }
    }

    /// Whatever somebody does to our rules is put right, and theirs stay.
    #[test]
    fn what_others_do_is_undone(scenario in scenarios(), other in scenarios(), deeds in prop::collection::vec((any::<prop::sample::Index>(), 0u8..5), 1..6)) {
        let host = &mine(scenario.clone()).host;
        let program = loaded(host, &everything(&scenario.model, host));
        let wrong = loaded(host, &everything(&other.model, host));
        for (family, right) in Family::ALL.into_iter().zip(fakes(&program)) {
            let mut fake = right.clone();
            fake.restore(&wrong.repair(family, &fake.save()).text);
            fake.restore("*nat\n:OTHERS - [0:0]\n-A OTHERS -j RETURN\n-A PREROUTING -j OTHERS\nCOMMIT\n".replace("OTHERS", "WEFTLESS").as_str());
            for (which, deed) in &deeds {
                let ours: Vec<(String, String, Vec<String>)> = fake.chains()
                    .filter(|(_, name, _)| name.starts_with("WEFT-"))
                    .map(|(table, name, rules)| (table.to_owned(), name.to_owned(), rules.clone())).collect();
                let (table, chain, rules) = which.get(&ours);
                let line = match (deed, rules.last()) {
                    (0, _) => format!(":{chain} - [0:0]\n"),
                    (1, _) => format!("-A {chain} -j DROP\n"),
                    (2, Some(last)) => format!("-D {chain} {last}\n"),
                    (3, _) => format!(":WEFT-NONSENSE - [0:0]\n-A WEFT-NONSENSE -g {chain}\n"),
                    _ => format!("-I OUTPUT -j {chain}\n"),
                };
                fake.restore(&format!("*{table}\n{line}COMMIT\n"));
            }
            fake.restore(&program.repair(family, &fake.save()).text);
            prop_assert_eq!(program.repair(family, &fake.save()).changes, 0);
            fake.restore("*nat\n-D PREROUTING -j WEFTLESS\n:WEFTLESS - [0:0]\n-X WEFTLESS\nCOMMIT\n");
            prop_assert_eq!(&fake, &right);
            fake.restore(&remove_all(&fake.save()));
            prop_assert_eq!(fake, Fake::new());
        }
    }
}

/// Programs that print rules in other words do not make us write again and again.
#[test]
fn other_words_are_learned() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let scenario = mine(scenarios().new_tree(&mut runner).unwrap().current());
    let mut program = loaded(&scenario.host, &everything(&scenario.model, &scenario.host));
    let other = |fake: &Fake| {
        let text = fake.save().replace("/0.0.0.15 ", "/0.0.0.0xf ");
        text.replace("-m comment --comment \"weft proxy\" -j", "-j").replace("-j MARK", "-m all -j MARK")
    };
    let mut fake = Fake::new();
    fake.restore(&program.repair(Family::V4, &fake.save()).text);
    assert_ne!(program.repair(Family::V4, &other(&fake)).changes, 0);
    program.learn(Family::V4, &other(&fake));
    assert_eq!(program.differences(Family::V4, &other(&fake)), Vec::<String>::new());
    fake.restore("*nat\n:WEFT-MASQUERADE - [0:0]\nCOMMIT\n");
    assert_eq!(
        program.differences(Family::V4, &other(&fake)),
        ["nat: chain WEFT-MASQUERADE has other rules"]
    );
}

/// One service's change rewrites its chains and the few that it shares.
#[test]
fn a_change_is_small() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let scenario = mine(scenarios().new_tree(&mut runner).unwrap().current());
    let plans = everything(&scenario.model, &scenario.host);
    let mut program = loaded(&scenario.host, &plans);
    for (family, steps) in program.update(&plans) {
        assert_eq!(steps.text, "", "{family:?}: nothing changed");
    }
    let gone = ServicePlan::default();
    let names: BTreeSet<&ServiceName> = plans.keys().collect();
    for name in names {
        let all: usize =
            Family::ALL.map(|family| program.repair(family, &Fake::new().save()).changes).iter().sum();
        let changes: usize = program.update([(name, &gone)]).iter().map(|(_, steps)| steps.changes).sum();
        assert!(changes < all, "{name}: {changes} of {all}");
    }
}

/// Internal traffic stays on the host and external does not, so a client may have been at an endpoint
/// that the other way does not lead to. What it had before that is forgotten.
#[test]
fn a_client_that_was_sent_elsewhere_stays_there() {
    let model = model_of(
        r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  internalTrafficPolicy: Local
  sessionAffinity: ClientIP
  ports: [{port: 80, nodePort: 30001}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1], nodeName: birch}, {addresses: [10.1.0.5], nodeName: ash}]
ports: [{name: '', port: 8080, protocol: TCP}]
"#,
    );
    let me = NodeName::new(crate::generators::HERE);
    let host = Host::on(&model, me, crate::generators::observed(), crate::host::Settings::default());
    let fakes = fakes(&loaded(&host, &everything(&model, &host)));
    let packet = |destination: &str| Packet {
        source: "192.168.7.1".parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: crate::model::Protocol::Tcp,
        input: Some("uplink".to_owned()),
    };
    let [near, far]: [SocketAddr; 2] = ["10.1.0.5:8080", "10.1.0.1:8080"].map(|it| it.parse().unwrap());
    let to = |endpoint, masquerade| End::To { endpoint, masquerade };
    let (outside, inside) = (packet("192.0.2.1:30001"), packet("10.96.0.1:80"));
    let first = ends(&fakes[0], &host, &outside, &Lists::new());
    let (_, _, lists) = first.into_iter().find(|(_, end, _)| *end == to(far, true)).expect("one of two");
    let [(_, end, lists)] = ends(&fakes[0], &host, &inside, &lists).try_into().expect("one is left");
    assert_eq!(end, to(near, false));
    let [(_, end, _)] = ends(&fakes[0], &host, &outside, &lists).try_into().expect("it stays");
    assert_eq!(end, to(near, true));
}

/// An endpoint may be at an address that is a frontend itself: who was translated is not refused.
#[test]
fn who_was_translated_is_not_refused() {
    let service = |name: &str, ip: &str, port: u16, endpoints: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIP: {ip}, clusterIPs: [{ip}], ports: [{{port: {port}}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nendpoints: [{endpoints}]\nports: [{{name: '', port: 8080, protocol: TCP}}]\n"
        )
    };
    let model = model_of(
        &[
            service("web", "10.96.0.1", 80, "{addresses: [10.96.0.9]}"),
            service("empty", "10.96.0.9", 8080, ""),
        ]
        .concat(),
    );
    let me = NodeName::new(crate::generators::HERE);
    let host = Host::on(&model, me, crate::generators::observed(), crate::host::Settings::default());
    let fakes = fakes(&loaded(&host, &everything(&model, &host)));
    let end = |destination: &str| {
        let packet = Packet {
            source: "192.168.7.1".parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: crate::model::Protocol::Tcp,
            input: Some("uplink".to_owned()),
        };
        let [(_, end, _)] = ends(&fakes[0], &host, &packet, &Lists::new()).try_into().expect("no choice");
        end
    };
    assert_eq!(
        end("10.96.0.1:80"),
        End::To { endpoint: "10.96.0.9:8080".parse().unwrap(), masquerade: false }
    );
    assert_eq!(end("10.96.0.9:8080"), End::Rejected);
}
