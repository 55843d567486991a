//! Keeps a kernel as planned: observe, diff, apply. All the I/O of the data path's kernel half.
//!
//! The kernel is listed once; from then on its events are followed (subscribe *before* the first
//! [`Reconciler::observe`]), and it is listed again only when an event leaves a doubt, when a change
//! failed, or when the slow timer asks for it. What was applied is believed at once; the kernel's
//! own events about it come later and change nothing.
//!
//! A change that the kernel refuses is logged once and tried again later and later, but at once
//! when a link or an address changed: the underlay may just have come back.
//!
//! A pass compares what may have come to differ since the last one ([`doubt`]): of five thousand
//! peers' objects, those of the one that changed. When there is no telling, it compares everything.

mod doubt;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};
use weft_kernel::net::{Absorbed, Change, Event, Failure, LinkName, Net, NetError, State};

use crate::believe;
use crate::diff::{Conflict, Diff, diff};
use crate::plan::Desired;
use doubt::{Doubt, Subject};

/// The first pause before a refused change is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Holds one network namespace to its plan.
#[derive(Debug)]
pub struct Reconciler<N> {
    net: N,
    believed: Option<Arc<State>>,
    /// The plan that was last applied: what differs from it without a new plan is drift.
    settled: Option<Arc<Desired>>,
    /// What may differ from that plan in what is believed.
    doubt: Doubt,
    troubles: BTreeMap<Subject, Trouble>,
    conflicts: BTreeSet<String>,
    adding_only: bool,
    heals: BTreeMap<Kind, u64>,
}

/// What a pass did and what is left.
#[derive(Debug, Default)]
pub struct Report {
    /// The changes that the kernel took, in order.
    pub applied: Vec<Change>,
    /// How many of them mended what somebody else had changed.
    pub healed: usize,
    /// What it refused now; what only failed because its link did is not here.
    pub failures: Vec<Failure>,
    /// Changes still to be made: refused, or waiting for another try.
    pub outstanding: usize,
    /// Foreign objects in the place of ours.
    pub conflicts: Vec<Conflict>,
    /// Links that somebody else must make first.
    pub awaited: BTreeSet<LinkName>,
    /// When to pass again because of what was refused.
    pub retry: Option<Instant>,
}

impl Report {
    /// Everything is as planned.
    pub fn complete(&self) -> bool {
        self.outstanding == 0 && self.conflicts.is_empty() && self.awaited.is_empty()
    }
}

/// The kinds of object that drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A link was deleted, taken down, renamed or changed.
    Link,
    /// An address.
    Address,
    /// A route.
    Route,
    /// A neighbour.
    Neighbour,
    /// An FDB entry.
    Fdb,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Link, Self::Address, Self::Route, Self::Neighbour, Self::Fdb];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    tries: u32,
    /// Somebody else had made the difference that was to be mended.
    drift: bool,
    /// Not before; `None`: with the next pass.
    next: Option<Instant>,
}

impl<N: Net> Reconciler<N> {
    /// Nothing is known of the namespace yet.
    pub fn new(net: N) -> Self {
        Self {
            net,
            believed: None,
            settled: None,
            doubt: Doubt::Everything,
            troubles: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            adding_only: false,
            heals: BTreeMap::new(),
        }
    }

    /// The namespace itself.
    pub fn net(&self) -> &N {
        &self.net
    }

    /// From now on plans only add (`true`), or also take away what they do not want (`false`, as at
    /// first): for plans that may be older than what the kernel holds.
    pub fn add_only(&mut self, adding_only: bool) {
        self.adding_only = adding_only;
    }

    /// Drift that was mended since the start, by kind.
    pub fn heals(&self) -> &BTreeMap<Kind, u64> {
        &self.heals
    }

    /// Whether an event only repeats what is believed: most are about what was done here.
    pub fn knows(&self, event: &Event) -> bool {
        self.believed.as_ref().is_some_and(|state| tells_nothing_new(event, state))
    }

