//! What every weft daemon has: the reconcile loop, health and readiness with reasons, metrics, the local
//! API, signals, logs. [`Daemon`] puts the pieces together; each is usable alone.

mod env;
pub mod finding;
pub mod fs;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod reconcile;
pub mod sd_notify;
pub mod settings;
pub mod signals;

use std::io;
use std::net::SocketAddr;
use std::path::Path;

pub use env::Env;
pub use tokio_util::sync::CancellationToken;

use health::Health;
use http::{Limits, Request, Response, Router, ServeError, Server, StatusCode};
use metrics::Metrics;
use sd_notify::Notify;

/// One daemon of this process: the handles that its parts share. All are cheap to clone.
#[derive(Debug)]
pub struct Daemon {
    /// What it still needs, and what goes wrong.
    pub health: Health,
    /// Its numbers.
    pub metrics: Metrics,
    /// Cancelled when it shall stop.
    pub shutdown: CancellationToken,
    notify: Notify,
}

/// A daemon that serves. Await [`Running::stopped`] last.
#[derive(Debug)]
pub struct Running {
    server: Server,
    following: tokio::task::JoinHandle<()>,
}

impl Daemon {
    /// A daemon that is ready once all these conditions have been told to be. SIGINT and SIGTERM cancel
    /// `shutdown`; the service manager of `env` is told how we are as soon as [`Daemon::serve`] is called.
    ///
    /// Must be called in a Tokio runtime.
    pub fn new(conditions: &[&str], env: &Env) -> io::Result<Self> {
        let shutdown = CancellationToken::new();
        signals::stop_on_signal(shutdown.clone())?;
        let notify = Notify::from_env(env)?;
        Ok(Self { health: Health::needing(conditions), metrics: Metrics::of_process(), shutdown, notify })
    }

    /// Serves `api` and the health and metrics routes on the Unix socket; on the TCP address only the
    /// latter, because it may be reachable by anybody.
    pub async fn serve(
        self,
        api: Router,
        socket: &Path,
        tcp: Option<SocketAddr>,
    ) -> Result<Running, ServeError> {
        let public = observability(&self.health, &self.metrics);
        let socket = Some((socket, public.clone().merge(api)));
        let tcp = tcp.map(|address| (address, public));
        let server = http::serve(socket, tcp, Limits::default(), self.shutdown.clone()).await?;
        let following = tokio::spawn(self.notify.follow(self.health, self.shutdown));
        Ok(Running { server, following })
    }
}

impl Running {
    /// The TCP address that is served, with the port that the kernel chose if it was 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.server.tcp_address()
    }

    /// Returns when, after the shutdown, every request is answered or cut off, the socket's file is
    /// gone and the service manager knows.
    pub async fn stopped(self) {
        self.server.stopped().await;
        // It has no way to fail but a panic, which has been reported already.
        let _ = self.following.await;
    }
}

/// `/healthz` and `/livez` (the process answers), `/readyz` (200 or 503, a line for each reason;
/// `?verbose` for all conditions; as JSON if asked by `?json` or `Accept`), `/metrics`.
pub fn observability(health: &Health, metrics: &Metrics) -> Router {
    let alive = |_| async { Response::text("ok\n") };
    let (health, metrics) = (health.clone(), metrics.clone());
    Router::new()
        .get("/healthz", alive)
        .get("/livez", alive)
        .get("/readyz", move |request| std::future::ready(readyz(&health, &request)))
        .get("/metrics", move |_| {
            let text = Response::text(metrics.render());
            std::future::ready(Response { content_type: metrics::CONTENT_TYPE, ..text })
        })
}

fn readyz(health: &Health, request: &Request) -> Response {
    let report = health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let json = request.flag("json") || request.accept.contains("application/json");
    let response =
        if json { Response::json(&report) } else { Response::text(report.text(request.flag("verbose"))) };
    response.with_status(status)
}

#[cfg(test)]
mod tests {
    use super::health::Report;
    use super::http::Method;
    use super::http::client::Client;
    use super::*;

    #[tokio::test]
    async fn a_daemon_from_start_to_end() {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("blue/overlay.sock");
        let daemon = Daemon::new(&["config", "lease"], &Env::default()).unwrap();
        let (health, shutdown) = (daemon.health.clone(), daemon.shutdown.clone());
        daemon.metrics.counter("weft_test_total", "A test.").inc();
        let api = Router::new().get("/peers", |_| async { Response::json(&["ash"]) });
        let any = "127.0.0.1:0".parse().unwrap();
        let running = daemon.serve(api, &socket, Some(any)).await.unwrap();
        assert!(running.tcp_address().is_some());
        let client = Client::new(&socket);
        let get = async |path| {
            let answer = client.send(Method::GET, path, vec![]).await.unwrap();
            (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).unwrap())
        };
        assert_eq!(get("/healthz").await, (200, "ok\n".into()));
        let reasons = "not ready\nconfig not ready: not known yet\nlease not ready: not known yet\n";
        assert_eq!(get("/readyz").await, (503, reasons.into()));
        health.ok("config");
        health.ok("lease");
        assert_eq!(get("/readyz").await, (200, "ready\n".into()));
        assert_eq!(get("/readyz?verbose").await, (200, "ready\nconfig ok\nlease ok\n".into()));
        assert!(client.get_json::<Report>("/readyz?json").await.unwrap().ready);
        assert!(get("/metrics").await.1.contains("\nweft_test_total 1\n"));
        assert_eq!(client.get_json::<Vec<String>>("/peers").await.unwrap(), ["ash"]);
        shutdown.cancel();
        running.stopped().await;
        assert!(!socket.exists());
    }
}
