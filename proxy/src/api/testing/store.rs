//! What the server holds: objects with their versions, and what happened to them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

/// A kind that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    EndpointSlice,
    Node,
}

/// An object as it is answered with.
#[derive(Debug)]
pub(super) struct Stored {
    key: Key,
    labels: BTreeSet<String>,
    pub(super) json: String,
}

type Key = (Kind, String, String);

/// Which objects a request means.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    /// `!key` of the label selector.
    pub(super) without: Vec<String>,
    /// `metadata.name=` of the field selector.
    pub(super) name: Option<String>,
}

/// Something that happened.
#[derive(Clone, Debug)]
enum Happened {
    Changed {
        kind: Kind,
        before: Option<Arc<Stored>>,
        after: Option<Arc<Stored>>,
        gone: Option<Arc<Stored>>,
    },
    /// Every watch is told how far it is.
    Bookmark,
}

/// Everything, and its past.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) revision: u64,
    objects: BTreeMap<Key, Arc<Stored>>,
    history: Vec<(u64, Happened)>,
    /// What happened up to here is forgotten.
    forgotten: u64,
    lists: BTreeMap<u64, List>,
    next_list: u64,
}

/// The rest of a list that is answered page by page.
#[derive(Debug)]
struct List {
    revision: u64,
    rest: std::vec::IntoIter<Arc<Stored>>,
}

/// What was asked for is no longer known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expired;

impl Kind {
    pub(super) const ALL: [(Self, &str, &str, &str); 3] = [
        (Self::Service, "Service", "v1", "/api/v1/services"),
        (
            Self::EndpointSlice,
            "EndpointSlice",
            "discovery.k8s.io/v1",
            "/apis/discovery.k8s.io/v1/endpointslices",
        ),
        (Self::Node, "Node", "v1", "/api/v1/nodes"),
    ];

    fn named(kind: &str) -> Self {
        let known = Self::ALL.iter().find(|(_, name, ..)| *name == kind);
        known.unwrap_or_else(|| panic!("a test's object has the kind `{kind}`")).0
    }

    fn row(self) -> &'static (Self, &'static str, &'static str, &'static str) {
        &Self::ALL[self as usize]
    }
}

impl Selector {
    fn takes(&self, object: &Stored) -> bool {
        self.without.iter().all(|label| !object.labels.contains(label))
            && self.name.as_ref().is_none_or(|name| *name == object.key.2)
    }
}

impl Store {
    /// As a cluster that is in use: its first version is no small number.
    pub(super) fn new() -> Self {
        let revision = 1000;
        Self {
            revision,
            objects: BTreeMap::new(),
            history: Vec::new(),
            forgotten: revision,
            lists: BTreeMap::new(),
            next_list: 0,
        }
    }

    pub(super) fn put(&mut self, object: Value) -> u64 {
        self.revision += 1;
        let kind = Kind::named(object["kind"].as_str().unwrap_or_default());
        let after = stored(kind, object, self.revision);
        let before = self.objects.insert(after.key.clone(), after.clone());
        self.history
            .push((self.revision, Happened::Changed { kind, before, after: Some(after), gone: None }));
        self.revision
    }

    pub(super) fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> Option<u64> {
        let kind = Kind::named(kind);
        let before = self.objects.remove(&(kind, namespace.to_owned(), name.to_owned()))?;
        self.revision += 1;
        let gone = serde_json::from_str(&before.json).expect("we wrote it");
        let gone = Some(stored(kind, gone, self.revision));
        self.history
            .push((self.revision, Happened::Changed { kind, before: Some(before), after: None, gone }));
        Some(self.revision)
    }

    pub(super) fn bookmark(&mut self) {
        self.history.push((self.revision, Happened::Bookmark));
    }

    /// As etcd's compaction: watches from before now, and lists that are half answered, cannot go on.
    pub(super) fn forget(&mut self) {
        self.forgotten = self.revision;
        self.lists.clear();
    }

