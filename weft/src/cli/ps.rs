//! `weft ps`: the labs of this machine, host by host.

use std::process::ExitCode;

use weft_lab::{HostStatus, Lab, LabError, labs_dir, list};

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
    let status = |name: &str| Lab::open(&labs, name).and_then(|lab| lab.status());
    let mut hosts = Vec::new();
    match args.name {
        Some(name) => hosts = status(&name)?,
        None => {
            for name in list(&labs)? {
                match status(&name) {
                    // Taken down since it was listed.
                    Err(LabError::NoSuchLab { .. }) => {}
                    status => hosts.extend(status?),
                }
            }
        }
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
