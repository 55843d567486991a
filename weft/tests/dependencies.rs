//! Dependencies between our crates point one way, as ARCHITECTURE.md says. A crate that starts to
//! use another one has to be written down here first.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Who may use whom, tests included.
const MAY_USE: &[(&str, &[&str])] = &[
    ("weft-store", &[]),
    ("weft-kernel", &[]),
    ("weft-daemon", &["weft-kernel"]),
    ("weft-overlay", &["weft-daemon", "weft-kernel", "weft-store"]),
    ("weft-proxy", &["weft-daemon", "weft-kernel"]),
    ("weft-lab", &["weft-kernel"]),
    ("weft-benches", &["weft-lab"]),
    ("weft", &["weft-benches", "weft-daemon", "weft-lab", "weft-overlay", "weft-proxy"]),
];

#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        MAY_USE.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    let workspace = workspace();
    for (name, uses) in &workspace {
        let may = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in MAY_USE"));
        for used in uses {
            assert!(may.contains(used.as_str()), "{name} must not depend on {used}");
        }
    }
    assert_eq!(workspace.len(), MAY_USE.len(), "MAY_USE names a crate that is gone");
}

/// Each member of the workspace with the members it depends on.
fn workspace() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("metadata lists packages");
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    packages
        .iter()
        .map(|package| {
            let uses = package["dependencies"].as_array().expect("dependencies").iter().map(name);
            (name(package), uses.filter(|used| members.contains(used)).collect())
        })
        .collect()
}
