//! JSON as Go's `encoding/json` reads it into a struct: what flannel accepts is what Go accepts.
//!
//! Keys match whatever their case, a later key wins over an earlier one, `null` leaves a plain
//! field as it is. `serde` matches exactly, so it alone would refuse configs that flannel runs on.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Any JSON value; objects keep their order and their repeated keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// Any number.
    Number(serde_json::Number),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads a whole document. The error is one line and says where.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(raw).map_err(|e| one_line(&e.to_string()))
    }

    /// The object's values whose key is `name` in any case, in order; none if it is no object.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Json> {
        let entries = if let Json::Object(entries) = self { entries.as_slice() } else { &[] };
        entries.iter().filter(move |(key, _)| fold(key) == fold(name)).map(|(_, value)| value)
    }

    /// The value that a plain field `name` ends up with: the last that is not `null`.
    pub(crate) fn field<'a>(&'a self, name: &'a str) -> Option<&'a Json> {
        self.all(name).filter(|value| **value != Json::Null).last()
    }

    /// An object's keys that are none of `known`, as written.
    pub(crate) fn unknown_keys<'a>(&'a self, known: &[&str]) -> Vec<&'a str> {
        let Json::Object(entries) = self else { return Vec::new() };
        let strange = |key: &&str| known.iter().all(|name| fold(name) != fold(key));
        entries.iter().map(|(key, _)| key.as_str()).filter(strange).collect()
    }

    /// Is it an object, or the `null` that Go reads as an empty one?
    pub(crate) fn is_object(&self) -> bool {
        matches!(self, Json::Object(_) | Json::Null)
    }
}

/// Go compares by simple case folding; beside ASCII only two letters fold into it (U+017F, U+212A).
fn fold(key: &str) -> String {
    let lower = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(lower).collect()
}

/// Control characters and excess length have no place in a message of one line.
pub(crate) fn one_line(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut line: String = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

impl fmt::Display for Json {
    /// Compact JSON on one line, cut short where it is long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&one_line(&text))
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(value) => serializer.serialize_bool(*value),
            Json::Number(value) => value.serialize(serializer),
            Json::Text(value) => serializer.serialize_str(value),
            Json::List(values) => serializer.collect_seq(values),
            Json::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(Json::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn fields_are_found_as_go_finds_them() {
        let table = [
            ("the exact key", r#"{"Network":1}"#, "1"),
            ("any case", r#"{"nEtWoRk":1}"#, "1"),
            ("the Kelvin sign is a k", "{\"Networ\u{212a}\":1}", "1"),
            ("the last of two", r#"{"Network":1,"network":2}"#, "2"),
            ("null leaves what was there", r#"{"Network":1,"network":null}"#, "1"),
        ];
        for (case, text, found) in table {
            assert_eq!(json(text).field("Network").unwrap().to_string(), found, "{case}");
        }
        assert_eq!(json("[1]").field("Network"), None);
        assert_eq!(json(r#"{"Net":1}"#).field("Network"), None);
    }

    #[test]
    fn what_was_read_is_written_alike() {
        let text = r#"{"b":[1,-2,0.5,"x\n"],"a":{"z":null,"y":true},"a":{}}"#;
        assert_eq!(serde_json::to_string(&json(text)).unwrap(), text);
    }

    #[test]
    fn errors_and_values_are_one_short_line() {
        let long = format!("{:?}", "x\n".repeat(500));
        assert!(json(&long).to_string().chars().count() <= 121);
        assert!(!Json::parse(b"{\n\n,}").unwrap_err().contains('\n'));
    }
}
