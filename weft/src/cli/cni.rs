//! `weft cni`, or the program under the name `weft-cni`: the CNI plugin. stdin and environment in, JSON out.

use std::io::Read as _;
use std::process::ExitCode;

use weft_daemon::Env;
use weft_overlay::cni::answer;
use weft_overlay::cni::protocol::Refusal;

use super::error::CliError;
use super::output::print;

/// Be the CNI plugin for one call of a container runtime
///
/// Reads CNI_COMMAND and its companions from the environment and the network's configuration from
/// stdin, as the CNI specification says. A runtime calls it by a link named `weft-cni` in its plugin
/// directory.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// The most that a runtime's configuration may hold; real ones are a few kilobytes.
const MOST: u64 = 4 << 20;

/// Answers one call. A refusal is JSON on stdout, as the specification wants it, and exit code 1.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(env: &Env) -> Result<ExitCode, CliError> {
    let mut config = Vec::new();
    let variable = |name: &str| env.get(name)?.into_string().ok();
    let (answer, well) = match std::io::stdin().take(MOST).read_to_end(&mut config) {
        Ok(_) => answer(variable, &config),
        Err(error) => {
            let message = format!("cannot read the network configuration from stdin: {error}");
            (Some(Refusal::new(Refusal::IO, message).to_json("")), false)
        }
    };
    if let Some(answer) = answer {
        print(&format!("{answer}\n"))?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
