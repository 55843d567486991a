//! Which pod has which address, kept in one small file per pod so that it survives any restart.
//!
//! A record is written, whole, before the pod's first packet and removed after its last. All
//! changes are made under one lock, so no address is ever given twice, whoever asks: the CNI
//! plugin (a process per call), the node agent, or two at once.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use weft_kernel::net::LinkName;

use super::range::Range;

/// One attachment: a network interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// The container or pod, by the runtime's own id.
    pub id: String,
    /// The interface inside the pod, such as `eth0`.
    pub ifname: String,
    /// The pod's network namespace, as the runtime named it.
    pub netns: PathBuf,
    /// The host's end of the veth pair.
    pub link: String,
    /// The pod's addresses, one of each family at most.
    pub addresses: Vec<IpAddr>,
    /// In whose name it was attached: a CNI network configuration's, which is also who may collect it
    /// as garbage. `None` is weft itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// What is to be recorded, before it has addresses.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// As in [`Record`].
    pub id: &'a str,
    /// As in [`Record`].
    pub ifname: &'a str,
    /// As in [`Record`].
    pub netns: &'a Path,
    /// As in [`Record`].
    pub link: &'a LinkName,
    /// As in [`Record`].
    pub owner: Option<&'a str>,
}

impl Claim<'_> {
    fn record(&self, addresses: Vec<IpAddr>) -> Record {
        Record {
            id: self.id.to_owned(),
            ifname: self.ifname.to_owned(),
            netns: self.netns.to_owned(),
            link: self.link.to_string(),
            addresses,
            owner: self.owner.map(str::to_owned),
        }
    }
}

/// The directory of records of one network on this host.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

/// Why an address could not be recorded or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Reading or writing failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Every address of the range has a pod.
    #[error(
        "every address in {range} has a pod; delete pods or widen the range (SubnetLen or --attach-range)"
    )]
    Exhausted {
        /// The range.
        range: Range,
    },
    /// A wanted address is not to be had.
    #[error("address {addr} {why}")]
    Refused {
        /// The address.
        addr: IpAddr,
        /// "is not in ..." or "belongs to pod ...".
        why: String,
    },
}

/// Held while records are read and changed; dropping it lets the next one in.
#[derive(Debug)]
pub struct Locked<'a> {
    records: &'a Records,
    _lock: nix::fcntl::Flock<File>,
}

impl Records {
    /// The records below a network's state directory; nothing is touched yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("pods") }
    }

    /// Where the records are: to be watched, or removed by cleanup.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every record that can be read, by file name. A damaged one is logged and left in place: its
    /// pod may be alive, and a runtime's DEL or GC will name it.
    ///
    /// # Errors
    /// When the directory exists but cannot be listed.
    pub fn list(&self) -> Result<Vec<Record>, RecordError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.error("list", &self.dir, source)),
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
        paths.sort();
        Ok(paths.iter().filter_map(|path| self.read(path)).collect())
    }

    /// Each range has an address that nobody has.
    ///
    /// # Errors
    /// [`RecordError::Exhausted`] names the first range that has none.
    pub fn have_room(&self, ranges: &[Range]) -> Result<(), RecordError> {
        let taken = addresses(&self.list()?);
        match ranges.iter().find(|range| range.next_free(&taken, None).is_none()) {
            Some(range) => Err(RecordError::Exhausted { range: *range }),
            None => Ok(()),
        }
    }

    /// Waits for the lock. It is held for milliseconds, and a process that dies lets it go.
    ///
    /// # Errors
    /// When the directory cannot be made or its lock file not opened.
    pub fn lock(&self) -> Result<Locked<'_>, RecordError> {
        fs::create_dir_all(&self.dir).map_err(|source| self.error("make", &self.dir, source))?;
        let path = self.dir.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|source| self.error("open", &path, source))?;
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, errno)| self.error("lock", &path, errno.into()))?;
        Ok(Locked { records: self, _lock: lock })
    }

    fn read(&self, path: &Path) -> Option<Record> {
        let text = fs::read(path)
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "pod record"))
            .ok()?;
        serde_json::from_slice(&text)
            .inspect_err(
                |error| tracing::warn!(path = %path.display(), %error, "pod record is damaged; left alone"),
            )
            .ok()
    }

    fn path(&self, id: &str, ifname: &str) -> PathBuf {
        self.dir.join(format!("{}.json", super::link_suffix(id, ifname)))
    }

    fn error(&self, what: &'static str, path: &Path, source: io::Error) -> RecordError {
        RecordError::Io { what, path: path.to_owned(), source }
    }
}

