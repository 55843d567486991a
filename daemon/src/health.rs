//! Is the daemon alive, and is it ready? Named conditions with reasons, as plain data.
//!
//! A daemon names at its start what it needs before it is of use (`config`, `lease`, `peers`). Each
//! of these begins as not ready, and `/readyz` says 503 until all have been told otherwise.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How bad it is. The order is from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, on less than it should have: the store is away, say. Still ready.
    Degraded,
    /// Not of use yet, or no more.
    NotReady,
}

/// One thing that the daemon needs, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What it is about: one short word, such as `lease`.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// Why, for a person; one line, empty if all is well.
    pub reason: String,
    /// Since when it is in this state (not: since when it has this reason), in Unix seconds.
    pub since: u64,
}

/// Every condition at one moment; the JSON form of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// No condition is [`State::NotReady`].
    pub ready: bool,
    /// Some condition is [`State::Degraded`].
    pub degraded: bool,
    /// All of them, by name.
    pub conditions: Vec<Condition>,
}

/// The shared handle: cloning it is cheap, and every clone speaks of the same daemon.
#[derive(Clone, Debug)]
pub struct Health {
    conditions: Arc<watch::Sender<BTreeMap<String, Condition>>>,
}

impl Health {
    /// A daemon that needs these conditions. None is known yet, so none is ready.
    pub fn needing(names: &[&str]) -> Self {
        let since = unix_seconds(SystemTime::now());
        let unknown = |name: &&str| {
            let (name, reason) = (name.to_string(), "not known yet".to_owned());
            (name.clone(), Condition { name, state: State::NotReady, reason, since })
        };
        Self { conditions: Arc::new(watch::Sender::new(names.iter().map(unknown).collect())) }
    }

    /// The condition is as it should be.
    pub fn ok(&self, name: &str) {
        self.set(name, State::Ok, "");
    }

    /// It works, but on less than it should have.
    pub fn degraded(&self, name: &str, reason: impl Into<String>) {
        self.set(name, State::Degraded, reason);
    }

    /// The daemon is not of use, and this is why.
    pub fn not_ready(&self, name: &str, reason: impl Into<String>) {
        self.set(name, State::NotReady, reason);
    }

    /// Says how a condition stands. A change is logged, once: so a reason is a sentence that stays the
    /// same while the matter does, and numbers that move go to the metrics.
    pub fn set(&self, name: &str, state: State, reason: impl Into<String>) {
        let reason = one_line(&reason.into());
        self.conditions.send_if_modified(|all| {
            let before = all.get(name);
            if before.is_some_and(|c| c.state == state && c.reason == reason) {
                return false;
            }
            let since = match before {
                Some(before) if before.state == state => {
                    tracing::info!(condition = name, reason, "the reason changed");
                    before.since
                }
                _ => {
                    log_transition(name, state, &reason);
                    unix_seconds(SystemTime::now())
                }
            };
            all.insert(name.to_owned(), Condition { name: name.to_owned(), state, reason, since });
            true
        });
    }

    /// Forgets a condition that has no meaning any more (of a peer that left, say).
    pub fn forget(&self, name: &str) {
        self.conditions.send_if_modified(|all| all.remove(name).is_some());
    }

    /// Everything, as it is now.
    pub fn report(&self) -> Report {
        Report::of(self.conditions.borrow().values().cloned().collect())
    }

    /// Returns once `wanted` is true of the report, which may be at once.
    pub async fn wait_until(&self, mut wanted: impl FnMut(&Report) -> bool) -> Report {
        let mut changes = self.conditions.subscribe();
        loop {
            let report = Report::of(changes.borrow_and_update().values().cloned().collect());
            if wanted(&report) {
                return report;
            }
            changes.changed().await.expect("self holds the sender");
        }
    }
}

impl Report {
    fn of(conditions: Vec<Condition>) -> Self {
        let any = |state| conditions.iter().any(|c| c.state == state);
        // A daemon that named nothing and said nothing has not told anybody that it is ready.
        let ready = !any(State::NotReady) && !conditions.is_empty();
        Self { ready, degraded: any(State::Degraded), conditions }
    }

