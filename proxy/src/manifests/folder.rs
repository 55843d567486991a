//! What is known from all files of a folder together. Pure: contents come in, changes of the model
//! go out.

use std::collections::{BTreeMap, BTreeSet};

use super::parse::{FileProblem, Mistake, Parsed, Place, parse};
use crate::model::{Change, Object, ObjectName};

/// The objects of a folder, file by file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folder {
    files: BTreeMap<String, BTreeMap<ObjectName, Known>>,
    /// The files that have an object. The first one counts.
    files_of: BTreeMap<ObjectName, BTreeSet<String>>,
}

/// What a file says of an object.
#[derive(Clone, Debug, PartialEq)]
struct Known {
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
        self.files.keys().map(String::as_str)
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
                None => match before.get(&stated.name) {
                    Some(known) => known.object.clone(),
                    None => continue,
                },
            };
            now.insert(stated.name, Known { place, object });
        }
        if !complete {
            for (name, known) in before {
                now.entry(name).or_insert(known);
            }
        }
        for (name, known) in &now {
            let first =
                self.files_of.get(name).and_then(BTreeSet::first).filter(|other| other.as_str() < file);
            if let Some(other) = first.and_then(|first| self.files.get(first)?.get(name)) {
                problems.push(duplicate(known.place.clone(), name, &other.place));
            }
        }
        Update { changes: self.replace(file, now), problems }
    }

    /// The file is gone.
    pub fn remove(&mut self, file: &str) -> Update {
        Update { changes: self.replace(file, BTreeMap::new()), problems: Vec::new() }
    }

    /// What counts for an object.
    fn counting(&self, name: &ObjectName) -> Option<&Object> {
        let file = self.files_of.get(name)?.first()?;
        self.files.get(file)?.get(name)?.object.as_ref()
    }

    fn replace(&mut self, file: &str, now: BTreeMap<ObjectName, Known>) -> Vec<Change> {
        let before = self.files.get(file).into_iter().flat_map(BTreeMap::keys);
        let concerned: BTreeSet<ObjectName> = before.chain(now.keys()).cloned().collect();
        let counted: Vec<Option<Object>> =
            concerned.iter().map(|name| self.counting(name).cloned()).collect();
        for name in &concerned {
            let files = self.files_of.entry(name.clone()).or_default();
            if now.contains_key(name) {
                files.insert(file.to_owned())
            } else {
                files.remove(file)
            };
            if files.is_empty() {
                self.files_of.remove(name);
            }
        }
        if now.is_empty() {
            self.files.remove(file);
        } else {
            self.files.insert(file.to_owned(), now);
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

fn duplicate(place: Place, name: &ObjectName, other: &Place) -> FileProblem {
    let object = match name {
        ObjectName::Service(name) => format!("Service {name}"),
        ObjectName::Slice(name) => format!("EndpointSlice {name}"),
        ObjectName::Node(name) => format!("Node {name}"),
    };
    FileProblem { place, mistake: Mistake::Duplicate { object, other: other.clone() } }
}
