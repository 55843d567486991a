//! Servers that say who they are and whom they see, and clients that note who answered.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::sockopt::Ipv6RecvPacketInfo;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt,
};

use super::service::{self, Service, opened};
use crate::{LabError, Place};

/// The longest datagram over IPv4.
const DATAGRAM: usize = 65_507;
/// How many datagrams may be needed until one comes through.
const DATAGRAMS: u32 = 5;
/// How often a starved machine may be unlucky to have the other protocol's port taken meanwhile.
const TRIES: usize = 100;

/// What services carry here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A connection for each question.
    Tcp,
    /// A datagram from a new port for each question.
    Udp,
}

/// As in manifests.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// What came of asking who is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Somebody answered.
    From {
        /// Who: the name of its place, or the one it was given.
        server: String,
        /// By which address it sees the client.
        seen_as: IpAddr,
    },
    /// Told that nobody is there: a reset, or ICMP.
    Refused,
    /// Somebody took the connection and broke it off: a userspace proxy that reached no endpoint.
    Reset,
    /// Told nothing in time.
    Silent,
    /// Anything else; what the kernel said.
    Failed(String),
}

/// What came of asking often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// How often each server answered.
    pub by_server: BTreeMap<String, usize>,
    /// Everything that was no answer.
    pub others: Vec<Answer>,
}

impl Answers {
    /// Pearson's chi-square statistic against every one of the servers getting the same share.
    pub fn chi_square(&self, servers: usize) -> f64 {
        let total: usize = self.by_server.values().sum();
        let expected = total as f64 / servers as f64;
        let missing = servers.saturating_sub(self.by_server.len()) as f64 * expected;
        self.by_server.values().map(|got| (*got as f64 - expected).powi(2) / expected).sum::<f64>() + missing
    }
}

/// A running server; ends when dropped.
#[derive(Debug)]
pub struct Server {
    name: String,
    tcp: Service,
    _udp: Service,
}

impl Server {
    /// What it answers with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port, the same for TCP and UDP.
    pub fn port(&self) -> u16 {
        self.tcp.port()
    }
}

impl Place {
    /// A server on all addresses, for TCP and UDP, that answers with the place's name: a line for each
    /// connection, which then echoes; and each datagram, behind that line.
    pub fn server(&self) -> Result<Server, LabError> {
        self.server_at(0, self.name())
    }

    /// As [`Place::server`], with a port and a name of its own; port 0 is any.
    pub fn server_at(&self, port: u16, name: &str) -> Result<Server, LabError> {
        let bind = || {
            let mut tries = TRIES;
            loop {
                let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
                match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, tcp.local_addr()?.port())) {
                    Ok(udp) => return Ok((tcp, udp)),
                    Err(_) if port == 0 && tries > 0 => tries -= 1,
                    Err(error) => return Err(error),
                }
            }
        };
        let (tcp, udp) = opened(self, bind)?;
        let (for_tcp, for_udp): (Arc<str>, Arc<str>) = (name.into(), name.into());
        Ok(Server {
            name: name.to_owned(),
            tcp: Service::on_listener(tcp, move |stream, stop| serve_stream(stream, &for_tcp, stop))?,
            _udp: Service::on_socket(udp, move |socket, stop| serve_datagrams(socket, &for_udp, stop))?,
        })
    }

    /// Asks once who is there.
    pub fn asks(&self, to: SocketAddr, protocol: Protocol, limit: Duration) -> Answer {
        match self.within(|| ask(to, protocol, limit)) {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(error.chain()),
        }
    }

    /// Asks this often, one after the other.
    pub fn asks_often(&self, to: SocketAddr, protocol: Protocol, limit: Duration, times: usize) -> Answers {
        let ask_all = || {
            let mut answers = Answers::default();
            for _ in 0..times {
                answers.note(ask(to, protocol, limit));
            }
            answers
        };
        self.within(ask_all).unwrap_or_else(|error| Answers {
            others: vec![Answer::Failed(error.chain())],
            ..Answers::default()
        })
    }

    /// Sends this to a [`Place::server`] over a connection or in one datagram, and has it echoed. Who did.
    pub fn exchange(&self, to: SocketAddr, protocol: Protocol, payload: &[u8]) -> Result<String, LabError> {
        let what = format!("exchange {} bytes with {to} over {protocol}", payload.len());
        self.within(|| exchange(to, protocol, payload))?.map_err(LabError::io(what))
    }
}

