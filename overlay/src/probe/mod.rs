//! Echo requests to the other hosts, through the tunnel: is a silent host dead, and how far is a live one?
//!
//! [`schedule`] decides when to ask and what an answer means (pure, time is an argument); [`wire`]
//! builds and reads ICMP; this file moves bytes between the two. The kernel of the other host
//! answers, so a host whose daemon died but whose pods still work stays reachable.

mod schedule;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::{debug, warn};

pub use schedule::{Outcome, Pace, Target};
use schedule::{Request, Schedule};

/// What is known of each target, by the address that was asked.
pub type Outcomes = BTreeMap<IpAddr, Outcome>;

/// Asks until the sender of `targets` is gone; every answer and every silence is published, and told
/// at once if it is a suspect's: somebody waits for that.
///
/// # Errors
/// When neither an IPv4 nor an IPv6 raw ICMP socket can be opened (CAP_NET_RAW is missing).
pub async fn run(
    mut targets: watch::Receiver<Vec<Target>>,
    outcomes: watch::Sender<Outcomes>,
) -> io::Result<()> {
    let v4 = open(Domain::IPV4, Protocol::ICMPV4);
    let v6 = open(Domain::IPV6, Protocol::ICMPV6);
    if let (Err(error), Err(_)) = (&v4, &v6) {
        return Err(io::Error::new(error.kind(), format!("cannot open an ICMP socket for probes: {error}")));
    }
    for (family, socket) in [("IPv4", &v4), ("IPv6", &v6)] {
        if let Err(error) = socket {
            warn!(family, %error, "no probes in this family");
        }
    }
    let (v4, v6) = (v4.ok(), v6.ok());
    let ident = rand::random::<u16>();
    let mut schedule = Schedule::new(Pace::default(), Instant::now());
    schedule.retarget(&targets.borrow_and_update(), Instant::now());
    loop {
        let wake = schedule.next_wake(Instant::now());
        let woke = tokio::select! {
            changed = targets.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                schedule.retarget(&targets.borrow_and_update(), Instant::now());
                true
            }
            () = tokio::time::sleep_until(wake.into()) => true,
            heard = hear(v4.as_ref(), Ipv4Addr::UNSPECIFIED.into()) => take(&mut schedule, heard, ident),
            heard = hear(v6.as_ref(), Ipv6Addr::UNSPECIFIED.into()) => take(&mut schedule, heard, ident),
        };
        if !woke {
            continue;
        }
        for Request { addr, seq } in schedule.due(Instant::now()) {
            let socket = if addr.is_ipv4() { v4.as_ref() } else { v6.as_ref() };
            if let Some(socket) = socket {
                ask(socket, addr, ident, seq);
            }
        }
        outcomes.send_if_modified(|known| schedule.publish(known));
    }
}

/// Gives one received packet to the schedule; true when it was an answer to us.
fn take(schedule: &mut Schedule, heard: io::Result<(IpAddr, Vec<u8>)>, ident: u16) -> bool {
    match heard {
        Ok((from, packet)) => match wire::echo_reply(from, &packet) {
            Some((id, seq)) if id == ident => schedule.answered(from, seq, Instant::now()),
            _ => false,
        },
        Err(error) => {
            // An ICMP error about an earlier request surfaces here; the silence is counted anyway.
            debug!(%error, "probe socket");
            false
        }
    }
}

fn ask(socket: &AsyncFd<Socket>, addr: IpAddr, ident: u16, seq: u16) {
    let packet = wire::echo_request(addr, ident, seq);
    // A full queue or a missing route is a lost probe, and counted as one by its silence.
    if let Err(error) = socket.get_ref().send_to(&packet, &SockAddr::from(SocketAddr::new(addr, 0))) {
        debug!(%addr, %error, "probe not sent");
    }
}

/// The next packet of this family; never, where the family has no socket.
async fn hear(socket: Option<&AsyncFd<Socket>>, family: IpAddr) -> io::Result<(IpAddr, Vec<u8>)> {
    let Some(socket) = socket else { return std::future::pending().await };
    loop {
        let mut ready = socket.readable().await?;
        let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 512];
        match ready.try_io(|socket| socket.get_ref().recv_from(&mut buffer)) {
            Ok(Ok((len, from))) => {
                let bytes: Vec<u8> = buffer
                    .iter()
                    .take(len)
                    .map(|byte| {
                        // SAFETY: recv_from initialised the first `len` bytes.
                        unsafe { byte.assume_init() }
                    })
                    .collect();
                return Ok((from.as_socket().map_or(family, |addr| addr.ip()), bytes));
            }
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

fn open(domain: Domain, protocol: Protocol) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // SAFETY: the socket owns its descriptor, and `AsyncFd` owns the socket until it has deregistered.
    Ok(unsafe { AsyncFd::register(socket) }?)
}
