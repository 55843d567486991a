//! The kernel behind the seam: rtnetlink.
//!
//! `encode` and `decode` are pure; `socket` moves bytes; `observe`, `apply` and `events` are what
//! [`Net`] asks for. rtnetlink's own request-at-a-time client is not used: a batch of 15,000 changes is
//! a few dozen system calls here.

mod apply;
mod decode;
mod encode;
mod events;
mod observe;
mod socket;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::spawn_blocking;

pub use observe::LinkStats;

use super::{Change, Events, Failure, LinkName, Net, NetError, State};
use crate::netns::{self, NetNs};
use socket::{RECEIVE_BUFFER, Socket};

/// One network namespace, through rtnetlink. Cheap to clone; clones share two sockets, one to look and
/// one to change, so that a long look does not hold a change up.
#[derive(Clone)]
pub struct Rtnetlink {
    ns: NetNs,
    looking: Arc<Mutex<Option<Socket>>>,
    changing: Arc<Mutex<Option<Socket>>>,
}

impl Rtnetlink {
    /// The namespace of the calling thread.
    pub fn open() -> Result<Self, NetError> {
        Self::open_in(&NetNs::current()?)
    }

    /// Another namespace. The caller stays where it is.
    pub fn open_in(ns: &NetNs) -> Result<Self, NetError> {
        let looking = Arc::new(Mutex::new(Some(socket_in(ns)?)));
        let changing = Arc::new(Mutex::new(Some(socket_in(ns)?)));
        Ok(Self { ns: ns.clone(), looking, changing })
    }

    /// The namespace it looks at and changes.
    pub fn netns(&self) -> &NetNs {
        &self.ns
    }

    /// [`Net::observe`] for code without a runtime; it blocks.
    pub fn observe_blocking(&self) -> Result<State, NetError> {
        self.with(&self.looking, observe::observe)
    }

    /// [`Net::apply`] for code without a runtime; it blocks.
    pub fn apply_blocking(&self, changes: &[Change]) -> Vec<Failure> {
        let applied = self.with(&self.changing, |socket| Ok(apply::apply(socket, changes)));
        applied.unwrap_or_else(|error| all_failed(changes, &error))
    }

    /// Bytes, packets and drops of every link. It blocks for as long as a list of links takes.
    pub fn link_stats_blocking(&self) -> Result<BTreeMap<LinkName, LinkStats>, NetError> {
        self.with(&self.looking, observe::statistics)
    }

    /// Bytes, packets and drops of every link.
    pub async fn link_stats(&self) -> Result<BTreeMap<LinkName, LinkStats>, NetError> {
        let this = self.clone();
        joined(spawn_blocking(move || this.link_stats_blocking()).await)
    }

    /// Lends a socket out. One that failed may have answers on their way that nobody waits for, so
    /// it is thrown away.
    fn with<T>(
        &self,
        socket: &Mutex<Option<Socket>>,
        act: impl FnOnce(&mut Socket) -> Result<T, NetError>,
    ) -> Result<T, NetError> {
        let mut held = socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lent = match held.take() {
            Some(socket) => socket,
            None => socket_in(&self.ns)?,
        };
        let done = act(&mut lent)?;
        *held = Some(lent);
        Ok(done)
    }
}

impl Net for Rtnetlink {
    async fn observe(&self) -> Result<State, NetError> {
        let this = self.clone();
        joined(spawn_blocking(move || this.observe_blocking()).await)
    }

    async fn apply(&self, changes: &[Change]) -> Vec<Failure> {
        let (this, changes) = (self.clone(), changes.to_vec());
        joined(spawn_blocking(move || this.apply_blocking(&changes)).await)
    }

    fn events(&self) -> Result<Events, NetError> {
        events::subscribe(&self.ns, events::RECEIVE_BUFFER)
    }
}

impl std::fmt::Debug for Rtnetlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rtnetlink").field("ns", &self.ns).finish_non_exhaustive()
    }
}

fn socket_in(ns: &NetNs) -> Result<Socket, NetError> {
    inside(ns, || Socket::open(RECEIVE_BUFFER))?.map_err(NetError::Open)
}

/// Runs something in a namespace, on this thread where that is where we are: then no right to enter
/// namespaces is needed.
fn inside<T: Send>(ns: &NetNs, act: impl FnOnce() -> T + Send) -> Result<T, NetError> {
    if ns.is_current() { Ok(act()) } else { Ok(netns::run_in(ns, act)?) }
}

fn all_failed(changes: &[Change], error: &NetError) -> Vec<Failure> {
    let failed = |(index, change): (usize, &Change)| Failure {
        index,
        change: change.clone(),
        said: None,
        source: io::Error::other(error.to_string()),
    };
    changes.iter().enumerate().map(failed).collect()
}

/// A panic inside is a panic here; a task of a runtime that shuts down has nobody left to answer.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
