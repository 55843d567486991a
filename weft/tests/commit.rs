//! The commit in `weft --version`: found in every form of checkout, and every move of it is noticed.

#[path = "../build/commit.rs"]
mod commit;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use commit::checked_out;

/// Runs git without the settings of who runs the test.
fn git(at: &Path, args: &str) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=weft", "-c", "user.email=weft@localhost", "-c", "init.defaultBranch=main"])
        .args(args.split(' '))
        .current_dir(at)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What cargo would see of these paths: files, and directories with all that is in them.
fn seen(paths: &[PathBuf]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut seen = BTreeMap::new();
    for path in paths {
        if path.is_dir() {
            let inside: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            seen.extend(self::seen(&inside));
        } else {
            seen.insert(path.clone(), fs::read(path).unwrap_or_default());
        }
    }
    seen
}

#[test]
fn every_move_of_the_checkout_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (main, tree) = (dir.path().join("main"), dir.path().join("tree"));
    fs::create_dir(&main).unwrap();
    git(&main, "init -q");
    git(&main, "commit -q --allow-empty -m 0");
    git(&main, "worktree add -q -b side ../tree");
    let moves = [
        (&main, "commit -q --allow-empty -m 1"),
        (&main, "pack-refs --all"),
        // The branch is a line of packed-refs now, and this makes a file of it.
        (&main, "commit -q --allow-empty -m 2"),
        (&main, "commit -q --amend --allow-empty -m 3"),
        (&main, "checkout -q -b topic/one"),
        (&main, "commit -q --allow-empty -m 4"),
        (&main, "pack-refs --all"),
        (&main, "commit -q --allow-empty -m 5"),
        (&main, "checkout -q main"),
        (&main, "merge -q --ff-only topic/one"),
        (&main, "checkout -q --detach HEAD~1"),
        (&main, "commit -q --allow-empty -m 6"),
        (&main, "checkout -q main"),
        (&main, "reset -q --hard HEAD~1"),
        (&tree, "commit -q --allow-empty -m 7"),
        (&tree, "pack-refs --all"),
        (&tree, "commit -q --allow-empty -m 8"),
        (&tree, "merge -q --no-edit main"),
        (&main, "merge -q --ff-only side"),
        (&tree, "checkout -q --detach main~1"),
        // Without reflogs there is no file that grows with each move.
        (&main, "config core.logAllRefUpdates false"),
        (&main, "commit -q --allow-empty -m 9"),
    ];
    let mut moved = 0;
    for (at, what) in moves {
        let before = [&main, &tree].map(|at| (checked_out(at), seen(&checked_out(at).watch)));
        git(at, what);
        for (at, (found, watched)) in [&main, &tree].into_iter().zip(before) {
            let now = checked_out(at);
            assert_eq!(now.commit, Some(git(at, "rev-parse HEAD")), "{} after {what}", at.display());
            assert!(now.watch.iter().all(|path| path.exists()), "{:?}", now.watch);
            if now.commit != found.commit {
                moved += 1;
                assert_ne!(seen(&found.watch), watched, "{} did not notice {what}", at.display());
            }
        }
    }
    assert!(moved >= 15, "{moved}");
}

#[test]
fn no_checkout_has_no_commit_and_nothing_to_watch() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(checked_out(dir.path()), commit::Found::default());
    // As a work tree whose repository was moved away.
    fs::write(dir.path().join(".git"), "gitdir: /nonexistent/worktrees/x\n").unwrap();
    let found = checked_out(dir.path());
    assert_eq!((found.commit, found.watch), (None, vec![dir.path().join(".git")]));
    // A repository without a commit yet.
    fs::remove_file(dir.path().join(".git")).unwrap();
    git(dir.path(), "init -q");
    let found = checked_out(dir.path());
    assert_eq!(found.commit, None);
    git(dir.path(), "commit -q --allow-empty -m 0");
    assert!(checked_out(dir.path()).commit.is_some());
}
