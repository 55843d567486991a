//! What one round of reading the TUN has gathered for the UDP socket. Pure, and its memory is reused.
//!
//! Packets for the same peer that follow each other and have the same length travel as one "run":
//! one message that the kernel (or the network card) cuts again (UDP_SEGMENT), whatever flows they
//! belong to. Only the last run grows, so nothing is ever overtaken.

use std::io::IoSlice;
use std::ops::Range;

use weft_kernel::tun::MAX_PACKET;

/// Datagrams in one message: `UDP_MAX_SEGMENTS` of include/linux/udp.h before Linux 6.9.
const MAX_COUNT: usize = 64;
/// Bytes in one message: a 16-bit length less the headers of IPv4 and UDP.
const MAX_BYTES: usize = 65_535 - 28;
/// Bytes read before they are sent: a few super-packets, and no more than stays in a processor's own
/// cache between being read, summed and sent. From 64 to 512 KiB no difference was measured.
const ROUND_BYTES: usize = 256 * 1024;
/// Packets read before they are sent: bounds what a packet waits for those behind it.
const ROUND_PACKETS: usize = 128;

/// Packets read, and how they are to be sent.
#[derive(Debug)]
pub(super) struct Batch {
    /// The packets as read, back to back.
    packets: Vec<u8>,
    used: usize,
    count: usize,
    /// Headers made for the packets of super-packets.
    pub(super) headers: Vec<u8>,
    pieces: Vec<Piece>,
    runs: Vec<Run>,
}

/// Bytes that are part of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Of the packets read.
    Read(Range<usize>),
    /// Of the headers made.
    Header(Range<usize>),
}

/// Packets that travel as one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Whom to: a target, as the routes number them.
    pub(super) target: usize,
    /// Length of each packet but perhaps the last.
    pub(super) segment: usize,
    /// How many packets.
    pub(super) count: usize,
    /// Their bytes.
    pub(super) len: usize,
    /// They are known not to fit the path, and must be looked at one by one.
    pub(super) oversize: bool,
    pieces: Range<usize>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            packets: vec![0; ROUND_BYTES + MAX_PACKET],
            used: 0,
            count: 0,
            headers: Vec::new(),
            pieces: Vec::new(),
            runs: Vec::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.count = 0;
        self.headers.clear();
        self.pieces.clear();
        self.runs.clear();
    }

    /// Time to send.
    pub(super) fn is_full(&self) -> bool {
        self.used >= ROUND_BYTES || self.count >= ROUND_PACKETS
    }

    /// Where the next packet is to be read to.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.packets[self.used..self.used + MAX_PACKET]
    }

    /// A packet of this length was read into the space. Returns where it is.
    pub(super) fn took(&mut self, len: usize) -> Range<usize> {
        let start = self.used;
        self.used += len.min(MAX_PACKET);
        self.count += 1;
        start..self.used
    }

    /// The bytes of a packet that was read.
    pub(super) fn packet(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.packets[range]
    }

    /// A packet that was read, and the headers made so far, to be added to.
    pub(super) fn packet_and_headers(&mut self, range: Range<usize>) -> (&[u8], &mut Vec<u8>) {
        (&self.packets[range], &mut self.headers)
    }

    /// Queues one packet, in pieces. `segmentation`: the kernel may be given several in one message.
    pub(super) fn add(&mut self, target: usize, pieces: &[Piece], oversize: bool, segmentation: bool) {
        let len: usize = pieces.iter().map(|piece| piece.range().len()).sum();
        let start = self.pieces.len();
        match self.runs.last_mut() {
            Some(run)
                if segmentation
                    && run.target == target
                    && run.oversize == oversize
                    && len <= run.segment
                    // A shorter packet ends its run.
                    && run.len == run.segment * run.count
                    && run.count < MAX_COUNT
                    && run.len + len <= MAX_BYTES =>
            {
                run.count += 1;
                run.len += len;
            }
            _ => {
                self.runs.push(Run { target, segment: len, count: 1, len, oversize, pieces: start..start });
            }
        }
        let Some(run) = self.runs.last_mut() else { return };
        for piece in pieces {
            let fresh = self.pieces.len() == run.pieces.start;
            match (self.pieces.last_mut(), piece) {
                // Packets are read back to back, so most that are not cut go on where the last ended.
                (Some(Piece::Read(last)), Piece::Read(next)) if !fresh && last.end == next.start => {
                    last.end = next.end;
                }
                _ => self.pieces.push(piece.clone()),
            }
        }
        run.pieces.end = self.pieces.len();
    }

    /// The runs, in the order in which they are to be sent.
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The bytes of all runs, for [`Run::slices`] to choose from.
    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        let bytes = |piece: &Piece| match piece {
            Piece::Read(range) => &self.packets[range.clone()],
            Piece::Header(range) => &self.headers[range.clone()],
        };
        self.pieces.iter().map(|piece| IoSlice::new(bytes(piece))).collect()
    }
}

