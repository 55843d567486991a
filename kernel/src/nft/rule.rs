//! Rules, and the words to build them with.

use ipnetwork::IpNetwork;

use super::{
    ChainName, CmpOp, Comment, CtKey, Expr, FibFlags, FibResult, MetaKey, Part, PayloadBase, Reg, Reject,
    SetName, Verdict,
};
use crate::net::LinkName;

/// A list of steps with a remark. Built from left to right, as `nft` writes it:
///
/// ```
/// # use weft_kernel::nft::{Rule, Selector};
/// let rule = Rule::new().ipv4().in_set([Selector::Ip4Saddr], &"pods".parse()?).counter().drop();
/// # Ok::<(), weft_kernel::nft::BadName>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The steps.
    pub exprs: Vec<Expr>,
    /// A remark that `nft list` shows.
    pub comment: Option<Comment>,
}

/// Something about a packet that can be compared and looked up. Those of one address family or
/// protocol need [`Rule::ipv4`], [`Rule::ipv6`] or [`Rule::udp`] before them in the rule: what they
/// read is only offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The name of the link it came by.
    IifName,
    /// The name of the link it leaves by.
    OifName,
    /// The packet's mark.
    Mark,
    /// The packet's priority for queues.
    Priority,
    /// The transport protocol.
    L4Proto,
    /// The connection's state.
    CtState,
    /// Source MAC; needs [`Rule::from_ethernet`].
    EtherSaddr,
    /// IPv4 source.
    Ip4Saddr,
    /// IPv4 destination.
    Ip4Daddr,
    /// IPv6 source.
    Ip6Saddr,
    /// IPv6 destination.
    Ip6Daddr,
    /// UDP destination port, or that of any transport protocol with ports: they all have it there.
    UdpDport,
    /// UDP source port, likewise.
    UdpSport,
    /// Any bytes.
    Payload {
        /// Counted from which header.
        base: PayloadBase,
        /// In bytes.
        offset: u32,
        /// In bytes.
        len: u32,
    },
}

impl Selector {
    /// The step that loads it.
    fn load(self, to: Reg) -> Expr {
        use PayloadBase::{Link, Network, Transport};
        let payload = |base, offset, len| Expr::Payload { base, offset, len, to };
        match self {
            Self::IifName => Expr::Meta { key: MetaKey::IifName, to },
            Self::OifName => Expr::Meta { key: MetaKey::OifName, to },
            Self::Mark => Expr::Meta { key: MetaKey::Mark, to },
            Self::Priority => Expr::Meta { key: MetaKey::Priority, to },
            Self::L4Proto => Expr::Meta { key: MetaKey::L4Proto, to },
            Self::CtState => Expr::Ct { key: CtKey::State, to },
            // Offsets: Ethernet (IEEE 802.3), IPv4 (RFC 791), IPv6 (RFC 8200), UDP (RFC 768).
            Self::EtherSaddr => payload(Link, 6, 6),
            Self::Ip4Saddr => payload(Network, 12, 4),
            Self::Ip4Daddr => payload(Network, 16, 4),
            Self::Ip6Saddr => payload(Network, 8, 16),
            Self::Ip6Daddr => payload(Network, 24, 16),
            Self::UdpSport => payload(Transport, 0, 2),
            Self::UdpDport => payload(Transport, 2, 2),
            Self::Payload { base, offset, len } => payload(base, offset, len),
        }
    }

    /// Registers of four bytes that it takes.
    fn slots(self) -> u32 {
        match self {
            Self::IifName | Self::OifName | Self::Ip6Saddr | Self::Ip6Daddr => 4,
            Self::EtherSaddr => 2,
            Self::Payload { len, .. } => len.div_ceil(4),
            _ => 1,
        }
    }
}

/// One field of a key that is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyField {
    selector: Selector,
    mask: Option<Vec<u8>>,
}

impl From<Selector> for KeyField {
    fn from(selector: Selector) -> Self {
        Self { selector, mask: None }
    }
}

impl Selector {
    /// Of an address, only the network of this length: with it a hash finds what else needs ranges.
    pub fn prefix(self, len: u8, address_bytes: usize) -> KeyField {
        let bits = |byte: usize| usize::from(len).saturating_sub(8 * byte).min(8);
        let mask: Vec<u8> = (0..address_bytes).map(|byte| !(0xffu16 >> bits(byte)) as u8).collect();
        let all = mask.iter().all(|byte| *byte == 0xff);
        KeyField { selector: self, mask: (!all).then_some(mask) }
    }
}

