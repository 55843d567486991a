//! nftables on a real kernel: what is committed is what is read back, by us and by `nft`.
//!
//! Each test runs in a network namespace of its own. Needs root.

#[path = "nft/sample.rs"]
mod sample;

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::sched::{CloneFlags, unshare};
use sample::everything;
use weft_kernel::nft::{
    Base, Chain, ChainKind, CommitError, DataType, Diff, Elements, Event, Events, Expr, Family, Hook, Key,
    Nft, Object, Part, Policy, Rule, Selector, SetName, SetSpec, Table, Transaction, Value, Verdict, diff,
};

/// Runs a test in a fresh network namespace, on a thread that ends with it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `nft` in this thread's namespace.
fn nft(args: &str) -> String {
    let output = Command::new("nft").args(args.split(' ')).output().expect("nft is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "nft {args}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(raw: &str) -> T {
    raw.parse().unwrap()
}

fn net(raw: &str) -> IpNetwork {
    raw.parse().unwrap()
}

fn commit(nft: &mut Nft, transaction: &Transaction) {
    nft.commit(transaction).unwrap_or_else(|error| panic!("{error}"));
}

fn base(kind: ChainKind, hook: Hook, priority: i32, policy: Policy) -> Option<Base> {
    Some(Base { kind, hook, priority, policy })
}

/// Chains and sets come and go one by one; a dynamic set keeps what packets put into it.
#[test]
fn parts_change_alone() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let mut old = Table::new(Family::Inet, name("t"));
        let chain = |rules| Chain { rules, ..Chain::default() };
        let verdicts = |chain: &str| {
            let mut map = SetSpec::exact([DataType::Service]).to(DataType::Verdict).with([]);
            let goto = Value::Verdict(Verdict::Goto(name(chain)));
            map.elements.insert(Part::bytes(80u16.to_be_bytes()).into(), goto);
            map
        };
        old.sets.insert(name("v"), verdicts("one"));
        old.sets.insert(name("gone"), SetSpec::exact([DataType::Mark]).with([]));
        old.chains.insert(name("one"), chain(vec![Rule::new().jump(&name("two"))]));
        let look = Rule::new().in_set([Selector::Mark], &name("gone"));
        old.chains.insert(name("two"), chain(vec![look, Rule::new().counter()]));
        let by_port = |map: &str| Rule::new().udp().verdict_map([Selector::UdpDport], &name(map));
        old.chains.insert(name("base"), chain(vec![by_port("v")]));
        commit(&mut nft, &Transaction::new().create(&old));

        let mut new = old.clone();
        new.sets.insert(name("v"), verdicts("three"));
        new.sets.remove(&name("gone"));
        new.sets.insert(name("come"), verdicts("three"));
        new.chains.retain(|name, _| name.as_str() == "base");
        new.chains.insert(name("three"), chain(vec![Rule::new().drop()]));
        new.chains.insert(name("base"), chain(vec![by_port("v"), by_port("come")]));
        for (from, to) in [(&old, &new), (&new, &old)] {
            let observed = nft.table(&from.key).unwrap();
            let change = diff(to, observed.as_ref());
            assert!(matches!(change, Diff::Parts(_)), "{change:?}");
            commit(&mut nft, &change.transaction(to));
            assert_eq!(nft.table(&to.key).unwrap().as_ref(), Some(to));
        }
        // What cannot be changed is built anew.
        let mut other = old.clone();
        other.sets.insert(name("gone"), SetSpec::exact([DataType::Ipv4]).with([]));
        assert_eq!(diff(&other, Some(&old)), Diff::Rebuild);
    });
}

