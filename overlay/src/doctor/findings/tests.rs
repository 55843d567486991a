//! A row for every finding: a healthy host with one thing wrong.

use weft_daemon::finding::Daemon;
use weft_daemon::health::{Condition, State};
use weft_kernel::iptables::Iptables;
use weft_kernel::net::Mac;

use super::*;
use crate::firewall::Surroundings;
use crate::fixtures::{self, DUAL, V4, name, subnet, vxlan, weft_peer};

/// Host 7, with peers 1 and 2, and nothing wrong.
fn healthy() -> Facts {
    let model = fixtures::with_peers(
        fixtures::model(vxlan(), DUAL, V4),
        [1, 2].map(|n| weft_peer(n, &vxlan(), DUAL, V4)),
    );
    let base = crate::mtu::base(&model.config, &model.me.underlay);
    let answer =
        Echo::Answer { arrived: 8, sent: 8, ahead_ms: 40, version: env!("CARGO_PKG_VERSION").into() };
    let host = Host {
        underlay: true,
        carries: Some(base),
        tunnel: Some(true),
        tunnel_full: Some(true),
        echo: answer,
    };
    let address = |n: u8| vec![IpAddr::V4(fixtures::public_v4(n))];
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/weft.1/rp_filter", "0"),
    ];
    Facts {
        daemon: Daemon::Answers(vec![condition(State::Ok, "")]),
        store: StoreFact::Reached,
        leases: [7, 1, 2].map(|n| (subnet(n, DUAL), address(n))).into(),
        settings: settings.map(|(path, value)| (path.to_owned(), value.to_owned())).into(),
        tunnel_links: vec![name("weft.1")],
        around: Some(Surroundings::new(&model.config.backend)),
        hosts: [1, 2].map(|n| (subnet(n, DUAL), host.clone())).into(),
        model: Some(model),
        ..Facts::default()
    }
}

fn condition(state: State, reason: &str) -> Condition {
    Condition { name: "lease".into(), state, reason: reason.into(), since: 0 }
}

#[test]
fn a_healthy_host_has_nothing_but_ok() {
    let found = findings(&healthy());
    assert!(found.len() > 8 && found.iter().all(|finding| finding.severity == Severity::Ok), "{found:#?}");
}

fn host(facts: &mut Facts) -> &mut Host {
    facts.hosts.get_mut(&subnet(1, DUAL)).expect("peer 1")
}

fn every_echo(facts: &mut Facts, off: i64) {
    for host in facts.hosts.values_mut() {
        if let Echo::Answer { ahead_ms, .. } = &mut host.echo {
            *ahead_ms = off;
        }
    }
}

type Change = fn(&mut Facts);

const PROBLEM: Severity = Severity::Problem;
const WARNING: Severity = Severity::Warning;

