//! The PROXY protocol: what a proxy says of a client before it passes on its first byte. Pure.
//!
//! Both versions, read and written, after haproxy's `doc/proxy-protocol.txt` (2020/03/05), whose sections
//! are named where a rule is from them. [`v1`] is a line of text, [`v2`] is binary and has room for more
//! ([`Tlv`]). What is read may be anything: nothing here panics on it, and nothing is taken that the text
//! calls invalid.

pub mod crc32c;
#[cfg(test)]
mod tests;
pub mod v1;
pub mod v2;

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

/// What is said of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose it is.
    pub client: Client,
    /// What else is said, in version 2. The checksum is not among it: it is checked, and made anew.
    pub tlvs: Vec<Tlv>,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The proxy's own, such as a health check (`LOCAL`), or nobody knows (`UNKNOWN`, `UNSPEC`): the
    /// connection's own addresses count.
    Own,
    /// Somebody's who spoke to the proxy over a socket of the Unix kind: it has no address.
    Unix,
    /// That of a client, which came from one address to the other.
    Of(Transport, Addresses),
}

/// How the client spoke to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `STREAM`.
    Tcp,
    /// `DGRAM`.
    Udp,
}

/// Where a client came from, and where it wanted to go: of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// The client.
        source: SocketAddrV4,
        /// Where it connected to.
        destination: SocketAddrV4,
    },
    /// IPv6, without scope and flow label, for which the protocol has no room.
    V6 {
        /// The client.
        source: SocketAddrV6,
        /// Where it connected to.
        destination: SocketAddrV6,
    },
}

/// A further thing that is said, by its type (section 2.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tlv {
    /// What it is.
    pub kind: u8,
    /// What it says.
    pub value: Vec<u8>,
}

/// Why bytes are no header. The connection is of no use then (section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Neither version begins so.
    #[error("it does not begin as the PROXY protocol does")]
    Signature,
    /// The line of version 1 does not end where it has to.
    #[error("its first line has no end within {} bytes", v1::LONGEST)]
    Endless,
    /// The line of version 1 is none.
    #[error("its first line is not as version 1 has it")]
    Line,
    /// Neither of the commands of version 2.
    #[error("version and command are {0:#04x}, expected 0x20 or 0x21")]
    Command(u8),
    /// No family and transport of version 2.
    #[error("family and transport are {0:#04x}, which nothing has")]
    Family(u8),
    /// It is longer than what anybody says.
    #[error("it has {0} bytes, more than {longest}", longest = v2::LONGEST)]
    TooLong(usize),
    /// It ends within an address or a further thing.
    #[error("its length ends within something")]
    Cut,
    /// What it said is not what was sent.
    #[error("its checksum is wrong")]
    Checksum,
}

impl Addresses {
    /// `None` if they are of two families.
    pub fn of(source: SocketAddr, destination: SocketAddr) -> Option<Self> {
        match (source, destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => Some(Self::V4 { source, destination }),
            (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
                let bare = |address: SocketAddrV6| SocketAddrV6::new(*address.ip(), address.port(), 0, 0);
                Some(Self::V6 { source: bare(source), destination: bare(destination) })
            }
            _ => None,
        }
    }

    /// The client's.
    pub fn source(&self) -> SocketAddr {
        match self {
            Self::V4 { source, .. } => (*source).into(),
            Self::V6 { source, .. } => (*source).into(),
        }
    }

    /// Where it connected to.
    pub fn destination(&self) -> SocketAddr {
        match self {
            Self::V4 { destination, .. } => (*destination).into(),
            Self::V6 { destination, .. } => (*destination).into(),
        }
    }
}

/// Reads a header of either version at the beginning of these bytes: it, and how many bytes it has.
/// `None` if it may be one, and more is needed to tell.
///
/// # Errors
/// When no header begins so, whatever follows.
pub fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if is_begun(bytes, &v2::SIGNATURE) {
        v2::read(bytes)
    } else if is_begun(bytes, v1::SIGNATURE) {
        v1::read(bytes)
    } else {
        Err(Malformed::Signature)
    }
}

/// As far as both go, they are the same.
fn is_begun(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(one, other)| one == other)
}
