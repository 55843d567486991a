//! The overlay's packet filter rules: how `nft` lists them, and what they do to real packets.
//!
//! Each test runs in network namespaces of its own. Needs root.

mod findings;
mod golden;
mod iptables;
mod masquerade;
mod spoofing;
mod world;
