//! iptables, as far as rules here use it: takes what `iptables-restore` is told, prints what
//! `iptables-save` would, and says what becomes of a packet. It knows the words that this module
//! writes and stops at any other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use weft_kernel::iptables::split;

use crate::host::Host;
use crate::simulate::Packet;

/// Chains by table and name: each rule's text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fake(BTreeMap<String, BTreeMap<String, Vec<String>>>);

/// Who is in which list (`-m recent`).
pub(super) type Lists = BTreeMap<String, BTreeSet<IpAddr>>;

const BUILT_IN: [(&str, &[&str]); 2] =
    [("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]), ("filter", &["INPUT", "FORWARD", "OUTPUT"])];

impl Fake {
    /// A host without rules.
    pub(super) fn new() -> Self {
        let table = |chains: &[&str]| chains.iter().map(|it| ((*it).to_owned(), Vec::new())).collect();
        Self(BUILT_IN.iter().map(|(name, chains)| ((*name).to_owned(), table(chains))).collect())
    }

    /// `iptables-restore --noflush`. Stops where the kernel would refuse.
    pub(super) fn restore(&mut self, text: &str) {
        let mut at: Option<(String, BTreeMap<String, Vec<String>>)> = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                at = Some((name.to_owned(), self.0[name].clone()));
                continue;
            }
            if line == "COMMIT" {
                let (name, table) = at.take().expect("a table is open");
                check(&table);
                self.0.insert(name, table);
                continue;
            }
            let (_, table) = at.as_mut().expect("a table is open");
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.strip_suffix(" - [0:0]").expect("a chain of ours");
                assert!(name.len() <= 28, "{name} is too long");
                table.insert(name.to_owned(), Vec::new());
                continue;
            }
            let (verb, rest) = line.split_once(' ').expect("a verb");
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            let rules = table.get_mut(chain).unwrap_or_else(|| panic!("no chain {chain}"));
            match verb {
                "-A" => rules.push(rule.to_owned()),
                "-I" => rules.insert(0, rule.to_owned()),
                "-D" => {
                    let found = rules.iter().position(|it| it == rule).expect("the rule is there");
                    rules.remove(found);
                }
                "-X" => {
                    assert!(rules.is_empty(), "{chain} is not empty");
                    table.remove(chain);
                }
                other => panic!("nobody writes {other}"),
            }
        }
        assert!(at.is_none(), "COMMIT is missing");
    }

    /// `iptables-save`.
    pub(super) fn save(&self) -> String {
        let mut text = String::from("# Generated\n");
        for (name, table) in &self.0 {
            text.push_str(&format!("*{name}\n"));
            for chain in table.keys() {
                let policy = if chain.starts_with("WEFT-") { "-" } else { "ACCEPT" };
                text.push_str(&format!(":{chain} {policy} [7:420]\n"));
            }
            for (chain, rules) in table {
                rules.iter().for_each(|rule| text.push_str(&format!("-A {chain} {rule}\n")));
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = (&str, &str, &Vec<String>)> {
        let all = self.0.iter();
        all.flat_map(|(table, chains)| {
            chains.iter().map(move |(name, rules)| (table.as_str(), name.as_str(), rules))
        })
    }
}

/// Every chain that is led to is there.
fn check(table: &BTreeMap<String, Vec<String>>) {
    for rule in table.values().flatten() {
        let words = split(rule);
        let target = words.windows(2).find(|pair| pair[0] == "-j" || pair[0] == "-g").map(|pair| &pair[1]);
        if let Some(target) = target.filter(|target| target.starts_with("WEFT-")) {
            assert!(table.contains_key(target), "{rule} leads nowhere");
        }
    }
}

/// Where a packet's way ends.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    Untouched,
    Dropped,
    Rejected,
    To { endpoint: SocketAddr, masquerade: bool },
}

/// Each end that chance may lead to, with its probability and who is remembered then.
pub(super) fn ends(fake: &Fake, host: &Host, packet: &Packet, lists: &Lists) -> Vec<(f64, End, Lists)> {
    let mut found = Vec::new();
    let mut open: Vec<Vec<bool>> = vec![Vec::new()];
    while let Some(choices) = open.pop() {
        let mut walk = Walk {
            fake,
            host,
            packet,
            given: choices.clone(),
            taken: Vec::new(),
            lists: lists.clone(),
            mark: 0,
            translated: None,
            masquerade: false,
        };
        let end = walk.run();
        let mut so_far = Vec::new();
        for (index, (_, choice)) in walk.taken.iter().enumerate() {
            if index >= choices.len() {
                let mut other: Vec<bool> = so_far.clone();
                other.push(!choice);
                open.push(other);
            }
            so_far.push(*choice);
        }
        let weight =
            |(probability, taken): &(f64, bool)| if *taken { *probability } else { 1.0 - probability };
        found.push((walk.taken.iter().map(weight).product(), end, walk.lists));
    }
    found
}

struct Walk<'a> {
    fake: &'a Fake,
    host: &'a Host,
    packet: &'a Packet,
    /// What chance is told to say; "no" afterwards.
    given: Vec<bool>,
    /// What it was asked, and said.
    taken: Vec<(f64, bool)>,
    lists: Lists,
    mark: u32,
    translated: Option<SocketAddr>,
    masquerade: bool,
}

