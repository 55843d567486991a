//! The task that follows one resource: asks, waits, says what came. What it decides is in
//! [`super::follow`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{Request, Response, StatusCode, header};
use kube::client::Body;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::access::{Link, Reached, without_secrets};
use super::answer::{self, Status};
use super::backoff::Backoff;
use super::failure::Failure;
use super::follow::{Ask, Batch, Follower};
use super::lines::Lines;

/// etcd takes objects of 1.5 MB (`--max-request-bytes`), and JSON is at most some times as long as
/// what is stored.
const LONGEST_EVENT: usize = 16 << 20;
/// A page that is longer is asked for again in smaller ones.
const LONGEST_PAGE: usize = 64 << 20;
/// Of a refusal.
const LONGEST_STATUS: usize = 64 << 10;
/// More changes are said in the next batch.
const BATCH: usize = 1000;
/// A watch that stood for so long was a good one, whatever it ended with.
const GOOD: Duration = Duration::from_secs(5);
/// A server that wants to be left alone for longer is asked all the same.
const LONGEST_AFTER: Duration = Duration::from_secs(60);

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For an answer to begin, and for each next piece of a list.
    pub answer: Duration,
    /// For the next word of a watch. An API server sends a bookmark a minute if nothing happens, so
    /// after two missed ones the connection is not what it seems.
    pub silence: Duration,
    /// How long a watch may last; the server ends it then. Each gets half of that at least, by
    /// chance, so that hosts that began together do not stay together.
    pub watch: Duration,
    /// Between attempts that fail.
    pub backoff: Backoff,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(130),
            watch: Duration::from_secs(600),
            backoff: Backoff::default(),
        }
    }
}

/// What a task says.
#[derive(Debug)]
pub(super) enum Said {
    /// Something came.
    Batch(Batch, Instant),
    /// The server does not answer, or not as it should; the task goes on trying.
    Trouble {
        /// In one line.
        reason: String,
        /// The server will not have it.
        definite: bool,
    },
    /// It is well again.
    Works,
}

/// Follows a resource until nobody listens any more.
pub(super) struct Task {
    follower: Follower,
    link: Arc<Link>,
    patience: Patience,
    /// Which of the resources this is, and where to say it.
    said: mpsc::Sender<(usize, Said)>,
    index: usize,
    /// Trouble was said, and nothing good since.
    troubled: bool,
    /// Failures since a watch was begun.
    failures: u32,
}

/// Nobody listens any more.
struct Dropped;

/// Why a session ended.
enum End {
    /// It worked, or the server ended a watch in good order: go on at once.
    Well,
    /// It broke.
    Failed(Failure),
    Dropped,
}

impl<F: Into<Failure>> From<F> for End {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}

impl From<Dropped> for End {
    fn from(_: Dropped) -> Self {
        Self::Dropped
    }
}

impl Task {
    pub(super) fn new(
        follower: Follower,
        link: Arc<Link>,
        patience: Patience,
        said: mpsc::Sender<(usize, Said)>,
        index: usize,
    ) -> Self {
        Self { follower, link, patience, said, index, troubled: false, failures: 0 }
    }

    pub(super) async fn run(mut self) {
        let mut backoff = self.patience.backoff;
        loop {
            let (began, asked) = (Instant::now(), self.follower.ask());
            let mut stood = Stood::default();
            let end = self.session(&mut stood).await.unwrap_or_else(|end| end);
            let long = stood.opened && began.elapsed() >= GOOD;
            if stood.said || long {
                backoff.reset();
            }
            let (failure, wait) = match end {
                End::Dropped => return,
                End::Well if asked == Ask::Page || long => continue,
                End::Well => (None, backoff.next(rand::random())),
                End::Failed(failure) => {
                    self.follower.failed(&failure);
                    let wait = backoff.next(rand::random()).max(failure.after().min(LONGEST_AFTER));
                    (Some(failure), wait)
                }
            };
            if let Some(failure) = failure {
                debug!(resource = %self.follower.resource(), %failure, ?wait, "asking again");
                self.failures += 1;
                let passing = failure.transient() && self.failures == 1
                    // The list that follows may well work.
                    || matches!(failure, Failure::Expired) && asked == Ask::Watch;
                if !passing && self.trouble(&failure).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.said.closed() => return,
            }
        }
    }

    /// One question and its answer. How a watch stood is told apart, because it may have stood well
    /// before it failed.
    async fn session(&mut self, stood: &mut Stood) -> Result<End, End> {
        let (reached, generation) = match self.link.reached().await {
            Ok(reached) => reached,
            Err(error) => {
                debug!(error = %error, "going on with the credentials from before");
                self.link.old()
            }
        };
        let end = match self.follower.ask() {
            Ask::Page => self.page(&reached).await,
            Ask::Watch => self.watch(&reached, stood).await,
        };
        if let Err(End::Failed(_)) = &end {
            self.link.doubt(generation);
        }
        end
    }

