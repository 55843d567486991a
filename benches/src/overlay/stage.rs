//! All paths standing at the same time, each between two hosts of its own, so that a round can
//! switch from one to the next at once. Idle daemons cost nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use weft_lab::{Host, Lab, LabError, Place, Running, wait_for};

use super::Options;
use super::path::Path;
use super::wiring::{self, Side};
use crate::BenchError;
use crate::cpu::Watched;
use crate::session::{Audience, Contestant, go_on};
use crate::traffic::{Cores, Ends, IperfServer, Listen};

/// How long a daemon may take to be ready, and a path to carry the first packet.
const READY: Duration = Duration::from_secs(60);

/// The lab with every path.
#[derive(Debug)]
pub(super) struct Stage {
    /// In this order, so that servers end before the lab does.
    pub(super) pairs: Vec<Pair>,
    pub(super) lab: Lab,
}

/// One path, ready for traffic.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) path: Path,
    pub(super) ends: Ends,
    pub(super) iperf: IperfServer,
    /// Whose processor time counts as the path's.
    pub(super) watched: Watched,
    /// Programs of the bench that the path is made of.
    _programs: Vec<Running>,
}

/// A path before the traffic sources are there.
struct Wired {
    client: Place,
    server: Place,
    to: Ipv4Addr,
    daemons: Vec<i32>,
    programs: Vec<Running>,
}

impl Stage {
    /// Raises a lab with all these paths, and proves that each carries packets. Those that do not are
    /// told with the reason.
    pub(super) fn raise(
        options: &Options,
        paths: &[Path],
        cores: Cores,
        audience: &dyn Audience,
    ) -> Result<(Self, Vec<(Path, BenchError)>), BenchError> {
        let hosts: Vec<String> = paths.iter().flat_map(|path| path.hosts()).collect();
        let lab =
            Lab::new("bench").weft(&options.weft).hosts(hosts).without_network().without_daemons().up()?;
        let (mut pairs, mut failed) = (vec![], vec![]);
        for path in paths {
            go_on(audience)?;
            audience.step(&format!("raising {path}"));
            match Pair::raise(&lab, *path, options, cores) {
                Ok(pair) => pairs.push(pair),
                Err(error) => {
                    // What is left of it stays idle; a daemon that tries again and again would not.
                    for host in path.hosts() {
                        let _ = lab.find_host(&host).map(|host| host.stop_overlay());
                    }
                    failed.push((*path, error));
                }
            }
        }
        Ok((Self { pairs, lab }, failed))
    }
}

impl Contestant for Pair {
    fn path(&self) -> &'static str {
        self.path.name()
    }
}

impl Pair {
    fn raise(lab: &Lab, path: Path, options: &Options, cores: Cores) -> Result<Self, BenchError> {
        let wired = wire(lab, path, options)?;
        let ends = Ends { client: wired.client, server: wired.server, to: wired.to, listen: Listen::There };
        wait_for(READY, || ends.client.ping(ends.to).map_err(|error| error.chain())).map_err(
            |timed_out| LabError::Late {
                what: format!("{path} carries nothing"),
                timed_out,
                log: String::new(),
            },
        )?;
        let iperf = IperfServer::start(&ends, cores)?;
        let watched = Watched::new(wired.daemons);
        Ok(Self { path, ends, iperf, watched, _programs: wired.programs })
    }
}

