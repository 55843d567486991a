//! The network's config in etcd: what a running host takes over, what it refuses, what it cannot use.

use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::{Host, LabError, throughout, within};

use crate::seen::{
    BEAT, SOON, flannels, is_well, key, lab, lease_key, lossless, peer, put_leased, routes, says, subnet,
};

/// Subnets above 10.42.199.0 are for peers that the stories make up: no host leases one by chance.
fn vxlan(further: Value) -> Value {
    let mut backend = json!({"Type": "vxlan"});
    backend.as_object_mut().expect("an object").extend(further.as_object().cloned().unwrap_or_default());
    json!({"Network": "10.42.0.0/16", "SubnetMax": "10.42.199.0", "Backend": backend})
}

/// DirectRouting, MTU and the range change under running pods; VNI and Network must not, and are
/// refused with their names until they are taken back.
#[test]
fn a_running_network_takes_what_it_can_and_refuses_the_rest() -> Result<(), LabError> {
    let lab = lab("live").hosts(["ash", "birch", "cedar"]).without_daemons().up()?;
    let (ash, birch, cedar, etcd) = (lab.host("ash"), lab.host("birch"), lab.host("cedar"), lab.etcd());
    ash.start_overlay()?;
    birch.start_overlay()?;
    let (client, server) = (ash.pod("client")?, birch.pod("server")?);
    within(SOON, || client.reaches(&server));
    let pings = client.pinger(&server, BEAT)?;
    let config = key("config");
    let to_birch = subnet(&birch)?;
    let way = |wanted: &str| {
        let routes = routes(&ash);
        let line = routes.lines().find(|line| line.starts_with(&to_birch)).unwrap_or_default().to_owned();
        if line.contains(wanted) { Ok(()) } else { Err(line) }
    };

    way("dev weft.1").map_err(|what| LabError::Traffic { what })?;
    etcd.put(&config, &vxlan(json!({"DirectRouting": true})).to_string())?;
    within(SOON, || way("via 192.0.2.12 dev eth0"));
    etcd.put(&config, &vxlan(json!({"MTU": 1400})).to_string())?;
    within(SOON, || way("dev weft.1"));
    within(SOON, || ash.run("cat /sys/class/net/weft.1/mtu").ok().map(|mtu| mtu.trim() == "1350"));
    within(SOON, || ash.subnet_env().map(|env| env["FLANNEL_MTU"] == "1350"));
    within(SOON, || is_well(&ash));

    // A slip of the pen is said once, and again only if it comes again.
    let said = |wanted: usize| {
        let log = ash.log();
        let found = log.matches("Backend.DirectRoutin: no such key").count();
        if found == wanted { Ok(()) } else { Err(format!("{found} times in {log}")) }
    };
    etcd.put(&config, &vxlan(json!({"MTU": 1400, "DirectRoutin": true})).to_string())?;
    within(SOON, || said(1));
    etcd.put(&config, &vxlan(json!({"MTU": 1410, "DirectRoutin": true})).to_string())?;
    within(SOON, || ash.run("cat /sys/class/net/weft.1/mtu").ok().map(|mtu| mtu.trim() == "1360"));
    said(1).map_err(|what| LabError::Traffic { what })?;
    etcd.put(&config, &vxlan(json!({"MTU": 1400})).to_string())?;
    within(SOON, || ash.run("cat /sys/class/net/weft.1/mtu").ok().map(|mtu| mtu.trim() == "1350"));
    etcd.put(&config, &vxlan(json!({"MTU": 1400, "DirectRoutin": true})).to_string())?;
    within(SOON, || said(2));
    etcd.put(&config, &vxlan(json!({"MTU": 1400})).to_string())?;

    for (refused, named) in [
        (vxlan(json!({"MTU": 1400, "VNI": 7})), "Backend.VNI: 1 cannot become 7"),
        (json!({"Network": "10.43.0.0/16"}), "Network: 10.42.0.0/16 cannot become 10.43.0.0/16"),
        (json!({"Network": "10.42.0.0/33"}), "Network = \"10.42.0.0/33\""),
        (json!("no object"), "the former one stays in force"),
    ] {
        etcd.put(&config, &refused.to_string())?;
        within(SOON, || says(&ash, 503, &["config not ready", named]));
        let line =
            ash.log().lines().rev().find(|line| line.contains("condition=\"config\"")).map(str::to_owned);
        // In the log a quoted value is quoted once more.
        let named = named.split('"').next().unwrap_or_default();
        assert!(line.as_ref().is_some_and(|line| line.contains(named)), "{line:?}");
    }
    // A peer that comes while the config is refused is served all the same.
    put_leased(&etcd, &lease_key("10.42.200.0/24"), &flannels("192.0.2.55", "0e:00:00:00:00:55"))?;
    within(SOON, || routes(&ash).contains("10.42.200.0/24"));

    // The range is for those who come; who is there keeps what he has.
    let mut narrow = vxlan(json!({"MTU": 1400}));
    narrow["SubnetMin"] = json!("10.42.250.0");
    narrow["SubnetMax"] = json!("10.42.250.0");
    etcd.put(&config, &narrow.to_string())?;
    within(SOON, || is_well(&ash));
    cedar.start_overlay()?;
    assert_eq!(subnet(&cedar)?, "10.42.250.0/24");
    assert_eq!(subnet(&birch)?, to_birch);
    lossless(pings);
    lab.down()
}

