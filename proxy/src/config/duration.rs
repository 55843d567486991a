//! Times as Go writes them (`time.ParseDuration`): `1h30m`, `1.5s`, `250ms`, `0`. Pure.

use std::time::Duration;

/// Nanoseconds in each of Go's units.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    // The micro sign, and the Greek letter that looks the same.
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];

/// Why a string is no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no duration of zero or more; write 30s, 5m, 1h30m or 250ms")]
pub struct BadDuration(pub String);

/// Reads a time of zero or more. Go knows negative ones too, which nothing here can mean.
///
/// # Errors
/// When it is none, or longer than Go can hold (292 years).
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    read(text).ok_or_else(|| BadDuration(text.to_owned()))
}

fn read(text: &str) -> Option<Duration> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if unsigned == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (unsigned, 0_u64);
    while !rest.is_empty() {
        let (whole, behind) = digits(rest);
        let (fraction, behind) = match behind.strip_prefix('.') {
            Some(behind) => digits(behind),
            None => ("", behind),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = behind.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at_checked(end)?;
        let (_, nanos) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
        total = total.checked_add(whole.checked_mul(nanos)?)?.checked_add(part(fraction, nanos))?;
        rest = behind;
    }
    let fits = !unsigned.is_empty() && i64::try_from(total).is_ok();
    fits.then(|| Duration::from_nanos(total))
}

/// The decimal digits at the beginning, and what comes behind.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// So much of a unit as these digits behind a point say, rounded down.
fn part(fraction: &str, nanos: u64) -> u64 {
    let (mut part, mut scale) = (0, nanos);
    for digit in fraction.bytes() {
        part += scale * u64::from(digit - b'0') / 10;
        // From here on a digit is worth less than a nanosecond, or the rest of the division is lost:
        // both less than a clock tells.
        scale /= 10;
    }
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_as_go_reads_them() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("0", ms(0)),
            ("0s", ms(0)),
            ("+0", ms(0)),
            ("5s", ms(5_000)),
            ("+5s", ms(5_000)),
            ("30m", ms(1_800_000)),
            ("1h30m", ms(5_400_000)),
            ("2h22m", ms(8_520_000)),
            ("15m0s", ms(900_000)),
            ("24h0m0s", ms(86_400_000)),
            ("250ms", ms(250)),
            ("1.5s", ms(1_500)),
            (".5s", ms(500)),
            ("1.s", ms(1_000)),
            ("1.25h", ms(4_500_000)),
            ("1s250ms", ms(1_250)),
            ("3us", Duration::from_micros(3)),
            ("3\u{b5}s", Duration::from_micros(3)),
            ("3\u{3bc}s", Duration::from_micros(3)),
            ("7ns", Duration::from_nanos(7)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "+",
            "5",
            "s",
            "-5s",
            "1d",
            "1h 30m",
            "1,5s",
            "1.5",
            ".s",
            "1e3s",
            "9999999999h",
            "1hh",
            "0x1s",
        ] {
            assert_eq!(parse(text), Err(BadDuration(text.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,12}|[0-9.]{0,24}(ns|us|ms|s|m|h|\u{b5}s)?[0-9.]{0,30}[smh]?") {
            let _ = parse(&text);
        }

        #[test]
        fn whole_seconds_are_read_back(seconds in 0_u64..1_000_000_000) {
            let text = format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60);
            prop_assert_eq!(parse(&text), Ok(Duration::from_secs(seconds)));
        }
    }
}
