//! What iptables should hold, kept service by service, and what one change takes. Pure.

use std::collections::BTreeMap;

use super::frame::{At, Frame};
use super::parts::Parts;
use super::rule::{Rule, Table};
use super::saved;
use super::steps::{self, Delta};
use super::tree::{Key, Tree};
use crate::host::Host;
use crate::model::{Family, ServiceName};
use crate::plan::ServicePlan;

/// Everything that iptables should hold, in both families.
///
/// A change of one service costs what that service has, and a few chains that it shares with others.
/// What was asked for is taken as done: after a failure compare with what is there
/// ([`Program::repair`]).
#[derive(Clone, Debug)]
pub struct Program {
    rulesets: [Ruleset; 2],
}

/// What is to be told to `iptables-restore` in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// The text; empty if there is nothing to do.
    pub text: String,
    /// How many chains and jumps differ.
    pub changes: usize,
}

/// One family's.
#[derive(Clone, Debug)]
struct Ruleset {
    frame: Frame,
    trees: BTreeMap<At, Tree>,
    chains: BTreeMap<Table, BTreeMap<String, Vec<Rule>>>,
    /// How many rules they hold.
    rules: BTreeMap<Table, usize>,
    services: BTreeMap<ServiceName, Held>,
    /// Rules of ours as the host's programs print them, where that is not as we write them.
    words: BTreeMap<Rule, Rule>,
}

/// What one service has.
#[derive(Clone, Debug, Default)]
struct Held {
    chains: Box<[String]>,
    entries: Box<[(At, Key)]>,
}

impl Program {
    /// For a host without services.
    pub fn new(host: &Host) -> Self {
        Self { rulesets: Family::ALL.map(|family| Ruleset::new(Frame::of(host, family))) }
    }

    /// Whether this program is one for that host: if not, it takes another one, made anew.
    pub fn fits(&self, host: &Host) -> bool {
        self.rulesets.iter().all(|rules| rules.frame == Frame::of(host, rules.frame.family))
    }

    /// Takes in what some services need from now on, and says what that changes, in each family.
    pub fn update<'a>(
        &mut self,
        plans: impl IntoIterator<Item = (&'a ServiceName, &'a ServicePlan)> + Clone,
    ) -> Vec<(Family, Steps)> {
        self.rulesets
            .iter_mut()
            .map(|rules| (rules.frame.family, Steps::of(&rules.update(plans.clone()))))
            .collect()
    }

    /// What leads from what was printed to what should be there.
    pub fn repair(&self, family: Family, saved: &str) -> Steps {
        Steps::of(&self.ruleset(family).from(saved))
    }

    /// Learns how the host's programs print what should be there, from what they print right after all of
    /// it was written: another version may have other words, and must not make us write again and again.
    pub fn learn(&mut self, family: Family, saved: &str) {
        for rules in self.rulesets.iter_mut().filter(|rules| rules.frame.family == family) {
            for table in Table::ALL {
                let wanted = rules.chains.get(&table).cloned().unwrap_or_default();
                rules.words.extend(saved::read(saved, table).in_words(&rules.words).words(table, &wanted));
            }
        }
    }

    /// What differs between what was printed and what should be there, in words.
    pub fn differences(&self, family: Family, saved: &str) -> Vec<String> {
        let [nat, filter] = self.ruleset(family).from(saved);
        [nat.words(Table::Nat), filter.words(Table::Filter)].concat()
    }

    /// How many rules a table should hold in one family.
    pub(super) fn rules(&self, family: Family, table: Table) -> usize {
        self.ruleset(family).rules.get(&table).copied().unwrap_or_default()
    }

    fn ruleset(&self, family: Family) -> &Ruleset {
        let [v4, v6] = &self.rulesets;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

impl Steps {
    fn of([nat, filter]: &[Delta; 2]) -> Self {
        Self { text: steps::text(nat, filter), changes: nat.len() + filter.len() }
    }
}

impl Ruleset {
    fn new(frame: Frame) -> Self {
        let mut chains: BTreeMap<Table, BTreeMap<String, Vec<Rule>>> = BTreeMap::new();
        for (table, name, rules) in frame.chains() {
            chains.entry(table).or_default().insert(name.to_owned(), rules);
        }
        let trees: BTreeMap<At, Tree> = frame.trees().into_iter().collect();
        for (at, tree) in &trees {
            // Only who is strict has a tree of cluster addresses.
            if *at != At::ClusterIps || frame.is_strict() {
                let (name, rules) = tree.root();
                chains.entry(at.table()).or_default().insert(name, rules);
            }
        }
        let held =
            |(table, chains): (&Table, &BTreeMap<_, Vec<_>>)| (*table, chains.values().map(Vec::len).sum());
        let rules = chains.iter().map(held).collect();
        Self { frame, trees, chains, rules, services: BTreeMap::new(), words: BTreeMap::new() }
    }

    /// From what was printed, for both tables.
    fn from(&self, printed: &str) -> [Delta; 2] {
        Table::ALL.map(|table| {
            let wanted = self.chains.get(&table).cloned().unwrap_or_default();
            saved::read(printed, table).in_words(&self.words).to(table, wanted)
        })
    }

    fn update<'a>(
        &mut self,
        plans: impl IntoIterator<Item = (&'a ServiceName, &'a ServicePlan)>,
    ) -> [Delta; 2] {
        let [mut nat, mut filter] = [Delta::default(), Delta::default()];
        // All that goes, before all that comes: a frontend may go from one service to another.
        let mut coming: Vec<(&ServiceName, Parts)> = Vec::new();
        for (name, plan) in plans {
            let parts = Parts::of(plan, &self.frame);
            let held = self.services.remove(name).unwrap_or_default();
            for (at, key) in &held.entries {
                if let Some(tree) = self.trees.get_mut(at) {
                    tree.remove(key);
                }
            }
            for chain in held.chains.into_iter().filter(|chain| !parts.chains.contains_key(chain)) {
                self.put(Table::Nat, chain, None, &mut nat);
            }
            coming.push((name, parts));
        }
        for (name, parts) in coming {
            if parts == Parts::default() {
                continue;
            }
            let held = Held {
                chains: parts.chains.keys().cloned().collect(),
                entries: parts.entries.keys().copied().collect(),
            };
            self.services.insert(name.clone(), held);
            for ((at, key), rules) in parts.entries {
                if let Some(tree) = self.trees.get_mut(&at) {
                    tree.add(key, rules);
                }
            }
            for (chain, rules) in parts.chains {
                self.put(Table::Nat, chain, Some(rules), &mut nat);
            }
        }
        for at in At::ALL {
            let rewritten = self.trees.get_mut(&at).map(Tree::rewritten).unwrap_or_default();
            let delta = match at.table() {
                Table::Nat => &mut nat,
                Table::Filter => &mut filter,
            };
            for (chain, rules) in rewritten {
                self.put(at.table(), chain, rules, delta);
            }
        }
        [nat, filter]
    }

    /// From now on the chain holds this. What it held at first is kept.
    fn put(&mut self, table: Table, chain: String, rules: Option<Vec<Rule>>, delta: &mut Delta) {
        let chains = self.chains.entry(table).or_default();
        let before = match &rules {
            Some(rules) => chains.insert(chain.clone(), rules.clone()),
            None => chains.remove(&chain),
        };
        let held = self.rules.entry(table).or_default();
        *held += rules.as_ref().map_or(0, Vec::len);
        *held -= before.as_ref().map_or(0, Vec::len);
        delta.before.entry(chain.clone()).or_insert(before);
        delta.after.insert(chain, rules);
    }
}
