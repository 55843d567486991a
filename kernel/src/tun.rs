//! TUN devices: make or re-attach a persistent one, set its offloads, move packets with their vnet headers.
//!
//! A packet on a TUN with offloads is a [`VnetHeader`] and an IP packet. The header is what lets a
//! "super-packet" of up to 64 KiB cross in one system call: it says how the packet is to be cut
//! (TCP or UDP segmentation) and which checksum is still to be finished. Addresses, MTU, routes and
//! the link's state are set through [`crate::net`], as on any other link.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::uio::{readv, writev};

use crate::net::LinkName;

/// The longest IP packet that a TUN hands over or takes: the kernel's limit for segmentation
/// offload without "big TCP" (`GSO_LEGACY_MAX_SIZE` in include/linux/netdevice.h).
pub const MAX_PACKET: usize = 65_536;

/// One queue of a TUN device, open and non-blocking.
///
/// The device is persistent: it outlives this handle, so that addresses, routes and connections
/// survive a restart of the process. [`Tun::delete`] removes it.
#[derive(Debug)]
pub struct Tun {
    device: OwnedFd,
    name: LinkName,
    offloads: Option<Offloads>,
}

/// How a TUN is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Bare IP packets, each no longer than the link's MTU.
    Plain,
    /// Packets with a [`VnetHeader`], super-packets and unfinished checksums included.
    Vnet,
}

/// What the kernel may hand us unfinished, and we may hand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// UDP super-packets (USO; Linux 6.2). TCP's and checksums are always on.
    pub udp_segmentation: bool,
}

/// Why a TUN could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The device node is missing or forbidden.
    #[error("cannot open /dev/net/tun: load the `tun` module, and run with CAP_NET_ADMIN")]
    Open(#[source] io::Error),
    /// Another process holds it.
    #[error("another process is attached to the TUN {0}")]
    Busy(LinkName),
    /// A link of this name is there and is no TUN of ours.
    #[error("cannot attach to {name}: is there a link of that name that is no TUN?")]
    Attach {
        /// The link.
        name: LinkName,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// One setting was refused.
    #[error("cannot set {what} of the TUN {name}")]
    Set {
        /// The setting.
        what: &'static str,
        /// The link.
        name: LinkName,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Tun {
    /// Makes the device in this thread's network namespace, or attaches to the one that is there.
    pub fn open(name: &LinkName, framing: Framing) -> Result<Self, TunError> {
        let device: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TunError::Open)?
            .into();
        attach(&device, name, framing)?;
        let set = |what, result: io::Result<()>| {
            result.map_err(|source| TunError::Set { what, name: name.clone(), source })
        };
        set("persistence", ioctl_value(&device, libc::TUNSETPERSIST, 1))?;
        let offloads = match framing {
            Framing::Plain => {
                set("offloads", ioctl_value(&device, libc::TUNSETOFFLOAD, 0))?;
                None
            }
            Framing::Vnet => {
                // A persistent device remembers the size that its last owner chose.
                let size = VnetHeader::LEN as c_int;
                set("the vnet header's size", ioctl_pointer(&device, libc::TUNSETVNETHDRSZ, &size))?;
                Some(set_offloads(&device).map_err(|source| TunError::Set {
                    what: "offloads",
                    name: name.clone(),
                    source,
                })?)
            }
        };
        Ok(Self { device, name: name.clone(), offloads })
    }

    /// The device's name when it was opened.
    pub fn name(&self) -> &LinkName {
        &self.name
    }

    /// What may cross unfinished; `None` for [`Framing::Plain`].
    pub fn offloads(&self) -> Option<Offloads> {
        self.offloads
    }

    /// Sets how many packets wait for the reader (`txqueuelen`; a TUN is made with 500).
    pub fn set_queue_length(&self, packets: u16) -> Result<(), TunError> {
        let error = |source| TunError::Set { what: "the queue length", name: self.name.clone(), source };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").map_err(error)?;
        let mut request = request_for(&self.name);
        request.ifr_ifru.ifru_metric = c_int::from(packets);
        // SAFETY: SIOCSIFTXQLEN reads an ifreq, which outlives the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &request) };
        check(result).map_err(error)
    }

    /// Reads one packet of a [`Framing::Vnet`] device and returns its length without the header.
    /// `WouldBlock`: none is waiting. EBADFD: the device was deleted.
    pub fn receive(&self, header: &mut [u8; VnetHeader::LEN], packet: &mut [u8]) -> io::Result<usize> {
        let mut parts = [IoSliceMut::new(header), IoSliceMut::new(packet)];
        let read = readv(&self.device, &mut parts)?;
        read.checked_sub(VnetHeader::LEN).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Writes one packet, in pieces, the first of which is the [`VnetHeader`] if there is one.
    /// EIO: the link is down. EBADFD: the device was deleted.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        writev(&self.device, pieces)?;
        Ok(())
    }

    /// Reads one packet of a [`Framing::Plain`] device.
    pub fn receive_plain(&self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.device, packet)?)
    }

    /// A second handle on the same queue, for another thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        let device = self.device.try_clone()?;
        Ok(Self { device, name: self.name.clone(), offloads: self.offloads })
    }

    /// Ends the device's persistence: it goes when the last handle does.
    pub fn delete(self) -> Result<(), TunError> {
        ioctl_value(&self.device, libc::TUNSETPERSIST, 0).map_err(|source| TunError::Set {
            what: "persistence",
            name: self.name.clone(),
            source,
        })
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl From<Tun> for File {
    fn from(tun: Tun) -> File {
        File::from(tun.device)
    }
}

/// What stands before each packet: the legacy `virtio_net_hdr` of include/uapi/linux/virtio_net.h,
/// in this machine's byte order (a TUN's default).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The transport checksum that is still to be finished.
    pub checksum: Option<PartialChecksum>,
    /// The way in which the packet is to be cut.
    pub segmentation: Option<Segmentation>,
}

