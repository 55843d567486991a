//! When to ask whom, and what an answer or a silence means. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Between two requests to a target nobody doubts, while there are at most a thousand.
    pub calm: Duration,
    /// Between two requests to any of these on average, at least: a hundred small packets a second are
    /// enough, however many peers there are.
    pub gap: Duration,
    /// Between two requests to a suspect.
    pub hasty: Duration,
    /// How long an answer may take.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            calm: Duration::from_secs(10),
            gap: Duration::from_millis(10),
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

/// Calm requests go out, and silences are noticed, on this beat, many together: a process that is woken
/// for each of a thousand peers does nothing else.
const BEAT: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Entry {
    suspect: bool,
    next: Instant,
    /// Under which time it stands in the queue.
    queued: Instant,
    outstanding: BTreeMap<u16, Instant>,
    outcome: Outcome,
}

/// All targets with what is outstanding.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    /// When the beat began.
    start: Instant,
    entries: BTreeMap<IpAddr, Entry>,
    /// Who is looked at when, each once.
    queue: BTreeSet<(Instant, IpAddr)>,
    /// Targets whose outcome changed since it was asked for.
    changed: BTreeSet<IpAddr>,
    seq: u16,
}

impl Schedule {
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            start: now,
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
            changed: BTreeSet::new(),
            seq: 0,
        }
    }

    /// Takes a new list of targets: what is known of those that stay is kept, those that became
    /// suspects are asked at once, new ones one after the other.
    pub(super) fn retarget(&mut self, targets: &[Target], now: Instant) {
        let wanted: BTreeMap<IpAddr, bool> =
            targets.iter().map(|target| (target.addr, target.suspect)).collect();
        for (addr, entry) in self.entries.extract_if(.., |addr, _| !wanted.contains_key(addr)) {
            self.queue.remove(&(entry.queued, addr));
            self.changed.insert(addr);
        }
        let mut place = 0;
        for (addr, suspect) in wanted {
            match self.entries.get_mut(&addr) {
                Some(entry) if entry.suspect == suspect => continue,
                Some(entry) => {
                    entry.suspect = suspect;
                    if suspect {
                        entry.next = now;
                    }
                }
                None => {
                    let offset = if suspect { Duration::ZERO } else { self.pace.gap * place };
                    place += u32::from(!suspect);
                    let next = now + offset;
                    let (outstanding, outcome) = (BTreeMap::new(), Outcome::default());
                    self.entries.insert(addr, Entry { suspect, next, queued: next, outstanding, outcome });
                    self.changed.insert(addr);
                }
            }
            self.queue(addr);
        }
    }

    /// Counts what is overdue and returns what to send now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Request> {
        let calm = self.calm();
        let mut requests = Vec::new();
        while let Some((_, addr)) = self.queue.first().copied().filter(|(at, _)| *at <= now) {
            self.queue.pop_first();
            let Some(entry) = self.entries.get_mut(&addr) else { continue };
            let overdue = |sent: &Instant| now.saturating_duration_since(*sent) >= self.pace.patience;
            for (_, sent) in entry.outstanding.extract_if(.., |_, sent| overdue(sent)) {
                self.changed.insert(addr);
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
                requests.push(Request { addr, seq: self.seq });
                entry.next = now + if entry.suspect { self.pace.hasty } else { calm };
            }
            self.queue(addr);
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
        self.changed.insert(from);
        self.queue(from);
        true
    }

    /// When [`Schedule::due`] has something to do again.
    pub(super) fn next_wake(&self, now: Instant) -> Instant {
        self.queue.first().map_or(now + self.pace.calm, |(at, _)| *at)
    }

    /// Brings what was known up to date. Whether a suspect is among what changed: somebody waits for that.
    pub(super) fn publish(&mut self, known: &mut BTreeMap<IpAddr, Outcome>) -> bool {
        let mut awaited = false;
        for addr in std::mem::take(&mut self.changed) {
            match self.entries.get(&addr) {
                Some(entry) => {
                    known.insert(addr, entry.outcome.clone());
                    awaited |= entry.suspect;
                }
                None => {
                    known.remove(&addr);
                }
            }
        }
        awaited
    }

    /// Between two requests to a calm target: with very many of them more than the usual.
    fn calm(&self) -> Duration {
        let all = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.pace.calm.max(self.pace.gap.saturating_mul(all))
    }

    /// Puts a target where it belongs in the queue: a suspect to the moment, others on the next beat.
    fn queue(&mut self, addr: IpAddr) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        self.queue.remove(&(entry.queued, addr));
        let overdue = entry.outstanding.values().map(|sent| *sent + self.pace.patience).min();
        let at = overdue.map_or(entry.next, |overdue| overdue.min(entry.next));
        entry.queued = if entry.suspect {
            at
        } else {
            let beats = at.saturating_duration_since(self.start).as_nanos().div_ceil(BEAT.as_nanos());
            self.start + BEAT * u32::try_from(beats).unwrap_or(u32::MAX)
        };
        self.queue.insert((entry.queued, addr));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        calm: Duration::from_secs(10),
        gap: Duration::from_millis(10),
        hasty: Duration::from_millis(400),
        patience: Duration::from_secs(1),
    };

    fn addr(last: u8) -> IpAddr {
        IpAddr::from([10, 42, last, 0])
    }

    fn target(last: u8, suspect: bool) -> Target {
        Target { addr: addr(last), suspect }
    }

    fn outcomes(schedule: &mut Schedule) -> BTreeMap<IpAddr, Outcome> {
        schedule.entries.iter().map(|(addr, entry)| (*addr, entry.outcome.clone())).collect()
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
        let mut schedule = Schedule::new(PACE, start);
        schedule.retarget(&[target(1, false)], start);
        assert_eq!(drive(&mut schedule, start, Duration::from_secs(60), |_| true), 6);
        let outcome = &outcomes(&mut schedule)[&addr(1)];
        assert_eq!((outcome.lost, outcome.silent, outcome.rtt), (0, 0, Some(Duration::from_millis(10))));
    }

    #[test]
    fn a_suspect_is_asked_at_once_and_its_silence_is_dated_from_the_first_unanswered_request() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE, start);
        schedule.retarget(&[target(1, false)], start);
        drive(&mut schedule, start, Duration::from_secs(1), |_| true);
        let died = start + Duration::from_secs(2);
        schedule.retarget(&[target(1, true)], died);
        assert_eq!(schedule.next_wake(died), died);
        drive(&mut schedule, died, Duration::from_secs(3), |_| false);
        let outcome = &outcomes(&mut schedule)[&addr(1)];
        assert!(outcome.silent >= 4, "{outcome:?}");
        assert_eq!(outcome.silent_since, Some(died));
    }

    #[test]
    fn one_answer_ends_the_silence() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE, start);
        schedule.retarget(&[target(1, true)], start);
        drive(&mut schedule, start, Duration::from_secs(5), |_| false);
        drive(&mut schedule, start + Duration::from_secs(5), Duration::from_secs(1), |_| true);
        let outcome = &outcomes(&mut schedule)[&addr(1)];
        assert_eq!((outcome.silent, outcome.silent_since), (0, None));
        assert!(outcome.lost > 0);
    }

    #[test]
    fn late_and_foreign_answers_are_ignored() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE, start);
        schedule.retarget(&[target(1, true)], start);
        let [request] = schedule.due(start)[..] else { panic!("one request") };
        assert!(!schedule.answered(addr(2), request.seq, start));
        assert!(!schedule.answered(addr(1), request.seq.wrapping_add(1), start));
        schedule.due(start + Duration::from_secs(2));
        assert!(!schedule.answered(addr(1), request.seq, start + Duration::from_secs(2)), "overdue");
    }

    #[test]
    fn a_thousand_calm_targets_are_asked_evenly_and_on_the_beat() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE, start);
        let targets: Vec<Target> = (0..2000u16)
            .map(|n| Target { addr: IpAddr::from([10, 42, (n >> 8) as u8, n as u8]), suspect: false })
            .collect();
        schedule.retarget(&targets, start);
        let (mut now, mut wakes) = (start, 0);
        while now < start + Duration::from_secs(60) {
            let sent = schedule.due(now).len();
            assert!(sent <= 20, "{sent} at once, {:?} after the start", now - start);
            now = schedule.next_wake(now).max(now + Duration::from_millis(1));
            wakes += 1;
        }
        assert!(wakes <= 600, "{wakes} wakes in a minute");
        let asked = outcomes(&mut schedule).values().map(|outcome| outcome.asked).max();
        assert_eq!(asked, Some(3), "twenty seconds apart");
    }

    #[test]
    fn only_what_changed_is_published_and_only_suspects_are_waited_for() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE, start);
        schedule.retarget(&[target(1, false), target(2, true)], start);
        let mut known = BTreeMap::new();
        assert!(schedule.publish(&mut known));
        assert_eq!(known.len(), 2);
        for request in schedule.due(start) {
            let late = start + Duration::from_millis(5);
            assert!(schedule.answered(request.addr, request.seq, late));
            let suspect = request.addr == addr(2);
            assert_eq!(schedule.publish(&mut known), suspect);
        }
        assert!(known.values().all(|outcome| outcome.rtt.is_some()));
        schedule.retarget(&[target(2, true)], start);
        assert!(!schedule.publish(&mut known));
        assert_eq!(known.keys().collect::<Vec<_>>(), [&addr(2)]);
        assert!(!schedule.publish(&mut known), "once");
    }

    #[test]
    fn what_is_known_of_a_target_survives_a_new_list() {
        let start = Instant::now();
        let mut schedule = Schedule::new(PACE, start);
        schedule.retarget(&[target(1, false), target(2, false)], start);
        drive(&mut schedule, start, Duration::from_secs(15), |_| true);
        let before = outcomes(&mut schedule)[&addr(1)].clone();
        schedule.retarget(&[target(1, false), target(3, false)], start + Duration::from_secs(15));
        assert_eq!(outcomes(&mut schedule)[&addr(1)], before);
        assert!(!outcomes(&mut schedule).contains_key(&addr(2)));
    }
}
