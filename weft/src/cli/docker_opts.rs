//! `weft docker-opts`: this host's subnet as options for a plain Docker daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use weft_daemon::fs::write_atomic;
use weft_overlay::docker_opts::{Form, render};
use weft_overlay::subnet_file::SubnetFile;

use super::error::CliError;
use super::output::print;

/// Print Docker daemon options for this host's subnet
///
/// Takes flannel's subnet file and writes what flannel's mk-docker-opts.sh writes, with the same
/// letters: variables for an EnvironmentFile= of Docker's unit.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The subnet file that `weft overlay` wrote
    #[arg(short = 'f', long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    subnet_file: PathBuf,
    /// Write to this file instead of stdout
    #[arg(short = 'd', long, value_name = "FILE")]
    docker_file: Option<PathBuf>,
    /// One variable for each option: DOCKER_OPT_BIP, DOCKER_OPT_MTU, ...
    #[arg(short = 'i', long)]
    individual: bool,
    /// One variable with all options
    #[arg(short = 'c', long)]
    combined: bool,
    /// The name of that variable
    #[arg(short = 'k', long, value_name = "NAME", default_value = "DOCKER_OPTS")]
    key: String,
    /// Leave out --ip-masq
    #[arg(short = 'm', long)]
    no_ip_masq: bool,
}

/// Reads the subnet file and prints the options.
///
/// # Errors
/// When the file cannot be read or holds no subnet, or the result cannot be written.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let file = args.subnet_file;
    let text = std::fs::read_to_string(&file).map_err(|error| {
        CliError::failed(format!("cannot read {}: {error}", file.display()))
            .hint("`weft overlay` writes it once this host has a subnet")
    })?;
    let Args { individual, combined, key, no_ip_masq, .. } = args;
    let options =
        render(&SubnetFile::parse(&text), &Form { individual, combined, key, masquerade: !no_ip_masq })?;
    match args.docker_file {
        Some(path) => write_atomic(&path, options.as_bytes(), 0o644)?,
        None => print(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}
