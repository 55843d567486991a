//! What is programmed for each service: frontends, who gets which endpoints, what is refused. From the
//! plan, so it is what the kernel is told.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::host::{Host, LocalPods};
use crate::model::{Balance, Family, FrontendKind, Model, Policy, Protocol, Service, ServiceName};
use crate::plan::{self, Claims, Frontend, NodePortScope, Path, PortPlan, Treatment};

/// Everything that a host programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The host's Node.
    pub node: String,
    /// Whether a Node of that name is declared.
    pub is_declared: bool,
    /// Whether any endpoint is said to be on it.
    pub has_endpoints: bool,
    /// Some of the other nodes that endpoints are on.
    pub other_nodes: Vec<String>,
    /// In which mode.
    pub mode: String,
    /// How local pods are told from others.
    pub local_pods: String,
    /// Where node ports are served.
    pub node_ports: Vec<String>,
    /// Every service, by name.
    pub services: Vec<ServiceReport>,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Namespace and name: `shop/web`.
    pub service: String,
    /// Why it has no rules, if that is so.
    pub ignored: Option<String>,
    /// Its ports, in each family that it has.
    pub ports: Vec<PortReport>,
    /// Frontends that it claims and another service holds.
    pub contested: Vec<Contested>,
    /// Where a load balancer asks for local endpoints (`healthCheckNodePort`).
    pub health_check_port: Option<u16>,
}

/// A service port in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// `shop/web:http`.
    pub port: String,
    /// `tcp`.
    pub protocol: String,
    /// `IPv4`.
    pub family: String,
    /// How it is reached, and what becomes of new connections.
    pub frontends: Vec<FrontendReport>,
    /// The endpoints that the policy Cluster leads to.
    pub cluster: Vec<SocketAddr>,
    /// The endpoints that the policy Local leads to.
    pub local: Vec<SocketAddr>,
    /// How long a client keeps its endpoint, in seconds.
    pub affinity_seconds: Option<u64>,
    /// How an endpoint is picked: `random` or `client-hash`.
    pub balance: String,
}

/// A frontend of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendReport {
    /// `10.96.0.10:80`, or a node port's number.
    pub at: String,
    /// What it is: `cluster address`, `load balancer`, `external address` or `node port`.
    pub kind: String,
    /// If given, nobody else may come.
    pub only_from: Option<Vec<String>>,
    /// What becomes of connections of local pods.
    pub pods: PathReport,
    /// Of connections of the host itself.
    pub host: PathReport,
    /// Of all others.
    pub others: PathReport,
}

/// What becomes of new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "goes")]
pub enum PathReport {
    /// The client is told that nobody is there.
    #[default]
    Rejected,
    /// The client is told nothing.
    Dropped,
    /// To one of the policy's endpoints.
    To {
        /// Only those on this host.
        local: bool,
        /// How many there are.
        endpoints: usize,
        /// The endpoint sees an address of this host instead of the client's.
        masquerade: bool,
    },
}

/// A frontend that another service holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contested {
    /// Which.
    pub at: String,
    /// The service that has it.
    pub holder: String,
}

/// What this host programs for all services, or for those that `wanted` picks.
pub fn overview(
    model: &Model,
    claims: &Claims,
    host: &Host,
    mode: &str,
    wanted: impl Fn(&ServiceName) -> bool,
) -> Overview {
    let names = model.declared().map(|(name, _)| name).filter(|name| wanted(name));
    let (has_endpoints, other_nodes) = nodes(model, host);
    Overview {
        node: host.node.to_string(),
        is_declared: model.node(&host.node).is_some(),
        has_endpoints,
        other_nodes,
        mode: mode.to_owned(),
        local_pods: local_pods(&host.local_pods),
        node_ports: Family::ALL.iter().flat_map(|family| node_port_places(host, *family)).collect(),
        services: names.map(|name| report(model, claims, host, name)).collect(),
    }
}

/// Whether endpoints are on this host's node, and some of the other nodes that they are on.
fn nodes(model: &Model, host: &Host) -> (bool, Vec<String>) {
    const SOME: usize = 8;
    let mut others = BTreeSet::new();
    let mut here = false;
    for (name, _) in model.declared() {
        for endpoint in model.slices_of(name).flat_map(|(_, slice)| &slice.endpoints) {
            match &endpoint.node {
                Some(node) if *node == host.node => here = true,
                Some(node) if others.len() < SOME => drop(others.insert(node.to_string())),
                _ => {}
            }
        }
    }
    (here, others.into_iter().collect())
}