#[derive(Debug)]
enum Verdict {
    /// On with the next rule.
    Next,
    /// Back to who called.
    Return,
    Accept,
    Drop,
    Reject,
    /// A translation: the table is done.
    Done,
}

impl Walk<'_> {
    fn run(&mut self) -> End {
        let (nat, filter) = match &self.packet.input {
            None => ("OUTPUT", "OUTPUT"),
            Some(_) => ("PREROUTING", ""),
        };
        self.chain("nat", nat);
        let local = self.host.owns(self.destination().ip());
        let filter = match filter {
            "" if local => "INPUT",
            "" => "FORWARD",
            output => output,
        };
        match self.chain("filter", filter) {
            Verdict::Drop => return End::Dropped,
            Verdict::Reject => return End::Rejected,
            _ => {}
        }
        self.chain("nat", "POSTROUTING");
        assert_eq!(self.mark, 0, "the mark is taken off again");
        match self.translated {
            Some(endpoint) => End::To { endpoint, masquerade: self.masquerade },
            None => End::Untouched,
        }
    }

    fn destination(&self) -> SocketAddr {
        self.translated.unwrap_or(self.packet.destination)
    }

    fn chain(&mut self, table: &str, name: &str) -> Verdict {
        let rules = &self.fake.0[table][name];
        for rule in rules {
            match self.rule(table, rule) {
                Verdict::Next => {}
                other => return other,
            }
        }
        Verdict::Return
    }

    fn rule(&mut self, table: &str, rule: &str) -> Verdict {
        let words = split(rule);
        let mut words = words.iter().map(String::as_str).peekable();
        let mut not = false;
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("`{rule}` ends too early"));
            let fits = match word {
                "!" => {
                    not = true;
                    continue;
                }
                "-s" => within(value(), self.packet.source),
                "-d" => within(value(), self.destination().ip()),
                "-i" => self.input(value()),
                "-p" => value() == self.packet.protocol.to_string(),
                "-m" => match value() {
                    "tcp" | "udp" | "sctp" => {
                        assert_eq!(words.next(), Some("--dport"));
                        let text = words.next().unwrap();
                        let port = self.destination().port();
                        match text.split_once(':') {
                            Some((first, last)) => {
                                (first.parse().unwrap()..=last.parse().unwrap()).contains(&port)
                            }
                            None => text.parse() == Ok(port),
                        }
                    }
                    "comment" => {
                        words.by_ref().nth(1);
                        true
                    }
                    "addrtype" => {
                        let mut side = words.next().unwrap();
                        if side == "!" {
                            not = true;
                            side = words.next().unwrap();
                        }
                        assert_eq!(words.next(), Some("LOCAL"));
                        let address = match side {
                            "--src-type" => self.packet.source,
                            "--dst-type" => self.destination().ip(),
                            other => panic!("nobody asks for {other}"),
                        };
                        self.host.owns(address)
                    }
                    "conntrack" => {
                        assert_eq!(words.next(), Some("--ctstate"));
                        match words.next() {
                            Some("NEW") => true,
                            Some("INVALID") => false,
                            Some("DNAT") => self.translated.is_some(),
                            other => panic!("nobody asks for {other:?}"),
                        }
                    }
                    "mark" => {
                        assert_eq!(words.by_ref().take(2).collect::<Vec<_>>(), ["--mark", "0x4000/0x4000"]);
                        self.mark & 0x4000 != 0
                    }
                    "statistic" => {
                        let head: Vec<_> = words.by_ref().take(3).collect();
                        assert_eq!(head, ["--mode", "random", "--probability"]);
                        self.chance(words.next().unwrap().parse().unwrap())
                    }
                    "bpf" => {
                        assert_eq!(words.next(), Some("--bytecode"));
                        let (source, to) = (self.packet.source, self.destination().ip());
                        bpf(words.next().unwrap(), &header(source, to))
                    }
                    "recent" => {
                        let options: Vec<&str> =
                            std::iter::from_fn(|| words.next_if(|it| *it != "-j")).collect();
                        self.recent(&options)
                    }
                    other => panic!("`{rule}`: nobody looks at {other}"),
                },
                "-j" | "-g" => return self.target(table, word == "-g", &words.collect::<Vec<_>>()),
                other => panic!("`{rule}`: nobody writes {other}"),
            };
            if fits == not {
                return Verdict::Next;
            }
            not = false;
        }
        Verdict::Next
    }

    fn target(&mut self, table: &str, goes: bool, words: &[&str]) -> Verdict {
        match words {
            ["RETURN"] => Verdict::Return,
            ["ACCEPT"] => Verdict::Accept,
            ["DROP"] => Verdict::Drop,
            ["REJECT", "--reject-with", _] => Verdict::Reject,
            ["MARK", "--set-xmark", "0x4000/0x4000"] => {
                self.mark |= 0x4000;
                Verdict::Next
            }
            ["MARK", "--set-xmark", "0x0/0x4000"] => {
                self.mark &= !0x4000;
                Verdict::Next
            }
            ["MASQUERADE", "--random-fully"] => {
                self.masquerade = true;
                Verdict::Done
            }
            ["DNAT", "--to-destination", to] => {
                self.translated = Some(to.parse().unwrap());
                Verdict::Done
            }
            [chain] if chain.starts_with("WEFT-") => match self.chain(table, chain) {
                // Who was sent on by goto is back where the chain before it was called from.
                Verdict::Return if !goes => Verdict::Next,
                other => other,
            },
            other => panic!("nobody leads to {other:?}"),
        }
    }

    fn input(&self, wanted: &str) -> bool {
        let Some(link) = &self.packet.input else { return false };
        match wanted.strip_suffix('+') {
            Some(prefix) => link.starts_with(prefix),
            None => link == wanted,
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        let says = self.given.get(self.taken.len()).copied().unwrap_or(false);
        self.taken.push((probability, says));
        says
    }

    fn recent(&mut self, options: &[&str]) -> bool {
        let name = options.iter().position(|it| *it == "--name").map(|at| options[at + 1]).unwrap();
        let list = self.lists.entry(name.to_owned()).or_default();
        assert!(name.len() < 200 && options.contains(&"--rsource"));
        match options[0] {
            "--update" => {
                assert_eq!(options[1], "--seconds");
                list.contains(&self.packet.source)
            }
            "--set" => {
                list.insert(self.packet.source);
                true
            }
            "--remove" => list.remove(&self.packet.source),
            other => panic!("nobody asks for {other}"),
        }
    }
}

