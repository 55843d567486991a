//! Tracked flows as data, and how they stand in messages: what dumps and events have in common.
//! Pure; trusts no byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::nft::wire::{Attrs, Malformed, Message, Writer};

/// `CTA_*`: a flow's attributes.
pub(super) mod attr {
    pub(in super::super) const TUPLE_ORIG: u16 = 1;
    pub(in super::super) const TUPLE_REPLY: u16 = 2;
    pub(in super::super) const COUNTERS_ORIG: u16 = 9;
    pub(in super::super) const COUNTERS_REPLY: u16 = 10;
    pub(in super::super) const ID: u16 = 12;
    pub(in super::super) const ZONE: u16 = 18;
    pub(in super::super) const FILTER: u16 = 25;
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    pub(super) const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// `IPPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A direction of a flow: from whom to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// From whom.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// A tracked flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// As its first packet came, before any translation.
    pub original: Tuple,
    /// As an answer comes: its source is who really answers.
    pub reply: Tuple,
    /// Tells it from a later flow with the same tuples, unless that one lies at the same place in the
    /// kernel's memory (`nf_ct_get_id`).
    pub id: u32,
    /// The zone, 0 unless somebody uses zones.
    pub zone: u16,
    /// What it has carried; nothing unless `net.netfilter.nf_conntrack_acct` was on when it began.
    pub carried: Carried,
}

/// What a flow has carried, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Carried {
    /// As its first packet went.
    pub original: Counted,
    /// Back.
    pub reply: Counted,
}

/// Packets as the kernel handles them, so that many segments which it received as one are one; and their
/// bytes from the IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counted {
    /// How many.
    pub packets: u64,
    /// How many bytes they had.
    pub bytes: u64,
}

impl Flow {
    /// Its destination was translated: who answers is not who was asked.
    pub fn is_translated(&self) -> bool {
        self.reply.source != self.original.destination
    }
}

/// Writes a tuple.
pub(super) fn tuple(w: &mut Writer, protocol: Protocol, tuple: &Tuple) {
    w.nest(1, |w| match (tuple.source.ip(), tuple.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            w.bytes(1, &source.octets());
            w.bytes(2, &destination.octets());
        }
        (source, destination) => {
            w.bytes(3, &v6(source).octets());
            w.bytes(4, &v6(destination).octets());
        }
    });
    w.nest(2, |w| {
        w.bytes(1, &[protocol.number()]);
        w.bytes(2, &tuple.source.port().to_be_bytes());
        w.bytes(3, &tuple.destination.port().to_be_bytes());
    });
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A flow, if it is of a protocol with ports.
pub(super) fn read(message: &Message<'_>) -> Result<Option<Flow>, Malformed> {
    let attrs = message.attrs();
    let (number, original) = read_tuple(attrs.need(attr::TUPLE_ORIG)?.attrs())?;
    let Some(protocol) = Protocol::ALL.into_iter().find(|protocol| protocol.number() == number) else {
        return Ok(None);
    };
    let (_, reply) = read_tuple(attrs.need(attr::TUPLE_REPLY)?.attrs())?;
    let counted = |direction: u16| -> Result<Counted, Malformed> {
        let Some(counters) = attrs.find(direction)? else { return Ok(Counted::default()) };
        let counters = counters.attrs();
        Ok(Counted { packets: counters.need(1)?.be64()?, bytes: counters.need(2)?.be64()? })
    };
    let carried = Carried { original: counted(attr::COUNTERS_ORIG)?, reply: counted(attr::COUNTERS_REPLY)? };
    let zone =
        attrs.find(attr::ZONE)?.and_then(|zone| zone.value.try_into().ok()).map_or(0, u16::from_be_bytes);
    let id = attrs.find_be32(attr::ID)?.unwrap_or(0);
    Ok(Some(Flow { protocol, original, reply, id, zone, carried }))
}

