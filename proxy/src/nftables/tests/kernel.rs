//! The real kernel takes the tables and the changes, shows them as they were meant, and Debian's `nft`
//! lists them. Each test runs in a network namespace of its own. Needs root.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use weft_kernel::nft::{Nft, Transaction};

use super::*;

/// Runs a test in a fresh network namespace, on a thread that ends with it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn listed() -> String {
    let output = Command::new("nft").args(["-s", "list", "ruleset"]).output().expect("nft is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tables_and_changes_are_taken_and_listed() {
    in_namespace(|| {
        let mut runner = TestRunner::deterministic();
        let mut nft = Nft::open().unwrap();
        for _ in 0..12 {
            let scenario = scenarios().new_tree(&mut runner).unwrap().current();
            let plans = everything(&scenario.model, &scenario.host);
            let mut program = Program::load(&scenario.host, plans.clone(), None);
            let table = program.table();
            nft.commit(&Transaction::new().replace(&table)).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(nft.table(&table.key).unwrap().as_ref(), Some(&table));
            // All go, half of them come back with other endpoints.
            let other = scenarios().new_tree(&mut runner).unwrap().current();
            let next = everything(&other.model, &scenario.host);
            let gone = ServicePlan::default();
            let names: BTreeSet<&ServiceName> = plans.keys().chain(next.keys()).collect();
            let change =
                program.update(names.into_iter().map(|name| (name, next.get(name).unwrap_or(&gone))));
            nft.commit(&change).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(nft.table(&table.key).unwrap(), Some(program.table()));
            assert!(listed().contains("table inet weft-proxy"));
            nft.commit(&program.collect()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(nft.table(&table.key).unwrap(), Some(program.table()));
        }
    });
}
