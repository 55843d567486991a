//! Looking: every look is short, stands alone, and leaves a word in [`Facts::unseen`] when it fails.

mod arp;
mod hosts;
mod icmp;
mod kernel;
mod udp;

use std::time::Duration;

use tokio::time::timeout;
use weft_daemon::finding::Daemon;
use weft_daemon::http::client::Client;
use weft_daemon::log::chain;
use weft_kernel::net::{LinkKind, Rtnetlink, State};
use weft_store::{ConnectOptions, Store};

use super::facts::{Facts, StoreFact};
use crate::attach::site::{Mode, Site};
use crate::cache::Cache;
use crate::cleanup::Traces;
use crate::firewall::Surroundings;
use crate::key::Prefix;
use crate::model::{Me, Model, NodeId, Subnet, Underlay};
use crate::registry::Registry;
use crate::run::status::Status;

/// What to look at.
#[derive(Clone, Debug)]
pub struct Question {
    /// The network and its directories.
    pub traces: Traces,
    /// etcd, and where the network's keys begin.
    pub etcd: (ConnectOptions, Prefix),
    /// Ask etcd even while the daemon runs, whose word about it would do.
    pub ask_etcd: bool,
}

/// How long the daemon or etcd may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Looks at everything in the network namespace of the calling thread.
pub async fn gather(question: &Question) -> Facts {
    let mut facts = Facts { prefix: question.etcd.1.to_string(), ..Facts::default() };
    let status = daemon(&question.traces, &mut facts).await;
    let registry = registry(question, &mut facts).await;
    facts.notes = registry.as_ref().map(|registry| registry.config_notes().to_vec()).unwrap_or_default();
    let site = Site::read(&question.traces.run_dir, question.traces.network.as_str()).ok();
    let network = question.traces.network.to_string();
    // It blocks, and is all there is to do.
    tokio::task::block_in_place(|| look(facts, &network, status, registry, site))
}

async fn daemon(traces: &Traces, facts: &mut Facts) -> Option<Status> {
    let socket = traces.run_dir.join(traces.network.as_str()).join("overlay.sock");
    let client = Client::new(&socket).timeout(PATIENCE);
    facts.daemon = Daemon::ask(&socket, PATIENCE).await;
    client.get_json("/peers").await.ok()
}

/// What the store holds: by itself, or as it was last kept on disk.
async fn registry(question: &Question, facts: &mut Facts) -> Option<Registry> {
    let (options, prefix) = &question.etcd;
    if question.ask_etcd || !matches!(facts.daemon, Daemon::Answers(_)) {
        let listed = async { Store::connect(options.clone())?.list(&prefix.all()).await };
        match timeout(PATIENCE, listed).await {
            Ok(Ok(snapshot)) => {
                facts.store = StoreFact::Reached;
                let (registry, faults) = Registry::new(prefix.clone(), &snapshot);
                facts.faults = faults.iter().map(ToString::to_string).collect();
                return Some(registry);
            }
            Ok(Err(error)) => facts.store = StoreFact::Unreached(chain(&error)),
            Err(_) => {
                let endpoints = options.endpoints.join(", ");
                facts.store = StoreFact::Unreached(format!("no answer from {endpoints} within {PATIENCE:?}"));
            }
        }
    }
    let cache = Cache::new(&question.traces.state_dir.join(question.traces.network.as_str()));
    cache.prefix().and_then(|prefix| cache.read(&prefix))
}

