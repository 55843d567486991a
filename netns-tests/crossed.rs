//! Pods of one family over hosts of the other: the machines have IPv4 alone, or IPv6 alone, and the
//! pods the other or both. Every machine's etcd, tunnel and leases live with what there is.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use weft_lab::traffic::Endpoint;
use weft_lab::{Families, Lab, LabError, Pod, within};

const SOON: Duration = Duration::from_secs(30);
const V4_PODS: &str = r#""Network":"10.42.0.0/16""#;
const V6_PODS: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd42::/48""#;
const ALL_PODS: &str = r#""Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48""#;
/// What ICMP's and IP's headers take of a packet, by the pods' family.
const HEADERS: [u32; 2] = [20 + 8, 40 + 8];

fn endpoints(pod: &Pod) -> impl Iterator<Item = Endpoint> + '_ {
    pod.addresses().iter().map(|address| Endpoint::new(pod, *address))
}

/// A packet of exactly the MTU crosses whole, both ways; one byte more is refused where it begins.
fn the_mtu_is_exact(from: &Pod, to: IpAddr, mtu: u32) -> Result<(), LabError> {
    let payload = mtu - HEADERS[usize::from(to.is_ipv6())];
    from.run(format!("ping -n -c 1 -W 2 -M do -s {payload} {to}")).ok()?;
    let over = from.run(format!("ping -n -c 1 -W 2 -M do -s {} {to}", payload + 1));
    assert!(!over.success() && format!("{}{}", over.stdout, over.stderr).contains("too long"), "{over:?}");
    Ok(())
}

/// Two hosts on one segment and one behind a router, whose machines have one family alone.
fn pods_cross(story: &str, hosts: Families, pods: &str, backend: &str, mtu: u32) -> Result<(), LabError> {
    let config = format!(r#"{{{pods},"Backend":{{"Type":"{backend}"}}}}"#);
    let builder = Lab::new(story).weft(Path::new(env!("CARGO_BIN_EXE_weft"))).underlay(hosts).network(config);
    let lab = builder.hosts(["ash", "birch"]).hosts_on(2, ["cedar"]).up()?;
    let ash = lab.host("ash");
    assert_eq!(ash.subnet_env()?["FLANNEL_MTU"], mtu.to_string());
    let (client, near, far) = (lab.pod_on("ash")?, lab.pod_on("birch")?, lab.pod_on("cedar")?);
    for server in [&near, &far] {
        for to in endpoints(server) {
            within(SOON, || client.reaches(&to));
            the_mtu_is_exact(&client, to.address, mtu)?;
            client.sends(&to, 2_000_000)?;
        }
        for back in endpoints(&client) {
            server.reaches(&back)?;
        }
    }
    within(SOON, || ash.as_planned());
    lab.down()
}

#[test]
fn ipv6_pods_over_ipv4_hosts() -> Result<(), LabError> {
    pods_cross("v6-over-v4", Families::V4, V6_PODS, "vxlan", 1450)
}

#[test]
fn ipv4_pods_over_ipv6_hosts() -> Result<(), LabError> {
    pods_cross("v4-over-v6", Families::V6, V4_PODS, "vxlan", 1430)
}

#[test]
fn pods_with_both_over_ipv4_hosts() -> Result<(), LabError> {
    pods_cross("both-over-v4", Families::V4, ALL_PODS, "vxlan", 1450)
}

#[test]
fn ipv4_pods_over_ipv6_hosts_by_udp() -> Result<(), LabError> {
    pods_cross("udp-over-v6", Families::V6, V4_PODS, "udp", 1452)
}