#[test]
fn everything_is_read_back_as_it_was_written() {
    in_namespace(|| {
        let table = everything();
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.table(&table.key).unwrap(), None);
        commit(&mut nft, &Transaction::new().replace(&table));
        let observed = nft.table(&table.key).unwrap().unwrap();
        for (name, chain) in &table.chains {
            for (rule, there) in chain.rules.iter().zip(&observed.chains[name].rules) {
                assert_eq!(there, rule);
            }
        }
        assert_eq!(observed, table);
        assert_eq!(diff(&table, Some(&observed)), Diff::Same);
        assert_eq!(nft.tables().unwrap(), std::slice::from_ref(&table.key));
        // In turns, of which only the last one is met by packets.
        commit(&mut nft, &Transaction::new().remove(&table.key));
        let turns = Transaction::create_in_turns(table.clone(), 2);
        let (last, before) = turns.split_last().unwrap();
        before.iter().for_each(|turn| commit(&mut nft, turn));
        let observed = nft.table(&table.key).unwrap().unwrap();
        assert!(observed.chains.values().all(|chain| chain.base.is_none()));
        commit(&mut nft, last);
        assert_eq!(nft.table(&table.key).unwrap().as_ref(), Some(&table));
        // Once more over what is there, now with something of another's in it.
        crate::nft("add rule inet weft-test input tcp option maxseg size 1-500 accept");
        let observed = nft.table(&table.key).unwrap().unwrap();
        let unknown = observed.chains[&name("input")].rules.last().unwrap();
        assert!(unknown.exprs.iter().any(|expr| matches!(expr, Expr::Unknown { .. })), "{unknown:?}");
        let change = diff(&table, Some(&observed));
        assert!(matches!(&change, Diff::Parts(parts) if parts.changed_chains.len() == 1), "{change:?}");
        commit(&mut nft, &change.transaction(&table));
        assert_eq!(nft.table(&table.key).unwrap().as_ref(), Some(&table));
        commit(&mut nft, &Diff::Rebuild.transaction(&table));
        assert_eq!(nft.table(&table.key).unwrap().as_ref(), Some(&table));
        commit(&mut nft, &Transaction::new().remove(&table.key));
        assert_eq!(nft.tables().unwrap(), []);
        commit(&mut nft, &Transaction::new().remove(&table.key));
    });
}

#[test]
fn nft_lists_it() {
    in_namespace(|| {
        let mut socket = Nft::open().unwrap();
        commit(&mut socket, &Transaction::new().create(&everything()));
        golden("everything", &nft("-s list ruleset"));
    });
}

/// Compares with tests/nft/<case>.nft; with BLESS=1 writes it.
fn golden(case: &str, text: &str) {
    let path = format!("{}/tests/nft/{case}.nft", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, wanted, "{path} says otherwise; BLESS=1 rewrites it");
}

#[test]
fn a_transaction_is_all_or_nothing_and_says_what_was_wrong() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let good = Table::new(Family::Inet, name("good"));
        let mut bad = Table::new(Family::Inet, name("bad"));
        let rules = vec![
            Rule::new().accept(),
            Rule::new().in_set([Selector::Mark], &name("nowhere")).comment("looks into nothing"),
        ];
        bad.chains.insert(name("c"), Chain { rules, ..Chain::default() });
        let error = nft.commit(&Transaction::new().create(&good).create(&bad)).unwrap_err();
        let CommitError::Refused(refusals) = &error else { panic!("{error}") };
        let wanted = Object::Rule(bad.key.clone(), name("c"), 1, Some("looks into nothing".into()));
        assert_eq!(refusals.len(), 1);
        assert_eq!(refusals[0].object, wanted);
        assert_eq!(refusals[0].source.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(nft.tables().unwrap(), []);
        assert_eq!(
            error.to_string(),
            "nftables refused rule 1 \"looks into nothing\" of chain inet bad c: \
             No such file or directory (os error 2)"
        );
        // The same socket goes on.
        commit(&mut nft, &Transaction::new().create(&good));
        assert_eq!(nft.tables().unwrap(), [good.key]);
    });
}

/// A table with one set of IPv4 ranges.
fn one_set(ranges: &[&str]) -> (Table, SetName, SetSpec) {
    let mut table = Table::new(Family::Inet, name("t"));
    let spec = SetSpec::intervals([DataType::Ipv4]);
    table.sets.insert(name("s"), spec.clone().with(ranges.iter().map(|raw| net(raw).into())));
    (table, name("s"), spec)
}

