//! Which peers are behind a path that takes less than the TUN's MTU. Pure: the time is an argument.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::Family;
use crate::mtu;
use crate::plan::{Transport, Way};

/// How long a limit is believed before the kernel is asked again. The kernel keeps what it learned
/// for ten minutes (`net.ipv4.route.mtu_expires`); asking costs one refused packet.
const BELIEVED: Duration = Duration::from_secs(10);

/// The longest inner packet to each peer, where it is known to be less than usual.
#[derive(Debug, Default)]
pub(super) struct PathLimits(HashMap<SocketAddr, (usize, Instant)>);

impl PathLimits {
    /// The longest packet that is known to fit.
    pub(super) fn of(&self, peer: SocketAddr, now: impl FnOnce() -> Instant) -> Option<usize> {
        if self.0.is_empty() {
            return None;
        }
        let (limit, until) = self.0.get(&peer)?;
        (now() < *until).then_some(*limit)
    }

    /// The kernel said what the outer path takes. Returns the longest inner packet.
    pub(super) fn learn(&mut self, peer: SocketAddr, path_mtu: u32, now: Instant) -> usize {
        let way = Way { transport: Transport::Udp, outer: Family::of(peer.ip()) };
        let limit = path_mtu.saturating_sub(mtu::overhead(way)) as usize;
        self.0.retain(|_, (_, until)| now < *until);
        self.0.insert(peer, (limit, now + BELIEVED));
        limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_believed_for_a_while() {
        let (v4, v6): (SocketAddr, SocketAddr) =
            ("192.0.2.1:8285".parse().unwrap(), "[2001:db8::1]:8285".parse().unwrap());
        let start = Instant::now();
        let mut limits = PathLimits::default();
        assert_eq!(limits.of(v4, || start), None);
        assert_eq!(limits.learn(v4, 1400, start), 1372);
        assert_eq!(limits.learn(v6, 1400, start), 1352);
        let table = [(v4, 0, Some(1372)), (v6, 9, Some(1352)), (v4, 10, None)];
        for (peer, seconds, limit) in table {
            assert_eq!(
                limits.of(peer, || start + Duration::from_secs(seconds)),
                limit,
                "{peer} at {seconds} s"
            );
        }
        assert_eq!(limits.learn(v4, 20, start), 0);
    }
}
