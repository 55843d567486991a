//! The in-memory twin of etcd, for tests: the same answers, and every misfortune on demand.
//!
//! It has no clock: leases end when [`MemoryControl`] says so, and a watch that lost its connection
//! tries again when the connection is back.

mod mvcc;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::backend::{Batch, Range, Select};
use crate::fault::Fault;
use crate::{ClusterId, LeaseId, Revision, Txn, TxnOutcome};
use mvcc::Mvcc;

/// Calls that [`MemoryControl::fail_next`] can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`crate::Store::get`].
    Get,
    /// [`crate::Store::list`].
    List,
    /// [`crate::Store::commit`].
    Commit,
    /// [`crate::Store::grant`].
    Grant,
    /// [`crate::Store::keep_alive`].
    KeepAlive,
    /// [`crate::Store::time_to_live`].
    TimeToLive,
    /// [`crate::Store::revoke`].
    Revoke,
}

/// Whether a failing call was done all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Request,
    Answer,
}

/// The store itself.
pub(crate) struct Memory {
    state: Mutex<State>,
    /// Counts changes of the state.
    changed: watch::Sender<u64>,
}

struct State {
    mvcc: Mvcc,
    /// Set where calls and watches meet a store that is not there.
    connected: bool,
    /// Counts broken connections: a stream of an older one is dead.
    connection: u64,
    failures: Vec<(Call, Lost)>,
    wipes: u64,
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        let state =
            State { mvcc: fresh(CLUSTER, 0), connected: true, connection: 0, failures: Vec::new(), wipes: 0 };
        Arc::new(Memory { state: Mutex::new(state), changed: watch::Sender::new(0) })
    }

    pub(crate) fn range(&self, select: Select<'_>, at: Option<Revision>) -> Result<Range, Fault> {
        self.reach()?.mvcc.range(select, at)
    }

    pub(crate) fn commit(&self, txn: Txn) -> Result<TxnOutcome, Fault> {
        self.change(|mvcc| mvcc.commit(&txn))
    }

    pub(crate) fn grant(&self, ttl: Duration) -> Result<LeaseId, Fault> {
        self.change(|mvcc| Ok(mvcc.grant(ttl)))
    }

    pub(crate) fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Fault> {
        self.change(|mvcc| mvcc.keep_alive(lease))
    }

    pub(crate) fn time_to_live(&self, lease: LeaseId) -> Result<Duration, Fault> {
        self.reach()?.mvcc.time_to_live(lease)
    }

    pub(crate) fn revoke(&self, lease: LeaseId) -> Result<(), Fault> {
        self.change(|mvcc| mvcc.revoke(lease))
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &str, from: Revision) -> Result<MemoryStream, Fault> {
        let connection = self.reach()?.connection;
        Ok(MemoryStream {
            changed: self.changed.subscribe(),
            memory: self.clone(),
            prefix: prefix.to_owned(),
            from,
            connection,
        })
    }

    /// Waits for the connection.
    pub(crate) async fn connected(&self) {
        let mut changed = self.changed.subscribe();
        // An error would mean that the sender, `self`, is gone.
        let _ = changed.wait_for(|_| self.lock().connected).await;
    }

    /// Runs a call, unless it is its turn to fail.
    pub(crate) async fn hazard<T>(
        &self,
        call: Call,
        run: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let lost = {
            let failures = &mut self.lock().failures;
            failures.iter().position(|(next, _)| *next == call).map(|at| failures.remove(at).1)
        };
        match lost {
            None => run.await,
            Some(Lost::Request) => Err(Fault::unsent("told to fail")),
            Some(Lost::Answer) => {
                run.await?;
                Err(Fault::silent("told to lose the answer"))
            }
        }
    }

    fn reach(&self) -> Result<MutexGuard<'_, State>, Fault> {
        let state = self.lock();
        if state.connected { Ok(state) } else { Err(Fault::unsent("disconnected")) }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Mvcc) -> Result<T, Fault>) -> Result<T, Fault> {
        let done = change(&mut self.reach()?.mvcc);
        self.changed.send_modify(|count| *count += 1);
        done
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave it half changed: every change is one call of `Mvcc`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Any id but zero.
const CLUSTER: ClusterId = ClusterId(0x7765_6674);

fn fresh(cluster: ClusterId, wipes: u64) -> Mvcc {
    // Lease ids of one store are unknown to the next.
    Mvcc::new(cluster, 0x1000 * (wipes as i64 + 1))
}

/// An open watch.
pub(crate) struct MemoryStream {
    memory: Arc<Memory>,
    changed: watch::Receiver<u64>,
    prefix: String,
    from: Revision,
    connection: u64,
}

impl MemoryStream {
    pub(crate) async fn next(&mut self) -> Result<Batch, Fault> {
        loop {
            self.changed.mark_unchanged();
            {
                let state = self.memory.lock();
                if !state.connected || state.connection != self.connection {
                    return Err(Fault::silent("the connection broke"));
                }
                // A watch from the future waits, as etcd's does.
                if self.from <= state.mvcc.header().revision {
                    let batch = state.mvcc.since(&self.prefix, self.from)?;
                    self.from = Revision(state.mvcc.header().revision.0 + 1);
                    return Ok(batch);
                }
            }
            // The sender lives in `self.memory`.
            let _ = self.changed.changed().await;
        }
    }
}

/// The hand that moves a [`crate::Store::memory`]: time, outages, wipes.
#[derive(Clone)]
pub struct MemoryControl {
    memory: Arc<Memory>,
}

impl MemoryControl {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        MemoryControl { memory }
    }

    /// The store's newest revision.
    pub fn revision(&self) -> Revision {
        self.memory.lock().mvcc.header().revision
    }

    /// The leases that live.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.memory.lock().mvcc.leases()
    }

    /// Ends a lease at once, with its keys. `false` where there was none.
    pub fn expire(&self, lease: LeaseId) -> bool {
        self.change(|state| state.mvcc.revoke(lease).is_ok())
    }

    /// Time goes by for leases.
    pub fn advance(&self, by: Duration) {
        self.change(|state| state.mvcc.advance(by));
    }

    /// Forgets the history, as `etcdctl compact` at the newest revision.
    pub fn compact(&self) {
        self.change(|state| state.mvcc.compact());
    }

    /// An empty store in the old one's place, with another cluster id. Watches lose their connection.
    pub fn wipe(&self) {
        self.change(|state| {
            state.wipes += 1;
            state.connection += 1;
            state.mvcc = fresh(ClusterId(CLUSTER.0 + state.wipes), state.wipes);
        });
    }

    /// As [`MemoryControl::wipe`], but with the same cluster id: what a real etcd does that is
    /// started again without its data directory and with the same flags.
    pub fn wipe_keeping_cluster_id(&self) {
        self.change(|state| {
            state.wipes += 1;
            state.connection += 1;
            state.mvcc = fresh(state.mvcc.header().cluster, state.wipes);
        });
    }

    /// Calls fail and watches are cut, until [`MemoryControl::reconnect`].
    pub fn disconnect(&self) {
        self.change(|state| {
            state.connected = false;
            state.connection += 1;
        });
    }

    /// Ends [`MemoryControl::disconnect`].
    pub fn reconnect(&self) {
        self.change(|state| state.connected = true);
    }

    /// The next such call fails and is not done.
    pub fn fail_next(&self, call: Call) {
        self.change(|state| state.failures.push((call, Lost::Request)));
    }

    /// The next such call is done, but its answer gets lost.
    pub fn lose_next_answer(&self, call: Call) {
        self.change(|state| state.failures.push((call, Lost::Answer)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.memory.lock());
        self.memory.changed.send_modify(|count| *count += 1);
        done
    }
}
