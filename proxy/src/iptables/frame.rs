//! What the tables hold whatever the services are: how packets come to our chains, and where those
//! lead that belong to no service.

use ipnetwork::IpNetwork;
use weft_kernel::nft::merge_networks;

use super::bpf;
use super::rule::{Rule, Side, Table, only};
use super::tree::Tree;
use crate::host::{Host, LocalPods};
use crate::model::{Family, family_of};
use crate::plan::NodePortScope;

/// Which tree, and with it the chain that it begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum At {
    /// Frontends at addresses.
    Addresses,
    /// Node ports.
    Ports,
    /// Frontends at addresses where somebody is refused.
    RefusedAddresses,
    /// Node ports where somebody is refused.
    RefusedPorts,
    /// Cluster addresses, ours and those that another proxy serves.
    ClusterIps,
    /// Endpoints' addresses.
    Endpoints,
}

impl At {
    pub(super) const ALL: [Self; 6] = [
        Self::Addresses,
        Self::Ports,
        Self::RefusedAddresses,
        Self::RefusedPorts,
        Self::ClusterIps,
        Self::Endpoints,
    ];

    pub(super) fn table(self) -> Table {
        match self {
            Self::Addresses | Self::Ports => Table::Nat,
            Self::RefusedAddresses | Self::RefusedPorts | Self::ClusterIps | Self::Endpoints => Table::Filter,
        }
    }

    /// Whether a chain of that name is one of this tree's.
    pub(super) fn has(self, chain: &str) -> bool {
        chain.strip_prefix(self.root()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    fn root(self) -> &'static str {
        match self {
            Self::Addresses => "WEFT-SERVICES",
            Self::Ports => "WEFT-PORTS",
            Self::RefusedAddresses => "WEFT-REFUSE",
            Self::RefusedPorts => "WEFT-REFUSE-PORTS",
            Self::ClusterIps => "WEFT-STRICT",
            Self::Endpoints => "WEFT-ASTRAY",
        }
    }
}

const NODE_PORTS: &str = "WEFT-NODEPORTS";
const REFUSED_NODE_PORTS: &str = "WEFT-REFUSE-NODEPORTS";
const UNALLOCATED: &str = "WEFT-UNALLOCATED";
const POSTROUTING: &str = "WEFT-POSTROUTING";
const MASQUERADE: &str = "WEFT-MASQUERADE";
/// Tells TCP clients by a reset, others by ICMP, of which the kernel sends each client but one a second.
pub(super) const REJECT: &str = "WEFT-REJECT";

/// The most bytes in a link's name (`IFNAMSIZ`, without its end).
const LINK_NAME_MAX: usize = 15;

/// What the host decides, in one family.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) family: Family,
    local_pods: LocalPods,
    scope: NodePortScope,
    strict: Option<Vec<IpNetwork>>,
}

impl Frame {
    pub(super) fn of(host: &Host, family: Family) -> Self {
        Self {
            family,
            local_pods: host.local_pods.clone(),
            scope: NodePortScope::of(host, family),
            strict: host.settings.strict.as_ref().map(|strict| strict.service_cidrs.clone()),
        }
    }

    /// How packets come to us: the kernel's chain, and the rule that leads on.
    pub(super) fn jumps(table: Table) -> Vec<(&'static str, Rule)> {
        let comment = |rule: Rule| rule.comment("weft proxy");
        match table {
            Table::Nat => vec![
                ("PREROUTING", comment(Rule::new()).jump(At::Addresses.root())),
                ("OUTPUT", comment(Rule::new()).jump(At::Addresses.root())),
                ("POSTROUTING", comment(Rule::new()).jump(POSTROUTING)),
            ],
            Table::Filter => {
                let refuse = comment(Rule::new().new_connection()).jump(At::RefusedAddresses.root());
                // What an endpoint sends out of place (behind the window, say) belongs to no connection
                // for the kernel, so it is not translated, and the client would answer with a reset that
                // ends the good connection (kubernetes/kubernetes#74839).
                let astray = comment(Rule::new().invalid()).jump(At::Endpoints.root());
                let all = ["INPUT", "FORWARD", "OUTPUT"].map(|chain| (chain, refuse.clone()));
                let come = ["INPUT", "FORWARD"].map(|chain| (chain, astray.clone()));
                all.into_iter().chain(come).collect()
            }
        }
    }

