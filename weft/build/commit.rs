//! Which commit is checked out, and what to watch to notice that another one is. Needs no git: reads
//! its files (gitrepository-layout(5)).

use std::fs;
use std::path::{Path, PathBuf};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The commit; `None` if this is no checkout, or one in a form that is not known here.
    pub(crate) commit: Option<String>,
    /// Files, and directories with all that is in them: while none of these changes, the commit is this
    /// one. All of them exist: cargo takes a path that is missing for one that changed, every time.
    pub(crate) watch: Vec<PathBuf>,
}

/// Looks at the checkout whose top is `root`.
pub(crate) fn checked_out(root: &Path) -> Found {
    let mut found = Found::default();
    found.commit = found.read(root);
    found
}

impl Found {
    fn read(&mut self, root: &Path) -> Option<String> {
        let mut git = root.join(".git");
        // In a linked work tree or a submodule `.git` is a file that names the directory.
        if git.is_file() {
            git = root.join(self.text(&git)?.strip_prefix("gitdir: ")?);
        }
        let head = self.text(&git.join("HEAD"))?;
        let Some(reference) = head.strip_prefix("ref: ") else { return is_commit(&head) };
        // Branches are common to all work trees.
        let common = match fs::read_to_string(git.join("commondir")) {
            Ok(path) => git.join(path.trim_end()),
            Err(_) => git,
        };
        // A branch is a file of its own or a line of `packed-refs`, and the file counts.
        if let Some(commit) = self.text(&common.join(reference)) {
            return is_commit(&commit);
        }
        // The next commit makes the file: the closest directory that is there will change.
        self.watch.extend(common.join(reference).ancestors().find(|path| path.is_dir()).map(Path::to_owned));
        let packed = self.text(&common.join("packed-refs"))?;
        packed.lines().find_map(|line| is_commit(line.strip_suffix(reference)?.strip_suffix(' ')?))
    }

    /// A file's text, which is watched from now on.
    fn text(&mut self, path: &Path) -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        self.watch.push(path.to_owned());
        Some(text.trim_end().to_owned())
    }
}

/// SHA-1 or SHA-256, in hex.
fn is_commit(text: &str) -> Option<String> {
    let whole = matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    whole.then(|| text.to_owned())
}
