//! The plugin as a runtime meets it: a program, its environment, stdin, stdout and exit code.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// One call by the name `weft-cni`: the exit code, and what it said on stdout, if anything.
fn call(command: &str, stdin: File) -> (Option<i32>, Option<Value>) {
    let dir = tempfile::tempdir().expect("a directory");
    let plugin = dir.path().join("weft-cni");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_weft"), &plugin).expect("a link");
    let said = Command::new(plugin)
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")])
        .env("CNI_NETNS", "/run/netns/no-such-namespace")
        .stdin(Stdio::from(stdin))
        .output()
        .expect("the plugin runs");
    let answer = (!said.stdout.is_empty()).then(|| serde_json::from_slice(&said.stdout).expect("JSON"));
    (said.status.code(), answer)
}

fn config(text: &str) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(text.as_bytes()).and_then(|()| file.rewind()).expect("it is written");
    file
}

#[test]
fn version_is_answered_on_stdout() {
    let (code, answer) = call("VERSION", config(r#"{"cniVersion":"0.4.0"}"#));
    let spoken = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    assert_eq!((code, answer), (Some(0), Some(json!({"cniVersion": "0.4.0", "supportedVersions": spoken}))));
}

/// A refusal is one JSON object on stdout, in the version asked in, and the exit code is not zero.
#[test]
fn refusals_are_json_on_stdout_with_the_specifications_codes() {
    // A host of its own that offers nothing: no daemon ever ran with this directory.
    let nowhere = tempfile::tempdir().expect("a directory");
    let conf = |version: &str| {
        let dir = nowhere.path();
        json!({"cniVersion": version, "name": "pods", "runDir": dir, "stateDir": dir}).to_string()
    };
    let table = [
        ("ADD", config(&conf("1.1.0")), "1.1.0", 3),
        ("ADD", config(&conf("0.2.0")), "1.0.0", 1),
        ("ADD", config("{"), "1.0.0", 6),
        ("ADD", config(r#"{"cniVersion":"0.4.0"}"#), "0.4.0", 7),
        ("CHECK", config(&conf("0.4.0")), "0.4.0", 7),
        ("STATUS", config(&conf("1.1.0")), "1.1.0", 50),
        ("GC", config(&conf("1.1.0")), "1.1.0", 7),
        ("JUMP", config(&conf("1.1.0")), "1.1.0", 4),
        // A directory can be opened and not be read.
        ("ADD", File::open(nowhere.path()).expect("it is there"), "1.0.0", 5),
    ];
    for (command, stdin, version, code) in table {
        let (exit, answer) = call(command, stdin);
        let answer = answer.unwrap_or_else(|| panic!("{command}: silent"));
        assert_eq!((exit, &answer["code"], &answer["cniVersion"]), (Some(1), &json!(code), &json!(version)));
        assert!(
            answer["msg"].as_str().is_some_and(|text| !text.is_empty() && !text.contains('\n')),
            "{answer}"
        );
    }
}
