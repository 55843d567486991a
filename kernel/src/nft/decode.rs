//! What the kernel says about tables, as the data they were made from. Whatever is not understood
//! becomes something that equals nothing desired; nothing here can panic.

use std::time::Duration;

use super::encode::expression::{
    HASH_JENKINS, LOOKUP_INVERT, NFPROTO_IPV4, NFPROTO_IPV6, REG_VERDICT, nat_flag, reject_type,
};
use super::encode::{DATA_VERDICT, ELEM_INTERVAL_END, TABLE_DORMANT, set_flag, verdict_code};
use super::wire::{Attr, Attrs, Malformed};
use super::{
    BadReg, Base, Chain, ChainKind, ChainName, CmpOp, Comment, CtKey, DataType, DynsetOp, ElementReading,
    Elements, Expr, FibFlags, FibResult, Hook, Key, KeyType, MetaKey, NatEnd, NumgenKind, PayloadBase,
    Policy, Reg, Reject, Rule, SetName, SetSpec, TableName, Value, Verdict,
};

impl From<BadReg> for Malformed {
    fn from(_: BadReg) -> Self {
        Self("there is no such register")
    }
}

/// A table without its content: name, remark, dormant.
pub(super) fn table(attrs: Attrs<'_>) -> Result<(TableName, Option<Comment>, bool), Malformed> {
    let name = TableName::observed(attrs.need(1)?.string());
    let dormant = attrs.find_be32(2)?.unwrap_or(0) & TABLE_DORMANT != 0;
    Ok((name, comment(attrs.find(6)?, 0), dormant))
}

/// The name of the table that an object belongs to: the first attribute of every kind.
pub(super) fn table_of(attrs: Attrs<'_>) -> Result<TableName, Malformed> {
    Ok(TableName::observed(attrs.need(1)?.string()))
}

/// A chain without its rules. A base chain of a kind or hook that is not known gets a remark that no
/// chain of ours has, so that it equals none.
pub(super) fn chain(attrs: Attrs<'_>) -> Result<(ChainName, Chain), Malformed> {
    let name = ChainName::observed(attrs.need(3)?.string());
    let mut chain = Chain { base: None, comment: comment(attrs.find(12)?, 0), rules: Vec::new() };
    if let Some(hook) = attrs.find(4)? {
        let number = hook.attrs().need(1)?.be32()?;
        let priority = hook.attrs().need(2)?.be32()?.cast_signed();
        let kind = attrs.need(7)?;
        let kind = [ChainKind::Filter, ChainKind::Nat, ChainKind::Route]
            .into_iter()
            .find(|known| known.as_str().as_bytes() == kind.string());
        let policy = match attrs.find_be32(5)? {
            Some(0) => Policy::Drop,
            _ => Policy::Accept,
        };
        match (kind, Hook::from_raw(number)) {
            (Some(kind), Some(hook)) => chain.base = Some(Base { kind, hook, priority, policy }),
            _ => chain.comment = Some(Comment::from("(a hook that weft does not know)")),
        }
    }
    Ok((name, chain))
}

/// Which chain, and what the rule says.
pub(super) fn rule(attrs: Attrs<'_>) -> Result<(ChainName, Rule), Malformed> {
    let chain = ChainName::observed(attrs.need(2)?.string());
    let mut exprs = Vec::new();
    if let Some(list) = attrs.find(4)? {
        for item in list.attrs() {
            exprs.push(expression(item?)?);
        }
    }
    Ok((chain, Rule { exprs, comment: comment(attrs.find(7)?, 0) }))
}

/// What each counter of a rule has counted: packets and bytes.
pub(super) fn counters(attrs: Attrs<'_>) -> Result<Vec<(u64, u64)>, Malformed> {
    let mut counters = Vec::new();
    if let Some(list) = attrs.find(4)? {
        for item in list.attrs() {
            counters.extend(counter(item?.attrs())?);
        }
    }
    Ok(counters)
}

/// What the elements of one message have counted. Elements without a counter are left out.
pub(super) fn element_counters(attrs: Attrs<'_>) -> Result<Vec<ElementReading>, Malformed> {
    let mut counters = Vec::new();
    let Some(list) = attrs.find(3)? else { return Ok(counters) };
    for item in list.attrs() {
        let item = item?.attrs();
        let (Some(key), Some(expr)) = (item.find(1)?, item.find(7)?) else { continue };
        let bytes = |key: Attr<'_>| Ok::<_, Malformed>(key.attrs().need(1)?.value.to_vec());
        let from = bytes(key)?;
        let to = item.find(10)?.map(bytes).transpose()?.unwrap_or_else(|| from.clone());
        let value = item.find(2)?.map(value).transpose()?.unwrap_or(Value::None);
        if let Some((packets, bytes)) = counter(expr.attrs())? {
            counters.push(ElementReading { key: Key::new(from, to), value, packets, bytes });
        }
    }
    Ok(counters)
}

