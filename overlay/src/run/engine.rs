//! One pass of the daemon: look at everything, plan, apply what differs, say how it went.
//!
//! A pass decides nothing by itself: what should be comes out of `plan` and its like, and each step
//! goes on when another has failed, because half a network is better than none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tracing::{info, warn};
use weft_daemon::health::Health;
use weft_kernel::net::{Failure, LinkName, State};
use weft_kernel::nft;
use weft_kernel::tun::{Framing, Tun};

use super::assemble;
use super::files::Files;
use super::filter::{Applied, Filter};
use super::flannel::TakingOver;
use super::forwarding::Forwarding;
use super::kernel::Kernel;
use super::numbers::Numbers;
use super::status::{self, Status};
use crate::admin::{self, AdminError};
use crate::attach::keep::{self, Keeping};
use crate::attach::records::{Record, Records};
use crate::attach::site::{Mode, Site};
use crate::backend;
use crate::config::{LiveChange, NetworkConfig, live_change};
use crate::diff::Conflict;
use crate::firewall::{self, Surroundings, Tunnel as FilteredTunnel};
use crate::key::Prefix;
use crate::lease::{Intent, LeaseState, Wish};
use crate::membership::{Evidence, Listing, Membership, Verdict};
use crate::model::{Family, Me, Model, NodeId, Subnet};
use crate::options::Options;
use weft_store::{Store, Txn};

use crate::plan::{Desired, End, Sysctl, Transport, keep_router_advertisements, plan};
use crate::probe::{Outcomes, Target};
use crate::reconcile::Report;
use crate::registry::{Known, Registry};
use crate::settings::Settings;
use crate::takeover;
use crate::udp::{PeerTable, Tunnel, TunnelOptions};
use crate::underlay::{self, Wanted};

/// A look at everything the kernel holds takes at most one part in so many of the time: with
/// thousands of peers it costs tens of milliseconds, and events tell of nearly all changes before.
const LOOK_SELDOM: u32 = 300;
/// How long the store may take to answer before a host that starts goes by its cache.
pub(super) const STORE_GRACE: Duration = Duration::from_secs(2);

/// How long a daemon that stops tries to give its subnet back.
const RELEASE: Duration = Duration::from_secs(5);

/// Everything one daemon has in hand.
pub(super) struct Engine {
    pub(super) options: Options,
    pub(super) node: NodeId,
    pub(super) health: Health,
    pub(super) numbers: Numbers,
    /// What the store says, and what it said before this start.
    pub(super) known: watch::Receiver<Known>,
    pub(super) cached: Option<Arc<Registry>>,
    /// Our lease, and what the lease driver must know of us.
    pub(super) lease: watch::Receiver<LeaseState>,
    pub(super) intent: watch::Sender<Option<Intent>>,
    /// This run of the daemon.
    pub(super) instance: String,
    /// A subnet to take if it is free: from the subnet file.
    pub(super) remembered: Option<Subnet>,
    pub(super) membership: Membership,
    /// What it said last.
    pub(super) verdict: Verdict,
    /// How often the store had turned out to be a new one, as far as the membership knows.
    pub(super) wipes: u64,
    /// Where each peer is probed, by the last plan.
    pub(super) targets: BTreeMap<Subnet, BTreeSet<IpAddr>>,
    /// When the membership wants to be asked again.
    pub(super) wake: watch::Sender<Option<Instant>>,
    pub(super) probes: watch::Sender<Vec<Target>>,
    pub(super) outcomes: watch::Receiver<Outcomes>,
    pub(super) kernel: Kernel,
    pub(super) filter: Filter,
    pub(super) forwarding: Forwarding,
    pub(super) settings: Settings,
    pub(super) records: Records,
    pub(super) files: Files,
    pub(super) status: watch::Sender<Arc<Status>>,
    pub(super) plans: watch::Sender<Option<Arc<Desired>>>,
    pub(super) tunnel: Option<RunningTunnel>,
    /// The config that is in force since this start.
    pub(super) config: Option<NetworkConfig>,
    pub(super) underlay: Option<underlay::Chosen>,
    /// Plugins have been told that this host gives out no addresses.
    pub(super) closed: bool,
    /// When the daemon started.
    pub(super) started: Instant,
    /// How far taking over from flannel is.
    pub(super) flannel: TakingOver,
    /// When the other firewalls' FORWARD chains were looked at for the last time.
    pub(super) forwarding_looked: Option<Instant>,
    /// When the last pass asked the kernel for everything, and how long that pass took.
    pub(super) looked: Option<(Instant, Duration)>,
    /// How long the last pass took, without the other firewalls' programs.
    pub(super) look_cost: Duration,
}

