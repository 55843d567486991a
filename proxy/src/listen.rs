//! Listens to nftables for as long as the daemon runs: a socket that fails is opened again, and what
//! nobody heard meanwhile is a doubt.

use std::io;
use std::time::Duration;

use tokio::time::sleep;
use weft_daemon::log::Repeated;
use weft_kernel::nft::{Event, Events};

use crate::backend::Doubt;

/// A socket that failed is opened again after this long; each further time in a row after twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// But never later than this.
const LAST: Duration = Duration::from_secs(10);

/// As the log calls it.
const DOING: &str = "listening to nftables' events";

/// A socket that tells what is done to nftables.
pub(crate) trait Listener: Send {
    /// The next event; waits for it. After an error nothing more is to be heard.
    fn next(&mut self) -> impl Future<Output = io::Result<Event>> + Send;
}

impl Listener for Events {
    fn next(&mut self) -> impl Future<Output = io::Result<Event>> + Send {
        Self::next(self)
    }
}

/// Raises a doubt for each event that `concerns` us, for events that were lost, and whenever another
/// socket was opened; for ever.
pub(crate) async fn follow<L: Listener, F: Future<Output = bool> + Send>(
    mut listener: L,
    mut open: impl FnMut() -> io::Result<L> + Send,
    mut concerns: impl FnMut(Event) -> F + Send,
    doubt: Doubt,
) {
    let (mut wait, mut failures) = (FIRST, Repeated::default());
    loop {
        match listener.next().await {
            Ok(event) => {
                wait = FIRST;
                if event == Event::Lost || concerns(event).await {
                    doubt.raise();
                }
                continue;
            }
            Err(error) => failures.warn(DOING, &error),
        }
        listener = loop {
            sleep(wait).await;
            wait = (wait * 2).min(LAST);
            match open() {
                Ok(listener) => break listener,
                Err(error) => failures.warn(DOING, &error),
            }
        };
        failures.recovered(DOING);
        doubt.raise();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use tokio::time::Instant;

    use super::*;

    /// Tells these, and then nothing any more.
    struct Told(VecDeque<io::Result<Event>>);

    impl Listener for Told {
        async fn next(&mut self) -> io::Result<Event> {
            match self.0.pop_front() {
                Some(told) => told,
                None => std::future::pending().await,
            }
        }
    }

    fn failed() -> io::Error {
        io::Error::from(io::ErrorKind::ConnectionReset)
    }

    fn commit(process: &str) -> Event {
        Event::Commit { port: 1, process: process.into(), tables: [].into() }
    }

    /// Listens to one after the other, each of which may be no good, and says after how many
    /// milliseconds doubts were raised.
    async fn doubts(first: Told, later: Vec<io::Result<Told>>, count: usize) -> Vec<u128> {
        let (doubt, later) = (Doubt::default(), Arc::new(Mutex::new(VecDeque::from(later))));
        let started = Instant::now();
        let open = move || later.lock().unwrap().pop_front().unwrap_or_else(|| Err(failed()));
        let concerns = async |event: Event| event == commit("somebody");
        let listening = tokio::spawn(follow(first, open, concerns, doubt.clone()));
        let mut raised = Vec::new();
        for _ in 0..count {
            tokio::time::timeout(Duration::from_secs(600), doubt.raised()).await.expect("a doubt");
            raised.push(started.elapsed().as_millis());
        }
        let more = tokio::time::timeout(Duration::from_secs(600), doubt.raised()).await;
        assert!(more.is_err() && !listening.is_finished());
        listening.abort();
        raised
    }

    #[tokio::test(start_paused = true)]
    async fn what_concerns_us_and_what_was_lost_is_a_doubt() {
        let told = |events: Vec<Event>| Told(events.into_iter().map(Ok).collect());
        assert_eq!(doubts(told(vec![commit("we")]), vec![], 0).await, [] as [u128; 0]);
        assert_eq!(doubts(told(vec![commit("we"), commit("somebody")]), vec![], 1).await, [0]);
        assert_eq!(doubts(told(vec![Event::Lost]), vec![], 1).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_fails_is_opened_again_and_everything_is_doubted() {
        let fails = || Told([Err(failed())].into());
        let works = || Told([Ok(commit("we")), Err(failed())].into());
        let silent = || Told(VecDeque::new());
        assert_eq!(doubts(fails(), vec![Ok(silent())], 1).await, [100]);
        // One cannot be opened, the next ones fail at once, and then one works for a while.
        let later = vec![Err(failed()), Ok(fails()), Ok(fails()), Ok(works()), Ok(silent())];
        assert_eq!(doubts(fails(), later, 4).await, [300, 700, 1500, 1600]);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_have_an_end() {
        let later = (0..20).map(|_| Err(failed())).chain([Ok(Told(VecDeque::new()))]).collect();
        let raised = doubts(Told([Err(failed())].into()), later, 1).await;
        // 100 ms doubled six times are less than ten seconds; then fourteen times that.
        assert_eq!(raised, [100 * 127 + 14 * 10_000]);
    }
}
