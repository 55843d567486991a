//! What may have come to differ from the plan since the last pass. Pure.
//!
//! After a pass that left nothing undone, a difference can come from three things only: an event told
//! of another hand, a change was made whose effect is not seen yet, or the plan is a new one. Each names
//! its objects, and an object's comparison reads that object, and links and addresses. So these
//! objects are compared, together with all links and addresses; when links or addresses themselves
//! changed, everything is.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_kernel::net::{
    Address, Change, Event, FdbEntry, LinkName, Mac, Neighbour, Proxy, Route, RouteKey, State,
};

use super::Kind;
use crate::plan::Desired;

/// More objects than this are as quickly compared as a whole.
const MANY: usize = 4096;

/// The object that a change or an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Link(LinkName),
    Address(Address),
    Route(RouteKey),
    Neighbour(LinkName, IpAddr),
    Proxy(LinkName, Ipv6Addr),
    Fdb(LinkName, Mac),
}

/// What may differ from the plan that was applied last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Anything.
    Everything,
    /// These.
    Only(BTreeSet<Subject>),
}

/// Some of a state's objects: these, and all links and addresses.
#[derive(Debug)]
pub(super) struct Part(BTreeSet<Subject>);

impl Doubt {
    /// All is as it should be.
    pub(super) fn nothing() -> Self {
        Self::Only(BTreeSet::new())
    }

    /// One object more.
    pub(super) fn add(&mut self, subject: Subject) {
        let Self::Only(subjects) = self else { return };
        // Whatever hangs on a link or needs an address may have gone or come with it.
        if matches!(subject, Subject::Link(_) | Subject::Address(_)) || subjects.len() >= MANY {
            *self = Self::Everything;
        } else {
            subjects.insert(subject);
        }
    }

    /// Somebody changed something.
    pub(super) fn hear(&mut self, event: &Event) {
        match event {
            Event::Route(route) | Event::RouteGone(route) => self.add(Subject::Route(route.key.clone())),
            Event::Neighbour(Neighbour { link, addr, .. }) | Event::NeighbourGone(link, addr) => {
                self.add(Subject::Neighbour(link.clone(), *addr));
            }
            Event::Fdb(entry) | Event::FdbGone(entry) => {
                self.add(Subject::Fdb(entry.link.clone(), entry.mac));
            }
            Event::Link(_)
            | Event::LinkGone(_)
            | Event::Address(_)
            | Event::AddressGone(_)
            | Event::OtherRoute(_)
            | Event::Lost => *self = Self::Everything,
        }
    }

    /// What must be compared under a plan, when `settled` is the one that the doubt is about; `None`:
    /// everything.
    pub(super) fn since(&self, settled: &Desired, desired: &Desired) -> Option<Part> {
        let Self::Only(subjects) = self else { return None };
        let mut subjects = subjects.clone();
        if !std::ptr::eq(settled, desired) {
            let (old, new) = (&settled.kernel, &desired.kernel);
            let frame = (&old.links, &old.addresses) == (&new.links, &new.addresses);
            if !frame || settled.scope != desired.scope {
                return None;
            }
            different(old.routes.iter(), new.routes.iter(), |(key, _)| {
                subjects.insert(Subject::Route(key.clone()));
            });
            different(old.neighbours.iter(), new.neighbours.iter(), |((link, addr), _)| {
                subjects.insert(Subject::Neighbour(link.clone(), *addr));
            });
            different(
                old.fdb.iter().map(|entry| (entry, ())),
                new.fdb.iter().map(|entry| (entry, ())),
                |(e, ())| {
                    subjects.insert(Subject::Fdb(e.link.clone(), e.mac));
                },
            );
        }
        (subjects.len() < MANY).then_some(Part(subjects))
    }
}

/// Calls `tell` for every entry that is only on one side, or there with another value. Both sides
/// ascend by their keys.
fn different<K: Ord, V: PartialEq>(
    old: impl Iterator<Item = (K, V)>,
    new: impl Iterator<Item = (K, V)>,
    mut tell: impl FnMut((K, V)),
) {
    use std::cmp::Ordering::{Greater, Less};
    let (mut old, mut new) = (old.peekable(), new.peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Less,
            (None, Some(_)) => Greater,
            (None, None) => return,
        };
        let before = if order == Greater { None } else { old.next() };
        let after = if order == Less { None } else { new.next() };
        if before.as_ref().map(|(_, value)| value) != after.as_ref().map(|(_, value)| value) {
            before.or(after).into_iter().for_each(&mut tell);
        }
    }
}

impl Part {
    /// These objects of a state.
    pub(super) fn of(&self, state: &State) -> State {
        let mut part =
            State { links: state.links.clone(), addresses: state.addresses.clone(), ..State::default() };
        for subject in &self.0 {
            match subject {
                Subject::Link(_) | Subject::Address(_) | Subject::Proxy(..) => {}
                Subject::Route(key) => {
                    let route = state.routes.get(key).map(|route| (key.clone(), route.clone()));
                    part.routes.extend(route);
                    part.twins.extend(state.twins.get(key).cloned());
                    part.opaque.extend(state.opaque.get(key).cloned());
                }
                Subject::Neighbour(link, addr) => {
                    let key = (link.clone(), *addr);
                    let neighbour = state.neighbours.get(&key).cloned();
                    part.neighbours.extend(neighbour.map(|neighbour| (key, neighbour)));
                }
                Subject::Fdb(link, mac) => part.fdb.extend(stations(state, link, *mac).cloned()),
            }
        }
        part
    }
}