/// Packets and bytes, if the expression is a counter.
fn counter(expr: Attrs<'_>) -> Result<Option<(u64, u64)>, Malformed> {
    if expr.need(1)?.string() != b"counter" {
        return Ok(None);
    }
    let data = expr.need(2)?.attrs();
    Ok(Some((data.need(2)?.be64()?, data.need(1)?.be64()?)))
}

/// A set without its elements.
pub(super) fn set(attrs: Attrs<'_>) -> Result<(SetName, SetSpec), Malformed> {
    let name = SetName::observed(attrs.need(2)?.string());
    let flags = attrs.find_be32(3)?.unwrap_or(0);
    let on = |flag: u32| flags & flag != 0;
    let id = attrs.find_be32(4)?.unwrap_or(0);
    let key = KeyType::observed(id, attrs.need(5)?.be32()?);
    let value = match attrs.find_be32(6)?.filter(|_| on(set_flag::MAP)) {
        Some(DATA_VERDICT) => Some(DataType::Verdict.into()),
        Some(id) => Some(KeyType::observed(id, attrs.find_be32(7)?.unwrap_or(0))),
        None => None,
    };
    let size = match attrs.find(9)? {
        Some(description) => description.attrs().find_be32(1)?,
        None => None,
    };
    let counted = match attrs.find(17)? {
        Some(expr) => expr.attrs().need(1)?.string() == b"counter",
        None => false,
    };
    let timeout = attrs.find(11)?.map(|attr| attr.be64()).transpose()?;
    let ours = set_flag::INTERVAL | set_flag::MAP | set_flag::TIMEOUT | set_flag::EVAL;
    let concat = if key.0.len() > 1 && on(set_flag::INTERVAL) { set_flag::CONCAT } else { 0 };
    let spec = SetSpec {
        value,
        interval: on(set_flag::INTERVAL),
        dynamic: on(set_flag::EVAL),
        counted,
        timeout: timeout.map(Duration::from_millis).filter(|_| on(set_flag::TIMEOUT)),
        size,
        comment: comment(attrs.find(13)?, 7),
        other_flags: flags & !(ours | concat),
        key,
    };
    Ok((name, spec))
}

/// How many elements a set has (`NFTA_SET_COUNT`), which the kernel tells from Linux 6.16 on.
pub(super) fn set_count(attrs: Attrs<'_>) -> Result<Option<u32>, Malformed> {
    attrs.find_be32(20)
}

/// Elements as they came, in whatever order and in as many messages as it took.
#[derive(Debug, Default)]
pub(super) struct RawElements(Vec<RawElement>);

#[derive(Debug)]
struct RawElement {
    key: Vec<u8>,
    end: Option<Vec<u8>>,
    is_end: bool,
    value: Value,
}

impl RawElements {
    /// Takes the elements of one message.
    pub(super) fn extend(&mut self, attrs: Attrs<'_>) -> Result<(), Malformed> {
        let Some(list) = attrs.find(3)? else { return Ok(()) };
        for item in list.attrs() {
            let item = item?.attrs();
            // The catch-all element has no key; weft makes none, so it shows as an empty key.
            let key = match item.find(1)? {
                Some(key) => key.attrs().need(1)?.value.to_vec(),
                None => Vec::new(),
            };
            let end = match item.find(10)? {
                Some(end) => Some(end.attrs().need(1)?.value.to_vec()),
                None => None,
            };
            let is_end = item.find_be32(3)?.unwrap_or(0) & ELEM_INTERVAL_END != 0;
            let value = match item.find(2)? {
                Some(data) => value(data)?,
                None => Value::None,
            };
            self.0.push(RawElement { key, end, is_end, value });
        }
        Ok(())
    }

