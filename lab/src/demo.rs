//! The demo: weft's story told on three hosts, each claim checked as it is made.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::manifests::{endpoint, service, slice};
use crate::traffic::{Protocol, Server};
use crate::{Host, Lab, LabError, Place, Pod, wait_for};

const NETWORK: &str = r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// How proxies tell local pods, and which addresses are for services.
const PROXY: [&str; 3] =
    ["--cluster-cidr=10.42.0.0/16", "--detect-local-mode=ClusterCIDR", "--service-cidrs=10.96.0.0/12"];
/// The service `web`: its cluster address, its node port, and where its pods listen.
const VIP: &str = "10.96.0.10:80";
const NODE_PORT: u16 = 30_080;
const TARGET_PORT: u16 = 8080;
/// How often a client asks to show how answers are shared. With three servers one of them is missed by
/// chance once in 80,000 demos.
const ASKED: usize = 30;
/// How long a connection may take.
const ANSWER: Duration = Duration::from_secs(10);
/// By when a dead host must be out of its peers' kernels.
const DROPPED: Duration = Duration::from_secs(15);
/// How long bytes are counted for the throughput table: enough for a first impression; `weft bench`
/// measures.
const BULK: u64 = 400_000_000;

/// How many of the demo's claims held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// These did.
    pub passed: usize,
    /// These did not.
    pub failed: usize,
}

/// Tells the story on `out`, with `weft` as every host's program.
///
/// # Errors
/// When the stage cannot be built or `out` takes no more; a claim that fails is counted, not an error.
pub fn run(weft: &Path, out: &mut impl Write) -> Result<Score, LabError> {
    let mut told = Told { out, score: Score::default(), start: Instant::now() };
    told.say("three hosts, one etcd, an overlay daemon and a service proxy on each host")?;
    let lab = Lab::named(&format!("demo-{}", std::process::id())).weft(weft).hosts(["ash", "birch", "cedar"]);
    let lab = lab.network(NETWORK).proxies(PROXY).up()?;
    let mut pods = Vec::new();
    for host in lab.hosts() {
        let subnet = subnet(&host)?;
        pods.push(host.pod("web")?);
        pods.push(host.pod("db")?);
        let addresses: Vec<String> = pods[pods.len() - 2..].iter().map(|pod| pod.ip().to_string()).collect();
        let line =
            format!("{:<6} {:<12} leased {subnet:<14} pods {}", host.name(), host.v4(), addresses.join(", "));
        told.say(&line)?;
    }
    told.claim("every pod reaches every other pod", || everybody(&pods))?;
    told.claim("a pod sees the other pod's own address, not its host's", || own_address(&pods[0], &pods[4]))?;
    told.claim("100 MB from host to host arrive as they were sent", || {
        pods[0].sends(&pods[2], 100_000_000).map(|sent| format!("sha256 {}...", &sent.sha256[..12]))
    })?;

    let web = [&pods[0], &pods[2], &pods[4]];
    let _servers = services(&mut told, &lab, web, &pods[1])?;

    let cedar = lab.host("cedar");
    let lost = subnet(&cedar)?;
    told.say("cedar loses power")?;
    cedar.die()?;
    let died = Instant::now();
    told.claim("its peers drop it from their kernels, within 15 s", || {
        wait_for(DROPPED, || {
            !routes(&lab.host("ash")).contains(&lost) && !routes(&lab.host("birch")).contains(&lost)
        })
        .map_err(|error| LabError::Traffic { what: error.to_string() })?;
        Ok(format!("after {:.1} s", died.elapsed().as_secs_f64()))
    })?;
    told.claim("ash and birch do not notice", || everybody(&pods[..4]))?;
    told.claim("without cedar's endpoint, the service is the other two", || {
        lab.manifests().apply(&[endpoints(&web[..2])])?;
        shared(&pods[1], vip(), &names(&web[..2]))
    })?;
    told.say("cedar comes back")?;
    cedar.boot()?;
    cedar.start_overlay()?;
    told.claim("it has the subnet it had", || {
        let again = subnet(&cedar)?;
        if again == lost {
            Ok(again)
        } else {
            Err(LabError::Traffic { what: format!("{again} instead of {lost}") })
        }
    })?;
    let reborn = cedar.pod("reborn")?;
    told.claim("its pods are reached again", || {
        wait_for(DROPPED, || pods[0].reaches(&reborn))
            .map_err(|error| LabError::Traffic { what: error.to_string() })?;
        Ok(format!("{} answers", reborn.ip()))
    })?;

    told.say(
        "throughput, one TCP connection, hashed at both ends (two cores do all of it; `weft bench` measures)",
    )?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    let direct = ash.sends(&birch, BULK)?.gbit_per_second();
    let overlay = pods[0].sends(&pods[2], BULK)?.gbit_per_second();
    told.say(&format!("  host to host, no overlay  {direct:>6.1} Gbit/s"))?;
    told.say(&format!(
        "  pod to pod, vxlan         {overlay:>6.1} Gbit/s   {:.2} of that",
        overlay / direct
    ))?;
    lab.down()?;
    told.end()
}

