//! What the engine does by a plan, beside links and routes: settings, the tunnel, pods, the filter.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use tracing::{info, warn};
use weft_daemon::settings::Setting;
use weft_kernel::net::{Failure, LinkName, State};
use weft_kernel::tun::{Framing, Tun};

use super::assemble;
use super::engine::{Engine, PassError};
use super::filter::Applied;
use crate::attach::keep::{self, Keeping};
use crate::attach::records::Record;
use crate::attach::site::{Mode, Site};
use crate::backend;
use crate::firewall::{Surroundings, Tunnel as FilteredTunnel};
use crate::lease::LeaseState;
use crate::model::{Family, Model};
use crate::plan::{Desired, End, Transport, keep_router_advertisements};
use crate::udp::{PeerTable, Tunnel, TunnelOptions};

/// The userspace tunnel and what it was started with.
pub(super) struct RunningTunnel {
    pub(super) tunnel: Tunnel,
    link: LinkName,
    port: u16,
    locals: (Option<Ipv4Addr>, Option<Ipv6Addr>),
}

impl Engine {
    pub(super) fn make_settings(
        &mut self,
        model: &Model,
        desired: &Desired,
        observed: &State,
    ) -> Result<usize, String> {
        let mut wanted: Vec<Setting> = Vec::new();
        if model.config.v6.is_some() {
            wanted.extend(keep_router_advertisements(observed));
        }
        wanted.extend(desired.sysctls.iter().cloned());
        if let Some(subnet) = model.me.subnet {
            // Whoever shares the subnet with our pods on a link of its own asks there for their addresses.
            for link in assemble::sharing_links(subnet, observed) {
                wanted.push(Setting::new(format!("net/ipv4/conf/{link}/proxy_arp"), "1"));
                if model.config.v6.is_some() {
                    wanted.push(Setting::new(format!("net/ipv6/conf/{link}/proxy_ndp"), "1"));
                }
            }
        }
        self.settings.apply(&wanted).map_err(|error| weft_daemon::log::chain(&error))
    }

    /// Starts, updates or stops the userspace tunnel as the plan wants it.
    pub(super) fn run_tunnel(&mut self, model: &Model, desired: &Desired) -> Result<usize, String> {
        let Some(udp) = &desired.udp else {
            if self.tunnel.take().is_some() {
                info!("the udp tunnel is no longer needed");
                return Ok(1);
            }
            return Ok(0);
        };
        let table = PeerTable::new(model, udp);
        let local = |family: Family| backend::local_address(&model.me, &model.me.underlay, family);
        let locals = (
            local(Family::V4).and_then(|addr| if let IpAddr::V4(v4) = addr { Some(v4) } else { None }),
            local(Family::V6).and_then(|addr| if let IpAddr::V6(v6) = addr { Some(v6) } else { None }),
        );
        let fits = |running: &&RunningTunnel| {
            running.tunnel.failure().is_none()
                && (&running.link, running.port, running.locals) == (&udp.link, udp.port, locals)
        };
        if let Some(running) = self.tunnel.as_ref().filter(fits) {
            running.tunnel.update(&table);
            return Ok(0);
        }
        self.tunnel = None;
        let fail = |error: &dyn std::error::Error| {
            let line = weft_daemon::log::chain(error);
            self.health.not_ready("tunnel", line.clone());
            line
        };
        let tun = Tun::open(&udp.link, Framing::Vnet).map_err(|error| fail(&error))?;
        let options = TunnelOptions { tun, port: udp.port, local_v4: locals.0, local_v6: locals.1 };
        let tunnel = Tunnel::start(options, &table).map_err(|error| fail(&error))?;
        info!(link = %udp.link, port = udp.port, "udp tunnel started");
        self.tunnel = Some(RunningTunnel { tunnel, link: udp.link.clone(), port: udp.port, locals });
        self.health.ok("tunnel");
        Ok(1)
    }

    /// What pods are offered, and the pods there are.
    pub(super) fn offer(
        &self,
        model: &Model,
        desired: &Desired,
        lease: &LeaseState,
    ) -> (Option<Site>, Vec<Record>) {
        let records = self.records.list().unwrap_or_else(|error| {
            warn!(error = %weft_daemon::log::chain(&error), "pods' records");
            Vec::new()
        });
        let site = model.me.subnet.map(|subnet| {
            let (mut site, bad) =
                assemble::site(&self.options, model.config.networks(), subnet, desired.pod_mtu);
            match bad.first() {
                Some(error) => self.health.degraded("pods", format!("--attach-range: {error}")),
                None => self.health.ok("pods"),
            }
            if lease.draining {
                site.ranges.clear();
            }
            site
        });
        (site, records)
    }

