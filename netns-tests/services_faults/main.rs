//! Faults while services are in use: daemons that die and return, rules that somebody deletes, endpoints
//! and other services that come and go. Kept connections go on, and no new one fails where an endpoint
//! was ready.

mod from_kube_proxy;
mod iptables;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_lab::manifests::{endpoint, node, service, slice, terminating};
use weft_lab::traffic::{Answer, Load, LoadReport, Probe, Protocol, Server};
use weft_lab::{Host, Lab, LabError, Manifests, Place, Pod, throughout, wait_for, within};

const SOON: Duration = Duration::from_secs(30);
/// The promise: from the fault until new connections are served again.
const REPAIRED: Duration = Duration::from_secs(1);
/// How many connections each client makes before and after a fault.
const ENOUGH: usize = 30;
/// How often a kept connection says something.
const BEAT: Duration = Duration::from_millis(10);

const NETWORK: &str =
    r#"{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#;
const PROXY: [&str; 3] = [
    "--cluster-cidr=10.42.0.0/16,fd42::/48",
    "--detect-local-mode=ClusterCIDR",
    "--service-cidrs=10.96.0.0/16,fd96::/64",
];
const VIPS: [&str; 2] = ["10.96.0.10", "fd96::10"];
const NODE_PORT: u16 = 30_080;
const PORT: u16 = 8080;

/// Three hosts with a server each behind one service, clients on the first host and outside.
struct Stage {
    lab: Lab,
    servers: Vec<(Pod, Server)>,
    client: Pod,
}

impl Stage {
    fn new(story: &str) -> Result<Self, LabError> {
        Self::with(story, Path::new(env!("CARGO_BIN_EXE_weft")), json!({}))
    }

    fn with(story: &str, weft: &Path, spec: Value) -> Result<Self, LabError> {
        let lab = Lab::new(story).weft(weft).hosts(["ash", "birch", "cedar"]).network(NETWORK);
        let lab = lab.overlay_args(["--ip-masq"]).proxies(PROXY).up()?;
        let client = lab.host("ash").pod("client")?;
        let mut servers = vec![];
        for host in lab.hosts() {
            let pod = host.pod("web")?;
            within(SOON, || client.reaches(&pod).and_then(|()| client.reaches(pod.v6())));
            let server = pod.server_at(PORT, pod.name())?;
            servers.push((pod, server));
        }
        let stage = Self { lab, servers, client };
        stage.manifests().write(&[web(spec)])?;
        stage.declare(&[0, 1, 2])?;
        Ok(stage)
    }

    fn manifests(&self) -> Manifests {
        self.lab.manifests()
    }

    fn ash(&self) -> Host {
        self.lab.host("ash")
    }

    /// The service has these of the servers, in both families.
    fn declare(&self, servers: &[usize]) -> Result<(), LabError> {
        let slices = self.slices(servers, |endpoint, _| endpoint);
        self.manifests().apply(&slices)
    }

    /// A slice for each family, with what `state` makes of each endpoint.
    fn slices(&self, servers: &[usize], state: impl Fn(Value, usize) -> Value) -> [Value; 2] {
        self.slices_of("web", servers, state)
    }

    /// As [`Stage::slices`], for another service of the same servers.
    fn slices_of(
        &self,
        service: &str,
        servers: &[usize],
        state: impl Fn(Value, usize) -> Value,
    ) -> [Value; 2] {
        let ports = json!([
            {"name": "tcp", "protocol": "TCP", "port": PORT},
            {"name": "udp", "protocol": "UDP", "port": PORT},
        ]);
        ["4", "6"].map(|family| {
            let endpoints: Vec<Value> = servers
                .iter()
                .filter_map(|which| Some((self.servers.get(*which)?, *which)))
                .map(|((pod, _), which)| {
                    let address = if family == "6" { pod.ip6() } else { pod.ip() };
                    state(endpoint(address, pod.host().name()), which)
                })
                .collect();
            slice(&format!("{service}-{family}"), service, ports.clone(), &endpoints)
        })
    }

