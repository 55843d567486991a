//! A stream of bytes as lines. Pure.

use bytes::{Buf as _, Bytes, BytesMut};

/// The bytes of which no line was made yet.
#[derive(Debug)]
pub(super) struct Lines {
    begun: BytesMut,
    /// How far `begun` has been searched in vain.
    searched: usize,
    longest: usize,
}

/// A line is longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// Lines of at most so many bytes.
    pub(super) fn up_to(longest: usize) -> Self {
        Self { begun: BytesMut::new(), searched: 0, longest }
    }

    /// More came.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
    }

    /// The next whole line, without its end; empty ones are left out.
    ///
    /// # Errors
    /// That it is too long; whether it is whole or not.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let end = self.begun[self.searched..].iter().position(|byte| *byte == b'\n');
            let length = end.map_or(self.begun.len(), |end| self.searched + end);
            if length > self.longest {
                return Err(TooLong);
            }
            if end.is_none() {
                self.searched = length;
                return Ok(None);
            }
            let line = self.begun.split_to(length).freeze();
            self.begun.advance(1);
            self.searched = 0;
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(lines: &mut Lines) -> Vec<Bytes> {
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_lines_are_the_same(text in "[ab \r\n]{0,60}", cuts in prop::collection::vec(1usize..9, 1..60)) {
            let mut lines = Lines::up_to(60);
            let (mut rest, mut found) = (text.as_bytes(), Vec::new());
            for cut in cuts.iter().cycle().take(60) {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                lines.extend(now);
                found.extend(all(&mut lines));
                rest = later;
            }
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let wanted: Vec<&str> = whole.split('\n').filter(|line| !line.trim().is_empty()).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_noticed_before_its_end() {
        let mut lines = Lines::up_to(4);
        lines.extend(b"four\nfiver");
        assert_eq!(lines.next(), Ok(Some(Bytes::from_static(b"four"))));
        assert_eq!(lines.next(), Err(TooLong));
    }
}
