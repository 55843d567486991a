//! Opens connections to endpoints.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

/// The mark of our own connections: our rules leave them alone, or an endpoint whose address is some
/// service's would lead them back to us. Next to kube-proxy's bits 14 and 15, which others respect.
pub(crate) const MARK: u32 = 0x2000;

/// How long each try to open a connection may take: the times of kube-proxy's userspace mode.
pub(super) const PATIENCE: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];

/// After so long without a word the other side is asked whether it is still there: a peer whose host
/// died must not hold a connection for ever. Linux would ask after two hours.
const KEEPALIVE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Why an endpoint was not reached.
#[derive(Debug)]
pub(super) enum DialError {
    /// No socket could be made or prepared: nothing that is the endpoint's fault.
    Here(io::Error),
    /// Nobody is there.
    Refused(io::Error),
    /// Nobody answered in time.
    Silent,
}

/// What connections on both sides are set to. Until both sides have said all ([`finished`]), the end of
/// a connection is a reset: nobody shall take a process that died for the end of what was sent.
pub(super) fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))?;
    // What comes in pieces goes on in pieces, at once.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL))
}

/// All was said: what is still on its way arrives after the socket is closed.
pub(super) fn finished(stream: &TcpStream) {
    // It could only fail on what is no socket.
    let _ = SockRef::from(stream).set_linger(None);
}

/// Opens a connection, within that time.
pub(super) async fn dial(to: SocketAddr, patience: Duration) -> Result<TcpStream, DialError> {
    let socket = socket(to).map_err(DialError::Here)?;
    match tokio::time::timeout(patience, socket.connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if is_ours(&error) => Err(DialError::Here(error)),
        Ok(Err(error)) => Err(DialError::Refused(error)),
        Err(_) => Err(DialError::Silent),
    }
}

fn socket(to: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    prepare(SockRef::from(&socket))?;
    SockRef::from(&socket).set_mark(MARK)?;
    Ok(socket)
}

/// No port is free, or no memory.
fn is_ours(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENOMEM | libc::ENOBUFS))
}
