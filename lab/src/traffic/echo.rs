//! Ways to send a number and get it back: ICMP, UDP, TCP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{LabError, Place};

/// ICMP echo types (RFC 792, RFC 4443).
const ECHO_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const ECHO_V6: u8 = 128;
const REPLY_V6: u8 = 129;
/// Type, code, checksum, identifier, sequence number (RFC 792).
const ICMP_HEADER: usize = 8;
/// A number on the wire.
const NUMBER: usize = size_of::<u64>();

/// Sends numbers and gets them back.
pub(super) trait Echo: Send + 'static {
    /// Sends a number.
    fn send(&mut self, seq: u64) -> io::Result<()>;

    /// A number that came back, or `None` if none did in this time. An error is the end.
    fn receive(&mut self, within: Duration) -> io::Result<Option<u64>>;

    /// A number that cannot be sent is the end, not a loss.
    fn breaks(&self) -> bool {
        false
    }
}

/// One echo, and how long it took.
pub(super) fn once(from: &Place, to: IpAddr, limit: Duration) -> Result<Duration, LabError> {
    let silent =
        |why: String| LabError::Traffic { what: format!("{} does not reach {to}: {why}", from.name()) };
    let mut icmp = open(from, to)?;
    let start = Instant::now();
    icmp.send(0).map_err(|error| silent(error.to_string()))?;
    while let Some(left) = limit.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        match icmp.receive(left) {
            Ok(Some(_)) => return Ok(start.elapsed()),
            Ok(None) => {}
            Err(error) => return Err(silent(error.to_string())),
        }
    }
    Err(silent(format!("no answer within {limit:?}")))
}

/// An ICMP socket. Raw, because the kernel lets nobody have the other kind by default.
pub(super) fn open(from: &Place, to: IpAddr) -> Result<Icmp, LabError> {
    /// Every raw socket of a namespace sees every answer; the identifier tells whose it is.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = from
        .within(|| Socket::new(domain, Type::RAW, Some(protocol)))?
        .map_err(LabError::io(format!("open an ICMP socket in {}", from.name())))?;
    // The process id's low bits keep two test processes in one namespace apart.
    let [.., high, low] = std::process::id().to_be_bytes();
    let ident = NEXT.fetch_add(1, Ordering::Relaxed) ^ u16::from_be_bytes([low, high]);
    Ok(Icmp { socket, to, ident })
}

#[derive(Debug)]
pub(super) struct Icmp {
    socket: Socket,
    to: IpAddr,
    ident: u16,
}

impl Echo for Icmp {
    fn send(&mut self, seq: u64) -> io::Result<()> {
        let packet = echo_request(self.to.is_ipv4(), self.ident, seq);
        self.socket.send_to(&packet, &SocketAddr::new(self.to, 0).into()).map(drop)
    }

    fn receive(&mut self, within: Duration) -> io::Result<Option<u64>> {
        self.socket.set_read_timeout(Some(within))?;
        let mut buffer = [0; 2048];
        let read = patient((&self.socket).read(&mut buffer))?;
        let packet = buffer.get(..read.unwrap_or(0)).unwrap_or_default();
        Ok(echo_reply(packet, self.to.is_ipv4(), self.ident))
    }
}

