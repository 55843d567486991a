//! An EndpointSlice of the API.

use std::sync::Arc;

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1;

use super::{Findings, Reading, label, name, named, namespace, port, protocol, shared};
use crate::model::address::reachable_address;
use crate::model::{
    Change, Family, NodeName, Object, ObjectName, ServiceName, Slice, SliceEndpoint, SliceName, SlicePort,
    family_of,
};

/// Whose slice it is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The labels that make a proxy leave a slice alone; the slice controller copies them from the
/// Service.
const NOT_OURS: [&str; 2] = ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"];

/// What an EndpointSlice means for the model.
pub fn slice(object: &v1::EndpointSlice) -> Reading {
    let meta = &object.metadata;
    let mut findings = Findings::namespaced("EndpointSlice", meta);
    if !named(meta, &mut findings) {
        return findings.reading(None);
    }
    let known_as = SliceName::new(namespace(meta), name(meta));
    let service = label(meta, SERVICE_NAME).filter(|service| !service.is_empty());
    let ours = NOT_OURS.iter().all(|key| label(meta, key).is_none());
    let family = match object.address_type.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        // A matter of DNS; the API has deprecated it.
        "FQDN" => None,
        other => {
            findings.add("addressType", format!("must be IPv4, IPv6 or FQDN, is `{other}`"));
            return findings.reading(None);
        }
    };
    let (Some(service), Some(family), true) = (service, family, ours) else {
        return findings.reading(Some(Change::Remove(ObjectName::Slice(known_as))));
    };
    let slice = Slice {
        service: ServiceName::new(namespace(meta), service),
        family,
        ports: ports(object, &mut findings),
        endpoints: endpoints(object, family, &mut findings),
    };
    findings.reading(Some(Change::Put(Object::Slice(known_as, Arc::new(slice)))))
}

/// A port without a number means "all ports", which no proxy can serve; kube-proxy leaves it out too.
fn ports(object: &v1::EndpointSlice, findings: &mut Findings) -> Vec<SlicePort> {
    // No more room than needed: tens of thousands of slices are kept.
    let mut kept = Vec::with_capacity(object.ports.as_ref().map_or(0, Vec::len));
    for (index, written) in object.ports.iter().flatten().enumerate() {
        let at = |field: &str| format!("ports[{index}].{field}");
        let Some(number) = written.port.filter(|number| *number != 0) else { continue };
        let number = findings.ok(at("port"), port(number));
        let protocol = findings.ok(at("protocol"), protocol(written.protocol.as_deref()));
        if let (Some(port), Some(protocol)) = (number, protocol) {
            kept.push(SlicePort { name: shared(written.name.as_ref()), protocol, port });
        }
    }
    kept
}

fn endpoints(object: &v1::EndpointSlice, family: Family, findings: &mut Findings) -> Vec<SliceEndpoint> {
    let mut kept = Vec::with_capacity(object.endpoints.as_ref().map_or(0, Vec::len));
    for (index, written) in object.endpoints.iter().flatten().enumerate() {
        let field = format!("endpoints[{index}].addresses[0]");
        let Some(text) = written.addresses.first() else {
            findings.add(format!("endpoints[{index}].addresses"), "must have an address");
            continue;
        };
        if let Some(address) = findings.ok(field, address_of(text, family)) {
            kept.push(endpoint(written, address));
        }
    }
    kept
}

fn address_of(text: &str, family: Family) -> Result<IpAddr, String> {
    let address = reachable_address(text)?;
    if family_of(address) == family {
        Ok(address)
    } else {
        Err(format!("must be of `addressType` {family}, is {address}"))
    }
}

fn endpoint(written: &v1::Endpoint, address: IpAddr) -> SliceEndpoint {
    let conditions = written.conditions.as_ref();
    let hints = written.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
    let pod = written.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    SliceEndpoint {
        address,
        ready: conditions.and_then(|it| it.ready).unwrap_or(true),
        serving: conditions.and_then(|it| it.serving).unwrap_or(true),
        terminating: conditions.and_then(|it| it.terminating).unwrap_or(false),
        node: written.node_name.as_deref().filter(|node| !node.is_empty()).map(NodeName::new),
        zone_hints: zones.map(|zone| zone.name.as_str().into()).collect(),
        node_hints: nodes.map(|node| NodeName::new(&node.name)).collect(),
        pod: pod.and_then(|target| target.name.as_deref()).map(Into::into),
    }
}
