//! Taking a host over from flanneld, live, and giving it back.
//!
//! All that is needed is to put our marks on what is flannel's: the link's alias and the routes'
//! protocol. The diff then finds links and routes of its own and does the rest: it renames the
//! link, which keeps its MAC, addresses, neighbours and FDB entries, so that established
//! connections do not notice. flanneld must have stopped. Pure.
//!
//! What flanneld does when it comes back decides what giving back means. It makes
//! `flannel.<vni>`; the kernel answers EEXIST because the VNI and port are in use; it looks the name
//! up, and takes what it finds if VNI, underlay, source address, port and GBP are its own
//! (`ensureLink` in pkg/backend/vxlan/device.go; MTU, MAC and learning are not compared), else
//! deletes and remakes it. Under our name it finds nothing and gives up, so the link must get its
//! old name. It then publishes the MAC that it finds. Routes it overwrites by destination, whoever
//! made them.
//!
//! flannel's udp backend leaves nothing behind: its TUN device goes with the process.

use ipnetwork::IpNetwork;
use weft_kernel::net::{Change, Link, LinkKind, LinkName, LinkPatch, Mac, Route, RouteKind, State};

use crate::backend::vxlan;
use crate::config::{Backend, NetworkConfig};
use crate::model::{Family, Me, NodeId, VxlanEnd};
use crate::plan::{MAIN_TABLE, ROUTE_PROTOCOL, Role, Scope};

/// What flannel's routes carry: it names no protocol, and its netlink library then says RTPROT_BOOT
/// (include/uapi/linux/rtnetlink.h).
const FLANNEL_PROTOCOL: u8 = 3;

/// What flannel left on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// The MAC of its IPv4 VXLAN link, to be kept: its peers know it.
    pub mac_v4: Option<Mac>,
    /// The MAC of its IPv6 VXLAN link.
    pub mac_v6: Option<Mac>,
    /// The changes that make links and routes ours. The diff against the plan comes after.
    pub changes: Vec<Change>,
}

/// Finds what flannel left for the network that `config` describes, and how to make it ours.
pub fn take_over(observed: &State, me: &Me, config: &NetworkConfig, scope: &Scope) -> Leftovers {
    let mut found = Leftovers::default();
    for outer in Family::ALL {
        let Some(link) = flannels_link(observed, config, outer) else { continue };
        match outer {
            Family::V4 => found.mac_v4 = link.mac,
            Family::V6 => found.mac_v6 = link.mac,
        }
        let alias = Some(Role::Vxlan(outer).alias(&me.network));
        found.changes.push(Change::SetLink(link.name.clone(), LinkPatch { alias, ..LinkPatch::default() }));
    }
    let marked =
        flannels_routes(observed, me, config, scope).map(|route| with_protocol(route, ROUTE_PROTOCOL));
    found.changes.extend(marked);
    found
}

/// A MAC that we published and that is not the derived one was taken over at some time. Peers know
/// it, so a restarted daemon goes on with it.
pub fn remembered(published: &VxlanEnd, node: &NodeId, outer: Family) -> Option<Mac> {
    let derived = vxlan::derived_mac(node, published.vni, outer);
    published.mac(outer).filter(|mac| *mac != derived)
}

/// Makes what is ours flannel's again, for flanneld to find: its link names, no alias, its protocol.
/// Pods' routes and links are not touched.
pub fn give_back(observed: &State, scope: &Scope) -> Vec<Change> {
    let mut changes = Vec::new();
    for link in observed.links.values() {
        let (Some(Role::Vxlan(outer)), LinkKind::Vxlan(held)) = (scope.role(link), &link.kind) else {
            continue;
        };
        let Some(name) = flannels_name(held.vni.get(), outer) else { continue };
        let patch = LinkPatch { alias: Some(String::new()), ..LinkPatch::default() };
        changes.push(Change::SetLink(link.name.clone(), patch));
        changes.push(Change::RenameLink { from: link.name.clone(), to: name });
    }
    let renamed = |route: &Route| {
        let mut route = route.clone();
        if let Some(link) = route.link.as_mut() {
            let to = changes.iter().find_map(|change| match change {
                Change::RenameLink { from, to } if from == link => Some(to.clone()),
                _ => None,
            });
            *link = to.unwrap_or_else(|| link.clone());
        }
        route
    };
    let routes: Vec<Change> = observed
        .routes
        .values()
        .filter(|route| route.kind == RouteKind::Unicast && scope.owns_route(route, observed))
        .map(|route| with_protocol(&renamed(route), FLANNEL_PROTOCOL))
        .collect();
    changes.extend(routes);
    changes
}

