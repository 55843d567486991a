//! `weft bench proxy`: the ways to an endpoint compared, and the programming of services timed.
//!
//! Every path is on a host of its own, with a client and a server that are pods there; [`crate::session`]
//! says how the rounds are run. Beside bulk traffic, which crosses hosts with a thousand services, the
//! first packet of a connection is timed on hosts with few services and with many.

mod apiserver;
mod control;
mod layout;
pub mod path;
mod schedule;
mod services;
mod stage;
pub mod verdict;
mod wiring;

use std::path::PathBuf;
use std::time::Instant;

use crate::BenchError;
use crate::cpu::Meter;
use crate::regime::Regime;
use crate::report::Report;
use crate::session::{Audience, Outcome, Rounds, Sample, Session, on_path, rounds};
use crate::stats::percentile;
use crate::traffic::{Cores, Ends, Flow, connections_per_second, round_trips};
use path::Path;
use schedule::Metric;
use stage::{Bulk, Stage};

/// The regimes of this bench: there is no link between hosts that could be shaped.
pub const REGIMES: [Regime; 3] = [Regime::Default, Regime::NoOffload, Regime::NoTso];

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
    /// In which regimes bulk traffic is measured.
    pub regimes: Vec<Regime>,
    /// First packets too.
    pub first: bool,
    /// The programming of services too.
    pub control: bool,
    /// Leaves out first packets and programming with more services than this.
    pub up_to: Option<u32>,
}

impl Options {
    /// At how many services a path's first packets are timed.
    fn first_at(&self, path: Path) -> impl Iterator<Item = u32> {
        let scales = if self.first { path.first_at(self.quick) } else { &[] };
        scales.iter().copied().filter(|scale| self.takes(*scale))
    }

    /// At how many services its programming is timed.
    fn programmed_at(&self, path: Path) -> impl Iterator<Item = u32> {
        let scales = if self.control { path.programmed_at(self.quick) } else { &[] };
        scales.iter().copied().filter(|scale| self.takes(*scale))
    }

    fn takes(&self, services: u32) -> bool {
        self.up_to.is_none_or(|most| services <= most)
    }
}

/// Measures. What was set up is removed however it ends, and what was measured is kept.
///
/// # Errors
/// When there is nothing to measure with: a path's program is missing, or the machine has no processor
/// that may be used.
pub fn run(options: &Options, audience: &dyn Audience) -> Result<Outcome, BenchError> {
    let paths = paths(options, audience)?;
    let cores = Cores::here()?;
    let session = Session::begin("proxy", &options.commit, schedule::all(options, &paths), audience);
    let mut run = Run { options, cores, session };
    if options.first || !options.regimes.is_empty() {
        let ended = run.traffic(&paths);
        run.session.note_failure("traffic", ended);
    }
    if options.control && !run.session.outcome.interrupted {
        let ended = control::run(options, &paths, &mut run.session);
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
        for (what, error) in failed {
            self.session.note_failure(&what, Err(error));
        }
        self.session.as_expected_so_far();
        if self.options.first {
            self.first(&stage)?;
        }
        let ends: Vec<&Ends> = stage.bulk.iter().map(|bulk| &bulk.ends).collect();
        let mut regimes = self.options.regimes.clone();
        regimes.sort_by_key(|regime| regime.turn());
        let mut others = vec![];
        for regime in regimes {
            let set = match regime.begin(&stage.lab, &ends) {
                Ok(set) => set,
                Err(error) => {
                    self.session.note_failure(regime.name(), Err(error));
                    continue;
                }
            };
            self.session.audience.note(&format!("{regime}: {set}"));
            self.bulk(regime, &stage.bulk, &mut others)?;
            regime.end(&stage.lab)?;
        }
        self.session.note_others(&others);
        stage.down()
    }

    /// All rounds of first packets.
    fn first(&mut self, stage: &Stage) -> Result<(), BenchError> {
        let (quick, core) = (self.options.quick, self.cores.client);
        let contest = Rounds {
            regime: Regime::Default.name(),
            contestants: &stage.first,
            metrics: &[()],
            name: |()| "first packets",
            rounds: rounds(quick),
            one: schedule::first_round(stage.first.len(), quick),
        };
        self.session.rounds(&contest, |first, ()| {
            let times = first.times(core, schedule::short(quick))?;
            Ok(vec![
                ("first_p50_us", "us", percentile(&times, 0.5)),
                ("first_p99_us", "us", percentile(&times, 0.99)),
            ])
        })
    }

    /// All rounds of bulk traffic in a regime.
    fn bulk(&mut self, regime: Regime, bulk: &[Bulk], others: &mut Vec<f64>) -> Result<(), BenchError> {
        let (quick, cores) = (self.options.quick, self.cores);
        let contest = Rounds {
            regime: regime.name(),
            contestants: bulk,
            metrics: Metric::of(regime, quick),
            name: Metric::name,
            rounds: rounds(quick),
            one: schedule::round(regime, bulk.len(), quick),
        };
        self.session.rounds(&contest, |bulk, metric| measure(bulk, metric, cores, quick, others))
    }
}

fn measure(
    bulk: &Bulk,
    metric: Metric,
    cores: Cores,
    quick: bool,
    others: &mut Vec<f64>,
) -> Result<Vec<Sample>, BenchError> {
    let (ends, short) = (&bulk.ends, schedule::short(quick));
    match metric {
        Metric::Tcp(streams) => {
            let (started, meter) = (Instant::now(), Meter::start(&bulk.watched));
            let traffic = bulk.iperf.run(ends, cores, Flow::Tcp(streams), 1)?;
            let cost = meter.stop(traffic.cpu_s);
            others.push(cost.others / started.elapsed().as_secs_f64());
            let cost = ("cpu_s_per_gb", "s", cost.path / traffic.gigabytes);
            let rate = (metric.name(), "Gbit/s", traffic.gbps);
            Ok(if streams == 1 { vec![rate, cost] } else { vec![rate] })
        }
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
    let regime = |name: &str| REGIMES.iter().position(|regime| regime.name() == name);
    let path = |name: &str| Path::ALL.iter().position(|path| path.name() == name);
    let rank = |position: Option<usize>| position.unwrap_or(usize::MAX);
    report.results.sort_by_key(|series| {
        (rank(regime(&series.regime)), series.scale > 1, rank(path(&series.path)), series.scale)
    });
}
