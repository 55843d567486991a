//! What `iptables-save` prints, as chains of rules, and what `iptables-restore` is told.

use std::collections::BTreeMap;
use std::fmt;

use weft_kernel::nft::{Family, TableKey};

/// One of the four rule sets that iptables may keep: two families, two back ends in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Iptables {
    /// Which kernel interface holds the rules. Both may be in use at once, and a packet must pass
    /// both.
    pub backend: Backend,
    /// IPv6, not IPv4.
    pub ipv6: bool,
}

/// Which kernel interface holds the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// nftables, in tables named as iptables' are. Changes show as nftables events.
    Nft,
    /// x_tables. Changes show nowhere: look again from time to time.
    Legacy,
}

impl Iptables {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self { backend: Backend::Nft, ipv6: false },
        Self { backend: Backend::Nft, ipv6: true },
        Self { backend: Backend::Legacy, ipv6: false },
        Self { backend: Backend::Legacy, ipv6: true },
    ];

    /// Whether this rule set is in use, so that it is worth a look. `nft_tables` are nftables' (by
    /// `Nft::tables`), `legacy_tables` is the text of [`Iptables::legacy_tables_file`], empty if
    /// there is no such file. Without asking first, a look would load kernel modules.
    pub fn is_in_use(self, nft_tables: &[TableKey], legacy_tables: &str) -> bool {
        let names = ["filter", "nat"];
        match self.backend {
            Backend::Nft => {
                let family = if self.ipv6 { Family::Ip6 } else { Family::Ip };
                nft_tables.iter().any(|key| key.family == family && names.contains(&key.name.as_str()))
            }
            Backend::Legacy => legacy_tables.lines().any(|line| names.contains(&line)),
        }
    }

    /// Where the kernel lists the legacy tables of this family.
    pub fn legacy_tables_file(self) -> &'static str {
        if self.ipv6 {
            "/proc/thread-self/net/ip6_tables_names"
        } else {
            "/proc/thread-self/net/ip_tables_names"
        }
    }

    /// The program that prints the rules. To be called without arguments: with `-t` the legacy one
    /// makes the table that it is to print.
    pub fn save_program(self) -> &'static str {
        match (self.backend, self.ipv6) {
            (Backend::Nft, false) => "iptables-nft-save",
            (Backend::Nft, true) => "ip6tables-nft-save",
            (Backend::Legacy, false) => "iptables-legacy-save",
            (Backend::Legacy, true) => "ip6tables-legacy-save",
        }
    }

    /// The program that takes a [`Restore`] on its standard input, with [`Restore::ARGUMENTS`].
    pub fn restore_program(self) -> &'static str {
        match (self.backend, self.ipv6) {
            (Backend::Nft, false) => "iptables-nft-restore",
            (Backend::Nft, true) => "ip6tables-nft-restore",
            (Backend::Legacy, false) => "iptables-legacy-restore",
            (Backend::Legacy, true) => "ip6tables-legacy-restore",
        }
    }

    /// The program that a person would change rules with.
    pub(super) fn program(ipv6: bool) -> &'static str {
        if ipv6 { "ip6tables" } else { "iptables" }
    }
}

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

    pub(super) fn step(&mut self, table: &'static str, words: impl IntoIterator<Item = String>) {
        self.0.entry(table).or_default().push(words.into_iter().collect());
    }

    /// One step that deletes a rule as it was listed.
    pub(super) fn delete(&mut self, table: &'static str, chain: &str, rule: &[String]) {
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

/// A chain as it was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SavedChain {
    /// `ACCEPT` or `DROP` for the kernel's own chains, `-` for others.
    pub(super) policy: String,
    /// Each rule's words without the chain's name.
    pub(super) rules: Vec<Vec<String>>,
}

/// A table's chains by name.
pub(super) type SavedTable = BTreeMap<String, SavedChain>;

/// One table of what `iptables-save` printed. What is not understood is left out.
pub(super) fn saved_table(text: &str, wanted: &str) -> SavedTable {
    let mut chains = SavedTable::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            inside = name.trim() == wanted;
        } else if !inside {
            continue;
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (Some(name), Some(policy)) = (words.next(), words.next()) else { continue };
            chains.entry(name.to_owned()).or_default().policy = policy.to_owned();
        } else {
            let mut words = split(line).into_iter();
            if let (Some("-A"), Some(chain)) = (words.next().as_deref(), words.next()) {
                chains.entry(chain).or_default().rules.push(words.collect());
            }
        }
    }
    chains
}

/// Words, some of them in quotes with `\` before what would end them (libxtables' `xtables_save_string`).
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

fn quote(word: &str) -> String {
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

/// The verdict of a rule that every packet of the chain meets.
pub(super) fn unconditional(rule: &[String]) -> Option<&str> {
    match rule {
        [flag, target, ..] if flag == "-j" || flag == "-g" => Some(target),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rule_set_is_used_if_it_has_a_table_of_ours_to_look_at() {
        let key = |family, name: &str| TableKey { family, name: name.parse().unwrap() };
        let [nft4, nft6, legacy4, _] = Iptables::ALL;
        let tables = [key(Family::Ip, "filter"), key(Family::Inet, "filter"), key(Family::Ip6, "mangle")];
        assert!(nft4.is_in_use(&tables, ""));
        assert!(!nft6.is_in_use(&tables, "filter\n"));
        assert!(!legacy4.is_in_use(&tables, ""));
        assert!(legacy4.is_in_use(&[], "mangle\nfilter\n"));
    }

    #[test]
    fn words_may_be_quoted() {
        let line = r#"-A X -m comment --comment "say \"hi\" \\ there" -j LOG --log-prefix "a b""#;
        let words = [
            "-A",
            "X",
            "-m",
            "comment",
            "--comment",
            r#"say "hi" \ there"#,
            "-j",
            "LOG",
            "--log-prefix",
            "a b",
        ];
        assert_eq!(split(line), words);
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read(words in prop::collection::vec("[ -~]{0,12}", 0..8)) {
            let line: Vec<String> = words.iter().map(|word| quote(word)).collect();
            prop_assert_eq!(split(&line.join(" ")), words);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", lines in prop::collection::vec("[*:\\-A\" FORWARD\\\\]{0,30}", 0..9)) {
            saved_table(&text, "filter");
            saved_table(&format!("*filter\n{}", lines.join("\n")), "filter");
        }
    }
}
