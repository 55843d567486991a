//! A lab's record on disk: the only place where its state is kept.
//!
//! It is written *before* what it speaks of is made, so that `down` finds everything after a crash
//! at any moment. Every change is read, changed and written under a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::LabError;
use crate::faults::Faults;
use crate::layout::Spec;
use crate::process::ProcessId;

/// The record's name in a lab's directory.
const FILE: &str = "lab.json";

/// What is known of a lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What it is made of.
    pub spec: Spec,
    /// Whose it is: the lab ends with this process. `None` is a lab that stays until `down`.
    pub owner: Option<ProcessId>,
    /// Every namespace that may exist.
    pub namespaces: Vec<String>,
    /// The running daemon of each node, by the node's name.
    pub daemons: BTreeMap<String, ProcessId>,
    /// The pods.
    pub pods: Vec<PodRecord>,
    /// The machines that are powered off.
    pub off: BTreeSet<String>,
    /// What is broken on the underlay.
    pub faults: Faults,
    /// How often etcd was wiped: a part of the cluster's token, so that its id changes.
    pub etcd_generation: u32,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// The host it is on.
    pub host: String,
    /// Its name there.
    pub name: String,
    /// Its namespace.
    pub netns: String,
    /// Its addresses, once attached.
    pub addresses: Vec<std::net::IpAddr>,
    /// What CNI ADD answered: a runtime keeps it for CHECK and DEL.
    #[serde(default)]
    pub result: serde_json::Value,
}

impl Record {
    /// A lab of which nothing exists yet.
    pub fn new(spec: Spec, owner: Option<ProcessId>, namespaces: Vec<String>) -> Self {
        Self {
            spec,
            owner,
            namespaces,
            daemons: BTreeMap::new(),
            pods: vec![],
            off: BTreeSet::new(),
            faults: Faults::default(),
            etcd_generation: 0,
        }
    }

    /// The process it belonged to is gone.
    pub fn is_orphaned(&self) -> bool {
        self.owner.is_some_and(|owner| !owner.is_alive())
    }
}

/// A lab's directory, with its record in it.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    dir: PathBuf,
}

impl Home {
    /// The directory of the lab `name` among the labs in `labs`.
    pub(crate) fn of(labs: &Path, name: &str) -> Self {
        Self { dir: labs.join(name) }
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the name: writes the first record, unless there is one. `Ok(false)` if there is.
    pub(crate) fn claim(&self, record: &Record) -> Result<bool, LabError> {
        fs::create_dir_all(&self.dir).map_err(LabError::io(format!("make {}", self.dir.display())))?;
        let _lock = self.lock()?;
        if self.dir.join(FILE).exists() {
            return Ok(false);
        }
        self.write(record).map(|()| true)
    }

    /// The record, if there is such a lab.
    pub(crate) fn read(&self) -> Result<Option<Record>, LabError> {
        let path = self.dir.join(FILE);
        match fs::read(&path) {
            Ok(json) => {
                serde_json::from_slice(&json).map(Some).map_err(|source| LabError::Record { path, source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LabError::io(format!("read {}", path.display()))(error)),
        }
    }

    /// Changes the record.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T, LabError> {
        let _lock = self.lock()?;
        let mut record = self.existing()?;
        let result = change(&mut record);
        self.write(&record).map(|()| result)
    }

    /// The record of a lab that must be there.
    pub(crate) fn existing(&self) -> Result<Record, LabError> {
        self.read()?.ok_or_else(|| LabError::NoSuchLab {
            name: self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            dir: self.dir.parent().unwrap_or(Path::new("/")).to_owned(),
        })
    }

    /// Removes the directory with everything in it; the record last, so that an interrupted
    /// removal can be taken up again.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries.flatten().filter(|entry| entry.file_name() != FILE) {
            let path = entry.path();
            if entry.file_type()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        fs::remove_dir_all(&self.dir)
    }

    fn lock(&self) -> Result<Flock<File>, LabError> {
        let path = self.dir.join("lock");
        let what = format!("lock {}", path.display());
        let file = File::create(&path).map_err(LabError::io(&what))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| LabError::io(what)(errno.into()))
    }

    /// A reader never sees half a record: written aside, then renamed.
    fn write(&self, record: &Record) -> Result<(), LabError> {
        let (path, aside) = (self.dir.join(FILE), self.dir.join("lab.json.new"));
        let json = serde_json::to_vec_pretty(record).expect("plain data with string keys");
        File::create(&aside)
            .and_then(|mut file| file.write_all(&json))
            .and_then(|()| fs::rename(&aside, &path))
            .map_err(LabError::io(format!("write {}", path.display())))
    }
}

/// The names of the labs in a directory, sorted.
pub(crate) fn names(labs: &Path) -> Result<Vec<String>, LabError> {
    let entries = match fs::read_dir(labs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(LabError::io(format!("list {}", labs.display()))(error)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join(FILE).exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}
