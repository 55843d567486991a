//! A pod's network: an address of the host's subnet and the wire to reach it by.
//!
//! [`range`] says which addresses there are, [`records`] who has which (on disk), [`site`] what the
//! host offers, [`wiring`] what a wire consists of.

pub mod range;
pub mod records;
pub mod site;
pub mod wiring;

use sha2::{Digest, Sha256};

/// Eleven hexadecimal digits that stand for one attachment in names: link names have room for
/// fifteen bytes, container ids have 64 (44 bits make a clash among 500 pods a one in 10^8 chance,
/// and a clash is refused, not shared).
pub(crate) fn link_suffix(id: &str, ifname: &str) -> String {
    let digest = Sha256::new().chain_update(id).chain_update([0]).chain_update(ifname).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..11].to_owned()
}
