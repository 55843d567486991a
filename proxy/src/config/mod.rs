//! How a proxy is told what to do: kube-proxy's file and flags, and ours, as typed data. Pure.
//!
//! - [`Given`]: what was said, by flags or by a file; most of it is not;
//! - [`mod@file`]: kube-proxy's `KubeProxyConfiguration`;
//! - [`unused`]: fields and flags of kube-proxy that have no meaning here, and why;
//! - [`Given::settle`]: what is so in the end, defaults included.
//!
//! A flag (or a variable) beats the file, field by field, as with the kubelet. kube-proxy itself
//! ignores nearly every flag once it has `--config`, without a word; whoever writes a flag means it.

pub mod duration;
pub mod file;
#[cfg(test)]
mod tests;
pub mod unused;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::around::settings::Wishes;
use crate::host::{ClientHash, DetectLocal, NodePortAddresses, Settings, Strict};
use crate::model::NodeName;
use crate::userspace;

/// What decides which packets go where, in whose rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In nftables.
    #[default]
    Nftables,
    /// In iptables, with either of its programs.
    Iptables,
    /// Connections over TCP are carried by this process; nftables leads them there, and the rest where
    /// it belongs.
    Userspace,
}

/// Why a string is no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMode {
    /// kube-proxy has it, weft has not.
    #[error("`{0}`: {1}; use `nftables`, or leave it out")]
    Refused(String, &'static str),
    /// Nobody has it.
    #[error("`{0}` is no mode; use `nftables`, `iptables` or `userspace`")]
    Unknown(String),
}

/// `detectLocalMode`: how packets of local pods are told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectLocalMode {
    /// By `clusterCIDR`.
    ClusterCidr,
    /// By the Node's own ranges of pods.
    NodeCidr,
    /// By `detectLocal.bridgeInterface`.
    BridgeInterface,
    /// By `detectLocal.interfaceNamePrefix`.
    InterfaceNamePrefix,
}

/// Why a string is no `detectLocalMode`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of `ClusterCIDR`, `NodeCIDR`, `BridgeInterface`, `InterfaceNamePrefix`")]
pub struct BadDetectLocalMode(pub String);

/// Where something is served: an address, a port, or both; port 0 means nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    address: IpAddr,
    port: Option<u16>,
}

/// Why a string is no place to serve at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address to serve at, such as 0.0.0.0:10256, [::]:10256 or 127.0.0.1")]
pub struct BadBind(pub String);

/// How connection tracking shall be set, as far as it was said. Zero leaves the kernel's setting as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Tracked connections per CPU; zero leaves their number alone, whatever `min` says.
    pub max_per_core: Option<u32>,
    /// At least so many, however few CPUs there are.
    pub min: Option<u32>,
    /// How long an established TCP connection may be idle.
    pub tcp_established: Option<Duration>,
    /// How long one that its client has half closed is remembered.
    pub tcp_close_wait: Option<Duration>,
    /// TCP packets outside of the window are not invalid.
    pub tcp_be_liberal: Option<bool>,
    /// How long a UDP packet without an answer is remembered.
    pub udp: Option<Duration>,
    /// How long a UDP exchange is remembered.
    pub udp_stream: Option<Duration>,
}

/// What kube-proxy's file says of each mode apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfMode {
    /// `masqueradeAll`.
    pub masquerade_all: Option<bool>,
    /// `syncPeriod`: how often everything is compared with the kernel, even if no event told of a change.
    pub sync_period: Option<Duration>,
}

