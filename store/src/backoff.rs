//! How long to wait before trying again. Pure: chance is an argument.

use std::time::Duration;

/// Nobody waits less.
const SHORTEST: Duration = Duration::from_millis(100);
/// Nobody waits longer.
const LONGEST: Duration = Duration::from_secs(5);

/// Counts failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure; `chance` is from 0 to 1.
    pub(crate) fn next(&mut self, chance: f64) -> Duration {
        let delay = delay(self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Doubles from 0.1..0.2 s to 2.5..5 s. Half of it is chance, so that a thousand hosts whose etcd
/// comes back do not ask all at once.
fn delay(failures: u32, chance: f64) -> Duration {
    let upper = LONGEST.min(SHORTEST * 2u32.saturating_pow(failures.min(10) + 1));
    upper.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_within_its_bounds() {
        let table = [
            (0, 0.0, 100),
            (0, 1.0, 200),
            (1, 0.0, 200),
            (1, 0.5, 300),
            (4, 0.0, 1600),
            (5, 0.0, 2500),
            (5, 1.0, 5000),
            (u32::MAX, 1.0, 5000),
        ];
        for (failures, chance, millis) in table {
            assert_eq!(delay(failures, chance), Duration::from_millis(millis), "{failures} {chance}");
        }
    }

    #[test]
    fn success_starts_over() {
        let mut backoff = Backoff::default();
        backoff.next(0.0);
        assert_eq!(backoff.next(0.0), Duration::from_millis(200));
        backoff.reset();
        assert_eq!(backoff.next(0.0), SHORTEST);
    }
}
