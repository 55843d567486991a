//! A network in memory that obeys the kernel's rules, for tests of whoever uses [`Net`].
//!
//! The rules are in `world`; a suite and random walks (kernel/tests) hold them against a real kernel.
//! Not in it: link-local addresses and what neighbours learn by themselves, IPv4 secondary addresses,
//! several routes under one key; and a bridge has its carrier whenever it is up.

mod world;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::{Change, Event, Events, Failure, Net, NetError, State};
use world::World;

/// A network in memory. Clones share it: one end can be the daemon's, the other the test's.
#[derive(Clone, Default)]
pub struct FakeNet(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    world: World,
    listeners: Vec<mpsc::UnboundedSender<Event>>,
    refusals: Vec<Refusal>,
    blind: Vec<i32>,
    accepted: Vec<Change>,
}

struct Refusal {
    errno: i32,
    which: Box<dyn Fn(&Change) -> bool + Send>,
}

impl FakeNet {
    /// A fresh namespace with its loopback link up.
    pub fn new() -> Self {
        Self::default()
    }

    /// A namespace that holds a state already, taken as it is. The two ends of a veth pair in it are
    /// not known to belong together.
    pub fn holding(state: State) -> Self {
        let fake = Self::new();
        fake.inner().world.state = state;
        fake
    }

    /// What it holds.
    pub fn state(&self) -> State {
        self.inner().world.state.clone()
    }

    /// What it was asked to change and accepted, in order.
    pub fn accepted(&self) -> Vec<Change> {
        self.inner().accepted.clone()
    }

    /// Refuses the next change that matches, once, with this error number.
    pub fn refuse(&self, errno: i32, which: impl Fn(&Change) -> bool + Send + 'static) {
        self.inner().refusals.push(Refusal { errno, which: Box::new(which) });
    }

    /// Makes the next [`Net::observe`] fail with this error number.
    pub fn fail_observe(&self, errno: i32) {
        self.inner().blind.push(errno);
    }

    /// Somebody else changes something: like [`Net::apply`], without injected refusals, and not among
    /// [`FakeNet::accepted`].
    pub fn disturb(&self, changes: &[Change]) -> Vec<Failure> {
        let mut inner = self.inner();
        let each = changes.iter().enumerate();
        each.filter_map(|(index, change)| inner.change(index, change)).collect()
    }

    /// Tells every listener that events were lost.
    pub fn lose_events(&self) {
        self.inner().tell([Event::Lost]);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn change(&mut self, index: usize, change: &Change) -> Option<Failure> {
        let done = self.world.change(change);
        let told = std::mem::take(&mut self.world.told);
        self.tell(told);
        done.err().map(|refused| Failure {
            index,
            change: change.clone(),
            said: refused.said.map(str::to_owned),
            source: io::Error::from(refused.errno),
        })
    }

    fn injected(&mut self, index: usize, change: &Change) -> Option<Failure> {
        let nth = self.refusals.iter().position(|refusal| (refusal.which)(change))?;
        let source = io::Error::from_raw_os_error(self.refusals.remove(nth).errno);
        Some(Failure { index, change: change.clone(), said: None, source })
    }

    fn tell(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.listeners.retain(|listener| listener.send(event.clone()).is_ok());
        }
    }
}

impl Net for FakeNet {
    async fn observe(&self) -> Result<State, NetError> {
        let mut inner = self.inner();
        match inner.blind.pop() {
            Some(errno) => Err(NetError::Dump { what: "links", source: io::Error::from_raw_os_error(errno) }),
            None => Ok(inner.world.state.clone()),
        }
    }

    async fn apply(&self, changes: &[Change]) -> Vec<Failure> {
        let mut inner = self.inner();
        let mut failures = vec![];
        for (index, change) in changes.iter().enumerate() {
            if let Some(failure) = inner.injected(index, change) {
                failures.push(failure);
                continue;
            }
            match inner.change(index, change) {
                None => inner.accepted.push(change.clone()),
                Some(failure) => failures.push(failure),
            }
        }
        failures
    }

    fn events(&self) -> Result<Events, NetError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.inner().listeners.push(sender);
        let next =
            |mut receiver: mpsc::UnboundedReceiver<Event>| async { Some((receiver.recv().await?, receiver)) };
        Ok(Events::new(futures::stream::unfold(receiver, next)))
    }
}

impl std::fmt::Debug for FakeNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FakeNet").field(&self.inner().world.state).finish()
    }
}
