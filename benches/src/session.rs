//! What every bench has in common: who waits for it, its rounds, and what it came to.
//!
//! What is compared stands at the same time. A round measures every metric on every contestant, metric
//! by metric, so that what is compared is seconds apart; the order of the contestants rotates from round
//! to round. No sample is dropped: a measurement that fails is repeated once, which is said. If it fails
//! again, its contestant is out for the rest of the rounds, and the others go on. So the nth samples of
//! two contestants are always of the same round.

use std::time::{Duration, Instant};

use weft_lab::LabError;

use crate::BenchError;
use crate::report::{Machine, Report, today};
use crate::stats::{median, percentile};

/// How many rounds a claim of a ratio needs.
pub const ROUNDS: usize = 15;
/// How many short rounds give a first idea.
pub const QUICK_ROUNDS: usize = 5;

/// Who waits for the results.
pub trait Audience {
    /// What is being done at the moment. The next step replaces it.
    fn step(&self, what: &str);
    /// Something that should be known when the figures are read.
    fn note(&self, what: &str);
    /// True once the bench should end with what it has.
    fn wants_out(&self) -> bool;
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was measured.
    pub report: Report,
    /// What could not be, and why.
    pub failures: Vec<String>,
    /// It was ended before its time.
    pub interrupted: bool,
}

/// A result: its metric, unit and value.
pub(crate) type Sample = (&'static str, &'static str, f64);

/// Something that is measured and compared with others.
pub(crate) trait Contestant {
    /// Its path's name in results.
    fn path(&self) -> &'static str;

    /// How many of what is scaled it has; 1 if nothing is.
    fn scale(&self) -> u64 {
        1
    }

    /// As it is called in a message.
    fn title(&self) -> String {
        match self.scale() {
            1 => self.path().to_owned(),
            scale => format!("{} x{scale}", self.path()),
        }
    }
}

/// Some rounds: who takes part, and in what.
pub(crate) struct Rounds<'a, C, M> {
    /// The regime's name in results.
    pub(crate) regime: &'static str,
    pub(crate) contestants: &'a [C],
    pub(crate) metrics: &'a [M],
    /// A metric's name.
    pub(crate) name: fn(M) -> &'static str,
    pub(crate) rounds: usize,
    /// How long one of them is expected to take.
    pub(crate) one: Duration,
}

/// A bench under way.
pub(crate) struct Session<'a> {
    pub(crate) audience: &'a dyn Audience,
    pub(crate) outcome: Outcome,
    started: Instant,
    /// How long everything was expected to take, and what is done of that.
    all: Duration,
    done: Duration,
}

impl<'a> Session<'a> {
    /// Begins, and says how long it will take.
    pub(crate) fn begin(bench: &str, commit: &str, all: Duration, audience: &'a dyn Audience) -> Self {
        audience.note(&format!("this takes about {}", about(all)));
        let report = Report {
            bench: bench.to_owned(),
            machine: Machine::here(),
            commit: commit.to_owned(),
            date: today(),
            results: vec![],
        };
        let outcome = Outcome { report, failures: vec![], interrupted: false };
        Self { audience, outcome, started: Instant::now(), all, done: Duration::ZERO }
    }

    /// Tells of what could not be done, or takes it that the bench is to end.
    pub(crate) fn note_failure(&mut self, what: &str, ended: Result<(), BenchError>) {
        match ended {
            Ok(()) => {}
            Err(BenchError::Interrupted) => self.outcome.interrupted = true,
            Err(error) => {
                let line = format!("{what}: {}", chain(&error));
                self.audience.note(&line);
                self.outcome.failures.push(line);
            }
        }
    }

    /// What was done so far took as long as was expected, for all that is known.
    pub(crate) fn as_expected_so_far(&mut self) {
        self.done = self.started.elapsed();
    }

    /// At the pace so far.
    pub(crate) fn left(&self) -> Duration {
        left(self.all, self.done, self.started.elapsed())
    }

    /// Says what other programs used of the machine, in processors, while TCP was measured.
    pub(crate) fn note_others(&self, used: &[f64]) {
        if used.is_empty() {
            return;
        }
        self.audience.note(&format!(
            "other programs used {:.2} of {} processors in the median TCP measurement, {:.2} in the worst",
            median(used),
            self.outcome.report.machine.cpus,
            percentile(used, 1.0),
        ));
    }

    /// All rounds. A contestant that fails is out for the rest of them.
    pub(crate) fn rounds<C: Contestant, M: Copy>(
        &mut self,
        rounds: &Rounds<'_, C, M>,
        mut measure: impl FnMut(&C, M) -> Result<Vec<Sample>, BenchError>,
    ) -> Result<(), BenchError> {
        let (regime, of, begun) = (rounds.regime, rounds.rounds, Instant::now());
        let mut fit: Vec<&C> = rounds.contestants.iter().collect();
        for round in 0..of {
            for metric in rounds.metrics {
                let name = (rounds.name)(*metric);
                let first = round % fit.len().max(1);
                let order: Vec<&C> = fit[first..].iter().chain(&fit[..first]).copied().collect();
                for contestant in order {
                    go_on(self.audience)?;
                    let (title, number) = (contestant.title(), round + 1);
                    self.audience.step(&format!(
                        "{} left; {regime}, round {number} of {of}: {name} on {title}",
                        about(self.left()),
                    ));
                    let measured = measure(contestant, *metric).or_else(|error| {
                        let why = chain(&error);
                        self.audience.note(&format!("{name} on {title} in {regime} is repeated: {why}"));
                        measure(contestant, *metric)
                    });
                    match measured {
                        Ok(samples) => {
                            for (name, unit, value) in samples {
                                let series = (regime, contestant.path(), name, unit);
                                self.outcome.report.sample(series, contestant.scale(), value);
                            }
                        }
                        Err(error) => {
                            let what = format!(
                                "{name} on {title} in {regime}, round {number}, and all that was to follow there"
                            );
                            self.note_failure(&what, Err(error));
                            fit.retain(|fit| !std::ptr::eq(*fit, contestant));
                        }
                    }
                }
            }
            self.done += rounds.one;
        }
        self.audience.note(&format!(
            "{regime}: {of} rounds in {} s; about {} left",
            begun.elapsed().as_secs(),
            about(self.left())
        ));
        Ok(())
    }
}

