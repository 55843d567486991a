//! From what chains hold to what they should hold, as text for `iptables-restore`.
//!
//! Each table's part is taken at once or not at all, but nat and filter are two tables. A packet that
//! is neither translated nor refused would leave the host as it came, and with UDP its flow would stay
//! so. So whoever is refused, before or after, is refused in between as well: translation comes first
//! where it is ([`super::frame`]), and a refusal of what is translated does nothing.
//!
//! With one exception: where a cluster address that refuses what none of its frontends takes comes or
//! goes, it drops that in between: its frontends may not be served yet, or no longer. A client whose packet
//! is lost asks again, one that is refused does not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::frame::{At, REJECT};
use super::rule::{Rule, Table};

/// What chains of one table hold; `None` for those that are not there.
pub(super) type Contents = BTreeMap<String, Option<Vec<Rule>>>;

/// From here to there, in one table. A chain that only one side names is not looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Delta {
    pub(super) before: Contents,
    pub(super) after: Contents,
    /// Rules of the kernel's own chains that are to come in front.
    pub(super) insert: Vec<(String, Rule)>,
    /// Rules of chains that are not ours that are to go.
    pub(super) delete: Vec<(String, Rule)>,
}

/// A part of the text: one table.
#[derive(Debug, Default)]
struct Part {
    fill: Vec<(String, Vec<Rule>)>,
    gone: Vec<String>,
    insert: Vec<(String, Rule)>,
    delete: Vec<(String, Rule)>,
}

impl Delta {
    /// How many chains and jumps differ.
    pub(super) fn len(&self) -> usize {
        self.differing().count() + self.insert.len() + self.delete.len()
    }

    /// What differs, in words.
    pub(super) fn words(&self, table: Table) -> Vec<String> {
        let table = table.name();
        let mut words: Vec<String> = self
            .differing()
            .map(|(name, before, after)| match (before, after) {
                (None, _) => format!("{table}: chain {name} is missing"),
                (_, None) => format!("{table}: nobody needs chain {name}"),
                (Some(_), Some(_)) => format!("{table}: chain {name} has other rules"),
            })
            .collect();
        words.extend(self.insert.iter().map(|(chain, _)| format!("{table}: {chain} does not lead to ours")));
        let leads =
            |(chain, rule): &(String, Rule)| format!("{table}: {chain} has a stray `{}`", rule.as_str());
        words.extend(self.delete.iter().map(leads));
        words
    }

    fn differing(&self) -> impl Iterator<Item = (&String, &Option<Vec<Rule>>, &Option<Vec<Rule>>)> {
        let both = self.after.iter().filter_map(|(name, after)| Some((name, self.before.get(name)?, after)));
        both.filter(|(_, before, after)| before != after)
    }

    fn part(&self) -> Part {
        let mut part = Part { insert: self.insert.clone(), delete: self.delete.clone(), ..Part::default() };
        for (name, _, after) in self.differing() {
            match after {
                Some(rules) => part.fill.push((name.clone(), rules.clone())),
                None => part.gone.push(name.clone()),
            }
        }
        part
    }

    /// In two parts: at first all that comes, then all that goes.
    fn parts(&self) -> [Part; 2] {
        let mut come = Part { insert: self.insert.clone(), ..Part::default() };
        let mut go = Part { delete: self.delete.clone(), ..Part::default() };
        for (name, before, after) in self.differing() {
            let meanwhile = meanwhile(name, before.as_deref().unwrap_or_default(), after.as_deref());
            if before.as_ref() != Some(&meanwhile) {
                come.fill.push((name.clone(), meanwhile.clone()));
            }
            match after {
                Some(after) if *after != meanwhile => go.fill.push((name.clone(), after.clone())),
                Some(_) => {}
                None => go.gone.push(name.clone()),
            }
        }
        [come, go]
    }
}

/// What a chain of the table filter holds while nat is written.
fn meanwhile(chain: &str, before: &[Rule], after: Option<&[Rule]>) -> Vec<Rule> {
    let mut rules = after.map_or_else(|| before.to_vec(), |after| union(before, after));
    if At::ClusterIps.has(chain) {
        let stays = |rule: &Rule| before.contains(rule) && after.is_some_and(|after| after.contains(rule));
        for rule in rules.iter_mut().filter(|rule| rule.target() == Some(REJECT) && !stays(rule)) {
            *rule = rule.dropping();
        }
    }
    rules
}

/// All rules of both, the new ones first, but for the rule that leads on what none of them took.
fn union(before: &[Rule], after: &[Rule]) -> Vec<Rule> {
    let (last, rules) = match after.split_last() {
        Some((last, rules)) if last.leads_all_to().is_some() => (Some(last), rules),
        _ => (None, after),
    };
    let stays = before.iter().filter(|rule| rule.leads_all_to().is_none() && !rules.contains(rule));
    rules.iter().chain(stays).chain(last).cloned().collect()
}