#[test]
fn elements_change_alone_and_errors_name_them() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let (old, set, spec) = one_set(&["10.0.0.0/24", "10.0.1.0/24", "10.0.4.0/22"]);
        commit(&mut nft, &Transaction::new().create(&old));
        // A range goes, one comes, and two take the place of a third.
        let (new, ..) = one_set(&["10.0.1.0/24", "10.0.4.0/23", "10.0.6.0/24", "10.9.0.0/16"]);
        let observed = nft.table(&old.key).unwrap();
        let change = diff(&new, observed.as_ref());
        let Diff::Elements(changes) = &change else { panic!("{change:?}") };
        assert_eq!((changes[0].delete.len(), changes[0].add.len()), (2, 3));
        commit(&mut nft, &change.transaction(&new));
        assert_eq!(diff(&new, nft.table(&new.key).unwrap().as_ref()), Diff::Same);

        let elements = |raw: &str| spec.clone().with([net(raw).into()]).elements;
        // What is there may be added again; what is not there cannot be deleted.
        commit(&mut nft, &Transaction::new().add_elements(&new.key, &set, &spec, elements("10.0.1.0/24")));
        let missing = Transaction::new().delete_elements(&new.key, &set, &spec, elements("10.7.0.0/24"));
        let error = nft.commit(&missing).unwrap_err();
        let CommitError::Refused(refusals) = &error else { panic!("{error}") };
        assert_eq!(refusals[0].source.raw_os_error(), Some(libc::ENOENT));
        let Object::Elements(_, at, Some(key)) = &refusals[0].object else { panic!("{error}") };
        assert_eq!((at, key.first()), (&set, [10, 7, 0, 0].as_slice()));
        assert_eq!(diff(&new, nft.table(&new.key).unwrap().as_ref()), Diff::Same);
    });
}

#[test]
fn concatenated_ranges_change_alone() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let spec = SetSpec::intervals([DataType::Ipv4, DataType::Ipv4]);
        let with = |pairs: &[(u8, &str)]| {
            let mut table = Table::new(Family::Inet, name("t"));
            let key = |(host, inner): &(u8, &str)| {
                Key::concat([Ipv4Addr::new(192, 0, 2, *host).into(), net(inner).into()])
            };
            table.sets.insert(name("s"), spec.clone().with(pairs.iter().map(key)));
            table
        };
        let states = [
            with(&[]),
            with(&[(1, "10.42.1.0/24"), (2, "10.42.2.0/24")]),
            with(&[(1, "10.42.2.0/24"), (2, "10.42.1.0/24"), (3, "10.0.0.0/8")]),
            with(&[(3, "10.0.0.0/9"), (3, "10.200.0.0/16")]),
        ];
        commit(&mut nft, &Transaction::new().create(&states[0]));
        for state in states.iter().chain(states.iter().rev()) {
            let change = diff(state, nft.table(&state.key).unwrap().as_ref());
            assert!(!matches!(change, Diff::Rebuild));
            commit(&mut nft, &change.transaction(state));
            assert_eq!(nft.table(&state.key).unwrap().as_ref(), Some(state));
        }
    });
}

