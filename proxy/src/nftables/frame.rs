//! What the table holds whatever the services are: the chains that packets enter by themselves.
//!
//! | hook, priority | what happens there |
//! |---|---|
//! | prerouting and output, before translation | sources that a load balancer does not list are dropped |
//! | prerouting and output, with translation | address frontends, then node ports, lead to a chain and so to an endpoint |
//! | prerouting and output, after translation | what a frontend took and nobody translated is refused |
//! | postrouting | what was marked, and who talks to itself, is masqueraded |
//!
//! Only packets of new connections are ever refused, and what an endpoint sends that is of no connection.

use weft_kernel::nft::{
    Base, Chain, ChainKind, ChainName, CmpOp, CtKey, Expr, Hook, Key, MetaKey, Part, Policy, Reg, Reject,
    Rule, Selector, SetName, SetSpec, Table, Value, Verdict, merge_networks,
};

use super::layout::{
    DROP, Map, NOWHERE, Place, REJECT, Shape, address_slots, destination, digit, layout, load_frontend,
    number, reg, source, table,
};
use super::leaf::MASQUERADE_MARK;
use super::pods::{LINK_NAME, Pods};
use crate::host::Host;
use crate::model::{Family, family_of};
use crate::plan::NodePortScope;
use crate::userspace::dial;

/// `NF_IP_PRI_NAT_DST`.
const DSTNAT: i32 = -100;
/// Before and after the translation of destinations, for whom that concerns.
const BESIDE: i32 = 10;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_NEW: u32 = 1 << 3;
/// `NF_CT_STATE_INVALID_BIT`.
const CT_INVALID: u32 = 1;
/// `IPS_DST_NAT`.
const IPS_DST_NAT: u32 = 1 << 5;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// What the base chains and fixed sets depend on; nothing of it is a service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) pods: Pods,
    scopes: [NodePortScope; 2],
    strict: Option<Vec<ipnetwork::IpNetwork>>,
    /// Endpoints count the connections that they get.
    counts: bool,
    /// This process carries connections over TCP; those that it opens itself are left alone.
    userspace: bool,
}

/// Tells TCP clients by a reset, others by ICMP. (The kernel limits ICMP errors to about one a second
/// for each client, `net.ipv4.icmp_ratelimit`, so a busy TCP client would otherwise wait in vain.)
pub(super) fn reject() -> ChainName {
    chain("reject")
}

fn chain(name: &str) -> ChainName {
    name.parse().expect("a literal chain name")
}

fn of(name: &str, family: Family) -> ChainName {
    chain(&format!("{name}{}", digit(family)))
}

impl Frame {
    pub(super) fn of(host: &Host) -> Self {
        Self {
            pods: Pods(host.local_pods.clone()),
            scopes: Family::ALL.map(|family| NodePortScope::of(host, family)),
            strict: host.settings.strict.as_ref().map(|strict| strict.service_cidrs.clone()),
            counts: host.settings.count_connections,
            userspace: host.settings.userspace,
        }
    }

