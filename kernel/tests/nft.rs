//! nftables on a real kernel: what is committed is what is read back, by us and by `nft`.
//!
//! Each test runs in a network namespace of its own. Needs root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::sched::{CloneFlags, unshare};
use weft_kernel::net::{LinkName, Mac};
use weft_kernel::nft::{
    Base, Chain, ChainKind, ChainName, CmpOp, CommitError, CtKey, DataType, Diff, Event, Events, Expr,
    Family, FibFlags, FibResult, Hook, Key, MetaKey, Nft, Object, Part, PayloadBase, Policy, Reg, Reject,
    Rule, Selector, SetName, SetSpec, Table, Transaction, Value, Verdict, diff,
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

/// Every kind of object and every expression.
fn everything() -> Table {
    let mut table = Table::new(Family::Inet, name("weft-test"));
    table.comment = Some("all there is".into());
    let (pods, pods6, pairs, links, macs, verdicts, marks): (
        SetName,
        SetName,
        SetName,
        SetName,
        SetName,
        SetName,
        SetName,
    ) = (
        name("pods"),
        name("pods6"),
        name("pairs"),
        name("links"),
        name("macs"),
        name("verdicts"),
        name("marks"),
    );
    let jumped: ChainName = name("jumped");
    let v4 = Ipv4Addr::new(192, 0, 2, 7);
    let v6: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let mac = Mac([0x4e, 0x11, 0, 0, 0, 7]);
    let link: LinkName = name("veth1");
    let sets = [
        (
            &pods,
            SetSpec::intervals([DataType::Ipv4])
                .comment("ours")
                .with(["10.42.7.0/24", "10.42.8.0/24", "255.0.0.0/8"].map(|raw| net(raw).into())),
        ),
        (&pods6, SetSpec::intervals([DataType::Ipv6]).with([net("::/8"), net("fd00::/8")].map(Key::from))),
        (
            &pairs,
            SetSpec::intervals([DataType::Ipv4, DataType::Ipv6]).with([
                Key::concat([v4.into(), net("fd00:42::/64").into()]),
                Key::concat([v4.into(), v6.into()]),
            ]),
        ),
        (
            &links,
            SetSpec::exact([DataType::LinkName, DataType::Ipv4])
                .with([Key::concat([(&link).into(), v4.into()])]),
        ),
        (
            &macs,
            SetSpec::intervals([DataType::Ether, DataType::Ipv4])
                .with([Key::concat([mac.into(), net("10.42.7.0/24").into()])]),
        ),
    ];
    table.sets.extend(sets.map(|(name, set)| (name.clone(), set)));
    let mut map = SetSpec::exact([DataType::Service]).to(DataType::Verdict).with([]);
    for (port, verdict) in [
        (80u16, Verdict::Jump(jumped.clone())),
        (81, Verdict::Goto(jumped.clone())),
        (82, Verdict::Drop),
        (83, Verdict::Accept),
        (84, Verdict::Return),
        (85, Verdict::Continue),
    ] {
        map.elements.insert(Part::bytes(port.to_be_bytes()).into(), Value::Verdict(verdict));
    }
    table.sets.insert(verdicts.clone(), map);
    let mut map = SetSpec::exact([DataType::Ipv4]).to(DataType::Mark).with([]);
    map.elements.insert(v4.into(), Value::Bytes(7u32.to_ne_bytes().into()));
    table.sets.insert(marks.clone(), map);
    let timed = SetSpec {
        timeout: Some(Duration::from_secs(60)),
        dynamic: true,
        size: Some(1000),
        ..SetSpec::exact([DataType::Protocol])
    };
    table.sets.insert(name("timed"), timed.with([]));

    let reg = |slot: u32| Reg::try_from(slot).unwrap();
    let rules = vec![
        Rule::new().mark(0x4000, 0x4000).return_().comment("marked by kube-proxy"),
        Rule::new().iifname(&link).accept(),
        Rule::new().oifname(&link).drop(),
        Rule::new().ipv4().in_set([Selector::Ip4Saddr], &pods).counter(),
        Rule::new().ipv6().not_in_set([Selector::Ip6Daddr], &pods6).counter().comment("counts"),
        Rule::new().ipv4().in_network(Selector::Ip4Daddr, net("224.0.0.0/4")).verdict(Verdict::Continue),
        Rule::new()
            .ipv4()
            .is(Selector::Ip4Saddr, v4.octets())
            .is_not(Selector::Ip4Daddr, v4.octets())
            .accept(),
        Rule::new().ipv6().not_in_network(Selector::Ip6Daddr, net("ff00::/8")).accept(),
        Rule::new()
            .ipv4()
            .udp_dport(8472)
            .is(Selector::Payload { base: PayloadBase::Transport, offset: 12, len: 3 }, [0, 0, 1])
            .in_set(
                [Selector::Ip4Saddr, Selector::Payload { base: PayloadBase::Transport, offset: 38, len: 16 }],
                &pairs,
            )
            .accept(),
        Rule::new().ipv4().in_set([Selector::IifName, Selector::Ip4Saddr], &links).accept(),
        Rule::new().from_ethernet().ipv4().in_set([Selector::EtherSaddr, Selector::Ip4Saddr], &macs).accept(),
        Rule::new().udp().verdict_map([Selector::UdpSport], &verdicts),
        Rule::new().ct_state(1 << 1).accept().comment("established"),
        Rule::new().source_is_local().destination_is_local().accept(),
        Rule::new().jump(&jumped),
        Rule::new().reject(Reject::ADMIN_PROHIBITED),
        Rule::new().ipv4().reject(Reject::Icmp(3)),
        Rule::new().protocol(6).reject(Reject::TcpReset),
    ];
    let input = Chain {
        base: base(ChainKind::Filter, Hook::Input, -5, Policy::Drop),
        comment: Some("a base chain".into()),
        rules,
    };
    table.chains.insert(name("input"), input);
    let steps = Rule::new()
        .then(Expr::Immediate { to: reg(4), value: 5u32.to_ne_bytes().into() })
        .then(Expr::Meta { key: MetaKey::Mark, to: reg(1) })
        .then(Expr::Bitwise { from: reg(1), to: reg(2), mask: vec![0xff; 4], xor: vec![1, 0, 0, 0] })
        .then(Expr::Range { reg: reg(2), invert: true, from: vec![0; 4], to: vec![9; 4] })
        .then(Expr::SetMeta { key: MetaKey::Mark, from: reg(2) })
        .then(Expr::Ct { key: CtKey::Status, to: reg(0) })
        .then(Expr::Cmp { reg: reg(0), op: CmpOp::Ge, value: vec![1, 0, 0, 0] })
        .then(Expr::Fib {
            flags: FibFlags { daddr: true, mark: true, ..FibFlags::default() },
            result: FibResult::OifName,
            to: reg(0),
        });
    let mark_by_map = Rule::new()
        .ipv4()
        .then(Expr::Payload { base: PayloadBase::Network, offset: 12, len: 4, to: reg(0) })
        .then(Expr::MapLookup { map: marks, key: reg(0), to: reg(0) })
        .then(Expr::SetMeta { key: MetaKey::Mark, from: reg(0) });
    table.chains.insert(jumped, Chain { rules: vec![steps, mark_by_map], ..Chain::default() });
    let raw = vec![Rule::new().udp_dport(8472).notrack()];
    let raw = Chain {
        base: base(ChainKind::Filter, Hook::Prerouting, Base::PRIORITY_RAW, Policy::Accept),
        rules: raw,
        ..Chain::default()
    };
    table.chains.insert(name("raw"), raw);
    let route = Chain { base: base(ChainKind::Route, Hook::Output, 0, Policy::Accept), ..Chain::default() };
    table.chains.insert(name("route"), route);
    let masquerade = |random, fully_random, persistent| {
        Rule::new().then(Expr::Masquerade { random, fully_random, persistent })
    };
    let nat = Chain {
        base: base(ChainKind::Nat, Hook::Postrouting, Base::PRIORITY_SRCNAT, Policy::Accept),
        rules: vec![
            masquerade(false, true, false),
            masquerade(true, false, true),
            masquerade(false, false, false),
        ],
        ..Chain::default()
    };
    table.chains.insert(name("nat"), nat);
    table
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
        // Once more over what is there, now with something of another's in it.
        crate::nft("add rule inet weft-test input tcp option maxseg size 1-500 accept");
        let observed = nft.table(&table.key).unwrap().unwrap();
        let unknown = observed.chains[&name("input")].rules.last().unwrap();
        assert!(unknown.exprs.iter().any(|expr| matches!(expr, Expr::Unknown { .. })), "{unknown:?}");
        assert_eq!(diff(&table, Some(&observed)), Diff::Rebuild);
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

/// Dormant tables and foreign elements, chains and comments are drift.
#[test]
fn what_others_change_is_seen() {
    in_namespace(|| {
        let mut socket = Nft::open().unwrap();
        let (mut table, ..) = one_set(&["10.0.0.0/24"]);
        table.chains.insert(name("c"), Chain { rules: vec![Rule::new().accept()], ..Chain::default() });
        let drifts = [
            ("add table inet t { flags dormant ; }", true),
            ("add chain inet t other", true),
            ("insert rule inet t c drop", true),
            ("flush chain inet t c", true),
            ("add set inet t more { type ipv4_addr ; }", true),
            ("add element inet t s { 10.8.0.0/24 }", false),
            ("delete element inet t s { 10.0.0.0/24 }", false),
            ("flush set inet t s", false),
            ("delete table inet t", true),
        ];
        for (drift, rebuild) in drifts {
            commit(&mut socket, &Transaction::new().replace(&table));
            assert_eq!(diff(&table, socket.table(&table.key).unwrap().as_ref()), Diff::Same);
            nft(drift);
            let change = diff(&table, socket.table(&table.key).unwrap().as_ref());
            assert_eq!(matches!(change, Diff::Rebuild), rebuild, "{drift}: {change:?}");
            assert_eq!(matches!(change, Diff::Elements(_)), !rebuild, "{drift}: {change:?}");
            commit(&mut socket, &change.transaction(&table));
            assert_eq!(socket.table(&table.key).unwrap().as_ref(), Some(&table), "{drift}");
        }
    });
}
