//! What every mode offers, nftables, iptables and userspace alike: plans go in, the kernel holds them.
//!
//! Behind it a mode is a pure program (what should be there) and a thin hand (look, compare, write).
//! Calls block for as long as the kernel takes. None of them takes anything away because of an error:
//! a call that fails leaves the kernel as it was, or nearer to what should be.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::Notify;
use weft_kernel::iptables::programs::ProgramError;
use weft_kernel::nft::{CommitError, DumpError};

use crate::explain::packet::Object;
use crate::host::Host;
use crate::model::{PortName, ServiceName};
use crate::plan::{Frontend, ServicePlan};

/// A way to have plans in the kernel.
pub trait Backend: Send {
    /// As on the command line: `nftables`.
    fn mode(&self) -> &'static str;

    /// From now on these are all services there are, on this host; the kernel is looked at, and gets
    /// what it lacks. Whatever was right before stays untouched.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses; [`Backend::load`] is due again.
    fn load(&mut self, host: &Host, plans: &mut Plans<'_>) -> Result<Applied, BackendError>;

    /// These services have these plans from now on; an empty plan takes a service away. Costs what
    /// those services have, however many others there are. The plans are taken in even if the kernel
    /// refuses them.
    ///
    /// # Errors
    /// When the kernel refuses; [`Backend::look`] is due.
    fn change(&mut self, plans: &[(ServiceName, ServicePlan)]) -> Result<Applied, BackendError>;

    /// Whether what is loaded is for a host like that; if not, [`Backend::load`] is due.
    fn fits(&self, host: &Host) -> bool;

    /// Looks at the kernel and puts right what is not as it should be: after a failure, and when
    /// somebody else had a hand in it.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses; to be tried again later.
    fn look(&mut self) -> Result<Applied, BackendError>;

    /// What the kernel lacks or has too much, in words, a line each; changes nothing.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn differences(&mut self) -> Result<Vec<String>, BackendError>;

    /// What in the kernel leads connections to a frontend of a service, and whether it is there as it
    /// should be. A mode that cannot tell one frontend's part from the rest tells of all together.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn objects(&mut self, service: &ServiceName, at: &Frontend) -> Result<Vec<Object>, BackendError> {
        let _ = (service, at);
        let differences = self.differences()?;
        let wrong = differences.first().map(|first| match differences.len() {
            1 => first.clone(),
            count => format!("{first}, and {} more", count - 1),
        });
        Ok(vec![Object { what: format!("all rules of the {} mode", self.mode()), wrong }])
    }

    /// The endpoint that a client keeps at a service port by session affinity, if the mode can tell.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn kept(&mut self, port: &PortName, client: IpAddr) -> Result<Option<SocketAddr>, BackendError> {
        let _ = (port, client);
        Ok(None)
    }

    /// Whether there is something that no service needs any more.
    fn has_unused(&self) -> bool;

    /// Takes away what no service needs any more. Called a while after the change that left it, since
    /// packets on their way may still be led there.
    ///
    /// # Errors
    /// When the kernel refuses; [`Backend::look`] is due.
    fn collect(&mut self) -> Result<Applied, BackendError>;

    /// From now on tells when somebody else may have changed what is ours.
    ///
    /// # Errors
    /// When the kernel cannot be watched.
    fn watch(&mut self, doubt: Doubt) -> Result<(), BackendError>;

    /// The daemon ends: whatever needs it is led another way, if there is one. These are all services.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses; all stays as it was.
    fn leave(&mut self, host: &Host, plans: &mut Plans<'_>) -> Result<Applied, BackendError> {
        let _ = (host, plans);
        Ok(Applied::default())
    }
}

/// Services with their plans, one by one, so that nobody has to hold all of them.
pub type Plans<'a> = dyn Iterator<Item = (ServiceName, ServicePlan)> + 'a;

/// What a call changed in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// How many things were made, changed or deleted: elements, rules, chains.
    pub changes: usize,
}

/// Says that the kernel may not hold what it should. A cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Doubt(Arc<Notify>);

impl Doubt {
    /// Somebody else changed what is ours, or events were lost.
    pub fn raise(&self) {
        self.0.notify_one();
    }

    /// Returns when it was raised since it last returned.
    pub async fn raised(&self) {
        self.0.notified().await;
    }
}

/// Why the kernel is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// nftables cannot be used at all.
    #[error("nftables cannot be used: is the kernel 5.13 or newer, and is this root?")]
    Nftables(#[source] io::Error),
    /// nftables could not be read.
    #[error(transparent)]
    Read(#[from] DumpError),
    /// nftables refused a change; what was in force still is.
    #[error(transparent)]
    Write(#[from] CommitError),
    /// Connections cannot be accepted where the rules would lead them.
    #[error("cannot listen at {addresses:?}")]
    Listen {
        /// Addresses of this host.
        addresses: Vec<IpAddr>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program of iptables' failed.
    #[error(transparent)]
    Iptables(#[from] ProgramError),
    /// There is no iptables.
    #[error(
        "neither iptables-nft nor iptables-legacy works on this host; install iptables, or use --mode nftables"
    )]
    NoPrograms,
    /// Something wrote into one of iptables' tables what it cannot print.
    #[error(
        "{program} cannot read the table {table}: something else than iptables wrote into it; see `nft list ruleset`"
    )]
    Spoiled {
        /// Who cannot.
        program: &'static str,
        /// Which table.
        table: &'static str,
    },
}
