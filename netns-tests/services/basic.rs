//! Endpoints are reached, and who is seen by whom.

use std::net::SocketAddr;

use serde_json::json;
use weft_lab::LabError;
use weft_lab::manifests::unready;
use weft_lab::traffic::Protocol;

use crate::scene::{BOTH, Case};
use crate::stories;

stories![Each:
    pods_and_hosts_reach_endpoints,
    a_pod_reaches_itself_through_its_service,
    servers_see_the_pod_that_asks,
    endpoints_on_the_host_s_network,
    only_ready_endpoints_are_used,
    endpoints_become_ready,
    not_ready_addresses_are_published,
    addresses_in_several_slices,
    a_service_is_made_again,
    another_proxy_s_label,
    the_headless_label,
    types_change,
    two_services_for_the_same_endpoints,
    large_requests,
    shares_are_equal,
    clients_are_hashed,
];

/// Basic endpoint, node-pod, intra-pod; for http and udp.
fn pods_and_hosts_reach_endpoints(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one"];
    let _up = case.serve(0, &servers)?;
    case.declare(&[case.service(0, json!({})), case.slice(0, &case.endpoints(&servers))])?;
    case.each_reaches(&["ash/two", "ash/one", "cedar/two", "ash", "cedar"], case.web(0), &servers);
    // One leaves.
    case.declare(&[case.slice(0, &case.endpoints(&servers[1..]))])?;
    case.each_reaches(&["ash/two", "cedar"], case.web(0), &servers[1..]);
    Ok(())
}

/// Hairpin: the answer must come back through the host, so the pod sees somebody else ask.
fn a_pod_reaches_itself_through_its_service(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    for to in [case.web(0), case.at("ash", 0)] {
        for protocol in BOTH {
            let (server, seen) = case.answered("ash/one", to, protocol);
            assert_eq!(server, "ash/one");
            assert_ne!(seen, case.address("ash/one"), "{to}/{protocol}");
        }
    }
    Ok(())
}

fn servers_see_the_pod_that_asks(case: &Case) -> Result<(), LabError> {
    for (which, server) in (0..).zip(["ash/one", "birch/one"]) {
        let _up = case.serve(which, &[server])?;
        case.declare(&[case.service(which, json!({})), case.slice(which, &case.endpoints(&[server]))])?;
        for protocol in BOTH {
            let (_, seen) = case.answered("ash/two", case.web(which), protocol);
            assert_eq!(seen, case.address("ash/two"), "{server}/{protocol}");
            // A host is no local pod.
            let (_, seen) = case.answered("cedar", case.web(which), protocol);
            assert_ne!(seen, case.ip(which));
        }
    }
    Ok(())
}

fn endpoints_on_the_host_s_network(case: &Case) -> Result<(), LabError> {
    let servers = ["ash", "birch"];
    let _up = case.serve(0, &servers)?;
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &case.endpoints(&servers))])?;
    case.each_reaches(&["ash/two", "cedar/two", "ash", "cedar"], case.web(0), &servers);
    case.each_reaches(&["outside", "ash/one"], case.at("cedar", 0), &servers);
    Ok(())
}

fn only_ready_endpoints_are_used(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    let [ash, birch] = ["ash/one", "birch/one"].map(|place| case.endpoint(place));
    case.declare(&[case.service(0, json!({})), case.slice(0, &[ash.clone(), unready(birch.clone())])])?;
    case.each_reaches(&["ash/two", "birch/two", "birch"], case.web(0), &["ash/one"]);
    case.declare(&[case.slice(0, &[unready(ash.clone()), birch.clone()])])?;
    case.each_reaches(&["ash/two", "birch/two", "ash"], case.web(0), &["birch/one"]);
    // Evicted: there it is, and it will never be ready.
    case.declare(&[case.slice(0, &[unready(ash), unready(birch)])])?;
    ["ash/two", "birch"].iter().for_each(|from| case.refused_by_both(from, case.web(0)));
    Ok(())
}

/// Initial unready to ready: who was refused is served from then on.
fn endpoints_become_ready(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    let endpoint = case.endpoint("birch/one");
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &[unready(endpoint.clone())])])?;
    let clients = [("ash/two", case.web(0)), ("cedar", case.web(0)), ("outside", case.at("cedar", 0))];
    clients.iter().for_each(|(from, to)| case.refused_by_both(from, *to));
    case.declare(&[case.slice(0, &[endpoint])])?;
    clients.iter().for_each(|(from, to)| case.reaches_by_both(from, *to, &["birch/one"]));
    Ok(())
}

