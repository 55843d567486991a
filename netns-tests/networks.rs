//! Two networks on the same hosts: each goes its own way, and one can be taken away alone.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use weft_lab::{Host, Lab, LabError, Running, within};

const SOON: Duration = Duration::from_secs(30);
const BLUE: &str = "/blue/network";
/// What a host holds for the first network. Not the neighbours that the kernel only asks for: their
/// state changes by itself.
const RED: &str = "nft -s list table inet weft-weft; ip route show dev weft.1; \
    ip neigh show dev weft.1 nud permanent";

/// Starts the daemon of the second network, `blue`, on a host.
fn blue_daemon(lab: &Lab, host: &Host) -> Result<Running, LabError> {
    let mut args: Vec<String> = vec!["weft".into(), "overlay".into()];
    args.extend(blue_place(host));
    args.push(format!("--etcd-endpoints={}", lab.etcd().endpoints()));
    args.push(format!("--etcd-prefix={BLUE}"));
    args.push(format!("--node-id={}", host.name()));
    host.spawn(&args)
}

/// Where the second network's things are on a host.
fn blue_place(host: &Host) -> [String; 4] {
    [
        "--network=blue".into(),
        format!("--run-dir={}", host.run_dir().display()),
        format!("--state-dir={}", host.state_dir().display()),
        format!("--subnet-file={}", host.run_dir().join("blue.env").display()),
    ]
}

/// The address of its VTEP in a network: the first of the subnet.
fn vtep(host: &Host, link: &str) -> Result<Ipv4Addr, String> {
    let shown = host.run(format!("ip -4 -o address show dev {link}")).stdout;
    let address = shown.split_whitespace().nth(3).and_then(|network| network.split('/').next());
    address.and_then(|address| address.parse().ok()).ok_or(shown)
}

fn ping(from: &Host, source: &str, to: Ipv4Addr) -> Result<(), LabError> {
    from.run(format!("ping -n -c 1 -W 1 -I {source} {to}")).ok().map(drop)
}

#[test]
fn two_networks_live_on_the_same_hosts() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new("networks").weft(weft).hosts(["ash", "birch"]).up()?;
    // The same port as the first network's, which VXLAN allows.
    lab.etcd()
        .put(&format!("{BLUE}/config"), r#"{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#)?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    let blues = [blue_daemon(&lab, &ash)?, blue_daemon(&lab, &birch)?];
    let (client, server) = (ash.new_pod()?, birch.new_pod()?);
    let [blue_ash, blue_birch] = [&ash, &birch].map(|host| within(SOON, || vtep(host, "weft.2")));
    let red_birch = within(SOON, || vtep(&birch, "weft.1"));
    assert!(blue_ash.to_string().starts_with("10.43.") && red_birch.to_string().starts_with("10.42."));

    within(SOON, || client.reaches(&server));
    within(SOON, || ping(&ash, "weft.2", blue_birch));
    within(SOON, || ping(&ash, "weft.1", red_birch));
    ping(&ash, "weft.1", blue_birch).expect_err("blue is not on red's link");
    ping(&ash, "weft.2", red_birch).expect_err("red is not on blue's link");

    // Blue drifts and is mended; red does not notice.
    let reds = || ash.run(RED).stdout;
    let red = reds();
    let pings = client.pinger(&server, Duration::from_millis(10))?;
    ash.run("ip link delete weft.2 && nft delete table inet weft-blue").ok()?;
    within(SOON, || ping(&ash, "weft.2", blue_birch));

    // Blue is taken away on one host.
    drop(blues);
    let mut args: Vec<String> = vec!["weft".into(), "cleanup".into()];
    args.extend(blue_place(&ash));
    within(SOON, || ash.run_args(&args).ok().map(drop).map_err(|error| error.chain()));
    let left = ash
        .run("ip -o link; ip route show table all; nft list tables; ls $WEFT_STATE_DIR $WEFT_RUN_DIR")
        .stdout;
    assert!(!left.contains("weft.2") && !left.contains("10.43.") && !left.contains("blue"), "{left}");
    assert_eq!(reds(), red);
    within(SOON, || ash.as_planned());
    within(SOON, || pings.so_far().received > 0);
    pings.stop_without_loss()?;
    client.reaches(&server)?;
    assert_eq!(ash.run("sysctl -n net.ipv4.ip_forward").stdout.trim(), "1", "red still forwards");
    lab.down()
}
