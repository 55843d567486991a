//! The plan and the simulator agree on random worlds. The simulator tells a packet's fate from the
//! semantics; here the plan is followed as the kernel would follow its rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::generators::{changes, scenarios, settings};
use crate::host::{LocalPods, NodePortAddresses};
use crate::model::{NodeName, Policy, family_of};
use crate::simulate::{Outcome, Packet, simulate, simulate_remembering};

/// What the plan does to a packet.
#[derive(Debug, PartialEq)]
pub(crate) enum Fate {
    Untouched,
    Reject,
    Drop,
    /// The port, and each endpoint that may get it, with whether it is masqueraded.
    To(PortName, Vec<(SocketAddr, bool)>),
}

/// The fate that the plan has for a packet whose client last had `remembered`.
pub(crate) fn follow(
    plan: &BTreeMap<ServiceName, ServicePlan>,
    host: &Host,
    packet: &Packet,
    remembered: Option<SocketAddr>,
) -> Fate {
    let destination = packet.destination;
    let family = family_of(destination.ip());
    // No plan's business: the frame of the rules sees to it.
    if packet.input.is_some() && destination.ip().is_loopback() {
        return if serves_node_ports(host, packet) { Fate::Drop } else { Fate::Untouched };
    }
    let at_address = Frontend::Address(destination, packet.protocol);
    let at_port =
        NonZeroU16::new(destination.port()).map(|port| Frontend::NodePort(family, port, packet.protocol));
    let at_port = at_port.filter(|_| serves_node_ports(host, packet));
    let found = [Some(at_address), at_port].into_iter().flatten().find_map(|frontend| {
        let mut ports =
            plan.values().flat_map(|plan| &plan.ports).filter(|port| port.frontends.contains_key(&frontend));
        let port = ports.next()?;
        assert!(ports.next().is_none(), "two ports have {frontend:?}");
        Some((port, &port.frontends[&frontend]))
    });
    let Some((port, treatment)) = found else { return unserved(plan, host, destination.ip()) };
    if treatment
        .sources
        .as_ref()
        .is_some_and(|ranges| !ranges.iter().any(|range| range.contains(packet.source)))
    {
        return Fate::Drop;
    }
    let path = if from_local_pod(host, packet) {
        treatment.pods
    } else if host.owns(packet.source) {
        treatment.host
    } else {
        treatment.others
    };
    let (set, masquerade) = match path {
        Path::To { set, masquerade } => (set, masquerade),
        Path::Reject => return Fate::Reject,
        Path::Drop => return Fate::Drop,
    };
    let set = if set == Policy::Cluster { &port.cluster } else { &port.local };
    assert!(!set.is_empty(), "a path leads nowhere");
    let chosen: Vec<SocketAddr> = match remembered {
        Some(kept) if port.affinity.is_some() && set.contains(&kept) => vec![kept],
        _ if port.balance == Balance::ClientHash => vec![hashed(set, host, packet)],
        _ => set.clone(),
    };
    let chances = chosen.into_iter().map(|it| (it, masquerade || it.ip() == packet.source));
    Fate::To(port.name.clone(), chances.collect())
}

/// The table of slots says who has the slot that the simulator found for the client; the hash of the
/// client's address itself is the kernel's.
fn hashed(set: &[SocketAddr], host: &Host, packet: &Packet) -> SocketAddr {
    let table = slots(set);
    set[table[crate::simulate::client_slot(packet.source, host.settings.client_hash) as usize]]
}

fn serves_node_ports(host: &Host, packet: &Packet) -> bool {
    let address = packet.destination.ip();
    let scope = NodePortScope::of(host, family_of(address));
    let own = host.addresses.contains(&address);
    let loopback = scope.localhost || (scope.relayed && packet.protocol == Protocol::Tcp);
    scope.listed.contains(&address) || (scope.all && own) || (loopback && address.is_loopback())
}

fn from_local_pod(host: &Host, packet: &Packet) -> bool {
    let link = packet.input.as_deref();
    match &host.local_pods {
        LocalPods::Unknown => false,
        LocalPods::Ranges(ranges) => ranges.iter().any(|range| range.contains(packet.source)),
        LocalPods::Link(name) => link == Some(name),
        LocalPods::LinkPrefix(prefix) => link.is_some_and(|link| link.starts_with(prefix)),
    }
}

fn unserved(plan: &BTreeMap<ServiceName, ServicePlan>, host: &Host, to: IpAddr) -> Fate {
    let Some(strict) = &host.settings.strict else { return Fate::Untouched };
    if plan.values().any(|plan| plan.cluster_ips.contains(&to)) {
        return Fate::Reject;
    }
    let spared = host.owns(to) || plan.values().any(|plan| plan.spared_ips.contains(&to));
    let unallocated = !spared && strict.service_cidrs.iter().any(|range| range.contains(to));
    if unallocated { Fate::Drop } else { Fate::Untouched }
}

