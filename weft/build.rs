//! Puts the version, and the commit if it can be known, into the binary.

#[path = "build/commit.rs"]
mod commit;

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed=WEFT_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let given = std::env::var("WEFT_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| {
        let found = commit::checked_out(Path::new(".."));
        for path in found.watch {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        found.commit
    });
    let version = match commit {
        Some(commit) => format!("{version} ({})", commit.get(..12).unwrap_or(&commit)),
        None => version,
    };
    println!("cargo::rustc-env=WEFT_VERSION={version}");
}
