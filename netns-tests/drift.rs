//! Somebody changes what the daemon keeps in the kernel. It is put right within a second, by events
//! and not by a timer, traffic resumes, and what belongs to others is left alone.
//!
//! Each test prints a table of the times (`cargo test -p weft --test drift -- --nocapture`).

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use weft_lab::traffic::Endpoint;
use weft_lab::{Host, Lab, LabError, Pod, throughout, within};

/// The promise: from the fault to the first packet that gets through.
const HEALED: Duration = Duration::from_secs(1);
/// For everything that is not the promise.
const SOON: Duration = Duration::from_secs(30);

/// The slow timer is switched off as good as, so that only events can be what heals.
const NO_TIMER: [&str; 1] = ["--iptables-resync=3600"];

/// Two hosts, one pod each, and things of somebody else beside weft's on the first.
struct Scene {
    lab: Lab,
    ash: Host,
    client: Pod,
    server: Pod,
    foreign: String,
    table: String,
}

impl Scene {
    fn new(story: &str, config: &str) -> Result<Self, LabError> {
        let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
        let lab = Lab::new(story).weft(weft).hosts(["ash", "birch"]).network(config);
        let lab = lab.overlay_args(NO_TIMER).up()?;
        let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
        let ash = lab.host("ash");
        ash.run(FOREIGN).ok()?;
        let mut scene = Self { ash, lab, client, server, foreign: String::new(), table: String::new() };
        within(SOON, || scene.everything_is_reached(SOON));
        within(SOON, || scene.ash.as_planned());
        scene.foreign = scene.foreign_things();
        Ok(scene)
    }

    /// What goes wrong, and by which command; `BIRCH_MAC` and `BIRCH_NET` in it are the peer's.
    #[track_caller]
    fn fault(&mut self, what: &str, command: &str) {
        let heals = self.ash.metric("weft_overlay_heals_total").expect("metrics");
        self.disturb(what, command);
        within(HEALED, || match self.ash.metric("weft_overlay_heals_total") {
            Ok(now) if now > heals => Ok(()),
            other => Err(format!("{what}: heals were {heals}, are {other:?}")),
        });
    }

    /// As [`Scene::fault`], where it is not the daemon that had something to put right.
    #[track_caller]
    fn disturb(&mut self, what: &str, command: &str) {
        let start = Instant::now();
        self.ash.run(self.filled(command)).ok().unwrap_or_else(|error| panic!("{what}: {error}"));
        let took = match self.everything_is_reached(HEALED.saturating_sub(start.elapsed())) {
            Ok(at) => at - start,
            Err(error) => panic!("{what}: {error}"),
        };
        let _ = writeln!(self.table, "| {what} | {} ms |", took.as_millis());
        within(HEALED, || self.ash.as_planned());
        assert_eq!(self.foreign_things(), self.foreign, "{what}: foreign things were touched");
    }

    /// Cables and addresses: counted from when the hosts themselves reach each other again. The
    /// kernel takes up to a second to see a carrier, and IPv6 addresses and routes are gone with
    /// the link: who manages the host's network sets them again, `BACK`.
    #[track_caller]
    fn reconfigured(&mut self, what: &str, command: &str) {
        let (v4, v6) = (self.ash.v4(), self.ash.v6());
        let gateway6 = format!("{}1", v6.to_string().trim_end_matches(|c: char| c != ':'));
        let back = format!(
            "ip address replace {v6}/64 dev eth0 nodad; ip route replace default via {}; \
             ip -6 route replace default via {gateway6}",
            self.ash.gateway()
        );
        let command = command.replace("BACK", &back).replace("V4", &format!("{v4}/24"));
        self.ash.run(command).ok().unwrap_or_else(|error| panic!("{what}: {error}"));
        let birch = self.lab.host("birch");
        within(SOON, || self.ash.reaches(&birch));
        within(SOON, || self.ash.reaches(Endpoint::new(&birch, birch.v6())));
        self.disturb(&format!("{what}, from when the hosts reach each other"), "true");
    }

