//! Real etcd: each call on a connection that works, within a deadline.

mod answer;
mod link;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, TxnOp, WatchOptions, WatchStream};
use tokio::time::{Instant, timeout_at};

use crate::backend::{Batch, Header, Range, Select};
use crate::fault::Fault;
use crate::options::Settings;
use crate::{ClusterId, Guard, LeaseId, Op, Revision, Txn, TxnOutcome};
use link::{Link, Links, SharedLinks};

/// How many keys one request of a list asks for: a few MB at most, as our values are small.
const PAGE: i64 = 2000;
/// How often a list may be overtaken by compaction between its pages.
const LIST_ATTEMPTS: usize = 3;

/// etcd, reached through whichever endpoint answers.
pub(crate) struct Etcd {
    links: SharedLinks,
}

/// Whether a call may be done twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Harmless,
    Never,
}

impl Etcd {
    pub(crate) fn new(settings: Settings) -> Self {
        Etcd { links: Arc::new(Links::new(settings)) }
    }

    pub(crate) fn endpoints(&self) -> String {
        self.links.settings.endpoints.join(",")
    }

    pub(crate) async fn range(
        &self,
        select: Select<'_>,
        at: Option<Revision>,
        keys_only: bool,
    ) -> Result<Range, Fault> {
        let mut attempt = 1;
        loop {
            match self.pages(select, at, keys_only).await {
                // A newer revision can still be listed whole, if none was asked for.
                Err(Fault::Compacted) if at.is_none() && attempt < LIST_ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    /// All pages at the first one's revision.
    async fn pages(&self, select: Select<'_>, at: Option<Revision>, keys_only: bool) -> Result<Range, Fault> {
        let (mut from, end) = match select {
            Select::Key(key) => (key.as_bytes().to_vec(), None),
            Select::Prefix(prefix) => {
                let (from, end) = prefix_range(prefix.as_bytes());
                (from, Some(end))
            }
        };
        let mut at = at;
        let mut entries = Vec::new();
        let mut first: Option<Header> = None;
        loop {
            let mut options = GetOptions::new().with_limit(PAGE);
            if let Some(end) = &end {
                options = options.with_range(end.clone());
            }
            if let Some(at) = at {
                options = options.with_revision(at.0);
            }
            if keys_only {
                options = options.with_keys_only();
            }
            let mut page = self
                .call(Repeat::Harmless, |link| {
                    let (key, options) = (from.clone(), options.clone());
                    async move { link.kv.clone().get(key, Some(options)).await }
                })
                .await?;
            let header = answer::header(page.header())?;
            if first.is_some_and(|first| first.cluster != header.cluster) {
                return Err(Fault::silent("the endpoints belong to different clusters"));
            }
            let header = *first.get_or_insert(header);
            at = at.or(Some(header.revision));
            let more = page.more();
            let kvs = page.take_kvs();
            let last = kvs.last().map(|kv| kv.key().to_vec());
            entries.extend(kvs.iter().filter_map(answer::key_value));
            match last {
                Some(mut last) if more => {
                    // The smallest key after `last`.
                    last.push(0);
                    from = last;
                }
                _ => return Ok(Range { header, entries }),
            }
        }
    }

    pub(crate) async fn commit(&self, txn: Txn) -> Result<TxnOutcome, Fault> {
        let request = request(txn);
        let answer = self
            .call(Repeat::Never, |link| {
                let request = request.clone();
                async move { link.kv.clone().txn(request).await }
            })
            .await?;
        if !answer.succeeded() {
            return Ok(TxnOutcome::Conflict);
        }
        Ok(TxnOutcome::Committed(answer::header(answer.header())?.revision))
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId, Fault> {
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).max(1);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        // Granted twice, the first one is never kept alive and runs out.
        let answer = self
            .call(Repeat::Harmless, |link| async move { link.lease.clone().grant(seconds, None).await })
            .await?;
        Ok(LeaseId(answer.id()))
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Fault> {
        let ttl = self
            .call(Repeat::Harmless, |link| async move {
                // The client library keeps the first answer's TTL to itself, so a second one is asked
                // for on the same stream.
                let (mut keeper, mut answers) = link.lease.clone().keep_alive(lease.0).await?;
                keeper.keep_alive().await?;
                Ok(answers.message().await?.map(|answer| answer.ttl()))
            })
            .await?;
        seconds(ttl.ok_or_else(|| Fault::silent("etcd closed the keep-alive without an answer"))?)
    }

    pub(crate) async fn time_to_live(&self, lease: LeaseId) -> Result<Duration, Fault> {
        let answer =
            self.call(Repeat::Harmless, |link| async move {
                link.lease.clone().time_to_live(lease.0, None).await
            })
            .await?;
        match answer.ttl() {
            // -1: no such lease; 0 can be a lease in its last second.
            0 => Ok(Duration::ZERO),
            ttl => seconds(ttl),
        }
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), Fault> {
        self.call(Repeat::Never, |link| async move { link.lease.clone().revoke(lease.0).await })
            .await
            .map(drop)
    }

    pub(crate) async fn watch(&self, prefix: &str, from: Revision) -> Result<EtcdStream, Fault> {
        let deadline = Instant::now() + self.links.settings.request_timeout;
        let link = self.links.get(deadline).await?;
        let opening = EtcdStream::open(&self.links, link.clone(), prefix, from);
        let opened = match timeout_at(deadline, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Fault::silent("etcd does not confirm the watch")),
        };
        if opened.is_err() {
            self.links.discard(&link).await;
        }
        opened
    }

    /// Runs one request; repeats it on another connection where that is safe and time remains.
    async fn call<T, F, Fut>(&self, repeat: Repeat, request: F) -> Result<T, Fault>
    where
        F: Fn(Link) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let limit = self.links.settings.request_timeout;
        let deadline = Instant::now() + limit;
        let mut attempts_left = self.links.settings.endpoints.len().max(2);
        loop {
            let link = self.links.get(deadline).await?;
            // A connection that turns out dead leaves half of the time for another one.
            let patience = match repeat {
                Repeat::Harmless if attempts_left > 1 => deadline.min(Instant::now() + limit / 2),
                _ => deadline,
            };
            let fault = match timeout_at(patience, request(link.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => answer::fault(error),
                Err(_) => Fault::silent(format!("no answer within {:?}", patience - (deadline - limit))),
            };
            let unsent = match fault {
                Fault::Unreachable { unsent, .. } => unsent,
                // A new login may be all that it takes, next time.
                Fault::Denied(_) => {
                    self.links.discard(&link).await;
                    return Err(fault);
                }
                _ => return Err(fault),
            };
            self.links.discard(&link).await;
            attempts_left -= 1;
            if attempts_left == 0 || Instant::now() >= deadline || (repeat == Repeat::Never && !unsent) {
                return Err(fault);
            }
        }
    }
}

/// A TTL as etcd says it: below one second there is no lease.
fn seconds(ttl: i64) -> Result<Duration, Fault> {
    match u64::try_from(ttl) {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(Fault::NoSuchLease),
    }
}

fn request(txn: Txn) -> etcd_client::Txn {
    let guards: Vec<_> = txn
        .guards
        .into_iter()
        .map(|guard| match guard {
            Guard::Unchanged(key, revision) => Compare::mod_revision(key, CompareOp::Equal, revision.0),
            Guard::Absent(key) => Compare::create_revision(key, CompareOp::Equal, 0),
        })
        .collect();
    let ops: Vec<_> = txn
        .ops
        .into_iter()
        .map(|op| match op {
            Op::Put { key, value, lease } => {
                let lease = lease.map_or(0, |lease| lease.0);
                TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
            }
            Op::Delete(key) => TxnOp::delete(key, None),
        })
        .collect();
    etcd_client::Txn::new().when(guards).and_then(ops)
}

/// First key and end (exclusive) of a prefix, in etcd's terms: `\0` as end means "no end", and as
/// first key it is the first there can be.
fn prefix_range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let from = if prefix.is_empty() { vec![0] } else { prefix.to_vec() };
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (from, end);
        }
    }
    (from, vec![0])
}

