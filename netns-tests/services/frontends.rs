//! Addresses that no host has: external ones and those of load balancers; and what becomes of packets
//! that nobody takes, frontend by frontend.

use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_lab::LabError;
use weft_lab::manifests::{terminating, unready};
use weft_lab::traffic::Protocol;

use crate::scene::Case;
use crate::stories;

stories![Each:
    external_addresses_on_no_node,
    load_balancers_addresses,
    load_balancers_without_node_ports,
    load_balancers_that_want_their_packets_themselves,
    source_ranges,
    nobody_is_refused_and_elsewhere_is_dropped,
];

fn public(case: &Case, which: u8) -> SocketAddr {
    SocketAddr::new(case.public(which), 80)
}

/// A load balancer's service, at [`Case::public`] 0.
fn balanced(case: &Case, mut spec: Value, mut ingress: Value) -> Value {
    spec["type"] = json!("LoadBalancer");
    if spec.get("ports").is_none() {
        spec["ports"] = case.both(Some(0));
    }
    let mut service = case.service(0, spec);
    ingress["ip"] = json!(case.public(0));
    service["status"] = json!({"loadBalancer": {"ingress": [ingress]}});
    service
}

fn external_addresses_on_no_node(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one"];
    let _up = case.serve(0, &servers)?;
    case.routed(case.public(0), "cedar")?;
    let service = case.service(0, json!({"externalIPs": [case.public(0)]}));
    case.declare(&[service, case.slice(0, &case.endpoints(&servers))])?;
    case.each_reaches(&["ash/two", "cedar", "outside"], public(case, 0), &servers);
    // External traffic with the policy Cluster is masqueraded, wherever it comes from.
    let (_, seen) = case.answered("ash/two", public(case, 0), Protocol::Tcp);
    assert_ne!(seen, case.address("ash/two"));
    Ok(())
}

fn load_balancers_addresses(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one"];
    let _up = case.serve(0, &servers)?;
    case.routed(case.public(0), "cedar")?;
    case.declare(&[balanced(case, json!({}), json!({})), case.slice(0, &case.endpoints(&servers))])?;
    for to in [public(case, 0), case.at("birch", 0), case.web(0)] {
        case.each_reaches(&["ash/two", "cedar"], to, &servers);
    }
    case.each_reaches(&["outside"], public(case, 0), &servers);
    Ok(())
}

fn load_balancers_without_node_ports(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    case.routed(case.public(0), "cedar")?;
    let spec = json!({"allocateLoadBalancerNodePorts": false, "ports": case.both(None)});
    case.declare(&[balanced(case, spec, json!({})), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    case.each_reaches(&["outside", "birch/two", "birch"], public(case, 0), &["ash/one"]);
    case.refused_by_both("outside", case.at("ash", 0));
    Ok(())
}

/// `ipMode: Proxy`: packets have to go through the load balancer; there is none here.
fn load_balancers_that_want_their_packets_themselves(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    let slice = case.slice(0, &case.endpoints(&["ash/one"]));
    case.declare(&[balanced(case, json!({}), json!({"ipMode": "VIP"})), slice])?;
    case.each_reaches(&["ash/two", "birch"], public(case, 0), &["ash/one"]);
    case.declare(&[balanced(case, json!({}), json!({"ipMode": "Proxy"}))])?;
    case.unserved("birch", public(case, 0));
    case.each_reaches(&["ash/two", "birch"], case.web(0), &["ash/one"]);
    Ok(())
}

/// They concern the load balancer's address alone; who is not in them is told nothing.
fn source_ranges(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    case.routed(case.public(0), "birch")?;
    let outside = if case.v6 { "2001:db8:0:4::/64" } else { "198.18.0.0/24" };
    let elsewhere = if case.v6 { "2001:db8:9::/48" } else { "198.51.100.128/25" };
    let from = |ranges: &[&str]| balanced(case, json!({"loadBalancerSourceRanges": ranges}), json!({}));
    case.declare(&[from(&[outside]), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    case.reaches_by_both("outside", public(case, 0), &["ash/one"]);
    case.silent("birch/two", public(case, 0));
    case.declare(&[from(&[elsewhere])])?;
    case.silent("outside", public(case, 0));
    case.each_reaches(&["outside", "birch/two"], case.at("birch", 0), &["ash/one"]);
    case.each_reaches(&["birch/two"], case.web(0), &["ash/one"]);
    case.declare(&[from(&[elsewhere, outside])])?;
    case.reaches_by_both("outside", public(case, 0), &["ash/one"]);
    case.declare(&[balanced(case, json!({}), json!({}))])?;
    case.each_reaches(&["outside", "birch/two"], public(case, 0), &["ash/one"]);
    Ok(())
}

/// Rejected when no endpoints, and the cells of the policies: a client is refused if nobody could serve it
/// anywhere, and told nothing if somebody could, but not for it and here.
fn nobody_is_refused_and_elsewhere_is_dropped(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    case.routed(case.public(0), "ash")?;
    case.routed(case.public(1), "ash")?;
    let declare = |internal: &str, external: &str, endpoints: &[Value]| {
        let policies = json!({
            "internalTrafficPolicy": internal,
            "externalTrafficPolicy": external,
            "externalIPs": [case.public(1)],
        });
        case.declare(&[balanced(case, policies, json!({})), case.slice(0, endpoints)])
    };
    let birch = case.endpoint("birch/one");
    let external = [public(case, 0), public(case, 1), case.at("ash", 0)];
    let nobody: [&[Value]; 3] = [&[], &[unready(birch.clone())], &[terminating(birch.clone(), false)]];
    let policies = [("Cluster", "Cluster"), ("Local", "Local"), ("Cluster", "Local"), ("Local", "Cluster")];
    for (endpoints, (internal, external_policy)) in
        nobody.iter().flat_map(|endpoints| policies.iter().map(move |policies| (endpoints, policies)))
    {
        declare(internal, external_policy, endpoints)?;
        for from in ["ash/two", "ash"] {
            case.refused_by_both(from, case.web(0));
            external.iter().for_each(|to| case.refused(from, *to, Protocol::Tcp));
        }
        external.iter().for_each(|to| case.refused_by_both("outside", *to));
    }
    // Somebody is there, on birch.
    for (internal, external_policy) in policies {
        declare(internal, external_policy, std::slice::from_ref(&birch))?;
        for from in ["ash/two", "ash"] {
            match internal {
                "Local" => case.silent(from, case.web(0)),
                _ => case.reaches_by_both(from, case.web(0), &["birch/one"]),
            }
            // What begins on a host or in its pods goes the short way, whatever the external policy.
            external.iter().for_each(|to| case.reaches(from, *to, Protocol::Tcp, &["birch/one"]));
        }
        for to in external {
            match external_policy {
                "Local" => case.silent("outside", to),
                _ => case.reaches_by_both("outside", to, &["birch/one"]),
            }
        }
    }
    Ok(())
}
