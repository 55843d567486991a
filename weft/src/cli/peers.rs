//! `weft peers` and `weft diff`: what this host's daemon knows of the others, and what its kernel lacks.

use std::path::PathBuf;
use std::process::ExitCode;

use weft_daemon::http::client::Client;
use weft_overlay::options::NetworkName;
use weft_overlay::run::status::{Drift, PeerStatus, Status};

use super::error::CliError;
use super::output::{Form, OutputArgs, Table, print};

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
    fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let client = Client::new(&self.run_dir.join(self.network.as_str()).join("overlay.sock"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(client.get_json(path))?)
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
    let mut table = Table::new(["SUBNET", "NODE", "ADDRESS", "WAY", "STATE", "RTT", "LOSS", "WHY"]);
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
            peer.reason.clone(),
        ]);
    }
    table
}

/// Prints what would have to be changed, a line each, and what stands in the way.
///
/// # Errors
/// When no daemon runs for this network on this host.
pub fn diff(args: &DiffArgs) -> Result<ExitCode, CliError> {
    let drift: Drift = args.daemon.ask("/diff")?;
    if args.output.output == Form::Json {
        print(&format!("{}\n", serde_json::to_string_pretty(&drift)?))?;
    } else {
        let conflicts = drift.conflicts.iter().map(|line| format!("in the way: {line}\n"));
        let lines: String = drift.changes.iter().map(|line| format!("{line}\n")).chain(conflicts).collect();
        if lines.is_empty() {
            eprintln!("the kernel holds what it should");
        }
        print(&lines)?;
    }
    let clean = drift.changes.is_empty() && drift.conflicts.is_empty();
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
            ..PeerStatus::default()
        };
        let expected = "\
SUBNET        NODE   ADDRESS     WAY              STATE  RTT      LOSS  WHY
10.42.7.0/24  birch  192.0.2.12  vxlan over IPv4  live   0.31 ms  1/10  -
";
        assert_eq!(table(&[peer]).render(false), expected);
    }
}