/// The number is in the payload, because ICMP's own sequence number wraps after 65,536. The kernel
/// fills in the checksum of ICMPv6 (RFC 3542, section 3.1), not of ICMP.
fn echo_request(v4: bool, ident: u16, seq: u64) -> Vec<u8> {
    let [.., high, low] = seq.to_be_bytes();
    let [ident_high, ident_low] = ident.to_be_bytes();
    let kind = if v4 { ECHO_V4 } else { ECHO_V6 };
    let mut packet = vec![kind, 0, 0, 0, ident_high, ident_low, high, low];
    packet.extend(seq.to_be_bytes());
    if v4 {
        let checksum = internet_checksum(&packet);
        packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

/// The number in a reply to us. A raw IPv4 socket gives the IP header too, an IPv6 one does not.
fn echo_reply(packet: &[u8], v4: bool, ident: u16) -> Option<u64> {
    let header = if v4 { usize::from(packet.first()? & 0xf) * 4 } else { 0 };
    let icmp = packet.get(header..)?;
    let reply = if v4 { REPLY_V4 } else { REPLY_V6 };
    let ours = *icmp.first()? == reply && icmp.get(4..6)? == ident.to_be_bytes();
    let number = icmp.get(ICMP_HEADER..ICMP_HEADER + NUMBER)?.try_into().ok()?;
    ours.then(|| u64::from_be_bytes(number))
}

/// RFC 1071, for an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// Numbers over a connected UDP socket.
pub(super) struct Udp(pub(super) UdpSocket);

impl Echo for Udp {
    fn send(&mut self, seq: u64) -> io::Result<()> {
        self.0.send(&seq.to_be_bytes()).map(drop)
    }

    fn receive(&mut self, within: Duration) -> io::Result<Option<u64>> {
        self.0.set_read_timeout(Some(within))?;
        let mut number = [0; NUMBER];
        match patient(self.0.recv(&mut number)) {
            Ok(read) => Ok((read == Some(NUMBER)).then(|| u64::from_be_bytes(number))),
            // What ICMP said of an earlier datagram: that one is lost, nothing more.
            Err(_) => Ok(None),
        }
    }
}

/// Numbers over a TCP connection.
pub(super) struct Tcp {
    stream: TcpStream,
    partial: Vec<u8>,
}

impl Tcp {
    pub(super) fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream, partial: vec![] })
    }
}

impl Echo for Tcp {
    fn send(&mut self, seq: u64) -> io::Result<()> {
        self.stream.write_all(&seq.to_be_bytes())
    }

    fn receive(&mut self, within: Duration) -> io::Result<Option<u64>> {
        self.stream.set_read_timeout(Some(within))?;
        let mut buffer = [0; NUMBER];
        let room = buffer.get_mut(self.partial.len()..).unwrap_or_default();
        match patient(self.stream.read(room))? {
            None => return Ok(None),
            Some(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the far end closed it")),
            Some(read) => {
                let at = self.partial.len();
                self.partial.extend(buffer.iter().skip(at).take(read));
            }
        }
        let whole = self.partial.as_slice().try_into().ok().map(u64::from_be_bytes);
        if whole.is_some() {
            self.partial.clear();
        }
        Ok(whole)
    }

    fn breaks(&self) -> bool {
        true
    }
}

/// Nothing in time is `None`, not an error.
pub(super) fn patient(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(read) => Ok(Some(read)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_makes_the_sum_come_out_as_zero() {
        for seq in [0, 1, 0xffff, u64::MAX] {
            assert_eq!(internet_checksum(&echo_request(true, 0x1234, seq)), 0, "{seq}");
        }
    }

    #[test]
    fn only_our_own_replies_are_read() {
        let reply = |kind: u8, ident: u16, header: &[u8]| {
            let mut packet = echo_request(true, ident, 77);
            packet[0] = kind;
            [header, &packet].concat()
        };
        let ip = [&[0x45][..], &[0; 19]].concat();
        let ip_with_option = [&[0x46][..], &[0; 23]].concat();
        let table = [
            ("a reply", reply(REPLY_V4, 9, &ip), true, Some(77)),
            ("with an IP option", reply(REPLY_V4, 9, &ip_with_option), true, Some(77)),
            ("over IPv6", reply(REPLY_V6, 9, &[]), false, Some(77)),
            ("to another socket", reply(REPLY_V4, 8, &ip), true, None),
            ("our own question", reply(ECHO_V4, 9, &ip), true, None),
            ("cut short", reply(REPLY_V4, 9, &ip)[..30].to_vec(), true, None),
            ("nothing", vec![], true, None),
        ];
        for (case, packet, v4, expected) in table {
            assert_eq!(echo_reply(&packet, v4, 9), expected, "{case}");
        }
    }
}
