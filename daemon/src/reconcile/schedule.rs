//! When the next run is due. Pure: the time comes in, the time to wake goes out.

use std::time::{Duration, Instant};

/// How often, at most and at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The slow timer: a run this long after the last, even if nothing happened.
    pub period: Duration,
    /// After the first failure in a row, this long until the next try; it doubles with each further one.
    pub retry: Duration,
    /// Until it is this long.
    pub longest_retry: Duration,
    /// A trigger does not have to wait for the retry, but at least this long after a failure: a run that
    /// fails half-way may itself cause the events that trigger it.
    pub rest: Duration,
    /// A run that takes longer is given up.
    pub limit: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(30),
            retry: Duration::from_millis(100),
            longest_retry: Duration::from_secs(30),
            rest: Duration::from_millis(250),
            limit: Duration::from_secs(60),
        }
    }
}

/// What happened so far, as far as it decides when the next run is.
#[derive(Clone, Debug)]
pub struct Schedule {
    pace: Pace,
    /// When the last run ended, or the loop began.
    last: Instant,
    started: bool,
    /// How many runs in a row have failed.
    failures: u32,
}

impl Schedule {
    /// A loop that begins now.
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, last: now, started: false, failures: 0 }
    }

    /// When the next run is due, if nothing else happens until then, and for what reason. `triggered`:
    /// a trigger was fired since the last run began.
    pub fn next(&self, triggered: bool) -> (Instant, &'static str) {
        if !self.started {
            return (self.last, "start");
        }
        let Some(failed_before) = self.failures.checked_sub(1) else {
            return if triggered { (self.last, "trigger") } else { (self.last + self.pace.period, "timer") };
        };
        let doubled = self.pace.retry.saturating_mul(2u32.saturating_pow(failed_before));
        let retry = doubled.min(self.pace.longest_retry);
        let wait = if triggered { retry.min(self.pace.rest) } else { retry };
        (self.last + wait, "retry")
    }

    /// A run has ended.
    pub fn ran(&mut self, now: Instant, well: bool) {
        self.started = true;
        self.last = now;
        self.failures = if well { 0 } else { self.failures.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn when_the_next_run_is_due() {
        //  case                                failures  triggered  after, in ms
        let table = [
            ("all is well", 0, false, 30_000),
            ("all is well, an event", 0, true, 0),
            ("one failure", 1, false, 100),
            ("one failure, an event", 1, true, 100),
            ("the wait doubles", 2, false, 200),
            ("and again", 3, false, 400),
            ("an event shortens it", 3, true, 250),
            ("it has an end", 12, false, 30_000),
            ("also after very many", 1_000_000, false, 30_000),
            ("an event does not wait for that", 1_000_000, true, 250),
        ];
        for (case, failures, triggered, expected) in table {
            let now = Instant::now();
            let mut schedule = Schedule::new(Pace::default(), now);
            schedule.ran(now, true);
            schedule.failures = failures;
            assert_eq!(schedule.next(triggered).0 - now, Duration::from_millis(expected), "{case}");
        }
    }

    #[test]
    fn the_first_run_is_at_once() {
        let now = Instant::now();
        assert_eq!(Schedule::new(Pace::default(), now).next(false), (now, "start"));
    }

    proptest! {
        /// Never sooner than a rest after a failure, never later than the longest wait, and an event
        /// never makes it later.
        #[test]
        fn every_wait_is_bounded(runs in proptest::collection::vec(any::<bool>(), 1..80)) {
            let (pace, now) = (Pace::default(), Instant::now());
            let mut schedule = Schedule::new(pace, now);
            for well in runs {
                schedule.ran(now, well);
                let wait = |triggered| schedule.next(triggered).0 - now;
                prop_assert!(wait(true) <= wait(false));
                prop_assert!(wait(true) <= pace.rest);
                prop_assert!(wait(false) <= pace.longest_retry.max(pace.period));
                prop_assert!(well || wait(true) >= pace.retry.min(pace.rest));
            }
        }
    }
}
