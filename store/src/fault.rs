//! Why a call on a store failed, as the crate itself needs to tell the cases apart.
//!
//! [`StoreError`] is the form for callers.

use crate::{LeaseId, StoreError};

/// Any error, as a source.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// No answer; whether it was done is unknown unless `unsent`.
    Unreachable {
        cause: Cause,
        /// It certainly never reached etcd.
        unsent: bool,
    },
    /// Login or certificate refused.
    Denied(Cause),
    /// Logged in, but the role does not allow it.
    Forbidden(Cause),
    /// No such lease.
    NoSuchLease,
    /// The revision asked for was compacted away.
    Compacted,
    /// The revision asked for is yet to come.
    FutureRevision,
    /// A clear no.
    Refused(Cause),
    /// Our own files or settings are unusable (now).
    Config(StoreError),
}

impl Fault {
    /// No answer; it may have been done.
    pub(crate) fn silent(cause: impl Into<Cause>) -> Fault {
        Fault::Unreachable { cause: cause.into(), unsent: false }
    }

    /// Never reached etcd.
    pub(crate) fn unsent(cause: impl Into<Cause>) -> Fault {
        Fault::Unreachable { cause: cause.into(), unsent: true }
    }

    /// For callers: `endpoints` were asked to `what`.
    pub(crate) fn into_error(self, endpoints: &str, what: &str, lease: Option<LeaseId>) -> StoreError {
        let endpoints = endpoints.to_owned();
        let refused = |source: Cause| StoreError::Refused { what: what.to_owned(), source };
        match self {
            Fault::Unreachable { cause, .. } => StoreError::Unreachable { endpoints, source: cause },
            Fault::Denied(cause) | Fault::Forbidden(cause) => StoreError::Denied { endpoints, source: cause },
            Fault::NoSuchLease => match lease {
                Some(lease) => StoreError::NoSuchLease(lease),
                None => refused("requested lease not found".into()),
            },
            Fault::Compacted => refused("the revision was compacted away".into()),
            Fault::FutureRevision => refused("the revision is in the future".into()),
            Fault::Refused(cause) => refused(cause),
            Fault::Config(error) => error,
        }
    }

    /// In one line, causes included.
    pub(crate) fn reason(&self) -> String {
        match self {
            Fault::Unreachable { cause, .. }
            | Fault::Denied(cause)
            | Fault::Forbidden(cause)
            | Fault::Refused(cause) => chain(cause.as_ref()),
            Fault::NoSuchLease => "no such lease".to_owned(),
            Fault::Compacted => "the history needed was compacted away".to_owned(),
            Fault::FutureRevision => "the store is older than what it told before".to_owned(),
            Fault::Config(error) => chain(error),
        }
    }
}

/// An error and its causes in one line, none said twice.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        next = cause.source();
    }
    line
}
