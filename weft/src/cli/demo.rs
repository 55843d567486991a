//! `weft demo`: what weft does, shown on three hosts made of network namespaces.

use std::process::ExitCode;

use super::error::CliError;

/// Show what weft does: hosts, pods, a host that dies and comes back. Needs root; takes under a minute
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Tells the story; fails when one of its claims did.
///
/// # Errors
/// When the stage could not be built; what was begun is removed.
pub fn run(_: Args) -> Result<ExitCode, CliError> {
    let weft = std::env::current_exe()
        .map_err(|error| CliError::failed(format!("cannot find this program's own file: {error}")))?;
    let score = weft_lab::demo::run(&weft, &mut std::io::stdout().lock())?;
    Ok(if score.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
