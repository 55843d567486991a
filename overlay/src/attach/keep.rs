//! Pods' wires as the daemon keeps them: healed where something is missing, taken down where the
//! subnet is no longer ours. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use weft_kernel::net::{Address, Change, Failure, Link, LinkKind, LinkName, LinkPatch, Neighbour, State};

use super::records::Record;
use super::sharing;
use super::site::{Site, bridge_address};
use super::wiring::{HostSide, host_side};

/// What must change on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// The steps, in order.
    pub changes: Vec<Change>,
    /// Attachments whose addresses are in no subnet of ours: by record id, why.
    pub stranded: BTreeMap<String, String>,
    /// The attachments whose wire lacks nothing.
    pub whole: BTreeSet<Record>,
}

/// Compares what is recorded with what is there. A link that is gone takes its pod's end with it:
/// only the runtime can make a new one, so it is not for us to heal. Without an offer (`site`), as
/// while the host has no subnet, every attachment is taken down.
pub fn keep(site: Option<&Site>, records: &[Record], observed: &State) -> Keeping {
    let mut keeping = Keeping::default();
    for record in records {
        let ours =
            |addr: &IpAddr| site.is_some_and(|site| site.subnets.iter().any(|subnet| subnet.contains(*addr)));
        if let Some(stray) = record.addresses.iter().find(|addr| !ours(addr)) {
            let why = format!("pod {} has {stray}, which is in no subnet of this host", record.id);
            keeping.stranded.insert(record.id.clone(), why);
            take_down(record, observed, &mut keeping.changes);
        } else if let Some(Ok(side)) = site.map(|site| host_side(site, record)) {
            let before = keeping.changes.len();
            heal(&side, observed, &mut keeping.changes);
            if keeping.changes.len() == before && observed.links.contains_key(&side.link.name) {
                keeping.whole.insert(record.clone());
            }
        }
    }
    keeping.changes.extend(sharing::answers(site, records, observed));
    keeping
}

/// The changes that mend wires that were `whole` before: what somebody broke. The plugin writes a pod's
/// record before its wire, and what the daemon then finds missing was on its way.
pub fn mending(
    keeping: &Keeping,
    whole: &BTreeSet<Record>,
    site: Option<&Site>,
    observed: &State,
) -> Vec<Change> {
    if keeping.changes.is_empty() {
        return Vec::new();
    }
    let whole: Vec<Record> = whole.iter().cloned().collect();
    let broken = keep(site, &whole, observed).changes;
    keeping.changes.iter().filter(|change| broken.contains(change)).cloned().collect()
}

/// The failures that matter. A link that went while a pass looked at it takes its pod's wire with it, on
/// purpose: the plugin removes the wire before the record.
pub fn without_departed(mut failures: Vec<Failure>) -> Vec<Failure> {
    failures.retain(|failure| failure.source.raw_os_error() != Some(Errno::ENODEV as i32));
    failures
}

