//! Waiting: a condition with a deadline, polled. The only place in the repository's tests where a thread idles.

use std::fmt::Display;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

/// The first pause between two looks; it doubles up to [`SLOWEST`].
const FASTEST: Duration = Duration::from_millis(2);
/// The longest pause between two looks, so that a measured time is at most this much too long.
const SLOWEST: Duration = Duration::from_millis(50);

/// What a condition may return: a `bool`, an `Option` or a `Result`.
pub trait Outcome {
    /// What is there once the condition holds.
    type Value;

    /// The value, or what was seen instead.
    fn settle(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();

    fn settle(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// The deadline passed; this is what the condition said last.
#[derive(Clone, Debug, thiserror::Error)]
#[error("not within {limit:?}; last seen: {last}")]
pub struct TimedOut {
    /// How long was waited.
    pub limit: Duration,
    /// What the last look saw.
    pub last: String,
}

/// Looks until the condition holds, or says what it saw last. Looks at least once, and once more
/// after the deadline, so that a starved machine does not fail a condition that holds.
pub fn wait_for<O: Outcome>(limit: Duration, mut condition: impl FnMut() -> O) -> Result<O::Value, TimedOut> {
    let start = Instant::now();
    let mut pause = FASTEST;
    loop {
        let late = start.elapsed() >= limit;
        match condition().settle() {
            Ok(value) => return Ok(value),
            Err(last) if late => return Err(TimedOut { limit, last }),
            Err(_) => park_timeout(pause),
        }
        pause = (pause * 2).min(SLOWEST);
    }
}

/// As [`wait_for`], for tests: panics with what was seen last.
#[track_caller]
pub fn within<O: Outcome>(limit: Duration, condition: impl FnMut() -> O) -> O::Value {
    match wait_for(limit, condition) {
        Ok(value) => value,
        Err(timed_out) => panic!("{timed_out}"),
    }
}

/// For tests: the condition holds at every look for the whole period; panics at the first where it does not.
#[track_caller]
pub fn throughout<O: Outcome>(period: Duration, mut condition: impl FnMut() -> O) {
    let start = Instant::now();
    while start.elapsed() < period {
        if let Err(seen) = condition().settle() {
            panic!("no longer true after {:?}; seen: {seen}", start.elapsed());
        }
        park_timeout(SLOWEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut looks = 0;
        let seen = wait_for(Duration::from_secs(60), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(seen.ok(), Some(3));
    }

    #[test]
    fn a_deadline_tells_what_was_seen_last() {
        let error = wait_for(Duration::ZERO, || Err::<(), _>("two peers of three")).unwrap_err();
        assert!(error.to_string().ends_with("last seen: two peers of three"), "{error}");
    }

    #[test]
    fn a_condition_is_looked_at_even_without_time() {
        assert!(wait_for(Duration::ZERO, || true).is_ok());
    }

    #[test]
    #[should_panic(expected = "no longer true")]
    fn throughout_ends_at_the_first_lapse() {
        let mut looks = 0;
        throughout(Duration::from_secs(60), || {
            looks += 1;
            looks < 3
        });
    }
}
