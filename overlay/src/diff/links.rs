//! The part of the diff about links, which decides for everything that hangs on them: what stays,
//! what the kernel will have flushed, what cannot be made.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_kernel::net::{Change, Link, LinkKind, LinkName, LinkPatch, State, Vxlan};

use super::Conflict;
use crate::model::Family;
use crate::plan::{Role, Scope};

/// What becomes of a wanted or owned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is there; what hangs on it stays.
    Stays,
    /// It is there, but its MAC changes: the kernel forgets all its neighbours, permanent ones too
    /// (`neigh_changeaddr` in net/core/neighbour.c).
    LosesNeighbours,
    /// It is made, or made anew: nothing hangs on it.
    Made,
    /// It is there and too much.
    Removed,
}

/// Every link that concerns us, and the changes to links.
pub(super) struct Links {
    fates: BTreeMap<LinkName, Fate>,
    learning: BTreeSet<LinkName>,
    foreign_ok: BTreeSet<LinkName>,
    renames: Vec<(LinkName, LinkName)>,
    /// Before everything else.
    pub(super) first: Vec<Change>,
    /// After everything else.
    pub(super) last: Vec<Change>,
    pub(super) conflicts: Vec<Conflict>,
    pub(super) awaited: BTreeSet<LinkName>,
}

impl Links {
    pub(super) fn compare(desired: &State, observed: &State, scope: &Scope) -> Self {
        let mut links = Self {
            fates: BTreeMap::new(),
            learning: BTreeSet::new(),
            foreign_ok: BTreeSet::new(),
            renames: Vec::new(),
            first: Vec::new(),
            last: Vec::new(),
            conflicts: Vec::new(),
            awaited: BTreeSet::new(),
        };
        // Ours by their alias under a name that is not wanted: candidates for a rename, else to go.
        let mut surplus: BTreeMap<&LinkName, (Role, &Link)> = observed
            .links
            .iter()
            .filter(|(name, _)| !desired.links.contains_key(*name))
            .filter_map(|(name, link)| Some((name, (scope.role(link)?, link))))
            .collect();
        let (mut renames, mut deletes, mut adds, mut patches) = (vec![], vec![], vec![], vec![]);

        for (name, wanted) in &desired.links {
            let held = observed.links.get(name);
            if let Some(held) = held.filter(|held| !is_ours(held, wanted, scope)) {
                let alias = held.alias.clone();
                let wanted = wanted.alias.clone().unwrap_or_default();
                links.conflicts.push(Conflict::Name { name: name.clone(), alias, wanted });
                continue;
            }
            let displaced = surplus
                .iter()
                .find(|(_, (_, link))| {
                    held.is_none() && link.alias == wanted.alias && same_kind(link, wanted)
                })
                .map(|(from, _)| (*from).clone());
            let held = match displaced {
                Some(from) => {
                    let (_, link) = surplus.remove(&from).expect("found in it");
                    renames.push(Change::RenameLink { from: from.clone(), to: name.clone() });
                    links.renames.push((from, name.clone()));
                    Some(link)
                }
                None => held,
            };
            let fate = match held {
                Some(held) if same_kind(held, wanted) => {
                    let (patch, fate) = patch(held, wanted);
                    if patch != LinkPatch::default() {
                        patches.push(Change::SetLink(name.clone(), patch));
                    }
                    fate
                }
                _ if wanted.kind == LinkKind::Tun => {
                    // Only its maker can make it; a link of ours that is no TUN makes room.
                    if held.is_some() {
                        deletes.push(Change::DeleteLink(name.clone()));
                    }
                    links.awaited.insert(name.clone());
                    continue;
                }
                held => {
                    let holder = holder(wanted, desired, observed, scope);
                    if let Some((holder, vxlan)) = holder {
                        let (vni, port) = (vxlan.vni, vxlan.port);
                        links.conflicts.push(Conflict::Vni { wanted: name.clone(), holder, vni, port });
                        continue;
                    }
                    if held.is_some() {
                        deletes.push(Change::DeleteLink(name.clone()));
                    }
                    // The kernel allows no second link with its VNI and port, not even for a moment.
                    let rivals: Vec<_> = surplus
                        .iter()
                        .filter(|(_, (_, link))| rival(link, wanted))
                        .map(|(name, _)| (*name).clone())
                        .collect();
                    for rival in rivals {
                        surplus.remove(&rival);
                        deletes.push(Change::DeleteLink(rival.clone()));
                        links.fates.insert(rival, Fate::Removed);
                    }
                    adds.push(Change::AddLink(wanted.clone()));
                    Fate::Made
                }
            };
            links.fates.insert(name.clone(), fate);
            if let LinkKind::Vxlan(Vxlan { learning: true, .. }) = wanted.kind {
                links.learning.insert(name.clone());
            }
        }
        for name in surplus.into_keys() {
            links.fates.insert(name.clone(), Fate::Removed);
            links.last.push(Change::DeleteLink(name.clone()));
        }
        // Other links, such as the underlay, are there or not; that is not ours to change.
        links.foreign_ok = observed
            .links
            .keys()
            .filter(|name| !desired.links.contains_key(*name) && !links.fates.contains_key(*name))
            .cloned()
            .collect();
        for group in [renames, deletes, adds, patches] {
            links.first.extend(group);
        }
        links
    }

