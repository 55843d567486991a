//! How things stand, as readiness with reasons.

use std::collections::BTreeMap;

use tracing::warn;
use weft_kernel::net::Failure;

use super::engine::Engine;
use crate::diff::Conflict;
use crate::lease::LeaseState;
use crate::model::Subnet;
use crate::plan::Desired;
use crate::registry::Known;

impl Engine {
    pub(super) fn tell_store(&self, known: &Known) {
        match (&known.registry, &known.disconnected) {
            (None, Some(reason)) if self.cached.is_none() => {
                self.health
                    .not_ready("store", format!("etcd cannot be reached, and there is no cache: {reason}"));
            }
            (_, Some(reason)) => {
                self.health.degraded("store", format!("etcd cannot be reached; on what is known: {reason}"))
            }
            (Some(_), None) => self.health.ok("store"),
            (None, None) if self.cached.is_some() => {
                self.health.degraded("store", "etcd has not answered yet; on the cache of an earlier run");
            }
            (None, None) => {
                self.health.not_ready("store", "etcd has not answered yet, and there is no cache")
            }
        }
    }

    /// What the config's author should hear: each line once, until it has gone and comes again.
    pub(super) fn tell_notes(&mut self, notes: &[String]) {
        if self.notes == notes {
            return;
        }
        for note in notes.iter().filter(|note| !self.notes.contains(note)) {
            warn!(%note, "network config");
        }
        self.notes = notes.to_vec();
    }

    pub(super) fn tell_lease(&self, lease: &LeaseState) {
        match (lease.subnet, &lease.waiting) {
            (Some(_), _) if lease.draining => {
                self.health.degraded("lease", "this host is being drained: no new pods")
            }
            (Some(_), None) => self.health.ok("lease"),
            (Some(subnet), Some(waiting)) => {
                self.health.degraded("lease", format!("{subnet} is kept: {waiting}"))
            }
            (None, Some(waiting)) => self.health.not_ready("lease", waiting.to_string()),
            (None, None) => self.health.not_ready("lease", "asking for a subnet"),
        }
    }

    pub(super) fn tell_kernel(&self, conflicts: &[Conflict], failures: &[Failure]) {
        let reasons: Vec<String> = conflicts
            .iter()
            .map(Conflict::to_string)
            .chain(failures.iter().map(Failure::to_string))
            .take(8)
            .collect();
        if reasons.is_empty() {
            self.health.ok("kernel");
        } else {
            self.health.not_ready("kernel", reasons.join("; "));
        }
    }

    /// Ready once every peer that can be reached is programmed; those that cannot are named.
    pub(super) fn tell_peers(
        &self,
        skipped: &BTreeMap<Subnet, String>,
        desired: &Desired,
        lease: &LeaseState,
    ) {
        if lease.subnet.is_none() {
            return;
        }
        let unreached =
            desired.skipped.iter().map(|((subnet, family), why)| format!("{subnet} ({family}): {why}"));
        let reasons: Vec<String> =
            skipped.iter().map(|(subnet, why)| format!("{subnet}: {why}")).chain(unreached).take(8).collect();
        if reasons.is_empty() {
            self.health.ok("peers");
        } else {
            // The other peers are served: one host with a strange lease must not make all unready.
            self.health.degraded("peers", format!("left out: {}", reasons.join("; ")));
        }
    }
}
