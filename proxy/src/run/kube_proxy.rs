//! What the loop counts under kube-proxy's names (pkg/proxy/metrics/metrics.go), because it means the
//! same: syncs, what waits for one, and services that a Local policy leaves without an endpoint here.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use weft_daemon::metrics::{Counter, Family as Labelled, Gauge, Histogram, Metrics};

use super::numbers::seconds;
use crate::model::{Change, Family, Object, ObjectName, ServiceName};
use crate::plan::{Frontend, Path, ServicePlan};

/// kube-proxy's bounds for its syncs, in seconds, and four below: ours take less than a millisecond.
const SYNC_SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512,
    1.024, 2.048, 4.096, 8.192, 16.384,
];

/// kube-proxy's bounds for its programming latency, in seconds.
const HAPPENED_SECONDS: &[f64] = &[
    0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0,
    18.0, 19.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0, 29.0, 30.0, 31.0, 32.0, 33.0, 34.0,
    35.0, 36.0, 37.0, 38.0, 39.0, 40.0, 41.0, 42.0, 43.0, 44.0, 45.0, 46.0, 47.0, 48.0, 49.0, 50.0, 51.0,
    52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 58.0, 59.0, 60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 100.0,
    105.0, 110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0,
];

/// The numbers. Cheap to clone. A sync writes both families, so one is each family's.
#[derive(Clone, Debug)]
pub(super) struct KubeProxy {
    syncs: [Syncs; 2],
    services: Changes,
    slices: Changes,
    /// By family: for internal traffic, for external.
    no_local: [[Gauge; 2]; 2],
    happened: Histogram,
}

/// One family's.
#[derive(Clone, Debug)]
struct Syncs {
    all: Histogram,
    full: Histogram,
    partial: Histogram,
    last: Gauge,
    queued: Gauge,
    nftables_failures: Counter,
    nftables_cleanup_failures: Counter,
}

/// Of one kind of object.
#[derive(Clone, Debug)]
struct Changes {
    total: Counter,
    pending: Gauge,
}

/// The value of kube-proxy's label `ip_family`.
pub(crate) fn ip_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

impl KubeProxy {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let label = ["ip_family"];
        let took = |name, help| metrics.histograms(name, help, label, SYNC_SECONDS);
        let all = took("kubeproxy_sync_proxy_rules_duration_seconds", "How long syncs took that went well.");
        let full = took(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "How long those took in which everything was compared with the kernel.",
        );
        let partial = took(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "How long those took in which only what had changed was written.",
        );
        let last = metrics.gauges(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When the last sync went well; 0 before.",
            label,
        );
        let queued = metrics.gauges(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "When a sync was last found to be due; 0 before.",
            label,
        );
        let nftables = metrics.counters(
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
            "Syncs that the kernel refused, in nftables mode.",
            label,
        );
        let nftables_cleanup = metrics.counters(
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
            "Times that the kernel refused to give up what no service needs any more, in nftables mode.",
            label,
        );
        let no_local: Labelled<Gauge, 2> = metrics.gauges(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Services with endpoints of which none is here, and a policy Local for traffic of that kind.",
            ["ip_family", "traffic_policy"],
        );
        Self {
            syncs: Family::ALL.map(ip_family).map(|family| Syncs {
                all: all.with([family]),
                full: full.with([family]),
                partial: partial.with([family]),
                last: last.with([family]),
                queued: queued.with([family]),
                nftables_failures: nftables.with([family]),
                nftables_cleanup_failures: nftables_cleanup.with([family]),
            }),
            services: Changes {
                total: metrics.counter(
                    "kubeproxy_sync_proxy_rules_service_changes_total",
                    "Changes of Services that were heard of.",
                ),
                pending: metrics.gauge(
                    "kubeproxy_sync_proxy_rules_service_changes_pending",
                    "Those of them that are not in the kernel yet.",
                ),
            },
            slices: Changes {
                total: metrics.counter(
                    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                    "Changes of EndpointSlices that were heard of.",
                ),
                pending: metrics.gauge(
                    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                    "Those of them that are not in the kernel yet.",
                ),
            },
            no_local: Family::ALL
                .map(|family| POLICIES.map(|policy| no_local.with([ip_family(family), policy]))),
            happened: metrics.histogram(
                "kubeproxy_network_programming_duration_seconds",
                "From a change of endpoints, as its slice says, to the kernel's acknowledgement.",
                HAPPENED_SECONDS,
            ),
        }
    }

    /// What the source tells of, before anything is done about it.
    pub(super) fn heard(&self, changes: &[Change]) {
        for change in changes {
            let counted = match change {
                Change::Put(Object::Service(..)) | Change::Remove(ObjectName::Service(_)) => &self.services,
                Change::Put(Object::Slice(..)) | Change::Remove(ObjectName::Slice(_)) => &self.slices,
                Change::Put(Object::Node(..)) | Change::Remove(ObjectName::Node(_)) => continue,
            };
            counted.total.inc();
            counted.pending.set(counted.pending.value() + 1.0);
        }
    }

    /// The kernel holds all that was heard of.
    pub(super) fn whole(&self) {
        self.services.pending.set(0.0);
        self.slices.pending.set(0.0);
    }

    /// Something is due.
    pub(super) fn queued(&self) {
        let now = seconds(SystemTime::now());
        self.syncs.iter().for_each(|syncs| syncs.queued.set(now));
    }

    /// Something was done with the kernel by this mode, and took so long.
    pub(super) fn did(&self, mode: &'static str, what: &'static str, well: bool, took: Duration) {
        for syncs in &self.syncs {
            match (what, well) {
                ("collect", true) => {}
                (_, true) => {
                    let kind = if what == "change" { &syncs.partial } else { &syncs.full };
                    syncs.all.observe_duration(took);
                    kind.observe_duration(took);
                    syncs.last.set(seconds(SystemTime::now()));
                }
                (_, false) if mode != "nftables" => {}
                ("collect", false) => syncs.nftables_cleanup_failures.inc(),
                (_, false) => syncs.nftables_failures.inc(),
            }
        }
    }

    /// What happened at these times is in the kernel now.
    pub(super) fn happened(&self, at: impl Iterator<Item = SystemTime>) {
        let now = SystemTime::now();
        at.for_each(|at| self.happened.observe_duration(now.duration_since(at).unwrap_or_default()));
    }

    pub(super) fn no_local(&self, services: &WithoutLocal) {
        for (gauges, services) in self.no_local.iter().zip(&services.0) {
            gauges.iter().zip(services).for_each(|(gauge, services)| gauge.set_count(services.len()));
        }
    }
}

