//! `weft bench`: measures, prints tables, and says in words what was reached.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnetwork::Ipv4Network;
use weft_benches::overlay::path::Path as Way;
use weft_benches::overlay::regime::Regime;
use weft_benches::overlay::{self, Audience, Options, Outcome, verdict};
use weft_benches::report::Report;
use weft_benches::svg;
use weft_overlay::model::Subnet;
use weft_overlay::udp::single::SingleTunnel;
use weft_overlay::udp::{PeerEnd, PeerTable};

use super::VERSION;
use super::error::CliError;
use super::output::print;

/// Measure the data paths and the control plane on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    Overlay(OverlayArgs),
    /// The tunnel of the path `udp-single`; the bench starts it on its hosts
    #[command(hide = true)]
    UdpSingle(SingleArgs),
}

/// Compare the ways between pods, and time how fast leases are programmed
///
/// Hosts are network namespaces and etcd is real. All paths stand side by side and are measured in
/// turn, in 15 rounds: about 25 minutes; with --quick in 5 short ones, under 4 minutes. What cannot be
/// measured is said and the rest goes on; the exit status is then 1. Everything is removed at the end,
/// and by Ctrl-C too. Needs root, and a machine that has nothing else to do.
#[derive(Debug, clap::Args)]
struct OverlayArgs {
    /// Five short rounds: an impression, not a claim
    #[arg(long)]
    quick: bool,
    /// Write all samples here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw charts here
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Only these paths: bare, direct, host-gw, vxlan, udp, udp-single, flannel-layout,
    /// flanneld-vxlan, flanneld-udp
    #[arg(long, value_name = "PATH", value_delimiter = ',', value_parser = way)]
    only: Vec<Way>,
    /// Only these regimes: default, no-offload, no-tso, shaped; or control, the control plane
    #[arg(long, value_name = "REGIME", value_delimiter = ',', value_parser = part)]
    regime: Vec<Part>,
}

/// One end of a tunnel that moves one packet per system call.
#[derive(Debug, clap::Args)]
struct SingleArgs {
    #[arg(long)]
    tun: String,
    #[arg(long)]
    local: Ipv4Addr,
    #[arg(long)]
    subnet: Ipv4Network,
    #[arg(long)]
    peer: Ipv4Addr,
    #[arg(long)]
    peer_subnet: Ipv4Network,
}

/// What `--regime` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Traffic(Regime),
    Control,
}

/// What a shell says of a program that SIGINT ended: 128 + 2.
const INTERRUPTED: u8 = 130;

/// Signals within this time are one wish: timeout(1) sends it to the process and to its group.
const ONE_WISH: Duration = Duration::from_secs(1);

/// flannel's port for raw IP in UDP.
const UDP_PORT: u16 = 8285;

/// Measures.
///
/// # Errors
/// When nothing could be measured at all. Nothing is left behind.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    match args.bench {
        Bench::Overlay(args) => run_overlay(&args),
        Bench::UdpSingle(args) => run_single(&args),
    }
}

fn run_overlay(args: &OverlayArgs) -> Result<ExitCode, CliError> {
    let weft = std::env::current_exe()
        .map_err(|error| CliError::failed(format!("cannot find this program's own file: {error}")))?;
    // Before the first minute, not after the last.
    let json = args.json.as_deref().map(create).transpose()?;
    let drawing = args.svg.as_deref().map(create).transpose()?;
    let console = Console::new()?;
    let Outcome { report, failures, interrupted } = overlay::run(&options(args, weft), &console)?;
    console.clear();
    if let Some(mut file) = json {
        serde_json::to_writer_pretty(&mut file, &report)?;
        writeln!(file)?;
    }
    if let Some(mut file) = drawing {
        file.write_all(svg::render(&report, &verdict::headlines(&report)).as_bytes())?;
    }
    let missing: String = failures.iter().map(|failure| format!("not measured: {failure}\n")).collect();
    print(&(text(&report) + &missing))?;
    Ok(match (interrupted, failures.is_empty()) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    })
}

fn options(args: &OverlayArgs, weft: PathBuf) -> Options {
    let named: Vec<Regime> = args
        .regime
        .iter()
        .filter_map(|part| match part {
            Part::Traffic(regime) => Some(*regime),
            Part::Control => None,
        })
        .collect();
    Options {
        weft,
        commit: commit(VERSION).to_owned(),
        quick: args.quick,
        only: args.only.clone(),
        regimes: if args.regime.is_empty() { Regime::usual(args.quick).to_vec() } else { named },
        // The control plane is that of `vxlan`.
        control: match args.regime.is_empty() {
            true => args.only.is_empty() || args.only.contains(&Way::Vxlan),
            false => args.regime.contains(&Part::Control),
        },
    }
}

/// The commit in a version `0.1.0 (abc)`.
fn commit(version: &str) -> &str {
    let inside = version.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.unwrap_or("unknown")
}