fn look(
    mut facts: Facts,
    network: &str,
    status: Option<Status>,
    registry: Option<Registry>,
    site: Option<Site>,
) -> Facts {
    facts.bridge = site.as_ref().is_some_and(|site| site.mode == Mode::Bridge);
    let observed = match Rtnetlink::open().and_then(|net| net.observe_blocking()) {
        Ok(observed) => observed,
        Err(error) => {
            facts.unseen.push(format!("links and routes: {}", chain(&error)));
            return facts;
        }
    };
    let ours = format!("weft:{network}:");
    let own_links =
        observed.links.values().filter(|link| link.alias.as_deref().is_some_and(|a| a.starts_with(&ours)));
    let tunnel = |kind: &LinkKind| matches!(kind, LinkKind::Vxlan(_) | LinkKind::Tun);
    facts.tunnel_links =
        own_links.clone().filter(|link| tunnel(&link.kind)).map(|link| link.name.clone()).collect();
    if let Some(registry) = &registry {
        facts.leases = registry.leases().map(|(subnet, entry)| (*subnet, entry.addresses())).collect();
        facts.model = model(network, status.as_ref(), registry, site.as_ref(), &observed);
    }
    unlisted(status.as_ref(), &mut facts);
    kernel::look(&mut facts);
    if let Some(model) = &facts.model {
        let mut around = Surroundings::new(&model.config.backend);
        around.tunnel_links = facts.tunnel_links.iter().cloned().collect();
        let pods = own_links.filter(|link| link.kind == LinkKind::Veth);
        around.pods = pods.map(|link| (link.name.clone(), Vec::new())).collect();
        facts.around = Some(around);
    }
    if let Some(model) = facts.model.clone() {
        hosts::look(&model, &observed, &mut facts);
    }
    facts
}

/// What the daemon keeps on disk is a little behind what it knows.
fn unlisted(status: Option<&Status>, facts: &mut Facts) {
    let Some(model) = &facts.model else { return };
    let peers = status.into_iter().flat_map(|status| &status.peers).filter(|peer| peer.state != "skipped");
    for peer in peers {
        if peer.subnet.parse().is_ok_and(|subnet: Subnet| !model.peers.contains_key(&subnet)) {
            facts.unseen.push(format!("the host with {}: the cache does not tell of it yet", peer.subnet));
        }
    }
}

/// The model that this host's daemon would plan from, with every peer that has a lease.
fn model(
    network: &str,
    status: Option<&Status>,
    registry: &Registry,
    site: Option<&Site>,
    observed: &State,
) -> Option<Model> {
    let config = registry.config()?.clone();
    let leased = |wanted: &Subnet| registry.lease(wanted);
    // From the daemon's word, else from what is offered to pods, else from a tunnel's address.
    let said = status.and_then(|status| status.subnet.as_deref()?.parse::<Subnet>().ok());
    let holds = |subnet: &Subnet| {
        let firsts: Vec<_> = subnet.networks().map(|network| network.network()).collect();
        let offered = site.is_some_and(|site| site.subnets.iter().any(|net| firsts.contains(&net.network())));
        offered
            || observed.addresses.iter().any(|address| {
                let alone = address.network == ipnetwork::IpNetwork::from(address.network.ip());
                alone && firsts.contains(&address.network.ip())
            })
    };
    let subnet = said.or_else(|| registry.leases().map(|(subnet, _)| *subnet).find(holds))?;
    let attrs = leased(&subnet)?.attrs.as_ref()?;
    let public = [attrs.public_v4.map(Into::into), attrs.public_v6.map(Into::into)];
    let holder = |address: std::net::IpAddr| {
        observed.addresses.iter().find(|held| held.network.ip() == address).map(|held| held.link.clone())
    };
    let by_default = || {
        let default = |network: &ipnetwork::IpNetwork| network.prefix() == 0;
        observed.routes.values().find(|route| default(&route.key.dst)).and_then(|route| route.link.clone())
    };
    let link = public.into_iter().flatten().find_map(holder).or_else(by_default)?;
    let on_link = observed.addresses.iter().filter(|address| address.link == link);
    let underlay = Underlay {
        mtu: observed.links.get(&link)?.mtu,
        addresses: on_link.map(|address| address.network).collect(),
        link,
    };
    // Whoever has no id has no owner record either, and is found by its addresses.
    let node = status.map_or_else(|| "unknown".to_owned(), |status| status.node.clone());
    let me = Me {
        node: NodeId::try_from(node).ok()?,
        network: network.to_owned(),
        subnet: Some(subnet),
        public_v4: attrs.public_v4,
        public_v6: attrs.public_v6,
        underlay,
        adopted_mac_v4: None,
        adopted_mac_v6: None,
    };
    let known = registry.peers(&me, &config).known;
    Some(Model {
        peers: known.into_iter().map(|(subnet, known)| (subnet, known.peer)).collect(),
        me,
        config,
        masquerade: false,
        masquerade_random: false,
        non_masquerade: Default::default(),
        forward_accept: true,
        anti_spoofing: true,
        extra_sources: Default::default(),
        blackhole: false,
    })
}
