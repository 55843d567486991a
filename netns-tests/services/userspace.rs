//! Where the proxy carries connections: what the userspace mode does beyond the others: node ports at loopback addresses, dead endpoints that
//! nobody notices, ends and resets as they were meant.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;
use socket2::SockRef;
use weft_lab::LabError;
use weft_lab::manifests::endpoint;
use weft_lab::traffic::{Answers, Protocol};

use crate::scene::{Case, SOON};
use crate::stories;

stories![Each:
    node_ports_on_loopback,
    endpoints_see_the_host,
    a_dead_endpoint_is_not_noticed,
    an_endpoint_that_says_nothing_is_not_noticed,
    without_an_endpoint_that_lives_it_is_a_reset,
    half_of_a_connection_may_end,
    resets_are_passed_on,
];

/// Of both families; for TCP alone, since a datagram would have to leave the host from there.
fn node_ports_on_loopback(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    let endpoints = case.endpoints(&["ash/one", "birch/one"]);
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &endpoints)])?;
    let loopback: IpAddr = if case.v6 { "::1" } else { "127.0.0.1" }.parse().expect("an address");
    let at = SocketAddr::new(loopback, case.node_port(0));
    case.reaches("ash", at, Protocol::Tcp, &["ash/one", "birch/one"]);
    case.refused("ash", at, Protocol::Udp);
    case.reaches_by_both("ash", case.at("ash", 0), &["ash/one", "birch/one"]);
    Ok(())
}

/// Whoever asks, and however: the host carries it in its own name.
fn endpoints_see_the_host(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    let own = case.scene.place("ash").run("ip -o address show").ok()?;
    let is_own = |address: IpAddr| own.contains(&format!(" {address}/"));
    for (from, to) in [("ash/two", case.web(0)), ("ash/one", case.web(0)), ("outside", case.at("ash", 0))] {
        let (server, seen_as) = case.answered(from, to, Protocol::Tcp);
        assert!(server == "ash/one" && is_own(seen_as), "{from} is seen as {seen_as}:\n{own}");
    }
    Ok(())
}

/// One of two refuses. Everybody is answered by the other, and after a while nobody is sent there.
fn a_dead_endpoint_is_not_noticed(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    let endpoints = case.endpoints(&["ash/one", "birch/one"]);
    case.declare(&[case.service(0, json!({})), case.slice(0, &endpoints)])?;
    let service = format!("service=\"{}-0\"", case.name);
    let metric = |name: &str| {
        let wanted = format!("weft_proxy_userspace_{name}{{namespace=\"default\",{service}");
        case.scene.lab.host("ash").proxy().metric(&wanted)
    };
    let Answers { by_server, others } =
        case.scene.place("ash/two").asks_often(case.web(0), Protocol::Tcp, SOON, 60);
    assert!(others.is_empty() && by_server.into_keys().eq(["ash/one"]), "{others:?}");
    assert!(metric("retries_total")? >= 3.0);
    assert!(metric("endpoint_ejections_total")? >= 1.0);
    assert_eq!(metric("failures_total")?, 0.0);
    Ok(())
}

/// One of two never answers: a first try takes a quarter of a second, and is the only one of its kind.
fn an_endpoint_that_says_nothing_is_not_noticed(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    let birch = case.scene.place("birch/one");
    let table = format!("table inet story-{}", case.number);
    let script = format!(
        "{table} {{ chain c {{ type filter hook input priority 0; tcp dport {} drop; }}; }}",
        case.port(0)
    );
    birch.run_with_stdin(&["nft", "-f", "-"], script.as_bytes()).ok()?;
    let endpoints = case.endpoints(&["ash/one", "birch/one"]);
    case.declare(&[case.service(0, json!({})), case.slice(0, &endpoints)])?;
    let Answers { by_server, others } =
        case.scene.place("ash/two").asks_often(case.web(0), Protocol::Tcp, SOON, 60);
    assert!(others.is_empty() && by_server.into_keys().eq(["ash/one"]), "{others:?}");
    birch.run(format!("nft delete {table}")).ok()?;
    // It comes back by itself.
    case.reaches("ash/two", case.web(0), Protocol::Tcp, &["ash/one"]);
    weft_lab::within(SOON, || {
        let Answers { by_server, others } =
            case.scene.place("ash/two").asks_often(case.web(0), Protocol::Tcp, SOON, 20);
        assert!(others.is_empty(), "{others:?}");
        if by_server.contains_key("birch/one") { Ok(()) } else { Err("birch/one is still out") }
    });
    Ok(())
}

