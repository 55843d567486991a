//! The tables and base chains that iptables' programs make in nftables when a rule is added, and leave
//! when it is gone. What was there before the iptables mode began is on disk, so that no more than that
//! is there afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use weft_daemon::fs::write_atomic;
use weft_daemon::log::chain;
use weft_kernel::nft::{Chain, ChainName, Family, Nft, Policy, Step, TableKey, Transaction};

/// The tables of iptables that the mode has rules in.
const TABLES: [&str; 2] = ["filter", "nat"];

/// What there is, by the tables: their chains. A table that is not there is no key.
type There = BTreeMap<TableKey, BTreeMap<ChainName, Chain>>;

fn record(state_dir: &Path) -> PathBuf {
    state_dir.join("iptables-chains.json")
}

/// Writes down what there is, unless an earlier run has: to be called before the first rule is added.
pub(crate) fn remember(state_dir: &Path) {
    let path = record(state_dir);
    if path.exists() {
        return;
    }
    let done = look().and_then(|(_, there)| {
        let text = serde_json::to_vec_pretty(&names(&there)).map_err(|error| error.to_string())?;
        write_atomic(&path, &text, 0o600).map_err(|error| chain(&error))
    });
    if let Err(why) = done {
        tracing::warn!(
            why,
            "which chains iptables had is not known, so `weft cleanup` will leave empty ones"
        );
    }
}

/// Takes away what was not there before, if it is empty; says how many chains and tables that were.
pub(super) fn forget(state_dir: &Path) -> Result<usize, String> {
    let path = record(state_dir);
    let before: BTreeSet<String> = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| format!("cannot understand {}: {error}", path.display()))?,
        // The iptables mode never ran.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let (mut nft, there) = look()?;
    let sets: BTreeSet<TableKey> = there.keys().filter(|key| has_sets(&mut nft, key)).cloned().collect();
    let steps = doomed(&there, &before, &sets);
    let count = steps.len();
    let transaction = steps.into_iter().fold(Transaction::new(), Transaction::then);
    nft.commit(&transaction).map_err(|error| chain(&error))?;
    Ok(count)
}

/// What goes: base chains that do nothing, then tables that are left with nothing.
fn doomed(there: &There, before: &BTreeSet<String>, with_sets: &BTreeSet<TableKey>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (key, chains) in there {
        let idle = |chain: &Chain| {
            chain.rules.is_empty() && chain.base.is_some_and(|base| base.policy == Policy::Accept)
        };
        let new = |name: &ChainName| !before.contains(&of_chain(key, name));
        let gone: BTreeSet<&ChainName> =
            chains.iter().filter(|(name, chain)| new(name) && idle(chain)).map(|(name, _)| name).collect();
        steps.extend(gone.iter().map(|name| Step::DeleteChain(key.clone(), (*name).clone())));
        let is_empty = gone.len() == chains.len() && !with_sets.contains(key);
        if is_empty && !before.contains(&key.to_string()) {
            steps.push(Step::DeleteTable(key.clone()));
        }
    }
    steps
}

fn of_chain(key: &TableKey, name: &ChainName) -> String {
    format!("{key} {name}")
}

fn names(there: &There) -> BTreeSet<String> {
    let chains = there.iter().flat_map(|(key, chains)| chains.keys().map(move |name| of_chain(key, name)));
    there.keys().map(ToString::to_string).chain(chains).collect()
}

fn look() -> Result<(Nft, There), String> {
    let mut nft = Nft::open().map_err(|error| format!("cannot open a netlink socket: {error}"))?;
    let tables = nft.tables().map_err(|error| chain(&error))?;
    let mut there = There::new();
    for key in tables {
        let is_ip = matches!(key.family, Family::Ip | Family::Ip6);
        if is_ip && TABLES.contains(&key.name.as_str()) {
            let chains = nft.chains(&key).map_err(|error| chain(&error))?;
            there.insert(key, chains);
        }
    }
    Ok((nft, there))
}

/// Whoever has a set in it has made the table his own. So has somebody whose table cannot be read.
fn has_sets(nft: &mut Nft, key: &TableKey) -> bool {
    nft.table(key).map_or(true, |table| table.is_some_and(|table| !table.sets.is_empty()))
}

#[cfg(test)]
mod tests {
    use weft_kernel::nft::{Base, ChainKind, Hook, Rule};

    use super::*;

    #[test]
    fn only_what_is_new_and_empty_goes() {
        let key = |family, name: &str| TableKey { family, name: name.parse().unwrap() };
        let (filter, nat, nat6) =
            (key(Family::Ip, "filter"), key(Family::Ip, "nat"), key(Family::Ip6, "nat"));
        let base = |policy, rules| Chain {
            base: Some(Base { kind: ChainKind::Filter, hook: Hook::Output, priority: 0, policy }),
            rules,
            ..Chain::default()
        };
        let empty = || base(Policy::Accept, Vec::new());
        let chains = |list: Vec<(&str, Chain)>| -> BTreeMap<ChainName, Chain> {
            list.into_iter().map(|(name, chain)| (name.parse().unwrap(), chain)).collect()
        };
        let there = There::from([
            (
                filter.clone(),
                chains(vec![
                    ("INPUT", empty()),
                    ("OUTPUT", empty()),
                    ("FORWARD", base(Policy::Drop, Vec::new())),
                    ("DOCKER", Chain::default()),
                ]),
            ),
            (nat.clone(), chains(vec![("OUTPUT", empty())])),
            (
                nat6.clone(),
                chains(vec![("OUTPUT", empty()), ("POSTROUTING", base(Policy::Accept, vec![Rule::new()]))]),
            ),
        ]);
        let before = BTreeSet::from(["ip filter", "ip filter INPUT"].map(str::to_owned));
        let chain = |key: &TableKey, name: &str| Step::DeleteChain(key.clone(), name.parse().unwrap());
        let steps = doomed(&there, &before, &BTreeSet::new());
        let expected = [
            chain(&filter, "OUTPUT"),
            chain(&nat, "OUTPUT"),
            Step::DeleteTable(nat.clone()),
            chain(&nat6, "OUTPUT"),
        ];
        assert_eq!(steps, expected);
        let with_sets = doomed(&there, &before, &BTreeSet::from([nat.clone()]));
        assert!(!with_sets.contains(&Step::DeleteTable(nat)));
        assert_eq!(doomed(&there, &names(&there), &BTreeSet::new()), []);
    }
}
