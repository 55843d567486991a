//! From the contents of a manifest file to objects. Pure.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::{core, discovery};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::read::{self, DEFAULT_NAMESPACE, Reading};
use crate::model::{Change, NodeName, ObjectName, ObjectRef, Problem, ServiceName, SliceName};

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Every object that concerns services and has a name, with where it stands.
    pub objects: Vec<(Place, Stated)>,
    /// Whether every document could be read. If not, the file may hold objects that nobody sees.
    pub complete: bool,
    /// What is wrong.
    pub problems: Vec<FileProblem>,
}

/// What a manifest says of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Stated {
    /// Which object.
    pub name: ObjectName,
    /// What it says; None if that makes no sense.
    pub change: Option<Change>,
}

/// Where in a file an object stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's name in the folder.
    pub file: Arc<str>,
    /// Which document, counted from one.
    pub document: usize,
    /// Which item, if the document is a list; counted from zero, as in `items[0]`.
    pub item: Option<usize>,
}

/// Something wrong in a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {mistake}")]
pub struct FileProblem {
    /// Where.
    pub place: Place,
    /// What.
    pub mistake: Mistake,
}

/// What can be wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// The document cannot be read; what was known from this file stays.
    #[error("cannot be read: {0}; what the file held before stays")]
    Syntax(String),
    /// The file cannot be read; what was known from it stays.
    #[error("the file cannot be read: {0}; what it held before stays")]
    File(String),
    /// It is something, but no object.
    #[error("is no Kubernetes object: {0}")]
    NoObject(String),
    /// A kind of ours, in a version that is no more.
    #[error("`{kind}` of `{found}` is not known; use `{wanted}`")]
    Version {
        /// The kind.
        kind: String,
        /// The version that is written.
        found: String,
        /// The version that is known.
        wanted: &'static str,
    },
    /// A field breaks a rule.
    #[error(transparent)]
    Field(#[from] Problem),
    /// The same object stands elsewhere, too.
    #[error("{object} is also in {other}, which counts")]
    Duplicate {
        /// The object.
        object: String,
        /// Where it stands, too.
        other: Place,
    },
}

/// A kind that concerns services.
struct Known {
    kind: &'static str,
    api_version: &'static str,
    read: fn(&ObjectRef, Value) -> (Reading, Vec<Problem>),
}

const KNOWN: [Known; 3] = [
    Known {
        kind: "Service",
        api_version: "v1",
        read: |object, value| typed::<core::v1::Service>(object, value, read::service),
    },
    Known {
        kind: "EndpointSlice",
        api_version: "discovery.k8s.io/v1",
        read: |object, value| typed::<discovery::v1::EndpointSlice>(object, value, read::slice),
    },
    Known {
        kind: "Node",
        api_version: "v1",
        read: |object, value| typed::<core::v1::Node>(object, value, read::node),
    },
];

/// The objects in a file: JSON if its name ends in `.json`, else YAML.
pub fn parse(file: &str, contents: &str) -> Parsed {
    let documents = if file.ends_with(".json") { json(contents) } else { yaml(contents) };
    let mut parsed = Parsed { complete: true, ..Parsed::default() };
    let file: Arc<str> = file.into();
    for (index, document) in documents.into_iter().enumerate() {
        let place = Place { file: Arc::clone(&file), document: index + 1, item: None };
        match document {
            Ok(value) => parsed.document(place, value),
            Err(message) => {
                parsed.complete = false;
                parsed.problem(place, Mistake::Syntax(message));
            }
        }
    }
    parsed
}

impl Parsed {
    fn document(&mut self, place: Place, mut value: Value) {
        let kind = text(&value, "kind").to_owned();
        let Some(item_kind) = kind.strip_suffix("List") else { return self.object(place, value) };
        let api_version = text(&value, "apiVersion").to_owned();
        let items = match value.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            Some(Value::Null) | None => return,
            Some(_) => return self.problem(place, Mistake::NoObject("`items` must be a list".to_owned())),
        };
        for (index, mut item) in items.into_iter().enumerate() {
            // The API writes the items of a ServiceList without kind and version.
            if let (Value::Object(item), false) = (&mut item, item_kind.is_empty()) {
                item.entry("kind").or_insert_with(|| item_kind.into());
                item.entry("apiVersion").or_insert_with(|| api_version.as_str().into());
            }
            self.object(Place { item: Some(index), ..place.clone() }, item);
        }
    }

    fn object(&mut self, place: Place, value: Value) {
        if !value.is_object() {
            return self.problem(place, Mistake::NoObject("it has no fields".to_owned()));
        }
        let (kind, api_version) = (text(&value, "kind"), text(&value, "apiVersion"));
        for (field, written) in [("kind", kind), ("apiVersion", api_version)] {
            if written.is_empty() {
                return self.problem(place, Mistake::NoObject(format!("`{field}` must be given")));
            }
        }
        let Some(known) = KNOWN.into_iter().find(|known| known.kind == kind) else { return };
        if known.api_version != api_version {
            // A Service of another group is another thing (Knative has one).
            if group(known.api_version) == group(api_version) {
                let (kind, found) = (kind.to_owned(), api_version.to_owned());
                self.problem(place, Mistake::Version { kind, found, wanted: known.api_version });
            }
            return;
        }
        let (object, name) = identity(known.kind, &value);
        let (reading, unknown) = (known.read)(&object, value);
        for problem in unknown.into_iter().chain(reading.problems) {
            self.problem(place.clone(), Mistake::Field(problem));
        }
        if let Some(name) = name {
            self.objects.push((place, Stated { name, change: reading.change }));
        }
    }

    fn problem(&mut self, place: Place, mistake: Mistake) {
        self.problems.push(FileProblem { place, mistake });
    }
}