/// All refuse: the client is told by a reset. Who has no endpoint at all is refused by the kernel.
fn without_an_endpoint_that_lives_it_is_a_reset(case: &Case) -> Result<(), LabError> {
    let dead = case.endpoints(&["ash/one", "birch/one"]);
    case.declare(&[case.service(0, json!({})), case.slice(0, &dead), case.service(1, json!({}))])?;
    let mut client = connect(case, "ash/two", case.web(0))?;
    assert_eq!(client.read(&mut [0; 1]).expect_err("nobody is there").kind(), ErrorKind::ConnectionReset);
    case.refused("ash/two", case.web(1), Protocol::Tcp);
    Ok(())
}

fn half_of_a_connection_may_end(case: &Case) -> Result<(), LabError> {
    let listener = listen(case)?;
    let question = vec![b'?'; 3_000_000];
    let answer = vec![b'!'; 5_000_000];
    let (asked, answered) = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut stream = accept(&listener);
            let mut asked = Vec::new();
            // Only once the client has ended its half does it say a word.
            stream.read_to_end(&mut asked).expect("the whole question");
            stream.write_all(&answer).expect("taken");
            asked
        });
        let mut client = connect(case, "ash/two", case.web(0)).expect("reached");
        client.write_all(&question).expect("taken");
        client.shutdown(Shutdown::Write).expect("still open");
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).expect("the whole answer");
        (server.join().expect("no panic"), answered)
    });
    assert!(asked == question && answered == answer, "{} and {} bytes", asked.len(), answered.len());
    Ok(())
}

fn resets_are_passed_on(case: &Case) -> Result<(), LabError> {
    let listener = listen(case)?;
    for by_client in [true, false] {
        let mut client = connect(case, "ash/two", case.web(0))?;
        let mut server = accept(&listener);
        client.write_all(b"x").expect("taken");
        server.read_exact(&mut [0; 1]).expect("it came");
        let (breaker, mut other) = if by_client { (client, server) } else { (server, client) };
        SockRef::from(&breaker).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(breaker);
        let read = other.read(&mut [0; 1]).expect_err("no more");
        assert_eq!(read.kind(), ErrorKind::ConnectionReset, "by client: {by_client}");
    }
    Ok(())
}

/// The story's service leads to a listener of our own in a pod.
fn listen(case: &Case) -> Result<TcpListener, LabError> {
    let at = SocketAddr::new(case.address("birch/one"), case.port(0));
    let listener = case.scene.place("birch/one").within(|| TcpListener::bind(at))?.expect("a free port");
    let endpoints = [endpoint(case.address("birch/one"), "birch")];
    case.declare(&[case.service(0, json!({})), case.slice(0, &endpoints)])?;
    Ok(listener)
}

fn accept(listener: &TcpListener) -> TcpStream {
    bounded(listener.accept().expect("a connection").0)
}

fn connect(case: &Case, from: &str, to: SocketAddr) -> Result<TcpStream, LabError> {
    case.scene.place(from).tcp_connect(to).map(bounded)
}

fn bounded(stream: TcpStream) -> TcpStream {
    stream
        .set_read_timeout(Some(SOON))
        .and_then(|()| stream.set_write_timeout(Some(SOON)))
        .expect("a socket");
    stream
}
