//! What the doctor has seen. Plain data; what could not be looked at is absent, with a word why.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use weft_daemon::finding::Daemon;

use crate::explain::Overview;
use crate::model::Protocol;

/// Everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The proxy on this host.
    pub daemon: Daemon,
    /// Rules of the proxy that the kernel holds, each kind in a word.
    pub rules: Vec<String>,
    /// What the daemon says that it programs.
    pub overview: Option<Overview>,
    /// What the daemon says that the kernel lacks or has too much.
    pub drift: Option<Vec<String>>,
    /// Kernel settings by their path below /proc/sys; what this kernel does not have is absent.
    pub settings: BTreeMap<String, String>,
    /// Links that are up, loopback aside.
    pub links: BTreeSet<String>,
    /// Where the main table's routes lead.
    pub routes: Vec<IpNetwork>,
    /// Who listens on ports of this host.
    pub listeners: Vec<Listener>,
    /// What kube-proxy left, or keeps: its tables and chains.
    pub kube_proxy: Vec<String>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// A process that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// How.
    pub protocol: Protocol,
    /// At which port.
    pub port: u16,
    /// Its name, if that could be found out.
    pub process: Option<String>,
}
