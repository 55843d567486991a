//! How the rules tell packets of local pods from others.

use ipnetwork::IpNetwork;
use weft_kernel::nft::{CmpOp, Expr, Key, MetaKey, Part, Reg, Rule, merge_networks};

use super::layout::{Map, source};
use crate::host::LocalPods;
use crate::model::{Family, family_of};

/// [`LocalPods`], as rules and elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pods(pub(super) LocalPods);

impl Pods {
    /// A rule that only packets of local pods pass; `None` where there are none to be told.
    pub(super) fn source(&self, family: Family) -> Option<Rule> {
        match &self.0 {
            LocalPods::Unknown => None,
            LocalPods::Ranges(_) if self.ranges(family).is_empty() => None,
            LocalPods::Ranges(_) => Some(Rule::new().in_set([source(family)], &Map::Pods.of(family).name())),
            LocalPods::Link(name) => {
                let mut whole = name.as_bytes().to_vec();
                whole.resize(LINK_NAME, 0);
                Some(by_link(whole))
            }
            // A comparison of fewer bytes is one of beginnings.
            LocalPods::LinkPrefix(prefix) => Some(by_link(prefix.as_bytes().to_vec())),
        }
    }

    /// What [`Map::Pods`] holds.
    pub(super) fn elements(&self, family: Family) -> Vec<Key> {
        self.ranges(family).into_iter().map(|range| Key::from(Part::from(range))).collect()
    }

    fn ranges(&self, family: Family) -> Vec<IpNetwork> {
        match &self.0 {
            LocalPods::Ranges(ranges) => {
                merge_networks(ranges.iter().copied().filter(|range| family_of(range.ip()) == family))
            }
            _ => Vec::new(),
        }
    }
}

/// `IFNAMSIZ`.
pub(super) const LINK_NAME: usize = 16;

fn by_link(name: Vec<u8>) -> Rule {
    let reg = Reg::FIRST;
    Rule::new().then(Expr::Meta { key: MetaKey::IifName, to: reg }).then(Expr::Cmp {
        reg,
        op: CmpOp::Eq,
        value: name,
    })
}
