//! What flows have carried, by service port and endpoint, each byte once: live flows are read again and
//! again, and each tells its last word when it ends. Pure.
//!
//! Dumps and ends come from two sockets, so their order is not the kernel's. Two rules make it do:
//!
//! - Whoever applies a piece of a dump has taken in all ends that had been told when the piece was
//!   received ([`Tally::ended`] before [`Tally::seen`]). So a flow that is the same as one before (the
//!   kernel gives a new flow the id of an old one at the same place in memory) is never taken for it.
//! - A flow that has ended is remembered for a moment ([`GRACE`]), because a dump may still speak of it.
//!
//! A flow is counted from when it is first seen, with all that it has carried so far; but those that were
//! there before the first dump are counted from that dump on: what they carried before was counted by
//! an earlier process, or by nobody.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use weft_kernel::conntrack::{Carried, Counted, Flow, Protocol};

use crate::model::PortName;

/// The kernel tells of a flow's end some microseconds before it takes it off its table (`nf_ct_delete`,
/// net/netfilter/nf_conntrack_core.c).
const GRACE: Duration = Duration::from_secs(1);

/// What was carried.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The flows that count: those that live, as they were last seen, and those that ended just now.
    flows: HashMap<Identity, State>,
    /// When which flows ended, in order.
    ended: VecDeque<(Instant, Identity)>,
    ports: BTreeMap<PortName, Port>,
    series: HashMap<u64, Series>,
    /// What the next series is called. None is called the same twice, since flows name theirs.
    next: u64,
    /// How many dumps have been taken in to their ends.
    dumps: u32,
    /// A dump is being taken in.
    dumping: bool,
}

/// What tells a flow from every other one at the same time. Kept for each live flow, so it is small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    id: u32,
    zone: u16,
    protocol: Protocol,
    source: ([u8; 16], u16),
    destination: ([u8; 16], u16),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Live {
        /// What it had carried when it was last seen.
        carried: Carried,
        /// The last dump that it was in.
        seen: u32,
        /// Whose it is.
        series: u64,
    },
    Ended(Instant),
}

#[derive(Debug, Default)]
struct Port {
    /// What endpoints carried that have no series any more.
    before: Carried,
    endpoints: BTreeMap<SocketAddr, u64>,
}

#[derive(Debug, Default)]
struct Series {
    carried: Carried,
    /// How many flows are known to live.
    live: usize,
    /// It was not there any more when that was last asked.
    over: bool,
}

impl Tally {
    /// A dump begins.
    pub(super) fn dump_begins(&mut self, now: Instant) {
        self.forget_ended(now);
        self.dumping = true;
    }

    /// The dump says this of a flow. `whose` tells its service port, if it is a service's.
    pub(super) fn seen(&mut self, flow: &Flow, whose: impl FnOnce() -> Option<PortName>) {
        let (key, dump) = (Identity::of(flow), self.dumps + 1);
        let (before, known) = match self.flows.get(&key) {
            Some(State::Ended(_)) => return,
            Some(State::Live { carried, series, .. }) => (*carried, Some(*series)),
            // It began before anything counted what it carries.
            None if flow.carried == Carried::default() => return,
            None => (Carried::default(), None),
        };
        let is_new = known.is_none();
        let Some(series) = self.series_of(known, flow, whose) else {
            // Nobody's any more: it goes on from here if somebody takes it again.
            if let Some(State::Live { carried, seen, .. }) = self.flows.get_mut(&key) {
                (*carried, *seen) = (flow.carried, dump);
            }
            return;
        };
        self.flows.insert(key, State::Live { carried: flow.carried, seen: dump, series });
        let counts = !is_new || self.dumps > 0;
        let more = if counts { since(&before, &flow.carried) } else { Carried::default() };
        if let Some(it) = self.series.get_mut(&series) {
            it.live += usize::from(known != Some(series));
            add(&mut it.carried, &more);
        }
    }

    /// The dump ended, with everything told or not.
    pub(super) fn dump_ended(&mut self, complete: bool) {
        self.dumping = false;
        if !complete {
            return;
        }
        self.dumps += 1;
        // Its end was not told: events were lost, or it began while nobody listened. A flow that one
        // dump misses is not counted anew by the next one.
        let (dumps, all) = (self.dumps, &mut self.series);
        self.flows.retain(|_, state| match state {
            State::Live { seen, series, .. } if *seen + 2 <= dumps => {
                if let Some(it) = all.get_mut(series) {
                    it.live = it.live.saturating_sub(1);
                }
                false
            }
            _ => true,
        });
        // After a crowd its room is given back.
        if self.flows.len() < self.flows.capacity() / 8 {
            self.flows.shrink_to(self.flows.len() * 2);
        }
    }

