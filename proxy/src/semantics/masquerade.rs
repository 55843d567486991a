//! Who is masqueraded.

use super::*;

#[test]
fn masquerade() {
    let all = || world().set(|settings| settings.masquerade_all = true);
    let detect = |detect: DetectLocal| world().set(|settings| settings.detect_local = detect);
    let cluster_cidr = || detect(DetectLocal::ClusterCidr(vec!["10.1.0.0/16".parse().unwrap()]));
    let v6_cidr = || detect(DetectLocal::ClusterCidr(vec!["fd00:1::/64".parse().unwrap()]));
    let prefix = || detect(DetectLocal::InterfacePrefix("pod".to_owned()));
    let itself = "10.1.0.5@pod0";
    let hairpin = "10.1.0.5:8080 masqueraded, 10.1.1.5:8080";
    check(vec![
        ("masqueradeAll", all(), POD, CLUSTER_IP, BOTH_MASQUERADED),
        (
            "masqueradeAll does not concern external Local",
            all().external_local(),
            OUTSIDE,
            NODE_PORT,
            "10.1.0.5:8080",
        ),
        ("ClusterCIDR: a pod", cluster_cidr(), POD, CLUSTER_IP, BOTH),
        ("ClusterCIDR: a pod elsewhere", cluster_cidr(), FAR_POD, CLUSTER_IP, BOTH),
        ("ClusterCIDR: somebody outside", cluster_cidr(), OUTSIDE, CLUSTER_IP, BOTH_MASQUERADED),
        ("ClusterCIDR: a process of the host", cluster_cidr(), PROCESS, CLUSTER_IP, BOTH_MASQUERADED),
        ("ClusterCIDR: none in this family", v6_cidr(), OUTSIDE, CLUSTER_IP, BOTH),
        ("NodeCIDR: a pod", detect(DetectLocal::NodeCidr), POD, CLUSTER_IP, BOTH),
        ("NodeCIDR: a pod elsewhere", detect(DetectLocal::NodeCidr), FAR_POD, CLUSTER_IP, BOTH_MASQUERADED),
        ("BridgeInterface: a pod", world(), POD, CLUSTER_IP, BOTH),
        ("BridgeInterface: another link", world(), "10.1.0.9@pod1", CLUSTER_IP, BOTH_MASQUERADED),
        ("BridgeInterface: a process of the host", world(), PROCESS, CLUSTER_IP, BOTH_MASQUERADED),
        ("InterfaceNamePrefix: a pod", prefix(), "10.1.0.9@pod1", CLUSTER_IP, BOTH),
        ("InterfaceNamePrefix: another link", prefix(), OUTSIDE, CLUSTER_IP, BOTH_MASQUERADED),
        ("InterfaceNamePrefix: a process of the host", prefix(), PROCESS, CLUSTER_IP, BOTH_MASQUERADED),
        ("detector unset: nobody", detect(DetectLocal::Off), OUTSIDE, CLUSTER_IP, BOTH),
        (
            "detector unset: pods are outside for external Local",
            detect(DetectLocal::Off).external_local(),
            POD,
            NODE_PORT,
            "10.1.0.5:8080",
        ),
        ("hairpin", world(), itself, CLUSTER_IP, hairpin),
        ("hairpin through external Local", world().external_local(), itself, BALANCER, hairpin),
        (
            "hairpin, internal Local",
            world().internal_local(),
            itself,
            CLUSTER_IP,
            "10.1.0.5:8080 masqueraded",
        ),
        ("external Cluster: always", world(), POD, EXTERNAL_IP, BOTH_MASQUERADED),
        (
            "external Local: nobody from outside",
            world().external_local(),
            OUTSIDE,
            EXTERNAL_IP,
            "10.1.0.5:8080",
        ),
        ("external Local: from the host", world().external_local(), PROCESS, EXTERNAL_IP, BOTH_MASQUERADED),
        ("external Local: from a local pod", world().external_local(), POD, EXTERNAL_IP, BOTH),
    ]);
}
