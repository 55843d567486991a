//! Traffic policies, topology hints, and what a load balancer's health checks are told.

use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_lab::LabError;
use weft_lab::manifests::terminating;
use weft_lab::within;

use crate::scene::{BOTH, Case, SOON};
use crate::stories;

stories![Each:
    internal_local_from_pods_and_hosts,
    internal_local_to_the_host_s_network,
    external_cluster_hides_the_client,
    external_local_shows_the_client,
    the_external_policy_changes,
    hints_keep_traffic_in_the_zone,
    hints_keep_traffic_on_the_node,
    health_checks_count_local_ready_endpoints,
];

/// pod to pod and host to pod; from a host without one there is no answer, and no refusal either.
fn internal_local_from_pods_and_hosts(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    let servers = case.endpoints(&["ash/one", "birch/one"]);
    case.declare(&[case.service(0, json!({"internalTrafficPolicy": "Local"})), case.slice(0, &servers)])?;
    case.each_reaches(&["ash/two", "ash"], case.web(0), &["ash/one"]);
    case.each_reaches(&["birch/two", "birch"], case.web(0), &["birch/one"]);
    case.silent("cedar/two", case.web(0));
    case.silent("cedar", case.web(0));
    case.declare(&[case.service(0, json!({"internalTrafficPolicy": "Cluster"}))])?;
    case.each_reaches(&["ash/two", "cedar/two", "cedar"], case.web(0), &["ash/one", "birch/one"]);
    Ok(())
}

fn internal_local_to_the_host_s_network(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash"])?;
    let service = case.service(0, json!({"internalTrafficPolicy": "Local"}));
    case.declare(&[service, case.slice(0, &case.endpoints(&["ash"]))])?;
    case.each_reaches(&["ash/two", "ash"], case.web(0), &["ash"]);
    case.silent("birch/two", case.web(0));
    case.silent("birch", case.web(0));
    Ok(())
}

fn external_cluster_hides_the_client(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one"];
    let _up = case.serve(0, &servers)?;
    let service = case.node_port_service(0, json!({"externalTrafficPolicy": "Cluster"}));
    case.declare(&[service, case.slice(0, &case.endpoints(&servers))])?;
    for host in ["ash", "birch", "cedar"] {
        case.reaches_by_both("outside", case.at(host, 0), &servers);
        for protocol in BOTH {
            let (_, seen) = case.answered("outside", case.at(host, 0), protocol);
            assert_ne!(seen, case.address("outside"), "{host}/{protocol}");
        }
    }
    Ok(())
}

fn external_local_shows_the_client(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    let service = case.node_port_service(0, json!({"externalTrafficPolicy": "Local"}));
    case.declare(&[service, case.slice(0, &case.endpoints(&["ash/one", "birch/one"]))])?;
    for (host, server) in [("ash", "ash/one"), ("birch", "birch/one")] {
        case.reaches_by_both("outside", case.at(host, 0), &[server]);
        for protocol in BOTH {
            let (_, seen) = case.answered("outside", case.at(host, 0), protocol);
            assert_eq!(seen, case.address("outside"), "{host}/{protocol}");
        }
    }
    // A host without endpoints tells nothing, to other hosts neither.
    case.silent("outside", case.at("cedar", 0));
    case.silent("ash", case.at("cedar", 0));
    // From its own pods and from itself there are all of them.
    case.each_reaches(&["cedar/two", "cedar"], case.at("cedar", 0), &["ash/one", "birch/one"]);
    let (_, seen) = case.answered("cedar/two", case.at("cedar", 0), BOTH[0]);
    assert_eq!(seen, case.address("cedar/two"), "a local pod is seen as it is");
    // The cluster address does not care.
    case.each_reaches(&["cedar/two", "cedar"], case.web(0), &["ash/one", "birch/one"]);
    Ok(())
}

fn the_external_policy_changes(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    case.declare(&[case.slice(0, &case.endpoints(&["birch/one"]))])?;
    for policy in ["Local", "Cluster", "Local"] {
        case.declare(&[case.node_port_service(0, json!({"externalTrafficPolicy": policy}))])?;
        case.reaches_by_both("outside", case.at("birch", 0), &["birch/one"]);
        let (_, seen) = case.answered("outside", case.at("birch", 0), BOTH[0]);
        assert_eq!(seen == case.address("outside"), policy == "Local", "{policy}: seen as {seen}");
        match policy {
            "Local" => case.silent("outside", case.at("ash", 0)),
            _ => case.reaches_by_both("outside", case.at("ash", 0), &["birch/one"]),
        }
    }
    Ok(())
}

