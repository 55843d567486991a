//! Reads the files of a folder and watches it. All decisions are in [`super::folder`].
//!
//! The folder itself is watched, not what is below it, as `kubectl apply -f` takes it. A file counts
//! if its name ends in `.yaml`, `.yml` or `.json` and does not begin with a dot. A folder that
//! Kubernetes mounts from a ConfigMap works too: there a symbolic link named `..data` is exchanged.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::folder::{Folder, Update};
use super::parse::{FileProblem, Mistake, Place};

/// The folder cannot be read or watched. Nothing that was known is gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the manifests in {}", path.display())]
pub struct SourceError {
    /// `read` or `watch`.
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A folder of manifests, watched.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    folder: Folder,
    watch: AsyncFd<Watch>,
}

/// An inotify instance, as tokio wants it.
#[derive(Debug)]
struct Watch(Inotify);

/// What happened in the folder.
#[derive(Debug, Default, PartialEq, Eq)]
struct Happened {
    files: BTreeSet<String>,
    /// Look at all of it: events were lost, or a link that many files go through was exchanged.
    all: bool,
    /// The folder is no longer there under its name.
    gone: bool,
}

impl Source {
    /// Begins to watch the folder, then reads it, so that nothing falls between.
    ///
    /// # Errors
    /// When the folder cannot be watched or listed. A file in it that cannot be read is a problem in
    /// the update.
    pub fn open(path: &Path) -> Result<(Self, Update), SourceError> {
        let watch = watch(path)?;
        let mut source = Self { path: path.to_owned(), folder: Folder::default(), watch };
        let update = source.read_all()?;
        Ok((source, update))
    }

    /// Watches and reads the folder anew, after an error. What is known stays known meanwhile.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn reopen(&mut self) -> Result<Update, SourceError> {
        self.watch = watch(&self.path)?;
        self.read_all()
    }

    /// Waits until something in the folder is different, or wrong. The future may be dropped at any
    /// time: what was taken from the kernel has also been returned.
    ///
    /// # Errors
    /// When the folder is gone or cannot be read; [`Source::reopen`] is due, now and then.
    pub async fn next(&mut self) -> Result<Update, SourceError> {
        loop {
            let happened = {
                let mut ready = self.watch.readable().await.map_err(|source| self.error("watch", source))?;
                match ready.try_io(|watch| Ok(watch.get_ref().0.read_events()?)) {
                    Ok(events) => Happened::of(&events.map_err(|source| self.error("watch", source))?),
                    Err(_would_block) => continue,
                }
            };
            if happened.gone {
                return Err(self.error("watch", Errno::ENOENT.into()));
            }
            let update = if happened.all { self.read_all()? } else { self.read(happened.files) };
            if update != Update::default() {
                return Ok(update);
            }
        }
    }

    fn read_all(&mut self) -> Result<Update, SourceError> {
        let entries = fs::read_dir(&self.path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|source| self.error("read", source))?;
        let there = entries.iter().filter_map(|entry| counts(&entry.file_name()));
        let known = self.folder.files().map(str::to_owned);
        let files: BTreeSet<String> = there.chain(known).collect();
        Ok(self.read(files))
    }

    fn read(&mut self, files: BTreeSet<String>) -> Update {
        let mut update = Update::default();
        for file in files {
            match fs::read_to_string(self.path.join(&file)) {
                Ok(contents) => update.join(self.folder.put(&file, &contents)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    update.join(self.folder.remove(&file))
                }
                Err(error) => {
                    let place = Place { file: file.into(), document: 1, item: None };
                    update.problems.push(FileProblem { place, mistake: Mistake::File(error.to_string()) });
                }
            }
        }
        update
    }

    fn error(&self, what: &'static str, source: io::Error) -> SourceError {
        SourceError { what, path: self.path.clone(), source }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn watch(path: &Path) -> Result<AsyncFd<Watch>, SourceError> {
    let open = || -> io::Result<_> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // A file is read when its writer is done with it; IN_CREATE is for links, which nobody writes.
        let contents = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB;
        let names = AddWatchFlags::IN_MOVE | AddWatchFlags::IN_DELETE;
        let itself = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(path, contents | names | itself | AddWatchFlags::IN_ONLYDIR)?;
        // SAFETY: the inotify owns its descriptor and keeps it open as long as it lives, and it lives
        // as long as the AsyncFd, which nothing here takes it out of.
        Ok(unsafe { AsyncFd::register_with_interest(Watch(inotify), Interest::READABLE) }?)
    };
    open().map_err(|source| SourceError { what: "watch", path: path.to_owned(), source })
}

impl Happened {
    fn of(events: &[InotifyEvent]) -> Self {
        let mut happened = Self::default();
        let deleted = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        let unwatched = AddWatchFlags::IN_UNMOUNT | AddWatchFlags::IN_IGNORED;
        for event in events {
            happened.gone |= event.mask.intersects(deleted | unwatched);
            happened.all |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            let Some(name) = &event.name else { continue };
            happened.all |= name.as_encoded_bytes().starts_with(b"..");
            happened.files.extend(counts(name));
        }
        happened
    }
}

/// The name of a file that holds manifests.
fn counts(name: &OsStr) -> Option<String> {
    let name = name.to_str()?;
    let ends = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
    (ends && !name.starts_with('.')).then(|| name.to_owned())
}
