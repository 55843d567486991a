//! Steps for `iptables-restore`, as text.

use std::collections::BTreeMap;
use std::fmt;

/// Steps for `iptables-restore`: each table's steps are taken all together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restore(BTreeMap<&'static str, Vec<Vec<String>>>);

impl Restore {
    /// Keep the other rules; wait up to five seconds for whoever else is at it.
    pub const ARGUMENTS: [&'static str; 3] = ["--noflush", "--wait", "5"];

    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more step in a table, word by word.
    pub fn step(&mut self, table: &'static str, words: impl IntoIterator<Item = String>) {
        self.0.entry(table).or_default().push(words.into_iter().collect());
    }

    /// One step that deletes a rule as it was listed.
    pub fn delete(&mut self, table: &'static str, chain: &str, rule: &[String]) {
        let head = ["-D".to_owned(), chain.to_owned()];
        self.step(table, head.into_iter().chain(rule.iter().cloned()));
    }
}

/// The text for standard input.
impl fmt::Display for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (table, steps) in &self.0 {
            writeln!(f, "*{table}")?;
            for step in steps {
                let words: Vec<String> = step.iter().map(|word| quote(word)).collect();
                writeln!(f, "{}", words.join(" "))?;
            }
            writeln!(f, "COMMIT")?;
        }
        Ok(())
    }
}

pub(super) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=!+*@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in word.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}
