//! How long a connection takes to be made, to one of many targets after the other: the first packet,
//! which is the one that rules decide about.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{Ends, PATIENCE, join, spawn_on};
use crate::BenchError;

/// Connects to the targets in turn, all of which lead to this port of the server; the times in
/// microseconds. Both ends are on one processor, and nobody has to be woken up: the kernel answers for
/// the server, and the client itself takes the connection there, off the clock.
pub fn connect_times(
    ends: &Ends,
    core: usize,
    port: u16,
    targets: &[SocketAddrV4],
    time: Duration,
) -> Result<Vec<f64>, BenchError> {
    let broken = || BenchError::io(ends.silent("cannot time first packets").to_string());
    let listener = ends.server.within(|| listen(port))?.map_err(broken())?;
    let listener = &listener;
    ends.client
        .within(|| {
            std::thread::scope(|scope| join(spawn_on(scope, core, || time_all(listener, targets, time))))
        })?
        .map_err(broken())
}

fn listen(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(128)?;
    Ok(socket)
}

/// The first tenth of the time warms caches and is not kept.
fn time_all(listener: &Socket, targets: &[SocketAddrV4], time: Duration) -> io::Result<Vec<f64>> {
    let targets: Vec<SockAddr> = targets.iter().map(|target| (*target).into()).collect();
    let (start, mut times) = (Instant::now(), Vec::with_capacity(65_536));
    for target in targets.iter().cycle() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // Bounds connect(2) as well (socket(7)).
        socket.set_write_timeout(Some(PATIENCE))?;
        // A reset instead of a farewell: no connection lingers at either end.
        socket.set_linger(Some(Duration::ZERO))?;
        let sent = Instant::now();
        socket.connect(target)?;
        let (took, since) = (sent.elapsed(), start.elapsed());
        listener.accept()?;
        if since >= time / 10 {
            times.push(took.as_secs_f64() * 1e6);
        }
        if since >= time + time / 10 {
            break;
        }
    }
    Ok(times)
}
