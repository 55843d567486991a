//! A row for every finding: a healthy host with one thing wrong.

use weft_daemon::health::{Condition, State};

use super::*;
use crate::doctor::Listener;
use crate::explain::service::{Contested, FrontendReport, ServiceReport};
use crate::model::Protocol;

fn healthy() -> Facts {
    let frontend = |at: &str, kind: &str| {
        let to = PathReport::To { local: false, endpoints: 1, masquerade: false };
        FrontendReport { at: at.into(), kind: kind.into(), pods: to, host: to, others: to, only_from: None }
    };
    let port = |family: &str, frontends| PortReport {
        port: "shop/web:http".into(),
        protocol: "tcp".into(),
        family: family.into(),
        frontends,
        ..PortReport::default()
    };
    let v4 =
        [frontend("10.96.0.10:80/tcp", "cluster address"), frontend("IPv4 node port 30080/tcp", "node port")];
    let web = ServiceReport {
        service: "shop/web".into(),
        ports: vec![
            port("IPv4", v4.to_vec()),
            port("IPv6", vec![frontend("[fd00::10]:80/tcp", "cluster address")]),
        ],
        ..ServiceReport::default()
    };
    let overview = Overview {
        node: "ash".into(),
        is_declared: true,
        other_nodes: vec!["birch".into()],
        node_ports: vec!["192.0.2.1".into()],
        services: vec![web],
        ..Overview::default()
    };
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/eth0/rp_filter", "2"),
        ("net/ipv4/conf/all/route_localnet", "0"),
        ("net/ipv4/ip_local_port_range", "32768\t60999"),
        ("net/ipv4/ip_local_reserved_ports", ""),
        ("net/netfilter/nf_conntrack_count", "7"),
        ("net/netfilter/nf_conntrack_max", "1000"),
    ];
    Facts {
        daemon: Daemon::Answers(vec![condition(State::Ok)]),
        rules: vec!["nftables table inet weft-proxy".into()],
        overview: Some(overview),
        drift: Some(Vec::new()),
        settings: settings.map(|(path, value)| (path.to_owned(), value.to_owned())).into(),
        links: ["eth0".to_owned(), "eth1".to_owned()].into(),
        routes: vec!["0.0.0.0/0".parse().unwrap(), "fd00::/64".parse().unwrap()],
        ..Facts::default()
    }
}

fn condition(state: State) -> Condition {
    Condition { name: "kernel".into(), state, reason: "because".into(), since: 0 }
}

fn overview(facts: &mut Facts) -> &mut Overview {
    facts.overview.as_mut().expect("a healthy host has one")
}

fn set(facts: &mut Facts, path: &str, value: &str) {
    facts.settings.insert(path.to_owned(), value.to_owned());
}

#[test]
fn a_healthy_host_has_nothing_but_ok() {
    let found = findings(&healthy());
    assert!(found.len() > 8 && found.iter().all(|finding| finding.severity == Severity::Ok), "{found:#?}");
}

#[test]
fn a_host_without_a_proxy_has_no_findings() {
    let facts = Facts { daemon: Daemon::Stopped, rules: Vec::new(), ..healthy() };
    assert_eq!(findings(&facts), []);
}

