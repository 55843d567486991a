//! All paths standing at the same time, each on a host of its own with a client and a server, so that a
//! round can switch from one to the next at once. Idle daemons cost nothing.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use weft_lab::{Host, Lab, LabError, Place, Running, wait_for};

use super::apiserver::Api;
use super::path::{BASE, Path};
use super::services::{Load, PORT, Service, TARGET_PORT, Target};
use super::{Options, layout, wiring};
use crate::BenchError;
use crate::cpu::Watched;
use crate::session::{Audience, Contestant, chain, go_on};
use crate::traffic::{Cores, Ends, IperfServer, Listen, PORTS, connect_times};

/// How long a daemon may take to have tens of thousands of services programmed, and a path to carry
/// the first packet.
pub(super) const READY: Duration = Duration::from_secs(120);
/// How long a host may take that has a thousand services to load by `nft`, and one with several.
const LOADED: Duration = Duration::from_secs(120);
/// How many services' first packets are timed in turn, evenly drawn from all.
const TARGETS: u32 = 4096;

/// The service that bulk traffic goes to, on every host.
pub(super) const TARGET: Target = Target { endpoints: wiring::SERVER, ports: PORTS };

/// The lab with every path.
#[derive(Debug)]
pub(super) struct Stage {
    /// In this order, so that servers end before the lab does.
    pub(super) bulk: Vec<Bulk>,
    pub(super) first: Vec<First>,
    /// What paths are made of beside daemons of weft.
    programs: Vec<Running>,
    apis: Vec<Api>,
    pub(super) lab: Lab,
}

/// One path, ready for bulk traffic.
#[derive(Debug)]
pub(super) struct Bulk {
    pub(super) path: Path,
    pub(super) ends: Ends,
    pub(super) iperf: IperfServer,
    /// Whose processor time counts as the path's.
    pub(super) watched: Watched,
}

/// One path with so many services, ready for first packets.
#[derive(Debug)]
pub(super) struct First {
    path: Path,
    services: u32,
    ends: Ends,
    /// Whom the client calls in turn.
    targets: Vec<SocketAddrV4>,
}

/// What could not be raised, and why.
pub(super) type Failed = (String, BenchError);

impl Contestant for Bulk {
    fn path(&self) -> &'static str {
        self.path.name()
    }
}

impl Contestant for First {
    fn path(&self) -> &'static str {
        self.path.name()
    }

    fn scale(&self) -> u64 {
        self.services.into()
    }
}

impl First {
    /// How long connections take to be made, in microseconds.
    pub(super) fn times(&self, core: usize, time: Duration) -> Result<Vec<f64>, BenchError> {
        connect_times(&self.ends, core, TARGET_PORT, &self.targets, time)
    }
}

