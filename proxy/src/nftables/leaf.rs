//! The chains that lead a new connection to an endpoint. There is one for each way that is in use,
//! not for each service: what differs between services is in maps.

use weft_kernel::nft::{Chain, ChainName, DynsetOp, Expr, MetaKey, NatEnd, NumgenKind, Rule, Selector};

use super::layout::{
    Map, Place, Shape, address_slots, digit, first_hashed, first_slot, live, load_frontend, reg, source,
};
use super::pods::Pods;
use crate::model::{Balance, Family, Policy};

/// A chain that is made when a service needs it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Way {
    /// To one of some endpoints.
    Leaf(Leaf),
    /// To one of several leaves, by where the connection comes from.
    Split {
        family: Family,
        /// For local pods; `None`: to none, as everywhere here.
        pods: Option<Leaf>,
        /// For the host itself.
        host: Option<Leaf>,
        /// For all others.
        others: Option<Leaf>,
    },
}

/// To one of some endpoints of the frontend by which the packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Leaf {
    pub(super) family: Family,
    pub(super) shape: Shape,
    /// Which of the two sets of endpoints.
    pub(super) set: Policy,
    /// Marked, for postrouting to masquerade it.
    pub(super) masquerade: bool,
    /// How many endpoints; at least one.
    pub(super) count: u32,
    pub(super) pick: Pick,
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Pick {
    /// Any, by the frontend itself.
    Any,
    /// By the service port's id.
    ById {
        /// By a hash of the client's address, not by chance.
        hash: bool,
        /// The client keeps it for so many seconds.
        sticky: Option<u32>,
    },
}

/// What postrouting masquerades: kube-proxy's bit, which others respect already.
pub(super) const MASQUERADE_MARK: u32 = 0x4000;

/// Where looked-up things go: behind what keys take.
const RESULT: u32 = 8;

impl Way {
    pub(super) fn name(&self) -> ChainName {
        let name = match self {
            Self::Leaf(leaf) => leaf.name(),
            Self::Split { family, pods, host, others } => {
                let part = |leaf: &Option<Leaf>| leaf.map_or_else(|| "none".to_owned(), |leaf| leaf.short());
                format!("split{}.{}.{}.{}", digit(*family), part(pods), part(host), part(others))
            }
        };
        name.parse().expect("letters, digits, dashes and dots, fewer than 256")
    }

    /// The other way round; `None` if no way has that name.
    pub(super) fn named(name: &ChainName) -> Option<Self> {
        let (begin, rest) = name.as_str().split_once('.')?;
        let family_of =
            |digit: &str| Family::ALL.into_iter().find(|family| digit.chars().eq([self::digit(*family)]));
        let way = if let Some(digit) = begin.strip_prefix("split") {
            let family = family_of(digit)?;
            let part = |text: &str| match text {
                "none" => Some(None),
                short => Leaf::read(family, short).map(Some),
            };
            let mut parts = rest.split('.').map(part);
            let (pods, host, others) = (parts.next()??, parts.next()??, parts.next()??);
            Self::Split { family, pods, host, others }
        } else {
            Self::Leaf(Leaf::read(family_of(begin.strip_prefix("to")?)?, rest)?)
        };
        // There is one way to write each name.
        (way.name() == *name).then_some(way)
    }

    /// The chains that it leads on to.
    pub(super) fn needs(&self) -> Vec<Leaf> {
        match self {
            Self::Leaf(_) => Vec::new(),
            Self::Split { pods, host, others, .. } => {
                [pods, host, others].into_iter().flatten().copied().collect()
            }
        }
    }

    /// The family of its packets.
    pub(super) fn family(&self) -> Family {
        match self {
            Self::Leaf(leaf) => leaf.family,
            Self::Split { family, .. } => *family,
        }
    }

    /// The dynamic map that its rules look into.
    pub(super) fn sticky(&self) -> Option<Place> {
        match self {
            Self::Leaf(Leaf { family, pick: Pick::ById { sticky: Some(seconds), .. }, .. }) => {
                Some(Map::Sticky(*seconds).of(*family))
            }
            _ => None,
        }
    }

    pub(super) fn chain(&self, local: &Pods) -> Chain {
        let rules = match self {
            Self::Leaf(leaf) => leaf.rules(),
            Self::Split { family, pods, host, others } => {
                let goes = |rule: Rule, leaf: &Option<Leaf>| match leaf {
                    Some(leaf) => rule.goto(&Self::Leaf(*leaf).name()),
                    None => rule.return_(),
                };
                let from_pods = local.source(*family).map(|rule| goes(rule, pods));
                let from_host = goes(Rule::new().source_is_local(), host);
                let rest = others.is_some().then(|| goes(Rule::new(), others));
                from_pods.into_iter().chain([from_host]).chain(rest).collect()
            }
        };
        Chain { rules, ..Chain::default() }
    }
}

impl Leaf {
    fn name(&self) -> String {
        format!("to{}.{}", digit(self.family), self.short())
    }

