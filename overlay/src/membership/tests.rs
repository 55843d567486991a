//! Stories, and properties over random histories.

use proptest::prelude::*;

use super::*;
use crate::fixtures::*;
use crate::probe::Outcome;

const TTL: Duration = Duration::from_secs(10);

/// A network whose hosts, probes and store do as the test says; time passes second by second.
struct World {
    now: Instant,
    listing: Listing,
    reachable: bool,
    targets: BTreeMap<Subnet, BTreeSet<IpAddr>>,
    outcomes: Outcomes,
    membership: Membership,
}

fn at(n: u8) -> Subnet {
    subnet(n, V4)
}

fn target(n: u8) -> IpAddr {
    [10, 42, n, 0].into()
}

impl World {
    /// Weft hosts that are live and answer, and a store that is there.
    fn of_weft_hosts(hosts: impl IntoIterator<Item = u8>) -> Self {
        let mut world = Self {
            now: Instant::now(),
            listing: Listing::default(),
            reachable: true,
            targets: BTreeMap::new(),
            outcomes: Outcomes::new(),
            membership: Membership::new(TTL),
        };
        for n in hosts {
            world.listing.peers.insert(at(n), weft_peer(n, &vxlan(), V4, V4));
            world.listing.live.insert(node(n));
            world.probes_answer(n, true);
        }
        world.look();
        world
    }

    fn with_flanneld(mut self, n: u8) -> Self {
        self.listing.peers.insert(at(n), flannel_peer(n, "vxlan", V4, V4));
        self.look();
        self
    }

    fn probes_answer(&mut self, n: u8, answer: bool) {
        let silent = if answer { 0 } else { SILENT_PROBES };
        self.targets.insert(at(n), [target(n)].into());
        self.outcomes.insert(target(n), Outcome { silent, ..Outcome::default() });
    }

    /// Its daemon's record is not there (any more).
    fn lapses(&mut self, n: u8) {
        self.listing.live.remove(&node(n));
        self.look();
    }

    fn dies(&mut self, n: u8) {
        self.probes_answer(n, false);
        self.lapses(n);
    }

    fn key_vanishes(&mut self, n: u8) {
        self.listing.peers.remove(&at(n));
        self.look();
    }

    fn look(&mut self) -> Verdict {
        let evidence = Evidence {
            now: self.now,
            reachable: self.reachable,
            listing: &self.listing,
            targets: &self.targets,
            outcomes: &self.outcomes,
        };
        self.membership.update(&evidence)
    }

    /// Looks every second of the first minute, every minute then; says who is in the path.
    fn after(&mut self, seconds: u64) -> Vec<u8> {
        let until = self.now + Duration::from_secs(seconds);
        for passed in 0.. {
            if self.now >= until {
                break;
            }
            let step = Duration::from_secs(if passed < 60 { 1 } else { 60 });
            self.now = (self.now + step).min(until);
            self.look();
        }
        self.in_path()
    }

    fn in_path(&mut self) -> Vec<u8> {
        Self::named(&self.look())
    }

    fn named(verdict: &Verdict) -> Vec<u8> {
        verdict.peers.keys().filter_map(|subnet| subnet.v4).map(|v4| v4.ip().octets()[2]).collect()
    }

    fn standing(&mut self, n: u8) -> String {
        self.look().standing.get(&at(n)).map_or("unknown".to_owned(), Standing::to_string)
    }
}

#[test]
fn a_dead_host_leaves_within_seconds_of_its_lapse_and_comes_back() {
    let mut world = World::of_weft_hosts([1, 2, 3]);
    world.dies(2);
    let verdict = world.look();
    assert_eq!(verdict.suspects, [at(2)].into(), "it is asked quickly");
    assert_eq!(verdict.wake, Some(world.now + GRACE));
    assert_eq!(world.after(1), [1, 2, 3]);
    assert_eq!(world.after(1), [1, 3]);
    assert_eq!(world.standing(2), "gone: its daemon is silent and probes fail");
    world.listing.live.insert(node(2));
    assert_eq!(world.in_path(), [1, 2, 3]);
    assert_eq!(world.standing(2), "live");
}

#[test]
fn one_kind_of_evidence_is_not_enough() {
    let mut world = World::of_weft_hosts([1, 2, 3]);
    world.lapses(1);
    world.probes_answer(2, false);
    assert_eq!(world.after(3600), [1, 2, 3]);
    assert_eq!(world.standing(2), "live");
    world.outcomes.remove(&target(1));
    assert_eq!(world.after(3600), [1, 2, 3], "a silent host that cannot be probed stays");
}

#[test]
fn of_two_hosts_one_may_be_dead() {
    let mut world = World::of_weft_hosts([1]);
    world.dies(1);
    assert_eq!(world.after(2), [0u8; 0]);
}

