//! A service's ports: several of them, of both protocols, coming and going.

use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_lab::LabError;
use weft_lab::traffic::Protocol;

use crate::scene::{BOTH, Case};
use crate::stories;

stories![Each:
    several_ports,
    several_ports_in_several_slices,
    the_same_port_of_both_protocols,
    ports_are_added_and_deleted,
    ports_and_addresses_that_nobody_has,
    node_ports_on_every_host,
    the_same_node_port_of_both_protocols,
    node_ports_change,
    a_node_port_that_two_services_want,
    sctp_is_programmed,
    node_ports_stay_off_loopback,
];

fn port(name: &str, number: u16) -> Value {
    json!({"name": name, "port": number})
}

fn several_ports(case: &Case) -> Result<(), LabError> {
    let _up = [case.serve_as(0, "ash/one", "first")?, case.serve_as(1, "ash/one", "second")?];
    let service = case.service(0, json!({"ports": [port("a", 80), port("b", 81)]}));
    let ports = json!([port("a", case.port(0)), port("b", case.port(1))]);
    case.declare(&[service, case.slice_of(0, "a", ports, &case.endpoints(&["ash/one"]))])?;
    for from in ["ash/two", "birch/two", "cedar"] {
        case.reaches(from, SocketAddr::new(case.ip(0), 80), Protocol::Tcp, &["first"]);
        case.reaches(from, SocketAddr::new(case.ip(0), 81), Protocol::Tcp, &["second"]);
    }
    Ok(())
}

fn several_ports_in_several_slices(case: &Case) -> Result<(), LabError> {
    let _up = [case.serve_as(0, "ash/one", "first")?, case.serve_as(1, "birch/one", "second")?];
    let service = case.service(0, json!({"ports": [port("a", 80), port("b", 81)]}));
    let slices = [(0, "a", "ash/one"), (1, "b", "birch/one")].map(|(which, name, place)| {
        case.slice_of(0, name, json!([port(name, case.port(which))]), &case.endpoints(&[place]))
    });
    case.declare(&[&[service], &slices[..]].concat())?;
    for from in ["ash/two", "cedar"] {
        case.reaches(from, SocketAddr::new(case.ip(0), 80), Protocol::Tcp, &["first"]);
        case.reaches(from, SocketAddr::new(case.ip(0), 81), Protocol::Tcp, &["second"]);
    }
    Ok(())
}

/// A slice whose TCP and UDP go to different servers.
pub(crate) fn apart(case: &Case) -> Value {
    let ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": case.port(0)},
        {"name": "udp", "protocol": "UDP", "port": case.port(1)},
    ]);
    case.slice_of(0, "a", ports, &case.endpoints(&["ash/one"]))
}

fn the_same_port_of_both_protocols(case: &Case) -> Result<(), LabError> {
    let _up = [case.serve_as(0, "ash/one", "stream")?, case.serve_as(1, "ash/one", "datagram")?];
    case.declare(&[case.service(0, json!({})), apart(case)])?;
    for from in ["ash/two", "birch/two", "cedar"] {
        case.reaches(from, case.web(0), Protocol::Tcp, &["stream"]);
        case.reaches(from, case.web(0), Protocol::Udp, &["datagram"]);
    }
    Ok(())
}

fn the_same_node_port_of_both_protocols(case: &Case) -> Result<(), LabError> {
    let _up = [case.serve_as(0, "ash/one", "stream")?, case.serve_as(1, "ash/one", "datagram")?];
    case.declare(&[case.node_port_service(0, json!({})), apart(case)])?;
    for from in ["outside", "birch/two", "cedar"] {
        case.reaches(from, case.at("birch", 0), Protocol::Tcp, &["stream"]);
        case.reaches(from, case.at("birch", 0), Protocol::Udp, &["datagram"]);
    }
    Ok(())
}

fn ports_are_added_and_deleted(case: &Case) -> Result<(), LabError> {
    let _up = [case.serve_as(0, "ash/one", "first")?, case.serve_as(1, "ash/one", "second")?];
    let both = json!([port("a", case.port(0)), port("b", case.port(1))]);
    let (a, b) = (SocketAddr::new(case.ip(0), 80), SocketAddr::new(case.ip(0), 81));
    let declare = |ports: Value| {
        let spec = json!({"ports": ports});
        let slice = case.slice_of(0, "a", both.clone(), &case.endpoints(&["ash/one"]));
        case.declare(&[case.service(0, spec), slice])
    };
    declare(json!([port("a", 80)]))?;
    for from in ["ash/two", "cedar"] {
        case.reaches(from, a, Protocol::Tcp, &["first"]);
        case.refused(from, b, Protocol::Tcp);
    }
    declare(json!([port("a", 80), port("b", 81)]))?;
    for from in ["ash/two", "cedar"] {
        case.reaches(from, a, Protocol::Tcp, &["first"]);
        case.reaches(from, b, Protocol::Tcp, &["second"]);
    }
    declare(json!([port("b", 81)]))?;
    for from in ["ash/two", "cedar"] {
        case.refused(from, a, Protocol::Tcp);
        case.reaches(from, b, Protocol::Tcp, &["second"]);
    }
    // The other way round: the same numbers, other names.
    declare(json!([port("a", 81), port("b", 80)]))?;
    case.reaches("ash/two", a, Protocol::Tcp, &["second"]);
    case.reaches("ash/two", b, Protocol::Tcp, &["first"]);
    Ok(())
}

