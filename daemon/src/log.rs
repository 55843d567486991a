//! Logs on stderr: human or JSON, by level; and failures that repeat, said once and then counted.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::Env;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people. Colours only on a terminal.
    #[default]
    Human,
    /// One JSON object a line, for machines.
    Json,
}

/// The logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `WEFT_LOG` does not parse.
    #[error("WEFT_LOG: `{0}` is no filter; write `debug`, or `info,weft_overlay=trace`")]
    Filter(String),
    /// Something else in this process receives the log already.
    #[error("the log is set up already")]
    Twice,
}

/// Sets up the log of this process. `verbosity` is the N of `-v=N`; `WEFT_LOG` (directives of
/// tracing's `EnvFilter`) beats it.
pub fn init(format: Format, verbosity: u8, env: &Env) -> Result<(), LogError> {
    let directives = match env.get("WEFT_LOG") {
        Some(text) => text.into_string().map_err(|text| LogError::Filter(text.display().to_string()))?,
        None => directives(verbosity).to_owned(),
    };
    let filter = EnvFilter::try_new(&directives).map_err(|_| LogError::Filter(directives))?;
    let colours = std::io::stderr().is_terminal() && env.get("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Human => lines.with_ansi(colours).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|_| LogError::Twice)
}

/// What `-v=N` shows. The levels are klog's, as flannel's users know them: 4 is debug, 6 and more is
/// everything. Libraries are heard from when they warn, or at the top.
fn directives(verbosity: u8) -> &'static str {
    // `weft` is a prefix: it covers weft_overlay, weft_store, ...
    match verbosity {
        0 => "warn,weft=info",
        1..=5 => "warn,weft=debug",
        6..=9 => "info,weft=trace",
        10.. => "trace",
    }
}

/// An error and its causes in one line, as every message of weft shows it: `A: B: C`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// A thing that is tried again and again. The first failure is news; the same one again is only a
/// count, said at growing intervals; that it works again is news.
///
/// ```
/// # use std::time::{Duration, Instant};
/// # use weft_daemon::log::{News, Repeated};
/// let (mut etcd, start) = (Repeated::default(), Instant::now());
/// assert_eq!(etcd.failed("refused", start), News::First);
/// assert_eq!(etcd.failed("refused", start + Duration::from_secs(1)), News::None);
/// assert_eq!(etcd.failed("timed out", start + Duration::from_secs(2)), News::First);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Repeated {
    streak: Option<Streak>,
}

#[derive(Clone, Debug)]
struct Streak {
    since: Instant,
    count: u64,
    /// The reasons that were said in this streak, up to [`Repeated::MOST_REASONS`].
    reasons: BTreeSet<String>,
    said: Instant,
    interval: Duration,
}

/// What is worth a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It failed for the first time, or in a new way.
    First,
    /// It has now failed so often, for so long.
    Still {
        /// How often in a row.
        count: u64,
        /// Since the first of them.
        during: Duration,
    },
    /// It works again, after so many failures.
    Recovered {
        /// How often it failed in a row.
        count: u64,
        /// From the first failure until now.
        during: Duration,
    },
    /// Nothing that was not said already.
    None,
}

impl Repeated {
    /// The first reminder comes after this long, each further one after twice as long as the last.
    const FIRST_REMINDER: Duration = Duration::from_secs(60);
    /// But never less often than this.
    const LAST_REMINDER: Duration = Duration::from_secs(3600);
    /// A reason that is never twice the same (it may hold a port or a time) stops being news.
    const MOST_REASONS: usize = 8;

    /// It failed, for this reason.
    pub fn failed(&mut self, reason: impl Display, now: Instant) -> News {
        let text = reason.to_string();
        let Some(streak) = &mut self.streak else {
            let interval = Self::FIRST_REMINDER;
            let reasons = BTreeSet::from([text]);
            self.streak = Some(Streak { since: now, count: 1, reasons, said: now, interval });
            return News::First;
        };
        streak.count += 1;
        if streak.reasons.len() < Self::MOST_REASONS && streak.reasons.insert(text) {
            streak.said = now;
            return News::First;
        }
        if now.saturating_duration_since(streak.said) < streak.interval {
            return News::None;
        }
        streak.said = now;
        streak.interval = (streak.interval * 2).min(Self::LAST_REMINDER);
        News::Still { count: streak.count, during: now.saturating_duration_since(streak.since) }
    }

