//! A table that has everything in it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use weft_kernel::net::{LinkName, Mac};
use weft_kernel::nft::{
    Base, Chain, ChainKind, ChainName, CmpOp, CtKey, DataType, DynsetOp, Expr, Family, FibFlags, FibResult,
    Hook, Key, MetaKey, NatEnd, NumgenKind, Part, PayloadBase, Policy, Reg, Reject, Rule, Selector, SetName,
    SetSpec, Table, Value, Verdict,
};

use crate::{base, name, net};

/// Every kind of object and every expression.
pub(crate) fn everything() -> Table {
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
    let counted = SetSpec::exact([DataType::Ipv4, DataType::Ipv4]).counted();
    table.sets.insert(name("counted"), counted.with([Key::concat([v4.into(), v4.into()])]));
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
    translation(&mut table);
    table
}

/// Destination translation by maps: a frontend and a number lead to an endpoint; a client that came
/// before, to the one it had. Debian's `nft` cannot list a lookup whose key holds the result of another
/// one, so those take the way over the packet's priority.
fn translation(table: &mut Table) {
    let reg = |slot: u32| Reg::try_from(slot).unwrap();
    let number = |number: u32| Part::bytes(number.to_ne_bytes());
    let frontend = [DataType::Ipv4, DataType::Protocol, DataType::Service, DataType::Mark];
    let endpoint = [DataType::Ipv4, DataType::Service];
    let at = |last: u8| Value::Bytes(vec![10, 42, 7, last, 0x20, 0xfb, 0, 0]);
    let vip = || -> [Part; 3] {
        [Ipv4Addr::new(10, 96, 0, 1).into(), Part::bytes([6]), Part::bytes(443u16.to_be_bytes())]
    };
    let mut endpoints = SetSpec { size: Some(1 << 16), ..SetSpec::exact(frontend) }.to(endpoint).with([]);
    for slot in 0..2 {
        let [ip, protocol, port] = vip();
        endpoints.elements.insert(Key::concat([ip, protocol, port, number(slot)]), at(slot as u8));
    }
    let mut ids = SetSpec::exact(&frontend[..3]).to(DataType::Mark).with([]);
    ids.elements.insert(Key::concat(vip()), Value::Bytes(7u32.to_ne_bytes().into()));
    let mut live = SetSpec::exact([DataType::Mark]).to(endpoint).with([]);
    live.elements.insert(number(1).into(), at(1));
    let sticky = SetSpec {
        dynamic: true,
        timeout: Some(Duration::from_secs(10_800)),
        size: Some(1 << 16),
        ..SetSpec::exact([DataType::Mark, DataType::Ipv4]).to(DataType::Mark)
    };
    let sets = [("endpoints", endpoints), ("ids", ids), ("live", live), ("sticky", sticky.with([]))];
    table.sets.extend(sets.map(|(set, with)| (name(set), with)));

    let look = |rule: Rule, map, key, to| rule.then(Expr::MapLookup { map: name(map), key, to });
    let load_frontend = || {
        Rule::new()
            .load(Selector::Ip4Daddr, reg(0))
            .load(Selector::L4Proto, reg(1))
            .load(Selector::UdpDport, reg(2))
    };
    let dnat = |rule: Rule| {
        let (end, port) = (NatEnd::Destination, Some(reg(9)));
        rule.then(Expr::Nat { end, ipv6: false, addr: reg(8), port })
    };
    let to_endpoint = |rule: Rule| dnat(look(rule, "endpoints", reg(0), reg(8)));
    let numgen = |kind, offset| Expr::Numgen { kind, modulus: 2, offset, to: reg(3) };
    let hash = Expr::Hash { from: reg(4), len: 4, modulus: 251, seed: 0x5eed, offset: 0, to: reg(3) };
    let set_priority = |rule: Rule, from| rule.then(Expr::SetMeta { key: MetaKey::Priority, from });
    let client = |rule: Rule| rule.load(Selector::Priority, reg(4)).load(Selector::Ip4Saddr, reg(5));
    let by_id = || client(set_priority(look(load_frontend(), "ids", reg(0), reg(0)), reg(0)));
    let stick = |op, value, timeout| {
        let set = name("sticky");
        client(Rule::new()).load(Selector::Priority, reg(6)).then(Expr::Dynset {
            op,
            set,
            key: reg(4),
            value,
            timeout,
        })
    };
    let live = look(Rule::new().load(Selector::Priority, reg(0)), "live", reg(0), reg(8));
    let translate = Chain {
        base: base(ChainKind::Nat, Hook::Prerouting, -100, Policy::Accept),
        rules: vec![
            to_endpoint(load_frontend().then(numgen(NumgenKind::Random, 0))),
            to_endpoint(load_frontend().then(numgen(NumgenKind::Incremental, 1 << 15))),
            to_endpoint(load_frontend().load(Selector::Ip4Saddr, reg(4)).then(hash)),
            set_priority(look(by_id(), "sticky", reg(4), reg(0)), reg(0)),
            dnat(live),
            stick(DynsetOp::Update, Some(reg(6)), None),
            stick(DynsetOp::Add, Some(reg(6)), Some(Duration::from_secs(60))),
            stick(DynsetOp::Delete, Some(reg(6)), None),
        ],
        ..Chain::default()
    };
    table.chains.insert(name("translate"), translate);
    let source = Rule::new()
        .ipv4()
        .then(Expr::Immediate { to: reg(0), value: vec![192, 0, 2, 9] })
        .then(Expr::Nat { end: NatEnd::Source, ipv6: false, addr: reg(0), port: None });
    let source = Chain {
        base: base(ChainKind::Nat, Hook::Postrouting, 101, Policy::Accept),
        rules: vec![source],
        ..Chain::default()
    };
    table.chains.insert(name("source"), source);
}
