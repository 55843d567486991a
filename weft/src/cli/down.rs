//! `weft down`: the end of a lab, healthy or crashed.

use std::process::ExitCode;

use weft_lab::{Ending, down, down_all, labs_dir};

use super::error::CliError;
use super::output::print;

/// Take a cluster on this machine down, with everything that runs in it
///
/// One that is not there is no failure. Crashed ones go as well.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    lab: super::LabArgs,
    /// All clusters that no running program uses
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

/// Takes it down, or all of them; goes on when one fails.
///
/// # Errors
/// What could not be removed.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let labs = labs_dir();
    if !args.all {
        let name = &args.lab.name;
        let verdict = if down(&labs, name)? { "is down" } else { "was not up" };
        print(&format!("lab `{name}` {verdict}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut failed = Vec::new();
    for (name, ending) in down_all(&labs)? {
        match ending {
            Ending::Gone => print(&format!("lab `{name}` is down\n"))?,
            Ending::InUse { pid } => print(&format!("lab `{name}` is in use by process {pid}\n"))?,
            Ending::Failed(error) => failed.push(error.chain()),
        }
    }
    if failed.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(CliError::failed(failed.join("; "))) }
}