/// An open watch.
///
/// That it is silently dead shows in two ways: HTTP/2 pings without an answer (a lost peer, a stopped
/// process), and etcd's own cancellation where the member has lost its leader. Progress is not asked
/// for: etcd's gRPC proxy before 3.4.19 panics when it is (etcd-io/etcd#14151).
pub(crate) struct EtcdStream {
    stream: WatchStream,
    watch_id: i64,
    links: SharedLinks,
    link: Link,
}

impl EtcdStream {
    /// Returns when etcd said that it watches.
    async fn open(
        links: &SharedLinks,
        link: Link,
        prefix: &str,
        from: Revision,
    ) -> Result<EtcdStream, Fault> {
        let (key, end) = prefix_range(prefix.as_bytes());
        // Without `fragment`, etcd never splits a revision.
        let options = WatchOptions::new().with_range(end).with_start_revision(from.0).with_progress_notify();
        let stream = link.watch.clone().watch(key, Some(options)).await.map_err(answer::fault)?;
        let mut stream = EtcdStream { stream, watch_id: 0, links: links.clone(), link };
        let message = stream.message().await?;
        stream.watch_id = message.watch_id();
        Ok(stream)
    }

    pub(crate) async fn next(&mut self) -> Result<Batch, Fault> {
        let batch = self.batch().await;
        if matches!(batch, Err(Fault::Unreachable { .. } | Fault::Denied(_))) {
            self.links.discard(&self.link).await;
        }
        batch
    }

