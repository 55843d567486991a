//! Connections to etcd: one at a time, to an endpoint that proved to answer; the next one when it fails.
//!
//! A connection that failed is thrown away, with the endpoint's turn, the certificates and the login
//! that it was made from. So renewed files and a restarted etcd need no special case.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Channel, Client, GetOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Endpoint;
use tracing::debug;

use super::answer;
use crate::fault::Fault;
use crate::options::Settings;

/// A list of 2,000 keys is larger than tonic's 4 MB default allows; etcd's own limit is this one.
const MAX_MESSAGE: usize = i32::MAX as usize;
/// Flow-control windows that a long list does not have to wait for (HTTP/2's default is 64 KB).
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A connection that answered.
#[derive(Clone)]
pub(crate) struct Link {
    id: u64,
    pub(crate) kv: etcd_client::KvClient,
    pub(crate) lease: etcd_client::LeaseClient,
    pub(crate) watch: etcd_client::WatchClient,
}

/// All connections there may be, of which one is in use.
pub(crate) struct Links {
    pub(crate) settings: Settings,
    slot: Mutex<Slot>,
}

struct Slot {
    current: Option<Link>,
    /// The endpoint whose turn it is, counted on without end.
    turn: usize,
    made: u64,
}

impl Links {
    pub(crate) fn new(settings: Settings) -> Self {
        // A fleet that starts with one list of endpoints spreads over them.
        let turn = rand::random_range(0..settings.endpoints.len());
        Links { settings, slot: Mutex::new(Slot { current: None, turn, made: 0 }) }
    }

    /// The connection in use, or a new one to the first endpoint that answers.
    pub(crate) async fn get(&self, deadline: Instant) -> Result<Link, Fault> {
        let mut failures: Vec<String> = Vec::new();
        let mut all_denied = true;
        for _ in 0..self.settings.endpoints.len() {
            let Ok(mut slot) = timeout_at(deadline, self.slot.lock()).await else { break };
            if let Some(link) = &slot.current {
                return Ok(link.clone());
            }
            let endpoint = self.settings.endpoints[slot.turn % self.settings.endpoints.len()].clone();
            // Counted before the attempt: it may be cancelled, and then it is the next one's turn too.
            slot.turn = slot.turn.wrapping_add(1);
            let limit = self.settings.connect_timeout.min(deadline.duration_since(Instant::now()));
            let fault = match timeout(limit, open(&self.settings, &endpoint, slot.made + 1)).await {
                Ok(Ok(link)) => {
                    debug!(endpoint, "connected to etcd");
                    slot.made += 1;
                    slot.current = Some(link.clone());
                    return Ok(link);
                }
                Ok(Err(fault @ Fault::Config(_))) => return Err(fault),
                Ok(Err(fault)) => fault,
                Err(_) => Fault::silent(format!("no answer within {limit:?}")),
            };
            all_denied &= matches!(fault, Fault::Denied(_));
            // Whoever tells of the failure names all endpoints; which one it was is news among several.
            failures.push(match self.settings.endpoints.len() {
                1 => fault.reason(),
                _ => format!("{endpoint}: {}", fault.reason()),
            });
        }
        match failures.is_empty() {
            true => Err(Fault::unsent("no connection was ready in time")),
            false if all_denied => Err(Fault::Denied(failures.join("; ").into())),
            false => Err(Fault::unsent(failures.join("; "))),
        }
    }

    /// The connection failed: the next call gets another one.
    pub(crate) async fn discard(&self, link: &Link) {
        let mut slot = self.slot.lock().await;
        if slot.current.as_ref().is_some_and(|current| current.id == link.id) {
            slot.current = None;
        }
    }
}

/// TCP, TLS, login, and an answer that shows that the member has a leader.
async fn open(settings: &Settings, url: &str, id: u64) -> Result<Link, Fault> {
    let transport = |error: tonic::transport::Error| answer::transport_fault(error.into());
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(transport)?
        .connect_timeout(settings.connect_timeout)
        .http2_keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        // etcd closes connections that ping while they have nothing to do (gRPC's "too_many_pings").
        .keep_alive_while_idle(false)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if let Some(tls) = settings.tls().map_err(Fault::Config)? {
        endpoint = endpoint.tls_config(tls).map_err(transport)?;
    }
    let channel = Channel::Tonic(endpoint.connect().await.map_err(transport)?);
    let options = etcd_client::ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
    let mut client = Client::from_channel(channel, Some(options)).await.map_err(answer::fault)?;
    // With TLS 1.3, a server that does not accept our certificate, or misses one, can say so only now;
    // what reaches us is that it closed the connection.
    let maybe_certificate = |error| match answer::fault(error) {
        Fault::Unreachable { cause, .. } if settings.is_secure() => Fault::unsent(format!(
            "{cause} (closed after the TLS handshake: etcd may want another certificate in etcd-certfile)"
        )),
        fault => fault,
    };
    if let Some((user, password)) = settings.login().map_err(Fault::Config)? {
        match client.update_user(Some((user, password.expose().to_owned()))).await {
            Ok(()) => {}
            // A wiped etcd has no users; etcd's own client goes on without a login as well.
            Err(etcd_client::Error::GRpcStatus(status))
                if status.message().contains("authentication is not enabled") => {}
            Err(error) => return Err(maybe_certificate(error)),
        }
    }
    let link = Link {
        id,
        kv: client.kv_client().max_decoding_message_size(MAX_MESSAGE),
        lease: client.lease_client(),
        watch: client.watch_client().max_decoding_message_size(MAX_MESSAGE),
    };
    // A linearizable read: only a member with a leader and a quorum can answer it. That the key is
    // not ours to read is an answer too.
    match link
        .kv
        .clone()
        .get("weft", Some(GetOptions::new().with_count_only()))
        .await
        .map_err(maybe_certificate)
    {
        Ok(_) | Err(Fault::Forbidden(_)) => Ok(link),
        Err(fault) => Err(fault),
    }
}

/// The links, shared by calls and watches.
pub(crate) type SharedLinks = Arc<Links>;
