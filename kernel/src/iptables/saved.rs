//! What `iptables-save` prints, read.

use std::collections::BTreeMap;

/// A chain as it was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedChain {
    /// `ACCEPT` or `DROP` for the kernel's own chains, `-` for others.
    pub policy: String,
    /// Each rule's words without the chain's name.
    pub rules: Vec<Vec<String>>,
}

/// A table's chains by name.
pub type SavedTable = BTreeMap<String, SavedChain>;

/// One table of what `iptables-save` printed. What is not understood is left out.
pub fn saved_table(text: &str, wanted: &str) -> SavedTable {
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
pub fn split(line: &str) -> Vec<String> {
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

/// The verdict of a rule that every packet of the chain meets.
pub fn unconditional(rule: &[String]) -> Option<&str> {
    match rule {
        [flag, target, ..] if flag == "-j" || flag == "-g" => Some(target),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::restore::quote;
    use super::*;
    use proptest::prelude::*;

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
