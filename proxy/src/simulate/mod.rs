//! Where does one packet go? The semantics of Services, told packet by packet: small, slow and
//! obvious. It is the oracle of the tests and the engine of `weft explain`, so it reads the model and
//! the host, and takes no decision from [`crate::plan`], whose work it checks.
//!
//! A packet here is the first of a new connection. Established ones follow conntrack.

mod endpoints;
mod hash;
mod memory;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

pub use hash::slot as client_slot;
pub use memory::Memory;

use crate::host::{Host, LocalPods, NodePortAddress};
use crate::model::{
    Balance, Declared, Family, FrontendKind, Ignored, Model, Policy, PortName, Protocol, Service,
    ServiceName, ServicePort, family_of,
};
use endpoints::{Usable, usable};

/// The first packet of a connection, as it comes to the host or leaves a process there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who asks.
    pub source: IpAddr,
    /// What it asks for.
    pub destination: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// The link that it came in on; None if a process of this host sends it.
    pub input: Option<String>,
}

/// What becomes of a packet, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What becomes of it.
    pub outcome: Outcome,
    /// The service port that it is for, if it is for one, and what it was reached by.
    pub reached: Option<(PortName, FrontendKind)>,
    /// What decided, step by step, in words.
    pub why: Vec<String>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is for no service: nothing happens to it here.
    Untouched,
    /// One of these gets it; probabilities add up to one. By address.
    Endpoints(Vec<Chance>),
    /// The client is told that nobody is there.
    Reject,
    /// The client is told nothing.
    Drop,
}

/// An endpoint that may get the packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chance {
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// How likely.
    pub probability: f64,
    /// Whether it sees an address of this host instead of the client's.
    pub masquerade: bool,
}

/// Where the packet goes if its client has no endpoint yet.
pub fn simulate(model: &Model, host: &Host, packet: &Packet) -> Trace {
    simulate_remembering(model, host, packet, |_| None)
}

/// Where the packet goes, `recall` telling the endpoint that the packet's client last had at a
/// service port, not longer ago than that port's affinity lasts ([`Memory::recall`]).
pub fn simulate_remembering(
    model: &Model,
    host: &Host,
    packet: &Packet,
    recall: impl Fn(&PortName) -> Option<SocketAddr>,
) -> Trace {
    let mut why = Vec::new();
    if packet.family().is_none() {
        why.push("source and destination are of different families".to_owned());
        return Trace { outcome: Outcome::Untouched, reached: None, why };
    }
    if packet.input.is_some() && packet.destination.ip().is_loopback() {
        let outcome = to_loopback_from_outside(host, packet, &mut why);
        return Trace { outcome, reached: None, why };
    }
    let Some(hit) = frontend(model, host, packet, &mut why) else {
        let outcome = if_nobody_answers(model, host, packet, &mut why);
        return Trace { outcome, reached: None, why };
    };
    let name =
        PortName { service: hit.name.clone(), port: hit.port.name.clone(), protocol: hit.port.protocol };
    why.push(format!("{} is service {name}, through {}", packet.destination, hit.kind));
    let outcome = balance(model, host, packet, &hit, recall(&name), &mut why);
    Trace { outcome, reached: Some((name, hit.kind)), why }
}

/// A service port that the packet is for.
struct Hit<'a> {
    name: &'a ServiceName,
    service: &'a Service,
    port: &'a ServicePort,
    kind: FrontendKind,
}

/// The service port that answers at the packet's destination: addresses before node ports; of
/// several the strongest kind of claim, then the oldest service, then the first name.
fn frontend<'a>(model: &'a Model, host: &Host, packet: &Packet, why: &mut Vec<String>) -> Option<Hit<'a>> {
    let family = family_of(packet.destination.ip());
    let mut hits: Vec<Hit> = Vec::new();
    for (name, service) in model.services() {
        // A family without a cluster address is not served at all.
        if !service.cluster_ips.iter().any(|ip| family_of(*ip) == family) {
            continue;
        }
        for port in service.ports.iter().filter(|port| port.protocol == packet.protocol) {
            if let Some(kind) = answers(service, port, host, packet) {
                hits.push(Hit { name, service, port, kind });
            }
        }
    }
    // Stable, so ports of one service stay in their order.
    hits.sort_by_key(|hit| (hit.kind, hit.service.created.is_none(), hit.service.created, hit.name));
    for loser in hits.iter().skip(1) {
        why.push(format!("{} also claims {} and goes without", loser.name, packet.destination));
    }
    hits.into_iter().next()
}

