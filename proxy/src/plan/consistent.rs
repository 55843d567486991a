//! Consistent hashing on the client's address: which endpoint has which of the slots that clients'
//! addresses are hashed to.
//!
//! Rendezvous hashing: each endpoint has a weight for each slot, and the heaviest has the slot. So an
//! endpoint that goes gives away only its own slots, one that comes takes slots from all others, and
//! every host finds the same table, whatever it knew before.

use std::net::{IpAddr, SocketAddr};

use crate::model::Balance;

/// FNV-1a's 64-bit offset basis and prime (Fowler, Noll, Vo).
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// For each of the [`Balance::SLOTS`] slots the index of the endpoint that has it; empty without
/// endpoints. Of equal weights the endpoint with the lesser address wins.
pub fn slots(endpoints: &[SocketAddr]) -> Vec<usize> {
    let hashed: Vec<(u64, &SocketAddr)> = endpoints.iter().map(|it| (endpoint_hash(it), it)).collect();
    let heaviest = |slot: u32| {
        let weights = hashed.iter().map(|(hash, address)| (weight(*hash, slot), std::cmp::Reverse(*address)));
        weights.enumerate().max_by_key(|(_, weight)| *weight).map(|(index, _)| index)
    };
    (0..Balance::SLOTS).filter_map(heaviest).collect()
}

/// FNV-1a over the address's bytes and the port, most significant byte first.
fn endpoint_hash(endpoint: &SocketAddr) -> u64 {
    let hash = match endpoint.ip() {
        IpAddr::V4(ip) => fnv(FNV_OFFSET, &ip.octets()),
        IpAddr::V6(ip) => fnv(FNV_OFFSET, &ip.octets()),
    };
    fnv(hash, &endpoint.port().to_be_bytes())
}

/// The hash goes on over the slot's number, most significant byte first. FNV leaves its last bytes
/// in the low bits, so MurmurHash3's finalizer spreads them.
fn weight(endpoint: u64, slot: u32) -> u64 {
    let mut hash = fnv(endpoint, &slot.to_be_bytes());
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}