    /// Everything that is reached: by whom, and where.
    fn paths(&self) -> Vec<(Place, SocketAddr)> {
        let ash = self.ash();
        let vips = VIPS.map(|ip| SocketAddr::new(ip.parse().expect("an address"), 80));
        let node_ports = [IpAddr::from(ash.v4()), ash.v6().into()].map(|ip| SocketAddr::new(ip, NODE_PORT));
        let clients: [(Place, &[SocketAddr]); 3] = [
            ((*self.client).clone(), &vips),
            ((*ash).clone(), &vips),
            ((*self.lab.outside()).clone(), &node_ports),
        ];
        clients.into_iter().flat_map(|(place, to)| to.iter().map(move |to| (place.clone(), *to))).collect()
    }

    fn traffic(&self) -> Result<Traffic, LabError> {
        let (mut loads, mut talks) = (vec![], vec![]);
        for (from, to) in self.paths() {
            loads.push(from.load(to, Protocol::Tcp, SOON)?);
            talks.push(from.converse_with(to, BEAT)?.1);
        }
        loads.push(self.client.load(self.paths()[0].1, Protocol::Udp, Duration::from_secs(2))?);
        let traffic = Traffic { loads, talks };
        traffic.goes_on();
        Ok(traffic)
    }

    /// Every path is served again within the time promised. A connection that was begun in between may have
    /// failed. The time runs from the end of `nft`, whose last act is the commit; before that it reads the
    /// whole table, which takes as long as it takes.
    #[track_caller]
    fn served_again(&self, what: &str) {
        let since = Instant::now();
        for (from, to) in self.paths() {
            let left = REPAIRED.saturating_sub(since.elapsed());
            let served = || match from.asks(to, Protocol::Tcp, Duration::from_millis(100)) {
                Answer::From { .. } => Ok(()),
                other => Err(format!("{} -> {to}: {other:?}", from.name())),
            };
            wait_for(left, served).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        println!("| {what} | {} ms |", since.elapsed().as_millis());
    }

    /// Nothing is lost by it: no connection fails, none breaks.
    #[track_caller]
    fn undisturbed_by(
        &self,
        what: &str,
        fault: impl FnOnce() -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        let traffic = self.traffic()?;
        fault()?;
        traffic.goes_on();
        let (count, longest) = traffic.stop_without_failure(what)?;
        println!(
            "| {what} | {count} new connections, 0 failed, the longest took {} ms |",
            longest.as_millis()
        );
        Ok(())
    }
}

impl Stage {
    /// As [`Stage::undisturbed_by`], without connections that are kept all along.
    #[track_caller]
    fn undisturbed_but_for_kept_ones(
        &self,
        what: &str,
        fault: impl FnOnce() -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        let mut traffic = self.traffic()?;
        traffic.talks.clear();
        fault()?;
        traffic.goes_on();
        let (count, longest) = traffic.stop_without_failure(what)?;
        println!(
            "| {what} | {count} new connections, 0 failed, the longest took {} ms |",
            longest.as_millis()
        );
        Ok(())
    }
}

fn web(spec: Value) -> Value {
    service_at("web", &VIPS, NODE_PORT, spec)
}

fn service_at(name: &str, vips: &[&str], node_port: u16, mut spec: Value) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 80, "nodePort": node_port});
    spec["type"] = json!("NodePort");
    spec["clusterIPs"] = json!(vips);
    spec["ports"] = json!([port("tcp", "TCP"), port("udp", "UDP")]);
    service(name, spec)
}

/// New connections over every path, and kept ones.
struct Traffic {
    loads: Vec<Load>,
    talks: Vec<Probe>,
}

