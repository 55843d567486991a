//! A Service of the API.

use std::sync::Arc;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1;

use super::{Findings, Reading, label, name, named, namespace, port, protocol, shared};
use crate::model::address::{range, reachable_address};
use crate::model::{
    Balance, Change, Declared, Ignored, Kind, Object, Policy, Service, ServiceName, ServicePort, family_of,
};

/// With this label, whatever its value, a Service is headless for every proxy.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// With this label another proxy serves the Service.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// How an endpoint is picked: `random` or `client-hash`.
const BALANCE: &str = "weft.dev/balance";
/// How long affinity lasts if the manifest does not say, and at most, in seconds (core/v1 API).
const AFFINITY_SECONDS: i32 = 10_800;
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// What a Service means for the model.
pub fn service(object: &v1::Service) -> Reading {
    let mut findings = Findings::namespaced("Service", &object.metadata);
    if !named(&object.metadata, &mut findings) {
        return findings.reading(None);
    }
    let known_as = ServiceName::new(namespace(&object.metadata), name(&object.metadata));
    let declared = declared(object, &mut findings);
    findings.reading(declared.map(|declared| Change::Put(Object::Service(known_as, declared))))
}

fn declared(object: &v1::Service, findings: &mut Findings) -> Option<Declared> {
    let Some(spec) = &object.spec else {
        findings.add("spec", "must be given");
        return None;
    };
    if let Some(proxy) = label(&object.metadata, PROXY_NAME) {
        let cluster_ips = cluster_ips(spec, findings);
        return Some(Declared::Ignored(Ignored::OtherProxy { proxy: proxy.to_owned(), cluster_ips }));
    }
    if label(&object.metadata, HEADLESS).is_some() {
        return Some(Declared::Ignored(Ignored::Headless));
    }
    let kind = match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => Kind::ClusterIp,
        Some("NodePort") => Kind::NodePort,
        Some("LoadBalancer") => Kind::LoadBalancer,
        Some("ExternalName") => return Some(Declared::Ignored(Ignored::ExternalName)),
        Some(other) => {
            let known = "ClusterIP, NodePort, LoadBalancer or ExternalName";
            findings.add("spec.type", format!("must be {known}, is `{other}`"));
            return None;
        }
    };
    match written_cluster_ips(spec).next() {
        None => return Some(Declared::Ignored(Ignored::NoClusterIp)),
        Some((_, "None")) => return Some(Declared::Ignored(Ignored::Headless)),
        Some(_) => {}
    }
    served(object, spec, kind, findings).map(|service| Declared::Served(Arc::new(service)))
}

fn served(
    object: &v1::Service,
    spec: &v1::ServiceSpec,
    kind: Kind,
    findings: &mut Findings,
) -> Option<Service> {
    let cluster_ips = cluster_ips(spec, findings);
    let ports = ports(spec, kind, findings);
    let internal = policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), findings);
    let external = policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), findings);
    if ports.is_empty() {
        findings.add("spec.ports", "must have at least one usable port");
    }
    let (internal_policy, external_policy) = (internal?, external?);
    if cluster_ips.is_empty() || ports.is_empty() {
        return None;
    }
    let external_ips = findings.each("spec.externalIPs", spec.external_ips.as_ref(), reachable_address);
    // The API keeps the field of a service that nothing outside can reach; there it means nothing.
    let reached_from_outside = kind != Kind::ClusterIp || !external_ips.is_empty();
    let external_policy = if reached_from_outside { external_policy } else { Policy::Cluster };
    Some(Service {
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        kind,
        cluster_ips,
        external_ips: unique(external_ips),
        load_balancer_ips: load_balancer_ips(object, kind, findings),
        source_ranges: source_ranges(spec, findings),
        ports,
        internal_policy,
        external_policy,
        affinity: affinity(spec, findings),
        balance: balance(object, findings),
        health_check_port: health_check_port(spec, kind, external_policy, findings),
    })
}

/// `clusterIPs`, or `clusterIP` from before there were two families, each with its field.
fn written_cluster_ips(spec: &v1::ServiceSpec) -> impl Iterator<Item = (String, &str)> {
    let many = spec.cluster_ips.iter().flatten().enumerate();
    let many = many.map(|(index, ip)| (format!("spec.clusterIPs[{index}]"), ip.as_str()));
    let one = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.as_ref().is_none_or(Vec::is_empty));
    let one = one.map(|ip| ("spec.clusterIP".to_owned(), ip.as_str()));
    many.chain(one).filter(|(_, ip)| !ip.is_empty())
}

fn cluster_ips(spec: &v1::ServiceSpec, findings: &mut Findings) -> Vec<IpAddr> {
    let mut kept: Vec<IpAddr> = Vec::with_capacity(written_cluster_ips(spec).count());
    for (field, text) in written_cluster_ips(spec).filter(|(_, text)| *text != "None") {
        let Some(ip) = findings.ok(field.clone(), reachable_address(text)) else { continue };
        match kept.iter().find(|known| family_of(**known) == family_of(ip)) {
            Some(known) => findings.add(field, format!("must be of another family than {known}, is {ip}")),
            None => kept.push(ip),
        }
    }
    kept
}

