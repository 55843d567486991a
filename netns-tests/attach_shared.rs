//! A subnet shared with another allocator: containers on a bridge that weft knows nothing of, and
//! weft's pods from a range of their own. All reach each other, here and on other hosts.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use weft_lab::traffic::Endpoint;
use weft_lab::{Host, Lab, LabError, Place, Pod, within};

const SOON: Duration = Duration::from_secs(30);

/// What another allocator makes: a bridge with the subnet's first address, as Docker's, and a
/// container behind it that takes the whole subnet for its neighbours.
fn others_container(host: &Host) -> Result<(Place, Vec<IpAddr>), LabError> {
    let container = host.namespace("container")?;
    host.run("ip link add docker0 type bridge && ip link set docker0 up").ok()?;
    host.run(format!(
        "ip link add behind type veth peer name eth0 netns {} && \
         ip link set behind master docker0 up",
        container.netns()
    ))
    .ok()?;
    container.run("ip link set eth0 up").ok()?;
    let mut addresses = vec![];
    for subnet in host.subnets()? {
        let base = subnet.network().to_string();
        let len = subnet.prefix();
        let (bridge, own) = match subnet.network() {
            IpAddr::V4(_) => {
                let three = base.trim_end_matches('0');
                (format!("{three}1"), format!("{three}200"))
            }
            IpAddr::V6(_) => (format!("{base}1"), format!("{base}c8")),
        };
        host.run(format!("ip address add {bridge}/{len} dev docker0")).ok()?;
        container.run(format!("ip address add {own}/{len} dev eth0")).ok()?;
        let family = if subnet.is_ipv4() { "-4" } else { "-6" };
        container.run(format!("ip {family} route add default via {bridge}")).ok()?;
        addresses.push(own.parse().expect("an address"));
    }
    Ok((container, addresses))
}

fn reach(from: &Place, to: &Place, address: IpAddr) {
    let target = Endpoint::new(to, address);
    within(SOON, || from.reaches(&target));
}

fn each_other(one: (&Place, &[IpAddr]), other: (&Place, &[IpAddr])) {
    for ((from, _), (to, addresses)) in [(one, other), (other, one)] {
        for address in addresses {
            reach(from, to, *address);
        }
    }
}

/// The answers that the host gives for its pods on the shared link, by weft's mark.
fn answers(host: &Host) -> Vec<String> {
    let listed = host.run("ip -6 neigh show proxy dev docker0 | grep 'proto 87' | cut -d' ' -f1");
    let mut answers: Vec<String> = listed.stdout.lines().map(str::to_owned).collect();
    answers.sort();
    answers
}

fn expect_answers(host: &Host, pods: &[&Pod]) {
    let mut expected: Vec<String> = pods.iter().map(|pod| pod.ip6().to_string()).collect();
    expected.sort();
    within(SOON, || {
        let there = answers(host);
        if there == expected { Ok(()) } else { Err(format!("{there:?}, and pods have {expected:?}")) }
    });
}

#[test]
fn pods_and_others_containers_share_a_subnet() -> Result<(), LabError> {
    let lab = Lab::new("attach-shared")
        .weft(Path::new(env!("CARGO_BIN_EXE_weft")))
        .hosts(["ash", "birch"])
        .network(
            r#"{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#,
        )
        .without_daemons()
        .up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    birch.start_overlay()?;
    // Once, to know the subnet that the range must be in.
    ash.start_overlay()?;
    let subnets = ash.subnets()?;
    ash.stop_overlay()?;
    let [three, prefix] = [0, 1].map(|nth| subnets[nth].network().to_string());
    let three = three.trim_end_matches('0');
    let ranges = [format!("--attach-range={three}64/26"), format!("--attach-range={prefix}40-{prefix}7f")];
    ash.launch_overlay_with(&ranges)?;
    ash.wait_until_ready(SOON)?;

    let (first, remote) = (ash.new_pod()?, birch.new_pod()?);
    let (container, addresses) = others_container(&ash)?;
    let second = ash.new_pod()?;
    for pod in [&first, &second] {
        let last: u32 = pod.ip().to_string().rsplit('.').next().and_then(|last| last.parse().ok()).unwrap();
        assert!((64..128).contains(&last), "{} is from the range", pod.ip());
    }
    for pod in [&first, &second, &remote] {
        each_other((&container, &addresses), (pod, pod.addresses()));
    }
    each_other((&first, first.addresses()), (&second, second.addresses()));
    each_other((&first, first.addresses()), (&remote, remote.addresses()));

    // Answers come with pods and go with them, and others' answers stay.
    expect_answers(&ash, &[&first, &second]);
    let others = format!("{prefix}99");
    ash.run(format!("ip -6 neigh add proxy {others} dev docker0")).ok()?;
    second.remove()?;
    expect_answers(&ash, &[&first]);
    assert!(ash.run("ip -6 neigh show proxy dev docker0").stdout.contains(&others));
    // The kernel drops them with the link's power, and says nothing.
    ash.run("ip link set docker0 down && ip link set docker0 up").ok()?;
    expect_answers(&ash, &[&first]);
    lab.down()
}