    fn short(&self) -> String {
        let shape = match self.shape {
            Shape::Address => "address",
            Shape::Port => "port",
        };
        let set = match self.set {
            Policy::Cluster => "",
            Policy::Local => "-local",
        };
        let masquerade = if self.masquerade { "-masquerade" } else { "" };
        let (hash, sticky) = match self.pick {
            Pick::Any => ("", String::new()),
            Pick::ById { hash, sticky } => (
                if hash { "-hash" } else { "-id" },
                sticky.map(|seconds| format!("-sticky{seconds}")).unwrap_or_default(),
            ),
        };
        format!("{shape}{set}{masquerade}{hash}{sticky}-{}", self.count)
    }

    /// What [`Leaf::short`] writes.
    fn read(family: Family, short: &str) -> Option<Self> {
        let (rest, count) = short.rsplit_once('-')?;
        let mut words = rest.split('-');
        let shape = match words.next()? {
            "address" => Shape::Address,
            "port" => Shape::Port,
            _ => return None,
        };
        let mut leaf = Self {
            family,
            shape,
            set: Policy::Cluster,
            masquerade: false,
            count: count.parse().ok().filter(|count| *count > 0)?,
            pick: Pick::Any,
        };
        for word in words {
            match (word, leaf.pick) {
                ("local", _) => leaf.set = Policy::Local,
                ("masquerade", _) => leaf.masquerade = true,
                ("hash" | "id", Pick::Any) => leaf.pick = Pick::ById { hash: word == "hash", sticky: None },
                (word, Pick::ById { hash, sticky: None }) => {
                    let seconds = word.strip_prefix("sticky")?.parse().ok()?;
                    leaf.pick = Pick::ById { hash, sticky: Some(seconds) };
                }
                _ => return None,
            }
        }
        Some(leaf)
    }

    fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.masquerade {
            rules.push(mark());
        }
        match self.pick {
            Pick::Any => {
                rules.extend(self.chance().map(|chance| self.any(chance)));
                // Each lookup of a packet reads the newest elements, so the slot may be gone that an
                // older rule picked; the first one is there while any is.
                rules.push(self.any(Expr::Immediate { to: reg(RESULT), value: self.first() }));
            }
            Pick::ById { hash, sticky } => {
                rules.extend(sticky.map(|seconds| self.again(seconds)));
                if hash {
                    rules.push(self.by_id(self.hashed(), sticky));
                } else {
                    rules.extend(self.chance().map(|chance| self.by_id(chance, sticky)));
                }
                rules.push(self.by_id(Expr::Immediate { to: reg(RESULT), value: self.first() }, sticky));
            }
        }
        rules
    }

    fn first(&self) -> Vec<u8> {
        first_slot(self.set).to_ne_bytes().to_vec()
    }

    /// A slot by chance; nothing if there is but one.
    fn chance(&self) -> Option<Expr> {
        (self.count > 1).then(|| Expr::Numgen {
            kind: NumgenKind::Random,
            modulus: self.count,
            offset: first_slot(self.set),
            to: reg(RESULT),
        })
    }

    fn hashed(&self) -> Expr {
        Expr::Hash {
            from: reg(CLIENT),
            len: 4 * address_slots(self.family),
            modulus: Balance::SLOTS,
            seed: Balance::SEED,
            offset: first_hashed(self.set),
            to: reg(RESULT),
        }
    }

    /// From register 0 on; says what comes behind.
    fn frontend(&self) -> (Rule, u32) {
        load_frontend(Rule::new(), self.shape, self.family, 0)
    }

    fn translate(&self, rule: Rule) -> Rule {
        rule.then(Expr::Nat {
            end: NatEnd::Destination,
            ipv6: self.family == Family::V6,
            addr: reg(RESULT),
            port: Some(reg(RESULT + address_slots(self.family))),
        })
    }

    fn look(&self, rule: Rule, map: Map, key: u32) -> Rule {
        rule.then(Expr::MapLookup { map: map.of(self.family).name(), key: reg(key), to: reg(RESULT) })
    }

    /// By frontend and slot to the endpoint.
    fn any(&self, slot: Expr) -> Rule {
        let (rule, behind) = self.frontend();
        let map = match self.shape {
            Shape::Address => Map::AddressEndpoints,
            Shape::Port => Map::PortEndpoints,
        };
        let rule = rule.then(with_result_in(slot, behind));
        self.translate(without_priority(self.look(rule, map, 0)))
    }

    /// The way from one lookup to the next goes over the packet's priority ([`super::frame`]).
    ///
    /// Register 0 has the id, 1 a slot or an endpoint's number; 2 has the id again with the client's
    /// address behind it.
    fn id_and_client(&self) -> Rule {
        let (rule, _) = self.frontend();
        let map = match self.shape {
            Shape::Address => Map::AddressIds,
            Shape::Port => Map::PortIds,
        };
        set_priority(self.look(rule, map, 0))
            .load(Selector::Priority, reg(0))
            .load(Selector::Priority, reg(CLIENT - 1))
            .load(source(self.family), reg(CLIENT))
    }

    /// To the endpoint whose number was just found, if it is still there; `ops` have the client keep it.
    fn with_found(&self, rule: Rule, sticky: Option<u32>, ops: &[DynsetOp]) -> Rule {
        let mut rule = set_priority(rule).load(Selector::Priority, reg(1));
        rule = self.look(rule, live(self.set), 0);
        for (op, seconds) in sticky.into_iter().flat_map(|seconds| ops.iter().map(move |op| (*op, seconds))) {
            rule = rule.then(Expr::Dynset {
                op,
                set: Map::Sticky(seconds).of(self.family).name(),
                key: reg(CLIENT - 1),
                value: Some(reg(1)),
                timeout: None,
            });
        }
        self.translate(without_priority(rule))
    }

    /// To the endpoint that the client had, if the set still has it.
    fn again(&self, seconds: u32) -> Rule {
        let rule = self.id_and_client();
        let rule = self.look(rule, Map::Sticky(seconds), CLIENT - 1);
        self.with_found(rule, Some(seconds), &[DynsetOp::Update])
    }

    fn by_id(&self, slot: Expr, sticky: Option<u32>) -> Rule {
        let rule = self.id_and_client().then(with_result_in(slot, 1));
        // An update begins the time anew and leaves the value as it is: that of an endpoint that is gone,
        // if the client had one.
        self.with_found(self.look(rule, Map::Slots, 0), sticky, &[DynsetOp::Delete, DynsetOp::Update])
    }
}

