//! Servers that go away, fall silent, forget, or were put back to an earlier state.

use super::super::testing::Fault;
use super::*;

#[tokio::test]
async fn what_happened_while_the_connection_was_cut_is_heard_later() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    server.put(slice("web-1", 8080));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    let before = server.requests().len();
    server.cut();
    server.put(service("api", 90));
    server.remove("Service", "shop", "web");
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of("api")), (None, Some(90)));
    let lists = server.requests().split_off(before).into_iter().filter(|it| it.contains("limit=500")).count();
    assert_eq!(lists, 0, "resumed, not listed anew");
}

/// What was deleted while nobody looked is gone, and what is still there is not.
#[tokio::test]
async fn a_forgotten_history_means_a_new_list() {
    for round in 0..2 {
        let server = Server::start(Security::None);
        // 410 comes as a status, or in the stream.
        (0..=round).for_each(|_| server.forget());
        server.put(service("web", 80));
        server.put(service("api", 90));
        server.put(slice("web-1", 8080));
        let mut proxy = Proxy::of(&server).await;
        proxy.caught_up(&server).await;
        server.stall(true);
        server.cut();
        server.remove("Service", "shop", "web");
        server.remove("EndpointSlice", "shop", "web-1");
        server.put(service("mark", 1));
        server.forget();
        server.forget();
        server.stall(false);
        proxy.caught_up(&server).await;
        assert_eq!((proxy.port_of("web"), proxy.port_of_slice("web-1")), (None, None));
        assert_eq!((proxy.port_of("api"), proxy.port_of("mark")), (Some(90), Some(1)));
        assert_eq!(proxy.away, None, "an everyday matter");
    }
}

/// A store that was restored from a backup counts from an earlier version. A watch from ours would
/// hear nothing until it has caught up.
#[tokio::test]
async fn a_store_put_back_to_an_earlier_state_is_noticed() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    server.put(service("api", 90));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    server.stall(true);
    server.rewind(500);
    server.remove("Service", "shop", "api");
    server.put(service("web", 81));
    server.stall(false);
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of("api")), (Some(81), None));
    assert_eq!(proxy.revisions.services, Some(502));
}

#[tokio::test]
async fn a_server_that_is_away_takes_nothing_away_and_is_told_once() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    let (address, kubeconfig) = (server.address(), server.kubeconfig());
    drop(server);
    proxy.until(|it| it.away.is_some()).await;
    assert_eq!(proxy.port_of("web"), Some(80));
    let away = proxy.away.clone().unwrap();
    assert!(away.starts_with("cannot read ") && away.contains(&address.to_string()), "{away}");

    let listener = std::net::TcpListener::bind(address).expect("the port is free again");
    let server = Server::on(listener, Security::None);
    assert_eq!(server.kubeconfig(), kubeconfig);
    server.rewind(500);
    server.put(service("api", 90));
    proxy.until(|it| it.away.is_none()).await;
    proxy.caught_up(&server).await;
    assert_eq!((proxy.port_of("web"), proxy.port_of("api")), (None, Some(90)), "another store");
}

/// The connection stands, the server is dead.
#[tokio::test]
async fn a_watch_that_falls_silent_is_begun_anew() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    let short = Duration::from_millis(300);
    let mut proxy = Proxy::with(&server, Patience { answer: short, silence: short, ..patience() }).await;
    proxy.until(|it| it.complete).await;
    server.stall(true);
    proxy.until(|it| it.away.is_some()).await;
    let away = proxy.away.clone().unwrap();
    assert!(away.ends_with("no answer for 0.3 s"), "{away}");
    server.put(service("web", 81));
    server.stall(false);
    proxy.until(|it| it.away.is_none() && it.port_of("web") == Some(81)).await;
}

#[tokio::test]
async fn an_answer_that_never_begins_is_not_waited_for() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    server.next(std::iter::repeat_n(Fault::Silence, 3));
    server.next(std::iter::repeat_n(Fault::Begin(br#"{"kind":"ServiceList","#.to_vec()), 3));
    let mut proxy = Proxy::with(&server, Patience { answer: Duration::from_millis(200), ..patience() }).await;
    proxy.until(|it| it.away.as_ref().is_some_and(|away| away.ends_with("no answer for 0.2 s"))).await;
    proxy.until(|it| it.complete && it.away.is_none()).await;
    assert_eq!(proxy.port_of("web"), Some(80));
}

/// A server that sends no bookmarks: after the silence it is asked how far it is, not for everything,
/// and that is no trouble.
#[tokio::test]
async fn silence_alone_costs_neither_a_list_nor_news() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    let mut proxy =
        Proxy::with(&server, Patience { silence: Duration::from_millis(100), ..patience() }).await;
    proxy.until(|it| it.complete).await;
    for port in 81..84 {
        let checks =
            |it: &Server| it.requests().iter().filter(|it| *it == "/api/v1/services?limit=1").count();
        let before = checks(&server);
        tokio::select! {
            _ = server.asked(|_| checks(&server) > before) => {}
            () = async { loop { proxy.step().await } } => {}
        }
        server.put(service("web", port));
        proxy.until(|it| it.port_of("web") == Some(port)).await;
        assert_eq!(proxy.away, None);
    }
    let lists =
        server.requests().into_iter().filter(|it| it.starts_with("/api/v1/services?limit=500")).count();
    assert_eq!(lists, 1);
}

/// The server ends watches itself after a while.
#[tokio::test]
async fn a_watch_that_ends_in_good_order_goes_on() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    let mut proxy = Proxy::with(&server, Patience { watch: Duration::from_secs(2), ..patience() }).await;
    proxy.until(|it| it.complete).await;
    let watches =
        |it: &str| it.starts_with("/api/v1/services?watch=1") && it.contains("allowWatchBookmarks=true");
    let first = server.asked(watches).await;
    assert!(first.contains("timeoutSeconds=1") || first.contains("timeoutSeconds=2"), "{first}");
    let revision = server.put(service("web", 81));
    proxy.until(|it| it.port_of("web") == Some(81)).await;
    server.asked(|it| watches(it) && it.contains(&format!("resourceVersion={revision}"))).await;
    server.put(service("web", 82));
    proxy.until(|it| it.port_of("web") == Some(82)).await;
    assert_eq!(proxy.away, None);
}

/// Some refusals in the way of each resource, then all is well.
#[tokio::test]
async fn refusals_are_waited_out() {
    let status = |code: u16, message: &str| {
        let body = json!({"kind": "Status", "code": code, "message": message});
        Fault::Answer(code, body.to_string().into_bytes())
    };
    let table = [
        status(500, "etcdserver: leader changed"),
        status(503, "apiserver is shutting down"),
        status(429, "slow down"),
        status(504, "Too large resource version"),
        status(404, "not yet served"),
        Fault::Answer(502, b"<html>Bad Gateway</html>".to_vec()),
        Fault::Close,
    ];
    for fault in table {
        let server = Server::start(Security::None);
        server.put(service("web", 80));
        server.next(std::iter::repeat_n(fault.clone(), 12));
        let mut proxy = Proxy::of(&server).await;
        proxy.until(|it| it.away.is_some()).await;
        proxy.caught_up(&server).await;
        proxy.until(|it| it.away.is_none()).await;
        assert_eq!(proxy.port_of("web"), Some(80), "{fault:?}");
        server.next(std::iter::repeat_n(fault.clone(), 5));
        server.cut();
        server.put(service("web", 81));
        proxy.caught_up(&server).await;
        assert_eq!(proxy.port_of("web"), Some(81), "{fault:?}");
    }
}
