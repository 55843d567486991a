//! What can go wrong with a lab.

use std::io;
use std::path::PathBuf;

use crate::TimedOut;

/// Why a lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A name that cannot be part of a namespace's or link's name.
    #[error("bad name `{name}`: {rule}")]
    BadName {
        /// As given.
        name: String,
        /// What a name must be.
        rule: &'static str,
    },
    /// A lab that cannot be laid out: too many hosts, unknown segments...
    #[error("cannot lay out lab `{lab}`: {why}")]
    BadSpec {
        /// The lab's name.
        lab: String,
        /// What does not fit, and what would.
        why: String,
    },
    /// A lab of that name is up.
    #[error("lab `{name}` is up already; `weft down --name {name}` takes it down")]
    Exists {
        /// Its name.
        name: String,
    },
    /// No lab of that name.
    #[error("no lab `{name}` in {dir}; `weft ps` lists what is there, `weft up --name {name}` makes it")]
    NoSuchLab {
        /// The name asked for.
        name: String,
        /// Where was looked.
        dir: PathBuf,
    },
    /// No such host in this lab.
    #[error("no host `{host}` in lab `{lab}`; there are {}", known.join(", "))]
    NoSuchHost {
        /// The host asked for.
        host: String,
        /// The lab.
        lab: String,
        /// Its hosts.
        known: Vec<String>,
    },
    /// No such pod on this host.
    #[error("no pod `{pod}` on {host}")]
    NoSuchPod {
        /// The host.
        host: String,
        /// The pod asked for.
        pod: String,
    },
    /// Something that this lab was made without.
    #[error("lab `{lab}` has no {what}")]
    Without {
        /// The lab.
        lab: String,
        /// What is missing.
        what: &'static str,
    },
    /// A command did not succeed.
    #[error("`{command}` {exit}: {said}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        exit: crate::Exit,
        /// What it said on stderr, or else on stdout.
        said: String,
    },
    /// A command's answer was not understood.
    #[error("`{command}` answered what cannot be read: {answer}")]
    Answer {
        /// The command line.
        command: String,
        /// What it printed.
        answer: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file, socket or namespace could not be used.
    #[error("cannot {what}")]
    Io {
        /// What was tried, with the path or address.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be made, entered or removed.
    #[error(transparent)]
    Namespace(#[from] weft_kernel::netns::NetNsError),
    /// The lab's record on disk cannot be read.
    #[error("cannot understand {path}; remove its directory by hand if the lab is gone")]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Something did not become true in time.
    #[error("{what}: {timed_out}{log}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long, and what was seen instead.
        timed_out: TimedOut,
        /// The end of the log of the process that was waited for, or nothing.
        log: String,
    },
    /// Some of a lab could not be removed.
    #[error("lab `{lab}` is not quite gone: {}", left.join("; "))]
    Leftovers {
        /// The lab.
        lab: String,
        /// What is left, and why.
        left: Vec<String>,
    },
    /// Traffic did not come through as it should.
    #[error("{what}")]
    Traffic {
        /// From where to where, and what happened.
        what: String,
    },
}

impl LabError {
    /// For `map_err`: names what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The error and its causes in one line, for a report or a poll's last look.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}
