//! What the facts mean: what is wrong with services, why that matters, what to run. Pure.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use weft_daemon::finding::{Daemon, Finding, Findings, Severity};

use super::facts::Facts;
use crate::explain::Overview;
use crate::explain::service::{PathReport, PortReport};
use crate::model::{Family, family_of};

/// So many services are named in one finding, and the rest is counted.
const NAMED: usize = 5;
/// The kernel drops new connections when the table of tracked ones is full; from here on it is told.
const NEARLY_FULL_PERCENT: u64 = 90;
/// kube-proxy's and the API's default range of node ports.
const NODE_PORTS: &str = "30000-32767";

/// Judges everything; problems first. Nothing where no proxy runs or has left anything.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    if facts.daemon == Daemon::Stopped && facts.rules.is_empty() {
        return Vec::new();
    }
    let mut found = Examined::default();
    found.0.daemon("the proxy", "weft-proxy", &facts.daemon);
    found.drift(facts);
    found.tracking(facts);
    found.kube_proxy(facts);
    found.reverse_path(facts);
    if let Some(overview) = &facts.overview {
        found.forwarding(facts, overview);
        found.localhost(facts, overview);
        found.routes(facts, overview);
        found.node(overview);
        found.node_ports(facts, overview);
        found.services(overview);
    }
    for what in &facts.unseen {
        found.0.add::<&str>(Severity::Warning, format!("could not look at {what}"), "run this as root", &[]);
    }
    found.0.sorted()
}

#[derive(Default)]
struct Examined(Findings);

impl Examined {
    fn drift(&mut self, facts: &Facts) {
        match facts.drift.as_deref() {
            None => {}
            Some([]) => self.0.well("the kernel holds what it should of services"),
            Some([first, rest @ ..]) => {
                let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
                let title = "the kernel does not hold what it should of services";
                let why =
                    format!("{first}{more}; the proxy puts it right, unless somebody undoes that again");
                self.0.add(Severity::Problem, title, why, &["weft diff"]);
            }
        }
        if facts.daemon == Daemon::Stopped {
            let title = format!("the proxy's rules are still in force: {}", facts.rules.join(", "));
            let why = "endpoints that come and go are not followed; `weft cleanup --only proxy` takes the \
                       rules away";
            self.0.add::<&str>(Severity::Warning, title, why, &[]);
        }
    }

