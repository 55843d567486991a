//! What the stories stand on: etcd processes, a relay that can misbehave, certificates, and waits
//! with a deadline.

pub(crate) mod certs;
pub(crate) mod etcd;
pub(crate) mod harness;
pub(crate) mod relay;

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use weft_store::{Change, Watch, WatchEvent};

/// Generous: two busy cores may be shared with a dozen other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The watch's next event.
pub(crate) async fn next(watch: &mut Watch) -> WatchEvent {
    timeout(PATIENCE, watch.next()).await.expect("the watch says nothing")
}

/// The watch's next changes, the end of an outage skipped.
pub(crate) async fn changes(watch: &mut Watch) -> Vec<Change> {
    let changes = async {
        loop {
            match watch.next().await {
                WatchEvent::Changes { changes, .. } => return changes,
                WatchEvent::Disconnected { .. } | WatchEvent::Reconnected => {}
                other => panic!("expected changes, got {other:?}"),
            }
        }
    };
    timeout(PATIENCE, changes).await.expect("the watch tells no change")
}

/// Waits for the outage to be said.
pub(crate) async fn disconnected(watch: &mut Watch) {
    match next(watch).await {
        WatchEvent::Disconnected { reason } => assert!(!reason.is_empty()),
        other => panic!("expected an outage, got {other:?}"),
    }
}

/// Waits until the condition gives something; panics with what it last said otherwise.
pub(crate) async fn until<T, E: std::fmt::Debug>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition().await {
            Ok(done) => return done,
            Err(why) => assert!(Instant::now() < deadline, "{what}: {why:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}