/// A service of one pod on each host, in use.
fn services(
    told: &mut Told<'_, impl Write>,
    lab: &Lab,
    web: [&Pod; 3],
    client: &Pod,
) -> Result<Vec<Server>, LabError> {
    told.say(&format!("a service `web`, {VIP}, node port {NODE_PORT}: a pod on each host"))?;
    let servers: Result<Vec<_>, _> = web.iter().map(|pod| pod.server_at(TARGET_PORT, pod.name())).collect();
    let servers = servers?;
    let port = json!({"name": "http", "port": 80, "nodePort": NODE_PORT});
    let spec = json!({"type": "NodePort", "clusterIPs": [vip().ip()], "ports": [port]});
    lab.manifests().apply(&[service("web", spec), endpoints(&web)])?;
    let all = names(&web);
    told.claim("a pod reaches it, and all three pods answer", || shared(client, vip(), &all))?;
    told.claim("the pod that answers sees the pod that asks", || {
        let whom = |answer| match answer {
            crate::traffic::Answer::From { seen_as, .. } => Ok(seen_as),
            other => Err(LabError::Traffic { what: format!("{other:?}") }),
        };
        let seen = whom(client.asks(vip(), Protocol::Tcp, ANSWER))?;
        if seen == client.ip() {
            Ok(seen.to_string())
        } else {
            Err(LabError::Traffic { what: format!("seen as {seen}") })
        }
    })?;
    for host in lab.hosts() {
        let at = SocketAddr::new(host.v4().into(), NODE_PORT);
        let outside = lab.outside();
        told.claim(&format!("from outside, {}'s node port {at}", host.name()), || {
            shared(&outside, at, &all)
        })?;
    }
    let ash = lab.host("ash");
    told.claim("kill -9 of ash's proxy: a connection goes on, new ones are served, it comes back", || {
        let (_, talk) = client.converse_with(vip(), Duration::from_millis(5))?;
        let load = client.load(vip(), Protocol::Tcp, ANSWER)?;
        ash.proxy().kill()?;
        ash.proxy().start()?;
        let count = load.stop_without_failure()?.answered();
        talk.stop_without_loss()?;
        Ok(format!("{count} new connections, 0 failed"))
    })?;
    explained(told, lab, client)?;
    Ok(servers)
}

/// Where a connection goes, and why, in weft's own words.
fn explained(told: &mut Told<'_, impl Write>, lab: &Lab, client: &Pod) -> Result<(), LabError> {
    let ash = lab.host("ash");
    let node_port = format!("{}:{NODE_PORT}", ash.v4());
    let mut words = String::new();
    for (from, to) in [(lab.outside().address(), node_port.as_str()), (client.ip(), VIP)] {
        let question = format!("weft explain {from} {to}");
        told.claim(&format!("`{question}` on ash names all three"), || {
            words = ash.run(&question).ok()?;
            let web = lab.pods()?.into_iter().filter(|pod| pod.name().ends_with("/web"));
            let at = web.map(|pod| SocketAddr::new(pod.ip(), TARGET_PORT).to_string());
            let missing: Vec<String> = at.filter(|at| !words.contains(at)).collect();
            if missing.is_empty() {
                Ok("the kernel agrees".to_owned())
            } else {
                Err(LabError::Traffic { what: format!("nothing of {}", missing.join(", ")) })
            }
        })?;
    }
    words.lines().try_for_each(|line| told.say(&format!("        {line}")))
}

