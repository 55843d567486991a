//! Where Services, EndpointSlices and Nodes come from: what every source tells, in the same words.
//!
//! A source never ends and never gives up. What it cannot read stays as it was known.

use std::fmt;
use std::future::Future;
use std::time::{Instant, SystemTime};

use crate::manifests::FileProblem;
use crate::model::{Change, Problem};

/// Tells what is declared.
pub trait Source: Send {
    /// Waits for the next news. The first ones are whatever there is; then come changes. The future may
    /// be dropped at any time: nothing is lost by it.
    fn next(&mut self) -> impl Future<Output = News> + Send;
}

/// What a source has to say.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Something is different, or the source has seen more than before.
    Update(Update),
    /// The source cannot be asked at present and goes on trying; what is known stays. The next
    /// [`News::Update`] says whether it can be asked again. One line for a person.
    Away(String),
}

/// What is different.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Changes of the model, in order. A source that had to list everything anew says here also what
    /// is gone.
    pub changes: Vec<Change>,
    /// What is wrong with objects. It has taken nothing away.
    pub problems: Vec<SourceProblem>,
    /// Up to where the source has been read, this update included.
    pub revisions: Revisions,
    /// Services and EndpointSlices have both been listed at least once. Before that nothing is
    /// programmed: half a list would take away what the kernel holds of the other half.
    pub complete: bool,
    /// When the first of these changes had been parsed: from here on it is our time that runs.
    pub parsed: Instant,
    /// When what these changes tell of happened, for each slice that says so
    /// (`endpoints.kubernetes.io/last-change-trigger-time`): the beginning of what
    /// `kubeproxy_network_programming_duration_seconds` measures. Not for what a list brought, whose
    /// changes may be as old as they like.
    pub triggered: Vec<SystemTime>,
    /// A part of the source cannot be asked at present, as with [`News::Away`]; None if all of it can.
    pub away: Option<String>,
}

/// The resource versions that stand for everything before them. A source without such (a folder of
/// manifests) has none. After the store was made anew they may go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    /// Of Services.
    pub services: Option<u64>,
    /// Of EndpointSlices.
    pub slices: Option<u64>,
}

/// Something wrong with an object: which, where, and which rule it breaks.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceProblem {
    /// In a file.
    File(FileProblem),
    /// In an object of the API.
    Object(Problem),
}

impl fmt::Display for SourceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(problem) => problem.fmt(f),
            Self::Object(problem) => problem.fmt(f),
        }
    }
}

impl Update {
    /// Nothing is different.
    pub fn of_nothing(parsed: Instant) -> Self {
        Self {
            changes: Vec::new(),
            problems: Vec::new(),
            revisions: Revisions::default(),
            complete: false,
            parsed,
            triggered: Vec::new(),
            away: None,
        }
    }

    /// What comes after this, in one.
    pub fn join(&mut self, later: Self) {
        self.changes.extend(later.changes);
        self.problems.extend(later.problems);
        self.revisions = later.revisions;
        self.complete = later.complete;
        self.triggered.extend(later.triggered);
        self.away = later.away;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, ServiceName};

    #[test]
    fn updates_in_one_keep_their_order_and_the_first_time() {
        let gone = |name| Change::Remove(ObjectName::Service(ServiceName::new("shop", name)));
        let at = |slices| Revisions { services: Some(7), slices };
        let parsed = Instant::now();
        let update = |name, slices, complete, parsed| Update {
            changes: vec![gone(name)],
            revisions: at(slices),
            complete,
            ..Update::of_nothing(parsed)
        };
        let mut first = update("a", None, false, parsed);
        first.join(update("b", Some(9), true, parsed + std::time::Duration::from_secs(1)));
        assert_eq!(
            first,
            Update { changes: vec![gone("a"), gone("b")], ..update("a", Some(9), true, parsed) }
        );
    }
}
