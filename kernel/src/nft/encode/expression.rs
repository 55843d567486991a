//! The steps of a rule as netlink attributes.

use super::super::wire::Writer;
use super::super::{Expr, MetaKey, PayloadBase, Reg, Reject};
use super::{milliseconds, verdict_data};

/// `NFT_REG_VERDICT`.
pub(in crate::nft) const REG_VERDICT: u32 = 0;
/// `NFT_LOOKUP_F_INV`.
pub(in crate::nft) const LOOKUP_INVERT: u32 = 1;

/// `NF_NAT_RANGE_*` (include/uapi/linux/netfilter/nf_nat.h).
pub(in crate::nft) mod nat_flag {
    /// There is an address, there is a port: the kernel says so by itself.
    pub(crate) const IMPLIED: u32 = 3;
    pub(crate) const RANDOM: u32 = 1 << 2;
    pub(crate) const PERSISTENT: u32 = 1 << 3;
    pub(crate) const FULLY_RANDOM: u32 = 1 << 4;
}

/// `NFPROTO_IPV4`, as the nat expression wants it.
pub(in crate::nft) const NFPROTO_IPV4: u32 = 2;
/// `NFPROTO_IPV6`.
pub(in crate::nft) const NFPROTO_IPV6: u32 = 10;
/// `NFT_HASH_JENKINS`.
pub(in crate::nft) const HASH_JENKINS: u32 = 0;

pub(super) fn expression(w: &mut Writer, expr: &Expr) {
    let (name, body): (&str, &dyn Fn(&mut Writer)) = match expr {
        Expr::Meta { key, to } => ("meta", &|w| meta(w, *key, 1, *to)),
        Expr::SetMeta { key, from } => ("meta", &|w| meta(w, *key, 3, *from)),
        Expr::Payload { base, offset, len, to } => ("payload", &|w| payload(w, *base, *offset, *len, *to)),
        Expr::Cmp { reg, op, value } => ("cmp", &|w| {
            w.be32(1, reg.raw());
            w.be32(2, op.raw());
            w.nest(3, |w| w.bytes(1, value));
        }),
        Expr::Range { reg, invert, from, to } => ("range", &|w| {
            w.be32(1, reg.raw());
            w.be32(2, u32::from(*invert));
            w.nest(3, |w| w.bytes(1, from));
            w.nest(4, |w| w.bytes(1, to));
        }),
        Expr::Bitwise { from, to, mask, xor } => ("bitwise", &|w| {
            w.be32(1, from.raw());
            w.be32(2, to.raw());
            w.be32(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            w.nest(4, |w| w.bytes(1, mask));
            w.nest(5, |w| w.bytes(1, xor));
        }),
        Expr::Lookup { set, key, invert } => ("lookup", &|w| {
            w.string(1, set.as_str());
            w.be32(2, key.raw());
            w.be32(5, if *invert { LOOKUP_INVERT } else { 0 });
        }),
        Expr::MapLookup { map, key, to } => ("lookup", &|w| {
            w.string(1, map.as_str());
            w.be32(2, key.raw());
            w.be32(3, to.raw());
        }),
        Expr::VerdictMap { map, key } => ("lookup", &|w| {
            w.string(1, map.as_str());
            w.be32(2, key.raw());
            w.be32(3, REG_VERDICT);
        }),
        Expr::Immediate { to, value } => ("immediate", &|w| {
            w.be32(1, to.raw());
            w.nest(2, |w| w.bytes(1, value));
        }),
        Expr::Verdict(verdict) => ("immediate", &|w| {
            w.be32(1, REG_VERDICT);
            w.nest(2, |w| verdict_data(w, verdict));
        }),
        Expr::Ct { key, to } => ("ct", &|w| {
            w.be32(1, to.raw());
            w.be32(2, key.raw());
        }),
        Expr::Counter => ("counter", &|_| {}),
        Expr::Masquerade { random, fully_random, persistent } => ("masq", &|w| {
            let flags = [
                (*random, nat_flag::RANDOM),
                (*fully_random, nat_flag::FULLY_RANDOM),
                (*persistent, nat_flag::PERSISTENT),
            ];
            w.be32(1, flags.into_iter().filter_map(|(on, flag)| on.then_some(flag)).sum());
        }),
        Expr::Numgen { kind, modulus, offset, to } => ("numgen", &|w| {
            w.be32(1, to.raw());
            w.be32(2, *modulus);
            w.be32(3, kind.raw());
            w.be32(4, *offset);
        }),
        Expr::Hash { from, len, modulus, seed, offset, to } => ("hash", &|w| {
            w.be32(1, from.raw());
            w.be32(2, to.raw());
            w.be32(3, *len);
            w.be32(4, *modulus);
            w.be32(5, *seed);
            w.be32(6, *offset);
            w.be32(7, HASH_JENKINS);
        }),
        Expr::Nat { end, ipv6, addr, port } => ("nat", &|w| {
            w.be32(1, end.raw());
            w.be32(2, if *ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 });
            w.be32(3, addr.raw());
            if let Some(port) = *port {
                w.be32(5, port.raw());
            }
        }),
        Expr::Dynset { op, set, key, value, timeout } => ("dynset", &|w| {
            w.string(1, set.as_str());
            w.be32(3, op.raw());
            w.be32(4, key.raw());
            if let Some(value) = *value {
                w.be32(5, value.raw());
            }
            if let Some(timeout) = *timeout {
                w.be64(6, milliseconds(timeout));
            }
        }),
        Expr::Reject(how) => ("reject", &|w| reject(w, *how)),
        Expr::Fib { flags, result, to } => ("fib", &|w| {
            w.be32(1, to.raw());
            w.be32(2, result.raw());
            w.be32(3, flags.raw());
        }),
        Expr::Notrack => ("notrack", &|_| {}),
        Expr::Unknown { name, raw } => {
            w.string(1, name);
            w.nest(2, |w| w.raw(raw));
            return;
        }
    };
    w.string(1, name);
    w.nest(2, body);
}

fn meta(w: &mut Writer, key: MetaKey, attr: u16, reg: Reg) {
    w.be32(2, key.raw());
    w.be32(attr, reg.raw());
}

fn payload(w: &mut Writer, base: PayloadBase, offset: u32, len: u32, to: Reg) {
    w.be32(1, to.raw());
    w.be32(2, base.raw());
    w.be32(3, offset);
    w.be32(4, len);
}

/// `NFT_REJECT_*`.
pub(in crate::nft) mod reject_type {
    pub(crate) const ICMP: u32 = 0;
    pub(crate) const TCP_RESET: u32 = 1;
    pub(crate) const ICMPX: u32 = 2;
}

fn reject(w: &mut Writer, how: Reject) {
    let (kind, code) = match how {
        Reject::Icmp(code) => (reject_type::ICMP, code),
        Reject::TcpReset => (reject_type::TCP_RESET, 0),
        Reject::Icmpx(code) => (reject_type::ICMPX, code),
    };
    w.be32(1, kind);
    w.bytes(2, &[code]);
}