    /// Takes an event in. `false`: it tells nothing new, or only of foreign neighbours; no pass is
    /// needed for it.
    pub fn absorb(&mut self, event: &Event) -> bool {
        if self.knows(event) {
            return false;
        }
        self.doubt.hear(event);
        let Some(state) = &mut self.believed else { return true };
        // Whatever was refused for want of a link or an address may be taken now.
        if matches!(
            event,
            Event::Link(_) | Event::LinkGone(_) | Event::Address(_) | Event::AddressGone(_) | Event::Lost
        ) {
            for trouble in self.troubles.values_mut() {
                trouble.next = None;
            }
        }
        if Arc::make_mut(state).absorb(event) == Absorbed::ObserveAgain {
            self.forget();
            return true;
        }
        let planned = |link: &LinkName| {
            self.settled.as_ref().is_none_or(|desired| desired.kernel.links.contains_key(link))
        };
        match event {
            Event::Neighbour(neighbour) => planned(&neighbour.link),
            Event::NeighbourGone(link, _) => planned(link),
            Event::Fdb(entry) | Event::FdbGone(entry) => planned(&entry.link),
            _ => true,
        }
    }

    /// Forgets what is believed: the next look is at the kernel itself.
    pub fn doubt(&mut self) {
        self.forget();
    }

    fn forget(&mut self) {
        self.believed = None;
        self.doubt = Doubt::Everything;
    }