/// Where the client's address is, behind the id.
const CLIENT: u32 = 3;

/// The same expression with another register to write to.
fn with_result_in(expr: Expr, slot: u32) -> Expr {
    let to = reg(slot);
    match expr {
        Expr::Numgen { kind, modulus, offset, .. } => Expr::Numgen { kind, modulus, offset, to },
        Expr::Hash { from, len, modulus, seed, offset, .. } => {
            Expr::Hash { from, len, modulus, seed, offset, to }
        }
        Expr::Immediate { value, .. } => Expr::Immediate { to, value },
        other => other,
    }
}

fn without_priority(rule: Rule) -> Rule {
    rule.then(Expr::Immediate { to: reg(0), value: vec![0; 4] })
        .then(Expr::SetMeta { key: MetaKey::Priority, from: reg(0) })
}

fn set_priority(rule: Rule) -> Rule {
    rule.then(Expr::SetMeta { key: MetaKey::Priority, from: reg(RESULT) })
}

/// Marks the packet for postrouting.
fn mark() -> Rule {
    Rule::new()
        .load(Selector::Mark, reg(0))
        .then(Expr::Bitwise {
            from: reg(0),
            to: reg(0),
            mask: (!MASQUERADE_MARK).to_ne_bytes().to_vec(),
            xor: MASQUERADE_MARK.to_ne_bytes().to_vec(),
        })
        .then(Expr::SetMeta { key: MetaKey::Mark, from: reg(0) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(family: Family) -> impl Strategy<Value = Leaf> {
        let pick = prop_oneof![
            Just(Pick::Any),
            (any::<bool>(), proptest::option::of(1u32..100_000))
                .prop_map(|(hash, sticky)| Pick::ById { hash, sticky }),
        ];
        let shape = prop_oneof![Just(Shape::Address), Just(Shape::Port)];
        let set = prop_oneof![Just(Policy::Cluster), Just(Policy::Local)];
        (shape, set, any::<bool>(), 1u32..2000, pick).prop_map(
            move |(shape, set, masquerade, count, pick)| Leaf { family, shape, set, masquerade, count, pick },
        )
    }

    fn ways() -> impl Strategy<Value = Way> {
        prop_oneof![Just(Family::V4), Just(Family::V6)].prop_flat_map(|family| {
            let part = || proptest::option::of(leaves(family));
            prop_oneof![
                leaves(family).prop_map(Way::Leaf),
                (part(), part(), part()).prop_map(move |(pods, host, others)| Way::Split {
                    family,
                    pods,
                    host,
                    others
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn ways_are_known_by_their_names(way in ways()) {
            prop_assert_eq!(Way::named(&way.name()), Some(way));
        }

        #[test]
        fn other_names_are_no_ways(name in "(to|split)?[4-6]?[.]?[a-z0-9.-]{0,30}") {
            if let Ok(name) = name.parse::<ChainName>() {
                prop_assert!(Way::named(&name).is_none_or(|way| way.name() == name));
            }
        }
    }

    #[test]
    fn chains_that_others_made_are_no_ways() {
        for name in
            ["services4", "to4.address-0", "to5.address-1", "to4.address-01", "split4.none.none", "to4.x-1"]
        {
            assert_eq!(Way::named(&name.parse().unwrap()), None, "{name}");
        }
    }
}
