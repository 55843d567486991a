//! `weft proxy --dry-run`: what would be programmed, in words. Nothing is touched.

use std::process::ExitCode;

use weft_proxy::explain::{overview, words};
use weft_proxy::run::{Once, Options, read_once};

use crate::cli::error::CliError;
use crate::cli::output::{Form, OutputArgs, print};

/// Reads everything once and prints; ends with 1 if something is wrong with an object.
pub(super) fn run(options: &Options, output: OutputArgs, notes: &[String]) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Once { world, problems } = runtime.block_on(read_once(options))?;
    let of = overview(&world.model, &world.claims, &world.host, &options.mode.to_string(), |_| true);
    match output.output {
        Form::Json => print(&format!("{}\n", serde_json::to_string_pretty(&of)?))?,
        Form::Table => print(&words::overview(&of))?,
    }
    for note in notes {
        eprintln!("note: {note}");
    }
    for problem in &problems {
        eprintln!("wrong: {problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
