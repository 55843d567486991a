//! As much of a Kubernetes API as kube-proxy asks for: lists that stay as they are, and watches in which
//! nothing happens. Plain HTTP on the host's loopback.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use weft_lab::Host;

use super::services::{Load, Target};
use crate::BenchError;

/// Where it listens.
const PORT: u16 = 8001;
/// How soon the end is noticed.
const LOOK: Duration = Duration::from_millis(100);
/// The longest line and body that are read.
const LONGEST: u64 = 1 << 20;
/// The version of everything: nothing changes.
const REVISION: &str = "1";

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct Api {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    /// Serves these services, and a Node for the host.
    pub(super) fn serve(host: &Host, load: Load, target: &Target) -> Result<Self, BenchError> {
        let answers = Arc::new(Answers::of(load, target, host.name(), host.v4()));
        let listen = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            // accept(2) heeds it.
            socket.set_read_timeout(Some(LOOK))?;
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)).into())?;
            socket.listen(16)?;
            Ok(socket)
        };
        let broken = || BenchError::io(format!("serve an API on {}", host.name()));
        let socket = host.within(listen)?.map_err(broken())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let accept = move || {
            let mut served = vec![];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((stream, _)) = socket.accept() else { continue };
                let (answers, stopped) = (answers.clone(), stopped.clone());
                served.push(std::thread::spawn(move || {
                    // A client that goes away in the middle is nobody's loss.
                    let _ = converse(stream.into(), &answers, &stopped);
                }));
            }
            served.into_iter().for_each(|thread| drop(thread.join()));
        };
        let thread = std::thread::Builder::new().name("apiserver".into()).spawn(accept).map_err(broken())?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// A kubeconfig that leads here.
    pub(super) fn kubeconfig() -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://127.0.0.1:{PORT}")}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "current-context": "bench",
        })
        .to_string()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is answered, by path.
struct Answers(BTreeMap<String, String>);

/// What a client gets.
#[derive(Debug, PartialEq)]
enum Reply<'a> {
    /// An object or a list.
    Object(&'a str),
    /// A stream in which nothing happens.
    Watch,
    /// A status that is no success: code and reason.
    Refusal(u16, &'static str),
}

impl Answers {
    fn of(load: Load, target: &Target, node: &str, address: Ipv4Addr) -> Self {
        let (services, slices): (Vec<Value>, Vec<Value>) =
            load.objects(target).into_iter().partition(|object| object["kind"] == "Service");
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node, "resourceVersion": REVISION, "labels": {"kubernetes.io/hostname": node}},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        });
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let answers = [
            ("/version".to_owned(), json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})),
            (format!("/api/v1/nodes/{name}"), node.clone()),
            ("/api/v1/nodes".to_owned(), list("v1", "NodeList", vec![node])),
            ("/api/v1/services".to_owned(), list("v1", "ServiceList", services)),
            (
                "/apis/discovery.k8s.io/v1/endpointslices".to_owned(),
                list("discovery.k8s.io/v1", "EndpointSliceList", slices),
            ),
            (
                "/apis/networking.k8s.io/v1/servicecidrs".to_owned(),
                list("networking.k8s.io/v1", "ServiceCIDRList", vec![]),
            ),
        ];
        Self(answers.into_iter().map(|(path, answer)| (path, answer.to_string())).collect())
    }

    fn reply(&self, method: &str, target: &str) -> Reply<'_> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let asks = |what: &str| {
            query.split('&').any(|part| part == format!("{what}=true") || part == format!("{what}=1"))
        };
        match (method, self.0.get(path)) {
            ("GET", Some(_)) if asks("watch") && asks("sendInitialEvents") => {
                // Who hears this lists and watches instead (KEP-3157).
                Reply::Refusal(422, "Invalid")
            }
            ("GET", Some(_)) if asks("watch") => Reply::Watch,
            ("GET", Some(object)) => Reply::Object(object),
            _ => Reply::Refusal(404, "NotFound"),
        }
    }
}

fn list(version: &str, kind: &str, items: Vec<Value>) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": REVISION}, "items": items})
}

/// Answers one request after another (RFC 9112).
fn converse(stream: TcpStream, answers: &Answers, stop: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(LOOK))?;
    let mut reader = BufReader::new(stream);
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = reader.fill_buf() {
            match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => continue,
                _ => return Err(error),
            }
        }
        let Some((method, target)) = request(&mut reader)? else { return Ok(()) };
        let stream = reader.get_mut();
        match answers.reply(&method, &target) {
            Reply::Object(object) => answer(stream, "200 OK", object)?,
            Reply::Refusal(code, reason) => {
                let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason,
                                    "message": format!("{method} {target}"), "code": code});
                answer(stream, &format!("{code} {reason}"), &status.to_string())?;
            }
            Reply::Watch => {
                stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
                )?;
                return silence(stream, stop);
            }
        }
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Keeps a watch open until one side has had enough.
fn silence(stream: &mut TcpStream, stop: &AtomicBool) -> io::Result<()> {
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            result => result.map(drop)?,
        }
    }
    Ok(())
}

/// A request's method and target; its body is read and forgotten. None at the end.
fn request(reader: &mut impl BufRead) -> io::Result<Option<(String, String)>> {
    let first = line(reader)?;
    let mut words = first.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let mut length = 0;
    loop {
        let header = line(reader)?.to_ascii_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("content-length", value)) => length = value.trim().parse().map_err(io::Error::other)?,
            Some(_) => {}
        }
    }
    io::copy(&mut reader.take(u64::min(length, LONGEST)), &mut io::sink())?;
    Ok(Some((method.to_owned(), target.to_owned())))
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LONGEST).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::stage::TARGET;

    #[test]
    fn a_proxy_finds_what_it_asks_for() {
        let answers = Answers::of(Load::of(20), &TARGET, "ash", Ipv4Addr::new(192, 0, 2, 11));
        let items = |path: &str| match answers.reply("GET", path) {
            Reply::Object(object) => {
                let list: Value = serde_json::from_str(object).unwrap();
                assert_eq!(list["metadata"]["resourceVersion"], REVISION);
                list["items"].as_array().unwrap().len()
            }
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(items("/api/v1/services?labelSelector=%21service.kubernetes.io%2Fheadless&limit=500"), 21);
        assert_eq!(items("/apis/discovery.k8s.io/v1/endpointslices"), 21);
        assert_eq!(items("/api/v1/nodes?fieldSelector=metadata.name%3Dash"), 1);
        let table = [
            ("GET", "/api/v1/services?resourceVersion=1&watch=true", Reply::Watch),
            ("GET", "/api/v1/services?sendInitialEvents=true&watch=true", Reply::Refusal(422, "Invalid")),
            ("GET", "/api/v1/pods", Reply::Refusal(404, "NotFound")),
            ("POST", "/api/v1/services", Reply::Refusal(404, "NotFound")),
        ];
        for (method, target, reply) in table {
            assert_eq!(answers.reply(method, target), reply, "{method} {target}");
        }
    }

    #[test]
    fn requests_follow_each_other_on_a_connection() {
        let mut wire: &[u8] =
            b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /b?c=d HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut next = || request(&mut wire).unwrap();
        assert_eq!(next(), Some(("POST".into(), "/a".into())));
        assert_eq!(next(), Some(("GET".into(), "/b?c=d".into())));
        assert_eq!(next(), None);
    }
}
