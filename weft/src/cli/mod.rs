//! The command line: which command, with which arguments; and how it ends.
//!
//! Each command is a file: `Args` is what it takes, `run` does it. Exit codes: 0 well, 1 failed, 2 wrong
//! usage.

pub mod bench;
pub mod cleanup;
pub mod cni;
pub mod demo;
pub mod docker_opts;
pub mod doctor;
pub mod down;
pub mod error;
mod etcd;
pub mod exec;
pub mod explain;
pub mod flags;
pub mod lease;
pub mod output;
pub mod overlay;
pub mod peers;
pub mod proxy;
pub mod ps;
pub mod services;
pub mod up;
mod values;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use weft_daemon::Env;

use error::CliError;
use flags::{Flags, Sources};

/// The version, and the commit it was built from if that was known.
pub const VERSION: &str = env!("WEFT_VERSION");

/// A flat pod network for containers on your own Linux machines
#[derive(Parser)]
#[command(name = "weft", version = VERSION, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands; each one's `Args` say what it is for, here and in the help.
#[derive(Subcommand)]
#[allow(missing_docs)]
pub enum Command {
    Overlay(Box<overlay::Args>),
    Proxy(Box<proxy::Args>),
    Peers(peers::PeersArgs),
    Services(services::Args),
    Explain(Box<explain::Args>),
    Diff(peers::DiffArgs),
    Demo(demo::Args),
    Up(up::Args),
    Ps(ps::Args),
    Exec(exec::Args),
    Down(down::Args),
    Lease(lease::Args),
    Doctor(doctor::Args),
    Cleanup(cleanup::Args),
    DockerOpts(docker_opts::Args),
    Bench(bench::Args),
    Cni(cni::Args),
}

/// Which cluster on this machine.
#[derive(Debug, clap::Args)]
pub struct LabArgs {
    /// The cluster's name
    #[arg(long, value_name = "LAB", default_value = "lab")]
    name: String,
}

/// The whole program: parses, runs, says what went wrong.
pub fn main(args: Vec<OsString>, env: &Env) -> ExitCode {
    run(args, env).unwrap_or_else(|error| {
        error.print();
        error.exit_code()
    })
}

fn run(args: Vec<OsString>, env: &Env) -> Result<ExitCode, CliError> {
    if is_cni(&args) {
        return cni::run(env);
    }
    let (args, sources) = prepared(args, env);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Help or version, asked for or for want of a command: clap knows where the terminal is. A reader
        // that has gone is no failure.
        Err(error) if is_help(error.kind()) => {
            let _ = error.print();
            let code = if error.use_stderr() { error::USAGE } else { error::OK };
            return Ok(ExitCode::from(code));
        }
        Err(error) => return Err(CliError::of_clap(&error, &sources)),
    };
    match cli.command {
        Command::Overlay(args) => overlay::run(*args, &sources, env),
        Command::Proxy(args) => proxy::run(*args, &sources, env),
        Command::Peers(args) => peers::peers(&args),
        Command::Services(args) => services::run(&args),
        Command::Explain(args) => explain::run(*args),
        Command::Diff(args) => peers::diff(&args),
        Command::Demo(args) => demo::run(args),
        Command::Up(args) => up::run(args),
        Command::Ps(args) => ps::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Down(args) => down::run(args),
        Command::Lease(args) => lease::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Cleanup(args) => cleanup::run(args),
        Command::DockerOpts(args) => docker_opts::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Cni(cni::Args {}) => cni::run(env),
    }
}

fn is_help(kind: ErrorKind) -> bool {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    matches!(kind, DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion)
}

/// A container runtime calls plugins by their file's name, and without arguments.
fn is_cni(args: &[OsString]) -> bool {
    args.first().and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == "weft-cni")
}

/// The arguments in clap's form, and which of them the environment gave. Only the daemons take Go's
/// syntax and all flags from the environment; for the other commands a person is at the keyboard, and
/// the environment says no more than where etcd is.
fn prepared(mut args: Vec<OsString>, env: &Env) -> (Vec<OsString>, Sources) {
    let daemon = match args.get(1) {
        Some(command) if command == "overlay" => Some(Flags::of(&overlay::command(), overlay::prefixes)),
        Some(command) if command == "proxy" => Some(Flags::of(&proxy::command(), proxy::prefixes)),
        _ => None,
    };
    let (flags, given) = match daemon {
        Some(flags) => {
            let given = flags.normalised(&args.split_off(2));
            (flags, given)
        }
        None => {
            let (command, depth) = chosen(&args);
            (Flags::of(&command, etcd::prefixes), args.split_off(depth))
        }
    };
    let (added, sources) = flags.from_env(&given, env);
    // In front, so that a `--` among the given does not hide them.
    args.extend(added);
    args.extend(given);
    (args, sources)
}

/// The command that the arguments name, `lease ls` as well as `doctor`, and where its flags begin.
fn chosen(args: &[OsString]) -> (clap::Command, usize) {
    let (mut command, mut depth) = (Cli::command(), args.len().min(1));
    while let Some(next) = args.get(depth).and_then(|word| command.find_subcommand(word)) {
        (command, depth) = (next.clone(), depth + 1);
    }
    (command, depth)
}

#[cfg(test)]
mod tests;