impl Piece {
    fn range(&self) -> &Range<usize> {
        match self {
            Self::Read(range) | Self::Header(range) => range,
        }
    }
}

impl Run {
    /// This run's bytes among all slices of the batch.
    pub(super) fn slices<'a, 'b>(&self, all: &'a [IoSlice<'b>]) -> &'a [IoSlice<'b>] {
        &all[self.pieces.clone()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Queues packets of these (peer, length), whole or as header and payload.
    fn batch_of(packets: &[(usize, usize)], segmentation: bool) -> (Batch, Vec<(usize, Vec<u8>)>) {
        let (mut batch, mut expected) = (Batch::new(), Vec::new());
        for (index, (peer, len)) in packets.iter().enumerate() {
            let bytes: Vec<u8> = (0..*len).map(|at| (index * 31 + at) as u8).collect();
            batch.space()[..*len].copy_from_slice(&bytes);
            let range = batch.took(*len);
            if index % 3 == 0 && *len > 20 {
                let start = batch.headers.len();
                batch.headers.extend_from_slice(&bytes[..20]);
                let pieces = [Piece::Header(start..start + 20), Piece::Read(range.start + 20..range.end)];
                batch.add(*peer, &pieces, false, segmentation);
            } else {
                batch.add(*peer, &[Piece::Read(range)], false, segmentation);
            }
            expected.push((*peer, bytes));
        }
        (batch, expected)
    }

    /// What the kernel makes of the runs.
    fn sent(batch: &Batch) -> Vec<(usize, Vec<u8>)> {
        let slices = batch.slices();
        let mut packets = Vec::new();
        for run in batch.runs() {
            let bytes: Vec<u8> = run.slices(&slices).iter().flat_map(|slice| slice.iter().copied()).collect();
            assert_eq!(bytes.len(), run.len);
            let cut: Vec<_> = bytes.chunks(run.segment).map(|packet| (run.target, packet.to_vec())).collect();
            assert_eq!(cut.len(), run.count);
            packets.extend(cut);
        }
        packets
    }

    #[test]
    fn runs_end_where_they_must() {
        let table = [
            ("equal lengths", vec![(0, 100), (0, 100), (0, 100)], vec![3]),
            ("a shorter one ends it", vec![(0, 100), (0, 60), (0, 60)], vec![2, 1]),
            ("a longer one begins another", vec![(0, 60), (0, 100)], vec![1, 1]),
            ("another peer", vec![(0, 100), (1, 100), (0, 100)], vec![1, 1, 1]),
            ("64 at most", vec![(0, 40); 65], vec![64, 1]),
            ("64 KiB at most", vec![(0, 1472); 46], vec![44, 2]),
        ];
        for (case, packets, counts) in table {
            let (batch, _) = batch_of(&packets, true);
            assert_eq!(batch.runs().iter().map(|run| run.count).collect::<Vec<_>>(), counts, "{case}");
        }
    }

    #[test]
    fn packets_that_were_read_back_to_back_are_one_slice() {
        let mut batch = Batch::new();
        for _ in 0..10 {
            let range = batch.took(1400);
            batch.add(0, &[Piece::Read(range)], false, true);
        }
        assert_eq!(batch.slices().len(), 1);
    }

    proptest! {
        /// Whatever is queued, the kernel sends exactly those packets, in that order.
        #[test]
        fn nothing_is_lost_or_overtaken(
            packets in proptest::collection::vec((0usize..2, prop_oneof![Just(1400usize), Just(60), 1usize..1500]), 0..100),
            segmentation: bool,
        ) {
            let (batch, expected) = batch_of(&packets, segmentation);
            prop_assert!(batch.runs().iter().all(|run| run.count <= MAX_COUNT && run.len <= MAX_BYTES));
            prop_assert!(segmentation || batch.runs().iter().all(|run| run.count == 1));
            prop_assert_eq!(sent(&batch), expected);
        }
    }
}
