//! The internet checksum (RFC 1071), over wide accumulators.
//!
//! Every byte that crosses the tunnel is summed once on each side, so this is the hot loop. Sums
//! are kept in the machine's byte order: RFC 1071 section 2(B) shows that the result is the same
//! after a final swap, which storing the two bytes in machine order does for free.

/// A one's-complement sum in progress. Pieces must begin at even offsets of what is summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd last one counts as if a zero followed.
    pub(super) fn bytes(self, data: &[u8]) -> Self {
        self.folded(sum(data))
    }

    /// Adds a number as it would stand in a packet.
    pub(super) fn number(self, value: u16) -> Self {
        self.folded(u64::from(value.to_be()))
    }

    /// Takes a number away that was added before.
    pub(super) fn without(self, value: u16) -> Self {
        self.number(!value)
    }

    /// Adds two bytes that stand in a packet.
    pub(super) fn field(self, raw: [u8; 2]) -> Self {
        self.folded(u64::from(u16::from_ne_bytes(raw)))
    }

    /// The sum itself, as an unfinished checksum field holds it.
    pub(super) fn partial(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The checksum: the sum's complement.
    pub(super) fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The checksum as UDP writes it: zero means "none" there, so it is sent as its twin (RFC 768).
    pub(super) fn udp_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }

    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Keeps the accumulator below 2^33, so that no chain of additions overflows it.
    fn folded(self, more: u64) -> Self {
        let halves = (more & 0xffff_ffff) + (more >> 32) + self.0;
        Self((halves & 0xffff_ffff) + (halves >> 32))
    }
}

#[cfg(target_arch = "x86_64")]
fn sum(data: &[u8]) -> u64 {
    // Below this length the choice costs more than it brings.
    if data.len() >= 256 && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been asked for AVX2, the only requirement of the callee.
        return unsafe { sum_avx2(data) };
    }
    sum_words(data)
}

#[cfg(not(target_arch = "x86_64"))]
fn sum(data: &[u8]) -> u64 {
    sum_words(data)
}

/// The same loop, compiled for 32-byte registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(data: &[u8]) -> u64 {
    sum_words(data)
}

/// Sums 32-bit halves of 64-bit words in two columns: no carries between lanes, so the compiler
/// turns it into vector code. A lane grows by less than 2^32 a step; even 2^31 steps fit.
#[inline(always)]
fn sum_words(data: &[u8]) -> u64 {
    const LANES: usize = 16;
    let mut low = [0u64; LANES];
    let mut high = [0u64; LANES];
    let mut blocks = data.chunks_exact(8 * LANES);
    for block in &mut blocks {
        for (lane, word) in block.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_ne_bytes(*word);
            low[lane] += word & 0xffff_ffff;
            high[lane] += word >> 32;
        }
    }
    let mut total: u64 = low.iter().chain(&high).map(|lane| (lane & 0xffff_ffff) + (lane >> 32)).sum();
    let (words, tail) = blocks.remainder().as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0u8; 4];
    last[..tail.len()].copy_from_slice(tail);
    total + u64::from(u32::from_ne_bytes(last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 4.1, word by word.
    fn plain(data: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&data).partial(), [0xdd, 0xf2]);
    }

    #[test]
    fn all_ones_of_any_length_do_not_overflow() {
        for len in [0, 1, 7, 127, 128, 129, 255, 256, 257, 65_535] {
            let data = vec![0xff; len];
            assert_eq!(Sum::default().bytes(&data).checksum(), plain(&data), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn it_is_the_plain_sum(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::default().bytes(&data).checksum(), plain(&data));
            prop_assert_eq!(sum_words(&data) % 0xffff, sum(&data) % 0xffff);
        }

        #[test]
        fn pieces_add_up(data in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0usize..1500) {
            let (head, tail) = data.split_at((cut * 2).min(data.len() & !1));
            prop_assert_eq!(Sum::default().bytes(head).bytes(tail).checksum(), plain(&data));
        }

        #[test]
        fn what_was_added_can_be_taken_away(data in proptest::collection::vec(1u8.., 2..60), value: u16) {
            let sum = Sum::default().bytes(&data);
            prop_assert_eq!(sum.number(value).without(value).checksum(), sum.checksum());
        }
    }
}
