//! The control plane: from a daemon's start to all peers programmed, the cost of one change, memory.
//!
//! Peers are leases as flanneld writes them; nobody is behind them. Each run has a host and a network
//! of its own, so that it starts from an empty kernel and an empty disk.
//!
//! | figure | from | until |
//! |---|---|---|
//! | `program_all_ms` | just before the daemon's process is made | the kernel's event of the last of all routes, neighbours and FDB entries |
//! | `change_p50_ms`, `change_p99_ms` | etcd's answer to the writer of a lease: about when watchers are told | the kernel's event of the last of its three entries, made or gone |
//! | `put_to_kernel_p50_ms` | just before that write is sent | the same |
//! | `idle_cpu_percent` | the daemon is ready | a whole round of probes later; the processor time of the daemon alone |
//! | `rss_mb` | | after all changes |
//!
//! Changes come one at a time, each as soon as the kernel holds the one before, so what the daemon does
//! after a change is part of what the next one costs.

mod etcd;
mod leases;
mod witness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use weft_lab::{Host, Lab, LabError};

use super::Options;
use crate::report::Report;
use crate::session::{Audience, go_on};
use crate::stats::percentile;
use crate::{BenchError, cpu};
use etcd::Gateway;
use leases::Lease;
use witness::{Fact, Witness};

/// How many leases there are.
const SCALES: [u16; 4] = [10, 100, 1000, 5000];
const QUICK_SCALES: [u16; 3] = [10, 100, 1000];
/// How often everything is repeated.
const ROUNDS: u8 = 3;
/// How many leases come and go, one by one.
const CHANGES: u8 = 100;
const QUICK_CHANGES: u8 = 20;
/// How long the daemon is left alone while its processor time is counted: it probes each of a thousand
/// peers once in ten seconds.
const IDLE: Duration = Duration::from_secs(20);
const QUICK_IDLE: Duration = Duration::from_secs(10);
/// How long programming everything, or one change, may take before the bench gives up.
const PROGRAMMED: Duration = Duration::from_secs(120);
const CHANGED: Duration = Duration::from_secs(20);

/// What one run is made of.
struct Shape {
    leases: u16,
    changes: u8,
    idle: Duration,
}

/// What one run came to.
struct Figures {
    program_all: Duration,
    /// From etcd's answer to the writer until the kernel holds the change.
    changes: Vec<f64>,
    /// The same from before the write was sent, etcd's own work included.
    from_put: Vec<f64>,
    resident_mb: f64,
    idle_percent: f64,
}

pub(super) fn run(options: &Options, report: &mut Report, audience: &dyn Audience) -> Result<(), BenchError> {
    let quick = options.quick;
    let (scales, rounds) = if quick { (&QUICK_SCALES[..], 1) } else { (&SCALES[..], ROUNDS) };
    let runs: Vec<(u8, u16)> =
        (0..rounds).flat_map(|round| scales.iter().map(move |scale| (round, *scale))).collect();
    let host_of = |(round, leases): &(u8, u16)| format!("n{leases}-{round}");
    let lab = Lab::new("bench-control")
        .weft(&options.weft)
        .hosts(runs.iter().map(host_of))
        .without_network()
        .without_daemons()
        .up()?;
    let etcd = Gateway::open(&lab)?;
    for run in &runs {
        go_on(audience)?;
        let (host, (round, leases)) = (lab.find_host(&host_of(run))?, *run);
        audience.step(&format!("control plane, round {} of {rounds}: {leases} leases", round + 1));
        let shape = Shape {
            leases,
            changes: if quick { QUICK_CHANGES } else { CHANGES },
            idle: if quick { QUICK_IDLE } else { IDLE },
        };
        let figures = measure(&host, &etcd, &format!("/bench/{}", host.name()), &shape, audience)?;
        host.stop_overlay()?;
        for (metric, unit, value) in [
            ("program_all_ms", "ms", figures.program_all.as_secs_f64() * 1e3),
            ("change_p50_ms", "ms", percentile(&figures.changes, 0.5)),
            ("change_p99_ms", "ms", percentile(&figures.changes, 0.99)),
            ("put_to_kernel_p50_ms", "ms", percentile(&figures.from_put, 0.5)),
            ("rss_mb", "MiB", figures.resident_mb),
            ("idle_cpu_percent", "%", figures.idle_percent),
        ] {
            report.sample(("control", "vxlan", metric, unit), leases.into(), value);
        }
    }
    Ok(lab.down()?)
}

fn measure(
    host: &Host,
    etcd: &Gateway,
    prefix: &str,
    shape: &Shape,
    audience: &dyn Audience,
) -> Result<Figures, BenchError> {
    etcd.put(&format!("{prefix}/config"), leases::CONFIG)?;
    let peers: Vec<Lease> = (0..shape.leases).map(Lease::number).collect();
    etcd.put_all(peers.iter().map(|lease| (lease.key(prefix), lease.value())))?;

    let witness = Witness::open(host)?;
    let wait = |wanted, limit, what| {
        witness.all(wanted, limit, || audience.wants_out()).map_err(|missing| {
            if audience.wants_out() { BenchError::Interrupted } else { late(host, what, &missing) }
        })
    };
    let started = Instant::now();
    host.launch_overlay_with(&[format!("--etcd-prefix={prefix}")])?;
    let all: BTreeSet<Fact> = peers.iter().flat_map(Lease::facts).collect();
    let programmed = wait(all.clone(), PROGRAMMED, "program")?;
    host.wait_until_ready(PROGRAMMED)?;
    let daemon = host.overlay().ok_or_else(|| late(host, "stay alive after", "the start"))?.pid;

    let (idle_from, used) = (Instant::now(), cpu::of_process(daemon));
    let stirred = witness.count(&all, shape.idle);
    let idle_percent = (cpu::of_process(daemon) - used) / idle_from.elapsed().as_secs_f64() * 100.0;
    if stirred > 0 {
        audience.note(&format!("{} leases: {stirred} entries were written again while idle", shape.leases));
    }

    let (mut changes, mut from_put) = (vec![], vec![]);
    let mut note = |sent: Instant, acknowledged: Instant, held: Instant| {
        changes.push(held.saturating_duration_since(acknowledged).as_secs_f64() * 1e3);
        from_put.push(held.saturating_duration_since(sent).as_secs_f64() * 1e3);
    };
    for change in 0..shape.changes {
        go_on(audience)?;
        let (lease, sent) = (Lease::number(shape.leases + u16::from(change) / 2), Instant::now());
        let wanted = if change % 2 == 0 {
            etcd.put(&lease.key(prefix), &lease.value())?;
            lease.facts().into()
        } else {
            etcd.delete(&lease.key(prefix))?;
            lease.gone().into()
        };
        let acknowledged = Instant::now();
        let held = wait(wanted, CHANGED, "follow")?;
        note(sent, acknowledged, held);
    }
    let resident_mb = cpu::resident_mb(daemon);
    Ok(Figures { program_all: programmed - started, changes, from_put, resident_mb, idle_percent })
}

fn late(host: &Host, what: &str, missing: &str) -> BenchError {
    let log = host.log();
    let tail: Vec<&str> = log.lines().rev().take(20).collect();
    let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
    LabError::Traffic {
        what: format!("the daemon on {} did not {what} {missing}; its last words:\n{tail}", host.name()),
    }
    .into()
}
