//! The table does what the semantics say, and each change of it is what leads there.

mod evaluate;
mod kernel;
mod relayed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proptest::prelude::*;
use weft_kernel::nft::{Chain, Diff, Set, Step, Table, Transaction, diff};

use super::Program;
use crate::generators::{Scenario, changes, scenarios, settings};
use crate::host::Host;
use crate::model::{Model, NodeName, ServiceName};
use crate::plan::{self, Claims, ServicePlan};
use crate::simulate::{Outcome, simulate_remembering};
use evaluate::{Dynamic, End, Walk};

/// What the kernel makes of a transaction; it refuses what the kernel would refuse.
fn apply(table: &mut Table, transaction: &Transaction) {
    for step in transaction.steps() {
        match step {
            Step::AddSet { set, spec, .. } => {
                let new = Set { spec: spec.clone(), elements: BTreeMap::new() };
                assert_eq!(table.sets.insert(set.clone(), new), None, "{set} is new");
            }
            Step::AddChain { chain, base, comment, .. } => {
                let new = Chain { base: *base, comment: comment.clone(), rules: Vec::new() };
                assert_eq!(table.chains.insert(chain.clone(), new), None, "{chain} is new");
            }
            Step::AddRule { chain, rule, .. } => {
                table.chains.get_mut(chain).expect("the chain is there").rules.push(rule.clone());
            }
            Step::FlushChain(_, chain) => table.chains.get_mut(chain).expect("there").rules.clear(),
            Step::DeleteChain(_, chain) => {
                table.chains.remove(chain).expect("there");
                let used = format!("{:?}", table.chains.values().map(|it| &it.rules).collect::<Vec<_>>());
                assert!(!used.contains(&format!("{:?}", chain.as_str())), "{chain} is still jumped to");
            }
            Step::DeleteSet(_, set) => {
                table.sets.remove(set).expect("there");
            }
            Step::AddElements { set, elements, .. } => {
                let there = &mut table.sets.get_mut(set).expect("the set is there").elements;
                for (key, value) in elements {
                    let old = there.insert(key.clone(), value.clone());
                    assert!(old.is_none() || old.as_ref() == Some(value), "{set}: {key} has another value");
                }
            }
            Step::DeleteElements { set, elements, .. } => {
                let there = &mut table.sets.get_mut(set).expect("the set is there").elements;
                for key in elements.keys() {
                    assert!(there.remove(key).is_some(), "{set}: {key} is not there");
                }
            }
            Step::AddTable { .. } | Step::DeleteTable(_) => panic!("the table stays"),
        }
    }
}

fn everything(model: &Model, host: &Host) -> BTreeMap<ServiceName, ServicePlan> {
    plan::everything(model, &Claims::of(model), host)
}

/// All ends that chance may lead to.
fn ends(table: &Table, scenario: &Scenario, at: usize, dynamic: &Dynamic) -> Vec<(End, Dynamic)> {
    let packet = &scenario.packets[at];
    let once = |chance| {
        let mut walk = Walk::new(table, &scenario.host, packet, dynamic.clone());
        walk.chance = chance;
        let end = walk.run();
        (end, walk.dynamic, walk.modulus)
    };
    let (_, _, modulus) = once(0);
    (0..modulus).map(once).map(|(end, dynamic, _)| (end, dynamic)).collect()
}

/// The same from the semantics.
fn expected(scenario: &Scenario, at: usize, remembered: Option<SocketAddr>) -> Vec<End> {
    let packet = &scenario.packets[at];
    match simulate_remembering(&scenario.model, &scenario.host, packet, |_| remembered).outcome {
        Outcome::Untouched => vec![End::Untouched],
        Outcome::Drop => vec![End::Dropped],
        Outcome::Reject => vec![End::Rejected],
        Outcome::Endpoints(chances) => chances
            .iter()
            .map(|chance| End::To { endpoint: chance.endpoint, masquerade: chance.masquerade })
            .collect(),
    }
}

