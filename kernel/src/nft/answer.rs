//! What the kernel answers to a message: yes, or an error and what it points at.

use std::io;

use super::encode::Encoded;
use super::wire::{Attrs, Malformed, Message, Messages};
use super::{Key, Object};

/// `NLMSG_ERROR`.
pub(crate) const NLMSG_ERROR: u16 = 2;
/// `NLM_F_ACK_TLVS`: the error is followed by attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`, `NLMSGERR_ATTR_OFFS`.
const ERROR_TEXT: u16 = 1;
const ERROR_OFFSET: u16 = 2;

/// `NLMSG_ERROR`: an error or, with number 0, an acknowledgement.
pub(crate) struct Answer {
    pub(crate) error: Option<io::Error>,
    pub(crate) text: Option<String>,
    /// Where in the refused message the fault is.
    offset: Option<usize>,
}

impl Answer {
    pub(crate) fn read(message: &Message<'_>) -> Result<Self, Malformed> {
        if message.kind != NLMSG_ERROR {
            return Err(Malformed("no answer"));
        }
        let (number, rest) =
            message.body.split_first_chunk().ok_or(Malformed("an answer without a number"))?;
        let number = i32::from_ne_bytes(*number);
        let error = (number != 0).then(|| io::Error::from_raw_os_error(number.saturating_neg()));
        let mut answer = Self { error, text: None, offset: None };
        if message.flags & NLM_F_ACK_TLVS != 0 {
            // Behind the number stands the head of the refused message (NETLINK_CAP_ACK).
            for attr in Attrs(rest.get(16..).unwrap_or_default()).flatten() {
                match attr.kind {
                    ERROR_TEXT => answer.text = Some(String::from_utf8_lossy(attr.string()).into_owned()),
                    ERROR_OFFSET => {
                        answer.offset =
                            attr.value.try_into().ok().map(|raw| u32::from_ne_bytes(raw) as usize);
                    }
                    _ => {}
                }
            }
        }
        Ok(answer)
    }

    /// The object, down to the set element if the kernel pointed at one.
    pub(super) fn blame(&self, object: &Object, encoded: &Encoded, index: usize) -> Object {
        match (object, self.offset) {
            (Object::Elements(table, set, _), Some(offset)) => {
                Object::Elements(table.clone(), set.clone(), element_at(&encoded.bytes, index, offset))
            }
            _ => object.clone(),
        }
    }
}

/// The key of the element that stands at this place of a batch's message.
fn element_at(batch: &[u8], index: usize, offset: usize) -> Option<Key> {
    let message = Messages(batch).nth(index)?.ok()?;
    let list = message.attrs().need(3).ok()?;
    let place = |part: &[u8]| (part.as_ptr() as usize).checked_sub(message.body.as_ptr() as usize);
    for element in list.attrs().flatten() {
        // Offsets count from the message's header, attributes' from behind their own.
        let end = place(element.value)? + element.value.len() + 16;
        if offset < end {
            let key = element.attrs().need(1).ok()?.attrs().need(1).ok()?.value.to_vec();
            let to = match element.attrs().find(10).ok()? {
                Some(end) => end.attrs().need(1).ok()?.value.to_vec(),
                None => key.clone(),
            };
            return Some(Key::new(key, to));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::encode::batch;
    use crate::nft::{DataType, Family, Part, SetSpec, Table, Transaction};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_answers_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            offset in any::<usize>(),
            index in 0usize..4,
        ) {
            for message in Messages(&bytes).flatten() {
                let _ = Answer::read(&Message { kind: NLMSG_ERROR, ..message });
            }
            let _ = Answer::read(&Message { kind: NLMSG_ERROR, flags: 0xffff, seq: 0, port: 0, body: &bytes });
            element_at(&bytes, index, offset);
        }
    }

    #[test]
    fn an_element_is_found_by_its_place() {
        let spec = SetSpec::exact([DataType::Protocol]);
        let set = spec.clone().with((1..=3).map(|n| Key::from(Part::bytes([n]))));
        let mut table = Table::new(Family::Inet, "t".parse().unwrap());
        table.sets.insert("s".parse().unwrap(), set);
        let tx = Transaction::new().add_elements(
            &table.key,
            &"s".parse().unwrap(),
            &spec,
            table.sets[&"s".parse().unwrap()].elements.clone(),
        );
        let bytes = batch(&tx, 1).unwrap_or_else(|_| panic!()).bytes;
        // Header 20, table 8, set 8, list 4, then 16 each: 4 + key 4 + value 5, padded.
        let at = |offset| element_at(&bytes, 1, offset).map(|key| key.first().to_vec());
        assert_eq!(at(44), Some(vec![1]));
        assert_eq!(at(60), Some(vec![2]));
        assert_eq!(at(79), Some(vec![3]));
        assert_eq!(at(100), None);
    }
}
