//! `weft peers` and `weft diff`: what this host's daemon knows of the others, and what the kernel lacks, of
//! the overlay and of services.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use weft_daemon::http::client::Client;
use weft_overlay::options::NetworkName;
use weft_overlay::run::status::{Drift, PeerStatus, Status};

use super::error::CliError;
use super::output::{Form, OutputArgs, Table, print};
use super::services;

/// Which daemon of this host is asked.
#[derive(Debug, clap::Args)]
pub struct DaemonArgs {
    /// The network, as in `weft overlay --network`
    #[arg(long, value_name = "NAME", default_value = "weft", env = "WEFT_NETWORK")]
    network: NetworkName,
    /// The daemon's directory, as in `weft overlay --run-dir`
    #[arg(long, value_name = "DIR", default_value = "/run/weft", env = "WEFT_RUN_DIR")]
    run_dir: PathBuf,
}

/// List the other hosts: how each is reached, whether it answers
#[derive(Debug, clap::Args)]
pub struct PeersArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Compare the kernel with what it should hold, now; exits with 1 if they differ
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl DaemonArgs {
    fn socket(&self) -> PathBuf {
        self.run_dir.join(self.network.as_str()).join("overlay.sock")
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(Client::new(&self.socket()).get_json(path))?)
    }
}

/// Prints a row for each of the other hosts.
///
/// # Errors
/// When no daemon runs for this network on this host.
pub fn peers(args: &PeersArgs) -> Result<ExitCode, CliError> {
    let status: Status = args.daemon.ask("/peers")?;
    if args.output.output == Form::Json {
        print(&format!("{}\n", serde_json::to_string_pretty(&status)?))?;
    } else {
        let subnet = status.subnet.as_deref().unwrap_or("no subnet");
        eprintln!(
            "network {}, this host {}: {subnet}, backend {}",
            status.network, status.node, status.backend
        );
        args.output.print(&status.peers, table)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(peers: &[PeerStatus]) -> Table {
    let mut table = Table::new([
        "SUBNET", "NODE", "ADDRESS", "WAY", "STATE", "RTT", "LOSS", "SENT", "RECEIVED", "DROPPED", "WHY",
    ]);
    for peer in peers {
        let rtt = peer.probes.iter().filter_map(|probe| probe.rtt_ms).reduce(f64::max);
        let (asked, lost) =
            peer.probes.iter().fold((0, 0), |(a, l), probe| (a + probe.asked, l + probe.lost));
        table.row([
            peer.subnet.clone(),
            peer.node.clone().unwrap_or_default(),
            peer.addresses.join(","),
            peer.ways.join(", "),
            peer.state.clone(),
            rtt.map(|rtt| format!("{rtt:.2} ms")).unwrap_or_default(),
            if asked == 0 { String::new() } else { format!("{lost}/{asked}") },
            carried(peer, |what| what == "sent_bytes").map(bytes).unwrap_or_default(),
            carried(peer, |what| what == "received_bytes").map(bytes).unwrap_or_default(),
            carried(peer, |what| what.starts_with("drop_")).map(|n| n.to_string()).unwrap_or_default(),
            peer.reason.clone(),
        ]);
    }
    table
}

/// What the tunnels counted together; `None` if none leads to this peer.
fn carried(peer: &PeerStatus, wanted: impl Fn(&str) -> bool) -> Option<u64> {
    let counters = || peer.udp.iter().chain(&peer.vxlan);
    let sum = counters().filter(|(what, _)| wanted(what)).map(|(_, total)| total).sum();
    counters().next().map(|_| sum)
}

/// Three digits or so: `84 B`, `1.5 KiB`, `20 GiB`.
fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss)] // three digits are shown
    let mut value = count as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        // 1023.95 would be shown as 1024.0.
        if value < 1023.95 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    let digits = if unit == "B" || value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {unit}")
}

/// What the overlay's kernel objects and the proxy's lack or have too much.
#[derive(Debug, Default, Serialize)]
struct Both {
    #[serde(flatten)]
    overlay: Drift,
    /// Of services.
    services: Vec<String>,
}

/// Prints what would have to be changed, a line each, and what stands in the way: of the overlay and of
/// the proxy, whichever runs here.
///
/// # Errors
/// When neither runs on this host.
pub fn diff(args: &DiffArgs) -> Result<ExitCode, CliError> {
    let overlay: Option<Drift> = services::ask_if_running(&args.daemon.socket(), "/diff")?;
    let proxy = services::socket(&args.daemon.run_dir);
    let services: Option<Vec<String>> = services::ask_if_running(&proxy, "/diff")?;
    if overlay.is_none() && services.is_none() {
        let line = "neither `weft overlay` nor `weft proxy` runs on this host";
        return Err(CliError::failed(line).hint("start one, or say where it is with --run-dir and --network"));
    }
    let both = Both { overlay: overlay.unwrap_or_default(), services: services.unwrap_or_default() };
    let Both { overlay: Drift { changes, conflicts }, services } = &both;
    if args.output.output == Form::Json {
        print(&format!("{}\n", serde_json::to_string_pretty(&both)?))?;
    } else {
        let changes = changes.iter().map(|line| format!("{line}\n"));
        let conflicts = conflicts.iter().map(|line| format!("in the way: {line}\n"));
        let services = services.iter().map(|line| format!("services: {line}\n"));
        let lines: String = changes.chain(conflicts).chain(services).collect();
        if lines.is_empty() {
            eprintln!("the kernel holds what it should");
        }
        print(&lines)?;
    }
    let clean = changes.is_empty() && conflicts.is_empty() && services.is_empty();
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_overlay::run::status::ProbeStatus;

    #[test]
    fn a_row_tells_how_a_peer_is_reached() {
        let probe = ProbeStatus { address: "10.42.7.0".into(), asked: 10, lost: 1, rtt_ms: Some(0.31) };
        let peer = PeerStatus {
            subnet: "10.42.7.0/24".into(),
            node: Some("birch".into()),
            addresses: vec!["192.0.2.12".into()],
            state: "live".into(),
            ways: vec!["vxlan over IPv4".into()],
            probes: vec![probe],
            vxlan: [("sent_bytes", 84), ("received_bytes", 5 << 20), ("drop_spoofed", 2)]
                .map(|(what, total)| (what.to_owned(), total))
                .into(),
            udp: [("received_bytes".to_owned(), 1 << 19), ("drop_too_big".to_owned(), 1)].into(),
            ..PeerStatus::default()
        };
        let direct = PeerStatus { vxlan: [].into(), udp: [].into(), ..peer.clone() };
        let expected = "\
SUBNET        NODE   ADDRESS     WAY              STATE  RTT      LOSS  SENT  RECEIVED  DROPPED  WHY
10.42.7.0/24  birch  192.0.2.12  vxlan over IPv4  live   0.31 ms  1/10  84 B  5.5 MiB   3        -
10.42.7.0/24  birch  192.0.2.12  vxlan over IPv4  live   0.31 ms  1/10  -     -         -        -
";
        assert_eq!(table(&[peer, direct]).render(false), expected);
    }

    #[test]
    fn bytes_in_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_400, "100 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (20 << 30, "20.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