    /// As a store that was put back to an earlier state.
    pub(super) fn rewind(&mut self, revision: u64) {
        self.revision = revision;
        self.history.clear();
        self.lists.clear();
        self.forgotten = 0;
    }

    /// The JSON of all objects of a kind.
    pub(super) fn all(&self, kind: &str) -> Vec<Value> {
        let kind = Kind::named(kind);
        let objects = self.objects.values().filter(|object| object.key.0 == kind);
        objects.map(|object| serde_json::from_str(&object.json).expect("we wrote it")).collect()
    }

    /// A page of a list.
    pub(super) fn page(
        &mut self,
        kind: Kind,
        selector: &Selector,
        limit: usize,
        next: Option<&str>,
    ) -> Result<String, Expired> {
        let (id, mut list) = match next {
            Some(token) => {
                let id = token.parse().map_err(|_| Expired)?;
                (id, self.lists.remove(&id).ok_or(Expired)?)
            }
            None => {
                let objects = self.objects.values().filter(|it| it.key.0 == kind && selector.takes(it));
                let rest = objects.cloned().collect::<Vec<_>>().into_iter();
                self.next_list += 1;
                (self.next_list, List { revision: self.revision, rest })
            }
        };
        let items: Vec<Arc<Stored>> = list.rest.by_ref().take(limit).collect();
        let items: Vec<&str> = items.iter().map(|item| item.json.as_str()).collect();
        let (_, name, version, _) = kind.row();
        let mut meta = json!({"resourceVersion": list.revision.to_string()});
        if !list.rest.as_slice().is_empty() {
            meta["continue"] = id.to_string().into();
            meta["remainingItemCount"] = list.rest.as_slice().len().into();
            self.lists.insert(id, list);
        }
        let items = items.join(",");
        Ok(format!(r#"{{"kind":"{name}List","apiVersion":"{version}","metadata":{meta},"items":[{items}]}}"#))
    }

    /// Where a watch begins that knows everything up to that version.
    pub(super) fn after(&self, revision: u64) -> Result<usize, Expired> {
        if revision < self.forgotten {
            return Err(Expired);
        }
        Ok(self.history.partition_point(|(at, _)| *at <= revision))
    }

    /// The lines of a watch from there on, and where it is then.
    pub(super) fn lines(
        &self,
        kind: Kind,
        selector: &Selector,
        from: usize,
        bookmarks: bool,
    ) -> (String, usize) {
        let mut lines = String::new();
        for (revision, happened) in &self.history[from.min(self.history.len())..] {
            match happened {
                Happened::Bookmark if bookmarks => {
                    let (_, name, version, _) = kind.row();
                    let object = json!({"kind": name, "apiVersion": version, "metadata": {"resourceVersion": revision.to_string()}});
                    lines.push_str(&line("BOOKMARK", &object.to_string()));
                }
                Happened::Bookmark => {}
                Happened::Changed { kind: other, .. } if *other != kind => {}
                Happened::Changed { before, after, gone, .. } => {
                    let was = before.as_ref().filter(|it| selector.takes(it));
                    let is = after.as_ref().filter(|it| selector.takes(it));
                    match (was, is, after.as_ref().or(gone.as_ref())) {
                        (None, Some(is), _) => lines.push_str(&line("ADDED", &is.json)),
                        (Some(_), Some(is), _) => lines.push_str(&line("MODIFIED", &is.json)),
                        (Some(_), None, Some(last)) => lines.push_str(&line("DELETED", &last.json)),
                        _ => {}
                    }
                }
            }
        }
        (lines, self.history.len())
    }
}

fn line(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn stored(kind: Kind, mut object: Value, revision: u64) -> Arc<Stored> {
    let (_, _, version, _) = kind.row();
    object["apiVersion"] = (*version).into();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]["resourceVersion"] = revision.to_string().into();
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let key = (kind, text("namespace"), text("name"));
    let labels = object["metadata"]["labels"].as_object();
    let labels = labels.map(|labels| labels.keys().cloned().collect()).unwrap_or_default();
    Arc::new(Stored { key, labels, json: object.to_string() })
}