    /// What `/readyz` prints: a verdict, then one line for each condition that is not well;
    /// if `verbose`, for each condition.
    pub fn text(&self, verbose: bool) -> String {
        let verdict = match (self.ready, self.degraded) {
            (true, false) => "ready",
            (true, true) => "ready, degraded",
            (false, _) => "not ready",
        };
        let mut text = format!("{verdict}\n");
        for Condition { name, state, reason, .. } in &self.conditions {
            let word = match state {
                State::Ok if !verbose => continue,
                State::Ok => "ok",
                State::Degraded => "degraded",
                State::NotReady => "not ready",
            };
            let colon = if reason.is_empty() { "" } else { ": " };
            writeln!(text, "{name} {word}{colon}{reason}").expect("a String takes all");
        }
        text
    }

    /// The same in one line without the healthy ones, for `STATUS=` and for log lines.
    pub fn line(&self) -> String {
        self.text(false).trim_end().replace('\n', "; ")
    }
}

fn log_transition(name: &str, state: State, reason: &str) {
    match state {
        State::Ok => tracing::info!(condition = name, "ok"),
        State::Degraded => tracing::warn!(condition = name, reason, "degraded"),
        State::NotReady => tracing::warn!(condition = name, reason, "not ready"),
    }
}

fn one_line(reason: &str) -> String {
    reason.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_waits_for_every_named_condition() {
        let health = Health::needing(&["config", "lease"]);
        assert!(!health.report().ready);
        health.ok("config");
        assert!(!health.report().ready);
        health.ok("lease");
        assert!(health.report().ready);
    }

    #[test]
    fn a_daemon_that_said_nothing_is_not_ready() {
        let health = Health::needing(&[]);
        assert!(!health.report().ready);
        health.ok("config");
        assert!(health.report().ready);
        health.forget("config");
        assert!(!health.report().ready);
    }

    #[test]
    fn what_readyz_prints() {
        type Step = fn(&Health);
        let table: [(&str, Step, &str, &str); 4] = [
            (
                "nothing known",
                |_| {},
                "not ready\nlease not ready: not known yet\n",
                "not ready\nlease not ready: not known yet\n",
            ),
            ("all is well", |h| h.ok("lease"), "ready\n", "ready\nlease ok\n"),
            (
                "on less than it should have",
                |h| {
                    h.ok("lease");
                    h.degraded("store", "no answer from etcd");
                },
                "ready, degraded\nstore degraded: no answer from etcd\n",
                "ready, degraded\nlease ok\nstore degraded: no answer from etcd\n",
            ),
            (
                "a reason stays one line",
                |h| h.not_ready("lease", "every /24 is leased\n  widen `Network`\n"),
                "not ready\nlease not ready: every /24 is leased; widen `Network`\n",
                "not ready\nlease not ready: every /24 is leased; widen `Network`\n",
            ),
        ];
        for (case, step, plain, verbose) in table {
            let health = Health::needing(&["lease"]);
            step(&health);
            assert_eq!(health.report().text(false), plain, "{case}");
            assert_eq!(health.report().text(true), verbose, "{case}");
        }
    }

    #[test]
    fn since_moves_with_the_state_and_not_with_the_reason() {
        let health = Health::needing(&["lease"]);
        health.conditions.send_modify(|all| all.get_mut("lease").expect("just named").since = 7);
        health.not_ready("lease", "another reason");
        assert_eq!(health.report().conditions[0].since, 7);
        health.ok("lease");
        assert!(health.report().conditions[0].since > 7);
    }

    #[test]
    fn the_json_form_reads_back() {
        let health = Health::needing(&["lease"]);
        health.degraded("store", "away");
        let report = health.report();
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(r#""state":"not_ready""#), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    #[tokio::test]
    async fn a_waiter_sees_the_state_it_waits_for() {
        let health = Health::needing(&["lease"]);
        let waiter = tokio::spawn({
            let health = health.clone();
            async move { health.wait_until(|r| r.ready).await }
        });
        health.ok("lease");
        assert!(waiter.await.unwrap().ready);
    }
}
