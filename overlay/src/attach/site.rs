//! What this host offers to pods: written by the daemon, read by whoever attaches.
//!
//! The daemon keeps it current in `<run-dir>/<network>/attach.json`, so that pods start while the
//! daemon is restarted; it takes the file away while the host has no subnet.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use weft_kernel::net::LinkName;

use super::range::Range;

/// How a pod's wire ends on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A point-to-point link and a route for every pod: all traffic crosses the IP layer, so there
    /// is no br_netfilter, no hairpin mode, and a pod's source address can be checked.
    #[default]
    Routed,
    /// A bridge with the subnet's first address, as flannel's CNI plugin lays it out.
    Bridge,
}

/// The offer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Site {
    /// The network's name on this host.
    pub network: String,
    /// This host's subnets, one of each family at most.
    pub subnets: Vec<IpNetwork>,
    /// All hosts' subnets are in these, one of each family at most.
    #[serde(default)]
    pub networks: Vec<IpNetwork>,
    /// What pods' addresses are taken from, one range of each family of `subnets`.
    pub ranges: Vec<Range>,
    /// MTU of pods' links in bytes.
    pub mtu: u32,
    /// How wires end on the host.
    pub mode: Mode,
    /// The bridge, in bridge mode.
    pub bridge: Option<String>,
}

/// Why there is no offer.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// No file: the daemon never ran, or the host has no subnet.
    #[error("this host has no subnet in network {network} yet ({} is missing): is `weft overlay` running and ready?", path.display())]
    Missing {
        /// The network.
        network: String,
        /// The file.
        path: PathBuf,
    },
    /// There is a subnet, and none of its addresses is for pods.
    #[error(
        "this host gives out no addresses in network {network}: it is being drained, or its --attach-range \
         is not inside its subnet"
    )]
    Closed {
        /// The network.
        network: String,
    },
    /// The file cannot be read or understood.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The gateway of routed pods: link-local, so that it needs no address of the subnet and is the
/// same on every host (RFC 3927).
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same in IPv6 (RFC 4291, section 2.5.6).
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

impl Site {
    /// Where the offer of a network stands.
    pub fn path(run_dir: &Path, network: &str) -> PathBuf {
        run_dir.join(network).join("attach.json")
    }

    /// Reads the offer.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn read(run_dir: &Path, network: &str) -> Result<Self, SiteError> {
        let path = Self::path(run_dir, network);
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<Self>(&text) {
                Ok(site) if site.ranges.is_empty() => Err(SiteError::Closed { network: network.to_owned() }),
                Ok(site) => Ok(site),
                Err(error) => Err(SiteError::Unreadable { path, source: error.into() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SiteError::Missing { network: network.to_owned(), path })
            }
            Err(source) => Err(SiteError::Unreadable { path, source }),
        }
    }

    /// The name of a network's bridge.
    pub fn bridge_name(network: &str) -> LinkName {
        let name = if network == "weft" {
            "weft-br".to_owned()
        } else {
            format!("wb{}", super::link_suffix(network, ""))
        };
        name.parse().expect("two letters and eleven hexadecimal digits are a link name")
    }

    /// The address that a pod sends its packets to, in the family of `addr`.
    pub fn gateway(&self, addr: IpAddr) -> Option<IpAddr> {
        match self.mode {
            Mode::Routed if addr.is_ipv4() => Some(GATEWAY_V4.into()),
            Mode::Routed => Some(GATEWAY_V6.into()),
            Mode::Bridge => self
                .subnets
                .iter()
                .find(|subnet| subnet.contains(addr))
                .and_then(|subnet| bridge_address(*subnet)),
        }
    }

    /// A pod's address with the prefix length that its link gets: all of the subnet is on the link
    /// in bridge mode, nothing is in routed mode.
    pub fn pod_network(&self, addr: IpAddr) -> Option<IpNetwork> {
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        let len = match self.mode {
            Mode::Routed => whole,
            Mode::Bridge => self.subnets.iter().find(|subnet| subnet.contains(addr))?.prefix(),
        };
        IpNetwork::new(addr, len).ok()
    }
}

/// The subnet's first address: the bridge's, and what `FLANNEL_SUBNET` names.
pub fn bridge_address(subnet: IpNetwork) -> Option<IpAddr> {
    match subnet.network() {
        IpAddr::V4(net) => u32::from(net).checked_add(1).map(|addr| IpAddr::V4(addr.into())),
        IpAddr::V6(net) => u128::from(net).checked_add(1).map(|addr| IpAddr::V6(addr.into())),
    }
}
