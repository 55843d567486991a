//! A transaction: steps that the kernel takes all together or not at all.

use std::fmt;

use super::{Base, Chain, ChainName, Comment, Elements, Key, Rule, Set, SetName, SetSpec, Table, TableKey};

/// Steps in order. Nothing is sent before `Nft::commit`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub(super) steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes a table; one that is there already is left as it is.
    AddTable {
        /// Which.
        table: TableKey,
        /// Its remark.
        comment: Option<Comment>,
        /// Without effect.
        dormant: bool,
    },
    /// Deletes a table with all in it. `ENOENT` if there is none.
    DeleteTable(TableKey),
    /// Makes a chain without rules. `EEXIST` if it is there.
    AddChain {
        /// Of this table.
        table: TableKey,
        /// Its name.
        chain: ChainName,
        /// Where it is hooked.
        base: Option<Base>,
        /// Its remark.
        comment: Option<Comment>,
    },
    /// Deletes a chain's rules. `ENOENT` if there is no such chain.
    FlushChain(TableKey, ChainName),
    /// Deletes a chain with its rules. `EBUSY` while something jumps to it.
    DeleteChain(TableKey, ChainName),
    /// Deletes a set with its elements. `EBUSY` while a rule looks into it.
    DeleteSet(TableKey, SetName),
    /// Adds a rule at a chain's end.
    AddRule {
        /// Of this table.
        table: TableKey,
        /// At this chain's end.
        chain: ChainName,
        /// The rule.
        rule: Rule,
    },
    /// Makes a set without elements. `EEXIST` if it is there.
    AddSet {
        /// Of this table.
        table: TableKey,
        /// Its name.
        set: SetName,
        /// What it is made for.
        spec: SetSpec,
    },
    /// Adds elements. One that is there already with the same value is no error; with another value
    /// it is `EEXIST`, and a range that overlaps another one is `EEXIST`.
    AddElements {
        /// Of this table.
        table: TableKey,
        /// To this set,
        set: SetName,
        /// which is made like this.
        spec: SetSpec,
        /// The elements.
        elements: Elements,
    },
    /// Deletes elements. `ENOENT` if one is not there.
    DeleteElements {
        /// Of this table.
        table: TableKey,
        /// From this set,
        set: SetName,
        /// which is made like this.
        spec: SetSpec,
        /// The elements.
        elements: Elements,
    },
}

/// What a refused step was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The transaction as a whole.
    Batch,
    /// A table.
    Table(TableKey),
    /// A chain.
    Chain(TableKey, ChainName),
    /// A rule, counted from 0 within its chain's steps of this transaction, with its remark.
    Rule(TableKey, ChainName, usize, Option<Comment>),
    /// A set.
    Set(TableKey, SetName),
    /// Elements of a set; one of them, if the kernel said which.
    Elements(TableKey, SetName, Option<Key>),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch => f.write_str("the transaction"),
            Self::Table(table) => write!(f, "table {table}"),
            Self::Chain(table, chain) => write!(f, "chain {table} {chain}"),
            Self::Rule(table, chain, index, None) => write!(f, "rule {index} of chain {table} {chain}"),
            Self::Rule(table, chain, index, Some(comment)) => {
                write!(f, "rule {index} \"{comment}\" of chain {table} {chain}")
            }
            Self::Set(table, set) => write!(f, "set {table} {set}"),
            Self::Elements(table, set, None) => write!(f, "elements of set {table} {set}"),
            Self::Elements(table, set, Some(key)) => write!(f, "element {key} of set {table} {set}"),
        }
    }
}

impl Transaction {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// It would change nothing.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Its steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// With one more step.
    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Puts this table in the place of the one with its key, whether there is one or not. No packet
    /// meets a state between.
    pub fn replace(self, table: &Table) -> Self {
        self.replace_by(table.clone())
    }

    /// The same with a table that nobody needs any more.
    pub fn replace_by(self, table: Table) -> Self {
        self.remove(&table.key).create_all(table)
    }

    /// Deletes a table, whether there is one or not.
    pub fn remove(self, table: &TableKey) -> Self {
        // DESTROYTABLE would say it in one step, but only from Linux 6.3 on.
        self.then(Step::AddTable { table: table.clone(), comment: None, dormant: false })
            .then(Step::DeleteTable(table.clone()))
    }

