//! Serving a router: over the daemon's Unix socket, and the harmless part of it over TCP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::socket::OwnedSocket;
use super::{Request, Response, Router, StatusCode, parse_query};

/// What one client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// From the first byte (or, on a kept connection, from the last answer) to the end of the headers,
    /// and again to the end of the body.
    pub read: Duration,
    /// What a handler may take: a long poll must answer before.
    pub answer: Duration,
    /// Connections at one time; more wait to be accepted.
    pub connections: usize,
    /// What open requests get to finish when the daemon stops.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1 << 20,
            read: Duration::from_secs(30),
            answer: Duration::from_secs(300),
            connections: 128,
            grace: Duration::from_secs(1),
        }
    }
}

/// Cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// On the Unix socket.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// On the TCP address.
    #[error("cannot listen on {address}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A server that runs. Cancel the token it was given, then wait for [`Server::stopped`].
#[derive(Debug)]
pub struct Server {
    tcp: Option<SocketAddr>,
    tasks: TaskTracker,
}

impl Server {
    /// The TCP address it listens on, with the port that the kernel chose if 0 was asked for.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Returns when everything has been answered or cut off, and the socket's file is gone.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// Serves `all` on the Unix socket and `public` on the TCP address, until `shutdown`.
pub async fn serve(
    socket: Option<(&Path, Router)>,
    tcp: Option<(SocketAddr, Router)>,
    limits: Limits,
    shutdown: CancellationToken,
) -> Result<Server, ServeError> {
    let tasks = TaskTracker::new();
    // Bind both before serving either: a daemon that cannot start must not have answered.
    let unix = match socket {
        Some((path, router)) => {
            let failed = |source| ServeError::Socket { path: path.to_owned(), source };
            let owned = OwnedSocket::listen(path).map_err(failed)?;
            let listener = owned.listener().and_then(UnixListener::from_std).map_err(failed)?;
            Some((listener, owned, router))
        }
        None => None,
    };
    let tcp = match tcp {
        Some((address, router)) => {
            let failed = |source| ServeError::Tcp { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            Some((listener, address, router))
        }
        None => None,
    };
    let address = tcp.as_ref().map(|(_, address, _)| *address);
    if let Some((listener, owned, router)) = unix {
        let connections = Connections::new(router, limits, shutdown.clone(), tasks.clone());
        tasks.spawn(async move {
            connections.accept_all(listener).await;
            drop(owned);
        });
    }
    if let Some((listener, _, router)) = tcp {
        let connections = Connections::new(router, limits, shutdown, tasks.clone());
        tasks.spawn(async move {
            connections.accept_all(listener).await;
        });
    }
    tasks.close();
    Ok(Server { tcp: address, tasks })
}

/// Serves on a TCP socket that listens already (and is non-blocking), until `shutdown`: for addresses
/// that come and go while the daemon runs.
///
/// # Errors
/// When the socket cannot be used with this runtime.
pub fn serve_on(
    listener: std::net::TcpListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) -> io::Result<Server> {
    let listener = TcpListener::from_std(listener)?;
    let (tasks, tcp) = (TaskTracker::new(), Some(listener.local_addr()?));
    let connections = Connections::new(router, limits, shutdown, tasks.clone());
    tasks.spawn(async move {
        connections.accept_all(listener).await;
    });
    tasks.close();
    Ok(Server { tcp, tasks })
}

/// A listener of either kind.
trait Accept: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Self::Stream>>;
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        self.poll_accept(cx).map_ok(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        self.poll_accept(cx).map_ok(|(stream, _)| stream)
    }
}

/// What the connections of one listener share.
#[derive(Clone)]
struct Connections {
    router: Arc<Router>,
    limits: Limits,
    free: Arc<Semaphore>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Connections {
    fn new(router: Router, limits: Limits, shutdown: CancellationToken, tasks: TaskTracker) -> Self {
        let free = Arc::new(Semaphore::new(limits.connections));
        Self { router: Arc::new(router), limits, free, shutdown, tasks }
    }

    async fn accept_all(&self, listener: impl Accept) {
        while let Some(free) = self.shutdown.run_until_cancelled(self.free.clone().acquire_owned()).await {
            let permit = free.expect("the semaphore is never closed");
            let accepted = poll_fn(|cx| listener.poll_accept(cx));
            match self.shutdown.run_until_cancelled(accepted).await {
                Some(Ok(stream)) => {
                    let this = self.clone();
                    self.tasks.spawn(async move {
                        this.converse(stream).await;
                        drop(permit);
                    });
                }
                Some(Err(error)) => {
                    // Most likely out of file descriptors: trying again at once would only burn CPU.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None => return,
            }
        }
    }

    /// One connection, from its first request to its last.
    async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S) {
        let service = service_fn(|request| self.answer(request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.read)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(self.limits.grace, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            // A client that goes away or talks nonsense is the client's affair.
            tracing::debug!(%error, "a connection ended early");
        }
    }

    async fn answer(
        &self,
        request: hyper::Request<Incoming>,
    ) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
        let response = match tokio::time::timeout(self.limits.read, read(request, self.limits.body)).await {
            Ok(Ok(request)) => {
                match tokio::time::timeout(self.limits.answer, self.router.answer(request)).await {
                    Ok(response) => response,
                    Err(_) => Response::error(StatusCode::SERVICE_UNAVAILABLE, "no answer in time"),
                }
            }
            Ok(Err(refusal)) => refusal,
            Err(_) => Response::error(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
        };
        Ok(response.into_hyper())
    }
}

async fn read(request: hyper::Request<Incoming>, most: usize) -> Result<Request, Response> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, most).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            Response::error(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {most} bytes"))
        } else {
            Response::error(StatusCode::BAD_REQUEST, format!("the body: {error}"))
        }
    })?;
    let accept = head.headers.get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok());
    Ok(Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: parse_query(head.uri.query().unwrap_or_default()),
        captures: BTreeMap::new(),
        accept: accept.unwrap_or_default().to_owned(),
        body: body.to_bytes(),
    })
}

#[cfg(test)]
mod tests;
