//! `weft bench overlay`: the ways between pods compared, and the control plane timed.
//!
//! All paths stand at the same time. A round measures every metric on every path, metric by metric,
//! so that what is compared is seconds apart; the order of the paths rotates from round to round.
//! No sample is dropped: a measurement that fails is repeated once, which is said. If it fails again,
//! its path is out for the rest of the regime, and the others go on. So the nth samples of two paths
//! are always of the same round.

mod control;
pub mod path;
pub mod regime;
mod schedule;
mod stage;
pub mod verdict;
pub mod wiring;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use weft_lab::LabError;

use crate::BenchError;
use crate::cpu::Meter;
use crate::report::{Machine, Report, today};
use crate::stats::{median, percentile};
use crate::traffic::{Cores, Ends, Flow, connections_per_second, packets_per_second, round_trips};
use path::Path;
use regime::Regime;
use schedule::Metric;
use stage::{Pair, Stage};

/// How many rounds a claim of a ratio needs.
pub const ROUNDS: usize = 15;
/// How many short rounds give a first idea.
pub const QUICK_ROUNDS: usize = 5;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary that hosts run.
    pub weft: PathBuf,
    /// Which weft that is.
    pub commit: String,
    /// Five short rounds instead of fifteen.
    pub quick: bool,
    /// The paths; none given are all that can be had.
    pub only: Vec<Path>,
    /// The regimes; none given are the usual ones.
    pub regimes: Vec<Regime>,
    /// The control plane too.
    pub control: bool,
}

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

/// Measures. What was set up is removed however it ends, and what was measured is kept.
///
/// # Errors
/// When there is nothing to measure with: a path's program is missing, or the machine has no processor
/// that may be used.
pub fn run(options: &Options, audience: &dyn Audience) -> Result<Outcome, BenchError> {
    let paths = paths(options, audience)?;
    let report = Report {
        bench: "overlay".into(),
        machine: Machine::here(),
        commit: options.commit.clone(),
        date: today(),
        results: vec![],
    };
    let mut run = Run {
        options,
        audience,
        cores: Cores::here()?,
        started: Instant::now(),
        all: schedule::all(options, paths.len()),
        done: Duration::ZERO,
        outcome: Outcome { report, failures: vec![], interrupted: false },
    };
    audience.note(&format!("this takes about {}", schedule::about(run.all)));
    if !options.regimes.is_empty() {
        let ended = run.traffic(&paths);
        run.note_failure("traffic", ended);
    }
    if options.control && !run.outcome.interrupted {
        let ended = control::run(options, &mut run.outcome.report, audience);
        run.note_failure("control plane", ended);
    }
    sort(&mut run.outcome.report);
    Ok(run.outcome)
}

/// The paths that were asked for, or all that can be had; what is left out is said.
fn paths(options: &Options, audience: &dyn Audience) -> Result<Vec<Path>, BenchError> {
    let mut paths = vec![];
    for path in Path::ALL {
        let asked = options.only.contains(&path);
        if !asked && !options.only.is_empty() {
            continue;
        }
        match path.needs().filter(|program| !on_path(program)) {
            None => paths.push(path),
            Some(program) if asked => return Err(BenchError::Missing { path: path.name(), program }),
            Some(program) => audience.note(&format!("{path} is left out: there is no `{program}` on PATH")),
        }
    }
    Ok(paths)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn rounds(quick: bool) -> usize {
    if quick { QUICK_ROUNDS } else { ROUNDS }
}

/// A result: its metric, unit and value.
type Sample = (&'static str, &'static str, f64);

/// A bench under way.
struct Run<'a> {
    options: &'a Options,
    audience: &'a dyn Audience,
    cores: Cores,
    started: Instant,
    /// How long everything was expected to take, and what is done of that.
    all: Duration,
    done: Duration,
    outcome: Outcome,
}

