//! Echo requests of any size, many at once: who answers?

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// One echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ping {
    /// To whom.
    pub(super) to: IpAddr,
    /// Length of the whole IP packet, in bytes.
    pub(super) length: u32,
    /// In one piece or not at all, whatever is known of the path (IP_PMTUDISC_PROBE).
    pub(super) whole: bool,
}

/// Sends each, again if there is no answer; says which were answered.
pub(super) fn pings(wanted: &[Ping], tries: u32) -> io::Result<Vec<bool>> {
    /// An answer may take so long; a lost packet is sent again.
    const PATIENCE: Duration = Duration::from_millis(700);
    let mut answered = vec![false; wanted.len()];
    for (domain, whole) in
        [(Domain::IPV4, false), (Domain::IPV4, true), (Domain::IPV6, false), (Domain::IPV6, true)]
    {
        let ours = |ping: &Ping| ping.whole == whole && (domain == Domain::IPV4) == ping.to.is_ipv4();
        if !wanted.iter().any(ours) {
            continue;
        }
        let socket = open(domain, whole)?;
        for _ in 0..tries {
            let ident: u16 = rand::random();
            let mut open = BTreeMap::new();
            for (index, ping) in
                wanted.iter().enumerate().filter(|(index, ping)| ours(ping) && !answered[*index])
            {
                let seq = u16::try_from(index % 65_536).unwrap_or_default();
                // Too long for the link, or no route: no answer will come.
                if socket.send_to(&request(ping, ident, seq), &SocketAddr::new(ping.to, 0).into()).is_ok() {
                    open.insert((ping.to, seq), index);
                }
            }
            let deadline = Instant::now() + PATIENCE;
            while !open.is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                socket.set_read_timeout(Some(left))?;
                let Some((from, id, seq)) = hear(&socket) else { continue };
                if id == ident
                    && let Some(index) = open.remove(&(from, seq))
                {
                    answered[index] = true;
                }
            }
        }
    }
    Ok(answered)
}

fn open(domain: Domain, whole: bool) -> io::Result<Socket> {
    let v4 = domain == Domain::IPV4;
    let protocol = if v4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    let options: &[(i32, i32, i32)] = match (v4, whole) {
        (true, true) => &[(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)],
        (true, false) => &[(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)],
        (false, true) => &[
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1),
        ],
        (false, false) => &[],
    };
    for (level, name, value) in options {
        let length = libc::socklen_t::try_from(size_of::<i32>()).expect("four fits");
        // SAFETY: the descriptor is open, and the pointer is to a live i32 of the length given.
        let done = unsafe {
            libc::setsockopt(socket.as_raw_fd(), *level, *name, std::ptr::from_ref(value).cast(), length)
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(socket)
}

/// ICMP and ICMPv6 echo requests differ in their type; IPv6's checksum is the kernel's (RFC 3542, 3.1).
fn request(ping: &Ping, ident: u16, seq: u16) -> Vec<u8> {
    const ECHO_V4: u8 = 8;
    const ECHO_V6: u8 = 128;
    let (kind, header) = if ping.to.is_ipv4() { (ECHO_V4, 20) } else { (ECHO_V6, 40) };
    let length = usize::try_from(ping.length).unwrap_or(usize::MAX).saturating_sub(header).clamp(8, 65_000);
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(ident.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.resize(length, 0);
    if ping.to.is_ipv4() {
        let sum = pnet_packet::util::checksum(&bytes, 1).to_be_bytes();
        bytes[2..4].copy_from_slice(&sum);
    }
    bytes
}

/// The next echo reply: who, identifier, sequence number.
fn hear(socket: &Socket) -> Option<(IpAddr, u16, u16)> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 128];
    let (length, from) = match socket.recv_from(&mut buffer) {
        Ok(heard) => heard,
        // An ICMP error about an earlier request surfaces here.
        Err(_) => return None,
    };
    let bytes: Vec<u8> = buffer
        .iter()
        .take(length)
        .map(|byte| {
            // SAFETY: recv_from initialised the first `length` bytes, and gave no more than the buffer holds.
            unsafe { byte.assume_init() }
        })
        .collect();
    let from = from.as_socket()?.ip();
    reply(from.is_ipv4(), &bytes).map(|(ident, seq)| (from, ident, seq))
}

/// A raw IPv4 socket delivers the IP header too (raw(7)), an IPv6 one does not (RFC 3542, section 3).
fn reply(v4: bool, bytes: &[u8]) -> Option<(u16, u16)> {
    let header = if v4 { usize::from(bytes.first()? & 0x0f) * 4 } else { 0 };
    let kind = if v4 { 0 } else { 129 };
    match bytes.get(header..)? {
        [first, _, _, _, a, b, c, d, ..] if *first == kind => {
            Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_kernel::netns::{NetNs, run_in};

    #[test]
    fn loopback_answers_what_fits() {
        let ns = NetNs::anonymous().unwrap();
        run_in(&ns, || {
            let script = "ip link set lo mtu 1500 up";
            assert!(std::process::Command::new("sh").args(["-c", script]).status().unwrap().success());
            let ping = |to: &str, length, whole| Ping { to: to.parse().unwrap(), length, whole };
            let wanted = [
                ping("127.0.0.1", 100, false),
                ping("127.0.0.1", 1500, true),
                ping("127.0.0.1", 1501, true),
                ping("127.0.0.1", 3000, false),
                ping("::1", 1500, true),
                ping("::1", 1501, true),
                ping("192.0.2.1", 100, false),
            ];
            assert_eq!(pings(&wanted, 3).unwrap(), [true, true, false, true, true, false, false]);
        })
        .unwrap();
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(v4: bool, bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = reply(v4, &bytes);
        }
    }
}
