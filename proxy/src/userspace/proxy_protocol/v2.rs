//! Version 2 (section 2.2): binary, of a length that it tells, with room for more than addresses.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::crc32c::crc32c;
use super::{Addresses, Client, Header, Malformed, Tlv, Transport};

/// How it begins.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Before addresses: signature, version and command, family and transport, length.
const FIXED: usize = 16;
/// The most bytes that are read. The length would allow for 65,551; nobody has as much to say, and
/// whoever waits for it holds them.
pub const LONGEST: usize = 4096;

/// `PP2_TYPE_CRC32C`.
const CHECKSUM: u8 = 0x03;
const CHECKSUM_LEN: usize = 4;
/// Type and length of a further thing.
const TLV: usize = 3;

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// As [`super::read`], of this version alone.
///
/// # Errors
/// When no header begins so, whatever follows.
pub fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if !super::is_begun(bytes, &SIGNATURE) {
        return Err(Malformed::Signature);
    }
    // What is wrong already does not get better.
    let command = bytes.get(SIGNATURE.len()).copied();
    if let Some(other) = command.filter(|command| ![LOCAL, PROXY].contains(command)) {
        return Err(Malformed::Command(other));
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + length > LONGEST {
        return Err(Malformed::TooLong(FIXED + length));
    }
    let block = block(family)?;
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let whole = bytes.get(..FIXED + length).ok_or(Malformed::Cut)?;
    // Of the proxy's own connections everything that follows is to be skipped.
    if command == LOCAL {
        return Ok(Some((Header { client: Client::Own, tlvs: Vec::new() }, whole.len())));
    }
    let (addresses, further) = body.split_at_checked(block.len()).ok_or(Malformed::Cut)?;
    let client = block.read(addresses).ok_or(Malformed::Cut)?;
    let tlvs = tlvs(further, whole)?;
    Ok(Some((Header { client, tlvs }, whole.len())))
}

/// The header, with a checksum if that is asked for.
///
/// # Errors
/// When it would be longer than [`LONGEST`].
pub fn write(header: &Header, checksum: bool) -> Result<Vec<u8>, Malformed> {
    let (command, family, addresses) = match header.client {
        Client::Own => (LOCAL, 0x00, Vec::new()),
        // Nobody's business but the proxy's: the path is left empty.
        Client::Unix => (PROXY, 0x31, vec![0; UNIX]),
        Client::Of(transport, addresses) => {
            let transport = match transport {
                Transport::Tcp => 0x1,
                Transport::Udp => 0x2,
            };
            let family = if addresses.source().is_ipv4() { 0x10 } else { 0x20 };
            (PROXY, family | transport, octets(&addresses))
        }
    };
    let mut written = SIGNATURE.to_vec();
    written.extend([command, family, 0, 0]);
    written.extend(addresses);
    let mut checked = None;
    if checksum {
        checked = Some(written.len() + TLV);
        written.extend(tlv(CHECKSUM, &[0; CHECKSUM_LEN])?);
    }
    for Tlv { kind, value } in &header.tlvs {
        written.extend(tlv(*kind, value)?);
    }
    let whole = written.len();
    let length = u16::try_from(whole - FIXED).ok().filter(|_| whole <= LONGEST);
    let length = length.ok_or(Malformed::TooLong(whole))?.to_be_bytes();
    written.splice(FIXED - length.len()..FIXED, length);
    if let Some(at) = checked {
        let sum = crc32c(&written).to_be_bytes();
        written.splice(at..at + sum.len(), sum);
    }
    Ok(written)
}

fn tlv(kind: u8, value: &[u8]) -> Result<Vec<u8>, Malformed> {
    let length = u16::try_from(value.len()).map_err(|_| Malformed::TooLong(value.len()))?;
    Ok([&[kind], &length.to_be_bytes()[..], value].concat())
}

