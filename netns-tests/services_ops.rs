//! What an operator runs on a host with services: `weft cleanup` leaves nothing behind, `weft explain`
//! and `weft services` tell what is so, `weft doctor` finds what is wrong.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::manifests::{endpoint, service, slice};
use weft_lab::traffic::Protocol;
use weft_lab::{Host, Lab, LabError, Output, within};

const SOON: Duration = Duration::from_secs(30);
const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// A firewall as Docker leaves it with these of iptables' programs, tables and settings of the user's.
fn foreign(programs: &str) -> String {
    format!(
        "for set in iptables-{programs} ip6tables-{programs}; do
            $set -P FORWARD DROP; $set -t nat -A POSTROUTING -j RETURN; $set -A INPUT -j ACCEPT
        done
        nft add table inet own; nft add table ip kube; ip route add 198.51.100.0/24 dev eth0
        sysctl -qw net.ipv4.conf.eth0.forwarding=1 net.netfilter.nf_conntrack_udp_timeout=77 \
            net.netfilter.nf_conntrack_tcp_timeout_close_wait=78 net.ipv6.conf.eth0.forwarding=1"
    )
}

/// Settings beside those that a proxy makes unasked.
const WISHES: [&str; 3] =
    ["--conntrack-udp-timeout=40s", "--conntrack-accounting", "--conntrack-tcp-be-liberal"];

/// All that a host holds, as far as a proxy could have changed it.
const DUMP: &str = "ip -d link; ip address; ip route show table all; ip -6 route show table all
    ip rule; ip -6 rule; nft -s list ruleset
    for set in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
        $set-save | sed 's/ *\\[.*//; /^#/d'
    done
    sysctl -a --pattern '^net\\.(ipv[46]|bridge|core|netfilter)\\.' 2>/dev/null |
        grep -v '_count\\|\\.random\\|tcp_.*mem'";

fn weft(host: &Host, command: &str, further: &[&str]) -> Output {
    let run_dir = format!("--run-dir={}", host.run_dir().display());
    let args = [WEFT, command, run_dir.as_str()].into_iter();
    host.run_args(&args.chain(further.iter().copied()).collect::<Vec<_>>())
}

/// The commands that need to know where everything is.
fn on_disk(host: &Host, command: &str, further: &[&str]) -> Output {
    let dirs = [
        format!("--state-dir={}", host.state_dir().display()),
        format!("--subnet-file={}", host.subnet_file().display()),
    ];
    let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
    weft(host, command, &[dirs.as_slice(), further].concat())
}

#[track_caller]
fn assert_same(before: &str, after: &str) {
    let only = |a: &str, b: &str| {
        let other: BTreeSet<&str> = b.lines().collect();
        a.lines().filter(|line| !other.contains(line)).collect::<Vec<_>>().join("\n")
    };
    assert!(before == after, "gone:\n{}\nnew:\n{}", only(before, after), only(after, before));
}

/// Two services: one with an endpoint here, of both families, and one without any.
fn objects(lab: &Lab) -> Result<(), LabError> {
    let web = service(
        "web",
        json!({
            "type": "NodePort",
            "clusterIPs": ["10.96.0.10", "fd96::10"],
            "ipFamilyPolicy": "RequireDualStack",
            "sessionAffinity": "ClientIP",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        }),
    );
    let late = service("late", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80}]}));
    let ends =
        [([10, 42, 1, 5], "ash"), ([10, 42, 2, 5], "birch")].map(|(ip, node)| endpoint(ip.into(), node));
    let ports = json!([{"name": "http", "port": 8080}]);
    lab.manifests().write(&[web, late, slice("web-1", "web", ports, &ends)])
}

