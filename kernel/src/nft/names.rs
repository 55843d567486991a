//! The names and comments of nftables objects, with nftables' rules for them.

use std::fmt;
use std::str::FromStr;

/// `NFT_NAME_MAXLEN` less the terminating NUL.
const NAME_MAX: usize = 255;

/// `NFTNL_UDATA_COMMENT_MAXLEN` (128, libnftnl) less the terminating NUL.
const COMMENT_MAX: usize = 127;

/// Why a string names no nftables object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no nftables name: a letter or `_`, then letters, digits and `_ - . /`, at most 255 bytes")]
pub struct BadName(pub String);

/// What `nft` itself can read back: its scanner's `string` token.
fn is_name(raw: &str) -> bool {
    let starts = raw.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on = raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    starts && goes_on && raw.len() <= NAME_MAX
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as the kernel knows it.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// A name the kernel told us; others may use characters that `nft` cannot read.
            pub(super) fn observed(raw: &[u8]) -> Self {
                Self(String::from_utf8_lossy(raw).into_owned())
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(raw: &str) -> Result<Self, BadName> {
                if is_name(raw) { Ok(Self(raw.to_owned())) } else { Err(BadName(raw.to_owned())) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// A table's name, unique within its family.
    TableName;
    /// A chain's name, unique within its table.
    ChainName;
    /// A set's or map's name, unique within its table.
    SetName;
}

/// A remark that `nft list` shows: at most 127 bytes, without quotes and control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comment(String);

impl Comment {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Leaves out what a comment cannot hold, and cuts it to length.
impl From<&str> for Comment {
    fn from(raw: &str) -> Self {
        let mut text: String = raw.chars().filter(|c| *c != '"' && !c.is_control()).collect();
        let mut end = text.len().min(COMMENT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Self(text)
    }
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_nft_can_read() {
        let long = "x".repeat(256);
        let table = [
            ("weft-blue", true),
            ("_x.y/z", true),
            ("", false),
            ("1st", false),
            ("-x", false),
            ("a b", false),
            ("a\"b", false),
            ("ä", false),
            (long.as_str(), false),
            (&long[1..], true),
        ];
        for (raw, valid) in table {
            assert_eq!(raw.parse::<TableName>().is_ok(), valid, "{raw:?}");
        }
    }

    #[test]
    fn comments_are_made_to_fit() {
        assert_eq!(Comment::from("say \"hi\"\n").as_str(), "say hi");
        assert_eq!(Comment::from("ä".repeat(100).as_str()).as_str(), "ä".repeat(63));
    }
}
