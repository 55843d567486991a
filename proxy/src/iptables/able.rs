//! What a host's iptables may lack, by how its kernel or its programs were built, and only some services
//! need. `iptables-restore` refuses all of a text for one rule that it does not know; so a service that
//! needs such a rule goes without, and nobody else does.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Family, PortName, Protocol, ServiceName};
use crate::plan::{PortPlan, ServicePlan};

/// A match that a kernel may be without (`CONFIG_NETFILTER_XT_MATCH_SCTP`, `_RECENT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    Sctp,
    Recent,
}

/// What is known of a host. Each question is asked when a service needs the answer.
#[derive(Debug, Default)]
pub(super) struct Able {
    known: BTreeMap<(Need, Family), bool>,
    said: BTreeSet<(Need, PortName)>,
}

impl Need {
    /// A rule's condition that is refused where it is missing.
    pub(super) fn condition(self) -> &'static str {
        match self {
            Self::Sctp => "-p sctp -m sctp --dport 1",
            Self::Recent => "-m recent --rcheck --name WEFT-ABLE --rsource",
        }
    }

    fn of(port: &PortPlan) -> impl Iterator<Item = Self> + use<> {
        let sctp = (port.name.protocol == Protocol::Sctp).then_some(Self::Sctp);
        let recent = port.affinity.map(|_| Self::Recent);
        sctp.into_iter().chain(recent)
    }
}

impl Able {
    /// What was missing may have been installed.
    pub(super) fn ask_again(&mut self) {
        self.known.retain(|_, has| *has);
    }

    /// Makes the plans such that this host can have them, and says of each port once what it goes
    /// without. `has` asks the host.
    pub(super) fn fit(
        &mut self,
        plans: &mut [(ServiceName, ServicePlan)],
        has: impl Fn(Need, Family) -> bool,
    ) {
        for (_, plan) in plans {
            plan.ports.retain_mut(|port| self.fit_port(port, &has));
        }
    }

    /// Whether anything is left of it.
    fn fit_port(&mut self, port: &mut PortPlan, has: impl Fn(Need, Family) -> bool) -> bool {
        for need in Need::of(port) {
            let family = port.family;
            if *self.known.entry((need, family)).or_insert_with(|| has(need, family)) {
                continue;
            }
            self.say(need, &port.name);
            match need {
                Need::Sctp => return false,
                Need::Recent => port.affinity = None,
            }
        }
        true
    }

    fn say(&mut self, need: Need, port: &PortName) {
        if !self.said.insert((need, port.clone())) {
            return;
        }
        match need {
            Need::Sctp => tracing::warn!(
                "service {port} is left out: this host's iptables has no match `sctp` (the kernel's module \
                 xt_sctp, iptables' libxt_sctp.so); install it and restart weft proxy, or use --mode nftables"
            ),
            Need::Recent => tracing::warn!(
                "clients of service {port} do not keep their endpoints: this host's iptables has no match \
                 `recent` (the kernel's module xt_recent, iptables' libxt_recent.so); install it and restart \
                 weft proxy, or use --mode nftables"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Balance;

    fn port(name: &str, protocol: Protocol, family: Family, sticks: bool) -> PortPlan {
        let service = ServiceName::new("shop", "web");
        PortPlan {
            name: PortName { service, port: name.into(), protocol },
            family,
            cluster: Vec::new(),
            local: Vec::new(),
            affinity: sticks.then_some(Duration::from_secs(60)),
            balance: Balance::Random,
            frontends: BTreeMap::new(),
        }
    }

    fn plan() -> ServicePlan {
        let ports = vec![
            port("http", Protocol::Tcp, Family::V4, true),
            port("http", Protocol::Tcp, Family::V6, true),
            port("plain", Protocol::Udp, Family::V4, false),
            port("diameter", Protocol::Sctp, Family::V4, true),
        ];
        ServicePlan { ports, ..ServicePlan::default() }
    }

    /// What is left of each port, and whether its clients stick, when the host lacks this.
    fn fitted(able: &mut Able, lacks: &[(Need, Family)]) -> Vec<(String, bool)> {
        let mut plans = [(ServiceName::new("shop", "web"), plan())];
        able.fit(&mut plans, |need, family| !lacks.contains(&(need, family)));
        let [(_, plan)] = plans;
        plan.ports.iter().map(|port| (port.name.port.to_string(), port.affinity.is_some())).collect()
    }

    #[test]
    fn who_needs_what_is_missing_goes_without_and_nobody_else() {
        use Family::{V4, V6};
        use Need::{Recent, Sctp};
        let left = |ports: &[(&str, bool)]| -> Vec<(String, bool)> {
            ports.iter().map(|(name, sticks)| ((*name).to_owned(), *sticks)).collect()
        };
        let all = left(&[("http", true), ("http", true), ("plain", false), ("diameter", true)]);
        let mut able = Able::default();
        assert_eq!(fitted(&mut able, &[]), all);
        assert_eq!(fitted(&mut able, &[(Sctp, V4)]), all, "what is there is not asked for again");

        let mut able = Able::default();
        let without = left(&[("http", true), ("http", true), ("plain", false)]);
        assert_eq!(fitted(&mut able, &[(Sctp, V4)]), without);
        assert_eq!(fitted(&mut able, &[]), without, "nor is what is missing, with each change");
        able.ask_again();
        assert_eq!(fitted(&mut able, &[]), all, "but when everything is loaded");

        let mut able = Able::default();
        let forgetful = left(&[("http", true), ("http", false), ("plain", false), ("diameter", true)]);
        assert_eq!(fitted(&mut able, &[(Recent, V6)]), forgetful);
        assert_eq!(able.said.len(), 1);
        able.ask_again();
        assert_eq!(fitted(&mut able, &[(Recent, V6), (Sctp, V6)]), forgetful);
        assert_eq!(able.said.len(), 1, "it is said once");
    }
}
