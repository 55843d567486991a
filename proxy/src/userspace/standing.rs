//! How an endpoint stands: whether new connections go to it, judged by how dialling it went. Pure.
//!
//! ```text
//!           3 failures in a row            its time is over
//!   good ────────────────────────> out ────────────────────> on trial
//!    ^                              ^                            │
//!    │            dialled           │        failed              │
//!    └──────────────────────────────┴────────────────────────────┘
//! ```
//!
//! Each time that an endpoint goes out again soon after it came back it stays out for twice as long.
//! While it is on trial, one connection at a time goes to it. If all are out, all are tried: that is for
//! who chooses to say.

use std::time::{Duration, Instant};

/// So many failures in a row put an endpoint out.
const FAILURES: u32 = 3;
/// For so long the first time, and at most.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);
/// Of a trial that nobody heard of again another one may follow after this.
const TRIAL: Duration = Duration::from_secs(10);

/// An endpoint's standing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Standing {
    state: State,
    /// How long it was out the last time, and when it was good again.
    last: Option<(Duration, Option<Instant>)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Good {
        /// In a row.
        failures: u32,
    },
    Out {
        until: Instant,
    },
    OnTrial {
        since: Instant,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Good { failures: 0 }
    }
}

impl Standing {
    /// Whether no connections go to it, but those on trial.
    pub(super) fn is_out(&self) -> bool {
        !matches!(self.state, State::Good { .. })
    }

    /// Whether a new connection may go to it. One that may and does is [`Standing::chosen`].
    pub(super) fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Good { .. } => true,
            State::Out { until } => now >= until,
            State::OnTrial { since } => now.saturating_duration_since(since) >= TRIAL,
        }
    }

    /// A new connection goes to it.
    pub(super) fn chosen(&mut self, now: Instant) {
        if self.is_out() && self.admits(now) {
            self.state = State::OnTrial { since: now };
        }
    }

    /// It was dialled.
    pub(super) fn succeeded(&mut self, now: Instant) {
        if self.is_out() {
            self.last = self.last.map(|(time, _)| (time, Some(now)));
        }
        self.state = State::default();
    }

    /// It could not be dialled. Says whether that put it out.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        match self.state {
            State::Good { failures } if failures + 1 < FAILURES => {
                self.state = State::Good { failures: failures + 1 };
                false
            }
            // Somebody tried although it was out: that says nothing new.
            State::Out { until } if now < until => false,
            State::Good { .. } | State::Out { .. } | State::OnTrial { .. } => {
                let time = self.next_time(now);
                self.last = Some((time, None));
                self.state = State::Out { until: now + time };
                true
            }
        }
    }

    /// Twice the last time, unless it was good for longer than that since.
    fn next_time(&self, now: Instant) -> Duration {
        match self.last {
            Some((time, Some(good))) if now.saturating_duration_since(good) > time * 2 => FIRST,
            Some((time, _)) => (time * 2).min(LONGEST),
            None => FIRST,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Standing {
        /// No failure counts.
        fn is_spotless(&self) -> bool {
            self.state == State::default()
        }
    }

    fn out(now: Instant) -> Standing {
        let mut standing = Standing::default();
        let ejected: Vec<bool> = (0..FAILURES).map(|_| standing.failed(now)).collect();
        assert_eq!(ejected, [false, false, true]);
        standing
    }

    #[test]
    fn three_failures_in_a_row_put_it_out_and_one_success_between_does_not() {
        let now = Instant::now();
        let mut standing = Standing::default();
        for _ in 0..10 {
            assert!(!standing.failed(now) && !standing.failed(now));
            standing.succeeded(now);
            assert!(standing.is_spotless());
        }
        let standing = out(now);
        assert!(standing.is_out() && !standing.admits(now));
        assert!(!standing.admits(now + FIRST - Duration::from_millis(1)));
        assert!(standing.admits(now + FIRST));
    }

    #[test]
    fn one_connection_tries_it_and_brings_it_back_or_not() {
        let now = Instant::now();
        let later = now + FIRST;
        let mut standing = out(now);
        standing.chosen(later);
        assert!(!standing.admits(later), "one at a time");
        assert!(standing.admits(later + TRIAL), "the trial was lost");
        let mut good = standing;
        good.succeeded(later);
        assert!(good.is_spotless() && good.admits(later));
        assert!(standing.failed(later));
        assert!(!standing.admits(later + FIRST), "for longer this time");
        assert!(standing.admits(later + FIRST * 2));
    }

    #[test]
    fn what_was_good_for_long_begins_anew() {
        let now = Instant::now();
        let mut standing = out(now);
        standing.succeeded(now + FIRST);
        let again = |at: Instant| {
            let mut standing = standing;
            assert!((0..FAILURES).any(|_| standing.failed(at)));
            standing
        };
        let soon = now + FIRST + Duration::from_secs(1);
        assert!(!again(soon).admits(soon + FIRST) && again(soon).admits(soon + FIRST * 2));
        let late = now + FIRST * 4;
        assert!(again(late).admits(late + FIRST));
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Wait(Duration),
        Chosen,
        Succeeded,
        Failed,
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u64..200_000).prop_map(|time| Event::Wait(Duration::from_millis(time))),
            Just(Event::Chosen),
            Just(Event::Succeeded),
            Just(Event::Failed),
            Just(Event::Failed),
        ]
    }

    proptest! {
        /// Whatever happened: nobody is out for longer than the longest time, a success brings anybody
        /// back, and only a failure puts somebody out.
        #[test]
        fn nobody_is_out_for_good(events in prop::collection::vec(events(), 0..60)) {
            let (mut standing, mut now) = (Standing::default(), Instant::now());
            for event in events {
                let before = standing;
                match event {
                    Event::Wait(time) => now += time,
                    Event::Chosen => standing.chosen(now),
                    Event::Succeeded => standing.succeeded(now),
                    Event::Failed => {
                        let ejected = standing.failed(now);
                        prop_assert!(!ejected || !standing.admits(now));
                        prop_assert_eq!(ejected, standing.is_out() && (!before.is_out() || before != standing));
                    }
                }
                if !matches!(event, Event::Failed) {
                    prop_assert!(before.is_out() || !standing.is_out());
                }
                prop_assert!(standing.admits(now + LONGEST));
                let mut good = standing;
                good.succeeded(now);
                prop_assert!(good.is_spotless());
            }
        }
    }
}
