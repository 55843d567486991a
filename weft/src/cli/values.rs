//! What values may be written after a flag. Each parser's error holds the value and the rule. Pure.

use std::any::TypeId;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use clap::Arg;
use ipnetwork::IpNetwork;
use weft_daemon::log::Format;

/// Anything whose own error names value and rule.
pub(super) fn own<T: FromStr<Err: Display>>(raw: &str) -> Result<T, String> {
    raw.parse().map_err(|error: T::Err| error.to_string())
}

/// An IP address of one family or of any.
pub(super) fn address<T: FromStr>(raw: &str) -> Result<T, String> {
    let family = match std::any::type_name::<T>() {
        name if name.ends_with("Ipv4Addr") => "IPv4",
        name if name.ends_with("Ipv6Addr") => "IPv6",
        _ => "IP",
    };
    raw.parse().map_err(|_| format!("`{raw}` is no {family} address"))
}

/// A boolean, as Go's `ParseBool` reads it; the flag alone means true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switch(pub(super) bool);

impl FromStr for Switch {
    type Err = String;
    fn from_str(raw: &str) -> Result<Self, String> {
        match raw {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Self(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Self(false)),
            _ => Err(format!("`{raw}` is neither true nor false")),
        }
    }
}

impl Switch {
    /// Go's syntax for the arguments that are switches: `-x`, `-x=false`, never `-x false`.
    pub(super) fn as_in_go(argument: Arg) -> Arg {
        if argument.get_value_parser().type_id() != TypeId::of::<Self>() {
            return argument;
        }
        argument.num_args(0..=1).require_equals(true).default_missing_value("true")
    }
}

/// A range of addresses in CIDR form, all of them: no host bits.
pub(super) fn cidr(raw: &str) -> Result<IpNetwork, String> {
    let parsed: IpNetwork =
        raw.parse().map_err(|_| format!("`{raw}` is no CIDR, such as 192.0.2.0/24 or 2001:db8::/32"))?;
    let whole = IpNetwork::new(parsed.network(), parsed.prefix()).map_err(|error| error.to_string())?;
    if whole != parsed {
        return Err(format!("`{raw}` has host bits; write {whole}"));
    }
    Ok(parsed)
}

/// `10s`, `90m`, `24h`, `7d`, `1h30m`.
pub(super) fn duration(raw: &str) -> Result<Duration, String> {
    let wrong = || format!("`{raw}` is no duration; write 10s, 90m, 24h, 7d or 1h30m");
    let mut rest = raw;
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let unit = match tail.bytes().next() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            Some(b'd') => 86_400,
            _ => return Err(wrong()),
        };
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        // A century is more than anybody means, and far from where times overflow.
        seconds = part
            .and_then(|part| seconds.checked_add(part))
            .filter(|sum| *sum <= 100 * 366 * 86_400)
            .ok_or_else(wrong)?;
        rest = &tail[1..];
    }
    if raw.is_empty() { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
}

/// As Go writes it; a number alone is seconds.
pub(super) fn go_duration(raw: &str) -> Result<Duration, String> {
    match raw.parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => weft_proxy::config::duration::parse(raw).map_err(|error| error.to_string()),
    }
}

/// A whole number from 0 up to `MOST`.
pub(super) fn number<const MOST: u32>(raw: &str) -> Result<u32, String> {
    let number = raw.parse().ok().filter(|number| *number <= MOST);
    number.ok_or_else(|| format!("`{raw}` is no whole number from 0 to {MOST}"))
}

/// How the log looks.
pub(super) fn log_format(raw: &str) -> Result<Format, String> {
    match raw {
        "human" => Ok(Format::Human),
        "json" => Ok(Format::Json),
        _ => Err(format!("`{raw}` is neither human nor json")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        let wrong = |raw: &str| Err(format!("`{raw}` is no duration; write 10s, 90m, 24h, 7d or 1h30m"));
        for (raw, seconds) in
            [("10s", 10), ("0s", 0), ("90m", 5400), ("24h", 86_400), ("7d", 604_800), ("1h30m", 5400)]
        {
            assert_eq!(duration(raw), Ok(Duration::from_secs(seconds)), "{raw}");
        }
        for raw in ["", "10", "s", "-1s", "1.5h", "10 s", "10ms", "99999999999999999999s", "9999999d", "1µ"]
        {
            assert_eq!(duration(raw), wrong(raw), "{raw}");
        }
    }

    #[test]
    fn booleans_as_go_reads_them() {
        assert_eq!(["1", "t", "T", "true", "TRUE", "True"].map(str::parse), [const { Ok(Switch(true)) }; 6]);
        assert_eq!(
            ["0", "f", "F", "false", "FALSE", "False"].map(str::parse),
            [const { Ok(Switch(false)) }; 6]
        );
        assert_eq!("yes".parse::<Switch>(), Err("`yes` is neither true nor false".into()));
    }

    #[test]
    fn cidrs_have_no_host_bits() {
        assert!(cidr("10.0.0.0/8").is_ok() && cidr("2001:db8::/32").is_ok() && cidr("192.0.2.7").is_ok());
        assert_eq!(cidr("10.1.2.3/8"), Err("`10.1.2.3/8` has host bits; write 10.0.0.0/8".into()));
        let wrong = "`10.0.0.0/33` is no CIDR, such as 192.0.2.0/24 or 2001:db8::/32";
        assert_eq!(cidr("10.0.0.0/33"), Err(wrong.into()));
    }

    #[test]
    fn addresses_and_numbers_say_what_they_are_not() {
        use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
        assert_eq!(address::<Ipv4Addr>("::1"), Err("`::1` is no IPv4 address".into()));
        assert_eq!(address::<Ipv6Addr>("1.2.3.4"), Err("`1.2.3.4` is no IPv6 address".into()));
        assert_eq!(address::<IpAddr>("x"), Err("`x` is no IP address".into()));
        assert_eq!(number::<65_535>("65535"), Ok(65_535));
        assert_eq!(number::<65_535>("65536"), Err("`65536` is no whole number from 0 to 65535".into()));
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(raw in "\\PC{0,8}|[0-9]{0,22}[smhd]?[0-9]{0,3}[smhdµ]?") {
            let _ = (duration(&raw), raw.parse::<Switch>(), cidr(&raw), number::<9>(&raw));
        }
    }
}
