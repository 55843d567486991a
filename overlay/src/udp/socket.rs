//! The UDP sockets: their options, and many datagrams in one system call.
//!
//! One message may be many datagrams of equal length: cut by the kernel on sending (UDP_SEGMENT),
//! put together by it on receiving (UDP_GRO); udp(7). `sendmmsg` and `recvmmsg` take several messages.

use std::ffi::c_int;
use std::io::{self, IoSlice};
use std::mem;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket as RawSocket, Type};

/// Room for what arrives while a thread waits for a processor: at 10 Gb/s, 6 ms.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// A UDP datagram's greatest length, rounded up.
const MESSAGE_BYTES: usize = 65_536;
/// Messages lie this far apart in memory. Not a power of two, or their first lines would all compete
/// for the same few places in the processor's caches.
const STRIDE: usize = MESSAGE_BYTES + 2112;
/// Messages in one system call, at most.
const MAX_MESSAGES: usize = 64;
/// Messages in one system call, at least: asking for many costs time even if few are there.
const MIN_MESSAGES: usize = 8;
/// Bytes that one call should bring, so that they are still in the processor's own cache when they
/// are written to the TUN.
const ROUND_BYTES: usize = 512 * 1024;

/// A bound socket of one family.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    is_v4: bool,
}

/// What the kernel does with datagrams longer than the path's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TooLong {
    /// EMSGSIZE, and the path's MTU is learned.
    Refuse,
    /// Outer fragments.
    Fragment,
}

impl Socket {
    /// Opens a socket in this thread's network namespace. The address may be missing still, or go
    /// and come back: the socket is bound to it all the same.
    pub(super) fn open(local: SocketAddr) -> io::Result<Self> {
        let socket = RawSocket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        match local {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        socket.set_nonblocking(true)?;
        // Beyond rmem_max with CAP_NET_ADMIN; without, as much as is allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            socket.set_recv_buffer_size(BUFFER_BYTES)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            socket.set_send_buffer_size(BUFFER_BYTES)?;
        }
        setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
        socket.bind(&local.into())?;
        let socket = Self { socket: socket.into(), is_v4: local.is_ipv4() };
        socket.when_too_long(TooLong::Refuse)?;
        Ok(socket)
    }

    /// Sends one datagram.
    pub(super) fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(datagram, to).map(drop)
    }

    /// Sends one datagram, in outer fragments if need be. One thread sends, so nobody else's
    /// datagram is sent under the changed option.
    pub(super) fn send_fragmented(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.when_too_long(TooLong::Fragment)?;
        let sent = self.send(datagram, to);
        self.when_too_long(TooLong::Refuse)?;
        sent
    }

    /// What the kernel believes the path to this address takes.
    pub(super) fn path_mtu(&self, to: SocketAddr) -> io::Result<u32> {
        let mut local = self.socket.local_addr()?;
        local.set_port(0);
        let probe = UdpSocket::bind(local)?;
        // Sends nothing: it only chooses the route.
        probe.connect(to)?;
        let (level, option) =
            if self.is_v4 { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
        let mut mtu: c_int = 0;
        let mut len = mem::size_of::<c_int>() as libc::socklen_t;
        // SAFETY: the option writes an int and its length, into an int and a length that we own.
        let result = unsafe {
            libc::getsockopt(probe.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut len)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mtu.unsigned_abs())
    }

    fn when_too_long(&self, what: TooLong) -> io::Result<()> {
        let (level, option, value) = match (self.is_v4, what) {
            (true, TooLong::Refuse) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
            (true, TooLong::Fragment) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            (false, TooLong::Refuse) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
            (false, TooLong::Fragment) => {
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
            }
        };
        let len = mem::size_of::<c_int>() as libc::socklen_t;
        // SAFETY: the option reads one int, which lives to the end of the call.
        let result = unsafe {
            libc::setsockopt(self.socket.as_raw_fd(), level, option, (&raw const value).cast(), len)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// Whereto.
    pub(super) to: SocketAddr,
    /// Length of each datagram but the last, if the kernel is to cut it.
    pub(super) segment: Option<u16>,
    /// Its bytes.
    pub(super) pieces: &'a [IoSlice<'a>],
}

/// Sends messages; keeps the memory that a call needs.
#[derive(Default)]
pub(super) struct Sender {
    addresses: Vec<SockAddr>,
    controls: Vec<SegmentControl>,
}

/// The control message of udp(7), UDP_SEGMENT, with the padding of CMSG_SPACE.
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    size: u16,
    padding: [u8; 6],
}

