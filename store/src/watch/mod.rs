//! A watch that never ends: a snapshot, then every change, through outages, compaction and wipes.
//!
//! A task per watch talks to the store, so that a slow consumer never stalls the connection that
//! other calls share, and so that [`Watch::next`] can be cancelled freely. What it decides is in
//! [`tracker`].

mod tracker;

use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;
use tracing::debug;

use crate::WatchEvent;
use crate::backend::{Backend, Select, Stream};
use crate::backoff::Backoff;
use crate::fault::Fault;
use crate::store::snapshot;
use tracker::{Start, Tracker};

/// How many events may wait for the consumer. With more, the stream is dropped and resumed from
/// etcd's history once the consumer is back.
const QUEUE: usize = 1024;

/// An endless watch on a prefix, made by [`crate::Store::watch`]. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn spawn(backend: Backend, prefix: String) -> Watch {
        let (sender, events) = mpsc::channel(QUEUE);
        let driver = Driver { backend, prefix, events: sender, tracker: Tracker::default() };
        Watch { events, task: tokio::spawn(driver.run()) }
    }

    /// The next event. Waits as long as it takes; may be cancelled without losing an event.
    pub async fn next(&mut self) -> WatchEvent {
        if let Some(event) = self.events.recv().await {
            return event;
        }
        // The task only ends when this watch is dropped, unless it panicked or the runtime stops.
        match (&mut self.task).await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Driver {
    backend: Backend,
    prefix: String,
    events: mpsc::Sender<WatchEvent>,
    tracker: Tracker,
}

/// Why a session ended.
enum End {
    /// It broke.
    Failed(Fault),
    /// The next session lists.
    Relist,
    /// The consumer is slow; this event is not delivered yet.
    Slow(WatchEvent),
    /// The consumer is gone.
    Dropped,
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Compacted => End::Relist,
            fault => End::Failed(fault),
        }
    }
}

impl Driver {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let end = match self.session(&mut backoff).await {
                Err(end) => end,
                Ok(never) => match never {},
            };
            match end {
                End::Dropped => return,
                End::Relist => self.tracker.history_lost(),
                End::Slow(event) => {
                    debug!(
                        prefix = self.prefix,
                        "the watch's consumer is slow; resuming once it has caught up"
                    );
                    if self.events.send(event).await.is_err() {
                        return;
                    }
                }
                End::Failed(fault) => {
                    debug!(prefix = self.prefix, reason = fault.reason(), "watch interrupted");
                    if let Some(event) = self.tracker.failed(|| fault.reason())
                        && self.events.send(event).await.is_err()
                    {
                        return;
                    }
                    self.backend.wait_to_retry(&mut backoff).await;
                }
            }
        }
    }

    /// One connection's life.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, End> {
        let after = match self.tracker.start() {
            Start::After(revision) => revision,
            Start::List => {
                let range = self.backend.range(Select::Prefix(&self.prefix), None, false).await?;
                let snapshot = snapshot(range);
                let revision = snapshot.revision;
                let event = self.tracker.listed(snapshot);
                self.events.send(event).await.map_err(|_| End::Dropped)?;
                revision
            }
        };
        // The stream first, then the look at the past: whatever store answers the latter is no older
        // than the one behind the stream.
        let mut stream = self.backend.watch(&self.prefix, after.next()).await?;
        let past = self.backend.range(Select::Prefix(&self.prefix), Some(after), true).await;
        if !self.tracker.verify(past)? {
            return Err(End::Relist);
        }
        backoff.reset();
        if let Some(event) = self.tracker.flowing() {
            self.deliver(event)?;
        }
        loop {
            self.step(&mut stream).await?;
        }
    }

    async fn step(&mut self, stream: &mut Stream) -> Result<(), End> {
        let batch = stream.next().await?;
        match self.tracker.batch(batch) {
            Ok(Some(event)) => self.deliver(event),
            Ok(None) => Ok(()),
            Err(tracker::Foreign) => Err(Fault::silent("the stream switched to another cluster").into()),
        }
    }

    fn deliver(&self, event: WatchEvent) -> Result<(), End> {
        self.events.try_send(event).map_err(|error| match error {
            TrySendError::Full(event) => End::Slow(event),
            TrySendError::Closed(_) => End::Dropped,
        })
    }
}
