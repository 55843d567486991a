//! What the daemon is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::api::Access;
use crate::around::settings::Wishes;
use crate::config::Mode;
use crate::host::Settings;
use crate::model::NodeName;
use crate::userspace;

/// What `weft proxy` shall do.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Where Services, EndpointSlices and Nodes are declared.
    pub source: SourceOptions,
    /// How the kernel is told.
    pub mode: Mode,
    /// This host's name in the cluster (`--node-name`).
    pub node: NodeName,
    /// How its proxy is set, in kube-proxy's terms.
    pub settings: Settings,
    /// Where cluster addresses come from (`--service-cidrs`): each range that no route covers gets one.
    pub service_cidrs: Vec<IpNetwork>,
    /// Where `/healthz`, `/livez` and `/readyz` are told (`--healthz-bind-address`).
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is (`--metrics-bind-address`).
    pub metrics: Option<SocketAddr>,
    /// How connections are carried in userspace mode.
    pub userspace: userspace::Options,
    /// What is wanted of the kernel's settings.
    pub wishes: Wishes,
    /// Sockets, and what does not outlive a boot (`--run-dir`).
    pub run_dir: PathBuf,
    /// What outlives a boot (`--state-dir`).
    pub state_dir: PathBuf,
    /// The kernel is compared with what it should hold this often, even if no event told of a change.
    pub resync: Duration,
}

/// Where objects are declared.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceOptions {
    /// In a folder of manifests (`--manifests`).
    Manifests(PathBuf),
    /// In a Kubernetes API (`--kubeconfig`, or the cluster that we run in).
    Api(Access),
}

impl Options {
    /// Where the daemon's socket is.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("proxy").join("proxy.sock")
    }

    /// What outlives a boot, of the proxy alone.
    pub fn proxy_state_dir(&self) -> PathBuf {
        self.state_dir.join("proxy")
    }
}
