//! The overlay's metrics: what is leased, desired, programmed, healed, carried.

use std::collections::{BTreeMap, BTreeSet};

use weft_daemon::metrics::{Counter, Family, Gauge, Metrics};
use weft_kernel::net::{LinkStats, State};
use weft_store::Revision;

use super::status::{PeerStatus, Status};
use crate::firewall::Drops;
use crate::lease::LeaseState;
use crate::plan::Desired;
use crate::reconcile::Kind;
use crate::registry::{Known, Registry};

/// The handles.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    heals: Family<Counter, 1>,
    objects: Family<Gauge, 2>,
    peers: Family<Gauge, 1>,
    lease_expiry: Gauge,
    lease_held: Gauge,
    store_connected: Gauge,
    store_revision: Gauge,
    store_silence: Gauge,
    programmed_revision: Gauge,
    leases: Family<Gauge, 1>,
    probe_rtt: Family<Gauge, 2>,
    probe_asked: Family<Counter, 2>,
    probe_lost: Family<Counter, 2>,
    link_bytes: Family<Counter, 2>,
    link_packets: Family<Counter, 2>,
    link_drops: Family<Counter, 2>,
    dropped: Family<Counter, 1>,
    tunnel: Family<Counter, 1>,
    tunnel_peers: Family<Counter, 4>,
}