    /// All of them, with a tree's starts and ends joined to ranges.
    pub(super) fn finish(self, spec: &SetSpec) -> Elements {
        if !spec.is_tree() {
            let whole = |raw: RawElement| {
                let to = raw.end.unwrap_or_else(|| raw.key.clone());
                (Key::new(raw.key, to), raw.value)
            };
            return self.0.into_iter().map(whole).collect();
        }
        let mut raw = self.0;
        // Where one range ends and the next begins, the end comes first.
        raw.sort_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end)));
        let mut elements = Elements::new();
        let mut open: Option<RawElement> = None;
        let close = |elements: &mut Elements, start: RawElement, to: Vec<u8>| {
            elements.insert(Key::new(start.key, to), start.value);
        };
        for next in raw {
            if let Some(start) = open.take() {
                let to = predecessor(&next.key);
                close(&mut elements, start, to);
            }
            if !next.is_end {
                open = Some(next);
            }
        }
        if let Some(start) = open {
            let to = vec![0xff; start.key.len()];
            close(&mut elements, start, to);
        }
        elements
    }
}

/// The number before, big endian.
fn predecessor(key: &[u8]) -> Vec<u8> {
    let mut previous = key.to_vec();
    for byte in previous.iter_mut().rev() {
        let (difference, borrow) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrow {
            break;
        }
    }
    previous
}

/// A remark in userdata: a list of kind, length, value.
fn comment(userdata: Option<Attr<'_>>, wanted: u8) -> Option<Comment> {
    let mut rest = userdata?.value;
    while let [kind, len, tail @ ..] = rest {
        let (value, tail) = tail.split_at_checked(usize::from(*len))?;
        if *kind == wanted {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(Comment::from(String::from_utf8_lossy(text).as_ref()));
        }
        rest = tail;
    }
    None
}

fn expression(item: Attr<'_>) -> Result<Expr, Malformed> {
    let name = item.attrs().need(1)?.string();
    let data = item.attrs().find(2)?.map(|data| data.value).unwrap_or_default();
    let known = known_expression(name, Attrs(data))?;
    Ok(known.unwrap_or_else(|| Expr::Unknown {
        name: String::from_utf8_lossy(name).into_owned(),
        raw: data.to_vec(),
    }))
}