    /// It worked.
    pub fn worked(&mut self, now: Instant) -> News {
        self.streak.take().map_or(News::None, |streak| News::Recovered {
            count: streak.count,
            during: now.saturating_duration_since(streak.since),
        })
    }

    /// [`Repeated::failed`] now, said in the log as a warning if it is news.
    pub fn warn(&mut self, what: &str, error: &dyn std::error::Error) {
        let error = chain(error);
        match self.failed(&error, Instant::now()) {
            News::First => tracing::warn!(error, "{what} failed"),
            News::Still { count, during } => tracing::warn!(error, count, ?during, "{what} still fails"),
            News::Recovered { .. } | News::None => {}
        }
    }

    /// [`Repeated::worked`] now, said in the log if it is news.
    pub fn recovered(&mut self, what: &str) {
        if let News::Recovered { count, during } = self.worked(Instant::now()) {
            tracing::info!(failures = count, ?during, "{what} works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_then_counted_ever_more_rarely() {
        let (mut repeated, start) = (Repeated::default(), Instant::now());
        let mut said = Vec::new();
        for second in 0..4 * 3600 {
            let at = start + Duration::from_secs(second);
            match repeated.failed("refused", at) {
                News::None => {}
                News::First => said.push((second, 1)),
                News::Still { count, during } => {
                    assert_eq!(during, Duration::from_secs(second));
                    said.push((second, count));
                }
                recovered => panic!("{recovered:?}"),
            }
        }
        let at: Vec<_> = said.iter().map(|(second, _)| *second).collect();
        assert_eq!(at, [0, 60, 180, 420, 900, 1860, 3780, 7380, 10980]);
        assert!(said.iter().all(|(second, count)| *count == second + 1));
        let end = start + Duration::from_secs(4 * 3600);
        let during = Duration::from_secs(4 * 3600);
        assert_eq!(repeated.worked(end), News::Recovered { count: 4 * 3600, during });
        assert_eq!(repeated.worked(end), News::None);
        assert_eq!(repeated.failed("refused", end), News::First);
    }

    #[test]
    fn another_reason_is_news_and_the_count_goes_on() {
        let (mut repeated, start) = (Repeated::default(), Instant::now());
        assert_eq!(repeated.failed("refused", start), News::First);
        assert_eq!(repeated.failed("timed out", start), News::First);
        assert_eq!(repeated.worked(start), News::Recovered { count: 2, during: Duration::ZERO });
    }

    #[test]
    fn reasons_that_take_turns_or_never_repeat_do_not_flood() {
        for reason in [|n| n % 2, |n| n] as [fn(u64) -> u64; 2] {
            let (mut repeated, now) = (Repeated::default(), Instant::now());
            let news = (0..1000).filter(|n| repeated.failed(reason(*n), now) != News::None).count();
            assert!(news <= 8, "{news}");
        }
    }

    #[test]
    fn every_verbosity_is_a_filter() {
        for verbosity in 0..=u8::MAX {
            EnvFilter::try_new(directives(verbosity)).unwrap();
        }
        assert_eq!(directives(4), "warn,weft=debug");
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = init(Format::Human, 0, &Env::of([("WEFT_LOG", "weft=loud")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "WEFT_LOG: `weft=loud` is no filter; write `debug`, or `info,weft_overlay=trace`"
        );
    }

    #[test]
    fn causes_follow_in_one_line() {
        let cause = std::io::Error::other("no space left");
        let error = crate::fs::WriteError { path: "/run/x".into(), source: cause };
        assert_eq!(chain(&error), "cannot write /run/x: no space left");
    }
}