/// The FDB entries of one MAC on one link. They stand together.
fn stations<'a>(state: &'a State, link: &LinkName, mac: Mac) -> impl Iterator<Item = &'a FdbEntry> {
    let (link, any) = (link.clone(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let first = FdbEntry { link: link.clone(), mac, dst: any, permanent: false };
    state.fdb.range(first..).take_while(move |entry| entry.link == link && entry.mac == mac)
}

impl Subject {
    pub(super) fn of(change: &Change) -> Self {
        match change {
            Change::AddLink(link) | Change::AddVethPair { host: link, .. } => Self::Link(link.name.clone()),
            Change::DeleteLink(name) | Change::SetLink(name, _) | Change::RenameLink { to: name, .. } => {
                Self::Link(name.clone())
            }
            Change::AddAddress(address) | Change::DeleteAddress(address) => Self::Address(address.clone()),
            Change::ReplaceRoute(Route { key, .. }) | Change::DeleteRoute(Route { key, .. }) => {
                Self::Route(key.clone())
            }
            Change::ReplaceNeighbour(neighbour) | Change::DeleteNeighbour(neighbour) => {
                Self::Neighbour(neighbour.link.clone(), neighbour.addr)
            }
            Change::AddProxy(Proxy { link, addr, .. }) | Change::DeleteProxy(Proxy { link, addr, .. }) => {
                Self::Proxy(link.clone(), *addr)
            }
            Change::ReplaceFdb(entry) | Change::DeleteFdb(entry) => Self::Fdb(entry.link.clone(), entry.mac),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Link(_) => Kind::Link,
            Self::Address(_) => Kind::Address,
            Self::Route(_) => Kind::Route,
            Self::Neighbour(..) | Self::Proxy(..) => Kind::Neighbour,
            Self::Fdb(..) => Kind::Fdb,
        }
    }

    /// Whether two desired states want the same of this object.
    pub(super) fn same_wish(&self, a: &State, b: &State) -> bool {
        match self {
            Self::Link(name) => a.links.get(name) == b.links.get(name),
            Self::Address(address) => a.addresses.contains(address) == b.addresses.contains(address),
            Self::Route(key) => a.routes.get(key) == b.routes.get(key),
            Self::Neighbour(link, addr) => {
                let key = (link.clone(), *addr);
                a.neighbours.get(&key) == b.neighbours.get(&key)
            }
            Self::Proxy(link, addr) => {
                let of = |state: &State| {
                    state.proxies.iter().find(|proxy| (&proxy.link, proxy.addr) == (link, *addr)).cloned()
                };
                of(a) == of(b)
            }
            Self::Fdb(link, mac) => stations(a, link, *mac).eq(stations(b, link, *mac)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diff::diff;
    use crate::fixtures::*;
    use crate::plan::plan;

    proptest! {
        /// Whatever was planned and is planned now, the part that is compared holds every difference
        /// that the whole comparison finds, if the kernel held the former plan to the letter.
        #[test]
        fn a_part_finds_what_the_whole_does(
            model in any_model(),
            leaving in proptest::collection::vec(any::<bool>(), 8),
        ) {
            let mut fewer = model.clone();
            let mut leaves = leaving.iter();
            fewer.peers.retain(|_, _| leaves.next().is_none_or(|leaves| !leaves));
            for (old, new) in [(&model, &fewer), (&fewer, &model)] {
                let (old, new) = (plan(old), plan(new));
                let mut observed = old.kernel.clone();
                let underlay = plain_link("eth0", 2);
                observed.links.insert(underlay.name.clone(), underlay);
                if let Some(part) = Doubt::nothing().since(&old, &new) {
                    let whole = diff(&new.kernel, &observed, &new.scope);
                    let narrowed = diff(&part.of(&new.kernel), &part.of(&observed), &new.scope);
                    prop_assert_eq!(whole, narrowed);
                }
            }
        }
    }

    #[test]
    fn one_peer_more_is_a_handful_of_objects() {
        let few = with_peers(model(vxlan(), V4, V4), [8, 9].map(|n| weft_peer(n, &vxlan(), V4, V4)));
        let more = with_peers(model(vxlan(), V4, V4), [8, 9, 10].map(|n| weft_peer(n, &vxlan(), V4, V4)));
        let (few, more) = (plan(&few), plan(&more));
        let Part(subjects) = Doubt::nothing().since(&few, &more).expect("no link and no address differs");
        assert_eq!(subjects.len(), 3, "{subjects:?}");
        assert!(Doubt::Everything.since(&few, &more).is_none());
        let mut doubt = Doubt::nothing();
        doubt.hear(&Event::Lost);
        assert_eq!(doubt, Doubt::Everything);
    }
}