    /// The observed state with today's names, so that what hangs on a renamed link is found.
    pub(super) fn after_renames<'a>(&self, observed: &'a State) -> Cow<'a, State> {
        if self.renames.is_empty() {
            return Cow::Borrowed(observed);
        }
        let mut state = observed.clone();
        for (from, to) in &self.renames {
            state.rename(from, to);
        }
        Cow::Owned(state)
    }

    /// Whether something can be put on this link, or sent by it.
    pub(super) fn usable(&self, link: &LinkName) -> bool {
        self.foreign_ok.contains(link) || self.fates.get(link).is_some_and(|fate| *fate != Fate::Removed)
    }

    /// Ours, and what was observed on it is (mostly) still there.
    pub(super) fn kept(&self, link: &LinkName) -> bool {
        matches!(self.fates.get(link), Some(Fate::Stays | Fate::LosesNeighbours))
    }

    /// Ours, and nothing of what was observed on it is left.
    pub(super) fn made(&self, link: &LinkName) -> bool {
        self.fates.get(link) == Some(&Fate::Made)
    }

    pub(super) fn lost_neighbours(&self, link: &LinkName) -> bool {
        matches!(self.fates.get(link), Some(Fate::Made | Fate::LosesNeighbours))
    }

    pub(super) fn removed(&self, link: &LinkName) -> bool {
        self.fates.get(link) == Some(&Fate::Removed)
    }

    pub(super) fn learning(&self, link: &LinkName) -> bool {
        self.learning.contains(link)
    }
}

/// Ours by its alias. Also ours is a link with our name and no alias yet: a kernel writes the alias
/// in a second step, and we may have died between the two. A VXLAN link shows it by its MAC, which
/// no other host's and no other program's has.
fn is_ours(held: &Link, wanted: &Link, scope: &Scope) -> bool {
    if scope.role(held).is_some() {
        return true;
    }
    let nameless = held.alias.as_deref().unwrap_or_default().is_empty();
    nameless
        && match (&held.kind, &wanted.kind) {
            (LinkKind::Vxlan(held_vxlan), LinkKind::Vxlan(wanted_vxlan)) => {
                held_vxlan.vni == wanted_vxlan.vni && held.mac == wanted.mac
            }
            (LinkKind::Tun, LinkKind::Tun) => true,
            _ => false,
        }
}

/// Whether the held link can become the wanted one while it lives.
fn same_kind(held: &Link, wanted: &Link) -> bool {
    held.kind == wanted.kind && held.master == wanted.master
}

fn patch(held: &Link, wanted: &Link) -> (LinkPatch, Fate) {
    let mac = wanted.mac.filter(|mac| held.mac != Some(*mac));
    let patch = LinkPatch {
        mac,
        mtu: (held.mtu != wanted.mtu).then_some(wanted.mtu),
        up: (held.up != wanted.up).then_some(wanted.up),
        alias: wanted.alias.clone().filter(|alias| held.alias.as_ref() != Some(alias)),
        master: None,
    };
    // A link that is down has lost its routes, neighbours and IPv6 addresses already: they are
    // missing in the observed state like anything else.
    let fate = if mac.is_some() { Fate::LosesNeighbours } else { Fate::Stays };
    (patch, fate)
}

/// A link that is not ours and has the VNI, port and outer family that the wanted one needs.
fn holder<'a>(
    wanted: &Link,
    desired: &State,
    observed: &'a State,
    scope: &Scope,
) -> Option<(LinkName, &'a Vxlan)> {
    observed.links.values().find_map(|held| match &held.kind {
        LinkKind::Vxlan(vxlan)
            if rival(held, wanted)
                && scope.role(held).is_none()
                && !desired.links.get(&held.name).is_some_and(|wanted| is_ours(held, wanted, scope)) =>
        {
            Some((held.name.clone(), vxlan))
        }
        _ => None,
    })
}

/// Whether the kernel would refuse one link because of the other (`vxlan_vni_in_use` in
/// drivers/net/vxlan/vxlan_core.c).
fn rival(held: &Link, wanted: &Link) -> bool {
    match (&held.kind, &wanted.kind) {
        (LinkKind::Vxlan(held), LinkKind::Vxlan(wanted)) => {
            (held.vni, held.port, outer(held)) == (wanted.vni, wanted.port, outer(wanted))
        }
        _ => false,
    }
}

/// The outer family of a VXLAN link; without a source address it is IPv4.
fn outer(vxlan: &Vxlan) -> Family {
    if matches!(vxlan.local, Some(IpAddr::V6(_))) { Family::V6 } else { Family::V4 }
}
