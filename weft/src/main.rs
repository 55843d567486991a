//! The `weft` binary: command line, configuration and wiring. No logic.

use std::process::ExitCode;

use weft_daemon::Env;

fn main() -> ExitCode {
    weft::cli::main(std::env::args_os().collect(), &Env::of_process())
}
