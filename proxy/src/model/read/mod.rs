//! From objects of the Kubernetes API to a change of the model. Whatever the API server or a person
//! wrote: nothing here panics, and each thing that is wrong is a [`Problem`] that names it.
//!
//! How bad is bad: a wrong entry of a list (an external address, an endpoint, a port) is left out; a
//! wrong setting has its default; a type or policy that weft does not know, or no usable cluster
//! address or port, leaves what is known under the object's name as it is, because guessing could
//! send packets where they must not go.

mod node;
mod service;
mod slice;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use node::node;
pub use service::service;
pub use slice::slice;

use super::{Change, ObjectRef, Problem, Protocol};

/// The namespace of an object that names none, as in kubectl.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// What an object means for the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The change, if enough of the object makes sense.
    pub change: Option<Change>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl Reading {
    /// Turns a typed error of the deserializer into a problem: `value` is no object of type `T`.
    ///
    /// # Errors
    /// Which field is not what it should be.
    pub fn typed<T: serde::de::DeserializeOwned>(
        object: &ObjectRef,
        value: serde_json::Value,
    ) -> Result<T, Problem> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { "(the object)".to_owned() } else { path };
            Problem { object: object.clone(), field, rule: error.inner().to_string() }
        })
    }
}

/// Collects what is wrong with one object.
struct Findings {
    object: ObjectRef,
    problems: Vec<Problem>,
}

impl Findings {
    /// About a namespaced object.
    fn namespaced(kind: &str, meta: &ObjectMeta) -> Self {
        let namespace = Some(namespace(meta).to_owned());
        Self::about(ObjectRef { kind: kind.to_owned(), namespace, name: name(meta).to_owned() })
    }

    /// About an object of the whole cluster.
    fn global(kind: &str, meta: &ObjectMeta) -> Self {
        Self::about(ObjectRef { kind: kind.to_owned(), namespace: None, name: name(meta).to_owned() })
    }

    fn about(object: ObjectRef) -> Self {
        Self { object, problems: Vec::new() }
    }

    fn add(&mut self, field: impl Into<String>, rule: impl Into<String>) {
        self.problems.push(Problem { object: self.object.clone(), field: field.into(), rule: rule.into() });
    }

    /// The value, or None and a finding.
    fn ok<T>(&mut self, field: impl Into<String>, value: Result<T, String>) -> Option<T> {
        value.map_err(|rule| self.add(field, rule)).ok()
    }

    /// The good ones of a list whose entries are at `field[0]`, `field[1]` ...
    fn each<T>(
        &mut self,
        field: &str,
        entries: Option<&Vec<String>>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let entries = entries.into_iter().flatten().enumerate();
        entries.filter_map(|(index, entry)| self.ok(format!("{field}[{index}]"), parse(entry))).collect()
    }

    fn reading(self, change: Option<Change>) -> Reading {
        Reading { change, problems: self.problems }
    }
}

fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or(DEFAULT_NAMESPACE)
}

fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The object has a name, or a finding.
fn named(meta: &ObjectMeta, findings: &mut Findings) -> bool {
    let named = !name(meta).is_empty();
    if !named {
        findings.add("metadata.name", "must be given");
    }
    named
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("must be TCP, UDP or SCTP, is `{other}`")),
    }
}

fn port(number: i32) -> Result<std::num::NonZeroU16, String> {
    let port = u16::try_from(number).ok().and_then(std::num::NonZeroU16::new);
    port.ok_or_else(|| format!("must be 1 to 65535, is {number}"))
}

fn shared(text: Option<&String>) -> Arc<str> {
    text.map(String::as_str).unwrap_or_default().into()
}
