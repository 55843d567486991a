//! UDP flows whose endpoint is gone. Connection tracking keeps translating a client's datagrams to
//! where the first one went, for as long as it sends; so such flows are forgotten, and no others. Pure.
//!
//! The rules are kube-proxy's conntrack reconciler's: a flow to a frontend is stale if who answers it
//! serves no more, whatever the traffic policy says now; one that began before there were rules, and
//! so leads nowhere, is stale, too. A service without any endpoint is left alone: its flows may go on
//! when the endpoint is only being replaced. TCP needs none of this, its connections end by themselves.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use weft_kernel::conntrack::{self, Flow};

use crate::model::{Family, Model, NodeName, Protocol, ServiceName, family_of};
use crate::plan::{Frontend, ServicePlan};

/// Who may answer for UDP frontends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answering {
    /// The endpoints that serve, of each service port that has any.
    ports: Vec<BTreeSet<SocketAddr>>,
    addresses: HashMap<SocketAddr, usize>,
    node_ports: HashMap<(Family, NonZeroU16), usize>,
}

impl Answering {
    /// Adds the UDP ports of a service.
    pub fn add(&mut self, model: &Model, node: &NodeName, name: &ServiceName, plan: &ServicePlan) {
        for port in plan.ports.iter().filter(|port| port.name.protocol == Protocol::Udp) {
            let endpoints = model.endpoints(name, &port.name.port, Protocol::Udp, port.family, node);
            let serving: BTreeSet<SocketAddr> =
                endpoints.iter().filter(|it| it.ready || it.serving).map(|it| it.address).collect();
            if serving.is_empty() {
                continue;
            }
            let at = self.ports.len();
            self.ports.push(serving);
            for frontend in port.frontends.keys() {
                match frontend {
                    Frontend::Address(address, _) => {
                        self.addresses.insert(*address, at);
                    }
                    Frontend::NodePort(family, number, _) => {
                        self.node_ports.insert((*family, *number), at);
                    }
                }
            }
        }
    }

    /// Nobody answers for any frontend: no flow can be stale.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Whether a flow leads to nobody who would answer for its frontend. `is_own` tells the host's own
    /// addresses.
    pub fn is_stale(&self, flow: &Flow, is_own: impl Fn(IpAddr) -> bool) -> bool {
        if flow.protocol != conntrack::Protocol::Udp {
            return false;
        }
        let asked = flow.original.destination;
        let by_port = || {
            let number = NonZeroU16::new(asked.port())?;
            // A flow that only passes through to another host's node port is that host's.
            let ours = flow.is_translated() || is_own(asked.ip());
            self.node_ports.get(&(family_of(asked.ip()), number)).filter(|_| ours)
        };
        let at = self.addresses.get(&asked).or_else(by_port);
        let serving = at.and_then(|at| self.ports.get(*at));
        serving.is_some_and(|serving| !serving.contains(&flow.reply.source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernel::conntrack::{Counted, Tuple};

    fn addr(raw: &str) -> SocketAddr {
        raw.parse().unwrap()
    }

    fn answering() -> Answering {
        let mut answering = Answering::default();
        for (at, (frontend, port, endpoints)) in [
            ("10.96.0.10:53", 30053, vec!["10.1.0.5:53", "10.1.0.6:53"]),
            ("[fd00:96::10]:53", 30054, vec!["[fd00:1::5]:53"]),
        ]
        .into_iter()
        .enumerate()
        {
            let frontend = addr(frontend);
            answering.ports.push(endpoints.into_iter().map(addr).collect());
            answering.addresses.insert(frontend, at);
            answering.node_ports.insert((family_of(frontend.ip()), NonZeroU16::new(port).unwrap()), at);
        }
        answering
    }

    fn flow(asked: &str, answers: &str) -> Flow {
        let client = addr(if asked.starts_with('[') { "[fd00:9::1]:4000" } else { "10.9.0.1:4000" });
        Flow {
            protocol: conntrack::Protocol::Udp,
            original: Tuple { source: client, destination: addr(asked) },
            reply: Tuple { source: addr(answers), destination: client },
            id: 1,
            zone: 0,
            counted: Counted::default(),
        }
    }

    #[test]
    fn only_flows_to_who_is_gone_are_stale() {
        let table = [
            ("10.96.0.10:53", "10.1.0.5:53", false, "who answers serves"),
            ("10.96.0.10:53", "10.1.0.9:53", true, "the endpoint is gone"),
            ("10.96.0.10:53", "10.1.0.5:54", true, "it serves on another port"),
            ("10.96.0.10:53", "10.96.0.10:53", true, "began before there were rules"),
            ("10.96.0.10:54", "10.96.0.10:54", false, "no frontend of ours"),
            ("192.0.2.1:30053", "10.1.0.6:53", false, "a node port whose endpoint serves"),
            ("192.0.2.1:30053", "10.1.0.9:53", true, "a node port whose endpoint is gone"),
            ("192.0.2.1:30053", "192.0.2.1:30053", true, "our node port, before there were rules"),
            ("198.51.100.7:30053", "198.51.100.7:30053", false, "passes through to somebody else"),
            ("[fd00:96::10]:53", "[fd00:1::5]:53", false, "IPv6, who answers serves"),
            ("[fd00:96::10]:53", "[fd00:1::9]:53", true, "IPv6, the endpoint is gone"),
            ("[2001:db8::1]:30053", "[fd00:1::9]:53", false, "that number is an IPv4 node port"),
        ];
        let answering = answering();
        let own = |ip: IpAddr| ip == addr("192.0.2.1:0").ip();
        for (asked, answers, stale, why) in table {
            assert_eq!(answering.is_stale(&flow(asked, answers), own), stale, "{why}");
        }
        let tcp = Flow { protocol: conntrack::Protocol::Tcp, ..flow("10.96.0.10:53", "10.1.0.9:53") };
        assert!(!answering.is_stale(&tcp, own));
    }
}
