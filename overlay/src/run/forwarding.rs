//! Our accept rules in iptables' chains, where those would drop pods' forwarded packets; kept so.
//!
//! iptables' programs wait for their lock and read every rule there is, which takes seconds beside a
//! large kube-proxy. A pass waits for them once; later looks run beside the passes, so that the rest of
//! the data path is healed meanwhile, and ask for a pass when they have something to tell.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::sync::oneshot::{self, error::TryRecvError};
use weft_daemon::log::chain;
use weft_daemon::reconcile::Trigger;
use weft_kernel::iptables::{Iptables, programs};
use weft_kernel::nft::{Nft, TableKey};

use crate::firewall::forward;
use crate::model::Model;

/// How long iptables' programs may take together; they wait up to five seconds for their lock.
const PATIENCE: Duration = Duration::from_secs(20);

/// A look at the rule sets, and the changes they need.
type Look = Result<Opened, String>;

/// What is known of iptables' rule sets.
pub(super) struct Forwarding {
    /// Looks; blocks.
    open: Arc<dyn Fn(&Wanted) -> Look + Send + Sync>,
    /// Asks for a pass when a look is done.
    trigger: Trigger,
    /// Somebody may have changed them since they were looked at.
    doubted: bool,
    /// For whom they were opened last.
    wanted: Option<Wanted>,
    /// What nobody but a person can mend; or why the last look failed.
    obstacles: Result<Vec<String>, String>,
    /// A look that is under way.
    looking: Option<oneshot::Receiver<Look>>,
}

/// What should pass, as far as it shows in the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    network: String,
    v4: Option<IpNetwork>,
    v6: Option<IpNetwork>,
}

/// How a look at iptables went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Opened {
    /// How many rule sets were changed.
    pub(super) changed: usize,
    /// What was changed had been right, so somebody else had a hand in it.
    pub(super) healed: bool,
    /// What stands in the way and is not ours to change.
    pub(super) obstacles: Vec<String>,
}

impl Forwarding {
    pub(super) fn new(trigger: &Trigger) -> Self {
        Self::looking_by(Arc::new(open), trigger)
    }

    fn looking_by(open: Arc<dyn Fn(&Wanted) -> Look + Send + Sync>, trigger: &Trigger) -> Self {
        let (trigger, obstacles) = (trigger.clone(), Ok(vec![]));
        Self { open, trigger, doubted: true, wanted: None, obstacles, looking: None }
    }

    /// Somebody changed a `filter` table, or it is time: legacy iptables tells nobody of changes.
    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Lets pods' packets pass where they would be dropped; looks only when there is a reason.
    pub(super) async fn keep(&mut self, model: &Model) -> Result<Opened, String> {
        let accepted = |network: Option<IpNetwork>| network.filter(|_| model.forward_accept);
        let wanted = Wanted {
            network: model.me.network.clone(),
            v4: accepted(model.config.v4.map(|pool| pool.network.into())),
            v6: accepted(model.config.v6.map(|pool| pool.network.into())),
        };
        if self.wanted.as_ref() != Some(&wanted) {
            // Two looks at once would undo each other's steps.
            if let Some(earlier) = self.looking.take() {
                let _ = earlier.await;
            }
            self.doubted = false;
            let look = self.begin(&wanted).await.unwrap_or_else(|_| Err("the look ended early".into()));
            let opened = self.learn(look)?;
            self.wanted = Some(wanted);
            return Ok(opened);
        }
        // A look that failed just now is tried again by a later pass, which comes the later the more fail.
        let doubted = self.doubted;
        let done = match self.looking.as_mut().map(oneshot::Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => None,
            Some(Err(TryRecvError::Closed)) => Some(Err("the look ended early".to_owned())),
            Some(Ok(look)) => Some(look),
        };
        let opened = match done {
            Some(look) => {
                self.looking = None;
                self.learn(look).map(|opened| Opened { healed: opened.changed > 0, ..opened })
            }
            None => self.obstacles.clone().map(|obstacles| Opened { obstacles, ..Opened::default() }),
        };
        if doubted && self.looking.is_none() {
            self.doubted = false;
            self.looking = Some(self.begin(&wanted));
        }
        opened
    }

    /// Looks on a thread of its own: the programs block, and other tasks must go on.
    fn begin(&self, wanted: &Wanted) -> oneshot::Receiver<Look> {
        let (tell, told) = oneshot::channel();
        let (open, wanted, trigger) = (Arc::clone(&self.open), wanted.clone(), self.trigger.clone());
        tokio::spawn(async move {
            let looking = tokio::task::spawn_blocking(move || open(&wanted));
            let look = match tokio::time::timeout(PATIENCE, looking).await {
                Ok(Ok(look)) => look,
                Ok(Err(panicked)) => Err(panicked.to_string()),
                Err(_) => Err(format!("iptables did not answer within {PATIENCE:?}")),
            };
            // Nobody waits any more if the daemon ends.
            let _ = tell.send(look);
            trigger.fire("forwarding");
        });
        told
    }