/// Who publishes them says that they are ready, terminating or not; so they are used. Without that word
/// a terminating endpoint that does not serve is nobody.
fn not_ready_addresses_are_published(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    let published = |ready: bool| {
        let mut endpoint = case.endpoint("ash/one");
        endpoint["conditions"] = json!({"ready": ready, "serving": false, "terminating": true});
        let spec = json!({"publishNotReadyAddresses": ready});
        [case.service(0, spec), case.slice(0, &[endpoint])]
    };
    case.declare(&published(true))?;
    case.each_reaches(&["ash/two", "cedar"], case.web(0), &["ash/one"]);
    case.declare(&published(false))?;
    ["ash/two", "cedar"].iter().for_each(|from| case.refused_by_both(from, case.web(0)));
    Ok(())
}

fn addresses_in_several_slices(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one", "cedar/one"];
    let _up = case.serve(0, &servers)?;
    let [a, b, c] = servers.map(|place| case.endpoint(place));
    let port = case.port(0);
    let slices = [
        case.slice_at(0, "a", port, &[a, b.clone()]),
        // In two of them while it moves: it counts once.
        case.slice_at(0, "b", port, &[b, c]),
        case.slice_at(0, "c", port, &[]),
    ];
    case.declare(&[&[case.service(0, json!({}))], &slices[..]].concat())?;
    case.each_reaches(&["ash/two", "cedar"], case.web(0), &servers);
    case.delete(&slices[..1])?;
    case.each_reaches(&["ash/two", "cedar"], case.web(0), &servers[1..]);
    Ok(())
}

/// Up and down: what a service held is free at once, and it works when it is made again.
fn a_service_is_made_again(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    let slice = case.slice(0, &case.endpoints(&["ash/one"]));
    case.declare(&[case.node_port_service(0, json!({})), slice.clone()])?;
    case.each_reaches(&["ash/two", "birch"], case.web(0), &["ash/one"]);
    case.reaches_by_both("outside", case.at("birch", 0), &["ash/one"]);
    case.delete(&[case.service(0, json!({})), slice.clone()])?;
    // Nobody has that cluster address now; the node port is the host's own again, who listens to nothing.
    case.silent("ash/two", case.web(0));
    case.refused_by_both("outside", case.at("birch", 0));
    // Again, and the node port for another service.
    let other = case.service(1, json!({"type": "NodePort", "ports": case.both(Some(0))}));
    let slice_of_other = case.slice_at(1, "a", case.port(0), &case.endpoints(&["ash/one"]));
    case.declare(&[case.service(0, json!({})), slice, other, slice_of_other])?;
    case.each_reaches(&["ash/two", "birch"], case.web(0), &["ash/one"]);
    case.reaches_by_both("outside", case.at("birch", 0), &["ash/one"]);
    Ok(())
}

