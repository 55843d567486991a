//! What pods say to each other: echoes of every size, streams with a hash, datagrams.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use sha2::{Digest, Sha256};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Lab, PATIENCE, Side};

/// Sends an ICMP echo request of each payload length from this namespace; each must come back whole.
pub(crate) fn ping(dst: IpAddr, sizes: impl Iterator<Item = usize>) {
    let (domain, protocol, request, reply, skip) = match dst {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129, 0),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket.connect(&SocketAddr::new(dst, 0).into()).unwrap();
    // Else an IPv6 socket hears nothing of "packet too big".
    if dst.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap();
    }
    let mut buffer = vec![0; 65_536];
    for size in sizes {
        let patience = if size > 1400 { Duration::from_millis(500) } else { PATIENCE };
        socket.set_read_timeout(Some(patience)).unwrap();
        let payload = (0..size).map(|at| (at * 13 + size) as u8);
        let mut message = vec![request, 0, 0, 0, 0x77, 0x77];
        message.extend((size as u16).to_be_bytes());
        message.extend(payload);
        if dst.is_ipv4() {
            let sum: u32 = message
                .chunks(2)
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
                .sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            let folded = (folded & 0xffff) + (folded >> 16);
            message[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        }
        let deadline = Instant::now() + PATIENCE;
        socket.send(&message).unwrap();
        loop {
            let len = match (&socket).read(&mut buffer) {
                Ok(len) => len,
                // The first ones beyond the MTU, from here or back, are what the two kernels learn
                // from; then they fragment. Smaller ones are not sent twice.
                Err(error) if size > 1400 && Instant::now() < deadline => {
                    assert!(matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EAGAIN)), "{error}");
                    socket.send(&message).unwrap();
                    continue;
                }
                Err(error) => panic!("no echo of {size} bytes from {dst}: {error}"),
            };
            let answer = &buffer[skip..len];
            // A raw socket also sees others' ICMP.
            if answer[0] == reply && answer[4..8] == message[4..8] {
                assert!(answer[4..] == message[4..], "the echo of {size} bytes differs");
                break;
            }
        }
    }
}

/// A stream of bytes that looks random and is the same each time.
struct Stream {
    left: usize,
    state: u64,
}

impl Stream {
    fn next(&mut self, chunk: &mut [u8]) -> usize {
        let len = chunk.len().min(self.left);
        for word in chunk[..len].chunks_mut(8) {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&self.state.to_le_bytes()[..word.len()]);
        }
        self.left -= len;
        len
    }
}

/// Sends bytes over TCP from one side's pod to the other's; what arrives must have the same hash.
pub(crate) fn transfer(lab: &Lab, from: Side, dst: IpAddr, bytes: usize) {
    let listener = lab.in_pod(from.other(), || TcpListener::bind((dst, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let sent = thread::scope(|scope| {
        let received = scope.spawn(|| receive_hash(listener.accept().unwrap().0));
        let mut stream = lab.in_pod(from, || TcpStream::connect(to).unwrap());
        let sent = send_hash(&mut stream, bytes);
        drop(stream);
        (sent, received.join().unwrap())
    });
    assert_eq!(sent.1.1, bytes, "bytes received from {dst}");
    assert_eq!(sent.0, sent.1.0, "the hash of what {dst} received");
}

/// Sends a known stream and returns its hash.
pub(crate) fn send_hash(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let (mut source, mut hash) = (Stream { left: bytes, state: 7 }, Sha256::new());
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let len = source.next(&mut chunk);
        if len == 0 {
            return hash.finalize().to_vec();
        }
        hash.update(&chunk[..len]);
        stream.write_all(&chunk[..len]).expect("the connection survives");
    }
}

/// Reads to the end; returns the hash and the length.
pub(crate) fn receive_hash(mut stream: TcpStream) -> (Vec<u8>, usize) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut hash, mut total) = (Sha256::new(), 0);
    let mut chunk = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return (hash.finalize().to_vec(), total),
            Ok(len) => {
                hash.update(&chunk[..len]);
                total += len;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("the connection broke after {total} bytes: {error}"),
        }
    }
}

/// A pod's UDP socket.
pub(crate) fn udp(lab: &Lab, pod: Side, address: IpAddr) -> UdpSocket {
    let socket = lab.in_pod(pod, || UdpSocket::bind((address, 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Whether one datagram arrives now.
pub(crate) fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes();
    // While the way is broken the socket may report what ICMP said of an earlier datagram.
    if from.send_to(&number, to.local_addr().unwrap()).is_err() {
        return false;
    }
    to.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = [0; 8];
    // Late ones of earlier tries are passed over.
    while let Ok(len) = to.recv(&mut buffer) {
        if buffer[..len] == number {
            return true;
        }
    }
    false
}