impl Sender {
    /// Hands over as many messages as the kernel takes at once, in order; an error speaks of the
    /// first one.
    pub(super) fn send(&mut self, socket: &Socket, messages: &[Message<'_>]) -> io::Result<usize> {
        self.addresses.clear();
        self.addresses.extend(messages.iter().map(|message| SockAddr::from(message.to)));
        self.controls.clear();
        self.controls
            .extend(messages.iter().map(|message| SegmentControl::new(message.segment.unwrap_or(0))));
        let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            // SAFETY: mmsghdr is a C struct of integers and pointers, for which zero is a value.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            let address = &self.addresses[index];
            header.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = address.len();
            // IoSlice is documented to be an iovec.
            header.msg_hdr.msg_iov = message.pieces.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_iovlen = message.pieces.len() as _;
            if message.segment.is_some() {
                header.msg_hdr.msg_control = (&raw mut self.controls[index]).cast();
                header.msg_hdr.msg_controllen = mem::size_of::<SegmentControl>() as _;
            }
            headers.push(header);
        }
        // SAFETY: each header points to an address, a control message and slices that outlive the
        // call, with their true lengths; sendmmsg only reads them, and writes msg_len.
        let sent =
            unsafe { libc::sendmmsg(socket.socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as _, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}

impl SegmentControl {
    fn new(size: u16) -> Self {
        // SAFETY: cmsghdr is a C struct of integers, for which zero is a value.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        // SAFETY: CMSG_LEN only computes.
        header.cmsg_len = unsafe { libc::CMSG_LEN(mem::size_of::<u16>() as u32) } as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        Self { header, size, padding: [0; 6] }
    }
}

/// Receives messages into memory of its own.
pub(super) struct Receiver {
    memory: Vec<u8>,
    addresses: Vec<libc::sockaddr_storage>,
    controls: Vec<[u64; 8]>,
    received: Vec<Received>,
    /// How many messages to ask for: twice what came last, within what the cache holds.
    ask: usize,
}

/// One message received: one datagram or several.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// Whence.
    pub(super) from: IpAddr,
    /// Where it is in the receiver's memory.
    pub(super) range: Range<usize>,
    /// Length of each datagram but perhaps the last.
    pub(super) segment: usize,
}

impl Receiver {
    pub(super) fn new() -> Self {
        // SAFETY: sockaddr_storage is a C struct of integers, for which zero is a value.
        let nobody: libc::sockaddr_storage = unsafe { mem::zeroed() };
        Self {
            memory: vec![0; STRIDE * MAX_MESSAGES],
            addresses: vec![nobody; MAX_MESSAGES],
            controls: vec![[0; 8]; MAX_MESSAGES],
            received: Vec::with_capacity(MAX_MESSAGES),
            ask: MIN_MESSAGES,
        }
    }

    /// Takes what is waiting. `true`: there may be more. `WouldBlock`: nothing was there.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<bool> {
        self.received.clear();
        let asked = self.ask;
        let mut slots: Vec<libc::iovec> = self
            .memory
            .chunks_exact_mut(STRIDE)
            .take(asked)
            .map(|slot| libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: MESSAGE_BYTES })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(asked);
        for (index, slot) in slots.iter_mut().enumerate() {
            // SAFETY: mmsghdr is a C struct of integers and pointers, for which zero is a value.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as _;
            header.msg_hdr.msg_iov = slot;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_hdr.msg_controllen = mem::size_of::<[u64; 8]>() as _;
            headers.push(header);
        }
        // SAFETY: each header points to an address, a control buffer and one slot, all distinct,
        // with their true lengths, and all outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as _,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let count = count as usize;
        for (index, header) in headers.iter().take(count).enumerate() {
            let len = (header.msg_len as usize).min(MESSAGE_BYTES);
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let Some(from) = ip_of(&self.addresses[index]).filter(|_| !truncated && len > 0) else {
                continue;
            };
            let start = index * STRIDE;
            let segment = segment_of(&header.msg_hdr).filter(|size| *size > 0).unwrap_or(len);
            self.received.push(Received { from, range: start..start + len, segment });
        }
        let bytes: usize = self.received.iter().map(|message| message.range.len()).sum();
        let most = ROUND_BYTES * count / bytes.max(1);
        self.ask = (count * 2).min(most).clamp(MIN_MESSAGES, MAX_MESSAGES);
        Ok(count == asked)
    }

    /// What the last call brought, and the memory it is in.
    pub(super) fn parts(&mut self) -> (&[Received], &mut [u8]) {
        (&self.received, &mut self.memory)
    }
}

fn ip_of(address: &libc::sockaddr_storage) -> Option<IpAddr> {
    match c_int::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in, which a sockaddr_storage has room for.
            let address: &libc::sockaddr_in = unsafe { &*std::ptr::from_ref(address).cast() };
            Some(IpAddr::V4(u32::from_be(address.sin_addr.s_addr).into()))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is a sockaddr_in6, which a sockaddr_storage has room for.
            let address: &libc::sockaddr_in6 = unsafe { &*std::ptr::from_ref(address).cast() };
            Some(IpAddr::V6(address.sin6_addr.s6_addr.into()))
        }
        _ => None,
    }
}

/// The UDP_GRO control message, an int, if there is one.
fn segment_of(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the header and the control buffer it points to were filled by recvmmsg, which set
    // msg_controllen to what it wrote; CMSG_NXTHDR stays within that.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                let size: c_int = libc::CMSG_DATA(control).cast::<c_int>().read_unaligned();
                return usize::try_from(size).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
