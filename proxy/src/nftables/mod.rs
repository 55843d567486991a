//! Services as nftables rules, without an object for each service. Pure: from plans to transactions.
//!
//! One table, `inet weft-proxy`. Its chains exist for each way that connections take ("to one of three
//! endpoints, masqueraded"), so their number grows with how different services are and not with how
//! many there are. Everything that belongs to a service is elements of maps:
//!
//! ```text
//! addresses4         10.96.0.1 . tcp . 443        : 0x1f
//! ways4              0x1f                         : goto to4.address-3
//! address-endpoints4 10.96.0.1 . tcp . 443 . 0..2 : 10.42.7.9 . 8443
//! chain to4.address-3 {
//!     dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @address-endpoints4
//!     dnat ip to ip daddr . meta l4proto . th dport . 0 map @address-endpoints4
//! }
//! ```
//!
//! A packet's lookups each read what is newest, so a packet that was led to the chain of three may find
//! two; the second rule is for it. A removal moves the last endpoint into the hole, so that slot 0 is
//! there while any is.

mod apply;
pub mod connections;
mod frame;
mod layout;
mod leaf;
mod memory;
mod packed;
mod parts;
mod pods;
mod program;
mod slots;
#[cfg(test)]
mod tests;
mod words;

use weft_kernel::nft::TableKey;

pub use apply::{Nftables, remove};
pub use program::Program;

/// The table that holds everything.
pub fn table_key() -> TableKey {
    layout::table()
}
