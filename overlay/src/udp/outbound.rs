//! One thread: packets from the TUN, to the peers.
//!
//! A round reads what is waiting, cuts super-packets, and sends everything in as few system calls
//! as it takes. There is no queue between reading and sending: when the socket is full we stop
//! reading, and the TUN's own queue is where packets wait or are dropped.
//!
//! The hop limit is left alone: the kernel has counted one hop when it routed the packet into the TUN
//! and counts the next when the peer's kernel routes it out, as between any two routers. flannel's
//! proxy takes another; loops, against which that guards, are refused on receiving
//! ([`super::peers::Refusal::NotOurs`]).

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_kernel::tun::{SegmentKind, VnetHeader};

use super::batch::{Batch, Piece, Run};
use super::icmp::{Complaint, IPV6_MIN_MTU, RateLimit, answer};
use super::packet::{Packet, destination};
use super::peers::{Routes, Target};
use super::pmtu::PathLimits;
use super::socket::{Message, Sender, Socket};
use super::split::{finish_checksum, split};
use super::tunnel::{Gone, Shared, Wake};

/// How long a full socket is waited for before its packets are dropped. A network card drains 8 MiB
/// in less than this at 1 Gb/s.
const FULL_SOCKET: Duration = Duration::from_millis(100);

pub(super) struct Outbound {
    shared: Arc<Shared>,
    batch: Batch,
    wire: Wire,
}