/// What weft does not have is refused in one line that names the key; nothing is tried instead.
#[test]
fn a_config_that_cannot_be_used_is_named_and_waited_out() -> Result<(), LabError> {
    let lab = lab("bad-config").hosts(["ash"]).without_network().without_daemons().up()?;
    let (ash, etcd) = (lab.host("ash"), lab.etcd());
    ash.launch_overlay()?;
    let config = key("config");
    within(SOON, || says(&ash, 503, &["config not ready: no network config at /coreos.com/network/config"]));
    for (bad, named) in [
        (r#"{"Network":"10.42.0.0/16","Backend":{"Type":"wireguard"}}"#, "Backend.Type = \"wireguard\""),
        (r#"{"Network":"10.42.0.0/16","Backend":{"Type":"ipip"}}"#, "Backend.Type = \"ipip\""),
        (r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#, "Backend.VNI = 16777216"),
        (r#"{"Network":"10.42.0.0/16","#, "must be JSON"),
        (r#"{"Network":"10.42.0.0/30"}"#, "Network"),
        (r#"{}"#, "Network = absent"),
    ] {
        etcd.put(&config, bad)?;
        within(SOON, || says(&ash, 503, &["config not ready", named]));
        let answer = ash.api("/readyz")?.body;
        assert_eq!(answer.lines().filter(|line| line.starts_with("config ")).count(), 1, "{answer}");
    }
    assert!(ash.overlay().is_some(), "it waits");
    assert_eq!(ash.run("ip -o link | grep -cF weft.").stdout.trim(), "0", "nothing was tried instead");

    etcd.put(&config, r#"{"Network":"10.42.0.0/16"}"#)?;
    within(SOON, || is_well(&ash));
    assert!(ash.log().contains("the config names no Backend; vxlan is taken"), "{}", ash.log());
    ash.run("ip link show weft.1").ok()?;
    lab.down()
}

/// The backend is changed from vxlan to udp, and the hosts restart one by one. At every moment every
/// pair has a way: old and old, old and new, new and new.
#[test]
fn a_backend_is_changed_host_by_host() -> Result<(), LabError> {
    let names = ["ash", "birch", "cedar"];
    let lab = lab("mixed").hosts(names).network(vxlan(json!({}))).up()?;
    let hosts: Vec<Host> = names.iter().map(|name| lab.host(name)).collect();
    let pods = hosts.iter().map(|host| host.pod("web")).collect::<Result<Vec<_>, _>>()?;
    let subnets = hosts.iter().map(subnet).collect::<Result<Vec<_>, _>>()?;
    let everybody = || {
        let mut pairs = pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to)));
        pairs.try_for_each(|(from, to)| if from.ip() == to.ip() { Ok(()) } else { from.reaches(to) })
    };
    within(SOON, everybody);
    lab.etcd().put(&key("config"), r#"{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}"#)?;
    within(SOON, || says(&hosts[0], 503, &["Backend.Type: vxlan cannot become udp"]));
    within(SOON, everybody);

    for (number, host) in hosts.iter().enumerate() {
        host.restart_overlay()?;
        within(SOON, everybody);
        throughout(Duration::from_millis(500), everybody);
        assert_eq!(subnet(host)?, subnets[number]);
    }
    // All prefer udp now, and use it.
    for host in &hosts {
        for subnet in subnets.iter().filter(|other| subnet(host).ok().as_ref() != Some(*other)) {
            within(SOON, || {
                let seen = peer(host, subnet)?;
                let ways = seen["ways"].to_string();
                if ways.contains("udp over IPv4") { Ok(()) } else { Err(seen.to_string()) }
            });
        }
        within(SOON, || is_well(host));
    }
    within(SOON, everybody);
    let received = format!("weft_overlay_peer_total{{subnet=\"{}\"", subnets[1]);
    let received = hosts[0].metric(&received)?;
    assert!(received > 0.0, "what the tunnel carried is counted by peer");
    lab.down()
}
