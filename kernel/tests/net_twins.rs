//! The fake is honest: on any walk it accepts, refuses and holds what the kernel does.

mod scene;

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use proptest::prelude::*;
use tokio::time::Instant;
use weft_kernel::net::*;

/// Generous: the machine may be busy, and carriers are noticed by a worker of the kernel.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be compared: numbers and MACs that nobody chose differ, and so do addresses that IPv6
/// gives itself.
fn comparable(mut state: State) -> State {
    for link in state.links.values_mut() {
        link.index = 0;
        link.carrier |= link.kind == LinkKind::Bridge && link.up;
        link.mac = link.mac.filter(|mac| mac.0.starts_with(&[0x4e, 0x11, 0, 0, 0]));
    }
    state.addresses.retain(
        |address| !matches!(address.network.ip(), std::net::IpAddr::V6(ip) if ip.is_unicast_link_local()),
    );
    state.passing.clear();
    state
}

/// All steps but those of what the fake leaves out: IPv4 secondary addresses.
fn modelled() -> Vec<Change> {
    let secondary = scene::address("up0", "192.0.2.2/24");
    let mut steps = scene::steps();
    steps.retain(|step| !matches!(step, Change::AddAddress(address) if *address == secondary));
    steps
}

async fn walk(steps: &[usize]) -> Result<(), String> {
    let all = modelled();
    let kernel = scene::fresh_kernel();
    let fake = FakeNet::new();
    let mut events = fake.events().unwrap();
    let mut told = fake.state();
    for (at, nth) in steps.iter().enumerate() {
        let step = &all[nth % all.len()];
        let by_kernel = kernel.apply(std::slice::from_ref(step)).await;
        let by_fake = fake.apply(std::slice::from_ref(step)).await;
        let errno = |failures: &[Failure]| failures.first().and_then(|failure| failure.source.raw_os_error());
        if errno(&by_kernel) != errno(&by_fake) {
            return Err(format!("step {at}, {step}: the kernel says {by_kernel:?}, the fake {by_fake:?}"));
        }
        while let Some(Some(event)) = events.next().now_or_never() {
            if told.absorb(&event) == Absorbed::ObserveAgain {
                told = fake.observe().await.unwrap();
            }
        }
        if told != fake.state() {
            return Err(format!(
                "step {at}, {step}: the fake's events tell {told:#?}, but it holds {fake:#?}"
            ));
        }
        let held = comparable(fake.state());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = comparable(kernel.observe().await.unwrap());
            if seen == held {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "step {at}, {step}: the fake holds\n{held:#?}\nbut the kernel\n{seen:#?}"
                ));
            }
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_fake_does_what_the_kernel_does(steps in prop::collection::vec(any::<usize>(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let steps: Vec<usize> = [0, 2, 5, 8].into_iter().chain(steps).collect();
        let all = modelled();
        let told = |wrong| {
            let steps: Vec<String> = steps.iter().map(|nth| all[nth % all.len()].to_string()).collect();
            TestCaseError::fail(format!("{}\n{wrong}", steps.join("\n")))
        };
        runtime.block_on(walk(&steps)).map_err(told)?;
    }
}
