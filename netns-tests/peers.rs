//! Peers of all kinds: next door and behind a router, flannel's, and those that changed or left while
//! nobody looked; and daemons that die while they work.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::traffic::Endpoint;
use weft_lab::{Builder, Host, Lab, LabError, within};

const SOON: Duration = Duration::from_secs(30);
const SUBNETS: &str = "/coreos.com/network/subnets";

fn weft() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_weft"))
}

fn lab(story: &str) -> Builder {
    Lab::new(story).weft(weft())
}

/// A lease as flanneld writes it: key and value.
fn flannel_lease(subnet: &str, address: Ipv4Addr, mac: &str) -> (String, String) {
    let value = format!(
        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    (format!("{SUBNETS}/{}", subnet.replace('/', "-")), value)
}

/// What a host's kernel knows of the others: routes, neighbours and FDB entries of ours.
fn known(host: &Host) -> String {
    let commands = "ip route show proto 87; ip neigh show dev weft.1; bridge fdb show dev weft.1";
    host.run(commands).stdout
}

/// Everything of `present` is known and nothing of `absent`.
#[track_caller]
fn knows(host: &Host, present: &[&str], absent: &[&str]) {
    within(SOON, || {
        let known = known(host);
        let good = present.iter().all(|word| known.contains(word))
            && !absent.iter().any(|word| known.contains(word));
        if good { Ok(()) } else { Err(known) }
    });
}

/// Neighbours on a segment need no tunnel; a router between them knows no pods.
#[test]
fn direct_routing_goes_around_the_tunnel_where_it_can() -> Result<(), LabError> {
    let config = r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    let lab = lab("direct").hosts_on(1, ["ash", "birch"]).hosts_on(2, ["cedar"]).network(config).up()?;
    let (ash, birch, cedar) = (lab.host("ash"), lab.host("birch"), lab.host("cedar"));
    let (near, far) = (birch.subnet()?, cedar.subnet()?);
    knows(
        &ash,
        &[
            &format!("{near} via {} dev eth0", birch.v4()),
            &format!("{far} via {} dev weft.1 onlink", far.ip()),
        ],
        &[],
    );
    knows(&cedar, &[&format!("{near} via {} dev weft.1 onlink", near.ip())], &[]);
    let pods = [ash.new_pod()?, birch.new_pod()?, cedar.new_pod()?];
    for from in &pods {
        for to in pods.iter().filter(|to| to.ip() != from.ip()) {
            within(SOON, || from.reaches(to));
            let whoami = to.tcp_whoami()?;
            assert_eq!(from.seen_as(whoami.at(to.ip()))?, from.ip());
        }
    }
    pods[0].sends(&pods[1], 10_000_000)?;
    pods[0].sends(&pods[2], 10_000_000)?;
    lab.down()
}

/// What changed while the daemon was down is put right at its start: peers that left leave nothing.
#[test]
fn a_start_collects_what_left_meanwhile() -> Result<(), LabError> {
    let lab = lab("stale").hosts(["ash"]).up()?;
    let (ash, etcd) = (lab.host("ash"), lab.etcd());
    let [one, two, three] = ["10.42.201.0/24", "10.42.202.0/24", "10.42.203.0/24"];
    let address = |last: u8| Ipv4Addr::new(192, 0, 2, last);
    let [mac_one, mac_two, mac_three, mac_new] =
        ["02:00:00:00:01:01", "02:00:00:00:01:02", "02:00:00:00:01:03", "02:00:00:00:01:04"];
    for (subnet, last, mac) in [(one, 201, mac_one), (two, 202, mac_two), (three, 203, mac_three)] {
        let (key, value) = flannel_lease(subnet, address(last), mac);
        etcd.put(&key, &value)?;
    }
    knows(&ash, &[one, two, three, mac_one, mac_two, mac_three, "dst 192.0.2.203"], &[]);
    // Garbage beside the leases takes nothing away.
    etcd.put(&format!("{SUBNETS}-backup/x"), "garbage")?;
    etcd.put(&format!("{SUBNETS}/nonsense"), "{")?;
    for stop in
        [Host::kill_overlay as fn(&Host) -> Result<(), LabError>, |host| host.stop_overlay().map(drop)]
    {
        stop(&ash)?;
        etcd.delete(&flannel_lease(one, address(201), mac_one).0)?;
        let (key, value) = flannel_lease(two, address(212), mac_two);
        etcd.put(&key, &value)?;
        let (key, value) = flannel_lease(three, address(203), mac_new);
        etcd.put(&key, &value)?;
        knows(&ash, &[one, mac_one, "dst 192.0.2.202", mac_three], &["dst 192.0.2.212", mac_new]);
        ash.start_overlay()?;
        knows(
            &ash,
            &[two, three, mac_two, mac_new, "dst 192.0.2.212"],
            &[one, mac_one, "dst 192.0.2.202", mac_three],
        );
        within(SOON, || ash.as_planned());
        // And back, for the other way to stop.
        for (subnet, last, mac) in [(one, 201, mac_one), (two, 202, mac_two), (three, 203, mac_three)] {
            let (key, value) = flannel_lease(subnet, address(last), mac);
            etcd.put(&key, &value)?;
        }
        knows(&ash, &[one, mac_one, mac_three, "dst 192.0.2.202"], &[mac_new, "dst 192.0.2.212"]);
    }
    lab.down()
}

/// Killed at any moment of its first start, a daemon leaves nothing that the next start does not repair.
#[test]
fn a_daemon_killed_at_any_moment_is_repaired_by_the_next() -> Result<(), LabError> {
    let names = ["ash", "birch", "cedar", "elm", "fir"];
    let lab = lab("killed").hosts(names).without_daemons().up()?;
    let moments = [
        ("it runs", "true"),
        ("its link is there", "ip link show weft.1"),
        ("its address is there", "ip -o address show dev weft.1 | grep -q 'inet '"),
        ("its table is there", "nft list table inet weft-weft"),
        ("its subnet file is there", "test -e $WEFT_SUBNET_FILE"),
    ];
    for (name, (_, reached)) in names.iter().zip(moments) {
        let host = lab.host(name);
        host.launch_overlay()?;
        within(SOON, || host.run(reached).ok().map(drop));
        host.kill_overlay()?;
    }
    for name in names {
        lab.host(name).start_overlay()?;
    }
    let pods: Result<Vec<_>, _> = names.iter().map(|name| lab.pod_on(name)).collect();
    let pods = pods?;
    for (to, (moment, _)) in pods.iter().zip(moments) {
        for from in pods.iter().filter(|from| from.ip() != to.ip()) {
            within(SOON, || {
                from.reaches(to).map_err(|error| format!("killed when {moment}: {}", error.chain()))
            });
        }
        within(SOON, || to.host().as_planned());
    }
    lab.down()
}

/// A host that flanneld runs on, made by hand: its link, and for each lease it can read a route, a
/// neighbour and an FDB entry, exactly as flannel's vxlan backend programs them.
fn flannel_host(lab: &Lab, host: &Host, subnet: &str, mac: &str) -> Result<(), LabError> {
    let vtep = subnet.split('/').next().unwrap_or_default();
    host.run(format!(
        "sysctl -qw net.ipv4.ip_forward=1 && ip link add flannel.1 address {mac} mtu 1450 type vxlan id 1 \
         dev eth0 local {} dstport 8472 nolearning && ip address add {vtep}/32 dev flannel.1 && ip link set flannel.1 up",
        host.v4()
    ))
    .ok()?;
    for key in lab.etcd().keys(SUBNETS)? {
        let value = lab.etcd().get(&key)?.unwrap_or_default();
        let (peer, lease) =
            read_as_flannel(&key, &value).unwrap_or_else(|| panic!("flannel cannot read {key} = {value}"));
        if peer == subnet {
            continue;
        }
        let vtep = peer.split('/').next().unwrap_or_default();
        let (mac, address) = (&lease["BackendData"]["VtepMAC"], &lease["PublicIP"]);
        let (mac, address) = (mac.as_str().unwrap_or_default(), address.as_str().unwrap_or_default());
        host.run(format!(
            "ip neigh replace {vtep} lladdr {mac} dev flannel.1 nud permanent && \
             bridge fdb append {mac} dev flannel.1 dst {address} self permanent && \
             ip route replace {peer} via {vtep} dev flannel.1 onlink"
        ))
        .ok()?;
    }
    Ok(())
}

/// flannel's rules for a lease: `<address>-<length>` at the end of the key, and a value whose fields
/// have Go's types. IPv4 only.
fn read_as_flannel(key: &str, value: &str) -> Option<(String, Value)> {
    let (address, length) = key.strip_prefix(SUBNETS)?.strip_prefix('/')?.split_once('-')?;
    let subnet = format!("{}/{}", address.parse::<Ipv4Addr>().ok()?, length.parse::<u8>().ok()?);
    let lease: Value = serde_json::from_str(value).ok()?;
    lease["PublicIP"].as_str()?.parse::<Ipv4Addr>().ok()?;
    let mac = lease["BackendData"]["VtepMAC"].as_str()?;
    let bytes = mac.split(':').filter(|byte| byte.len() == 2 && u8::from_str_radix(byte, 16).is_ok()).count();
    let good =
        lease["BackendType"] == json!("vxlan") && lease["BackendData"]["VNI"] == json!(1) && bytes == 6;
    good.then_some((subnet, lease))
}

#[test]
fn flannel_s_hosts_and_ours_share_one_network() -> Result<(), LabError> {
    let lab = lab("mixed").hosts(["ash", "birch", "fern"]).without_daemons().up()?;
    let (ash, birch, fern) = (lab.host("ash"), lab.host("birch"), lab.host("fern"));
    let (subnet, mac) = ("10.42.77.0/24", "c6:d2:32:6f:8f:44");
    let (key, value) = flannel_lease(subnet, fern.v4(), mac);
    lab.etcd().put(&key, &value)?;
    ash.start_overlay()?;
    birch.start_overlay()?;
    // What flanneld would do with our leases; none of them is one that it cannot read.
    flannel_host(&lab, &fern, subnet, mac)?;
    let container = fern.namespace("box")?;
    fern.run(format!(
        "ip link add cni0 type veth peer name eth0 netns {0} && ip address add 10.42.77.1/24 dev cni0 && ip link set cni0 up && \
         ip -n {0} address add 10.42.77.2/24 dev eth0 && ip -n {0} link set eth0 mtu 1450 up && \
         ip -n {0} route add default via 10.42.77.1",
        container.netns()
    ))
    .ok()?;
    let boxed = Endpoint::new(&container, Ipv4Addr::new(10, 42, 77, 2));
    for pod in [ash.new_pod()?, birch.new_pod()?] {
        within(SOON, || pod.reaches(&boxed));
        within(SOON, || container.reaches(&pod));
        pod.sends(&boxed, 10_000_000)?;
        container.sends(&pod, 10_000_000)?;
        let whoami = container.tcp_whoami()?;
        assert_eq!(pod.seen_as(whoami.at(boxed.address))?, pod.ip());
    }
    // flanneld renews by writing the same again, and leaves by its lease running out.
    lab.etcd().put(&key, &value)?;
    knows(&ash, &[subnet, mac], &[]);
    lab.etcd().delete(&key)?;
    knows(&ash, &[], &[subnet, mac]);
    lab.down()
}
