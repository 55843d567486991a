//! The server and the client against each other, over real sockets.

use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::http::Method;
use crate::http::client::{Client, ClientError};

struct Home {
    directory: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Home {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), shutdown: CancellationToken::new() }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("overlay.sock")
    }

    fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    async fn serve(&self, router: Router, limits: Limits) -> Server {
        serve(Some((&self.socket(), router)), None, limits, self.shutdown.clone()).await.unwrap()
    }
}

fn echo() -> Router {
    Router::new()
        .get("/peers", |_| async { Response::json(&["ash", "birch"]) })
        .get("/never", |_| std::future::pending())
        .post("/length", |request| async move { Response::json(&request.body.len()) })
}

#[tokio::test]
async fn a_client_gets_json() {
    let home = Home::new();
    let server = home.serve(echo(), Limits::default()).await;
    assert_eq!(home.client().get_json::<Vec<String>>("/peers?x=1").await.unwrap(), ["ash", "birch"]);
    assert_eq!(home.client().post_json::<usize>("/length", &"abc").await.unwrap(), 5);
    home.shutdown.cancel();
    server.stopped().await;
    assert!(!home.socket().exists());
    let error = home.client().get_json::<Vec<String>>("/peers").await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[tokio::test]
async fn failures_are_told_apart() {
    let home = Home::new();
    let _server = home.serve(echo(), Limits::default()).await;
    let error = home.client().get_json::<()>("/nothing").await.unwrap_err();
    assert_eq!(error.to_string(), "nothing is at `/nothing`");
    let error = home.client().get_json::<u8>("/peers").await.unwrap_err();
    assert!(matches!(error, ClientError::Nonsense { .. }), "{error}");
    let short = home.client().timeout(Duration::from_millis(50));
    let error = short.get_json::<()>("/never").await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_body_may_have_so_many_bytes_and_no_more() {
    let home = Home::new();
    let _server = home.serve(echo(), Limits { body: 1000, ..Limits::default() }).await;
    let send = async |length| home.client().send(Method::POST, "/length", vec![b'x'; length]).await.unwrap();
    assert_eq!(send(1000).await.status, StatusCode::OK);
    let refused = send(1001).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(refused.body, "the body has more than 1000 bytes\n");
}

#[tokio::test]
async fn who_sends_slowly_is_cut_off() {
    let home = Home::new();
    let limits = Limits { read: Duration::from_millis(50), connections: 1, ..Limits::default() };
    let _server = home.serve(echo(), limits).await;
    for (case, sent, heard) in [
        ("nothing", "", ""),
        ("half a header", "GET /peers HT", ""),
        ("half a body", "POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", "HTTP/1.1 408 "),
        ("a request, and then nothing", "GET /peers HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 "),
    ] {
        let mut stream = UnixStream::connect(home.socket()).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer))
            .await
            .unwrap_or_else(|_| panic!("{case}: the server does not hang up"))
            .unwrap();
        assert!(answer.starts_with(heard), "{case}: {answer}");
    }
}

#[tokio::test]
async fn a_handler_that_never_answers_is_answered_for() {
    let home = Home::new();
    let limits = Limits { answer: Duration::from_millis(50), ..Limits::default() };
    let _server = home.serve(echo(), limits).await;
    let answer = home.client().send(Method::GET, "/never", vec![]).await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
}

/// A long poll answers when its moment comes, while others are served.
#[tokio::test]
async fn a_long_poll_waits_beside_other_requests() {
    let home = Home::new();
    let moment = CancellationToken::new();
    let wait = moment.clone();
    let router = echo().get("/moment", move |_| {
        let wait = wait.clone();
        async move {
            wait.cancelled().await;
            Response::json(&true)
        }
    });
    let _server = home.serve(router, Limits::default()).await;
    let client = home.client();
    let poll = tokio::spawn(async move { client.get_json::<bool>("/moment").await });
    home.client().get_json::<Vec<String>>("/peers").await.unwrap();
    assert!(!poll.is_finished());
    moment.cancel();
    assert!(poll.await.unwrap().unwrap());
}

#[tokio::test]
async fn stopping_waits_for_open_requests_but_not_for_ever() {
    let home = Home::new();
    let grace = Duration::from_millis(200);
    let server = home.serve(echo(), Limits { grace, ..Limits::default() }).await;
    let client = home.client();
    let poll = tokio::spawn(async move { client.get_json::<()>("/never").await });
    let mut idle = UnixStream::connect(home.socket()).await.unwrap();
    // One whole exchange shows that the connection was accepted; the request is then under way too.
    idle.write_all(b"GET /peers HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    idle.read_u8().await.unwrap();
    let start = Instant::now();
    home.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(20), server.stopped()).await.expect("it stops");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(poll.await.unwrap().is_err());
}

#[tokio::test]
async fn tcp_serves_its_own_routes_only() {
    let home = Home::new();
    let public = Router::new().get("/healthz", |_| async { Response::text("ok\n") });
    let any = "127.0.0.1:0".parse().unwrap();
    let server =
        serve(Some((&home.socket(), echo())), Some((any, public)), Limits::default(), home.shutdown.clone())
            .await
            .unwrap();
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(server.tcp_address().unwrap()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(get("/peers").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn an_address_in_use_is_named_and_the_socket_is_not_left_behind() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = serve(
        Some((&home.socket(), echo())),
        Some((address, Router::new())),
        Limits::default(),
        home.shutdown.clone(),
    )
    .await
    .unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {address}"));
    assert!(!home.socket().exists());
}

#[tokio::test]
async fn more_connections_than_allowed_wait_their_turn() {
    let home = Home::new();
    let _server = home.serve(echo(), Limits { connections: 2, ..Limits::default() }).await;
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let client = home.client();
            tokio::spawn(async move { client.get_json::<Vec<String>>("/peers").await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_socket_that_listens_already_is_served_until_the_end() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let router =
        Router::new().get("/known", |_| async { Response::text("known") }).rest(|request| async move {
            let line = format!("{} {}", request.method, request.path);
            Response::text(line)
                .with_header("x-weight", 7.into())
                .with_status(StatusCode::SERVICE_UNAVAILABLE)
        });
    let shutdown = CancellationToken::new();
    let server = serve_on(listener, router, Limits::default(), shutdown.clone()).unwrap();
    let address = server.tcp_address().unwrap();
    let ask = async |line: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = ask("GET /known").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nknown"), "{answer}");
    let answer = ask("PUT /any/thing").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("PUT /any/thing"), "{answer}");
    assert!(answer.contains("\r\nx-weight: 7\r\n"), "{answer}");
    shutdown.cancel();
    server.stopped().await;
    assert!(TcpStream::connect(address).await.is_err());
}
