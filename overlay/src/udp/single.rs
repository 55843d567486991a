//! The tunnel as flannel's proxy does it: one packet, one system call. For benches only.
//!
//! The same wire format and the same peer table, without vnet headers, segmentation or batches: what
//! the offloads of [`super::Tunnel`] gain is measured against this. It has no ICMP, and one thread for
//! each direction, where flannel's proxy has one for both: a harder rival.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use weft_kernel::net::LinkName;
use weft_kernel::tun::{Framing, MAX_PACKET, Tun};

use super::packet::{Packet, destination};
use super::peers::{PeerTable, Routes};

/// The slow tunnel at work. Dropping it stops it.
pub struct SingleTunnel {
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

impl SingleTunnel {
    /// Makes the TUN, and starts.
    pub fn open(tun: &str, local: Ipv4Addr, port: u16, peers: &PeerTable) -> io::Result<Self> {
        let name: LinkName = tun.parse().map_err(io::Error::other)?;
        let tun = Tun::open(&name, Framing::Plain).map_err(io::Error::other)?;
        Self::start(tun, local, port, peers)
    }

    /// Starts it in this thread's network namespace. The TUN is opened with
    /// [`weft_kernel::tun::Framing::Plain`].
    pub fn start(tun: Tun, local: Ipv4Addr, port: u16, peers: &PeerTable) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let socket = UdpSocket::bind((local, port))?;
        socket.set_nonblocking(true)?;
        let (tun, socket) = (Arc::new(tun), Arc::new(socket));
        let routes = Arc::new(Routes::compile(peers, None));
        let out = {
            let (tun, socket) = (Arc::clone(&tun), Arc::clone(&socket));
            let (routes, stop) = (Arc::clone(&routes), Arc::clone(&stop));
            thread::Builder::new().name("weft-single-out".into()).spawn(move || {
                let mut packet = vec![0; MAX_PACKET];
                while ready(tun.as_fd(), &stop) {
                    while let Ok(len) = tun.receive_plain(&mut packet) {
                        send(&socket, &routes, &packet[..len]);
                    }
                }
            })?
        };
        let mut single = Self { stop: Arc::clone(&stop), threads: vec![out] };
        single.threads.push(thread::Builder::new().name("weft-single-in".into()).spawn(move || {
            let mut packet = vec![0; MAX_PACKET];
            while ready(socket.as_fd(), &stop) {
                while let Ok((len, from)) = socket.recv_from(&mut packet) {
                    take(&tun, &routes, from, &packet[..len]);
                }
            }
        })?);
        Ok(single)
    }
}

impl Drop for SingleTunnel {
    fn drop(&mut self) {
        // Fails only if the counter is full, and then it wakes the threads just as well.
        let _ = self.stop.write(1);
        for thread in self.threads.drain(..) {
            // A panic was printed by the thread; a bench notices that nothing arrives.
            let _ = thread.join();
        }
    }
}

/// Waits for a packet; `false` when it is time to stop.
fn ready(from: BorrowedFd<'_>, stop: &EventFd) -> bool {
    let mut waiting = [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(from, PollFlags::POLLIN)];
    poll(&mut waiting, PollTimeout::NONE).is_ok() && waiting[0].any() != Some(true)
}

fn send(socket: &UdpSocket, routes: &Routes, packet: &[u8]) {
    if let Some(peer) = destination(packet).and_then(|dst| routes.to(dst)) {
        // A lost packet is what a network does; the bench sees it in the throughput.
        let _ = socket.send_to(packet, routes.targets()[peer].endpoint);
    }
}

fn take(tun: &Tun, routes: &Routes, from: SocketAddr, bytes: &[u8]) {
    if let Ok(packet) = Packet::parse(bytes)
        && routes.admit(routes.senders(from.ip()), packet.src, packet.dst).is_ok()
    {
        // As above.
        let _ = tun.send(&[io::IoSlice::new(bytes)]);
    }
}
