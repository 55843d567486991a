//! What services carry is counted, on the host that translates a connection and on no other.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::json;
use weft_lab::{LabError, within};

use crate::scene::{Case, SOON};
use crate::stories;

stories![Each: bytes_by_service_and_endpoint];

/// How much a client sends, and has echoed.
const SENT: usize = 2_000_000;
/// Beside what the stream carries there are headers, 5 % of full packets at the most; greetings,
/// acknowledgements and what is sent again are the rest.
const AT_MOST: u64 = SENT as u64 + SENT as u64 / 5;

fn bytes_by_service_and_endpoint(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &case.endpoints(&["birch/one"]))])?;
    let endpoint = SocketAddr::new(case.address("birch/one"), case.port(0));
    // The client, whom it asks, and the host that sees to it.
    let paths = [("ash/two", case.web(0), "ash"), ("outside", case.at("cedar", 0), "cedar")];
    for (from, to, host) in paths {
        let stream = echoed(case, from, to)?;
        let live = Carried::within_bounds(case, host, endpoint);
        assert_eq!(stream.shutdown(Shutdown::Both).ok(), Some(()));
        drop(stream);
        // The kernel keeps a closed connection for minutes: this ends it as time would.
        let of_service = format!("conntrack -D -p tcp -d {} --orig-port-dst {}", to.ip(), to.port());
        case.scene.place(host).run(of_service).ok()?;
        let ended = Carried::within_bounds(case, host, endpoint);
        assert!(ended.to >= live.to && ended.from >= live.from, "{live:?}, then {ended:?}");
    }
    // The host of the server saw both connections, translated already.
    assert_eq!(Carried::read(case, "birch", endpoint)?, Carried { to: 0, from: 0 });
    Ok(())
}

/// A connection over which so much was sent and echoed, still open.
fn echoed(case: &Case, from: &str, to: SocketAddr) -> Result<TcpStream, LabError> {
    let broken = |error: io::Error| LabError::Traffic { what: format!("{from} -> {to}: {error}") };
    let mut stream = case.scene.place(from).tcp_connect(to)?;
    stream
        .set_read_timeout(Some(SOON))
        .and_then(|()| stream.set_write_timeout(Some(SOON)))
        .map_err(broken)?;
    // The server says in a line who it is, and then sends back what comes.
    let mut byte = [0];
    while byte != [b'\n'] {
        stream.read_exact(&mut byte).map_err(broken)?;
    }
    let mut sending = stream.try_clone().map_err(broken)?;
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || sending.write_all(&vec![b'x'; SENT]));
        let received = stream.read_exact(&mut vec![0; SENT]);
        sent.join().expect("the writer does not panic").and(received).map_err(broken)
    })?;
    Ok(stream)
}

/// What a host's proxy counted, in bytes to the endpoint and back.
#[derive(Debug, PartialEq)]
struct Carried {
    to: u64,
    from: u64,
}

impl Carried {
    /// By endpoint; the service's sums are the same.
    fn read(case: &Case, host: &str, endpoint: SocketAddr) -> Result<Self, LabError> {
        let port = format!(
            r#"namespace="default",service="{}",port="tcp",protocol="tcp""#,
            case.service(0, json!({}))["metadata"]["name"].as_str().unwrap_or_default()
        );
        let proxy = case.scene.lab.host(host).proxy();
        let body = proxy.api("/metrics")?.body;
        let bytes = |name: &str, labels: &str, direction: &str| -> u64 {
            let series = format!(
                "weft_proxy_{name}_bytes_total{{{port}{labels},direction=\"{direction}_endpoint\"}} "
            );
            let value = body.lines().find_map(|line| line.strip_prefix(&series));
            value.map_or(0, |value| value.parse().expect("a counter is a number"))
        };
        let of_endpoint = format!(",endpoint=\"{endpoint}\"");
        let carried = |name: &str, labels: &str| Self {
            to: bytes(name, labels, "to"),
            from: bytes(name, labels, "from"),
        };
        let found = carried("endpoint", &of_endpoint);
        assert_eq!(carried("service", ""), found, "{host}");
        Ok(found)
    }

    /// What was sent, and not twice as much.
    fn within_bounds(case: &Case, host: &str, endpoint: SocketAddr) -> Self {
        let bounds = SENT as u64..AT_MOST;
        within(SOON, || {
            let found = Self::read(case, host, endpoint).map_err(|error| error.chain())?;
            if bounds.contains(&found.to) && bounds.contains(&found.from) {
                Ok(found)
            } else {
                Err(format!("{host} counted {found:?}; expected {bounds:?}"))
            }
        })
    }
}