fn ports(spec: &v1::ServiceSpec, kind: Kind, findings: &mut Findings) -> Vec<ServicePort> {
    // No more room than needed: tens of thousands of services are kept.
    let mut kept: Vec<ServicePort> = Vec::with_capacity(spec.ports.as_ref().map_or(0, Vec::len));
    for (index, written) in spec.ports.iter().flatten().enumerate() {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let number = findings.ok(at("port"), port(written.port));
        let protocol = findings.ok(at("protocol"), protocol(written.protocol.as_deref()));
        let (Some(number), Some(protocol)) = (number, protocol) else { continue };
        let name = shared(written.name.as_ref());
        if kept.iter().any(|known| known.name == name) {
            findings.add(at("name"), format!("must differ from the other ports', is `{name}`"));
            continue;
        }
        if kept.iter().any(|known| known.port == number.get() && known.protocol == protocol) {
            findings.add(at("port"), format!("{number}/{protocol} is taken by another port of this service"));
            continue;
        }
        let node_port = node_port(at("nodePort"), written.node_port, kind, findings);
        kept.push(ServicePort { name, protocol, port: number.get(), node_port });
    }
    kept
}

/// Zero means none, as in Go.
fn node_port(field: String, written: Option<i32>, kind: Kind, findings: &mut Findings) -> Option<NonZeroU16> {
    let number = written.filter(|number| *number != 0)?;
    if kind == Kind::ClusterIp {
        findings.add(field, "must not be given when `spec.type` is ClusterIP");
        return None;
    }
    findings.ok(field, port(number))
}

fn policy(field: &str, written: Option<&str>, findings: &mut Findings) -> Option<Policy> {
    let policy = match written {
        None | Some("" | "Cluster") => Ok(Policy::Cluster),
        Some("Local") => Ok(Policy::Local),
        Some(other) => Err(format!("must be Cluster or Local, is `{other}`")),
    };
    findings.ok(field, policy)
}

/// `ipMode: Proxy` means that packets have to go through the load balancer, so they are not ours. An
/// entry with a host name only is none either.
fn load_balancer_ips(object: &v1::Service, kind: Kind, findings: &mut Findings) -> Vec<IpAddr> {
    if kind != Kind::LoadBalancer {
        return Vec::new();
    }
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten().enumerate();
    let mut kept = Vec::new();
    for (index, entry) in entries {
        let at = |field: &str| format!("status.loadBalancer.ingress[{index}].{field}");
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => kept.extend(findings.ok(at("ip"), reachable_address(text))),
            Some("Proxy") => {}
            Some(other) => findings.add(at("ipMode"), format!("must be VIP or Proxy, is `{other}`")),
        }
    }
    unique(kept)
}

/// A list with nothing readable in it still keeps everybody out.
fn source_ranges(spec: &v1::ServiceSpec, findings: &mut Findings) -> Option<Vec<IpNetwork>> {
    let written = spec.load_balancer_source_ranges.as_ref().filter(|written| !written.is_empty())?;
    Some(findings.each("spec.loadBalancerSourceRanges", Some(written), range))
}

fn affinity(spec: &v1::ServiceSpec, findings: &mut Findings) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            findings.add("spec.sessionAffinity", format!("must be None or ClientIP, is `{other}`"));
            return None;
        }
    }
    let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let written = client.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    let seconds = if (1..=MAX_AFFINITY_SECONDS).contains(&written) {
        written
    } else {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        findings.add(field, format!("must be 1 to {MAX_AFFINITY_SECONDS}, is {written}"));
        AFFINITY_SECONDS
    };
    Some(Duration::from_secs(seconds.unsigned_abs().into()))
}

fn balance(object: &v1::Service, findings: &mut Findings) -> Balance {
    let annotations = object.metadata.annotations.as_ref();
    match annotations.and_then(|annotations| annotations.get(BALANCE)).map(String::as_str) {
        None | Some("random") => Balance::Random,
        Some("client-hash") => Balance::ClientHash,
        Some(other) => {
            let field = format!("metadata.annotations[{BALANCE}]");
            findings.add(field, format!("must be random or client-hash, is `{other}`"));
            Balance::Random
        }
    }
}

fn health_check_port(
    spec: &v1::ServiceSpec,
    kind: Kind,
    external_policy: Policy,
    findings: &mut Findings,
) -> Option<NonZeroU16> {
    let asked = kind == Kind::LoadBalancer && external_policy == Policy::Local;
    let number = spec.health_check_node_port.filter(|number| asked && *number != 0)?;
    findings.ok("spec.healthCheckNodePort", port(number))
}

/// In order, without those that came before.
fn unique(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    addresses.into_iter().filter(|address| seen.insert(*address)).collect()
}
