//! One GET over any stream: HTTP/1.0, so that the answer ends where the stream ends.

use std::io::{self, Read, Write};

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header's lines after the first, as they were sent.
    pub headers: Vec<String>,
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
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let version = words.next()?;
    let status = words.next()?.parse().ok()?;
    let headers = lines.map(str::to_owned).collect();
    version.starts_with("HTTP/1.").then(|| Response { status, headers, body: body.to_owned() })
}

impl Response {
    /// The value of a header; names are compared without regard to case (RFC 9110, section 5.1).
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.headers.iter().filter_map(|line| line.split_once(':'));
        let mut named = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    }
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
            let header = read.as_ref().and_then(|read| read.header("a"));
            assert_eq!(header, answer.contains("A: b").then_some("b"), "{answer:?}");
            assert_eq!(read.as_ref().map(|read| (read.status, read.body.as_str())), expected, "{answer:?}");
        }
    }
}
