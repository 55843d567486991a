//! Why the API server could not be asked, or not be understood.

use std::time::Duration;

use super::access::AccessError;
use super::answer::{Nonsense, Status};

/// Why an answer did not come, or was of no use. Never has a secret in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No connection, or it broke.
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// An answer with another status than 200.
    #[error("it answered {}{}", status.code, in_words(&status.message))]
    Refused {
        status: Status,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// An error in the stream of a watch.
    #[error("the watch ended with {}{}", .0.code, in_words(&.0.message))]
    Broken(Status),
    /// What happened since our version is no longer known there. An everyday matter.
    #[error("the history since our last answer is gone")]
    Expired,
    #[error("more than {0} bytes in one piece")]
    TooLarge(usize),
    #[error("the answer {0}")]
    Nonsense(#[from] Nonsense),
}

impl Failure {
    /// What comes next cannot be had from where we are: a list is due.
    pub(super) fn history_lost(&self) -> bool {
        match self {
            Self::Expired | Self::Nonsense(_) | Self::Broken(_) => true,
            // 401 and 403 are about us, 429 about the load; whatever else is wrong with the request
            // can only be the version in it.
            Self::Refused { status, .. } => {
                (400..500).contains(&status.code) && ![401, 403, 429].contains(&status.code)
            }
            _ => false,
        }
    }

    /// Such things happen, and mostly the next attempt works: a person need not know yet.
    pub(super) fn transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Silent(_) | Self::Broken(_) => true,
            Self::Refused { status, .. } => status.code == 429 || status.code >= 500,
            _ => false,
        }
    }

    /// How long the server wants to be left alone.
    pub(super) fn after(&self) -> Duration {
        match self {
            Self::Refused { after, .. } => after.unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }

    /// The server is there, and it is the request that it will not have. Waiting alone heals nothing.
    pub(super) fn definite(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if [401, 403, 404].contains(&status.code))
    }
}

fn in_words(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
