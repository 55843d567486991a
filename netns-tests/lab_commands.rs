//! `weft ps`, `weft exec` and `weft down` on a lab that stands: what a person at the keyboard sees.

use std::path::Path;
use std::process::{Command, Output};

use weft_lab::Lab;

fn weft(labs: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.env("WEFT_LABS_DIR", labs).args(args).output().expect("the binary just built runs")
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Takes the lab down however the test ends.
struct Down<'a>(&'a Path, &'a str);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        if let Err(error) = weft_lab::down(self.0, self.1) {
            eprintln!("{}", error.chain());
        }
    }
}

#[test]
fn a_lab_is_listed_entered_and_taken_down() {
    let labs = tempfile::tempdir().unwrap();
    let (labs, name) = (labs.path(), format!("t-cli-{}", std::process::id()));
    let lab = Lab::named(&name).dir(labs).hosts(["ash", "birch"]).etcd_members(0).without_daemons();
    let lab = lab.up().unwrap_or_else(|error| panic!("{}", error.chain()));
    let _down = Down(labs, &name);
    let (ash, birch) = (lab.host("ash").v4(), lab.host("birch").v4());
    let run = |args: &[&str]| text(&weft(labs, args));

    let (code, listed, words) = run(&["ps", "--name", &name]);
    assert_eq!(code, Some(0), "{words}");
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["LAB", "HOST", "ADDRESS", "SUBNETS", "PODS", "STATE"]);
    assert_eq!(rows[1], [&name, "ash", &ash.to_string(), "-", "-", "no", "daemon"]);
    assert_eq!(rows.len(), 3);

    let (_, json, _) = run(&["ps", "--output=json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[1]["host"], "birch");
    assert_eq!(json[1]["ipv4"], birch.to_string());

    // The command runs there, with its own arguments and its own exit code.
    let exec = |command: &[&str]| run(&[&["exec", "--name", &name, "ash", "--"], command].concat());
    let (code, addresses, words) = exec(&["ip", "-4", "-brief", "address"]);
    assert_eq!(code, Some(0), "{words}");
    assert!(
        addresses.contains(&format!("{ash}/")) && !addresses.contains(&format!("{birch}/")),
        "{addresses}"
    );
    assert_eq!(exec(&["sh", "-c", "exit 7"]).0, Some(7));
    let (code, _, words) = exec(&["no-such-program"]);
    assert_eq!(code, Some(1));
    assert!(words.starts_with("error: cannot run `no-such-program` in ash: "), "{words}");
    let (code, _, words) = run(&["exec", "--name", &name, "oak", "--", "true"]);
    let expected = format!("error: no host `oak` in lab `{name}`; there are ash, birch\n");
    assert_eq!((code, words), (Some(1), expected));

    let verdict = |word: &str| (Some(0), format!("lab `{name}` {word}\n"), String::new());
    assert_eq!(run(&["down", "--name", &name]), verdict("is down"));
    assert_eq!(run(&["down", "--name", &name]), verdict("was not up"));
    let (code, listed, words) = run(&["ps"]);
    assert_eq!((code, words), (Some(0), "no cluster is up; `weft up` raises one\n".into()));
    assert_eq!(listed.lines().count(), 1, "{listed}");
}
