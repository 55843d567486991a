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
use std::sync::Arc;

use weft_kernel::conntrack::{self, Flow};

use crate::model::{Family, Model, NodeName, Protocol, ServiceName, family_of};
use crate::plan::{Frontend, ServicePlan};

/// Who may answer for UDP frontends; kept service by service.
#[derive(Clone, Debug, Default)]
pub struct Answering {
    services: HashMap<ServiceName, Vec<Answers>>,
    addresses: HashMap<SocketAddr, Held>,
    node_ports: HashMap<(Family, NonZeroU16), Held>,
}

/// A frontend's.
#[derive(Clone, Debug)]
struct Held {
    service: ServiceName,
    serving: Serving,
}

/// Who may answer for one UDP port of a service that has endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    frontends: Vec<Frontend>,
    serving: Serving,
}

type Serving = Arc<BTreeSet<SocketAddr>>;

impl Answers {
    /// For each UDP port of a service that has any endpoint that serves.
    pub fn of(model: &Model, node: &NodeName, name: &ServiceName, plan: &ServicePlan) -> Vec<Self> {
        let udp = plan.ports.iter().filter(|port| port.name.protocol == Protocol::Udp);
        let answers = udp.map(|port| {
            let endpoints = model.endpoints(name, &port.name.port, Protocol::Udp, port.family, node);
            let serving = endpoints.iter().filter(|it| it.ready || it.serving).map(|it| it.address);
            let frontends = port.frontends.keys().copied().collect();
            Self { frontends, serving: Arc::new(serving.collect()) }
        });
        answers.filter(|it| !it.serving.is_empty() && !it.frontends.is_empty()).collect()
    }
}

impl Answering {
    /// From now on these answer for the service. True if a flow may be stale now that was not before:
    /// a frontend is new, or lost somebody who served.
    pub fn set(&mut self, name: &ServiceName, answers: Vec<Answers>) -> bool {
        let before = self.services.remove(name).unwrap_or_default();
        if before == answers {
            if !before.is_empty() {
                self.services.insert(name.clone(), before);
            }
            return false;
        }
        let mut stale = false;
        for Answers { frontends, serving } in &answers {
            for frontend in frontends {
                let held = Held { service: name.clone(), serving: Arc::clone(serving) };
                let former = self.insert(*frontend, held);
                stale |= former.is_none_or(|former| !former.serving.is_subset(serving));
            }
        }
        for Answers { frontends, serving } in &before {
            for frontend in frontends {
                self.remove(*frontend, serving);
            }
        }
        if !answers.is_empty() {
            self.services.insert(name.clone(), answers);
        }
        stale
    }

    /// The services that somebody answers for.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Nobody answers for any frontend: no flow can be stale.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The service whose frontend a flow asked, if it leads to nobody who would answer for that.
    /// `is_own` tells the host's own addresses.
    pub fn stale(&self, flow: &Flow, is_own: impl Fn(IpAddr) -> bool) -> Option<&ServiceName> {
        if flow.protocol != conntrack::Protocol::Udp {
            return None;
        }
        let asked = flow.original.destination;
        let by_port = || {
            let number = NonZeroU16::new(asked.port())?;
            // A flow that only passes through to another host's node port is that host's.
            let ours = flow.is_translated() || is_own(asked.ip());
            self.node_ports.get(&(family_of(asked.ip()), number)).filter(|_| ours)
        };
        let held = self.addresses.get(&asked).or_else(by_port)?;
        (!held.serving.contains(&flow.reply.source)).then_some(&held.service)
    }

    fn insert(&mut self, frontend: Frontend, held: Held) -> Option<Held> {
        match frontend {
            Frontend::Address(address, _) => self.addresses.insert(address, held),
            Frontend::NodePort(family, number, _) => self.node_ports.insert((family, number), held),
        }
    }