/// The userspace tunnel and what it was started with.
pub(super) struct RunningTunnel {
    tunnel: Tunnel,
    link: LinkName,
    port: u16,
    locals: (Option<Ipv4Addr>, Option<Ipv6Addr>),
}

/// A pass that left something undone; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Observe(#[from] weft_kernel::net::NetError),
    /// Steps that failed, each named.
    #[error("{0}")]
    Steps(String),
}

impl Engine {
    /// One pass; says how many changes it made.
    pub(super) async fn pass(&mut self, reasons: &BTreeSet<&'static str>) -> Result<usize, PassError> {
        if reasons.contains("filter") {
            self.filter.doubt();
            self.forwarding.doubt();
        }
        let start = Instant::now();
        let fresh = self
            .looked
            .is_none_or(|(at, took)| start.duration_since(at) >= self.options.resync.max(took * LOOK_SELDOM));
        if fresh {
            self.filter.doubt();
        }
        // iptables-legacy tells nobody of its changes; looking is a program or two, however many peers.
        if self.forwarding_looked.is_none_or(|at| start.duration_since(at) >= self.options.resync) {
            self.forwarding_looked = Some(start);
            self.forwarding.doubt();
        }
        let result = self.look_and_act(fresh).await;
        if fresh && result.is_ok() {
            self.looked = Some((start, self.look_cost));
        }
        result
    }

    async fn look_and_act(&mut self, fresh: bool) -> Result<usize, PassError> {
        let start = Instant::now();
        let observed = self.kernel.observe(fresh).await?;
        let known = self.known.borrow_and_update().clone();
        let lease = self.lease.borrow_and_update().clone();
        self.tell_store(&known);
        // The kernel may know better than the cache, and what works must not suffer from a restart: so
        // the cache has its say only when the store does not answer.
        let silent = known.disconnected.is_some() || self.started.elapsed() >= STORE_GRACE;
        let registry = known.registry.clone().or_else(|| self.cached.clone().filter(|_| silent));
        let Some(registry) = registry else {
            let cache = if self.cached.is_some() { "" } else { ": there is no cache of an earlier run" };
            self.health.not_ready("config", format!("waiting for the store{cache}"));
            return Ok(0);
        };
        let Some(config) = self.config(&registry) else { return Ok(0) };
        let Some(chosen) = self.choose_underlay(&config, &observed) else { return Ok(0) };

        let mut me = Me {
            node: self.node.clone(),
            network: self.options.network.as_str().to_owned(),
            subnet: lease.subnet,
            public_v4: chosen.public_v4,
            public_v6: chosen.public_v6,
            underlay: chosen.underlay,
            adopted_mac_v4: None,
            adopted_mac_v6: None,
        };
        self.adopt_macs(&mut me, &registry, &lease);
        let mut done = Done::default();
        if self.options.take_over_flannel {
            done.count(self.take_over_links(&observed, &mut me, &config).await);
        }
        self.update_intent(&me, &config, &lease);
        if lease.subnet.is_none() {
            self.tell_lease(&lease);
        }
        if !lease.is_decided() {
            // Whatever an earlier run left in the kernel may be right; pods live by it.
            return done.end();
        }

        let listing = Listing::of(&registry, &me, &config);
        let members = self.members(&listing, &known);
        let model = assemble::model(&self.options, me, &config, members.peers.clone());
        let desired = Arc::new(plan(&model));
        self.set_probes(&desired, &members);

        done.step("settings", self.make_settings(&model, &desired, &observed));
        done.step("tunnel", self.run_tunnel(&model, &desired));
        // The cache may be older than what the kernel holds: it adds, it does not take away.
        let report = self.kernel.reconcile(&desired, known.registry.is_none()).await?;
        done.reconciled(&report);
        self.tell_kernel(&report.conflicts, &report.failures);
        self.wake.send_replace([members.wake, report.retry].into_iter().flatten().min());
        // The plan is the one of the last pass, and still a wire lacks something: somebody else did it.
        let drifted = self.plans.borrow().as_deref().is_some_and(|last| last.kernel == desired.kernel);

        let (site, records) = self.offer(&model, &desired, &lease);
        let keeping = self.keep_pods(site.as_ref(), &records).await?;
        done.changes(keeping.0.changes.len(), &keeping.1);
        if drifted {
            self.numbers.healed_pods(keeping.0.changes.len());
        }
        let observed = self.kernel.observe(false).await?;
        let filter = self.make_filter(&model, &desired, &observed, &records, site.as_ref());
        let forwarding = self.keep_forwarding(&model).await;
        if self.options.take_over_flannel && filter.is_ok() && forwarding.is_ok() {
            done.step("flannel's rules", self.take_over_rules(&model).await);
        }
        done.step("firewall", filter);
        done.step("forwarding", forwarding);
        done.step("firewall", self.make_filter(&model, &desired, &observed, &records, site.as_ref()));
        self.look_cost = start.elapsed();
        done.step("forwarding", self.keep_forwarding(&model).await);

        if let Some(error) = self.files.write(&model, &desired, site.as_ref(), known.registry.as_deref()) {
            done.failed.push(format!("files: {error}"));
        }
        self.closed = done.failed.is_empty() && site.as_ref().is_some_and(|site| site.ranges.is_empty());
        if lease.draining {
            // Only now can no pod come any more, and the subnet be given up.
            self.update_intent(&model.me, &config, &lease);
        }
        // Good news last: whoever hears them finds the files written.
        self.tell_lease(&lease);
        self.tell_peers(&listing.unusable, &desired, &lease);
        self.numbers.healed_kernel(self.kernel.heals());
        self.numbers.state(&desired, &observed);
        self.numbers.programmed(&registry);
        let probes = self.outcomes.borrow().clone();
        let counters = self.tunnel.as_ref().map(|running| running.tunnel.counters());
        let status = status::of(&model, &desired, &listing, &members, &probes, counters.as_ref());
        self.numbers.status(&status);
        self.status.send_replace(Arc::new(status));
        self.plans.send_replace(Some(desired));
        done.end()
    }

