//! What is in a table, and what differs from another, for people to read. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use weft_kernel::nft::{
    Chain, ChainName, DataType, Diff, ElementDiff, Elements, Key, KeyType, SetSpec, Table, Value, Verdict,
    diff,
};

use super::layout::Place;
use super::program::Concerned;
use crate::explain::packet::Object;

/// How the observed table differs from the desired one, a line each; none if it does not.
pub(super) fn differences(desired: &Table, observed: Option<&Table>) -> Vec<String> {
    let key = &desired.key;
    match diff(desired, observed) {
        Diff::Same => Vec::new(),
        Diff::Rebuild if observed.is_none() => vec![format!("table {key} is missing")],
        Diff::Rebuild => vec![format!("table {key} is not made as it should be, and has to be made anew")],
        Diff::Elements(sets) => sets.iter().flat_map(elements).collect(),
        Diff::Parts(parts) => {
            let missing_sets = parts.new_sets.iter().map(|(set, _)| format!("set {set} is missing"));
            let missing = parts.new_chains.iter().map(|(chain, _)| format!("chain {chain} is missing"));
            let changed =
                parts.changed_chains.iter().map(|(chain, _)| format!("chain {chain} has other rules"));
            let old_chains = parts.old_chains.iter().map(|chain| format!("chain {chain} is too much"));
            let old_sets = parts.old_sets.iter().map(|set| format!("set {set} is too much"));
            let chains = missing_sets.chain(missing).chain(changed).chain(old_chains).chain(old_sets);
            chains.chain(parts.elements.iter().flat_map(elements)).collect()
        }
    }
}

fn elements(of: &ElementDiff) -> Vec<String> {
    let ElementDiff { set, spec, delete, add } = of;
    let line = |key: &Key, what: &str| format!("set {set}: {} {what}", self::key(spec, key));
    let lead = |to: &Value| value(spec, to);
    let missing = add.iter().map(|(key, to)| match (delete.get(key), to) {
        (Some(wrong), to) => line(key, &format!("leads to {}, not to {}", lead(wrong), lead(to))),
        (None, Value::None) => line(key, "is missing"),
        (None, to) => line(key, &format!("is missing; it leads to {}", lead(to))),
    });
    let old = delete.keys().filter(|key| !add.contains_key(*key)).map(|key| line(key, "is too much"));
    missing.chain(old).collect()
}

/// So many elements of one set are named each; of more, their number.
const NAMED: usize = 8;

/// What takes part in a frontend, and how the kernel has it.
pub(super) fn objects(
    wanted: &Concerned,
    found: &BTreeMap<Place, Elements>,
    chains: &BTreeMap<ChainName, Chain>,
) -> Vec<Object> {
    let mut objects = Vec::new();
    for (place, elements) in &wanted.elements {
        let (set, spec) = (place.name(), place.spec());
        let none = Elements::new();
        let there = found.get(place).unwrap_or(&none);
        let wrong = |key: &Key, to: &Value| match there.get(key) {
            Some(is) if is == to => None,
            Some(is) => Some(format!("leads to {}", value(&spec, is))),
            None => Some("is missing".to_owned()),
        };
        if elements.len() > NAMED {
            let wrong = elements.iter().filter(|(key, to)| wrong(key, to).is_some()).count();
            let what = format!("set {set}: {} elements", elements.len());
            objects
                .push(Object { what, wrong: (wrong > 0).then(|| format!("{wrong} are missing or wrong")) });
            continue;
        }
        for (key, to) in elements {
            let leads = match to {
                Value::None => String::new(),
                to => format!(" : {}", value(&spec, to)),
            };
            let what = format!("set {set}: {}{leads}", self::key(&spec, key));
            objects.push(Object { what, wrong: wrong(key, to) });
        }
    }
    for (name, chain) in &wanted.chains {
        let wrong = match chains.get(name) {
            Some(is) if is.rules == chain.rules => None,
            Some(_) => Some("has other rules".to_owned()),
            None => Some("is missing".to_owned()),
        };
        objects.push(Object { what: format!("chain {name}"), wrong });
    }
    objects
}

/// An element's key as `nft` writes it, nearly.
fn key(spec: &SetSpec, key: &Key) -> String {
    let from = fields(&spec.key, key.first());
    match key.last() {
        last if last == key.first() => from,
        last => format!("{from} to {}", fields(&spec.key, last)),
    }
}

fn value(spec: &SetSpec, value: &Value) -> String {
    match (value, &spec.value) {
        (Value::None, _) => "nothing".to_owned(),
        (Value::Verdict(Verdict::Goto(chain)), _) => format!("chain {chain}"),
        (Value::Verdict(verdict), _) => format!("{verdict:?}").to_lowercase(),
        (Value::Bytes(bytes), Some(kind)) => fields(kind, bytes),
        (Value::Bytes(bytes), None) => hex(bytes),
    }
}

