//! From what is there to what should be: nothing, a few parts, or a new table.

use super::{Chain, ChainName, Elements, Set, SetName, SetSpec, Step, Table, Transaction};

/// What it takes to make an observed table the desired one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diff {
    /// Nothing.
    Same,
    /// Only these sets' elements; the rules and everything they count stay.
    Elements(Vec<ElementDiff>),
    /// Some sets and chains; all others stay, with what they count and what packets put into them.
    Parts(Box<Parts>),
    /// All of it.
    Rebuild,
}

/// What one set lacks and what it has too much. A key whose value changed is in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementDiff {
    /// Which set.
    pub set: SetName,
    /// What it is made for.
    pub spec: SetSpec,
    /// What goes.
    pub delete: Elements,
    /// What comes.
    pub add: Elements,
}

/// What differs, where the table as such can stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Sets to make.
    pub new_sets: Vec<(SetName, Set)>,
    /// Chains to make.
    pub new_chains: Vec<(ChainName, Chain)>,
    /// Chains whose rules are others, with the rules they should have.
    pub changed_chains: Vec<(ChainName, Chain)>,
    /// Elements of the sets that stay.
    pub elements: Vec<ElementDiff>,
    /// Chains that go.
    pub old_chains: Vec<ChainName>,
    /// Sets that go.
    pub old_sets: Vec<SetName>,
}

/// Compares. Elements of dynamic sets come and go with packets, so they are nobody's desired state.
pub fn diff(desired: &Table, observed: Option<&Table>) -> Diff {
    let Some(observed) = observed else { return Diff::Rebuild };
    let frame = |table: &Table| (table.key.clone(), table.comment.clone(), table.dormant);
    if frame(desired) != frame(observed) {
        return Diff::Rebuild;
    }
    let mut parts = Parts::default();
    for (name, set) in &desired.sets {
        match observed.sets.get(name) {
            None => parts.new_sets.push((name.clone(), set.clone())),
            // A set cannot be made another while rules look into it.
            Some(there) if there.spec != set.spec => return Diff::Rebuild,
            Some(there) => parts.elements.extend(elements(name, set, there)),
        }
    }
    for (name, chain) in &desired.chains {
        match observed.chains.get(name) {
            None => parts.new_chains.push((name.clone(), chain.clone())),
            Some(there) if (there.base, &there.comment) != (chain.base, &chain.comment) => {
                return Diff::Rebuild;
            }
            Some(there) if there.rules != chain.rules => {
                parts.changed_chains.push((name.clone(), chain.clone()));
            }
            Some(_) => {}
        }
    }
    parts.old_chains =
        observed.chains.keys().filter(|name| !desired.chains.contains_key(name)).cloned().collect();
    parts.old_sets = observed.sets.keys().filter(|name| !desired.sets.contains_key(name)).cloned().collect();
    let only_elements = Parts { elements: Vec::new(), ..parts.clone() } == Parts::default();
    match (only_elements, parts.elements.is_empty()) {
        (true, true) => Diff::Same,
        (true, false) => Diff::Elements(parts.elements),
        (false, _) => Diff::Parts(Box::new(parts)),
    }
}

fn elements(name: &SetName, desired: &Set, observed: &Set) -> Option<ElementDiff> {
    if desired.spec.dynamic {
        return None;
    }
    let missing = |from: &Elements, to: &Elements| -> Elements {
        let not_there = from.iter().filter(|(key, value)| to.get(key) != Some(value));
        not_there.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let delete = missing(&observed.elements, &desired.elements);
    let add = missing(&desired.elements, &observed.elements);
    let differs = !delete.is_empty() || !add.is_empty();
    differs.then(|| ElementDiff { set: name.clone(), spec: desired.spec.clone(), delete, add })
}

impl Diff {
    /// Nothing to do.
    pub fn is_same(&self) -> bool {
        *self == Self::Same
    }

    /// The same as steps. `desired` is the table it was made for.
    pub fn transaction(&self, desired: &Table) -> Transaction {
        match self {
            Self::Same => Transaction::new(),
            Self::Rebuild => Transaction::new().replace(desired),
            Self::Elements(changes) => change_elements(Transaction::new(), desired, changes),
            Self::Parts(parts) => parts.transaction(desired),
        }
    }
}

fn change_elements(tx: Transaction, desired: &Table, changes: &[ElementDiff]) -> Transaction {
    // Deletions first: a range may be about to take another one's place.
    let deleted = changes.iter().fold(tx, |tx, change| {
        tx.delete_elements(&desired.key, &change.set, &change.spec, change.delete.clone())
    });
    changes.iter().fold(deleted, |tx, change| {
        tx.add_elements(&desired.key, &change.set, &change.spec, change.add.clone())
    })
}

impl Parts {
    /// What is looked into or jumped to comes before whoever does it, and goes after.
    fn transaction(&self, desired: &Table) -> Transaction {
        let table = &desired.key;
        let mut tx = Transaction::new();
        for (set, Set { spec, .. }) in &self.new_sets {
            tx = tx.then(Step::AddSet { table: table.clone(), set: set.clone(), spec: spec.clone() });
        }
        for (chain, Chain { base, comment, .. }) in &self.new_chains {
            let (base, comment) = (*base, comment.clone());
            tx = tx.then(Step::AddChain { table: table.clone(), chain: chain.clone(), base, comment });
        }
        for (set, Set { spec, elements }) in &self.new_sets {
            tx = tx.add_elements(table, set, spec, elements.clone());
        }
        for (chain, _) in &self.changed_chains {
            tx = tx.then(Step::FlushChain(table.clone(), chain.clone()));
        }
        for (chain, Chain { rules, .. }) in self.new_chains.iter().chain(&self.changed_chains) {
            for rule in rules {
                let (table, chain, rule) = (table.clone(), chain.clone(), rule.clone());
                tx = tx.then(Step::AddRule { table, chain, rule });
            }
        }
        tx = change_elements(tx, desired, &self.elements);
        // Old chains may jump to one another.
        for chain in &self.old_chains {
            tx = tx.then(Step::FlushChain(table.clone(), chain.clone()));
        }
        // And the elements of old maps may lead to them.
        for set in &self.old_sets {
            tx = tx.then(Step::DeleteSet(table.clone(), set.clone()));
        }
        for chain in &self.old_chains {
            tx = tx.then(Step::DeleteChain(table.clone(), chain.clone()));
        }
        tx
    }
}