fn a_clean_host(story: &str, mode: &str, programs: &str) -> Result<(), LabError> {
    let lab = Lab::new(story).weft(WEFT).hosts(["ash"]).etcd_members(0).without_daemons();
    let places = "--nodeport-addresses=primary,localhost";
    let other = if mode == "iptables" { "--mode=nftables" } else { "--mode=iptables" };
    let chosen = format!("--mode={mode}");
    let args = [chosen.as_str(), places, "--service-cidrs=10.96.0.0/16,fd96::/64"];
    let lab = lab.proxies(args.into_iter().chain(WISHES)).up()?;
    let ash = lab.host("ash");
    ash.run(foreign(programs)).ok()?;
    objects(&lab)?;
    within(SOON, || ash.run("! ip address | grep tentative").ok());
    let before = ash.run(DUMP).ok()?;
    // However it ends: by itself, or not, and whatever it did before.
    for kill in [false, true] {
        if kill {
            ash.proxy().launch_with(&[other])?;
            ash.proxy().wait_until_ready(SOON)?;
            ash.proxy().kill()?;
        }
        ash.proxy().start()?;
        within(SOON, || ash.proxy().as_planned());
        // Settings are made beside the rules.
        within(SOON, || match ash.proxy().api("/readyz?verbose") {
            Ok(said) if said.body.contains("settings ok") => Ok(()),
            said => Err(format!("{said:?}")),
        });
        let held = ash.run(DUMP).ok()?;
        assert_ne!(held, before);
        let chains = ash.run(format!("iptables-{programs}-save | grep -c ^:WEFT- || true")).ok()?;
        assert_eq!(mode == "iptables", chains.trim() != "0", "{chains}");
        if mode == "iptables" {
            rules_are_counted(&ash, programs)?;
        }
        let refused = on_disk(&ash, "cleanup", &[]);
        assert!(!refused.success() && refused.stderr.contains("`weft proxy` runs"), "{refused:?}");
        assert_same(&held, &ash.run(DUMP).ok()?);
        if kill {
            ash.proxy().kill()?;
        } else {
            ash.proxy().stop()?;
        }
        let removed = on_disk(&ash, "cleanup", &[]).ok()?;
        assert!(removed.contains("kernel setting"), "{removed}");
        assert_same(&before, &ash.run(DUMP).ok()?);
        let traces = [ash.run_dir().join("proxy"), ash.state_dir().join("proxy")];
        assert!(traces.iter().all(|path| !path.exists()), "{traces:?}");
        let again = on_disk(&ash, "cleanup", &[]);
        assert_eq!((again.success(), again.stdout.as_str()), (true, ""), "{again:?}");
    }
    lab.down()
}

/// The metrics of kube-proxy's name are the rules that the programs print.
fn rules_are_counted(host: &Host, programs: &str) -> Result<(), LabError> {
    for (set, family) in [("iptables", "IPv4"), ("ip6tables", "IPv6")] {
        for table in ["nat", "filter"] {
            let printed = host.run(format!("{set}-{programs}-save -t {table} | grep -c '^-A WEFT-'")).ok()?;
            let labels = format!("{{table=\"{table}\",ip_family=\"{family}\"}}");
            let total = host.proxy().metric(&format!("kubeproxy_sync_proxy_rules_iptables_total{labels}"))?;
            assert_eq!(total.to_string(), printed.trim(), "{set} {table}");
        }
    }
    let failures = host.proxy().metric("kubeproxy_sync_proxy_rules_iptables_restore_failures_total")?;
    assert_eq!(failures, 0.0);
    Ok(())
}

#[test]
fn cleanup_after_nftables_leaves_the_host_as_it_was() -> Result<(), LabError> {
    a_clean_host("ops-clean-nft", "nftables", "nft")
}

#[test]
fn cleanup_after_iptables_leaves_the_host_as_it_was() -> Result<(), LabError> {
    a_clean_host("ops-clean-ipt", "iptables", "nft")
}

#[test]
fn cleanup_after_iptables_legacy_leaves_the_host_as_it_was() -> Result<(), LabError> {
    a_clean_host("ops-clean-legacy", "iptables", "legacy")
}

/// A weft whose iptables has no match for SCTP, as where the kernel was built without it.
fn without_sctp(dir: &Path) -> PathBuf {
    let script = "cp /usr/lib/*/xtables/*.so $0; rm $0/libxt_sctp.so
        echo \"#!/bin/sh\nexport XTABLES_LIBDIR=$0\nexec $1 \\\"\\$@\\\"\" > $0/weft; chmod +x $0/weft";
    let made = Command::new("sh").args(["-ec", script]).arg(dir).arg(WEFT).output();
    let made = made.expect("a shell");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    dir.join("weft")
}