/// An address with a prefix, or with a mask that may have holes.
fn within(range: &str, address: IpAddr) -> bool {
    if let Ok(range) = range.parse::<IpNetwork>() {
        return range.contains(address);
    }
    let (wanted, mask) = range.split_once('/').unwrap();
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let (wanted, mask): (IpAddr, IpAddr) = (wanted.parse().unwrap(), mask.parse().unwrap());
    wanted.is_ipv4() == address.is_ipv4() && bits(address) & bits(mask) == bits(wanted)
}

/// What a program sees of a packet.
fn header(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            [&[0u8; 12][..], &source.octets(), &destination.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            [&[0u8; 8][..], &source.octets(), &destination.octets()].concat()
        }
        other => panic!("{other:?} are of two families"),
    }
}

/// The classic packet filter (Documentation/networking/filter.rst).
fn bpf(text: &str, packet: &[u8]) -> bool {
    let mut parts = text.split(',');
    let len: usize = parts.next().unwrap().parse().unwrap();
    let program: Vec<[u32; 4]> = parts
        .map(|it| it.split(' ').map(|it| it.parse().unwrap()).collect::<Vec<u32>>().try_into().unwrap())
        .collect();
    assert!(program.len() == len && len <= 64, "{text}");
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let [code, yes, no, k] = program[at];
        at += 1;
        match code {
            0x20 => a = u32::from_be_bytes(packet[k as usize..k as usize + 4].try_into().unwrap()),
            0x00 => a = k,
            0x60 => a = memory[k as usize],
            0x61 => x = memory[k as usize],
            0x02 => memory[k as usize] = a,
            0x07 => x = a,
            0xac => a ^= x,
            0x24 => a = a.wrapping_mul(k),
            0x74 => a >>= k,
            0x7c => a >>= x,
            0x54 => a &= k,
            0x15 => at += if a == k { yes } else { no } as usize,
            0x1d => at += if a == x { yes } else { no } as usize,
            0x05 => at += k as usize,
            0x06 => return k != 0,
            0x16 => return a != 0,
            other => panic!("nobody writes {other:#x}"),
        }
    }
}
