//! Stories about services on real kernels: each is a named test, told in each mode of the proxy and most
//! of them for IPv4 and for IPv6. One lab of three hosts serves all stories of a mode.
//!
//! A harness of its own, because a lab costs seconds and the standard one has no place for what tests
//! share. A story is named `MODE::MODULE::STORY_FAMILY`. It takes the usual arguments: a part of a name,
//! `--list`, `--exact`, `--test-threads`. README.md beside this file tells which story is which case of
//! Kubernetes' tests.

mod affinity;
mod basic;
mod counted;
mod daemon;
mod established;
mod explained;
mod frontends;
mod policy;
mod ports;
mod scene;
mod stacks;
mod terminating;
mod udp;
mod userspace;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};
use scene::{Case, Families, Mode, Scene};
use weft_lab::LabError;

/// How a story goes.
type Tell = fn(&Case) -> Result<(), LabError>;

/// A story: its name, for which families it is told, and how it goes.
pub(crate) type Story = (&'static str, Families, Tell);

/// The stories of a module, each under the name of its function.
macro_rules! stories {
    ($families:ident: $($story:ident),+ $(,)?) => {
        pub(crate) const STORIES: &[crate::Story] =
            &[$((stringify!($story), crate::scene::Families::$families, $story)),+];
    };
}
pub(crate) use stories;

/// Most of a story is waiting for silence, so that many are told at once.
const AT_ONCE: usize = 12;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let stages = Mode::ALL.map(|mode| (mode, Stage::default()));
    let mut trials: Vec<Trial> = stages.iter().flat_map(|(mode, stage)| trials(*mode, stage)).collect();
    trials.push(Trial::test("readme_names_stories_that_exist", readme_names_stories_that_exist));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut ended = conclusion.exit_code();
    for (_, stage) in stages {
        match Arc::into_inner(stage).and_then(OnceLock::into_inner) {
            None => {}
            Some(Ok(scene)) if conclusion.has_failed() => scene.lab.failed(),
            Some(Ok(scene)) => {
                if let Err(error) = scene.lab.down() {
                    eprintln!("{error}");
                    ended = ExitCode::FAILURE;
                }
            }
            Some(Err(error)) => eprintln!("{error}"),
        }
    }
    ended
}

/// The stage of a mode, made by the first story that is told there.
type Stage = Arc<OnceLock<Result<Scene, String>>>;

/// The stories that are told of a mode.
fn told_of(mode: Mode) -> impl Iterator<Item = (&'static str, &'static Story)> {
    let modules = [
        ("basic", basic::STORIES),
        ("counted", counted::STORIES),
        ("ports", ports::STORIES),
        ("frontends", frontends::STORIES),
        ("policy", policy::STORIES),
        ("terminating", terminating::STORIES),
        ("affinity", affinity::STORIES),
        ("udp", udp::STORIES),
        ("established", established::STORIES),
        ("explained", explained::STORIES),
        ("daemon", daemon::STORIES),
        ("stacks", stacks::STORIES),
        ("carried", userspace::STORIES),
    ];
    // The same rules by the other programs: some stories that change them most.
    let by_legacy = ["ports", "terminating", "stacks"];
    let all = modules.into_iter().flat_map(|(module, stories)| stories.iter().map(move |it| (module, it)));
    all.filter(move |(module, (story, ..))| match mode {
        Mode::Nftables | Mode::Iptables => *module != "carried",
        Mode::IptablesLegacy => by_legacy.contains(module),
        Mode::Userspace => !LED.contains(story),
    })
}

/// Stories that are so where the kernel leads connections to endpoints: who is seen as whom, what loopback
/// addresses are not for, who counts. [`userspace`] tells what is so where the proxy carries them.
const LED: [&str; 6] = [
    "servers_see_the_pod_that_asks",
    "node_ports_stay_off_loopback",
    "external_local_shows_the_client",
    "load_balancers_that_show_the_client",
    "the_external_policy_changes",
    "bytes_by_service_and_endpoint",
];

/// Every story for every family, each with a number of its own, from which its addresses and ports follow.
fn trials(mode: Mode, stage: &Stage) -> Vec<Trial> {
    let told = told_of(mode).flat_map(|(module, (name, families, story))| {
        families.each().iter().map(move |v6| {
            let family = match families {
                Families::Each if *v6 => "_v6",
                Families::Each => "_v4",
                Families::Both => "",
            };
            (format!("{mode}::{module}::{name}{family}"), *v6, *story)
        })
    });
    let trial = |(number, (name, v6, story)): (u8, (String, bool, Tell))| {
        let stage = stage.clone();
        let service = name.rsplit(':').next().unwrap_or_default().replace('_', "-");
        Trial::test(name, move || {
            let scene = stage.get_or_init(|| Scene::new(mode).map_err(|error| error.chain()));
            let scene = scene.as_ref().map_err(Clone::clone)?;
            story(&Case { scene, name: service.clone(), number, v6 }).map_err(|error| error.chain().into())
        })
    };
    (1..=u8::MAX).zip(told).map(trial).collect()
}

/// Each name on the page is a story's of this target, or a test's of another one.
fn readme_names_stories_that_exist() -> Result<(), Failed> {
    let others = [
        ("services_api", include_str!("../services_api.rs")),
        ("services_faults", include_str!("../services_faults/main.rs")),
        ("services_faults", include_str!("../services_faults/iptables.rs")),
        ("services_loopback", include_str!("../services_loopback.rs")),
    ];
    let names = include_str!("README.md").split('`').filter(|words| words.contains("::"));
    let (mut missing, mut count) = (Vec::new(), 0);
    for (name, (module, story)) in names.filter_map(|name| Some((name, name.split_once("::")?))) {
        let here = told_of(Mode::Nftables).any(|(its, (name, ..))| (its, *name) == (module, story));
        let test = format!("#[test]\nfn {story}()");
        let there = others.iter().any(|(target, text)| *target == module && text.contains(&test));
        count += 1;
        if !here && !there {
            missing.push(name);
        }
    }
    if missing.is_empty() && count > 60 { Ok(()) } else { Err(format!("{missing:?} of {count}").into()) }
}
