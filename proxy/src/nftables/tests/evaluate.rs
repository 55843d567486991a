//! What a table does with a packet: nftables' rules, interpreted as the kernel would. It knows the
//! expressions that this module writes and stops at any other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use weft_kernel::nft::{
    ChainKind, CmpOp, CtKey, DynsetOp, Expr, FibResult, Hook, MetaKey, NatEnd, PayloadBase, Reg, Rule,
    SetName, Table, Value, Verdict,
};

use crate::host::Host;
use crate::model::Balance;
use crate::simulate::Packet;

/// What packets have put into dynamic maps: by map and key the value.
pub(super) type Dynamic = BTreeMap<(SetName, Vec<u8>), Vec<u8>>;

/// Where a packet's way ends.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    Untouched,
    Dropped,
    Rejected,
    To { endpoint: SocketAddr, masquerade: bool },
}

/// One packet on its way.
pub(super) struct Walk<'a> {
    pub(super) table: &'a Table,
    pub(super) host: &'a Host,
    pub(super) packet: &'a Packet,
    /// What random numbers are made from.
    pub(super) chance: u32,
    pub(super) dynamic: Dynamic,
    /// What the random numbers' modulus was; 1 if there was none.
    pub(super) modulus: u32,
    registers: [u8; 64],
    mark: [u8; 4],
    priority: [u8; 4],
    translated: Option<SocketAddr>,
    masquerade: bool,
}

enum Outcome {
    /// The rule did not match, or ended without a verdict.
    Next,
    Verdict(Verdict),
    Rejected,
    /// A translation: the chain is done.
    Done,
}

enum Fall {
    Through,
    Accepted,
    Dropped,
    Rejected,
}

/// `NF_CT_STATE_BIT(IP_CT_NEW)`, `IPS_DST_NAT`, `RTN_LOCAL`, `RTN_UNICAST`.
const CT_NEW: u32 = 1 << 3;
const IPS_DST_NAT: u32 = 1 << 5;
const RTN_LOCAL: u32 = 2;
const RTN_UNICAST: u32 = 1;

impl<'a> Walk<'a> {
    pub(super) fn new(table: &'a Table, host: &'a Host, packet: &'a Packet, dynamic: Dynamic) -> Self {
        Self {
            table,
            host,
            packet,
            chance: 0,
            dynamic,
            modulus: 1,
            registers: [0; 64],
            mark: [0; 4],
            priority: [9; 4],
            translated: None,
            masquerade: false,
        }
    }

    /// Through all hooks.
    pub(super) fn run(&mut self) -> End {
        let first = if self.packet.input.is_some() { Hook::Prerouting } else { Hook::Output };
        for hook in [first, Hook::Postrouting] {
            let mut bases: Vec<_> = self
                .table
                .chains
                .iter()
                .filter_map(|(name, chain)| {
                    chain.base.filter(|base| base.hook == hook).map(|base| (base, name))
                })
                .collect();
            bases.sort_by_key(|(base, _)| base.priority);
            for (base, name) in bases {
                if base.kind == ChainKind::Nat && hook != Hook::Postrouting && self.translated.is_some() {
                    continue;
                }
                match self.chain(name.as_str()) {
                    Fall::Through | Fall::Accepted => {}
                    Fall::Dropped => return End::Dropped,
                    Fall::Rejected => return End::Rejected,
                }
            }
        }
        assert_eq!(u32::from_ne_bytes(self.mark), 0, "the mark is taken off again");
        match self.translated {
            Some(endpoint) => End::To { endpoint, masquerade: self.masquerade },
            None => End::Untouched,
        }
    }

    fn chain(&mut self, name: &str) -> Fall {
        let table = self.table;
        let chain = &table.chains[&name.parse().unwrap()];
        for rule in &chain.rules {
            match self.rule(rule) {
                Outcome::Next | Outcome::Verdict(Verdict::Continue) => {}
                Outcome::Verdict(Verdict::Accept) | Outcome::Done => return Fall::Accepted,
                Outcome::Verdict(Verdict::Drop) => return Fall::Dropped,
                Outcome::Verdict(Verdict::Return) => return Fall::Through,
                Outcome::Verdict(Verdict::Jump(to)) => match self.chain(to.as_str()) {
                    Fall::Through => {}
                    other => return other,
                },
                // What a chain that was gone to returns to is who jumped to us.
                Outcome::Verdict(Verdict::Goto(to)) => return self.chain(to.as_str()),
                Outcome::Rejected => return Fall::Rejected,
            }
        }
        Fall::Through
    }

