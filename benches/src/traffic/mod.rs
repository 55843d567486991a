//! Traffic sources: iperf3 for bulk, and small tools of our own for round trips, packets and connections.
//!
//! The client runs on one processor and the server on another, so that neither the scheduler nor a
//! cache decides what is measured. Round trips alone have both ends on one processor: between two,
//! the time to wake an idle processor is several times that of the path.

mod connections;
mod connects;
mod iperf;
mod packets;
mod round_trips;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use weft_lab::Place;

use crate::BenchError;

pub use connections::connections_per_second;
pub use connects::connect_times;
pub use iperf::{Bulk, Flow, IperfServer};
pub use packets::packets_per_second;
pub use round_trips::round_trips;

/// How long one step of one of our own tools may take before the path counts as broken.
const PATIENCE: Duration = Duration::from_secs(5);

/// The two ends of a path.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Who asks.
    pub client: Place,
    /// Who answers.
    pub server: Place,
    /// At which address.
    pub to: Ipv4Addr,
    /// Where the server listens.
    pub listen: Listen,
}

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At the very address that the client asks for, on any port that is free.
    There,
    /// At all its addresses, each tool on its own port of [`PORTS`]: the address that the client asks
    /// for is a service's, whose ports are declared beforehand.
    Anywhere,
}

/// The ports of iperf3, of connections and of round trips, where they must be known.
pub const PORTS: [u16; 3] = [iperf::PORT, connections::PORT, round_trips::PORT];

impl Ends {
    /// Where a server is to listen whose port is this one, where it must be known.
    fn listen(&self, port: u16) -> SocketAddr {
        match self.listen {
            Listen::There => (self.to, 0).into(),
            Listen::Anywhere => (Ipv4Addr::UNSPECIFIED, port).into(),
        }
    }

    /// Where the client finds a server that listens there.
    fn target(&self, listening: SocketAddr) -> SocketAddr {
        (self.to, listening.port()).into()
    }

    fn silent(&self, what: &str) -> BenchError {
        let (from, to, address) = (self.client.name(), self.server.name(), self.to);
        BenchError::Silent { what: format!("{what} from {from} to {to} ({address})") }
    }
}

/// The processors that the two ends run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The client's.
    pub client: usize,
    /// The server's; the same on a machine with one.
    pub server: usize,
}

impl Cores {
    /// The first two processors that this process may use.
    pub fn here() -> Result<Self, BenchError> {
        let allowed = sched_getaffinity(Pid::from_raw(0))
            .map_err(|error| BenchError::io("ask which processors may be used")(error.into()))?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let client = cores.next().unwrap_or(0);
        Ok(Self { client, server: cores.next().unwrap_or(client) })
    }
}

/// Does something on a thread that stays on one processor.
fn spawn_on<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    core: usize,
    job: impl FnOnce() -> io::Result<T> + Send + 'scope,
) -> ScopedJoinHandle<'scope, io::Result<T>> {
    scope.spawn(move || {
        let mut set = CpuSet::new();
        set.set(core)?;
        sched_setaffinity(Pid::from_raw(0), &set)?;
        job()
    })
}

/// What a thread of ours came to.
fn join<T>(thread: ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
