//! Does another machine answer for our address? An ARP probe (RFC 5227, section 2.1.1).

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use weft_kernel::net::{Link, Mac};

/// What an ARP packet for IPv4 over Ethernet begins with (RFC 826): hardware and protocol type, their
/// lengths.
const HEAD: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ETHERTYPE: [u8; 2] = [0x08, 0x06];
const REQUEST: [u8; 2] = [0, 1];
/// How long an answer may take; a machine on the same segment needs a fraction of it.
const PATIENCE: Duration = Duration::from_millis(400);

/// Who, beside us, says that an address of this link is its own.
pub(super) fn squatter(link: &Link, address: Ipv4Addr) -> io::Result<Option<Mac>> {
    let Some(own) = link.mac else { return Ok(None) };
    let socket = open(link.index)?;
    for _ in 0..2 {
        socket.send(&probe(own, address))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            if let Some(mac) = hear(&socket).and_then(|frame| claim(&frame, address))
                && mac != own
            {
                return Ok(Some(mac));
            }
        }
    }
    Ok(None)
}

fn open(index: u32) -> io::Result<Socket> {
    let protocol = u16::try_from(libc::ETH_P_ARP).expect("0x0806 fits").to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
    let index = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let family = u16::try_from(libc::AF_PACKET).expect("17 fits");
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a socket address, and the storage is zeroed and large enough for any.
    let packet = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    packet.sll_family = family;
    packet.sll_protocol = protocol;
    packet.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("twenty fits");
    // SAFETY: the storage holds a whole sockaddr_ll of this length.
    let address = unsafe { SockAddr::new(storage, length) };
    socket.bind(&address)?;
    Ok(socket)
}

/// From nobody (0.0.0.0), so that no neighbour learns anything from it.
fn probe(Mac(own): Mac, address: Ipv4Addr) -> Vec<u8> {
    let ethernet = [&[0xff; 6], &own[..], &ETHERTYPE].concat();
    let arp = [&HEAD[..], &REQUEST, &own, &[0; 4], &[0; 6], &address.octets()].concat();
    [ethernet, arp].concat()
}

/// Who says in this frame that the address is its own: by an answer, or by any word from it.
fn claim(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let arp = frame.get(12..)?.strip_prefix(&ETHERTYPE)?.strip_prefix(&HEAD)?;
    let (mac, rest) = arp.get(2..)?.split_first_chunk()?;
    rest.starts_with(&address.octets()).then_some(Mac(*mac))
}

fn hear(socket: &Socket) -> Option<Vec<u8>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 128];
    let length = socket.recv(&mut buffer).ok()?;
    // SAFETY: recv initialised the first `length` bytes, and gave no more than the buffer holds.
    Some(buffer.iter().take(length).map(|byte| unsafe { byte.assume_init() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernel::net::Rtnetlink;
    use weft_kernel::netns::{NetNs, run_in};

    #[test]
    fn a_second_machine_with_our_address_is_found() {
        let (here, there) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
        let sh = |script: &str| {
            assert!(std::process::Command::new("sh").args(["-ec", script]).status().unwrap().success());
        };
        let pid = std::process::id();
        let address = "192.0.2.7".parse().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&there);
        run_in(&here, || {
            sh(&format!(
                "ip link add up0 type veth peer name up1 address 02:00:00:00:00:99 netns /proc/{pid}/fd/{fd}
                 ip link set up0 up; ip address add 192.0.2.7/24 dev up0"
            ));
        })
        .unwrap();
        run_in(&there, || sh("ip link set up1 up; ip address add 192.0.2.8/24 dev up1")).unwrap();
        let look = || {
            run_in(&here, || {
                let state = Rtnetlink::open().unwrap().observe_blocking().unwrap();
                squatter(&state.links[&"up0".parse().unwrap()], address).unwrap()
            })
            .unwrap()
        };
        assert_eq!(look(), None);
        run_in(&there, || sh("ip address add 192.0.2.7/24 dev up1")).unwrap();
        assert_eq!(look(), Some(Mac([2, 0, 0, 0, 0, 0x99])));
    }

    #[test]
    fn a_damaged_frame_is_no_claim() {
        let own = "192.0.2.7".parse().unwrap();
        let frame = probe(Mac([2; 6]), own);
        assert_eq!(claim(&frame, own), None, "the probe itself claims nothing");
        assert_eq!(claim(&frame, Ipv4Addr::UNSPECIFIED), Some(Mac([2; 6])));
        for cut in 0..14 + HEAD.len() + 2 + 6 + 4 {
            assert_eq!(claim(&frame[..cut], Ipv4Addr::UNSPECIFIED), None);
        }
    }
}