fn with_protocol(route: &Route, protocol: u8) -> Change {
    Change::ReplaceRoute(Route { protocol, ..route.clone() })
}

/// flannel's VXLAN link of this network, by its name and VNI; other flannel networks' are not ours
/// to take.
fn flannels_link<'a>(observed: &'a State, config: &NetworkConfig, outer: Family) -> Option<&'a Link> {
    let Backend::Vxlan { vni, .. } = config.backend else { return None };
    let link = observed.links.get(&flannels_name(vni.get(), outer)?)?;
    let is_vxlan = matches!(&link.kind, LinkKind::Vxlan(held) if held.vni == vni);
    (is_vxlan && link.alias.as_deref().unwrap_or_default().is_empty()).then_some(link)
}

/// `None` for a VNI so large that the kernel refuses flannel's name for it.
fn flannels_name(vni: u32, outer: Family) -> Option<LinkName> {
    let name = match outer {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    };
    name.parse().ok()
}

/// Routes by flannel's links, and those that its host-gw backend or DirectRouting made: by a
/// gateway on the underlay, to a whole subnet of ours.
fn flannels_routes<'a>(
    observed: &'a State,
    me: &'a Me,
    config: &'a NetworkConfig,
    scope: &'a Scope,
) -> impl Iterator<Item = &'a Route> {
    let links: Vec<&LinkName> = Family::ALL
        .into_iter()
        .filter_map(|outer| flannels_link(observed, config, outer))
        .map(|link| &link.name)
        .collect();
    observed.routes.values().filter(move |route| {
        let Some(link) = &route.link else { return false };
        let ours = scope.ranges.iter().any(|range| range.contains(route.key.dst.network()));
        let direct = *link == me.underlay.link && is_a_subnet(config, route.key.dst);
        ours && route.key.table == MAIN_TABLE
            && route.protocol == FLANNEL_PROTOCOL
            && route.kind == RouteKind::Unicast
            && route.via.is_some()
            && (direct || links.contains(&link))
    })
}