fn wire(lab: &Lab, path: Path, options: &Options) -> Result<Wired, BenchError> {
    let [a, b] = path.hosts();
    let (a, b) = (lab.find_host(&a)?, lab.find_host(&b)?);
    match path {
        Path::Bare => Ok(Wired {
            to: b.v4(),
            client: (*a).clone(),
            server: (*b).clone(),
            daemons: vec![],
            programs: vec![],
        }),
        Path::Direct => by_hand(&a, &b, |_, own, peer, pod| {
            let host = wiring::routed_host(own, pod.netns(), lab.spec().mtu) + &wiring::direct_route(peer);
            Ok((host, wiring::routed_pod(own), vec![]))
        }),
        Path::FlannelLayout => by_hand(&a, &b, |host, own, peer, pod| {
            host.run_with_stdin(&["iptables-restore", "--noflush"], wiring::flannel_rules(own).as_bytes())
                .ok()?;
            bridge_nf(host)?;
            let batch = wiring::flannel_host(own, peer, pod.netns());
            let pod = wiring::bridged_pod(&format!("{}/24", own.pod()), own.address(1));
            Ok((batch, pod, vec![]))
        })
        .and_then(|wired| {
            let (one, two) = sides(&a, &b);
            a.run(format!("bridge {}", wiring::flannel_fdb(two))).ok()?;
            b.run(format!("bridge {}", wiring::flannel_fdb(one))).ok()?;
            Ok(wired)
        }),
        Path::UdpSingle => by_hand(&a, &b, |host, own, peer, pod| {
            let tunnel = single(host, own, peer, options)?;
            let batch =
                wiring::routed_host(own, pod.netns(), wiring::UDP_MTU) + &wiring::single_tunnel(own, peer);
            Ok((batch, wiring::routed_pod(own), vec![tunnel]))
        }),
        Path::HostGw | Path::Vxlan | Path::Udp => by_weft(lab, path, &a, &b),
        Path::FlanneldVxlan | Path::FlanneldUdp => by_flanneld(lab, path, &a, &b),
    }
}

/// Batches for a host and its pod, and the programs that make the path.
type Batches = (String, String, Vec<Running>);

/// A path that the bench wires itself.
fn by_hand(
    a: &Host,
    b: &Host,
    batches: impl Fn(&Host, Side, Side, &Place) -> Result<Batches, BenchError>,
) -> Result<Wired, BenchError> {
    let (one, two) = sides(a, b);
    let mut programs = vec![];
    let mut pods = vec![];
    for (host, own, peer) in [(a, one, two), (b, two, one)] {
        let pod = host.namespace("pod")?;
        forward(host)?;
        let (of_host, of_pod, running) = batches(host, own, peer, &pod)?;
        ip(host, &of_host)?;
        ip(&pod, &of_pod)?;
        programs.extend(running);
        pods.push(pod);
    }
    let daemons = programs.iter().filter_map(|program| program.pid().try_into().ok()).collect();
    let [client, server] = pods.try_into().expect("two hosts, a pod each");
    Ok(Wired { client, server, to: two.pod(), daemons, programs })
}

/// A path that weft's daemon makes, in a network of its own in the lab's etcd. It masquerades, as the
/// rules of flannel's layout do; whatever else is on by default (anti-spoofing) stays on.
fn by_weft(lab: &Lab, path: Path, a: &Host, b: &Host) -> Result<Wired, BenchError> {
    let prefix = configure(lab, path)?;
    let further = [format!("--etcd-prefix={prefix}"), "--ip-masq".to_owned()];
    for host in [a, b] {
        host.launch_overlay_with(&further)?;
    }
    for host in [a, b] {
        host.wait_until_ready(READY)?;
    }
    let (client, server) = (a.pod("pod")?, b.pod("pod")?);
    let IpAddr::V4(to) = server.ip() else {
        return Err(BenchError::Silent { what: format!("{path} has no IPv4") });
    };
    let daemons = [a, b].iter().filter_map(|host| Some(host.overlay()?.pid)).collect();
    Ok(Wired { client: (*client).clone(), server: (*server).clone(), to, daemons, programs: vec![] })
}

