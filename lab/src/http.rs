//! One GET over any stream: HTTP/1.0, so that the answer ends where the stream ends.

use std::io::{self, Read, Write};

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// What it said.
    pub body: String,
}

/// Asks for a path. The stream's own timeouts bound it.
pub(crate) fn get(mut stream: impl Read + Write, path: &str) -> io::Result<Response> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

fn parse(answer: &str) -> Option<Response> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    let version = words.next()?;
    let status = words.next()?.parse().ok()?;
    version.starts_with("HTTP/1.").then(|| Response { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let table = [
            ("HTTP/1.0 200 OK\r\nA: b\r\n\r\nfine", Some((200, "fine"))),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Some((503, ""))),
            ("HTTP/1.1 abc\r\n\r\n", None),
            ("SSH-2.0\r\n\r\n", None),
            ("", None),
        ];
        for (answer, expected) in table {
            let read = parse(answer);
            assert_eq!(read.as_ref().map(|read| (read.status, read.body.as_str())), expected, "{answer:?}");
        }
    }
}
