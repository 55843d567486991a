//! What the facts mean: what is wrong, why that matters, what to run. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_daemon::finding::{Finding, Findings, Severity};

use super::facts::{Echo, Facts, Host, StoreFact};
use crate::backend;
use crate::config::Backend;
use crate::firewall::{self, forward};
use crate::model::{Family, Model, Subnet};
use crate::plan::{Transport, plan};

/// A clock that is this far off is told, in milliseconds: logs and certificates suffer, leases do not.
const CLOCK_TOLERANCE_MS: u64 = 5_000;

/// Judges everything; problems first.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Examined::default();
    found.0.daemon("the daemon", "weft-overlay", &facts.daemon);
    found.store(facts);
    found.abilities(facts);
    if let Some(model) = &facts.model {
        found.forwarding(facts, model);
        found.reverse_path(facts);
        found.bridge(facts, model);
        found.iptables(facts, model);
        found.nftables(facts, model);
        found.addresses(facts, model);
        found.ways(model);
        found.hosts(facts, model);
        found.clocks(facts);
        found.versions(facts);
    } else {
        let why = "neither etcd nor this host's cache tells of a config and a subnet of this host";
        let fix = ["weft overlay".to_owned(), format!("etcdctl get --prefix {}/", facts.prefix)];
        found.0.add(Severity::Problem, "this host has no subnet in the network", why, &fix);
    }
    for what in &facts.unseen {
        found.0.add::<&str>(
            Severity::Warning,
            format!("could not look at {what}"),
            "run this as root; --ask-etcd looks at etcd itself",
            &[],
        );
    }
    found.0.sorted()
}

#[derive(Default)]
struct Examined(Findings);

impl Examined {
    fn store(&mut self, facts: &Facts) {
        match &facts.store {
            StoreFact::NotAsked => {}
            StoreFact::Reached => self.0.well("etcd answers"),
            StoreFact::Unreached(why) => {
                let fix = ["etcdctl --endpoints=URL endpoint health"];
                self.0.add(Severity::Problem, "etcd cannot be reached from this host", why, &fix);
            }
        }
        for note in &facts.notes {
            let why = "nothing reads it: a slip of the pen, or a setting of another program";
            self.0.add::<&str>(Severity::Warning, format!("network config: {note}"), why, &[]);
        }
        for fault in &facts.faults {
            self.0.add::<&str>(
                Severity::Warning,
                format!("a key is skipped: {fault}"),
                "its value is not valid",
                &[],
            );
        }
    }

    fn abilities(&mut self, facts: &Facts) {
        let backend = facts.model.as_ref().map(|model| &model.config.backend);
        for (what, said) in &facts.lacking {
            let needed = match *what {
                "vxlan" => matches!(backend, Some(Backend::Vxlan { .. })),
                "tun" => matches!(backend, Some(Backend::Udp { .. })),
                _ => true,
            };
            let severity = if needed { Severity::Problem } else { Severity::Warning };
            let fix = [format!("modprobe {}", if *what == "nftables" { "nf_tables" } else { what })];
            self.0.add(severity, format!("this kernel cannot do {what}"), said, &fix);
        }
        if facts.lacking.is_empty() {
            self.0.well("the kernel can do VXLAN, TUN and nftables");
        }
    }

