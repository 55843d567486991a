//! Addresses that no host has: external ones and those of load balancers; and what becomes of packets
//! that nobody takes, frontend by frontend.

use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_lab::LabError;
use weft_lab::manifests::{terminating, unready};
use weft_lab::traffic::Protocol;

use crate::ports::apart;
use crate::scene::{BOTH, Case};
use crate::stories;

stories![Each:
    external_addresses_on_no_node,
    load_balancers_addresses,
    load_balancers_of_both_protocols,
    load_balancers_come_and_change,
    load_balancers_that_show_the_client,
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

/// The same port, and other servers for each protocol.
fn load_balancers_of_both_protocols(case: &Case) -> Result<(), LabError> {
    let _up = [case.serve_as(0, "ash/one", "stream")?, case.serve_as(1, "ash/one", "datagram")?];
    case.routed(case.public(0), "cedar")?;
    case.declare(&[balanced(case, json!({}), json!({})), apart(case)])?;
    for from in ["outside", "birch/two", "cedar"] {
        case.reaches(from, public(case, 0), Protocol::Tcp, &["stream"]);
        case.reaches(from, public(case, 0), Protocol::Udp, &["datagram"]);
    }
    Ok(())
}

/// Type and ports of a service change, up to a load balancer's and back; what it no longer has is free.
fn load_balancers_come_and_change(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    case.routed(case.public(0), "cedar")?;
    let public = |port: u16| SocketAddr::new(case.public(0), port);
    let ports = |port: u16, which: u8| {
        let one = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": port, "nodePort": case.node_port(which)});
        json!([one("tcp", "TCP"), one("udp", "UDP")])
    };
    let load_balancer = |port, which| balanced(case, json!({"ports": ports(port, which)}), json!({}));
    //  the service, the load balancer's port, the node port, and what went with the step before
    let steps = [
        (case.service(0, json!({})), None, None),
        (case.node_port_service(0, json!({})), None, Some(0)),
        (load_balancer(80, 0), Some(80), Some(0)),
        (load_balancer(80, 1), Some(80), Some(1)),
        (load_balancer(81, 1), Some(81), Some(1)),
        (case.node_port_service(0, json!({})), None, Some(0)),
        (case.service(0, json!({})), None, None),
    ];
    case.declare(&[case.slice(0, &case.endpoints(&["ash/one"]))])?;
    for (service, balanced, node_port) in steps {
        case.declare(&[service])?;
        for port in [80, 81] {
            if balanced == Some(port) {
                case.each_reaches(&["outside", "birch/two"], public(port), &["ash/one"]);
            } else {
                case.unserved("birch", public(port));
            }
        }
        for which in [0, 1] {
            let to = case.at("birch", which);
            match node_port == Some(which) {
                true => case.reaches_by_both("outside", to, &["ash/one"]),
                false => case.refused_by_both("outside", to),
            }
        }
        let inside = SocketAddr::new(case.ip(0), balanced.unwrap_or(80));
        case.reaches_by_both("ash/two", inside, &["ash/one"]);
    }
    Ok(())
}

/// externalTrafficPolicy Local: by a host with an endpoint the client comes as it is, by others not at all;
/// from pods the load balancer's address works everywhere.
fn load_balancers_that_show_the_client(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    case.routed(case.public(0), "ash")?;
    let local = json!({"externalTrafficPolicy": "Local"});
    case.declare(&[balanced(case, local, json!({})), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    let to = public(case, 0);
    case.reaches_by_both("outside", to, &["ash/one"]);
    case.each_reaches(&["ash/two", "cedar/two", "cedar"], to, &["ash/one"]);
    for protocol in BOTH {
        for from in ["outside", "cedar/two"] {
            let (_, seen) = case.answered(from, to, protocol);
            assert_eq!(seen, case.address(from), "{from}/{protocol}");
        }
    }
    case.routed(case.public(0), "cedar")?;
    case.silent("outside", to);
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
