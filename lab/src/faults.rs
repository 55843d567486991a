//! What is broken on the underlay, and the nftables rules that break it. Pure.
//!
//! The rules are in the lan namespace, where a host that flushes its own rules does not reach.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::layout::{Layout, Node, Role};

/// The lan's table for all of it.
const TABLE: &str = "bridge weft-lab";

/// Whom a host is cut off from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CutFrom {
    /// Every etcd member.
    Etcd,
    /// One other machine.
    Peer(String),
    /// Everything: as if its cable were pulled, except that its link stays up.
    All,
}

impl CutFrom {
    /// The machine of this name.
    pub fn peer(name: impl Into<String>) -> Self {
        Self::Peer(name.into())
    }
}

/// Everything that is broken at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Who is cut off from whom.
    pub cuts: BTreeSet<(String, CutFrom)>,
    /// How many percent of a host's frames are lost, in each direction.
    pub loss: BTreeMap<String, u8>,
}

impl Faults {
    /// The whole table, to be loaded in one transaction.
    pub fn rules(&self, layout: &Layout) -> String {
        let mut rules = String::new();
        for (host, percent) in self.loss.iter().filter(|(_, percent)| **percent > 0) {
            for side in ["iifname", "oifname"] {
                let _ = writeln!(rules, "    {side} \"{host}\" numgen random mod 100 < {percent} drop");
            }
        }
        for (host, from) in &self.cuts {
            let Some(host) = layout.node(host) else { continue };
            match from {
                CutFrom::All => {
                    let _ = writeln!(rules, "    iifname \"{0}\" drop\n    oifname \"{0}\" drop", host.name);
                }
                CutFrom::Etcd => layout.with_role(Role::Etcd).for_each(|etcd| cut(&mut rules, host, etcd)),
                CutFrom::Peer(peer) => layout.node(peer).iter().for_each(|peer| cut(&mut rules, host, peer)),
            }
        }
        format!(
            "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n  chain forward {{\n    \
             type filter hook forward priority 0; policy accept;\n{rules}  }}\n}}\n"
        )
    }
}

/// On one segment the two ports say it all, ARP and NDP included. Across the router only addresses tell.
fn cut(rules: &mut String, a: &Node, b: &Node) {
    for (from, to) in [(a, b), (b, a)] {
        if a.segment == b.segment {
            let _ = writeln!(rules, "    iifname \"{}\" oifname \"{}\" drop", from.name, to.name);
        } else {
            let _ = writeln!(rules, "    iifname \"{}\" ip daddr {} drop", from.name, to.v4);
            let _ = writeln!(rules, "    iifname \"{}\" ip6 daddr {} drop", from.name, to.v6);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{HostSpec, Spec};

    fn layout() -> Layout {
        let host = |name: &str, segment| HostSpec { name: name.into(), segment };
        Layout::of(&Spec {
            name: "blue".into(),
            hosts: vec![host("ash", 1), host("birch", 1), host("cedar", 2)],
            etcd_members: 1,
            mtu: 1500,
            families: crate::Families::Both,
            weft: None,
            network: "weft".into(),
            etcd_prefix: "/coreos.com/network".into(),
            config: None,
            overlay_args: vec![],
            proxy_args: None,
        })
        .expect("fits")
    }

    #[test]
    fn each_fault_is_these_rules() {
        let cut = |from| Faults { cuts: [("ash".to_owned(), from)].into(), loss: BTreeMap::new() };
        let loss = Faults { cuts: BTreeSet::new(), loss: [("ash".to_owned(), 10)].into() };
        let table: [(&str, Faults, &[&str]); 6] = [
            ("nothing", Faults::default(), &[]),
            (
                "etcd",
                cut(CutFrom::Etcd),
                &[r#"iifname "ash" oifname "etcd" drop"#, r#"iifname "etcd" oifname "ash" drop"#],
            ),
            (
                "a neighbour",
                cut(CutFrom::peer("birch")),
                &[r#"iifname "ash" oifname "birch" drop"#, r#"iifname "birch" oifname "ash" drop"#],
            ),
            (
                "a peer beyond the router",
                cut(CutFrom::peer("cedar")),
                &[
                    r#"iifname "ash" ip daddr 198.51.100.13 drop"#,
                    r#"iifname "ash" ip6 daddr 2001:db8:0:2::d drop"#,
                    r#"iifname "cedar" ip daddr 192.0.2.11 drop"#,
                    r#"iifname "cedar" ip6 daddr 2001:db8:0:1::b drop"#,
                ],
            ),
            ("everything", cut(CutFrom::All), &[r#"iifname "ash" drop"#, r#"oifname "ash" drop"#]),
            (
                "loss",
                loss,
                &[
                    r#"iifname "ash" numgen random mod 100 < 10 drop"#,
                    r#"oifname "ash" numgen random mod 100 < 10 drop"#,
                ],
            ),
        ];
        for (case, faults, expected) in table {
            let rules = faults.rules(&layout());
            let drops: Vec<&str> =
                rules.lines().map(str::trim).filter(|line| line.ends_with(" drop")).collect();
            assert_eq!(drops, expected, "{case}");
        }
    }
}
