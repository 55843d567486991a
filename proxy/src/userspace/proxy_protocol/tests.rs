//! What is written is read back; examples and limits of the text; any bytes do no harm.

use proptest::prelude::*;

use super::*;

fn addresses() -> impl Strategy<Value = Addresses> {
    let v4 = any::<(u32, u32, u16, u16)>().prop_map(|(source, destination, from, to)| Addresses::V4 {
        source: SocketAddrV4::new(source.into(), from),
        destination: SocketAddrV4::new(destination.into(), to),
    });
    let v6 = any::<(u128, u128, u16, u16)>().prop_map(|(source, destination, from, to)| Addresses::V6 {
        source: SocketAddrV6::new(source.into(), from, 0, 0),
        destination: SocketAddrV6::new(destination.into(), to, 0, 0),
    });
    prop_oneof![v4, v6]
}

fn tlvs() -> impl Strategy<Value = Vec<Tlv>> {
    // Type 3 is the checksum's.
    let kind = any::<u8>().prop_filter("the checksum is no thing of its own", |kind| *kind != 3);
    let one = (kind, prop::collection::vec(any::<u8>(), 0..200));
    prop::collection::vec(one.prop_map(|(kind, value)| Tlv { kind, value }), 0..6)
}

fn headers() -> impl Strategy<Value = Header> {
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    let of = (transport, addresses()).prop_map(|(transport, addresses)| Client::Of(transport, addresses));
    let known = (prop_oneof![4 => of, 1 => Just(Client::Unix)], tlvs());
    prop_oneof![
        9 => known.prop_map(|(client, tlvs)| Header { client, tlvs }),
        1 => Just(Header { client: Client::Own, tlvs: Vec::new() }),
    ]
}