    fn destination(&self) -> SocketAddr {
        self.translated.unwrap_or(self.packet.destination)
    }

    fn store(&mut self, to: Reg, value: &[u8]) {
        let at = to.first_byte();
        let padded = value.len().next_multiple_of(4);
        self.registers[at..at + padded].fill(0);
        self.registers[at..at + value.len()].copy_from_slice(value);
    }

    fn load(&self, from: Reg, len: usize) -> Vec<u8> {
        self.registers[from.first_byte()..from.first_byte() + len].to_vec()
    }

    fn key(&self, set: &SetName, from: Reg) -> Vec<u8> {
        let fields = &self.table.sets[set].spec.key.0;
        let len = match fields.as_slice() {
            [one] => one.len(),
            many => many.iter().map(|field| field.len().next_multiple_of(4)).sum(),
        };
        self.load(from, len as usize)
    }

    fn find(&self, set: &SetName, from: Reg) -> Option<Value> {
        let key = self.key(set, from);
        if let Some(value) = self.dynamic.get(&(set.clone(), key.clone())) {
            return Some(Value::Bytes(value.clone()));
        }
        let spec = &self.table.sets[set].spec;
        let within = |first: &[u8], last: &[u8]| {
            // Field by field, as the kernel compares ranges of several fields.
            let mut at = 0;
            spec.key.0.iter().all(|field| {
                let len = field.len() as usize;
                let part = at..at + len;
                at += if spec.key.0.len() > 1 { len.next_multiple_of(4) } else { len };
                first[part.clone()] <= key[part.clone()] && key[part.clone()] <= last[part]
            })
        };
        let elements = &self.table.sets[set].elements;
        elements.iter().find(|(it, _)| within(it.first(), it.last())).map(|(_, value)| value.clone())
    }

