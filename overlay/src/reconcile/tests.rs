//! A daemon's half of the story against a network in memory: start, drift, refusals, lost events.

use futures::{FutureExt as _, StreamExt as _};
use proptest::prelude::*;
use weft_kernel::net::{Events, FakeNet, Link, LinkKind, LinkPatch, Mac, Neighbour};

use super::*;
use crate::config::Backend;
use crate::fixtures::*;
use crate::model::Model;
use crate::plan::plan;

/// A daemon, and somebody else at the same kernel.
struct Host {
    reconciler: Reconciler<FakeNet>,
    kernel: FakeNet,
    events: Events,
    desired: Arc<Desired>,
    now: Instant,
}

/// This host, and weft hosts with these numbers.
fn network(backend: &Backend, others: &[u8]) -> Model {
    let peers = others.iter().map(|n| weft_peer(*n, backend, DUAL, DUAL));
    with_peers(model(backend.clone(), DUAL, DUAL), peers)
}

fn three_hosts() -> Model {
    network(&vxlan(), &[8, 9])
}

fn eth0() -> Change {
    Change::AddLink(Link { kind: LinkKind::Bridge, index: 0, ..plain_link("eth0", 0) })
}

impl Host {
    /// With an underlay; nothing is programmed yet.
    fn new(model: &Model) -> Self {
        let kernel = FakeNet::new();
        assert!(kernel.disturb(&[eth0()]).is_empty());
        let events = kernel.events().expect("a fake can be listened to");
        let desired = Arc::new(plan(model));
        Self { reconciler: Reconciler::new(kernel.clone()), kernel, events, desired, now: Instant::now() }
    }

    /// Everything is programmed, and its events are heard.
    async fn settled(model: &Model) -> Self {
        let mut host = Self::new(model);
        assert!(host.pass().await.complete());
        host.hear();
        host.pass().await;
        host
    }

    async fn pass(&mut self) -> Report {
        self.reconciler.reconcile(&self.desired, self.now).await.expect("the fake can be asked")
    }

    /// Takes in all events so far; whether any asks for a pass.
    fn hear(&mut self) -> bool {
        let mut asked = false;
        while let Some(Some(event)) = self.events.next().now_or_never() {
            asked |= self.reconciler.absorb(&event);
        }
        asked
    }

    fn miss_all_events(&mut self) {
        while let Some(Some(_)) = self.events.next().now_or_never() {}
    }

    fn somebody(&self, change: Change) {
        assert!(self.kernel.disturb(&[change]).is_empty());
    }

    /// All that is planned is in the kernel, links apart from their numbers.
    fn is_as_planned(&self) -> bool {
        let held = self.kernel.state();
        let wanted = &self.desired.kernel;
        let links = wanted
            .links
            .iter()
            .all(|(name, link)| held.links.get(name).is_some_and(|held| held.is_as_wanted(link)));
        links
            && wanted.addresses.is_subset(&held.addresses)
            && wanted.fdb.is_subset(&held.fdb)
            && wanted.routes.iter().all(|(key, route)| held.routes.get(key) == Some(route))
            && wanted.neighbours.iter().all(|(key, entry)| held.neighbours.get(key) == Some(entry))
    }

    fn healed(&self, kind: Kind) -> u64 {
        self.reconciler.heals().get(&kind).copied().unwrap_or(0)
    }
}

#[tokio::test]
async fn a_start_programs_everything_and_then_rests() {
    let mut host = Host::new(&three_hosts());
    let report = host.pass().await;
    assert!(report.complete() && !report.applied.is_empty());
    assert!(host.is_as_planned());
    assert!(host.reconciler.heals().is_empty(), "a start mends nothing");
    host.hear();
    assert!(host.pass().await.applied.is_empty());
    assert!(!host.hear(), "nothing done, nothing heard");
    // A second daemon over the same kernel finds its work done.
    let mut heir = Reconciler::new(host.kernel.clone());
    let report = heir.reconcile(&host.desired, host.now).await.expect("the fake can be asked");
    assert!(report.applied.is_empty() && report.complete());
}

#[tokio::test]
async fn what_was_done_here_asks_for_no_pass() {
    let mut host = Host::settled(&three_hosts()).await;
    host.desired = Arc::new(plan(&network(&vxlan(), &[8, 9, 10])));
    let report = host.pass().await;
    assert_eq!((report.applied.len(), report.healed), (6, 0), "a new host is no drift");
    assert!(!host.hear());
    // Nor what the host's other links learn.
    host.somebody(Change::ReplaceNeighbour(Neighbour {
        link: name("eth0"),
        addr: public_v4(99).into(),
        mac: Mac([2, 0, 0, 0, 0, 9]),
        permanent: true,
    }));
    assert!(!host.hear());
}

