//! What cleanup takes and what it leaves: a table for routes, and a whole host in a namespace.

use std::process::Command;

use ipnetwork::IpNetwork;
use weft_daemon::settings::Setting;
use weft_kernel::net::{Change, Proxy, Route, RouteKey, RouteKind, State};
use weft_kernel::netns::{NetNs, run_in};

use super::*;
use crate::fixtures::{name, net, plain_link, vxlan_link};
use crate::plan::{MAIN_TABLE, ROUTE_PROTOCOL};

fn route(dst: &str, link: Option<&str>) -> Route {
    Route {
        key: RouteKey { table: MAIN_TABLE, dst: net(dst), metric: 0 },
        kind: if link.is_some() { RouteKind::Unicast } else { RouteKind::Blackhole },
        protocol: ROUTE_PROTOCOL,
        via: None,
        link: link.map(name),
        onlink: false,
        src: None,
        mtu: None,
    }
}

#[test]
fn whose_a_route_is() {
    let known = || Trail {
        network: "blue".into(),
        ranges: ["10.42.0.0/16", "fd00:42::/48"].map(net).into(),
        is_last: true,
        ..Trail::default()
    };
    let beside_others = || Trail { is_last: false, ..known() };
    let unknown = || Trail { ranges: [].into(), ..beside_others() };
    let foreign = |route: Route| Route { protocol: 4, ..route };
    let other_table =
        |route: Route| Route { key: RouteKey { table: 7, ..route.key.clone() }, ..route.clone() };
    let table = [
        // case, trail, route, goes, is left with a word
        (
            "a peer's subnet by the underlay",
            beside_others(),
            route("10.42.1.0/24", Some("eth0")),
            true,
            false,
        ),
        ("our own subnet's blackhole", beside_others(), route("10.42.7.0/24", None), true, false),
        ("the same in IPv6", beside_others(), route("fd00:42:0:7::/64", None), true, false),
        ("another network's range", beside_others(), route("10.43.1.0/24", Some("eth0")), false, false),
        ("outside, but nobody else is here", known(), route("10.43.1.0/24", Some("eth0")), true, false),
        ("nobody knows whose", unknown(), route("10.42.1.0/24", Some("eth0")), false, true),
        ("no mark", known(), foreign(route("10.42.1.0/24", Some("eth0"))), false, false),
        ("another table", known(), other_table(route("10.42.1.0/24", Some("eth0"))), false, false),
        ("goes with our link", known(), route("10.42.1.0/24", Some("weft.1")), false, false),
        ("another network's link", known(), route("10.42.1.0/24", Some("weft.2")), false, false),
    ];
    for (case, trail, route, goes, left) in table {
        let mut observed = State::default();
        let links = [
            plain_link("eth0", 2),
            vxlan_link("weft.1", 1, Some("weft:blue:vxlan")),
            vxlan_link("weft.2", 2, Some("weft:green:vxlan")),
        ];
        observed.links = links.into_iter().map(|link| (link.name.clone(), link)).collect();
        observed.routes.insert(route.key.clone(), route.clone());
        let doomed = doomed(&trail, &observed);
        assert_eq!(doomed.changes.contains(&Change::DeleteRoute(route)), goes, "{case}");
        assert_eq!(!doomed.left.is_empty(), left, "{case}");
        assert!(doomed.changes.contains(&Change::DeleteLink(name("weft.1"))), "{case}");
        assert!(!doomed.changes.contains(&Change::DeleteLink(name("weft.2"))), "{case}");
    }
}

#[test]
fn answers_for_pods_end_and_others_stay() {
    let proxy = |addr: &str, protocol| Proxy { link: name("docker0"), addr: addr.parse().unwrap(), protocol };
    let (ours, others) = (proxy("fd00:42:0:7::9", 87), [proxy("fd00:42:0:7::8", 0), proxy("fd43::9", 87)]);
    let proxies = others.iter().chain([&ours]).cloned().collect();
    let trail = Trail { ranges: [net("fd00:42::/40")].into(), ..Trail::default() };
    let doomed = doomed(&trail, &State { proxies, ..State::default() });
    assert_eq!(doomed.changes, [Change::DeleteProxy(ours)]);
}

#[test]
fn a_subnet_file_is_ours_by_its_words() {
    let trail = Trail {
        ranges: [net("10.42.0.0/16")].into(),
        subnets: ["10.43.7.0".parse().unwrap()].into(),
        ..Trail::default()
    };
    for (text, ours) in [
        ("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n", true),
        ("FLANNEL_SUBNET=10.43.7.1/24\n", true),
        ("FLANNEL_NETWORK=10.42.0.0/17\nFLANNEL_SUBNET=10.42.7.1/24\n", false),
        ("", false),
    ] {
        assert_eq!(trail.wrote(text), ours, "{text}");
    }
}

#[test]
fn a_network_whose_name_begins_with_ours_is_another() {
    let trail = Trail { network: "blue".into(), ..Trail::default() };
    for (alias, ours) in
        [("weft:blue:vxlan", true), ("weft:blue2:vxlan", false), ("weft:blue", false), ("blue:", false)]
    {
        assert_eq!(trail.owns(&vxlan_link("weft.1", 1, Some(alias))), ours, "{alias}");
    }
}