/// What an object calls itself, however wrong the rest of it is.
pub(crate) fn identity(kind: &str, value: &Value) -> (ObjectRef, Option<ObjectName>) {
    let meta = value.get("metadata").unwrap_or(&Value::Null);
    let name = text(meta, "name");
    let namespace = Some(text(meta, "namespace")).filter(|it| !it.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
    let of_namespace = (kind != "Node").then(|| namespace.to_owned());
    let object = ObjectRef { kind: kind.to_owned(), namespace: of_namespace, name: name.to_owned() };
    let known_as = match kind {
        _ if name.is_empty() => None,
        "Service" => Some(ObjectName::Service(ServiceName::new(namespace, name))),
        "EndpointSlice" => Some(ObjectName::Slice(SliceName::new(namespace, name))),
        _ => Some(ObjectName::Node(NodeName::new(name))),
    };
    (object, known_as)
}

/// Reads an object; the second of the two are fields that its type does not have.
fn typed<T: DeserializeOwned + Serialize>(
    object: &ObjectRef,
    value: Value,
    read: fn(&T) -> Reading,
) -> (Reading, Vec<Problem>) {
    match Reading::typed::<T>(object, value.clone()) {
        Err(problem) => (Reading { change: None, problems: vec![problem] }, Vec::new()),
        Ok(typed) => {
            let mut unknown = Vec::new();
            let understood = serde_json::to_value(&typed).unwrap_or_default();
            unknown_fields(&value, &understood, String::new(), &mut unknown);
            let rule = "is not known, and has no effect";
            let problem = |field| Problem { object: object.clone(), field, rule: rule.to_owned() };
            (read(&typed), unknown.into_iter().map(problem).collect())
        }
    }
}

/// The fields that are written and that the API's type does not have: it forgets them silently, and
/// a slip of the pen would go unnoticed.
fn unknown_fields(written: &Value, understood: &Value, path: String, unknown: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match understood.get(key) {
                    Some(understood) => unknown_fields(value, understood, path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) => {
            for (index, (written, understood)) in written.iter().zip(understood).enumerate() {
                unknown_fields(written, understood, format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// JSON values one after the other; what comes after a mistake cannot be read.
fn json(contents: &str) -> Vec<Result<Value, String>> {
    let documents = serde_json::Deserializer::from_str(contents).into_iter::<Value>();
    documents.map(|document| document.map_err(|error| error.to_string())).collect()
}

/// YAML documents, each read for itself, so that a mistake in one leaves the others alone. A document
/// of nothing but comments is no document.
fn yaml(contents: &str) -> Vec<Result<Value, String>> {
    let documents = split(contents).into_iter().map(|document| {
        let value = serde_saphyr::from_str_with_options::<Value>(&document, options());
        value.map_err(|error| error.to_string())
    });
    documents.filter(|document| *document != Ok(Value::Null)).collect()
}

/// A list of 45,000 services is one document; what only an attack needs (aliases, depth) keeps its
/// limits.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: None,
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    }
}

/// The documents of a YAML stream. `---` at the beginning of a line is always a boundary (YAML 1.2,
/// 9.1.2), in a block of text too. Each document keeps its lines' numbers, by empty lines in front.
fn split(contents: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in contents.lines().enumerate() {
        let after = |mark: &str| {
            line.strip_prefix(mark).filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        };
        let kept = match after("---").or(after("...")) {
            Some(rest) => {
                documents.push("\n".repeat(number));
                rest
            }
            // A directive such as %YAML 1.2 has its place before the first marker, in no document.
            None if line.starts_with('%') => "",
            None => line,
        };
        if let Some(document) = documents.last_mut() {
            document.push_str(kept);
            document.push('\n');
        }
    }
    documents
}

/// `web.yaml, document 2, items[7]`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file, self.document)?;
        self.item.map_or(Ok(()), |item| write!(f, ", items[{item}]"))
    }
}
