//! Services as iptables' rules, for hosts whose kernel has no maps in nftables. Pure: from plans to
//! what `iptables-restore` is told; [`Iptables`] is the hand that runs the programs.
//!
//! In each family two tables hold chains of ours, all of them named `WEFT-…`. A packet of a new
//! connection goes this way:
//!
//! ```text
//! nat      PREROUTING, OUTPUT -j WEFT-SERVICES        which frontend? a tree of chains over the
//!              -g WEFT-SERVICES-a -g WEFT-SERVICES-0a   address's last byte, half a byte at a time
//!              -g WEFT-NODEPORTS -g WEFT-PORTS          else a node port, in blocks of 64
//!          WEFT-WAY-…                                 who asks? marked for masquerade, if need be
//!          WEFT-ANY-…, WEFT-LOC-…                     one of the endpoints, by policy: DNAT
//! filter   INPUT, FORWARD, OUTPUT -j WEFT-REFUSE      what nobody translated: rejected or dropped
//! nat      POSTROUTING -j WEFT-POSTROUTING            what was marked, and who talks to itself
//! filter   INPUT, FORWARD -j WEFT-ASTRAY              what an endpoint sends that is of no connection
//! ```
//!
//! Chains lead on by `goto`, so that what a frontend took comes back to nobody but the kernel's chain.
//! One service is a few rules in a few chains, and a change rewrites those chains and no others.
//!
//! What iptables has not got, and what is done instead:
//!
//! - A client's endpoint is kept by `-m recent`, which keeps so many clients for an endpoint as the
//!   module's `ip_list_tot` says: 100, unless it was loaded with more. nftables mode keeps 262,144.
//! - There is nothing that hashes an address as nftables does: `-m cluster` takes the first 32 bits of an
//!   IPv6 address only (`xt_cluster_hash_ipv6`), and `iptables-restore` 1.8.9 refuses what
//!   `iptables-save` prints of it; HMARK overwrites everybody's mark. So `client-hash` finds a client's
//!   slot by another hash ([`ClientHash::Murmur`](crate::host::ClientHash)), in a program
//!   for `-m bpf`. Who has which slot is the same in both modes, and as few clients move when endpoints
//!   come and go; but a client has another endpoint than through a host in nftables mode.
//!
//! What one host's iptables has not got, as it was built: see `able`.

mod able;
mod backend;
mod bpf;
mod counts;
mod frame;
mod parts;
mod program;
mod rule;
mod saved;
mod steps;
#[cfg(test)]
mod tests;
mod tree;

pub use backend::{Iptables, remove};
pub use program::{Program, Steps};