    /// Unless the frontend has others by now who answer for it, of this service or another one.
    fn remove(&mut self, frontend: Frontend, serving: &Serving) {
        let same = |held: &Held| Arc::ptr_eq(&held.serving, serving);
        match frontend {
            Frontend::Address(address, _) if self.addresses.get(&address).is_some_and(same) => {
                self.addresses.remove(&address);
            }
            Frontend::NodePort(family, port, _) if self.node_ports.get(&(family, port)).is_some_and(same) => {
                self.node_ports.remove(&(family, port));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernel::conntrack::{Carried, Tuple};

    fn addr(raw: &str) -> SocketAddr {
        raw.parse().unwrap()
    }

    fn name(name: &str) -> ServiceName {
        ServiceName::new("shop", name)
    }

    fn answers(frontend: &str, node_port: u16, serving: &[&str]) -> Answers {
        let frontend = addr(frontend);
        let number = NonZeroU16::new(node_port).unwrap();
        let at_port = Frontend::NodePort(family_of(frontend.ip()), number, Protocol::Udp);
        Answers {
            frontends: vec![Frontend::Address(frontend, Protocol::Udp), at_port],
            serving: Arc::new(serving.iter().map(|raw| addr(raw)).collect()),
        }
    }

    fn answering() -> Answering {
        let mut answering = Answering::default();
        let v4 = answers("10.96.0.10:53", 30053, &["10.1.0.5:53", "10.1.0.6:53"]);
        let v6 = answers("[fd00:96::10]:53", 30054, &["[fd00:1::5]:53"]);
        assert!(answering.set(&name("dns"), vec![v4, v6]));
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
            carried: Carried::default(),
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
            assert_eq!(answering.stale(&flow(asked, answers), own), stale.then_some(&name("dns")), "{why}");
        }
        let tcp = Flow { protocol: conntrack::Protocol::Tcp, ..flow("10.96.0.10:53", "10.1.0.9:53") };
        assert_eq!(answering.stale(&tcp, own), None);
    }

    #[test]
    fn a_change_says_whether_flows_may_be_stale_now() {
        let five = || answers("10.96.0.10:53", 30053, &["10.1.0.5:53"]);
        let both = || answers("10.96.0.10:53", 30053, &["10.1.0.5:53", "10.1.0.6:53"]);
        let elsewhere = || answers("10.96.0.10:53", 30059, &["10.1.0.5:53", "10.1.0.6:53"]);
        let mut answering = Answering::default();
        let steps = [
            (vec![five()], true, "flows may have begun before there were rules"),
            (vec![five()], false, "nothing is different"),
            (vec![both()], false, "one more serves"),
            (vec![elsewhere()], true, "another node port"),
            (vec![five()], true, "the node port is back, and one serves no more"),
            (vec![], false, "nobody is left: its flows are left alone"),
            (vec![both()], true, "they are back, perhaps others"),
        ];
        for (answers, stale, why) in steps {
            assert_eq!(answering.set(&name("dns"), answers), stale, "{why}");
        }
        assert!(!answering.set(&name("dns"), Vec::new()));
        assert!(answering.is_empty() && answering.addresses.is_empty() && answering.node_ports.is_empty());
    }

    #[test]
    fn a_frontend_that_changes_hands_is_the_new_ones_in_any_order() {
        let own = |_| false;
        for new_first in [true, false] {
            let mut answering = Answering::default();
            answering.set(&name("old"), vec![answers("10.96.0.10:53", 30053, &["10.1.0.5:53"])]);
            let taken = vec![answers("10.96.0.10:53", 30053, &["10.1.0.7:53"])];
            if new_first {
                assert!(answering.set(&name("new"), taken));
                answering.set(&name("old"), Vec::new());
            } else {
                answering.set(&name("old"), Vec::new());
                assert!(answering.set(&name("new"), taken));
            }
            assert_eq!(answering.stale(&flow("10.96.0.10:53", "10.1.0.5:53"), own), Some(&name("new")));
            assert_eq!(answering.stale(&flow("192.0.2.1:30053", "10.1.0.7:53"), own), None);
        }
    }
}