/// More than one message, more than one socket buffer.
#[test]
fn ten_thousand_elements_come_in_one_transaction() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let mut table = Table::new(Family::Inet, name("t"));
        let addr = |n: u32| Ipv4Addr::from(0x0a00_0000 + 2 * n);
        let single = (0..10_000).map(|n| addr(n).into());
        table.sets.insert(name("tree"), SetSpec::intervals([DataType::Ipv4]).with(single.clone()));
        table.sets.insert(name("hash"), SetSpec::exact([DataType::Ipv4]).with(single));
        let pairs =
            (0..2_000).map(|n| Key::concat([addr(n).into(), net(&format!("{}/24", addr(n << 8))).into()]));
        table.sets.insert(name("pairs"), SetSpec::intervals([DataType::Ipv4, DataType::Ipv4]).with(pairs));
        let started = Instant::now();
        commit(&mut nft, &Transaction::new().replace(&table));
        let committed = started.elapsed();
        assert_eq!(nft.table(&table.key).unwrap().as_ref(), Some(&table));
        println!("22,000 elements: committed in {committed:?}, read in {:?}", started.elapsed() - committed);
        // A refusal in the middle of it all is still named, and nothing of it stays.
        let mut broken = table.clone();
        broken.key.name = name("u");
        broken
            .sets
            .get_mut(&name("hash"))
            .unwrap()
            .elements
            .insert(Part::bytes([1, 2, 3]).into(), Value::None);
        let error = nft.commit(&Transaction::new().replace(&broken)).unwrap_err();
        assert!(error.to_string().contains("element 0x010203 of set inet u hash"), "{error}");
        assert_eq!(nft.tables().unwrap(), [table.key]);
    });
}

#[test]
fn events_tell_our_changes_from_others() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut events = Events::open().unwrap();
            let mut socket = Nft::open().unwrap();
            let table = everything();
            commit(&mut socket, &Transaction::new().create(&table));
            let Event::Commit { port, tables, .. } = soon(&mut events).await else { panic!("lost") };
            assert_eq!(port, socket.port());
            assert!(tables.iter().eq([&table.key]), "{tables:?}");

            nft("add table ip filter");
            let Event::Commit { port, tables, process } = soon(&mut events).await else { panic!("lost") };
            assert_eq!((process.as_str(), port == socket.port()), ("nft", false));
            let keys: Vec<_> = tables.iter().map(ToString::to_string).collect();
            assert_eq!(keys, ["ip filter"]);

            nft("flush ruleset");
            let Event::Commit { port, tables, .. } = soon(&mut events).await else { panic!("lost") };
            assert_ne!(port, socket.port());
            assert!(tables.contains(&table.key), "{tables:?}");
            assert_eq!(socket.table(&table.key).unwrap(), None);
            assert_eq!(events.try_next().unwrap(), None);
        });
    });
}

/// The next event, within a generous while.
async fn soon(events: &mut Events) -> Event {
    tokio::time::timeout(Duration::from_secs(20), events.next()).await.expect("an event").unwrap()
}

#[test]
fn a_reader_that_sleeps_hears_that_it_missed_something() {
    in_namespace(|| {
        let mut events = Events::with_space(10_000).unwrap();
        let mut nft = Nft::open().unwrap();
        let table = everything();
        for _ in 0..100 {
            commit(&mut nft, &Transaction::new().replace(&table));
        }
        let mut seen = Vec::new();
        while let Some(event) = events.try_next().unwrap() {
            seen.push(event);
        }
        assert!(seen.contains(&Event::Lost), "{} events, none lost", seen.len());
        // It can listen on.
        commit(&mut nft, &Transaction::new().remove(&table.key));
        assert!(matches!(events.try_next().unwrap(), Some(Event::Commit { .. })));
    });
}

#[test]
fn counters_are_read() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let mut table = Table::new(Family::Inet, name("t"));
        let rules = vec![
            Rule::new().udp_dport(9).counter().drop().comment("discarded"),
            Rule::new().udp_dport(10).counter().comment("nothing"),
        ];
        let base = base(ChainKind::Filter, Hook::Input, 0, Policy::Accept);
        table.chains.insert(name("c"), Chain { base, rules, comment: None });
        commit(&mut nft, &Transaction::new().create(&table));
        let socket = std::net::UdpSocket::bind((IpAddr::from(Ipv4Addr::LOCALHOST), 0)).unwrap();
        for _ in 0..3 {
            socket.send_to(b"12345678", "127.0.0.1:9").unwrap();
        }
        let readings = nft.counters(&table.key).unwrap();
        let counted: Vec<_> =
            readings.iter().map(|r| (r.comment.as_ref().unwrap().as_str(), r.packets, r.bytes)).collect();
        // 20 bytes of IP, 8 of UDP, 8 of payload; on loopback they are there when the call returns.
        assert_eq!(counted, [("discarded", 3, 3 * 36), ("nothing", 0, 0)]);
        // What a counter holds is no difference.
        assert_eq!(diff(&table, nft.table(&table.key).unwrap().as_ref()), Diff::Same);
    });
}

