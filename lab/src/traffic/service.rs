//! What answers in a namespace: echoes and the like, on threads of ours, until dropped.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

use super::echo::patient;
use crate::{LabError, Place};

/// How long a thread looks before it asks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// A running service; ends when dropped.
#[derive(Debug)]
pub struct Service {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Its address, if its place is called by this one.
    pub fn at(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Serves each TCP connection on a thread of its own. `serve` is to end once the flag is set.
    pub(super) fn tcp(place: &Place, serve: fn(TcpStream, &AtomicBool)) -> Result<Self, LabError> {
        Self::on_listener(opened(place, || TcpListener::bind(everywhere()))?, serve)
    }

    /// As [`Service::tcp`], on a listener that is open.
    pub(super) fn on_listener(
        listener: TcpListener,
        serve: impl Fn(TcpStream, &AtomicBool) + Clone + Send + 'static,
    ) -> Result<Self, LabError> {
        let port = listener.local_addr().map_err(LabError::io("ask for the port"))?.port();
        // Linux bounds accept(2) by the receive timeout too (socket(7)).
        SockRef::from(&listener).set_read_timeout(Some(LOOK)).map_err(LabError::io("set a timeout"))?;
        Self::start(port, move |stop| {
            while !stop.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    let (serve, stop) = (serve.clone(), stop.clone());
                    std::thread::spawn(move || serve(stream, &stop));
                }
            }
        })
    }

    /// Echoes datagrams.
    pub(super) fn udp(place: &Place) -> Result<Self, LabError> {
        Self::on_socket(opened(place, || UdpSocket::bind(everywhere()))?, |socket, stop| {
            let mut buffer = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((read, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(buffer.get(..read).unwrap_or_default(), from);
                }
            }
        })
    }

    /// Serves datagrams on a socket that is open: `serve` reads until the flag is set, and is woken to
    /// look at it.
    pub(super) fn on_socket(
        socket: UdpSocket,
        serve: impl FnOnce(&UdpSocket, &AtomicBool) + Send + 'static,
    ) -> Result<Self, LabError> {
        let port = socket.local_addr().map_err(LabError::io("ask for the port"))?.port();
        socket.set_read_timeout(Some(LOOK)).map_err(LabError::io("set a timeout"))?;
        Self::start(port, move |stop| serve(&socket, &stop))
    }

    fn start(port: u16, serve: impl FnOnce(Arc<AtomicBool>) + Send + 'static) -> Result<Self, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = stop.clone();
        let thread = std::thread::Builder::new()
            .name(format!("serve-{port}"))
            .spawn(move || serve(theirs))
            .map_err(LabError::io("start a thread"))?;
        Ok(Self { port, stop, thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends everything back.
pub(super) fn echo(mut stream: TcpStream, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    let _ = stream.set_nodelay(true);
    while let Ok(read @ 1..) = read_some(&mut stream, &mut buffer, stop) {
        if stream.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
            return;
        }
    }
}

/// Says where the connection came from.
pub(super) fn whoami(mut stream: TcpStream, _: &AtomicBool) {
    if let Ok(peer) = stream.peer_addr() {
        let _ = write!(stream, "{}", peer.ip().to_canonical());
    }
}

/// Reads something; 0 is the end of the stream. An error also if the service is to end.
pub(super) fn read_some(stream: &mut TcpStream, buffer: &mut [u8], stop: &AtomicBool) -> io::Result<usize> {
    stream.set_read_timeout(Some(LOOK))?;
    loop {
        if let Some(read) = patient(stream.read(buffer))? {
            return Ok(read);
        }
        if stop.load(Ordering::Relaxed) {
            return Err(ErrorKind::Interrupted.into());
        }
    }
}

/// Every address of both families: Linux's IPv6 sockets take IPv4 as well.
fn everywhere() -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, 0).into()
}

pub(super) fn opened<T: Send>(
    place: &Place,
    open: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T, LabError> {
    place.within(open)?.map_err(LabError::io(format!("open a socket in {}", place.name())))
}
