//! `weft bench proxy` from the outside: what it promises to write, and that it leaves nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use weft_lab::{wait_for, within};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// A debug build on a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(240);

/// A bench that runs, and everything it says.
struct Bench {
    child: Child,
    files: tempfile::TempDir,
}

impl Bench {
    fn start(args: &[&str]) -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), args)
    }

    /// With programs of ours first on PATH.
    fn start_with(files: tempfile::TempDir, args: &[&str]) -> Self {
        let log = fs::File::create(files.path().join("said")).unwrap();
        let mut command = Command::new(WEFT);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", files.path().display()));
        command.args(["bench", "proxy", "--quick", "--json"]).arg(files.path().join("json")).args(args);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { child: command.spawn().unwrap(), files }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.files.path().join("said")).unwrap()
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    }

    /// Waits for its end: the exit code and the report.
    fn end(&mut self) -> (Option<i32>, Value) {
        let ended = wait_for(LONG, || self.child.try_wait().ok().flatten());
        let status = ended.unwrap_or_else(|timed_out| panic!("{timed_out}:\n{}", self.said()));
        let report = fs::read_to_string(self.files.path().join("json")).unwrap();
        (
            status.code(),
            serde_json::from_str(&report)
                .unwrap_or_else(|error| panic!("{error}: {report}\n{}", self.said())),
        )
    }

    /// The namespaces of its labs, whose names bear its pid.
    fn namespaces(&self) -> Vec<String> {
        let mark = format!("-{}-", self.child.id());
        let names = fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.contains(&mark)).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // After a panic; a bench that has ended is not there any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A hundred services, programmed by weft in both modes and in kube-proxy's layout: first packets come
/// through all,
/// and every figure of the programming is there.
#[test]
fn a_small_bench_measures_all_it_promises_and_leaves_nothing() {
    let paths = "nftables,iptables,kube-proxy-layout";
    let mut bench = Bench::start(&["--only", paths, "--regime", "first,control", "--up-to", "100"]);
    let (code, report) = bench.end();
    assert_eq!(code, Some(0), "{}", bench.said());
    assert_eq!(report["bench"], "proxy");
    let mut expected = vec![];
    for path in ["nftables", "iptables", "kube-proxy-layout"] {
        expected.extend(["first_p50_us", "first_p99_us"].map(|metric| format!("default {path} {metric} 5")));
        expected.extend(
            ["program_all_ms", "change_p50_ms", "change_p99_ms"]
                .map(|metric| format!("control {path} {metric} 1")),
        );
    }
    for path in ["nftables", "iptables"] {
        expected.extend(
            ["start_ms", "restart_ms", "write_to_kernel_p50_ms", "rss_mb", "idle_cpu_percent"]
                .map(|metric| format!("control {path} {metric} 1")),
        );
    }
    let mut measured: Vec<String> = vec![];
    for series in report["results"].as_array().unwrap() {
        let samples = series["samples"].as_array().unwrap();
        let [regime, path, metric] = ["regime", "path", "metric"].map(|key| series[key].as_str().unwrap());
        measured.push(format!("{regime} {path} {metric} {}", samples.len()));
        assert_eq!(series["scale"], 100, "{series}");
        // A daemon that has nothing to do may use no tick of the clock.
        let least = if metric == "idle_cpu_percent" { 0.0 } else { f64::MIN_POSITIVE };
        assert!(samples.iter().all(|sample| sample.as_f64().unwrap() >= least), "{series}");
    }
    expected.sort();
    measured.sort();
    assert_eq!(measured, expected, "{}", bench.said());
    assert_eq!(bench.namespaces(), Vec::<String>::new());
}

/// A stand-in for kube-proxy: what the bench's API says becomes a folder of manifests.
const STAND_IN: &str = r#"#!/bin/sh
set -e
for flag; do case $flag in --hostname-override=*) node=${flag#*=};; esac; done
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
mkdir "$dir/manifests"
api=http://127.0.0.1:8001
curl -sf "$api/api/v1/nodes/$node" >"$dir/manifests/node.json"
curl -sf "$api/api/v1/services?limit=500" >"$dir/manifests/services.json"
curl -sf "$api/apis/discovery.k8s.io/v1/endpointslices" >"$dir/manifests/slices.json"
WEFT proxy --manifests="$dir/manifests" --node-name="$node" --run-dir="$dir/run" --state-dir="$dir/state"
"#;

/// A program named kube-proxy on PATH becomes a path, by what the bench's own API tells it.
#[test]
fn a_kube_proxy_on_path_is_served_and_measured() {
    let files = tempfile::tempdir().unwrap();
    let program = files.path().join("kube-proxy");
    fs::write(&program, STAND_IN.replace("WEFT", WEFT)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut bench = Bench::start_with(files, &["--only", "kube-proxy", "--regime", "first"]);
    let (code, report) = bench.end();
    assert_eq!(code, Some(0), "{}", bench.said());
    let results = report["results"].as_array().unwrap();
    assert!(
        results.iter().all(|series| series["path"] == "kube-proxy" && series["scale"] == 1000),
        "{report}"
    );
    assert_eq!(results.len(), 2, "{report}");
    assert_eq!(bench.namespaces(), Vec::<String>::new());
}

/// Ctrl-C in the middle: what was measured is written, nothing is left.
#[test]
fn an_interrupted_bench_removes_everything() {
    let mut bench = Bench::start(&["--only", "direct,nftables", "--regime", "default"]);
    within(LONG, || bench.said().contains("as veths come"));
    assert!(!bench.namespaces().is_empty());
    bench.interrupt();
    let (code, report) = bench.end();
    assert_eq!(code, Some(130), "{}", bench.said());
    assert!(report["results"].is_array());
    assert_eq!(bench.namespaces(), Vec::<String>::new());
}
