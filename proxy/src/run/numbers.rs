//! What the daemon's loop counts and times.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use weft_daemon::metrics::{Counter, Family, Gauge, Histogram, Metrics, SECONDS};

use super::kube_proxy::KubeProxy;
use super::programmed::Programmed;

/// Bounds for changes, which take from tens of microseconds on, in seconds.
const CHANGE_SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.005, 0.01, 0.05, 0.1,
    0.5, 1.0, 5.0,
];

/// How many changes are remembered one by one.
const RECENT: usize = 4096;

/// The exact times behind the histograms, for measurements: the answer to `GET /latency`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// When everything had been listed and taken in for the first time, in seconds since 1970.
    pub complete: Option<f64>,
    /// When the kernel had acknowledged all of it for the first time.
    pub programmed: Option<f64>,
    /// From a complete model to the kernel's acknowledgement, at the first load, in microseconds.
    pub load_us: Option<u64>,
    /// How many changes there were.
    pub changes: u64,
    /// From a change's event parsed to the kernel's acknowledgement, in microseconds, the newest last;
    /// a few thousand are remembered.
    pub recent_us: Vec<u64>,
}

/// The daemon's numbers. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    changes: Histogram,
    load: Histogram,
    commits: Family<Counter, 2>,
    problems: Counter,
    repaired: Counter,
    complete: Gauge,
    programmed: Gauge,
    revisions: Family<Gauge, 1>,
    services: Gauge,
    kube_proxy: KubeProxy,
    exact: Arc<Mutex<Exact>>,
}

#[derive(Debug, Default)]
struct Exact {
    latency: Latency,
    recent: VecDeque<u64>,
}

impl Numbers {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let numbers = Self {
            changes: metrics.histogram(
                "weft_proxy_change_seconds",
                "From a change's event parsed to the kernel's acknowledgement.",
                CHANGE_SECONDS,
            ),
            load: metrics.histogram(
                "weft_proxy_load_seconds",
                "From a complete model to the kernel's acknowledgement of all of it.",
                SECONDS,
            ),
            commits: metrics.counters(
                "weft_proxy_kernel_total",
                "What was done with the kernel (load, change, look, collect), by how it ended.",
                ["what", "result"],
            ),
            problems: metrics.counter(
                "weft_proxy_problems_total",
                "Mistakes found in objects and in the files that hold them.",
            ),
            repaired: metrics.counter(
                "weft_proxy_repaired_total",
                "Things in the kernel that were not as they should be and were put right: elements, rules, chains.",
            ),
            complete: metrics.gauge(
                "weft_proxy_complete_timestamp_seconds",
                "When services and endpoints had first been listed and taken in; 0 before.",
            ),
            programmed: metrics.gauge(
                "weft_proxy_programmed_timestamp_seconds",
                "When the kernel had first acknowledged all of them; 0 before.",
            ),
            revisions: metrics.gauges(
                "weft_proxy_programmed_revision",
                "The resource version that the kernel holds, of services and of slices.",
                ["of"],
            ),
            services: metrics.gauge("weft_proxy_services", "Services that are known, with rules or without."),
            kube_proxy: KubeProxy::new(metrics),
            exact: Arc::default(),
        };
        for what in ["load", "change", "look", "collect"] {
            for result in ["ok", "error"] {
                numbers.commits.with([what, result]);
            }
        }
        numbers
    }

    /// The part under kube-proxy's names.
    pub(super) fn kube_proxy(&self) -> &KubeProxy {
        &self.kube_proxy
    }

    pub(super) fn problems(&self, count: usize) {
        self.problems.add(count as u64);
    }

    pub(super) fn services(&self, count: usize) {
        self.services.set_count(count);
    }

    /// Everything was listed and taken in.
    pub(super) fn complete(&self) {
        let now = seconds(SystemTime::now());
        let mut exact = self.exact.lock().unwrap_or_else(PoisonError::into_inner);
        if exact.latency.complete.is_none() {
            exact.latency.complete = Some(now);
            self.complete.set(now);
        }
    }

    /// Something was done with the kernel by this mode, and took so long.
    pub(super) fn did(&self, mode: &'static str, what: &'static str, well: bool, took: Duration) {
        self.commits.with([what, if well { "ok" } else { "error" }]).inc();
        self.kube_proxy.did(mode, what, well, took);
    }

    /// A look found so much that was wrong.
    pub(super) fn repaired(&self, changes: usize) {
        self.repaired.add(changes as u64);
    }

    /// Everything was acknowledged, so long after the model was complete.
    pub(super) fn loaded(&self, took: Duration) {
        self.load.observe_duration(took);
        let mut exact = self.exact.lock().unwrap_or_else(PoisonError::into_inner);
        if exact.latency.programmed.is_none() {
            let now = seconds(SystemTime::now());
            exact.latency.programmed = Some(now);
            exact.latency.load_us = Some(micros(took));
            self.programmed.set(now);
        }
    }

    /// A change that was parsed then is acknowledged now.
    pub(super) fn changed(&self, parsed: Instant) {
        let took = parsed.elapsed();
        self.changes.observe_duration(took);
        let mut exact = self.exact.lock().unwrap_or_else(PoisonError::into_inner);
        exact.latency.changes += 1;
        if exact.recent.len() == RECENT {
            exact.recent.pop_front();
        }
        exact.recent.push_back(micros(took));
    }

    pub(super) fn programmed(&self, programmed: &Programmed) {
        #[expect(clippy::cast_precision_loss)] // exact up to 2^53, as all numbers in Prometheus
        let set = |of, revision: Option<u64>| {
            if let Some(revision) = revision {
                self.revisions.with([of]).set(revision as f64);
            }
        };
        set("services", programmed.revisions.services);
        set("slices", programmed.revisions.slices);
    }

    /// The exact times.
    pub(super) fn latency(&self) -> Latency {
        let exact = self.exact.lock().unwrap_or_else(PoisonError::into_inner);
        Latency { recent_us: exact.recent.iter().copied().collect(), ..exact.latency.clone() }
    }
}

pub(super) fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn micros(took: Duration) -> u64 {
    took.as_micros().try_into().unwrap_or(u64::MAX)
}
