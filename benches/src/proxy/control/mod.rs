//! The programming of services: everything at the start and again, one endpoint at a time, memory.
//!
//! Each service has a cluster address and a node port, and two endpoints; 45,000 have one. Each run has
//! a host of its own, so that it starts from an empty kernel and an empty disk. Nobody is behind the
//! endpoints.
//!
//! | figure | from | until | by |
//! |---|---|---|---|
//! | `program_all_ms` | the model is complete | the kernel's acknowledgement of all of it | the daemon's clock |
//! | `start_ms` | just before the daemon's process is made: it reads all manifests | the same | both clocks |
//! | `restart_ms` | the same, when the kernel holds everything already | the daemon knows that it does | both clocks |
//! | `change_p50_ms`, `change_p99_ms` | a changed manifest is parsed | the kernel's acknowledgement | the daemon's clock |
//! | `write_to_kernel_p50_ms` | just before the file is put in its place | the kernel's last news of the change | the bench's clock |
//! | `idle_cpu_percent` | everything is programmed | some seconds later | /proc |
//! | `rss_mb` | | after all changes | /proc |
//!
//! Changes come one at a time, each as soon as the kernel holds the one before: one endpoint more,
//! another one instead, one fewer, each in a small file of its own. kube-proxy's layout has no daemon
//! here: what is timed is `nft`, as kube-proxy calls it for each change.

mod commits;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use weft_lab::{Host, Lab, LabError, wait_for};

use super::path::Path;
use super::schedule::programming;
use super::services::{KINDS, Load};
use super::{Options, layout, stage};
use crate::session::{Audience, Sample, Session, chain, count, go_on};
use crate::stats::percentile;
use crate::{BenchError, cpu};
use commits::Commits;

/// How often everything is repeated.
const ROUNDS: usize = 3;
/// How many changes there are, one by one: a multiple of their kinds, so that all are as frequent.
const CHANGES: u32 = 100 * KINDS;
const QUICK_CHANGES: u32 = 20 * KINDS;
/// The same by `nft`, which takes tens of milliseconds for each.
const LAYOUT_CHANGES: u32 = 30 * KINDS;
const QUICK_LAYOUT_CHANGES: u32 = 7 * KINDS;
/// How long the daemon is left alone while its processor time is counted.
const IDLE: Duration = Duration::from_secs(10);
const QUICK_IDLE: Duration = Duration::from_secs(4);
/// How long one change, or loading the layout, may take before the bench gives up.
const CHANGED: Duration = Duration::from_secs(20);
/// The daemon is asked again this long after the kernel's last news: about one look of [`Commits`].
const COUNTED: Duration = Duration::from_millis(50);
const LOADED: Duration = Duration::from_secs(120);

/// What one run is made of.
struct Shape {
    load: Load,
    changes: u32,
    layout_changes: u32,
    idle: Duration,
}

/// What the daemon says of its own times: `GET /latency`. Times of the day in seconds since 1970.
#[derive(Debug, Deserialize)]
struct Latency {
    programmed: Option<f64>,
    load_us: Option<u64>,
    changes: u64,
    recent_us: Vec<u64>,
}

/// How long all of it takes.
pub(super) fn takes(options: &Options, paths: &[Path]) -> Duration {
    let quick = options.quick;
    let rounds = if quick { 1 } else { ROUNDS };
    let one = |path: Path, services: u32| match path {
        Path::KubeProxyLayout => programming(path, services) + if quick { QUICK_IDLE } else { IDLE } / 2,
        _ => programming(path, services) * 3 + if quick { QUICK_IDLE + QUICK_IDLE / 2 } else { IDLE * 5 / 4 },
    };
    let of = |path: &Path| options.programmed_at(*path).map(|scale| one(*path, scale)).sum::<Duration>();
    paths.iter().map(of).sum::<Duration>() * count(rounds)
}

