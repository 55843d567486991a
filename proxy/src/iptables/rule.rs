//! A rule, in the words and the order in which `iptables-save` prints it, so that what is there and
//! what should be there are compared as text.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use sha2::{Digest as _, Sha256};

use crate::model::{Family, Protocol};

/// Everything behind `-A CHAIN `.
///
/// What a packet is matched by is added in the order of the methods here.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Rule(String);

/// Which of a packet's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// The tables that hold rules of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Table {
    Nat,
    Filter,
}

impl Table {
    pub(super) const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// How the names of all our chains begin.
pub(super) const PREFIX: &str = "WEFT-";

/// What is masqueraded when it leaves: kube-proxy's bit, which others respect already.
const MARK: &str = "0x4000/0x4000";

/// The longest comment that the kernel takes, without its end (`XT_MAX_COMMENT_LEN`).
const COMMENT_MAX: usize = 255;

/// 80 bits of a hash in the letters of RFC 4648's base 32: nobody can make two names meet, and there is
/// room for what the chain is (`XT_EXTENSION_MAXNAMELEN` is 29).
pub(super) fn digest(of: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = Sha256::digest(of.as_bytes());
    let bits = hash.iter().take(10).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    (0..16).rev().map(|at| char::from(LETTERS[(bits >> (5 * at)) as usize % 32])).collect()
}

impl Rule {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// As it was saved.
    pub(super) fn saved(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn word(mut self, word: fmt::Arguments<'_>) -> Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        let _ = self.0.write_fmt(word);
        self
    }

    pub(super) fn source(self, range: IpNetwork) -> Self {
        self.within("-s", range)
    }

    pub(super) fn destination(self, range: IpNetwork) -> Self {
        self.within("-d", range)
    }

    /// A range of everything is not printed.
    fn within(self, what: &str, range: IpNetwork) -> Self {
        match range.prefix() {
            0 => self,
            prefix => self.word(format_args!("{what} {}/{prefix}", range.network())),
        }
    }

    pub(super) fn not_to(self, range: IpNetwork) -> Self {
        self.word(format_args!("! -d {}/{}", range.network(), range.prefix()))
    }

    /// The last bits of the address that the packet goes to, or comes from.
    pub(super) fn last_bits(self, side: Side, family: Family, bits: u8, mask: u8) -> Self {
        let side = match side {
            Side::Source => "-s",
            Side::Destination => "-d",
        };
        match family {
            Family::V4 => self.word(format_args!("{side} 0.0.0.{bits}/0.0.0.{mask}")),
            Family::V6 if bits == 0 => self.word(format_args!("{side} ::/::{mask:x}")),
            Family::V6 => self.word(format_args!("{side} ::{bits:x}/::{mask:x}")),
        }
    }

    /// The link that the packet came in by; a `+` at its end stands for anything.
    pub(super) fn input(self, link: &str) -> Self {
        self.word(format_args!("-i {link}"))
    }

    pub(super) fn protocol(self, protocol: Protocol) -> Self {
        self.word(format_args!("-p {protocol}"))
    }

    pub(super) fn port(self, protocol: Protocol, port: u16) -> Self {
        self.protocol(protocol).word(format_args!("-m {protocol} --dport {port}"))
    }

    pub(super) fn ports(self, protocol: Protocol, first: u16, last: u16) -> Self {
        self.protocol(protocol).word(format_args!("-m {protocol} --dport {first}:{last}"))
    }

    pub(super) fn with_local_source(self) -> Self {
        self.word(format_args!("-m addrtype --src-type LOCAL"))
    }

    pub(super) fn without_local_source(self) -> Self {
        self.word(format_args!("-m addrtype ! --src-type LOCAL"))
    }

    pub(super) fn with_local_destination(self) -> Self {
        self.word(format_args!("-m addrtype --dst-type LOCAL"))
    }

    pub(super) fn new_connection(self) -> Self {
        self.word(format_args!("-m conntrack --ctstate NEW"))
    }

    /// Of no connection.
    pub(super) fn invalid(self) -> Self {
        self.word(format_args!("-m conntrack --ctstate INVALID"))
    }

    /// Its destination was translated, by whomever.
    pub(super) fn translated(self) -> Self {
        self.word(format_args!("-m conntrack --ctstate DNAT"))
    }

    pub(super) fn marked(self) -> Self {
        self.word(format_args!("-m mark --mark {MARK}"))
    }

    /// With the probability of one in so many. The kernel keeps 31 bits of it, and those are printed.
    pub(super) fn by_chance(self, one_in: usize) -> Self {
        let scale = f64::from(1u32 << 31);
        let kept = (scale / one_in as f64).round() / scale;
        self.word(format_args!("-m statistic --mode random --probability {kept:.11}"))
    }

    /// Which the program (`-m bpf`) lets pass.
    pub(super) fn bpf(self, program: &str) -> Self {
        self.word(format_args!("-m bpf --bytecode \"{program}\""))
    }

    /// Whose source is in the list and was so in the last seconds; it is now.
    pub(super) fn again(self, family: Family, list: &str, seconds: u64) -> Self {
        let mask = full_mask(family);
        self.word(format_args!(
            "-m recent --update --seconds {seconds} --reap --name {list} --mask {mask} --rsource"
        ))
    }

    /// Puts the source into the list.
    pub(super) fn remember(self, family: Family, list: &str) -> Self {
        self.word(format_args!("-m recent --set --name {list} --mask {} --rsource", full_mask(family)))
    }

    /// Takes the source out of the list.
    pub(super) fn forget(self, family: Family, list: &str) -> Self {
        self.word(format_args!("-m recent --remove --name {list} --mask {} --rsource", full_mask(family)))
    }

    /// For who reads the rules. Comes before the target.
    pub(super) fn comment(self, text: &str) -> Self {
        let harmless = |c: char| if c.is_ascii_alphanumeric() || "-_./: ".contains(c) { c } else { '?' };
        let text: String = text.chars().map(harmless).take(COMMENT_MAX).collect();
        self.word(format_args!("-m comment --comment \"{text}\""))
    }

    /// With more conditions, from another beginning.
    pub(super) fn followed_by(self, rest: Self) -> Self {
        if rest.0.is_empty() { self } else { self.word(format_args!("{}", rest.0)) }
    }

    pub(super) fn jump(self, to: &str) -> Self {
        self.word(format_args!("-j {to}"))
    }

    pub(super) fn goto(self, to: &str) -> Self {
        self.word(format_args!("-g {to}"))
    }

    pub(super) fn returns(self) -> Self {
        self.jump("RETURN")
    }

    pub(super) fn mark(self) -> Self {
        self.word(format_args!("-j MARK --set-xmark {MARK}"))
    }

    /// Without the mark from here on: whoever encapsulates the packet keeps its mark.
    pub(super) fn unmark(self) -> Self {
        self.word(format_args!("-j MARK --set-xmark 0x0/0x4000"))
    }

    pub(super) fn masquerade(self) -> Self {
        self.word(format_args!("-j MASQUERADE --random-fully"))
    }

    pub(super) fn translate(self, to: SocketAddr) -> Self {
        self.word(format_args!("-j DNAT --to-destination {to}"))
    }

    pub(super) fn reset(self) -> Self {
        self.word(format_args!("-j REJECT --reject-with tcp-reset"))
    }

    pub(super) fn unreachable(self, family: Family) -> Self {
        let icmp = if family == Family::V4 { "icmp" } else { "icmp6" };
        self.word(format_args!("-j REJECT --reject-with {icmp}-port-unreachable"))
    }

    /// The chain that packets are led to. It is behind all conditions, and ours have no options.
    pub(super) fn target(&self) -> Option<&str> {
        let mut words = self.0.rsplit(' ');
        let target = words.next()?;
        matches!(words.next(), Some("-j" | "-g")).then_some(target)
    }

    /// The same packets, dropped instead.
    pub(super) fn dropping(&self) -> Self {
        let conditions = self.0.rsplitn(3, ' ').nth(2);
        conditions.map_or_else(Self::new, Self::saved).jump("DROP")
    }

    /// Where every packet goes on that comes here, if this rule has no condition.
    pub(super) fn leads_all_to(&self) -> Option<&str> {
        self.0.strip_prefix("-g ").filter(|chain| !chain.contains(' '))
    }
}

fn full_mask(family: Family) -> &'static str {
    match family {
        Family::V4 => "255.255.255.255",
        Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

/// An address as a range.
pub(super) fn only(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn rules_are_what_is_printed() {
        let net = |text: &str| text.parse::<IpNetwork>().unwrap();
        let table = [
            (Rule::new().source(net("10.1.2.3/8")).jump("X"), "-s 10.0.0.0/8 -j X"),
            (Rule::new().source(net("0.0.0.0/0")).jump("X"), "-j X"),
            (Rule::new().destination(net("fd00::1")).goto("X"), "-d fd00::1/128 -g X"),
            (Rule::new().last_bits(Side::Destination, Family::V6, 0, 15).goto("X"), "-d ::/::f -g X"),
            (
                Rule::new().by_chance(3).returns(),
                "-m statistic --mode random --probability 0.33333333349 -j RETURN",
            ),
            (Rule::new().comment("a\"b\n/c"), "-m comment --comment \"a?b?/c\""),
        ];
        for (rule, text) in table {
            assert_eq!(rule.as_str(), text);
        }
        assert_eq!(digest("shop/web:http"), digest("shop/web:http"));
        assert_eq!(digest("").len(), 16);
    }
}
