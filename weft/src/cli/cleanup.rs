//! `weft cleanup`: every trace of a network leaves this host.

use std::path::PathBuf;
use std::process::ExitCode;

use weft_overlay::cleanup::{Report, Traces, cleanup};
use weft_overlay::options::NetworkName;

use super::error::CliError;
use super::output::print;
use super::values::own;

/// Remove every trace of the overlay from this host, while its daemon is stopped
///
/// Takes away links, routes, packet filter rules and files of one network, pods' links among them,
/// and puts kernel settings back to what they were. What others made stays. The subnet in etcd is not
/// given back: `weft lease release` does that.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    here: Here,
    /// Give the tunnel to flanneld: its link and its routes get flannel's names and stay, so that
    /// connections last; start flanneld afterwards
    #[arg(long)]
    give_back_flannel: bool,
}

/// One network on this host, as its daemon was told.
#[derive(Debug, clap::Args)]
pub(super) struct Here {
    /// What the network is called on this host
    #[arg(long, value_name = "NAME", default_value = "weft", value_parser = own::<NetworkName>)]
    network: NetworkName,
    /// Where the daemon's socket is
    #[arg(long, value_name = "DIR", default_value = "/run/weft")]
    run_dir: PathBuf,
    /// What outlives a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft")]
    state_dir: PathBuf,
    /// Where the host's subnet is written for other programs
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    subnet_file: PathBuf,
}

impl Here {
    pub(super) fn traces(self) -> Traces {
        let Self { network, run_dir, state_dir, subnet_file } = self;
        Traces { network, run_dir, state_dir, subnet_file, give_back_flannel: false }
    }
}

/// Removes, and prints what it removed.
///
/// # Errors
/// When the daemon runs, or something could not be removed.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let traces = Traces { give_back_flannel: args.give_back_flannel, ..args.here.traces() };
    let Report { given_back, removed, left, failed } = cleanup(&traces)?;
    let mut said: String = given_back.iter().map(|what| format!("gave back {what}\n")).collect();
    said.extend(removed.iter().map(|what| format!("removed {what}\n")));
    print(&said)?;
    for what in &left {
        eprintln!("left {what}");
    }
    if !failed.is_empty() {
        return Err(CliError::failed(failed.join("; ")).hint("mend that and run it again"));
    }
    if removed.is_empty() && given_back.is_empty() {
        eprintln!("nothing of network `{}` is on this host", traces.network);
    }
    Ok(ExitCode::SUCCESS)
}