    fn filled(&self, command: &str) -> String {
        let birch = self.lab.host("birch");
        let subnet = birch.subnet().expect("leased");
        let mac = birch.run("cat /sys/class/net/weft.1/address").stdout;
        let pod = self.ash.run("ip -o link show type veth | grep -o 'weft[^@:]*@' | head -1").stdout;
        command
            .replace("BIRCH_MAC", mac.trim())
            .replace("BIRCH_NET", &subnet.to_string())
            .replace("BIRCH_VTEP", &subnet.ip().to_string())
            .replace("BIRCH", &birch.v4().to_string())
            .replace("POD_LINK", pod.trim().trim_end_matches('@'))
            .replace("POD", &self.client.ip().to_string())
    }

    /// Pings of every family, sent from now on, are answered in time; says when.
    fn everything_is_reached(&self, limit: Duration) -> Result<Instant, String> {
        let targets: Vec<Endpoint> =
            self.server.addresses().iter().map(|address| Endpoint::new(&self.server, *address)).collect();
        let pings: Result<Vec<_>, _> =
            targets.iter().map(|target| self.client.pinger(target, Duration::from_millis(5))).collect();
        let pings = pings.map_err(|error| error.to_string())?;
        let answered = || pings.iter().all(|ping| ping.so_far().received > 0);
        weft_lab::wait_for(limit, answered).map(|()| Instant::now()).map_err(|error| {
            let seen: Vec<String> = pings
                .iter()
                .zip(&targets)
                .map(|(ping, to)| format!("{}: {:?}", to.address, ping.so_far()))
                .collect();
            format!("{error}: {seen:?}; drift: {:?}", self.ash.drift())
        })
    }

    fn foreign_things(&self) -> String {
        self.ash.run(FOREIGN_SHOWN).ok().expect("foreign things are listed")
    }

    fn end(self) -> Result<(), LabError> {
        println!("| fault | healed after |\n|---|---|\n{}", self.table);
        assert!(self.ash.overlay().is_some(), "the daemon never ended");
        self.lab.down()
    }
}

/// Somebody else's link with a route, a neighbour, an FDB entry, and a routing table.
const FOREIGN: &str = "ip link add other0 type veth peer name other1 && ip link set other0 up && \
    ip link set other1 up && ip address add 10.42.255.1/30 dev other0 && \
    ip route add 10.99.0.0/24 via 10.42.255.2 dev other0 && \
    ip route add 10.42.254.0/24 via 10.42.255.2 dev other0 proto static && \
    ip route add 10.98.0.0/24 dev other0 table 100 && ip rule add to 10.98.0.0/24 table 100 && \
    ip neigh add 10.42.255.2 lladdr 02:00:00:00:00:77 dev other0 nud permanent && \
    ip link add vxother type vxlan id 99 dstport 4790 && ip link set vxother up && \
    bridge fdb append 02:00:00:00:00:78 dev vxother dst 192.0.2.99 self permanent";
const FOREIGN_SHOWN: &str = "ip -4 route show dev other0; ip route show table 100; ip rule; \
    ip neigh show dev other0 nud permanent; bridge fdb show dev vxother; ip -4 -o address show dev other0";
const FOREIGN_TABLE: &str =
    "table ip others { chain c { type filter hook input priority 7; policy accept; }; }";

/// The foreign things are in 10.42.254.0 and 10.42.255.0, which no host leases by chance.
const DUAL_STACK: &str = r#"{"Network":"10.42.0.0/16","SubnetMax":"10.42.199.0","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#;

