//! Whether what was declared gets into the kernel in time, and whether this host's node is there to stay.
//!
//! kube-proxy's rule: an update that has been waiting for longer than a minute makes the proxy unhealthy,
//! until everything is in the kernel again. One that has had nothing to do yet is healthy.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Twice kube-proxy's default for `syncPeriod`.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The loop's side and the servers' side of the same facts. A cheap handle.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Mutex<Beat>>);

/// What is known of it. Plain data.
#[derive(Clone, Debug, PartialEq)]
pub struct Beat {
    /// How long an update may wait.
    patience: Duration,
    /// Since when the oldest one does.
    waiting: Option<Instant>,
    /// When everything was last in the kernel.
    updated: Option<SystemTime>,
    /// The node is there to stay, as far as is known.
    eligible: bool,
    /// There has been a Node of this host's name.
    known: bool,
}

/// What can be said of it at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Nothing has been waiting for too long.
    pub healthy: bool,
    /// When everything was last in the kernel.
    pub updated: Option<SystemTime>,
    /// The node is there to stay.
    pub eligible: bool,
}

impl Beat {
    /// Of a proxy that begins.
    pub fn new(patience: Duration) -> Self {
        Self { patience, waiting: None, updated: None, eligible: true, known: false }
    }

    /// Something is to be brought into the kernel.
    pub fn queued(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
    }

    /// The kernel holds everything.
    pub fn updated(&mut self, now: SystemTime) {
        self.waiting = None;
        self.updated = Some(now);
    }

    /// What is known of this host's Node: whether it is about to leave, or that there is none. Where
    /// nobody declares Nodes (a folder of manifests) that says nothing.
    pub fn node(&mut self, leaving: Option<bool>) {
        self.eligible = leaving.map_or(!self.known, |leaving| !leaving);
        self.known |= leaving.is_some();
    }

    /// How it stands.
    pub fn standing(&self, now: Instant) -> Standing {
        let late = |since: Instant| now.saturating_duration_since(since) >= self.patience;
        Standing { healthy: !self.waiting.is_some_and(late), updated: self.updated, eligible: self.eligible }
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Beat::new(PATIENCE))))
    }
}

impl Pulse {
    /// Something is to be brought into the kernel.
    pub fn queued(&self) {
        self.beat().queued(Instant::now());
    }

    /// The kernel holds everything.
    pub fn updated(&self) {
        self.beat().updated(SystemTime::now());
    }

    /// As [`Beat::node`].
    pub fn node(&self, leaving: Option<bool>) {
        self.beat().node(leaving);
    }

    /// How it stands now.
    pub fn standing(&self) -> Standing {
        self.beat().standing(Instant::now())
    }

    fn beat(&self) -> MutexGuard<'_, Beat> {
        // Every holder leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_that_waits_too_long_is_unhealthy() {
        type Past = fn(&mut Beat, Instant);
        let seconds = Duration::from_secs;
        let table: [(&str, Past, u64, bool); 7] = [
            ("nothing to do yet", |_, _| {}, 3600, true),
            ("just queued", |it, at| it.queued(at), 59, true),
            ("queued for too long", |it, at| it.queued(at), 60, false),
            (
                "a later one does not hide it",
                |it, at| {
                    it.queued(at);
                    it.queued(at + Duration::from_secs(50));
                },
                60,
                false,
            ),
            (
                "all is in the kernel",
                |it, at| {
                    it.queued(at);
                    it.updated(SystemTime::UNIX_EPOCH);
                },
                3600,
                true,
            ),
            (
                "another one since",
                |it, at| {
                    it.queued(at);
                    it.updated(SystemTime::UNIX_EPOCH);
                    it.queued(at + Duration::from_secs(30));
                },
                89,
                true,
            ),
            (
                "which waits too long",
                |it, at| {
                    it.updated(SystemTime::UNIX_EPOCH);
                    it.queued(at + Duration::from_secs(30));
                },
                90,
                false,
            ),
        ];
        for (case, past, after, healthy) in table {
            let start = Instant::now();
            let mut beat = Beat::new(seconds(60));
            past(&mut beat, start);
            assert_eq!(beat.standing(start + seconds(after)).healthy, healthy, "{case}");
        }
    }

    #[test]
    fn a_node_that_leaves_is_not_eligible() {
        let table: [(&str, &[Option<bool>], bool); 6] = [
            ("nobody speaks of nodes", &[], true),
            ("no such node has been seen", &[None], true),
            ("it is there", &[Some(false)], true),
            ("it leaves", &[Some(false), Some(true)], false),
            ("it is gone", &[Some(false), None], false),
            ("it came back", &[Some(true), None, Some(false)], true),
        ];
        for (case, seen, eligible) in table {
            let mut beat = Beat::new(PATIENCE);
            seen.iter().for_each(|leaving| beat.node(*leaving));
            assert_eq!(beat.standing(Instant::now()).eligible, eligible, "{case}");
        }
    }
}