    fn rule(&mut self, rule: &Rule) -> Outcome {
        for expr in &rule.exprs {
            let goes_on = match expr {
                Expr::Meta { key, to } => match self.meta(*key) {
                    Some(value) => {
                        self.store(*to, &value);
                        true
                    }
                    None => false,
                },
                Expr::SetMeta { key, from } => {
                    let value = self.load(*from, 4).try_into().unwrap();
                    match key {
                        MetaKey::Mark => self.mark = value,
                        MetaKey::Priority => self.priority = value,
                        other => panic!("nobody sets {other:?}"),
                    }
                    true
                }
                Expr::Payload { base, offset, len, to } => {
                    let value = self.payload(*base, *offset, *len);
                    self.store(*to, &value);
                    true
                }
                Expr::Ct { key, to } => {
                    let bits = match key {
                        CtKey::State => CT_NEW,
                        CtKey::Status if self.translated.is_some() => IPS_DST_NAT,
                        CtKey::Status => 0,
                        other => panic!("nobody asks for {other:?}"),
                    };
                    self.store(*to, &bits.to_ne_bytes());
                    true
                }
                Expr::Fib { flags, result: FibResult::AddrType, to } => {
                    let address = if flags.saddr { self.packet.source } else { self.destination().ip() };
                    let kind = if self.host.owns(address) { RTN_LOCAL } else { RTN_UNICAST };
                    self.store(*to, &kind.to_ne_bytes());
                    true
                }
                Expr::Immediate { to, value } => {
                    self.store(*to, value);
                    true
                }
                Expr::Bitwise { from, to, mask, xor } => {
                    let source = self.load(*from, mask.len());
                    let bits = source.iter().zip(mask.iter().zip(xor));
                    let result: Vec<u8> = bits.map(|(byte, (mask, xor))| byte & mask ^ xor).collect();
                    self.store(*to, &result);
                    true
                }
                Expr::Cmp { reg, op, value } => {
                    let equal = self.load(*reg, value.len()) == *value;
                    match op {
                        CmpOp::Eq => equal,
                        CmpOp::Ne => !equal,
                        other => panic!("nobody compares with {other:?}"),
                    }
                }
                Expr::Lookup { set, key, invert } => self.find(set, *key).is_some() != *invert,
                Expr::MapLookup { map, key, to } => match self.find(map, *key) {
                    Some(Value::Bytes(value)) => {
                        self.store(*to, &value);
                        true
                    }
                    _ => false,
                },
                Expr::VerdictMap { map, key } => match self.find(map, *key) {
                    Some(Value::Verdict(verdict)) => return Outcome::Verdict(verdict),
                    _ => false,
                },
                Expr::Numgen { modulus, offset, to, .. } => {
                    self.modulus = *modulus;
                    let number = self.chance % modulus + offset;
                    self.store(*to, &number.to_ne_bytes());
                    true
                }
                Expr::Hash { from, len, modulus, seed, offset, to } => {
                    assert_eq!((*modulus, *seed), (Balance::SLOTS, Balance::SEED));
                    let source = octets(self.packet.source);
                    assert_eq!(self.load(*from, *len as usize), source, "the client's address is hashed");
                    let slot =
                        crate::simulate::client_slot(self.packet.source, crate::host::ClientHash::Jhash)
                            + offset;
                    self.store(*to, &slot.to_ne_bytes());
                    true
                }
                Expr::Dynset { op, set, key, value, .. } => {
                    let key = (set.clone(), self.key(set, *key));
                    let value = self.load(value.unwrap(), 4);
                    match op {
                        // As in the kernel, the value of an element that is there stays.
                        DynsetOp::Add | DynsetOp::Update => {
                            self.dynamic.entry(key).or_insert(value);
                        }
                        DynsetOp::Delete => {
                            self.dynamic.remove(&key);
                        }
                    }
                    true
                }
                Expr::Nat { end: NatEnd::Destination, ipv6, addr, port } => {
                    let ip: IpAddr = if *ipv6 {
                        <[u8; 16]>::try_from(self.load(*addr, 16)).unwrap().into()
                    } else {
                        <[u8; 4]>::try_from(self.load(*addr, 4)).unwrap().into()
                    };
                    let port = u16::from_be_bytes(self.load(port.unwrap(), 2).try_into().unwrap());
                    self.translated = Some(SocketAddr::new(ip, port));
                    return Outcome::Done;
                }
                Expr::Masquerade { .. } => {
                    self.masquerade = true;
                    return Outcome::Done;
                }
                Expr::Verdict(verdict) => return Outcome::Verdict(verdict.clone()),
                Expr::Reject(_) => return Outcome::Rejected,
                other => panic!("the kernel is not known to do {other:?}"),
            };
            if !goes_on {
                return Outcome::Next;
            }
        }
        Outcome::Next
    }

    fn meta(&self, key: MetaKey) -> Option<Vec<u8>> {
        Some(match key {
            MetaKey::Priority => self.priority.to_vec(),
            MetaKey::Mark => self.mark.to_vec(),
            MetaKey::IifName => {
                // Empty if there is none, and no end of the rule (net/netfilter/nft_meta.c).
                let mut name = self.packet.input.clone().unwrap_or_default().into_bytes();
                name.resize(16, 0);
                name
            }
            MetaKey::NfProto => vec![if self.packet.source.is_ipv4() { 2 } else { 10 }],
            MetaKey::L4Proto => vec![self.packet.protocol.number()],
            other => panic!("nobody asks for {other:?}"),
        })
    }

    fn payload(&self, base: PayloadBase, offset: u32, len: u32) -> Vec<u8> {
        let to = self.destination();
        let (source, destination) = (octets(self.packet.source), octets(to.ip()));
        let port = to.port().to_be_bytes().to_vec();
        match (base, self.packet.source.is_ipv4(), offset, len) {
            (PayloadBase::Network, true, 12, 4) | (PayloadBase::Network, false, 8, 16) => source,
            (PayloadBase::Network, true, 16, 4) | (PayloadBase::Network, false, 24, 16) => destination,
            (PayloadBase::Transport, _, 2, 2) => port,
            other => panic!("nobody reads {other:?} of this family"),
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
