//! A host's network as plain data, and the seam through which it is read and changed.
//!
//! [`State`] is what a host holds (or should hold); [`Change`] is one step; [`Net`] is the seam;
//! [`Event`] is what the kernel says when somebody changed something. Behind the seam: [`Rtnetlink`] and,
//! for tests, [`FakeNet`].

mod absorb;
mod events;
mod fake;
mod names;
mod rtnetlink;
mod state;

pub use absorb::Absorbed;
pub use events::Events;
pub use fake::FakeNet;
pub use names::{BadLinkName, BadMac, BadVni, LinkName, Mac, Vni};
pub use rtnetlink::{LinkStats, Rtnetlink};
pub use state::{
    Address, Change, Event, FdbEntry, Link, LinkKind, LinkPatch, Neighbour, Passing, Proxy, Route, RouteKey,
    RouteKind, State, Vxlan,
};

use std::future::Future;

/// Reads and changes one network namespace's links, addresses, routes, neighbours and FDB.
///
/// Two implementations: `Rtnetlink` (this thread's namespace at creation) and `FakeNet`, which
/// obeys the same rules. Both pass the same suite.
pub trait Net: Send + Sync {
    /// Everything there is now, foreign objects included. What weft does not model (multipath
    /// routes, other tables' oddities) is left out, never guessed.
    fn observe(&self) -> impl Future<Output = Result<State, NetError>> + Send;

    /// Applies the changes in the order given, in as few system calls as possible. Every change is
    /// tried; the failures come back, in order, with their index. A deletion of what is not there
    /// and an addition of what is already there equal are successes.
    fn apply(&self, changes: &[Change]) -> impl Future<Output = Vec<Failure>> + Send;

    /// What changes from now on, whoever changes it. Subscribe before the first [`Net::observe`], so
    /// that nothing falls between; events of what that observation already saw may then come again.
    fn events(&self) -> Result<Events, NetError>;
}

/// One change that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {change}{}", hint(.said))]
pub struct Failure {
    /// Its place in the slice given to [`Net::apply`].
    pub index: usize,
    /// What was asked.
    pub change: Change,
    /// The kernel's explanation, where it gives one (extended acknowledgement, NLMSGERR_ATTR_MSG).
    pub said: Option<String>,
    /// The kernel's error number.
    pub source: std::io::Error,
}

fn hint(said: &Option<String>) -> String {
    said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default()
}

/// The kernel could not be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A netlink socket could not be opened or bound.
    #[error("cannot open a netlink socket")]
    Open(#[source] std::io::Error),
    /// The network namespace could not be entered.
    #[error(transparent)]
    NetNs(#[from] crate::netns::NetNsError),
    /// A dump failed or was cut short.
    #[error("cannot list {what}")]
    Dump {
        /// What was being listed: links, routes...
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}