    /// The last thing a daemon does. Traffic goes on; only what was asked for is given back.
    /// Nobody must hold the lease any more, or what is given back would be taken again.
    pub(super) async fn stop(&mut self, store: &Store) {
        if let Some(running) = self.tunnel.take() {
            running.tunnel.stop();
        }
        let (known, lease) = (self.known.borrow().clone(), self.lease.borrow().clone());
        let kept = known.registry.map_or(Ok(()), |registry| self.files.remember(&registry, lease.subnet));
        if let Err(error) = kept {
            warn!(error = %weft_daemon::log::chain(&error), "the cache for the next start is not up to date");
        }
        if !self.options.release_on_exit {
            return;
        }
        match lease.subnet {
            Some(subnet) if lease.reserved => info!(%subnet, "a reservation is not released"),
            Some(subnet) => match tokio::time::timeout(RELEASE, self.release(store, subnet)).await {
                Ok(Ok(())) => info!(%subnet, "released"),
                Ok(Err(error)) => warn!(%subnet, error = %weft_daemon::log::chain(&error), "not released"),
                Err(_) => warn!(%subnet, "not released: etcd does not answer"),
            },
            None => {}
        }
    }

    /// Gives the subnet up, and says that nobody runs here any more.
    async fn release(&self, store: &Store, subnet: Subnet) -> Result<(), AdminError> {
        let prefix = Prefix::new(&self.options.etcd_prefix);
        admin::release(store, &prefix, subnet, false).await?;
        store.commit(Txn::new().delete(prefix.live(&self.node))).await?;
        Ok(())
    }

    fn tell_store(&self, known: &Known) {
        match (&known.registry, &known.disconnected) {
            (None, Some(reason)) if self.cached.is_none() => {
                self.health
                    .not_ready("store", format!("etcd cannot be reached, and there is no cache: {reason}"));
            }
            (_, Some(reason)) => {
                self.health.degraded("store", format!("etcd cannot be reached; on what is known: {reason}"))
            }
            (Some(_), None) => self.health.ok("store"),
            (None, None) if self.cached.is_some() => {
                self.health.degraded("store", "etcd has not answered yet; on the cache of an earlier run");
            }
            (None, None) => {
                self.health.not_ready("store", "etcd has not answered yet, and there is no cache")
            }
        }
    }

