//! `weft up`, `ps`, `exec` and `down`: what a person at the keyboard sees, on hosts without daemons.

use std::path::Path;
use std::process::{Command, Output};

struct Person<'a> {
    labs: &'a Path,
}

impl Person<'_> {
    fn types(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut weft = Command::new(env!("CARGO_BIN_EXE_weft"));
        let output = weft.args(args).env("WEFT_LABS_DIR", self.labs).output();
        let Output { status, stdout, stderr } = output.expect("the binary just built runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (status.code(), text(&stdout), text(&stderr))
    }

    /// What it printed, if it went well.
    #[track_caller]
    fn gets(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.types(args);
        assert_eq!(code, Some(0), "weft {}: {stderr}", args.join(" "));
        stdout
    }
}

impl Drop for Person<'_> {
    fn drop(&mut self) {
        self.types(&["down", "--all"]);
    }
}

#[test]
fn a_cluster_comes_up_is_used_and_goes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let person = Person { labs: dir.path() };
    let name = &format!("t-cli-{}", std::process::id());
    let (code, up, words) = person.types(&["up", "--name", name, "--hosts", "2", "--without-daemons"]);
    assert_eq!(code, Some(0), "{words}");
    let rows: Vec<Vec<&str>> = up.lines().map(|line| line.split_whitespace().collect()).collect();
    let expected = [
        &["LAB", "HOST", "ADDRESS", "SUBNETS", "PODS", "STATE"][..],
        &[name, "ash", "192.0.2.11", "-", "-", "no", "daemon"],
        &[name, "birch", "192.0.2.12", "-", "-", "no", "daemon"],
    ];
    assert_eq!(rows, expected);
    for step in ["exec", "ps", "down"] {
        assert!(words.contains(&format!("  weft {step} --name {name}")), "{words}");
    }

    let (code, _, words) = person.types(&["up", "--name", name]);
    assert!(words.contains(&format!("lab `{name}` is up already")) && code == Some(1), "{words}");
    assert_eq!(person.gets(&["ps"]), up);
    let ps: serde_json::Value = serde_json::from_str(&person.gets(&["ps", "-o", "json"])).expect("JSON");
    assert_eq!((&ps[0]["host"], &ps[1]["state"]), (&"ash".into(), &"no-daemon".into()));

    let exec = |place: &str, command: &[&str]| {
        person.types(&[&["exec", "--name", name, place, "--"], command].concat())
    };
    let (_, addresses, _) = exec("ash", &["ip", "-4", "-brief", "address"]);
    assert!(addresses.contains("192.0.2.11/24") && !addresses.contains("192.0.2.12"), "{addresses}");
    assert_eq!(exec("birch", &["sh", "-c", "exit 7"]).0, Some(7), "the command's own exit code");
    let (_, keys, words) = exec("etcd", &["etcdctl", "get", "--prefix", "/", "--keys-only"]);
    assert_eq!(keys.trim(), "/coreos.com/network/config", "{words}");
    let (code, _, words) = exec("ash", &["no-such-program"]);
    assert!(words.starts_with("error: cannot run `no-such-program` in ash: ") && code == Some(1), "{words}");
    let unknown = format!("error: no host `oak` in lab `{name}`; there are ash, birch\n");
    assert_eq!(exec("oak", &["true"]), (Some(1), String::new(), unknown));

    assert_eq!(person.gets(&["down", "--name", name]), format!("lab `{name}` is down\n"));
    assert_eq!(person.gets(&["down", "--name", name]), format!("lab `{name}` was not up\n"));
    let (code, listed, words) = person.types(&["ps"]);
    assert_eq!((code, words.as_str()), (Some(0), "no cluster is up; `weft up` raises one\n"));
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(!Path::new("/run/netns").join(format!("weft-{name}-ash")).exists());
    assert_eq!(std::fs::read_dir(dir.path()).expect("ours").count(), 0, "nothing is left behind");
}

#[test]
fn clusters_of_different_names_stand_side_by_side_and_end_together() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let person = Person { labs: dir.path() };
    let names = ["a", "b"].map(|letter| format!("t-cli-{}-{letter}", std::process::id()));
    for name in &names {
        person.gets(&["up", "--name", name, "--hosts", "1", "--without-daemons"]);
    }
    let ps = person.gets(&["ps"]);
    assert!(names.iter().all(|name| ps.contains(name.as_str())), "{ps}");
    let expected: String = names.iter().map(|name| format!("lab `{name}` is down\n")).collect();
    assert_eq!(person.gets(&["down", "--all"]), expected);
    assert_eq!(person.gets(&["ps", "-o", "json"]).trim(), "[]");
}

#[test]
fn wrong_usage_touches_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let person = Person { labs: dir.path() };
    let table: [(&[&str], &str, i32); 7] = [
        (&["up", "--backend", "vlan"], "--backend: `vlan` is none of vxlan, host-gw, udp", 2),
        (&["up", "--hosts", "0"], "--hosts", 2),
        (&["up", "--name", "Not/A/Name"], "bad name `Not/A/Name`", 1),
        (&["down", "--name", "../etc"], "bad name `../etc`", 1),
        (&["up", "--etcd-members", "2"], "2 etcd members; use 0, 1 or 3", 1),
        (&["down", "--all", "--name", "x"], "--all", 2),
        (&["exec", "--name", "t-nowhere", "ash", "--", "true"], "no lab `t-nowhere`", 1),
    ];
    for (args, expected, code) in table {
        let (exit, stdout, words) = person.types(args);
        assert!(words.contains(expected) && exit == Some(code), "{args:?}: {words}");
        assert_eq!(stdout, "", "{args:?}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("ours").count(), 0, "{args:?}");
    }
}