    /// What failed is tried again by the next pass.
    fn learn(&mut self, look: Look) -> Look {
        self.doubted |= look.is_err();
        self.obstacles = look.as_ref().map(|opened| opened.obstacles.clone()).map_err(String::clone);
        look
    }
}

/// All rule sets in use, one after the other; one that fails does not keep the others closed.
fn open(wanted: &Wanted) -> Result<Opened, String> {
    let (mut opened, mut failed) = (Opened::default(), BTreeSet::new());
    for set in programs::in_use(&tables()?) {
        let pods = if set.ipv6 { wanted.v6 } else { wanted.v4 };
        let done = programs::save(set).and_then(|saved| {
            opened.obstacles.extend(pods.and_then(|pods| obstacle(&saved, pods)));
            let steps = forward::open(&saved, &wanted.network, pods);
            programs::restore(set, &steps)?;
            Ok(!steps.is_empty())
        });
        match done {
            Ok(changed) => opened.changed += usize::from(changed),
            Err(error) => failed.extend([format!("{}: {}", name(set), chain(&error))]),
        }
    }
    if failed.is_empty() { Ok(opened) } else { Err(failed.into_iter().collect::<Vec<_>>().join("; ")) }
}

fn obstacle(saved: &str, pods: IpNetwork) -> Option<String> {
    let (what, run) = forward::obstacle(saved, pods)?;
    Some(format!("{what}; run: {}", run.join("; ")))
}

fn tables() -> Result<Vec<TableKey>, String> {
    let mut nft = Nft::open().map_err(|error| format!("cannot open a netlink socket: {error}"))?;
    nft.tables().map_err(|error| chain(&error))
}

fn name(set: Iptables) -> &'static str {
    set.save_program().trim_end_matches("-save")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;

    use super::*;
    use crate::fixtures;

    /// Looks end when, and as, the test says.
    fn forwarding() -> (Forwarding, mpsc::Sender<Look>) {
        let (say, said) = mpsc::channel();
        let said = Mutex::new(said);
        let open = move |_: &Wanted| said.lock().unwrap().recv().unwrap();
        (Forwarding::looking_by(Arc::new(open), &Trigger::new()), say)
    }

    fn opened(changed: usize) -> Opened {
        Opened { changed, ..Opened::default() }
    }

    /// As the passes do that a look asks for when it is done.
    async fn next(forwarding: &mut Forwarding, model: &Model, before: &Look) -> Look {
        loop {
            let now = forwarding.keep(model).await;
            if now != *before {
                return now;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn only_the_first_look_is_waited_for() {
        let (mut forwarding, say) = forwarding();
        let model = fixtures::model(fixtures::vxlan(), fixtures::V4, fixtures::V4);
        say.send(Ok(opened(2))).unwrap();
        assert_eq!(forwarding.keep(&model).await, Ok(opened(2)), "not healed: it was never right");
        assert_eq!(forwarding.keep(&model).await, Ok(opened(0)));
        assert!(forwarding.looking.is_none(), "nothing happened, so nobody looks");

        forwarding.doubt();
        for _ in 0..2 {
            assert_eq!(forwarding.keep(&model).await, Ok(opened(0)), "while iptables takes its time");
        }
        say.send(Ok(opened(1))).unwrap();
        let healed = next(&mut forwarding, &model, &Ok(opened(0))).await;
        assert_eq!(healed, Ok(Opened { healed: true, ..opened(1) }));
        assert!(forwarding.looking.is_none());
    }

    #[tokio::test]
    async fn a_failure_is_told_until_a_later_look_succeeds() {
        let (mut forwarding, say) = forwarding();
        let model = fixtures::model(fixtures::vxlan(), fixtures::V4, fixtures::V4);
        let failed: Look = Err("iptables-save says: no".into());
        say.send(failed.clone()).unwrap();
        assert_eq!(forwarding.keep(&model).await, failed);
        say.send(Ok(opened(0))).unwrap();
        assert_eq!(forwarding.keep(&model).await, Ok(opened(0)));

        forwarding.doubt();
        assert_eq!(forwarding.keep(&model).await, Ok(opened(0)));
        say.send(failed.clone()).unwrap();
        assert_eq!(next(&mut forwarding, &model, &Ok(opened(0))).await, failed);
        assert_eq!(forwarding.keep(&model).await, failed, "it looks again, and is still not content");
        say.send(Ok(opened(0))).unwrap();
        assert_eq!(next(&mut forwarding, &model, &failed).await, Ok(opened(0)));
    }
}
