//! What one service needs of the tables of one family: chains of its own, and rules for the trees.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use weft_kernel::nft::merge_networks;

use super::bpf;
use super::frame::{At, Frame, REJECT};
use super::rule::{Rule, digest, only};
use super::tree::Key;
use crate::model::{Balance, Family, Policy, family_of};
use crate::plan::{Frontend, Path, PortPlan, ServicePlan, Treatment};

/// What a service needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parts {
    /// Chains that are nobody else's, all in the table nat.
    pub(super) chains: BTreeMap<String, Vec<Rule>>,
    /// Rules in trees, each key of a tree once.
    pub(super) entries: BTreeMap<(At, Key), Vec<Rule>>,
}

impl Parts {
    pub(super) fn of(plan: &ServicePlan, frame: &Frame) -> Self {
        let mut parts = Self::default();
        for port in plan.ports.iter().filter(|port| port.family == frame.family) {
            parts.port(port, frame);
        }
        if frame.is_strict() {
            let own = |ips: &[std::net::IpAddr]| {
                ips.iter().copied().filter(|ip| family_of(*ip) == frame.family).collect::<Vec<_>>()
            };
            for ip in own(&plan.cluster_ips) {
                let rule = Rule::new().destination(only(ip)).goto(REJECT);
                parts.entries.insert((At::ClusterIps, Key::Whole(ip, false)), vec![rule]);
            }
            for ip in own(&plan.spared_ips) {
                let rule = Rule::new().destination(only(ip)).returns();
                parts.entries.insert((At::ClusterIps, Key::Whole(ip, true)), vec![rule]);
            }
        }
        parts
    }

    fn port(&mut self, port: &PortPlan, frame: &Frame) {
        for endpoint in port.cluster.iter().chain(&port.local) {
            let rule = Rule::new().source(only(endpoint.ip())).jump("DROP");
            self.entries.insert((At::Endpoints, Key::Whole(endpoint.ip(), false)), vec![rule]);
        }
        for (frontend, treatment) in &port.frontends {
            let here = || match frontend {
                Frontend::Address(at, protocol) => {
                    Rule::new().destination(only(at.ip())).port(*protocol, at.port())
                }
                Frontend::NodePort(_, number, protocol) => Rule::new().port(*protocol, number.get()),
            };
            let (served, refused, key) = match frontend {
                Frontend::Address(at, protocol) => {
                    let key = Key::Address(at.ip(), *protocol, at.port());
                    (At::Addresses, At::RefusedAddresses, key)
                }
                Frontend::NodePort(_, number, protocol) => {
                    (At::Ports, At::RefusedPorts, Key::Port(*protocol, number.get()))
                }
            };
            let commented = || here().comment(&port.name.to_string());
            let rule = match self.way(port, treatment, frame) {
                Some(way) => commented().goto(&way),
                // Taken by nobody, it must not go on to a node port of the same number.
                None => commented().returns(),
            };
            self.entries.insert((served, key), vec![rule]);
            let refusals = refusals(treatment, here);
            if !refusals.is_empty() {
                self.entries.insert((refused, key), refusals);
            }
        }
    }

    /// The chain for who comes to a frontend with that treatment; none if nobody gets anywhere.
    fn way(&mut self, port: &PortPlan, treatment: &Treatment, frame: &Frame) -> Option<String> {
        let name = |what: &str| format!("WEFT-WAY-{}", digest(&format!("{} {what}", identity(port))));
        let inner = {
            let pods = frame.pods();
            let Treatment { pods: by_pods, host, others, .. } = *treatment;
            let by_pods = if pods.is_empty() { others } else { by_pods };
            match others {
                Path::To { set, masquerade: false } if by_pods == others && host == others => {
                    Some(self.endpoints(port, set))
                }
                _ if ![by_pods, host, others].iter().any(|path| matches!(path, Path::To { .. })) => None,
                _ => {
                    let mut rules = Vec::new();
                    if by_pods != others || host != others {
                        for pod in pods {
                            rules.extend(self.path(port, by_pods, pod));
                        }
                    }
                    if host != others {
                        rules.extend(self.path(port, host, Rule::new().with_local_source()));
                    }
                    rules.extend(self.path(port, others, Rule::new()));
                    let name = name(&format!("{by_pods:?} {host:?} {others:?}"));
                    self.chains.insert(name.clone(), rules);
                    Some(name)
                }
            }
        };
        let Some(sources) = &treatment.sources else { return inner };
        // Who may not come is nobody's to translate, and is dropped later.
        let mut rules: Vec<Rule> = merge_networks(sources.iter().copied())
            .into_iter()
            .map(|range| {
                let from = Rule::new().source(range);
                inner.as_deref().map_or(from.clone().returns(), |inner| from.goto(inner))
            })
            .collect();
        rules.push(Rule::new().jump("ACCEPT"));
        let name = name(&format!("{treatment:?}"));
        self.chains.insert(name.clone(), rules);
        Some(name)
    }

