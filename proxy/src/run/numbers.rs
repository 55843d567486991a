//! What the daemon's loop counts and times.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use weft_daemon::metrics::{Counter, Family, Gauge, Histogram, Metrics, SECONDS};

use super::programmed::Programmed;

/// Bounds for changes, which take from tens of microseconds on, in seconds.
const CHANGE_SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.005, 0.01, 0.05, 0.1,
    0.5, 1.0, 5.0,
];

/// kube-proxy's bounds for its syncs, in seconds, and four below: ours take less than a millisecond.
const SYNC_SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512,
    1.024, 2.048, 4.096, 8.192, 16.384,
];

/// kube-proxy's bounds for its programming latency, in seconds.
const HAPPENED_SECONDS: &[f64] = &[
    0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0,
    18.0, 19.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0, 29.0, 30.0, 31.0, 32.0, 33.0, 34.0,
    35.0, 36.0, 37.0, 38.0, 39.0, 40.0, 41.0, 42.0, 43.0, 44.0, 45.0, 46.0, 47.0, 48.0, 49.0, 50.0, 51.0,
    52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 58.0, 59.0, 60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 100.0,
    105.0, 110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0,
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
    happened: Histogram,
    commits: Family<Counter, 2>,
    problems: Counter,
    repaired: Counter,
    complete: Gauge,
    programmed: Gauge,
    revisions: Family<Gauge, 1>,
    services: Gauge,
    syncs: Syncs,
    exact: Arc<Mutex<Exact>>,
}

/// Under kube-proxy's names. Both families are in one transaction, so one sync is each family's.
#[derive(Clone, Debug)]
struct Syncs {
    all: Family<Histogram, 1>,
    full: Family<Histogram, 1>,
    partial: Family<Histogram, 1>,
    last: Family<Gauge, 1>,
    failures: Family<Counter, 1>,
}

/// The values of kube-proxy's label `ip_family`.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

impl Syncs {
    fn new(metrics: &Metrics) -> Self {
        let label = ["ip_family"];
        let seconds = |name, help| metrics.histograms(name, help, label, SYNC_SECONDS);
        let syncs = Self {
            all: seconds(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "How long syncs took that went well.",
            ),
            full: seconds(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "How long those took in which everything was compared with the kernel.",
            ),
            partial: seconds(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "How long those took in which only what had changed was written.",
            ),
            last: metrics.gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the last sync went well; 0 before.",
                label,
            ),
            failures: metrics.counters(
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                "Syncs that the kernel refused, in nftables mode.",
                label,
            ),
        };
        for family in FAMILIES {
            syncs.last.with([family]);
        }
        syncs
    }

    fn went_well(&self, full: bool, took: Duration) {
        let kind = if full { &self.full } else { &self.partial };
        for family in FAMILIES {
            self.all.with([family]).observe_duration(took);
            kind.with([family]).observe_duration(took);
            self.last.with([family]).set(seconds(SystemTime::now()));
        }
    }
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
            happened: metrics.histogram(
                "kubeproxy_network_programming_duration_seconds",
                "From a change of endpoints, as its slice says, to the kernel's acknowledgement.",
                HAPPENED_SECONDS,
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
            syncs: Syncs::new(metrics),
            exact: Arc::default(),
        };
        for what in ["load", "change", "look", "collect"] {
            for result in ["ok", "error"] {
                numbers.commits.with([what, result]);
            }
        }
        numbers
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
        match (what, well) {
            ("load" | "look", true) => self.syncs.went_well(true, took),
            ("change", true) => self.syncs.went_well(false, took),
            (_, true) => {}
            (_, false) if mode == "nftables" => {
                FAMILIES.iter().for_each(|family| self.syncs.failures.with([family]).inc());
            }
            (_, false) => {}
        }
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

    /// What happened at these times is in the kernel now.
    pub(super) fn happened(&self, at: impl Iterator<Item = SystemTime>) {
        let now = SystemTime::now();
        at.for_each(|at| self.happened.observe_duration(now.duration_since(at).unwrap_or_default()));
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

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn micros(took: Duration) -> u64 {
    took.as_micros().try_into().unwrap_or(u64::MAX)
}
