//! Sees a host's kernel change, by netlink and with none of weft's own code: what, and when.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use weft_lab::Host;

use crate::BenchError;

/// Multicast groups as a bit mask: RTMGRP_NEIGH and RTMGRP_IPV4_ROUTE (linux/rtnetlink.h).
const GROUPS: u32 = 0x4 | 0x40;
/// Room for the events of thousands of entries that are made at once, at 256 bytes and some overhead each.
const ROOM: usize = 64 << 20;
/// How soon the end is noticed.
const LOOK_MS: i64 = 50;
/// How soon the wish to end is noticed.
const GLANCE: Duration = Duration::from_millis(200);

/// Something that came to be true in a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fact {
    /// A route to this network is there.
    Route(Ipv4Addr),
    /// It is gone.
    RouteGone(Ipv4Addr),
    /// A neighbour entry of this address is there.
    Neighbour(Ipv4Addr),
    /// It is gone.
    NeighbourGone(Ipv4Addr),
    /// A forwarding entry of this hardware address is there.
    Fdb([u8; 6]),
    /// It is gone.
    FdbGone([u8; 6]),
}

/// A thread that listens, and what it has heard.
pub(super) struct Witness {
    heard: Receiver<(Instant, Fact)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Listens in this host's namespace from now on.
    pub(super) fn open(host: &Host) -> Result<Self, BenchError> {
        let listen = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &ROOM)?;
            setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::milliseconds(LOOK_MS))?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            Ok(socket)
        };
        let broken = || BenchError::io(format!("listen to the kernel of {}", host.name()));
        let socket = host.within(listen)?.map_err(broken())?;
        let (tell, heard) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("witness".into())
            .spawn(move || {
                let mut buffer = Vec::with_capacity(64 * 1024);
                while !stopped.load(Ordering::Relaxed) {
                    buffer.clear();
                    // Nothing in time, or events were lost: then a fact is missing, which is said.
                    if socket.recv(&mut buffer, 0).is_err() {
                        continue;
                    }
                    let now = Instant::now();
                    for fact in facts(&buffer) {
                        if tell.send((now, fact)).is_err() {
                            return;
                        }
                    }
                }
            })
            .map_err(broken())?;
        Ok(Self { heard, stop, thread: Some(thread) })
    }

    /// Waits until all of these were heard; when the last was. Or, at the limit or as soon as
    /// `wants_out` says so, what is missing.
    pub(super) fn all(
        &self,
        mut wanted: BTreeSet<Fact>,
        limit: Duration,
        wants_out: impl Fn() -> bool,
    ) -> Result<Instant, String> {
        let (total, end) = (wanted.len(), Instant::now() + limit);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.heard.recv_timeout(left.min(GLANCE)) {
                Ok((when, fact)) => {
                    wanted.remove(&fact);
                    if wanted.is_empty() {
                        return Ok(when);
                    }
                }
                Err(RecvTimeoutError::Timeout) if left > GLANCE && !wants_out() => {}
                Err(_) => {
                    let first = wanted.first().map(|fact| format!("{fact:?}")).unwrap_or_default();
                    return Err(format!(
                        "{} of {total} entries within {limit:?}, {first} first",
                        wanted.len()
                    ));
                }
            }
        }
    }

    /// How many of these are heard (again) in this time.
    pub(super) fn count(&self, of: &BTreeSet<Fact>, time: Duration) -> usize {
        let (end, mut count) = (Instant::now() + time, 0);
        loop {
            match self.heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((_, fact)) => count += usize::from(of.contains(&fact)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return count,
            }
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The facts in one datagram of netlink messages: nlmsghdr is length, type, flags, sequence, sender.
fn facts(mut datagram: &[u8]) -> Vec<Fact> {
    const HEADER: usize = 16;
    let mut facts = vec![];
    while let Some(length) = u32_at(datagram, 0).and_then(|length| usize::try_from(length).ok()) {
        let Some(message) = datagram.get(HEADER..length) else { break };
        facts.extend(u16_at(datagram, 4).and_then(|kind| fact(kind, message)));
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    facts
}

/// One message, from the family on. rtmsg and ndmsg are both 12 bytes with the family in the first.
fn fact(kind: u16, message: &[u8]) -> Option<Fact> {
    use nix::libc::{AF_BRIDGE, AF_INET, RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWNEIGH, RTM_NEWROUTE};
    /// RTA_DST and NDA_DST (linux/rtnetlink.h, linux/neighbour.h).
    const DST: u16 = 1;
    /// NDA_LLADDR.
    const LLADDR: u16 = 2;
    let family = i32::from(*message.first()?);
    let attributes = message.get(12..)?;
    let address = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute(attributes, DST)?).ok()?));
    let mac = || <[u8; 6]>::try_from(attribute(attributes, LLADDR)?).ok();
    match (kind, family) {
        (RTM_NEWROUTE, AF_INET) => address().map(Fact::Route),
        (RTM_DELROUTE, AF_INET) => address().map(Fact::RouteGone),
        (RTM_NEWNEIGH, AF_INET) => address().map(Fact::Neighbour),
        (RTM_DELNEIGH, AF_INET) => address().map(Fact::NeighbourGone),
        (RTM_NEWNEIGH, AF_BRIDGE) => mac().map(Fact::Fdb),
        (RTM_DELNEIGH, AF_BRIDGE) => mac().map(Fact::FdbGone),
        _ => None,
    }
}

/// An attribute's value: rtattr is length and type, padded to four bytes.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2)? == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_lab::Lab;

    #[test]
    fn nothing_is_read_out_of_nonsense() {
        for nonsense in [&[][..], &[0; 3], &[0; 16], &[255; 64], &[16, 0, 0, 0, 24, 0, 0, 0]] {
            assert_eq!(facts(nonsense), []);
        }
    }

    #[test]
    fn the_kernels_own_events_are_understood() {
        let lab = Lab::new("witness").etcd_members(0).hosts(["ash"]).up().unwrap();
        let ash = lab.host("ash");
        let witness = Witness::open(&ash).unwrap();
        ash.run("ip link add v type vxlan id 9 dstport 8472 nolearning && ip link set v up").ok().unwrap();
        let at = Ipv4Addr::new(10, 9, 1, 0);
        for (verb, facts) in [
            ("add", [Fact::Route(at), Fact::Neighbour(at), Fact::Fdb([2, 0, 0, 0, 0, 9])]),
            ("del", [Fact::RouteGone(at), Fact::NeighbourGone(at), Fact::FdbGone([2, 0, 0, 0, 0, 9])]),
        ] {
            ash.run(format!("ip route {verb} 10.9.1.0/24 dev v")).ok().unwrap();
            ash.run(format!("ip neigh {verb} 10.9.1.0 lladdr 02:00:00:00:00:09 dev v")).ok().unwrap();
            ash.run(format!("bridge fdb {verb} 02:00:00:00:00:09 dev v dst 192.0.2.9")).ok().unwrap();
            witness.all(facts.into(), Duration::from_secs(20), || false).unwrap();
        }
        let missing = witness.all([Fact::Route(at)].into(), Duration::ZERO, || false).unwrap_err();
        assert!(missing.starts_with("1 of 1 entries within 0ns"), "{missing}");
    }
}
