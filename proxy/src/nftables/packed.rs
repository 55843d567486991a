//! A service's elements in few bytes: there are hundreds of thousands, and nobody looks at them until
//! their service changes. Pure.

use weft_kernel::nft::{Key, Value};

use super::layout::{Map, Place};
use super::parts::Element;
use crate::model::Family;

/// Elements, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packed(Box<[u8]>);

/// Set in a place's byte if the element is of IPv6.
const V6: u8 = 0x80;
/// Set in it if the key is a range.
const RANGE: u8 = 0x40;
/// The rest of it: which map.
const MAP: u8 = 0x3f;

impl Packed {
    pub(super) fn of(elements: &[Element]) -> Self {
        let mut bytes = Vec::new();
        for Element { place, key, value } in elements {
            let is_range = key.first() != key.last();
            bytes.push(place_byte(*place) | if is_range { RANGE } else { 0 });
            put(&mut bytes, key.first());
            if is_range {
                put(&mut bytes, key.last());
            }
            put(&mut bytes, value.as_deref().unwrap_or_default());
        }
        Self(bytes.into())
    }

    pub(super) fn elements(&self) -> impl Iterator<Item = Element> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (byte, behind) = rest.split_first()?;
            rest = behind;
            let place = place_of(*byte)?;
            let first = take(&mut rest)?;
            let last = if byte & RANGE == 0 { first } else { take(&mut rest)? };
            let value = take(&mut rest)?;
            let value = (!value.is_empty()).then(|| value.into());
            Some(Element { place, key: Key::range(first, last), value })
        })
    }
}

impl Element {
    /// As the kernel wants it.
    pub(super) fn into_pair(self) -> (Key, Value) {
        (self.key, self.value.map_or(Value::None, |bytes| Value::Bytes(bytes.into())))
    }
}

fn place_byte(place: Place) -> u8 {
    let map = Map::FIXED.iter().position(|map| *map == place.map);
    let map = map.and_then(|map| u8::try_from(map).ok()).expect("packets, not services, make clients stick");
    map | if place.family == Family::V6 { V6 } else { 0 }
}

fn place_of(byte: u8) -> Option<Place> {
    let family = if byte & V6 == 0 { Family::V4 } else { Family::V6 };
    Some(Map::FIXED.get(usize::from(byte & MAP))?.of(family))
}

/// No key or value is longer than four addresses.
fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.push(u8::try_from(part.len()).expect("fewer than 256 bytes"));
    bytes.extend(part);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, behind) = rest.split_first()?;
    let (part, behind) = behind.split_at_checked(usize::from(*len))?;
    *rest = behind;
    Some(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn elements() -> impl Strategy<Value = Vec<Element>> {
        let bytes = |most| prop::collection::vec(any::<u8>(), 1..most);
        let place = (0..Map::FIXED.len(), any::<bool>())
            .prop_map(|(map, v6)| Map::FIXED[map].of(if v6 { Family::V6 } else { Family::V4 }));
        let element = (place, bytes(60), prop::option::of(bytes(60)), prop::option::of(bytes(24)));
        let element = element.prop_map(|(place, first, last, value)| {
            let key = Key::range(&first, last.as_deref().unwrap_or(&first));
            Element { place, key, value: value.map(Into::into) }
        });
        prop::collection::vec(element, 0..12)
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(elements in elements()) {
            prop_assert_eq!(Packed::of(&elements).elements().collect::<Vec<_>>(), elements);
        }
    }
}
