//! What a doctor says: how bad a thing is, what is so, why that matters, what to run. Plain data, the
//! same for every daemon's doctor, so that they can be read together.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::health::{Condition, Report, State};
use crate::http::Method;
use crate::http::client::{Client, ClientError};
use crate::log::chain;

/// How a daemon of this host is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Daemon {
    /// Nobody listens on its socket.
    #[default]
    Stopped,
    /// It has an answer.
    Answers(Vec<Condition>),
    /// Its socket is there, and it does not answer.
    Stuck(String),
}

impl Daemon {
    /// Asks the daemon behind this socket how it is.
    pub async fn ask(socket: &Path, patience: Duration) -> Self {
        let client = Client::new(socket).timeout(patience);
        match client.send(Method::GET, "/readyz?json", Vec::new()).await {
            Ok(answer) => match serde_json::from_slice::<Report>(&answer.body) {
                Ok(report) => Self::Answers(report.conditions),
                Err(error) => Self::Stuck(format!("its answer is not understood: {error}")),
            },
            Err(ClientError::NotRunning { .. }) => Self::Stopped,
            Err(error) => Self::Stuck(chain(&error)),
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Looked at, and as it should be.
    Ok,
    /// Works now; somebody should look.
    Warning,
    /// Something does not work that should.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is so, in one sentence.
    pub title: String,
    /// Why that matters, or what is behind it.
    pub why: String,
    /// What to run, in order.
    pub fix: Vec<String>,
}

/// Findings as they are made.
#[derive(Clone, Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// One more.
    pub fn add<S: AsRef<str>>(
        &mut self,
        severity: Severity,
        title: impl Into<String>,
        why: impl Into<String>,
        fix: &[S],
    ) {
        let fix = fix.iter().map(|line| line.as_ref().to_owned()).collect();
        self.0.push(Finding { severity, title: title.into(), why: why.into(), fix });
    }

    /// Looked at, and as it should be.
    pub fn well(&mut self, title: impl Into<String>) {
        self.add::<&str>(Severity::Ok, title, "", &[]);
    }

    /// What a daemon says of itself: `who` as in "the daemon", and its systemd unit.
    pub fn daemon(&mut self, who: &str, unit: &str, daemon: &Daemon) {
        let log = [format!("journalctl -u {unit} -n 50")];
        match daemon {
            Daemon::Stopped => {
                let why = "traffic goes on by what the kernel holds, but nothing follows changes or heals";
                let fix = [format!("systemctl start {unit}")];
                self.add(Severity::Warning, format!("{who} does not run"), why, &fix);
            }
            Daemon::Stuck(why) => self.add(Severity::Problem, format!("{who} does not answer"), why, &log),
            Daemon::Answers(conditions) => {
                let unwell: Vec<_> = conditions.iter().filter(|it| it.state != State::Ok).collect();
                for condition in &unwell {
                    let (severity, word) = match condition.state {
                        State::NotReady => (Severity::Problem, "not ready"),
                        _ => (Severity::Warning, "degraded"),
                    };
                    let title = format!("{who} says: {} {word}", condition.name);
                    self.add(severity, title, condition.reason.clone(), &log);
                }
                if unwell.is_empty() {
                    self.well(format!("{who} runs and is ready"));
                }
            }
        }
    }

    /// How many there are so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was found yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, the worst first, else in the order in which they were made.
    pub fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first() {
        let mut found = Findings::default();
        assert!(found.is_empty());
        found.well("fine");
        found.add(Severity::Warning, "odd", "", &["look"]);
        found.add::<&str>(Severity::Problem, "broken", "", &[]);
        found.well("fine, too");
        assert_eq!(found.len(), 4);
        let titles: Vec<String> = found.sorted().into_iter().map(|finding| finding.title).collect();
        assert_eq!(titles, ["broken", "odd", "fine", "fine, too"]);
    }
}