impl Run<'_> {
    fn note_failure(&mut self, what: &str, ended: Result<(), BenchError>) {
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

    fn traffic(&mut self, paths: &[Path]) -> Result<(), BenchError> {
        let (stage, failed) = Stage::raise(self.options, paths, self.cores, self.audience)?;
        for (path, error) in failed {
            self.note_failure(path.name(), Err(error));
        }
        let ends: Vec<&Ends> = stage.pairs.iter().map(|pair| &pair.ends).collect();
        // The regimes that cannot be taken back to the last bit come last.
        let mut regimes = self.options.regimes.clone();
        regimes.sort_by_key(|regime| match regime {
            Regime::Default => 0,
            Regime::Shaped => 1,
            Regime::NoTso => 2,
            Regime::NoOffload => 3,
        });
        self.done = self.started.elapsed();
        let mut others = vec![];
        for regime in regimes {
            let set = match regime.begin(&stage.lab, &ends) {
                Ok(set) => set,
                Err(error) => {
                    self.note_failure(regime.name(), Err(error));
                    continue;
                }
            };
            self.audience.note(&format!("{regime}: {set}"));
            self.regime(regime, &stage.pairs, &mut others)?;
            regime.end(&stage.lab)?;
        }
        self.audience.note(&format!(
            "other programs used {:.2} of {} processors in the median TCP measurement, {:.2} in the worst",
            median(&others),
            self.outcome.report.machine.cpus,
            percentile(&others, 1.0),
        ));
        drop(stage.pairs); // servers first: they are nobody's leftovers
        Ok(stage.lab.down()?)
    }

    /// All rounds of a regime. A path that fails is out for the rest of them.
    fn regime(&mut self, regime: Regime, pairs: &[Pair], others: &mut Vec<f64>) -> Result<(), BenchError> {
        let mut fit: Vec<&Pair> = pairs.iter().collect();
        let (of, begun) = (rounds(self.options.quick), Instant::now());
        for round in 0..of {
            for metric in Metric::of(regime, self.options.quick) {
                let first = round % fit.len().max(1);
                let order: Vec<&Pair> = fit[first..].iter().chain(&fit[..first]).copied().collect();
                for pair in order {
                    go_on(self.audience)?;
                    self.audience.step(&format!(
                        "{} left; {regime}, round {} of {of}: {} on {}",
                        schedule::about(self.left()),
                        round + 1,
                        metric.name(),
                        pair.path,
                    ));
                    match self.repeated(regime, pair, *metric, others) {
                        Ok(samples) => {
                            for (name, unit, value) in samples {
                                let series = (regime.name(), pair.path.name(), name, unit);
                                self.outcome.report.sample(series, 1, value);
                            }
                        }
                        Err(error) => {
                            let what = format!(
                                "{} on {} in {regime}, round {}, and all that was to follow there",
                                metric.name(),
                                pair.path,
                                round + 1
                            );
                            self.note_failure(&what, Err(error));
                            fit.retain(|fit| fit.path != pair.path);
                        }
                    }
                }
            }
            self.done += schedule::round(regime, pairs.len(), self.options.quick);
        }
        self.audience.note(&format!(
            "{regime}: {of} rounds in {} s; about {} left",
            begun.elapsed().as_secs(),
            schedule::about(self.left())
        ));
        Ok(())
    }

    fn left(&self) -> Duration {
        schedule::left(self.all, self.done, self.started.elapsed())
    }

    fn repeated(
        &self,
        regime: Regime,
        pair: &Pair,
        metric: Metric,
        others: &mut Vec<f64>,
    ) -> Result<Vec<Sample>, BenchError> {
        self.measure(pair, metric, others).or_else(|error| {
            let (name, path) = (metric.name(), pair.path);
            self.audience.note(&format!("{name} on {path} in {regime} is repeated: {}", chain(&error)));
            self.measure(pair, metric, others)
        })
    }

    fn measure(&self, pair: &Pair, metric: Metric, others: &mut Vec<f64>) -> Result<Vec<Sample>, BenchError> {
        let (ends, cores) = (&pair.ends, self.cores);
        let short = Metric::short(self.options.quick);
        match metric {
            Metric::Tcp(streams) => {
                let (started, meter) = (Instant::now(), Meter::start(&pair.watched));
                let bulk = pair.iperf.run(ends, cores, Flow::Tcp(streams), 1)?;
                let cost = meter.stop(bulk.cpu_s);
                others.push(cost.others / started.elapsed().as_secs_f64());
                let cost = ("cpu_s_per_gb", "s", cost.path / bulk.gigabytes);
                let rate = (metric.name(), "Gbit/s", bulk.gbps);
                Ok(if streams == 1 { vec![rate, cost] } else { vec![rate] })
            }
            Metric::Udp => {
                Ok(vec![(metric.name(), "Gbit/s", pair.iperf.run(ends, cores, Flow::Udp, 1)?.gbps)])
            }
            Metric::Packets => Ok(vec![(metric.name(), "1/s", packets_per_second(ends, cores, short)?)]),
            Metric::Connections => {
                Ok(vec![(metric.name(), "1/s", connections_per_second(ends, cores, short)?)])
            }
            Metric::RoundTrips => {
                let times = round_trips(ends, cores.client, short)?;
                Ok(vec![
                    ("rr_p50_us", "us", percentile(&times, 0.5)),
                    ("rr_p99_us", "us", percentile(&times, 0.99)),
                ])
            }
        }
    }
}

/// Ends the bench if that is wished.
fn go_on(audience: &dyn Audience) -> Result<(), BenchError> {
    if audience.wants_out() { Err(BenchError::Interrupted) } else { Ok(()) }
}

/// An error and its causes in one line.
fn chain(error: &BenchError) -> String {
    let cause = match error {
        BenchError::Lab(error) => return LabError::chain(error),
        BenchError::Io { source, .. } => Some(source.to_string()),
        _ => None,
    };
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Regimes and paths in the order of their lists, whatever order they were measured in.
fn sort(report: &mut Report) {
    let regime = |name: &str| Regime::ALL.iter().position(|regime| regime.name() == name);
    let path = |name: &str| Path::ALL.iter().position(|path| path.name() == name);
    let rank = |position: Option<usize>| position.unwrap_or(usize::MAX);
    report
        .results
        .sort_by_key(|series| (rank(regime(&series.regime)), rank(path(&series.path)), series.scale));
}
