//! What an operator runs on a host: `weft cleanup` leaves nothing behind, `weft doctor` finds what is
//! wrong, `weft lease` says who has what.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weft_lab::{Host, Lab, LabError, Output, within};

const SOON: Duration = Duration::from_secs(30);
const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// A firewall as Docker leaves it, a setting of the user's, and a route of somebody's.
const FOREIGN: &str = "iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -s 10.9.0.0/16 -j ACCEPT
    nft add table inet own; ip route add 198.51.100.0/24 dev eth0
    sysctl -qw net.ipv4.conf.eth0.forwarding=1";

/// All that a host holds, as far as an overlay could have changed it.
const DUMP: &str = "ip -d link; ip address; ip route show table all; ip -6 route show table all
    ip rule; ip -6 rule; ip neigh show nud permanent; bridge fdb; nft -s list ruleset
    for set in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
        $set-save | sed 's/ *\\[.*//; /^#/d'
    done
    sysctl -a --pattern '^net\\.(ipv[46]|bridge|core)\\.' 2>/dev/null | grep -v '_count\\|\\.random\\|tcp_.*mem'";

fn weft(host: &Host, command: &str, further: &[&str]) -> Output {
    let dirs = [
        format!("--run-dir={}", host.run_dir().display()),
        format!("--state-dir={}", host.state_dir().display()),
        format!("--subnet-file={}", host.subnet_file().display()),
    ];
    let args = [WEFT, command].into_iter().chain(dirs.iter().map(String::as_str));
    host.run_args(&args.chain(further.iter().copied()).collect::<Vec<_>>())
}

fn files(host: &Host) -> Vec<bool> {
    [host.run_dir().join("weft"), host.state_dir().join("weft"), host.subnet_file()]
        .map(|path| path.exists())
        .into()
}

#[track_caller]
fn assert_same(before: &str, after: &str) {
    let only = |a: &str, b: &str| {
        let other: std::collections::BTreeSet<&str> = b.lines().collect();
        a.lines().filter(|line| !other.contains(line)).collect::<Vec<_>>().join("\n")
    };
    assert!(before == after, "gone:\n{}\nnew:\n{}", only(before, after), only(after, before));
}

fn a_clean_host(story: &str, backend: &str) -> Result<(), LabError> {
    let config = format!(
        r#"{{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/48","Backend":{{"Type":"{backend}"}}}}"#
    );
    let lab = Lab::new(story).weft(WEFT).hosts(["ash", "birch"]).network(config).without_daemons().up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    ash.run(FOREIGN).ok()?;
    // Until duplicate address detection is done, which changes what is listed.
    within(SOON, || ash.run("! ip address | grep tentative").ok());
    let (before, absent) = (ash.run(DUMP).ok()?, files(&ash));
    for host in [&ash, &birch] {
        host.launch_overlay_with(&["--ip-masq", "--ip-blackhole-route"])?;
    }
    for host in [&ash, &birch] {
        host.wait_until_ready(SOON)?;
    }
    let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
    within(SOON, || client.ping(server.ip()));

    let refused = weft(&ash, "cleanup", &[]);
    assert!(!refused.success() && refused.stderr.contains("runs"), "{refused:?}");
    client.ping(server.ip())?;

    ash.stop_overlay()?;
    // The userspace tunnel carries nothing without its daemon.
    if backend != "udp" {
        client.ping(server.ip())?;
    }
    let removed = weft(&ash, "cleanup", &[]).ok()?;
    assert!(removed.contains("nftables table inet weft-weft"), "{removed}");
    assert_same(&before, &ash.run(DUMP).ok()?);
    assert_eq!(files(&ash), absent);
    let again = weft(&ash, "cleanup", &[]);
    assert_eq!((again.success(), again.stdout.as_str()), (true, ""), "{again:?}");

    ash.start_overlay()?;
    let client = lab.host("ash").new_pod()?;
    within(SOON, || client.ping(server.ip()));
    lab.down()
}

#[test]
fn cleanup_after_vxlan_leaves_the_host_as_it_was() -> Result<(), LabError> {
    a_clean_host("clean-vxlan", "vxlan")
}

#[test]
fn cleanup_after_host_gw_leaves_the_host_as_it_was() -> Result<(), LabError> {
    a_clean_host("clean-gw", "host-gw")
}

#[test]
fn cleanup_after_udp_leaves_the_host_as_it_was() -> Result<(), LabError> {
    a_clean_host("clean-udp", "udp")
}

/// The titles of the doctor's findings that are worse than ok, and whether it calls the host sound.
fn doctor(host: &Host) -> (Vec<String>, bool) {
    let said = weft(host, "doctor", &["--output=json"]);
    let found: Vec<Value> = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    let wrong = found.iter().filter(|finding| finding["severity"] != "ok");
    (wrong.map(|finding| finding["title"].to_string()).collect(), said.success())
}