fn answers(service: &Service, port: &ServicePort, host: &Host, packet: &Packet) -> Option<FrontendKind> {
    let to = packet.destination;
    if to.port() == port.port {
        if service.cluster_ips.contains(&to.ip()) {
            return Some(FrontendKind::ClusterIp);
        }
        if service.load_balancer_ips.contains(&to.ip()) {
            return Some(FrontendKind::LoadBalancer);
        }
        if service.external_ips.contains(&to.ip()) {
            return Some(FrontendKind::ExternalIp);
        }
    }
    let number = port.node_port?.get();
    (number == to.port() && has_node_ports(host, packet)).then_some(FrontendKind::NodePort)
}

/// Whether the host serves node ports where the packet is for.
fn has_node_ports(host: &Host, packet: &Packet) -> bool {
    let address = packet.destination.ip();
    let loopback = address.is_loopback()
        && if host.settings.userspace { packet.protocol == Protocol::Tcp } else { address.is_ipv4() };
    let own = host.addresses.contains(&address);
    host.settings.node_ports.in_family(family_of(address)).iter().any(|entry| match entry {
        NodePortAddress::All => own,
        NodePortAddress::Primary => host.primary.contains(&address),
        NodePortAddress::Localhost => loopback,
        NodePortAddress::Range(range) if range.ip().is_loopback() => loopback,
        NodePortAddress::Range(range) => own && range.contains(address),
    })
}

/// What is at loopback addresses is for the host itself. The kernel drops such a packet, unless it was
/// told not to for the sake of node ports at 127.0.0.1.
fn to_loopback_from_outside(host: &Host, packet: &Packet, why: &mut Vec<String>) -> Outcome {
    why.push(format!("{} is for nobody but the host itself", packet.destination.ip()));
    if has_node_ports(host, packet) { Outcome::Drop } else { Outcome::Untouched }
}

/// A packet to a cluster address that no frontend takes, where the host is strict about those.
fn if_nobody_answers(model: &Model, host: &Host, packet: &Packet, why: &mut Vec<String>) -> Outcome {
    let to = packet.destination.ip();
    let Some(strict) = &host.settings.strict else {
        why.push(format!("{} is no service", packet.destination));
        return Outcome::Untouched;
    };
    if let Some((name, _)) = model.services().find(|(_, service)| service.cluster_ips.contains(&to)) {
        why.push(format!("{to} is the cluster address of {name}, which has no port {}", described(packet)));
        return Outcome::Reject;
    }
    let elsewhere = model.declared().find_map(|(name, declared)| match declared {
        Declared::Ignored(why @ Ignored::OtherProxy { cluster_ips, .. }) if cluster_ips.contains(&to) => {
            Some((name, why))
        }
        _ => None,
    });
    if let Some((name, reason)) = elsewhere {
        why.push(format!("{to} is the cluster address of {name}, which {reason}"));
        return Outcome::Untouched;
    }
    if !host.owns(to) && strict.service_cidrs.iter().any(|range| range.contains(to)) {
        why.push(format!("{to} is in a range for services, and no service has it"));
        return Outcome::Drop;
    }
    why.push(format!("{} is no service", packet.destination));
    Outcome::Untouched
}

