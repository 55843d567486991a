//! Whatever happens to connections and history, the model ends as the server's, and no revision is
//! told before everything up to it was.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::testing::Fault;
use super::*;

const NAMES: [&str; 4] = ["api", "db", "mail", "web"];

#[derive(Clone, Debug)]
enum Step {
    Put {
        slice: bool,
        name: usize,
    },
    Remove {
        slice: bool,
        name: usize,
    },
    Bookmark,
    /// The last bookmark once more, or one that nobody needs.
    Bookmarks(usize),
    Cut,
    Forget,
    Fault(Fault),
    /// Lets the proxy catch up.
    Listen,
}

fn step() -> impl Strategy<Value = Step> {
    let object = || (any::<bool>(), 0..NAMES.len());
    let faults = prop_oneof![
        Just(Fault::Close),
        Just(Fault::Answer(500, b"{}".to_vec())),
        Just(Fault::Answer(410, Vec::new())),
        Just(Fault::Half(br#"{"type":"BOOKMARK","object":{"metadata":{"resourceV"#.to_vec())),
        Just(Fault::Half(Vec::new())),
        Just(Fault::Answer(
            200,
            b"{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"7\"}}}\n".to_vec()
        )),
    ];
    prop_oneof![
        6 => object().prop_map(|(slice, name)| Step::Put { slice, name }),
        3 => object().prop_map(|(slice, name)| Step::Remove { slice, name }),
        1 => Just(Step::Bookmark),
        1 => (1usize..4).prop_map(Step::Bookmarks),
        2 => Just(Step::Cut),
        1 => Just(Step::Forget),
        2 => faults.prop_map(Step::Fault),
        3 => Just(Step::Listen),
    ]
}

/// What there was of each object, since when.
#[derive(Default)]
struct History(BTreeMap<(bool, usize), Vec<State>>);

/// From this revision on it had this port, or was not there.
type State = (u64, Option<u16>);

impl History {
    /// No object is older in the model than it was at the revision that was told.
    fn check(&self, proxy: &Proxy) {
        for ((slice, name), states) in &self.0 {
            let told = if *slice { proxy.revisions.slices } else { proxy.revisions.services };
            let Some(told) = told else { continue };
            let held = if *slice { proxy.port_of_slice(NAMES[*name]) } else { proxy.port_of(NAMES[*name]) };
            let then = states.partition_point(|(at, _)| *at <= told);
            let allowed: Vec<Option<u16>> =
                [None].into_iter().chain(states.iter().map(|(_, port)| *port)).skip(then).collect();
            assert!(allowed.contains(&held), "{} at {told}: {held:?}, of {states:?}", NAMES[*name]);
        }
    }
}

async fn run(steps: Vec<Step>) {
    let server = Server::start(Security::None);
    let mut history = History::default();
    let mut proxy = Proxy::of(&server).await;
    for (port, step) in (1u16..).zip(steps) {
        match step {
            Step::Put { slice: is_slice, name } => {
                let object = if is_slice { slice(NAMES[name], port) } else { service(NAMES[name], port) };
                let at = server.put(object);
                history.0.entry((is_slice, name)).or_default().push((at, Some(port)));
            }
            Step::Remove { slice, name } => {
                let kind = if slice { "EndpointSlice" } else { "Service" };
                if let Some(at) = server.remove(kind, "shop", NAMES[name]) {
                    history.0.entry((slice, name)).or_default().push((at, None));
                }
            }
            Step::Bookmark => server.bookmark(),
            Step::Bookmarks(many) => (0..many).for_each(|_| server.bookmark()),
            Step::Cut => server.cut(),
            Step::Forget => server.forget(),
            Step::Fault(fault) => server.next([fault]),
            Step::Listen => listen(&mut proxy, &server, &history).await,
        }
    }
    listen(&mut proxy, &server, &history).await;
    for ((slice, name), states) in &history.0 {
        let held = if *slice { proxy.port_of_slice(NAMES[*name]) } else { proxy.port_of(NAMES[*name]) };
        assert_eq!(held, states.last().expect("a state").1, "{}", NAMES[*name]);
    }
    let names = proxy.model.names().count();
    assert_eq!(names, server.all("Service").len() + server.all("EndpointSlice").len());
}

/// Hears everything until now.
async fn listen(proxy: &mut Proxy, server: &Server, history: &History) {
    server.bookmark();
    let now = Some(server.revision());
    while !(proxy.complete && proxy.revisions == (Revisions { services: now, slices: now })) {
        tokio::time::timeout(LONG, proxy.step()).await.expect("it catches up");
        history.check(proxy);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn every_history_ends_in_the_same_model(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