impl Answers {
    pub(super) fn note(&mut self, answer: Answer) {
        match answer {
            Answer::From { server, .. } => *self.by_server.entry(server).or_default() += 1,
            other => self.others.push(other),
        }
    }
}

/// Runs in the client's namespace.
pub(super) fn ask(to: SocketAddr, protocol: Protocol, limit: Duration) -> Answer {
    let asked = match protocol {
        Protocol::Tcp => greeted(to, limit).map(|(greeting, _)| greeting),
        Protocol::Udp => datagram(to, b"", limit).map(|(greeting, _)| greeting),
    };
    match asked {
        Ok((server, seen_as)) => Answer::From { server, seen_as },
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Answer::Refused,
            ErrorKind::ConnectionReset => Answer::Reset,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Answer::Silent,
            _ => Answer::Failed(error.to_string()),
        },
    }
}

fn exchange(to: SocketAddr, protocol: Protocol, payload: &[u8]) -> io::Result<String> {
    let limit = Duration::from_secs(20);
    let (server, echoed) = match protocol {
        Protocol::Udp => {
            // One may be lost, and the first ones tell how much the path takes (RFC 8201).
            let mut tries = (0..DATAGRAMS).map(|_| datagram(to, payload, limit / DATAGRAMS));
            let mut last = Err(ErrorKind::TimedOut.into());
            let answered = tries.find_map(|answer| answer.map_err(|error| last = Err(error)).ok());
            let ((server, _), echoed) = answered.map_or_else(|| last, Ok)?;
            (server, echoed)
        }
        Protocol::Tcp => {
            let ((server, _), mut stream) = greeted(to, limit)?;
            let mut sender = stream.try_clone()?;
            let mut echoed = vec![0; payload.len()];
            std::thread::scope(|scope| {
                let sent = scope.spawn(|| sender.write_all(payload));
                stream.read_exact(&mut echoed)?;
                sent.join().unwrap_or_else(|_| Err(io::Error::other("the sender panicked")))
            })?;
            (server, echoed)
        }
    };
    if echoed == payload { Ok(server) } else { Err(io::Error::other("it came back altered")) }
}

/// A connection whose server has said who it is and whom it sees.
pub(super) fn greeted(to: SocketAddr, limit: Duration) -> io::Result<((String, IpAddr), TcpStream)> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_nodelay(true)?;
    let mut line = vec![];
    // Byte by byte: what follows the line is the caller's.
    while line.last() != Some(&b'\n') {
        let left = limit.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        let mut byte = [0];
        match stream.read(&mut byte)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ => line.extend(byte),
        }
    }
    stream.set_read_timeout(Some(limit))?;
    Ok((parse(&line)?, stream))
}

fn datagram(to: SocketAddr, payload: &[u8], limit: Duration) -> io::Result<((String, IpAddr), Vec<u8>)> {
    let socket = bound_afresh(to)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(limit))?;
    match socket.send(payload) {
        // So a client hears at once that its own host's rules refuse the datagram; the next thing it
        // hears is why, or nothing.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        sent => sent.map(drop)?,
    }
    let mut buffer = vec![0; DATAGRAM];
    let read = socket.recv(&mut buffer)?;
    let answer = buffer.get(..read).unwrap_or_default();
    let end = answer.iter().position(|byte| *byte == b'\n').ok_or(ErrorKind::InvalidData)?;
    let (line, rest) = answer.split_at(end + 1);
    Ok((parse(line)?, rest.to_vec()))
}

