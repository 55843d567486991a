//! How far the kernel is: the revisions that it holds, never ahead of it, and who waits for them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::source::Revisions;

/// What the kernel is known to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// Everything up to here was acknowledged by the kernel.
    pub revisions: Revisions,
    /// The kernel is known to hold it still: nothing failed since, and nobody else had a hand in it.
    pub whole: bool,
}

/// The answer to `GET /programmed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The kernel holds what was asked for.
    pub reached: bool,
    /// The resource version of Services that it holds; none if the source has no such.
    pub services: Option<u64>,
    /// Of EndpointSlices.
    pub slices: Option<u64>,
    /// Why it is not reached; empty if it is.
    pub reason: String,
}

/// Keeps the book: what was read, what was acknowledged.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    read: Revisions,
    programmed: Programmed,
}

impl Book {
    /// The source has been read so far; the kernel has not been told yet.
    pub(super) fn read(&mut self, revisions: Revisions) {
        self.read = revisions;
    }

    /// Everything read so far is in the kernel, or (`whole` is false) it may not be.
    pub(super) fn settle(&mut self, whole: bool) -> Programmed {
        if whole {
            self.programmed.revisions = self.read;
        }
        self.programmed.whole = whole;
        self.programmed
    }
}

impl Programmed {
    /// Whether what is asked for is there. Nothing asked for means: all that is known.
    fn holds(&self, asked: Revisions) -> bool {
        let reached = |asked: Option<u64>, held: Option<u64>| asked.is_none_or(|asked| held >= Some(asked));
        self.whole
            && reached(asked.services, self.revisions.services)
            && reached(asked.slices, self.revisions.slices)
    }

    /// Whether to wait for it makes no sense: the source has no such revisions.
    fn is_hopeless(&self, asked: Revisions) -> bool {
        let never = |asked: Option<u64>, held: Option<u64>| asked.is_some() && held.is_none();
        self.whole
            && (never(asked.services, self.revisions.services) || never(asked.slices, self.revisions.slices))
    }

    fn answer(&self, asked: Revisions) -> Answer {
        let reached = self.holds(asked);
        let reason = if reached {
            ""
        } else if self.is_hopeless(asked) {
            "the source of services has no revisions"
        } else if self.whole {
            "not yet"
        } else {
            "the kernel does not hold everything: see /readyz"
        };
        let Revisions { services, slices } = self.revisions;
        Answer { reached, services, slices, reason: reason.to_owned() }
    }
}

/// Answers when the kernel holds what is asked for, or when the time is up.
pub(super) async fn wait(
    mut known: watch::Receiver<Programmed>,
    asked: Revisions,
    patience: Duration,
) -> Answer {
    let settled = known.wait_for(|it| it.holds(asked) || it.is_hopeless(asked));
    if let Ok(Ok(programmed)) = tokio::time::timeout(patience, settled).await {
        return programmed.answer(asked);
    }
    let programmed = *known.borrow();
    programmed.answer(asked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(services: impl Into<Option<u64>>, slices: impl Into<Option<u64>>) -> Revisions {
        Revisions { services: services.into(), slices: slices.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_is_answered() {
        let table = [
            //  held, whole, asked, reached, why not
            (at(5, 7), true, at(None, None), true, ""),
            (at(5, 7), true, at(5, None), true, ""),
            (at(5, 7), true, at(4, 7), true, ""),
            (at(5, 7), true, at(6, None), false, "not yet"),
            (at(5, 7), true, at(5, 8), false, "not yet"),
            (at(5, 7), false, at(5, 7), false, "the kernel does not hold everything: see /readyz"),
            (at(None, None), true, at(None, None), true, ""),
            (at(None, None), true, at(None, 1), false, "the source of services has no revisions"),
            (at(None, None), false, at(None, 1), false, "the kernel does not hold everything: see /readyz"),
        ];
        for (revisions, whole, asked, reached, reason) in table {
            let (_teller, known) = watch::channel(Programmed { revisions, whole });
            let answer = wait(known, asked, Duration::from_secs(5)).await;
            let Revisions { services, slices } = revisions;
            let expected = Answer { reached, services, slices, reason: reason.to_owned() };
            assert_eq!(answer, expected, "{revisions:?} {whole} {asked:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_hears_of_it() {
        let (teller, known) = watch::channel(Programmed::default());
        let waiting = tokio::spawn(wait(known, at(None, 9), Duration::from_secs(60)));
        for (slices, whole) in [(8, true), (9, false), (9, true)] {
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished(), "{slices} {whole}");
            teller.send_replace(Programmed { revisions: at(3, slices), whole });
        }
        assert!(waiting.await.unwrap().reached);
    }

    proptest! {
        /// What is said to be programmed was read, and settled, at that time.
        #[test]
        fn never_ahead_of_the_kernel(steps in proptest::collection::vec((0u64..9, proptest::option::of(any::<bool>())), 0..40)) {
            let (mut book, mut read, mut kernel) = (Book::default(), Revisions::default(), Revisions::default());
            for (revision, settled) in steps {
                match settled {
                    None => {
                        read = at(revision, revision);
                        book.read(read);
                    }
                    Some(whole) => {
                        if whole {
                            kernel = read;
                        }
                        prop_assert_eq!(book.settle(whole), Programmed { revisions: kernel, whole });
                    }
                }
            }
        }
    }
}