/// `None`: an expression, or a use of one, that this module does not speak.
fn known_expression(name: &[u8], data: Attrs<'_>) -> Result<Option<Expr>, Malformed> {
    let reg = |attr: u16| -> Result<Reg, Malformed> { Ok(Reg::from_raw(data.need(attr)?.be32()?)?) };
    let number = |attr: u16| -> Result<u32, Malformed> { data.need(attr)?.be32() };
    let bytes =
        |attr: u16| -> Result<Vec<u8>, Malformed> { Ok(data.need(attr)?.attrs().need(1)?.value.to_vec()) };
    let has = |attr: u16| data.find(attr).map(|found| found.is_some());
    Ok(match name {
        b"meta" => match (MetaKey::from_raw(number(2)?), has(1)?) {
            (Some(key), true) => Some(Expr::Meta { key, to: reg(1)? }),
            (Some(key), false) => Some(Expr::SetMeta { key, from: reg(3)? }),
            _ => None,
        },
        b"payload" if has(1)? => match PayloadBase::from_raw(number(2)?) {
            Some(base) => Some(Expr::Payload { base, offset: number(3)?, len: number(4)?, to: reg(1)? }),
            None => None,
        },
        b"cmp" => match CmpOp::from_raw(number(2)?) {
            Some(op) => Some(Expr::Cmp { reg: reg(1)?, op, value: bytes(3)? }),
            None => None,
        },
        b"range" => {
            let invert = match number(2)? {
                0 => false,
                1 => true,
                _ => return Ok(None),
            };
            Some(Expr::Range { reg: reg(1)?, invert, from: bytes(3)?, to: bytes(4)? })
        }
        // Operation 0 is mask and xor; the others are shifts and combinations of two registers.
        b"bitwise" if data.find_be32(6)?.unwrap_or(0) == 0 => {
            Some(Expr::Bitwise { from: reg(1)?, to: reg(2)?, mask: bytes(4)?, xor: bytes(5)? })
        }
        b"lookup" => {
            let set = SetName::observed(data.need(1)?.string());
            let invert = match data.find_be32(5)?.unwrap_or(0) {
                0 => false,
                LOOKUP_INVERT => true,
                _ => return Ok(None),
            };
            match data.find_be32(3)? {
                None => Some(Expr::Lookup { set, key: reg(2)?, invert }),
                Some(_) if invert => None,
                Some(REG_VERDICT) => Some(Expr::VerdictMap { map: set, key: reg(2)? }),
                Some(_) => Some(Expr::MapLookup { map: set, key: reg(2)?, to: reg(3)? }),
            }
        }
        b"immediate" => match (number(1)?, value(data.need(2)?)?) {
            (REG_VERDICT, Value::Verdict(verdict)) => Some(Expr::Verdict(verdict)),
            (_, Value::Bytes(value)) => Some(Expr::Immediate { to: reg(1)?, value }),
            _ => None,
        },
        b"ct" if has(1)? && !has(3)? => {
            CtKey::from_raw(number(2)?).map(|key| reg(1).map(|to| Expr::Ct { key, to })).transpose()?
        }
        b"counter" => Some(Expr::Counter),
        b"masq" if !has(2)? && !has(3)? => {
            let flags = data.find_be32(1)?.unwrap_or(0);
            let on = |flag: u32| flags & flag != 0;
            let known = nat_flag::RANDOM | nat_flag::FULLY_RANDOM | nat_flag::PERSISTENT;
            (flags & !known == 0).then(|| Expr::Masquerade {
                random: on(nat_flag::RANDOM),
                fully_random: on(nat_flag::FULLY_RANDOM),
                persistent: on(nat_flag::PERSISTENT),
            })
        }
        b"numgen" => NumgenKind::from_raw(number(3)?)
            .map(|kind| {
                let offset = data.find_be32(4)?.unwrap_or(0);
                Ok::<_, Malformed>(Expr::Numgen { kind, modulus: number(2)?, offset, to: reg(1)? })
            })
            .transpose()?,
        b"hash" if data.find_be32(7)?.unwrap_or(HASH_JENKINS) == HASH_JENKINS && !has(8)? => {
            Some(Expr::Hash {
                from: reg(1)?,
                to: reg(2)?,
                len: number(3)?,
                modulus: number(4)?,
                seed: data.find_be32(5)?.unwrap_or(0),
                offset: data.find_be32(6)?.unwrap_or(0),
            })
        }
        b"nat" => {
            let ipv6 = match number(2)? {
                NFPROTO_IPV4 => false,
                NFPROTO_IPV6 => true,
                _ => return Ok(None),
            };
            // The kernel shows the end of a range even where it is its beginning.
            let is_range = |min: u16, max: u16| {
                Ok::<_, Malformed>(
                    data.find_be32(max)?.is_some_and(|end| data.find_be32(min) != Ok(Some(end))),
                )
            };
            let plain = data.find_be32(7)?.unwrap_or(0) & !nat_flag::IMPLIED == 0
                && has(3)?
                && !is_range(3, 4)?
                && !is_range(5, 6)?;
            match NatEnd::from_raw(number(1)?).filter(|_| plain) {
                Some(end) => {
                    let port = has(5)?.then(|| reg(5)).transpose()?;
                    Some(Expr::Nat { end, ipv6, addr: reg(3)?, port })
                }
                None => None,
            }
        }
        b"dynset" if !has(7)? && !has(10)? && data.find_be32(9)?.unwrap_or(0) == 0 => {
            let timeout = data.find(6)?.map(|attr| attr.be64()).transpose()?.filter(|ms| *ms != 0);
            match DynsetOp::from_raw(number(3)?) {
                Some(op) => Some(Expr::Dynset {
                    op,
                    set: SetName::observed(data.need(1)?.string()),
                    key: reg(4)?,
                    value: has(5)?.then(|| reg(5)).transpose()?,
                    timeout: timeout.map(Duration::from_millis),
                }),
                None => None,
            }
        }
        b"reject" => {
            let code = data.find(2)?.and_then(|code| code.value.first().copied()).unwrap_or(0);
            match number(1)? {
                reject_type::ICMP => Some(Expr::Reject(Reject::Icmp(code))),
                reject_type::TCP_RESET => Some(Expr::Reject(Reject::TcpReset)),
                reject_type::ICMPX => Some(Expr::Reject(Reject::Icmpx(code))),
                _ => None,
            }
        }
        b"fib" => match (FibFlags::from_raw(number(3)?), FibResult::from_raw(number(2)?)) {
            (Some(flags), Some(result)) => Some(Expr::Fib { flags, result, to: reg(1)? }),
            _ => None,
        },
        b"notrack" => Some(Expr::Notrack),
        _ => None,
    })
}

