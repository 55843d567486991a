//! One thread: datagrams from the peers, to the TUN.
//!
//! A round takes what is waiting, refuses what has no business here, puts the packets of a flow
//! together again and writes them. One thread for both families keeps each flow in order.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::coalesce::{Coalescer, Output};
use super::packet::Packet;
use super::peers::{Refusal, Routes};
use super::socket::{Received, Receiver, Socket};
use super::tunnel::{Gone, Shared, Wake};

pub(super) struct Inbound {
    shared: Arc<Shared>,
    receiver: Receiver,
    coalescer: Coalescer,
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let udp = shared.tun.offloads().is_some_and(|offloads| offloads.udp_segmentation);
        Self { shared, receiver: Receiver::new(), coalescer: Coalescer::new(udp) }
    }

    /// Works until the tunnel is stopped or the TUN is gone.
    pub(super) fn run(mut self) -> Result<(), Gone> {
        let shared = Arc::clone(&self.shared);
        let sockets: Vec<&Socket> = shared.sockets().collect();
        let ready: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.as_fd()).collect();
        while shared.wait(&ready)? == Wake::Ready {
            let mut more = true;
            while more && !shared.stopping() {
                more = false;
                for socket in &sockets {
                    more |= self.round(socket)?;
                }
            }
        }
        Ok(())
    }

    /// Takes and writes one batch. `true`: there may be more.
    fn round(&mut self, socket: &Socket) -> Result<bool, Gone> {
        let more = match self.receiver.receive(socket) {
            Ok(more) => more,
            // Besides "nothing there" only errors of the network that ICMP reported; the next call
            // brings datagrams again.
            Err(error) => return Ok(error.kind() == io::ErrorKind::Interrupted),
        };
        let routes = self.shared.routes.load();
        let (messages, memory) = self.receiver.parts();
        self.coalescer.clear();
        for message in messages {
            take(&self.shared, &routes, &mut self.coalescer, memory, message);
        }
        let outputs = self.coalescer.finish(memory);
        write(&self.shared, outputs, memory)?;
        Ok(more)
    }
}

/// Admits the packets of one message to the batch.
fn take(shared: &Shared, routes: &Routes, coalescer: &mut Coalescer, memory: &[u8], message: &Received) {
    let senders = routes.senders(message.from);
    let counters = &shared.counters;
    // A message is mostly one flow: the verdict on its first packet serves the others.
    let mut last: Option<((IpAddr, IpAddr), Option<usize>)> = None;
    let (mut packets, mut bytes) = (0, 0);
    let mut start = message.range.start;
    while start < message.range.end {
        let end = (start + message.segment).min(message.range.end);
        let datagram = &memory[start..end];
        let Ok(packet) = Packet::parse(datagram) else {
            counters.drop_malformed.add(1);
            start = end;
            continue;
        };
        let flow = (packet.src, packet.dst);
        let verdict = match last {
            Some((known, peer)) if known == flow => Ok(peer),
            _ => routes.admit(senders, packet.src, packet.dst),
        };
        match verdict {
            Ok(peer) => {
                if last.is_none_or(|(_, before)| before != peer) {
                    account(routes, last.and_then(|(_, before)| before), packets, bytes);
                    (packets, bytes) = (0, 0);
                }
                last = Some((flow, peer));
                packets += 1;
                bytes += packet.len;
                coalescer.push(memory, start, &packet);
            }
            Err(Refusal::UnknownSender) => counters.drop_unknown_sender.add(1),
            Err(Refusal::Spoofed { peer }) => routes.peers()[peer].counters.drop_spoofed.add(1),
            Err(Refusal::NotOurs { peer: Some(peer) }) => routes.peers()[peer].counters.drop_not_ours.add(1),
            Err(Refusal::NotOurs { peer: None }) => counters.drop_not_ours.add(1),
        }
        start = end;
    }
    account(routes, last.and_then(|(_, before)| before), packets, bytes);
}

fn account(routes: &Routes, peer: Option<usize>, packets: usize, bytes: usize) {
    if let Some(peer) = peer.and_then(|peer| routes.peers().get(peer)) {
        peer.counters.received_packets.add(packets);
        peer.counters.received_bytes.add(bytes);
    }
}

fn write(shared: &Shared, outputs: &[Output], memory: &[u8]) -> Result<(), Gone> {
    let headers: Vec<_> = outputs.iter().map(|output| output.vnet.to_bytes()).collect();
    let mut pieces: Vec<IoSlice<'_>> = Vec::with_capacity(64);
    for (output, header) in outputs.iter().zip(&headers) {
        pieces.clear();
        pieces.push(IoSlice::new(header));
        pieces.extend(output.pieces.iter().map(|range| IoSlice::new(&memory[range.clone()])));
        match shared.tun.send(&pieces) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Err(Gone(error)),
            // The link is down (EIO), memory is short, or the packet displeases: only it is lost.
            Err(_) => shared.counters.drop_tun.add(output.count()),
        }
    }
    Ok(())
}
