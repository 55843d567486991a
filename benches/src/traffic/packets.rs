//! UDP datagrams of 64 bytes, one system call each, as fast as they go: how many arrive in a second.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Cores, Ends, PATIENCE, join, spawn_on};
use crate::BenchError;

/// The payload. With its headers that is about the smallest packet that programs send in numbers.
const PAYLOAD: usize = 64;
/// One datagram in so many is answered, because a flow that nobody answers is never established for
/// conntrack, and programs that talk to nobody are not what is measured.
const ANSWER_EVERY: u64 = 64;

/// How many datagrams a second the server's program reads.
pub fn packets_per_second(ends: &Ends, cores: Cores, time: Duration) -> Result<f64, BenchError> {
    let broken = || BenchError::io(ends.silent("cannot count datagrams").to_string());
    let server = ends.server.within(|| UdpSocket::bind((ends.to, 0)))?.map_err(broken())?;
    let address = server.local_addr().map_err(broken())?;
    let client = ends.client.within(|| UdpSocket::bind("0.0.0.0:0"))?.map_err(broken())?;
    ends.client.within(|| client.connect(address))?.map_err(broken())?;
    client.set_nonblocking(true).map_err(broken())?;
    server.set_read_timeout(Some(PATIENCE)).map_err(broken())?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = spawn_on(scope, cores.client, || flood(&client, &done));
        let receiver = spawn_on(scope, cores.server, || {
            let rate = count(&server, time);
            done.store(true, Ordering::Relaxed);
            rate
        });
        let (rate, sent) = (join(receiver), join(sender));
        rate.and_then(|rate| sent.map(|()| rate))
    })
    .map_err(broken())
}

/// Sends until told to stop. What a full queue does not take is lost, as on any network.
fn flood(socket: &UdpSocket, done: &AtomicBool) -> io::Result<()> {
    let (payload, mut answer) = ([0x55; PAYLOAD], [0; PAYLOAD]);
    let give_up = Instant::now() + 2 * PATIENCE;
    while !done.load(Ordering::Relaxed) && Instant::now() < give_up {
        for _ in 0..ANSWER_EVERY {
            match socket.send(&payload) {
                Err(error) if !is_congestion(&error) => return Err(error),
                _ => {}
            }
        }
        while socket.recv(&mut answer).is_ok() {}
    }
    Ok(())
}

/// No room in a queue: `EAGAIN` of the socket's own, `ENOBUFS` of a link's.
fn is_congestion(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

/// Counts what arrives after the first tenth of the time, in which buffers fill.
fn count(socket: &UdpSocket, time: Duration) -> io::Result<f64> {
    let (mut buffer, mut received, mut counted) = ([0; 2 * PAYLOAD], 0u64, 0u32);
    let mut start = None;
    loop {
        let (_, from) = socket.recv_from(&mut buffer)?;
        received += 1;
        if received % ANSWER_EVERY == 1 {
            // A lost answer is as good as a lost question: the next one does.
            let _ = socket.send_to(&buffer[..PAYLOAD], from);
        }
        let now = Instant::now();
        let start = *start.get_or_insert(now + time / 10);
        if now < start {
            continue;
        }
        counted += 1;
        let elapsed = now - start;
        if elapsed >= time {
            return Ok(f64::from(counted) / elapsed.as_secs_f64());
        }
    }
}
