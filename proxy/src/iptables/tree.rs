//! Which frontend is it? Rules are tried one after the other, so frontends are sorted into a tree of
//! chains: addresses by their last byte, half a byte at a time, ports by blocks of 64. Of ten thousand
//! services a packet is compared with some fifty things.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::rule::{Rule, Side};
use crate::model::{Family, Protocol};

/// What rules are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// A frontend at an address.
    Address(IpAddr, Protocol, u16),
    /// An address as a whole. Of two that have it, the first one's rules come first.
    Whole(IpAddr, bool),
    /// A node port.
    Port(Protocol, u16),
}

/// A chain at the end of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Leaf {
    /// Addresses with that last byte.
    Byte(u8),
    /// Ports of a block, by its first.
    Block(Protocol, u16),
}

const BLOCK: u16 = 64;

/// Some frontends, and what is done about them.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    family: Family,
    /// Which address is looked at.
    side: Side,
    root: &'static str,
    /// What the root does first.
    head: Vec<Rule>,
    /// Where what is not found goes on.
    next: Option<&'static str>,
    leaves: BTreeMap<Leaf, BTreeMap<Key, Held>>,
    /// What changed since the last [`Tree::rewritten`].
    dirty: BTreeSet<Leaf>,
}

#[derive(Clone, Debug)]
struct Held {
    rules: Vec<Rule>,
    /// Several services may want the same.
    users: usize,
}

impl Key {
    fn leaf(&self) -> Leaf {
        match self {
            Self::Address(ip, ..) | Self::Whole(ip, _) => Leaf::Byte(match ip {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(ip) => ip.octets()[15],
            }),
            Self::Port(protocol, port) => Leaf::Block(*protocol, port - port % BLOCK),
        }
    }
}

impl Tree {
    pub(super) fn new(
        family: Family,
        side: Side,
        root: &'static str,
        head: Vec<Rule>,
        next: Option<&'static str>,
    ) -> Self {
        Self { family, side, root, head, next, leaves: BTreeMap::new(), dirty: BTreeSet::new() }
    }

    /// One more service wants these rules for that key; they are in force from now on.
    pub(super) fn add(&mut self, key: Key, rules: Vec<Rule>) {
        let leaf = key.leaf();
        self.dirty.insert(leaf);
        let held = self.leaves.entry(leaf).or_default().entry(key);
        let held = held.or_insert_with(|| Held { rules: Vec::new(), users: 0 });
        held.users += 1;
        held.rules = rules;
    }

    /// One service less wants anything for that key.
    pub(super) fn remove(&mut self, key: &Key) {
        let leaf = key.leaf();
        let Some(keys) = self.leaves.get_mut(&leaf) else { return };
        let Some(held) = keys.get_mut(key) else { return };
        self.dirty.insert(leaf);
        held.users -= 1;
        if held.users == 0 {
            keys.remove(key);
            if keys.is_empty() {
                self.leaves.remove(&leaf);
            }
        }
    }

    /// The root, whatever changed.
    pub(super) fn root(&self) -> (String, Vec<Rule>) {
        let mut rules = self.head.clone();
        let (side, family) = (self.side, self.family);
        match self.by_port() {
            false => {
                let low: BTreeSet<u8> = self.bytes().map(|byte| byte % 16).collect();
                let to = |low| Rule::new().last_bits(side, family, low, 15).goto(&self.middle(low));
                rules.extend(low.into_iter().map(to));
            }
            true => rules.extend(self.leaves.keys().filter_map(|leaf| match leaf {
                Leaf::Block(protocol, first) => {
                    let last = first.saturating_add(BLOCK - 1);
                    Some(Rule::new().ports(*protocol, *first, last).goto(&self.name(*leaf)))
                }
                Leaf::Byte(_) => None,
            })),
        }
        (self.root.to_owned(), self.onward(rules))
    }

    /// The chains that may differ from what they were the last time, with what they hold now; `None`
    /// for those that should be gone.
    pub(super) fn rewritten(&mut self) -> Vec<(String, Option<Vec<Rule>>)> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return Vec::new();
        }
        let mut chains = Vec::new();
        let mut middles = BTreeSet::new();
        for leaf in dirty {
            let rules = self
                .leaves
                .get(&leaf)
                .map(|keys| self.onward(keys.values().flat_map(|held| held.rules.iter().cloned()).collect()));
            chains.push((self.name(leaf), rules));
            if let Leaf::Byte(byte) = leaf {
                middles.insert(byte % 16);
            }
        }
        for low in middles {
            let to = |byte| {
                let bits = Rule::new().last_bits(self.side, self.family, byte, 255);
                bits.goto(&self.name(Leaf::Byte(byte)))
            };
            let rules: Vec<Rule> = self.bytes().filter(|byte| byte % 16 == low).map(to).collect();
            let rules = (!rules.is_empty()).then(|| self.onward(rules));
            chains.push((self.middle(low), rules));
        }
        let (name, rules) = self.root();
        chains.push((name, Some(rules)));
        chains
    }

    fn onward(&self, mut rules: Vec<Rule>) -> Vec<Rule> {
        rules.extend(self.next.map(|next| Rule::new().goto(next)));
        rules
    }

    fn by_port(&self) -> bool {
        matches!(self.leaves.keys().next(), Some(Leaf::Block(..)))
    }

    fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.leaves.keys().filter_map(|leaf| match leaf {
            Leaf::Byte(byte) => Some(*byte),
            Leaf::Block(..) => None,
        })
    }

    fn middle(&self, low: u8) -> String {
        format!("{}-{low:x}", self.root)
    }

    fn name(&self, leaf: Leaf) -> String {
        match leaf {
            Leaf::Byte(byte) => format!("{}-{byte:02x}", self.root),
            Leaf::Block(protocol, first) => format!("{}-{protocol}-{first}", self.root),
        }
    }
}
