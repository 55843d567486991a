//! What a table would do with a packet: nftables' rules, evaluated as far as they can be known.
//!
//! A rule that asks for something not known here (a mark, a set of users, an iptables extension) is
//! taken not to match, whatever its verdict. So the answer is about the plain rules of a firewall,
//! and may be wrong about clever ones; nothing but advice is made from it.

use std::net::IpAddr;

use weft_kernel::nft::{
    Chain, CmpOp, CtKey, Expr, Family, FibResult, Hook, Key, MetaKey, PayloadBase, Policy, Reg, Rule, Set,
    Table, Value, Verdict,
};

/// The first packet of a new UDP flow.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) hook: Hook,
    pub(super) saddr: IpAddr,
    pub(super) daddr: IpAddr,
    pub(super) dport: u16,
    /// The link it comes by, and the one it leaves by, where known.
    pub(super) iifname: Option<String>,
    pub(super) oifname: Option<String>,
}

/// Where a packet's way ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The base chain.
    pub(super) base: String,
    /// The chain whose rule or policy it was.
    pub(super) chain: String,
    /// `drops` or `rejects`, or `has the policy drop`.
    pub(super) how: &'static str,
}

/// Chains that jump to each other deeper than this are refused by the kernel (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// Whether one of the table's base chains at the packet's hook refuses it.
pub(super) fn refusal(table: &Table, packet: &Packet) -> Option<Refusal> {
    let family = match table.key.family {
        Family::Inet => true,
        Family::Ip => packet.saddr.is_ipv4(),
        Family::Ip6 => packet.saddr.is_ipv6(),
        Family::Other(_) => false,
    };
    if !family || table.dormant {
        return None;
    }
    table.chains.iter().find_map(|(name, chain)| {
        let base = chain.base.filter(|base| base.hook == packet.hook)?;
        let refused = |(chain, how)| Refusal { base: name.to_string(), chain, how };
        match walk(table, name.as_str(), chain, packet, DEPTH) {
            End::Accepted => None,
            End::Refused(chain, how) => Some(refused((chain, how))),
            End::Fallen if base.policy == Policy::Drop => {
                Some(refused((name.to_string(), "has the policy drop")))
            }
            End::Fallen => None,
        }
    })
}

enum End {
    Accepted,
    Refused(String, &'static str),
    /// The end of the chain, or a `return`.
    Fallen,
}

fn walk(table: &Table, name: &str, chain: &Chain, packet: &Packet, depth: usize) -> End {
    for rule in &chain.rules {
        let verdict = match evaluate(table, rule, packet) {
            Outcome::Next => continue,
            Outcome::Rejected => return End::Refused(name.to_owned(), "rejects"),
            Outcome::Verdict(verdict) => verdict,
        };
        let visit = |target: &weft_kernel::nft::ChainName| match table.chains.get(target) {
            Some(chain) if depth > 0 => walk(table, target.as_str(), chain, packet, depth - 1),
            _ => End::Fallen,
        };
        match verdict {
            Verdict::Accept => return End::Accepted,
            Verdict::Drop => return End::Refused(name.to_owned(), "drops"),
            Verdict::Return => return End::Fallen,
            Verdict::Continue => {}
            Verdict::Goto(target) => return visit(&target),
            Verdict::Jump(target) => match visit(&target) {
                End::Fallen => {}
                end => return end,
            },
        }
    }
    End::Fallen
}

enum Outcome {
    /// It does not match, or decides nothing.
    Next,
    Rejected,
    Verdict(Verdict),
}

/// Registers byte by byte; `None` is a byte that is not known.
type Registers = [Option<u8>; 64];

/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_NEW: u32 = 1 << 3;
/// `RTN_LOCAL`.
const RTN_LOCAL: u32 = 2;

fn evaluate(table: &Table, rule: &Rule, packet: &Packet) -> Outcome {
    let mut registers: Registers = [None; 64];
    for expr in &rule.exprs {
        let goes_on = match expr {
            Expr::Meta { key, to } => store(&mut registers, *to, &meta(packet, *key)),
            Expr::Payload { base, offset, len, to } => {
                store(&mut registers, *to, &payload(packet, *base, *offset, *len))
            }
            Expr::Ct { key: CtKey::State, to } => store(&mut registers, *to, &known(&CT_NEW.to_ne_bytes())),
            Expr::Fib { flags, result: FibResult::AddrType, to }
                if flags.daddr && packet.hook == Hook::Input =>
            {
                store(&mut registers, *to, &known(&RTN_LOCAL.to_ne_bytes()))
            }
            Expr::Immediate { to, value } => store(&mut registers, *to, &known(value)),
            Expr::Ct { to, .. }
            | Expr::Fib { to, .. }
            | Expr::MapLookup { to, .. }
            | Expr::Numgen { to, .. }
            | Expr::Hash { to, .. } => store(&mut registers, *to, &[None; 4]),
            Expr::Bitwise { from, to, mask, xor } => {
                let source = load(&registers, *from, mask.len());
                let bits = source.into_iter().zip(mask.iter().zip(xor));
                let result: Vec<_> = bits.map(|(byte, (mask, xor))| byte.map(|b| b & mask ^ xor)).collect();
                store(&mut registers, *to, &result)
            }
            Expr::Cmp { reg, op, value } => {
                whole(&registers, *reg, value.len()).is_some_and(|bytes| compare(&bytes, *op, value))
            }
            Expr::Range { reg, invert, from, to } => whole(&registers, *reg, from.len())
                .is_some_and(|bytes| (bytes >= *from && bytes <= *to) != *invert),
            Expr::Lookup { set, key, invert } => {
                let found = table.sets.get(set).and_then(|set| find(set, &registers, *key));
                found.is_some_and(|found| found.is_some() != *invert)
            }
            Expr::VerdictMap { map, key } => {
                let found = table.sets.get(map).and_then(|map| find(map, &registers, *key)).flatten();
                match found {
                    Some(Value::Verdict(verdict)) => return Outcome::Verdict(verdict.clone()),
                    _ => false,
                }
            }
            Expr::Verdict(verdict) => return Outcome::Verdict(verdict.clone()),
            Expr::Reject(_) => return Outcome::Rejected,
            Expr::Counter | Expr::Notrack | Expr::SetMeta { .. } | Expr::Dynset { .. } => true,
            Expr::Masquerade { .. } | Expr::Nat { .. } => return Outcome::Verdict(Verdict::Accept),
            Expr::Unknown { name, .. } => name == "log",
        };
        if !goes_on {
            return Outcome::Next;
        }
    }
    Outcome::Next
}

fn meta(packet: &Packet, key: MetaKey) -> Vec<Option<u8>> {
    let name = |name: &Option<String>| match name {
        Some(name) => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            known(&bytes)
        }
        None => vec![None; 16],
    };
    match key {
        MetaKey::IifName => name(&packet.iifname),
        MetaKey::OifName => name(&packet.oifname),
        MetaKey::NfProto => known(&[if packet.saddr.is_ipv4() { 2 } else { 10 }]),
        MetaKey::L4Proto => known(&[17]),
        MetaKey::Mark | MetaKey::Priority => known(&[0; 4]),
        MetaKey::IifType => vec![None; 2],
    }
}

