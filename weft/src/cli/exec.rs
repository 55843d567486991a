//! `weft exec`: a command in a place of a lab.

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use weft_lab::{Lab, LabError, labs_dir};

use super::error::CliError;

/// Run a command on a host or in a pod of a cluster on this machine
///
/// The command takes the place of this program: its terminal, its signals, its exit code. A pod that
/// is not there yet is made.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    lab: super::LabArgs,
    /// Where: a host (`ash`), a pod (`ash/pod-1`), an etcd member, `router`, `outside` or `lan`
    #[arg(value_name = "PLACE")]
    place: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, last = true)]
    command: Vec<String>,
}

/// Runs it; returns only if that was not possible.
///
/// # Errors
/// When the lab, the place or the program is not there.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let lab = Lab::open(&labs_dir(), &args.lab.name)?;
    let place = match lab.place(&args.place) {
        Err(LabError::NoSuchPod { host, pod }) => {
            let made = lab.find_host(&host)?.pod(&pod)?;
            eprintln!("made pod {} at {}", made.name(), made.ip());
            (*made).clone()
        }
        found => found?,
    };
    let error = place.command(&args.command)?.exec();
    let program = args.command.first().map_or("", String::as_str);
    Err(CliError::failed(format!("cannot run `{program}` in {}: {error}", args.place)))
}
