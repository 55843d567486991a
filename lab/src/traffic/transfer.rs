//! Many bytes over one TCP connection, hashed at both ends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::Endpoint;
use super::service::{Service, read_some};
use crate::{LabError, Place};

/// How much is written and hashed at once.
const CHUNK: usize = 1 << 20;
/// Each of these pieces of a chunk is stamped with its place in the stream, so that none equals
/// another: a piece lost, doubled or swapped changes the hash.
const PIECE: usize = 512;
/// How long the connection may be stuck before it is given up.
const STUCK: Duration = Duration::from_secs(60);

/// A transfer whose hashes were equal.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// How many bytes.
    pub bytes: u64,
    /// From the first byte sent to the far end's hash received.
    pub took: Duration,
    /// The SHA-256 that both ends computed, in hexadecimal.
    pub sha256: String,
}

impl Transfer {
    /// The rate in Gbit/s. Hashing is included, so it is no benchmark.
    pub fn gbit_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e9 / self.took.as_secs_f64()
    }
}

pub(super) fn send(from: &Place, to: &Endpoint, bytes: u64) -> Result<Transfer, LabError> {
    let service = Service::tcp(&to.place, digest)?;
    let mut stream = from.tcp_connect(service.at(to.address))?;
    let what = format!("{bytes} bytes from {} to {}", from.name(), to.address);
    let start = Instant::now();
    let (ours, theirs) = exchange(&mut stream, bytes).map_err(LabError::io(format!("send {what}")))?;
    if ours != theirs {
        let what = format!("{what} were altered: sent {ours}, received {theirs}");
        return Err(LabError::Traffic { what });
    }
    Ok(Transfer { bytes, took: start.elapsed(), sha256: ours })
}

fn exchange(stream: &mut TcpStream, bytes: u64) -> io::Result<(String, String)> {
    stream.set_write_timeout(Some(STUCK))?;
    stream.set_read_timeout(Some(STUCK))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        stamp(&mut chunk, sent);
        let piece =
            chunk.get(..usize::try_from(bytes - sent).unwrap_or(CHUNK).min(CHUNK)).unwrap_or_default();
        stream.write_all(piece)?;
        hash.update(piece);
        sent += piece.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut theirs = String::new();
    stream.read_to_string(&mut theirs)?;
    Ok((hex(hash), theirs))
}

/// The far end: reads to the end and answers with the hash.
fn digest(mut stream: TcpStream, stop: &AtomicBool) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match read_some(&mut stream, &mut buffer, stop) {
            Ok(0) => break,
            Ok(read) => hash.update(buffer.get(..read).unwrap_or_default()),
            Err(_) => return,
        }
    }
    let _ = stream.write_all(hex(hash).as_bytes());
}

/// The start of every piece is its offset, spread over all bits by an odd factor (2^64 / golden ratio).
fn stamp(chunk: &mut [u8], offset: u64) {
    for (number, piece) in (offset / PIECE as u64 + 1..).zip(chunk.chunks_exact_mut(PIECE)) {
        let mark = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        piece[..mark.len()].copy_from_slice(&mark);
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_piece_equals_another() {
        let mut seen = BTreeSet::new();
        let mut chunk = vec![0; CHUNK];
        for offset in [0, CHUNK as u64, 2 * CHUNK as u64] {
            stamp(&mut chunk, offset);
            seen.extend(chunk.chunks(PIECE).map(<[u8]>::to_vec));
        }
        assert_eq!(seen.len(), 3 * CHUNK / PIECE);
    }
}