/// What a proxy was told. Nothing is, by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// `mode`.
    pub mode: Option<Mode>,
    /// `hostnameOverride`: the name of this host's Node.
    pub node_name: Option<NodeName>,
    /// `clientConnection.kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `healthzBindAddress`.
    pub healthz: Option<Bind>,
    /// `metricsBindAddress`.
    pub metrics: Option<Bind>,
    /// `iptables`.
    pub iptables: OfMode,
    /// `iptables.localhostNodePorts`.
    pub localhost_node_ports: Option<bool>,
    /// `nftables`.
    pub nftables: OfMode,
    /// `detectLocalMode`.
    pub detect_local: Option<DetectLocalMode>,
    /// `detectLocal.bridgeInterface`.
    pub pod_bridge: Option<String>,
    /// `detectLocal.interfaceNamePrefix`.
    pub pod_link_prefix: Option<String>,
    /// `clusterCIDR`: at most one range of a family.
    pub cluster_cidrs: Option<Vec<IpNetwork>>,
    /// `nodePortAddresses`.
    pub node_ports: Option<NodePortAddresses>,
    /// Ours alone: where cluster addresses come from.
    pub service_cidrs: Option<Vec<IpNetwork>>,
    /// `conntrack`.
    pub conntrack: Conntrack,
    /// Ours alone: packets and bytes of connections are counted.
    pub accounting: Option<bool>,
    /// Ours alone: new connections of each service and endpoint are counted.
    pub connection_metrics: Option<bool>,
    /// Ours alone, in userspace mode: the most connections of a source at once; 0: any number.
    pub connections_per_source: Option<u32>,
    /// Ours alone, in userspace mode: how long connections may go on when the daemon stops.
    pub drain: Option<Duration>,
    /// `oomScoreAdj`.
    pub oom_score_adj: Option<i16>,
    /// `logging.format` is `json`.
    pub log_json: Option<bool>,
    /// `logging.verbosity`.
    pub verbosity: Option<u8>,
}

/// What is so in the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which mode.
    pub mode: Mode,
    /// The name of this host's Node, if it is not the host's own name.
    pub node_name: Option<NodeName>,
    /// Where the API is said to be.
    pub kubeconfig: Option<PathBuf>,
    /// Where health is told, if anywhere but on the daemon's socket.
    pub healthz: Option<SocketAddr>,
    /// Where metrics are, if anywhere but on the daemon's socket.
    pub metrics: Option<SocketAddr>,
    /// What decides about packets.
    pub settings: Settings,
    /// Where cluster addresses come from.
    pub service_cidrs: Vec<IpNetwork>,
    /// How connections are carried in userspace mode.
    pub userspace: userspace::Options,
    /// What is wanted of the kernel's settings.
    pub wishes: Wishes,
    /// How often everything is compared with the kernel.
    pub sync_period: Option<Duration>,
    /// What the kernel thinks of this process when memory is short, if it is to be changed.
    pub oom_score_adj: Option<i16>,
    /// The log is JSON.
    pub log_json: bool,
    /// How much is logged.
    pub verbosity: u8,
    /// What was told and means less than one may think, one line each.
    pub notes: Vec<String>,
}

/// What was told makes no sense together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsettled {
    /// A way to tell local pods that lacks what it tells them by.
    #[error("detectLocalMode {mode} needs {field} (--{flag})")]
    DetectLocal {
        /// The mode.
        mode: &'static str,
        /// The field of the file.
        field: &'static str,
        /// The flag.
        flag: &'static str,
    },
}

/// kube-proxy's ports.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

impl Given {
    /// These, and where they say nothing, those.
    pub fn over(self, below: Self) -> Self {
        Self {
            mode: self.mode.or(below.mode),
            node_name: self.node_name.or(below.node_name),
            kubeconfig: self.kubeconfig.or(below.kubeconfig),
            healthz: self.healthz.or(below.healthz),
            metrics: self.metrics.or(below.metrics),
            iptables: self.iptables.over(below.iptables),
            localhost_node_ports: self.localhost_node_ports.or(below.localhost_node_ports),
            nftables: self.nftables.over(below.nftables),
            detect_local: self.detect_local.or(below.detect_local),
            pod_bridge: self.pod_bridge.or(below.pod_bridge),
            pod_link_prefix: self.pod_link_prefix.or(below.pod_link_prefix),
            cluster_cidrs: self.cluster_cidrs.or(below.cluster_cidrs),
            node_ports: self.node_ports.or(below.node_ports),
            service_cidrs: self.service_cidrs.or(below.service_cidrs),
            conntrack: self.conntrack.over(below.conntrack),
            accounting: self.accounting.or(below.accounting),
            connection_metrics: self.connection_metrics.or(below.connection_metrics),
            connections_per_source: self.connections_per_source.or(below.connections_per_source),
            drain: self.drain.or(below.drain),
            oom_score_adj: self.oom_score_adj.or(below.oom_score_adj),
            log_json: self.log_json.or(below.log_json),
            verbosity: self.verbosity.or(below.verbosity),
        }
    }