/// The simulator's answer in the same words.
pub(crate) fn expected(model: &Model, host: &Host, packet: &Packet, remembered: Option<SocketAddr>) -> Fate {
    let trace = simulate_remembering(model, host, packet, |_| remembered);
    match (trace.outcome, trace.reached) {
        (Outcome::Untouched, _) => Fate::Untouched,
        (Outcome::Reject, _) => Fate::Reject,
        (Outcome::Drop, _) => Fate::Drop,
        (Outcome::Endpoints(chances), Some((port, _))) => {
            let total: f64 = chances.iter().map(|chance| chance.probability).sum();
            assert!((total - 1.0).abs() < 1e-9, "probabilities add up to {total}");
            let even = chances.iter().all(|chance| chance.probability == chances[0].probability);
            assert!(even, "no endpoint is preferred: {chances:?}");
            Fate::To(port, chances.iter().map(|chance| (chance.endpoint, chance.masquerade)).collect())
        }
        (Outcome::Endpoints(chances), None) => panic!("{chances:?} of no service"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn packets_go_where_the_semantics_say(scenario in scenarios(), last in 0usize..8) {
        let plan = everything(&scenario.model, &Claims::of(&scenario.model), &scenario.host);
        for packet in &scenario.packets {
            // Now and then the client has had an endpoint, which may be gone.
            let all: Vec<SocketAddr> = match expected(&scenario.model, &scenario.host, packet, None) {
                Fate::To(_, chances) => chances.into_iter().map(|(endpoint, _)| endpoint).collect(),
                _ => Vec::new(),
            };
            for remembered in [None, all.get(last).copied(), Some("10.1.0.99:80".parse().unwrap())] {
                let followed = follow(&plan, &scenario.host, packet, remembered);
                let wanted = expected(&scenario.model, &scenario.host, packet, remembered);
                prop_assert_eq!(followed, wanted, "{}", packet);
            }
        }
    }
}

proptest! {
    /// Planning what a change touches ends where planning everything ends.
    #[test]
    fn planning_by_and_by_is_planning_at_once(changes in prop::collection::vec(changes(), 1..40), settings in settings()) {
        let mut model = Model::default();
        let mut claims = Claims::default();
        let mut plan: BTreeMap<ServiceName, ServicePlan> = BTreeMap::new();
        let me = NodeName::new(crate::generators::HERE);
        for change in changes {
            let touched = model.apply(change);
            let host = Host::on(&model, me.clone(), crate::generators::observed(), settings.clone());
            let mut again = claims.absorb(&model, &touched.services);
            if touched.nodes.contains(&me) {
                again.extend(model.declared().map(|(name, _)| name.clone()));
            }
            for name in again {
                let now = service(&model, &claims, &host, &name);
                if model.declared_as(&name).is_some() { plan.insert(name, now) } else { plan.remove(&name) };
            }
            prop_assert_eq!(&claims, &Claims::of(&model));
            prop_assert_eq!(&plan, &everything(&model, &claims, &host));
        }
    }

    /// What a generator may rely on.
    #[test]
    fn a_plan_is_tidy(scenario in scenarios()) {
        let claims = Claims::of(&scenario.model);
        let mut taken = BTreeSet::new();
        for port in everything(&scenario.model, &claims, &scenario.host).values().flat_map(|plan| &plan.ports) {
            for (frontend, treatment) in &port.frontends {
                prop_assert!(taken.insert(*frontend), "{:?} is taken twice", frontend);
                prop_assert_eq!(frontend.family(), port.family);
                prop_assert_eq!(treatment.leads_to(Policy::Cluster) && port.cluster.is_empty(), false);
                prop_assert_eq!(treatment.leads_to(Policy::Local) && port.local.is_empty(), false);
            }
            for (set, policy) in [(&port.cluster, Policy::Cluster), (&port.local, Policy::Local)] {
                let used = port.frontends.values().any(|treatment| treatment.leads_to(policy));
                prop_assert_eq!(used, !set.is_empty(), "a set is there exactly if a path leads to it");
                prop_assert!(set.is_sorted() && set.iter().all(|it| family_of(it.ip()) == port.family));
                prop_assert_eq!(set.iter().collect::<BTreeSet<_>>().len(), set.len());
            }
        }
    }

    /// A packet that comes in and one that a process sends differ only in what the host tells of them;
    /// but for loopback addresses, which are nobody else's.
    #[test]
    fn without_a_detector_the_link_does_not_matter(scenario in scenarios()) {
        let host = Host { local_pods: LocalPods::Unknown, ..scenario.host };
        for packet in scenario.packets.into_iter().filter(|it| !it.destination.ip().is_loopback()) {
            let elsewhere = Packet { input: Some("other".to_owned()), ..packet.clone() };
            prop_assert_eq!(simulate(&scenario.model, &host, &packet), simulate(&scenario.model, &host, &elsewhere));
        }
    }
}

#[test]
fn a_scope_of_all_lists_nothing() {
    let node_ports = NodePortAddresses::parse(["192.0.2.0/24", "all"]).unwrap();
    let settings = crate::host::Settings { node_ports, ..Default::default() };
    let observed = crate::generators::observed();
    let host = Host::on(&Model::default(), NodeName::new("ash"), observed, settings);
    let expected = NodePortScope { all: true, ..NodePortScope::default() };
    assert_eq!(NodePortScope::of(&host, Family::V4), expected);
}