    /// The trees, without a service.
    pub(super) fn trees(&self) -> Vec<(At, Tree)> {
        let tree = |at: At, head, next| {
            let side = if at == At::Endpoints { Side::Source } else { Side::Destination };
            (at, Tree::new(self.family, side, at.root(), head, next))
        };
        // Whoever was translated, by us or by somebody else, has found its way.
        let mut refuse = vec![Rule::new().translated().returns()];
        if self.scope.localhost {
            // The kernel drops such packets by itself unless `route_localnet` is set, as it is for node
            // ports at 127.0.0.1 (CVE-2020-8558).
            refuse.push(Rule::new().destination(loopback(self.family)).without_local_source().jump("DROP"));
        }
        let strict = self.strict.is_some().then_some(At::ClusterIps.root());
        vec![
            tree(At::Addresses, Vec::new(), Some(NODE_PORTS)),
            tree(At::Ports, Vec::new(), None),
            tree(At::RefusedAddresses, refuse, Some(REFUSED_NODE_PORTS)),
            tree(At::RefusedPorts, Vec::new(), strict),
            tree(At::ClusterIps, Vec::new(), self.strict.is_some().then_some(UNALLOCATED)),
            tree(At::Endpoints, Vec::new(), None),
        ]
    }

    /// The chains beside the trees.
    pub(super) fn chains(&self) -> Vec<(Table, &'static str, Vec<Rule>)> {
        let family = self.family;
        let strict = self.strict.is_some().then(|| Rule::new().goto(At::ClusterIps.root()));
        let ports = self.to_node_ports(At::Ports.root());
        let mut refused = self.to_node_ports(At::RefusedPorts.root());
        refused.extend(strict);
        let mut chains = vec![
            (Table::Nat, NODE_PORTS, ports),
            (
                Table::Nat,
                POSTROUTING,
                vec![
                    Rule::new().marked().jump(MASQUERADE),
                    Rule::new().translated().bpf(&bpf::to_itself(family)).masquerade(),
                ],
            ),
            (Table::Nat, MASQUERADE, vec![Rule::new().unmark(), Rule::new().masquerade()]),
            (Table::Filter, REFUSED_NODE_PORTS, refused),
            (
                Table::Filter,
                REJECT,
                vec![
                    Rule::new().protocol(crate::model::Protocol::Tcp).reset(),
                    Rule::new().unreachable(family),
                ],
            ),
        ];
        if let Some(ranges) = &self.strict {
            let ranges = merge_networks(ranges.iter().copied().filter(|it| family_of(it.ip()) == family));
            let mut rules = vec![Rule::new().with_local_destination().returns()];
            rules.extend(ranges.into_iter().map(|range| Rule::new().destination(range).jump("DROP")));
            chains.push((Table::Filter, UNALLOCATED, rules));
        }
        chains
    }

    /// Whether packets to cluster addresses that nobody takes are refused.
    pub(super) fn is_strict(&self) -> bool {
        self.strict.is_some()
    }

    /// A beginning for rules that only packets of local pods match, each; none if they cannot be told.
    pub(super) fn pods(&self) -> Vec<Rule> {
        match &self.local_pods {
            LocalPods::Unknown => Vec::new(),
            LocalPods::Ranges(ranges) => {
                let own = ranges.iter().copied().filter(|range| family_of(range.ip()) == self.family);
                merge_networks(own).into_iter().map(|range| Rule::new().source(range)).collect()
            }
            LocalPods::Link(name) => possible(name).map(|name| Rule::new().input(name)).into_iter().collect(),
            LocalPods::LinkPrefix(prefix) if prefix.len() == LINK_NAME_MAX => {
                possible(prefix).map(|name| Rule::new().input(name)).into_iter().collect()
            }
            LocalPods::LinkPrefix(prefix) => {
                let any = possible(prefix).map(|prefix| Rule::new().input(&format!("{prefix}+")));
                any.into_iter().collect()
            }
        }
    }

    /// Rules that only packets to node ports pass, one for each kind of place they are served at.
    fn to_node_ports(&self, then: &str) -> Vec<Rule> {
        let loopback = loopback(self.family);
        let mut rules = Vec::new();
        if self.scope.all {
            rules.push(Rule::new().not_to(loopback).with_local_destination().goto(then));
        } else {
            let to = |ip: &std::net::IpAddr| Rule::new().destination(only(*ip)).goto(then);
            rules.extend(self.scope.listed.iter().map(to));
        }
        if self.scope.localhost {
            let own = Rule::new().destination(loopback).with_local_source().with_local_destination();
            rules.push(own.goto(then));
        }
        rules
    }
}

fn loopback(family: Family) -> IpNetwork {
    let range = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    range.parse().expect("a literal range")
}

/// A name that a link may have and a rule can hold: of others there are no packets.
fn possible(name: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !br#""'\!+/"#.contains(&byte);
    (!name.is_empty() && name.len() <= LINK_NAME_MAX && name.bytes().all(plain)).then_some(name)
}
