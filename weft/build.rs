//! Puts the version, and the commit if it can be known, into the binary. Needs no git: reads its files.

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=WEFT_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let given = std::env::var("WEFT_COMMIT").ok().filter(|commit| !commit.is_empty());
    let version = match given.or_else(|| commit_of(Path::new("../.git"))) {
        Some(commit) => format!("{version} ({})", commit.get(..12).unwrap_or(&commit)),
        None => version,
    };
    println!("cargo::rustc-env=WEFT_VERSION={version}");
}

/// The commit that is checked out, if this is a git checkout (gitrepository-layout(5)).
fn commit_of(git: &Path) -> Option<String> {
    // In a linked work tree `.git` is a file that names the directory.
    let git = match fs::read_to_string(git) {
        Ok(text) => PathBuf::from(text.strip_prefix("gitdir: ")?.trim()),
        Err(_) => git.to_owned(),
    };
    let head = watched(&git.join("HEAD"))?;
    let Some(reference) = head.strip_prefix("ref: ") else { return is_commit(head) };
    let common = match fs::read_to_string(git.join("commondir")) {
        Ok(path) => git.join(path.trim()),
        Err(_) => git,
    };
    if let Some(commit) = watched(&common.join(reference)) {
        return is_commit(commit);
    }
    let packed = watched(&common.join("packed-refs"))?;
    let line = packed.lines().find_map(|line| line.strip_suffix(reference)?.strip_suffix(' '));
    is_commit(line?.to_owned())
}

fn is_commit(text: String) -> Option<String> {
    (text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
}

/// A file's text; cargo builds anew when it changes.
fn watched(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text.trim_end().to_owned())
}
