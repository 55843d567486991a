//! `weft doctor`: what is wrong with this host's network, and what to run.

use std::process::ExitCode;

use weft_daemon::finding::{Finding, Severity};
use weft_overlay::doctor::{Question, findings, gather};
use weft_overlay::key::Prefix;

use super::cleanup::Here;
use super::error::{CliError, FAILED};
use super::etcd::{self, EtcdArgs};
use super::output::{Form, OutputArgs, colours, print};

/// Look for what is wrong with the overlay on this host, and say what to run
///
/// Asks the daemon, the kernel, other firewalls and the other hosts (echo requests past the tunnel and
/// through it, small and large, and UDP through it). Changes nothing. Needs root.
///
/// Exits with 1 if there is a problem, so that a script can ask.
#[derive(clap::Args)]
#[command(after_help = etcd::AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    here: Here,
    #[command(flatten)]
    output: OutputArgs,
    /// Ask etcd from here even while the daemon runs
    #[arg(long)]
    ask_etcd: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// Looks, judges and prints.
///
/// # Errors
/// When stdout takes no more.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let prefix = Prefix::new(&args.etcd.etcd_prefix);
    let question = Question {
        traces: args.here.traces(),
        etcd: (args.etcd.connect_options(), prefix),
        ask_etcd: args.ask_etcd,
    };
    // Looking blocks, which needs a runtime with more than one thread.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let found = findings(&runtime.block_on(gather(&question)));
    match args.output.output {
        Form::Json => print(&format!("{}\n", serde_json::to_string_pretty(&found)?))?,
        Form::Table => print(&report(&found, colours(&std::io::stdout())))?,
    }
    let sound = found.iter().all(|finding| finding.severity != Severity::Problem);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Grouped, the worst first; closes with how many there are of each.
fn report(found: &[Finding], colours: bool) -> String {
    let mut text = String::new();
    let mut counts = Vec::new();
    for (severity, word, colour) in [
        (Severity::Problem, "problem", "31"),
        (Severity::Warning, "warning", "33"),
        (Severity::Ok, "ok", "32"),
    ] {
        let group: Vec<_> = found.iter().filter(|finding| finding.severity == severity).collect();
        let label = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
        for finding in &group {
            // Part of it may come from another host, and steer the terminal.
            let clean = |line: &str| line.replace(char::is_control, "?");
            text.push_str(&format!("{label}: {}\n", clean(&finding.title)));
            if !finding.why.is_empty() {
                text.push_str(&format!("    {}\n", clean(&finding.why)));
            }
            for line in &finding.fix {
                text.push_str(&format!("    run: {}\n", clean(line)));
            }
        }
        counts.push(format!("{} {word}", group.len()));
    }
    text.push_str(&format!("{}\n", counts.join(", ")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_as_people_read_it() {
        let finding = |severity, title: &str, why: &str, fix: &[&str]| Finding {
            severity,
            title: title.to_owned(),
            why: why.to_owned(),
            fix: fix.iter().map(|line| (*line).to_owned()).collect(),
        };
        let found = [
            finding(Severity::Ok, "net.ipv4.ip_forward is on", "", &[]),
            finding(Severity::Problem, "a\x1b[2Jb", "because", &["this", "that"]),
        ];
        assert_eq!(
            report(&found, false),
            "problem: a?[2Jb\n    because\n    run: this\n    run: that\nok: net.ipv4.ip_forward is on\n\
             1 problem, 0 warning, 1 ok\n"
        );
        assert!(report(&found, true).starts_with("\x1b[31mproblem\x1b[0m: "));
    }
}