#[test]
fn vxlan_drift_heals_within_a_second() -> Result<(), LabError> {
    let mut scene = Scene::new("drift-vxlan", DUAL_STACK)?;
    scene.fault("VXLAN link deleted", "ip link delete weft.1");
    scene.fault("IPv6 VXLAN link deleted", "ip link delete weft-v6.1");
    scene.fault("VXLAN link down", "ip link set weft.1 down");
    scene.fault("VXLAN link renamed", "ip link set weft.1 name stolen");
    scene.fault("VTEP address deleted", "ip address flush dev weft.1");
    scene.fault("VXLAN link's MAC changed", "ip link set weft.1 address 02:00:00:00:00:01");
    scene.fault("VXLAN link's MTU changed", "ip link set weft.1 mtu 1280");
    scene.fault("route deleted", "ip route del BIRCH_NET");
    scene.fault("route changed", "ip route replace BIRCH_NET dev lo proto 87");
    scene.fault("all our routes flushed", "ip route flush proto 87");
    scene.fault("all our IPv6 routes flushed", "ip -6 route flush proto 87");
    scene.fault("neighbour deleted", "ip neigh del BIRCH_VTEP dev weft.1");
    scene.fault(
        "neighbour changed",
        "ip neigh replace BIRCH_VTEP lladdr 02:00:00:00:00:02 dev weft.1 nud permanent",
    );
    scene.fault("FDB entry deleted", "bridge fdb del BIRCH_MAC dev weft.1");
    scene.fault("FDB entry changed", "bridge fdb replace BIRCH_MAC dev weft.1 dst 192.0.2.99 self permanent");
    scene.disturb("forwarding switched off", "echo 0 >/proc/sys/net/ipv4/ip_forward");
    scene.disturb("IPv6 forwarding switched off", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding");
    scene.fault("pod's route deleted", "ip route del POD");
    scene.fault("pod's neighbour deleted", "ip neigh del POD dev POD_LINK");
    scene.fault("pod's link down", "ip link set POD_LINK down");
    scene.fault("one nftables rule deleted", "nft flush chain inet weft-weft untracked-out");
    scene.fault("nftables table deleted", "nft delete table inet weft-weft");
    scene.fault("`nft flush ruleset`", "nft flush ruleset");
    scene.end()
}

/// Cables, and the MTU of the underlay: the plan itself changes.
#[test]
fn the_underlay_s_changes_are_followed() -> Result<(), LabError> {
    let mut scene = Scene::new("drift-underlay", DUAL_STACK)?;
    let (ash, birch) = (scene.ash.clone(), scene.lab.host("birch"));
    let mtu =
        |host: &Host, link: &str| host.run(format!("cat /sys/class/net/{link}/mtu")).stdout.trim().to_owned();
    assert_eq!((mtu(&ash, "weft.1"), mtu(&ash, "weft-v6.1")), ("1450".into(), "1430".into()));
    for host in [&ash, &birch] {
        host.run("nft add table ip others").ok()?;
        host.set_mtu(1400)?;
    }
    for host in [&ash, &birch] {
        within(HEALED, || {
            let now = (mtu(host, "weft.1"), mtu(host, "weft-v6.1"));
            if now == ("1350".into(), "1330".into()) { Ok(()) } else { Err(format!("{now:?}")) }
        });
        // A file on a disk, which may be busy; no packet waits for it.
        within(SOON, || match host.subnet_env() {
            Ok(told) if told.get("FLANNEL_MTU").is_some_and(|mtu| mtu == "1330") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    within(HEALED, || scene.everything_is_reached(HEALED));
    scene.client.run(format!("ping -n -c 1 -W 2 -M do -s {} {}", 1330 - 28, scene.server.ip())).ok()?;

    scene.reconfigured("eth0 down and up", "ip link set eth0 down; ip link set eth0 up; BACK");
    scene.reconfigured(
        "eth0's addresses deleted",
        "ip address flush dev eth0; ip address add V4 dev eth0; BACK",
    );
    scene.reconfigured("eth0's MTU changed", "ip link set eth0 mtu 1300; ip link set eth0 mtu 1400");
    scene.end()
}

/// Plain routes die with their link, and the kernel does not bring them back.
#[test]
fn lost_direct_routes_come_back() -> Result<(), LabError> {
    for (story, backend) in [
        ("drift-host-gw", r#"{"Type":"host-gw"}"#),
        ("drift-direct", r#"{"Type":"vxlan","DirectRouting":true}"#),
    ] {
        let config = format!(r#"{{"Network":"10.42.0.0/16","SubnetMax":"10.42.199.0","Backend":{backend}}}"#);
        let mut scene = Scene::new(story, &config)?;
        let name = &story["drift-".len()..];
        scene.fault(&format!("{name}: route deleted"), "ip route del BIRCH_NET");
        scene.reconfigured(
            &format!("{name}: eth0 down and up"),
            "ip link set eth0 down; ip link set eth0 up; BACK",
        );
        scene.fault(
            &format!("{name}: route to a wrong host"),
            "ip route replace BIRCH_NET via 192.0.2.250 dev eth0 proto 87",
        );
        scene.end()?;
    }
    Ok(())
}

#[test]
fn the_userspace_tunnel_s_drift_heals_within_a_second() -> Result<(), LabError> {
    let config = r#"{"Network":"10.42.0.0/16","SubnetMax":"10.42.199.0","Backend":{"Type":"udp"}}"#;
    let mut scene = Scene::new("drift-udp", config)?;
    let tun = scene.ash.run("ip -o link show | grep -o 'weft-udp[^:@]*'").ok()?;
    let tun = tun.trim();
    scene.fault("TUN deleted", &format!("ip link delete {tun}"));
    scene.fault("TUN down", &format!("ip link set {tun} down"));
    scene.fault("TUN's address deleted", &format!("ip address flush dev {tun}"));
    scene.fault("TUN's MTU changed", &format!("ip link set {tun} mtu 1280"));
    scene.fault("udp: route deleted", "ip route del BIRCH_NET");
    scene.fault("udp: `nft flush ruleset`", "nft flush ruleset");
    scene.end()
}

/// A table of another program's stays as it is while ours is mended.
#[test]
fn other_tables_are_left_alone_and_a_quiet_host_changes_nothing() -> Result<(), LabError> {
    let scene = Scene::new("drift-foreign", DUAL_STACK)?;
    let ash = &scene.ash;
    ash.run_with_stdin(&["nft", "-f", "-"], FOREIGN_TABLE.as_bytes()).ok()?;
    let others = || ash.run("nft list table ip others").stdout;
    let before = others();
    // Its chains: addresses that the kernel makes by itself come into the sets a second later.
    let table = || {
        let text = ash.run("nft -s list table inet weft-weft").stdout;
        text.split_once("\tchain ").map(|(_, chains)| chains.to_owned())
    };
    let ours = table();
    ash.run("nft delete table inet weft-weft").ok()?;
    assert!(ours.is_some());
    within(HEALED, || if table() == ours { Ok(()) } else { Err(format!("{:?}", table())) });
    assert_eq!(others(), before);
    // Nothing happens, so nothing is put right: the daemon does not argue with itself or the kernel.
    within(SOON, || scene.ash.as_planned());
    let heals = ash.metric("weft_overlay_heals_total")?;
    throughout(Duration::from_secs(2), || {
        ash.metric("weft_overlay_heals_total").is_ok_and(|now| now.to_bits() == heals.to_bits())
    });
    scene.end()
}

/// What the plugin is about to make is nobody's damage: pods come and go, and nothing is healed.
#[test]
fn an_attachment_is_not_a_heal() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new("no-heal").weft(weft).hosts(["ash"]).overlay_args(NO_TIMER).up()?;
    let ash = lab.host("ash");
    let heals = || ash.metric("weft_overlay_heals_total{kind=\"pod\"");
    let first = ash.new_pod()?;
    for _ in 0..10 {
        let second = ash.new_pod()?;
        within(SOON, || first.reaches(&second));
        second.remove()?;
    }
    within(SOON, || ash.as_planned());
    assert_eq!(heals()?.to_bits(), 0f64.to_bits(), "{}", ash.log());
    ash.run(format!("ip route del {}", first.ip())).ok()?;
    within(HEALED, || heals().is_ok_and(|heals| heals > 0.5));
    lab.down()
}
