//! `weft bench overlay`: the ways between pods compared, and the control plane timed.
//!
//! All paths stand at the same time. A round measures every metric on every path, metric by metric,
//! so that what is compared is seconds apart; the order of the paths rotates from round to round.
//! Nothing is dropped: a measurement that fails is repeated once, which is said, and ends the bench if
//! it fails again.

mod control;
pub mod path;
pub mod regime;
mod stage;
pub mod verdict;
pub mod wiring;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use weft_lab::LabError;

use crate::report::{Machine, Report, today};
use crate::stats::{median, percentile};
use crate::traffic::{Cores, Ends, Flow, connections_per_second, packets_per_second, round_trips};
use crate::{BenchError, cpu};
use path::Path;
use regime::Regime;
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
    /// True once the bench should end without results.
    fn wants_out(&self) -> bool;
}

/// Measures. What was set up is removed however it ends.
pub fn run(options: &Options, audience: &dyn Audience) -> Result<Report, BenchError> {
    let mut report = Report {
        bench: "overlay".into(),
        machine: Machine::here(),
        commit: options.commit.clone(),
        date: today(),
        results: vec![],
    };
    if !options.regimes.is_empty() {
        traffic(options, &paths(options, audience)?, &mut report, audience)?;
    }
    if options.control {
        control::run(options, &mut report, audience)?;
    }
    sort(&mut report);
    Ok(report)
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

fn traffic(
    options: &Options,
    paths: &[Path],
    report: &mut Report,
    audience: &dyn Audience,
) -> Result<(), BenchError> {
    let cores = Cores::here()?;
    let stage = Stage::raise(options, paths, cores, audience)?;
    let ends: Vec<&Ends> = stage.pairs.iter().map(|pair| &pair.ends).collect();
    // The regimes that cannot be taken back to the last bit come last.
    let mut regimes = options.regimes.clone();
    regimes.sort_by_key(|regime| match regime {
        Regime::Default => 0,
        Regime::Shaped => 1,
        Regime::NoTso => 2,
        Regime::NoOffload => 3,
    });
    let mut others = vec![];
    for regime in regimes {
        let set = regime.begin(&stage.lab, &ends)?;
        audience.note(&format!("{regime}: {set}"));
        let sheet = Sheet { regime, cores, quick: options.quick, audience };
        for round in 0..rounds(options.quick) {
            others.extend(sheet.round(round, &stage.pairs, report)?);
        }
        regime.end(&stage.lab)?;
    }
    audience.note(&format!(
        "other programs used {:.2} of {} processors in the median TCP measurement, {:.2} in the worst",
        median(&others),
        report.machine.cpus,
        percentile(&others, 1.0),
    ));
    drop(stage.pairs); // servers first: they are nobody's leftovers
    Ok(stage.lab.down()?)
}

fn rounds(quick: bool) -> usize {
    if quick { QUICK_ROUNDS } else { ROUNDS }
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    Tcp(u8),
    Udp,
    Packets,
    Connections,
    RoundTrips,
}

impl Metric {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp(1) => "tcp_1_gbps",
            Self::Tcp(_) => "tcp_8_gbps",
            Self::Udp => "udp_gbps",
            Self::Packets => "pps",
            Self::Connections => "cps",
            Self::RoundTrips => "rr_p50_us",
        }
    }

    /// What is measured in a regime. Offloads and shaping leave round trips and connections as they
    /// are, and a full link says all in one figure, its cost.
    const fn of(regime: Regime, quick: bool) -> &'static [Self] {
        match (regime, quick) {
            (Regime::Default, false) => {
                &[Self::Tcp(1), Self::Tcp(8), Self::Udp, Self::Packets, Self::Connections, Self::RoundTrips]
            }
            (Regime::Default, true) => &[Self::Tcp(1), Self::Packets, Self::Connections, Self::RoundTrips],
            (Regime::NoOffload | Regime::NoTso, false) => &[Self::Tcp(1), Self::Tcp(8), Self::Packets],
            (Regime::Shaped, _) | (Regime::NoOffload | Regime::NoTso, true) => &[Self::Tcp(1)],
        }
    }
}

/// A result: its metric, unit and value.
type Sample = (&'static str, &'static str, f64);

/// How the rounds of one regime are measured.
struct Sheet<'a> {
    regime: Regime,
    cores: Cores,
    quick: bool,
    audience: &'a dyn Audience,
}

impl Sheet<'_> {
    /// Every metric on every path. Returns how many processors others used, measurement by measurement.
    fn round(&self, round: usize, pairs: &[Pair], report: &mut Report) -> Result<Vec<f64>, BenchError> {
        let mut others = vec![];
        for metric in Metric::of(self.regime, self.quick) {
            for place in 0..pairs.len() {
                let pair = &pairs[(place + round) % pairs.len()];
                go_on(self.audience)?;
                let (regime, path) = (self.regime, pair.path);
                let of = rounds(self.quick);
                self.audience.step(&format!(
                    "{regime}, round {} of {of}: {} on {path}",
                    round + 1,
                    metric.name()
                ));
                let samples = self.repeated(pair, *metric, &mut others)?;
                for (name, unit, value) in samples {
                    report.sample((regime.name(), path.name(), name, unit), 1, value);
                }
            }
        }
        Ok(others)
    }

    fn repeated(
        &self,
        pair: &Pair,
        metric: Metric,
        others: &mut Vec<f64>,
    ) -> Result<Vec<Sample>, BenchError> {
        let (regime, path) = (self.regime.name(), pair.path.name());
        self.measure(pair, metric, others).or_else(|error| {
            self.audience.note(&format!("{metric:?} on {path} in {regime} is repeated: {}", chain(&error)));
            self.measure(pair, metric, others).map_err(|error| BenchError::Measurement {
                metric: metric.name(),
                path,
                regime,
                source: error.into(),
            })
        })
    }

    fn measure(&self, pair: &Pair, metric: Metric, others: &mut Vec<f64>) -> Result<Vec<Sample>, BenchError> {
        let (ends, cores) = (&pair.ends, self.cores);
        let short = Duration::from_millis(if self.quick { 250 } else { 400 });
        match metric {
            Metric::Tcp(streams) => {
                let (started, machine, watched) = (Instant::now(), cpu::of_machine(), pair.watched.used());
                let bulk = pair.iperf.run(ends, cores, Flow::Tcp(streams), 1)?;
                let spent = bulk.cpu_s + pair.watched.used() - watched;
                let elsewhere = cpu::of_machine() - machine - spent;
                others.push((elsewhere / started.elapsed().as_secs_f64()).max(0.0));
                let cost = ("cpu_s_per_gb", "s", spent / bulk.gigabytes);
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