    /// A flow ended, and had carried so much in all.
    pub(super) fn ended(&mut self, flow: &Flow, now: Instant, whose: impl FnOnce() -> Option<PortName>) {
        if !self.dumping {
            self.forget_ended(now);
        }
        let key = Identity::of(flow);
        let (before, known) = match self.flows.get(&key) {
            Some(State::Live { carried, series, .. }) => (*carried, Some(*series)),
            // After one that just ended this is another one with the same id.
            Some(State::Ended(_)) | None => (Carried::default(), None),
        };
        let series = self.series_of(known, flow, whose);
        if series.is_none() && known.is_none() {
            return;
        }
        self.flows.insert(key, State::Ended(now));
        self.ended.push_back((now, key));
        let counts = known.is_some() || self.dumps > 0;
        let more = if counts { since(&before, &flow.carried) } else { Carried::default() };
        if let Some(it) = series.and_then(|series| self.series.get_mut(&series)) {
            add(&mut it.carried, &more);
            it.live = it.live.saturating_sub(usize::from(known == series));
        }
    }

    /// Forgets the service ports that are gone, for which `there` tells nothing, and of the others the
    /// endpoints that it does not tell and that no flow leads to; these only when asked a second time,
    /// so that what they carried last is shown once.
    pub(super) fn retain(&mut self, mut there: impl FnMut(&PortName) -> Option<Vec<SocketAddr>>) {
        let series = &mut self.series;
        self.ports.retain(|name, port| {
            let Some(there) = there(name) else {
                for id in port.endpoints.values() {
                    series.remove(id);
                }
                return false;
            };
            port.endpoints.retain(|endpoint, id| {
                let Some(it) = series.get_mut(id) else { return false };
                let over = it.live == 0 && !there.contains(endpoint);
                if over && it.over {
                    add(&mut port.before, &it.carried);
                    series.remove(id);
                    return false;
                }
                it.over = over;
                true
            });
            true
        });
    }

    /// What the endpoints of each service port have carried, those that are gone included.
    pub(super) fn services(&self) -> impl Iterator<Item = (&PortName, Carried)> {
        self.ports.iter().map(|(name, port)| {
            let mut sum = port.before;
            let series = port.endpoints.values().filter_map(|id| self.series.get(id));
            series.for_each(|it| add(&mut sum, &it.carried));
            (name, sum)
        })
    }

    /// What each endpoint has carried.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (&PortName, SocketAddr, Carried)> {
        let all = &self.series;
        self.ports.iter().flat_map(move |(name, port)| {
            let series = port.endpoints.iter();
            series.filter_map(move |(endpoint, id)| Some((name, *endpoint, all.get(id)?.carried)))
        })
    }

    /// The series that a flow is known to belong to, unless that is gone; else the one it belongs to now.
    fn series_of(
        &mut self,
        known: Option<u64>,
        flow: &Flow,
        whose: impl FnOnce() -> Option<PortName>,
    ) -> Option<u64> {
        if let Some(known) = known.filter(|known| self.series.contains_key(known)) {
            return Some(known);
        }
        let endpoints = &mut self.ports.entry(whose()?).or_default().endpoints;
        let id = *endpoints.entry(flow.reply.source).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        self.series.entry(id).or_default();
        Some(id)
    }

    /// Not while a dump is taken in, whose pieces were made a while before.
    fn forget_ended(&mut self, now: Instant) {
        while let Some((at, key)) = self.ended.front().copied()
            && now.saturating_duration_since(at) >= GRACE
        {
            self.ended.pop_front();
            // Another one with the same id may have ended since.
            if matches!(self.flows.get(&key), Some(State::Ended(last)) if *last == at) {
                self.flows.remove(&key);
            }
        }
    }
}

impl Identity {
    fn of(flow: &Flow) -> Self {
        let compact = |at: SocketAddr| {
            let octets = match at.ip() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            (octets, at.port())
        };
        let (source, destination) = (compact(flow.original.source), compact(flow.original.destination));
        Self { id: flow.id, zone: flow.zone, protocol: flow.protocol, source, destination }
    }
}

/// What was carried since. Less than before is all of it: somebody set the flow's counters to zero, or
/// it is another flow with the same id and the end of the first one was lost.
fn since(before: &Carried, now: &Carried) -> Carried {
    let counted = |before: &Counted, now: &Counted| {
        let (packets, bytes) =
            (now.packets.checked_sub(before.packets)?, now.bytes.checked_sub(before.bytes)?);
        Some(Counted { packets, bytes })
    };
    let both = || {
        let original = counted(&before.original, &now.original)?;
        Some(Carried { original, reply: counted(&before.reply, &now.reply)? })
    };
    both().unwrap_or(*now)
}

fn add(sum: &mut Carried, more: &Carried) {
    for (sum, more) in [(&mut sum.original, &more.original), (&mut sum.reply, &more.reply)] {
        sum.packets = sum.packets.wrapping_add(more.packets);
        sum.bytes = sum.bytes.wrapping_add(more.bytes);
    }
}

#[cfg(test)]
mod tests;
