//! What is known of a network whose daemon is gone: from its files and from its links.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_kernel::net::{Link, LinkKind, Rtnetlink, State};

use super::Traces;
use crate::attach::site::Site;
use crate::cache::Cache;
use crate::subnet_file::SubnetFile;

/// Where a network has been.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trail {
    /// The network's name.
    pub(super) network: String,
    /// The whole pod network, as last known.
    pub(super) ranges: BTreeSet<IpNetwork>,
    /// First addresses of subnets that this host had.
    pub(super) subnets: BTreeSet<IpAddr>,
    /// No other weft network has left a trace on this host.
    pub(super) is_last: bool,
    /// A link of flannel's.
    pub(super) flannel: Option<String>,
}

impl Trail {
    pub(super) fn read(traces: &Traces) -> Self {
        let network = traces.network.as_str();
        let site = Site::read(&traces.run_dir, network).ok();
        let subnets = site.iter().flat_map(|site| &site.subnets).map(IpNetwork::network);
        let cache = Cache::new(&traces.state_dir.join(network));
        let registry = cache.prefix().and_then(|prefix| cache.read(&prefix));
        let config = registry.as_ref().and_then(|registry| registry.config());
        let mut trail = Self {
            network: network.to_owned(),
            ranges: config.into_iter().flat_map(|config| config.networks()).collect(),
            subnets: subnets.collect(),
            is_last: !others(&traces.state_dir, network) && !others(&traces.run_dir, network),
            flannel: None,
        };
        // Whoever cannot look cannot remove either, and says so there.
        if let Ok(observed) = Rtnetlink::open().and_then(|net| net.observe_blocking()) {
            trail.follow(&observed);
        }
        trail
    }

    /// What the kernel's links tell.
    pub(super) fn follow(&mut self, observed: &State) {
        for link in observed.links.values() {
            self.is_last &= !is_weft(link) || self.owns(link);
            if is_flannel(link) {
                self.flannel = Some(link.name.to_string());
            }
        }
        // A tunnel's link has the subnet's first address, alone.
        let tunnels = observed.addresses.iter().filter(|address| {
            let link = observed.links.get(&address.link);
            let tunnel = |link: &&Link| matches!(link.kind, LinkKind::Vxlan(_) | LinkKind::Tun);
            link.filter(tunnel).is_some_and(|link| self.owns(link))
        });
        let found: Vec<IpAddr> = tunnels.map(|address| address.network.ip()).collect();
        self.subnets.extend(found);
    }

    /// Whether a link is this network's.
    pub(super) fn owns(&self, link: &Link) -> bool {
        let alias = link.alias.as_deref().and_then(|alias| alias.strip_prefix("weft:"));
        alias.and_then(|rest| rest.strip_prefix(&self.network)).is_some_and(|rest| rest.starts_with(':'))
    }

    /// Whether a subnet file with this text speaks of this network.
    pub(super) fn wrote(&self, text: &str) -> bool {
        let file = SubnetFile::parse(text);
        let networks = [file.network.map(IpNetwork::V4), file.network_v6.map(IpNetwork::V6)];
        let subnets = [file.subnet.map(IpNetwork::V4), file.subnet_v6.map(IpNetwork::V6)];
        networks.iter().flatten().any(|network| self.ranges.contains(network))
            || subnets.iter().flatten().any(|subnet| self.subnets.contains(&subnet.network()))
    }
}

/// Whether a link is some weft network's.
pub(super) fn is_weft(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.starts_with("weft:"))
}

/// As flannel names its links: `flannel.1`, `flannel-v6.1`, `flannel0` (its pkg/backend).
fn is_flannel(link: &Link) -> bool {
    let name = link.name.as_str();
    let rest = name.strip_prefix("flannel");
    rest.is_some_and(|rest| rest.starts_with(['.', '-']) || rest.parse::<u8>().is_ok()) && !is_weft(link)
}

/// Whether a directory holds another network's.
fn others(dir: &std::path::Path, network: &str) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.into_iter().any(|entry| entry.file_name() != network)
}
