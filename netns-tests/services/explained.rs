//! What `weft explain` says is what happens: the simulator held against the kernel.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_lab::LabError;
use weft_lab::manifests::{terminating, unready};
use weft_lab::traffic::Protocol;

use crate::scene::Case;
use crate::stories;

stories![Each: what_explain_says_is_what_happens];

/// ash's explanation of a connection to it. The kernel agrees, or the command would fail.
fn explained(case: &Case, from: &str, to: SocketAddr) -> Result<Value, LabError> {
    let input = if from == "outside" { "--input=eth0" } else { "" };
    let question = format!("weft explain {} {to} {input} -o json", case.address(from));
    case.scene.place("ash").run(question).json()
}

/// Every cell of the policies, with endpoints here and there, there alone, on their way out, and nowhere.
fn what_explain_says_is_what_happens(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    case.routed(case.public(0), "ash")?;
    let [ash, birch] = ["ash/one", "birch/one"].map(|place| case.endpoint(place));
    let endpoints = [
        vec![ash.clone(), birch.clone()],
        vec![birch.clone()],
        vec![terminating(ash.clone(), true), birch.clone()],
        vec![terminating(ash, true), unready(birch)],
        vec![],
    ];
    let (public, node_port) = (SocketAddr::new(case.public(0), 80), case.at("ash", 0));
    let inside = ["ash/two", "ash"].map(|from| [case.web(0), node_port, public].map(|to| (from, to)));
    let outside = [node_port, public].map(|to| ("outside", to));
    let ways: Vec<(&str, SocketAddr)> = inside.concat().into_iter().chain(outside).collect();
    for (internal, external) in [("Cluster", "Local"), ("Local", "Cluster")] {
        for endpoints in &endpoints {
            let spec = json!({
                "internalTrafficPolicy": internal,
                "externalTrafficPolicy": external,
                "externalIPs": [case.public(0)],
            });
            case.declare(&[case.node_port_service(0, spec), case.slice(0, endpoints)])?;
            for (from, to) in &ways {
                holds(case, from, *to, &explained(case, from, *to)?);
            }
        }
    }
    Ok(())
}

#[track_caller]
fn holds(case: &Case, from: &str, to: SocketAddr, said: &Value) {
    let candidates = said["candidates"].as_array().map(Vec::as_slice).unwrap_or_default();
    match said["outcome"].as_str() {
        Some("endpoint") => {
            let at = |place: &&str| json!(SocketAddr::new(case.address(place), case.port(0)));
            let named = |place: &&str| candidates.iter().any(|it| it["endpoint"] == at(place));
            let servers: Vec<&str> = ["ash/one", "birch/one"].into_iter().filter(named).collect();
            assert_eq!(servers.len(), candidates.len(), "{said}");
            case.reaches(from, to, Protocol::Tcp, &servers);
            let hidden: BTreeSet<bool> =
                candidates.iter().filter_map(|it| it["masquerade"].as_bool()).collect();
            let (_, seen) = case.answered(from, to, Protocol::Tcp);
            // Of the host itself any address may be seen, masqueraded or not.
            assert!(
                from == "ash" || hidden == BTreeSet::from([seen != case.address(from)]),
                "{seen}: {said}"
            );
        }
        Some("rejected") => case.refused(from, to, Protocol::Tcp),
        Some("dropped") => case.silent(from, to),
        _ => panic!("{from} -> {to}: {said}"),
    }
}
