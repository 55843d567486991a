//! Events tell the truth: a state that takes them in stays what a fresh look would see.

mod scene;

use std::time::Duration;

use futures::StreamExt;
use proptest::prelude::*;
use tokio::time::{Instant, timeout_at};
use weft_kernel::net::*;

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes events in until the state is what the kernel holds. Some events come later by themselves
/// (a carrier is noticed by a worker of the kernel), so the two may differ for a moment.
async fn catch_up(net: &Rtnetlink, events: &mut Events, state: &mut State) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = net.observe().await.unwrap();
        // All that was said before that look, and whatever came since.
        while let Ok(Some(event)) = timeout_at(Instant::now() + Duration::from_millis(1), events.next()).await
        {
            if state.absorb(&event) == Absorbed::ObserveAgain {
                *state = net.observe().await.unwrap();
            }
        }
        if without_untold(state.clone()) == without_untold(seen.clone()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("after all events:\n{state:#?}\nbut the kernel holds:\n{seen:#?}"));
        }
    }
}

/// What no event tells. Another alias for a link that is down is the one change the kernel tells nobody (net/core/dev.c,
/// `netdev_state_change`).
fn without_untold(mut state: State) -> State {
    for link in state.links.values_mut().filter(|link| !link.up) {
        link.alias = None;
    }
    // What addresses are for is only looked at, not told.
    state.passing.clear();
    state
}

async fn walk(steps: &[(usize, bool)]) -> Result<(), String> {
    let all = scene::steps();
    let net = scene::fresh_kernel();
    let mut events = net.events().unwrap();
    let mut state = net.observe().await.unwrap();
    let mut pending = vec![];
    for (nth, look) in steps {
        pending.push(all[nth % all.len()].clone());
        if *look {
            // Failures are part of the walk: a step may come too early or too late.
            let _ = net.apply(&pending).await;
            pending.clear();
            catch_up(&net, &mut events, &mut state).await?;
        }
    }
    let _ = net.apply(&pending).await;
    catch_up(&net, &mut events, &mut state).await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_events_tell_is_what_a_look_sees(
        steps in prop::collection::vec((any::<usize>(), any::<bool>()), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // A scene in which most steps can succeed comes first.
        let start = [0, 2, 5, 8].map(|nth| (nth, true));
        let steps: Vec<_> = start.into_iter().chain(steps).collect();
        let told = |wrong| {
            let all = scene::steps();
            let steps: Vec<String> = steps.iter().map(|(nth, look)| format!("{}{}", all[nth % all.len()], if *look { ";" } else { "" })).collect();
            TestCaseError::fail(format!("{}\n{wrong}", steps.join("\n")))
        };
        runtime.block_on(walk(&steps)).map_err(told)?;
    }
}