#[test]
fn elements_count_what_finds_them() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let mut table = Table::new(Family::Inet, name("t"));
        let (busy, idle) = ([127, 0, 0, 7], [127, 0, 0, 8]);
        let keys = [busy, idle].map(|addr| Key::from(Ipv4Addr::from(addr)));
        let spec = SetSpec::exact([DataType::Ipv4]).counted().comment("counts");
        table.sets.insert(name("s"), spec.clone().with(keys.clone()));
        table.sets.insert(name("uncounted"), SetSpec::exact([DataType::Ipv4]).with(keys.clone()));
        let rules = vec![Rule::new().ipv4().in_set([Selector::Ip4Daddr], &name("s")).return_()];
        let base = base(ChainKind::Filter, Hook::Output, 0, Policy::Accept);
        table.chains.insert(name("c"), Chain { base, rules, comment: None });
        commit(&mut nft, &Transaction::new().create(&table));
        let socket = std::net::UdpSocket::bind((IpAddr::from(Ipv4Addr::LOCALHOST), 0)).unwrap();
        let send = |to: [u8; 4], times: usize| {
            for _ in 0..times {
                socket.send_to(b"12345678", (Ipv4Addr::from(to), 9)).unwrap();
            }
        };
        let counted = |nft: &mut Nft| {
            let mut sets = nft.element_counters(&table.key).unwrap();
            let mut readings = sets.remove(&name::<SetName>("s")).unwrap();
            assert!(sets.is_empty(), "{sets:?}");
            readings.sort_by(|a, b| a.key.cmp(&b.key));
            readings.into_iter().map(|r| (r.key, r.packets, r.bytes)).collect::<Vec<_>>()
        };
        send(busy, 3);
        // 20 bytes of IP, 8 of UDP, 8 of payload.
        assert_eq!(counted(&mut nft), [(keys[0].clone(), 3, 108), (keys[1].clone(), 0, 0)]);
        // What a counter holds is no difference, and another element leaves it alone.
        assert_eq!(diff(&table, nft.table(&table.key).unwrap().as_ref()), Diff::Same);
        let third = Key::from(Ipv4Addr::new(127, 0, 0, 9));
        let more = spec.clone().with([third.clone()]).elements;
        commit(&mut nft, &Transaction::new().add_elements(&table.key, &name("s"), &spec, more));
        send(busy, 1);
        let expected = [(keys[0].clone(), 4, 144), (keys[1].clone(), 0, 0), (third, 0, 0)];
        assert_eq!(counted(&mut nft), expected);
        // Whoever listens hears what an element had counted when it went, whoever deleted it.
        let mut events = Events::open().unwrap().counting(table.key.clone());
        let gone = spec.clone().with([keys[0].clone()]).elements;
        commit(&mut nft, &Transaction::new().delete_elements(&table.key, &name("s"), &spec, gone.clone()));
        let plain = SetSpec::exact([DataType::Ipv4]);
        let step = Transaction::new().delete_elements(&table.key, &name("uncounted"), &plain, gone.clone());
        commit(&mut nft, &step);
        while events.try_next().unwrap().is_some() {}
        let told = events.take_deleted().into_iter().map(|(set, it)| (set.to_string(), it.key, it.packets));
        assert_eq!(told.collect::<Vec<_>>(), [("s".to_owned(), keys[0].clone(), 4)]);
        assert_eq!(events.take_deleted(), []);
        // A set of the same name that does not count is another one.
        let mut uncounted = table.clone();
        uncounted.sets.insert(name("s"), SetSpec { counted: false, ..spec.clone() }.with(keys));
        assert_eq!(diff(&uncounted, nft.table(&table.key).unwrap().as_ref()), Diff::Rebuild);
        commit(&mut nft, &Transaction::new().remove(&table.key));
        assert!(nft.element_counters(&table.key).unwrap().is_empty());
    });
}

