//! The running tunnel: two threads, the sockets and the TUN they share, and the handle on them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use weft_kernel::sysctl::{Family, Sysctl};
use weft_kernel::tun::Tun;

use super::counters::{Counters, TunnelLive};
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::peers::{PeerTable, Routes};
use super::socket::Socket;

/// Packets that wait while the reading thread waits for a processor: 8 ms of full-sized single
/// packets at 1.5 Gb/s, and what other links have (`DEFAULT_TX_QUEUE_LEN`; a TUN is made with 500).
const QUEUE_PACKETS: u16 = 1000;

/// What a tunnel needs to start.
#[derive(Debug)]
pub struct TunnelOptions {
    /// The device, opened with [`weft_kernel::tun::Framing::Vnet`].
    pub tun: Tun,
    /// UDP port, here and at flannel's peers: 8285.
    pub port: u16,
    /// The outer IPv4 address to send from and listen on.
    pub local_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub local_v6: Option<Ipv6Addr>,
}

/// Why a tunnel did not start.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// Neither an IPv4 nor an IPv6 address was given.
    #[error("a tunnel needs an outer address")]
    NoAddress,
    /// The TUN was opened without vnet headers.
    #[error("the TUN {0} has no vnet headers")]
    NoOffloads(weft_kernel::net::LinkName),
    /// The UDP socket could not be had.
    #[error("cannot listen on udp {local}")]
    Listen {
        /// Where.
        local: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No thread or event descriptor.
    #[error("cannot start the tunnel's threads")]
    Threads(#[source] io::Error),
}

/// A tunnel at work in threads of its own. Dropping it stops them; the TUN device stays.
pub struct Tunnel {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share. Nothing in it is locked.
pub(super) struct Shared {
    pub(super) tun: Tun,
    pub(super) routes: ArcSwap<Routes>,
    pub(super) counters: TunnelLive,
    v4: Option<Socket>,
    v6: Option<Socket>,
    stop: EventFd,
    stopping: AtomicBool,
    failure: OnceLock<String>,
}

/// The TUN cannot be used any more: it was deleted.
#[derive(Debug, thiserror::Error)]
#[error("the TUN is gone")]
pub(super) struct Gone(#[source] pub(super) io::Error);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Ready,
    Stop,
}

impl Tunnel {
    /// Opens the sockets in this thread's network namespace, which must be the TUN's, and starts to
    /// forward.
    ///
    /// The address our ICMP errors come from is one of this host, which the kernel drops as martian
    /// when it arrives on a link; so `accept_local` is set on the TUN. Peers' packets with sources in our
    /// own subnet are refused here instead.
    pub fn start(options: TunnelOptions, peers: &PeerTable) -> Result<Self, TunnelError> {
        let TunnelOptions { tun, port, local_v4, local_v6 } = options;
        if tun.offloads().is_none() {
            return Err(TunnelError::NoOffloads(tun.name().clone()));
        }
        if local_v4.is_none() && local_v6.is_none() {
            return Err(TunnelError::NoAddress);
        }
        let listen =
            |local: SocketAddr| Socket::open(local).map_err(|source| TunnelError::Listen { local, source });
        let v4 = local_v4.map(|local| listen((local, port).into())).transpose()?;
        let v6 = local_v6.map(|local| listen((local, port).into())).transpose()?;
        prepare(&tun);
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| TunnelError::Threads(errno.into()))?;
        let shared = Arc::new(Shared {
            tun,
            routes: ArcSwap::from_pointee(Routes::compile(peers, None)),
            counters: TunnelLive::default(),
            v4,
            v6,
            stop,
            stopping: AtomicBool::new(false),
            failure: OnceLock::new(),
        });
        let mut tunnel = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let outbound = Arc::clone(&shared);
        tunnel.spawn("weft-udp-out", move || Outbound::new(outbound).run())?;
        tunnel.spawn("weft-udp-in", move || Inbound::new(shared).run())?;
        Ok(tunnel)
    }

    /// Puts another table into force, without a pause. Peers that stay keep their counters.
    pub fn update(&self, peers: &PeerTable) {
        self.shared.routes.rcu(|before| Routes::compile(peers, Some(before)));
    }

    /// All counters as they are now.
    pub fn counters(&self) -> Counters {
        let routes = self.shared.routes.load();
        Counters {
            tunnel: self.shared.counters.read(),
            peers: routes.peers().iter().map(|peer| (peer.subnet, peer.counters.read())).collect(),
        }
    }

    /// Why the tunnel forwards no longer: its TUN was deleted. Open the TUN and start anew.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    /// Ends the threads and waits for them. The TUN device stays, with its addresses and routes;
    /// packets are dropped until another tunnel attaches to it.
    pub fn stop(self) {
        drop(self);
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(), Gone> + Send + 'static,
    ) -> Result<(), TunnelError> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(Gone(error)) = work() {
                tracing::error!(tun = %shared.tun.name(), %error, "the TUN is gone, the tunnel ends");
                // The other thread may have found out first; one reason is enough.
                let _ = shared.failure.set(format!("the TUN {} is gone: {error}", shared.tun.name()));
                shared.stop();
            }
        });
        self.threads.push(thread.map_err(TunnelError::Threads)?);
        Ok(())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a tunnel's thread had panicked");
            }
        }
    }
}

impl Shared {
    /// Waits until one of these is readable or the tunnel is stopped.
    pub(super) fn wait(&self, readable: &[BorrowedFd<'_>]) -> Result<Wake, Gone> {
        let stop = std::iter::once(self.stop.as_fd());
        let mut waiting: Vec<PollFd<'_>> =
            stop.chain(readable.iter().copied()).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        loop {
            match poll(&mut waiting, PollTimeout::NONE) {
                Ok(_) if self.stopping() => return Ok(Wake::Stop),
                Ok(_) => return Ok(Wake::Ready),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Gone(errno.into())),
            }
        }
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.v4.iter().chain(&self.v6)
    }

    pub(super) fn socket_for(&self, endpoint: SocketAddr) -> Option<&Socket> {
        if endpoint.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Fails only if the counter is full, and then it wakes the threads just as well.
        let _ = self.stop.write(1);
    }
}

/// Settings without which the tunnel works, but worse.
fn prepare(tun: &Tun) {
    let setting = Sysctl::of_link(Family::V4, tun.name(), "accept_local");
    if let Err(error) = setting.set("1") {
        tracing::warn!(%setting, %error, "cannot be set: pods will not hear of unreachable destinations");
    }
    if let Err(error) = tun.set_queue_length(QUEUE_PACKETS) {
        tracing::warn!(%error, "bursts may be dropped");
    }
}
