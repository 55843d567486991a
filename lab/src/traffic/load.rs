//! New connections without end: which of them failed, and when.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::named::{Answer, Answers, Protocol, ask};
use crate::{LabError, Place, netns};

/// What came of all the connections so far.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Who answered how often.
    pub answers: Answers,
    /// When those began that nobody answered, and what came of them.
    pub failed: Vec<(Instant, Answer)>,
    /// The longest time that one took.
    pub longest: Duration,
}

impl LoadReport {
    /// How many were answered.
    pub fn answered(&self) -> usize {
        self.answers.by_server.values().sum()
    }
}

/// A client that asks again and again; ends when dropped.
#[derive(Debug)]
pub struct Load {
    what: String,
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<LoadReport>>,
    thread: Option<JoinHandle<()>>,
}

impl Place {
    /// Asks who is there, one connection after the other, each of which may take as long as `limit`.
    pub fn load(&self, to: SocketAddr, protocol: Protocol, limit: Duration) -> Result<Load, LabError> {
        let what = format!("{protocol} {} -> {to}", self.name());
        let (stop, report) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(LoadReport::default())));
        let (netns, halt, books) = (self.netns().to_owned(), stop.clone(), report.clone());
        let client = move || {
            while !halt.load(Ordering::Relaxed) {
                let began = Instant::now();
                let answer = ask(to, protocol, limit);
                let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
                books.longest = books.longest.max(began.elapsed());
                match answer {
                    answered @ Answer::From { .. } => books.answers.note(answered),
                    other => books.failed.push((began, other)),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(what.chars().take(15).collect())
            .spawn(move || {
                let _ = netns::run_in(&netns, client);
            })
            .map_err(LabError::io(format!("start {what}")))?;
        Ok(Load { what, stop, report, thread: Some(thread) })
    }
}

impl Load {
    /// What came of it so far.
    pub fn so_far(&self) -> LoadReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks no more, and says what came of it.
    pub fn stop(mut self) -> LoadReport {
        self.end();
        self.so_far()
    }

    /// As [`Load::stop`], as an error unless every single one was answered.
    pub fn stop_without_failure(self) -> Result<LoadReport, LabError> {
        let what = self.what.clone();
        let report = self.stop();
        if report.failed.is_empty() && report.answered() > 0 {
            return Ok(report);
        }
        let some: Vec<&Answer> = report.failed.iter().take(5).map(|(_, answer)| answer).collect();
        let what =
            format!("{what}: {} answered, {} failed: {some:?}", report.answered(), report.failed.len());
        Err(LabError::Traffic { what })
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}