/// `NFPROTO_IPV4`.
const NFPROTO_IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
const NFPROTO_IPV6: u8 = 10;
/// `ARPHRD_ETHER`.
const ARPHRD_ETHER: u16 = 1;
/// `RTN_LOCAL`: an address of this host.
const RTN_LOCAL: u32 = 2;

impl Rule {
    /// A rule for every packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a remark.
    pub fn comment(mut self, comment: &str) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// With one more step.
    pub fn then(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }

    /// Only IPv4.
    pub fn ipv4(self) -> Self {
        self.meta(MetaKey::NfProto, [NFPROTO_IPV4])
    }

    /// Only IPv6.
    pub fn ipv6(self) -> Self {
        self.meta(MetaKey::NfProto, [NFPROTO_IPV6])
    }

    /// Only this transport protocol (`IPPROTO_*`).
    pub fn protocol(self, protocol: u8) -> Self {
        self.meta(MetaKey::L4Proto, [protocol])
    }

    /// Only UDP.
    pub fn udp(self) -> Self {
        self.protocol(17)
    }

    /// Only packets that came by an Ethernet link.
    pub fn from_ethernet(self) -> Self {
        self.meta(MetaKey::IifType, ARPHRD_ETHER.to_ne_bytes())
    }

    /// Only packets that came by this link.
    pub fn iifname(self, link: &LinkName) -> Self {
        self.is(Selector::IifName, Part::from(link).into_bytes())
    }

    /// Only packets that leave by this link.
    pub fn oifname(self, link: &LinkName) -> Self {
        self.is(Selector::OifName, Part::from(link).into_bytes())
    }

    /// Only UDP to this port.
    pub fn udp_dport(self, port: u16) -> Self {
        self.udp().is(Selector::UdpDport, port.to_be_bytes())
    }

    /// Only if it is equal to this.
    pub fn is(self, selector: Selector, value: impl Into<Vec<u8>>) -> Self {
        self.compare(selector, CmpOp::Eq, value)
    }

    /// Only if it is not equal to this.
    pub fn is_not(self, selector: Selector, value: impl Into<Vec<u8>>) -> Self {
        self.compare(selector, CmpOp::Ne, value)
    }

    /// Only if it compares so with this.
    pub fn compare(self, selector: Selector, op: CmpOp, value: impl Into<Vec<u8>>) -> Self {
        let reg = Reg::FIRST;
        self.then(selector.load(reg)).then(Expr::Cmp { reg, op, value: value.into() })
    }

    /// Only if the address lies in this network.
    pub fn in_network(self, selector: Selector, network: IpNetwork) -> Self {
        self.masked_network(selector, CmpOp::Eq, network)
    }

    /// Only if the address does not lie in this network.
    pub fn not_in_network(self, selector: Selector, network: IpNetwork) -> Self {
        self.masked_network(selector, CmpOp::Ne, network)
    }

    /// Only if these bits of the packet's mark are so.
    pub fn mark(self, value: u32, mask: u32) -> Self {
        self.masked(Selector::Mark, mask.to_ne_bytes(), CmpOp::Eq, value.to_ne_bytes())
    }

    /// Only if the masked value compares so.
    pub fn masked(
        self,
        selector: Selector,
        mask: impl Into<Vec<u8>>,
        op: CmpOp,
        value: impl Into<Vec<u8>>,
    ) -> Self {
        let reg = Reg::FIRST;
        let mask = mask.into();
        let xor = vec![0; mask.len()];
        self.then(selector.load(reg)).then(Expr::Bitwise { from: reg, to: reg, mask, xor }).then(Expr::Cmp {
            reg,
            op,
            value: value.into(),
        })
    }

    /// Only if the connection is in one of these states (`NF_CT_STATE_*` bits).
    pub fn ct_state(self, states: u32) -> Self {
        self.masked(Selector::CtState, states.to_ne_bytes(), CmpOp::Ne, 0u32.to_ne_bytes())
    }

    /// Only if these, together, are in the set.
    pub fn in_set<const N: usize>(self, key: [impl Into<KeyField>; N], set: &SetName) -> Self {
        self.load_key(key).then(Expr::Lookup { set: set.clone(), key: Reg::FIRST, invert: false })
    }