fn balance(
    model: &Model,
    host: &Host,
    packet: &Packet,
    hit: &Hit,
    remembered: Option<SocketAddr>,
    why: &mut Vec<String>,
) -> Outcome {
    if hit.kind == FrontendKind::LoadBalancer && !may_come(hit.service, host, packet) {
        why.push(format!("{} is in none of loadBalancerSourceRanges", packet.source));
        return Outcome::Drop;
    }
    let (policy, mut masquerade) = policy(hit, host, packet, why);
    if host.settings.userspace && packet.protocol == Protocol::Tcp {
        why.push("the userspace proxy connects to the endpoint, with this host's address".to_owned());
        masquerade = true;
    }
    let Usable { endpoints, note, elsewhere } = usable(model, host, hit.name, hit.port, packet, policy);
    why.push(note);
    if endpoints.is_empty() {
        return if elsewhere { Outcome::Drop } else { Outcome::Reject };
    }
    let candidates = match remembered.filter(|it| hit.service.affinity.is_some() && endpoints.contains(it)) {
        Some(kept) => {
            why.push(format!("the client keeps {kept}, by session affinity"));
            vec![kept]
        }
        None => match hit.service.balance {
            Balance::Random => endpoints,
            Balance::ClientHash => {
                let slot = hash::slot(packet.source, host.settings.client_hash);
                let owner = hash::owner(&endpoints, slot);
                why.push(format!("the client's address falls into slot {slot} of {}", Balance::SLOTS));
                owner.into_iter().collect()
            }
        },
    };
    let probability = 1.0 / candidates.len() as f64;
    let chance = |endpoint: SocketAddr| {
        let hairpin = endpoint.ip() == packet.source;
        if hairpin && !masquerade {
            why.push(format!("{endpoint} talks to itself, so it is masqueraded"));
        }
        Chance { endpoint, probability, masquerade: masquerade || hairpin }
    };
    Outcome::Endpoints(candidates.into_iter().map(chance).collect())
}

/// Whether the load balancer's source ranges let the packet pass.
fn may_come(service: &Service, host: &Host, packet: &Packet) -> bool {
    let Some(ranges) = &service.source_ranges else { return true };
    let within = |address: IpAddr| ranges.iter().any(|range| range.contains(address));
    // The host itself, if it may come, may have the balancer's address on a link and use it.
    let this_host = host.primary.iter().any(|own| own.is_ipv4() == packet.source.is_ipv4() && within(*own));
    within(packet.source) || (this_host && service.load_balancer_ips.contains(&packet.source))
}

/// Which endpoints the packet may go to, and whether it is masqueraded on the way.
fn policy(hit: &Hit, host: &Host, packet: &Packet, why: &mut Vec<String>) -> (Policy, bool) {
    let pod = local_pod(host, packet);
    if hit.kind == FrontendKind::ClusterIp {
        let masquerade = if host.settings.masquerade_all {
            why.push("masqueradeAll is set".to_owned());
            true
        } else if pod == Some(false) {
            why.push(format!("{} is no local pod, so it is masqueraded", packet.source));
            true
        } else {
            false
        };
        return (hit.service.internal_policy, masquerade);
    }
    if hit.service.external_policy == Policy::Cluster {
        why.push("external traffic with the policy Cluster is masqueraded".to_owned());
        return (Policy::Cluster, true);
    }
    if pod == Some(true) {
        why.push("externalTrafficPolicy Local does not concern local pods".to_owned());
        return (Policy::Cluster, false);
    }
    if host.owns(packet.source) {
        why.push(
            "externalTrafficPolicy Local does not concern the host itself, which is masqueraded".to_owned(),
        );
        return (Policy::Cluster, true);
    }
    (Policy::Local, false)
}

/// Whether a local pod sent the packet; None if the host cannot tell.
fn local_pod(host: &Host, packet: &Packet) -> Option<bool> {
    let input = packet.input.as_deref().unwrap_or_default();
    match &host.local_pods {
        LocalPods::Unknown => None,
        LocalPods::Link(link) => Some(input == link),
        LocalPods::LinkPrefix(prefix) => Some(packet.input.is_some() && input.starts_with(prefix)),
        LocalPods::Ranges(ranges) => {
            let of_family: Vec<&IpNetwork> =
                ranges.iter().filter(|it| it.is_ipv4() == packet.source.is_ipv4()).collect();
            (!of_family.is_empty()).then(|| of_family.iter().any(|range| range.contains(packet.source)))
        }
    }
}

fn described(packet: &Packet) -> String {
    format!("{}/{}", packet.destination.port(), packet.protocol)
}

impl Packet {
    /// Its family, if source and destination agree.
    pub fn family(&self) -> Option<Family> {
        let family = family_of(self.source);
        (family == family_of(self.destination.ip())).then_some(family)
    }
}

/// `10.1.0.5 -> 10.96.0.10:80/tcp`.
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}/{}", self.source, self.destination, self.protocol)
    }
}