    /// The config in force: the one of this start, with those changes that may be made live.
    fn config(&mut self, registry: &Registry) -> Option<NetworkConfig> {
        let entry = registry.config_entry();
        let Some(wanted) = registry.config() else {
            let why = match entry.and_then(|entry| entry.fault.clone()) {
                Some(fault) => fault,
                None => format!("no network config at {}", registry.prefix().config()),
            };
            self.health.not_ready("config", why);
            return None;
        };
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
    fn choose_underlay(&mut self, config: &NetworkConfig, observed: &State) -> Option<underlay::Chosen> {
        let wanted = Wanted {
            choice: &self.options.underlay,
            public_v4: self.options.public_v4,
            public_v6: self.options.public_v6,
            v4: config.v4.is_some(),
            v6: config.v6.is_some(),
            reach: self.options.underlay.can_reach.and_then(super::reach::link_towards),
        };
        match underlay::choose(&wanted, observed) {
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
    fn adopt_macs(&self, me: &mut Me, registry: &Registry, lease: &LeaseState) {
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
    fn update_intent(&self, me: &Me, config: &NetworkConfig, lease: &LeaseState) {
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

    /// No pod is attached, and none is just being attached.
    fn is_empty(&self) -> bool {
        self.records.lock().is_ok_and(|_lock| self.records.list().is_ok_and(|records| records.is_empty()))
    }

    fn tell_lease(&self, lease: &LeaseState) {
        match (lease.subnet, &lease.waiting) {
            (Some(_), _) if lease.draining => {
                self.health.degraded("lease", "this host is being drained: no new pods")
            }
            (Some(_), None) => self.health.ok("lease"),
            (Some(subnet), Some(waiting)) => {
                self.health.degraded("lease", format!("{subnet} is kept: {waiting}"))
            }
            (None, Some(waiting)) => self.health.not_ready("lease", waiting.to_string()),
            (None, None) => self.health.not_ready("lease", "asking for a subnet"),
        }
    }

    /// Which of the other hosts are in the data path.
    fn members(&mut self, listing: &Listing, known: &Known) -> Verdict {
        let now = Instant::now();
        if self.wipes != known.wipes {
            self.wipes = known.wipes;
            self.membership.wiped(now);
        }
        let reachable = known.registry.is_some() && known.disconnected.is_none();
        let outcomes = self.outcomes.borrow().clone();
        let evidence = Evidence { now, reachable, listing, targets: &self.targets, outcomes: &outcomes };
        let verdict = self.membership.update(&evidence);
        for (subnet, standing) in &verdict.standing {
            if self.verdict.standing.get(subnet).is_some_and(|before| before.in_path() != standing.in_path())
            {
                info!(%subnet, %standing, "peer");
            }
        }
        self.verdict = verdict.clone();
        verdict
    }

    fn set_probes(&mut self, desired: &Desired, members: &Verdict) {
        self.targets.clone_from(&desired.probes);
        let suspect = |subnet: &Subnet| members.suspects.contains(subnet);
        let targets = desired.probes.iter().flat_map(|(subnet, addresses)| {
            addresses.iter().map(|addr| Target { addr: *addr, suspect: suspect(subnet) })
        });
        let targets: Vec<Target> = targets.collect();
        self.probes.send_if_modified(|held| {
            let changed = *held != targets;
            *held = targets.clone();
            changed
        });
    }

    fn make_settings(&mut self, model: &Model, desired: &Desired, observed: &State) -> Result<usize, String> {
        let mut wanted: Vec<Sysctl> = Vec::new();
        if model.config.v6.is_some() {
            wanted.extend(keep_router_advertisements(observed));
        }
        wanted.extend(desired.sysctls.iter().cloned());
        if let Some(subnet) = model.me.subnet {
            // Whoever shares the subnet with our pods on a link of its own asks there for their addresses.
            for link in assemble::sharing_links(subnet, observed) {
                wanted.push(Sysctl {
                    path: format!("net/ipv4/conf/{link}/proxy_arp"),
                    value: "1",
                    only_over: None,
                });
                if model.config.v6.is_some() {
                    wanted.push(Sysctl {
                        path: format!("net/ipv6/conf/{link}/proxy_ndp"),
                        value: "1",
                        only_over: None,
                    });
                }
            }
        }
        self.settings.apply(&wanted).map_err(|error| weft_daemon::log::chain(&error))
    }

    /// Starts, updates or stops the userspace tunnel as the plan wants it.
    fn run_tunnel(&mut self, model: &Model, desired: &Desired) -> Result<usize, String> {
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
    fn offer(&self, model: &Model, desired: &Desired, lease: &LeaseState) -> (Option<Site>, Vec<Record>) {
        let records = self.records.list().unwrap_or_else(|error| {
            warn!(error = %weft_daemon::log::chain(&error), "pods' records");
            Vec::new()
        });
        let site = model.me.subnet.map(|subnet| {
            let (mut site, bad) = assemble::site(&self.options, subnet, desired.pod_mtu);
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

    async fn keep_pods(
        &mut self,
        site: Option<&Site>,
        records: &[Record],
    ) -> Result<(Keeping, Vec<Failure>), PassError> {
        let observed = self.kernel.observe(false).await?;
        let mut keeping = keep::keep(site, records, &observed);
        if let Some(site) = site {
            let mut bridge = keep::bridge(site, &observed);
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
        let failures = self.kernel.apply(&keeping.changes).await;
        Ok((keeping, failures))
    }

    /// The nftables table and, beside it, our accept rules in others' FORWARD chains.
    fn make_filter(
        &mut self,
        model: &Model,
        desired: &Desired,
        observed: &State,
        records: &[Record],
        site: Option<&Site>,
    ) -> Result<usize, String> {
        let around = surroundings(model, desired, observed, records, site);
        let made = firewall::plan(model, &around).map_err(|error| error.to_string()).and_then(
            |table: nft::Table| self.filter.apply(&table).map_err(|error| weft_daemon::log::chain(&error)),
        );
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

    fn tell_kernel(&self, conflicts: &[Conflict], failures: &[Failure]) {
        let reasons: Vec<String> = conflicts
            .iter()
            .map(Conflict::to_string)
            .chain(failures.iter().map(Failure::to_string))
            .take(8)
            .collect();
        if reasons.is_empty() {
            self.health.ok("kernel");
        } else {
            self.health.not_ready("kernel", reasons.join("; "));
        }
    }

    /// Ready once every peer that can be reached is programmed; those that cannot are named.
    fn tell_peers(&self, skipped: &BTreeMap<Subnet, String>, desired: &Desired, lease: &LeaseState) {
        if lease.subnet.is_none() {
            return;
        }
        let unreached =
            desired.skipped.iter().map(|((subnet, family), why)| format!("{subnet} ({family}): {why}"));
        let reasons: Vec<String> =
            skipped.iter().map(|(subnet, why)| format!("{subnet}: {why}")).chain(unreached).take(8).collect();
        if reasons.is_empty() {
            self.health.ok("peers");
        } else {
            // The other peers are served: one host with a strange lease must not make all unready.
            self.health.degraded("peers", format!("left out: {}", reasons.join("; ")));
        }
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
    for transport in desired.ways.values().map(|way| way.transport) {
        let tunnel = match (transport, End::ours(&model.me, &model.config).transports) {
            (Transport::Vxlan, offered) => {
                offered.vxlan.map(|end| FilteredTunnel::Vxlan { vni: end.vni, port: end.port })
            }
            (Transport::Udp, offered) => offered.udp.map(|port| FilteredTunnel::Udp { port }),
            (Transport::Direct, _) => None,
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

/// How a pass went so far.
#[derive(Default)]
struct Done {
    changes: usize,
    failed: Vec<String>,
}

impl Done {
    fn step(&mut self, what: &str, result: Result<usize, String>) {
        match result {
            Ok(changes) => self.changes += changes,
            Err(error) => self.failed.push(format!("{what}: {error}")),
        }
    }

    fn changes(&mut self, tried: usize, failures: &[Failure]) {
        self.changes += tried.saturating_sub(failures.len());
        self.failed.extend(failures.iter().take(8).map(Failure::to_string));
    }

    fn reconciled(&mut self, report: &Report) {
        self.changes += report.applied.len();
        // Refused changes have a time of their own to be tried again; the pass itself went well.
        self.failed.extend(report.failures.iter().take(8).map(Failure::to_string));
    }

    fn count(&mut self, (tried, failures): (usize, Vec<Failure>)) {
        self.changes(tried, &failures);
    }

    fn end(self) -> Result<usize, PassError> {
        if self.failed.is_empty() { Ok(self.changes) } else { Err(PassError::Steps(self.failed.join("; "))) }
    }
}
