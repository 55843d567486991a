//! Pods of a lab by the real CNI plugin, on hosts that know each other's subnets by hand: what the lab
//! does for every story of the overlay, without the daemon.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use weft_lab::traffic::Endpoint;
use weft_lab::{Lab, LabError, Offloads, within};

const SOON: Duration = Duration::from_secs(30);

/// What the daemon would write for this host, and the routes it would set: both families.
fn join_by_hand(lab: &Lab, number: u8) -> Result<(), LabError> {
    let hosts = lab.hosts();
    let host = &hosts[usize::from(number)];
    let (v4, v6) = (format!("10.42.{number}."), format!("fd42:0:0:{number}::"));
    let site = json!({
        "network": "weft",
        "subnets": [format!("{v4}0/24"), format!("{v6}/64")],
        "ranges": [format!("{v4}2-{v4}254"), format!("{v6}2-{v6}ffff")],
        "mtu": 1500,
        "mode": "routed",
        "bridge": null,
    });
    let dir = host.run_dir().join("weft");
    std::fs::create_dir_all(&dir).expect("a directory of the lab");
    std::fs::write(dir.join("attach.json"), site.to_string()).expect("a file of the lab");
    host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").ok()?;
    for (other, peer) in hosts.iter().enumerate().filter(|(other, _)| *other != usize::from(number)) {
        host.run(format!("ip route add 10.42.{other}.0/24 via {}", peer.v4())).ok()?;
        host.run(format!("ip -6 route add fd42:0:0:{other}::/64 via {}", peer.v6())).ok()?;
    }
    Ok(())
}

#[test]
fn pods_are_attached_talk_and_go() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new("pods").weft(weft).hosts(["ash", "birch"]).etcd_members(0).without_daemons().up()?;
    (0..2).try_for_each(|number| join_by_hand(&lab, number))?;
    let (client, server, neighbour) = (lab.pod_on("ash")?, lab.pod_on("birch")?, lab.pod_on("ash")?);
    assert!(client.ip().to_string().starts_with("10.42.0.") && client.ip() != neighbour.ip());
    for target in [Endpoint::from(&server), server.v6(), Endpoint::from(&neighbour), neighbour.v6()] {
        within(SOON, || client.reaches(&target));
    }
    // No masquerade here: a pod is seen by its own address, and its host by the lan's.
    let whoami = server.tcp_whoami()?;
    assert_eq!(client.seen_as(whoami.at(server.ip()))?, client.ip());
    assert_eq!(lab.host("ash").seen_as(whoami.at(server.ip()))?, lab.host("ash").v4());

    // ash and birch: two links, two ends each; outside and the router likewise; three pods.
    let set = lab.set_offloads(Offloads::Off)?;
    assert!(set.iter().any(|line| line.starts_with(&format!("{}/eth0: ", client.netns()))), "{set:#?}");
    assert_eq!(set.len(), 2 * (2 + 1 + 2 + 3), "{set:#?}");
    client.sends(&server, 8 << 20)?;
    client.sends(server.v6(), 8 << 20)?;

    client.check()?;
    let (gone, address) = (client.netns().to_owned(), client.ip());
    client.remove()?;
    assert!(!Path::new("/run/netns").join(gone).exists());
    server.reaches(Endpoint::new(&neighbour, address)).expect_err("nobody has that address any more");
    lab.down()
}

#[test]
fn a_host_without_a_subnet_refuses_pods_with_the_plugin_s_own_words() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new("no-site").weft(weft).hosts(["ash"]).etcd_members(0).without_daemons().up()?;
    let error = lab.pod_on("ash").expect_err("no daemon ever ran").to_string();
    assert!(error.contains("no subnet in network weft yet"), "{error}");
    lab.down()
}
