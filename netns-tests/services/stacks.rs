//! One service, two families: each is served for itself.

use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_lab::LabError;

use crate::scene::Case;
use crate::stories;

stories![Both:
    both_families_of_a_service,
    a_family_without_endpoints,
    a_service_of_one_family,
    a_family_comes_and_goes,
];

/// A service with these cluster addresses, reached by a node port, too.
fn service(case: &Case, ips: Value) -> Value {
    case.node_port_service(0, json!({"clusterIPs": ips, "ipFamilyPolicy": "PreferDualStack"}))
}

fn dual(case: &Case, other: &Case) -> Value {
    service(case, json!([case.ip(0), other.ip(0)]))
}

/// Endpoints of a family are in slices of that family; each family has others here.
fn both_families_of_a_service(case: &Case) -> Result<(), LabError> {
    let other = case.other_family();
    let _up = case.serve(0, &["ash/one", "birch/one", "cedar/one"])?;
    case.declare(&[
        dual(case, &other),
        case.slice(0, &case.endpoints(&["ash/one", "birch/one"])),
        other.slice(0, &other.endpoints(&["birch/one", "cedar/one"])),
    ])?;
    for from in ["ash/two", "cedar"] {
        case.reaches_by_both(from, case.web(0), &["ash/one", "birch/one"]);
        other.reaches_by_both(from, other.web(0), &["birch/one", "cedar/one"]);
    }
    case.reaches_by_both("outside", case.at("ash", 0), &["ash/one", "birch/one"]);
    other.reaches_by_both("outside", other.at("ash", 0), &["birch/one", "cedar/one"]);
    Ok(())
}

fn a_family_without_endpoints(case: &Case) -> Result<(), LabError> {
    let other = case.other_family();
    let _up = case.serve(0, &["ash/one"])?;
    case.declare(&[dual(case, &other), case.slice(0, &case.endpoints(&["ash/one"]))])?;
    for from in ["ash/two", "cedar"] {
        case.reaches_by_both(from, case.web(0), &["ash/one"]);
        other.refused_by_both(from, other.web(0));
    }
    other.refused_by_both("outside", other.at("birch", 0));
    // And the other way round.
    case.declare(&[case.slice(0, &[]), other.slice(0, &other.endpoints(&["ash/one"]))])?;
    for from in ["ash/two", "cedar"] {
        case.refused_by_both(from, case.web(0));
        other.reaches_by_both(from, other.web(0), &["ash/one"]);
    }
    Ok(())
}

/// The other family has no node port and no external address either, though the manifest lists one.
fn a_service_of_one_family(case: &Case) -> Result<(), LabError> {
    let other = case.other_family();
    let _up = case.serve(0, &["ash/one"])?;
    for (one, none) in [(case, &other), (&other, case)] {
        none.routed(none.public(0), "birch")?;
        one.routed(one.public(0), "birch")?;
        let mut service = service(one, json!([one.ip(0)]));
        service["spec"]["externalIPs"] = json!([one.public(0), none.public(0)]);
        let slices = [one, none].map(|family| family.slice(0, &family.endpoints(&["ash/one"])));
        one.declare(&[&[service], &slices[..]].concat())?;
        one.reaches_by_both("ash/two", one.web(0), &["ash/one"]);
        one.reaches_by_both("outside", one.at("birch", 0), &["ash/one"]);
        one.reaches_by_both("outside", SocketAddr::new(one.public(0), 80), &["ash/one"]);
        none.refused_by_both("outside", none.at("birch", 0));
        none.unserved("birch", SocketAddr::new(none.public(0), 80));
    }
    Ok(())
}

fn a_family_comes_and_goes(case: &Case) -> Result<(), LabError> {
    let other = case.other_family();
    let _up = case.serve(0, &["ash/one"])?;
    case.declare(&[case, &other].map(|family| family.slice(0, &family.endpoints(&["ash/one"]))))?;
    for _ in 0..2 {
        case.declare(&[service(case, json!([case.ip(0)]))])?;
        case.reaches_by_both("ash/two", case.web(0), &["ash/one"]);
        other.silent("ash/two", other.web(0));
        other.refused_by_both("outside", other.at("ash", 0));
        case.declare(&[dual(case, &other)])?;
        for family in [case, &other] {
            family.reaches_by_both("ash/two", family.web(0), &["ash/one"]);
            family.reaches_by_both("outside", family.at("ash", 0), &["ash/one"]);
        }
    }
    Ok(())
}
