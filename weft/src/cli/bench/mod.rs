//! `weft bench`: measures, prints tables, and says in words what was reached.

mod console;
mod overlay;
mod proxy;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use weft_benches::report::Report;
use weft_benches::svg::Headline;
use weft_benches::{BenchError, Outcome, svg};

use super::VERSION;
use super::error::CliError;
use super::output::print;
use console::{Console, INTERRUPTED};

/// Measure the data paths and the control plane on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    Overlay(overlay::OverlayArgs),
    Proxy(proxy::ProxyArgs),
    /// The tunnel of the path `udp-single`; the bench starts it on its hosts
    #[command(hide = true)]
    UdpSingle(overlay::SingleArgs),
}

/// Where to the results go beside the terminal.
#[derive(Debug, clap::Args)]
struct Output {
    /// Write all samples here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw charts here
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Measures.
///
/// # Errors
/// When nothing could be measured at all. Nothing is left behind.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    match args.bench {
        Bench::Overlay(args) => overlay::run(&args),
        Bench::Proxy(args) => proxy::run(&args),
        Bench::UdpSingle(args) => overlay::run_single(&args),
    }
}

impl Output {
    /// Runs a bench and writes down what came of it: what could not be measured too.
    fn write(
        &self,
        measure: impl FnOnce(&Console) -> Result<Outcome, BenchError>,
        words: fn(&Report) -> String,
        headlines: fn(&Report) -> Vec<Headline>,
    ) -> Result<ExitCode, CliError> {
        // Before the first minute, not after the last.
        let json = self.json.as_deref().map(create).transpose()?;
        let drawing = self.svg.as_deref().map(create).transpose()?;
        let console = Console::new()?;
        let Outcome { report, failures, interrupted } = measure(&console)?;
        console.clear();
        if let Some(mut file) = json {
            serde_json::to_writer_pretty(&mut file, &report)?;
            writeln!(file)?;
        }
        if let Some(mut file) = drawing {
            file.write_all(svg::render(&report, &headlines(&report)).as_bytes())?;
        }
        let missing: String = failures.iter().map(|failure| format!("not measured: {failure}\n")).collect();
        print(&(text(&report, &words(&report)) + &missing))?;
        Ok(match (interrupted, failures.is_empty()) {
            (true, _) => ExitCode::from(INTERRUPTED),
            (false, true) => ExitCode::SUCCESS,
            (false, false) => ExitCode::FAILURE,
        })
    }
}

fn text(report: &Report, words: &str) -> String {
    let machine = &report.machine;
    format!(
        "{}, {} processors, {} MiB, kernel {}; weft {}, {}; medians\n\n{}{words}",
        machine.cpu_model,
        machine.cpus,
        machine.memory_mb,
        machine.kernel,
        report.commit,
        report.date,
        report.table(),
    )
}

fn create(path: &Path) -> Result<File, CliError> {
    File::create(path).map_err(|error| CliError::failed(format!("cannot write {}: {error}", path.display())))
}

/// This program's own file: hosts run the same.
fn own_binary() -> Result<PathBuf, CliError> {
    let found = std::env::current_exe();
    found.map_err(|error| CliError::failed(format!("cannot find this program's own file: {error}")))
}

/// Which weft this is.
fn own_commit() -> String {
    commit(VERSION).to_owned()
}

/// The commit in a version `0.1.0 (abc)`.
fn commit(version: &str) -> &str {
    let inside = version.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_in_the_version() {
        assert_eq!(commit("0.1.0 (0123456789ab)"), "0123456789ab");
        assert_eq!(commit("0.1.0"), "unknown");
    }
}
