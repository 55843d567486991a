//! When to ask whom, and what an answer or a silence means. Pure: time is an argument.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// An address that the other host's kernel answers at, reached the way pod traffic goes.
    pub addr: IpAddr,
    /// Its liveness lapsed: ask quickly, somebody waits for the answer.
    pub suspect: bool,
}

/// How often to ask.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two requests to a target nobody doubts. Ten seconds keep a thousand peers at a
    /// hundred small packets a second.
    pub calm: Duration,
    /// Between two requests to a suspect.
    pub hasty: Duration,
    /// How long an answer may take.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            calm: Duration::from_secs(10),
            hasty: Duration::from_millis(400),
            patience: Duration::from_millis(1000),
        }
    }
}

/// What is known of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests sent whose answer came or is overdue.
    pub asked: u64,
    /// Of these, how many stayed without an answer in time.
    pub lost: u64,
    /// Round trip of the last answer.
    pub rtt: Option<Duration>,
    /// When the last answer came.
    pub last_answer: Option<Instant>,
    /// Requests in a row that stayed unanswered until now.
    pub silent: u32,
    /// When the first of these was sent.
    pub silent_since: Option<Instant>,
}

/// One echo request to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) addr: IpAddr,
    pub(super) seq: u16,
}

#[derive(Debug)]
struct Entry {
    suspect: bool,
    next: Instant,
    outstanding: BTreeMap<u16, Instant>,
    outcome: Outcome,
}

/// All targets with what is outstanding.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    entries: BTreeMap<IpAddr, Entry>,
    seq: u16,
}

