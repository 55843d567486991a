//! What can go wrong with a measurement.

use std::io;

use weft_lab::LabError;

/// Why a bench could not measure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The lab did not do what was asked.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// iperf3 said that it could not, or something that cannot be understood.
    #[error("iperf3: {said}")]
    Iperf {
        /// Its words.
        said: String,
    },
    /// A socket, thread or file could not be used.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Traffic started and nothing arrived.
    #[error("{what}")]
    Silent {
        /// From where to where.
        what: String,
    },
    /// etcd did not take what was written, or said something else than expected.
    #[error("etcd answered {answer} to {request}")]
    Etcd {
        /// What was asked.
        request: String,
        /// What came back.
        answer: String,
    },
    /// A path that needs a program which is not there, and was asked for by name.
    #[error("{path} needs `{program}` on PATH")]
    Missing {
        /// The path.
        path: &'static str,
        /// What is missing.
        program: &'static str,
    },
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    /// For `map_err`: names what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