/// A port that a live cluster address lacks is refused; of an address of the range for services that
/// nobody has, nothing is told.
fn ports_and_addresses_that_nobody_has(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    case.declare(&[case.service(0, json!({})), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    for from in ["ash/two", "birch"] {
        case.refused_by_both(from, SocketAddr::new(case.ip(0), 81));
        case.silent(from, case.web(7));
    }
    Ok(())
}

/// Functioning node ports, of all hosts, balanced over all hosts.
fn node_ports_on_every_host(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one", "cedar/one"];
    let _up = case.serve(0, &servers)?;
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &case.endpoints(&servers))])?;
    for host in ["ash", "birch", "cedar"] {
        case.each_reaches(&["outside", "ash/two", "cedar"], case.at(host, 0), &servers);
    }
    // Whoever comes from outside is seen as the host that it came to.
    for protocol in BOTH {
        let (_, seen) = case.answered("outside", case.at("ash", 0), protocol);
        assert_ne!(seen, case.address("outside"));
    }
    Ok(())
}

fn node_ports_change(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    let on = |which: u8| {
        case.declare(&[
            case.service(0, json!({"type": "NodePort", "ports": case.both(Some(which))})),
            case.slice(0, &case.endpoints(&["ash/one"])),
        ])
    };
    for (now, before) in [(0, 1), (1, 0), (0, 1)] {
        on(now)?;
        for from in ["outside", "birch/two", "birch"] {
            case.reaches_by_both(from, case.at("birch", now), &["ash/one"]);
            case.refused_by_both(from, case.at("birch", before));
        }
    }
    Ok(())
}

/// An API server prevents it; of manifests the older service has it, and the other one gets it when that
/// is gone.
fn a_node_port_that_two_services_want(case: &Case) -> Result<(), LabError> {
    let _up = [case.serve_as(0, "ash/one", "older")?, case.serve_as(1, "ash/one", "younger")?];
    let objects = |which: u8, made: &str| {
        let mut service = case.service(which, json!({"type": "NodePort", "ports": case.both(Some(0))}));
        service["metadata"]["creationTimestamp"] = json!(made);
        [service, case.slice(which, &case.endpoints(&["ash/one"]))]
    };
    let (older, younger) = (objects(0, "2026-01-01T00:00:00Z"), objects(1, "2026-02-01T00:00:00Z"));
    let to = case.at("birch", 0);
    case.declare(&younger)?;
    case.reaches_by_both("outside", to, &["younger"]);
    case.declare(&older)?;
    case.reaches_by_both("outside", to, &["older"]);
    case.each_reaches(&["ash/two", "cedar"], case.web(1), &["younger"]);
    case.delete(&older)?;
    case.reaches_by_both("outside", to, &["younger"]);
    Ok(())
}

/// Beside TCP on the same ports. Where the kernel has no sockets for SCTP nobody can connect; that it holds
/// the rules is what `weft explain` makes sure of.
fn sctp_is_programmed(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    let node_port = case.node_port(0);
    let service =
        |protocol: &str| json!({"name": protocol, "protocol": protocol, "port": 80, "nodePort": node_port});
    let slice = |protocol: &str| json!({"name": protocol, "protocol": protocol, "port": case.port(0)});
    let spec = json!({"type": "NodePort", "ports": [service("TCP"), service("SCTP")]});
    let ports = json!([slice("TCP"), slice("SCTP")]);
    let ends = case.endpoints(&["birch/one"]);
    case.declare(&[case.service(0, spec), case.slice_of(0, "a", ports.clone(), &ends)])?;
    let endpoint = json!(SocketAddr::new(case.address("birch/one"), case.port(0)));
    let explained = |to: SocketAddr| -> Result<Value, LabError> {
        let question = format!("weft explain {} {to} --protocol=sctp -o json", case.address("ash/two"));
        case.scene.place("ash").run(question).json()
    };
    for to in [case.web(0), case.at("ash", 0)] {
        case.reaches("ash/two", to, Protocol::Tcp, &["birch/one"]);
        let said = explained(to)?;
        assert_eq!(said["candidates"][0]["endpoint"], endpoint, "{said}");
    }
    case.declare(&[case.slice_of(0, "a", ports, &[])])?;
    for to in [case.web(0), case.at("ash", 0)] {
        case.refused("ash/two", to, Protocol::Tcp);
        assert_eq!(explained(to)?["outcome"], "rejected");
    }
    Ok(())
}

/// nodePortAddresses is `primary`: 127.0.0.1 and ::1 are the host's own.
fn node_ports_stay_off_loopback(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    let loopback = if case.v6 { "::1" } else { "127.0.0.1" }.parse().expect("an address");
    case.reaches_by_both("ash", case.at("ash", 0), &["ash/one"]);
    case.refused_by_both("ash", SocketAddr::new(loopback, case.node_port(0)));
    // Another address of the host than the one it is known by.
    let gateway = case.scene.place("ash").run(format!(
        "ip -o {} address show dev weft{}.1 scope global",
        if case.v6 { "-6" } else { "-4" },
        if case.v6 { "-v6" } else { "" }
    ));
    let gateway = gateway.ok()?;
    let tunnel = gateway.split_whitespace().nth(3).and_then(|net| net.split('/').next());
    let tunnel = tunnel.and_then(|address| address.parse().ok()).expect("the overlay's own address");
    case.refused_by_both("ash/two", SocketAddr::new(tunnel, case.node_port(0)));
    Ok(())
}
