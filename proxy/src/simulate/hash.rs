//! `weft.dev/balance: client-hash`: which endpoint a client's address falls to.
//!
//! The address goes through the kernel's `jhash` (include/linux/jhash.h, after Bob Jenkins' lookup3)
//! and is scaled to a slot as nft_hash does (net/netfilter/nft_hash.c); the slot belongs to the
//! endpoint with the greatest weight. The weight is FNV-1a over address, port and slot number, all
//! with the most significant byte first, through MurmurHash3's 64-bit finalizer.

use std::net::{IpAddr, SocketAddr};

use crate::host::ClientHash;
use crate::model::Balance;

/// The slot of a client with `weft.dev/balance: client-hash`. By `jhash` it is what the kernel's `jhash
/// ip saddr mod 1024 seed 0x77656674` gives.
pub fn slot(client: IpAddr, by: ClientHash) -> u32 {
    let bytes = match client {
        IpAddr::V4(client) => client.octets().to_vec(),
        IpAddr::V6(client) => client.octets().to_vec(),
    };
    let hash = match by {
        ClientHash::Jhash => jhash(&bytes),
        ClientHash::Murmur => murmur(&bytes),
    };
    // The kernel's reciprocal_scale().
    ((u64::from(hash) * u64::from(Balance::SLOTS)) >> 32) as u32
}

/// The endpoint that has the slot.
pub(super) fn owner(endpoints: &[SocketAddr], slot: u32) -> Option<SocketAddr> {
    let mut best: Option<(u64, SocketAddr)> = None;
    for endpoint in endpoints {
        let candidate = (weight(endpoint, slot), *endpoint);
        let wins = best.is_none_or(|(weight, address)| {
            candidate.0 > weight || (candidate.0 == weight && *endpoint < address)
        });
        if wins {
            best = Some(candidate);
        }
    }
    best.map(|(_, address)| address)
}

fn weight(endpoint: &SocketAddr, slot: u32) -> u64 {
    let mut bytes = match endpoint.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend(endpoint.port().to_be_bytes());
    bytes.extend(slot.to_be_bytes());
    let mut hash: u64 = 14_695_981_039_346_656_037;
    for byte in bytes {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(1_099_511_628_211);
    }
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash ^= hash >> 33;
        hash = hash.wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

/// The kernel's jhash() with our seed. All machines that weft runs on are little-endian, as is this.
fn jhash(key: &[u8]) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(key.len() as u32).wrapping_add(Balance::SEED);
    let [mut a, mut b, mut c] = [start; 3];
    let mut rest = key;
    while rest.len() > 12 {
        a = a.wrapping_add(word(rest, 0));
        b = b.wrapping_add(word(rest, 4));
        c = c.wrapping_add(word(rest, 8));
        for (by_c, by_a, by_b) in [(4, 6, 8), (16, 19, 4)] {
            a = a.wrapping_sub(c) ^ c.rotate_left(by_c);
            c = c.wrapping_add(b);
            b = b.wrapping_sub(a) ^ a.rotate_left(by_a);
            a = a.wrapping_add(c);
            c = c.wrapping_sub(b) ^ b.rotate_left(by_b);
            b = b.wrapping_add(a);
        }
        rest = &rest[12..];
    }
    if rest.is_empty() {
        return c;
    }
    a = a.wrapping_add(word(rest, 0));
    b = b.wrapping_add(word(rest, 4));
    c = c.wrapping_add(word(rest, 8));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

/// MurmurHash3's finalizer (Austin Appleby, public domain), over the address's words made one.
fn murmur(address: &[u8]) -> u32 {
    let mut hash: u32 = 0;
    for word in address.chunks(4) {
        hash = hash.wrapping_mul(0x9e37_79b1) ^ self::word(word, 0).swap_bytes();
    }
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// The four bytes at an offset, zeros past the end.
fn word(bytes: &[u8], offset: usize) -> u32 {
    let byte = |index: usize| u32::from(bytes.get(offset + index).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}