    async fn page(&mut self, reached: &Reached) -> Result<End, End> {
        let body = self.get(reached).await?.into_body();
        let body = self.whole(body, LONGEST_PAGE).await?;
        let page = answer::page(self.follower.resource(), &body)?;
        drop(body);
        let batch = self.follower.page(page)?;
        self.say(batch, Instant::now()).await?;
        Ok(End::Well)
    }

    async fn watch(&mut self, reached: &Reached, stood: &mut Stood) -> Result<End, End> {
        let mut body = self.get(reached).await?.into_body();
        (stood.opened, self.failures) = (true, 0);
        if std::mem::take(&mut self.troubled) {
            self.send(Said::Works).await?;
        }
        let mut lines = Lines::up_to(LONGEST_EVENT);
        while let Some(bytes) = self.piece(&mut body, self.patience.silence).await? {
            lines.extend(&bytes);
            loop {
                let mut batch = Batch::default();
                let mut parsed = None;
                let rest = self.events(&mut lines, &mut batch, &mut parsed);
                stood.said |= !batch.is_empty();
                self.say(batch, parsed.unwrap_or_else(Instant::now)).await?;
                if rest? == Rest::Incomplete {
                    break;
                }
            }
        }
        Ok(End::Well)
    }

    /// Takes whole lines into the batch. What came before a mistake counts.
    fn events(
        &mut self,
        lines: &mut Lines,
        batch: &mut Batch,
        parsed: &mut Option<Instant>,
    ) -> Result<Rest, Failure> {
        while batch.changes.len() < BATCH {
            let Some(line) = lines.next().map_err(|_| Failure::TooLarge(LONGEST_EVENT))? else {
                return Ok(Rest::Incomplete);
            };
            let event = answer::event(self.follower.resource(), &line)?;
            parsed.get_or_insert_with(Instant::now);
            self.follower.event(event, batch)?;
        }
        Ok(Rest::More)
    }

    /// Asks, and returns the answer if it is 200.
    async fn get(&self, reached: &Reached) -> Result<Response<Body>, Failure> {
        let longest = self.patience.watch.as_secs().max(2);
        let path = self.follower.request(rand::random_range(longest / 2..=longest));
        let request = Request::get(path).header(header::ACCEPT, "application/json").body(Body::empty());
        let request = request.map_err(|error| Failure::Unreachable(error.to_string()))?;
        let limit = self.patience.answer;
        let answer =
            timeout(limit, reached.client.send(request)).await.map_err(|_| Failure::Silent(limit))?;
        let answer = answer.map_err(|error| Failure::Unreachable(without_secrets(&error)))?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let code = answer.status().as_u16();
        let after = answer.headers().get(header::RETRY_AFTER).and_then(|it| it.to_str().ok()?.parse().ok());
        let body = self.whole(answer.into_body(), LONGEST_STATUS).await.unwrap_or_default();
        if code == 410 {
            return Err(Failure::Expired);
        }
        let message = answer::status(&body).unwrap_or_default().message;
        Err(Failure::Refused { status: Status { code, message }, after: after.map(Duration::from_secs) })
    }

    async fn whole(&self, mut body: Body, longest: usize) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.piece(&mut body, self.patience.answer).await? {
            if whole.len() + bytes.len() > longest {
                return Err(Failure::TooLarge(longest));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    /// The next bytes; None at the end.
    async fn piece(&self, body: &mut Body, limit: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = timeout(limit, body.frame()).await.map_err(|_| Failure::Silent(limit))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| Failure::Unreachable(without_secrets(&error)))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    async fn trouble(&mut self, failure: &Failure) -> Result<(), Dropped> {
        self.troubled = true;
        let server = self.link.old().0.server;
        let resource = self.follower.resource();
        let reason = format!("cannot read {resource} from {server}: {failure}");
        self.send(Said::Trouble { reason, definite: failure.definite() }).await
    }

    async fn say(&self, batch: Batch, parsed: Instant) -> Result<(), Dropped> {
        if batch.is_empty() { Ok(()) } else { self.send(Said::Batch(batch, parsed)).await }
    }

    async fn send(&self, said: Said) -> Result<(), Dropped> {
        self.said.send((self.index, said)).await.map_err(|_| Dropped)
    }
}

/// How a watch stood.
#[derive(Default)]
struct Stood {
    /// The server began it.
    opened: bool,
    /// It said something of use.
    said: bool,
}

/// What is left in the lines.
#[derive(PartialEq)]
enum Rest {
    /// Whole ones.
    More,
    Incomplete,
}