#[tokio::test]
async fn every_kind_of_drift_is_heard_mended_and_counted() {
    let planned = plan(&three_hosts()).kernel;
    let down = LinkPatch { up: Some(false), ..LinkPatch::default() };
    let mtu = LinkPatch { mtu: Some(1400), ..LinkPatch::default() };
    let mac = LinkPatch { mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..LinkPatch::default() };
    let route = planned.routes.values().next().expect("planned").clone();
    let neighbour = planned.neighbours.values().next().expect("planned").clone();
    let fdb = planned.fdb.first().expect("planned").clone();
    let address = planned.addresses.first().expect("planned").clone();
    let table = [
        (Change::DeleteRoute(route), Kind::Route),
        (Change::DeleteNeighbour(neighbour), Kind::Neighbour),
        (Change::DeleteFdb(fdb), Kind::Fdb),
        (Change::DeleteAddress(address), Kind::Address),
        (Change::DeleteLink(name("weft.1")), Kind::Link),
        (Change::SetLink(name("weft.1"), down), Kind::Link),
        (Change::SetLink(name("weft.1"), mtu), Kind::Link),
        (Change::SetLink(name("weft.1"), mac), Kind::Link),
        (Change::RenameLink { from: name("weft.1"), to: name("other") }, Kind::Link),
    ];
    let mut host = Host::settled(&three_hosts()).await;
    for (harm, kind) in table {
        let before = host.healed(kind);
        host.somebody(harm.clone());
        assert!(!host.is_as_planned(), "{harm}");
        assert!(host.hear(), "{harm}");
        let report = host.pass().await;
        assert!(report.complete() && report.healed > 0, "{harm}");
        assert!(host.is_as_planned(), "{harm}");
        assert!(host.healed(kind) > before, "{harm} is counted as {kind}");
        host.hear();
        assert!(host.pass().await.applied.is_empty(), "{harm}: and rests");
    }
}

#[tokio::test]
async fn a_refused_change_is_tried_again_with_growing_pauses() {
    let mut host = Host::new(&three_hosts());
    for _ in 0..2 {
        host.kernel.refuse(libc::ENOMEM, |change: &Change| {
            matches!(change, Change::ReplaceRoute(route) if route.key.dst == net("10.42.8.0/24"))
        });
    }
    let report = host.pass().await;
    assert_eq!((report.failures.len(), report.outstanding), (1, 1));
    let retry = report.retry.expect("it is tried again");
    assert_eq!(retry, host.now + FIRST_PAUSE);

    host.now = retry - Duration::from_millis(1);
    let report = host.pass().await;
    assert_eq!((report.applied.len(), report.outstanding, report.retry), (0, 1, Some(retry)), "not yet");

    host.now = retry;
    let report = host.pass().await;
    assert_eq!((report.failures.len(), report.retry), (1, Some(host.now + FIRST_PAUSE * 2)), "again");
    host.now += FIRST_PAUSE * 2;
    let report = host.pass().await;
    assert!(report.complete() && report.retry.is_none() && report.healed == 0);
    assert!(host.is_as_planned());
}

#[tokio::test]
async fn drift_that_is_mended_at_the_second_try_is_a_heal_too() {
    let mut host = Host::settled(&three_hosts()).await;
    let (key, route) = host.desired.kernel.routes.iter().next().expect("a route");
    let (key, route) = (key.clone(), route.clone());
    host.somebody(Change::DeleteRoute(route));
    assert!(host.hear());
    host.kernel.refuse(
        libc::ENODEV,
        move |change: &Change| matches!(change, Change::ReplaceRoute(route) if route.key == key),
    );
    let report = host.pass().await;
    assert_eq!((report.healed, report.failures.len()), (0, 1));
    host.now = report.retry.expect("it is tried again");
    assert_eq!((host.pass().await.healed, host.healed(Kind::Route)), (1, 1));
    assert!(host.is_as_planned());
}

#[tokio::test]
async fn a_missing_underlay_is_one_trouble_and_its_return_ends_it() {
    let mut host = Host::new(&three_hosts());
    host.somebody(Change::DeleteLink(name("eth0")));
    let report = host.pass().await;
    let refused: Vec<String> = report.failures.iter().map(|failure| failure.change.to_string()).collect();
    assert_eq!(refused.len(), 2, "the two links, not what belongs on them: {refused:?}");
    assert!(report.outstanding > 2 && report.retry.is_some());
    assert!(host.pass().await.applied.is_empty(), "no try in between");

    host.somebody(eth0());
    assert!(host.hear());
    assert!(host.pass().await.complete(), "at once, whatever the pause");
    assert!(host.is_as_planned());
}

#[tokio::test]
async fn lost_events_and_blind_moments_are_made_up_for() {
    let mut host = Host::settled(&three_hosts()).await;
    host.somebody(Change::DeleteLink(name("weft.1")));
    host.miss_all_events();
    assert!(host.pass().await.applied.is_empty(), "not heard, not known");
    host.kernel.lose_events();
    assert!(host.hear());
    host.kernel.fail_observe(libc::ENOBUFS);
    let blind = host.reconciler.reconcile(&host.desired, host.now).await;
    assert!(blind.is_err(), "nothing is done on a guess");
    assert!(host.pass().await.healed > 0);
    assert!(host.is_as_planned());
    // Without any event the slow timer finds it.
    host.hear();
    host.somebody(Change::DeleteLink(name("weft-v6.1")));
    host.miss_all_events();
    host.reconciler.doubt();
    assert!(host.pass().await.healed > 0);
    assert!(host.is_as_planned());
}