impl Locked<'_> {
    /// The attachment's record, if it has one.
    pub fn find(&self, id: &str, ifname: &str) -> Option<Record> {
        let path = self.records.path(id, ifname);
        if path.exists() { self.records.read(&path) } else { None }
    }

    /// Gives the attachment an address of each range, or the wanted ones, and records it. Asking
    /// again for the same attachment gives the same addresses, unless others are wanted now.
    ///
    /// # Errors
    /// When a range is used up, a wanted address is taken or outside, or the disk fails.
    pub fn allocate(
        &self,
        claim: Claim<'_>,
        ranges: &[Range],
        wanted: &[IpAddr],
    ) -> Result<Record, RecordError> {
        let (id, ifname) = (claim.id, claim.ifname);
        if let Some(known) = self.find(id, ifname) {
            let in_ranges = |addr: &IpAddr| ranges.iter().any(|range| range.contains(*addr));
            let as_wanted = wanted.iter().all(|addr| known.addresses.contains(addr));
            if as_wanted && known.addresses.iter().all(in_ranges) {
                // A runtime starts its containers again after a reboot, in new namespaces.
                let record = claim.record(known.addresses.clone());
                if record != known {
                    self.put(&record)?;
                }
                return Ok(record);
            }
        }
        let others: Vec<Record> = self
            .records
            .list()?
            .into_iter()
            .filter(|record| (record.id.as_str(), record.ifname.as_str()) != (id, ifname))
            .collect();
        let taken = addresses(&others);
        if let Some(stray) = wanted.iter().find(|addr| !ranges.iter().any(|range| range.contains(**addr))) {
            let all = ranges.iter().map(Range::to_string).collect::<Vec<_>>().join(", ");
            return Err(RecordError::Refused { addr: *stray, why: format!("is not in {all}") });
        }
        let mut addresses = Vec::new();
        for range in ranges {
            let addr = match wanted.iter().find(|addr| range.contains(**addr)) {
                Some(addr) => match others.iter().find(|record| record.addresses.contains(addr)) {
                    Some(owner) => {
                        return Err(RecordError::Refused {
                            addr: *addr,
                            why: format!("belongs to pod {}", owner.id),
                        });
                    }
                    None => *addr,
                },
                None => range
                    .next_free(&taken, self.last_given(*range))
                    .ok_or(RecordError::Exhausted { range: *range })?,
            };
            addresses.push(addr);
        }
        let record = claim.record(addresses);
        self.put(&record)?;
        for addr in &record.addresses {
            self.write(&self.last_path(addr.is_ipv4()), addr.to_string().as_bytes())?;
        }
        Ok(record)
    }

    /// Forgets the attachment; one that is not there is no error.
    ///
    /// # Errors
    /// When the file is there but cannot be removed.
    pub fn release(&self, id: &str, ifname: &str) -> Result<(), RecordError> {
        let path = self.records.path(id, ifname);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io("remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn put(&self, record: &Record) -> Result<(), RecordError> {
        let text =
            serde_json::to_vec(record).map_err(|error| self.io("encode", &self.records.dir, error.into()))?;
        self.write(&self.records.path(&record.id, &record.ifname), &text)
    }

    fn last_path(&self, ipv4: bool) -> PathBuf {
        self.records.dir.join(if ipv4 { "last4" } else { "last6" })
    }

    /// A hint only: without it, allocation starts at the range's first address.
    fn last_given(&self, range: Range) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(range.is_ipv4())).ok()?.trim().parse().ok()
    }

    /// Whole or not at all, also when the power goes: a half-written record would free an address.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
        let temporary = path.with_extension("new");
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_data()))
            .and_then(|()| fs::rename(&temporary, path));
        written.map_err(|source| self.io("write", path, source))
    }

    fn io(&self, what: &'static str, path: &Path, source: io::Error) -> RecordError {
        self.records.error(what, path, source)
    }
}