impl Traffic {
    /// Every client makes some more connections, and every kept one says more.
    #[track_caller]
    fn goes_on(&self) {
        let progress = || -> Vec<usize> {
            let asked = |report: LoadReport| report.answered() + report.failed.len();
            let said = |probe: &Probe| usize::try_from(probe.so_far().received).unwrap_or(usize::MAX);
            let loads = self.loads.iter().map(|load| asked(load.so_far()));
            loads.chain(self.talks.iter().map(said)).collect()
        };
        let before = progress();
        within(SOON, || {
            let now = progress();
            let enough = before.iter().zip(&now).all(|(before, now)| *now >= before + ENOUGH);
            if enough { Ok(()) } else { Err(format!("from {before:?} to {now:?}; {:?}", self.broken())) }
        });
    }

    /// Kept connections that are no more.
    fn broken(&self) -> Vec<String> {
        self.talks.iter().filter_map(|talk| talk.so_far().broken).collect()
    }

    /// How many new connections there were, and the longest time that one took.
    fn stop_without_failure(self, what: &str) -> Result<(usize, Duration), LabError> {
        let named = |error: LabError| LabError::Traffic { what: format!("{what}: {error}") };
        for talk in self.talks {
            talk.stop_without_loss().map_err(named)?;
        }
        let (mut count, mut longest) = (0, Duration::ZERO);
        for load in self.loads {
            let report = load.stop_without_failure().map_err(named)?;
            count += report.answered();
            longest = longest.max(report.longest);
        }
        Ok((count, longest))
    }
}

/// Stopped, killed, upgraded, or made to load everything anew: nobody notices.
#[test]
fn nothing_is_lost_when_the_daemon_goes_and_comes() -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a directory");
    let weft = dir.path().join("weft");
    let installed = || {
        let next = dir.path().join("next");
        std::fs::copy(env!("CARGO_BIN_EXE_weft"), &next).expect("copied");
        std::fs::rename(&next, &weft).expect("renamed");
    };
    installed();
    let stage = Stage::with("proxy-restart", &weft, json!({}))?;
    let proxy = stage.ash().proxy();
    stage.undisturbed_by("kill -9 and start", || {
        proxy.kill()?;
        proxy.start()
    })?;
    stage.undisturbed_by("stop and start", || {
        assert!(proxy.stop()?, "it leaves when it is asked to");
        proxy.start()
    })?;
    stage.undisturbed_by("upgrade", || {
        installed();
        proxy.restart()
    })?;
    stage.undisturbed_by("kill -9 again and again, while endpoints change", || {
        for servers in [&[0, 1][..], &[1, 2], &[2], &[0, 1, 2]] {
            proxy.kill()?;
            let declared = stage.slices(servers, |endpoint, _| endpoint);
            stage.manifests().write(&declared)?;
            proxy.launch()?;
        }
        proxy.wait_until_ready(SOON)?;
        stage.manifests().programmed()
    })?;
    // Another zone, and there may be other endpoints for everybody: everything is loaded anew.
    stage.undisturbed_by("full resync", || {
        for zone in ["east", "west", "east"] {
            stage.manifests().apply(&[node(&stage.ash(), Some(zone))])?;
        }
        Ok(())
    })?;
    within(SOON, || proxy.as_planned());
    stage.lab.down()
}