/// How many rounds there are.
pub(crate) fn rounds(quick: bool) -> usize {
    if quick { QUICK_ROUNDS } else { ROUNDS }
}

/// Ends the bench if that is wished.
pub(crate) fn go_on(audience: &dyn Audience) -> Result<(), BenchError> {
    if audience.wants_out() { Err(BenchError::Interrupted) } else { Ok(()) }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &BenchError) -> String {
    let cause = match error {
        BenchError::Lab(error) => return LabError::chain(error),
        BenchError::Io { source, .. } => Some(source.to_string()),
        _ => None,
    };
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Whether a program can be started by its name.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// What is left, when of `all` so much is `done` and it took so long: at the pace so far.
fn left(all: Duration, done: Duration, took: Duration) -> Duration {
    let rest = all.saturating_sub(done);
    if done.is_zero() { rest } else { rest.mul_f64(took.as_secs_f64() / done.as_secs_f64()) }
}

/// A time that is only known roughly: `50 s`, `3 min`.
pub(crate) fn about(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 100 => format!("{} s", seconds.div_ceil(10) * 10),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

/// Paths and rounds are few.
pub(crate) fn count(few: usize) -> u32 {
    u32::try_from(few).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn what_is_left_follows_the_pace() {
        let s = Duration::from_secs;
        let table = [
            ("at the start", (s(100), s(0), s(0)), s(100)),
            ("as expected", (s(100), s(40), s(40)), s(60)),
            ("half as fast", (s(100), s(40), s(80)), s(120)),
            ("over", (s(100), s(110), s(90)), s(0)),
        ];
        for (case, (all, done, took), expected) in table {
            assert_eq!(left(all, done, took), expected, "{case}");
        }
    }

    #[test]
    fn rough_times_are_said_roughly() {
        let table = [(0, "0 s"), (41, "50 s"), (99, "100 s"), (100, "2 min"), (1229, "20 min")];
        for (seconds, said) in table {
            assert_eq!(about(Duration::from_secs(seconds)), said);
        }
    }

    struct Patient {
        notes: RefCell<Vec<String>>,
        leaves_after: RefCell<usize>,
    }

    impl Audience for Patient {
        fn step(&self, _: &str) {
            *self.leaves_after.borrow_mut() -= 1;
        }
        fn note(&self, what: &str) {
            self.notes.borrow_mut().push(what.to_owned());
        }
        fn wants_out(&self) -> bool {
            *self.leaves_after.borrow() == 0
        }
    }

    impl Contestant for &'static str {
        fn path(&self) -> &'static str {
            self
        }
    }

    /// Whom each of three rounds measures, in order; `b` fails in the second one for good, `c` once.
    fn run(leaves_after: usize) -> (Outcome, Vec<String>, Vec<&'static str>) {
        let patient = Patient { notes: RefCell::default(), leaves_after: RefCell::new(leaves_after) };
        let mut session = Session::begin("test", "abc", Duration::from_secs(3), &patient);
        let rounds = Rounds {
            regime: "default",
            contestants: &["a", "b", "c"],
            metrics: &["m"],
            name: |metric| metric,
            rounds: 3,
            one: Duration::from_secs(1),
        };
        let mut order = vec![];
        let ended = session.rounds(&rounds, |path, metric| {
            order.push(*path);
            let times = order.iter().filter(|seen| *seen == path).count();
            match (*path, times) {
                ("b", 2 | 3) | ("c", 2) => Err(BenchError::Silent { what: format!("{path} is mute") }),
                _ => Ok(vec![(metric, "1", 1.0)]),
            }
        });
        session.note_failure("rounds", ended);
        (session.outcome, patient.notes.into_inner(), order)
    }

    #[test]
    fn who_fails_twice_is_out_and_the_order_rotates() {
        let (outcome, notes, order) = run(100);
        assert_eq!(order, ["a", "b", "c", "b", "b", "c", "c", "a", "a", "c"]);
        let expected = "m on b in default, round 2, and all that was to follow there: b is mute";
        assert_eq!(outcome.failures, [expected]);
        assert!(notes.contains(&"m on c in default is repeated: c is mute".to_owned()), "{notes:?}");
        let counts = ["a", "b", "c"].map(|path| outcome.report.samples("default", path, "m").len());
        assert_eq!(counts, [3, 1, 3]);
        assert!(!outcome.interrupted);
    }

    #[test]
    fn who_wants_out_keeps_what_was_measured() {
        let (outcome, _, order) = run(2);
        assert_eq!((order.len(), outcome.interrupted, outcome.failures.len()), (2, true, 0));
        assert_eq!(outcome.report.results.len(), 2);
    }
}
