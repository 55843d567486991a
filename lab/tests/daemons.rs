//! The lab's side of the contract with `weft`: how it calls the daemon and the CNI plugin, and what
//! it says when they fail. A script stands in for the binary; the real one is tested with the overlay.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use weft_lab::{Lab, LabError, State, within};

const SOON: Duration = Duration::from_secs(60);

/// A `weft` that is this script. Beside it is where it may leave notes: `$0.notes`.
fn script(dir: &tempfile::TempDir, body: &str) -> PathBuf {
    let path = dir.path().join("weft");
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a file of our own");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a file of our own");
    path
}

/// Answers every GET on the daemon's socket with 200, as long as it lives.
const READY_DAEMON: &str = r#"
if [ "$1" = answer ]; then
    while read -r line && [ "$line" != "$(printf '\r')" ]; do :; done
    printf 'HTTP/1.0 200 OK\r\n\r\nfine'
    exit
fi
for arg; do case $arg in --run-dir=*) run=${arg#*=};; --network=*) network=${arg#*=};; esac; done
echo "$*" >>"$0.notes"
mkdir -p "$run/$network"
echo FLANNEL_SUBNET=10.42.9.1/24 >"$run/subnet.env"
rm -f "$run/$network/overlay.sock"
exec socat UNIX-LISTEN:"$run/$network/overlay.sock",fork EXEC:"$0 answer"
"#;

#[test]
fn a_daemon_is_started_with_its_own_directories_and_stopped() -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let weft = script(&dir, READY_DAEMON);
    let lab = Lab::new("daemon").weft(&weft).hosts(["ash", "birch"]).overlay_args(["--ip-masq"]).up()?;
    let ash = lab.host("ash");
    let notes = std::fs::read_to_string(dir.path().join("weft.notes")).expect("the daemon wrote it");
    let words: Vec<&str> =
        notes.lines().find(|line| line.contains("node-id=ash")).expect("ash").split(' ').collect();
    let expected = [
        "overlay".to_owned(),
        "--network=weft".into(),
        "--node-id=ash".into(),
        format!("--run-dir={}", ash.run_dir().display()),
        format!("--state-dir={}", ash.state_dir().display()),
        format!("--subnet-file={}", ash.subnet_file().display()),
        "--etcd-endpoints=http://192.0.2.2:2379".into(),
        "--etcd-prefix=/coreos.com/network".into(),
        "--ip-masq".into(),
    ];
    assert_eq!(words, expected);
    let status = lab.status()?;
    assert_eq!(
        (&status[0].state, status[0].subnets.as_slice()),
        (&State::Ready, &["10.42.9.1/24".to_owned()][..])
    );
    assert_eq!(ash.api("/readyz")?.body, "fine");

    let first = ash.overlay().expect("it runs");
    assert!(ash.stop_overlay()?, "it obeys SIGTERM");
    assert!(!first.is_alive());
    assert_eq!(lab.status()?[0].state, State::NoDaemon);
    ash.start_overlay()?;
    assert_ne!(ash.overlay(), Some(first));
    ash.kill_overlay()?;
    assert_eq!(ash.overlay(), None);
    assert!(lab.host("birch").overlay().is_some());
    lab.host("birch").die()?;
    assert_eq!(lab.status()?[1].state, State::Off);
    lab.down()
}

#[test]
fn a_daemon_that_ends_is_told_at_once_with_its_last_words() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let weft = script(&dir, "echo 'Network: `10.0.0.0/33` is no CIDR' >&2; exit 1");
    let start = Instant::now();
    let error = Lab::new("dies").weft(weft).hosts(["ash"]).up().expect_err("the daemon ends").to_string();
    assert!(error.contains("ash") && error.contains("10.0.0.0/33"), "{error}");
    assert!(start.elapsed() < SOON, "it did not wait for the deadline");
}

#[test]
fn a_daemon_that_ignores_sigterm_is_killed() -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let weft = script(&dir, "trap '' TERM; echo ready >\"$0.notes\"; while :; do sleep 1; done");
    let lab = Lab::new("stubborn").weft(weft).hosts(["ash"]).etcd_members(0).without_daemons().up()?;
    let ash = lab.host("ash");
    ash.launch_overlay()?;
    within(SOON, || dir.path().join("weft.notes").exists());
    assert!(!ash.stop_overlay()?, "it had to be killed");
    assert_eq!(ash.overlay(), None);
    lab.down()
}

/// Wires a pod with a veth and fixed addresses, and notes what it was asked.
const PLUGIN: &str = r#"
[ "$1" = cni ] || exit 9
cat >"$0.$CNI_COMMAND"
pod=$(basename "$CNI_NETNS")
case $CNI_COMMAND in
ADD)
    ip link add name pod type veth peer name "$CNI_IFNAME" netns "$pod" && ip link set pod up
    ip addr add 169.254.1.1/32 dev pod && ip route add 10.42.9.2 dev pod
    ip -n "$pod" addr add 10.42.9.2/32 dev "$CNI_IFNAME" && ip -n "$pod" link set "$CNI_IFNAME" up
    ip -n "$pod" route add default dev "$CNI_IFNAME"
    echo '{"cniVersion":"1.0.0","ips":[{"address":"10.42.9.2/32"}]}' ;;
DEL) ip link del pod ;;
CHECK) echo '{"code":100,"msg":"the route is gone"}'; exit 1 ;;
esac
"#;

#[test]
fn a_pod_is_wired_by_the_plugin_as_a_runtime_would() -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let weft = script(&dir, PLUGIN);
    let lab = Lab::new("pod").weft(weft).hosts(["ash"]).etcd_members(0).without_daemons().up()?;
    let ash = lab.host("ash");
    let pod = ash.pod("web")?;
    assert_eq!(pod.ip().to_string(), "10.42.9.2");
    ash.reaches(&pod)?;
    pod.sends(&ash, 1 << 20)?;
    assert_eq!(lab.place("ash/web")?.netns(), pod.netns());
    assert_eq!(ash.find_pod("web")?.map(|pod| pod.ip()), Some(pod.ip()));
    assert_eq!(lab.status()?[0].pods.len(), 1);

    let refused = pod.check().expect_err("the plugin says so").to_string();
    assert!(refused.contains("the route is gone"), "{refused}");
    let asked = |verb: &str| -> serde_json::Value {
        let asked = std::fs::read(dir.path().join(format!("weft.{verb}"))).expect("the plugin wrote it");
        serde_json::from_slice(&asked).expect("JSON")
    };
    assert_eq!(asked("ADD")["runDir"], serde_json::json!(ash.run_dir()));
    assert_eq!(asked("CHECK")["prevResult"]["ips"][0]["address"], "10.42.9.2/32");

    let netns = pod.netns().to_owned();
    pod.remove()?;
    assert!(!std::path::Path::new("/run/netns").join(netns).exists());
    assert!(matches!(lab.place("ash/web"), Err(LabError::NoSuchPod { .. })));
    assert!(!ash.run("ip link show pod").success(), "DEL was called");
    lab.down()
}

#[test]
fn a_pod_that_cannot_be_wired_leaves_nothing() -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let weft = script(&dir, r#"echo '{"code":11,"msg":"no subnet yet"}'; exit 1"#);
    let lab = Lab::new("no-pod").weft(weft).hosts(["ash"]).etcd_members(0).without_daemons().up()?;
    let before = lab.record()?;
    let error = lab.pod_on("ash").expect_err("refused").to_string();
    assert!(error.contains("no subnet yet"), "{error}");
    assert_eq!(lab.record()?, before);
    lab.down()
}