/// Dormant tables and foreign elements, chains and comments are drift.
#[test]
fn what_others_change_is_seen() {
    in_namespace(|| {
        let mut socket = Nft::open().unwrap();
        let (mut table, ..) = one_set(&["10.0.0.0/24"]);
        table.chains.insert(name("c"), Chain { rules: vec![Rule::new().accept()], ..Chain::default() });
        let drifts = [
            ("add table inet t { flags dormant ; }", "all"),
            ("add chain inet t other", "parts"),
            ("insert rule inet t c drop", "parts"),
            ("flush chain inet t c", "parts"),
            ("add set inet t more { type ipv4_addr ; }", "parts"),
            ("add element inet t s { 10.8.0.0/24 }", "elements"),
            ("delete element inet t s { 10.0.0.0/24 }", "elements"),
            ("flush set inet t s", "elements"),
            ("delete table inet t", "all"),
        ];
        for (drift, wanted) in drifts {
            commit(&mut socket, &Transaction::new().replace(&table));
            assert_eq!(diff(&table, socket.table(&table.key).unwrap().as_ref()), Diff::Same);
            nft(drift);
            let change = diff(&table, socket.table(&table.key).unwrap().as_ref());
            let kind = match &change {
                Diff::Same => "nothing",
                Diff::Elements(_) => "elements",
                Diff::Parts(_) => "parts",
                Diff::Rebuild => "all",
            };
            assert_eq!(kind, wanted, "{drift}: {change:?}");
            commit(&mut socket, &change.transaction(&table));
            assert_eq!(socket.table(&table.key).unwrap().as_ref(), Some(&table), "{drift}");
        }
    });
}

/// One element is asked for without a look at the others.
#[test]
fn single_elements_are_found() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let mut table = Table::new(Family::Inet, name("t"));
        let address = |last| Key::from(Part::from(Ipv4Addr::new(192, 0, 2, last)));
        let exact = SetSpec::exact([DataType::Ipv4]).to(DataType::Mark);
        let value = |number: u32| Value::Bytes(number.to_ne_bytes().to_vec());
        let mut map = exact.clone().with([]);
        map.elements = (1..=200).map(|last| (address(last), value(last.into()))).collect();
        table.sets.insert(name("exact"), map);
        let ranges = SetSpec::intervals([DataType::Ipv4, DataType::Ipv4]);
        let pair = |range: &str| Key::concat([net(range).into(), Part::from(Ipv4Addr::new(192, 0, 2, 1))]);
        table.sets.insert(name("ranges"), ranges.clone().with([pair("10.0.0.0/8"), pair("172.16.0.0/12")]));
        table.chains.insert(name("c"), Chain { rules: vec![Rule::new().drop()], ..Chain::default() });
        commit(&mut nft, &Transaction::new().create(&table));
        let found = nft.find(&table.key, &name("exact"), &exact, &[address(7), address(201), address(9)]);
        assert_eq!(found.unwrap(), [(address(7), value(7)), (address(9), value(9))].into());
        let found = nft.find(&table.key, &name("ranges"), &ranges, &[pair("10.0.0.0/8"), pair("11.0.0.0/8")]);
        assert_eq!(found.unwrap(), [(pair("10.0.0.0/8"), Value::None)].into());
        assert_eq!(nft.find(&table.key, &name("none"), &exact, &[address(7)]).unwrap(), Elements::new());
        assert_eq!(nft.chains(&table.key).unwrap(), table.chains);
        let other = Table::new(Family::Inet, name("u")).key;
        assert!(nft.chains(&other).unwrap().is_empty());
    });
}