/// A checksum field holds only the pseudo header's sum: add all bytes from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the transport header begins, in bytes from the packet's start.
    pub start: u16,
    /// Where the field is, in bytes from `start`.
    pub offset: u16,
}

/// How a super-packet becomes packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// By which protocol's rules.
    pub kind: SegmentKind,
    /// Payload bytes in each packet but the last.
    pub size: u16,
    /// TCP only: the super-packet carries CWR, which belongs to its first packet.
    pub ecn: bool,
    /// Length of all headers, as a hint to the kernel.
    pub header_len: u16,
}

/// What a super-packet is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one flow, over either (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
}

/// A vnet header that says something we never offered to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("segmentation type {0} of a vnet header is unknown")]
pub struct UnknownSegmentation(pub u8);

// include/uapi/linux/virtio_net.h
const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

impl VnetHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 10;

    /// Reads what the kernel wrote.
    pub fn parse(raw: &[u8; Self::LEN]) -> Result<Self, UnknownSegmentation> {
        let [flags, gso, l0, l1, s0, s1, c0, c1, o0, o1] = *raw;
        let checksum = (flags & F_NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: u16::from_ne_bytes([c0, c1]),
            offset: u16::from_ne_bytes([o0, o1]),
        });
        let kind = match gso & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(SegmentKind::Tcp4),
            GSO_TCPV6 => Some(SegmentKind::Tcp6),
            GSO_UDP_L4 => Some(SegmentKind::Udp),
            _ => return Err(UnknownSegmentation(gso)),
        };
        let segmentation = kind.map(|kind| Segmentation {
            kind,
            size: u16::from_ne_bytes([s0, s1]),
            ecn: gso & GSO_ECN != 0,
            header_len: u16::from_ne_bytes([l0, l1]),
        });
        Ok(Self { checksum, segmentation })
    }

    /// The bytes for the kernel.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let flags = if self.checksum.is_some() { F_NEEDS_CSUM } else { 0 };
        let PartialChecksum { start, offset } =
            self.checksum.unwrap_or(PartialChecksum { start: 0, offset: 0 });
        let (gso, size, header_len) = match self.segmentation {
            None => (GSO_NONE, 0, 0),
            Some(Segmentation { kind, size, ecn, header_len }) => {
                let kind = match kind {
                    SegmentKind::Tcp4 => GSO_TCPV4,
                    SegmentKind::Tcp6 => GSO_TCPV6,
                    SegmentKind::Udp => GSO_UDP_L4,
                };
                (if ecn { kind | GSO_ECN } else { kind }, size, header_len)
            }
        };
        let ([l0, l1], [s0, s1]) = (header_len.to_ne_bytes(), size.to_ne_bytes());
        let ([c0, c1], [o0, o1]) = (start.to_ne_bytes(), offset.to_ne_bytes());
        [flags, gso, l0, l1, s0, s1, c0, c1, o0, o1]
    }
}

