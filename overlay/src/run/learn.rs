//! What the engine learns before it plans: the config in force, the underlay, the peers in the path.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::info;
use weft_kernel::net::State;

use super::engine::Engine;
use crate::config::{LiveChange, NetworkConfig, live_change};
use crate::lease::{Intent, LeaseState, Wish};
use crate::membership::{Evidence, Listing, Verdict};
use crate::model::{Family, Me, Subnet};
use crate::plan::{Desired, End};
use crate::probe::Target;
use crate::registry::{Known, Registry};
use crate::takeover;
use crate::underlay::{self, Wanted};

impl Engine {
    /// The config in force: the one of this start, with those changes that may be made live.
    pub(super) fn config(&mut self, registry: &Registry) -> Option<NetworkConfig> {
        let entry = registry.config_entry();
        let Some(wanted) = registry.config() else {
            let why = match entry.and_then(|entry| entry.fault.clone()) {
                Some(fault) => fault,
                None => format!("no network config at {}", registry.prefix().config()),
            };
            self.health.not_ready("config", why);
            return None;
        };
        self.tell_notes(registry.config_notes());
        let Some(current) = &self.config else {
            if !wanted.backend_given {
                info!("the config names no Backend; vxlan is taken (flannel would take udp)");
            }
            self.config = Some(wanted.clone());
            return self.config(registry);
        };
        let fault = entry.and_then(|entry| entry.fault.clone());
        match (live_change(current, wanted), fault) {
            (_, Some(fault)) => {
                self.health.not_ready(
                    "config",
                    format!("the config in etcd cannot be used, the former one stays in force: {fault}"),
                );
            }
            (LiveChange::Applied { keys }, None) => {
                if !keys.is_empty() {
                    info!(keys = keys.join(", "), "config changed");
                    self.config = Some(wanted.clone());
                }
                self.health.ok("config");
            }
            (LiveChange::Refused { key, reason }, None) => {
                self.health.not_ready("config", format!("{key}: {reason}"));
            }
        }
        self.config.clone()
    }

    /// The link to the other hosts. One that was chosen stays chosen while it fits: its MTU and
    /// addresses are followed, and a moment without an address does not end the network.
    pub(super) fn choose_underlay(
        &mut self,
        config: &NetworkConfig,
        observed: &State,
    ) -> Option<underlay::Chosen> {
        let wanted = Wanted {
            choice: &self.options.underlay,
            public_v4: self.options.public_v4,
            public_v6: self.options.public_v6,
            v4: config.v4.is_some(),
            v6: config.v6.is_some(),
            reach: self.options.underlay.can_reach.and_then(super::reach::link_towards),
        };
        // Not for one that had all that pods need, and lacks an address or a route for a moment.
        let may_cross = self.underlay.as_ref().is_none_or(|kept| !kept.serves(&wanted));
        let chosen = underlay::choose(&wanted, observed)
            .or_else(|error| underlay::crossing(&wanted, observed).filter(|_| may_cross).ok_or(error));
        match chosen {
            Ok(chosen) => {
                let told = |chosen: &underlay::Chosen| {
                    let addresses = [chosen.public_v4.map(IpAddr::V4), chosen.public_v6.map(IpAddr::V6)];
                    let addresses: Vec<String> =
                        addresses.iter().flatten().map(ToString::to_string).collect();
                    (chosen.underlay.link.clone(), chosen.underlay.mtu, addresses.join(", "))
                };
                let (link, mtu, addresses) = told(&chosen);
                if self.underlay.as_ref().map(told) != Some((link.clone(), mtu, addresses.clone())) {
                    info!(%link, mtu, addresses, "underlay");
                }
                self.health.ok("underlay");
                self.underlay = Some(chosen);
            }
            Err(error) => match &mut self.underlay {
                Some(kept) => {
                    self.health.degraded("underlay", format!("{} stays in use: {error}", kept.underlay.link));
                    if let Some(refreshed) = underlay::refreshed(&kept.underlay, observed) {
                        kept.underlay = refreshed;
                    }
                }
                None => self.health.not_ready("underlay", error.to_string()),
            },
        }
        self.underlay.clone()
    }

    /// A MAC that was flannel's, which the other hosts know from our lease, stays ours.
    pub(super) fn adopt_macs(&self, me: &mut Me, registry: &Registry, lease: &LeaseState) {
        // A daemon whose files were lost knows its subnet by the store, before it has its lease again.
        let published = lease
            .subnet
            .or_else(|| super::held(registry, &self.node))
            .and_then(|subnet| registry.owner(&subnet))
            .and_then(|entry| entry.record.as_ref())
            .filter(|record| record.node == self.node)
            .and_then(|record| record.transports.vxlan);
        if let Some(published) = published {
            me.adopted_mac_v4 = takeover::remembered(&published, &self.node, Family::V4);
            me.adopted_mac_v6 = takeover::remembered(&published, &self.node, Family::V6);
        }
        // Until our record says it, the link itself does: flannel's was just taken over.
        if let Some((v4, v6)) = self.files.adopted() {
            me.adopted_mac_v4 = me.adopted_mac_v4.or(v4);
            me.adopted_mac_v6 = me.adopted_mac_v6.or(v6);
        }
    }

    /// Tells the lease driver how we are reached; it rewrites the lease if that changed.
    pub(super) fn update_intent(&self, me: &Me, config: &NetworkConfig, lease: &LeaseState) {
        let vacated = lease.draining && self.closed && self.is_empty();
        let wish = Wish {
            node: self.node.clone(),
            instance: self.instance.clone(),
            public_v4: me.public_v4,
            public_v6: me.public_v6,
            transports: End::ours(me, config).transports,
            remembered: self.remembered,
            vacated,
        };
        let next = Some(Intent { config: config.clone(), wish });
        self.intent.send_if_modified(|held| {
            let changed = *held != next;
            held.clone_from(&next);
            changed
        });
    }

    /// Which of the other hosts are in the data path.
    pub(super) fn members(&mut self, listing: &Listing, known: &Known) -> Arc<Verdict> {
        let now = Instant::now();
        if self.wipes != known.wipes {
            self.wipes = known.wipes;
            self.membership.wiped(now);
        }
        let reachable = known.registry.is_some() && known.disconnected.is_none();
        let nowhere = BTreeMap::new();
        let targets = self.planned.as_ref().map_or(&nowhere, |(_, desired)| &desired.probes);
        let outcomes = self.outcomes.borrow();
        let evidence = Evidence { now, reachable, listing, targets, outcomes: &outcomes };
        let verdict = Arc::new(self.membership.update(&evidence));
        drop(outcomes);
        for (subnet, standing) in &verdict.standing {
            if self.verdict.standing.get(subnet).is_some_and(|before| before.in_path() != standing.in_path())
            {
                info!(%subnet, %standing, "peer");
            }
        }
        self.verdict = Arc::clone(&verdict);
        verdict
    }

    pub(super) fn set_probes(&mut self, desired: &Desired, members: &Verdict) {
        let suspect = |subnet: &Subnet| members.suspects.contains(subnet);
        let targets = desired.probes.iter().flat_map(|(subnet, addresses)| {
            addresses.iter().map(|addr| Target { addr: *addr, suspect: suspect(subnet) })
        });
        let targets: Vec<Target> = targets.collect();
        self.probes.send_if_modified(|held| {
            let changed = *held != targets;
            if changed {
                *held = targets;
            }
            changed
        });
    }
}