#[tokio::test]
async fn an_old_plan_adds_and_takes_nothing_away() {
    let mut host = Host::settled(&three_hosts()).await;
    let before = host.kernel.state();
    host.reconciler.add_only(true);
    // The old plan knows another host, and not one of those that are there.
    host.desired = Arc::new(plan(&network(&vxlan(), &[9, 10])));
    assert_eq!(host.pass().await.applied.len(), 6);
    let after = host.kernel.state();
    assert!(before.routes.keys().all(|key| after.routes.contains_key(key)));
    // A link that could only be made anew stays what it is, and what belongs on it too.
    let learning = Backend::Vxlan {
        vni: vni(1),
        port: 8472,
        mtu: None,
        gbp: false,
        learning: true,
        direct_routing: false,
    };
    host.desired = Arc::new(plan(&network(&learning, &[8, 9])));
    host.hear();
    let report = host.pass().await;
    assert!(report.failures.is_empty());
    assert_eq!(host.kernel.state().links, after.links);
    assert_eq!(host.kernel.state().routes, after.routes);
    // The plan from the store itself may.
    host.reconciler.add_only(false);
    assert!(host.pass().await.complete());
    assert!(host.is_as_planned());
}

/// One thing that somebody else does to what is planned.
fn harm(planned: &State, what: usize, which: usize) -> Change {
    fn nth<T: Clone>(all: impl ExactSizeIterator<Item = T>, which: usize) -> T {
        let at = which % all.len();
        all.into_iter().nth(at).expect("something is planned of every kind")
    }
    match what {
        0 => Change::DeleteRoute(nth(planned.routes.values(), which).clone()),
        1 => Change::DeleteNeighbour(nth(planned.neighbours.values(), which).clone()),
        2 => Change::DeleteFdb(nth(planned.fdb.iter(), which).clone()),
        3 => Change::DeleteAddress(nth(planned.addresses.iter(), which).clone()),
        _ => {
            let link = nth(planned.links.keys(), which).clone();
            let patch = LinkPatch::default();
            match what {
                4 => Change::DeleteLink(link),
                5 => Change::SetLink(link, LinkPatch { up: Some(false), ..patch }),
                6 => Change::SetLink(link, LinkPatch { mtu: Some(1300), ..patch }),
                7 => Change::SetLink(link, LinkPatch { mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..patch }),
                _ => Change::RenameLink { from: link, to: name("other") },
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens and whenever passes fall in between, hearing it all and a pass make it good.
    #[test]
    fn any_harm_is_made_good(harms in proptest::collection::vec((0usize..9, 0usize..9, 0u8..3), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut host = Host::settled(&three_hosts()).await;
            for (what, which, then) in harms {
                // What is not there any more cannot be harmed again: then nothing happens.
                let _ = host.kernel.disturb(&[harm(&host.desired.kernel, what, which)]);
                if then > 0 {
                    // Only some of it is heard yet: what a pass does then may be useless, never wrong.
                    if let Some(Some(event)) = host.events.next().now_or_never() {
                        host.reconciler.absorb(&event);
                    }
                }
                if then > 1 {
                    host.pass().await;
                }
            }
            // Twice, as one pass may have been refused something on half the news.
            for _ in 0..2 {
                host.hear();
                host.now += LONGEST_PAUSE;
                host.pass().await;
            }
            assert!(host.is_as_planned());
        });
    }

    /// Passes look at what may differ only. Whatever is planned one after the other, and whatever
    /// others do in between, a look at everything finds nothing that they missed.
    #[test]
    fn nothing_is_missed_by_looking_at_a_part(
        steps in proptest::collection::vec(
            (proptest::sample::subsequence((8u8..20).collect::<Vec<_>>(), 0..12), 0usize..9, 0usize..40),
            1..8,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        // Else tokio makes a listener pause after a number of events.
        runtime.block_on(tokio::task::unconstrained(async {
            let mut host = Host::settled(&three_hosts()).await;
            for (peers, what, which) in steps {
                host.desired = Arc::new(plan(&network(&vxlan(), &peers)));
                // Three of four times somebody else is at work, too.
                if which % 4 > 0 && !host.desired.kernel.routes.is_empty() && !host.desired.kernel.fdb.is_empty() {
                    let _ = host.kernel.disturb(&[harm(&host.desired.kernel, what, which)]);
                }
                // A change may have been refused, as it was made on half the news.
                for _ in 0..2 {
                    host.hear();
                    host.now += LONGEST_PAUSE;
                    host.pass().await;
                }
                host.hear();
                let left = diff(&host.desired.kernel, &host.kernel.state(), &host.desired.scope);
                assert_eq!(left, Diff::default());
            }
        }));
    }
}