/// The text that makes the change; empty if there is nothing to do.
pub(super) fn text(nat: &Delta, filter: &Delta) -> String {
    let [come, go] = filter.parts();
    let mut text = String::new();
    come.write(Table::Filter, &mut text);
    nat.part().write(Table::Nat, &mut text);
    go.write(Table::Filter, &mut text);
    text
}

impl Part {
    fn write(&self, table: Table, text: &mut String) {
        let Self { fill, gone, insert, delete } = self;
        if fill.is_empty() && gone.is_empty() && insert.is_empty() && delete.is_empty() {
            return;
        }
        let _ = writeln!(text, "*{}", table.name());
        // What is named so is made, or emptied.
        for name in fill.iter().map(|(name, _)| name).chain(gone) {
            let _ = writeln!(text, ":{name} - [0:0]");
        }
        for (name, rules) in fill {
            for rule in rules {
                let _ = writeln!(text, "-A {name} {}", rule.as_str());
            }
        }
        for (verb, rules) in [("-I", insert), ("-D", delete)] {
            for (chain, rule) in rules {
                let _ = writeln!(text, "{verb} {chain} {}", rule.as_str());
            }
        }
        for name in gone {
            let _ = writeln!(text, "-X {name}");
        }
        text.push_str("COMMIT\n");
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn who_is_refused_stays_refused_until_translated() {
        let rules = |texts: &[&str]| Some(texts.iter().map(|text| Rule::saved(text)).collect::<Vec<_>>());
        let of = |texts: &[&str]| Contents::from([("WEFT-REFUSE-01".to_owned(), rules(texts))]);
        let filter = Delta {
            before: of(&["-d 10.96.0.1/32 -j DROP", "-g NEXT"]),
            after: of(&["-d 10.96.1.1/32 -j DROP", "-g NEXT"]),
            ..Delta::default()
        };
        let nat = Delta {
            before: Contents::from([("WEFT-OLD".to_owned(), rules(&[])), ("WEFT-NEW".to_owned(), None)]),
            after: Contents::from([("WEFT-OLD".to_owned(), None), ("WEFT-NEW".to_owned(), rules(&["-j X"]))]),
            ..Delta::default()
        };
        let wanted = "*filter
:WEFT-REFUSE-01 - [0:0]
-A WEFT-REFUSE-01 -d 10.96.1.1/32 -j DROP
-A WEFT-REFUSE-01 -d 10.96.0.1/32 -j DROP
-A WEFT-REFUSE-01 -g NEXT
COMMIT
*nat
:WEFT-NEW - [0:0]
:WEFT-OLD - [0:0]
-A WEFT-NEW -j X
-X WEFT-OLD
COMMIT
*filter
:WEFT-REFUSE-01 - [0:0]
-A WEFT-REFUSE-01 -d 10.96.1.1/32 -j DROP
-A WEFT-REFUSE-01 -g NEXT
COMMIT
";
        assert_eq!(text(&nat, &filter), wanted);
        let of = |texts: &[&str]| Contents::from([("WEFT-STRICT-01".to_owned(), rules(texts))]);
        let late = Delta {
            before: of(&["-d 10.96.0.1/32 -g WEFT-REJECT", "-d 10.96.3.1/32 -g WEFT-REJECT", "-g NEXT"]),
            after: of(&[
                "-d 10.96.1.1/32 -g WEFT-REJECT",
                "-d 10.96.3.1/32 -g WEFT-REJECT",
                "-d 10.96.2.1/32 -j RETURN",
                "-g NEXT",
            ]),
            ..Delta::default()
        };
        let wanted = "*filter
:WEFT-STRICT-01 - [0:0]
-A WEFT-STRICT-01 -d 10.96.1.1/32 -j DROP
-A WEFT-STRICT-01 -d 10.96.3.1/32 -g WEFT-REJECT
-A WEFT-STRICT-01 -d 10.96.2.1/32 -j RETURN
-A WEFT-STRICT-01 -d 10.96.0.1/32 -j DROP
-A WEFT-STRICT-01 -g NEXT
COMMIT
*nat
:WEFT-NEW - [0:0]
:WEFT-OLD - [0:0]
-A WEFT-NEW -j X
-X WEFT-OLD
COMMIT
*filter
:WEFT-STRICT-01 - [0:0]
-A WEFT-STRICT-01 -d 10.96.1.1/32 -g WEFT-REJECT
-A WEFT-STRICT-01 -d 10.96.3.1/32 -g WEFT-REJECT
-A WEFT-STRICT-01 -d 10.96.2.1/32 -j RETURN
-A WEFT-STRICT-01 -g NEXT
COMMIT
";
        assert_eq!(text(&nat, &late), wanted);
        assert_eq!(text(&Delta::default(), &Delta::default()), "");
        assert_eq!(filter.words(Table::Filter), ["filter: chain WEFT-REFUSE-01 has other rules"]);
    }
}