fn text(report: &Report) -> String {
    let machine = &report.machine;
    format!(
        "{}, {} processors, {} MiB, kernel {}; weft {}, {}; medians\n\n{}{}",
        machine.cpu_model,
        machine.cpus,
        machine.memory_mb,
        machine.kernel,
        report.commit,
        report.date,
        report.table(),
        verdict::words(report)
    )
}

fn create(path: &Path) -> Result<File, CliError> {
    File::create(path).map_err(|error| CliError::failed(format!("cannot write {}: {error}", path.display())))
}

fn way(raw: &str) -> Result<Way, String> {
    raw.parse().map_err(|error: overlay::path::UnknownPath| error.to_string())
}

fn part(raw: &str) -> Result<Part, String> {
    if raw == "control" {
        return Ok(Part::Control);
    }
    let unknown = |error: overlay::regime::UnknownRegime| format!("{error}, and control");
    raw.parse().map(Part::Traffic).map_err(unknown)
}

/// Progress on stderr, if that is a terminal; and Ctrl-C.
struct Console {
    terminal: bool,
    shown: Cell<bool>,
    interrupted: Arc<AtomicBool>,
    /// Listens for signals as long as it lives.
    _signals: tokio::runtime::Runtime,
}

impl Console {
    fn new() -> Result<Self, CliError> {
        let signals = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = interrupted.clone();
        let mut interrupt = {
            let _inside = signals.enter();
            use tokio::signal::unix::{SignalKind, signal};
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        signals.spawn(async move {
            let mut first: Option<Instant> = None;
            loop {
                tokio::select! {
                    _ = interrupt.0.recv() => {}
                    _ = interrupt.1.recv() => {}
                }
                if first.is_some_and(|first| first.elapsed() < ONE_WISH) {
                    continue;
                }
                if first.replace(Instant::now()).is_some() {
                    // The second one: the next `weft down --all` removes what is left.
                    std::process::exit(INTERRUPTED.into());
                }
                flag.store(true, Ordering::Relaxed);
                eprintln!("\nending and removing everything; once more to leave it as it is");
            }
        });
        let terminal = std::io::stderr().is_terminal();
        Ok(Self { terminal, shown: Cell::new(false), interrupted, _signals: signals })
    }

    fn clear(&self) {
        if self.shown.replace(false) {
            eprint!("\r\x1b[K");
        }
    }
}

impl Audience for Console {
    fn step(&self, what: &str) {
        if self.terminal {
            self.shown.set(true);
            eprint!("\r\x1b[K{what}");
        }
    }

    fn note(&self, what: &str) {
        self.clear();
        eprintln!("{what}");
    }

    fn wants_out(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// Runs until it is killed.
fn run_single(args: &SingleArgs) -> Result<ExitCode, CliError> {
    let subnet = |v4| Subnet { v4: Some(v4), v6: None };
    let end = PeerEnd {
        v4_by: Some((args.peer, UDP_PORT).into()),
        v6_by: None,
        addresses: BTreeSet::from([args.peer.into()]),
    };
    let peers = PeerTable {
        own: subnet(args.subnet),
        networks: BTreeSet::from([args.subnet.into(), args.peer_subnet.into()]),
        peers: BTreeMap::from([(subnet(args.peer_subnet), end)]),
        anti_spoofing: true,
        extra_sources: BTreeSet::new(),
    };
    let _tunnel = SingleTunnel::open(&args.tun, args.local, UDP_PORT, &peers)?;
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn parsed(args: &[&str]) -> Options {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let cli = Cli::try_parse_from(["bench", "overlay"].iter().chain(args)).unwrap();
        match cli.args.bench {
            Bench::Overlay(args) => options(&args, "weft".into()),
            Bench::UdpSingle(_) => panic!("another command"),
        }
    }

    #[test]
    fn what_is_measured_follows_from_the_flags() {
        let everything = parsed(&[]);
        assert_eq!((everything.regimes, everything.control), (Regime::ALL.to_vec(), true));
        let table: [(&[&str], &[Regime], bool); 6] = [
            (&["--quick"], Regime::usual(true), true),
            (&["--only", "bare,udp"], &Regime::ALL, false),
            (&["--only", "vxlan"], &Regime::ALL, true),
            (&["--regime", "control"], &[], true),
            (&["--regime", "no-tso,shaped"], &[Regime::NoTso, Regime::Shaped], false),
            (&["--regime", "default", "--regime", "control"], &[Regime::Default], true),
        ];
        for (args, regimes, control) in table {
            let options = parsed(args);
            assert_eq!((&options.regimes[..], options.control), (regimes, control), "{args:?}");
        }
        assert_eq!(parsed(&["--only", "bare,udp"]).only, [Way::Bare, Way::Udp]);
    }

    #[test]
    fn the_commit_is_in_the_version() {
        assert_eq!(commit("0.1.0 (0123456789ab)"), "0123456789ab");
        assert_eq!(commit("0.1.0"), "unknown");
    }
}
