//! Writing a file so that a reader, or a machine that lost power, finds the old one or the new one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file could not be written; the old one, if any, is untouched.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Replaces a file by one with this content and exactly this mode (whatever the umask). Missing
/// directories are made, with 0755.
///
/// The data is on the disk before the name points to it, and the name before this returns. A symbolic
/// link at `path` is itself replaced. Blocks; the files it is meant for are a few kilobytes.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<(), WriteError> {
    let run = || {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(directory)?;
        let temporary = Temporary::beside(path)?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode & 0o600).open(&temporary.0)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary.0, path)?;
        File::open(directory)?.sync_all()
    };
    run().map_err(|source| WriteError { path: path.to_owned(), source })
}

/// A name in the same directory, hence on the same file system; removed unless it was renamed away.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(path: &Path) -> io::Result<Self> {
        // Two writers of one file in one process must not share a temporary one.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(hidden);
        // Left by a process of the same id that was killed half-way; nobody else uses this name.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self(temporary)),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing under this name; an error here has no better reader.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn content_and_mode_are_exact_and_nothing_else_is_left() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b/subnet.env");
        for (content, bits) in [("one", 0o644), ("two, longer", 0o600), ("", 0o666)] {
            write_atomic(&path, content.as_bytes(), bits).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(mode(&path), bits);
        }
        assert_eq!(names(path.parent().unwrap()), ["subnet.env"]);
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_the_directory_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let occupied = home.path().join("occupied");
        fs::create_dir(&occupied).unwrap();
        let error = write_atomic(&occupied, b"x", 0o644).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}", occupied.display()));
        assert_eq!(names(home.path()), ["occupied"]);
        assert!(write_atomic(Path::new("/"), b"x", 0o644).is_err());
    }

    /// Readers of the file while it is rewritten a hundred times see whole versions only.
    #[test]
    fn a_reader_never_sees_half_a_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state.json");
        let versions = [vec![b'a'; 9000], vec![b'b'; 70_000]];
        write_atomic(&path, &versions[0], 0o600).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..100 {
                    write_atomic(&path, &versions[round % 2], 0o600).unwrap();
                }
            });
            while !writer.is_finished() {
                assert!(versions.contains(&fs::read(&path).unwrap()));
            }
        });
    }
}