pub(super) fn run(options: &Options, paths: &[Path], session: &mut Session<'_>) -> Result<(), BenchError> {
    let quick = options.quick;
    let rounds = if quick { 1 } else { ROUNDS };
    let scales = paths.iter().flat_map(|path| options.programmed_at(*path).map(|scale| (*path, scale)));
    let scales: Vec<(Path, u32)> = scales.collect();
    let runs = (0..rounds).flat_map(|round| scales.iter().map(move |(path, scale)| (round, *path, *scale)));
    let runs: Vec<(usize, Path, u32)> = runs.collect();
    if runs.is_empty() {
        return Ok(());
    }
    if paths.contains(&Path::KubeProxyLayout) {
        let at = options.programmed_at(Path::KubeProxyLayout).last().unwrap_or_default();
        session.audience.note(&format!(
            "kube-proxy-layout is programmed with up to {at} services: the kernel's time for it grows with their square"
        ));
    }
    let host_of = |(round, path, scale): &(usize, Path, u32)| match path {
        Path::Nftables => format!("n{scale}-{round}"),
        Path::Iptables => format!("i{scale}-{round}"),
        _ => format!("l{scale}-{round}"),
    };
    let lab = Lab::new("bench-program")
        .weft(&options.weft)
        .hosts(runs.iter().map(host_of))
        .etcd_members(0)
        .without_network()
        .without_daemons()
        .up()?;
    let mut out: BTreeSet<(Path, u32)> = BTreeSet::new();
    for run in &runs {
        let (host, (round, path, services)) = (lab.find_host(&host_of(run))?, *run);
        if out.contains(&(path, services)) {
            continue;
        }
        go_on(session.audience)?;
        session
            .audience
            .step(&format!("programming, round {} of {rounds}: {services} services by {path}", round + 1));
        let shape = Shape {
            load: Load::of(services),
            changes: if quick { QUICK_CHANGES } else { CHANGES },
            layout_changes: if quick { QUICK_LAYOUT_CHANGES } else { LAYOUT_CHANGES },
            idle: if quick { QUICK_IDLE } else { IDLE },
        };
        let measured = match path {
            Path::KubeProxyLayout => by_nft(&host, &shape, session.audience),
            _ => by_weft(&host, path, &shape, session.audience),
        };
        // Whatever is left of it stays idle.
        let _ = host.proxy().stop();
        match measured {
            Ok(samples) => {
                for (metric, unit, value) in samples {
                    let series = ("control", path.name(), metric, unit);
                    session.outcome.report.sample(series, services.into(), value);
                }
            }
            Err(error) => {
                session.note_failure(&format!("programming {services} services by {path}"), Err(error));
                if session.outcome.interrupted {
                    return Ok(());
                }
                out.insert((path, services));
            }
        }
    }
    Ok(lab.down()?)
}

fn by_weft(
    host: &Host,
    path: Path,
    shape: &Shape,
    audience: &dyn Audience,
) -> Result<Vec<Sample>, BenchError> {
    let load = shape.load;
    stage::declare(host, load, None)?;
    let (began, at_first) = start(host, path)?;
    let late = |what: &str| late(host, what);
    let programmed = at_first.programmed.ok_or_else(|| late("say when it had programmed everything"))?;
    let load_us = at_first.load_us.ok_or_else(|| late("say how long it took to program everything"))?;
    let daemon = host.proxy().process().ok_or_else(|| late("stay alive after its start"))?.pid;

    let commits = Commits::open(host)?;
    let (idle_from, used) = (Instant::now(), cpu::of_process(daemon));
    while let Some(left) = shape.idle.checked_sub(idle_from.elapsed()) {
        commits.next(left, || audience.wants_out());
        go_on(audience)?;
    }
    let idle_percent = (cpu::of_process(daemon) - used) / idle_from.elapsed().as_secs_f64() * 100.0;

    let before = latency(host)?.changes;
    let mut from_write = vec![];
    for turn in 0..shape.changes {
        go_on(audience)?;
        let (name, contents) = load.change(load.changed(turn), load.after(turn));
        let (dir, aside) = (stage::manifests(host), format!(".{name}.new"));
        let broken = || BenchError::io(format!("write {name} in {}", dir.display()));
        fs::write(dir.join(&aside), contents).map_err(broken())?;
        commits.forget();
        let written = Instant::now();
        fs::rename(dir.join(&aside), dir.join(&name)).map_err(broken())?;
        let held = followed(host, &commits, before + u64::from(turn), audience)?;
        from_write.push(milliseconds(held - written));
    }
    let changes = changes(host, before, shape.changes, audience)?;
    let resident = cpu::resident_mb(daemon);
    host.proxy().stop()?;
    let (restarted, again) = start(host, path)?;
    let known = again.programmed.ok_or_else(|| late("say when it knew the kernel again"))?;
    #[expect(clippy::cast_precision_loss)] // microseconds of one load
    let program_all = load_us as f64 / 1e3;
    Ok(vec![
        ("program_all_ms", "ms", program_all),
        ("start_ms", "ms", (programmed - began) * 1e3),
        ("restart_ms", "ms", (known - restarted) * 1e3),
        ("change_p50_ms", "ms", percentile(&changes, 0.5)),
        ("change_p99_ms", "ms", percentile(&changes, 0.99)),
        ("write_to_kernel_p50_ms", "ms", percentile(&from_write, 0.5)),
        ("rss_mb", "MiB", resident),
        ("idle_cpu_percent", "%", idle_percent),
    ])
}