/// The userspace mode: while there is no proxy, the kernel leads new connections as the nftables mode
/// does. Those that the old process carries may end in their own time, up to its deadline.
#[test]
fn no_new_connection_is_lost_when_the_userspace_proxy_goes_and_comes() -> Result<(), LabError> {
    let stage = Stage::new("proxy-userspace")?;
    let proxy = stage.ash().proxy();
    let userspace = || {
        proxy.launch_with(&["--mode=userspace", "--drain-timeout=3s"])?;
        proxy.wait_until_ready(SOON)
    };
    let stop = || -> Result<(), LabError> {
        assert!(proxy.stop()?, "it leaves when it is asked to");
        Ok(())
    };
    stage.undisturbed_by("from nftables to userspace", || {
        stop()?;
        userspace()
    })?;
    within(SOON, || proxy.as_planned());
    stage.undisturbed_but_for_kept_ones("stop and start, in userspace mode", || {
        for _ in 0..3 {
            stop()?;
            userspace()?;
        }
        Ok(())
    })?;
    let (from, to) = stage.paths().into_iter().next().expect("a path");
    let kept = from.converse_with(to, BEAT)?.1;
    within(SOON, || if kept.so_far().received > 0 { Ok(()) } else { Err("nothing yet") });
    std::thread::scope(|scope| {
        let stopping = scope.spawn(stop);
        let before = kept.so_far().received;
        within(
            SOON,
            || if kept.so_far().received > before + 100 { Ok(()) } else { Err("it does not go on") },
        );
        assert!(!stopping.is_finished(), "it waits for who it carries");
        stopping.join().expect("no panic")
    })?;
    within(SOON, || kept.so_far().broken.ok_or("it goes on without its proxy"));
    drop(kept);
    stage.served_again("stopped");
    // What is killed tells nobody, and the rules lead to it until there is another one.
    userspace()?;
    proxy.kill()?;
    userspace()?;
    stage.served_again("kill -9 and start, in userspace mode");
    stage.undisturbed_but_for_kept_ones("from userspace to nftables", || {
        stop()?;
        proxy.start()
    })?;
    within(SOON, || proxy.as_planned());
    stage.lab.down()
}

/// Out of descriptors: who cannot be accepted waits, and is served once there are some. A client that has
/// as many connections as it may is reset, until it ends one.
#[test]
fn the_userspace_proxy_runs_short() -> Result<(), LabError> {
    let stage = Stage::new("proxy-short")?;
    let proxy = stage.ash().proxy();
    assert!(proxy.stop()?, "it leaves when it is asked to");
    proxy.launch_with(&["--mode=userspace", "--drain-timeout=1s", "--connections-per-source=20"])?;
    proxy.wait_until_ready(SOON)?;
    let vip = SocketAddr::new(VIPS[0].parse().expect("an address"), 80);
    let connect = || stage.client.tcp_connect(vip);
    // A server says who it is to everybody.
    let greeted = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        stream.read_exact(&mut [0; 1]).map_err(|error| error.kind())
    };
    let mut first = connect()?;
    assert_eq!(greeted(&mut first), Ok(()));

    let pid = proxy.process().expect("it runs").pid;
    let limit = |most: usize| stage.ash().run(format!("prlimit --pid {pid} --nofile={most}:")).ok().map(drop);
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let open: BTreeSet<usize> =
        open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // New ones have the lowest number that is free, which has to be below the limit.
    limit((0..).find(|number| !open.contains(number)).expect("some number"))?;
    let waiting: Result<Vec<TcpStream>, LabError> = (0..10).map(|_| connect()).collect();
    let mut waiting = waiting?;
    within(SOON, || {
        let log = proxy.log();
        if log.contains("accepting connections") { Ok(()) } else { Err(log) }
    });
    limit(4096)?;
    let served: Vec<_> = waiting.iter_mut().map(greeted).collect();
    assert_eq!(served, vec![Ok(()); 10]);
    assert!(proxy.metric("weft_proxy_userspace_accept_errors_total")? >= 1.0);

    let more: Result<Vec<TcpStream>, LabError> = (0..9).map(|_| connect()).collect();
    let mut more = more?;
    assert!(more.iter_mut().all(|stream| greeted(stream).is_ok()), "20 in all");
    let ask = || stage.client.asks(vip, Protocol::Tcp, SOON);
    assert_eq!(ask(), Answer::Reset);
    assert!(proxy.metric("weft_proxy_userspace_over_limit_connections_total")? >= 1.0);
    drop(more.pop());
    within(SOON, || match ask() {
        Answer::From { .. } => Ok(()),
        other => Err(format!("{other:?}")),
    });
    stage.lab.down()
}

