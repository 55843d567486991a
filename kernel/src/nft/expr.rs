//! What a rule is made of: load something into a register, compare it, look it up, decide.

use std::time::Duration;

use super::{ChainName, SetName};

/// One step of a rule. A comparison or lookup that fails ends the rule; so does a load of bytes
/// that the packet does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads something known about the packet.
    Meta {
        /// What.
        key: MetaKey,
        /// Into which register.
        to: Reg,
    },
    /// Changes something known about the packet: its mark.
    SetMeta {
        /// What.
        key: MetaKey,
        /// From which register.
        from: Reg,
    },
    /// Loads bytes of the packet.
    Payload {
        /// Counted from which header.
        base: PayloadBase,
        /// In bytes.
        offset: u32,
        /// In bytes.
        len: u32,
        /// Into which register.
        to: Reg,
    },
    /// Goes on if a register compares so with a value.
    Cmp {
        /// The register.
        reg: Reg,
        /// How.
        op: CmpOp,
        /// With what; its length says how many bytes are compared.
        value: Vec<u8>,
    },
    /// Goes on if a register lies between two values, both included (or, inverted, outside).
    Range {
        /// The register.
        reg: Reg,
        /// Outside.
        invert: bool,
        /// The lowest.
        from: Vec<u8>,
        /// The highest.
        to: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`
    Bitwise {
        /// The register to read.
        from: Reg,
        /// The register to write.
        to: Reg,
        /// Bits to keep.
        mask: Vec<u8>,
        /// Bits to flip then.
        xor: Vec<u8>,
    },
    /// Goes on if the key is in the set (or, inverted, is not).
    Lookup {
        /// The set, of the same table.
        set: SetName,
        /// The first register of the key.
        key: Reg,
        /// Is not.
        invert: bool,
    },
    /// Looks the key up in a map and writes what it leads to into a register.
    MapLookup {
        /// The map, of the same table.
        map: SetName,
        /// The first register of the key.
        key: Reg,
        /// Into which register.
        to: Reg,
    },
    /// Looks the key up in a verdict map and does what it says.
    VerdictMap {
        /// The map, of the same table.
        map: SetName,
        /// The first register of the key.
        key: Reg,
    },
    /// Writes a constant into a register.
    Immediate {
        /// The register.
        to: Reg,
        /// The constant.
        value: Vec<u8>,
    },
    /// Decides.
    Verdict(Verdict),
    /// Loads something known about the packet's connection.
    Ct {
        /// What.
        key: CtKey,
        /// Into which register.
        to: Reg,
    },
    /// Counts packets and bytes. What it has counted is read with `Nft::counters`.
    Counter,
    /// Writes a number into a register: a random one for each packet, or the next.
    Numgen {
        /// How.
        kind: NumgenKind,
        /// Numbers lie below it.
        modulus: u32,
        /// Added to each.
        offset: u32,
        /// Into which register, four bytes in the host's order.
        to: Reg,
    },
    /// Writes a hash of some bytes into a register (`jhash`).
    Hash {
        /// The first register that is hashed.
        from: Reg,
        /// How many bytes from there on.
        len: u32,
        /// Hashes lie below it.
        modulus: u32,
        /// What the hash begins with; it makes one hash differ from another.
        seed: u32,
        /// Added to each.
        offset: u32,
        /// Into which register, four bytes in the host's order.
        to: Reg,
    },
    /// Gives the connection another source or destination. In a chain of kind `Nat` only.
    Nat {
        /// Which of both.
        end: NatEnd,
        /// Of IPv6, not of IPv4.
        ipv6: bool,
        /// The register that has the address.
        addr: Reg,
        /// The register that has the port; without one the port stays, if it can.
        port: Option<Reg>,
    },
    /// Lets the packet put an element into a set or map, or take it out.
    Dynset {
        /// What.
        op: DynsetOp,
        /// The set or map, which must be `dynamic`.
        set: SetName,
        /// The first register of the key.
        key: Reg,
        /// The first register of the value, if it is a map.
        value: Option<Reg>,
        /// How long the element stays; `None`: as long as the set says.
        timeout: Option<Duration>,
    },
    /// Gives the connection the address of the link it leaves by.
    Masquerade {
        /// A random port (`NF_NAT_RANGE_PROTO_RANDOM`).
        random: bool,
        /// A port that is random each time (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
        fully_random: bool,
        /// The same address for all connections of a source (`NF_NAT_RANGE_PERSISTENT`).
        persistent: bool,
    },
    /// Drops the packet and tells its sender.
    Reject(Reject),
    /// Asks the routing tables about the packet's addresses.
    Fib {
        /// Which address, and with what else.
        flags: FibFlags,
        /// What to find out.
        result: FibResult,
        /// Into which register.
        to: Reg,
    },
    /// Keeps connection tracking away from the packet.
    Notrack,
    /// Something that this module does not speak: observed only, so it equals nothing desired.
    Unknown {
        /// The kernel's name for it.
        name: String,
        /// Its attributes, as they came.
        raw: Vec<u8>,
    },
}

/// A register: the first of up to sixteen slots of four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reg(u8);

/// Why a number is no register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are registers 0 to 15, and no {0}")]
pub struct BadReg(pub u32);

impl Reg {
    /// The first one; most rules need no other.
    pub const FIRST: Self = Self(0);

    /// Where it begins, of the 64 bytes that all registers have together.
    pub fn first_byte(self) -> usize {
        usize::from(self.0) * 4
    }

    /// `NFT_REG_1`: the kernel names every fourth slot by the old scheme (registers of 16 bytes).
    const OLD_FIRST: u32 = 1;
    /// `NFT_REG32_00`.
    const NEW_FIRST: u32 = 8;

    /// The number for the kernel, as the kernel itself would print it.
    pub(super) fn raw(self) -> u32 {
        let slot = u32::from(self.0);
        if slot % 4 == 0 { Self::OLD_FIRST + slot / 4 } else { Self::NEW_FIRST + slot }
    }

    /// From the kernel's number, by either scheme.
    pub(super) fn from_raw(raw: u32) -> Result<Self, BadReg> {
        let slot = match raw {
            1..=4 => (raw - Self::OLD_FIRST) * 4,
            8..=23 => raw - Self::NEW_FIRST,
            _ => return Err(BadReg(raw)),
        };
        Self::try_from(slot)
    }
}

impl TryFrom<u32> for Reg {
    type Error = BadReg;
    fn try_from(slot: u32) -> Result<Self, BadReg> {
        match u8::try_from(slot) {
            Ok(slot) if slot < 16 => Ok(Self(slot)),
            _ => Err(BadReg(slot)),
        }
    }
}

/// Enumerations whose numbers are the kernel's.
macro_rules! numbered {
    ($($(#[$doc:meta])* pub enum $name:ident { $($(#[$what:meta])* $variant:ident = $raw:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name {
            $($(#[$what])* $variant = $raw,)*
        }

        impl $name {
            /// The kernel's number.
            pub(super) fn raw(self) -> u32 {
                self as u32
            }

            /// From the kernel's number; `None` if this module does not speak it.
            pub(super) fn from_raw(raw: u32) -> Option<Self> {
                match raw {
                    $($raw => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    )*};
}

numbered! {
    /// What is known about a packet (`NFT_META_*`).
    pub enum MetaKey {
        /// Its priority for queues, four bytes in the host's order; routing gives a forwarded packet
        /// a new one.
        Priority = 2,
        /// Its mark, four bytes in the host's order.
        Mark = 3,
        /// The name of the link it came by, 16 bytes.
        IifName = 6,
        /// The name of the link it leaves by, 16 bytes.
        OifName = 7,
        /// The hardware type of the link it came by (`ARPHRD_*`), two bytes in the host's order.
        IifType = 8,
        /// IPv4 (2) or IPv6 (10), one byte.
        NfProto = 15,
        /// Transport protocol, one byte.
        L4Proto = 16,
    }

    /// Where a payload's offset counts from (`NFT_PAYLOAD_*`).
    pub enum PayloadBase {
        /// The Ethernet header.
        Link = 0,
        /// The IP header.
        Network = 1,
        /// The TCP, UDP... header; a later fragment of a packet has none.
        Transport = 2,
        /// What follows the transport header.
        Inner = 3,
    }

    /// How a register is compared (`NFT_CMP_*`).
    pub enum CmpOp {
        /// Equal.
        Eq = 0,
        /// Not equal.
        Ne = 1,
        /// Less.
        Lt = 2,
        /// Less or equal.
        Le = 3,
        /// Greater.
        Gt = 4,
        /// Greater or equal.
        Ge = 5,
    }

    /// What is known about a connection (`NFT_CT_*`).
    pub enum CtKey {
        /// New, established..., as bits; four bytes in the host's order.
        State = 0,
        /// Confirmed, translated..., as bits; four bytes in the host's order.
        Status = 2,
        /// Its mark, four bytes in the host's order.
        Mark = 3,
    }

    /// Where a number comes from (`NFT_NG_*`).
    pub enum NumgenKind {
        /// Each is the one before plus one.
        Incremental = 0,
        /// Random.
        Random = 1,
    }

    /// Which end of a connection is translated (`NFT_NAT_*`).
    pub enum NatEnd {
        /// The source.
        Source = 0,
        /// The destination.
        Destination = 1,
    }

    /// What a packet does with a set (`NFT_DYNSET_OP_*`).
    pub enum DynsetOp {
        /// Adds an element; one that is there stays as it is. The rule ends if the set is full.
        Add = 0,
        /// Adds an element, or begins its time anew. The rule ends if the set is full.
        Update = 1,
        /// Deletes an element.
        Delete = 2,
    }

    /// What the routing tables are asked for (`NFT_FIB_RESULT_*`).
    pub enum FibResult {
        /// The index of the link.
        Oif = 1,
        /// The name of the link, 16 bytes.
        OifName = 2,
        /// Local, unicast, multicast... (`RTN_*`), four bytes in the host's order.
        AddrType = 3,
    }
}

/// Which address the routing tables are asked about, and with what else (`NFTA_FIB_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FibFlags {
    /// The source.
    pub saddr: bool,
    /// The destination.
    pub daddr: bool,
    /// With the packet's mark.
    pub mark: bool,
    /// On the link that it came by.
    pub iif: bool,
    /// On the link that it leaves by.
    pub oif: bool,
    /// Only whether there is a route.
    pub present: bool,
}

impl FibFlags {
    pub(super) fn raw(self) -> u32 {
        let bits = [self.saddr, self.daddr, self.mark, self.iif, self.oif, self.present];
        bits.into_iter().enumerate().map(|(bit, on)| u32::from(on) << bit).sum()
    }

    pub(super) fn from_raw(raw: u32) -> Option<Self> {
        let on = |bit: u32| raw & (1 << bit) != 0;
        (raw < 1 << 6).then(|| Self {
            saddr: on(0),
            daddr: on(1),
            mark: on(2),
            iif: on(3),
            oif: on(4),
            present: on(5),
        })
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves this base chain unharmed. Other tables may still drop it.
    Accept,
    /// It is gone.
    Drop,
    /// It goes on with the next rule.
    Continue,
    /// It goes back to where this chain was jumped from; in a base chain: the policy decides.
    Return,
    /// It visits another chain and comes back.
    Jump(ChainName),
    /// It goes on in another chain for good.
    Goto(ChainName),
}

/// How a rejected packet's sender is told (`NFT_REJECT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// By an ICMP or ICMPv6 error of this code, which depends on the family.
    Icmp(u8),
    /// By a TCP reset; only for TCP.
    TcpReset,
    /// By an error that is translated to either family (`NFT_REJECT_ICMPX_*`).
    Icmpx(u8),
}

impl Reject {
    /// `NFT_REJECT_ICMPX_ADMIN_PROHIBITED`.
    pub const ADMIN_PROHIBITED: Self = Self::Icmpx(3);
    /// `NFT_REJECT_ICMPX_PORT_UNREACH`.
    pub const PORT_UNREACHABLE: Self = Self::Icmpx(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_two_names_and_one_meaning() {
        for slot in 0..16 {
            let reg = Reg::try_from(slot).unwrap();
            assert_eq!(Reg::from_raw(reg.raw()), Ok(reg));
            assert_eq!(Reg::from_raw(8 + slot), Ok(reg));
        }
        assert_eq!(Reg::FIRST.raw(), 1);
        for raw in [0, 5, 7, 24, u32::MAX] {
            assert_eq!(Reg::from_raw(raw), Err(BadReg(raw)));
        }
    }

    #[test]
    fn fib_flags_round_trip() {
        for raw in 0..1 << 6 {
            assert_eq!(FibFlags::from_raw(raw).unwrap().raw(), raw);
        }
        assert_eq!(FibFlags::from_raw(1 << 6), None);
    }
}