/// service-proxy-name: another proxy's, so its cluster address is none of ours to refuse.
fn another_proxy_s_label(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    let plain = case.service(0, json!({}));
    let mut labelled = plain.clone();
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "mesh"});
    case.declare(&[plain.clone(), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    case.each_reaches(&["ash/two", "birch"], case.web(0), &["ash/one"]);
    case.declare(&[labelled])?;
    case.unserved("birch", case.web(0));
    case.declare(&[plain])?;
    case.each_reaches(&["ash/two", "birch"], case.web(0), &["ash/one"]);
    Ok(())
}

fn the_headless_label(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    let plain = case.service(0, json!({}));
    let mut labelled = plain.clone();
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/headless": ""});
    case.declare(&[plain.clone(), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    case.each_reaches(&["ash/two", "birch"], case.web(0), &["ash/one"]);
    case.declare(&[labelled])?;
    ["ash/two", "birch"].iter().for_each(|from| case.silent(from, case.web(0)));
    case.declare(&[plain])?;
    case.each_reaches(&["ash/two", "birch"], case.web(0), &["ash/one"]);
    Ok(())
}

fn types_change(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one"])?;
    let name_only = json!({"type": "ExternalName", "externalName": "example.org", "clusterIPs": []});
    let external_name = case.service(0, name_only);
    let cluster_ip = case.service(0, json!({"type": "ClusterIP"}));
    let node_port = case.node_port_service(0, json!({}));
    let nowhere = || {
        case.silent("ash/two", case.web(0));
        case.refused_by_both("outside", case.at("cedar", 0));
    };
    let inside = || {
        case.reaches_by_both("ash/two", case.web(0), &["ash/one"]);
        case.refused_by_both("outside", case.at("cedar", 0));
    };
    let everywhere = || {
        case.reaches_by_both("ash/two", case.web(0), &["ash/one"]);
        case.reaches_by_both("outside", case.at("cedar", 0), &["ash/one"]);
    };
    let steps: [(_, &dyn Fn()); 6] = [
        (&external_name, &nowhere),
        (&cluster_ip, &inside),
        (&external_name, &nowhere),
        (&node_port, &everywhere),
        (&cluster_ip, &inside),
        (&external_name, &nowhere),
    ];
    case.declare(&[case.slice(0, &case.endpoints(&["ash/one"]))])?;
    for (service, then) in steps {
        case.declare(std::slice::from_ref(service))?;
        then();
    }
    Ok(())
}

/// Same ports of different services, and several services for the same pods.
fn two_services_for_the_same_endpoints(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    let objects = |which: u8, servers: &[&str]| {
        let slice = case.slice_at(which, "a", case.port(0), &case.endpoints(servers));
        [case.service(which, json!({})), slice]
    };
    case.declare(&[objects(0, &["ash/one", "birch/one"]), objects(1, &["birch/one"])].concat())?;
    for from in ["ash/two", "cedar"] {
        case.reaches_by_both(from, case.web(0), &["ash/one", "birch/one"]);
        case.reaches_by_both(from, case.web(1), &["birch/one"]);
    }
    case.delete(&objects(0, &[]))?;
    case.reaches_by_both("ash/two", case.web(1), &["birch/one"]);
    Ok(())
}

fn large_requests(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &case.endpoints(&["birch/one"]))])?;
    let megabytes: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_le_bytes).collect();
    for (from, to) in [
        ("ash/two", case.web(0)),
        ("birch/two", case.web(0)),
        ("cedar", case.web(0)),
        ("outside", case.at("ash", 0)),
    ] {
        let place = case.scene.place(from);
        for (protocol, size) in [(Protocol::Tcp, megabytes.len()), (Protocol::Udp, 40_000)] {
            let payload = megabytes.get(..size).unwrap_or_default();
            assert_eq!(place.exchange(to, protocol, payload)?, "birch/one", "{from} -> {to}/{protocol}");
        }
    }
    Ok(())
}

/// Pearson's test with two degrees of freedom: above 27.7 once in a million honest runs.
fn shares_are_equal(case: &Case) -> Result<(), LabError> {
    const BOUND: f64 = 27.7;
    let servers = ["ash/one", "birch/one", "cedar/one"];
    let _up = case.serve(0, &servers)?;
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &case.endpoints(&servers))])?;
    for (from, to) in [("ash/two", case.web(0)), ("cedar", case.web(0)), ("outside", case.at("ash", 0))] {
        let answers = case.scene.place(from).asks_often(to, Protocol::Tcp, crate::scene::SOON, 300);
        assert!(answers.others.is_empty(), "{answers:?}");
        assert!(answers.chi_square(servers.len()) < BOUND, "{from} -> {to}: {:?}", answers.by_server);
    }
    Ok(())
}

/// `weft.dev/balance: client-hash`: the same endpoint from any host, and nobody moves without need.
fn clients_are_hashed(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one", "cedar/one"];
    let clients = ["ash/two", "birch/two", "cedar/two", "ash/one", "outside"];
    let _up = case.serve(0, &servers)?;
    let mut service = case.node_port_service(0, json!({}));
    service["metadata"]["annotations"] = json!({"weft.dev/balance": "client-hash"});
    case.declare(&[service, case.slice(0, &case.endpoints(&servers))])?;
    let ask = |from: &str| {
        let to: &[SocketAddr] = match from {
            "outside" => &[case.at("ash", 0), case.at("birch", 0), case.at("cedar", 0)],
            _ => &[case.web(0)],
        };
        let answers: Vec<String> = to.iter().map(|to| case.sticks(from, *to, Protocol::Tcp, 15)).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{from}: {answers:?}");
        answers[0].clone()
    };
    let before = clients.map(ask);
    let gone = before[0].as_str();
    let left: Vec<&str> = servers.into_iter().filter(|server| *server != gone).collect();
    case.declare(&[case.slice(0, &case.endpoints(&left))])?;
    for (client, had) in clients.iter().zip(&before) {
        let has = ask(client);
        assert!(has == *had || had == gone, "{client} moved from {had} to {has} when {gone} went");
    }
    case.declare(&[case.slice(0, &case.endpoints(&servers))])?;
    assert_eq!(clients.map(ask), before);
    Ok(())
}
