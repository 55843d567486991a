//! One subnet per host, from etcd: the protocol, its rules and its driver.
//!
//! # The two keys
//!
//! A lease is flannel's key `<prefix>/subnets/<subnet>`; beside it weft keeps an owner record,
//! `<prefix>/weft/owner/<subnet>`. **A weft host always writes both in one transaction**, so that
//! both carry the same mod revision, and that equality is the whole proof of ownership:
//!
//! | flannel's key | owner record | the subnet is |
//! |---|---|---|
//! | there | written with it (equal mod revisions) | the record's node's |
//! | there | none, or written at another revision | of the host whose `PublicIP` it names: *the flannel key wins* |
//! | none | there | kept for the record's node, who was away for longer than the lease |
//! | none | there, marked released | free, after those never used |
//! | none | none | free |
//!
//! Nobody needs to know a revision before it exists, no clock is compared with another, and a
//! flanneld, which Puts unconditionally and knows nothing of records, makes ours void simply by
//! writing. Every write of ours is guarded by the mod revisions (or the absence) of both keys as
//! last seen, so that of two hosts that write at once exactly one succeeds and the other looks again.
//!
//! One more guard is on the host's own liveness record, so a host writes nothing before it is
//! announced: a store that was wiped counts its revisions from the start, and might by chance hold
//! another's key at just the revision that we saw in the old one. Our own record it cannot hold.
//!
//! # The three leases of etcd's
//!
//! | key | its etcd lease | when it runs out |
//! |---|---|---|
//! | flannel's key | 24 h, as flannel's | peers of flannel drop the host; the subnet stays kept for it |
//! | owner record | 7 days (`--reclaim-after`) | the subnet is free |
//! | `<prefix>/weft/live/<node>` | 10 s | peers probe the host, and drop it if the probes fail too |
//!
//! All three are only ever renewed by KeepAlive: no key changes, no peer is woken. Because the store
//! itself counts, "seven days after the owner was last heard of" holds without anybody's clock, and a
//! store that restarts or changes its leader grants the full time again. A *reservation* is a flannel
//! key without an etcd lease; it never runs out, and no rewrite gives it a lease.
//!
//! # Which subnet a host gets
//!
//! 1. the one it holds (from its cache, even before the store answers);
//! 2. one that the store says is its own: a lease in use, then a reservation for its node id, then a
//!    record whose lease ran out;
//! 3. a lease that names one of its public addresses and has no valid record: flanneld's on this very
//!    host, which is how a host is taken over, or a reservation by address;
//! 4. the one from the subnet file, if nobody has a claim on it;
//! 5. a new one: never used, then released, and when the range is exhausted the one whose owner has
//!    been away for longest (not one whose daemon runs). Among equals, at random.
//!
//! A host is its node id: with another address it keeps its subnet, by 2. `SubnetMin` and `SubnetMax`
//! bound only 5; what a host has it keeps while it lies in `Network` with the right length.
//!
//! # Losing a subnet
//!
//! A host that was away finds another node's record, or a foreign `PublicIP`, at its subnet: it is
//! [`Loss`]t, said so, and the host takes a new one. It never writes over the new owner. The same goes
//! for a subnet that an operator released, or that overlaps another lease: two keys can share
//! addresses, since flannel picks the two families apart, and guards see one key at a time. In such a
//! network weft hosts therefore claim one after the other, by a key that every claim writes and guards
//! (`<prefix>/weft/last-claim`); against flanneld, a host believes in a new subnet only after it has
//! looked again, and yields.
//! What is *not* a loss: a key that was deleted, ran out or was overwritten with garbage while the
//! record is still ours, and a store that was wiped. Then the host writes the same subnet again.
//!
//! # Draining
//!
//! `<prefix>/weft/drain/<node>` says that a host shall give its subnet up. It keeps it, and forwards,
//! while it has pods; it takes no new ones ([`LeaseState::draining`]). Once the daemon reports
//! [`Wish::vacated`], lease and record are released in one transaction and the host waits until the
//! mark is gone. A reservation stays reserved for it.
//!
//! # Files
//!
//! `decide` has every rule, pure; `allocate` picks; `claim` is the one write; `tenant` is a host's side
//! without I/O; `driver` runs it against a store and keeps the etcd leases alive; `live` says that the
//! daemon runs.

mod allocate;
mod claim;
mod decide;
mod driver;
mod live;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod sim;
mod tenant;

pub use claim::{Bind, Claim};
pub use decide::{Ages, Decision, Loss, LostBy, Tenure, Waiting, Wish, decide};
pub use driver::{Intent, LeaseState, Leasing, Times};
pub use tenant::{Step, Tenant};

use std::time::Duration;

/// How long flannel's key lives without a KeepAlive: flannel's own 24 hours (`subnetTTL`).
pub const LEASE_TTL: Duration = Duration::from_hours(24);
/// How long a subnet is kept for a weft host that is away: seven days.
pub const RECLAIM_AFTER: Duration = Duration::from_hours(7 * 24);
/// How long a daemon counts as running without a KeepAlive.
pub const LIVE_TTL: Duration = Duration::from_secs(10);
