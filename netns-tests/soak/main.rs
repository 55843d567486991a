//! The long ones (`make soak`): gigabytes hashed through every backend, and minutes of random faults
//! after each of which everything must be whole again.
//!
//! | variable | what | default |
//! |---|---|---|
//! | `WEFT_SOAK_GB` | gigabytes through each backend: as veths come and without offloads, by IPv4 and IPv6, a quarter each | 10 |
//! | `WEFT_SOAK_MINUTES` | minutes of faults, a third over each backend | 10 |
//! | `WEFT_SOAK_SEED` | what faults are drawn from; printed, so that a run can be had again | made up |

mod fault;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use fault::Fault;
use ipnetwork::IpNetwork;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use weft_lab::traffic::{Endpoint, Probe};
use weft_lab::{CutFrom, Host, Lab, LabError, Offloads, Pod, throughout, within};

/// After a fault is over everything must be whole within this.
const WHOLE: Duration = Duration::from_secs(60);
/// A host without power is dropped by the others within this: liveness lapses after 10 s.
const DROPPED: Duration = Duration::from_secs(30);
/// What is sent and hashed after each fault.
const AFTERWARDS: u64 = 16 << 20;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        Err(_) => default,
    }
}

fn config(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.42.0.0/16","SubnetMax":"10.42.199.0","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{{"Type":"{backend}"}}}}"#
    )
}

fn lab(story: &str, hosts: &[&str], backend: &str, etcd_members: u8) -> Result<Lab, LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    Lab::new(story)
        .weft(weft)
        .hosts(hosts.iter().copied())
        .network(config(backend))
        .etcd_members(etcd_members)
        .up()
}

/// Gigabytes by each family, with super-packets and without.
fn bytes_arrive_unaltered(backend: &str) -> Result<(), LabError> {
    let quarter = setting::<u64>("WEFT_SOAK_GB", 10) * 1_000_000_000 / 4;
    let (start, mut total) = (Instant::now(), 0);
    let lab = lab("soak-bytes", &["ash", "birch"], backend, 1)?;
    let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
    for (regime, offloads) in [("default", Offloads::On), ("no-offload", Offloads::Off)] {
        lab.set_offloads(offloads)?;
        for address in server.addresses() {
            let target = Endpoint::new(&server, *address);
            within(WHOLE, || client.reaches(&target));
            let sent = client.sends(&target, quarter)?;
            total += sent.bytes;
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            println!(
                "{backend}, {regime}, {family}: {} bytes, {:.2} Gbit/s, SHA-256 {}",
                sent.bytes,
                sent.gbit_per_second(),
                sent.sha256
            );
        }
    }
    println!("{backend}: {total} bytes arrived as they were sent, in {:.0} s", start.elapsed().as_secs_f64());
    lab.down()
}

#[test]
fn bytes_through_vxlan() -> Result<(), LabError> {
    bytes_arrive_unaltered("vxlan")
}

#[test]
fn bytes_through_host_gw() -> Result<(), LabError> {
    bytes_arrive_unaltered("host-gw")
}

#[test]
fn bytes_through_udp() -> Result<(), LabError> {
    bytes_arrive_unaltered("udp")
}

#[test]
fn faults_over_vxlan() -> Result<(), LabError> {
    faults("vxlan", true)
}

#[test]
fn faults_over_host_gw() -> Result<(), LabError> {
    faults("host-gw", true)
}

#[test]
fn faults_over_udp() -> Result<(), LabError> {
    // The daemon itself carries the packets, so those that meet its restart are lost.
    faults("udp", false)
}