impl Schedule {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, entries: BTreeMap::new(), seq: 0 }
    }

    /// Takes a new list of targets: what is known of those that stay is kept, those that became
    /// suspects are asked at once, new ones are spread over one calm interval.
    pub(super) fn retarget(&mut self, targets: &[Target], now: Instant) {
        let wanted: BTreeMap<IpAddr, bool> =
            targets.iter().map(|target| (target.addr, target.suspect)).collect();
        self.entries.retain(|addr, _| wanted.contains_key(addr));
        let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX).max(1);
        for (place, (addr, suspect)) in (0u32..).zip(wanted) {
            let offset = if suspect { Duration::ZERO } else { self.pace.calm / count * place / 10 };
            let entry = self.entries.entry(addr).or_insert_with(|| Entry {
                suspect,
                next: now + offset,
                outstanding: BTreeMap::new(),
                outcome: Outcome::default(),
            });
            if suspect && !entry.suspect {
                entry.next = now;
            }
            entry.suspect = suspect;
        }
    }

    /// Counts what is overdue and returns what to send now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Request> {
        let mut requests = Vec::new();
        for (addr, entry) in &mut self.entries {
            let overdue = |sent: &Instant| now.saturating_duration_since(*sent) >= self.pace.patience;
            for (_, sent) in entry.outstanding.extract_if(.., |_, sent| overdue(sent)) {
                entry.outcome.asked += 1;
                entry.outcome.lost += 1;
                if entry.outcome.last_answer.is_some_and(|answer| answer >= sent) {
                    continue; // a later request was answered: lost, but no silence
                }
                entry.outcome.silent = entry.outcome.silent.saturating_add(1);
                entry.outcome.silent_since.get_or_insert(sent);
            }
            if entry.next <= now {
                self.seq = self.seq.wrapping_add(1);
                entry.outstanding.insert(self.seq, now);
                requests.push(Request { addr: *addr, seq: self.seq });
                entry.next = now + if entry.suspect { self.pace.hasty } else { self.pace.calm };
            }
        }
        requests
    }

    /// Takes an answer; false when nobody waits for it (too late, forged, or a target no more).
    pub(super) fn answered(&mut self, from: IpAddr, seq: u16, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&from) else { return false };
        let Some(sent) = entry.outstanding.remove(&seq) else { return false };
        entry.outcome.asked += 1;
        entry.outcome.rtt = Some(now.saturating_duration_since(sent));
        entry.outcome.last_answer = Some(now);
        entry.outcome.silent = 0;
        entry.outcome.silent_since = None;
        true
    }

    /// When [`Schedule::due`] has something to do again.
    pub(super) fn next_wake(&self, now: Instant) -> Instant {
        let times = self.entries.values().flat_map(|entry| {
            let overdue = entry.outstanding.values().map(|sent| *sent + self.pace.patience);
            overdue.chain([entry.next])
        });
        times.min().unwrap_or(now + self.pace.calm)
    }

    pub(super) fn outcomes(&self) -> BTreeMap<IpAddr, Outcome> {
        self.entries.iter().map(|(addr, entry)| (*addr, entry.outcome.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        calm: Duration::from_secs(10),
        hasty: Duration::from_millis(400),
        patience: Duration::from_secs(1),
    };

    fn addr(last: u8) -> IpAddr {
        IpAddr::from([10, 42, last, 0])
    }

    fn target(last: u8, suspect: bool) -> Target {
        Target { addr: addr(last), suspect }
    }

    /// Runs the schedule for a while; `answers` says who answers, after 10 ms.
    fn drive(
        schedule: &mut Schedule,
        from: Instant,
        length: Duration,
        answers: impl Fn(IpAddr) -> bool,
    ) -> usize {
        let (mut now, mut sent) = (from, 0);
        while now < from + length {
            for request in schedule.due(now) {
                sent += 1;
                if answers(request.addr) {
                    assert!(schedule.answered(request.addr, request.seq, now + Duration::from_millis(10)));
                }
            }
            now = schedule.next_wake(now).max(now + Duration::from_millis(1));
        }
        schedule.due(now);
        sent
    }

    #[test]
    fn a_calm_target_is_asked_every_ten_seconds_and_its_round_trip_is_known() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE);
        schedule.retarget(&[target(1, false)], start);
        assert_eq!(drive(&mut schedule, start, Duration::from_secs(60), |_| true), 6);
        let outcome = &schedule.outcomes()[&addr(1)];
        assert_eq!((outcome.lost, outcome.silent, outcome.rtt), (0, 0, Some(Duration::from_millis(10))));
    }

    #[test]
    fn a_suspect_is_asked_at_once_and_its_silence_is_dated_from_the_first_unanswered_request() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE);
        schedule.retarget(&[target(1, false)], start);
        drive(&mut schedule, start, Duration::from_secs(1), |_| true);
        let died = start + Duration::from_secs(2);
        schedule.retarget(&[target(1, true)], died);
        assert_eq!(schedule.next_wake(died), died);
        drive(&mut schedule, died, Duration::from_secs(3), |_| false);
        let outcome = &schedule.outcomes()[&addr(1)];
        assert!(outcome.silent >= 4, "{outcome:?}");
        assert_eq!(outcome.silent_since, Some(died));
    }

    #[test]
    fn one_answer_ends_the_silence() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE);
        schedule.retarget(&[target(1, true)], start);
        drive(&mut schedule, start, Duration::from_secs(5), |_| false);
        drive(&mut schedule, start + Duration::from_secs(5), Duration::from_secs(1), |_| true);
        let outcome = &schedule.outcomes()[&addr(1)];
        assert_eq!((outcome.silent, outcome.silent_since), (0, None));
        assert!(outcome.lost > 0);
    }

    #[test]
    fn late_and_foreign_answers_are_ignored() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE);
        schedule.retarget(&[target(1, true)], start);
        let [request] = schedule.due(start)[..] else { panic!("one request") };
        assert!(!schedule.answered(addr(2), request.seq, start));
        assert!(!schedule.answered(addr(1), request.seq.wrapping_add(1), start));
        schedule.due(start + Duration::from_secs(2));
        assert!(!schedule.answered(addr(1), request.seq, start + Duration::from_secs(2)), "overdue");
    }

    #[test]
    fn what_is_known_of_a_target_survives_a_new_list() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE);
        schedule.retarget(&[target(1, false), target(2, false)], start);
        drive(&mut schedule, start, Duration::from_secs(15), |_| true);
        let before = schedule.outcomes()[&addr(1)].clone();
        schedule.retarget(&[target(1, false), target(3, false)], start + Duration::from_secs(15));
        assert_eq!(schedule.outcomes()[&addr(1)], before);
        assert!(!schedule.outcomes().contains_key(&addr(2)));
    }
}