fn vip() -> SocketAddr {
    VIP.parse().expect("an address and a port")
}

fn names<'a>(pods: &'a [&Pod]) -> Vec<&'a str> {
    pods.iter().map(|pod| pod.name()).collect()
}

fn endpoints(pods: &[&Pod]) -> Value {
    let endpoints: Vec<Value> = pods.iter().map(|pod| endpoint(pod.ip(), pod.host().name())).collect();
    slice("web-1", "web", json!([{"name": "http", "port": TARGET_PORT}]), &endpoints)
}

/// How many connections each of these answered; everyone some, and nobody else any.
fn shared(from: &Place, to: SocketAddr, servers: &[&str]) -> Result<String, LabError> {
    let answers = from.asks_often(to, Protocol::Tcp, ANSWER, ASKED);
    let by: Vec<&str> = answers.by_server.keys().map(String::as_str).collect();
    if answers.others.is_empty() && by == servers {
        let shares: Vec<String> =
            answers.by_server.iter().map(|(name, count)| format!("{name} {count}")).collect();
        Ok(format!("of {ASKED}: {}", shares.join(", ")))
    } else {
        Err(LabError::Traffic {
            what: format!("answers by {:?}, then {:?}", answers.by_server, answers.others),
        })
    }
}

struct Told<'a, W: Write> {
    out: &'a mut W,
    score: Score,
    start: Instant,
}

impl<W: Write> Told<'_, W> {
    fn say(&mut self, line: &str) -> Result<(), LabError> {
        let seconds = self.start.elapsed().as_secs_f64();
        writeln!(self.out, "{seconds:5.1} s  {line}")
            .and_then(|()| self.out.flush())
            .map_err(LabError::io("tell"))
    }

    fn claim(
        &mut self,
        what: &str,
        check: impl FnOnce() -> Result<String, LabError>,
    ) -> Result<(), LabError> {
        match check() {
            Ok(detail) => {
                self.score.passed += 1;
                self.say(&format!("  ok    {what} ({detail})"))
            }
            Err(error) => {
                self.score.failed += 1;
                self.say(&format!("  FAIL  {what}: {}", error.chain()))
            }
        }
    }

    fn end(self) -> Result<Score, LabError> {
        let Score { passed, failed } = self.score;
        writeln!(self.out, "{passed} passed, {failed} failed").map_err(LabError::io("tell"))?;
        Ok(self.score)
    }
}

/// Every pod pings every other one.
fn everybody(pods: &[Pod]) -> Result<String, LabError> {
    let mut pairs = 0;
    for from in pods {
        for to in pods.iter().filter(|to| to.ip() != from.ip()) {
            from.reaches(to)?;
            pairs += 1;
        }
    }
    Ok(format!("{pairs} pairs"))
}

fn own_address(from: &Pod, to: &Pod) -> Result<String, LabError> {
    let whoami = to.tcp_whoami()?;
    let seen = from.seen_as(whoami.at(to.ip()))?;
    if seen == from.ip() {
        Ok(format!("{seen}"))
    } else {
        Err(LabError::Traffic { what: format!("{} is seen as {seen}", from.ip()) })
    }
}

/// The subnet the host's daemon says it has, as a network.
fn subnet(host: &Host) -> Result<String, LabError> {
    let env = host.subnet_env()?;
    let missing = || LabError::Traffic { what: format!("{} has no FLANNEL_SUBNET", host.name()) };
    let first: ipnetwork::IpNetwork =
        env.get("FLANNEL_SUBNET").and_then(|text| text.parse().ok()).ok_or_else(missing)?;
    Ok(format!("{}/{}", first.network(), first.prefix()))
}

fn routes(place: &Place) -> String {
    place.run("ip route").stdout
}
