//! What the userspace mode counts: connections, tries and bytes by service and endpoint.
//!
//! Series are bounded as those of the kernel's counters: only who ever had a connection has some, and
//! no more than [`MOST`] endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use weft_daemon::metrics::{Counter, Family, Gauge, Metrics};

use super::MOST;
use crate::model::PortName;
use crate::userspace::Relay;

/// Of one service port.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct OfPort {
    pub(crate) connections: u64,
    pub(crate) retries: u64,
    pub(crate) failures: u64,
}

/// Of one endpoint of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct OfEndpoint {
    pub(crate) active: usize,
    pub(crate) connections: u64,
    pub(crate) failures: u64,
    pub(crate) ejections: u64,
    pub(crate) out: bool,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// Of no service.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct OfAll {
    pub(crate) active: usize,
    pub(crate) exhausted: u64,
    pub(crate) astray: u64,
    pub(crate) over_limit: u64,
}

/// All of it at a time. The ports of both families are one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    pub(crate) all: OfAll,
    pub(crate) ports: BTreeMap<PortName, OfPort>,
    pub(crate) endpoints: BTreeMap<(PortName, SocketAddr), OfEndpoint>,
}

struct Series {
    active: Gauge,
    exhausted: Counter,
    astray: Counter,
    over_limit: Counter,
    connections: Family<Counter, 3>,
    retries: Family<Counter, 3>,
    failures: Family<Counter, 3>,
    of_endpoint: OfEndpoints,
}

struct OfEndpoints {
    active: Family<Gauge, 4>,
    connections: Family<Counter, 4>,
    failures: Family<Counter, 4>,
    ejections: Family<Counter, 4>,
    out: Family<Gauge, 4>,
    received: Family<Counter, 4>,
    sent: Family<Counter, 4>,
}

/// Reads before each scrape.
pub fn register(metrics: &Metrics, relay: &Relay) {
    let (series, relay) = (Series::new(metrics), relay.clone());
    metrics.before_scrape(move || series.show(&relay.reading()));
}

