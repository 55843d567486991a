//! The endpoints that a packet may go to, straight from the slices.

use std::net::SocketAddr;

use super::Packet;
use crate::host::Host;
use crate::model::{Model, Policy, ServiceName, ServicePort, SliceEndpoint, family_of};

/// What a packet may go to.
pub(super) struct Usable {
    /// By address, without duplicates.
    pub(super) endpoints: Vec<SocketAddr>,
    /// Why these, in words.
    pub(super) note: String,
    /// Whether there are usable endpoints anywhere at all.
    pub(super) elsewhere: bool,
}

/// The endpoints of the port that the policy allows on this host.
pub(super) fn usable(
    model: &Model,
    host: &Host,
    name: &ServiceName,
    port: &ServicePort,
    packet: &Packet,
    policy: Policy,
) -> Usable {
    let all = listed(model, host, name, port, packet);
    let here = |it: &&(SocketAddr, &SliceEndpoint)| it.1.node.as_ref() == Some(&host.node);
    let ready: Vec<_> = all.iter().filter(|(_, it)| it.ready).copied().collect();
    let leaving: Vec<_> = all.iter().filter(|(_, it)| it.serving && it.terminating).copied().collect();
    let elsewhere = !ready.is_empty() || !leaving.is_empty();
    let result = |endpoints: Vec<(SocketAddr, &SliceEndpoint)>, note: String| Usable {
        note: format!("{note}: {}", endpoints.len()),
        endpoints: endpoints.into_iter().map(|(address, _)| address).collect(),
        elsewhere,
    };
    if !elsewhere {
        return result(
            Vec::new(),
            "no endpoint anywhere is ready, or terminates and still serves".to_owned(),
        );
    }
    if policy == Policy::Local {
        let ready_here: Vec<_> = ready.iter().filter(here).copied().collect();
        if !ready_here.is_empty() {
            return result(ready_here, "ready endpoints on this host (policy Local)".to_owned());
        }
        let leaving_here: Vec<_> = leaving.iter().filter(here).copied().collect();
        let note = "none on this host is ready (policy Local); terminating there, and still serving";
        return result(leaving_here, note.to_owned());
    }
    if ready.is_empty() {
        return result(leaving, "none is ready anywhere; terminating, and still serving".to_owned());
    }
    let for_node = |it: &SliceEndpoint| it.node_hints.contains(&host.node);
    let all_have_nodes = ready.iter().all(|(_, it)| !it.node_hints.is_empty());
    if all_have_nodes && ready.iter().any(|(_, it)| for_node(it)) {
        let hinted = ready.into_iter().filter(|(_, it)| for_node(it)).collect();
        return result(hinted, format!("ready endpoints hinted for node {}", host.node));
    }
    if let Some(zone) = &host.zone {
        let for_zone = |it: &SliceEndpoint| it.zone_hints.iter().any(|hint| **hint == **zone);
        let all_have_zones = ready.iter().all(|(_, it)| !it.zone_hints.is_empty());
        if all_have_zones && ready.iter().any(|(_, it)| for_zone(it)) {
            let hinted = ready.into_iter().filter(|(_, it)| for_zone(it)).collect();
            return result(hinted, format!("ready endpoints hinted for zone {zone}"));
        }
    }
    result(ready, "ready endpoints".to_owned())
}

/// Every endpoint of the port in the packet's family, by address. Of those with the same address one
/// on this host counts first, then a ready one, then a serving one, then the one that was found first.
fn listed<'a>(
    model: &'a Model,
    host: &Host,
    name: &ServiceName,
    port: &ServicePort,
    packet: &Packet,
) -> Vec<(SocketAddr, &'a SliceEndpoint)> {
    let family = family_of(packet.destination.ip());
    let mut found: Vec<(SocketAddr, &SliceEndpoint)> = Vec::new();
    for (_, slice) in model.slices_of(name) {
        if slice.family != family {
            continue;
        }
        for target in &slice.ports {
            if target.name != port.name || target.protocol != port.protocol {
                continue;
            }
            for endpoint in &slice.endpoints {
                found.push((SocketAddr::new(endpoint.address, target.port.get()), endpoint));
            }
        }
    }
    found.sort_by_key(|(address, it)| {
        let here = it.node.as_ref() == Some(&host.node);
        (*address, !here, !it.ready, !it.serving)
    });
    found.dedup_by_key(|(address, _)| *address);
    found
}