/// The bridge that pods' wires end on, in bridge mode, with the subnets' first addresses.
pub fn bridge(site: &Site, observed: &State) -> Vec<Change> {
    let Some(Ok(name)) = site.bridge.as_deref().map(str::parse::<LinkName>) else { return Vec::new() };
    let alias = format!("weft:{}:bridge", site.network);
    let mut changes = Vec::new();
    match observed.links.get(&name) {
        None => changes.push(Change::AddLink(Link {
            name: name.clone(),
            index: 0,
            kind: LinkKind::Bridge,
            mac: None,
            mtu: site.mtu,
            up: true,
            carrier: true,
            alias: Some(alias),
            master: None,
        })),
        // Somebody else's link of that name: pods cannot be wired to it, and it is not ours to change.
        Some(there) if there.alias.as_deref() != Some(alias.as_str()) => return Vec::new(),
        Some(there) => {
            let patch = LinkPatch {
                mtu: (there.mtu != site.mtu).then_some(site.mtu),
                up: (!there.up).then_some(true),
                ..LinkPatch::default()
            };
            if patch != LinkPatch::default() {
                changes.push(Change::SetLink(name.clone(), patch));
            }
        }
    }
    let wanted: BTreeSet<Address> = site
        .subnets
        .iter()
        .filter_map(|subnet| IpNetwork::new(bridge_address(*subnet)?, subnet.prefix()).ok())
        .map(|network| Address { link: name.clone(), network })
        .collect();
    let link_local =
        |address: &Address| matches!(address.network.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    let there: BTreeSet<Address> = observed
        .addresses
        .iter()
        .filter(|address| address.link == name && !link_local(address))
        .cloned()
        .collect();
    changes.extend(wanted.difference(&there).cloned().map(Change::AddAddress));
    changes.extend(there.difference(&wanted).cloned().map(Change::DeleteAddress));
    changes
}

/// The link goes down, and its routes go by themselves: nothing reaches the pod and the pod reaches
/// nothing, while the runtime still finds what it made.
fn take_down(record: &Record, observed: &State, changes: &mut Vec<Change>) {
    let Ok(name) = record.link.parse() else { return };
    if observed.links.get(&name).is_some_and(|link| link.up) {
        changes.push(Change::SetLink(name, LinkPatch { up: Some(false), ..LinkPatch::default() }));
    }
}

fn heal(side: &HostSide, observed: &State, changes: &mut Vec<Change>) {
    let wanted = &side.link;
    let Some(there) = observed.links.get(&wanted.name) else { return };
    let patch = LinkPatch {
        mac: wanted.mac.filter(|mac| there.mac != Some(*mac)),
        mtu: (there.mtu != wanted.mtu).then_some(wanted.mtu),
        up: (!there.up).then_some(true),
        alias: wanted.alias.clone().filter(|alias| there.alias.as_ref() != Some(alias)),
        master: wanted.master.clone().filter(|master| there.master.as_ref() != Some(master)),
    };
    if patch != LinkPatch::default() {
        changes.push(Change::SetLink(wanted.name.clone(), patch));
    }
    let missing = side.addresses.iter().filter(|address| !observed.addresses.contains(address));
    changes.extend(missing.cloned().map(Change::AddAddress));
    let held = |wanted: &Neighbour| observed.neighbours.get(&(wanted.link.clone(), wanted.addr));
    let missing = side.neighbours.iter().filter(|wanted| held(wanted) != Some(*wanted));
    changes.extend(missing.cloned().map(Change::ReplaceNeighbour));
    let same = |there: &weft_kernel::net::Route, wanted: &weft_kernel::net::Route| {
        (there.kind, there.via, &there.link, there.protocol)
            == (wanted.kind, wanted.via, &wanted.link, wanted.protocol)
    };
    let missing = side
        .routes
        .iter()
        .filter(|route| !observed.routes.get(&route.key).is_some_and(|there| same(there, route)));
    changes.extend(missing.cloned().map(Change::ReplaceRoute));
}

#[cfg(test)]
mod tests {
    use super::super::site::Mode;
    use weft_kernel::net::Mac;

    use super::super::wiring::host_link;
    use super::*;
    use crate::believe;

    fn site() -> Site {
        Site {
            network: "weft".into(),
            subnets: vec!["10.42.7.0/24".parse().unwrap()],
            networks: vec!["10.42.0.0/16".parse().unwrap()],
            ranges: vec![],
            mtu: 1450,
            mode: Mode::Routed,
            bridge: None,
        }
    }

    fn record(id: &str, addr: &str) -> Record {
        Record {
            id: id.into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            link: host_link(id, "eth0").unwrap().to_string(),
            addresses: vec![addr.parse().unwrap()],
            owner: None,
        }
    }

    /// What the host holds when the pod was just attached.
    fn wired(record: &Record) -> State {
        let side = host_side(&site(), record).unwrap();
        let mut state = State::default();
        state.links.insert(side.link.name.clone(), side.link);
        state.addresses.extend(side.addresses);
        let neighbours = side.neighbours.into_iter();
        state.neighbours.extend(neighbours.map(|held| ((held.link.clone(), held.addr), held)));
        state.routes.extend(side.routes.into_iter().map(|route| (route.key.clone(), route)));
        state
    }

    #[test]
    fn a_wire_that_is_whole_needs_nothing() {
        let pod = record("a", "10.42.7.9");
        let keeping = keep(Some(&site()), std::slice::from_ref(&pod), &wired(&pod));
        assert_eq!(keeping, Keeping { whole: [pod].into(), ..Keeping::default() });
    }

    #[test]
    fn what_is_missing_is_made_again() {
        let pod = record("a", "10.42.7.9");
        let mut state = wired(&pod);
        for link in state.links.values_mut() {
            (link.up, link.mtu, link.mac) = (false, 1500, Some(Mac([2, 0, 0, 0, 0, 9])));
        }
        state.neighbours.clear();
        state.addresses.clear();
        state.routes.clear();
        let keeping = keep(Some(&site()), std::slice::from_ref(&pod), &state);
        for change in &keeping.changes {
            believe::apply(&mut state, change);
        }
        assert_eq!(state, wired(&pod));
        assert_eq!(keep(Some(&site()), &[pod], &state).changes, []);
    }

    #[test]
    fn only_a_wire_that_was_whole_is_mended() {
        let (old, new) = (record("a", "10.42.7.9"), record("b", "10.42.7.10"));
        let (both, mut state) = ([old.clone(), new.clone()], wired(&old));
        // The plugin has made the new pod's link, and nothing on it.
        let link = host_side(&site(), &new).unwrap().link;
        state.links.insert(link.name.clone(), Link { up: false, ..link });
        let arriving = keep(Some(&site()), &both, &state);
        assert_eq!(arriving.whole, [old].into());
        assert!(!arriving.changes.is_empty());
        assert_eq!(mending(&arriving, &arriving.whole, Some(&site()), &state), []);
        // Now somebody takes the old pod's route.
        state.routes.clear();
        let broken = keep(Some(&site()), &both, &state);
        assert_eq!(mending(&broken, &arriving.whole, Some(&site()), &state).len(), 1);
        assert_eq!(mending(&broken, &both.into(), Some(&site()), &state), broken.changes);
    }

    #[test]
    fn the_bridge_is_made_healed_and_moves_with_the_subnet() {
        let of = |subnet: &str| Site {
            mode: Mode::Bridge,
            bridge: Some("weft-br".into()),
            subnets: vec![subnet.parse().unwrap()],
            ..site()
        };
        let mut state = State::default();
        for subnet in ["10.42.7.0/24", "10.42.9.0/24"] {
            for change in bridge(&of(subnet), &state) {
                believe::apply(&mut state, &change);
            }
            let first = Address {
                link: "weft-br".parse().unwrap(),
                network: subnet.replace(".0/", ".1/").parse().unwrap(),
            };
            assert_eq!(state.addresses.iter().collect::<Vec<_>>(), [&first]);
            assert_eq!(bridge(&of(subnet), &state), vec![]);
        }
        state.links.values_mut().for_each(|link| link.up = false);
        assert_eq!(bridge(&of("10.42.9.0/24"), &state).len(), 1);
        state.links.values_mut().for_each(|link| link.alias = None);
        assert_eq!(bridge(&of("10.42.9.0/24"), &state), vec![], "not ours");
    }

    #[test]
    fn a_pod_whose_link_is_gone_is_the_runtimes_affair() {
        assert_eq!(keep(Some(&site()), &[record("a", "10.42.7.9")], &State::default()), Keeping::default());
    }

    #[test]
    fn pods_of_a_lost_subnet_are_taken_down_and_named() {
        let (stays, goes) = (record("a", "10.42.7.9"), record("b", "10.42.3.9"));
        let mut state = wired(&stays);
        let link = Link { ..state.links.values().next().unwrap().clone() };
        let name: weft_kernel::net::LinkName = goes.link.parse().unwrap();
        state.links.insert(name.clone(), Link { name: name.clone(), ..link });
        let keeping = keep(Some(&site()), &[stays.clone(), goes.clone()], &state);
        let down = LinkPatch { up: Some(false), ..LinkPatch::default() };
        assert_eq!(keeping.changes, [Change::SetLink(name, down)]);
        assert_eq!(keeping.stranded.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(keep(None, &[stays, goes], &state).changes.len(), 2, "no subnet at all");
    }
}
