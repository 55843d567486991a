//! When the kernel is looked at, and why. Pure: the time comes in, the time to wake goes out.

use std::time::{Duration, Instant};

use weft_daemon::reconcile::schedule::Pace;

/// How long a chain that no service needs any more is kept: packets on their way may still be led to
/// it. They are through within microseconds; that there are a few chains more for a second costs
/// nothing, and an endpoint that comes and goes finds its chain again.
const UNUSED_FOR: Duration = Duration::from_secs(2);

/// Something to do with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Everything, as of now.
    Load,
    /// Compare, and put right what is wrong.
    Look,
    /// Take away what no service needs.
    Collect,
}

/// What happened, as far as it decides what is due.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pace: Pace,
    /// Everything has been listed, so that something can be loaded at all.
    complete: bool,
    /// What the mode has been given is all there is, for this host.
    loaded: bool,
    /// The kernel may not hold what it should.
    doubted: bool,
    /// Loads and looks, or changes, that failed in a row.
    failures: u32,
    /// When the last of them did.
    failed: Option<Instant>,
    /// When the kernel was last known to hold everything.
    looked: Instant,
    /// Since when there is something unused.
    unused: Option<Instant>,
}

impl Schedule {
    /// A daemon that begins now.
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        let (complete, loaded, doubted) = (false, false, false);
        Self { pace, complete, loaded, doubted, failures: 0, failed: None, looked: now, unused: None }
    }

    /// What is due next, and when; nothing before everything has been listed.
    pub(super) fn next(&self) -> Option<(Instant, Task)> {
        if !self.complete {
            return None;
        }
        let task = if self.loaded { Task::Look } else { Task::Load };
        if let Some(failed) = self.failed {
            let doubled =
                self.pace.retry.saturating_mul(2u32.saturating_pow(self.failures.saturating_sub(1)));
            let wait = doubled.min(self.pace.longest_retry);
            // Somebody may just have put right what was in our way, or be in it again and again.
            let wait = if self.doubted { wait.min(self.pace.rest) } else { wait };
            return Some((failed + wait, task));
        }
        if !self.loaded || self.doubted {
            return Some((self.looked, task));
        }
        let timer = (self.looked + self.pace.period, Task::Look);
        let unused = self.unused.map(|since| (since + UNUSED_FOR, Task::Collect));
        Some(unused.filter(|(at, _)| *at <= timer.0).unwrap_or(timer))
    }

    /// What the mode holds is the whole truth, and so is the kernel, as far as is known.
    pub(super) fn is_whole(&self) -> bool {
        self.loaded && !self.doubted && self.failed.is_none()
    }

    /// The mode has been loaded, well or not, for a host like this one.
    pub(super) fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Everything has been listed.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// What is loaded is for another host: all of it is due again.
    pub(super) fn unfit(&mut self) {
        self.loaded = false;
    }

    /// Somebody else may have had a hand in it.
    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// A load or look went well; whether something unused is left.
    pub(super) fn settled(&mut self, now: Instant, unused: bool) {
        (self.loaded, self.doubted, self.failures, self.failed) = (true, false, 0, None);
        self.looked = now;
        self.left(now, unused);
    }

    /// A change, or a collection, was acknowledged; whether something unused is left.
    pub(super) fn left(&mut self, now: Instant, unused: bool) {
        self.unused = unused.then(|| self.unused.unwrap_or(now));
    }

    /// Something unused was taken away, or could not be.
    pub(super) fn collected(&mut self) {
        self.unused = None;
    }

    /// The kernel refused, or could not be asked.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.failed = Some(now);
        self.doubted = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pace() -> Pace {
        Pace { period: Duration::from_secs(600), ..Pace::default() }
    }

    #[test]
    fn what_is_due_when() {
        type Past = fn(&mut Schedule, Instant);
        type Due = Option<(Task, u64)>;
        let loaded: Past = |it, now| {
            it.complete();
            it.settled(now, false);
        };
        //  case, what happened, what is due, after how many milliseconds
        let table: [(&str, Past, Due); 12] = [
            ("half a list", |_, _| {}, None),
            ("half a list, and a doubt", |it, _| it.doubt(), None),
            ("everything is listed", |it, _| it.complete(), Some((Task::Load, 0))),
            ("all is well", loaded, Some((Task::Look, 600_000))),
            (
                "somebody else was there",
                |it, now| {
                    it.complete();
                    it.settled(now, true);
                    it.doubt();
                },
                Some((Task::Look, 0)),
            ),
            (
                "a chain is unused",
                |it, now| {
                    it.complete();
                    it.settled(now, true);
                },
                Some((Task::Collect, 2000)),
            ),
            (
                "a change failed",
                |it, now| {
                    it.complete();
                    it.settled(now, true);
                    it.failed(now);
                },
                Some((Task::Look, 100)),
            ),
            (
                "it fails and fails",
                |it, now| {
                    it.complete();
                    it.settled(now, false);
                    (0..4).for_each(|_| it.failed(now));
                },
                Some((Task::Look, 800)),
            ),
            (
                "it fails, and somebody else was there",
                |it, now| {
                    it.complete();
                    it.settled(now, false);
                    (0..40).for_each(|_| it.failed(now));
                    it.doubt();
                },
                Some((Task::Look, 250)),
            ),
            (
                "the first load fails",
                |it, now| {
                    it.complete();
                    it.failed(now);
                },
                Some((Task::Load, 100)),
            ),
            (
                "the host is another one",
                |it, now| {
                    it.complete();
                    it.settled(now, false);
                    it.unfit();
                },
                Some((Task::Load, 0)),
            ),
            (
                "what was unused is gone",
                |it, now| {
                    it.complete();
                    it.settled(now, true);
                    it.collected();
                },
                Some((Task::Look, 600_000)),
            ),
        ];
        for (case, past, expected) in table {
            let now = Instant::now();
            let mut schedule = Schedule::new(pace(), now);
            past(&mut schedule, now);
            let expected = expected.map(|(task, wait)| (now + Duration::from_millis(wait), task));
            assert_eq!(schedule.next(), expected, "{case}");
        }
    }

    #[test]
    fn what_is_unused_waits_from_the_first_on() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut schedule = Schedule::new(pace(), now);
        schedule.complete();
        schedule.settled(now, true);
        schedule.left(later, true);
        assert_eq!(schedule.next(), Some((now + UNUSED_FOR, Task::Collect)));
        schedule.left(later, false);
        schedule.left(later, true);
        assert_eq!(schedule.next(), Some((later + UNUSED_FOR, Task::Collect)), "it was in use meanwhile");
    }

    proptest! {
        /// Whatever happens, a kernel that is not as it should be is looked at soon, and never in a
        /// whirl.
        #[test]
        fn every_wait_is_bounded(events in proptest::collection::vec(0u8..5, 1..60)) {
            let (pace, now) = (pace(), Instant::now());
            let mut schedule = Schedule::new(pace, now);
            schedule.complete();
            for event in events {
                match event {
                    0 => schedule.settled(now, false),
                    1 => schedule.settled(now, true),
                    2 => schedule.failed(now),
                    3 => schedule.doubt(),
                    _ => schedule.unfit(),
                }
                let (at, task) = schedule.next().expect("everything is listed");
                let wait = at - now;
                prop_assert!(wait <= pace.period);
                prop_assert_eq!(task == Task::Load, !schedule.is_loaded());
                if schedule.failed.is_some() {
                    prop_assert!(wait >= pace.retry && wait <= pace.longest_retry);
                    prop_assert!(!schedule.doubted || wait <= pace.rest);
                } else if !schedule.is_whole() {
                    prop_assert!(wait.is_zero());
                }
            }
        }
    }
}
