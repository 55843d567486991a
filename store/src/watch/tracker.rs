//! What a watch has told its consumer so far, and what follows from what the store says next.
//!
//! Pure: no I/O, no clock. It decides whether the store we reach is the one we know, which events are
//! new, and what to say.
//!
//! A store wiped and started again with the same flags has the *same* cluster id (etcd derives it
//! from the flags), and soon a revision beyond ours. So it is not enough to compare the header: on
//! each connection we read the keys as of our revision and compare them with what we told. etcd keeps
//! that past until it is compacted; then there is a new snapshot anyway.

use std::collections::BTreeMap;

use crate::backend::{Batch, Range};
use crate::fault::Fault;
use crate::{Change, ClusterId, Revision, Snapshot, WatchEvent};

/// The consumer's knowledge.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    known: Option<Known>,
    /// `Disconnected` was said, and nothing since.
    down: bool,
    /// The next snapshot is another store's.
    wiped: bool,
    /// The next snapshot is due although we know something.
    stale: bool,
}

#[derive(Debug)]
struct Known {
    cluster: ClusterId,
    revision: Revision,
    keys: BTreeMap<String, Revision>,
}

/// Where a session starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// List first.
    List,
    /// Watch from after this revision.
    After(Revision),
}

/// A message from another store than the one we know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Foreign;

impl Tracker {
    pub(crate) fn start(&self) -> Start {
        match &self.known {
            Some(known) if !self.stale => Start::After(known.revision),
            _ => Start::List,
        }
    }

    /// The whole state, newly listed.
    pub(crate) fn listed(&mut self, snapshot: Snapshot) -> WatchEvent {
        let wiped =
            self.wiped || self.known.as_ref().is_some_and(|known| known.is_contradicted_by(&snapshot));
        self.known = Some(Known {
            cluster: snapshot.cluster,
            revision: snapshot.revision,
            keys: snapshot.entries.iter().map(|(key, kv)| (key.clone(), kv.mod_revision)).collect(),
        });
        (self.down, self.wiped, self.stale) = (false, false, false);
        if wiped { WatchEvent::Wiped(snapshot) } else { WatchEvent::Snapshot(snapshot) }
    }

    /// The keys as of our revision, read when the stream was already open. `true`: this is our store,
    /// the stream can be believed. `false`: list again. An error says nothing about the store.
    pub(crate) fn verify(&mut self, past: Result<Range, Fault>) -> Result<bool, Fault> {
        let Some(known) = &self.known else { return Ok(false) };
        match past {
            Ok(past) => {
                let told = known.keys.iter().map(|(key, revision)| (key.as_str(), *revision));
                let same = past.header.cluster == known.cluster
                    && past.header.revision >= known.revision
                    && past.entries.iter().map(|kv| (kv.key.as_str(), kv.mod_revision)).eq(told);
                (self.wiped, self.stale) = (!same, !same);
                Ok(same)
            }
            Err(Fault::Compacted) => {
                self.history_lost();
                Ok(false)
            }
            Err(Fault::FutureRevision) => {
                (self.wiped, self.stale) = (true, true);
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }

    /// What we need next was compacted away.
    pub(crate) fn history_lost(&mut self) {
        self.stale = true;
    }

    /// A message of a verified stream.
    pub(crate) fn batch(&mut self, batch: Batch) -> Result<Option<WatchEvent>, Foreign> {
        let Some(known) = &mut self.known else { return Err(Foreign) };
        if batch.cluster.is_some_and(|cluster| cluster != known.cluster) {
            return Err(Foreign);
        }
        let after = known.revision;
        let changes: Vec<_> = batch.changes.into_iter().filter(|change| change.revision() > after).collect();
        for change in &changes {
            match change {
                Change::Put(kv) => known.keys.insert(kv.key.clone(), kv.mod_revision),
                Change::Delete { key, .. } => known.keys.remove(key),
            };
        }
        let newest = changes.iter().map(Change::revision).max();
        known.revision = after.max(newest.unwrap_or(after)).max(batch.complete_to.unwrap_or(after));
        Ok(newest.map(|revision| WatchEvent::Changes { revision, changes }))
    }

    /// The session failed.
    pub(crate) fn failed(&mut self, reason: impl FnOnce() -> String) -> Option<WatchEvent> {
        let first = !std::mem::replace(&mut self.down, true);
        first.then(|| WatchEvent::Disconnected { reason: reason() })
    }

    /// The stream is open and verified.
    pub(crate) fn flowing(&mut self) -> Option<WatchEvent> {
        std::mem::replace(&mut self.down, false).then_some(WatchEvent::Reconnected)
    }
}

impl Known {
    /// Whether the snapshot cannot be our store's future: whatever it has from our time we must know.
    fn is_contradicted_by(&self, snapshot: &Snapshot) -> bool {
        let unknown_past = |kv: &crate::KeyValue| {
            kv.mod_revision <= self.revision && self.keys.get(&kv.key) != Some(&kv.mod_revision)
        };
        snapshot.cluster != self.cluster
            || snapshot.revision < self.revision
            || snapshot.entries.values().any(unknown_past)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyValue;
    use crate::backend::Header;

    const OURS: ClusterId = ClusterId(7);
    const OTHER: ClusterId = ClusterId(8);

    fn kv(key: &str, revision: i64) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: Vec::new(),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            lease: None,
        }
    }

    fn snapshot(cluster: ClusterId, revision: i64, keys: &[(&str, i64)]) -> Snapshot {
        let entries = keys.iter().map(|(key, at)| ((*key).to_owned(), kv(key, *at))).collect();
        Snapshot { cluster, revision: Revision(revision), entries }
    }

    fn past(cluster: ClusterId, revision: i64, keys: &[(&str, i64)]) -> Result<Range, Fault> {
        let entries = keys.iter().map(|(key, at)| kv(key, *at)).collect();
        Ok(Range { header: Header { cluster, revision: Revision(revision) }, entries })
    }

    fn batch(changes: &[Change], complete_to: Option<i64>) -> Batch {
        Batch { cluster: Some(OURS), complete_to: complete_to.map(Revision), changes: changes.to_vec() }
    }

    /// Knows `a` from revision 5 and `b` from revision 9, as of 10.
    fn tracker() -> Tracker {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.start(), Start::List);
        let first = snapshot(OURS, 10, &[("a", 5), ("b", 9)]);
        assert_eq!(tracker.listed(first.clone()), WatchEvent::Snapshot(first));
        assert_eq!(tracker.start(), Start::After(Revision(10)));
        tracker
    }

