//! etcd's JSON gateway over one connection: writes whose acknowledgement can be timed to a fraction
//! of a millisecond, which a process per write cannot.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::Lab;

use crate::BenchError;

/// How many writes go into one transaction; etcd takes 128 (`--max-txn-ops`).
const BATCH: usize = 100;
/// How long one answer may take: a disk that flushes.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read.
const LONGEST: u64 = 1 << 20;

/// A connection to the lab's first member.
pub(super) struct Gateway {
    stream: RefCell<BufReader<TcpStream>>,
    host: SocketAddr,
}

impl Gateway {
    pub(super) fn open(lab: &Lab) -> Result<Self, BenchError> {
        let member = lab.place("etcd")?;
        let url = lab.etcd().endpoints();
        let address = url.trim_start_matches("http://").split(',').next().unwrap_or_default();
        let unknown =
            || BenchError::Etcd { request: "its address".into(), answer: format!("with `{address}`") };
        let host: SocketAddr = address.parse().map_err(|_| unknown())?;
        let connect = || {
            let stream = TcpStream::connect(host)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = member.within(connect)?.map_err(BenchError::io(format!("connect to {host}")))?;
        Ok(Self { stream: RefCell::new(BufReader::new(stream)), host })
    }

    /// Writes a key.
    pub(super) fn put(&self, key: &str, value: &str) -> Result<(), BenchError> {
        self.post("/v3/kv/put", &put(key, value)).map(drop)
    }

    /// Deletes a key.
    pub(super) fn delete(&self, key: &str) -> Result<(), BenchError> {
        self.post("/v3/kv/deleterange", &json!({"key": base64(key.as_bytes())})).map(drop)
    }

    /// Writes many keys, in transactions.
    pub(super) fn put_all(&self, pairs: impl Iterator<Item = (String, String)>) -> Result<(), BenchError> {
        let puts: Vec<Value> = pairs.map(|(key, value)| json!({"request_put": put(&key, &value)})).collect();
        for batch in puts.chunks(BATCH) {
            let answer = self.post("/v3/kv/txn", &json!({"success": batch}))?;
            if answer["succeeded"] != true {
                return Err(BenchError::Etcd { request: "/v3/kv/txn".into(), answer: answer.to_string() });
            }
        }
        Ok(())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, BenchError> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        let mut stream = self.stream.borrow_mut();
        let broken = || BenchError::io(format!("post {path} to etcd at {}", self.host));
        stream.get_mut().write_all(request.as_bytes()).map_err(broken())?;
        let (status, answer) = read_answer(&mut *stream).map_err(broken())?;
        let unexpected = || BenchError::Etcd {
            request: path.to_owned(),
            answer: format!("{status} {}", String::from_utf8_lossy(&answer)),
        };
        if !status.contains(" 200 ") {
            return Err(unexpected());
        }
        serde_json::from_slice(&answer).map_err(|_| unexpected())
    }
}

fn put(key: &str, value: &str) -> Value {
    json!({"key": base64(key.as_bytes()), "value": base64(value.as_bytes())})
}

/// The status line and the body, which has a length or comes in chunks (RFC 9112, section 6).
fn read_answer(stream: &mut impl BufRead) -> io::Result<(String, Vec<u8>)> {
    let status = read_line(stream)?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = read_line(stream)?.to_ascii_lowercase();
        match header.split_once(':').map(|(name, value)| (name, value.trim())) {
            None => break,
            Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
            Some(("transfer-encoding", "chunked")) => chunked = true,
            Some(_) => {}
        }
    }
    let mut body = vec![];
    if !chunked {
        read_part(stream, length, &mut body)?;
        return Ok((status, body));
    }
    loop {
        let length = u64::from_str_radix(&read_line(stream)?, 16).map_err(io::Error::other)?;
        read_part(stream, length, &mut body)?;
        read_line(stream)?; // the end of the chunk, or of the trailer, which the gateway leaves empty
        if length == 0 {
            return Ok((status, body));
        }
    }
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.take(LONGEST).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn read_part(stream: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let read = stream.take(length.min(LONGEST)).read_to_end(body)?;
    if read as u64 == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let six = bits >> (18 - 6 * digit) & 0x3f;
            let padding = digit > chunk.len();
            text.push(if padding { '=' } else { char::from(ALPHABET[six as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 4648, section 10.
    #[test]
    fn base64_is_the_standards() {
        let table = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in table {
            assert_eq!(base64(plain.as_bytes()), encoded, "{plain}");
        }
    }

    #[test]
    fn an_answer_ends_where_it_says_and_the_next_one_follows() {
        let mut wire: &[u8] = b"HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 2\r\n\r\n{}\
            HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\nA\r\n\":12345678\r\n1\r\n}\r\n0\r\n\r\n\
            HTTP/1.1 400 Bad Request\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}";
        let mut next = || read_answer(&mut wire);
        assert_eq!(next().unwrap(), ("HTTP/1.1 200 OK".into(), b"{}".to_vec()));
        assert_eq!(next().unwrap(), ("HTTP/1.1 200 OK".into(), b"{\"a\":12345678}".to_vec()));
        assert_eq!(next().unwrap(), ("HTTP/1.1 400 Bad Request".into(), vec![]));
        assert_eq!(next().unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "cut short");
    }
}