/// What is wrong; how bad, a part of the title, a part of what to run.
const TABLE: &[(Change, Severity, &str, &str)] = &[
    (
        |f| f.notes = vec!["Netwrok: no such key in a network config; ignored".into()],
        WARNING,
        "network config: Netwrok: no such key",
        "",
    ),
    (|f| f.daemon = Daemon::Stopped, WARNING, "the daemon does not run", "systemctl start"),
    (|f| f.daemon = Daemon::Stuck("slow".into()), PROBLEM, "the daemon does not answer", "journalctl"),
    (
        |f| f.daemon = Daemon::Answers(vec![condition(State::NotReady, "no subnet is free")]),
        PROBLEM,
        "lease not ready",
        "journalctl",
    ),
    (
        |f| f.daemon = Daemon::Answers(vec![condition(State::Degraded, "etcd is away")]),
        WARNING,
        "lease degraded",
        "journalctl",
    ),
    (
        |f| f.store = StoreFact::Unreached("refused".into()),
        PROBLEM,
        "etcd cannot be reached",
        "endpoint health",
    ),
    (|f| f.faults.push("/n/x: no JSON".into()), WARNING, "a key is skipped: /n/x: no JSON", ""),
    (|f| f.model = None, PROBLEM, "this host has no subnet", "weft overlay"),
    (|f| f.unseen.push("nftables".into()), WARNING, "could not look at nftables", ""),
    (|f| drop(f.lacking.insert("vxlan", "x".into())), PROBLEM, "cannot do vxlan", "modprobe vxlan"),
    (|f| drop(f.lacking.insert("nftables", "x".into())), PROBLEM, "cannot do nftables", "modprobe nf_tables"),
    (|f| drop(f.lacking.insert("tun", "x".into())), WARNING, "cannot do tun", "modprobe tun"),
    (
        |f| drop(f.settings.insert("net/ipv4/ip_forward".into(), "0".into())),
        PROBLEM,
        "net.ipv4.ip_forward is 0",
        "sysctl -w net.ipv4.ip_forward=1",
    ),
    (
        |f| drop(f.settings.insert("net/ipv6/conf/all/forwarding".into(), "0".into())),
        PROBLEM,
        "net.ipv6.conf.all.forwarding is 0",
        "sysctl -w net.ipv6.conf.all.forwarding=1",
    ),
    (
        |f| drop(f.settings.remove("net/ipv6/conf/all/forwarding")),
        PROBLEM,
        "net.ipv6.conf.all.forwarding does not exist",
        "",
    ),
    (
        |f| drop(f.settings.insert("net/ipv4/conf/all/rp_filter".into(), "1".into())),
        WARNING,
        "rp_filter is strict on weft.1",
        "sysctl -w net.ipv4.conf.weft/1.rp_filter=2",
    ),
    (
        |f| {
            f.bridge = true;
            f.settings.insert("net/bridge/bridge-nf-call-ip6tables".into(), "1".into());
        },
        WARNING,
        "IPv4 packets within the pods' bridge",
        "modprobe br_netfilter",
    ),
    (
        |f| {
            f.bridge = true;
            f.settings.insert("net/bridge/bridge-nf-call-iptables".into(), "1".into());
            f.settings.insert("net/bridge/bridge-nf-call-ip6tables".into(), "0".into());
        },
        WARNING,
        "IPv6 packets within the pods' bridge",
        "sysctl -w net.bridge.bridge-nf-call-ip6tables=1",
    ),
    (
        |f| (f.model, f.prefix) = (None, "/blue/network".into()),
        PROBLEM,
        "this host has no subnet",
        "etcdctl get --prefix /blue/network/",
    ),
    (
        |f| f.iptables.push((Iptables::ALL[0], "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n".into())),
        PROBLEM,
        "iptables-nft's policy of FORWARD is DROP",
        "iptables-nft -I FORWARD -s",
    ),
    (
        |f| {
            let saved = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j REJECT\nCOMMIT\n";
            f.iptables.push((Iptables::ALL[2], saved.into()));
        },
        PROBLEM,
        "FORWARD ends with REJECT",
        "iptables -I FORWARD -d",
    ),
    (
        |f| f.leases.push((subnet(9, DUAL), vec![fixtures::public_v4(1).into()])),
        PROBLEM,
        "are leased with the same public address",
        "weft lease ls",
    ),
    (
        |f| f.squatters.extend([(fixtures::public_v4(7).into(), Mac([2, 0, 0, 0, 0, 9]))]),
        PROBLEM,
        "another machine, 02:00:00:00:00:09, has this host's address",
        "arping -D",
    ),
    (
        |f| {
            let model = f.model.as_mut().expect("healthy");
            model.peers.get_mut(&subnet(1, DUAL)).expect("peer 1").public_v4 = None;
        },
        WARNING,
        "there is no way to",
        "weft peers",
    ),
    (
        |f| {
            *host(f) =
                Host { underlay: true, tunnel: Some(false), tunnel_full: Some(false), ..Host::default() }
        },
        PROBLEM,
        "answers past the tunnel and not through it",
        "udp port 8472",
    ),
    (
        |f| *host(f) = Host { tunnel: Some(false), tunnel_full: Some(false), ..Host::default() },
        WARNING,
        "does not answer",
        "weft peers",
    ),
    (|f| host(f).carries = Some(1400), PROBLEM, "carries 1400 bytes in one piece, not 1500", "\"MTU\": 1400"),
    (|f| host(f).tunnel_full = Some(false), PROBLEM, "and not those of full size", "weft peers"),
    (
        |f| host(f).echo = Echo::Silence,
        PROBLEM,
        "UDP through the tunnel",
        "ethtool -K weft.1 tx-checksum-ip-generic off",
    ),
    (
        |f| {
            let version = env!("CARGO_PKG_VERSION").into();
            host(f).echo = Echo::Answer { arrived: 1, sent: 8, ahead_ms: 0, version };
        },
        PROBLEM,
        "of 8 UDP packets sent as one",
        "tso off gso off",
    ),
    (|f| every_echo(f, -12_000), WARNING, "this host's clock is off: 12 s ahead", "timedatectl"),
    (
        |f| {
            let version = env!("CARGO_PKG_VERSION").into();
            host(f).echo = Echo::Answer { arrived: 8, sent: 8, ahead_ms: 7_000, version };
        },
        WARNING,
        "it is 7 s ahead",
        "timedatectl",
    ),
    (
        |f| host(f).echo = Echo::Answer { arrived: 8, sent: 8, ahead_ms: 0, version: "0.0.9".into() },
        WARNING,
        "runs weft 0.0.9",
        "",
    ),
];

#[test]
fn one_thing_wrong_is_one_finding() {
    for (change, severity, title, fix) in TABLE {
        let mut facts = healthy();
        change(&mut facts);
        let found = findings(&facts);
        let wrong: Vec<&Finding> = found.iter().filter(|finding| finding.severity != Severity::Ok).collect();
        let hit = wrong.iter().any(|finding| {
            finding.severity == *severity
                && finding.title.contains(title)
                && finding.fix.join("\n").contains(fix)
                && !finding.why.is_empty()
        });
        assert!(hit, "{title}: {wrong:#?}");
        // A peer without a public address has none in either family.
        let most = if *title == "there is no way to" { 2 } else { 1 };
        assert!(wrong.len() <= most, "{title}: {wrong:#?}");
    }
}

#[test]
fn flannels_host_answers_no_questions_and_that_is_no_finding() {
    let mut facts = healthy();
    for host in facts.hosts.values_mut() {
        host.echo = Echo::Nobody;
    }
    assert!(findings(&facts).iter().all(|finding| finding.severity == Severity::Ok));
}

#[test]
fn problems_come_first() {
    let mut facts = healthy();
    facts.daemon = Daemon::Stopped;
    facts.settings.insert("net/ipv4/ip_forward".into(), "0".into());
    let severities: Vec<Severity> = findings(&facts).iter().map(|finding| finding.severity).collect();
    assert!(severities.is_sorted_by(|a, b| a >= b), "{severities:?}");
}
