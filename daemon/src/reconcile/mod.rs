//! The level-triggered loop: run at start, on every trigger, on a slow timer, and again after a failure.
//!
//! One run at a time. Triggers that come during a run are one further run right after it, so a burst
//! of a thousand events costs two runs. [`schedule`] decides when; this file waits, runs and counts.

pub mod schedule;

use std::collections::BTreeSet;
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::log::Repeated;
use crate::metrics::{Counter, Family, Gauge, Histogram, Metrics, SECONDS};
use schedule::{Pace, Schedule};

/// Why a run happens: `start`, `timer`, `retry`, or the word given to [`Trigger::fire`].
pub type Reasons = BTreeSet<&'static str>;

/// Asks for a run. A cheap handle; firing costs a lock and never waits.
#[derive(Clone, Debug, Default)]
pub struct Trigger {
    shared: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    reasons: Mutex<Reasons>,
    fired: Notify,
}

impl Trigger {
    /// A trigger to give to [`Loop::run`] and, cloned, to all who see events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something happened: `store`, `kernel`, ... The word shows up in the log and in the metrics.
    pub fn fire(&self, reason: &'static str) {
        self.shared.reasons.lock().unwrap_or_else(PoisonError::into_inner).insert(reason);
        self.shared.fired.notify_one();
    }

    fn take(&self) -> Reasons {
        std::mem::take(&mut *self.shared.reasons.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_pending(&self) -> bool {
        !self.shared.reasons.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// A loop that brings something to where it should be.
#[derive(Clone, Debug)]
pub struct Loop {
    name: &'static str,
    pace: Pace,
    counts: Counts,
}

#[derive(Clone, Debug)]
struct Counts {
    runs: Family<Counter, 2>,
    triggers: Family<Counter, 2>,
    changes: Counter,
    seconds: Histogram,
    failing: Gauge,
}

/// A run did not end.
#[derive(Debug, thiserror::Error)]
#[error("no end after {0:?}")]
pub struct TooLong(Duration);

impl Loop {
    /// A loop of this name, which is the label `loop` of its metrics.
    pub fn new(name: &'static str, pace: Pace, metrics: &Metrics) -> Self {
        let counts = Counts {
            runs: metrics.counters(
                "weft_reconcile_runs_total",
                "Runs, by how they ended.",
                ["loop", "result"],
            ),
            triggers: metrics.counters(
                "weft_reconcile_triggers_total",
                "Runs, by what asked for them.",
                ["loop", "reason"],
            ),
            changes: metrics
                .counters("weft_reconcile_changes_total", "Changes that runs made.", ["loop"])
                .with([name]),
            seconds: metrics
                .histograms("weft_reconcile_seconds", "How long runs took.", ["loop"], SECONDS)
                .with([name]),
            failing: metrics
                .gauges("weft_reconcile_failing", "1 if the last run failed.", ["loop"])
                .with([name]),
        };
        Self { name, pace, counts }
    }

    /// Runs `body` until `shutdown`. The body says how many changes it made.
    ///
    /// A run that is under way at shutdown is finished, one that takes longer than the pace allows is
    /// dropped and counts as failed: the body must leave, at each of its awaits, nothing that the next
    /// run would not put right.
    pub async fn run<E, F>(
        &self,
        trigger: &Trigger,
        shutdown: &CancellationToken,
        mut body: impl FnMut(Reasons) -> F,
    ) where
        E: Error,
        F: Future<Output = Result<usize, E>>,
    {
        let mut schedule = Schedule::new(self.pace, Instant::now().into_std());
        let mut failures = Repeated::default();
        loop {
            let Some(reasons) = shutdown.run_until_cancelled(self.due(trigger, &mut schedule)).await else {
                return;
            };
            for reason in &reasons {
                self.counts.triggers.with([self.name, reason]).inc();
            }
            let start = Instant::now();
            let ended = tokio::time::timeout(self.pace.limit, body(reasons.clone())).await;
            let took = start.elapsed();
            self.counts.seconds.observe_duration(took);
            let result = match &ended {
                Ok(Ok(changes)) => {
                    self.counts.changes.add(*changes as u64);
                    if *changes > 0 {
                        tracing::debug!(name = self.name, ?reasons, changes, ?took, "reconciled");
                    }
                    failures.recovered(self.name);
                    "ok"
                }
                Ok(Err(error)) => {
                    failures.warn(self.name, error);
                    "error"
                }
                Err(_) => {
                    failures.warn(self.name, &TooLong(self.pace.limit));
                    "timeout"
                }
            };
            self.counts.runs.with([self.name, result]).inc();
            self.counts.failing.set(u8::from(result != "ok"));
            schedule.ran(Instant::now().into_std(), result == "ok");
        }
    }

    /// Waits until a run is due, and says why it is.
    async fn due(&self, trigger: &Trigger, schedule: &mut Schedule) -> Reasons {
        loop {
            // Taken before the reasons are looked at: what is fired after that look wakes us.
            let fired = trigger.shared.fired.notified();
            let (at, reason) = schedule.next(trigger.is_pending());
            if at <= Instant::now().into_std() {
                let mut reasons = trigger.take();
                if reasons.is_empty() {
                    reasons.insert(reason);
                }
                return reasons;
            }
            tokio::select! {
                () = fired => {}
                () = tokio::time::sleep_until(Instant::from_std(at)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