    fn scope(&self, family: Family) -> &NodePortScope {
        let [v4, v6] = &self.scopes;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// The table without a service.
    pub(super) fn table(&self) -> Table {
        let key = table();
        let mut table = Table { comment: Some(layout()), ..Table::new(key.family, key.name) };
        for family in Family::ALL {
            for map in Map::FIXED {
                let place = map.of(family);
                table.sets.insert(place.name(), self.spec(place).with(self.fixed(map, family)));
                let ends: &[(u32, Verdict)] = match map {
                    Map::Ways => &[(NOWHERE, Verdict::Return)],
                    Map::Ends => &[(REJECT, Verdict::Goto(reject())), (DROP, Verdict::Drop)],
                    _ => &[],
                };
                if let Some(set) = table.sets.get_mut(&place.name()) {
                    let ends = ends.iter().cloned();
                    set.elements.extend(ends.map(|(end, what)| (number(end).into(), Value::Verdict(what))));
                }
            }
            table.chains.insert(of("guard", family), plain(vec![guard(family)]));
            table.chains.insert(of("services", family), plain(self.services(family)));
            table.chains.insert(of("refuse", family), plain(self.refuse(family)));
            table.chains.insert(of("postrouting", family), plain(vec![self.masquerade_hairpin(family)]));
        }
        let rejecting = vec![
            Rule::new().protocol(TCP).reject(Reject::TcpReset),
            Rule::new().reject(Reject::PORT_UNREACHABLE),
        ];
        table.chains.insert(reject(), plain(rejecting));
        table.chains.insert(chain("astray"), plain(Family::ALL.map(drop_from_endpoints).to_vec()));
        // Packets of connections that are there already, nearly all, meet as few rules as can be: what is
        // of a family comes behind what is of new ones.
        let by_family = |to: &str| {
            let v4 = Rule::new().ipv4().jump(&of(to, Family::V4));
            let v6 = Rule::new().ipv6().jump(&of(to, Family::V6));
            vec![v4, v6]
        };
        for to in ["guard", "refuse"] {
            table.chains.insert(chain(to), plain(by_family(to)));
        }
        for (hook, name) in [(Hook::Prerouting, "prerouting"), (Hook::Output, "output")] {
            let new = || Rule::new().ct_state(CT_NEW);
            let ours =
                || (self.userspace && hook == Hook::Output).then(|| Rule::new().mark(dial::MARK, dial::MARK));
            let mut guard = Vec::new();
            if hook == Hook::Prerouting && self.scope(Family::V4).localhost {
                // The kernel drops such packets by itself unless `route_localnet` is set, as it is for
                // node ports at 127.0.0.1: nobody else may reach what listens there (CVE-2020-8558),
                // nor those node ports.
                let to = destination(Family::V4);
                guard.push(from_a_link(new().ipv4()).in_network(to, loopback()).drop());
            }
            if hook == Hook::Prerouting {
                // Nor those that this process serves, to which the rules would lead before the kernel
                // looks at where packets come from.
                let relayed = Family::ALL.into_iter().filter(|family| self.scope(*family).relayed);
                guard.extend(relayed.map(|family| from_a_link(to_loopback(new(), family)).drop()));
            }
            guard.extend(ours().map(Rule::return_));
            guard.push(new().jump(&chain("guard")));
            let before = base(ChainKind::Filter, hook, DSTNAT - BESIDE, guard);
            let services = ours().map(Rule::return_).into_iter().chain(by_family("services"));
            let with = base(ChainKind::Nat, hook, DSTNAT, services.collect());
            // Whoever was translated, by us or by somebody else, has found its way.
            let mut refuse = vec![translated().return_()];
            refuse.extend(ours().map(Rule::return_));
            refuse.push(new().jump(&chain("refuse")));
            if hook == Hook::Prerouting {
                refuse.push(Rule::new().ct_state(CT_INVALID).jump(&chain("astray")));
            }
            let after = base(ChainKind::Filter, hook, DSTNAT + BESIDE, refuse);
            table.chains.insert(chain(&format!("{name}-before")), before);
            table.chains.insert(chain(name), with);
            table.chains.insert(chain(&format!("{name}-after")), after);
        }
        let postrouting = vec![
            masquerade_marked(),
            Rule::new().ipv4().jump(&of("postrouting", Family::V4)),
            Rule::new().ipv6().jump(&of("postrouting", Family::V6)),
        ];
        let last = base(ChainKind::Nat, Hook::Postrouting, Base::PRIORITY_SRCNAT, postrouting);
        table.chains.insert(chain("postrouting"), last);
        table
    }

    /// The last lookup of a connection's first packet finds its endpoint: there it is counted, once.
    fn spec(&self, place: Place) -> SetSpec {
        match self.counts && place.map.is_last() {
            true => place.spec().counted(),
            false => place.spec(),
        }
    }

    /// What fixed sets hold without any service.
    fn fixed(&self, map: Map, family: Family) -> Vec<Key> {
        match map {
            Map::Pods => self.pods.elements(family),
            Map::NodePortAddresses => {
                self.scope(family).listed.iter().map(|ip| Key::from(Part::from(*ip))).collect()
            }
            Map::ServiceCidrs => {
                let ranges = self.strict.iter().flatten().copied();
                merge_networks(ranges.filter(|range| family_of(range.ip()) == family))
                    .into_iter()
                    .map(|range| Key::from(Part::from(range)))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// Rules that only packets to node ports pass, one for each kind of place they are served at.
    fn to_node_ports(&self, family: Family) -> Vec<Rule> {
        let scope = self.scope(family);
        let to = destination(family);
        let mut rules = Vec::new();
        if scope.all {
            let local = Rule::new().destination_is_local();
            rules.push(match family {
                Family::V4 => local.not_in_network(to, loopback()),
                Family::V6 => local.is_not(to, std::net::Ipv6Addr::LOCALHOST.octets()),
            });
        } else if !scope.listed.is_empty() {
            rules.push(Rule::new().in_set([to], &Map::NodePortAddresses.of(family).name()));
        }
        if scope.localhost {
            rules.push(Rule::new().destination_is_local().in_network(to, loopback()));
        }
        if scope.relayed {
            rules.push(to_loopback(Rule::new(), family));
        }
        rules
    }

    fn services(&self, family: Family) -> Vec<Rule> {
        let mut rules = vec![by_frontend(Rule::new(), Shape::Address, Map::Addresses, Map::Ways, family)];
        let ports = |rule| by_frontend(rule, Shape::Port, Map::Ports, Map::Ways, family);
        rules.extend(self.to_node_ports(family).into_iter().map(ports));
        rules
    }

    fn refuse(&self, family: Family) -> Vec<Rule> {
        let mut rules =
            vec![by_frontend(Rule::new(), Shape::Address, Map::RefusedAddresses, Map::Ends, family)];
        let ports = |rule| by_frontend(rule, Shape::Port, Map::RefusedPorts, Map::Ends, family);
        rules.extend(self.to_node_ports(family).into_iter().map(ports));
        if self.strict.is_some() {
            let to = |map: Map| Rule::new().in_set([destination(family)], &map.of(family).name());
            rules.push(to(Map::ClusterIps).goto(&reject()));
            rules.push(to(Map::Spared).return_());
            rules.push(Rule::new().destination_is_local().return_());
            rules.push(to(Map::ServiceCidrs).drop());
        }
        rules
    }
}

impl Frame {
    /// Connections that this process carries never need it: they end here.
    fn masquerade_hairpin(&self, family: Family) -> Rule {
        let reg = Reg::FIRST;
        let but_tcp = |rule: Rule| {
            rule.then(Expr::Meta { key: MetaKey::L4Proto, to: reg }).then(Expr::Cmp {
                reg,
                op: CmpOp::Ne,
                value: vec![TCP],
            })
        };
        let concerned = if self.userspace { but_tcp(translated()) } else { translated() };
        concerned
            .in_set([source(family), destination(family)], &Map::Hairpin.of(family).name())
            .masquerade(true)
    }
}

fn plain(rules: Vec<Rule>) -> Chain {
    Chain { rules, ..Chain::default() }
}

fn base(kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { base: Some(Base { kind, hook, priority, policy: Policy::Accept }), rules, ..Chain::default() }
}

/// By frontend to a number, and by that to a verdict. Debian's `nft` cannot list a lookup
/// whose key is what another one found, so the number goes over the packet's priority: routing gives
/// a forwarded packet a new one, and the first packet of a local connection leaves with none.
fn by_frontend(rule: Rule, shape: Shape, map: Map, then: Map, family: Family) -> Rule {
    let (rule, _) = load_frontend(rule, shape, family, 0);
    rule.then(Expr::MapLookup { map: map.of(family).name(), key: reg(0), to: reg(0) })
        .then(Expr::SetMeta { key: MetaKey::Priority, from: reg(0) })
        .load(Selector::Priority, reg(0))
        .then(Expr::VerdictMap { map: then.of(family).name(), key: reg(0) })
}

fn guard(family: Family) -> Rule {
    let set = |map: Map| -> SetName { map.of(family).name() };
    let (to, _) = load_frontend(Rule::new(), Shape::Address, family, 0);
    let guarded = to.then(Expr::Lookup { set: set(Map::Guarded), key: reg(0), invert: false });
    let source = guarded.load(source(family), reg(0));
    let (both, _) = load_frontend(source, Shape::Address, family, address_slots(family));
    both.then(Expr::Lookup { set: set(Map::Allowed), key: reg(0), invert: true }).drop()
}

/// Over TCP.
fn to_loopback(rule: Rule, family: Family) -> Rule {
    let to = destination(family);
    match family {
        Family::V4 => rule.ipv4().protocol(TCP).in_network(to, loopback()),
        Family::V6 => rule.ipv6().protocol(TCP).is(to, std::net::Ipv6Addr::LOCALHOST.octets()),
    }
}

fn loopback() -> ipnetwork::IpNetwork {
    "127.0.0.0/8".parse().expect("a literal network")
}

/// Only what came in over a link other than loopback. Not for the output hook: there the kernel's name
/// of the link is empty, and so another one.
fn from_a_link(rule: Rule) -> Rule {
    let mut name = b"lo".to_vec();
    name.resize(LINK_NAME, 0);
    let reg = Reg::FIRST;
    rule.then(Expr::Meta { key: MetaKey::IifName, to: reg }).then(Expr::Cmp {
        reg,
        op: CmpOp::Ne,
        value: name,
    })
}

/// What an endpoint sends out of place (behind the window, say) belongs to no connection for the kernel, so
/// it is not translated. The client would take it for somebody else's and answer with a reset, and that one
/// would end the good connection at the endpoint (kubernetes/kubernetes#74839).
fn drop_from_endpoints(family: Family) -> Rule {
    let begin = match family {
        Family::V4 => Rule::new().ipv4(),
        Family::V6 => Rule::new().ipv6(),
    };
    begin.in_set([source(family), source(family)], &Map::Hairpin.of(family).name()).drop()
}

fn translated() -> Rule {
    let reg = Reg::FIRST;
    let mask = IPS_DST_NAT.to_ne_bytes().to_vec();
    Rule::new()
        .then(Expr::Ct { key: CtKey::Status, to: reg })
        .then(Expr::Bitwise { from: reg, to: reg, mask, xor: vec![0; 4] })
        .then(Expr::Cmp { reg, op: CmpOp::Ne, value: vec![0; 4] })
}

fn masquerade_marked() -> Rule {
    let reg = Reg::FIRST;
    let mask = (!MASQUERADE_MARK).to_ne_bytes().to_vec();
    // Without the mark from here on: whoever encapsulates the packet keeps its mark.
    Rule::new()
        .mark(MASQUERADE_MARK, MASQUERADE_MARK)
        .load(Selector::Mark, reg)
        .then(Expr::Bitwise { from: reg, to: reg, mask, xor: vec![0; 4] })
        .then(Expr::SetMeta { key: MetaKey::Mark, from: reg })
        .masquerade(true)
}