/// From nftables to iptables and back: whatever is established goes on, what is new is served by the one or
/// the other, and no rule of the other mode stays.
#[test]
fn nothing_is_lost_when_the_mode_changes() -> Result<(), LabError> {
    let stage = Stage::new("proxy-mode")?;
    let (ash, proxy) = (stage.ash(), stage.ash().proxy());
    let tables = || ash.run("nft list tables").stdout;
    let chains = || ash.run("iptables-save; ip6tables-save").stdout;
    let before = chains();
    assert!(tables().contains("inet weft-proxy") && !before.contains("WEFT-"), "{before}");
    stage.undisturbed_by("from nftables to iptables", || {
        assert!(proxy.stop()?, "it leaves when it is asked to");
        proxy.launch_with(&["--mode=iptables"])?;
        proxy.wait_until_ready(SOON)
    })?;
    within(SOON, || proxy.as_planned());
    assert!(!tables().contains("weft-proxy") && chains().contains("WEFT-"), "{}", tables());
    stage.undisturbed_by("kill -9 and start, in iptables mode", || {
        proxy.kill()?;
        proxy.launch_with(&["--mode=iptables"])?;
        proxy.wait_until_ready(SOON)
    })?;
    stage.undisturbed_by("from iptables to nftables", || {
        proxy.kill()?;
        proxy.start()
    })?;
    within(SOON, || proxy.as_planned());
    let left = chains();
    assert!(tables().contains("inet weft-proxy") && !left.contains("WEFT-"), "{left}");
    stage.lab.down()
}

/// Other services come, change and go by the hundred.
#[test]
fn nothing_is_lost_while_others_change() -> Result<(), LabError> {
    const OTHERS: u8 = 150;
    let stage = Stage::new("proxy-churn")?;
    let objects = |round: u8| -> Vec<Value> {
        let one = |which: u8| {
            let name = format!("other-{which}");
            let spec = json!({
                "clusterIPs": [format!("10.96.{}.{which}", 10 + round % 2), format!("fd96::1:{round}:{which}")],
                "ports": [{"port": 80, "nodePort": 31_000 + u16::from(which)}],
                "type": "NodePort",
                "sessionAffinity": if which < OTHERS / 3 { "ClientIP" } else { "None" },
            });
            let endpoints: Vec<Value> = (0..=(which ^ round) % 5)
                .map(|last| endpoint(IpAddr::from([10, 42, 250, last]), "birch"))
                .collect();
            let ports = json!([{"port": 80}]);
            [service(&name, spec), slice(&format!("{name}-1"), &name, ports, &endpoints)]
        };
        (0..OTHERS).flat_map(one).collect()
    };
    stage.undisturbed_by("300 other objects made, changed and deleted", || {
        for round in 0..4 {
            stage.manifests().apply(&objects(round))?;
        }
        stage.manifests().delete(&objects(0))
    })?;
    for host in stage.lab.hosts() {
        within(SOON, || host.proxy().as_planned());
    }
    stage.lab.down()
}

/// A flood of new flows while the number of endpoints flips: each finds one that is there.
#[test]
fn nothing_is_lost_while_endpoints_come_and_go() -> Result<(), LabError> {
    let stage = Stage::new("proxy-flips")?;
    let to = stage.paths()[0].1;
    // More of them for this one: all at the same cluster address.
    let flood: Result<Vec<Load>, _> = [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Udp]
        .iter()
        .map(|protocol| stage.client.load(to, *protocol, Duration::from_secs(2)))
        .collect();
    let flood = flood?;
    let sets: [&[usize]; 7] = [&[0], &[0, 1], &[0, 1, 2], &[1, 2], &[2], &[0, 2], &[1]];
    let (start, mut flips) = (Instant::now(), 0);
    stage.undisturbed_by("endpoints flip", || {
        while start.elapsed() < Duration::from_secs(8) {
            for servers in sets {
                let declared = stage.slices(servers, |endpoint, _| endpoint);
                stage.manifests().write(&declared)?;
                flips += 1;
            }
            stage.manifests().programmed()?;
        }
        stage.declare(&[0, 1, 2])
    })?;
    let mut answered = 0;
    for load in flood {
        answered += load.stop_without_failure()?.answered();
    }
    println!("{flips} flips, {answered} further flows, none without an endpoint");
    assert!(flips > 50 && answered > 1000, "{flips} flips, {answered} flows");
    stage.lab.down()
}