/// The values of kube-proxy's label `traffic_policy`.
const POLICIES: [&str; 2] = ["internal", "external"];

/// Services that have endpoints, and none on this host where a policy Local wants one: by family, and by
/// policy as in [`POLICIES`]. One with several ports counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WithoutLocal([[BTreeSet<ServiceName>; 2]; 2]);

impl WithoutLocal {
    /// That service has this plan from now on.
    pub(super) fn absorb(&mut self, name: &ServiceName, plan: &ServicePlan) {
        for (family, sets) in Family::ALL.into_iter().zip(&mut self.0) {
            for (set, wanted) in sets.iter_mut().zip(without_local(plan, family)) {
                if wanted {
                    set.insert(name.clone());
                } else {
                    set.remove(name);
                }
            }
        }
    }
}

/// Packets are dropped, and not rejected, where there are endpoints and none may be used here: only a
/// policy Local does that. For internal traffic that is seen at cluster addresses, for external at all
/// others, for who is neither a local pod nor this host.
fn without_local(plan: &ServicePlan, family: Family) -> [bool; 2] {
    let mut without = [false; 2];
    for port in plan.ports.iter().filter(|port| port.family == family) {
        for (frontend, treatment) in &port.frontends {
            let is_internal = match frontend {
                Frontend::Address(address, _) => plan.cluster_ips.contains(&address.ip()),
                Frontend::NodePort(..) => false,
            };
            without[usize::from(!is_internal)] |= treatment.others == Path::Drop;
        }
    }
    without
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::host::{Host, Observed, Settings};
    use crate::model::{Model, NodeName};
    use crate::plan::{self, Claims};

    /// A service of both families, its endpoints on those nodes, as ash sees it.
    fn of(spec: Value, nodes: &[&str]) -> (ServiceName, ServicePlan) {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIPs": ["10.96.0.1", "fd96::1"], "type": "NodePort",
                "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30081}]},
        });
        let fields = service["spec"].as_object_mut().unwrap();
        fields.extend(spec.as_object().unwrap().clone());
        let endpoints: Vec<Value> =
            nodes.iter().map(|node| json!({"addresses": ["10.1.0.5"], "nodeName": node})).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}], "endpoints": endpoints,
        });
        let (mut model, mut claims) = (Model::default(), Claims::default());
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [service, slice]});
        let parsed = crate::manifests::parse("web.json", &list.to_string());
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        for (_, stated) in parsed.objects {
            let touched = model.apply(stated.change.unwrap());
            claims.absorb(&model, &touched.services);
        }
        let host = Host::on(&model, NodeName::new("ash"), Observed::default(), Settings::default());
        let name = ServiceName::new("shop", "web");
        let plan = plan::service(&model, &claims, &host, &name);
        (name, plan)
    }

    #[test]
    fn a_service_counts_where_its_policy_finds_nobody_here() {
        let local = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
        for (case, spec, nodes, internal, external) in [
            ("nobody anywhere is another matter", local.clone(), &[][..], 0, 0),
            ("everybody elsewhere", local.clone(), &["birch"], 1, 1),
            ("somebody here", local.clone(), &["birch", "ash"], 0, 0),
            ("only internal", json!({"internalTrafficPolicy": "Local"}), &["birch"], 1, 0),
            ("only external", json!({"externalTrafficPolicy": "Local"}), &["birch"], 0, 1),
            ("no policy", json!({}), &["birch"], 0, 0),
        ] {
            let (name, plan) = of(spec, nodes);
            let mut counted = WithoutLocal::default();
            counted.absorb(&name, &plan);
            counted.absorb(&name, &plan);
            let [v4, v6] = counted.0.each_ref().map(|sets| sets.each_ref().map(BTreeSet::len));
            assert_eq!((v4, v6), ([internal, external], [0, 0]), "{case}");
            counted.absorb(&name, &ServicePlan::default());
            assert_eq!(counted, WithoutLocal::default(), "{case}");
        }
    }
}