/// Every header in both versions, as far as they can say it.
fn written() -> impl Strategy<Value = (Header, Vec<u8>)> {
    let v1 = prop::option::of(addresses()).prop_map(|addresses| {
        let client = addresses.map_or(Client::Own, |it| Client::Of(Transport::Tcp, it));
        (Header { client, tlvs: Vec::new() }, v1::write(addresses.as_ref()))
    });
    let v2 = (headers(), any::<bool>()).prop_map(|(header, checksum)| {
        let written = v2::write(&header, checksum).unwrap();
        (header, written)
    });
    prop_oneof![v1, v2]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back((header, written) in written(), rest in prop::collection::vec(any::<u8>(), 0..50)) {
        let length = written.len();
        let bytes = [written, rest].concat();
        prop_assert_eq!(read(&bytes), Ok(Some((header, length))), "whatever follows it");
    }

    /// It comes in any pieces: until it is complete, nobody says yes or no.
    #[test]
    fn a_part_asks_for_more((_, written) in written(), part in any::<prop::sample::Index>()) {
        let part = part.index(written.len());
        prop_assert_eq!(read(&written[..part]), Ok(None));
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
    }

    /// Likewise what nearly is a header; and what is read has a length that is there.
    #[test]
    fn damaged_headers_do_no_harm(
        (_, mut written) in written(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for (at, byte) in damage {
            let at = at.index(written.len());
            written[at] = byte;
        }
        if let Ok(Some((_, length))) = read(&written) {
            prop_assert!(length <= written.len());
        }
    }

    /// A checksum tells of any change to addresses and ports.
    #[test]
    fn a_checksum_tells_of_damage(addresses in addresses(), tlvs in tlvs(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let header = Header { client: Client::Of(Transport::Tcp, addresses), tlvs };
        let mut written = v2::write(&header, true).unwrap();
        let addresses = if addresses.source().is_ipv4() { 12 } else { 36 };
        written[16 + at.index(addresses)] ^= 1u8 << bit;
        prop_assert_eq!(read(&written), Err(Malformed::Checksum));
    }

    #[test]
    fn a_line_is_never_too_long(addresses in addresses()) {
        prop_assert!(v1::write(Some(&addresses)).len() <= v1::LONGEST);
    }
}

fn client(source: &str, destination: &str) -> Header {
    let addresses = Addresses::of(source.parse().unwrap(), destination.parse().unwrap()).unwrap();
    Header { client: Client::Of(Transport::Tcp, addresses), tlvs: Vec::new() }
}

#[test]
fn lines_of_version_1() {
    let own = Header { client: Client::Own, tlvs: Vec::new() };
    let good = [
        (
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            client("192.168.0.1:56324", "192.168.0.11:443"),
        ),
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            client("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        ("PROXY TCP6 2001:db8::1 ::1 0 1\r\n", client("[2001:db8::1]:0", "[::1]:1")),
        ("PROXY UNKNOWN\r\n", own.clone()),
        ("PROXY UNKNOWN whatever 1 2 3\r\n", own.clone()),
    ];
    for (line, expected) in good {
        assert_eq!(read(format!("{line}GET /").as_bytes()), Ok(Some((expected, line.len()))), "{line}");
    }
    let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(v1::LONGEST - 16));
    assert_eq!(read(longest.as_bytes()), Ok(Some((own, v1::LONGEST))));
    let bad = [
        "PROXY\r\n",
        "PROXY \r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
        "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
        "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        "proxy UNKNOWN\r\n",
        "GET / HTTP/1.1\r\n",
    ];
    for line in bad {
        read(line.as_bytes()).expect_err(line);
    }
    let endless = format!("PROXY UNKNOWN {}\r\n", "f".repeat(v1::LONGEST - 15));
    assert_eq!(read(endless.as_bytes()), Err(Malformed::Endless));
}

/// Byte by byte, as the text has it.
#[test]
fn headers_of_version_2() {
    let of = |command: u8, family: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&v2::SIGNATURE[..], &[command, family], &length, body].concat()
    };
    let v4 = [192, 0, 2, 7, 192, 0, 2, 1, 0xc3, 0x50, 0, 80];
    let expected = client("192.0.2.7:50000", "192.0.2.1:80");
    assert_eq!(read(&of(0x21, 0x11, &v4)), Ok(Some((expected.clone(), 28))));
    assert_eq!(v2::write(&expected, false).unwrap(), of(0x21, 0x11, &v4));
    let alpn = [&v4[..], &[0x01, 0, 2, b'h', b'2'], &[0x04, 0, 0]].concat();
    let (header, length) = read(&of(0x21, 0x11, &alpn)).unwrap().unwrap();
    assert_eq!((header.client, length), (expected.client, 36));
    let tlv = |kind, value: &[u8]| Tlv { kind, value: value.to_vec() };
    assert_eq!(header.tlvs, [tlv(1, b"h2"), tlv(4, b"")]);
    // The proxy's own connection: whatever it says is skipped.
    let own = Header { client: Client::Own, tlvs: Vec::new() };
    assert_eq!(read(&of(0x20, 0x11, &[1, 2, 3])), Ok(Some((own.clone(), 19))));
    assert_eq!(read(&of(0x21, 0x00, &[])), Ok(Some((own, 16))));
    let unix = Header { client: Client::Unix, tlvs: Vec::new() };
    assert_eq!(read(&of(0x21, 0x31, &[7; 216])), Ok(Some((unix, 232))));
    for (bytes, expected) in [
        (of(0x22, 0x11, &v4), Malformed::Command(0x22)),
        (of(0x11, 0x11, &v4), Malformed::Command(0x11)),
        (of(0x21, 0x13, &v4), Malformed::Family(0x13)),
        (of(0x21, 0x41, &v4), Malformed::Family(0x41)),
        (of(0x21, 0x11, &v4[..11]), Malformed::Cut),
        (of(0x21, 0x21, &v4), Malformed::Cut),
        (of(0x21, 0x11, &alpn[..15]), Malformed::Cut),
        (of(0x21, 0x11, &alpn[..13]), Malformed::Cut),
        (of(0x21, 0x11, &[&v4[..], &[3, 0, 4, 0, 0, 0, 0]].concat()), Malformed::Checksum),
        (of(0x21, 0x11, &[&v4[..], &[3, 0, 1, 0]].concat()), Malformed::Checksum),
        (of(0x21, 0x11, &[0; 4081]), Malformed::TooLong(4097)),
    ] {
        assert_eq!(read(&bytes), Err(expected), "{bytes:x?}");
    }
    let long = Header { tlvs: vec![Tlv { kind: 5, value: vec![0; 5000] }], ..expected };
    assert_eq!(v2::write(&long, false), Err(Malformed::TooLong(5031)));
}
