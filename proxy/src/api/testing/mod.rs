//! A Kubernetes API server for tests: lists in pages, watches with bookmarks, resource versions, 410
//! Gone, TLS with client certificates or a token; and misfortune on demand. It knows the objects that a
//! proxy reads, and takes them from the test, not over the network.
//!
//! It runs on a thread of its own, so that it serves tests with and without a runtime, and on a socket
//! that the test may have opened in another network namespace.

mod certs;
mod serve;
mod store;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use weft_daemon::CancellationToken;

use certs::Certs;
use serve::Serve;
use store::Store;

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not at all, over plain HTTP.
    None,
    /// TLS, and a token.
    Token,
    /// TLS on both sides.
    Certificate,
}

/// What becomes of the next request, instead of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed.
    Close,
    /// Nothing ever comes.
    Silence,
    /// This is answered, whatever it is: a status and a body.
    Answer(u16, Vec<u8>),
    /// 200 and this body; after it the connection is cut before the body's end.
    Half(Vec<u8>),
    /// 200 and this body; then silence.
    Begin(Vec<u8>),
}

/// The server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    security: Security,
    certs: Option<Certs>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Watches look again when this changes; connections of another epoch end.
    changed: watch::Sender<Moment>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moment {
    /// How often the store changed.
    changes: u64,
    /// How often all connections were cut.
    epoch: u64,
    /// Nobody is answered or told anything.
    stalled: bool,
}

#[derive(Debug)]
struct State {
    store: Store,
    faults: Vec<Fault>,
    /// Path and query of every request.
    requests: Vec<String>,
    /// Tell the next watch from a forgotten version so in its stream, not by its status; each is as
    /// good as the other.
    gone_in_stream: bool,
    token: String,
}

impl Server {
    /// On a free port of 127.0.0.1.
    pub fn start(security: Security) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port of 127.0.0.1");
        Self::on(listener, security)
    }

    /// On this socket.
    pub fn on(listener: TcpListener, security: Security) -> Self {
        let address = listener.local_addr().expect("a socket that listens has an address");
        listener.set_nonblocking(true).expect("a socket of ours");
        let certs = (security != Security::None).then(|| Certs::new(address.ip()));
        let state = State {
            store: Store::new(),
            faults: Vec::new(),
            requests: Vec::new(),
            gone_in_stream: false,
            token: TOKEN.to_owned(),
        };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(Moment::default()) });
        let stop = CancellationToken::new();
        let serve = Serve {
            shared: shared.clone(),
            tls: certs.as_ref().map(|certs| certs.acceptor(security)),
            token: security == Security::Token,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket of ours");
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = serve.run(listener) => {}
                }
            });
        });
        Self { shared, address, security, certs, stop, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig with which it can be asked.
    pub fn kubeconfig(&self) -> String {
        let scheme = if self.security == Security::None { "http" } else { "https" };
        let cluster = self.certs.as_ref().map(Certs::cluster).unwrap_or_default();
        let user = match (self.security, &self.certs) {
            (Security::Token, _) => format!("token: {}", self.lock().token),
            (Security::Certificate, Some(certs)) => certs.user(),
            _ => "{}".to_owned(),
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster:\n    server: {scheme}://{}\n{cluster}\
             users:\n- name: proxy\n  user:\n    {user}\n\
             contexts:\n- name: test\n  context: {{cluster: test, user: proxy}}\n",
            self.address
        )
    }

    /// Writes into a directory what a pod finds of its service account there.
    ///
    /// # Panics
    /// When it cannot be written, or this server wants no token.
    pub fn service_account(&self, dir: &Path) {
        let certs = self.certs.as_ref().filter(|_| self.security == Security::Token);
        let ca = certs.expect("a server that wants a token").ca().to_owned();
        std::fs::create_dir_all(dir).expect("a directory");
        for (name, text) in
            [("token", self.lock().token.clone()), ("ca.crt", ca), ("namespace", "kube-system".to_owned())]
        {
            std::fs::write(dir.join(name), text).expect("a file");
        }
    }

    /// From now on only this token is good.
    pub fn set_token(&self, token: &str) {
        self.lock().token = token.to_owned();
    }

    /// Creates or replaces an object, and returns its version.
    ///
    /// # Panics
    /// When its kind is none that is served.
    pub fn put(&self, object: Value) -> u64 {
        let revision = self.lock().store.put(object);
        self.tell(|moment| moment.changes += 1);
        revision
    }

    /// Deletes an object, and returns the version of that; None if there was none.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Option<u64> {
        let revision = self.lock().store.remove(kind, namespace, name);
        self.tell(|moment| moment.changes += 1);
        revision
    }

    /// Every object of a kind.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        self.lock().store.all(kind)
    }

    /// The version of the last change.
    pub fn revision(&self) -> u64 {
        self.lock().store.revision
    }

    /// Tells every watch how far it is.
    pub fn bookmark(&self) {
        self.lock().store.bookmark();
        self.tell(|moment| moment.changes += 1);
    }

    /// Forgets what happened until now: what is asked from before is 410 Gone. One time that is said by
    /// the status, the next time in the stream.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.store.forget();
        state.gone_in_stream = !state.gone_in_stream;
    }

    /// Goes back to this version, as a store that was restored, and cuts all connections.
    pub fn rewind(&self, revision: u64) {
        self.lock().store.rewind(revision);
        self.cut();
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.tell(|moment| moment.epoch += 1);
    }

    /// Answers nobody, and tells nobody anything, on connections that stay.
    pub fn stall(&self, stalled: bool) {
        self.tell(|moment| moment.stalled = stalled);
    }

    /// What becomes of the next requests, one after the other.
    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// The path and query of every request until now.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// Waits until a request is such, and returns it.
    ///
    /// # Panics
    /// When that does not come in time.
    pub async fn asked(&self, wanted: impl Fn(&str) -> bool) -> String {
        let asked = async {
            let mut changed = self.shared.changed.subscribe();
            loop {
                changed.borrow_and_update();
                if let Some(request) = self.requests().into_iter().find(|request| wanted(request)) {
                    return request;
                }
                changed.changed().await.expect("the server is ours");
            }
        };
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| panic!("only {:?}", self.requests()))
    }

    fn tell(&self, how: impl FnOnce(&mut Moment)) {
        self.shared.changed.send_modify(how);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of it was reported by itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The token that is good at first.
const TOKEN: &str = "test-token-that-nobody-may-log";