/// A path that flannel itself makes. Its pods are wired as its CNI plugin would.
fn by_flanneld(lab: &Lab, path: Path, a: &Host, b: &Host) -> Result<Wired, BenchError> {
    let prefix = configure(lab, path)?;
    let mut programs = vec![];
    for host in [a, b] {
        forward(host)?;
        bridge_nf(host)?;
        programs.push(host.spawn(&[
            "flanneld",
            &format!("-etcd-endpoints={}", lab.etcd().endpoints()),
            &format!("-etcd-prefix={prefix}"),
            "-iface=eth0",
            "-ip-masq",
            &format!("-subnet-file={}", host.subnet_file().display()),
        ])?);
    }
    let mut pods = vec![];
    for (host, program) in [a, b].into_iter().zip(&programs) {
        let gateway = wait_for(READY, || host.subnet_env().map_err(|error| error.chain()).and_then(gateway))
            .map_err(|timed_out| LabError::Late {
                what: format!("flanneld on {}", host.name()),
                timed_out,
                log: format!("\n{}", program.stderr_so_far()),
            })?;
        let pod = host.namespace("pod")?;
        ip(host, &wiring::bridge_pod(&format!("{}/24", gateway.0), pod.netns(), gateway.1))?;
        let [x, y, z, _] = gateway.0.octets();
        let address = Ipv4Addr::new(x, y, z, 2);
        ip(&pod, &wiring::bridged_pod(&format!("{address}/24"), gateway.0))?;
        pods.push((pod, address));
    }
    let daemons = programs.iter().filter_map(|program| program.pid().try_into().ok()).collect();
    let [(client, _), (server, to)] = pods.try_into().expect("two hosts, a pod each");
    Ok(Wired { client, server, to, daemons, programs })
}

/// Writes the path's network into etcd, under a prefix of its own.
fn configure(lab: &Lab, path: Path) -> Result<String, BenchError> {
    let prefix = format!("/bench/{path}");
    let backend = path.backend().expect("only paths with a daemon are configured");
    let config =
        format!(r#"{{"Network":"{}","SubnetLen":24,"Backend":{{"Type":"{backend}"}}}}"#, wiring::NETWORK);
    lab.etcd().put(&format!("{prefix}/config"), &config)?;
    Ok(prefix)
}

/// The host's own address in its subnet, and the pods' MTU, out of flannel's subnet file.
fn gateway(variables: std::collections::BTreeMap<String, String>) -> Result<(Ipv4Addr, u32), String> {
    let subnet = variables.get("FLANNEL_SUBNET").and_then(|subnet| subnet.split('/').next()?.parse().ok());
    let mtu = variables.get("FLANNEL_MTU").and_then(|mtu| mtu.parse().ok());
    subnet.zip(mtu).ok_or_else(|| format!("{variables:?}"))
}

/// The tunnel of one packet per system call, and its TUN.
fn single(host: &Host, own: Side, peer: Side, options: &Options) -> Result<Running, BenchError> {
    let weft = options.weft.display().to_string();
    let program = host.spawn(&[
        &weft,
        "bench",
        "udp-single",
        &format!("--tun={}", wiring::SINGLE_TUN),
        &format!("--local={}", own.underlay),
        &format!("--subnet={}", own.subnet()),
        &format!("--peer={}", peer.underlay),
        &format!("--peer-subnet={}", peer.subnet()),
    ])?;
    let look = || {
        let shown = host.run_args(&["ip", "link", "show", wiring::SINGLE_TUN]).ok().map(drop);
        shown.map_err(|_| program.stderr_so_far())
    };
    wait_for(READY, look).map_err(|timed_out| LabError::Late {
        what: format!("the TUN of udp-single on {}", host.name()),
        timed_out,
        log: String::new(),
    })?;
    Ok(program)
}

fn sides(a: &Host, b: &Host) -> (Side, Side) {
    (Side { number: 1, underlay: a.v4() }, Side { number: 2, underlay: b.v4() })
}

fn ip(place: &Place, batch: &str) -> Result<(), BenchError> {
    Ok(place.run_with_stdin(&["ip", "-batch", "-"], batch.as_bytes()).ok().map(drop)?)
}

fn forward(host: &Host) -> Result<(), BenchError> {
    write_sysctl(host, "net/ipv4/ip_forward")
}

/// flannel with iptables insists on it, Kubernetes too. A kernel without it spares flannel that cost.
fn bridge_nf(host: &Host) -> Result<(), BenchError> {
    let sysctl = "net/bridge/bridge-nf-call-iptables";
    if std::path::Path::new("/proc/sys").join(sysctl).exists() { write_sysctl(host, sysctl) } else { Ok(()) }
}

fn write_sysctl(host: &Host, name: &str) -> Result<(), BenchError> {
    let written = host.within(|| std::fs::write(format!("/proc/sys/{name}"), "1"))?;
    written.map_err(BenchError::io(format!("set {name} on {}", host.name())))
}