fn sorted(mut ends: Vec<End>) -> Vec<End> {
    ends.sort_by_key(|end| format!("{end:?}"));
    ends
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The rules, interpreted, do with random packets what the simulator says, by chance and again.
    #[test]
    fn the_rules_do_what_the_semantics_say(scenario in scenarios()) {
        let plans = everything(&scenario.model, &scenario.host);
        let table = Program::load(&scenario.host, plans.clone(), None).table();
        for at in 0..scenario.packets.len() {
            let packet = &scenario.packets[at];
            let first = ends(&table, &scenario, at, &Dynamic::new());
            let seen: Vec<End> = first.iter().map(|(end, _)| end.clone()).collect();
            prop_assert_eq!(sorted(seen), sorted(expected(&scenario, at, None)), "{}", packet);
            for (end, dynamic) in first {
                let End::To { endpoint, .. } = end else { continue };
                // The same client comes again, and sticks if it should.
                let again = ends(&table, &scenario, at, &dynamic).into_iter().map(|(end, _)| end).collect();
                let wanted = expected(&scenario, at, Some(endpoint));
                prop_assert_eq!(sorted(again), sorted(wanted), "{} again", packet);
            }
        }
    }

    /// A client whose endpoint is gone is sent to another one at once.
    #[test]
    fn nobody_sticks_to_what_is_gone(before in scenarios(), after in scenarios()) {
        let host = &after.host;
        let mut program = Program::load(host, everything(&before.model, host), None);
        let mut kernel = program.table();
        let mixed = Scenario { model: before.model.clone(), host: host.clone(), packets: after.packets.clone() };
        let mut remembered = Dynamic::new();
        for at in 0..mixed.packets.len() {
            for (_, dynamic) in ends(&kernel, &mixed, at, &Dynamic::new()) {
                remembered.extend(dynamic);
            }
        }
        let plans = everything(&after.model, host);
        let gone = ServicePlan::default();
        let names: BTreeSet<&ServiceName> =
            before.model.declared().chain(after.model.declared()).map(|(name, _)| name).collect();
        let change = program.update(names.into_iter().map(|name| (name, plans.get(name).unwrap_or(&gone))));
        apply(&mut kernel, &change);
        for at in 0..after.packets.len() {
            let possible = expected(&after, at, None);
            for (end, _) in ends(&kernel, &after, at, &remembered) {
                prop_assert!(possible.contains(&end), "{}: {:?} is none of {:?}", after.packets[at], end, possible);
            }
        }
    }

    /// Change by change the kernel gets where one load would have got it, whatever the slots are.
    #[test]
    fn changes_lead_where_a_load_leads(changes in prop::collection::vec(changes(), 1..40), settings in settings()) {
        let (mut model, mut claims) = (Model::default(), Claims::default());
        let me = NodeName::new(crate::generators::HERE);
        let host = Host::on(&model, me, crate::generators::observed(), settings);
        let mut program = Program::new(&host);
        let mut kernel = program.table();
        for change in changes {
            let touched = model.apply(change);
            let again = claims.absorb(&model, &touched.services);
            let plans: BTreeMap<ServiceName, ServicePlan> = again
                .into_iter()
                .map(|name| (name.clone(), plan::service(&model, &claims, &host, &name)))
                .collect();
            let change = program.update(&plans);
            apply(&mut kernel, &change);
            prop_assert_eq!(&kernel, &program.table());
        }
        // A proxy that starts anew finds nothing to change, and the same to collect.
        let plans = plan::everything(&model, &claims, &host);
        let mut restarted = Program::load(&host, plans, Some(&kernel));
        prop_assert_eq!(diff(&restarted.table(), Some(&kernel)), Diff::Same);
        let mut other = kernel.clone();
        apply(&mut other, &restarted.collect());
        apply(&mut kernel, &program.collect());
        prop_assert_eq!(&kernel, &program.table());
        prop_assert_eq!(&other, &kernel);
        prop_assert_eq!(diff(&restarted.table(), Some(&kernel)), Diff::Same);
        prop_assert!(!program.has_unused() && !restarted.has_unused());
    }
}

/// Objects of the kernel grow with how different services are, not with how many there are.
#[test]
fn more_services_are_more_elements_only() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let scenario = scenarios().new_tree(&mut runner).unwrap().current();
    let one = everything(&scenario.model, &scenario.host);
    let table = Program::load(&scenario.host, one.clone(), None).table();
    let renamed = one.iter().map(|(name, plan)| {
        let other = ServiceName { namespace: format!("{}-2", name.namespace).into(), ..name.clone() };
        (other, plan.clone())
    });
    let two: BTreeMap<_, _> = one.clone().into_iter().chain(renamed).collect();
    let again = Program::load(&scenario.host, two, None).table();
    assert_eq!(again.chains.len(), table.chains.len());
    assert_eq!(again.sets.len(), table.sets.len());
}
