//! Hears when a host's kernel has taken a change of its nftables, with none of weft's own code.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use weft_lab::Host;

use crate::BenchError;

/// NFNLGRP_NFTABLES, 7, as a bit mask (linux/netfilter/nfnetlink.h).
const GROUPS: u32 = 1 << (7 - 1);
/// NFNL_SUBSYS_NFTABLES and NFT_MSG_NEWGEN: the end of every transaction's news
/// (linux/netfilter/nf_tables.h).
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// Room for the news of thousands of elements.
const ROOM: usize = 64 << 20;
/// How soon the wish to end is noticed.
const LOOK_MS: i64 = 50;

/// Listens to a host's nftables.
pub(super) struct Commits {
    socket: Socket,
}

impl Commits {
    /// From now on.
    pub(super) fn open(host: &Host) -> Result<Self, BenchError> {
        let listen = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &ROOM)?;
            setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::milliseconds(LOOK_MS))?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            Ok(socket)
        };
        let broken = BenchError::io(format!("listen to the nftables of {}", host.name()));
        Ok(Self { socket: host.within(listen)?.map_err(broken)? })
    }

    /// Waits for the end of the next transaction; when that was. None at the limit, or as soon as
    /// `wants_out` says so.
    pub(super) fn next(&self, limit: Duration, wants_out: impl Fn() -> bool) -> Option<Instant> {
        let (end, mut buffer) = (Instant::now() + limit, Vec::with_capacity(64 * 1024));
        while Instant::now() < end && !wants_out() {
            buffer.clear();
            // Nothing in time, or news were lost: the next may be the one.
            if self.socket.recv(&mut buffer, 0).is_ok() && ends_a_transaction(&buffer) {
                return Some(Instant::now());
            }
        }
        None
    }

    /// Forgets what was heard so far.
    pub(super) fn forget(&self) {
        let mut buffer = Vec::with_capacity(64 * 1024);
        while self.socket.recv(&mut buffer, nix::libc::MSG_DONTWAIT).is_ok() {
            buffer.clear();
        }
    }
}

/// Whether one of the messages in a datagram says so: nlmsghdr is length, type, flags, sequence, sender.
fn ends_a_transaction(mut datagram: &[u8]) -> bool {
    const HEADER: usize = 16;
    while let Some((length, kind)) = header(datagram) {
        if kind == NEW_GENERATION {
            return true;
        }
        datagram = datagram.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn header(message: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(message.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    Some((length.try_into().ok()?, kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_lab::Lab;

    #[test]
    fn nothing_is_read_out_of_nonsense() {
        for nonsense in [&[][..], &[0; 3], &[0; 16], &[255; 64], &[16, 0, 0, 0, 14, 10, 0, 0]] {
            assert!(!ends_a_transaction(nonsense), "{nonsense:?}");
        }
    }

    #[test]
    fn the_kernels_word_is_heard_once_for_each_transaction() {
        let lab = Lab::new("commits").etcd_members(0).hosts(["ash"]).up().unwrap();
        let ash = lab.host("ash");
        let commits = Commits::open(&ash).unwrap();
        let soon = Duration::from_secs(20);
        for change in ["add table ip t", "add chain ip t a; add chain ip t b", "delete table ip t"] {
            ash.run_with_stdin(&["nft", "-f", "-"], change.as_bytes()).ok().unwrap();
            assert!(commits.next(soon, || false).is_some(), "{change}");
            assert!(commits.next(Duration::from_millis(200), || false).is_none(), "{change}");
        }
        ash.run_args(&["nft", "add", "table", "ip", "t"]).ok().unwrap();
        commits.forget();
        assert!(commits.next(Duration::ZERO, || false).is_none());
        assert!(commits.next(soon, || true).is_none(), "who wants out does not wait");
    }
}
