//! The server's HTTP side: accepts, reads requests, answers them from the store.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::store::{Expired, Kind, Selector};
use super::{Fault, Moment, Shared};

#[derive(Clone)]
pub(super) struct Serve {
    pub(super) shared: Arc<Shared>,
    pub(super) tls: Option<TlsAcceptor>,
    /// The token is asked for.
    pub(super) token: bool,
}

/// The body of an answer: pieces that come, and an end, good or bad.
struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

type Answer = Response<Pieces>;

impl Serve {
    pub(super) async fn run(self, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (serve, epoch) = (self.clone(), self.moment().epoch);
            tokio::spawn(async move {
                let cut = serve.until(move |moment| moment.epoch != epoch);
                let connection = async {
                    match &serve.tls {
                        None => serve.connection(stream).await,
                        Some(tls) => {
                            // Who cannot be understood is not answered.
                            if let Ok(stream) = tls.accept(stream).await {
                                serve.connection(stream).await;
                            }
                        }
                    }
                };
                tokio::select! {
                    () = cut => {}
                    () = connection => {}
                }
            });
        }
    }

    async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| async move { self.answer(request).await.ok_or(Closed) });
        // How a connection ends is the test's matter.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    /// None closes the connection.
    async fn answer(&self, request: Request<Incoming>) -> Option<Answer> {
        let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let fault = {
            let mut state = self.shared.lock();
            state.requests.push(target);
            let fault = if state.faults.is_empty() { None } else { Some(state.faults.remove(0)) };
            drop(state);
            // Who waits for a request looks again.
            self.shared.changed.send_modify(|_| {});
            fault
        };
        match fault {
            None => {}
            Some(Fault::Close) => return None,
            Some(Fault::Silence) => std::future::pending().await,
            Some(Fault::Answer(code, body)) => return Some(whole(code, body)),
            Some(Fault::Half(body)) => return Some(self.piecewise(body, true)),
            Some(Fault::Begin(body)) => return Some(self.piecewise(body, false)),
        }
        self.until(|moment| !moment.stalled).await;
        let token = format!("Bearer {}", self.shared.lock().token);
        let known =
            request.headers().get(header::AUTHORIZATION).is_some_and(|it| it.as_bytes() == token.as_bytes());
        if self.token && !known {
            return Some(status(401, "Unauthorized"));
        }
        let Some((kind, ..)) = Kind::ALL.into_iter().find(|(.., path)| *path == request.uri().path()) else {
            return Some(status(404, "the server could not find the requested resource"));
        };
        let query = query(request.uri().query().unwrap_or_default());
        let selector = match selector(&query) {
            Ok(selector) => selector,
            Err(what) => return Some(status(400, &what)),
        };
        if query.contains_key("watch") {
            return Some(self.watch(kind, selector, &query));
        }
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
        let next = query.get("continue").map(String::as_str);
        let page = self.shared.lock().store.page(kind, &selector, limit.unwrap_or(usize::MAX), next);
        Some(match page {
            Ok(page) => whole(200, page.into_bytes()),
            Err(Expired) => status(410, "The provided continue parameter is too old"),
        })
    }

    fn watch(&self, kind: Kind, selector: Selector, query: &BTreeMap<String, String>) -> Answer {
        let revision = query.get("resourceVersion").and_then(|it| it.parse().ok()).unwrap_or_default();
        let (from, in_stream) = {
            let state = self.shared.lock();
            (state.store.after(revision), state.gone_in_stream)
        };
        let gone = "too old resource version";
        let mut from = match from {
            Ok(from) => from,
            Err(Expired) if in_stream => {
                let object = status_json(410, gone);
                return whole(200, format!("{{\"type\":\"ERROR\",\"object\":{object}}}\n").into_bytes());
            }
            Err(Expired) => return status(410, gone),
        };
        let bookmarks = query.get("allowWatchBookmarks").is_some_and(|it| it == "true" || it == "1");
        let seconds = query.get("timeoutSeconds").and_then(|it| it.parse().ok()).unwrap_or(3600);
        let (sender, pieces) = mpsc::channel(1);
        let serve = self.clone();
        tokio::spawn(async move {
            let lines = async {
                let mut changed = serve.shared.changed.subscribe();
                loop {
                    let stalled = changed.borrow_and_update().stalled;
                    if !stalled {
                        let (lines, now) = serve.shared.lock().store.lines(kind, &selector, from, bookmarks);
                        from = now;
                        if !lines.is_empty() && sender.send(Ok(lines.into())).await.is_err() {
                            return;
                        }
                    }
                    tokio::select! {
                        changed = changed.changed() => if changed.is_err() { return },
                        () = sender.closed() => return,
                    }
                }
            };
            // The watch ends in good order.
            let _ = tokio::time::timeout(Duration::from_secs(seconds), lines).await;
        });
        answer(200, pieces)
    }

    fn piecewise(&self, body: Vec<u8>, broken: bool) -> Answer {
        let (sender, pieces) = mpsc::channel(2);
        let _ = sender.try_send(Ok(body.into()));
        if broken {
            let _ = sender.try_send(Err(io::ErrorKind::BrokenPipe.into()));
        } else {
            tokio::spawn(async move { sender.closed().await });
        }
        answer(200, pieces)
    }

    fn moment(&self) -> Moment {
        *self.shared.changed.borrow()
    }

    fn until(
        &self,
        wanted: impl Fn(&Moment) -> bool + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut changed = self.shared.changed.subscribe();
        async move {
            // The server holds the sender.
            let _ = changed.wait_for(wanted).await;
        }
    }
}

/// Close without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed")]
struct Closed;

fn answer(code: u16, pieces: mpsc::Receiver<io::Result<Bytes>>) -> Answer {
    let mut answer = Response::new(Pieces(pieces));
    *answer.status_mut() = hyper::StatusCode::from_u16(code).expect("a status");
    answer
}

fn whole(code: u16, body: Vec<u8>) -> Answer {
    let (sender, pieces) = mpsc::channel(1);
    let _ = sender.try_send(Ok(body.into()));
    answer(code, pieces)
}

fn status(code: u16, message: &str) -> Answer {
    whole(code, status_json(code, message).into_bytes())
}

fn status_json(code: u16, message: &str) -> String {
    serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message})
        .to_string()
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decoded(k), decoded(v)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, later)) = rest.split_first() {
        let digits = later.get(..2).and_then(|it| std::str::from_utf8(it).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &later[2..];
            }
            None => {
                bytes.push(*first);
                rest = later;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As much of selectors as a proxy uses.
fn selector(query: &BTreeMap<String, String>) -> Result<Selector, String> {
    let mut selector = Selector::default();
    for part in query.get("labelSelector").iter().flat_map(|it| it.split(',')) {
        let label = part.strip_prefix('!').ok_or_else(|| format!("this server cannot select `{part}`"))?;
        selector.without.push(label.to_owned());
    }
    for part in query.get("fieldSelector").iter().flat_map(|it| it.split(',')) {
        let name = part
            .strip_prefix("metadata.name=")
            .ok_or_else(|| format!("this server cannot select `{part}`"))?;
        selector.name = Some(name.to_owned());
    }
    Ok(selector)
}