/// The sending half, apart from the batch, so that it can be used while the batch is borrowed.
struct Wire {
    shared: Arc<Shared>,
    sender: Sender,
    limits: PathLimits,
    /// Linux lets out 1,000 ICMP messages a second, 50 at once (`net.ipv4.icmp_msgs_per_sec`).
    no_route: RateLimit,
    too_big: RateLimit,
    /// UDP_SEGMENT works on the way out.
    segmentation: bool,
    /// One packet, gathered from its pieces.
    scratch: Vec<u8>,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let wire = Wire {
            shared: Arc::clone(&shared),
            sender: Sender::default(),
            limits: PathLimits::default(),
            no_route: RateLimit::new(50, 100),
            too_big: RateLimit::new(50, 1000),
            segmentation: true,
            scratch: Vec::new(),
        };
        Self { shared, batch: Batch::new(), wire }
    }

    /// Works until the tunnel is stopped or the TUN is gone.
    pub(super) fn run(mut self) -> Result<(), Gone> {
        let shared = Arc::clone(&self.shared);
        while shared.wait(&[shared.tun.as_fd()])? == Wake::Ready {
            // Drained in rounds before waiting again.
            while self.round()? {
                if shared.stopping() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads and sends one batch. `false`: nothing was waiting.
    fn round(&mut self) -> Result<bool, Gone> {
        let shared = Arc::clone(&self.shared);
        let routes = shared.routes.load();
        self.batch.clear();
        let mut any = false;
        while !self.batch.is_full() {
            let mut raw = [0; VnetHeader::LEN];
            match shared.tun.receive(&mut raw, self.batch.space()) {
                Ok(len) => {
                    any = true;
                    let range = self.batch.took(len);
                    self.take(&routes, &raw, range);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Gone(error)),
            }
        }
        self.wire.flush(&routes, &self.batch);
        Ok(any)
    }

    /// Decides where one packet or super-packet goes, and queues it.
    fn take(&mut self, routes: &Routes, raw: &[u8; VnetHeader::LEN], range: Range<usize>) {
        let counters = &self.shared.counters;
        let bytes = self.batch.packet(range.clone());
        let (Some(dst), Ok(vnet)) = (destination(bytes), VnetHeader::parse(raw)) else {
            counters.drop_malformed.add(1);
            return;
        };
        if !is_unicast(dst) {
            counters.drop_not_unicast.add(1);
            return;
        }
        let peer = routes.to(dst);
        let limit = peer.and_then(|peer| self.wire.limits.of(routes.targets()[peer].endpoint, Instant::now));
        let Some(segmentation) = vnet.segmentation else {
            if let Some(checksum) = vnet.checksum
                && finish_checksum(checksum, bytes).is_err()
            {
                counters.drop_malformed.add(1);
                return;
            }
            match peer {
                Some(peer) => {
                    let oversize = limit.is_some_and(|limit| range.len() > limit);
                    self.batch.add(peer, &[Piece::Read(range)], oversize, self.wire.segmentation);
                }
                None => self.wire.complain_no_route(routes, bytes, 1),
            }
            return;
        };
        let made = self.batch.headers.len();
        let (bytes, headers) = self.batch.packet_and_headers(range.clone());
        let Ok(segments) = split(&vnet, bytes, headers) else {
            headers.truncate(made);
            counters.drop_malformed.add(1);
            return;
        };
        let header_of = |index| {
            let header = segments.header_of(index);
            made + header.start..made + header.end
        };
        let Some(peer) = peer else {
            let first = [&headers[header_of(0)], &bytes[segments.payload_of(0)]].concat();
            headers.truncate(made);
            // Each datagram of UDP counts for itself, TCP's packets are one thing.
            let packets = if segmentation.kind == SegmentKind::Udp { segments.count } else { 1 };
            self.wire.complain_no_route(routes, &first, packets);
            return;
        };
        let oversize = limit.is_some_and(|limit| segments.packet_len() > limit);
        for index in 0..segments.count {
            let payload = segments.payload_of(index);
            let payload = range.start + payload.start..range.start + payload.end;
            let pieces = [Piece::Header(header_of(index)), Piece::Read(payload)];
            self.batch.add(peer, &pieces, oversize, self.wire.segmentation);
        }
    }
}

impl Wire {
    /// Sends every run of the batch, in order.
    fn flush(&mut self, routes: &Routes, batch: &Batch) {
        let shared = Arc::clone(&self.shared);
        let all = batch.slices();
        let mut rest = batch.runs();
        while let Some(first) = rest.first() {
            let peer = &routes.targets()[first.target];
            let Some(socket) = shared.socket_for(peer.endpoint) else {
                peer.counters.drop_send_failed.add(first.count);
                rest = &rest[1..];
                continue;
            };
            if first.oversize {
                self.one_by_one(routes, peer, socket, first, first.slices(&all));
                rest = &rest[1..];
                continue;
            }
            let together = rest.iter().take_while(|run| {
                let endpoint = routes.targets()[run.target].endpoint;
                !run.oversize && endpoint.is_ipv4() == peer.endpoint.is_ipv4()
            });
            let messages: Vec<Message<'_>> = together
                .map(|run| Message {
                    to: routes.targets()[run.target].endpoint,
                    segment: (run.count > 1).then_some(run.segment as u16),
                    pieces: run.slices(&all),
                })
                .collect();
            match self.sender.send(socket, &messages) {
                Ok(sent) => {
                    for run in &rest[..sent] {
                        let counters = &routes.targets()[run.target].counters;
                        counters.sent_packets.add(run.count);
                        counters.sent_bytes.add(run.len);
                    }
                    rest = &rest[sent..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.has_room(socket) {
                        peer.counters.drop_send_failed.add(first.count);
                        rest = &rest[1..];
                    }
                }
                Err(error) => {
                    self.refused(routes, peer, socket, first, first.slices(&all), &error);
                    rest = &rest[1..];
                }
            }
        }
    }

    /// The kernel did not take a message: too long for the path, segmentation impossible, or no way.
    fn refused(
        &mut self,
        routes: &Routes,
        peer: &Target,
        socket: &Socket,
        run: &Run,
        pieces: &[IoSlice<'_>],
        error: &io::Error,
    ) {
        match error.raw_os_error() {
            // udp(7): the device that it leaves by cannot checksum, so the kernel cannot cut.
            Some(libc::EIO) if run.count > 1 => {
                tracing::warn!(peer = %peer.endpoint, "no checksum offload on the way out: sending one by one");
                self.segmentation = false;
                self.shared.counters.segmentation_off.add(1);
            }
            Some(libc::EMSGSIZE) => drop(self.learn(peer.endpoint, socket)),
            // Kernels before 6.14 say EINVAL when one segment of several does not fit.
            Some(libc::EINVAL) if run.count > 1 => {
                let limit = self.learn(peer.endpoint, socket);
                if limit.is_none_or(|limit| run.segment <= limit) {
                    peer.counters.drop_send_failed.add(run.count);
                    return;
                }
            }
            _ => {
                peer.counters.drop_send_failed.add(run.count);
                return;
            }
        }
        self.one_by_one(routes, peer, socket, run, pieces);
    }

    /// The slow way: each packet is sent, fragmented or answered by itself.
    fn one_by_one(
        &mut self,
        routes: &Routes,
        peer: &Target,
        socket: &Socket,
        run: &Run,
        pieces: &[IoSlice<'_>],
    ) {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        for piece in pieces {
            bytes.extend_from_slice(piece);
        }
        // Who was told already: a run is mostly one flow, which needs to hear it once.
        let mut told = None;
        for packet in bytes.chunks(run.segment.max(1)) {
            self.one(routes, peer, socket, packet, &mut told);
        }
        self.scratch = bytes;
    }

    fn one(
        &mut self,
        routes: &Routes,
        peer: &Target,
        socket: &Socket,
        bytes: &[u8],
        told: &mut Option<(IpAddr, IpAddr)>,
    ) {
        let mut limit = self.limits.of(peer.endpoint, Instant::now).filter(|limit| bytes.len() > *limit);
        if limit.is_none() {
            match self.send_one(socket, bytes, peer.endpoint) {
                Ok(()) => return count_sent(peer, bytes),
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    limit = self.learn(peer.endpoint, socket);
                }
                Err(_) => {}
            }
        }
        let (Some(limit), Ok(packet)) = (limit, Packet::parse(bytes)) else {
            return peer.counters.drop_send_failed.add(1);
        };
        // RFC 2473 7.1: a tunnel carries IPv6 packets of 1280 bytes, in fragments if it must.
        let must_pass = packet.dst.is_ipv6() && packet.len <= usize::from(IPV6_MIN_MTU);
        if must_pass || !packet.dont_fragment {
            match socket.send_fragmented(bytes, peer.endpoint) {
                Ok(()) => count_sent(peer, bytes),
                Err(_) => peer.counters.drop_send_failed.add(1),
            }
            return;
        }
        peer.counters.drop_too_big.add(1);
        let flow = Some((packet.src, packet.dst));
        if *told != flow {
            *told = flow;
            let allowed = self.too_big.allows(Instant::now());
            self.complain(routes, Complaint::TooBig { mtu: limit as u16 }, bytes, packet.src, allowed);
        }
    }

    /// Sends one datagram, waiting for room if there is none.
    fn send_one(&self, socket: &Socket, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        match socket.send(bytes, to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.has_room(socket) => {
                socket.send(bytes, to)
            }
            other => other,
        }
    }

    fn learn(&mut self, peer: SocketAddr, socket: &Socket) -> Option<usize> {
        let mtu = socket.path_mtu(peer).ok()?;
        let limit = self.limits.learn(peer, mtu, Instant::now());
        tracing::debug!(%peer, mtu, limit, "the path takes less");
        Some(limit)
    }

    fn complain_no_route(&mut self, routes: &Routes, packet: &[u8], dropped: usize) {
        self.shared.counters.drop_unknown_destination.add(dropped);
        let Ok(Packet { src, .. }) = Packet::parse(packet) else { return };
        let allowed = self.no_route.allows(Instant::now());
        self.complain(routes, Complaint::NoRoute, packet, src, allowed);
    }

    fn complain(&self, routes: &Routes, complaint: Complaint, original: &[u8], to: IpAddr, allowed: bool) {
        let source = routes.icmp_source(to);
        let Some(message) = source.and_then(|source| answer(complaint, original, source)) else { return };
        if !allowed {
            return self.shared.counters.icmp_limited.add(1);
        }
        let vnet = VnetHeader::default().to_bytes();
        match self.shared.tun.send(&[IoSlice::new(&vnet), IoSlice::new(&message)]) {
            Ok(()) => self.shared.counters.icmp_sent.add(1),
            Err(_) => self.shared.counters.drop_tun.add(1),
        }
    }

    /// Waits until a full socket takes more.
    fn has_room(&self, socket: &Socket) -> bool {
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        let wait = PollTimeout::try_from(FULL_SOCKET).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut ready, wait), Ok(1..)) && !self.shared.stopping()
    }
}

fn count_sent(peer: &Target, bytes: &[u8]) {
    peer.counters.sent_packets.add(1);
    peer.counters.sent_bytes.add(bytes.len());
}

/// The kernel sends router solicitations, group reports and the like into every link.
fn is_unicast(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(dst) => !dst.is_multicast() && !dst.is_broadcast() && !dst.is_link_local(),
        IpAddr::V6(dst) => !dst.is_multicast() && !dst.is_unicast_link_local(),
    }
}