    /// Pods' wires and the bridge. `drifted`: nothing else has changed, so what is missing was taken away.
    pub(super) async fn keep_pods(
        &mut self,
        site: Option<&Site>,
        records: &[Record],
        drifted: bool,
    ) -> Result<(Keeping, Vec<Failure>), PassError> {
        let observed = self.kernel.observe(false).await?;
        let mut keeping = keep::keep(site, records, &observed);
        let recorded: BTreeSet<&Record> = records.iter().collect();
        self.whole_pods.retain(|pod| recorded.contains(pod));
        let mut mending = keep::mending(&keeping, &self.whole_pods, site, &observed);
        self.whole_pods.append(&mut keeping.whole);
        if let Some(site) = site {
            let mut bridge = keep::bridge(site, &observed);
            mending.extend(bridge.iter().cloned());
            bridge.append(&mut keeping.changes);
            keeping.changes = bridge;
        }
        if keeping.stranded.is_empty() {
            self.health.forget("attachments");
        } else {
            let names: Vec<&str> = keeping.stranded.values().map(String::as_str).collect();
            self.health.not_ready("attachments", names.join("; "));
        }
        for change in &keeping.changes {
            info!(%change, "pod's wire");
        }
        drop(observed);
        let failures = self.kernel.apply(&keeping.changes).await;
        if drifted {
            mending.retain(|change| !failures.iter().any(|failure| failure.change == *change));
            self.numbers.healed_pods(mending.len());
        }
        Ok((keeping, keep::without_departed(failures)))
    }

    /// The nftables table and, beside it, our accept rules in others' FORWARD chains.
    pub(super) fn make_filter(
        &mut self,
        model: &Arc<Model>,
        desired: &Desired,
        observed: &State,
        records: &[Record],
        site: Option<&Site>,
    ) -> Result<usize, String> {
        let around = surroundings(model, desired, observed, records, site);
        let made = self.filter.keep(model, around).map_err(|error| weft_daemon::log::chain(&error));
        match &made {
            Ok(_) => self.health.ok("firewall"),
            Err(error) => self.health.not_ready("firewall", error.clone()),
        }
        if made == Ok(Applied::Healed) {
            self.numbers.healed_filter();
        }
        made.map(|applied| usize::from(applied != Applied::Same))
    }

    /// Our accept rules in iptables' chains. Where it is closed for good, pods still reach each other
    /// on this host, so the host is degraded and not unready.
    pub(super) async fn keep_forwarding(&mut self, model: &Model) -> Result<usize, String> {
        let kept = self.forwarding.keep(model).await;
        match &kept {
            Ok(opened) if opened.obstacles.is_empty() => self.health.ok("forwarding"),
            Ok(opened) => self.health.degraded("forwarding", opened.obstacles.join("; ")),
            Err(error) => self.health.degraded("forwarding", error.clone()),
        }
        if kept.as_ref().is_ok_and(|opened| opened.healed) {
            self.numbers.healed_iptables();
        }
        kept.map(|opened| opened.changed)
    }
}

/// What the filter's plan must know of this host beside the model.
fn surroundings(
    model: &Model,
    desired: &Desired,
    observed: &State,
    records: &[Record],
    site: Option<&Site>,
) -> Surroundings {
    let mut around = Surroundings::new(&model.config.backend);
    let offered = End::ours(&model.me, &model.config).transports;
    let used: BTreeSet<Transport> = desired.ways.values().map(|way| way.transport).collect();
    for transport in used {
        let tunnel = match transport {
            Transport::Vxlan => {
                offered.vxlan.map(|end| FilteredTunnel::Vxlan { vni: end.vni, port: end.port })
            }
            Transport::Udp => offered.udp.map(|port| FilteredTunnel::Udp { port }),
            Transport::Direct => None,
        };
        if let Some(tunnel) = tunnel.filter(|tunnel| !around.tunnels.contains(tunnel)) {
            around.tunnels.push(tunnel);
        }
    }
    // Not the TUN: the daemon checks what it writes there, and its own ICMP errors come from this host.
    let tun = desired.udp.as_ref().map(|udp| &udp.link);
    around.tunnel_links = desired.kernel.links.keys().filter(|link| Some(*link) != tun).cloned().collect();
    match site {
        Some(site) if site.mode == Mode::Bridge => {
            let bridge = site.bridge.as_deref().and_then(|name| name.parse().ok());
            around.pods.extend(bridge.map(|bridge| (bridge, site.subnets.clone())));
        }
        Some(_) => {
            let pods = records.iter().filter_map(|record| {
                let addresses = record.addresses.iter().copied().map(IpNetwork::from).collect();
                Some((record.link.parse().ok()?, addresses))
            });
            around.pods.extend(pods.filter(|(link, _)| observed.links.contains_key(link)));
        }
        None => {}
    }
    let on_underlay =
        observed.neighbours.values().filter(|neighbour| neighbour.link == model.me.underlay.link);
    around.neighbours = on_underlay.map(|neighbour| (neighbour.addr, neighbour.mac)).collect();
    around
}
