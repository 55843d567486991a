//! A Kubernetes API server as the source of Services, EndpointSlices and this host's Node.
//!
//! - [`access`]: which server and with what credentials: a kubeconfig, or a pod's service account;
//! - `resource`, `answer`, `lines`: what the bytes of an answer mean, pure;
//! - `follow`: what to ask next and what follows from the answer, pure;
//! - `ask`: a task for each resource that does it, with timeouts and backoff;
//! - `testing` (feature): an API server for tests.
//!
//! `kube` makes the connection, reads kubeconfigs and runs credential plugins. Lists and watches are
//! driven here and not by its watcher, because the programmed revision needs every version that an
//! event or a bookmark brings, an object with a mistake must not spoil the page it came in, and of
//! tens of thousands of objects none is kept as the API wrote it: each becomes the model's small form
//! as soon as its page is here.
//!
//! Lists come in pages, which every API server has; a list as a stream (`sendInitialEvents`) would
//! save the server work, and needs another way for servers without it.
//!
//! A server that is away, or does not make sense, takes nothing away: what is known stays, and there is
//! a reason to tell. A kubeconfig's credentials are read anew after each failure, so they may be
//! exchanged while we run.

pub mod access;
mod answer;
mod ask;
pub mod backoff;
mod failure;
mod follow;
mod lines;
mod resource;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use access::{Access, AccessError};
pub use ask::Patience;

use crate::model::NodeName;
use crate::source::{self, News, Revisions, SourceProblem, Update};
use access::Link;
use ask::{Said, Task};
use follow::{Batch, Follower};
use resource::Resource;

/// How many batches may wait to be taken. With more, the tasks wait, and with them the server.
const QUEUE: usize = 16;
/// More changes are for the next update.
const UPDATE: usize = 4096;

const SERVICES: usize = 0;
const SLICES: usize = 1;

/// The API server, followed. Dropping it ends that.
#[derive(Debug)]
pub struct Source {
    said: mpsc::Receiver<(usize, Said)>,
    tasks: JoinSet<()>,
    /// By [`SERVICES`] and [`SLICES`]; then the Node.
    followed: [Followed; 3],
}

/// How one of the resources stands.
#[derive(Debug, Default)]
struct Followed {
    /// Everything up to here was said; None until it has been listed.
    revision: Option<u64>,
    trouble: Option<String>,
    /// The server will not let us have it.
    refused: bool,
}

impl Source {
    /// Begins to follow what concerns the host of that name.
    ///
    /// # Errors
    /// When the kubeconfig or the service account is of no use. A server that cannot be reached is none:
    /// that is told as news.
    pub async fn open(access: Access, node: NodeName, patience: Patience) -> Result<Self, AccessError> {
        let link = Arc::new(Link::open(access).await?);
        let (sender, said) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        for (index, resource) in
            [Resource::Services, Resource::Slices, Resource::Node(node)].into_iter().enumerate()
        {
            let follower = Follower::new(resource);
            let (link, said) = (link.clone(), sender.clone());
            tasks.spawn(Task::new(follower, link, patience, said, index).run());
        }
        Ok(Self { said, tasks, followed: Default::default() })
    }

    /// Takes in what a task said, and what waits behind it. None if that is nothing new.
    fn absorb(&mut self, first: (usize, Said)) -> Option<Update> {
        let trouble = self.trouble();
        let mut update: Option<Update> = None;
        let mut next = Some(first);
        while let Some((index, said)) = next {
            let followed = &mut self.followed[index];
            match said {
                Said::Batch(batch, parsed) => {
                    followed.revision = batch.revision.or(followed.revision);
                    add(&mut update, batch, parsed);
                }
                Said::Trouble { reason, definite } => {
                    (followed.trouble, followed.refused) = (Some(reason), definite);
                }
                Said::Works => followed.trouble = None,
            }
            let full = update.as_ref().is_some_and(|update| update.changes.len() >= UPDATE);
            next = if full { None } else { self.said.try_recv().ok() };
        }
        let now = self.trouble();
        let changed = trouble != now;
        if update.is_none() && !changed {
            return None;
        }
        let mut update = update.unwrap_or_else(|| Update::of_nothing(Instant::now()));
        (update.revisions, update.complete, update.away) = (self.revisions(), self.complete(), now);
        Some(update)
    }

    /// In the order of the resources, so that the same trouble has the same words.
    fn trouble(&self) -> Option<String> {
        self.followed.iter().find_map(|followed| followed.trouble.clone())
    }

    fn revisions(&self) -> Revisions {
        Revisions { services: self.followed[SERVICES].revision, slices: self.followed[SLICES].revision }
    }

    /// A host whose Node we may not read has no zone; that is no reason to serve nobody.
    fn complete(&self) -> bool {
        let [services, slices, node] = &self.followed;
        let listed = |followed: &Followed| followed.revision.is_some();
        listed(services) && listed(slices) && (listed(node) || node.refused)
    }
}

impl source::Source for Source {
    async fn next(&mut self) -> News {
        loop {
            tokio::select! {
                said = self.said.recv() => match said.map(|said| self.absorb(said)) {
                    Some(Some(update)) => return News::Update(update),
                    Some(None) => {}
                    None => std::future::pending().await,
                },
                // A task ends only by a panic while we listen, or with the runtime.
                Some(Err(error)) = self.tasks.join_next() => {
                    if error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
            }
        }
    }
}

fn add(update: &mut Option<Update>, batch: Batch, parsed: Instant) {
    let update = update.get_or_insert_with(|| Update::of_nothing(parsed));
    update.changes.extend(batch.changes);
    update.triggered.extend(batch.triggered);
    update.problems.extend(batch.problems.into_iter().map(SourceProblem::Object));
}