/// The endpoint with this hint: `forZones` or `forNodes`.
fn hinted(mut endpoint: Value, kind: &str, name: &str) -> Value {
    endpoint["hints"] = json!({kind: [{"name": name}]});
    endpoint
}

/// ash is in the zone east, birch and cedar in west.
fn hints_keep_traffic_in_the_zone(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one", "cedar/one"];
    let _up = case.serve(0, &servers)?;
    let [ash, birch, cedar] = servers.map(|place| case.endpoint(place));
    let zone = |endpoint: &Value, zone| hinted(endpoint.clone(), "forZones", zone);
    let all = [zone(&ash, "east"), zone(&birch, "west"), zone(&cedar, "west")];
    case.declare(&[case.service(0, json!({})), case.slice(0, &all)])?;
    case.each_reaches(&["ash/two", "ash"], case.web(0), &["ash/one"]);
    case.each_reaches(&["birch/two", "cedar"], case.web(0), &["birch/one", "cedar/one"]);
    // A hint is missing, or none names our zone: hints say nothing.
    case.declare(&[case.slice(0, &[all[0].clone(), birch.clone(), all[2].clone()])])?;
    case.each_reaches(&["ash/two", "birch/two"], case.web(0), &servers);
    case.declare(&[case.slice(0, &[zone(&ash, "west"), zone(&birch, "west"), zone(&cedar, "west")])])?;
    case.each_reaches(&["ash/two", "birch"], case.web(0), &servers);
    Ok(())
}

fn hints_keep_traffic_on_the_node(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one"];
    let _up = case.serve(0, &servers)?;
    let own = |place: &str| {
        let node = place.split('/').next().unwrap_or_default();
        let endpoint = hinted(case.endpoint(place), "forNodes", node);
        let mut both = endpoint;
        both["hints"]["forZones"] = json!([{"name": "west"}]);
        both
    };
    case.declare(&[case.service(0, json!({})), case.slice(0, &servers.map(own))])?;
    case.each_reaches(&["ash/two", "ash"], case.web(0), &["ash/one"]);
    case.each_reaches(&["birch/two"], case.web(0), &["birch/one"]);
    // No endpoint is for this node, so the zone decides.
    case.each_reaches(&["cedar/two", "cedar"], case.web(0), &servers);
    Ok(())
}

/// healthCheckNodePort: who has ready endpoints, how many, and nobody that only terminates.
fn health_checks_count_local_ready_endpoints(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "ash/two", "birch/one"])?;
    case.routed(case.public(0), "ash")?;
    let checked = case.node_port(1);
    let mut service = case.service(
        0,
        json!({
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": checked,
            "ports": case.both(Some(0)),
        }),
    );
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": case.public(0)}]}});
    let says = |host: &str, status: u16, endpoints: usize| {
        let at = SocketAddr::new(case.address(host), checked);
        within(SOON, || {
            let answer = case.scene.lab.outside().http_get(at, "/any/path").map_err(|error| error.chain())?;
            let body: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
            let weight = answer.header("X-Load-Balancing-Endpoint-Weight").map(str::to_owned);
            let as_it_should = answer.status == status
                && weight == Some(endpoints.to_string())
                && body["localEndpoints"] == json!(endpoints)
                && body["service"]["namespace"] == json!("default")
                && body["service"]["name"] == service["metadata"]["name"]
                && body["serviceProxyHealthy"] == json!(true);
            as_it_should.then_some(()).ok_or_else(|| format!("{host}: {answer:?}"))
        });
    };
    let [one, two, birch] = ["ash/one", "ash/two", "birch/one"].map(|place| case.endpoint(place));
    case.declare(&[service.clone(), case.slice(0, &[one.clone(), two.clone(), birch.clone()])])?;
    says("ash", 200, 2);
    says("birch", 200, 1);
    says("cedar", 503, 0);
    // Only terminating ones are left on ash: it serves what still comes, and asks for no more.
    let leaving = [terminating(one, true), terminating(two, false), birch];
    case.declare(&[case.slice(0, &leaving)])?;
    says("ash", 503, 0);
    says("birch", 200, 1);
    case.reaches_by_both("outside", SocketAddr::new(case.public(0), 80), &["ash/one"]);
    // Another policy, and nobody listens.
    let mut cluster = service.clone();
    cluster["spec"]["externalTrafficPolicy"] = json!("Cluster");
    cluster["spec"]["healthCheckNodePort"] = json!(null);
    case.declare(&[cluster])?;
    within(SOON, || {
        let at = SocketAddr::new(case.address("birch"), checked);
        let answer = case.scene.place("outside").asks(at, BOTH[0], SOON);
        if answer == weft_lab::traffic::Answer::Refused { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    Ok(())
}