/// A tuple with its protocol's number. Protocols without ports have port 0.
fn read_tuple(attrs: Attrs<'_>) -> Result<(u8, Tuple), Malformed> {
    let (ip, proto) = (attrs.need(1)?.attrs(), attrs.need(2)?.attrs());
    let address = |v4: u16, v6: u16| -> Result<IpAddr, Malformed> {
        let wrong = Malformed("an address has a wrong length");
        if let Some(found) = ip.find(v4)? {
            let octets: [u8; 4] = found.value.try_into().map_err(|_| wrong)?;
            return Ok(Ipv4Addr::from(octets).into());
        }
        let octets: [u8; 16] = ip.need(v6)?.value.try_into().map_err(|_| wrong)?;
        Ok(Ipv6Addr::from(octets).into())
    };
    let port = |attr: u16| -> Result<u16, Malformed> {
        Ok(proto.find(attr)?.and_then(|port| port.value.try_into().ok()).map_or(0, u16::from_be_bytes))
    };
    let number = proto.need(1)?.value.first().copied().ok_or(Malformed("a protocol without a number"))?;
    let source = SocketAddr::new(address(1, 3)?, port(2)?);
    let destination = SocketAddr::new(address(2, 4)?, port(3)?);
    Ok((number, Tuple { source, destination }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::wire::{Head, Messages};
    use proptest::prelude::*;

    /// A message as the kernel writes it, about this flow.
    fn written(flow: &Flow, counts: bool) -> Vec<u8> {
        let mut writer = Writer::default();
        let head = Head { kind: 1 << 8, flags: 0, seq: 7, family: 2, resource: 0 };
        writer.message(head, |w| {
            w.nest(attr::TUPLE_ORIG, |w| tuple(w, flow.protocol, &flow.original));
            w.nest(attr::TUPLE_REPLY, |w| tuple(w, flow.protocol, &flow.reply));
            w.be32(attr::ID, flow.id);
            if flow.zone != 0 {
                w.bytes(attr::ZONE, &flow.zone.to_be_bytes());
            }
            let directions =
                [(attr::COUNTERS_ORIG, flow.carried.original), (attr::COUNTERS_REPLY, flow.carried.reply)];
            for (direction, counted) in directions.into_iter().filter(|_| counts) {
                w.nest(direction, |w| {
                    w.be64(1, counted.packets);
                    w.be64(2, counted.bytes);
                });
            }
        });
        writer.finish().unwrap()
    }

    fn read_back(bytes: &[u8]) -> Option<Flow> {
        read(&Messages(bytes).next().unwrap().unwrap()).unwrap()
    }

    #[test]
    fn a_flow_is_read_as_it_was_written() {
        let tuple = |source: &str, destination: &str| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        let carried = Carried {
            original: Counted { packets: 3, bytes: 1 << 40 },
            reply: Counted { packets: u64::MAX, bytes: 0 },
        };
        let v4 = Flow {
            protocol: Protocol::Tcp,
            original: tuple("10.1.0.9:4000", "10.96.0.10:80"),
            reply: tuple("10.1.0.5:8080", "10.1.0.9:4000"),
            id: 0xfedc_ba98,
            zone: 0,
            carried,
        };
        let v6 = Flow {
            protocol: Protocol::Sctp,
            original: tuple("[fd00:9::1]:4000", "[fd00:96::10]:80"),
            reply: tuple("[fd00:1::5]:8080", "[fd00:9::1]:4000"),
            zone: 9,
            ..v4
        };
        for flow in [v4, v6] {
            assert_eq!(read_back(&written(&flow, true)), Some(flow));
            let plain = Flow { carried: Carried::default(), ..flow };
            assert_eq!(read_back(&written(&flow, false)), Some(plain), "nothing counted it");
        }
        // A ping, which has no ports: the protocol's number is made ICMP's.
        let mut ping = written(&v4, true);
        let number = ping.windows(5).position(|bytes| bytes == [5, 0, 1, 0, 6]).unwrap() + 4;
        ping[number] = 1;
        assert_eq!(read_back(&ping), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&Message { kind: 1 << 8, flags: 0, seq: 0, port: 0, body: &body });
        }
    }
}
