//! Netlink messages as bytes: a writer that closes what it opens, and readers that trust nothing.
//!
//! Layouts: include/uapi/linux/netlink.h (`nlmsghdr`, `nlattr`) and
//! include/uapi/linux/netfilter/nfnetlink.h (`nfgenmsg`).

use netlink_packet_core::{NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_REQUEST};

/// `nlmsghdr`: length, type, flags, sequence number, port.
const MESSAGE_HEADER: usize = 16;
/// `nfgenmsg`: family, version, resource id.
const NF_HEADER: usize = 4;
/// `nlattr`: length, type.
const ATTR_HEADER: usize = 4;

/// `NFNL_SUBSYS_NFTABLES` in a message type's upper byte.
pub(crate) const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`.
pub(crate) const BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
pub(crate) const BATCH_END: u16 = 0x11;

/// `enum nf_tables_msg_types`.
pub(crate) mod msg {
    pub(crate) const NEWTABLE: u16 = 0;
    pub(crate) const GETTABLE: u16 = 1;
    pub(crate) const DELTABLE: u16 = 2;
    pub(crate) const NEWCHAIN: u16 = 3;
    pub(crate) const GETCHAIN: u16 = 4;
    pub(crate) const DELCHAIN: u16 = 5;
    pub(crate) const NEWRULE: u16 = 6;
    pub(crate) const GETRULE: u16 = 7;
    pub(crate) const DELRULE: u16 = 8;
    pub(crate) const NEWSET: u16 = 9;
    pub(crate) const GETSET: u16 = 10;
    pub(crate) const DELSET: u16 = 11;
    pub(crate) const NEWSETELEM: u16 = 12;
    pub(crate) const GETSETELEM: u16 = 13;
    pub(crate) const DELSETELEM: u16 = 14;
    pub(crate) const NEWGEN: u16 = 15;
    pub(crate) const GETGEN: u16 = 16;
}

/// Bytes from the kernel that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink message: {0}")]
pub struct Malformed(pub &'static str);

/// What stands at the head of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// The whole message type, subsystem included.
    pub(crate) kind: u16,
    /// `NLM_F_*` beside `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    /// Comes back with the answer.
    pub(crate) seq: u32,
    /// `nfgenmsg`'s family.
    pub(crate) family: u8,
    /// `nfgenmsg`'s resource id.
    pub(crate) resource: u16,
}

/// Messages to be sent, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Writer {
    /// Writes one message.
    pub(crate) fn message(&mut self, head: Head, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(head.kind.to_ne_bytes());
        self.bytes.extend((head.flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(head.seq.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([head.family, 0]);
        self.bytes.extend(head.resource.to_be_bytes());
        body(self);
        let len = self.bytes.len() - start;
        match u32::try_from(len) {
            Ok(len) => self.patch(start, &len.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
    }

    /// Writes an attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NLA_F_NESTED);
        body(self);
        self.close(start);
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend(value);
        self.close(start);
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// Attributes that were written before.
    pub(crate) fn raw(&mut self, attributes: &[u8]) {
        self.bytes.extend(attributes);
    }

    /// Adds flags to the message that begins at `start`.
    pub(crate) fn add_flags(&mut self, start: usize, flags: u16) {
        let at = start + 6;
        if let Some(&[a, b]) = self.bytes.get(at..at + 2) {
            let all = u16::from_ne_bytes([a, b]) | flags;
            self.patch(at, &all.to_ne_bytes());
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Something was longer than its length field can say.
    pub(crate) fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// All messages; `None` if one attribute or message was longer than its length field can say.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        (!self.too_long).then_some(self.bytes)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend(0u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let len = self.bytes.len() - start;
        match u16::try_from(len) {
            Ok(len) => self.patch(start, &len.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) port: u32,
    /// What follows the netlink header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The nftables message type, if it is one.
    pub(crate) fn nft(&self) -> Option<u16> {
        (self.kind >> 8 == SUBSYSTEM).then_some(self.kind & 0xff)
    }

    /// `nfgenmsg`'s family.
    pub(crate) fn family(&self) -> Result<u8, Malformed> {
        self.body.first().copied().ok_or(Malformed("no family"))
    }

    /// The attributes behind `nfgenmsg`.
    pub(crate) fn attrs(&self) -> Attrs<'a> {
        Attrs(self.body.get(NF_HEADER..).unwrap_or_default())
    }
}

/// Goes through the messages of one datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let Some((header, _)) = rest.split_first_chunk::<MESSAGE_HEADER>() else {
            return Some(Err(Malformed("a header is cut short")));
        };
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = rest.get(MESSAGE_HEADER..len) else {
            return Some(Err(Malformed("a message is longer than what holds it")));
        };
        self.0 = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
            port: u32::from_ne_bytes([p0, p1, p2, p3]),
            body,
        }))
    }
}

