//! What is wrong with an object, in words: which object, which field, which rule.

use std::fmt;

/// A rule that a field of an object breaks.
///
/// What becomes of the object: an entry of a list that is wrong is left out, a setting that is wrong
/// has its default, and an object of which nothing sensible is left does not change what is known
/// under its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {rule}")]
pub struct Problem {
    /// Whose field.
    pub object: ObjectRef,
    /// Where in it, as `spec.ports[1].port`.
    pub field: String,
    /// What was asked, and what was found.
    pub rule: String,
}

/// An object, as well as it is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRef {
    /// As in manifests: `Service`.
    pub kind: String,
    /// Where it lives, if it lives in a namespace.
    pub namespace: Option<String>,
    /// Its name; empty if it has none.
    pub name: String,
}

/// `Service shop/web`.
impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "(no name)" } else { &self.name };
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{name}", self.kind),
            None => write!(f, "{} {name}", self.kind),
        }
    }
}