/// Waits until the daemon has counted one change more than `counted`; when the kernel's last news came.
/// One change may be several transactions, in iptables mode one for each table, so the news alone does
/// not say that it is over; and a transaction may have nothing to do with it.
fn followed(
    host: &Host,
    commits: &Commits,
    counted: u64,
    audience: &dyn Audience,
) -> Result<Instant, BenchError> {
    let (end, mut held) = (Instant::now() + CHANGED, None);
    while Instant::now() < end {
        go_on(audience)?;
        let news = commits.next(if held.is_none() { CHANGED } else { COUNTED }, || audience.wants_out());
        held = news.or(held);
        if let Some(held) = held
            && latency(host)?.changes > counted
        {
            return Ok(held);
        }
    }
    go_on(audience)?;
    Err(late(host, &format!("follow change {}", counted + 1)))
}

/// Starts the daemon and waits until it has programmed everything: when it was started, in seconds since
/// 1970, and what it says of its times.
fn start(host: &Host, path: Path) -> Result<(f64, Latency), BenchError> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    stage::start(host, path)?;
    Ok((began, latency(host)?))
}

fn latency(host: &Host) -> Result<Latency, BenchError> {
    let answer = host.proxy().api("/latency")?;
    serde_json::from_str(&answer.body).map_err(|error| {
        late(host, &format!("say its times (it said {} {}: {error})", answer.status, answer.body))
    })
}

/// What each of the changes after the first `before` took, in milliseconds, by the daemon's own account.
fn changes(host: &Host, before: u64, made: u32, audience: &dyn Audience) -> Result<Vec<f64>, BenchError> {
    let counted = |latency: &Latency| latency.changes.saturating_sub(before);
    let all = || {
        let latency = latency(host).map_err(|error| chain(&error))?;
        if counted(&latency) >= made.into() { Ok(()) } else { Err(format!("{} changes", counted(&latency))) }
    };
    // Two that come close together may be taken as one.
    let told = wait_for(Duration::from_secs(2), all);
    let latency = latency(host)?;
    if let Err(timed_out) = told {
        if counted(&latency) < u64::from(made) * 9 / 10 {
            return Err(late(host, &format!("count {made} changes ({timed_out})")));
        }
        audience.note(&format!("{made} changes were taken as {}", counted(&latency)));
    }
    let skip = latency.recent_us.len().saturating_sub(counted(&latency).try_into().unwrap_or(usize::MAX));
    #[expect(clippy::cast_precision_loss)] // microseconds of one change
    Ok(latency.recent_us[skip..].iter().map(|micros| *micros as f64 / 1e3).collect())
}

fn by_nft(host: &Host, shape: &Shape, audience: &dyn Audience) -> Result<Vec<Sample>, BenchError> {
    let load = shape.load;
    let all = timed(host, &layout::rules(load, None, host.v4()), LOADED)?;
    let (mut was, mut changes) = (load.at_first(), vec![]);
    for turn in 0..shape.layout_changes {
        go_on(audience)?;
        let is = load.after(turn);
        changes.push(timed(host, &layout::change(load.changed(turn), &was, &is), CHANGED)?);
        was = is;
    }
    Ok(vec![
        ("program_all_ms", "ms", all),
        ("change_p50_ms", "ms", percentile(&changes, 0.5)),
        ("change_p99_ms", "ms", percentile(&changes, 0.99)),
    ])
}

/// How long `nft` takes for these rules, in milliseconds.
fn timed(host: &Host, rules: &str, limit: Duration) -> Result<f64, BenchError> {
    let file = stage::write_rules(host, rules)?;
    let started = Instant::now();
    stage::load(host, &file, limit)?;
    Ok(milliseconds(started.elapsed()))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn late(host: &Host, what: &str) -> BenchError {
    let log = host.proxy().log();
    let tail: Vec<&str> = log.lines().rev().take(20).collect();
    let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
    LabError::Traffic {
        what: format!("the proxy on {} did not {what}; its last words:\n{tail}", host.name()),
    }
    .into()
}
