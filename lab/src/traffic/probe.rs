//! A numbered echo at an interval, for as long as it is watched: what was lost, and the longest silence.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Service;
use super::echo::Echo;
use crate::LabError;

/// How long answers to the last questions are waited for.
const GRACE: Duration = Duration::from_secs(2);
/// How long one look for an answer takes at most, so that the end is noticed.
const LOOK: Duration = Duration::from_millis(100);

/// What came back so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many were sent.
    pub sent: u64,
    /// How many of them came back.
    pub received: u64,
    /// How many came back more than once.
    pub duplicates: u64,
    /// How many came back after a later one.
    pub reordered: u64,
    /// How many the kernel refused to send.
    pub refused: u64,
    /// The longest time in which nothing came back.
    pub longest_pause: Duration,
    /// Why it ended before it was stopped: the connection broke.
    pub broken: Option<String>,
}

impl Report {
    /// How many did not come back.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// A running probe; stops when dropped.
#[derive(Debug)]
pub struct Probe {
    what: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    service: Option<Service>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Nobody asks for the report any more.
    dropped: AtomicBool,
    tally: Mutex<Tally>,
}

impl Probe {
    pub(super) fn start(what: String, echo: impl Echo, interval: Duration) -> Result<Self, LabError> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name(what.chars().take(15).collect())
            .spawn(move || watch(echo, interval, &theirs))
            .map_err(LabError::io(format!("start {what}")))?;
        Ok(Self { what, shared, thread: Some(thread), service: None })
    }

    /// Keeps the far end alive as long as the probe.
    pub(super) fn with(mut self, service: Service) -> Self {
        self.service = Some(service);
        self
    }

    /// What came back so far; what is still under way counts as lost.
    pub fn so_far(&self) -> Report {
        self.shared.tally().report(Instant::now())
    }

    /// Sends no more, waits a moment for the last answers, and says what came back.
    pub fn stop(mut self) -> Report {
        self.end();
        self.shared.tally().report.clone()
    }

    /// As [`Probe::stop`], as an error unless every single one came back.
    pub fn stop_without_loss(self) -> Result<Report, LabError> {
        let what = self.what.clone();
        let report = self.stop();
        if report.lost() == 0 && report.broken.is_none() && report.sent > 0 {
            return Ok(report);
        }
        Err(LabError::Traffic {
            what: format!("{what}: {} of {} lost; {report:?}", report.lost(), report.sent),
        })
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Relaxed);
        self.end();
    }
}

impl Shared {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends when it is time, and listens in between.
fn watch(mut echo: impl Echo, interval: Duration, shared: &Shared) {
    let mut due = Instant::now();
    shared.tally().begin(due);
    let mut stopped_at = None;
    loop {
        let now = Instant::now();
        if shared.stop.load(Ordering::Relaxed) && stopped_at.is_none() {
            stopped_at = Some(now);
            shared.tally().pause_until(now);
        }
        match stopped_at {
            Some(_) if shared.dropped.load(Ordering::Relaxed) => return,
            Some(at) if shared.tally().nothing_missing() || now > at + GRACE => return,
            None if now >= due => {
                let seq = shared.tally().report.sent;
                let sent = echo.send(seq);
                // Not in the condition: the lock would be held in the body, and waited for there.
                let noted = shared.tally().note_sent(sent, echo.breaks());
                if let Err(broken) = noted {
                    shared.tally().report.broken = Some(broken);
                    return;
                }
                // A starved machine skips beats rather than sending a burst.
                due = (due + interval).max(now);
            }
            _ => {
                let until =
                    if stopped_at.is_some() { LOOK } else { due.saturating_duration_since(now).min(LOOK) };
                match echo.receive(until.max(Duration::from_millis(1))) {
                    Ok(Some(seq)) => shared.tally().note_received(seq, Instant::now(), stopped_at.is_none()),
                    Ok(None) => {}
                    Err(error) => {
                        shared.tally().report.broken = Some(error.to_string());
                        return;
                    }
                }
            }
        }
    }
}

/// The books, without a clock: time comes in.
#[derive(Debug, Default)]
struct Tally {
    report: Report,
    missing: BTreeSet<u64>,
    highest: Option<u64>,
    last: Option<Instant>,
}

impl Tally {
    fn begin(&mut self, now: Instant) {
        self.last = Some(now);
    }

    fn note_sent(&mut self, result: io::Result<()>, breaks: bool) -> Result<(), String> {
        if let Err(error) = result {
            if breaks {
                return Err(error.to_string());
            }
            self.report.refused += 1;
        }
        self.missing.insert(self.report.sent);
        self.report.sent += 1;
        Ok(())
    }

    fn note_received(&mut self, seq: u64, now: Instant, running: bool) {
        if seq >= self.report.sent {
            return; // not one of ours
        }
        if !self.missing.remove(&seq) {
            self.report.duplicates += 1;
            return;
        }
        self.report.received += 1;
        self.report.reordered += u64::from(self.highest.is_some_and(|highest| seq < highest));
        self.highest = self.highest.max(Some(seq));
        if running {
            self.pause_until(now);
            self.last = Some(now);
        }
    }

    fn pause_until(&mut self, now: Instant) {
        let pause = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.report.longest_pause = self.report.longest_pause.max(pause);
    }

    fn nothing_missing(&self) -> bool {
        self.missing.is_empty()
    }

    /// As of now: the silence that lasts still counts.
    fn report(&mut self, now: Instant) -> Report {
        self.pause_until(now);
        self.report.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_are_right() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::default();
        tally.begin(start);
        for _ in 0..5 {
            tally.note_sent(Ok(()), false).expect("never breaks");
        }
        for (seq, ms) in [(0, 10), (2, 20), (1, 30), (2, 35), (4, 230), (99, 235)] {
            tally.note_received(seq, at(ms), true);
        }
        let report = tally.report(at(240));
        assert_eq!((report.sent, report.received, report.lost()), (5, 4, 1));
        assert_eq!((report.duplicates, report.reordered), (1, 1));
        assert_eq!(report.longest_pause, Duration::from_millis(200));
        assert_eq!(
            tally.report(at(1000)).longest_pause,
            Duration::from_millis(770),
            "silence counts while it lasts"
        );
    }

    #[test]
    fn a_refused_datagram_is_lost_and_a_broken_connection_ends_it() {
        let refused = || Err(io::Error::from(io::ErrorKind::NetworkUnreachable));
        let mut tally = Tally::default();
        assert!(tally.note_sent(refused(), false).is_ok());
        assert_eq!((tally.report.refused, tally.report.lost()), (1, 1));
        assert!(tally.note_sent(refused(), true).is_err());
    }
}
