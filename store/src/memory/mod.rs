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
use crate::{ClusterId, LeaseId, Revision, Store, Txn, TxnOutcome};
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

/// One client's way to the store.
pub(crate) struct Memory {
    shared: Arc<Shared>,
    wire: Mutex<Wire>,
}

/// What all clients share.
struct Shared {
    data: Mutex<Data>,
    /// Counts changes of the data and of any wire.
    changed: watch::Sender<u64>,
}

struct Data {
    mvcc: Mvcc,
    wipes: u32,
}

struct Wire {
    connected: bool,
    /// Counts cuts: a stream from before one is dead.
    cuts: u64,
    failures: Vec<(Call, Lost)>,
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        let data = Data { mvcc: fresh(CLUSTER, 0), wipes: 0 };
        Memory::on(Arc::new(Shared { data: Mutex::new(data), changed: watch::Sender::new(0) }))
    }

    fn on(shared: Arc<Shared>) -> Arc<Self> {
        let wire = Wire { connected: true, cuts: 0, failures: Vec::new() };
        Arc::new(Memory { shared, wire: Mutex::new(wire) })
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
        let wipes = self.reach()?.wipes;
        let cuts = lock(&self.wire).cuts;
        let changed = self.shared.changed.subscribe();
        Ok(MemoryStream { memory: self.clone(), changed, prefix: prefix.to_owned(), from, wipes, cuts })
    }

    /// Waits for the connection.
    pub(crate) async fn connected(&self) {
        let mut changed = self.shared.changed.subscribe();
        // An error would mean that the sender, ours, is gone.
        let _ = changed.wait_for(|_| lock(&self.wire).connected).await;
    }

    /// Runs a call, unless it is its turn to fail.
    pub(crate) async fn hazard<T>(
        &self,
        call: Call,
        run: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let lost = {
            let failures = &mut lock(&self.wire).failures;
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

    fn reach(&self) -> Result<MutexGuard<'_, Data>, Fault> {
        if lock(&self.wire).connected {
            Ok(lock(&self.shared.data))
        } else {
            Err(Fault::unsent("disconnected"))
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Mvcc) -> Result<T, Fault>) -> Result<T, Fault> {
        let done = change(&mut self.reach()?.mvcc);
        self.shared.changed.send_modify(|count| *count += 1);
        done
    }
}

/// A panic elsewhere cannot leave anything half changed: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Any id but zero.
const CLUSTER: ClusterId = ClusterId(0x7765_6674);

fn fresh(cluster: ClusterId, wipes: u32) -> Mvcc {
    // Lease ids of one store are unknown to the next.
    Mvcc::new(cluster, 0x1_0000 * (i64::from(wipes) + 1))
}

/// An open watch.
pub(crate) struct MemoryStream {
    memory: Arc<Memory>,
    changed: watch::Receiver<u64>,
    prefix: String,
    from: Revision,
    wipes: u32,
    cuts: u64,
}

impl MemoryStream {
    pub(crate) async fn next(&mut self) -> Result<Batch, Fault> {
        loop {
            self.changed.mark_unchanged();
            {
                let data = self.memory.reach()?;
                if data.wipes != self.wipes || lock(&self.memory.wire).cuts != self.cuts {
                    return Err(Fault::silent("the connection broke"));
                }
                // A watch from the future waits, as etcd's does.
                if self.from <= data.mvcc.header().revision {
                    let batch = data.mvcc.since(&self.prefix, self.from)?;
                    self.from = data.mvcc.header().revision.next();
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

    /// Another client of the same store, with a connection of its own: another host.
    pub fn another(&self) -> (Store, MemoryControl) {
        Store::on_memory(Memory::on(self.memory.shared.clone()))
    }

    /// The store's newest revision.
    pub fn revision(&self) -> Revision {
        lock(&self.memory.shared.data).mvcc.header().revision
    }

    /// The leases that live.
    pub fn leases(&self) -> Vec<LeaseId> {
        lock(&self.memory.shared.data).mvcc.leases()
    }

    /// Ends a lease at once, with its keys. `false` where there was none.
    pub fn expire(&self, lease: LeaseId) -> bool {
        self.change(|data| data.mvcc.revoke(lease).is_ok())
    }

    /// Time goes by for leases.
    pub fn advance(&self, by: Duration) {
        self.change(|data| data.mvcc.advance(by));
    }

    /// Forgets the history, as `etcdctl compact` at the newest revision.
    pub fn compact(&self) {
        self.change(|data| data.mvcc.compact());
    }

    /// An empty store in the old one's place, with another cluster id. All watches are cut.
    pub fn wipe(&self) {
        self.change(|data| {
            data.wipes += 1;
            data.mvcc = fresh(ClusterId(CLUSTER.0 + u64::from(data.wipes)), data.wipes);
        });
    }

    /// As [`MemoryControl::wipe`], but with the same cluster id: what a real etcd does that is
    /// started again without its data directory and with the same flags.
    pub fn wipe_keeping_cluster_id(&self) {
        self.change(|data| {
            data.wipes += 1;
            data.mvcc = fresh(data.mvcc.header().cluster, data.wipes);
        });
    }

    /// This client's calls fail and its watches are cut, until [`MemoryControl::reconnect`].
    pub fn disconnect(&self) {
        self.rewire(|wire| {
            wire.connected = false;
            wire.cuts += 1;
        });
    }

    /// Ends [`MemoryControl::disconnect`].
    pub fn reconnect(&self) {
        self.rewire(|wire| wire.connected = true);
    }

    /// This client's next such call fails and is not done.
    pub fn fail_next(&self, call: Call) {
        self.rewire(|wire| wire.failures.push((call, Lost::Request)));
    }

    /// This client's next such call is done, but its answer gets lost.
    pub fn lose_next_answer(&self, call: Call) {
        self.rewire(|wire| wire.failures.push((call, Lost::Answer)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Data) -> T) -> T {
        let done = change(&mut lock(&self.memory.shared.data));
        self.tell();
        done
    }

    fn rewire(&self, change: impl FnOnce(&mut Wire)) {
        change(&mut lock(&self.memory.wire));
        self.tell();
    }

    fn tell(&self) {
        self.memory.shared.changed.send_modify(|count| *count += 1);
    }
}

impl std::fmt::Debug for MemoryControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryControl").field("revision", &self.revision()).finish_non_exhaustive()
    }
}
