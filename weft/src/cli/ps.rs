//! `weft ps`: the labs of this machine, host by host.

use std::process::ExitCode;

use weft_lab::{HostStatus, Lab, labs_dir, list};

use super::error::CliError;
use super::output::{OutputArgs, Table};

/// List the hosts and pods of the clusters on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    /// This cluster alone
    #[arg(long, value_name = "LAB")]
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints a row for each host.
///
/// # Errors
/// When a lab is not there or its record cannot be read.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let labs = labs_dir();
    let names = match args.name {
        Some(name) => vec![name],
        None => list(&labs)?,
    };
    let mut hosts = Vec::new();
    for name in &names {
        hosts.extend(Lab::open(&labs, name)?.status()?);
    }
    if hosts.is_empty() {
        eprintln!("no cluster is up; `weft up` raises one");
    }
    args.output.print(&hosts, table)?;
    Ok(ExitCode::SUCCESS)
}

/// One row for each host.
pub(super) fn table(hosts: &[HostStatus]) -> Table {
    let mut table = Table::new(["LAB", "HOST", "ADDRESS", "SUBNETS", "PODS", "STATE"]);
    for host in hosts {
        let pods = host.pods.iter().map(|pod| {
            let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
            format!("{}={}", pod.name, addresses.join("+"))
        });
        table.row([
            host.lab.clone(),
            host.host.clone(),
            host.ipv4.to_string(),
            host.subnets.join(","),
            pods.collect::<Vec<_>>().join(","),
            host.state.to_string(),
        ]);
    }
    table
}
