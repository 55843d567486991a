//! Version 1 (section 2.1): `PROXY TCP4 192.0.2.7 192.0.2.1 50000 80` and the end of a line.

use std::net::SocketAddr;
use std::str::FromStr;

use super::{Addresses, Client, Header, Malformed, Transport};

/// How it begins.
pub const SIGNATURE: &[u8] = b"PROXY ";
/// The most bytes that a line has, with its end.
pub const LONGEST: usize = 107;
const END: &[u8] = b"\r\n";

/// As [`super::read`], of this version alone.
///
/// # Errors
/// When no header begins so, whatever follows.
pub fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if !super::is_begun(bytes, SIGNATURE) {
        return Err(Malformed::Signature);
    }
    let within = bytes.get(..LONGEST).unwrap_or(bytes);
    let Some(at) = within.windows(END.len()).position(|window| window == END) else {
        return if bytes.len() < LONGEST { Ok(None) } else { Err(Malformed::Endless) };
    };
    let line = within.get(SIGNATURE.len()..at).ok_or(Malformed::Line)?;
    let client = client(line).ok_or(Malformed::Line)?;
    Ok(Some((Header { client, tlvs: Vec::new() }, at + END.len())))
}

/// The line for a client of TCP, or for none that is known. Version 1 knows no other.
pub fn write(client: Option<&Addresses>) -> Vec<u8> {
    let Some(addresses) = client else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let (source, destination) = (addresses.source(), addresses.destination());
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn client(line: &[u8]) -> Option<Client> {
    let line = std::str::from_utf8(line).ok()?;
    // What follows is to be ignored.
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Some(Client::Own);
    }
    // One space between any two, and nothing after the last.
    let [family, source, destination, from, to] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let addresses = match family {
        "TCP4" => addresses::<std::net::Ipv4Addr>(source, destination, from, to),
        "TCP6" => addresses::<std::net::Ipv6Addr>(source, destination, from, to),
        _ => None,
    };
    addresses.map(|addresses| Client::Of(Transport::Tcp, addresses))
}

fn addresses<A: FromStr + Into<std::net::IpAddr>>(
    source: &str,
    destination: &str,
    from: &str,
    to: &str,
) -> Option<Addresses> {
    let address = |text: &str| text.parse::<A>().ok().map(Into::into);
    let source = SocketAddr::new(address(source)?, port(from)?);
    Addresses::of(source, SocketAddr::new(address(destination)?, port(to)?))
}

/// Decimal, without a sign and without zeros in front.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}
