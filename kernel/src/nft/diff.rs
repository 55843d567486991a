//! From what is there to what should be: nothing, a few elements, or a new table.

use super::{Elements, SetName, SetSpec, Table, Transaction};

/// What it takes to make an observed table the desired one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diff {
    /// Nothing.
    Same,
    /// Only these sets' elements; the rules and everything they count stay.
    Elements(Vec<ElementDiff>),
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

/// Compares. Elements of dynamic sets come and go with packets, so they are nobody's desired state.
pub fn diff(desired: &Table, observed: Option<&Table>) -> Diff {
    let Some(observed) = observed else { return Diff::Rebuild };
    let frame = |table: &Table| (table.key.clone(), table.comment.clone(), table.dormant);
    let same_specs = desired.sets.len() == observed.sets.len()
        && desired.sets.iter().all(|(name, set)| observed.sets.get(name).is_some_and(|o| o.spec == set.spec));
    if frame(desired) != frame(observed) || desired.chains != observed.chains || !same_specs {
        return Diff::Rebuild;
    }
    let mut changes = Vec::new();
    for (name, set) in desired.sets.iter().filter(|(_, set)| !set.spec.dynamic) {
        let Some(there) = observed.sets.get(name) else { return Diff::Rebuild };
        let missing = |from: &Elements, to: &Elements| -> Elements {
            let not_there = from.iter().filter(|(key, value)| to.get(key) != Some(value));
            not_there.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let delete = missing(&there.elements, &set.elements);
        let add = missing(&set.elements, &there.elements);
        if !delete.is_empty() || !add.is_empty() {
            changes.push(ElementDiff { set: name.clone(), spec: set.spec.clone(), delete, add });
        }
    }
    if changes.is_empty() { Diff::Same } else { Diff::Elements(changes) }
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
            Self::Elements(changes) => {
                // Deletions first: a range may be about to take another one's place.
                let deleted = changes.iter().fold(Transaction::new(), |tx, change| {
                    tx.delete_elements(&desired.key, &change.set, &change.spec, change.delete.clone())
                });
                changes.iter().fold(deleted, |tx, change| {
                    tx.add_elements(&desired.key, &change.set, &change.spec, change.add.clone())
                })
            }
        }
    }
}
