//! The demo: weft's story told on three hosts, each claim checked as it is made.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Host, Lab, LabError, Place, Pod, wait_for};

const NETWORK: &str = r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#;
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
    told.say("three hosts, one etcd, an overlay daemon on each host")?;
    let lab = Lab::named(&format!("demo-{}", std::process::id())).weft(weft).hosts(["ash", "birch", "cedar"]);
    let lab = lab.network(NETWORK).up()?;
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