    /// What is so in the end, with the defaults.
    ///
    /// # Errors
    /// When what was told makes no sense together.
    pub fn settle(self) -> Result<Config, Unsettled> {
        let mode = self.mode.unwrap_or_default();
        let of_mode = match mode {
            Mode::Nftables | Mode::Userspace => self.nftables,
            Mode::Iptables => self.iptables,
        };
        let mut notes = Vec::new();
        let detect_local = self.detect_local(&mut notes)?;
        let node_ports = self.node_port_addresses(mode);
        // A port of a cluster address that its service does not have, and addresses of the ranges that
        // nobody has: kube-proxy refuses them in nftables mode only, weft in both.
        let service_cidrs = self.service_cidrs.unwrap_or_default();
        let strict = Some(Strict { service_cidrs: service_cidrs.clone() });
        Ok(Config {
            mode,
            node_name: self.node_name,
            kubeconfig: self.kubeconfig,
            healthz: Bind::or_default(self.healthz, Ipv4Addr::UNSPECIFIED, HEALTHZ_PORT),
            metrics: Bind::or_default(self.metrics, Ipv4Addr::LOCALHOST, METRICS_PORT),
            settings: Settings {
                node_ports,
                detect_local,
                masquerade_all: of_mode.masquerade_all.unwrap_or(false),
                strict,
                client_hash: match mode {
                    Mode::Nftables | Mode::Userspace => ClientHash::Jhash,
                    Mode::Iptables => ClientHash::Murmur,
                },
                count_connections: self.connection_metrics.unwrap_or(false) && mode != Mode::Userspace,
                userspace: mode == Mode::Userspace,
            },
            userspace: userspace::Options {
                per_source: self.connections_per_source.filter(|most| *most > 0),
                drain: self.drain.unwrap_or(userspace::Options::default().drain),
            },
            service_cidrs,
            wishes: Wishes { conntrack: self.conntrack.into(), accounting: self.accounting.unwrap_or(false) },
            sync_period: of_mode.sync_period.filter(|period| !period.is_zero()),
            oom_score_adj: self.oom_score_adj,
            log_json: self.log_json.unwrap_or(false),
            verbosity: self.verbosity.unwrap_or(0),
            notes,
        })
    }

    /// A range of pods that is given without a mode is meant to be used; kube-proxy's default says so.
    fn detect_local(&self, notes: &mut Vec<String>) -> Result<DetectLocal, Unsettled> {
        let ranges = self.cluster_cidrs.clone().unwrap_or_default();
        let needs = |value: &Option<String>, mode, field, flag| match value {
            Some(value) if !value.is_empty() => Ok(value.clone()),
            _ => Err(Unsettled::DetectLocal { mode, field, flag }),
        };
        match self.detect_local {
            None if ranges.is_empty() => Ok(DetectLocal::Off),
            Some(DetectLocalMode::ClusterCidr) if ranges.is_empty() => {
                let note = "detectLocalMode ClusterCIDR without clusterCIDR (--cluster-cidr): no packet \
                            counts as a local pod's";
                notes.push(note.to_owned());
                Ok(DetectLocal::Off)
            }
            None | Some(DetectLocalMode::ClusterCidr) => Ok(DetectLocal::ClusterCidr(ranges)),
            Some(DetectLocalMode::NodeCidr) => Ok(DetectLocal::NodeCidr),
            Some(DetectLocalMode::BridgeInterface) => {
                let (field, flag) = ("detectLocal.bridgeInterface", "pod-bridge-interface");
                needs(&self.pod_bridge, "BridgeInterface", field, flag).map(DetectLocal::Bridge)
            }
            Some(DetectLocalMode::InterfaceNamePrefix) => {
                let (field, flag) = ("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix");
                needs(&self.pod_link_prefix, "InterfaceNamePrefix", field, flag)
                    .map(DetectLocal::InterfacePrefix)
            }
        }
    }

    /// kube-proxy's defaults: `primary` with nftables, `all` with iptables. There it serves 127.0.0.1,
    /// too, unless told not to; that takes `route_localnet`, which lets neighbours reach services that
    /// listen on loopback (CVE-2020-8558), so weft has to be told to. In userspace mode it takes nothing.
    fn node_port_addresses(&self, mode: Mode) -> NodePortAddresses {
        let localhost = mode == Mode::Iptables && self.localhost_node_ports == Some(true);
        match (&self.node_ports, mode) {
            (Some(given), _) => given.clone(),
            (None, Mode::Nftables) => NodePortAddresses::default(),
            (None, Mode::Userspace) => NodePortAddresses::parse(["primary", "localhost"]).unwrap_or_default(),
            (None, Mode::Iptables) => {
                let words = ["all"].into_iter().chain(localhost.then_some("localhost"));
                NodePortAddresses::parse(words).unwrap_or_default()
            }
        }
    }
}

