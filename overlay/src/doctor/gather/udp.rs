//! Questions to a peer's responder, through the tunnel: UDP whose checksums the link completes.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::socket::{setsockopt, sockopt};

use crate::doctor::echo::{ANSWER_LEN, Answer, PORT, Question};
use crate::doctor::facts::Echo;
use crate::doctor::responder::unix_ms;

/// How often a question is asked, and how long an answer may take.
const TRIES: u32 = 3;
const PATIENCE: Duration = Duration::from_millis(500);
/// Parts of a burst that leaves this host's stack as one packet (UDP_SEGMENT).
const PARTS: usize = 8;

/// Asks once small, and once with a burst of parts of `part` bytes each.
pub(super) fn ask(own: IpAddr, peer: IpAddr, part: usize) -> io::Result<Echo> {
    let socket = UdpSocket::bind((own, 0))?;
    // Connected, so that "nobody listens there" comes back as an error.
    socket.connect((peer, PORT))?;
    for _ in 0..TRIES {
        let nonce = rand::random();
        let asked = (Instant::now(), SystemTime::now());
        socket.send(&Question { nonce, number: 0 }.encode(ANSWER_LEN))?;
        match hear(&socket, nonce, asked.0 + PATIENCE) {
            Ok(Some(answer)) => {
                let half = u64::try_from(asked.0.elapsed().as_millis() / 2).unwrap_or_default();
                let ours = unix_ms(asked.1).saturating_add(half);
                let ahead_ms =
                    i64::try_from(i128::from(answer.unix_ms) - i128::from(ours)).unwrap_or(i64::MAX);
                let (arrived, sent) = burst(&socket, part)?;
                return Ok(Echo::Answer { arrived, sent, ahead_ms, version: answer.version });
            }
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Echo::Nobody),
            Err(error) => return Err(error),
        }
    }
    Ok(Echo::Silence)
}

/// The best of some tries: how many of how many parts were answered.
fn burst(socket: &UdpSocket, part: usize) -> io::Result<(u32, u32)> {
    // One UDP packet has at most 65,507 bytes, its parts together.
    let part = part.clamp(ANSWER_LEN, 60_000);
    let parts = u32::try_from((60_000 / part).clamp(1, PARTS)).unwrap_or(1);
    if parts > 1 {
        let segment = i32::try_from(part).unwrap_or(i32::MAX);
        setsockopt(socket, sockopt::UdpGsoSegment, &segment)?;
    }
    let mut best = 0;
    for _ in 0..TRIES {
        let nonce = rand::random();
        let questions: Vec<u8> =
            (0..parts).flat_map(|number| Question { nonce, number }.encode(part)).collect();
        socket.send(&questions)?;
        let deadline = Instant::now() + PATIENCE;
        let mut arrived = std::collections::BTreeSet::new();
        while let Ok(Some(answer)) = hear(socket, nonce, deadline) {
            if usize::try_from(answer.length).is_ok_and(|length| length == part) {
                arrived.insert(answer.number);
            }
            if arrived.len() >= PARTS.min(usize::try_from(parts).unwrap_or(PARTS)) {
                break;
            }
        }
        best = best.max(u32::try_from(arrived.len()).unwrap_or(0));
        if best == parts {
            break;
        }
    }
    Ok((best, parts))
}

/// The next answer to this question; `None` when the time is up.
fn hear(socket: &UdpSocket, nonce: u64, deadline: Instant) -> io::Result<Option<Answer>> {
    let mut buffer = [0; 128];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let answer = buffer.get(..length).and_then(Answer::decode);
                if let Some(answer) = answer.filter(|answer| answer.nonce == nonce) {
                    return Ok(Some(answer));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}
