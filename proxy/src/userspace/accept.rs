//! Accepts connections of clients, finds out what they meant, and has them carried to an endpoint.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use weft_daemon::log::Repeated;

use super::carry::carry;
use super::choice::Tried;
use super::dial::{DialError, PATIENCE, dial, finished};
use super::relay::{Active, Shared, now};
use super::services::{Endpoint, Port};
use crate::model::Policy;

/// How long nothing is accepted for want of descriptors or memory: so long at first, then each time
/// twice as long, up to the latter.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts for as long as it lives.
pub(super) async fn all(listener: TcpListener, set: Policy, shared: Arc<Shared>) {
    let (mut pause, mut failures) = (PAUSE, Repeated::default());
    loop {
        match listener.accept().await {
            Ok((client, from)) => {
                if pause != PAUSE {
                    failures.recovered("accepting connections");
                    pause = PAUSE;
                }
                tokio::spawn(serve(client, from, set, shared.clone()));
            }
            Err(error) if is_exhausted(&error) => {
                shared.counts.exhausted.fetch_add(1, Ordering::Relaxed);
                failures.warn("accepting connections", &error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            // It went before it was accepted.
            Err(_) => {}
        }
    }
}

/// Without the pause the next call would fail likewise, at once.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// A client that is served no further is reset, as all that is prepared and dropped.
async fn serve(mut client: TcpStream, from: SocketAddr, set: Policy, shared: Arc<Shared>) {
    let _active = Active::new(&shared);
    let Some(port) = meant(&client).ok().and_then(|destination| shared.services.at(destination)) else {
        shared.counts.astray.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let Some(_place) = shared.sources.take(from.ip()) else {
        shared.counts.over_limit.fetch_add(1, Ordering::Relaxed);
        return;
    };
    port.counts.connections.fetch_add(1, Ordering::Relaxed);
    let Some((endpoint, mut stream)) = reach(&port, set, from).await else {
        port.counts.failures.fetch_add(1, Ordering::Relaxed);
        return;
    };
    drop(port);
    if carry(&mut client, &mut stream, &endpoint.meter).await.is_ok() {
        finished(&client);
        finished(&stream);
    }
}

/// Where the client wanted to go, before the rules led it here.
fn meant(client: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(client);
    let original =
        if client.local_addr()?.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A connection to an endpoint, at the first try or a later one. The client notices nothing but the
/// time: nothing of what it sends has been read yet.
async fn reach(port: &Port, set: Policy, from: SocketAddr) -> Option<(Using, TcpStream)> {
    let mut tried: Vec<(SocketAddr, Tried)> = Vec::new();
    for (attempt, patience) in PATIENCE.into_iter().enumerate() {
        let endpoint = Using::new(port.next(set, from.ip(), &tried, now())?);
        if attempt > 0 {
            port.counts.retries.fetch_add(1, Ordering::Relaxed);
        }
        let how = match dial(endpoint.address, patience).await {
            Ok(stream) => {
                endpoint.connections.fetch_add(1, Ordering::Relaxed);
                port.reached(from.ip(), &endpoint, now());
                return Some((endpoint, stream));
            }
            // Out of descriptors or ports: nobody's fault, and there may be some in a moment.
            Err(DialError::Here(error)) => {
                tracing::debug!(%error, port = %port.name, "no socket for a connection to an endpoint");
                tokio::time::sleep(patience).await;
                continue;
            }
            Err(DialError::Refused(error)) => {
                tracing::debug!(%error, port = %port.name, endpoint = %endpoint.address, "no connection");
                Tried::Refused
            }
            Err(DialError::Silent) => {
                tracing::debug!(port = %port.name, endpoint = %endpoint.address, ?patience, "no answer");
                Tried::Silent
            }
        };
        if endpoint.failed(now()) {
            tracing::info!(
                port = %port.name, endpoint = %endpoint.address,
                "gets no connections for a while: the last ones failed"
            );
        }
        tried.push((endpoint.address, how));
    }
    None
}

/// An endpoint that has one connection more for as long as this lives.
struct Using(Arc<Endpoint>);

impl Using {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }
}

impl std::ops::Deref for Using {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
