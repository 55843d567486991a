//! What the kernel is told: that we are the one endpoint of all that is carried. Pure.
//!
//! All else of a plan stays as it is, so who is refused, dropped or let in is the nftables mode's to
//! decide, by the same rules. Which of the two sets of endpoints a connection may go to is decided there
//! as well: there is a door for each.

use super::relay::Doors;
use super::services::is_carried;
use crate::model::{Balance, Policy, PortName, Protocol, ServiceName};
use crate::plan::{Frontend, Path, PortPlan, ServicePlan, Treatment};

/// The plan for the kernel. A family without doors is left to it.
pub(crate) fn led(mut plan: ServicePlan, doors: &[Doors]) -> ServicePlan {
    for port in plan.ports.iter_mut().filter(|port| is_carried(port)) {
        let Some(doors) = doors.iter().find(|doors| doors.family() == port.family) else { continue };
        for (endpoints, set) in [(&mut port.cluster, Policy::Cluster), (&mut port.local, Policy::Local)] {
            if !endpoints.is_empty() {
                *endpoints = vec![doors.of(set)];
            }
        }
        // These are ours to keep to.
        (port.affinity, port.balance) = (None, Balance::Random);
        for treatment in port.frontends.values_mut() {
            // We are to see who comes; endpoints see us.
            *treatment = treatment.clone().masquerading(false);
        }
    }
    plan
}

/// Nobody comes in by a door but by a service: who asks for the doors themselves is told that nobody
/// is there. As a service it has a name that none can have.
pub(crate) fn closed(doors: &[Doors]) -> (ServiceName, ServicePlan) {
    let name = ServiceName::new("", "doors");
    let reject = Treatment { sources: None, pods: Path::Reject, host: Path::Reject, others: Path::Reject };
    let port = |doors: &Doors| PortPlan {
        name: PortName { service: name.clone(), port: "".into(), protocol: Protocol::Tcp },
        family: doors.family(),
        cluster: Vec::new(),
        local: Vec::new(),
        affinity: None,
        balance: Balance::Random,
        frontends: [doors.cluster, doors.local]
            .map(|door| (Frontend::Address(door, Protocol::Tcp), reject.clone()))
            .into(),
    };
    let plan = ServicePlan { ports: doors.iter().map(port).collect(), ..ServicePlan::default() };
    (name, plan)
}