#[track_caller]
fn finds(host: &Host, wanted: &str) {
    let (titles, sound) = doctor(host);
    assert!(!sound && titles.iter().any(|title| title.contains(wanted)), "{wanted}: {titles:#?}");
}

#[test]
fn the_doctor_finds_what_is_wrong() -> Result<(), LabError> {
    let lab = Lab::new("doctor").weft(Path::new(WEFT)).hosts(["ash", "birch"]).up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    within(SOON, || match (doctor(&ash), weft(&ash, "doctor", &[]).stdout) {
        ((titles, true), said) if titles.is_empty() && said.contains("is reached, with packets") => Ok(()),
        found => Err(format!("a healthy host: {found:?}")),
    });

    birch.run("nft 'add table inet t; add chain inet t i { type filter hook input priority -400; }'").ok()?;
    birch.run("nft add rule inet t i udp dport 8472 drop").ok()?;
    finds(&ash, "answers past the tunnel and not through it");
    birch.run("nft flush chain inet t i").ok()?;

    // Only what is inside of the tunnel: as if its checksums were wrong.
    birch.run("nft add rule inet t i iifname weft.1 udp dport 8477 drop").ok()?;
    finds(&ash, "UDP through the tunnel");
    birch.run("nft delete table inet t").ok()?;

    birch.run("ip link set eth0 mtu 1400").ok()?;
    // A veth takes four bytes more than its MTU, for a VLAN tag (`is_skb_forwardable`).
    finds(&ash, "carries 1404 bytes in one piece, not 1500");
    birch.run("ip link set eth0 mtu 1500").ok()?;

    birch.run(format!("ip address add {}/24 dev eth0", ash.v4())).ok()?;
    finds(&ash, "has this host's address");
    birch.run(format!("ip address del {}/24 dev eth0", ash.v4())).ok()?;

    ash.run("nft 'add table inet wall; add chain inet wall f { type filter hook forward priority 0; policy drop; }'")
        .ok()?;
    finds(&ash, "wall");
    ash.run("nft delete table inet wall").ok()?;

    within(SOON, || match doctor(&ash) {
        (_, true) => Ok(()),
        found => Err(format!("well again: {found:?}")),
    });
    ash.stop_overlay()?;
    ash.run("sysctl -qw net.ipv4.ip_forward=0").ok()?;
    let etcd = format!("--etcd-endpoints={}", lab.etcd().endpoints());
    let said = weft(&ash, "doctor", &[&etcd]);
    for part in
        ["warning: the daemon does not run", "ok: etcd answers", "run: sysctl -w net.ipv4.ip_forward=1"]
    {
        assert!(said.stdout.contains(part), "{part}: {said:?}");
    }
    lab.down()
}

#[test]
fn leases_are_listed_reserved_released_and_drained() -> Result<(), LabError> {
    let lab = Lab::new("lease-cli").weft(WEFT).hosts(["ash"]).up()?;
    let ash = lab.host("ash");
    let etcd = format!("--etcd-endpoints={}", lab.etcd().endpoints());
    let lease = |args: &[&str]| ash.run_args(&[&[WEFT, "lease"], args, &[&etcd]].concat());
    let list = || -> Result<Vec<Value>, LabError> {
        Ok(serde_json::from_str(&lease(&["ls", "-o", "json"]).ok()?).expect("JSON"))
    };
    let rows = list()?;
    assert_eq!((rows.len(), &rows[0]["node"], &rows[0]["state"]), (1, &"ash".into(), &"live".into()));
    assert!(lease(&["ls"]).ok()?.starts_with("SUBNET"));

    let said = lease(&["reserve", "10.42.250.0/24", "--for-node", "birch"]).ok()?;
    assert_eq!(said, "10.42.250.0/24 is reserved for node birch\n");
    let reserved = list()?.into_iter().find(|row| row["node"] == "birch").expect("a row");
    assert_eq!((&reserved["state"], &reserved["expires_in"]), (&"reserved".into(), &Value::Null));
    let taken = lease(&["reserve", "10.42.250.0/24", "--for-node", "oak"]);
    assert!(!taken.success() && taken.stderr.contains("belongs to node birch"), "{taken:?}");
    assert_eq!(lease(&["release", "10.42.250.0/24"]).ok()?, "10.42.250.0/24 is released\n");
    assert_eq!(lease(&["drain", "ash"]).ok()?, "node ash takes no new pods\n");
    assert_eq!(lease(&["drain", "ash", "--undo"]).ok()?, "node ash is no longer drained\n");
    lab.down()
}