    fn forwarding(&mut self, facts: &Facts, model: &Model) {
        let families = [
            (model.config.v4.is_some(), "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            (model.config.v6.is_some(), "net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
        ];
        for (_, path, name) in families.into_iter().filter(|(wanted, ..)| *wanted) {
            match facts.settings.get(path).map(String::as_str) {
                Some("0") => {
                    let why = "packets of pods are not forwarded at all; the daemon sets it, so something \
                               else took it back or the daemon does not run";
                    let fix = [format!("sysctl -w {name}=1")];
                    self.0.add(Severity::Problem, format!("{name} is 0"), why, &fix);
                }
                Some(_) => self.0.well(format!("{name} is on")),
                None => {
                    let why = "the kernel has no such setting, so it cannot forward this family";
                    self.0.add::<&str>(Severity::Problem, format!("{name} does not exist"), why, &[]);
                }
            }
        }
    }

    /// The stricter of a link's own value and that of all links holds; 1 is strict
    /// (Documentation/networking/ip-sysctl.rst), though loose (2) beats it.
    fn reverse_path(&mut self, facts: &Facts) {
        let value = |path: &str| facts.settings.get(path).and_then(|value| value.parse::<u8>().ok());
        let all = value("net/ipv4/conf/all/rp_filter").unwrap_or(0);
        for link in &facts.tunnel_links {
            let own = value(&format!("net/ipv4/conf/{link}/rp_filter")).unwrap_or(0);
            let name = format!("net.ipv4.conf.{}.rp_filter", link.as_str().replace('.', "/"));
            if own.max(all) == 1 {
                let why = "packets that another host itself sends through the tunnel, from its public \
                           address, are dropped: its route back does not lead into the tunnel";
                let fix = [format!("sysctl -w {name}=2")];
                self.0.add(Severity::Warning, format!("rp_filter is strict on {link}"), why, &fix);
            } else {
                self.0.well(format!("rp_filter lets the tunnel's packets in on {link}"));
            }
        }
    }

    fn bridge(&mut self, facts: &Facts, model: &Model) {
        if !facts.bridge {
            return;
        }
        for family in backend::inner_families(&model.config) {
            let name = match family {
                Family::V4 => "bridge-nf-call-iptables",
                Family::V6 => "bridge-nf-call-ip6tables",
            };
            if facts.settings.get(&format!("net/bridge/{name}")).is_some_and(|value| value == "1") {
                self.0.well(format!("bridged {family} packets pass the packet filter"));
                continue;
            }
            let why = "a pod that calls a Service whose endpoint is on the same bridge gets the answer \
                       from the endpoint's own address, past the address translation";
            let fix = ["modprobe br_netfilter".to_owned(), format!("sysctl -w net.bridge.{name}=1")];
            let title = format!("{family} packets within the pods' bridge do not pass the packet filter");
            self.0.add(Severity::Warning, title, why, &fix);
        }
    }

    fn iptables(&mut self, facts: &Facts, model: &Model) {
        let mut well = true;
        for (set, saved) in &facts.iptables {
            let networks = model.config.networks();
            let Some(pods) = networks.into_iter().find(|network| network.is_ipv6() == set.ipv6) else {
                continue;
            };
            if !forward::open(saved, &model.me.network, Some(pods)).is_empty() {
                let program = set.save_program().trim_end_matches("-save");
                let why = "Docker, or a firewall, closed forwarding, and the rules that the daemon adds \
                           against that are not there";
                let fix = ["-s", "-d"].map(|side| format!("{program} -I FORWARD {side} {pods} -j ACCEPT"));
                let title =
                    format!("{program}'s policy of FORWARD is DROP, and pods' packets are not excepted");
                self.0.add(Severity::Problem, title, why, &fix);
                well = false;
            }
            if let Some((what, run)) = forward::obstacle(saved, pods) {
                let why = "somebody closed forwarding by a rule, so it is left to you to open it";
                self.0.add(Severity::Problem, what, why, &run);
                well = false;
            }
        }
        if well {
            self.0.well("iptables forwards pods' packets");
        }
    }

    fn nftables(&mut self, facts: &Facts, model: &Model) {
        let Some(around) = &facts.around else { return };
        let others = firewall::findings::nftables(&facts.nft_tables, model, around);
        if others.is_empty() {
            self.0.well("no other nftables table refuses the network's packets");
        }
        for finding in others {
            let why = "a packet must pass every table; weft changes nobody else's";
            self.0.add(Severity::Problem, finding.what, why, &finding.run);
        }
    }

    fn addresses(&mut self, facts: &Facts, model: &Model) {
        let mut by_address: BTreeMap<IpAddr, Vec<Subnet>> = BTreeMap::new();
        for (subnet, addresses) in &facts.leases {
            for address in addresses {
                by_address.entry(*address).or_default().push(*subnet);
            }
        }
        by_address.retain(|_, subnets| subnets.len() > 1);
        for (address, subnets) in &by_address {
            let list: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            let title = format!("{} are leased with the same public address {address}", list.join(" and "));
            let why = "two hosts say that they are reached there, so one gets the other's packets; a host \
                       behind NAT needs --public-ip";
            self.0.add(Severity::Problem, title, why, &["weft lease ls"]);
        }
        for (address, mac) in &facts.squatters {
            let title = format!("another machine, {mac}, has this host's address {address} too");
            let fix = [format!("arping -D -I {} {address}", model.me.underlay.link)];
            self.0.add(Severity::Problem, title, "it answers an ARP probe for it (RFC 5227)", &fix);
        }
        if by_address.is_empty() && facts.squatters.is_empty() {
            self.0.well("every host's public address is its own");
        }
    }

    fn ways(&mut self, model: &Model) {
        for ((subnet, family), skip) in &plan(model).skipped {
            let title = format!("there is no way to {subnet} in {family}");
            self.0.add(Severity::Warning, title, skip.to_string(), &["weft peers"]);
        }
    }

    fn hosts(&mut self, facts: &Facts, model: &Model) {
        let desired = plan(model);
        for (subnet, host) in &facts.hosts {
            let before = self.0.len();
            let Some(((_, family), way)) = desired.ways.iter().find(|((of, _), _)| of == subnet) else {
                continue;
            };
            let outer = model.peers.get(subnet).and_then(|peer| peer.public(way.outer));
            let who = outer.map_or_else(|| subnet.to_string(), |outer| format!("{subnet} at {outer}"));
            self.host(model, host, &who, way.transport);
            let route = desired
                .kernel
                .routes
                .values()
                .find(|route| subnet.of(*family).is_some_and(|network| route.key.dst == network));
            let link = route.and_then(|route| route.link.as_ref()).map(ToString::to_string);
            self.checksums(host, &who, &link.unwrap_or_else(|| "the tunnel's link".to_owned()));
            if self.0.len() == before {
                self.0.well(format!("{who} is reached, with packets of full size"));
            }
        }
    }

    fn host(&mut self, model: &Model, host: &Host, who: &str, transport: Transport) {
        let base = crate::mtu::base(&model.config, &model.me.underlay);
        match (host.underlay, host.tunnel) {
            (true, Some(false)) => {
                let port = match model.config.backend {
                    Backend::Udp { port } | Backend::Vxlan { port, .. } => port,
                    // VXLAN as a helper beside another backend.
                    _ => 8472,
                };
                let title = format!("{who} answers past the tunnel and not through it");
                let why = format!(
                    "a firewall between here and there, or on either host, drops {transport} at UDP port {port}, \
                     or its daemon has not programmed this host"
                );
                let fix = [
                    format!("nft list ruleset | grep {port}"),
                    format!("tcpdump -ni {} udp port {port}", model.me.underlay.link),
                ];
                self.0.add(Severity::Problem, title, why, &fix);
            }
            (false, Some(false) | None) => {
                let why = "it is down, or the network between is; peers that stay silent are dropped";
                self.0.add(Severity::Warning, format!("{who} does not answer"), why, &["weft peers"]);
            }
            _ => {}
        }
        if let Some(carries) = host.carries.filter(|carries| host.underlay && *carries < base) {
            let title = format!("the path to {who} carries {carries} bytes in one piece, not {base}");
            let why = "full packets of pods are lost on it; tell the network the truth, for all hosts";
            let fix = match model.config.backend {
                Backend::Vxlan { .. } => {
                    format!("set \"MTU\": {carries} in \"Backend\" of the network's config in etcd")
                }
                _ => format!("ip link set {} mtu {carries}", model.me.underlay.link),
            };
            self.0.add(Severity::Problem, title, why, &[fix]);
        } else if (host.tunnel, host.tunnel_full) == (Some(true), Some(false)) {
            let title = format!("{who} answers small packets through the tunnel and not those of full size");
            self.0.add(Severity::Problem, title, "large packets of pods are lost", &["weft peers"]);
        }
    }

    /// ICMP's checksums are made in software, UDP's by the link: where one passes and the other does
    /// not, the link, or the NIC below it, makes them wrong.
    fn checksums(&mut self, host: &Host, who: &str, link: &str) {
        let fix = [format!("ethtool -K {link} tx-checksum-ip-generic off")];
        match &host.echo {
            Echo::Silence if host.tunnel_full == Some(true) => {
                let title =
                    format!("UDP through the tunnel to {who} is lost, and ICMP of the same size is not");
                let why = "the checksums that the NIC puts into tunnelled packets are wrong, or a firewall \
                           there drops UDP between hosts";
                self.0.add(Severity::Problem, title, why, &fix);
            }
            Echo::Answer { arrived, sent, .. } if arrived < sent => {
                let title = format!("of {sent} UDP packets sent as one to {who}, {arrived} arrived");
                let why = "the NIC splits tunnelled packets wrongly (segmentation offload)";
                let more = format!("ethtool -K {link} tso off gso off");
                self.0.add(Severity::Problem, title, why, &[fix[0].clone(), more]);
            }
            _ => {}
        }
    }

    fn clocks(&mut self, facts: &Facts) {
        let ahead = facts.hosts.iter().filter_map(|(subnet, host)| match host.echo {
            Echo::Answer { ahead_ms, .. } => Some((subnet, ahead_ms)),
            _ => None,
        });
        let ahead: Vec<_> = ahead.collect();
        let off: Vec<_> = ahead.iter().filter(|(_, ms)| ms.unsigned_abs() > CLOCK_TOLERANCE_MS).collect();
        const FIX: [&str; 1] = ["timedatectl status"];
        const WHY: &str = "leases do not depend on it, but logs cannot be compared and certificates fail";
        if off.len() > 1 && off.len() == ahead.len() {
            let (_, ms) = off[0];
            let title = format!("this host's clock is off: {}", seconds(-ms));
            self.0.add(Severity::Warning, title, WHY, &FIX);
        } else {
            for (subnet, ms) in &off {
                let title = format!(
                    "the clocks of this host and the one with {subnet} differ: it is {}",
                    seconds(*ms)
                );
                self.0.add(Severity::Warning, title, WHY, &FIX);
            }
        }
        if off.is_empty() && !ahead.is_empty() {
            self.0.well("the clocks agree");
        }
    }

    fn versions(&mut self, facts: &Facts) {
        let ours = env!("CARGO_PKG_VERSION");
        let mut others: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (subnet, host) in &facts.hosts {
            if let Echo::Answer { version, .. } = &host.echo
                && version != ours
            {
                others.entry(version).or_default().push(subnet.to_string());
            }
        }
        for (version, subnets) in others {
            let title = format!("{} runs weft {version}, this host {ours}", subnets.join(", "));
            self.0.add::<&str>(Severity::Warning, title, "finish the upgrade", &[]);
        }
    }
}

/// `12 s ahead`, `7 s behind`.
fn seconds(ms: i64) -> String {
    let word = if ms < 0 { "behind" } else { "ahead" };
    format!("{} s {word}", ms.unsigned_abs() / 1000)
}

#[cfg(test)]
mod tests;