/// Fields of a concatenation are padded to four bytes.
fn fields(kind: &KeyType, bytes: &[u8]) -> String {
    let mut rest = bytes;
    let mut written = Vec::new();
    for field in &kind.0 {
        let len = field.len() as usize;
        let (value, behind) = rest.split_at(len.min(rest.len()));
        written.push(self::field(*field, value));
        rest = behind.get(len.next_multiple_of(4) - len..).unwrap_or_default();
    }
    written.join(" . ")
}

fn field(kind: DataType, bytes: &[u8]) -> String {
    let number = || bytes.try_into().ok().map(u32::from_ne_bytes);
    let written = match kind {
        DataType::Ipv4 => <[u8; 4]>::try_from(bytes).ok().map(|ip| Ipv4Addr::from(ip).to_string()),
        DataType::Ipv6 => <[u8; 16]>::try_from(bytes).ok().map(|ip| Ipv6Addr::from(ip).to_string()),
        DataType::Protocol => match bytes {
            [6] => Some("tcp".to_owned()),
            [17] => Some("udp".to_owned()),
            [132] => Some("sctp".to_owned()),
            _ => None,
        },
        DataType::Service => bytes.try_into().ok().map(|port| u16::from_be_bytes(port).to_string()),
        DataType::Mark => number().map(|number| format!("{number:#x}")),
        _ => None,
    };
    written.unwrap_or_else(|| hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use weft_kernel::nft::{Family, Part};

    use super::*;

    fn table() -> Table {
        let mut table = Table::new(Family::Inet, "weft-proxy".parse().unwrap());
        let spec = SetSpec::exact([DataType::Ipv4, DataType::Protocol, DataType::Service]);
        let mut endpoints = spec.to([DataType::Ipv4, DataType::Service]).with([]);
        let endpoint = |last| Value::Bytes(vec![10, 42, 0, last, 0x1f, 0x90, 0, 0]);
        endpoints.elements = [(frontend(80), endpoint(1)), (frontend(81), endpoint(2))].into();
        table.sets.insert("endpoints".parse().unwrap(), endpoints);
        table.sets.insert("pods".parse().unwrap(), SetSpec::intervals([DataType::Ipv4]).with([]));
        table.chains.insert("services4".parse().unwrap(), Default::default());
        table
    }

    fn frontend(port: u16) -> Key {
        let ip = Part::from(Ipv4Addr::new(10, 96, 0, 1));
        Key::concat([ip, Part::bytes([6]), Part::bytes(port.to_be_bytes())])
    }

    #[test]
    fn what_differs_is_said_line_by_line() {
        type Change = fn(&mut Table);
        let cases: [(Change, &[&str]); 6] = [
            (|_| {}, &[]),
            (
                |table| {
                    drop(
                        table
                            .sets
                            .get_mut(&"endpoints".parse().unwrap())
                            .unwrap()
                            .elements
                            .remove(&frontend(80)),
                    )
                },
                &["set endpoints: 10.96.0.1 . tcp . 80 is missing; it leads to 10.42.0.1 . 8080"],
            ),
            (
                |table| {
                    let wrong = Value::Bytes(vec![10, 42, 0, 9, 0, 80, 0, 0]);
                    table
                        .sets
                        .get_mut(&"endpoints".parse().unwrap())
                        .unwrap()
                        .elements
                        .insert(frontend(80), wrong);
                },
                &["set endpoints: 10.96.0.1 . tcp . 80 leads to 10.42.0.9 . 80, not to 10.42.0.1 . 8080"],
            ),
            (
                |table| {
                    let pods = table.sets.get_mut(&"pods".parse().unwrap()).unwrap();
                    pods.elements.insert(
                        Part::from("10.0.0.0/8".parse::<ipnetwork::IpNetwork>().unwrap()).into(),
                        Value::None,
                    );
                },
                &["set pods: 10.0.0.0 to 10.255.255.255 is too much"],
            ),
            (
                |table| {
                    table.chains.clear();
                    table.chains.insert("theirs".parse().unwrap(), Default::default());
                },
                &["chain services4 is missing", "chain theirs is too much"],
            ),
            (
                |table| table.dormant = true,
                &["table inet weft-proxy is not made as it should be, and has to be made anew"],
            ),
        ];
        for (change, expected) in cases {
            let mut observed = table();
            change(&mut observed);
            assert_eq!(differences(&table(), Some(&observed)), expected);
        }
        assert_eq!(differences(&table(), None), ["table inet weft-proxy is missing"]);
    }
}
