//! Who accepts clients' connections and carries them: threads of their own, each with its listeners.
//!
//! The rules lead a connection to one of two ports, by the set of endpoints that it may go to. What the
//! client meant is what connection tracking remembers (`SO_ORIGINAL_DST`). Each thread listens at both
//! ports of each family for itself (`SO_REUSEPORT`), and what it accepts stays with it: no connection
//! ever waits for another thread.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use weft_daemon::log::chain;

use super::accept;
use super::dial;
use super::services::Services;
use super::sources::Sources;
use crate::metrics::relayed::{OfAll, OfEndpoint, Reading, number, value};
use crate::model::{Family, Policy, family_of};

/// How many connections wait for us to accept them; the kernel takes `net.core.somaxconn` for more.
const BACKLOG: i32 = 4096;

/// What a relay is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The most connections of one client's address at once, over IPv6 of one /64 (`None`: any number).
    pub per_source: Option<u32>,
    /// How long connections may go on once the daemon is told to stop.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { per_source: None, drain: Duration::from_secs(30) }
    }
}

/// What all threads and the daemon's loop share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) services: Services,
    pub(super) sources: Sources,
    pub(super) active: AtomicUsize,
    pub(super) ended: Notify,
    pub(super) counts: Counts,
}

/// What is counted of no service.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Times that no connection could be accepted for want of descriptors or memory.
    pub(super) exhausted: AtomicU64,
    /// Connections to what no service has.
    pub(super) astray: AtomicU64,
    /// Connections of sources that had as many as they may.
    pub(super) over_limit: AtomicU64,
}

/// Where clients' connections are to be led in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doors {
    /// For those that may go to any endpoint.
    pub(crate) cluster: SocketAddr,
    /// For those that may go to an endpoint on this host only.
    pub(crate) local: SocketAddr,
}

/// The threads. They end with the last handle.
#[derive(Clone, Debug)]
pub struct Relay {
    pub(super) shared: Arc<Shared>,
    threads: Arc<[mpsc::UnboundedSender<Told>]>,
    drain: Duration,
}

/// What a thread is told.
enum Told {
    /// To listen there as well.
    Listen(Vec<Listening>),
    /// To listen no longer but where it was told last.
    OnlyLast,
}

/// A listener of one thread.
struct Listening {
    socket: std::net::TcpListener,
    set: Policy,
}