/// Which hosts there are: path, services, and whether bulk traffic and first packets are for it.
pub(super) fn hosts(options: &Options, paths: &[Path]) -> Vec<(Path, u32)> {
    let of = |path: &Path| {
        let scales = options.first_at(*path).chain((!options.regimes.is_empty()).then_some(BASE));
        let mut scales: Vec<u32> = scales.collect();
        scales.sort_unstable();
        scales.dedup();
        scales.into_iter().map(|scale| (*path, scale)).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

fn host_name(path: Path, services: u32) -> String {
    format!("{}-{services}", path.stem())
}

impl Stage {
    /// Raises a lab with all these paths, and proves that each carries packets. Those that do not are
    /// told with the reason.
    pub(super) fn raise(
        options: &Options,
        paths: &[Path],
        cores: Cores,
        audience: &dyn Audience,
    ) -> Result<(Self, Vec<Failed>), BenchError> {
        let hosts = hosts(options, paths);
        let names = hosts.iter().map(|(path, services)| host_name(*path, *services));
        let lab = Lab::new("bench-proxy")
            .weft(&options.weft)
            .hosts(names)
            .etcd_members(0)
            .without_network()
            .without_daemons()
            .up()?;
        let mut stage = Self { bulk: vec![], first: vec![], programs: vec![], apis: vec![], lab };
        let mut failed = vec![];
        for (path, services) in hosts {
            go_on(audience)?;
            audience.step(&format!("raising {path} with {services} services"));
            if let Err(error) = stage.add(path, services, options, cores) {
                // What is left of it stays idle; a daemon that tries again and again would not.
                let _ = stage.lab.find_host(&host_name(path, services)).map(|host| host.proxy().stop());
                failed.push((format!("{path} with {services} services"), error));
            }
        }
        Ok((stage, failed))
    }

    fn add(&mut self, path: Path, services: u32, options: &Options, cores: Cores) -> Result<(), BenchError> {
        let host = self.lab.find_host(&host_name(path, services))?;
        let load = Load::of(services);
        let raised = raise(&host, path, load, cores)?;
        if options.first_at(path).any(|scale| scale == services) {
            let ends = raised.ends.clone();
            let first = First { path, services, ends, targets: targets(path, load) };
            // The first one proves that the services lead somewhere.
            first.times(cores.client, Duration::ZERO)?;
            self.first.push(first);
        }
        if !options.regimes.is_empty() && services == BASE {
            let iperf = IperfServer::start(&raised.ends, cores)?;
            let watched = Watched::new(raised.daemons);
            self.bulk.push(Bulk { path, ends: raised.ends, iperf, watched });
        }
        self.programs.extend(raised.programs);
        self.apis.extend(raised.api);
        Ok(())
    }

    /// Takes everything down, and says what could not be removed.
    pub(super) fn down(self) -> Result<(), BenchError> {
        let Self { bulk, programs, apis, lab, .. } = self;
        drop((bulk, programs, apis)); // servers and clients first: they are nobody's leftovers
        Ok(lab.down()?)
    }
}

/// A path before the traffic sources are there.
struct Raised {
    ends: Ends,
    daemons: Vec<i32>,
    programs: Vec<Running>,
    api: Option<Api>,
}

fn raise(host: &Host, path: Path, services: Load, cores: Cores) -> Result<Raised, BenchError> {
    let (client, server) = wire(host)?;
    let to = if path == Path::Direct { wiring::SERVER[0] } else { Target::CLUSTER };
    let ends = Ends { client, server, to, listen: Listen::Anywhere };
    let (mut daemons, mut programs, mut api) = (vec![], vec![], None);
    match path {
        Path::Direct | Path::Nftables | Path::Accounted | Path::Iptables | Path::Userspace => {
            declare(host, services, Some(&TARGET))?;
            start(host, path)?;
            daemons.extend(host.proxy().process().map(|process| process.pid));
        }
        Path::KubeProxyLayout => {
            let rules = write_rules(host, &layout::rules(services, Some(&TARGET), host.v4()))?;
            load(host, &rules, LOADED)?;
        }
        Path::Haproxy => {
            ip(host, &wiring::own_the_service())?;
            programs.push(haproxy(host)?);
        }
        Path::KubeProxy => {
            api = Some(Api::serve(host, services, &TARGET)?);
            let program = kube_proxy(host)?;
            leads_somewhere(&ends, services, cores, &program)?;
            programs.push(program);
        }
    }
    daemons.extend(programs.iter().filter_map(|program| i32::try_from(program.pid()).ok()));
    Ok(Raised { ends, daemons, programs, api })
}

/// kube-proxy in nftables mode. It may write settings of the host; the number of connections that are
/// tracked is the whole machine's, and stays.
fn kube_proxy(host: &Host) -> Result<Running, BenchError> {
    let file = host.dir().join("kubeconfig");
    let write = fs::create_dir_all(host.dir()).and_then(|()| fs::write(&file, Api::kubeconfig()));
    write.map_err(BenchError::io(format!("write {}", file.display())))?;
    Ok(host.spawn(&[
        "kube-proxy",
        &format!("--kubeconfig={}", file.display()),
        &format!("--hostname-override={}", host.name()),
        "--proxy-mode=nftables",
        "--kube-api-content-type=application/json",
        "--conntrack-max-per-core=0",
    ])?)
}

/// Waits until the last service leads to the server.
fn leads_somewhere(ends: &Ends, load: Load, cores: Cores, program: &Running) -> Result<(), BenchError> {
    let last = SocketAddrV4::new(Service(load.services - 1).cluster(), PORT);
    let connect = || {
        let times = connect_times(ends, cores.client, TARGET_PORT, &[last], Duration::ZERO);
        times.map(drop).map_err(|error| chain(&error))
    };
    wait_for(READY, connect).map_err(|timed_out| {
        let log = format!("\n{}", program.stderr_so_far());
        LabError::Late { what: format!("{last} leads nowhere"), timed_out, log }
    })?;
    Ok(())
}

/// Gives a host its two pods.
fn wire(host: &Host) -> Result<(Place, Place), BenchError> {
    let (client, server) = (host.namespace("client")?, host.namespace("server")?);
    ip(host, &wiring::host(client.netns(), server.netns()))?;
    ip(&client, &wiring::client())?;
    ip(&server, &wiring::server())?;
    wiring::SETTINGS.iter().try_for_each(|setting| set(host, *setting))?;
    Ok((client, server))
}

/// Where a host's manifests are.
pub(super) fn manifests(host: &Host) -> PathBuf {
    host.dir().join("manifests")
}

/// Writes all services of a host down.
pub(super) fn declare(host: &Host, load: Load, target: Option<&Target>) -> Result<(), BenchError> {
    let dir = manifests(host);
    let broken = || BenchError::io(format!("write the manifests in {}", dir.display()));
    fs::create_dir_all(&dir).map_err(broken())?;
    load.files(target)
        .into_iter()
        .try_for_each(|(name, contents)| fs::write(dir.join(name), contents))
        .map_err(broken())
}

/// Starts a host's `weft proxy` and waits until it has programmed everything.
pub(super) fn start(host: &Host, path: Path) -> Result<(), BenchError> {
    let mut flags = vec![format!("--mode={}", path.mode().unwrap_or_default())];
    flags.extend((path == Path::Accounted).then(|| "--conntrack-accounting".to_owned()));
    host.proxy().launch_from(&manifests(host), &flags)?;
    host.proxy().wait_until_ready(READY)?;
    if path == Path::Accounted {
        counts(host)?;
    }
    Ok(())
}

/// Waits until traffic is counted: by the kernel from now on, and by the daemon, which then shows it.
fn counts(host: &Host) -> Result<(), BenchError> {
    let both = || {
        let setting = host.run(format!("sysctl -n {}", wiring::ACCOUNTING)).ok();
        let setting = setting.map_err(|error| error.chain())?;
        let metrics = host.proxy().api("/metrics").map_err(|error| error.chain())?;
        match (setting.trim(), metrics.body.contains(wiring::COUNTED)) {
            ("1", true) => Ok(()),
            (setting, shown) => Err(format!("{} is {setting}; shown: {shown}", wiring::ACCOUNTING)),
        }
    };
    wait_for(READY, both).map_err(|timed_out| {
        let what = format!("{} does not count traffic", host.name());
        LabError::Late { what, timed_out, log: host.proxy().log() }
    })?;
    Ok(())
}

/// Writes rules down for `nft`.
pub(super) fn write_rules(host: &Host, rules: &str) -> Result<PathBuf, BenchError> {
    let file = host.dir().join("rules.nft");
    let write = fs::create_dir_all(host.dir()).and_then(|()| fs::write(&file, rules));
    write.map_err(BenchError::io(format!("write {}", file.display())))?;
    Ok(file)
}

/// Lets `nft` load rules.
pub(super) fn load(host: &Host, rules: &std::path::Path, limit: Duration) -> Result<(), BenchError> {
    Ok(host.run_for(limit, format!("nft -f {}", rules.display())).ok().map(drop)?)
}

fn haproxy(host: &Host) -> Result<Running, BenchError> {
    let file = host.dir().join("haproxy.cfg");
    let write = fs::create_dir_all(host.dir()).and_then(|()| fs::write(&file, wiring::haproxy(&TARGET)));
    write.map_err(BenchError::io(format!("write {}", file.display())))?;
    let program = host.spawn(&["haproxy", "-db", "-f", &file.display().to_string()])?;
    let listening = || {
        let sockets = host.run_args(&["ss", "-Hltn", &format!("sport = :{}", PORTS[0])]).ok();
        sockets.map_err(|error| error.chain()).and_then(|sockets| {
            let said = || format!("nobody listens; it says: {}", program.stderr_so_far().trim());
            if sockets.trim().is_empty() { Err(said()) } else { Ok(()) }
        })
    };
    wait_for(READY, listening).map_err(|timed_out| LabError::Late {
        what: format!("haproxy on {}", host.name()),
        timed_out,
        log: String::new(),
    })?;
    Ok(program)
}

/// Whom a client calls in turn: services evenly drawn, in an order that no cache foresees.
fn targets(path: Path, load: Load) -> Vec<SocketAddrV4> {
    let address = |service: Service| -> (Ipv4Addr, u16) {
        if path == Path::Direct { (service.endpoint(0), TARGET_PORT) } else { (service.cluster(), PORT) }
    };
    // Knuth's multiplicative hashing (The Art of Computer Programming, volume 3, 6.4): 32 bits of the
    // number's product with the golden ratio, as a share of all services.
    let drawn = |n: u32| {
        let share = u64::from(n.wrapping_mul(2_654_435_769));
        Service(u32::try_from((share * u64::from(load.services)) >> 32).unwrap_or(0))
    };
    (0..TARGETS).map(|n| address(drawn(n))).map(|(address, port)| SocketAddrV4::new(address, port)).collect()
}

fn ip(place: &Place, batch: &str) -> Result<(), BenchError> {
    Ok(place.run_with_stdin(&["ip", "-batch", "-"], batch.as_bytes()).ok().map(drop)?)
}

/// Sets something below /proc/sys/net.
fn set(host: &Host, (name, value): (&str, &str)) -> Result<(), BenchError> {
    let written = host.within(|| fs::write(format!("/proc/sys/net/{name}"), value))?;
    written.map_err(BenchError::io(format!("set {name} on {}", host.name())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn targets_are_drawn_from_all_services() {
        for services in [100, 45_000] {
            let targets = targets(Path::Nftables, Load::of(services));
            let distinct: BTreeSet<&SocketAddrV4> = targets.iter().collect();
            assert!(distinct.len() as u32 >= services.min(TARGETS) * 9 / 10, "{}", distinct.len());
            let quarters =
                targets.iter().filter(|target| *target.ip() < Service(services / 4).cluster()).count();
            assert!((TARGETS as usize / 5..TARGETS as usize * 3 / 10).contains(&quarters), "{quarters}");
        }
        assert!(targets(Path::Direct, Load::of(100)).iter().all(|target| target.ip().octets()[1] >= 128));
    }

    #[test]
    fn hosts_have_names_that_fit() {
        for path in Path::ALL {
            for services in path.first_at(false).iter().chain(path.programmed_at(false)) {
                assert!(host_name(path, *services).len() <= 15, "{path} {services}");
            }
        }
    }
}