fn what_iptables_lacks(story: &str, programs: &str) -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::new(story).weft(without_sctp(dir.path())).hosts(["ash"]).etcd_members(0).without_daemons();
    let lab = lab.proxies(["--mode=iptables"]).up()?;
    let ash = lab.host("ash");
    // A mode stays with the programs that have rules already.
    ash.run(format!("iptables-{programs} -A INPUT -j ACCEPT")).ok()?;
    let of = |name: &str, ip: &str, protocol: &str, port: u16| {
        let ports = json!([{"name": "p", "port": port, "protocol": protocol}]);
        let ends = [endpoint([10, 42, 1, 5].into(), "ash")];
        let to = json!([{"name": "p", "port": 8080, "protocol": protocol}]);
        [
            service(name, json!({"clusterIP": ip, "ports": ports})),
            slice(&format!("{name}-1"), name, to, &ends),
        ]
    };
    lab.manifests().write(&of("web", "10.96.0.10", "TCP", 80))?;
    lab.manifests().write(&of("calls", "10.96.0.11", "SCTP", 3868))?;
    ash.proxy().start()?;
    let rules = || ash.run(format!("iptables-{programs}-save")).ok();
    let loaded = rules()?;
    assert!(loaded.contains("default/web:p") && !loaded.contains("default/calls:p"), "{loaded}");
    let line = "service default/calls:p is left out: this host's iptables has no match `sctp`";
    assert_eq!(ash.proxy().log().matches(line).count(), 1, "{}", ash.proxy().log());
    // Nor does one that comes later keep the others waiting.
    lab.manifests().apply(&of("more-calls", "10.96.0.12", "SCTP", 3868))?;
    lab.manifests().apply(&of("shop", "10.96.0.13", "TCP", 80))?;
    within(SOON, || ash.proxy().as_planned());
    let changed = rules()?;
    assert!(changed.contains("default/shop:p") && !changed.contains("default/more-calls:p"), "{changed}");
    lab.down()
}

#[test]
fn a_service_that_iptables_cannot_do_keeps_no_other_one_out() -> Result<(), LabError> {
    what_iptables_lacks("ops-lacks-nft", "nft")?;
    what_iptables_lacks("ops-lacks-legacy", "legacy")
}

#[test]
fn cleanup_after_the_userspace_mode_leaves_the_host_as_it_was() -> Result<(), LabError> {
    a_clean_host("ops-clean-user", "userspace", "nft")
}

