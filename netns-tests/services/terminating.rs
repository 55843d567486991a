//! Fallback to endpoints that terminate and still serve, for each of the four traffic policies (KEP-1669).

use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_lab::LabError;
use weft_lab::manifests::{terminating, unready};

use crate::scene::Case;
use crate::stories;

stories![Each:
    with_the_internal_policy_cluster,
    with_the_internal_policy_local,
    with_the_external_policy_cluster,
    with_the_external_policy_local,
];

/// Endpoints of a story: ash/one and birch/one, in any state.
struct Pair {
    ash: Value,
    birch: Value,
}

fn pair(case: &Case) -> Pair {
    Pair { ash: case.endpoint("ash/one"), birch: case.endpoint("birch/one") }
}

fn with_the_internal_policy_cluster(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    let Pair { ash, birch } = pair(case);
    let clients = ["ash/two", "cedar/two", "birch"];
    let to = case.web(0);
    // Somebody is ready, anywhere: only who is ready.
    case.declare(&[
        case.service(0, json!({})),
        case.slice(0, &[terminating(ash.clone(), true), birch.clone()]),
    ])?;
    case.each_reaches(&clients, to, &["birch/one"]);
    // Nobody is: whoever still serves.
    case.declare(&[case.slice(0, &[terminating(ash.clone(), true), terminating(birch.clone(), true)])])?;
    case.each_reaches(&clients, to, &["ash/one", "birch/one"]);
    case.declare(&[case.slice(0, &[terminating(ash.clone(), true), terminating(birch.clone(), false)])])?;
    case.each_reaches(&clients, to, &["ash/one"]);
    // Not ready and not on its way out is no fallback.
    case.declare(&[case.slice(0, &[unready(ash), terminating(birch, false)])])?;
    clients.iter().for_each(|from| case.refused_by_both(from, to));
    Ok(())
}

fn with_the_internal_policy_local(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "ash/two", "birch/one"])?;
    let Pair { ash, birch } = pair(case);
    let to = case.web(0);
    let service = case.service(0, json!({"internalTrafficPolicy": "Local"}));
    // On ash only the one that terminates, whatever is ready elsewhere.
    case.declare(&[service, case.slice(0, &[terminating(ash.clone(), true), birch.clone()])])?;
    case.each_reaches(&["ash/two", "ash"], to, &["ash/one"]);
    case.each_reaches(&["birch/two", "birch"], to, &["birch/one"]);
    // Somebody is ready on ash.
    let second = case.endpoint("ash/two");
    case.declare(&[case.slice(0, &[terminating(ash.clone(), true), second, birch.clone()])])?;
    case.each_reaches(&["ash/two", "ash"], to, &["ash/two"]);
    // It stops serving: nobody here, somebody elsewhere.
    case.declare(&[case.slice(0, &[terminating(ash.clone(), false), birch.clone()])])?;
    case.silent("ash/two", to);
    case.silent("ash", to);
    // And nobody anywhere.
    case.declare(&[case.slice(0, &[terminating(ash, false), unready(birch)])])?;
    ["ash/two", "ash", "birch/two"].iter().for_each(|from| case.refused_by_both(from, to));
    Ok(())
}

/// The node ports of ash and cedar, and a load balancer's address by ash.
fn external(case: &Case) -> [SocketAddr; 3] {
    [SocketAddr::new(case.public(0), 80), case.at("ash", 0), case.at("cedar", 0)]
}

fn balanced(case: &Case, policy: &str) -> Value {
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": policy, "ports": case.both(Some(0))});
    let mut service = case.service(0, spec);
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": case.public(0)}]}});
    service
}

fn with_the_external_policy_cluster(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    case.routed(case.public(0), "ash")?;
    let Pair { ash, birch } = pair(case);
    case.declare(&[
        balanced(case, "Cluster"),
        case.slice(0, &[terminating(ash.clone(), true), birch.clone()]),
    ])?;
    external(case).iter().for_each(|to| case.reaches_by_both("outside", *to, &["birch/one"]));
    case.declare(&[case.slice(0, &[terminating(ash.clone(), true), terminating(birch.clone(), true)])])?;
    external(case).iter().for_each(|to| case.reaches_by_both("outside", *to, &["ash/one", "birch/one"]));
    case.declare(&[case.slice(0, &[terminating(ash, false), terminating(birch, false)])])?;
    external(case).iter().for_each(|to| case.refused_by_both("outside", *to));
    Ok(())
}

fn with_the_external_policy_local(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    case.routed(case.public(0), "ash")?;
    let Pair { ash, birch } = pair(case);
    let [public, at_ash, at_cedar] = external(case);
    case.declare(&[
        balanced(case, "Local"),
        case.slice(0, &[terminating(ash.clone(), true), birch.clone()]),
    ])?;
    [public, at_ash].iter().for_each(|to| case.reaches_by_both("outside", *to, &["ash/one"]));
    case.reaches_by_both("outside", case.at("birch", 0), &["birch/one"]);
    case.silent("outside", at_cedar);
    // It stops serving: nobody on ash, somebody elsewhere.
    case.declare(&[case.slice(0, &[terminating(ash.clone(), false), birch.clone()])])?;
    [public, at_ash].iter().for_each(|to| case.silent("outside", *to));
    case.declare(&[case.slice(0, &[terminating(ash, false), terminating(birch, false)])])?;
    external(case).iter().for_each(|to| case.refused_by_both("outside", *to));
    Ok(())
}
