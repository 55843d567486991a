//! TCP connections of one byte each way, opened and closed: how many in a second.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{Cores, Ends, PATIENCE, join, spawn_on};
use crate::BenchError;

/// Where the server listens if that must be known.
pub(super) const PORT: u16 = 5202;
/// How many are open at once: enough that neither processor waits for the other to wake up.
const CLIENTS: usize = 4;
/// What a client asks: to be answered, or that nobody else will come.
const QUESTION: u8 = b'?';
const FAREWELL: u8 = b'.';

/// How many connections a second are opened, used and closed.
pub fn connections_per_second(ends: &Ends, cores: Cores, time: Duration) -> Result<f64, BenchError> {
    let broken = || BenchError::io(ends.silent("cannot count connections").to_string());
    let listener = ends.server.within(|| listen(ends.listen(PORT)))?.map_err(broken())?;
    let listening = listener.local_addr().map_err(broken())?;
    let listening = listening.as_socket().ok_or_else(|| ends.silent("no address to connect to"))?;
    let (listener, address) = (&listener, &ends.target(listening).into());
    // Threads are born into their parent's namespace, so the clients' sockets are the client's.
    ends.client
        .within(|| {
            std::thread::scope(|scope| {
                let servers: Vec<_> =
                    (0..CLIENTS).map(|_| spawn_on(scope, cores.server, || serve(listener))).collect();
                let clients: Vec<_> =
                    (0..CLIENTS).map(|_| spawn_on(scope, cores.client, || call(address, time))).collect();
                let rates: Vec<io::Result<f64>> = clients.into_iter().map(join).collect();
                let served: io::Result<Vec<()>> = servers.into_iter().map(join).collect();
                let rate = rates.into_iter().sum::<io::Result<f64>>()?;
                served.map(|_| rate)
            })
        })?
        .map_err(broken())
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // accept(2) heeds it too: a client that failed leaves no server waiting.
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket)
}

/// Answers one connection after another until a farewell. The server closes first, so that the
/// client's port is free at once and ports do not run out.
fn serve(listener: &Socket) -> io::Result<()> {
    let mut byte = [0];
    loop {
        let mut stream: TcpStream = listener.accept()?.0.into();
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut byte)?;
        if byte == [FAREWELL] {
            return Ok(());
        }
        stream.write_all(&byte)?;
    }
}

fn call(to: &SockAddr, time: Duration) -> io::Result<f64> {
    let (start, mut done) = (Instant::now(), 0u32);
    while start.elapsed() < time {
        let mut stream = connect(to)?;
        stream.write_all(&[QUESTION])?;
        let mut answer = Vec::with_capacity(1);
        stream.read_to_end(&mut answer)?;
        if answer != [QUESTION] {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
        }
        done += 1;
    }
    let rate = f64::from(done) / start.elapsed().as_secs_f64();
    connect(to)?.write_all(&[FAREWELL])?;
    Ok(rate)
}

fn connect(to: &SockAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Bounds connect(2) as well (socket(7)).
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    Ok(socket.into())
}
