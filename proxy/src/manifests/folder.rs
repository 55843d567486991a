//! What is known from all files of a folder together. Pure: contents come in, changes of the model
//! go out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::parse::{FileProblem, Mistake, Parsed, Place, parse};
use crate::model::{Change, Object, ObjectName};

/// The objects of a folder, file by file. Sorted lists and not maps: there may be a file for each of
/// tens of thousands of objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folder {
    files: BTreeMap<Arc<str>, Box<[Known]>>,
    /// The files that have an object. The first one counts.
    files_of: BTreeMap<ObjectName, Vec<Arc<str>>>,
}

/// What a file says of an object. In a list, each object once, by name.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    name: ObjectName,
    place: Place,
    /// None if it is written, and none of ours (an EndpointSlice of another proxy).
    object: Option<Object>,
}

/// What a file that came, changed or went means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// The changes of the model, by name.
    pub changes: Vec<Change>,
    /// What is wrong with the file.
    pub problems: Vec<FileProblem>,
}

impl Update {
    /// Both, one after the other.
    pub fn join(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.problems.extend(other.problems);
    }
}

impl Folder {
    /// The names of the files that have objects.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(|file| &**file)
    }

    /// The file has these contents now.
    pub fn put(&mut self, file: &str, contents: &str) -> Update {
        let Parsed { objects, complete, mut problems } = parse(file, contents);
        let before = self.files.get(file).cloned().unwrap_or_default();
        let mut now: BTreeMap<ObjectName, Known> = BTreeMap::new();
        for (place, stated) in objects {
            if let Some(first) = now.get(&stated.name) {
                problems.push(duplicate(place, &stated.name, &first.place));
                continue;
            }
            let object = match stated.change {
                Some(Change::Put(object)) => Some(object),
                Some(Change::Remove(_)) => None,
                // A mistake: what was known of it stays, if anything was.
                None => match find(&before, &stated.name) {
                    Some(known) => known.object.clone(),
                    None => continue,
                },
            };
            now.insert(stated.name.clone(), Known { name: stated.name, place, object });
        }
        if !complete {
            for known in before {
                now.entry(known.name.clone()).or_insert(known);
            }
        }
        for (name, known) in &now {
            let first = self.files_of.get(name).and_then(|files| files.first());
            let first = first.filter(|other| ***other < *file);
            if let Some(other) = first.and_then(|first| find(self.files.get(first)?, name)) {
                problems.push(duplicate(known.place.clone(), name, &other.place));
            }
        }
        Update { changes: self.replace(file, now.into_values().collect()), problems }
    }

    /// The file is gone.
    pub fn remove(&mut self, file: &str) -> Update {
        Update { changes: self.replace(file, Box::default()), problems: Vec::new() }
    }

    /// What counts for an object.
    fn counting(&self, name: &ObjectName) -> Option<&Object> {
        let file = self.files_of.get(name)?.first()?;
        find(self.files.get(file)?, name)?.object.as_ref()
    }

    fn replace(&mut self, file: &str, now: Box<[Known]>) -> Vec<Change> {
        let before = self.files.get(file).into_iter().flatten();
        let concerned: BTreeSet<ObjectName> = before.chain(&now).map(|known| known.name.clone()).collect();
        let counted: Vec<Option<Object>> =
            concerned.iter().map(|name| self.counting(name).cloned()).collect();
        let file = self.files.get_key_value(file).map_or_else(|| file.into(), |(file, _)| Arc::clone(file));
        for name in &concerned {
            // Hardly ever are there two, so room for one is made.
            let files = self.files_of.entry(name.clone()).or_insert_with(|| Vec::with_capacity(1));
            files.retain(|known| *known != file);
            if find(&now, name).is_some() {
                files.insert(files.partition_point(|known| *known < file), Arc::clone(&file));
            }
            if files.is_empty() {
                self.files_of.remove(name);
            }
        }
        if now.is_empty() {
            self.files.remove(&file);
        } else {
            self.files.insert(file, now);
        }
        let changes =
            concerned.into_iter().zip(counted).filter_map(|(name, counted)| match self.counting(&name) {
                now if now == counted.as_ref() => None,
                Some(object) => Some(Change::Put(object.clone())),
                None => Some(Change::Remove(name)),
            });
        changes.collect()
    }
}

fn find<'a>(list: &'a [Known], name: &ObjectName) -> Option<&'a Known> {
    list.get(list.binary_search_by(|known| known.name.cmp(name)).ok()?)
}

fn duplicate(place: Place, name: &ObjectName, other: &Place) -> FileProblem {
    let object = match name {
        ObjectName::Service(name) => format!("Service {name}"),
        ObjectName::Slice(name) => format!("EndpointSlice {name}"),
        ObjectName::Node(name) => format!("Node {name}"),
    };
    FileProblem { place, mistake: Mistake::Duplicate { object, other: other.clone() } }
}