/// One received attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attr<'a> {
    pub(crate) kind: u16,
    pub(crate) value: &'a [u8],
}

impl<'a> Attr<'a> {
    pub(crate) fn be32(&self) -> Result<u32, Malformed> {
        let bytes = self.value.try_into().map_err(|_| Malformed("a number does not have four bytes"))?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(crate) fn be64(&self) -> Result<u64, Malformed> {
        let bytes = self.value.try_into().map_err(|_| Malformed("a number does not have eight bytes"))?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// A string without its NUL.
    pub(crate) fn string(&self) -> &'a [u8] {
        self.value.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    pub(crate) fn attrs(&self) -> Attrs<'a> {
        Attrs(self.value)
    }
}

/// Goes through attributes that stand one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Attrs<'a> {
    /// The first attribute of this kind.
    pub(crate) fn find(self, kind: u16) -> Result<Option<Attr<'a>>, Malformed> {
        for attr in self {
            let attr = attr?;
            if attr.kind == kind {
                return Ok(Some(attr));
            }
        }
        Ok(None)
    }

    /// The same where it must be there.
    pub(crate) fn need(self, kind: u16) -> Result<Attr<'a>, Malformed> {
        self.find(kind)?.ok_or(Malformed("an attribute is missing"))
    }

    /// The number in it, if it is there.
    pub(crate) fn find_be32(self, kind: u16) -> Result<Option<u32>, Malformed> {
        self.find(kind)?.map(|attr| attr.be32()).transpose()
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let Some((header, _)) = rest.split_first_chunk::<ATTR_HEADER>() else {
            return Some(Err(Malformed("an attribute's header is cut short")));
        };
        let [l0, l1, k0, k1] = *header;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = rest.get(ATTR_HEADER..len) else {
            return Some(Err(Malformed("an attribute is longer than what holds it")));
        };
        self.0 = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Attr { kind: u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, value }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        let head = Head { kind: 0xa06, flags: 0x400, seq: 7, family: 1, resource: 10 };
        writer.message(head, |w| {
            w.string(1, "weft");
            w.nest(2, |w| {
                w.be32(3, 42);
                w.be64(4, 43);
            });
        });
        let bytes = writer.finish().unwrap();
        let message = Messages(&bytes).next().unwrap().unwrap();
        assert_eq!((message.nft(), message.seq, message.family()), (Some(6), 7, Ok(1)));
        assert_eq!(message.attrs().need(1).unwrap().string(), b"weft");
        let inner = message.attrs().need(2).unwrap().attrs();
        assert_eq!(inner.find_be32(3), Ok(Some(42)));
        assert_eq!(inner.need(4).unwrap().be64(), Ok(43));
        assert_eq!(inner.find_be32(5), Ok(None));
    }

    #[test]
    fn an_attribute_that_is_too_long_is_noticed() {
        let mut writer = Writer::default();
        writer.bytes(1, &[0; 70_000]);
        assert_eq!(writer.finish(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic_or_run_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let messages = Messages(&bytes).count();
            let attrs = Attrs(&bytes).count();
            prop_assert!(messages <= 1 + bytes.len() / 16 && attrs <= 1 + bytes.len() / 4);
        }
    }
}
