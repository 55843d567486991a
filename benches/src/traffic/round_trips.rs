//! One byte there and one byte back over a TCP connection: how long that takes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{Ends, PATIENCE, join, spawn_on};
use crate::BenchError;

/// Where the server listens if that must be known.
pub(super) const PORT: u16 = 5203;

/// Times the round trips of one connection, in microseconds, with both ends on one processor.
pub fn round_trips(ends: &Ends, core: usize, time: Duration) -> Result<Vec<f64>, BenchError> {
    let broken = || BenchError::io(ends.silent("cannot time round trips").to_string());
    let listener = ends.server.within(|| TcpListener::bind(ends.listen(PORT)))?.map_err(broken())?;
    let address = ends.target(listener.local_addr().map_err(broken())?);
    let client = ends.client.within(|| TcpStream::connect_timeout(&address, PATIENCE))?.map_err(broken())?;
    let (server, _) = listener.accept().map_err(broken())?;
    for stream in [&client, &server] {
        stream.set_nodelay(true).map_err(broken())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(broken())?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(broken())?;
    }
    std::thread::scope(|scope| {
        let echo = spawn_on(scope, core, move || echo(server));
        let times = spawn_on(scope, core, move || ask(client, time));
        let (times, echoed) = (join(times), join(echo));
        times.and_then(|times| echoed.map(|()| times))
    })
    .map_err(broken())
}

/// The first tenth of the time warms caches and is not kept.
fn ask(mut stream: TcpStream, time: Duration) -> io::Result<Vec<f64>> {
    let (start, mut byte, mut times) = (Instant::now(), [7], Vec::with_capacity(65_536));
    loop {
        let sent = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let (trip, since) = (sent.elapsed(), start.elapsed());
        if since >= time / 10 {
            times.push(trip.as_secs_f64() * 1e6);
        }
        if since >= time + time / 10 {
            return Ok(times);
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    loop {
        match stream.read_exact(&mut byte) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        }
        stream.write_all(&byte)?;
    }
}