    /// Only if these, together, are not in the set. If the packet is too short for one of them the
    /// rule ends: to refuse such packets, accept what is in the set and refuse the rest.
    pub fn not_in_set<const N: usize>(self, key: [impl Into<KeyField>; N], set: &SetName) -> Self {
        self.load_key(key).then(Expr::Lookup { set: set.clone(), key: Reg::FIRST, invert: true })
    }

    /// Does what the map says; goes on if the key is not in it.
    pub fn verdict_map<const N: usize>(self, key: [impl Into<KeyField>; N], map: &SetName) -> Self {
        self.load_key(key).then(Expr::VerdictMap { map: map.clone(), key: Reg::FIRST })
    }

    /// Only if the source is an address of this host.
    pub fn source_is_local(self) -> Self {
        self.fib_type(FibFlags { saddr: true, ..FibFlags::default() }, RTN_LOCAL)
    }

    /// Only if the destination is an address of this host.
    pub fn destination_is_local(self) -> Self {
        self.fib_type(FibFlags { daddr: true, ..FibFlags::default() }, RTN_LOCAL)
    }

    /// Counts.
    pub fn counter(self) -> Self {
        self.then(Expr::Counter)
    }

    /// Accepts.
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// Drops.
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// Leaves the chain.
    pub fn return_(self) -> Self {
        self.verdict(Verdict::Return)
    }

    /// Visits another chain.
    pub fn jump(self, chain: &ChainName) -> Self {
        self.verdict(Verdict::Jump(chain.clone()))
    }

    /// Goes on in another chain.
    pub fn goto(self, chain: &ChainName) -> Self {
        self.verdict(Verdict::Goto(chain.clone()))
    }

    /// Masquerades, if asked with ports that are random each time.
    pub fn masquerade(self, fully_random: bool) -> Self {
        self.then(Expr::Masquerade { random: false, fully_random, persistent: false })
    }

    /// Rejects.
    pub fn reject(self, how: Reject) -> Self {
        self.then(Expr::Reject(how))
    }

    /// Keeps connection tracking away.
    pub fn notrack(self) -> Self {
        self.then(Expr::Notrack)
    }

    /// Decides.
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.then(Expr::Verdict(verdict))
    }

    fn meta(self, key: MetaKey, value: impl Into<Vec<u8>>) -> Self {
        let reg = Reg::FIRST;
        self.then(Expr::Meta { key, to: reg }).then(Expr::Cmp { reg, op: CmpOp::Eq, value: value.into() })
    }

    fn fib_type(self, flags: FibFlags, addr_type: u32) -> Self {
        let reg = Reg::FIRST;
        self.then(Expr::Fib { flags, result: FibResult::AddrType, to: reg }).then(Expr::Cmp {
            reg,
            op: CmpOp::Eq,
            value: addr_type.to_ne_bytes().into(),
        })
    }

    fn masked_network(self, selector: Selector, op: CmpOp, network: IpNetwork) -> Self {
        match network {
            // A mask of ones would be listed as one.
            IpNetwork::V4(net) if net.prefix() == 32 => self.compare(selector, op, net.ip().octets()),
            IpNetwork::V6(net) if net.prefix() == 128 => self.compare(selector, op, net.ip().octets()),
            IpNetwork::V4(net) => self.masked(selector, net.mask().octets(), op, net.network().octets()),
            IpNetwork::V6(net) => self.masked(selector, net.mask().octets(), op, net.network().octets()),
        }
    }

    /// Loads something about the packet into a register.
    pub fn load(self, selector: Selector, to: Reg) -> Self {
        self.then(selector.load(to))
    }

    fn load_key<const N: usize>(mut self, key: [impl Into<KeyField>; N]) -> Self {
        let mut slot = 0;
        for field in key {
            let KeyField { selector, mask } = field.into();
            let reg = Reg::try_from(slot).expect("a key has at most 64 bytes, which are 16 registers");
            self.exprs.push(selector.load(reg));
            if let Some(mask) = mask {
                let xor = vec![0; mask.len()];
                self.exprs.push(Expr::Bitwise { from: reg, to: reg, mask, xor });
            }
            slot += selector.slots();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_masks() {
        let table = [
            (0, Some(vec![0, 0, 0, 0])),
            (1, Some(vec![0x80, 0, 0, 0])),
            (16, Some(vec![0xff, 0xff, 0, 0])),
            (23, Some(vec![0xff, 0xff, 0xfe, 0])),
            (32, None),
            (200, None),
        ];
        for (len, mask) in table {
            assert_eq!(Selector::Ip4Saddr.prefix(len, 4).mask, mask, "/{len}");
        }
    }
}