fn is_a_subnet(config: &NetworkConfig, dst: IpNetwork) -> bool {
    let len = match dst {
        IpNetwork::V4(_) => config.v4.map(|pool| pool.subnet_len),
        IpNetwork::V6(_) => config.v6.map(|pool| pool.subnet_len),
    };
    len == Some(dst.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::believe;
    use crate::diff::diff;
    use crate::fixtures::*;
    use crate::model::Model;
    use crate::plan::{Desired, plan};

    /// A host as flanneld leaves it: the plan's objects under flannel's names and protocol.
    fn flannels(desired: &Desired, mac: Mac) -> State {
        let mut state = desired.kernel.clone();
        state.links.insert(name("eth0"), plain_link("eth0", 2));
        for (from, to) in [("weft.1", "flannel.1"), ("weft-v6.1", "flannel-v6.1")] {
            if let Some(link) = state.links.get_mut(&name(from)) {
                link.alias = None;
                link.mac = Some(mac);
            }
            state.rename(&name(from), &name(to));
        }
        for route in state.routes.values_mut() {
            route.protocol = 3;
        }
        state
    }

    fn applied(state: &State, changes: &[Change]) -> State {
        let mut state = state.clone();
        changes.iter().for_each(|change| believe::apply(&mut state, change));
        state
    }

    const FLANNELS_MAC: Mac = Mac([0x0a, 1, 2, 3, 4, 5]);

    fn network(backend: Backend) -> Model {
        let peers = [flannel_peer(8, "vxlan", DUAL, DUAL), flannel_peer(9, "vxlan", DUAL, DUAL)];
        with_peers(model(backend, DUAL, DUAL), peers)
    }

    #[test]
    fn a_running_network_is_taken_over_without_a_gap() {
        for backend in [vxlan(), direct()] {
            let mut model = network(backend);
            let before = flannels(&plan(&model), FLANNELS_MAC);
            let found = take_over(&before, &model.me, &model.config, &Scope::of(&model));
            assert_eq!((found.mac_v4, found.mac_v6), (Some(FLANNELS_MAC), Some(FLANNELS_MAC)));
            model.me.adopted_mac_v4 = found.mac_v4;
            model.me.adopted_mac_v6 = found.mac_v6;

            let marked = applied(&before, &found.changes);
            let desired = plan(&model);
            let rest = diff(&desired.kernel, &marked, &desired.scope);
            assert_eq!(rest.conflicts, []);
            // Nothing but the new names: no packet meets a missing route or neighbour.
            let renames: Vec<String> = rest.changes.iter().map(Change::to_string).collect();
            assert_eq!(renames, ["rename link flannel-v6.1 to weft-v6.1", "rename link flannel.1 to weft.1"]);
            for change in &found.changes {
                assert!(matches!(change, Change::SetLink(..) | Change::ReplaceRoute(_)), "{change}");
            }
            let mut after = applied(&marked, &rest.changes);
            after.links.remove(&name("eth0"));
            assert_eq!(after, desired.kernel);

            let back = applied(
                &applied(&marked, &rest.changes),
                &give_back(&applied(&marked, &rest.changes), &Scope::of(&model)),
            );
            let cleared = |mut state: State| {
                for link in state.links.values_mut() {
                    link.alias = link.alias.take().filter(|alias| !alias.is_empty());
                }
                state
            };
            assert_eq!(cleared(back), before, "and given back as it was");
        }
    }

    /// Other settings than flannel's: the link is made anew, with the MAC that the peers know.
    #[test]
    fn a_link_that_does_not_fit_is_made_anew_with_its_mac() {
        let mut model = network(vxlan());
        let mut before = flannels(&plan(&model), FLANNELS_MAC);
        let link = before.links.get_mut(&name("flannel.1")).expect("there");
        let LinkKind::Vxlan(held) = &mut link.kind else { panic!("vxlan") };
        held.learning = true;
        let found = take_over(&before, &model.me, &model.config, &Scope::of(&model));
        model.me.adopted_mac_v4 = found.mac_v4;
        model.me.adopted_mac_v6 = found.mac_v6;
        let marked = applied(&before, &found.changes);
        let desired = plan(&model);
        let rest = diff(&desired.kernel, &marked, &desired.scope);
        assert_eq!(rest.conflicts, []);
        let mut after = applied(&marked, &rest.changes);
        after.links.remove(&name("eth0"));
        assert_eq!(after, desired.kernel);
        assert_eq!(after.links[&name("weft.1")].mac, Some(FLANNELS_MAC));
    }

    #[test]
    fn what_is_not_this_networks_is_left() {
        let model = network(vxlan());
        let scope = Scope::of(&model);
        let mut state = State::default();
        state.links.insert(name("flannel.2"), vxlan_link("flannel.2", 2, None));
        state.links.insert(name("flannel.1"), vxlan_link("flannel.1", 1, Some("weft:green:vxlan")));
        assert_eq!(take_over(&state, &model.me, &model.config, &scope), Leftovers::default());

        // An administrator's routes: to a part of a subnet, by another link, of another protocol.
        let mut before = flannels(&plan(&network(direct())), FLANNELS_MAC);
        before.links.retain(|link, _| *link == name("eth0"));
        let routes = before.routes.clone();
        before.routes.clear();
        for (mut route, case) in routes.into_values().filter(|route| route.via.is_some()).zip(0..) {
            match case {
                0 => route.key.dst = net("10.42.8.0/25"),
                1 => route.link = Some(name("eth1")),
                _ => route.protocol = 16,
            }
            before.routes.insert(route.key.clone(), route);
        }
        assert!(!before.routes.is_empty());
        let model = network(direct());
        assert_eq!(take_over(&before, &model.me, &model.config, &scope), Leftovers::default());
    }

    #[test]
    fn a_mac_that_was_taken_over_is_known_by_what_we_published() {
        let node = node(7);
        let derived = vxlan::derived_mac(&node, vni(1), Family::V4);
        let end = VxlanEnd { vni: vni(1), port: 8472, mac_v4: Some(derived), mac_v6: None };
        assert_eq!(remembered(&end, &node, Family::V4), None);
        let end = VxlanEnd { mac_v4: Some(FLANNELS_MAC), ..end };
        assert_eq!(remembered(&end, &node, Family::V4), Some(FLANNELS_MAC));
        assert_eq!(remembered(&end, &node, Family::V6), None);
    }
}