/// Five rolling updates, each pod told to finish before it is taken away, for both external policies.
/// Kubernetes asks that 95 of 100 requests succeed; here all connections do.
#[test]
fn a_rolling_update_loses_nothing() -> Result<(), LabError> {
    let mut stage = Stage::new("proxy-roll")?;
    let (ash, outside) = (stage.ash(), stage.lab.outside());
    let local = json!({"externalTrafficPolicy": "Local"});
    let (node_port, vips) = (NODE_PORT + 1, ["10.96.0.11", "fd96::11"]);
    stage.manifests().write(&[service_at("local", &vips, node_port, local)])?;
    let declare = |stage: &Stage, leaving: Option<usize>| {
        let all: Vec<usize> = (0..stage.servers.len()).collect();
        let state = |endpoint, at| if Some(at) == leaving { terminating(endpoint, true) } else { endpoint };
        let slices = ["web", "local"].map(|service| stage.slices_of(service, &all, state));
        stage.manifests().apply(&slices.concat())
    };
    declare(&stage, None)?;
    let inside = stage.paths()[0].1;
    let loads = [
        outside.load(SocketAddr::new(ash.v4().into(), NODE_PORT), Protocol::Tcp, SOON)?,
        outside.load(SocketAddr::new(ash.v6().into(), node_port), Protocol::Tcp, SOON)?,
        stage.client.load(inside, Protocol::Tcp, SOON)?,
        stage.client.load(inside, Protocol::Udp, Duration::from_secs(2))?,
    ];
    let asked_more = || {
        let counts = || loads.iter().map(|load| load.so_far().answered()).collect::<Vec<_>>();
        let before = counts();
        within(SOON, || {
            let now = counts();
            let more = now.iter().zip(&before).all(|(now, before)| *now > before + 2);
            if more { Ok(()) } else { Err(format!("{before:?}, then {now:?}")) }
        });
    };
    for round in 0..5 {
        for which in 0..3 {
            // The new pod is ready before the old one is told to finish, and serves under its own name.
            let pod = stage.servers[which].0.host().pod(&format!("web-{round}"))?;
            within(SOON, || stage.client.reaches(&pod).and_then(|()| stage.client.reaches(pod.v6())));
            let server = pod.server_at(PORT, pod.name())?;
            stage.servers.push((pod, server));
            declare(&stage, None)?;
            declare(&stage, Some(which))?;
            let (old, server) = stage.servers.swap_remove(which);
            declare(&stage, None)?;
            // What is under way is answered before the pod goes, and no flow leads to it any more.
            asked_more();
            let (asked, to_old) = (format!("dst={} ", VIPS[0]), format!("src={} ", old.ip()));
            within(SOON, || {
                let flows = ash.run("conntrack -L -p udp").stdout;
                let led = |line: &&str| line.contains(&asked) && line.contains(&to_old);
                flows.lines().find(led).map_or(Ok(()), |line| Err(line.to_owned()))
            });
            drop(server);
            old.remove()?;
        }
    }
    let [streams @ .., datagrams] = loads;
    for load in streams {
        let report = load.stop_without_failure()?;
        println!("{} requests, 0 failed, by {} pods", report.answered(), report.answers.by_server.len());
    }
    // A flow that is forgotten between question and answer costs that one answer; nobody is ever refused.
    let report = datagrams.stop();
    let lost = report.failed.iter().all(|(_, answer)| *answer == Answer::Silent);
    println!("{} datagrams answered, {} lost", report.answered(), report.failed.len());
    assert!(lost && report.failed.len() < 5 * 3, "{:?}", report.failed);
    stage.lab.down()
}

