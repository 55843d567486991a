//! The userspace tunnel: raw IP in UDP, as flannel's `udp` backend speaks it (one IP packet a datagram).
//!
//! Fast because packets travel in bulk: the TUN hands over super-packets of up to 64 KiB, which are cut
//! into packets without copying their payload and given to the kernel as one message; on the other
//! side they are put together again before they are written.
//!
//! ```text
//! pod -> TUN -> outbound: split -> batch -> socket  ~~~>  socket -> inbound: admit -> coalesce -> TUN -> pod
//! ```
//!
//! All thinking is pure: `packet`, `checksum`, `split`, `coalesce`, `batch`, `icmp`, `peers`, `pmtu`.
//! `socket`, `outbound`, `inbound` and `tunnel` are the I/O, in two threads of their own: one for each
//! direction, because several readers of one queue would let packets of a flow overtake each other.
//! Deliberately absent: encryption, several queues, a hop limit of our own.

mod batch;
mod checksum;
mod coalesce;
mod counters;
mod icmp;
mod inbound;
mod outbound;
mod packet;
mod peers;
mod pmtu;
pub mod single;
mod socket;
mod split;
mod tunnel;

#[cfg(test)]
mod properties;

pub use counters::{Counters, PeerCounters, TunnelCounters};
pub use peers::{PeerEnd, PeerTable};
pub use tunnel::{Tunnel, TunnelError, TunnelOptions};