/// What this host programs for one service.
pub fn report(model: &Model, claims: &Claims, host: &Host, name: &ServiceName) -> ServiceReport {
    let declared = model.declared_as(name);
    let ignored = match declared {
        Some(crate::model::Declared::Ignored(why)) => Some(why.to_string()),
        _ => None,
    };
    let plan = plan::service(model, claims, host, name);
    let service = model.service(name);
    let ports = plan.ports.iter().map(|port| port_report(port, service)).collect();
    let contested = claims
        .without(name)
        .map(|(frontend, holder)| Contested { at: at(&frontend), holder: holder.to_string() });
    ServiceReport {
        service: name.to_string(),
        ignored,
        ports,
        contested: contested.collect(),
        health_check_port: plan.health_check.map(|check| check.port.get()),
    }
}

fn port_report(plan: &PortPlan, service: Option<&Service>) -> PortReport {
    let frontends = plan.frontends.iter().map(|(frontend, treatment)| {
        let kind = service.and_then(|service| kind(frontend, service));
        frontend_report(plan, frontend, treatment, kind)
    });
    PortReport {
        port: plan.name.to_string(),
        protocol: plan.name.protocol.to_string(),
        family: plan.family.to_string(),
        frontends: frontends.collect(),
        cluster: plan.cluster.clone(),
        local: plan.local.clone(),
        affinity_seconds: plan.affinity.map(|time| time.as_secs()),
        balance: match plan.balance {
            Balance::Random => "random".to_owned(),
            Balance::ClientHash => "client-hash".to_owned(),
        },
    }
}

fn frontend_report(
    plan: &PortPlan,
    frontend: &Frontend,
    treatment: &Treatment,
    kind: Option<FrontendKind>,
) -> FrontendReport {
    let path = |path: Path| match path {
        Path::Reject => PathReport::Rejected,
        Path::Drop => PathReport::Dropped,
        Path::To { set, masquerade } => PathReport::To {
            local: set == Policy::Local,
            endpoints: match set {
                Policy::Cluster => plan.cluster.len(),
                Policy::Local => plan.local.len(),
            },
            masquerade,
        },
    };
    let sources = treatment.sources.as_ref();
    FrontendReport {
        at: at(frontend),
        kind: match kind {
            Some(kind) => kind_word(kind),
            None => "frontend",
        }
        .to_owned(),
        only_from: sources.map(|ranges| ranges.iter().map(ToString::to_string).collect()),
        pods: path(treatment.pods),
        host: path(treatment.host),
        others: path(treatment.others),
    }
}

/// What a frontend of that service is; the strongest claim counts.
pub(super) fn kind(frontend: &Frontend, service: &Service) -> Option<FrontendKind> {
    let address = match frontend {
        Frontend::NodePort(..) => return Some(FrontendKind::NodePort),
        Frontend::Address(address, _) => address.ip(),
    };
    [
        (FrontendKind::ClusterIp, &service.cluster_ips),
        (FrontendKind::LoadBalancer, &service.load_balancer_ips),
        (FrontendKind::ExternalIp, &service.external_ips),
    ]
    .into_iter()
    .find(|(_, addresses)| addresses.contains(&address))
    .map(|(kind, _)| kind)
}

pub(super) fn kind_word(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "cluster address",
        FrontendKind::LoadBalancer => "load balancer",
        FrontendKind::ExternalIp => "external address",
        FrontendKind::NodePort => "node port",
    }
}

/// `10.96.0.10:80/tcp`, `node port 30080/tcp`.
pub(super) fn at(frontend: &Frontend) -> String {
    let with = |protocol: &Protocol| protocol.to_string();
    match frontend {
        Frontend::Address(address, protocol) => format!("{address}/{}", with(protocol)),
        Frontend::NodePort(family, port, protocol) => format!("{family} node port {port}/{}", with(protocol)),
    }
}

fn local_pods(pods: &LocalPods) -> String {
    match pods {
        LocalPods::Unknown => "not told from others".to_owned(),
        LocalPods::Ranges(ranges) if ranges.is_empty() => {
            "none yet: the Node has no range of pods".to_owned()
        }
        LocalPods::Ranges(ranges) => {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            format!("from {}", ranges.join(", "))
        }
        LocalPods::Link(link) => format!("in by link {link}"),
        LocalPods::LinkPrefix(prefix) => format!("in by links {prefix}*"),
    }
}

fn node_port_places(host: &Host, family: Family) -> Vec<String> {
    let scope = NodePortScope::of(host, family);
    let mut places = Vec::new();
    if scope.all {
        places.push(format!("every {family} address of this host"));
    }
    places.extend(scope.listed.iter().map(ToString::to_string));
    if scope.localhost {
        places.push("127.0.0.0/8".to_owned());
    }
    if scope.relayed {
        let loopback = if family == Family::V4 { "127.0.0.0/8" } else { "::1" };
        places.push(format!("{loopback} for TCP"));
    }
    places
}