#[test]
fn each_thing_that_is_wrong_is_found() {
    use Severity::{Problem, Warning};
    type Spoil = fn(&mut Facts);
    let table: &[(Spoil, Severity, &str)] = &[
        (|f| f.daemon = Daemon::Stopped, Warning, "the proxy does not run"),
        (
            |f| f.daemon = Daemon::Stopped,
            Warning,
            "the proxy's rules are still in force: nftables table inet weft-proxy",
        ),
        (|f| f.daemon = Daemon::Stuck("x".into()), Problem, "the proxy does not answer"),
        (
            |f| f.daemon = Daemon::Answers(vec![condition(State::NotReady)]),
            Problem,
            "the proxy says: kernel not ready",
        ),
        (
            |f| f.daemon = Daemon::Answers(vec![condition(State::Degraded)]),
            Warning,
            "the proxy says: kernel degraded",
        ),
        (
            |f| f.drift = Some(vec!["a".into(), "b".into()]),
            Problem,
            "the kernel does not hold what it should of services",
        ),
        (
            |f| set(f, "net/netfilter/nf_conntrack_count", "900"),
            Problem,
            "connection tracking holds 900 of at most 1000 connections",
        ),
        (
            |f| f.kube_proxy = vec!["table ip kube-proxy".into()],
            Problem,
            "kube-proxy's rules are here too: table ip kube-proxy",
        ),
        (|f| set(f, "net/ipv4/conf/all/rp_filter", "1"), Warning, "rp_filter is strict on eth1"),
        (|f| set(f, "net/ipv4/conf/eth0/rp_filter", "1"), Warning, "rp_filter is strict on eth0"),
        (|f| set(f, "net/ipv4/ip_forward", "0"), Problem, "net.ipv4.ip_forward is 0"),
        (|f| set(f, "net/ipv6/conf/all/forwarding", "0"), Problem, "net.ipv6.conf.all.forwarding is 0"),
        (
            |f| overview(f).node_ports.push("127.0.0.0/8".into()),
            Problem,
            "net.ipv4.conf.all.route_localnet is 0",
        ),
        (
            |f| set(f, "net/ipv4/conf/all/route_localnet", "1"),
            Warning,
            "net.ipv4.conf.all.route_localnet is 1",
        ),
        (
            |f| f.routes.retain(ipnetwork::IpNetwork::is_ipv6),
            Problem,
            "no IPv4 route leads to cluster addresses: 10.96.0.10",
        ),
        (
            |f| f.routes.retain(ipnetwork::IpNetwork::is_ipv4),
            Problem,
            "no IPv6 route leads to cluster addresses: fd00::10",
        ),
        (|f| overview(f).is_declared = false, Problem, "nothing that is declared speaks of a node `ash`"),
        (
            |f| {
                let process = Some("nginx".to_owned());
                f.listeners.push(Listener { protocol: Protocol::Tcp, port: 30080, process });
            },
            Warning,
            "processes of this host listen on node ports: nginx at 30080/tcp (shop/web:http)",
        ),
        (
            |f| set(f, "net/ipv4/ip_local_port_range", "1024\t65535"),
            Warning,
            "outgoing connections may take node ports: 30080/tcp (shop/web:http)",
        ),
        (
            |f| {
                let contested = Contested { at: "198.51.100.1:80/tcp".into(), holder: "shop/old".into() };
                overview(f).services[0].contested.push(contested);
            },
            Warning,
            "services claim what others have: shop/web wants 198.51.100.1:80/tcp of shop/old",
        ),
        (
            |f| overview(f).services[0].ports[0].frontends[0].others = PathReport::Rejected,
            Warning,
            "no endpoint is ready of shop/web:http",
        ),
        (|f| f.unseen.push("routes: denied".into()), Warning, "could not look at routes: denied"),
    ];
    for (spoil, severity, title) in table {
        let mut facts = healthy();
        spoil(&mut facts);
        let found = findings(&facts);
        let wrong: Vec<_> = found.iter().filter(|finding| finding.severity != Severity::Ok).collect();
        assert!(
            wrong.iter().any(|finding| finding.severity == *severity && finding.title == *title),
            "{title}: {wrong:#?}"
        );
        assert!(wrong.len() <= 2, "only what is wrong: {wrong:#?}");
    }
}

#[test]
fn what_only_looks_wrong_is_not_found() {
    type Change = fn(&mut Facts);
    let table: &[Change] = &[
        // Reserved.
        |f| {
            set(f, "net/ipv4/ip_local_port_range", "1024\t65535");
            set(f, "net/ipv4/ip_local_reserved_ports", "80,30000-32767");
        },
        // Another protocol.
        |f| f.listeners.push(Listener { protocol: Protocol::Udp, port: 30080, process: None }),
        // One link.
        |f| {
            f.links.remove("eth1");
            set(f, "net/ipv4/conf/all/rp_filter", "1");
        },
        // Endpoints of this host, without its Node; or nothing that speaks of any node.
        |f| (overview(f).is_declared, overview(f).has_endpoints) = (false, true),
        |f| (overview(f).is_declared, overview(f).other_nodes) = (false, Vec::new()),
        // Services of one family only.
        |f| {
            overview(f).services[0].ports.truncate(1);
            set(f, "net/ipv6/conf/all/forwarding", "0");
        },
    ];
    for (case, change) in table.iter().enumerate() {
        let mut facts = healthy();
        change(&mut facts);
        let found = findings(&facts);
        assert!(found.iter().all(|finding| finding.severity == Severity::Ok), "{case}: {found:#?}");
    }
}

#[test]
fn long_lists_are_cut() {
    let list: Vec<String> = (0..7).map(|n| n.to_string()).collect();
    assert_eq!(some(&list), "0, 1, 2, 3, 4 and 2 more");
    assert_eq!(some(&list[..2]), "0, 1");
}
