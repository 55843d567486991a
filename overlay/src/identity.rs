//! Who this host is when nobody said: the machine id, else an id made once and kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use weft_daemon::fs::{WriteError, write_atomic};

use crate::model::NodeId;
use crate::options::Options;

/// machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";

/// The host has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A made id is there, but not readable.
    #[error("cannot read this host's id from {}; set --node-id", path.display())]
    Read {
        /// Where it is kept.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A made id could not be kept, so the next start would be another host.
    #[error("cannot keep this host's id; set --node-id")]
    Keep(#[from] WriteError),
}

/// The node id: `--node-id`, else the machine id, else the one in the state directory, which is made
/// (at random) if it is not there.
///
/// # Errors
/// When the id would not be the same at the next start.
pub fn node_id(options: &Options) -> Result<NodeId, IdentityError> {
    match &options.node_id {
        Some(given) => Ok(given.clone()),
        None => found_or_made(Path::new(MACHINE_ID), &options.state_dir.join("node-id")),
    }
}

fn found_or_made(machine_id: &Path, kept: &Path) -> Result<NodeId, IdentityError> {
    // An image before its first boot says `uninitialized`, or nothing.
    let machine = fs::read_to_string(machine_id).ok().and_then(|text| hexadecimal(&text));
    if let Some(id) = machine {
        return Ok(id);
    }
    match fs::read_to_string(kept) {
        Ok(text) => match hexadecimal(&text) {
            Some(id) => return Ok(id),
            None => tracing::warn!(file = %kept.display(), "holds no node id; a new one is made"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(IdentityError::Read { path: kept.to_owned(), source }),
    }
    let made = format!("{:032x}", rand::random::<u128>());
    write_atomic(kept, format!("{made}\n").as_bytes(), 0o644)?;
    Ok(NodeId::try_from(made).expect("32 hexadecimal digits are a node id"))
}

/// 32 hexadecimal digits, as in machine-id(5).
fn hexadecimal(text: &str) -> Option<NodeId> {
    let text = text.trim();
    let fits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then(|| NodeId::try_from(text.to_owned()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME_ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn the_machine_id_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let (machine, kept) = (home.path().join("machine-id"), home.path().join("weft/node-id"));
        fs::write(&machine, format!("{SOME_ID}\n")).unwrap();
        assert_eq!(found_or_made(&machine, &kept).unwrap().as_str(), SOME_ID);
        assert!(!kept.exists());
    }

    #[test]
    fn without_a_machine_id_one_is_made_and_kept() {
        for unusable in [None, Some(""), Some("uninitialized\n"), Some("00")] {
            let home = tempfile::tempdir().unwrap();
            let (machine, kept) = (home.path().join("machine-id"), home.path().join("weft/node-id"));
            if let Some(text) = unusable {
                fs::write(&machine, text).unwrap();
            }
            let made = found_or_made(&machine, &kept).unwrap();
            assert_eq!(found_or_made(&machine, &kept).unwrap(), made);
            fs::remove_file(&kept).unwrap();
            assert_ne!(found_or_made(&machine, &kept).unwrap(), made);
        }
    }

    #[test]
    fn an_id_that_cannot_be_kept_is_none() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(found_or_made(Path::new("/nonexistent"), &file.join("node-id")).is_err());
    }

    #[test]
    fn a_given_id_is_taken_as_it_is() {
        let given = NodeId::try_from("ash".to_owned()).unwrap();
        let options = Options { node_id: Some(given.clone()), ..Options::default() };
        assert_eq!(node_id(&options).unwrap(), given);
    }
}