impl Relay {
    /// Starts the threads, in this thread's network namespace. Nothing listens yet.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn start(options: Options) -> io::Result<Self> {
        raise_descriptors();
        let shared = Arc::new(Shared {
            services: Services::default(),
            sources: Sources::at_most(options.per_source),
            active: AtomicUsize::new(0),
            ended: Notify::new(),
            counts: Counts::default(),
        });
        let count = thread::available_parallelism().map_or(1, usize::from);
        let threads: io::Result<Vec<_>> = (0..count).map(|number| start(number, shared.clone())).collect();
        Ok(Self { shared, threads: threads?.into(), drain: options.drain })
    }

    /// Listens at these addresses of the host; says at which ports.
    pub(super) fn listen(&self, addresses: &[IpAddr]) -> io::Result<Vec<Doors>> {
        let mut all: Vec<Vec<Listening>> = self.threads.iter().map(|_| Vec::new()).collect();
        let mut doors = Vec::new();
        for address in addresses {
            let mut door = |set: Policy| {
                let mut at = SocketAddr::new(*address, 0);
                for of_thread in &mut all {
                    let socket = listener(at)?;
                    at = socket.local_addr()?;
                    of_thread.push(Listening { socket, set });
                }
                io::Result::Ok(at)
            };
            doors.push(Doors { cluster: door(Policy::Cluster)?, local: door(Policy::Local)? });
        }
        for (thread, listening) in self.threads.iter().zip(all) {
            // A thread ends before us only by a panic, which has been reported.
            let _ = thread.send(Told::Listen(listening));
        }
        Ok(doors)
    }

    /// Listens no longer but where it was told last.
    pub(super) fn only_last(&self) {
        for thread in self.threads.iter() {
            let _ = thread.send(Told::OnlyLast);
        }
    }

    /// Waits until no connection is left, or time is up; says how many are. New ones are still
    /// accepted: the rules lead no more here, but some may be waiting.
    pub(crate) async fn drained(&self) -> usize {
        let left = || self.shared.active.load(Ordering::SeqCst);
        let over = async {
            loop {
                let ended = self.shared.ended.notified();
                if left() == 0 {
                    return;
                }
                ended.await;
            }
        };
        let _ = tokio::time::timeout(self.drain, over).await;
        left()
    }

    /// All that is counted.
    pub(crate) fn reading(&self) -> Reading {
        let counts = &self.shared.counts;
        let mut reading = Reading {
            all: OfAll {
                active: self.active(),
                exhausted: value(&counts.exhausted),
                astray: value(&counts.astray),
                over_limit: value(&counts.over_limit),
            },
            ..Reading::default()
        };
        for port in self.shared.services.ports() {
            let of_port = reading.ports.entry(port.name.clone()).or_default();
            of_port.connections += value(&port.counts.connections);
            of_port.retries += value(&port.counts.retries);
            of_port.failures += value(&port.counts.failures);
            for endpoint in port.endpoints() {
                let of_endpoint = OfEndpoint {
                    active: number(&endpoint.active),
                    connections: value(&endpoint.connections),
                    failures: value(&endpoint.failures),
                    ejections: value(&endpoint.ejections),
                    out: endpoint.is_out(),
                    received: value(&endpoint.meter.forth),
                    sent: value(&endpoint.meter.back),
                };
                reading.endpoints.insert((port.name.clone(), endpoint.address), of_endpoint);
            }
        }
        reading
    }

    /// How many connections there are.
    pub(crate) fn active(&self) -> usize {
        self.shared.active.load(Ordering::SeqCst)
    }
}

impl Doors {
    pub(super) fn family(&self) -> Family {
        family_of(self.cluster.ip())
    }

    pub(super) fn of(&self, set: Policy) -> SocketAddr {
        match set {
            Policy::Cluster => self.cluster,
            Policy::Local => self.local,
        }
    }
}

fn start(number: usize, shared: Arc<Shared>) -> io::Result<mpsc::UnboundedSender<Told>> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (tell, mut told) = mpsc::unbounded_channel::<Told>();
    thread::Builder::new().name(format!("relay-{number}")).spawn(move || {
        runtime.block_on(async {
            // Who is dropped accepts no more.
            let mut accepting: Vec<JoinSet<()>> = Vec::new();
            while let Some(told) = told.recv().await {
                match told {
                    Told::Listen(listening) => accepting.push(accept(listening, &shared)),
                    Told::OnlyLast => drop(accepting.drain(..accepting.len().saturating_sub(1))),
                }
            }
        });
    })?;
    Ok(tell)
}

fn accept(listening: Vec<Listening>, shared: &Arc<Shared>) -> JoinSet<()> {
    let mut accepting = JoinSet::new();
    for Listening { socket, set } in listening {
        match TcpListener::from_std(socket) {
            Ok(listener) => drop(accepting.spawn(accept::all(listener, set, shared.clone()))),
            Err(error) => tracing::error!(error = chain(&error), "a listener cannot be used"),
        }
    }
    accepting
}

fn listener(at: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    // What is accepted inherits all of this.
    dial::prepare(SockRef::from(&socket))?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Each connection takes two descriptors, and the usual limit is 1024.
fn raise_descriptors() {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    // More than the hard limit is for who may have it; `fs.nr_open` is the end.
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let most: u64 = most.unwrap_or(hard).max(hard);
    if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_err()
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, hard, "the limit of open files cannot be raised");
    }
}

/// Counts a connection for as long as it lives.
pub(super) struct Active(Arc<Shared>);

impl Active {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.active.fetch_add(1, Ordering::SeqCst);
        Self(shared.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

/// The time for whoever asks for it often: what the runtime has is what tests can stop.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