/// Tables of others: Docker's, firewalld's with its last word, kube-proxy's, and a plain one.
const FOREIGN: &str = r#"
table ip nat {
    chain DOCKER { iifname "docker0" return; tcp dport 8088 dnat to 172.17.0.2:80; }
    chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; fib daddr type local jump DOCKER; }
    chain OUTPUT { type nat hook output priority -100; policy accept; ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER; }
    chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; ip saddr 172.17.0.0/16 oifname != "docker0" masquerade; }
}
table inet firewalld {
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        meta l4proto { icmp, ipv6-icmp } accept
        udp dport { 8472, 8477 } accept
        ip saddr 10.42.0.0/16 accept
        ip6 saddr fd42::/48 accept
        tcp dport { 22, 10256 } accept
        reject with icmpx type admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        ip daddr 10.42.0.0/16 accept
        ip6 daddr fd42::/48 accept
        meta l4proto { icmp, ipv6-icmp } accept
        reject with icmpx type admin-prohibited
    }
    chain nat_PREROUTING { type nat hook prerouting priority dstnat + 10; policy accept; }
}
table ip kube-proxy {
    map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.97.0.1 . tcp . 443 : goto service-X }; }
    chain service-X { meta l4proto tcp dnat to 192.0.2.99:6443; }
    chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
    chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
    chain nat-output { type nat hook output priority -100; policy accept; jump services; }
    chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept; meta mark & 0x00004000 == 0x00004000 meta mark set meta mark ^ 0x00004000 masquerade fully-random; }
}
table inet others { set s { type ipv4_addr; elements = { 192.0.2.77 }; }; chain c { type filter hook prerouting priority raw; policy accept; }; }
"#;
const FOREIGN_TABLES: [&str; 4] = ["ip nat", "inet firewalld", "ip kube-proxy", "inet others"];

fn foreign(host: &Host) -> Vec<String> {
    let list = |table: &&str| host.run(format!("nft -s list table {table}")).stdout;
    FOREIGN_TABLES.iter().map(list).collect()
}

