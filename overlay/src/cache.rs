//! What was last known of the network, on disk: a host that starts while etcd is away forwards by it.
//!
//! The file holds what the store held, as keys and values with their revisions, so that starting
//! from it is reading a snapshot like any other. Liveness is left out: it says nothing tomorrow.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_daemon::fs::{WriteError, write_atomic};
use weft_store::{ClusterId, KeyValue, Revision, Snapshot};

use crate::key::Prefix;
use crate::registry::Registry;

/// The file's form; another number in it means another form, which is not read.
const VERSION: u32 = 1;

/// The cache file of one network.
#[derive(Clone, Debug)]
pub struct Cache {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    prefix: String,
    cluster: ClusterId,
    revision: Revision,
    entries: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    value: String,
    mod_revision: Revision,
}

impl Cache {
    /// The cache of a network, in its state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("cache.json") }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The registry as it was; `None` when there is none that can be used, with a word in the log
    /// if there should be: a damaged memory is no reason not to start.
    pub fn read(&self, prefix: &Prefix) -> Option<Registry> {
        let stored = self.stored(prefix)?;
        let entries = stored.entries.into_iter().map(|(key, entry)| {
            let kv = KeyValue {
                key: key.clone(),
                value: entry.value.into_bytes(),
                create_revision: entry.mod_revision,
                mod_revision: entry.mod_revision,
                lease: None,
            };
            (key, kv)
        });
        let snapshot =
            Snapshot { cluster: stored.cluster, revision: stored.revision, entries: entries.collect() };
        Some(Registry::new(prefix.clone(), &snapshot).0)
    }

    /// The prefix in the store of the network that is kept here.
    pub fn prefix(&self) -> Option<Prefix> {
        self.load().map(|stored| Prefix::new(&stored.prefix))
    }

    fn stored(&self, prefix: &Prefix) -> Option<Stored> {
        let stored = self.load()?;
        if stored.prefix != prefix.to_string() {
            tracing::info!(path = %self.path.display(), "the cache is of another prefix");
            return None;
        }
        Some(stored)
    }

    fn load(&self) -> Option<Stored> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the cache cannot be read");
                return None;
            }
        };
        let stored: Stored = serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(path = %self.path.display(), %error, "the cache is damaged"))
            .ok()?;
        if stored.version != VERSION {
            tracing::info!(path = %self.path.display(), "the cache is of another version");
            return None;
        }
        Some(stored)
    }

    /// Keeps the registry. Blocks; five thousand leases are about two megabytes.
    ///
    /// # Errors
    /// When the disk refuses; the former file is then still there.
    pub fn write(&self, registry: &Registry) -> Result<(), WriteError> {
        let prefix = registry.prefix();
        let mut entries = entries(registry);
        if !entries.contains_key(&prefix.config()) {
            // The config that stands in the store cannot be used: the one before it is in force.
            let before = self.stored(prefix).and_then(|mut stored| stored.entries.remove(&prefix.config()));
            entries.extend(before.map(|entry| (prefix.config(), entry)));
        }
        let stored = Stored {
            version: VERSION,
            prefix: prefix.to_string(),
            cluster: registry.cluster(),
            revision: registry.revision(),
            entries,
        };
        let text = serde_json::to_vec(&stored)
            .map_err(|error| WriteError { path: self.path.clone(), source: error.into() })?;
        write_atomic(&self.path, &text, 0o600)
    }
}

/// Lease and record of one subnet keep their own revisions: equal ones say that they belong together.
fn entries(registry: &Registry) -> BTreeMap<String, Entry> {
    let prefix = registry.prefix();
    let mut entries = BTreeMap::new();
    let mut put = |key: String, value: Vec<u8>, mod_revision: Revision| {
        if let Ok(value) = String::from_utf8(value) {
            entries.insert(key, Entry { value, mod_revision });
        }
    };
    if let Some(config) = registry.config_entry().filter(|config| config.fault.is_none()) {
        put(prefix.config(), config.raw.clone(), config.mod_revision);
    }
    for (subnet, entry) in registry.leases() {
        if let Some(attrs) = &entry.attrs {
            put(prefix.lease(subnet), attrs.encode(), entry.attrs_revision);
        }
    }
    for (subnet, entry) in registry.owners() {
        if let Some(record) = &entry.record {
            put(prefix.owner(subnet), record.encode(), entry.record_revision);
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(entries: &[(&str, &str, i64)]) -> Registry {
        let kv = |(key, value, revision): &(&str, &str, i64)| {
            let key = format!("/n/{key}");
            let kv = KeyValue {
                key: key.clone(),
                value: value.as_bytes().to_vec(),
                create_revision: Revision(*revision),
                mod_revision: Revision(*revision),
                lease: None,
            };
            (key, kv)
        };
        let entries = entries.iter().map(kv).collect();
        Registry::new(Prefix::new("/n"), &Snapshot { cluster: ClusterId(7), revision: Revision(9), entries })
            .0
    }

    const CONFIG: (&str, &str, i64) = ("config", r#"{"Network":"10.42.0.0/16"}"#, 2);
    const LEASE: (&str, &str, i64) = ("subnets/10.42.7.0-24", r#"{"PublicIP":"192.0.2.7"}"#, 5);
    const OWNER: (&str, &str, i64) = ("weft/owner/10.42.7.0-24", r#"{"node":"ash","generation":3}"#, 5);

    #[test]
    fn what_was_kept_is_read_back_with_who_owns_what() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        assert!(cache.read(&Prefix::new("/n")).is_none());
        let before = registry(&[CONFIG, LEASE, OWNER]);
        cache.write(&before).unwrap();
        let after = cache.read(&Prefix::new("/n")).unwrap();
        assert_eq!(after.config(), before.config());
        let subnet = "10.42.7.0/24".parse().unwrap();
        assert_eq!(after.holder(&subnet), before.holder(&subnet));
        assert!(cache.read(&Prefix::new("/other")).is_none(), "another network's");
        assert_eq!(cache.prefix(), Some(Prefix::new("/n")), "whose it is can be asked");
    }

    #[test]
    fn a_config_that_cannot_be_used_does_not_displace_the_one_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        cache.write(&registry(&[CONFIG])).unwrap();
        cache.write(&registry(&[("config", "{", 6), LEASE])).unwrap();
        let after = cache.read(&Prefix::new("/n")).unwrap();
        assert!(after.config().is_some());
        assert_eq!(after.leases().count(), 1);
    }

    #[test]
    fn a_damaged_cache_is_no_cache() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cache.json"), b"{\"version\":1,").unwrap();
        assert!(Cache::new(dir.path()).read(&Prefix::new("/n")).is_none());
    }
}
