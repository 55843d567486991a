//! The command line's side of the local API: one request over a daemon's Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Method, StatusCode};

/// A daemon, by its socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

/// What a daemon answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it went.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

/// A daemon was not reached, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no daemon listens on {}", socket.display())]
    NotRunning {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket is there, but not for us.
    #[error("cannot connect to {}", socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon at {} broke off", socket.display())]
    Broken {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("the daemon at {} did not answer within {timeout:?}", socket.display())]
    Timeout {
        /// Where.
        socket: PathBuf,
        /// How long we waited.
        timeout: Duration,
    },
    /// It answered with a failure.
    #[error("{reason}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Its words, in one line.
        reason: String,
    },
    /// It answered with something that we do not understand: of another version, perhaps.
    #[error("the daemon's answer to {path} is not understood")]
    Nonsense {
        /// What was asked for.
        path: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Client {
    /// The most that an answer may hold: 5,000 peers are about 3 MB.
    const MOST: usize = 64 << 20;

    /// The daemon that listens on this socket. Nothing is sent yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), timeout: Duration::from_secs(10) }
    }

    /// Waits so long for each answer instead of 10 seconds: for long polls.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// GETs a value. `path` may have a query.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, None::<&()>).await
    }

    /// POSTs a value and returns the answer's.
    pub async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// Any method, a JSON body or none, a JSON answer. A status that is no success is an error.
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let nonsense = |source| ClientError::Nonsense { path: path.to_owned(), source };
        let body = body.map(serde_json::to_vec).transpose().map_err(nonsense)?.unwrap_or_default();
        let answer = self.send(method, path, body).await?;
        if !answer.status.is_success() {
            let reason = String::from_utf8_lossy(&answer.body).trim().replace('\n', "; ");
            let reason = if reason.is_empty() { answer.status.to_string() } else { reason };
            return Err(ClientError::Refused { status: answer.status, reason });
        }
        serde_json::from_slice(&answer.body).map_err(nonsense)
    }

    /// One request and its answer, whatever its status.
    pub async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        let timeout = || ClientError::Timeout { socket: self.socket.clone(), timeout: self.timeout };
        tokio::time::timeout(self.timeout, self.converse(method, path, body)).await.map_err(|_| timeout())?
    }

    async fn converse(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        let socket = || self.socket.clone();
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket: socket(), source }
            }
            _ => ClientError::Connect { socket: socket(), source },
        })?;
        let broken = |source| ClientError::Broken { socket: socket(), source };
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "localhost")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(error.into()))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(error.into()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| broken(error.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), Self::MOST).collect().await.map_err(broken)?;
            Ok(Answer { status, body: body.to_bytes() })
        };
        // The connection moves the bytes; it ends after the exchange, or with the reason for its failure.
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = exchange.as_mut() => answer,
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(broken(error.into())),
            },
        }
    }
}
