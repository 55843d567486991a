//! What was told of one resource so far, what to ask next, and what follows from the answer. Pure: no
//! I/O, no clock.
//!
//! First everything is listed, page by page; then the changes since that list's version are watched.
//! A watch that breaks is resumed from the last version that an event or a bookmark brought. If the
//! server no longer has that version's history, everything is listed anew, and what is not in the new
//! list is gone: nothing is missed and nothing invented, however long we were away.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::answer::{self, Event, Nonsense, Page, Status};
use super::failure::Failure;
use super::resource::{Resource, Written, escaped};
use crate::model::{Change, ObjectName, Problem};

/// How many objects are asked for at once, as client-go does. A page of usual objects is a megabyte.
const PAGE: u32 = 500;

/// One resource, followed.
#[derive(Debug)]
pub(super) struct Follower {
    resource: Resource,
    at: At,
    /// What there is, as far as we said.
    known: BTreeSet<ObjectName>,
    /// Everything up to here has been said.
    revision: Option<u64>,
    /// How many objects to ask for at once.
    limit: u32,
}

#[derive(Debug, PartialEq)]
enum At {
    /// On the way through a list.
    List { next: Option<String>, seen: BTreeSet<ObjectName> },
    /// Behind this version there may be more.
    Watch {
        version: String,
        /// The server may be another one than that which gave us the version: one whose store was put
        /// back to an earlier state. It would wait for our version to come, and say nothing.
        doubted: bool,
    },
}

/// What to ask next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// For a page of a list.
    Page,
    /// For what happens.
    Watch,
}

/// What there is to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) problems: Vec<Problem>,
    pub(super) triggered: Vec<SystemTime>,
    /// Everything up to here has been said now.
    pub(super) revision: Option<u64>,
}

impl Follower {
    pub(super) fn new(resource: Resource) -> Self {
        let at = At::List { next: None, seen: BTreeSet::new() };
        Self { resource, at, known: BTreeSet::new(), revision: None, limit: PAGE }
    }

    pub(super) fn resource(&self) -> &Resource {
        &self.resource
    }

    pub(super) fn ask(&self) -> Ask {
        match self.at {
            At::Watch { doubted: false, .. } => Ask::Watch,
            At::Watch { doubted: true, .. } | At::List { .. } => Ask::Page,
        }
    }

    /// The path and query to ask with. A watch shall end after so many seconds.
    pub(super) fn request(&self, seconds: u64) -> String {
        let mut query = match &self.at {
            At::List { next: None, .. } => format!("limit={}", self.limit),
            At::List { next: Some(next), .. } => format!("limit={}&continue={}", self.limit, escaped(next)),
            At::Watch { doubted: true, .. } => "limit=1".to_owned(),
            At::Watch { version, doubted: false } => format!(
                "watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={seconds}",
                escaped(version)
            ),
        };
        let selector = self.resource.selector();
        if !selector.is_empty() {
            query = format!("{query}&{selector}");
        }
        format!("{}?{query}", self.resource.path())
    }

    /// A page came.
    ///
    /// # Errors
    /// That its version is no number.
    pub(super) fn page(&mut self, page: Page) -> Result<Batch, Nonsense> {
        let revision = answer::number(&page.version)?;
        let mut batch = Batch::default();
        match &mut self.at {
            At::Watch { doubted, .. } => {
                if self.revision.is_some_and(|ours| revision < ours) {
                    self.list_anew();
                } else {
                    *doubted = false;
                }
            }
            At::List { next, seen } => {
                for written in page.objects {
                    seen.insert(written.name.clone());
                    batch.put(written);
                }
                *next = page.next;
                if next.is_none() {
                    let now = std::mem::take(seen);
                    let gone = self.known.difference(&now).cloned();
                    batch.changes.extend(gone.map(Change::Remove));
                    self.known = now;
                    self.revision = Some(revision);
                    batch.revision = self.revision;
                    self.at = At::Watch { version: page.version, doubted: false };
                }
                // What was triggered before we began to watch says nothing of us.
                batch.triggered.clear();
            }
        }
        Ok(batch)
    }

    /// An event of the watch came; what it means is added to the batch.
    ///
    /// # Errors
    /// That nothing more can be expected of this watch.
    pub(super) fn event(&mut self, event: Event, batch: &mut Batch) -> Result<(), Failure> {
        match event {
            Event::Put(written) => {
                self.advance(&written.version)?;
                self.known.insert(written.name.clone());
                batch.put(written);
            }
            Event::Gone { name, version } => {
                self.advance(&version)?;
                self.known.remove(&name);
                batch.changes.push(Change::Remove(name));
            }
            Event::Bookmark { version } => self.advance(&version)?,
            Event::Error(Status { code: 410, .. }) => return Err(Failure::Expired),
            Event::Error(status) => return Err(Failure::Broken(status)),
        }
        batch.revision = self.revision;
        Ok(())
    }

    /// The versions of a watch never go back; if they do, its store was put back to an earlier state.
    fn advance(&mut self, version: &str) -> Result<(), Nonsense> {
        let number = answer::number(version)?;
        if let Some(ours) = self.revision.filter(|ours| number < *ours) {
            return Err(Nonsense(format!("goes back from resource version {ours} to {number}")));
        }
        self.revision = Some(number);
        self.at = At::Watch { version: version.to_owned(), doubted: false };
        Ok(())
    }