    fn tracking(&mut self, facts: &Facts) {
        let number = |name: &str| facts.settings.get(&format!("net/netfilter/{name}"))?.parse::<u64>().ok();
        let (Some(count), Some(max)) = (number("nf_conntrack_count"), number("nf_conntrack_max")) else {
            return;
        };
        if max > 0 && count.saturating_mul(100) >= max.saturating_mul(NEARLY_FULL_PERCENT) {
            let title = format!("connection tracking holds {count} of at most {max} connections");
            let why = "when it is full, packets of new connections are dropped";
            let fix = [format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(2))];
            self.0.add(Severity::Problem, title, why, &fix);
        } else {
            self.0.well("connection tracking has room");
        }
    }

    fn kube_proxy(&mut self, facts: &Facts) {
        if facts.kube_proxy.is_empty() {
            return self.0.well("no rules of kube-proxy are here");
        }
        let title = format!("kube-proxy's rules are here too: {}", facts.kube_proxy.join(", "));
        let why = "two proxies translate the same connections, and kube-proxy's endpoints grow old if it is \
                   stopped";
        self.0.add(Severity::Problem, title, why, &["kube-proxy --cleanup"]);
    }

    /// The stricter of a link's own value and that of all links holds; 1 is strict, though loose (2)
    /// beats it (Documentation/networking/ip-sysctl.rst). With one link, all answers leave by it.
    fn reverse_path(&mut self, facts: &Facts) {
        let value = |of: &str| {
            let path = format!("net/ipv4/conf/{of}/rp_filter");
            facts.settings.get(&path).and_then(|value| value.parse::<u8>().ok()).unwrap_or(0)
        };
        let all = value("all");
        let strict: Vec<&str> =
            facts.links.iter().map(String::as_str).filter(|link| value(link).max(all) == 1).collect();
        if facts.links.len() > 1 && !strict.is_empty() {
            let title = format!("rp_filter is strict on {}", strict.join(", "));
            let why = "a client that comes in by another link than its answer would leave by is dropped \
                       before any service sees it";
            let setting =
                |link: &&str| format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", link.replace('.', "/"));
            let fix: Vec<String> = strict.iter().map(setting).collect();
            self.0.add(Severity::Warning, title, why, &fix);
        } else {
            self.0.well("rp_filter lets clients of services in");
        }
    }

    fn forwarding(&mut self, facts: &Facts, overview: &Overview) {
        for (family, path, name) in [
            (Family::V4, "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            (Family::V6, "net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
        ] {
            let wanted = ports(overview).any(|port| port.family == family.to_string());
            match facts.settings.get(path).map(String::as_str) {
                Some("0") if wanted => {
                    let why = "a connection that is led to an endpoint of another host, or to a pod, is not \
                               forwarded";
                    let fix = [format!("sysctl -w {name}=1")];
                    self.0.add(Severity::Problem, format!("{name} is 0"), why, &fix);
                }
                Some(_) if wanted => self.0.well(format!("{name} is on")),
                _ => {}
            }
        }
    }

    fn localhost(&mut self, facts: &Facts, overview: &Overview) {
        let wanted = overview.node_ports.iter().any(|place| place == "127.0.0.0/8");
        let on = facts.settings.get("net/ipv4/conf/all/route_localnet").is_some_and(|value| value == "1");
        let name = "net.ipv4.conf.all.route_localnet";
        match (wanted, on) {
            (true, false) => {
                let why = "node ports are to be served at 127.0.0.1, and the kernel drops what would leave \
                           from there";
                self.0.add(Severity::Problem, format!("{name} is 0"), why, &[format!("sysctl -w {name}=1")]);
            }
            (false, true) => {
                let why = "nobody asks for node ports at 127.0.0.1, and neighbours can reach what listens \
                           there alone (CVE-2020-8558)";
                self.0.add(Severity::Warning, format!("{name} is 1"), why, &[format!("sysctl -w {name}=0")]);
            }
            (true, true) => self.0.well("node ports at 127.0.0.1 are let out"),
            (false, false) => {}
        }
    }

    /// A process needs a route before its packet meets any rule.
    fn routes(&mut self, facts: &Facts, overview: &Overview) {
        for family in Family::ALL {
            let addresses = cluster_addresses(overview).filter(|ip| family_of(*ip) == family);
            let lost: Vec<String> = addresses
                .filter(|ip| !facts.routes.iter().any(|route| route.contains(*ip)))
                .map(|ip| ip.to_string())
                .collect();
            if lost.is_empty() {
                continue;
            }
            let title = format!("no {family} route leads to cluster addresses: {}", some(&lost));
            let why = "a process of this host that connects to one hears \"network is unreachable\"";
            let fix = ["start `weft proxy` with --service-cidrs and the ranges of cluster addresses"];
            self.0.add(Severity::Problem, title, why, &fix);
        }
    }

    fn node(&mut self, overview: &Overview) {
        let Overview { node, is_declared, has_endpoints, other_nodes, .. } = overview;
        if *is_declared || *has_endpoints || other_nodes.is_empty() {
            return self.0.well(format!("node {node} is known"));
        }
        let title = format!("nothing that is declared speaks of a node `{node}`");
        let why = format!(
            "no endpoint counts as local, so what asks for local ones finds none; there are nodes {}",
            some(other_nodes)
        );
        self.0.add(Severity::Problem, title, why, &["start `weft proxy` with the right --node-name"]);
    }

    fn node_ports(&mut self, facts: &Facts, overview: &Overview) {
        let before = self.0.len();
        let mut taken = Vec::new();
        let mut outgoing = Vec::new();
        let range = local_ports(facts);
        for (service, protocol, port) in node_ports(overview) {
            let here =
                facts.listeners.iter().find(|it| it.port == port && it.protocol.to_string() == protocol);
            if let Some(listener) = here {
                let process = listener.process.as_deref().unwrap_or("a process");
                taken.push(format!("{process} at {port}/{protocol} ({service})"));
            }
            if range.as_ref().is_some_and(|range| range.contains(&port)) && !is_reserved(facts, port) {
                outgoing.push(format!("{port}/{protocol} ({service})"));
            }
        }
        dedup(&mut taken);
        dedup(&mut outgoing);
        if !taken.is_empty() {
            let title = format!("processes of this host listen on node ports: {}", some(&taken));
            let why = "connections go to the service, and never to the process";
            self.0.add(Severity::Warning, title, why, &["give one of them another port"]);
        }
        if !outgoing.is_empty() {
            let title = format!("outgoing connections may take node ports: {}", some(&outgoing));
            let why = "the kernel picks ports of net.ipv4.ip_local_port_range for connections from this host, \
                       and answers to such a one could be taken for a service's clients";
            let fix = [format!("sysctl -w net.ipv4.ip_local_reserved_ports={NODE_PORTS}")];
            self.0.add(Severity::Warning, title, why, &fix);
        }
        if self.0.len() == before {
            self.0.well("node ports are free");
        }
    }

    fn services(&mut self, overview: &Overview) {
        let before = self.0.len();
        let contested: Vec<String> = overview
            .services
            .iter()
            .flat_map(|service| {
                let of = |it: &crate::explain::service::Contested| {
                    format!("{} wants {} of {}", service.service, it.at, it.holder)
                };
                service.contested.iter().map(of)
            })
            .collect();
        if !contested.is_empty() {
            let title = format!("services claim what others have: {}", some(&contested));
            let why = "a cluster address comes before a load balancer's, that before an external one; then \
                       the older service has it";
            self.0.add(Severity::Warning, title, why, &["weft services"]);
        }
        let rejects = |path: &PathReport| *path == PathReport::Rejected;
        let refusing = ports(overview)
            .filter(|port| port.frontends.iter().any(|it| [it.pods, it.host, it.others].iter().any(rejects)));
        let mut empty: Vec<String> = refusing.map(|port| port.port.clone()).collect();
        dedup(&mut empty);
        if !empty.is_empty() {
            let title = format!("no endpoint is ready of {}", some(&empty));
            let why = "their clients are told that nobody is there";
            self.0.add(Severity::Warning, title, why, &["weft services"]);
        }
        if self.0.len() == before {
            self.0.well("every service has endpoints and all that it claims");
        }
    }
}