/// Runs a script in the namespace of this thread.
#[track_caller]
fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// All that a host holds, as far as a network could have changed it.
fn dump() -> String {
    sh("ip -d link; ip address; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule
        ip neigh show nud permanent; bridge fdb; nft -s list ruleset; for set in iptables-nft iptables-legacy; do $set-save | sed 's/ *\\[.*//; /^#/d'; done
        sysctl -a --pattern '^net\\.ipv[46]\\.(conf|neigh|ip_forward)' 2>/dev/null")
}

/// The lines that only one of two dumps has.
#[track_caller]
fn assert_same(before: &str, after: &str) {
    let only = |a: &str, b: &str| {
        let other: std::collections::BTreeSet<&str> = b.lines().collect();
        a.lines().filter(|line| !other.contains(line)).collect::<Vec<_>>().join("\n")
    };
    assert!(before == after, "gone:\n{}\nnew:\n{}", only(before, after), only(after, before));
}

struct Host {
    dir: tempfile::TempDir,
    ns: NetNs,
}

impl Host {
    /// A host with an uplink, a VXLAN link, a packet filter and another weft network of its own.
    fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap(), ns: NetNs::anonymous().unwrap() };
        run_in(&host.ns, || {
            sh("ip link set lo up; sysctl -qw net.ipv6.conf.default.addr_gen_mode=1
                ip link add up0 type veth peer name up1
                ip link set up0 up; ip link set up1 up; ip address add 192.0.2.7/24 dev up0
                ip route add 10.42.200.0/24 via 192.0.2.9
                ip link add own0 type vxlan id 9 dstport 4789 local 192.0.2.7
                ip link add weft.8 type vxlan id 8 dstport 8472 local 192.0.2.7
                ip link set weft.8 alias weft:green:vxlan; ip link set weft.8 up
                ip route add 10.43.1.0/24 via 192.0.2.9 proto 87
                nft add table inet own; nft add table inet weft-green
                iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -s 10.9.0.0/16 -j ACCEPT
                iptables-legacy -A FORWARD -m comment --comment weft:green -j ACCEPT")
        })
        .unwrap();
        std::fs::create_dir_all(host.dir.path().join("state/green")).unwrap();
        host
    }

    fn traces(&self) -> Traces {
        Traces {
            network: "blue".parse().unwrap(),
            run_dir: self.dir.path().join("run"),
            state_dir: self.dir.path().join("state"),
            subnet_file: self.dir.path().join("flannel/subnet.env"),
            give_back_flannel: false,
        }
    }

    /// All that a daemon of network `blue` leaves when it stops.
    fn has_run_weft(&self) {
        let traces = self.traces();
        let (run, state) = (traces.run_dir.join("blue"), traces.state_dir.join("blue"));
        for dir in [&run, &state.join("pods"), &self.dir.path().join("flannel")] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
        write(&traces.subnet_file, "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n");
        write(&run.join("attach.json"), "{}");
        write(&state.join("pods/c1.json"), "{}");
        let config = r#"{\"Network\":\"10.42.0.0/16\"}"#;
        let entry = format!(r#"{{"value":"{config}","mod_revision":2}}"#);
        let cache = format!(
            r#"{{"version":1,"prefix":"/n","cluster":7,"revision":9,"entries":{{"/n/config":{entry}}}}}"#
        );
        write(&state.join("cache.json"), &cache);
        run_in(&self.ns, || {
            let setting = |path: &str| Setting::new(path, "1");
            let wanted = [setting("net/ipv4/ip_forward"), setting("net/ipv6/conf/all/forwarding")];
            assert_eq!(Settings::new(&state).apply(&wanted).unwrap(), 2);
            sh("ip link add weft.7 address 4e:11:00:00:00:07 type vxlan id 7 dstport 8472 local 192.0.2.7
                ip link set weft.7 alias weft:blue:vxlan; ip link set weft.7 up
                ip address add 10.42.7.0/32 dev weft.7
                ip neigh add 10.42.1.0 lladdr 4e:11:00:00:00:01 dev weft.7 nud permanent
                bridge fdb add 4e:11:00:00:00:01 dev weft.7 dst 192.0.2.1
                ip route add 10.42.1.0/24 via 10.42.1.0 dev weft.7 onlink proto 87
                ip route add 10.42.2.0/24 via 192.0.2.8 proto 87
                ip route add blackhole 10.42.7.0/24 metric 100000 proto 87
                ip -6 route add blackhole fd00:42::/64 proto 87
                ip tuntap add weft-udp mode tun; ip link set weft-udp alias weft:blue:udp
                ip link add weft-br type bridge; ip link set weft-br alias weft:blue:bridge
                ip link add weftpod type veth peer name inside; ip link set weftpod alias weft:blue:pod:c1
                ip link set weftpod master weft-br; ip link set weftpod up; ip link set weft-br up
                nft add table inet weft-blue; nft add chain inet weft-blue x
                nft add rule inet weft-blue x counter drop
                for set in nft legacy; do
                    iptables-$set -A FORWARD -s 10.42.0.0/16 -m comment --comment weft:blue -j ACCEPT
                done")
        })
        .unwrap();
    }

    fn files(&self) -> String {
        let dir = self.dir.path().display().to_string();
        sh(&format!("find {dir}")).replace(&dir, "")
    }

    fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        run_in(&self.ns, act).unwrap()
    }
}

#[test]
fn nothing_is_left_and_nothing_of_others_is_touched() {
    let host = Host::new();
    // IPv6's blackhole is outside of the known ranges, and the other network could have made it.
    host.inside(|| sh("ip -6 route add blackhole fd00:42::/64 proto 87"));
    let (before, files) = (host.inside(dump), host.files());
    host.inside(|| sh("ip -6 route del blackhole fd00:42::/64"));
    host.has_run_weft();
    assert!(host.inside(dump) != before, "there is something to clean up");
    let report = host.inside(|| cleanup(&host.traces())).unwrap();
    assert_eq!(report.failed, [""; 0]);
    assert_same(&before, &host.inside(dump));
    assert_eq!(host.files(), files, "{report:?}");
    let removed = report.removed.join("\n");
    for part in [
        "link weft.7",
        "link weft-udp",
        "link weft-br",
        "link weftpod",
        "route blackhole 10.42.7.0/24",
        "route 10.42.2.0/24 via 192.0.2.8 dev up0",
        "nftables table inet weft-blue",
        "rules that iptables-nft-save lists",
        "rules that iptables-legacy-save lists",
        "2 kernel settings, put back",
        "/run/blue",
        "/state/blue",
        "/flannel/subnet.env",
    ] {
        assert!(removed.contains(part), "{part} in\n{removed}");
    }
    let again = host.inside(|| cleanup(&host.traces())).unwrap();
    assert_eq!((again.removed, again.failed), (vec![], vec![]), "nothing is left to do");
}

#[test]
fn a_running_daemon_is_not_swept_away() {
    let host = Host::new();
    host.has_run_weft();
    let state =
        || host.inside(|| sh("ip -br link; ip route; nft -s list ruleset; sysctl net.ipv4.ip_forward"));
    let before = (state(), host.files());
    let lock = host.traces().state_dir.join("blue/lock");
    let file = File::create(&lock).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    let error = host.inside(|| cleanup(&host.traces())).unwrap_err();
    let said = format!("`weft overlay` of network blue runs ({} is held); stop it first", lock.display());
    assert_eq!(error.to_string(), said);
    drop(held);
    std::fs::remove_file(&lock).unwrap();
    let socket = host.traces().run_dir.join("blue/overlay.sock");
    let listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(
        host.inside(|| cleanup(&host.traces())).unwrap_err().to_string().contains("overlay.sock answers")
    );
    drop(listening);
    std::fs::remove_file(&socket).unwrap();
    assert_eq!((state(), host.files()), before);
}

#[test]
fn a_flanneld_that_came_back_keeps_its_subnet_file() {
    let host = Host::new();
    host.has_run_weft();
    host.inside(|| sh("ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.7"));
    let report = host.inside(|| cleanup(&host.traces())).unwrap();
    assert!(host.traces().subnet_file.exists());
    assert!(report.left.iter().any(|left| left.contains("flannel.1")), "{report:?}");
    assert!(host.inside(|| sh("ip -br link")).contains("flannel.1"));
}

#[test]
fn what_fails_is_told_and_can_be_tried_again() {
    let host = Host::new();
    host.has_run_weft();
    let settings = host.traces().state_dir.join("blue/settings.json");
    let memory = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, memory.replace("net/ipv4/ip_forward", "no-name")).unwrap();
    let report = host.inside(|| cleanup(&host.traces())).unwrap();
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert!(!host.inside(|| sh("ip -br link")).contains("weft.7"), "the rest was done");
    assert!(settings.exists(), "what settings were is still known");
    std::fs::write(&settings, memory).unwrap();
    assert_eq!(host.inside(|| cleanup(&host.traces())).unwrap().failed, [""; 0]);
    assert_eq!(host.inside(|| sh("sysctl -n net.ipv4.ip_forward")).trim(), "0");
}

#[test]
fn the_last_network_takes_the_shared_traces_along() {
    let host = Host::new();
    host.has_run_weft();
    let (range, dir): (IpNetwork, _) = (net("10.42.0.0/16"), host.traces().state_dir);
    host.inside(|| sh("ip link del weft.8; ip route del 10.43.1.0/24"));
    std::fs::remove_dir(dir.join("green")).unwrap();
    std::fs::write(dir.join("node-id"), "x").unwrap();
    let trail = host.inside(|| Trail::read(&host.traces()));
    assert_eq!((trail.is_last, trail.ranges), (true, [range].into()));
    assert_eq!(host.inside(|| cleanup(&host.traces())).unwrap().failed, [""; 0]);
    assert_eq!(host.files().trim(), "", "the directories too");
    assert!(!host.inside(|| sh("ip -6 route show table all")).contains("blackhole"));
}