    /// It did not work.
    pub(super) fn failed(&mut self, failure: &Failure) {
        match failure {
            Failure::TooLarge(_) if self.limit > 1 && self.ask() == Ask::Page => self.limit /= 4,
            failure if failure.history_lost() => self.list_anew(),
            _ => {}
        }
        self.limit = self.limit.max(1);
        if let At::Watch { doubted, .. } = &mut self.at {
            *doubted = true;
        }
    }

    fn list_anew(&mut self) {
        self.at = At::List { next: None, seen: BTreeSet::new() };
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn put(&mut self, written: Written) {
        self.changes.extend(written.change);
        self.problems.extend(written.problems);
        self.triggered.extend(written.triggered);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::access::AccessError;
    use super::*;
    use crate::model::ServiceName;

    fn name(text: &str) -> ObjectName {
        ObjectName::Service(ServiceName::new("shop", text))
    }

    fn written(text: &str, version: &str) -> Written {
        // Whether it makes sense is nobody's matter here.
        let (name, version) = (name(text), version.to_owned());
        Written { name, version, change: None, problems: Vec::new(), triggered: None }
    }

    fn page(version: &str, next: Option<&str>, names: &[&str]) -> Page {
        let objects = names.iter().map(|text| written(text, "5")).collect();
        Page { version: version.to_owned(), next: next.map(str::to_owned), objects }
    }

    /// Watches from version 10, and knows `a` and `b`.
    fn watching() -> Follower {
        let mut follower = Follower::new(Resource::Services);
        follower.page(page("10", None, &["a", "b"])).unwrap();
        assert_eq!(follower.ask(), Ask::Watch);
        follower
    }

    fn refused(code: u16) -> Failure {
        Failure::Refused { status: Status { code, message: String::new() }, after: None }
    }

    #[test]
    fn only_the_last_page_says_how_far_it_is_and_what_is_gone() {
        let mut follower = watching();
        follower.failed(&Failure::Expired);
        let first = follower.page(page("20", Some("more than/this"), &["c"])).unwrap();
        assert_eq!(first, Batch::default());
        assert_eq!(follower.request(9), "/api/v1/services?limit=500&continue=more%20than%2Fthis");
        let last = follower.page(page("20", None, &["b"])).unwrap();
        let gone = vec![Change::Remove(name("a"))];
        assert_eq!(last, Batch { changes: gone, revision: Some(20), ..Batch::default() });
        let query = "watch=1&allowWatchBookmarks=true&resourceVersion=20&timeoutSeconds=9";
        assert_eq!(follower.request(9), format!("/api/v1/services?{query}"));
    }

    #[test]
    fn what_is_asked_after_a_failure() {
        let silent = || Failure::Silent(Duration::from_secs(1));
        let table = [
            ("the history is gone", Failure::Expired, "limit=500"),
            ("nonsense", Failure::Nonsense(Nonsense("is nothing".into())), "limit=500"),
            ("an error in the stream", Failure::Broken(Status::default()), "limit=500"),
            ("a version that it cannot read", refused(400), "limit=500"),
            ("silence", silent(), "limit=1"),
            ("a broken connection", Failure::Unreachable("reset".into()), "limit=1"),
            ("a token that ran out", refused(401), "limit=1"),
            ("not allowed", refused(403), "limit=1"),
            ("too busy", refused(429), "limit=1"),
            ("broken inside", refused(500), "limit=1"),
            ("no credentials", AccessError::NotInCluster("no".into()).into(), "limit=1"),
        ];
        for (case, failure, query) in table {
            let mut follower = watching();
            follower.failed(&failure);
            assert_eq!(follower.request(9), format!("/api/v1/services?{query}"), "{case}");
        }
        let mut follower = watching();
        follower.failed(&silent());
        assert_eq!(follower.page(page("10", Some("1"), &["z"])).unwrap(), Batch::default());
        assert_eq!(follower.ask(), Ask::Watch, "it is as far as we are");
        follower.failed(&silent());
        follower.page(page("9", Some("1"), &["z"])).unwrap();
        assert_eq!(follower.request(9), "/api/v1/services?limit=500", "it was put back");
    }

    #[test]
    fn pages_that_are_too_large_become_smaller() {
        let mut follower = Follower::new(Resource::Services);
        let limits: Vec<String> = std::iter::repeat_with(|| {
            follower.failed(&Failure::TooLarge(7));
            follower.request(9)
        })
        .take(6)
        .collect();
        let wanted = [125, 31, 7, 1, 1, 1].map(|limit| format!("/api/v1/services?limit={limit}"));
        assert_eq!(limits, wanted);
    }

    #[test]
    fn a_watch_never_goes_back() {
        let mut batch = Batch::default();
        let mut follower = watching();
        let bookmark = |version: &str| Event::Bookmark { version: version.to_owned() };
        follower.event(bookmark("12"), &mut batch).unwrap();
        follower.event(bookmark("12"), &mut batch).unwrap();
        assert_eq!(batch, Batch { revision: Some(12), ..Batch::default() });
        let back = follower.event(Event::Put(written("a", "11")), &mut batch).unwrap_err();
        assert_eq!(back.to_string(), "the answer goes back from resource version 12 to 11");
        follower.failed(&back);
        assert_eq!(follower.request(9), "/api/v1/services?limit=500");
    }
}