/// `nft_data`: a value or a verdict.
fn value(data: Attr<'_>) -> Result<Value, Malformed> {
    if let Some(bytes) = data.attrs().find(1)? {
        return Ok(Value::Bytes(bytes.value.to_vec()));
    }
    let verdict = data.attrs().need(2)?.attrs();
    let chain = || -> Result<ChainName, Malformed> { Ok(ChainName::observed(verdict.need(2)?.string())) };
    Ok(match verdict.need(1)?.be32()?.cast_signed() {
        verdict_code::ACCEPT => Value::Verdict(Verdict::Accept),
        verdict_code::DROP => Value::Verdict(Verdict::Drop),
        verdict_code::CONTINUE => Value::Verdict(Verdict::Continue),
        verdict_code::RETURN => Value::Verdict(Verdict::Return),
        verdict_code::JUMP => Value::Verdict(Verdict::Jump(chain()?)),
        verdict_code::GOTO => Value::Verdict(Verdict::Goto(chain()?)),
        // NF_QUEUE and such: a map may lead there, and it is no verdict of ours.
        _ => Value::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::encode::batch;
    use crate::nft::wire::Messages;
    use crate::nft::{Family, Table, Transaction, merge_networks};
    use ipnetwork::IpNetwork;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            decode_everything(&bytes);
        }

        /// Random bytes hardly ever get deep; a valid message with a few bytes changed does.
        #[test]
        fn no_damage_makes_the_decoders_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = batch(&Transaction::new().create(&sample()), 1).unwrap_or_else(|_| panic!()).bytes;
            for (index, byte) in damage {
                *index.get_mut(&mut bytes) = byte;
            }
            for message in Messages(&bytes).flatten() {
                decode_everything(message.attrs().0);
            }
        }

        #[test]
        fn ranges_survive_the_tree(
            raw in prop::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            order in any::<u64>(),
        ) {
            let networks = raw
                .iter()
                .filter_map(|(addr, len)| IpNetwork::new(Ipv4Addr::from(*addr).into(), *len).ok());
            let spec = SetSpec::intervals([DataType::Ipv4]);
            let set = spec.clone().with(merge_networks(networks).into_iter().map(Key::from));
            let mut table = Table::new(Family::Inet, "t".parse().unwrap());
            table.sets.insert("s".parse().unwrap(), set.clone());
            let bytes = batch(&Transaction::new().create(&table), 1).unwrap_or_else(|_| panic!()).bytes;
            let mut observed = RawElements::default();
            for message in Messages(&bytes).flatten().filter(|message| message.nft() == Some(12)) {
                observed.extend(message.attrs()).unwrap();
            }
            // The kernel gives no order.
            let turn = (order as usize) % observed.0.len().max(1);
            observed.0.rotate_left(turn);
            prop_assert_eq!(observed.finish(&spec), set.elements);
        }
    }

    fn decode_everything(bytes: &[u8]) {
        let attrs = Attrs(bytes);
        let _ = table(attrs);
        let _ = chain(attrs);
        let _ = rule(attrs);
        let _ = counters(attrs);
        let _ = element_counters(attrs);
        for spec in [SetSpec::intervals([DataType::Ipv4]), SetSpec::exact([DataType::Ipv4])] {
            let mut raw = RawElements::default();
            let _ = raw.extend(attrs);
            raw.finish(&spec);
        }
        let _ = set(attrs).map(|(_, spec)| RawElements::default().finish(&spec));
    }

    fn sample() -> Table {
        let mut table = Table::new(Family::Inet, "t".parse().unwrap());
        let net: IpNetwork = "10.0.0.0/8".parse().unwrap();
        let set: SetName = "s".parse().unwrap();
        let spec = SetSpec::intervals([DataType::Ipv4, DataType::Ipv4]).comment("remark");
        table.sets.insert(set.clone(), spec.with([Key::concat([net.into(), net.into()])]));
        let rule = Rule::new()
            .mark(1, 1)
            .in_set([crate::nft::Selector::Ip4Saddr], &set)
            .source_is_local()
            .ct_state(2)
            .masquerade(true)
            .reject(Reject::ADMIN_PROHIBITED)
            .counter()
            .jump(&"c".parse().unwrap())
            .comment("remark");
        let base = Base { kind: ChainKind::Filter, hook: Hook::Input, priority: 0, policy: Policy::Drop };
        let chain = Chain { base: Some(base), comment: Some("remark".into()), rules: vec![rule] };
        table.chains.insert("c".parse().unwrap(), chain);
        table
    }
}
