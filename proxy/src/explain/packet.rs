//! Where a connection goes and why: the simulator's word, with what is known of the endpoints, and the
//! frontend that the kernel is asked about.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::service::{at, kind_word};
use crate::host::Host;
use crate::model::{FrontendKind, Model, Policy, PortName, Service, family_of};
use crate::plan::Frontend;
use crate::simulate::{self, Outcome, Packet};

/// What becomes of the first packet of a connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Who asks.
    pub source: Option<IpAddr>,
    /// What it asks for.
    pub destination: Option<SocketAddr>,
    /// `tcp`.
    pub protocol: String,
    /// The link that it comes in on, if it does not come from this host.
    pub input: Option<String>,
    /// Who says so: the Node of the host.
    pub node: String,
    /// The service port that it is for, if it is for one: `shop/web:http`.
    pub service: Option<String>,
    /// The frontend that takes it.
    pub frontend: Option<String>,
    /// What the frontend is: `cluster address`, ...
    pub kind: Option<String>,
    /// The traffic policy that counts: `internalTrafficPolicy Local`.
    pub policy: Option<String>,
    /// What becomes of it.
    pub outcome: OutcomeReport,
    /// Who may get it.
    pub candidates: Vec<Candidate>,
    /// What decided, step by step.
    pub why: Vec<String>,
    /// What in the kernel does it; empty where no kernel was asked.
    pub objects: Vec<Object>,
    /// What the kernel could not be asked, and why.
    pub unseen: Option<String>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeReport {
    /// Nothing: it is for no service.
    #[default]
    Untouched,
    /// It goes to one of the candidates.
    Endpoint,
    /// The client is told that nobody is there.
    Rejected,
    /// The client is told nothing.
    Dropped,
}

/// An endpoint that may get the packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// How likely, from 0 to 1.
    pub probability: f64,
    /// Whether it sees an address of this host instead of the client's.
    pub masquerade: bool,
    /// Where it runs, if that is known.
    pub node: Option<String>,
    /// The pod behind it, if one is named.
    pub pod: Option<String>,
}

/// Something in the kernel that takes part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// What it is, as the kernel's own tools name it.
    pub what: String,
    /// Whether the kernel has it so; if not, what is different.
    pub wrong: Option<String>,
}

/// The frontend of a service that a packet is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Whose.
    pub port: PortName,
    /// Which.
    pub frontend: Frontend,
}

/// What becomes of a packet, `recall` telling the endpoint that its client keeps by session affinity.
/// The second is what the kernel can be asked about.
pub fn explain(
    model: &Model,
    host: &Host,
    packet: &Packet,
    recall: impl Fn(&PortName) -> Option<SocketAddr>,
) -> (Explanation, Option<Reached>) {
    let trace = simulate::simulate_remembering(model, host, packet, recall);
    let reached = trace.reached.as_ref().map(|(port, kind)| {
        let to = packet.destination;
        let frontend = match (kind, NonZeroU16::new(to.port())) {
            (FrontendKind::NodePort, Some(number)) => {
                Frontend::NodePort(family_of(to.ip()), number, packet.protocol)
            }
            _ => Frontend::Address(to, packet.protocol),
        };
        (Reached { port: port.clone(), frontend }, *kind)
    });
    let port = trace.reached.as_ref().map(|(port, _)| port);
    let (outcome, chances) = match trace.outcome {
        Outcome::Untouched => (OutcomeReport::Untouched, Vec::new()),
        Outcome::Reject => (OutcomeReport::Rejected, Vec::new()),
        Outcome::Drop => (OutcomeReport::Dropped, Vec::new()),
        Outcome::Endpoints(chances) => (OutcomeReport::Endpoint, chances),
    };
    let known = port.map_or_else(Vec::new, |port| {
        let family = family_of(packet.destination.ip());
        model.endpoints(&port.service, &port.port, port.protocol, family, &host.node)
    });
    let candidates = chances.iter().map(|chance| {
        let endpoint = known.iter().find(|endpoint| endpoint.address == chance.endpoint);
        Candidate {
            endpoint: chance.endpoint,
            probability: chance.probability,
            masquerade: chance.masquerade,
            node: endpoint.and_then(|endpoint| Some(endpoint.node.as_ref()?.to_string())),
            pod: endpoint.and_then(|endpoint| Some(endpoint.pod.as_ref()?.to_string())),
        }
    });
    let service = port.and_then(|port| model.service(&port.service));
    let explanation = Explanation {
        source: Some(packet.source),
        destination: Some(packet.destination),
        protocol: packet.protocol.to_string(),
        input: packet.input.clone(),
        node: host.node.to_string(),
        service: port.map(ToString::to_string),
        frontend: reached.as_ref().map(|(reached, _)| at(&reached.frontend)),
        kind: reached.as_ref().map(|(_, kind)| kind_word(*kind).to_owned()),
        policy: reached.as_ref().and_then(|(_, kind)| Some(policy(service?, *kind))),
        outcome,
        candidates: candidates.collect(),
        why: trace.why,
        objects: Vec::new(),
        unseen: None,
    };
    (explanation, reached.map(|(reached, _)| reached))
}

fn policy(service: &Service, kind: FrontendKind) -> String {
    let (field, policy): (_, Policy) = match kind {
        FrontendKind::ClusterIp => ("internalTrafficPolicy", service.internal_policy),
        _ => ("externalTrafficPolicy", service.external_policy),
    };
    format!("{field} {policy}")
}
