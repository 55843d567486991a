//! The files that the daemon keeps for others and for its next start; each is written when it changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};
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
    /// The cache on its way to the disk, beside the passes.
    caching: Option<JoinHandle<Result<(), WriteError>>>,
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
            caching: None,
        }
    }

    /// Writes what changed. The first failure is returned after all were tried; what could not be
    /// written is tried again by the next pass.
    pub(super) async fn write(
        &mut self,
        model: &Model,
        desired: &Desired,
        site: Option<&Site>,
        registry: Option<&Arc<Registry>>,
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
            errors.extend(self.keep_cache(registry, model.me.subnet).await.err());
        }
        errors.first().map(|error| weft_daemon::log::chain(error))
    }

    /// Writes the cache when it is due. A pass that heals must not wait for a busy disk, so this only
    /// begins it, and tells of a failure the next time; but what is ours must be on the disk before
    /// anybody hears of it: a host that loses power then comes back by it.
    async fn keep_cache(
        &mut self,
        registry: &Arc<Registry>,
        subnet: Option<Subnet>,
    ) -> Result<(), WriteError> {
        if self.caching.as_ref().is_some_and(JoinHandle::is_finished) {
            self.cache_written().await?;
        }
        match self.cached {
            Some((revision, at, ours)) if ours == subnet => {
                if self.caching.is_none() && revision != registry.revision() && at.elapsed() >= CACHE_PAUSE {
                    self.begin_cache(registry, subnet);
                }
                Ok(())
            }
            _ => self.remember(registry, subnet).await,
        }
    }

    /// Writes the cache, from which the next start may have to live, and waits for it.
    pub(super) async fn remember(
        &mut self,
        registry: &Arc<Registry>,
        subnet: Option<Subnet>,
    ) -> Result<(), WriteError> {
        // Two writers at once could leave the older content; this one says it all anew.
        let _ = self.cache_written().await;
        self.begin_cache(registry, subnet);
        self.cache_written().await
    }

    fn begin_cache(&mut self, registry: &Arc<Registry>, subnet: Option<Subnet>) {
        let (cache, content) = (self.cache.clone(), Arc::clone(registry));
        self.caching = Some(spawn_blocking(move || cache.write(&content)));
        self.cached = Some((registry.revision(), Instant::now(), subnet));
    }

    /// Waits for the cache that is on its way, if one is.
    async fn cache_written(&mut self) -> Result<(), WriteError> {
        let Some(caching) = self.caching.take() else { return Ok(()) };
        let written = caching.await.unwrap_or_else(|panicked| {
            Err(WriteError { path: self.cache.path().to_owned(), source: io::Error::other(panicked) })
        });
        if written.is_err() {
            self.cached = None;
        }
        written
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

#[cfg(test)]
mod tests {
    use weft_store::{ClusterId, KeyValue, Snapshot};

    use super::*;
    use crate::key::Prefix;

    /// As many leases as the revision says.
    fn registry(revision: i64) -> Arc<Registry> {
        let lease = |number: i64| {
            let key = format!("/n/subnets/10.42.{number}.0-24");
            let value = br#"{"PublicIP":"192.0.2.7"}"#.to_vec();
            let revision = Revision(number);
            let (create_revision, mod_revision) = (revision, revision);
            (key.clone(), KeyValue { key, value, create_revision, mod_revision, lease: None })
        };
        let entries = (1..=revision).map(lease).collect();
        let snapshot = Snapshot { cluster: ClusterId(7), revision: Revision(revision), entries };
        Arc::new(Registry::new(Prefix::new("/n"), &snapshot).0)
    }

    #[tokio::test]
    async fn the_cache_is_written_beside_the_passes_unless_it_tells_of_our_own_subnet() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { state_dir: dir.path().to_owned(), ..Options::default() };
        let mut files = Files::new(&options);
        let cache = Cache::new(&options.network_state_dir());
        let kept = || cache.read(&Prefix::new("/n")).map(|registry| registry.leases().count());
        let ours: Option<Subnet> = Some("10.42.1.0/24".parse().unwrap());

        files.keep_cache(&registry(1), ours).await.unwrap();
        assert_eq!((kept(), files.caching.is_none()), (Some(1), true), "at once");
        files.keep_cache(&registry(2), ours).await.unwrap();
        assert_eq!((kept(), files.caching.is_none()), (Some(1), true), "not so soon again");
        files.cached = Instant::now().checked_sub(CACHE_PAUSE).map(|at| (Revision(1), at, ours));
        files.keep_cache(&registry(3), ours).await.unwrap();
        assert!(files.caching.is_some(), "it is on its way");
        files.remember(&registry(4), ours).await.unwrap();
        assert_eq!(kept(), Some(4), "the last word counts");
    }

    #[tokio::test]
    async fn a_cache_that_could_not_be_written_is_told_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { state_dir: dir.path().join("state"), ..Options::default() };
        let mut files = Files::new(&options);
        std::fs::write(dir.path().join("state"), "no directory").unwrap();
        for _ in 0..2 {
            files.keep_cache(&registry(1), None).await.unwrap_err();
        }
        std::fs::remove_file(dir.path().join("state")).unwrap();
        files.keep_cache(&registry(1), None).await.unwrap();
    }
}
