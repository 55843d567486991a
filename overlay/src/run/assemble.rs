//! From what the parts of the daemon know to the one model that is planned from, and from the plan
//! to what other programs and the tunnel are told. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use weft_kernel::net::{LinkName, State};

use crate::attach::range::{BadRange, Range};
use crate::attach::sharing;
use crate::attach::site::{Mode, Site};
use crate::config::NetworkConfig;
use crate::model::{Me, Model, Peer, Subnet};
use crate::options::Options;
use crate::subnet_file::SubnetFile;

/// The model: this host, the configuration in force, the peers in the data path, the options.
pub(super) fn model(
    options: &Options,
    me: Me,
    config: &NetworkConfig,
    peers: BTreeMap<Subnet, Peer>,
) -> Model {
    Model {
        me,
        config: config.clone(),
        peers,
        masquerade: options.masquerade,
        masquerade_random: options.masquerade_random,
        non_masquerade: options.non_masquerade.clone(),
        forward_accept: options.forward_accept,
        anti_spoofing: options.anti_spoofing,
        extra_sources: options.extra_sources.clone(),
        blackhole: options.blackhole,
    }
}

/// The pod networks, IPv4 first.
pub(super) fn networks(config: &NetworkConfig) -> impl Iterator<Item = IpNetwork> {
    let v4 = config.v4.map(|pool| IpNetwork::V4(pool.network));
    let v6 = config.v6.map(|pool| IpNetwork::V6(pool.network));
    v4.into_iter().chain(v6)
}

/// What the subnet file says.
pub(super) fn subnet_file(model: &Model, pod_mtu: u32) -> Option<SubnetFile> {
    let subnet = model.me.subnet?;
    Some(SubnetFile {
        network: model.config.v4.map(|pool| pool.network),
        subnet: subnet.v4,
        network_v6: model.config.v6.map(|pool| pool.network),
        subnet_v6: subnet.v6,
        mtu: Some(pod_mtu),
        masquerade: Some(model.masquerade),
    })
}

/// What pods are offered: the subnet, or the part of it that `--attach-range` names. A range that
/// is not inside the subnet that was leased is an error for people to mend; the rest is offered.
pub(super) fn site(
    options: &Options,
    networks: impl Iterator<Item = IpNetwork>,
    subnet: Subnet,
    pod_mtu: u32,
) -> (Site, Vec<BadRange>) {
    let (mut ranges, mut bad) = (Vec::new(), Vec::new());
    for network in subnet.networks() {
        let asked = options.attach_ranges.iter().find(|range| range.is_ipv4() == network.is_ipv4());
        match asked.map(|range| range.within(network)) {
            Some(Ok(range)) => ranges.push(range),
            Some(Err(error)) => bad.push(error),
            None => ranges.extend(Range::of_subnet(network)),
        }
    }
    let network = options.network.as_str();
    let bridge = (options.attach == Mode::Bridge).then(|| Site::bridge_name(network).to_string());
    let site = Site {
        network: network.to_owned(),
        subnets: subnet.networks().collect(),
        networks: networks.collect(),
        ranges,
        mtu: pod_mtu,
        mode: options.attach,
        bridge,
    };
    (site, bad)
}

/// Links of others that share our subnet.
pub(super) fn sharing_links(subnet: Subnet, observed: &State) -> BTreeSet<LinkName> {
    sharing::links(&subnet.networks().collect::<Vec<_>>(), observed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet() -> Subnet {
        "10.42.7.0/24".parse().unwrap()
    }

    #[test]
    fn a_range_inside_the_subnet_is_offered_and_one_outside_is_named() {
        let mut options = Options::default();
        let site = |options: &Options| site(options, std::iter::empty(), subnet(), 1450);
        let (whole, bad) = site(&options);
        assert_eq!((whole.ranges[0].to_string().as_str(), bad.len()), ("10.42.7.2-10.42.7.254", 0));
        options.attach_ranges = vec!["10.42.7.64/26".parse().unwrap()];
        assert_eq!(site(&options).0.ranges[0].to_string(), "10.42.7.64-10.42.7.127");
        options.attach_ranges = vec!["10.42.9.64/26".parse().unwrap()];
        let (nothing, bad) = site(&options);
        assert_eq!((nothing.ranges.len(), bad.len()), (0, 1));
    }
}
