//! What the bytes of an answer mean: a page of a list, a line of a watch, a refusal. Pure.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::resource::{Nameless, Resource, Written};
use crate::model::ObjectName;

/// A page of a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Page {
    /// Of the whole list: its state is that of this version.
    pub(super) version: String,
    /// What to ask the next page with; None if this is the last one.
    pub(super) next: Option<String>,
    pub(super) objects: Vec<Written>,
}

/// A line of a watch.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// The object appeared or changed.
    Put(Written),
    /// It is gone, or none of those any more that were asked for.
    Gone { name: ObjectName, version: String },
    /// Nothing until here.
    Bookmark { version: String },
    /// The server cannot go on.
    Error(Status),
}

/// Why the server refused, as far as it says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
}

/// The answer is none that an API server gives. In words, after "the answer".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Nonsense(pub(super) String);

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(default)]
    metadata: RawListMeta,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawListMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct RawStatus {
    kind: String,
    code: Option<i64>,
    message: Option<String>,
    reason: Option<String>,
}

/// The resource version as a number. Kubernetes says since 1.35 (KEP-5504) that versions of objects of
/// one resource may be compared so; before, every server did it that way and said nothing.
pub(super) fn number(version: &str) -> Result<u64, Nonsense> {
    let digits = !version.starts_with(['0', '+']);
    let number = version.parse().ok().filter(|_| digits);
    number.ok_or_else(|| Nonsense(format!("has the resource version `{}`, no number", cut(version))))
}

/// A page of a list of that resource.
pub(super) fn page(resource: &Resource, body: &[u8]) -> Result<Page, Nonsense> {
    let raw: RawPage<'_> =
        serde_json::from_slice(body).map_err(|error| Nonsense(format!("is no list: {error}")))?;
    if raw.kind != resource.list_kind() {
        return Err(Nonsense(format!("is a `{}`, no {}", cut(&raw.kind), resource.list_kind())));
    }
    let version = raw.metadata.resource_version.unwrap_or_default();
    number(&version)?;
    let items = raw.items.unwrap_or_default().into_iter().enumerate();
    let nameless = |index, Nameless| Nonsense(format!("has something without a name at `items[{index}]`"));
    let objects = items.map(|(index, item)| resource.read(item.get()).map_err(|it| nameless(index, it)));
    let next = raw.metadata.next.filter(|next| !next.is_empty());
    Ok(Page { version, next, objects: objects.collect::<Result<_, _>>()? })
}

/// A line of a watch of that resource.
pub(super) fn event(resource: &Resource, line: &[u8]) -> Result<Event, Nonsense> {
    let raw: RawEvent<'_> =
        serde_json::from_slice(line).map_err(|error| Nonsense(format!("is no event: {error}")))?;
    let object = raw.object.get();
    let nameless = |Nameless| Nonsense("has an event about something without a name".to_owned());
    match raw.kind.as_ref() {
        "ADDED" | "MODIFIED" => {
            let written = resource.read(object).map_err(nameless)?;
            number(&written.version)?;
            Ok(Event::Put(written))
        }
        "DELETED" => {
            let (name, version) = resource.name_of(object).map_err(nameless)?;
            number(&version)?;
            Ok(Event::Gone { name, version })
        }
        "BOOKMARK" => {
            let value: serde_json::Value = serde_json::from_str(object).unwrap_or_default();
            let version = value.pointer("/metadata/resourceVersion").and_then(|it| it.as_str());
            let version = version.unwrap_or_default().to_owned();
            number(&version)?;
            Ok(Event::Bookmark { version })
        }
        "ERROR" => Ok(Event::Error(
            status(object.as_bytes()).unwrap_or(Status { code: 0, message: "for no given reason".into() }),
        )),
        other => Err(Nonsense(format!("has an event of the unknown type `{}`", cut(other)))),
    }
}

/// The refusal in the body of an answer, if there is one.
pub(super) fn status(body: &[u8]) -> Option<Status> {
    let raw: RawStatus = serde_json::from_slice(body).ok()?;
    if raw.kind != "Status" {
        return None;
    }
    let code = raw.code.and_then(|code| u16::try_from(code).ok()).unwrap_or_default();
    let message = raw.message.filter(|it| !it.is_empty()).or(raw.reason).unwrap_or_default();
    Some(Status { code, message: cut(&message).into_owned() })
}

/// What is quoted of a stranger's words: one line, not too long.
fn cut(text: &str) -> Cow<'_, str> {
    const LENGTH: usize = 300;
    let plain = text.len() <= LENGTH && !text.contains(char::is_control);
    if plain {
        return text.into();
    }
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).take(LENGTH).collect()
}