fn attach(device: &OwnedFd, name: &LinkName, framing: Framing) -> Result<(), TunError> {
    // One queue: with several the kernel may move a flow from one to another, and its packets
    // would be overtaken.
    let flags = libc::IFF_TUN
        | libc::IFF_NO_PI
        | match framing {
            Framing::Plain => 0,
            Framing::Vnet => libc::IFF_VNET_HDR,
        };
    let mut request = request_for(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    check(result).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => TunError::Busy(name.clone()),
        _ => TunError::Attach { name: name.clone(), source },
    })
}

fn set_offloads(device: &OwnedFd) -> io::Result<Offloads> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    match ioctl_value(device, libc::TUNSETOFFLOAD, u64::from(tcp | udp)) {
        Ok(()) => Ok(Offloads { udp_segmentation: true }),
        // Linux before 6.2 knows no USO and refuses the whole set.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            ioctl_value(device, libc::TUNSETOFFLOAD, u64::from(tcp))?;
            Ok(Offloads { udp_segmentation: false })
        }
        Err(error) => Err(error),
    }
}

fn request_for(name: &LinkName) -> libc::ifreq {
    // SAFETY: ifreq is a C struct of integers, for which all bits zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A LinkName has at most 15 bytes and the field 16, so a terminating zero stays.
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes().take(15)) {
        *to = from as libc::c_char;
    }
    request
}

fn ioctl_value(device: &OwnedFd, request: libc::Ioctl, value: u64) -> io::Result<()> {
    // SAFETY: the requests used here (TUNSETPERSIST, TUNSETOFFLOAD) take an integer, no pointer.
    check(unsafe { libc::ioctl(device.as_raw_fd(), request, value as libc::c_ulong) })
}

fn ioctl_pointer(device: &OwnedFd, request: libc::Ioctl, value: &c_int) -> io::Result<()> {
    // SAFETY: the request used here (TUNSETVNETHDRSZ) reads one int, which outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), request, std::ptr::from_ref(value)) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vnet_headers_are_read_as_they_are_written() {
        let checksum = Some(PartialChecksum { start: 20, offset: 16 });
        let cut = |kind, ecn| Some(Segmentation { kind, size: 1420, ecn, header_len: 52 });
        let table = [
            VnetHeader::default(),
            VnetHeader { checksum, segmentation: None },
            VnetHeader { checksum, segmentation: cut(SegmentKind::Tcp4, false) },
            VnetHeader { checksum, segmentation: cut(SegmentKind::Tcp6, true) },
            VnetHeader { checksum, segmentation: cut(SegmentKind::Udp, false) },
        ];
        for header in table {
            assert_eq!(VnetHeader::parse(&header.to_bytes()), Ok(header));
        }
    }

    #[test]
    fn an_unknown_segmentation_is_refused() {
        let mut raw = VnetHeader::default().to_bytes();
        for gso in [2, 3, 6, 0x23, 0x60] {
            raw[1] = gso;
            assert_eq!(VnetHeader::parse(&raw), Err(UnknownSegmentation(gso)));
        }
    }

    /// GSO_UDP_L4 is 5 and a validated checksum (flag 2) asks for nothing.
    #[test]
    fn the_bytes_are_the_kernels() {
        let mut raw = [2, 5, 0, 0, 0, 0, 0, 0, 0, 0];
        raw[2..4].copy_from_slice(&28u16.to_ne_bytes());
        raw[4..6].copy_from_slice(&1200u16.to_ne_bytes());
        let expected = Segmentation { kind: SegmentKind::Udp, size: 1200, ecn: false, header_len: 28 };
        assert_eq!(VnetHeader::parse(&raw), Ok(VnetHeader { checksum: None, segmentation: Some(expected) }));
    }
}
