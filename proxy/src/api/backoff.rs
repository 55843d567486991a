//! How long to wait before asking again. Pure: chance is an argument.

use std::time::Duration;

/// The waits after failures in a row.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first wait is at most this.
    pub first: Duration,
    /// No wait is longer.
    pub longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Doubling from `first` to `longest`.
    pub fn between(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The wait after one more failure. Half of it is `chance`, from 0 to 1, so that a thousand hosts
    /// whose API server comes back do not ask all at once.
    pub fn next(&mut self, chance: f64) -> Duration {
        let doubled = self.first.saturating_mul(2u32.saturating_pow(self.failures.min(20)));
        self.failures = self.failures.saturating_add(1);
        self.longest.min(doubled).mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// From 0.1..0.2 s to 15..30 s: client-go's reflector waits 0.8 to 30 s.
impl Default for Backoff {
    fn default() -> Self {
        Self::between(Duration::from_millis(200), Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_within_its_bounds_and_starts_over() {
        let mut backoff = Backoff::default();
        let table = [(0.0, 100), (1.0, 400), (0.5, 600), (0.0, 800)];
        for (chance, millis) in table {
            assert_eq!(backoff.next(chance), Duration::from_millis(millis), "{backoff:?}");
        }
        for _ in 0..100 {
            backoff.next(1.0);
        }
        assert_eq!(backoff.next(1.0), Duration::from_secs(30));
        assert_eq!(backoff.next(0.0), Duration::from_secs(15));
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(200));
    }
}
