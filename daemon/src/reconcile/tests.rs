//! The loop on paused time: it is exact to the millisecond, and takes none.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// When a run began, in milliseconds after the start, and why.
type Run = (u128, Vec<&'static str>);

/// A loop whose runs are noted, and can be made to fail or to take long.
#[derive(Default)]
struct Story {
    trigger: Trigger,
    shutdown: CancellationToken,
    metrics: Metrics,
    runs: Arc<Mutex<Vec<Run>>>,
    failing: Arc<AtomicBool>,
    milliseconds: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
}

impl Story {
    fn start(&self) -> tokio::task::JoinHandle<()> {
        let reconcile = Loop::new("kernel", Pace::default(), &self.metrics);
        let (trigger, shutdown, begin) = (self.trigger.clone(), self.shutdown.clone(), Instant::now());
        let (runs, failing) = (self.runs.clone(), self.failing.clone());
        let (milliseconds, at_once) = (self.milliseconds.clone(), self.at_once.clone());
        tokio::spawn(async move {
            let body = |reasons: Reasons| {
                runs.lock().unwrap().push((begin.elapsed().as_millis(), reasons.into_iter().collect()));
                let (failing, milliseconds, at_once) =
                    (failing.clone(), milliseconds.clone(), at_once.clone());
                async move {
                    assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "one run at a time");
                    let _left = Left(at_once);
                    let takes = milliseconds.load(Ordering::SeqCst) as u64;
                    tokio::time::sleep(Duration::from_millis(takes)).await;
                    if failing.load(Ordering::SeqCst) { Err(std::io::Error::other("no")) } else { Ok(2) }
                }
            };
            reconcile.run(&trigger, &shutdown, body).await;
        })
    }

    fn runs(&self) -> Vec<Run> {
        std::mem::take(&mut self.runs.lock().unwrap())
    }

    fn counted(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|found| found == line)
    }
}

struct Left(Arc<AtomicUsize>);
impl Drop for Left {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Lets this much time pass. Paused time moves only when every task waits.
async fn pass(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test(start_paused = true)]
async fn it_runs_at_start_on_events_and_on_the_timer() {
    let story = Story::default();
    story.start();
    pass(1000).await;
    assert_eq!(story.runs(), [(0, vec!["start"])]);
    story.trigger.fire("store");
    pass(1).await;
    assert_eq!(story.runs(), [(1000, vec!["store"])]);
    pass(40_000).await;
    assert_eq!(story.runs(), [(31_000, vec!["timer"])]);
    assert!(story.counted(r#"weft_reconcile_runs_total{loop="kernel",result="ok"} 3"#));
    assert!(story.counted(r#"weft_reconcile_triggers_total{loop="kernel",reason="store"} 1"#));
    assert!(story.counted(r#"weft_reconcile_changes_total{loop="kernel"} 6"#));
    assert!(story.counted(r#"weft_reconcile_seconds_count{loop="kernel"} 3"#));
}

#[tokio::test(start_paused = true)]
async fn a_burst_during_a_run_is_one_further_run() {
    let story = Story::default();
    story.milliseconds.store(10, Ordering::SeqCst);
    story.start();
    pass(5).await;
    for _ in 0..1000 {
        story.trigger.fire("store");
        story.trigger.fire("kernel");
    }
    pass(1000).await;
    assert_eq!(story.runs(), [(0, vec!["start"]), (10, vec!["kernel", "store"])]);
}

#[tokio::test(start_paused = true)]
async fn a_trigger_before_the_start_is_part_of_the_first_run() {
    let story = Story::default();
    story.trigger.fire("store");
    story.start();
    pass(1000).await;
    assert_eq!(story.runs(), [(0, vec!["store"])]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_ever_more_slowly_until_they_end() {
    let story = Story::default();
    story.failing.store(true, Ordering::SeqCst);
    story.start();
    pass(1600).await;
    let at: Vec<_> = story.runs().into_iter().map(|(at, _)| at).collect();
    assert_eq!(at, [0, 100, 300, 700, 1500]);
    assert!(story.counted(r#"weft_reconcile_failing{loop="kernel"} 1"#));
    story.failing.store(false, Ordering::SeqCst);
    pass(2000).await;
    assert_eq!(story.runs(), [(3100, vec!["retry"])]);
    assert!(story.counted(r#"weft_reconcile_failing{loop="kernel"} 0"#));
    pass(30_000).await;
    assert_eq!(story.runs(), [(33_100, vec!["timer"])]);
}

#[tokio::test(start_paused = true)]
async fn an_event_need_not_wait_for_a_long_retry_but_cannot_spin() {
    let story = Story::default();
    story.failing.store(true, Ordering::SeqCst);
    story.start();
    pass(10_000).await;
    story.runs();
    for _ in 0..1000 {
        story.trigger.fire("kernel");
        pass(1).await;
    }
    let runs = story.runs();
    assert!((4..=5).contains(&runs.len()), "{runs:?}");
    assert_eq!(runs[0], (10_000, vec!["kernel"]));
}

#[tokio::test(start_paused = true)]
async fn a_run_without_end_is_given_up() {
    let story = Story::default();
    story.milliseconds.store(usize::MAX >> 12, Ordering::SeqCst);
    story.start();
    pass(60_000).await;
    story.milliseconds.store(0, Ordering::SeqCst);
    pass(200).await;
    assert_eq!(story.runs(), [(0, vec!["start"]), (60_100, vec!["retry"])]);
    assert!(story.counted(r#"weft_reconcile_runs_total{loop="kernel",result="timeout"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_the_run_under_way_finish() {
    let story = Story::default();
    story.milliseconds.store(500, Ordering::SeqCst);
    let looping = story.start();
    pass(100).await;
    story.trigger.fire("store");
    story.shutdown.cancel();
    looping.await.unwrap();
    assert_eq!(story.runs(), [(0, vec!["start"])]);
    assert!(story.counted(r#"weft_reconcile_runs_total{loop="kernel",result="ok"} 1"#));
}