    /// What the namespace holds, as far as is known; listed only if need be. To keep it over the next
    /// change costs a copy.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn observe(&mut self) -> Result<Arc<State>, NetError> {
        let state = match self.believed.take() {
            Some(state) => state,
            None => {
                self.doubt = Doubt::Everything;
                Arc::new(self.net.observe().await?)
            }
        };
        Ok(Arc::clone(self.believed.insert(state)))
    }

    /// Applies changes that are not the plan's (a take-over), in the same belief.
    pub async fn apply(&mut self, changes: &[Change]) -> Vec<Failure> {
        if changes.is_empty() {
            return Vec::new();
        }
        // Should this be given up half-way, nobody knows what was done.
        let doubt = std::mem::replace(&mut self.doubt, Doubt::Everything);
        let failures = self.net.apply(changes).await;
        self.doubt = doubt;
        let failed: BTreeSet<usize> = failures.iter().map(|failure| failure.index).collect();
        if let Some(state) = self.believed.as_mut().filter(|_| failed.is_empty()) {
            let state = Arc::make_mut(state);
            for change in changes {
                believe::apply(state, change);
                self.doubt.add(Subject::of(change));
            }
        } else {
            // A refusal shows that the kernel is not what it was believed to be.
            self.forget();
        }
        failures
    }

    /// One pass: makes the namespace hold what is desired, as far as it can be done now.
    ///
    /// # Errors
    /// When the kernel cannot be asked. What it refuses is in the report.
    pub async fn reconcile(&mut self, desired: &Arc<Desired>, now: Instant) -> Result<Report, NetError> {
        let state = self.observe().await?;
        let mut found = self.compare(desired, &state);
        if self.adding_only {
            let links: BTreeSet<LinkName> = state.links.keys().cloned().collect();
            found.changes = only_additions(found.changes, &links);
        }
        drop(state);
        // What is changed now is looked at again by the next pass; all of it, if more is left to do.
        self.doubt = if found.conflicts.is_empty() && found.awaited.is_empty() && !self.adding_only {
            Doubt::nothing()
        } else {
            Doubt::Everything
        };
        let (changes, waiting) = self.without_those_that_wait(found.changes, now);
        if !waiting.is_empty() {
            self.doubt = Doubt::Everything;
        }
        let failures = self.apply(&changes).await;

        let failed: BTreeSet<usize> = failures.iter().map(|failure| failure.index).collect();
        let applied: Vec<Change> = changes
            .into_iter()
            .enumerate()
            .filter(|(index, _)| !failed.contains(index))
            .map(|(_, change)| change)
            .collect();
        let healed = self.count_heals(&applied, desired);
        for change in &applied {
            debug!(%change, "kernel");
            if let Some(trouble) = self.troubles.remove(&Subject::of(change)) {
                info!(%change, tries = trouble.tries + 1, "the kernel took it at last");
            }
        }
        let failures = self.remember(failures, desired, now);
        // What is not wanted any more is no trouble any more.
        self.troubles.retain(|subject, _| waiting.contains(subject) || failed_is(subject, &failures));
        self.tell_conflicts(&found.conflicts);
        self.settled = Some(Arc::clone(desired));
        Ok(Report {
            healed,
            outstanding: waiting.len() + failed.len(),
            retry: self.troubles.values().filter_map(|trouble| trouble.next).min(),
            applied,
            failures,
            conflicts: found.conflicts,
            awaited: found.awaited,
        })
    }

    /// What differs. Only the part that may differ is compared, if that is known.
    fn compare(&self, desired: &Desired, state: &State) -> Diff {
        let part = self.settled.as_ref().and_then(|settled| self.doubt.since(settled, desired));
        match part {
            Some(part) => diff(&part.of(&desired.kernel), &part.of(state), &desired.scope),
            None => diff(&desired.kernel, state, &desired.scope),
        }
    }

    /// Leaves out what was refused a moment ago, and whatever hangs on a link that was.
    fn without_those_that_wait(
        &self,
        changes: Vec<Change>,
        now: Instant,
    ) -> (Vec<Change>, BTreeSet<Subject>) {
        let waits = |subject: &Subject| {
            let next = self.troubles.get(subject).and_then(|trouble| trouble.next);
            next.is_some_and(|next| now < next)
        };
        let mut waiting = BTreeSet::new();
        let ready = changes.into_iter().filter(|change| {
            let subject = Subject::of(change);
            let with_its_link = || link_of(change).is_some_and(|link| waits(&Subject::Link(link.clone())));
            let ready = !waits(&subject) && !with_its_link();
            if !ready {
                waiting.insert(subject);
            }
            ready
        });
        let ready = ready.collect();
        (ready, waiting)
    }

    /// Somebody else made the difference: the plan wanted the very same of the object before.
    fn is_drift(&self, subject: &Subject, desired: &Arc<Desired>) -> bool {
        self.settled.as_ref().is_some_and(|settled| {
            Arc::ptr_eq(settled, desired) || subject.same_wish(&settled.kernel, &desired.kernel)
        })
    }

    /// A change is a heal if it mends drift, at once or after it was refused.
    fn count_heals(&mut self, applied: &[Change], desired: &Arc<Desired>) -> usize {
        let mut healed = BTreeMap::new();
        for change in applied {
            let subject = Subject::of(change);
            let was_drift = self.troubles.get(&subject).map(|trouble| trouble.drift);
            if was_drift.unwrap_or_else(|| self.is_drift(&subject, desired)) {
                *healed.entry(subject.kind()).or_insert(0) += 1;
            }
        }
        for (kind, count) in &healed {
            info!(%kind, count, "drift mended");
            *self.heals.entry(*kind).or_insert(0) += count;
        }
        usize::try_from(healed.values().sum::<u64>()).unwrap_or(usize::MAX)
    }

    /// Notes what was refused and when to try again. Gives the causes: what failed for want of its
    /// link, which failed itself, is no news.
    fn remember(&mut self, failures: Vec<Failure>, desired: &Arc<Desired>, now: Instant) -> Vec<Failure> {
        let links: BTreeSet<LinkName> = failures
            .iter()
            .filter_map(|failure| match &failure.change {
                Change::AddLink(link) => Some(link.name.clone()),
                Change::RenameLink { to, .. } => Some(to.clone()),
                _ => None,
            })
            .collect();
        let is_cause = |failure: &Failure| link_of(&failure.change).is_none_or(|link| !links.contains(link));
        let causes: Vec<Failure> = failures.into_iter().filter(is_cause).collect();
        for failure in &causes {
            let subject = Subject::of(&failure.change);
            let drift = self.is_drift(&subject, desired);
            let trouble = self.troubles.entry(subject).or_insert(Trouble { tries: 0, drift, next: None });
            if trouble.tries == 0 {
                warn!(error = %failure, cause = %failure.source, "the kernel refused a change; it is tried again");
            }
            let pause = FIRST_PAUSE.saturating_mul(1 << trouble.tries.min(16)).min(LONGEST_PAUSE);
            trouble.tries = trouble.tries.saturating_add(1);
            trouble.next = Some(now + pause);
        }
        causes
    }

    fn tell_conflicts(&mut self, conflicts: &[Conflict]) {
        let now: BTreeSet<String> = conflicts.iter().map(Conflict::to_string).collect();
        for conflict in now.difference(&self.conflicts) {
            warn!(conflict, "something foreign is in the way; it is left alone");
        }
        for conflict in self.conflicts.difference(&now) {
            info!(conflict, "no longer in the way");
        }
        self.conflicts = now;
    }
}

