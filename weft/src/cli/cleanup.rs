//! `weft cleanup`: every trace of weft leaves this host, the overlay's network and the proxy.

use std::path::PathBuf;
use std::process::ExitCode;

use weft_overlay::cleanup::{Report, Traces, check, cleanup};
use weft_overlay::options::NetworkName;
use weft_proxy::cleanup as proxy;

use super::error::CliError;
use super::output::print;
use super::values::own;

/// Remove every trace of weft from this host, while its daemons are stopped
///
/// Takes away links, routes, packet filter rules and files of one network of the overlay, pods' links
/// among them, and those of the proxy in either mode, and puts kernel settings back to what they were.
/// What others made stays. The subnet in etcd is not given back: `weft lease release` does that.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    here: Here,
    /// Only what `weft overlay` made, or only what `weft proxy` made; the other may run
    #[arg(long, value_name = "PART", value_enum)]
    only: Option<Part>,
    /// Give the tunnel to flanneld: its link and its routes get flannel's names and stay, so that
    /// connections last; start flanneld afterwards
    #[arg(long)]
    give_back_flannel: bool,
}

/// What a daemon makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Part {
    /// A network of pods.
    Overlay,
    /// Services.
    Proxy,
}

/// One network on this host, as its daemon was told.
#[derive(Debug, clap::Args)]
pub(super) struct Here {
    /// What the network is called on this host
    #[arg(long, value_name = "NAME", default_value = "weft", env = "WEFT_NETWORK", value_parser = own::<NetworkName>)]
    network: NetworkName,
    /// Where the daemon's socket is
    #[arg(long, value_name = "DIR", default_value = "/run/weft", env = "WEFT_RUN_DIR")]
    run_dir: PathBuf,
    /// What outlives a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft", env = "WEFT_STATE_DIR")]
    state_dir: PathBuf,
    /// Where the host's subnet is written for other programs
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env", env = "WEFT_SUBNET_FILE")]
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
    let services = proxy::Traces { run_dir: traces.run_dir.clone(), state_dir: traces.state_dir.clone() };
    let wanted = |part| args.only.is_none_or(|only| only == part);
    // Both are looked at before either is touched.
    if wanted(Part::Overlay) {
        check(&traces)?;
    }
    if wanted(Part::Proxy) {
        proxy::check(&services)?;
    }
    // The proxy first: as long as its files are there, the overlay takes itself for one of several.
    let of_proxy = if wanted(Part::Proxy) { proxy::cleanup(&services)? } else { proxy::Report::default() };
    let of_overlay = if wanted(Part::Overlay) { cleanup(&traces)? } else { Report::default() };
    let Report { given_back, removed, left, failed } = of_overlay;
    let removed = [of_proxy.removed, removed].concat();
    let left = [of_proxy.left, left].concat();
    let failed = [of_proxy.failed, failed].concat();
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
        match args.only {
            Some(Part::Proxy) => eprintln!("nothing of the proxy is on this host"),
            Some(Part::Overlay) => eprintln!("nothing of network `{}` is on this host", traces.network),
            None => eprintln!("nothing of network `{}` or of the proxy is on this host", traces.network),
        }
    }
    Ok(ExitCode::SUCCESS)
}