/// The value of a counter that threads add to.
pub(crate) fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Likewise.
pub(crate) fn number(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

impl Series {
    fn new(metrics: &Metrics) -> Self {
        let of_port = ["namespace", "service", "port"];
        let of_endpoint = ["namespace", "service", "port", "endpoint"];
        Self {
            active: metrics.gauge(
                "weft_proxy_userspace_active_connections",
                "Clients' connections that are carried now, or for which an endpoint is sought.",
            ),
            exhausted: metrics.counter(
                "weft_proxy_userspace_accept_errors_total",
                "Times that no connection could be accepted for want of descriptors or memory; each is followed by a pause.",
            ),
            astray: metrics.counter(
                "weft_proxy_userspace_astray_connections_total",
                "Connections that were reset because no service was where they were meant to go.",
            ),
            over_limit: metrics.counter(
                "weft_proxy_userspace_over_limit_connections_total",
                "Connections that were reset because their source had as many as it may.",
            ),
            connections: metrics.counters(
                "weft_proxy_userspace_connections_total",
                "Clients' connections to a service port.",
                of_port,
            ),
            retries: metrics.counters(
                "weft_proxy_userspace_retries_total",
                "Tries to reach an endpoint after the first one of a client's connection.",
                of_port,
            ),
            failures: metrics.counters(
                "weft_proxy_userspace_failures_total",
                "Clients' connections that were reset because no endpoint could be reached.",
                of_port,
            ),
            of_endpoint: OfEndpoints {
                active: metrics.gauges(
                    "weft_proxy_userspace_endpoint_active_connections",
                    "Connections that an endpoint has now, with those that are being opened.",
                    of_endpoint,
                ),
                connections: metrics.counters(
                    "weft_proxy_userspace_endpoint_connections_total",
                    "Connections that were opened to an endpoint.",
                    of_endpoint,
                ),
                failures: metrics.counters(
                    "weft_proxy_userspace_endpoint_dial_failures_total",
                    "Connections to an endpoint that were refused or not answered in time.",
                    of_endpoint,
                ),
                ejections: metrics.counters(
                    "weft_proxy_userspace_endpoint_ejections_total",
                    "Times that an endpoint got no more connections for a while because the last ones had failed.",
                    of_endpoint,
                ),
                out: metrics.gauges(
                    "weft_proxy_userspace_endpoint_ejected",
                    "1 while an endpoint gets no connections for that reason.",
                    of_endpoint,
                ),
                received: metrics.counters(
                    "weft_proxy_userspace_endpoint_received_bytes_total",
                    "Bytes that clients sent to an endpoint.",
                    of_endpoint,
                ),
                sent: metrics.counters(
                    "weft_proxy_userspace_endpoint_sent_bytes_total",
                    "Bytes that an endpoint sent to clients.",
                    of_endpoint,
                ),
            },
        }
    }

    fn show(&self, reading: &Reading) {
        let Reading { all, ports, endpoints } = reading;
        self.active.set_count(all.active);
        self.exhausted.mirror(all.exhausted);
        self.astray.mirror(all.astray);
        self.over_limit.mirror(all.over_limit);
        let mut shown = BTreeSet::new();
        for (name, port) in ports.iter().filter(|(_, port)| **port != OfPort::default()) {
            let labels = [&*name.service.namespace, &*name.service.name, &*name.port];
            self.connections.with(labels).mirror(port.connections);
            self.retries.with(labels).mirror(port.retries);
            self.failures.with(labels).mirror(port.failures);
            shown.insert(labels.map(str::to_owned));
        }
        for family in [&self.connections, &self.retries, &self.failures] {
            family.retain(|labels| shown.contains(labels));
        }
        self.of_endpoint.show(endpoints);
    }
}

impl OfEndpoints {
    fn show(&self, endpoints: &BTreeMap<(PortName, SocketAddr), OfEndpoint>) {
        let mut shown = BTreeSet::new();
        let used = endpoints.iter().filter(|(_, endpoint)| **endpoint != OfEndpoint::default());
        for ((name, address), endpoint) in used.take(MOST) {
            let address = address.to_string();
            let labels = [&*name.service.namespace, &*name.service.name, &*name.port, &address];
            self.active.with(labels).set_count(endpoint.active);
            self.connections.with(labels).mirror(endpoint.connections);
            self.failures.with(labels).mirror(endpoint.failures);
            self.ejections.with(labels).mirror(endpoint.ejections);
            self.out.with(labels).set(u32::from(endpoint.out));
            self.received.with(labels).mirror(endpoint.received);
            self.sent.with(labels).mirror(endpoint.sent);
            shown.insert(labels.map(str::to_owned));
        }
        for family in [&self.connections, &self.failures, &self.ejections, &self.received, &self.sent] {
            family.retain(|labels| shown.contains(labels));
        }
        for family in [&self.active, &self.out] {
            family.retain(|labels| shown.contains(labels));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceName};

    #[test]
    fn who_has_connections_has_series_until_it_is_gone() {
        let metrics = Metrics::new();
        let series = Series::new(&metrics);
        let name = |service: &str| PortName {
            service: ServiceName::new("shop", service),
            port: "http".into(),
            protocol: Protocol::Tcp,
        };
        let endpoint: SocketAddr = "10.1.0.5:8080".parse().unwrap();
        let mut reading = Reading::default();
        reading.all.over_limit = 3;
        reading.ports.insert(name("web"), OfPort { connections: 7, retries: 2, failures: 1 });
        reading.ports.insert(name("idle"), OfPort::default());
        let of_endpoint =
            OfEndpoint { active: 4, connections: 6, out: true, sent: 99, ..OfEndpoint::default() };
        reading.endpoints.insert((name("web"), endpoint), of_endpoint);
        series.show(&reading);
        let text = metrics.render();
        let web = r#"namespace="shop",service="web",port="http""#;
        for line in [
            "weft_proxy_userspace_over_limit_connections_total 3\n".to_owned(),
            format!("weft_proxy_userspace_connections_total{{{web}}} 7\n"),
            format!("weft_proxy_userspace_retries_total{{{web}}} 2\n"),
            format!("weft_proxy_userspace_failures_total{{{web}}} 1\n"),
            format!("weft_proxy_userspace_endpoint_connections_total{{{web},endpoint=\"{endpoint}\"}} 6\n"),
            format!("weft_proxy_userspace_endpoint_active_connections{{{web},endpoint=\"{endpoint}\"}} 4\n"),
            format!("weft_proxy_userspace_endpoint_ejected{{{web},endpoint=\"{endpoint}\"}} 1\n"),
            format!("weft_proxy_userspace_endpoint_sent_bytes_total{{{web},endpoint=\"{endpoint}\"}} 99\n"),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(!text.contains("idle"));
        series.show(&Reading::default());
        assert!(!metrics.render().contains("web"));
    }
}