    #[test]
    fn a_connection_is_believed_only_if_it_remembers_what_we_know() {
        let table: Vec<(&str, Result<Range, Fault>, bool, bool)> = vec![
            // case, what it says about our revision: is it our store, is it a wiped one
            ("same", past(OURS, 10, &[("a", 5), ("b", 9)]), true, false),
            ("same, newer by now", past(OURS, 99, &[("a", 5), ("b", 9)]), true, false),
            ("other cluster", past(OTHER, 10, &[("a", 5), ("b", 9)]), false, true),
            ("younger", past(OURS, 9, &[("a", 5), ("b", 9)]), false, true),
            ("a key we do not know", past(OURS, 10, &[("a", 5), ("b", 9), ("c", 3)]), false, true),
            ("a key that was not so", past(OURS, 10, &[("a", 6), ("b", 9)]), false, true),
            ("a key too few", past(OURS, 99, &[("a", 5)]), false, true),
            ("our revision is its future", Err(Fault::FutureRevision), false, true),
            ("our revision is compacted", Err(Fault::Compacted), false, false),
        ];
        for (case, answer, ours, wiped) in table {
            let mut tracker = tracker();
            assert_eq!(tracker.verify(answer).unwrap(), ours, "{case}");
            assert_eq!(tracker.start() == Start::List, !ours, "{case}");
            let event = tracker.listed(snapshot(OURS, 100, &[("z", 50)]));
            assert_eq!(matches!(event, WatchEvent::Wiped(_)), wiped, "{case}");
        }
    }

    #[test]
    fn a_failed_read_proves_nothing() {
        let mut tracker = tracker();
        assert!(tracker.verify(Err(Fault::silent("timeout"))).is_err());
        assert_eq!(tracker.start(), Start::After(Revision(10)));
    }

    #[test]
    fn a_snapshot_after_compaction_is_checked_too() {
        let table: [(&str, Snapshot, bool); 5] = [
            ("later state", snapshot(OURS, 20, &[("a", 5), ("c", 15)]), false),
            ("everything deleted", snapshot(OURS, 20, &[]), false),
            ("other cluster", snapshot(OTHER, 20, &[]), true),
            ("younger", snapshot(OURS, 8, &[]), true),
            ("a past we do not know", snapshot(OURS, 20, &[("x", 7)]), true),
        ];
        for (case, snapshot, wiped) in table {
            let mut tracker = tracker();
            tracker.history_lost();
            assert_eq!(matches!(tracker.listed(snapshot), WatchEvent::Wiped(_)), wiped, "{case}");
        }
    }

    #[test]
    fn what_was_said_is_not_said_again() {
        let mut tracker = tracker();
        let old = Change::Put(kv("b", 9));
        let new = Change::Delete { key: "a".into(), revision: Revision(11) };
        let event = tracker.batch(batch(&[old.clone(), new.clone()], None)).unwrap();
        assert_eq!(event, Some(WatchEvent::Changes { revision: Revision(11), changes: vec![new.clone()] }));
        assert_eq!(tracker.batch(batch(&[old, new], None)).unwrap(), None);
        assert_eq!(tracker.start(), Start::After(Revision(11)));
        assert!(tracker.verify(past(OURS, 11, &[("b", 9)])).unwrap());
    }

    #[test]
    fn progress_moves_the_resume_point_and_says_nothing() {
        let mut tracker = tracker();
        assert_eq!(tracker.batch(batch(&[], Some(42))).unwrap(), None);
        assert_eq!(tracker.start(), Start::After(Revision(42)));
        assert_eq!(tracker.batch(batch(&[], Some(41))).unwrap(), None);
        assert_eq!(tracker.start(), Start::After(Revision(42)));
    }

    #[test]
    fn a_message_of_another_cluster_is_not_believed() {
        let mut tracker = tracker();
        let foreign =
            Batch { cluster: Some(OTHER), complete_to: None, changes: vec![Change::Put(kv("x", 11))] };
        assert_eq!(tracker.batch(foreign), Err(Foreign));
        assert_eq!(tracker.start(), Start::After(Revision(10)));
    }

    #[test]
    fn an_outage_is_said_once_and_so_is_its_end() {
        let mut tracker = tracker();
        assert_eq!(tracker.flowing(), None);
        assert!(tracker.failed(|| "x".into()).is_some());
        assert_eq!(tracker.failed(|| "y".into()), None);
        assert_eq!(tracker.flowing(), Some(WatchEvent::Reconnected));
        assert_eq!(tracker.flowing(), None);
        assert!(tracker.failed(|| "z".into()).is_some());
        tracker.history_lost();
        assert!(matches!(tracker.listed(snapshot(OURS, 12, &[])), WatchEvent::Snapshot(_)));
        assert_eq!(tracker.flowing(), None, "the snapshot has said it");
    }
}