fn faults(backend: &str, kernel_forwards: bool) -> Result<(), LabError> {
    let seed = setting("WEFT_SOAK_SEED", u64::from(rand::random::<u32>()));
    let backends = 3;
    let limit = Duration::from_secs(60 * setting::<u64>("WEFT_SOAK_MINUTES", 10)) / backends;
    println!("{backend}: WEFT_SOAK_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut scene = Scene::new(backend)?;
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < limit {
        let fault = Fault::draw(&mut rng, &scene.names, &scene.tunnels);
        count += 1;
        println!("{backend} {count} at {:.1} s: {fault}", start.elapsed().as_secs_f64());
        let watched = scene.watch()?;
        scene.strike(&fault)?;
        let over = Instant::now();
        within(WHOLE, || scene.whole());
        println!("    whole again {:.1} s after it was over", over.elapsed().as_secs_f64());
        if fault.costs_no_packet() && (kernel_forwards || !is_of_daemon(&fault)) {
            watched.into_iter().try_for_each(|probe| probe.stop_without_loss().map(drop))?;
        }
        let (from, to) = (&scene.pods[count % scene.pods.len()], &scene.pods[(count + 1) % scene.pods.len()]);
        from.sends(to, AFTERWARDS)?;
    }
    println!("{backend}: {count} faults passed, 0 failed");
    scene.lab.down()
}

fn is_of_daemon(fault: &Fault) -> bool {
    matches!(fault, Fault::DaemonKilled { .. } | Fault::DaemonRestarted { .. })
}

/// Hosts with a pod each, three etcd members, and things of others.
struct Scene {
    lab: Lab,
    names: Vec<String>,
    tunnels: Vec<String>,
    pods: Vec<Pod>,
    /// What each host leased first: it is its own for good.
    subnets: BTreeMap<String, Vec<IpNetwork>>,
    /// What others have on each host.
    foreign: BTreeMap<String, String>,
}

impl Scene {
    fn new(backend: &str) -> Result<Self, LabError> {
        let names = ["ash", "birch", "cedar"];
        let lab = lab("soak-faults", &names, backend, 3)?;
        let mut scene = Self {
            names: names.map(str::to_owned).to_vec(),
            tunnels: vec![],
            pods: names.iter().map(|name| lab.pod_on(name)).collect::<Result<_, _>>()?,
            subnets: BTreeMap::new(),
            foreign: BTreeMap::new(),
            lab,
        };
        for host in scene.lab.hosts() {
            scene.subnets.insert(host.name().to_owned(), host.subnets()?);
            scene.settle_others(&host)?;
        }
        let links = scene.lab.host("ash").run(TUNNELS).stdout;
        scene.tunnels = links.split_whitespace().map(str::to_owned).collect();
        within(WHOLE, || scene.whole());
        Ok(scene)
    }

    /// Others move in on a host.
    fn settle_others(&mut self, host: &Host) -> Result<(), LabError> {
        host.run(FOREIGN).ok()?;
        host.run_with_stdin(&["nft", "-f", "-"], FOREIGN_TABLE.as_bytes()).ok()?;
        self.foreign.insert(host.name().to_owned(), host.run(FOREIGN_SHOWN).ok()?);
        Ok(())
    }

    /// Pings around the ring of pods, in both families.
    fn watch(&self) -> Result<Vec<Probe>, LabError> {
        let mut probes = vec![];
        for (from, to) in self.pods.iter().zip(self.pods.iter().cycle().skip(1)) {
            for address in to.addresses() {
                probes.push(from.pinger(Endpoint::new(to, *address), Duration::from_millis(20))?);
            }
        }
        Ok(probes)
    }

    /// Does it, lets it last, and undoes it.
    fn strike(&mut self, fault: &Fault) -> Result<(), LabError> {
        let etcd = self.lab.etcd();
        match fault {
            Fault::DaemonKilled { host } => {
                let host = self.lab.host(host);
                host.kill_overlay()?;
                host.start_overlay()
            }
            Fault::DaemonRestarted { host } => {
                let host = self.lab.host(host);
                assert!(host.stop_overlay()?, "the daemon obeys SIGTERM");
                host.start_overlay()
            }
            Fault::EtcdFrozen { hold } => {
                etcd.freeze()?;
                self.last(*hold);
                etcd.thaw()
            }
            Fault::EtcdStopped { hold } => {
                etcd.stop()?;
                self.last(*hold);
                etcd.start()
            }
            Fault::LeaderKilled { hold } => {
                let leader = within(WHOLE, || etcd.leader().ok().flatten());
                etcd.kill_member(&leader)?;
                self.last(*hold);
                etcd.start()
            }
            Fault::EtcdCompacted => {
                // It is an error to compact twice at one revision.
                etcd.put("/weft-soak", "moves the revision")?;
                etcd.compact()
            }
            Fault::CutFromEtcd { host, hold } => self.cut(host, CutFrom::Etcd, *hold),
            Fault::CutFromPeer { host, peer, hold } => self.cut(host, CutFrom::peer(peer), *hold),
            Fault::CutOff { host, hold } => self.cut(host, CutFrom::All, *hold),
            Fault::Lossy { host, percent, hold } => {
                self.lab.lose(host, *percent)?;
                self.last(*hold);
                self.lab.lose(host, 0)
            }
            Fault::Drift { host, command } => self.lab.host(host).run(command).ok().map(drop),
            Fault::Dead { host } => self.power_cycle(host),
        }
    }

    fn cut(&self, host: &str, from: CutFrom, hold: Duration) -> Result<(), LabError> {
        self.lab.cut(host, from.clone())?;
        self.last(hold);
        self.lab.heal(host, &from)
    }

    /// As long as it lasts, no daemon ends.
    fn last(&self, hold: Duration) {
        throughout(hold, || self.daemons_run());
    }

    fn power_cycle(&mut self, name: &str) -> Result<(), LabError> {
        let host = self.lab.host(name);
        let lost: Vec<IpNetwork> = self.subnets[name].clone();
        host.die()?;
        self.pods.retain(|pod| pod.host().name() != name);
        let others: Vec<Host> = self.lab.hosts().into_iter().filter(|other| other.name() != name).collect();
        for (other, subnet) in others.iter().flat_map(|other| lost.iter().map(move |subnet| (other, subnet)))
        {
            let family = if subnet.is_ipv4() { "-4" } else { "-6" };
            let routes = || other.run(format!("ip {family} route show {subnet} proto 87")).stdout;
            within(DROPPED, || match routes() {
                routes if routes.trim().is_empty() => Ok(()),
                routes => Err(format!("{} keeps {routes}", other.name())),
            });
        }
        host.boot()?;
        host.start_overlay()?;
        self.settle_others(&host)?;
        self.pods.push(host.new_pod()?);
        Ok(())
    }

    fn daemons_run(&self) -> Result<(), String> {
        let ended = self.lab.hosts().into_iter().find(|host| host.overlay().is_none());
        ended.map_or(Ok(()), |host| Err(format!("the daemon of {} has ended", host.name())))
    }

    /// Everything that must hold when nothing is broken.
    fn whole(&self) -> Result<(), String> {
        self.daemons_run()?;
        let mut leased = BTreeSet::new();
        for host in self.lab.hosts() {
            let name = host.name();
            let said = |error: LabError| format!("{name}: {}", error.chain());
            let subnets = host.subnets().map_err(said)?;
            if subnets != self.subnets[name] {
                return Err(format!("{name} has {subnets:?}, had {:?}", self.subnets[name]));
            }
            if let Some(twice) = subnets.iter().find(|subnet| !leased.insert(**subnet)) {
                return Err(format!("{twice} is leased twice"));
            }
            host.as_planned().map_err(said)?;
            let foreign = host.run(FOREIGN_SHOWN).ok().map_err(said)?;
            if foreign != self.foreign[name] {
                return Err(format!(
                    "{name}: foreign things were touched:\n{foreign}\nand were\n{}",
                    self.foreign[name]
                ));
            }
        }
        let keys = self.lab.etcd().keys("/coreos.com/network/subnets/").map_err(|error| error.chain())?;
        if keys.len() != self.names.len() {
            return Err(format!("{} hosts, and leases {keys:?}", self.names.len()));
        }
        for from in &self.pods {
            for to in self.pods.iter().filter(|to| to.name() != from.name()) {
                for address in to.addresses() {
                    from.reaches(Endpoint::new(to, *address)).map_err(|error| error.chain())?;
                }
            }
        }
        Ok(())
    }
}

/// The names of the links that the daemon keeps; pods' have no dot and no dash.
const TUNNELS: &str = "ip -o link show | awk -F'[:@ ]+' '$2 ~ /^weft[-.]/ {print $2}'";
/// Links, routes, a routing table, neighbours and FDB entries that are not weft's, some of them
/// inside the pod network.
const FOREIGN: &str = "ip link add other0 type veth peer name other1 && ip link set other0 up && \
    ip link set other1 up && ip address add 10.42.255.1/30 dev other0 && \
    ip route add 10.99.0.0/24 via 10.42.255.2 dev other0 && \
    ip route add 10.98.0.0/24 dev other0 table 100 && ip rule add to 10.98.0.0/24 table 100 && \
    ip neigh add 10.42.255.2 lladdr 02:00:00:00:00:77 dev other0 nud permanent && \
    ip link add vxother type vxlan id 99 dstport 4790 && ip link set vxother up && \
    bridge fdb append 02:00:00:00:00:78 dev vxother dst 192.0.2.99 self permanent";
const FOREIGN_TABLE: &str =
    "table inet others { chain c { type filter hook input priority 7; policy accept; }; }";
const FOREIGN_SHOWN: &str = "ip -4 route show dev other0; ip route show table 100; ip rule; \
    ip neigh show dev other0 nud permanent; bridge fdb show dev vxother; \
    ip -4 -o address show dev other0; nft list table inet others";