fn addresses(records: &[Record]) -> BTreeSet<IpAddr> {
    records.iter().flat_map(|record| record.addresses.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> LinkName {
        "weft0".parse().unwrap()
    }

    fn ranges() -> Vec<Range> {
        vec!["10.42.7.2-10.42.7.4".parse().unwrap(), "fd00::2-fd00::9".parse().unwrap()]
    }

    fn ip(raw: &str) -> IpAddr {
        raw.parse().unwrap()
    }

    fn give(records: &Records, id: &str, wanted: &[IpAddr]) -> Result<Vec<IpAddr>, RecordError> {
        Ok(records.lock()?.allocate(claim(id, &link()), &ranges(), wanted)?.addresses)
    }

    fn claim<'a>(id: &'a str, link: &'a LinkName) -> Claim<'a> {
        Claim { id, ifname: "eth0", netns: Path::new("/run/netns/x"), link, owner: None }
    }

    #[test]
    fn addresses_are_given_once_and_again_only_after_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        assert_eq!(give(&records, "a", &[]).unwrap(), [ip("10.42.7.2"), ip("fd00::2")]);
        assert_eq!(give(&records, "a", &[]).unwrap(), [ip("10.42.7.2"), ip("fd00::2")], "the same pod again");
        assert_eq!(give(&records, "b", &[]).unwrap(), [ip("10.42.7.3"), ip("fd00::3")]);
        records.lock().unwrap().release("a", "eth0").unwrap();
        let reopened = Records::new(dir.path());
        assert_eq!(give(&reopened, "c", &[]).unwrap(), [ip("10.42.7.4"), ip("fd00::4")], "after a restart");
        assert_eq!(give(&reopened, "d", &[]).unwrap(), [ip("10.42.7.2"), ip("fd00::5")]);
        assert!(matches!(give(&reopened, "e", &[]), Err(RecordError::Exhausted { .. })));
        assert!(matches!(reopened.have_room(&ranges()), Err(RecordError::Exhausted { .. })));
        reopened.have_room(&ranges()[1..]).unwrap();
        assert_eq!(reopened.list().unwrap().len(), 3, "the failed one left nothing");
    }

    #[test]
    fn a_wanted_address_is_given_or_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        assert_eq!(give(&records, "a", &[ip("10.42.7.4")]).unwrap(), [ip("10.42.7.4"), ip("fd00::2")]);
        let taken = give(&records, "b", &[ip("10.42.7.4")]).unwrap_err().to_string();
        assert_eq!(taken, "address 10.42.7.4 belongs to pod a");
        let outside = give(&records, "b", &[ip("10.42.9.4")]).unwrap_err().to_string();
        assert_eq!(outside, "address 10.42.9.4 is not in 10.42.7.2-10.42.7.4, fd00::2-fd00::9");
    }

    #[test]
    fn a_pod_that_comes_again_keeps_its_addresses_unless_it_wants_others() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        let first = give(&records, "a", &[]).unwrap();
        let link = link();
        let elsewhere = Claim { netns: Path::new("/run/netns/y"), owner: Some("pods"), ..claim("a", &link) };
        let again = records.lock().unwrap().allocate(elsewhere, &ranges(), &[]).unwrap();
        assert_eq!((again.addresses.clone(), again.netns.to_str()), (first, Some("/run/netns/y")));
        assert_eq!(records.list().unwrap(), [again], "as it is now");
        assert_eq!(give(&records, "a", &[ip("10.42.7.4")]).unwrap()[0], ip("10.42.7.4"));
    }

    #[test]
    fn a_damaged_record_is_skipped_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        give(&records, "a", &[]).unwrap();
        let damaged = records.dir().join("zz.json");
        fs::write(&damaged, b"{\"id\":").unwrap();
        assert_eq!(records.list().unwrap().len(), 1);
        assert!(damaged.exists());
    }

    #[test]
    fn many_at_once_get_different_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        let range: Vec<Range> = vec!["10.42.7.2-10.42.7.200".parse().unwrap()];
        let all: Vec<IpAddr> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let (records, range) = (&records, &range);
                    scope.spawn(move || {
                        let give = |n| {
                            let id = format!("pod-{thread}-{n}");
                            let locked = records.lock().unwrap();
                            locked.allocate(claim(&id, &link()), range, &[]).unwrap().addresses
                        };
                        (0..10).flat_map(give).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 80);
    }
}
