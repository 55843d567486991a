//! What the doctor has seen. Plain data; what could not be looked at is absent, with a word why.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_daemon::finding::Daemon;
use weft_kernel::iptables::Iptables;
use weft_kernel::net::{LinkName, Mac};
use weft_kernel::nft::Table;

use crate::firewall::Surroundings;
use crate::model::{Model, Subnet};

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The daemon on this host.
    pub daemon: Daemon,
    /// etcd, as seen from here.
    pub store: StoreFact,
    /// Where in etcd the network's keys are.
    pub prefix: String,
    /// Keys that weft skips, and why.
    pub faults: Vec<String>,
    /// What of the network config has no effect, one line each.
    pub notes: Vec<String>,
    /// The network as this host's daemon would plan it; `None` where config or subnet is not known.
    pub model: Option<Model>,
    /// Every lease's subnet and public addresses.
    pub leases: Vec<(Subnet, Vec<IpAddr>)>,
    /// Kernel settings by their path below /proc/sys; what this kernel does not have is absent.
    pub settings: BTreeMap<String, String>,
    /// The tunnels' links that are there.
    pub tunnel_links: Vec<LinkName>,
    /// Pods are on a bridge (`--attach=bridge`, or flannel's CNI plugin).
    pub bridge: bool,
    /// What this kernel cannot do, and what it says: `vxlan`, `nftables`, `tun`.
    pub lacking: BTreeMap<&'static str, String>,
    /// iptables' rule sets in use, as its programs print them.
    pub iptables: Vec<(Iptables, String)>,
    /// Our tunnels and pods, as a packet filter sees them.
    pub around: Option<Surroundings>,
    /// Everybody's nftables tables.
    pub nft_tables: Vec<Table>,
    /// Our addresses that somebody else answers for on the underlay.
    pub squatters: BTreeMap<IpAddr, Mac>,
    /// The other hosts, by their subnet.
    pub hosts: BTreeMap<Subnet, Host>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// etcd, as seen from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreFact {
    /// Not asked: the daemon's own word counts.
    #[default]
    NotAsked,
    /// It answered.
    Reached,
    /// It did not.
    Unreached(String),
}

/// What another host answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// It answers an echo request past the tunnel, at its public address.
    pub underlay: bool,
    /// The largest packet that the underlay carries to it in one piece; at least what is needed, if
    /// it carries that.
    pub carries: Option<u32>,
    /// It answers an echo request through the tunnel; `None` where the way has no tunnel.
    pub tunnel: Option<bool>,
    /// The same, as large as pods' packets may be.
    pub tunnel_full: Option<bool>,
    /// What UDP through the tunnel says.
    pub echo: Echo,
}

/// What a responder answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Echo {
    /// Not asked: no tunnel, or not even ICMP comes through.
    #[default]
    NotAsked,
    /// Nobody listens there: flanneld's host, or a stopped daemon.
    Nobody,
    /// No answer and no refusal: the question or the answer is lost.
    Silence,
    /// An answer.
    Answer {
        /// Of a burst that was sent as one packet for the link to split, how many parts came.
        arrived: u32,
        /// How many there were.
        sent: u32,
        /// How far its clock is ahead of ours, in milliseconds.
        ahead_ms: i64,
        /// Its version of weft.
        version: String,
    },
}