    fn path(&mut self, port: &PortPlan, path: Path, who: Rule) -> Vec<Rule> {
        match path {
            Path::To { set, masquerade } => {
                let marked = masquerade.then(|| who.clone().mark());
                marked.into_iter().chain([who.goto(&self.endpoints(port, set))]).collect()
            }
            Path::Reject | Path::Drop => vec![who.returns()],
        }
    }

    /// The chain that leads to one of the endpoints of a set.
    fn endpoints(&mut self, port: &PortPlan, set: Policy) -> String {
        let (kind, endpoints, others) = match set {
            Policy::Cluster => ("ANY", &port.cluster, &port.local),
            Policy::Local => ("LOC", &port.local, &port.cluster),
        };
        let name = format!("WEFT-{kind}-{}", digest(&identity(port)));
        let list =
            |endpoint: &SocketAddr| format!("weft-{}", digest(&format!("{} {endpoint}", identity(port))));
        let family = port.family;
        let protocol = port.name.protocol;
        let mut rules = Vec::new();
        if let Some(time) = port.affinity {
            for endpoint in endpoints {
                let again =
                    Rule::new().protocol(protocol).again(family, &list(endpoint), time.as_secs().max(1));
                rules.push(again.translate(*endpoint));
            }
            // What counts is the client's last endpoint, whichever set it was of.
            let elsewhere = others.iter().filter(|endpoint| !endpoints.contains(endpoint));
            rules.extend(elsewhere.map(|endpoint| Rule::new().forget(family, &list(endpoint))));
        }
        let picked = |condition: Rule, endpoint: &SocketAddr| {
            let rule = match port.affinity {
                Some(_) => condition.remember(family, &list(endpoint)),
                None => condition,
            };
            rule.translate(*endpoint)
        };
        let start = || Rule::new().protocol(protocol);
        match port.balance {
            Balance::Random => {
                for (left, endpoint) in (1..=endpoints.len()).rev().zip(endpoints) {
                    let condition = if left == 1 { start() } else { start().by_chance(left) };
                    rules.push(picked(condition, endpoint));
                }
            }
            Balance::ClientHash => {
                let programs = bpf::by_slot(family, endpoints);
                let last = programs.len().saturating_sub(1);
                for (index, (endpoint, program)) in programs.iter().enumerate() {
                    let condition = if index == last { start() } else { start().bpf(program) };
                    rules.push(picked(condition, endpoint));
                }
            }
        }
        self.chains.insert(name.clone(), rules);
        name
    }
}

/// What no two service ports have in common.
fn identity(port: &PortPlan) -> String {
    let family = if port.family == Family::V4 { 4 } else { 6 };
    format!("{} {} {family}", port.name, port.name.protocol)
}

/// The rules for who was not translated at that frontend: for whom no path leads to an endpoint, and
/// who comes from elsewhere than listed. All paths that lead to none do the same.
fn refusals(treatment: &Treatment, here: impl Fn() -> Rule) -> Vec<Rule> {
    let paths = [treatment.pods, treatment.host, treatment.others];
    let reject = paths.contains(&Path::Reject);
    match &treatment.sources {
        None if reject => vec![here().goto(REJECT)],
        None if paths.contains(&Path::Drop) => vec![here().jump("DROP")],
        None => Vec::new(),
        Some(sources) => {
            let may_come = merge_networks(sources.iter().copied().filter(|_| reject));
            let from = |range| Rule::new().source(range).followed_by(here()).goto(REJECT);
            may_come.into_iter().map(from).chain([here().jump("DROP")]).collect()
        }
    }
}