/// Recreate rules if deleted: whatever somebody takes out of our table is back within a second, by events;
/// kept connections go on, new ones are served; and tables of others stay as they are.
#[test]
fn deleted_rules_are_back_within_a_second() -> Result<(), LabError> {
    let stage = Stage::new("proxy-drift")?;
    let ash = stage.ash();
    let proxy = ash.proxy();
    ash.run_with_stdin(&["nft", "-f", "-"], FOREIGN.as_bytes()).ok()?;
    let others = foreign(&ash);
    assert!(others.iter().all(|table| table.contains("chain")), "{others:?}");
    stage.undisturbed_by("tables of Docker, firewalld and kube-proxy", || Ok(()))?;
    within(SOON, || proxy.as_planned());

    let table = "inet weft-proxy";
    let chains = ash.run(format!("nft list table {table}")).ok()?;
    let leaf = chains.lines().find_map(|line| line.trim().strip_prefix("chain to4")?.split(' ').next());
    let leaf = format!("to4{}", leaf.unwrap_or_default());
    let faults = [
        ("the table deleted", format!("nft delete table {table}")),
        ("the table flushed", format!("nft flush table {table}")),
        ("a base chain flushed", format!("nft flush chain {table} prerouting")),
        (
            "a rule of `services4` deleted",
            format!(
                "nft delete rule {table} services4 handle \
                 $(nft -a list chain {table} services4 | sed -n '/^\t\t/s/.*# handle //p' | head -1)"
            ),
        ),
        ("a chain of endpoints flushed", format!("nft flush chain {table} {leaf}")),
        ("a map of frontends flushed", format!("nft flush map {table} addresses4")),
        (
            "one frontend deleted",
            format!("nft delete element {table} addresses4 '{{ {} . tcp . 80 }}'", VIPS[0]),
        ),
        ("node ports flushed", format!("nft flush map {table} ports4")),
        (
            "endpoints flushed",
            format!(
                "for map in $(nft list maps {table} | sed -n 's/.*map \\([a-z0-9-]*endpoints[46]\\) .*/\\1/p'); do nft flush map {table} $map; done"
            ),
        ),
        (
            "a rule of somebody else's put in front",
            format!("nft insert rule {table} prerouting-before meta l4proto tcp drop"),
        ),
    ];
    for (what, command) in faults {
        let talks: Result<Vec<Probe>, LabError> =
            stage.paths().iter().map(|(from, to)| Ok(from.converse_with(*to, BEAT)?.1)).collect();
        let talks = talks?;
        within(SOON, || talks.iter().all(|talk| talk.so_far().received > 10));
        ash.run(&command).ok()?;
        stage.served_again(what);
        within(SOON, || proxy.as_planned());
        for talk in talks {
            let before = talk.so_far();
            let goes_on = || {
                let now = talk.so_far();
                match &now.broken {
                    None if now.received > before.received + 10 => Ok(()),
                    _ => Err(format!("{what}: {now:?}")),
                }
            };
            within(SOON, goes_on);
            talk.stop_without_loss()
                .map_err(|error| LabError::Traffic { what: format!("{what}: {error}") })?;
        }
        assert_eq!(foreign(&ash), others, "{what}: tables of others were touched");
        stage.undisturbed_by(&format!("after {what}"), || Ok(()))?;
    }
    // Everything of everybody. Without any table that translates, the kernel translates kept connections no
    // more either, so they may break; new ones are served as soon as after any other fault.
    ash.run("nft flush ruleset").ok()?;
    stage.served_again("`nft flush ruleset`");
    ash.run_with_stdin(&["nft", "-f", "-"], FOREIGN.as_bytes()).ok()?;
    within(SOON, || proxy.as_planned());
    stage.undisturbed_by("after `nft flush ruleset`", || Ok(()))?;
    assert_eq!(foreign(&ash), others);
    // Nothing happens, so nothing is put right.
    let table = || ash.run("nft -s list table inet weft-proxy").stdout;
    let before = table();
    throughout(Duration::from_secs(1), || proxy.as_planned().is_ok());
    assert_eq!(table().len(), before.len());
    stage.lab.down()
}

/// Clients stay with their endpoints through restart, kill, resync, and changes elsewhere.
#[test]
fn affinity_outlives_the_daemon() -> Result<(), LabError> {
    let sticky = json!({"sessionAffinity": "ClientIP"});
    let stage = Stage::with("proxy-affinity", Path::new(env!("CARGO_BIN_EXE_weft")), sticky)?;
    let proxy = stage.ash().proxy();
    let who = |times: usize| -> Vec<String> {
        let ask = |(from, to): (Place, SocketAddr)| {
            let answers = from.asks_often(to, Protocol::Tcp, SOON, times);
            assert!(answers.others.is_empty() && answers.by_server.len() == 1, "{answers:?}");
            answers.by_server.into_keys().next().unwrap_or_default()
        };
        stage.paths().into_iter().map(ask).collect()
    };
    let before = who(15);
    let after = |what: &str| assert_eq!(who(15), before, "{what}");
    proxy.kill()?;
    after("killed");
    proxy.start()?;
    after("killed and started");
    proxy.restart()?;
    after("restarted");
    stage.manifests().apply(&[node(&stage.ash(), Some("east"))])?;
    after("loaded anew");
    let other = json!({"clusterIPs": ["10.96.0.11"], "ports": [{"port": 80}], "sessionAffinity": "ClientIP"});
    stage.manifests().apply(&[service("other", other)])?;
    after("another service");
    stage.lab.down()
}