impl Numbers {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let numbers = Self {
            heals: metrics.counters(
                "weft_overlay_heals_total",
                "Kernel objects put right after somebody else changed them.",
                ["kind"],
            ),
            objects: metrics.gauges(
                "weft_overlay_objects",
                "Kernel objects of this network: desired by the plan, and programmed.",
                ["kind", "state"],
            ),
            peers: metrics.gauges("weft_overlay_peers", "Other hosts, by how they stand.", ["state"]),
            lease_expiry: metrics.gauge(
                "weft_overlay_lease_expiry_seconds",
                "Until the subnet's lease runs out if etcd is never reached again; +Inf for a reservation.",
            ),
            lease_held: metrics.gauge("weft_overlay_lease_held", "1 if this host has a subnet."),
            store_connected: metrics.gauge("weft_overlay_store_connected", "1 if etcd is heard."),
            store_revision: metrics
                .gauge("weft_overlay_store_revision", "etcd's revision that was last heard of."),
            store_silence: metrics.gauge(
                "weft_overlay_store_silence_seconds",
                "How long etcd has not been heard; 0 while it is.",
            ),
            programmed_revision: metrics.gauge(
                "weft_overlay_programmed_revision",
                "etcd's revision that the kernel was last brought in line with.",
            ),
            leases: metrics.gauges(
                "weft_overlay_leases",
                "Subnets in etcd: leased, or reserved without an end.",
                ["kind"],
            ),
            probe_rtt: metrics.gauges(
                "weft_overlay_probe_rtt_seconds",
                "Round trip of the last answered probe through the tunnel.",
                ["subnet", "address"],
            ),
            probe_asked: metrics.counters(
                "weft_overlay_probes_total",
                "Probes sent through the tunnel.",
                ["subnet", "address"],
            ),
            probe_lost: metrics.counters(
                "weft_overlay_probes_lost_total",
                "Probes that were not answered in time.",
                ["subnet", "address"],
            ),
            link_bytes: metrics.counters(
                "weft_overlay_link_bytes_total",
                "Bytes on the tunnel's links.",
                ["link", "direction"],
            ),
            link_packets: metrics.counters(
                "weft_overlay_link_packets_total",
                "Packets on the tunnel's links.",
                ["link", "direction"],
            ),
            link_drops: metrics.counters(
                "weft_overlay_link_drops_total",
                "Packets that the tunnel's links dropped.",
                ["link", "direction"],
            ),
            dropped: metrics.counters(
                "weft_overlay_dropped_total",
                "Packets dropped because their source cannot be true, by the check that found out.",
                ["check"],
            ),
            tunnel: metrics.counters(
                "weft_overlay_udp_total",
                "What the userspace tunnel counted, by what it is.",
                ["what"],
            ),
            tunnel_peers: metrics.counters(
                "weft_overlay_peer_total",
                "What each tunnel carried to and from a peer, and dropped. Bytes are those of IP packets \
                 without the tunnel's headers; vxlan counts packets that offloads have joined as one, and \
                 drop_spoofed among received_packets.",
                ["subnet", "node", "tunnel", "what"],
            ),
        };
        // A counter that first shows with its first count has no rate there.
        for kind in ["pod", "iptables", "nftables"] {
            numbers.heals.with([kind]);
        }
        numbers
    }

    /// What the reconciler has put right since the start.
    pub(super) fn healed_kernel(&self, heals: &BTreeMap<Kind, u64>) {
        for kind in Kind::ALL {
            let total = heals.get(&kind).copied().unwrap_or(0);
            self.heals.with([kind.to_string().as_str()]).mirror(total);
        }
    }

    pub(super) fn healed_pods(&self, changes: usize) {
        self.heals.with(["pod"]).add(changes as u64);
    }

    pub(super) fn healed_iptables(&self) {
        self.heals.with(["iptables"]).inc();
    }

    pub(super) fn healed_filter(&self) {
        self.heals.with(["nftables"]).inc();
    }

    pub(super) fn lease(&self, lease: &LeaseState) {
        self.lease_held.set(u8::from(lease.subnet.is_some()));
        let left =
            lease.expires.map(|at| at.saturating_duration_since(tokio::time::Instant::now()).as_secs_f64());
        self.lease_expiry.set(left.unwrap_or(if lease.subnet.is_some() { f64::INFINITY } else { 0.0 }));
    }

    /// How well the store is heard.
    pub(super) fn store(&self, known: &Known) {
        self.store_connected.set(u8::from(known.disconnected.is_none() && known.registry.is_some()));
        self.store_silence.set(known.silent_since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
        let Some(registry) = &known.registry else { return };
        self.store_revision.set(number(registry.revision()));
        let reserved = registry.leases().filter(|(_, entry)| entry.is_reservation()).count();
        self.leases.with(["reserved"]).set_count(reserved);
        self.leases.with(["leased"]).set_count(registry.leases().count() - reserved);
    }

    /// What the store said at this revision is in the kernel.
    pub(super) fn programmed(&self, registry: &Registry) {
        self.programmed_revision.set(number(registry.revision()));
    }

    pub(super) fn state(&self, desired: &Desired, observed: &State) {
        let of = |state: &State| {
            let on_ours = |link: &weft_kernel::net::LinkName| desired.kernel.links.contains_key(link);
            let routes =
                state.routes.values().filter(|route| desired.scope.owns_route(route, observed)).count();
            let neighbours =
                state.neighbours.values().filter(|entry| entry.permanent && on_ours(&entry.link)).count();
            let fdb = state.fdb.iter().filter(|entry| entry.permanent && on_ours(&entry.link)).count();
            let links = state.links.keys().filter(|name| on_ours(name)).count();
            [("link", links), ("route", routes), ("neighbour", neighbours), ("fdb", fdb)]
        };
        for (state, counts) in [("desired", of(&desired.kernel)), ("programmed", of(observed))] {
            for (kind, count) in counts {
                self.objects.with([kind, state]).set_count(count);
            }
        }
    }

    /// What each peer's probes and the userspace tunnel say.
    pub(super) fn status(&self, status: &Status) {
        let mut states: BTreeMap<&str, usize> = BTreeMap::new();
        for peer in &status.peers {
            *states.entry(peer.state.as_str()).or_default() += 1;
            for probe in &peer.probes {
                let labels = [peer.subnet.as_str(), probe.address.as_str()];
                if let Some(rtt) = probe.rtt_ms {
                    self.probe_rtt.with(labels).set(rtt / 1000.0);
                }
                self.probe_asked.with(labels).mirror(probe.asked);
                self.probe_lost.with(labels).mirror(probe.lost);
            }
            self.carried(peer, "udp", &peer.udp);
            self.carried(peer, "vxlan", &peer.vxlan);
        }
        for (what, total) in &status.udp {
            self.tunnel.with([what.as_str()]).mirror(*total);
        }
        self.peers.retain(|[state]| states.contains_key(state.as_str()));
        for (state, count) in states {
            self.peers.with([state]).set_count(count);
        }
        let peers: BTreeSet<&str> = status.peers.iter().map(|peer| peer.subnet.as_str()).collect();
        let known = |subnet: &String| peers.contains(subnet.as_str());
        self.probe_rtt.retain(|[subnet, _]| known(subnet));
        self.probe_asked.retain(|[subnet, _]| known(subnet));
        self.probe_lost.retain(|[subnet, _]| known(subnet));
        self.tunnel_peers.retain(|[subnet, _, _, _]| known(subnet));
    }

    fn carried(&self, peer: &PeerStatus, tunnel: &str, totals: &BTreeMap<String, u64>) {
        let node = peer.node.as_deref().unwrap_or("");
        for (what, total) in totals {
            self.tunnel_peers.with([peer.subnet.as_str(), node, tunnel, what.as_str()]).mirror(*total);
        }
    }

    /// What the anti-spoofing checks of nftables have dropped since the table was made.
    pub(super) fn dropped(&self, drops: Drops) {
        let Drops { tunnel, pod, outside, plain } = drops;
        for (check, packets) in [("tunnel", tunnel), ("pod", pod), ("outside", outside), ("plain", plain)] {
            self.dropped.with([check]).mirror(packets);
        }
    }

    pub(super) fn link(&self, name: &str, stats: &LinkStats) {
        let pairs = [
            (&self.link_bytes, stats.rx_bytes, stats.tx_bytes),
            (&self.link_packets, stats.rx_packets, stats.tx_packets),
            (&self.link_drops, stats.rx_dropped, stats.tx_dropped),
        ];
        for (family, received, sent) in pairs {
            family.with([name, "in"]).mirror(received);
            family.with([name, "out"]).mirror(sent);
        }
    }
}

fn number(revision: Revision) -> f64 {
    #[expect(clippy::cast_precision_loss)] // a revision above 2^53 would take centuries
    let number = revision.0 as f64;
    number
}