    /// Makes a table with everything in it. Chains come before what jumps to them, sets before what
    /// looks into them.
    pub fn create(self, table: &Table) -> Self {
        self.create_all(table.clone())
    }

    fn create_all(mut self, table: Table) -> Self {
        self.steps.extend(Self::create_in_turns(table, usize::MAX).into_iter().flat_map(|turn| turn.steps));
        self
    }

    /// Makes a table that is not there, in several transactions of at most so many elements each. No
    /// packet meets it before the last one, which hooks its base chains.
    ///
    /// If anybody listens to nftables, the kernel holds two pages for each element until a transaction
    /// is over.
    pub fn create_in_turns(table: Table, most: usize) -> Vec<Self> {
        let Table { key, comment, dormant, chains, sets } = table;
        let (base, regular): (Vec<_>, Vec<_>) =
            chains.into_iter().partition(|(_, chain)| chain.base.is_some());
        let add_chain = |tx: Self, (name, Chain { base, comment, .. }): &(ChainName, Chain)| {
            let (chain, base, comment) = (name.clone(), *base, comment.clone());
            tx.then(Step::AddChain { table: key.clone(), chain, base, comment })
        };
        let frame = Self::new().then(Step::AddTable { table: key.clone(), comment, dormant });
        let frame = regular.iter().fold(frame, add_chain);
        let frame = sets.iter().fold(frame, |tx, (name, Set { spec, .. })| {
            tx.then(Step::AddSet { table: key.clone(), set: name.clone(), spec: spec.clone() })
        });
        let add_rules = |tx: Self, (chain, Chain { rules, .. }): (ChainName, Chain)| {
            rules.into_iter().fold(tx, |tx, rule| {
                tx.then(Step::AddRule { table: key.clone(), chain: chain.clone(), rule })
            })
        };
        // While the sets are empty: the kernel walks through a set for each rule that looks into it
        // (`nf_tables_bind_set`).
        let mut turns = vec![regular.into_iter().fold(frame, add_rules)];
        for (name, Set { spec, elements }) in sets {
            let mut elements = elements.into_iter().peekable();
            while elements.peek().is_some() {
                let some = elements.by_ref().take(most.max(1)).collect();
                turns.push(Self::new().add_elements(&key, &name, &spec, some));
            }
        }
        let last = base.iter().fold(Self::new(), add_chain);
        turns.push(base.into_iter().fold(last, add_rules));
        turns
    }

    /// Adds elements to a set made like `spec`.
    pub fn add_elements(self, table: &TableKey, set: &SetName, spec: &SetSpec, elements: Elements) -> Self {
        if elements.is_empty() {
            return self;
        }
        self.then(Step::AddElements { table: table.clone(), set: set.clone(), spec: spec.clone(), elements })
    }

    /// Deletes elements from a set made like `spec`.
    pub fn delete_elements(
        self,
        table: &TableKey,
        set: &SetName,
        spec: &SetSpec,
        elements: Elements,
    ) -> Self {
        if elements.is_empty() {
            return self;
        }
        self.then(Step::DeleteElements {
            table: table.clone(),
            set: set.clone(),
            spec: spec.clone(),
            elements,
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable { table, .. } => write!(f, "add table {table}"),
            Self::DeleteTable(table) => write!(f, "delete table {table}"),
            Self::AddChain { table, chain, .. } => write!(f, "add chain {table} {chain}"),
            Self::FlushChain(table, chain) => write!(f, "flush chain {table} {chain}"),
            Self::DeleteChain(table, chain) => write!(f, "delete chain {table} {chain}"),
            Self::DeleteSet(table, set) => write!(f, "delete set {table} {set}"),
            Self::AddRule { table, chain, rule: Rule { comment: Some(comment), .. } } => {
                write!(f, "add rule {table} {chain} \"{comment}\"")
            }
            Self::AddRule { table, chain, .. } => write!(f, "add rule {table} {chain}"),
            Self::AddSet { table, set, .. } => write!(f, "add set {table} {set}"),
            Self::AddElements { table, set, elements, .. } => {
                write!(f, "add {} elements to {table} {set}", elements.len())
            }
            Self::DeleteElements { table, set, elements, .. } => {
                write!(f, "delete {} elements from {table} {set}", elements.len())
            }
        }
    }
}