#[test]
fn most_hosts_do_not_die_together() {
    let mut world = World::of_weft_hosts([1, 2, 3, 4]);
    world.dies(1);
    assert_eq!(world.after(2), [2, 3, 4]);
    world.dies(2);
    assert_eq!(world.after(2), [3, 4], "half are not most");
    world.dies(3);
    assert_eq!(world.in_path(), [1, 2, 3, 4], "what left just before comes back");
    assert_eq!(world.after(3600), [1, 2, 3, 4]);
    assert_eq!(world.standing(1), "kept: more than half of the hosts are silent");
    // One returns: two of four are silent, and unreachable.
    world.listing.live.insert(node(3));
    assert_eq!(world.after(2), [3, 4]);
}

#[test]
fn hosts_that_die_one_by_one_leave_one_by_one() {
    let mut world = World::of_weft_hosts([1, 2, 3, 4]);
    for (dead, left) in [(1, vec![2, 3, 4]), (2, vec![3, 4]), (3, vec![4]), (4, vec![])] {
        world.dies(dead);
        assert_eq!(world.after(2), left);
        world.after(31);
    }
}

#[test]
fn a_flanneld_host_is_there_as_long_as_its_key() {
    let mut world = World::of_weft_hosts([1, 2]).with_flanneld(9);
    world.probes_answer(9, false);
    assert_eq!(world.after(3600), [1, 2, 9]);
    assert_eq!(world.standing(9), "leased");
    world.key_vanishes(9);
    assert_eq!(world.in_path(), [1, 2]);
}

#[test]
fn without_the_store_everything_stays() {
    let mut world = World::of_weft_hosts([1, 2, 3]).with_flanneld(9);
    world.reachable = false;
    for n in [1, 2, 3] {
        world.dies(n);
        world.key_vanishes(n);
    }
    world.key_vanishes(9);
    assert_eq!(world.after(48 * 3600), [1, 2, 3, 9]);
    assert_eq!(world.standing(1), "kept: the store cannot be reached");
}

#[test]
fn a_suspicion_from_before_an_outage_starts_anew() {
    let mut world = World::of_weft_hosts([1, 2, 3]);
    world.dies(1);
    world.after(1);
    world.reachable = false;
    world.after(60);
    world.reachable = true;
    assert_eq!(world.after(1), [1, 2, 3]);
    assert_eq!(world.after(2), [2, 3]);
}

#[test]
fn after_a_wipe_hosts_have_three_liveness_times_to_register() {
    let mut world = World::of_weft_hosts([1, 2, 3]).with_flanneld(9);
    world.membership.wiped(world.now);
    world.listing = Listing::default();
    let verdict = world.look();
    assert_eq!(verdict.wake, Some(world.now + GRACE));
    assert_eq!(world.after(29), [1, 2, 3, 9]);
    assert_eq!(world.standing(9), "kept: the store was wiped");
    world.listing.peers.insert(at(2), weft_peer(2, &vxlan(), V4, V4));
    world.listing.live.insert(node(2));
    assert_eq!(world.after(1), [2], "then the list is believed");
}

#[test]
fn a_vanished_key_means_what_its_owner_meant() {
    // Given up by its owner: gone at once.
    let mut world = World::of_weft_hosts([1, 2, 3]);
    world.listing.released.insert(at(1));
    world.key_vanishes(1);
    assert_eq!(world.in_path(), [2, 3]);

    // Deleted under a live owner, who writes it again: nothing happens.
    let mut world = World::of_weft_hosts([1, 2, 3]);
    world.key_vanishes(1);
    assert_eq!(world.after(5), [1, 2, 3]);
    world.listing.peers.insert(at(1), weft_peer(1, &vxlan(), V4, V4));
    assert_eq!(world.after(3600), [1, 2, 3]);

    // Run out under a dead daemon on a host whose pods still answer, until they do not.
    let mut world = World::of_weft_hosts([1, 2, 3]);
    world.lapses(1);
    world.key_vanishes(1);
    assert_eq!(world.after(3600), [1, 2, 3]);
    world.probes_answer(1, false);
    assert_eq!(world.in_path(), [2, 3]);

    // Not to be probed at all: not there.
    let mut world = World::of_weft_hosts([1, 2, 3]);
    world.lapses(1);
    world.key_vanishes(1);
    world.outcomes.clear();
    assert_eq!(world.after(2), [2, 3]);

    // Most of them, with silence on all counts: held, but not for ever.
    let mut world = World::of_weft_hosts([1, 2, 3]);
    for n in [1, 2] {
        world.dies(n);
        world.key_vanishes(n);
    }
    assert_eq!(world.after(29), [1, 2, 3]);
    assert_eq!(world.after(2), [3]);
}

#[test]
fn the_key_wins() {
    let mut world = World::of_weft_hosts([1, 2, 3]);
    let heir = Peer { subnet: at(1), ..weft_peer(4, &vxlan(), V4, V4) };
    world.listing.peers.insert(at(1), heir.clone());
    world.listing.live.insert(node(4));
    assert_eq!(world.look().peers[&at(1)], heir);

    // Part of it went to a host of another subnet size.
    let mut part = weft_peer(5, &vxlan(), V4, V4);
    part.subnet.v4 = Some("10.42.2.0/25".parse().expect("a network"));
    world.key_vanishes(2);
    world.listing.peers.insert(part.subnet, part.clone());
    let verdict = world.look();
    assert!(verdict.peers.contains_key(&part.subnet) && !verdict.peers.contains_key(&at(2)));

    // A lease that is no use as a peer any more (a changed configuration) is none.
    world.key_vanishes(3);
    world.listing.unusable.insert(at(3), "outside".to_owned());
    assert!(!world.look().peers.contains_key(&at(3)));
}