fn payload(packet: &Packet, base: PayloadBase, offset: u32, len: u32) -> Vec<Option<u8>> {
    let header = match (base, packet.saddr, packet.daddr) {
        (PayloadBase::Network, IpAddr::V4(saddr), IpAddr::V4(daddr)) => {
            let mut header = vec![None; 20];
            place(&mut header, 9, &[17]);
            place(&mut header, 12, &saddr.octets());
            place(&mut header, 16, &daddr.octets());
            header
        }
        (PayloadBase::Network, IpAddr::V6(saddr), IpAddr::V6(daddr)) => {
            let mut header = vec![None; 40];
            place(&mut header, 6, &[17]);
            place(&mut header, 8, &saddr.octets());
            place(&mut header, 24, &daddr.octets());
            header
        }
        (PayloadBase::Transport, ..) => {
            let mut header = vec![None; 8];
            place(&mut header, 2, &packet.dport.to_be_bytes());
            header
        }
        _ => Vec::new(),
    };
    // No register takes more than 64 bytes, so a longer length is not worth memory.
    let byte = |at: u32| header.get(offset.checked_add(at)? as usize).copied().flatten();
    (0..len.min(64)).map(byte).collect()
}

fn place(header: &mut [Option<u8>], at: usize, bytes: &[u8]) {
    for (slot, byte) in header.iter_mut().skip(at).zip(bytes) {
        *slot = Some(*byte);
    }
}

fn known(bytes: &[u8]) -> Vec<Option<u8>> {
    bytes.iter().copied().map(Some).collect()
}

/// Always goes on: a load does not fail here.
fn store(registers: &mut Registers, to: Reg, bytes: &[Option<u8>]) -> bool {
    // A load fills whole registers, with zeros behind what was loaded.
    let padded = bytes.iter().copied().chain(std::iter::repeat(Some(0)));
    let slots = registers.iter_mut().skip(to.first_byte()).take(bytes.len().next_multiple_of(4));
    for (slot, byte) in slots.zip(padded) {
        *slot = byte;
    }
    true
}

fn load(registers: &Registers, from: Reg, len: usize) -> Vec<Option<u8>> {
    registers.iter().skip(from.first_byte()).take(len).copied().collect()
}

fn whole(registers: &Registers, from: Reg, len: usize) -> Option<Vec<u8>> {
    load(registers, from, len).into_iter().collect()
}

fn compare(bytes: &[u8], op: CmpOp, value: &[u8]) -> bool {
    match op {
        CmpOp::Eq => bytes == value,
        CmpOp::Ne => bytes != value,
        CmpOp::Lt => bytes < value,
        CmpOp::Le => bytes <= value,
        CmpOp::Gt => bytes > value,
        CmpOp::Ge => bytes >= value,
    }
}

/// What the key leads to; the outer `None`: the key is not known.
fn find<'a>(set: &'a Set, registers: &Registers, key: Reg) -> Option<Option<&'a Value>> {
    let fields: Vec<usize> = set.spec.key.0.iter().map(|field| field.len() as usize).collect();
    let several = fields.len() > 1;
    let sizes: Vec<usize> =
        fields.iter().map(|len| if several { len.next_multiple_of(4) } else { *len }).collect();
    let wanted = whole(registers, key, sizes.iter().sum())?;
    let holds = |key: &Key| {
        let mut start = 0;
        sizes.iter().all(|size| {
            let field = start..start + size;
            start = field.end;
            match (key.first().get(field.clone()), wanted.get(field.clone()), key.last().get(field)) {
                (Some(first), Some(wanted), Some(last)) => first <= wanted && wanted <= last,
                _ => false,
            }
        })
    };
    Some(set.elements.iter().find(|(key, _)| holds(key)).map(|(_, value)| value))
}