/// What kind of addresses there are.
#[derive(Clone, Copy, Debug)]
enum Block {
    Unspecified,
    V4(Transport),
    V6(Transport),
    Unix,
}

/// The length of two paths.
const UNIX: usize = 216;

/// Whatever is not assigned is to be refused.
fn block(family: u8) -> Result<Block, Malformed> {
    match family {
        0x00 => Ok(Block::Unspecified),
        0x11 => Ok(Block::V4(Transport::Tcp)),
        0x12 => Ok(Block::V4(Transport::Udp)),
        0x21 => Ok(Block::V6(Transport::Tcp)),
        0x22 => Ok(Block::V6(Transport::Udp)),
        0x31 | 0x32 => Ok(Block::Unix),
        // Of an unspecified family, or over an unspecified transport: to be taken for unknown.
        0x01 | 0x02 | 0x10 | 0x20 | 0x30 => Ok(Block::Unspecified),
        other => Err(Malformed::Family(other)),
    }
}

impl Block {
    const fn len(self) -> usize {
        match self {
            Self::Unspecified => 0,
            Self::V4(_) => 12,
            Self::V6(_) => 36,
            Self::Unix => UNIX,
        }
    }

    fn read(self, bytes: &[u8]) -> Option<Client> {
        let ports = |at: usize| {
            let port = |at: usize| bytes.get(at..)?.first_chunk().map(|port| u16::from_be_bytes(*port));
            Some((port(at)?, port(at + 2)?))
        };
        match self {
            Self::Unspecified => Some(Client::Own),
            Self::Unix => Some(Client::Unix),
            Self::V4(transport) => {
                let address = |at: usize| Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?));
                let (from, to) = ports(8)?;
                let source = SocketAddr::from((address(0)?, from));
                let addresses = Addresses::of(source, SocketAddr::from((address(4)?, to)))?;
                Some(Client::Of(transport, addresses))
            }
            Self::V6(transport) => {
                let address = |at: usize| Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?));
                let (from, to) = ports(32)?;
                let source = SocketAddr::from((address(0)?, from));
                let addresses = Addresses::of(source, SocketAddr::from((address(16)?, to)))?;
                Some(Client::Of(transport, addresses))
            }
        }
    }
}

fn octets(addresses: &Addresses) -> Vec<u8> {
    let mut octets = match addresses {
        Addresses::V4 { source, destination } => [source.ip().octets(), destination.ip().octets()].concat(),
        Addresses::V6 { source, destination } => [source.ip().octets(), destination.ip().octets()].concat(),
    };
    octets.extend(addresses.source().port().to_be_bytes());
    octets.extend(addresses.destination().port().to_be_bytes());
    octets
}

/// Everything after the addresses; `whole` is what a checksum is of.
fn tlvs(mut further: &[u8], whole: &[u8]) -> Result<Vec<Tlv>, Malformed> {
    let mut tlvs = Vec::new();
    while let Some((kind, rest)) = further.split_first() {
        let (length, rest) = rest.split_first_chunk().ok_or(Malformed::Cut)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (value, rest) = rest.split_at_checked(length).ok_or(Malformed::Cut)?;
        if *kind == CHECKSUM {
            verify(value, whole.len() - rest.len() - length, whole)?;
        } else {
            tlvs.push(Tlv { kind: *kind, value: value.to_vec() });
        }
        further = rest;
    }
    Ok(tlvs)
}

/// The checksum is of the header with zeros in its place (section 2.2.3).
fn verify(value: &[u8], at: usize, whole: &[u8]) -> Result<(), Malformed> {
    let sum: [u8; CHECKSUM_LEN] = value.try_into().map_err(|_| Malformed::Checksum)?;
    let mut zeroed = whole.to_vec();
    zeroed.get_mut(at..at + CHECKSUM_LEN).ok_or(Malformed::Cut)?.fill(0);
    if u32::from_be_bytes(sum) == crc32c(&zeroed) { Ok(()) } else { Err(Malformed::Checksum) }
}
