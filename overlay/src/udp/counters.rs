//! What the data path counts: atomics for the threads, plain numbers for whoever asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::Subnet;

/// A counter with one writer or several; no order with anything else is promised.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares live counters together with the plain numbers read from them, so that neither can lack
/// what the other has.
macro_rules! counters {
    ($(#[$live_doc:meta])* $live:ident, $(#[$plain_doc:meta])* $plain:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        pub(super) struct $live { $($(#[$doc])* pub(super) $field: Count,)* }

        $(#[$plain_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $plain { $($(#[$doc])* pub $field: u64,)* }

        impl $live {
            pub(super) fn read(&self) -> $plain {
                $plain { $($field: self.$field.read(),)* }
            }
        }

        impl $plain {
            /// Each counter's name and value, in a fixed order.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}

counters! {
    /// One peer's counters.
    PeerLive,
    /// What went to one peer and came from it: inner packets and their bytes, after segmentation.
    PeerCounters {
        /// Packets sent to it.
        sent_packets,
        /// Their bytes.
        sent_bytes,
        /// Packets taken in from it.
        received_packets,
        /// Their bytes.
        received_bytes,
        /// Packets that the socket refused: no route, no buffer, no address.
        drop_send_failed,
        /// Packets longer than the path takes, answered with ICMP.
        drop_too_big,
        /// Packets from it with an inner source that is not its own.
        drop_spoofed,
        /// Packets from it for a destination that is not ours.
        drop_not_ours,
    }
}

counters! {
    /// The tunnel's own counters.
    TunnelLive,
    /// What cannot be put down to a peer.
    TunnelCounters {
        /// Packets for a destination that nobody leases.
        drop_unknown_destination,
        /// Datagrams from addresses of no peer.
        drop_unknown_sender,
        /// Packets for a group, everybody or one link: never tunnelled.
        drop_not_unicast,
        /// What was no IP packet, from either side.
        drop_malformed,
        /// Packets from strangers (anti-spoofing off) for a destination that is not ours.
        drop_not_ours,
        /// Packets that the TUN did not take: link down, or no memory.
        drop_tun,
        /// ICMP errors told to senders.
        icmp_sent,
        /// ICMP errors kept back by the rate limit.
        icmp_limited,
        /// 1 once segmentation by the kernel was given up, because the network card lacks checksums.
        segmentation_off,
    }
}

/// All counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What cannot be put down to a peer.
    pub tunnel: TunnelCounters,
    /// By what the peer leases. A peer that leaves takes its counters along.
    pub peers: BTreeMap<Subnet, PeerCounters>,
}
