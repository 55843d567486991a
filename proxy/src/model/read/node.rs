//! A Node of the API.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{Findings, Reading, label, name, named};
use crate::model::address::{address, range};
use crate::model::{Change, Node, NodeName, Object, family_of};

/// Where the node stands.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint that the cluster autoscaler sets before it deletes a node.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What a Node means for the model.
pub fn node(object: &v1::Node) -> Reading {
    let meta = &object.metadata;
    let mut findings = Findings::global("Node", meta);
    if !named(meta, &mut findings) {
        return findings.reading(None);
    }
    let spec = object.spec.as_ref();
    let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    let node = Node {
        zone: label(meta, ZONE).filter(|zone| !zone.is_empty()).map(str::to_owned),
        addresses: addresses(object, &mut findings),
        pod_cidrs: pod_cidrs(spec, &mut findings),
        leaving: meta.deletion_timestamp.is_some()
            || taints.into_iter().any(|taint| taint.key == LEAVING_TAINT),
    };
    findings.reading(Some(Change::Put(Object::Node(NodeName::new(name(meta)), node))))
}

fn addresses(object: &v1::Node, findings: &mut Findings) -> Vec<IpAddr> {
    let written = object.status.as_ref().and_then(|status| status.addresses.as_ref());
    let written: Vec<(usize, &v1::NodeAddress)> = written.into_iter().flatten().enumerate().collect();
    let mut kept: Vec<IpAddr> = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (index, entry) in written.iter().filter(|(_, entry)| entry.type_ == wanted) {
            let field = format!("status.addresses[{index}].address");
            let Some(ip) = findings.ok(field, address(&entry.address)) else { continue };
            if !kept.iter().any(|known| family_of(*known) == family_of(ip)) {
                kept.push(ip);
            }
        }
    }
    kept
}

/// `podCIDRs`, or `podCIDR` from before there were two families.
fn pod_cidrs(spec: Option<&v1::NodeSpec>, findings: &mut Findings) -> Vec<ipnetwork::IpNetwork> {
    let Some(spec) = spec else { return Vec::new() };
    match spec.pod_cidrs.as_ref().filter(|written| !written.is_empty()) {
        Some(written) => findings.each("spec.podCIDRs", Some(written), range),
        None => {
            let written = spec.pod_cidr.as_deref().filter(|written| !written.is_empty());
            written.and_then(|text| findings.ok("spec.podCIDR", range(text))).into_iter().collect()
        }
    }
}
