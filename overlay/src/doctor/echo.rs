//! The doctor's question and its answer on the wire: UDP between two hosts' tunnel addresses.
//!
//! ```text
//! question  "weft?1" 0 0 | nonce u64 | number u32 | zeros, up to any length
//! answer    "weft!1" 0 0 | nonce u64 | number u32 | length of the question u32 | Unix time in ms u64 | version, 16 bytes
//! ```
//!
//! All numbers are big-endian. A question shorter than the answer is none, so nobody gets more bytes
//! than he sends.

/// Where responders listen, on the tunnel address alone. Unassigned by IANA, near VXLAN's 8472.
pub const PORT: u16 = 8477;
/// The length of an answer, and the least length of a question.
pub const ANSWER_LEN: usize = 48;

const QUESTION: [u8; 8] = *b"weft?1\0\0";
const ANSWER: [u8; 8] = *b"weft!1\0\0";
const VERSION_LEN: usize = 16;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Chosen by who asks, anew each time.
    pub nonce: u64,
    /// Which of several.
    pub number: u32,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The question's.
    pub nonce: u64,
    /// The question's.
    pub number: u32,
    /// How long the question was when it arrived.
    pub length: u32,
    /// When it was answered, by the answerer's clock: milliseconds since 1970.
    pub unix_ms: u64,
    /// The answerer's version of weft.
    pub version: String,
}

impl Question {
    /// `length` bytes, or as many as a question needs.
    pub fn encode(self, length: usize) -> Vec<u8> {
        let mut bytes = [&QUESTION[..], &self.nonce.to_be_bytes(), &self.number.to_be_bytes()].concat();
        bytes.resize(length.max(ANSWER_LEN), 0);
        bytes
    }

    /// `None`: no question.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&QUESTION).filter(|_| bytes.len() >= ANSWER_LEN)?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        Some(Self { nonce: u64::from_be_bytes(*nonce), number: u32::from_be_bytes(*number) })
    }
}

impl Answer {
    /// The answer to a question of `length` bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = [
            &ANSWER[..],
            &self.nonce.to_be_bytes(),
            &self.number.to_be_bytes(),
            &self.length.to_be_bytes(),
            &self.unix_ms.to_be_bytes(),
        ]
        .concat();
        bytes.extend(self.version.bytes().take(VERSION_LEN));
        bytes.resize(ANSWER_LEN, 0);
        bytes
    }

    /// `None`: no answer.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&ANSWER)?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (unix_ms, rest) = rest.split_first_chunk()?;
        let version = rest.get(..VERSION_LEN)?;
        let clean = |byte: &u8| byte.is_ascii_graphic();
        Some(Self {
            nonce: u64::from_be_bytes(*nonce),
            number: u32::from_be_bytes(*number),
            length: u32::from_be_bytes(*length),
            unix_ms: u64::from_be_bytes(*unix_ms),
            version: version.iter().copied().filter(clean).map(char::from).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(nonce: u64, number: u32, length in 0usize..2000, unix_ms: u64) {
            let question = Question { nonce, number };
            let bytes = question.encode(length);
            prop_assert_eq!(Question::decode(&bytes), Some(question));
            prop_assert_eq!(bytes.len(), length.max(ANSWER_LEN));
            let answer = Answer { nonce, number, length: 7, unix_ms, version: "0.1.0".into() };
            prop_assert_eq!(answer.encode().len(), ANSWER_LEN, "never longer than a question");
            prop_assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }

        #[test]
        fn no_bytes_make_them_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), cut in 0usize..48) {
            let _ = (Question::decode(&bytes), Answer::decode(&bytes));
            let short = Question { nonce: 1, number: 2 }.encode(0);
            prop_assert_eq!(Question::decode(&short[..cut]), None);
            let answer = Answer { nonce: 1, number: 2, length: 3, unix_ms: 4, version: String::new() };
            prop_assert_eq!(Answer::decode(&answer.encode()[..cut]), None);
        }
    }
}
