//! The files that the daemon keeps for others and for its next start; each is written when it changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weft_daemon::fs::{WriteError, write_atomic};
use weft_kernel::net::Mac;
use weft_store::Revision;

use super::assemble;
use crate::attach::site::Site;
use crate::cache::Cache;
use crate::model::{Model, Subnet};
use crate::options::Options;
use crate::plan::Desired;
use crate::registry::Registry;

/// The cache is written at most this often: five thousand leases that change one by one must not
/// become five thousand writes of two megabytes.
const CACHE_PAUSE: Duration = Duration::from_secs(2);

/// Paths, and what was written to them last.
#[derive(Debug)]
pub(super) struct Files {
    subnet_file: PathBuf,
    site: PathBuf,
    adopted: PathBuf,
    cache: Cache,
    written: BTreeMap<PathBuf, Vec<u8>>,
    /// What the cache was written from, when, and what was our subnet then.
    cached: Option<(Revision, Instant, Option<Subnet>)>,
}

/// VTEP MACs that were flannel's, until our own lease tells of them.
#[derive(Default, Serialize, Deserialize)]
struct Adopted {
    v4: Option<String>,
    v6: Option<String>,
}

impl Files {
    pub(super) fn new(options: &Options) -> Self {
        let state = options.network_state_dir();
        Self {
            subnet_file: options.subnet_file.clone(),
            site: Site::path(&options.run_dir, options.network.as_str()),
            adopted: state.join("adopted.json"),
            cache: Cache::new(&state),
            written: BTreeMap::new(),
            cached: None,
        }
    }

    /// Writes what changed. The first failure is returned after all were tried; what could not be
    /// written is tried again by the next pass.
    pub(super) fn write(
        &mut self,
        model: &Model,
        desired: &Desired,
        site: Option<&Site>,
        registry: Option<&Registry>,
    ) -> Option<String> {
        let mut errors = Vec::new();
        if let Some(file) = assemble::subnet_file(model, desired.pod_mtu) {
            // World-readable, as flannel's: container runtimes read it.
            errors.extend(self.put(&self.subnet_file.clone(), file.render().into_bytes(), 0o644).err());
        }
        let offer = match site {
            Some(site) => match serde_json::to_vec_pretty(site) {
                Ok(text) => self.put(&self.site.clone(), text, 0o644),
                Err(error) => Err(WriteError { path: self.site.clone(), source: error.into() }),
            },
            None => self.remove(&self.site.clone()),
        };
        errors.extend(offer.err());
        if let Some(registry) = registry {
            // What is ours must be in it at once: a host that loses power now comes back by it.
            let subnet = model.me.subnet;
            let due = self.cached.is_none_or(|(revision, at, ours)| {
                ours != subnet || (revision != registry.revision() && at.elapsed() >= CACHE_PAUSE)
            });
            if due {
                errors.extend(self.remember(registry, subnet).err());
            }
        }
        errors.first().map(|error| weft_daemon::log::chain(error))
    }

    /// Writes the cache, from which the next start may have to live.
    pub(super) fn remember(&mut self, registry: &Registry, subnet: Option<Subnet>) -> Result<(), WriteError> {
        self.cache.write(registry)?;
        self.cached = Some((registry.revision(), Instant::now(), subnet));
        Ok(())
    }

    /// The MACs taken over from flannel, IPv4 and IPv6, if any were.
    pub(super) fn adopted(&self) -> Option<(Option<Mac>, Option<Mac>)> {
        let text = fs::read(&self.adopted).ok()?;
        let adopted: Adopted = serde_json::from_slice(&text).ok()?;
        let mac = |raw: Option<String>| raw.and_then(|raw| raw.parse().ok());
        Some((mac(adopted.v4), mac(adopted.v6)))
    }

    pub(super) fn adopt(&mut self, (v4, v6): (Option<Mac>, Option<Mac>)) -> Result<(), WriteError> {
        let text = |mac: Option<Mac>| mac.map(|mac| mac.to_string());
        let path = self.adopted.clone();
        let adopted = serde_json::to_vec(&Adopted { v4: text(v4), v6: text(v6) })
            .map_err(|error| WriteError { path: path.clone(), source: error.into() })?;
        write_atomic(&path, &adopted, 0o600)
    }

    fn put(&mut self, path: &Path, content: Vec<u8>, mode: u32) -> Result<(), WriteError> {
        // Looked at on disk too: somebody may have removed it, and reading is cheap.
        if self.written.get(path) == Some(&content) && path.exists() {
            return Ok(());
        }
        write_atomic(path, &content, mode)?;
        self.written.insert(path.to_owned(), content);
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<(), WriteError> {
        self.written.remove(path);
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(WriteError { path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }
}