#[test]
fn an_operator_is_told_what_is_so() -> Result<(), LabError> {
    let lab = Lab::new("ops-told").weft(WEFT).hosts(["ash"]).etcd_members(0).without_daemons();
    let lab = lab.proxies(["--service-cidrs=10.96.0.0/16,fd96::/64"]).up()?;
    let ash = lab.host("ash");
    let none = weft(&ash, "services", &[]);
    assert!(none.stderr.contains("no proxy runs on this host"), "{none:?}");
    objects(&lab)?;
    ash.proxy().start()?;
    within(SOON, || ash.proxy().as_planned());

    for (metric, expected) in [
        ("service_changes_total", 2.0),
        ("service_changes_pending", 0.0),
        ("endpoint_changes_total", 1.0),
        ("endpoint_changes_pending", 0.0),
        ("no_local_endpoints_total", 0.0),
    ] {
        let found = ash.proxy().metric(&format!("kubeproxy_sync_proxy_rules_{metric}"))?;
        assert_eq!(found, expected, "{metric}");
    }
    let queued = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"}";
    assert!(ash.proxy().metric(queued)? > 1e9);

    let listed = weft(&ash, "services", &[]).ok()?;
    assert!(
        listed.contains(
            "default/web:http  tcp       IPv4    10.96.0.10:80 *:30080  2          0      random, kept 3h"
        ),
        "{listed}"
    );
    let one = weft(&ash, "services", &["default/web"]).ok()?;
    assert!(one.contains("endpoints: 10.42.1.5:8080, 10.42.2.5:8080"), "{one}");
    let json: Value = serde_json::from_str(&weft(&ash, "services", &["-o", "json"]).ok()?).expect("JSON");
    assert_eq!(json["services"].as_array().map(Vec::len), Some(2));
    assert!(!weft(&ash, "services", &["default/nobody"]).success());

    let said = weft(&ash, "explain", &["10.42.9.9", "10.96.0.10:80"]).ok()?;
    for wanted in [
        "service   default/web:http",
        "policy    internalTrafficPolicy Cluster",
        "10.42.1.5:8080 (50.0 %), on ash",
        "set addresses4: 10.96.0.10 . tcp . 80 : ",
        "chain to4.address-id-sticky10800-2",
        "agrees    yes: the kernel holds all of that",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let rejected = weft(&ash, "explain", &["10.42.9.9", "10.96.0.11:80"]).ok()?;
    assert!(
        rejected.contains("outcome   rejected") && rejected.contains("set refused-addresses4"),
        "{rejected}"
    );

    // A client that has an endpoint keeps it, and is told so.
    ash.run("timeout 2 bash -c '</dev/tcp/10.96.0.10/80' || true").ok()?;
    let own = ash.run("ip -4 -o address show eth0 | awk '{print $4}' | cut -d/ -f1").ok()?;
    within(SOON, || {
        let said =
            weft(&ash, "explain", &[own.trim(), "10.96.0.10:80"]).ok().map_err(|error| error.to_string())?;
        if said.contains("by session affinity") && said.contains("(100.0 %)") { Ok(()) } else { Err(said) }
    });

    let clean = weft(&ash, "diff", &[]);
    assert!(clean.success() && clean.stderr.contains("the kernel holds what it should"), "{clean:?}");
    lab.down()
}

/// Nobody scrapes between the connections and their endpoint's end.
#[test]
fn what_an_endpoint_got_up_to_its_end_is_counted() -> Result<(), LabError> {
    let lab = Lab::new("ops-counted").weft(WEFT).hosts(["ash"]).etcd_members(0).without_daemons();
    let lab = lab.proxies(["--service-cidrs=10.96.0.0/16", "--connection-metrics"]).up()?;
    let ash = lab.host("ash");
    let server = ash.server_at(0, "one")?;
    ash.proxy().start()?;
    let to = SocketAddr::from(([10, 96, 0, 10], 80));
    let with = |ends: &[Value]| slice("web-1", "web", json!([{"port": server.port()}]), ends);
    let web = service("web", json!({"clusterIP": to.ip(), "ports": [{"port": to.port()}]}));
    lab.manifests().apply(&[web, with(&[endpoint(ash.v4().into(), "ash")])])?;
    let answers = ash.asks_often(to, Protocol::Tcp, SOON, 7);
    assert_eq!(answers.by_server.get("one"), Some(&7), "{answers:?}");
    lab.manifests().apply(&[with(&[])])?;
    let counted = r#"weft_proxy_service_connections_total{namespace="default",service="web""#;
    within(SOON, || match ash.proxy().metric(counted) {
        Ok(7.0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.down()
}

/// The titles of the doctor's findings that are worse than ok.
fn wrong(host: &Host, further: &[&str]) -> Vec<String> {
    let said = on_disk(host, "doctor", &[&["--output=json"], further].concat());
    let found: Vec<Value> = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    let wrong = found.iter().filter(|finding| finding["severity"] != "ok");
    wrong.map(|finding| finding["title"].as_str().unwrap_or_default().to_owned()).collect()
}

fn finds(host: &Host, wanted: &str) {
    within(SOON, || {
        let titles = wrong(host, &[]);
        if titles.iter().any(|title| title.contains(wanted)) {
            Ok(())
        } else {
            Err(format!("{wanted}: {titles:#?}"))
        }
    });
}

#[test]
fn the_doctor_finds_what_is_wrong_with_services() -> Result<(), LabError> {
    let lab = Lab::new("ops-doctor").weft(WEFT).hosts(["ash"]).etcd_members(0).without_daemons();
    let lab = lab.proxies(["--service-cidrs=10.96.0.0/16,fd96::/64"]).up()?;
    let ash = lab.host("ash");
    assert_eq!(wrong(&ash, &["--only=proxy"]), [""; 0]);
    objects(&lab)?;
    ash.proxy().start()?;
    within(SOON, || ash.proxy().as_planned());
    within(SOON, || {
        let titles = wrong(&ash, &[]);
        if titles == ["no endpoint is ready of default/late, default/web:http"] {
            Ok(())
        } else {
            Err(format!("{titles:#?}"))
        }
    });
    ash.run("nft add table ip kube-proxy").ok()?;
    finds(&ash, "kube-proxy's rules are here too: nftables table ip kube-proxy");
    ash.run("nft delete table ip kube-proxy; iptables-nft -t nat -N KUBE-SERVICES").ok()?;
    finds(&ash, "kube-proxy's rules are here too: 1 chains that iptables-nft-save lists");
    ash.run("iptables-nft -t nat -X KUBE-SERVICES; sysctl -qw net.ipv4.conf.all.route_localnet=1").ok()?;
    finds(&ash, "net.ipv4.conf.all.route_localnet is 1");
    ash.run("sysctl -qw net.ipv4.conf.all.route_localnet=0 net.ipv4.ip_local_port_range='1024 65000'")
        .ok()?;
    finds(&ash, "outgoing connections may take node ports: 30080/tcp (default/web:http)");
    ash.proxy().kill()?;
    finds(&ash, "the proxy's rules are still in force: nftables table inet weft-proxy");
    ash.proxy().launch_with(&["--node-name=elm"])?;
    ash.proxy().wait_until_ready(SOON)?;
    finds(&ash, "nothing that is declared speaks of a node `elm`");
    lab.down()
}