fn failed_is(subject: &Subject, failures: &[Failure]) -> bool {
    failures.iter().any(|failure| Subject::of(&failure.change) == *subject)
}

/// Whether an event only repeats what is believed: most are about what we did ourselves.
fn tells_nothing_new(event: &Event, state: &State) -> bool {
    match event {
        Event::Link(link) => state.links.get(&link.name) == Some(link),
        Event::LinkGone(name) => !state.links.contains_key(name),
        Event::Address(address) => state.addresses.contains(address),
        Event::AddressGone(address) => !state.addresses.contains(address),
        Event::Route(route) => {
            state.routes.get(&route.key) == Some(route) && !state.twins.contains(&route.key)
        }
        Event::RouteGone(route) => {
            !state.routes.contains_key(&route.key) && !state.twins.contains(&route.key)
        }
        Event::Neighbour(neighbour) => {
            state.neighbours.get(&(neighbour.link.clone(), neighbour.addr)) == Some(neighbour)
        }
        Event::NeighbourGone(link, addr) => !state.neighbours.contains_key(&(link.clone(), *addr)),
        Event::Fdb(entry) => state.fdb.contains(entry),
        Event::FdbGone(entry) => !state.fdb.contains(entry),
        Event::OtherRoute(_) | Event::Lost => false,
    }
}

/// The link that a change needs; of a change about a link itself, none.
fn link_of(change: &Change) -> Option<&LinkName> {
    match change {
        Change::AddLink(_)
        | Change::AddVethPair { .. }
        | Change::DeleteLink(_)
        | Change::RenameLink { .. } => None,
        Change::SetLink(link, _) => Some(link),
        Change::AddAddress(address) | Change::DeleteAddress(address) => Some(&address.link),
        Change::ReplaceRoute(route) | Change::DeleteRoute(route) => route.link.as_ref(),
        Change::ReplaceNeighbour(neighbour) | Change::DeleteNeighbour(neighbour) => Some(&neighbour.link),
        Change::AddProxy(proxy) | Change::DeleteProxy(proxy) => Some(&proxy.link),
        Change::ReplaceFdb(entry) | Change::DeleteFdb(entry) => Some(&entry.link),
    }
}

/// Without what takes something away, and without what would need that: a link for which another had
/// to make room first, and what belongs on it.
fn only_additions(changes: Vec<Change>, links: &BTreeSet<LinkName>) -> Vec<Change> {
    let making_room = changes.iter().skip_while(|change| !matches!(change, Change::DeleteLink(_)));
    let impossible: BTreeSet<LinkName> = making_room
        .filter_map(|change| match change {
            Change::AddLink(link) => Some(link.name.clone()),
            _ => None,
        })
        .collect();
    let possible = |change: &Change| match change {
        Change::AddLink(link) => !impossible.contains(&link.name),
        other => link_of(other).is_none_or(|link| links.contains(link) || !impossible.contains(link)),
    };
    changes.into_iter().filter(|change| !takes_away(change) && possible(change)).collect()
}

/// Whether something is gone after it that was there before.
fn takes_away(change: &Change) -> bool {
    match change {
        Change::DeleteLink(_)
        | Change::DeleteAddress(_)
        | Change::DeleteRoute(_)
        | Change::DeleteNeighbour(_)
        | Change::DeleteFdb(_)
        | Change::DeleteProxy(_) => true,
        Change::AddLink(_)
        | Change::AddVethPair { .. }
        | Change::RenameLink { .. }
        | Change::SetLink(..)
        | Change::AddAddress(_)
        | Change::ReplaceRoute(_)
        | Change::ReplaceNeighbour(_)
        | Change::ReplaceFdb(_)
        | Change::AddProxy(_) => false,
    }
}