/// One thing that happens in a random history.
#[derive(Clone, Debug)]
enum Happening {
    Lapse(u8),
    Revive(u8),
    Probe(u8, bool),
    NoProbe(u8),
    Vanish(u8),
    Register(u8),
    Release(u8),
    Reachable(bool),
    Wipe,
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let n = 1u8..7;
    prop_oneof![
        4 => n.clone().prop_map(Lapse),
        2 => n.clone().prop_map(Revive),
        4 => (n.clone(), any::<bool>()).prop_map(|(n, answer)| Probe(n, answer)),
        1 => n.clone().prop_map(NoProbe),
        2 => n.clone().prop_map(Vanish),
        1 => n.clone().prop_map(Register),
        1 => n.prop_map(Release),
        2 => any::<bool>().prop_map(Reachable),
        1 => Just(Wipe),
        4 => (1u64..40).prop_map(Wait),
    ]
}

fn happens(world: &mut World, happening: &Happening) {
    match *happening {
        Happening::Lapse(n) => world.lapses(n),
        Happening::Revive(n) => {
            world.listing.live.insert(node(n));
        }
        Happening::Probe(n, answer) => world.probes_answer(n, answer),
        Happening::NoProbe(n) => {
            world.outcomes.remove(&target(n));
        }
        Happening::Vanish(n) => world.key_vanishes(n),
        Happening::Register(n) => {
            let peer = if n == 6 { flannel_peer(n, "vxlan", V4, V4) } else { weft_peer(n, &vxlan(), V4, V4) };
            world.listing.peers.insert(at(n), peer);
            world.listing.released.remove(&at(n));
        }
        Happening::Release(n) => {
            world.listing.released.insert(at(n));
            world.key_vanishes(n);
        }
        Happening::Reachable(reachable) => world.reachable = reachable,
        Happening::Wipe => {
            world.membership.wiped(world.now);
            world.listing = Listing::default();
        }
        Happening::Wait(seconds) => world.now += Duration::from_secs(seconds),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The contract, checked at every step of any history, from the outside.
    #[test]
    fn nobody_leaves_without_cause(history in proptest::collection::vec(happening(), 1..80)) {
        let mut world = World::of_weft_hosts([1, 2, 3, 4, 5]).with_flanneld(6);
        let mut wiped: Option<Instant> = None;
        let mut before = world.in_path();
        for happening in &history {
            happens(&mut world, happening);
            if matches!(happening, Happening::Wipe) {
                wiped = Some(world.now);
            }
            let verdict = world.look();
            let after = World::named(&verdict);
            let in_wipe = wiped.is_some_and(|at| world.now < at + TTL * 3);
            let believed = wiped.is_some_and(|at| world.now >= at + TTL * 3);
            for n in before.iter().filter(|n| !after.contains(n)) {
                let listed = world.listing.peers.contains_key(&at(*n));
                let released = world.listing.released.contains(&at(*n));
                let silent = !world.listing.live.contains(&node(*n));
                let probe = world.outcomes.get(&target(*n)).map(|outcome| outcome.silent >= SILENT_PROBES);
                prop_assert!(world.reachable, "{n} left while the store was away");
                prop_assert!(!in_wipe || released, "{n} left right after a wipe");
                prop_assert!(!(listed && *n == 6), "flanneld's left with its key there");
                let dead = silent && (probe == Some(true) || (probe.is_none() && !listed));
                let by_list = released || (!listed && (*n == 6 || believed));
                prop_assert!(dead || by_list, "{n} left alive");
            }
            for n in 1..=6u8 {
                let listed = world.listing.peers.contains_key(&at(n));
                let alive = n == 6 || world.listing.live.contains(&node(n));
                prop_assert!(!(listed && alive && world.reachable) || after.contains(&n), "{n} is not let in");
            }
            if believed {
                wiped = wiped.filter(|_| !world.reachable);
            }
            prop_assert!(verdict.wake.is_none_or(|wake| wake > world.now), "a busy loop");
            prop_assert!(verdict.suspects.iter().all(|subnet| verdict.peers.contains_key(subnet)));
            before = after;
        }
    }

    /// With most of the weft hosts silent, the path does not shrink unless an owner or the list says so.
    #[test]
    fn a_majority_of_silent_hosts_keeps_everybody(deaths in proptest::collection::vec(1u8..8, 4..12)) {
        let mut world = World::of_weft_hosts(1..8);
        for n in deaths {
            world.dies(n);
            world.now += Duration::from_millis(700);
            let silent = (1..8).filter(|n| !world.listing.live.contains(&node(*n))).count();
            if silent > 3 {
                prop_assert_eq!(world.in_path().len(), 7);
                prop_assert_eq!(world.after(120).len(), 7);
            }
        }
    }
}