impl OfMode {
    fn over(self, below: Self) -> Self {
        Self {
            masquerade_all: self.masquerade_all.or(below.masquerade_all),
            sync_period: self.sync_period.or(below.sync_period),
        }
    }
}

impl Conntrack {
    fn over(self, below: Self) -> Self {
        Self {
            max_per_core: self.max_per_core.or(below.max_per_core),
            min: self.min.or(below.min),
            tcp_established: self.tcp_established.or(below.tcp_established),
            tcp_close_wait: self.tcp_close_wait.or(below.tcp_close_wait),
            tcp_be_liberal: self.tcp_be_liberal.or(below.tcp_be_liberal),
            udp: self.udp.or(below.udp),
            udp_stream: self.udp_stream.or(below.udp_stream),
        }
    }
}

impl Bind {
    /// That port of every address.
    pub fn any(port: u16) -> Self {
        Self { address: Ipv4Addr::UNSPECIFIED.into(), port: Some(port) }
    }

    /// That port of this host alone.
    pub fn local(port: u16) -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port: Some(port) }
    }

    /// With the default port where none is written; None where nothing is served.
    fn or_default(given: Option<Self>, address: Ipv4Addr, port: u16) -> Option<SocketAddr> {
        let given = given.unwrap_or(Self { address: address.into(), port: None });
        let port = given.port.unwrap_or(port);
        (port != 0).then(|| SocketAddr::new(given.address, port))
    }
}

/// `192.0.2.1:10256`, `[::]:10256`, `192.0.2.1`, `::`, `:10256`.
impl FromStr for Bind {
    type Err = BadBind;

    fn from_str(text: &str) -> Result<Self, BadBind> {
        let wrong = || BadBind(text.to_owned());
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self { address: socket.ip(), port: Some(socket.port()) });
        }
        if let Some(port) = text.strip_prefix(':').filter(|port| !port.starts_with(':')) {
            let port = port.parse().map_err(|_| wrong())?;
            return Ok(Self { address: Ipv4Addr::UNSPECIFIED.into(), port: Some(port) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        bare.parse().map(|address| Self { address, port: None }).map_err(|_| wrong())
    }
}

/// As on the command line and in kube-proxy's file.
impl FromStr for Mode {
    type Err = BadMode;

    fn from_str(text: &str) -> Result<Self, BadMode> {
        let refused = |why| Err(BadMode::Refused(text.to_owned(), why));
        match text {
            "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            "ipvs" => refused("weft has no IPVS mode, and Kubernetes gives its own up"),
            "userspace" => Ok(Self::Userspace),
            "kernelspace" => refused("that is for Windows"),
            _ => Err(BadMode::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Userspace => "userspace",
        })
    }
}

/// As in kube-proxy's file.
impl FromStr for DetectLocalMode {
    type Err = BadDetectLocalMode;

    fn from_str(text: &str) -> Result<Self, BadDetectLocalMode> {
        match text {
            "ClusterCIDR" => Ok(Self::ClusterCidr),
            "NodeCIDR" => Ok(Self::NodeCidr),
            "BridgeInterface" => Ok(Self::BridgeInterface),
            "InterfaceNamePrefix" => Ok(Self::InterfaceNamePrefix),
            _ => Err(BadDetectLocalMode(text.to_owned())),
        }
    }
}

/// Ranges with commas between them, at most one of a family, as kube-proxy takes `clusterCIDR`.
///
/// # Errors
/// Says what is wrong with which.
pub fn cluster_cidrs(text: &str) -> Result<Vec<IpNetwork>, String> {
    let mut ranges: Vec<IpNetwork> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let range: Option<IpNetwork> = part.parse().ok().filter(|_| part.contains('/'));
        let range = range.and_then(|range| IpNetwork::new(range.network(), range.prefix()).ok());
        let range = range.ok_or_else(|| format!("`{part}` is no range such as 10.42.0.0/16"))?;
        if let Some(other) = ranges.iter().find(|other| other.is_ipv4() == range.is_ipv4()) {
            return Err(format!("{other} and {range} are of one family; give at most one of each"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}