fn ports(overview: &Overview) -> impl Iterator<Item = &PortReport> {
    overview.services.iter().flat_map(|service| &service.ports)
}

fn cluster_addresses(overview: &Overview) -> impl Iterator<Item = IpAddr> {
    let frontends = ports(overview).flat_map(|port| &port.frontends);
    let cluster = frontends.filter(|frontend| frontend.kind == "cluster address");
    cluster.filter_map(|frontend| {
        let (address, _) = frontend.at.rsplit_once('/')?;
        Some(address.parse::<std::net::SocketAddr>().ok()?.ip())
    })
}

/// Service port, protocol and number of each node port.
fn node_ports(overview: &Overview) -> impl Iterator<Item = (&str, &str, u16)> {
    ports(overview).flat_map(|port| {
        port.frontends.iter().filter_map(|frontend| {
            let (_, at) = frontend.at.rsplit_once("node port ")?;
            let (number, _) = at.rsplit_once('/')?;
            Some((port.port.as_str(), port.protocol.as_str(), number.parse().ok()?))
        })
    })
}

/// `net.ipv4.ip_local_port_range`, which holds for IPv6 too.
fn local_ports(facts: &Facts) -> Option<RangeInclusive<u16>> {
    let mut ends = facts.settings.get("net/ipv4/ip_local_port_range")?.split_whitespace();
    let mut next = || ends.next()?.parse::<u16>().ok();
    Some(next()?..=next()?)
}

/// In `net.ipv4.ip_local_reserved_ports`: `8080,30000-32767`.
fn is_reserved(facts: &Facts, port: u16) -> bool {
    let listed =
        facts.settings.get("net/ipv4/ip_local_reserved_ports").map(String::as_str).unwrap_or_default();
    listed.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&port),
            _ => false,
        }
    })
}

fn dedup(list: &mut Vec<String>) {
    list.sort();
    list.dedup();
}

/// `a, b, c and 4 more`.
fn some(list: &[String]) -> String {
    let named = list.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match list.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