    async fn batch(&mut self) -> Result<Batch, Fault> {
        let message = self.message().await?;
        // etcd's gRPC proxy leaves the header out of some messages, or leaves it empty.
        let header = message.header().filter(|header| header.cluster_id() != 0);
        let events = message.events();
        let complete_to = match events.iter().filter_map(|event| event.kv()).map(|kv| kv.mod_revision()).max()
        {
            // Skipped keys count as well.
            Some(newest) => Some(newest),
            // Progress, which etcd sends only to a watch that is in step.
            None if message.watch_id() == self.watch_id => header.map(|header| header.revision()),
            None => None,
        };
        Ok(Batch {
            cluster: header.map(|header| ClusterId(header.cluster_id())),
            complete_to: complete_to.map(Revision),
            changes: events.iter().filter_map(answer::change).collect(),
        })
    }

    /// One message that does not end the watch.
    async fn message(&mut self) -> Result<etcd_client::WatchResponse, Fault> {
        let message = self.stream.message().await.map_err(answer::fault)?;
        let message = message.ok_or_else(|| Fault::silent("etcd closed the watch"))?;
        if message.compact_revision() > 0 {
            return Err(Fault::Compacted);
        }
        if message.canceled() {
            let reason = match message.cancel_reason() {
                "" => "without a reason",
                reason => reason,
            };
            return Err(Fault::silent(format!("etcd cancelled the watch: {reason}")));
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_range_of_keys() {
        let table: [(&[u8], &[u8], &[u8]); 5] = [
            (b"/a/", b"/a/", b"/a0"),
            (b"a", b"a", b"b"),
            (b"a\xff", b"a\xff", b"b"),
            (b"\xff\xff", b"\xff\xff", b"\0"),
            (b"", b"\0", b"\0"),
        ];
        for (prefix, from, end) in table {
            assert_eq!(prefix_range(prefix), (from.to_vec(), end.to_vec()), "{}", prefix.escape_ascii());
        }
    }

    #[test]
    fn a_ttl_below_a_second_is_no_lease() {
        assert_eq!(seconds(5).unwrap(), Duration::from_secs(5));
        assert!(matches!(seconds(0), Err(Fault::NoSuchLease)));
        assert!(matches!(seconds(-1), Err(Fault::NoSuchLease)));
    }
}