/// A socket for one datagram there, at a port that was not used for long.
///
/// Connection tracking remembers for up to two minutes where the last datagram from a port was led, and
/// leads the next one there whatever the rules say by then. A port that the kernel picks, by chance, may
/// be one of those; so all of the ports that it has to pick from take their turns.
fn bound_afresh(to: SocketAddr) -> io::Result<UdpSocket> {
    // net.ipv4.ip_local_port_range, unless somebody changed it.
    const FIRST: u16 = 32_768;
    const COUNT: u16 = 28_232;
    static TURN: AtomicU16 = AtomicU16::new(0);
    let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    for _ in 0..COUNT {
        let turn = TURN.update(Ordering::Relaxed, Ordering::Relaxed, |turn| (turn + 1) % COUNT);
        match UdpSocket::bind((any, FIRST + turn)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// `name address` and a newline.
fn parse(line: &[u8]) -> io::Result<(String, IpAddr)> {
    let line = std::str::from_utf8(line).map_err(|_| ErrorKind::InvalidData)?;
    let (name, address) = line.trim_end().split_once(' ').ok_or(ErrorKind::InvalidData)?;
    Ok((name.to_owned(), address.parse().map_err(|_| ErrorKind::InvalidData)?))
}

fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

fn serve_stream(mut stream: TcpStream, name: &str, stop: &AtomicBool) {
    let _ = stream.set_nodelay(true);
    let greeted = stream.peer_addr().and_then(|peer| stream.write_all(greeting(name, peer).as_bytes()));
    if greeted.is_ok() {
        service::echo(stream, stop);
    }
}

/// Answers from the address that was asked: on a host with several, routing might pick another one.
fn serve_datagrams(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; DATAGRAM];
    let _ = setsockopt(socket, Ipv6RecvPacketInfo, &true);
    while !stop.load(Ordering::Relaxed) {
        let Ok((read, from, asked)) = received(socket, &mut buffer) else { continue };
        let line = greeting(name, from.into());
        let payload = buffer.get(..read).unwrap_or_default();
        let parts = [IoSlice::new(line.as_bytes()), IoSlice::new(payload)];
        // The link is routing's to pick.
        let asked = asked.map(|asked| libc::in6_pktinfo { ipi6_ifindex: 0, ..asked });
        let control: Vec<_> = asked.iter().map(ControlMessage::Ipv6PacketInfo).collect();
        let _ =
            sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&SockaddrIn6::from(from)));
    }
}

/// How long it was, where it came from, and where to.
fn received(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> nix::Result<(usize, SocketAddrV6, Option<libc::in6_pktinfo>)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut space = cmsg_space!(libc::in6_pktinfo);
    let message =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let asked = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6PacketInfo(asked) => Some(asked),
        _ => None,
    });
    let from = message.address.ok_or(nix::errno::Errno::EDESTADDRREQ)?;
    Ok((message.bytes, from.into(), asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_as_it_is_written() {
        let peer: SocketAddr = "[::ffff:10.42.1.2]:4000".parse().expect("an address");
        let read = parse(greeting("ash/web", peer).as_bytes()).expect("a greeting");
        assert_eq!(read, ("ash/web".into(), "10.42.1.2".parse().expect("an address")));
        for wrong in [&b"ash\n"[..], b"ash 10.42\n", b"\xff 10.42.1.2\n"] {
            parse(wrong).expect_err("no greeting");
        }
    }

    #[test]
    fn chi_square_counts_who_was_never_asked() {
        let answers = |counts: &[(&str, usize)]| Answers {
            by_server: counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            others: vec![],
        };
        let table = [
            (answers(&[("a", 50), ("b", 50)]), 2, 0.0),
            (answers(&[("a", 60), ("b", 40)]), 2, 4.0),
            (answers(&[("a", 100)]), 2, 100.0),
        ];
        for (answers, servers, expected) in table {
            assert!((answers.chi_square(servers) - expected).abs() < 1e-9, "{answers:?}");
        }
    }
}
