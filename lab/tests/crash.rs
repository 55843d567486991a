//! A lab whose process died, at any moment, is removed by the next `down`.
//!
//! The process that dies is this test program itself, started again with a directory in its
//! environment.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use weft_lab::{Ending, Lab, LabError, within};

const SOON: Duration = Duration::from_secs(60);
/// Set for the process that is to die: where it keeps its lab.
const DOOMED: &str = "WEFT_LAB_TEST_DOOMED";

fn namespaces(lab: &str) -> BTreeSet<String> {
    let prefix = format!("weft-{lab}-");
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn mounts(lab: &str) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("Linux has it");
    mounts.lines().filter(|line| line.contains(&format!("weft-{lab}-"))).count()
}

/// What the doomed process does: raises a lab, says so by a file, and waits for its end.
#[test]
fn doomed() -> Result<(), LabError> {
    let Some(dir) = std::env::var_os(DOOMED) else { return Ok(()) };
    let dir = Path::new(&dir);
    let _lab = Lab::new("doomed").hosts(["ash", "birch", "cedar"]).dir(dir).up()?;
    std::fs::write(dir.join("up"), "").expect("its parent's directory");
    loop {
        std::thread::park();
    }
}

/// A child that never outlives its test.
struct Doomed(Child);

impl Doomed {
    /// Kills it and waits for its end.
    fn kill(&mut self) {
        self.0.kill().expect("it is ours");
        assert_eq!(self.0.wait().expect("it is ours").signal(), Some(9));
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_doomed(dir: &Path) -> Doomed {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "doomed"]).env(DOOMED, dir).stdout(Stdio::null()).stderr(Stdio::null());
    Doomed(command.spawn().expect("this program starts"))
}

#[test]
fn a_lab_whose_owner_was_killed_is_removed_and_a_living_one_is_not() -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut doomed = start_doomed(dir.path());
    within(SOON, || dir.path().join("up").exists());
    let names = weft_lab::list(dir.path())?;
    let [name] = names.as_slice() else { panic!("one lab, not {names:?}") };
    let etcd = Lab::open(dir.path(), name)?.record()?.daemons["etcd"];

    let spared = weft_lab::down_all(dir.path())?;
    assert!(matches!(spared.as_slice(), [(_, Ending::InUse { .. })]), "{spared:?}");
    assert!(etcd.is_alive());

    doomed.kill();
    assert!(
        etcd.is_alive() && namespaces(name).len() == 7,
        "a crash leaves everything: {:?}",
        namespaces(name)
    );
    let ended = weft_lab::down_all(dir.path())?;
    assert!(matches!(ended.as_slice(), [(_, Ending::Gone)]), "{ended:?}");
    assert!(!etcd.is_alive());
    assert_eq!((namespaces(name), mounts(name)), (BTreeSet::new(), 0));
    assert_eq!(weft_lab::list(dir.path())?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_lab_killed_while_it_is_raised_is_removed() -> Result<(), LabError> {
    for moment in [0, 1, 4, 7] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut doomed = start_doomed(dir.path());
        let name = within(SOON, || weft_lab::list(dir.path()).ok()?.pop());
        within(SOON, || namespaces(&name).len() >= moment);
        doomed.kill();
        assert!(weft_lab::down(dir.path(), &name)?);
        assert_eq!((namespaces(&name), mounts(&name)), (BTreeSet::new(), 0), "at {moment} namespaces");
        assert!(!dir.path().join(&name).exists());
    }
    Ok(())
}

#[test]
fn a_test_that_panics_takes_its_lab_down() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut name = String::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new("panics").hosts(["ash"]).dir(dir.path()).up().expect("it comes up");
        lab.name().clone_into(&mut name);
        assert!(!namespaces(&name).is_empty());
        panic!("as a failing test does");
    }));
    assert!(panicked.is_err() && !name.is_empty());
    assert_eq!(namespaces(&name), BTreeSet::new());
    let logs = std::env::temp_dir().join(format!("weft-lab-{name}"));
    assert!(logs.join("etcd.log").exists(), "the logs are kept where the message says");
    std::fs::remove_dir_all(logs).expect("ours");
}

#[test]
fn a_name_whose_owner_crashed_can_be_taken_again() -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut doomed = start_doomed(dir.path());
    let name = within(SOON, || weft_lab::list(dir.path()).ok()?.pop());
    within(SOON, || dir.path().join("up").exists());
    doomed.kill();
    Lab::named(&name).hosts(["ash"]).etcd_members(0).dir(dir.path()).up()?;
    assert_eq!(namespaces(&name).len(), 4, "the new lab's, and none of the old: {:?}", namespaces(&name));
    assert!(weft_lab::down(dir.path(), &name)?);
    Ok(())
}
