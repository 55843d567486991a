//! `weft bench overlay`: the ways between pods compared, and the control plane timed.
//!
//! All paths stand at the same time; [`crate::session`] says how their rounds are run.

mod control;
pub mod path;
mod schedule;
mod stage;
pub mod verdict;
pub mod wiring;

use std::path::PathBuf;
use std::time::Instant;

use crate::BenchError;
use crate::cpu::Meter;
use crate::regime::Regime;
use crate::report::Report;
use crate::session::{Audience, Outcome, Rounds, Sample, Session, on_path, rounds};
use crate::stats::percentile;
use crate::traffic::{Cores, Ends, Flow, connections_per_second, packets_per_second, round_trips};
use path::Path;
use schedule::Metric;
use stage::{Pair, Stage};

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

/// Measures. What was set up is removed however it ends, and what was measured is kept.
///
/// # Errors
/// When there is nothing to measure with: a path's program is missing, or the machine has no processor
/// that may be used.
pub fn run(options: &Options, audience: &dyn Audience) -> Result<Outcome, BenchError> {
    let paths = paths(options, audience)?;
    let all = schedule::all(options, paths.len());
    let cores = Cores::here()?;
    let session = Session::begin("overlay", &options.commit, all, audience);
    let mut run = Run { options, cores, session };
    if !options.regimes.is_empty() {
        let ended = run.traffic(&paths);
        run.session.note_failure("traffic", ended);
    }
    if options.control && !run.session.outcome.interrupted {
        let ended = control::run(options, &mut run.session.outcome.report, audience);
        run.session.note_failure("control plane", ended);
    }
    let mut outcome = run.session.outcome;
    sort(&mut outcome.report);
    Ok(outcome)
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

/// A bench under way.
struct Run<'a> {
    options: &'a Options,
    cores: Cores,
    session: Session<'a>,
}

impl Run<'_> {
    fn traffic(&mut self, paths: &[Path]) -> Result<(), BenchError> {
        let (stage, failed) = Stage::raise(self.options, paths, self.cores, self.session.audience)?;
        for (path, error) in failed {
            self.session.note_failure(path.name(), Err(error));
        }
        let ends: Vec<&Ends> = stage.pairs.iter().map(|pair| &pair.ends).collect();
        let mut regimes = self.options.regimes.clone();
        regimes.sort_by_key(|regime| regime.turn());
        self.session.as_expected_so_far();
        let mut others = vec![];
        for regime in regimes {
            let set = match regime.begin(&stage.lab, &ends) {
                Ok(set) => set,
                Err(error) => {
                    self.session.note_failure(regime.name(), Err(error));
                    continue;
                }
            };
            let tunnels = "VXLAN and TUN links as their owners made them";
            self.session.audience.note(&format!("{regime}: {set}; {tunnels}"));
            self.regime(regime, &stage.pairs, &mut others)?;
            regime.end(&stage.lab)?;
        }
        self.session.note_others(&others);
        drop(stage.pairs); // servers first: they are nobody's leftovers
        Ok(stage.lab.down()?)
    }

    /// All rounds of a regime.
    fn regime(&mut self, regime: Regime, pairs: &[Pair], others: &mut Vec<f64>) -> Result<(), BenchError> {
        let (quick, cores) = (self.options.quick, self.cores);
        let contest = Rounds {
            regime: regime.name(),
            contestants: pairs,
            metrics: Metric::of(regime, quick),
            name: Metric::name,
            rounds: rounds(quick),
            one: schedule::round(regime, pairs.len(), quick),
        };
        self.session.rounds(&contest, |pair, metric| measure(pair, metric, cores, quick, others))
    }
}

fn measure(
    pair: &Pair,
    metric: Metric,
    cores: Cores,
    quick: bool,
    others: &mut Vec<f64>,
) -> Result<Vec<Sample>, BenchError> {
    let (ends, short) = (&pair.ends, Metric::short(quick));
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
        Metric::Udp => Ok(vec![(metric.name(), "Gbit/s", pair.iperf.run(ends, cores, Flow::Udp, 1)?.gbps)]),
        Metric::Packets => Ok(vec![(metric.name(), "1/s", packets_per_second(ends, cores, short)?)]),
        Metric::Connections => Ok(vec![(metric.name(), "1/s", connections_per_second(ends, cores, short)?)]),
        Metric::RoundTrips => {
            let times = round_trips(ends, cores.client, short)?;
            Ok(vec![
                ("rr_p50_us", "us", percentile(&times, 0.5)),
                ("rr_p99_us", "us", percentile(&times, 0.99)),
            ])
        }
    }
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
