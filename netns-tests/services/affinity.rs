//! Session affinity: a client keeps its endpoint for as long as it comes back in time.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::traffic::Protocol;
use weft_lab::{LabError, throughout};

use crate::scene::{BOTH, Case, SOON};
use crate::stories;

stories![Each:
    clients_keep_their_endpoint,
    clients_keep_their_endpoint_at_node_ports,
    affinity_is_one_for_all_of_a_service_s_addresses,
    affinity_times_out,
    affinity_lasts_from_the_last_connection,
    affinity_is_switched,
    affinity_is_switched_at_node_ports,
    affinity_is_switched_at_load_balancers,
    a_client_whose_endpoint_is_gone_moves_once,
    affinity_stays_among_local_endpoints,
];

/// How many answers in a row from the same server count as affinity (AffinityConfirmCount of Kubernetes'
/// tests). Without it three servers look like that once in five million runs.
const CONFIRMED: usize = 15;
const SERVERS: [&str; 3] = ["ash/one", "birch/one", "cedar/one"];

fn sticky(seconds: u32) -> Value {
    json!({
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    })
}

fn clients_keep_their_endpoint(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &SERVERS)?;
    case.declare(&[case.service(0, sticky(10_800)), case.slice(0, &case.endpoints(&SERVERS))])?;
    for from in ["ash/two", "birch/two", "cedar", "ash"] {
        for protocol in BOTH {
            case.sticks(from, case.web(0), protocol, CONFIRMED);
        }
    }
    Ok(())
}

fn clients_keep_their_endpoint_at_node_ports(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &SERVERS)?;
    case.declare(&[case.node_port_service(0, sticky(10_800)), case.slice(0, &case.endpoints(&SERVERS))])?;
    for (from, host) in [("outside", "ash"), ("outside", "cedar"), ("birch/two", "birch"), ("ash", "ash")] {
        for protocol in BOTH {
            case.sticks(from, case.at(host, 0), protocol, CONFIRMED);
        }
    }
    Ok(())
}

/// The key is the client, not the address of the service that it used.
fn affinity_is_one_for_all_of_a_service_s_addresses(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &SERVERS)?;
    let mut spec = sticky(10_800);
    spec["externalIPs"] = json!([case.public(0)]);
    case.declare(&[case.node_port_service(0, spec), case.slice(0, &case.endpoints(&SERVERS))])?;
    let external = SocketAddr::new(case.public(0), 80);
    for from in ["ash/two", "ash/one"] {
        let first = case.sticks(from, case.web(0), Protocol::Tcp, CONFIRMED);
        for to in [case.at("ash", 0), external, case.web(0)] {
            assert_eq!(case.sticks(from, to, Protocol::Tcp, CONFIRMED), first, "{from} -> {to}");
        }
    }
    Ok(())
}

/// Nobody asks for that long.
fn quiet(seconds: u64) {
    throughout(Duration::from_secs(seconds), || true);
}

fn affinity_times_out(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &SERVERS)?;
    case.declare(&[case.node_port_service(0, sticky(1)), case.slice(0, &case.endpoints(&SERVERS))])?;
    for (from, to) in [("ash/two", case.web(0)), ("outside", case.at("birch", 0))] {
        // Within the time the same; after it each of three by chance, and twenty times the same one in one
        // of a billion runs.
        let first = case.sticks(from, to, Protocol::Tcp, CONFIRMED);
        let moved = (0..20).any(|_| {
            quiet(2);
            case.sticks(from, to, Protocol::Tcp, 3) != first
        });
        assert!(moved, "{from} -> {to} is still with {first}");
    }
    Ok(())
}

fn affinity_lasts_from_the_last_connection(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &SERVERS)?;
    case.declare(&[case.service(0, sticky(10)), case.slice(0, &case.endpoints(&SERVERS))])?;
    let first = case.sticks("ash/two", case.web(0), Protocol::Tcp, 1);
    for _ in 0..16 {
        quiet(1);
        assert_eq!(case.sticks("ash/two", case.web(0), Protocol::Tcp, 1), first);
    }
    Ok(())
}

fn switched(case: &Case, from: &str, to: SocketAddr) -> Result<(), LabError> {
    let _up = case.serve(0, &SERVERS)?;
    case.declare(&[case.slice(0, &case.endpoints(&SERVERS))])?;
    let service = |mut spec: Value| {
        spec["type"] = json!("LoadBalancer");
        spec["ports"] = case.both(Some(0));
        let mut service = case.service(0, spec);
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": case.public(0)}]}});
        service
    };
    for _ in 0..2 {
        case.declare(&[service(json!({}))])?;
        case.reaches(from, to, Protocol::Tcp, &SERVERS);
        case.declare(&[service(sticky(10_800))])?;
        case.sticks(from, to, Protocol::Tcp, CONFIRMED);
    }
    Ok(())
}

fn affinity_is_switched(case: &Case) -> Result<(), LabError> {
    switched(case, "ash/two", case.web(0))
}

fn affinity_is_switched_at_node_ports(case: &Case) -> Result<(), LabError> {
    switched(case, "outside", case.at("cedar", 0))
}

fn affinity_is_switched_at_load_balancers(case: &Case) -> Result<(), LabError> {
    case.routed(case.public(0), "birch")?;
    switched(case, "outside", SocketAddr::new(case.public(0), 80))
}

/// At once, not when its time is over; and it does not move back.
fn a_client_whose_endpoint_is_gone_moves_once(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &SERVERS)?;
    case.declare(&[case.service(0, sticky(10_800)), case.slice(0, &case.endpoints(&SERVERS))])?;
    let clients = ["ash/two", "birch/two", "cedar/two", "ash", "cedar"];
    let before = clients.map(|from| case.sticks(from, case.web(0), Protocol::Tcp, CONFIRMED));
    let gone = before[0].as_str();
    let left: Vec<&str> = SERVERS.into_iter().filter(|server| *server != gone).collect();
    case.declare(&[case.slice(0, &case.endpoints(&left))])?;
    let meanwhile = clients.map(|from| case.sticks(from, case.web(0), Protocol::Tcp, CONFIRMED));
    for ((from, had), has) in clients.iter().zip(&before).zip(&meanwhile) {
        assert!(if had == gone { has != gone } else { has == had }, "{from}: {had}, then {has}");
    }
    // A client that has been heard of since then stays; the old entry is worth nothing.
    case.declare(&[case.slice(0, &case.endpoints(&SERVERS))])?;
    let after = clients.map(|from| case.sticks(from, case.web(0), Protocol::Tcp, CONFIRMED));
    assert_eq!(after, meanwhile);
    Ok(())
}

/// A remembered endpoint that this way may not use is ignored.
fn affinity_stays_among_local_endpoints(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &SERVERS)?;
    let mut spec = sticky(10_800);
    spec["externalTrafficPolicy"] = json!("Local");
    case.declare(&[case.node_port_service(0, spec), case.slice(0, &case.endpoints(&SERVERS))])?;
    for (host, server) in [("ash", "ash/one"), ("birch", "birch/one")] {
        assert_eq!(case.sticks("outside", case.at(host, 0), Protocol::Tcp, CONFIRMED), server);
        let answers =
            case.scene.place("outside").asks_often(case.at(host, 0), Protocol::Udp, SOON, CONFIRMED);
        assert_eq!(answers.by_server.get(server), Some(&CONFIRMED), "{answers:?}");
    }
    Ok(())
}
