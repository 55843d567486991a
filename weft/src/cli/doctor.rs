//! `weft doctor`: what is wrong with this host's network and services, and what to run.

use std::process::ExitCode;

use weft_daemon::finding::{Finding, Severity};
use weft_overlay::cleanup::Traces;
use weft_overlay::doctor::{Question, findings, gather};
use weft_overlay::key::Prefix;
use weft_proxy::doctor as proxy;

use super::cleanup::{Here, Part};
use super::error::{CliError, FAILED};
use super::etcd::{self, EtcdArgs};
use super::output::{Form, OutputArgs, colours, print};

/// Look for what is wrong with pods' network and services on this host, and say what to run
///
/// Asks the daemons, the kernel, other firewalls and the other hosts (echo requests past the tunnel and
/// through it, small and large, and UDP through it). What does not run here and has left nothing is not
/// looked at. Changes nothing. Needs root.
///
/// Exits with 1 if there is a problem, so that a script can ask.
#[derive(clap::Args)]
#[command(after_help = etcd::AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    here: Here,
    /// Look only at what `weft overlay` does, or only at what `weft proxy` does
    #[arg(long, value_name = "PART", value_enum)]
    only: Option<Part>,
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
    let services = proxy::findings(&runtime.block_on(proxy::gather(&question.traces.run_dir)));
    let overlay = match args.only {
        Some(only) => only == Part::Overlay,
        // Where only a proxy is, nobody misses an overlay.
        None => services.is_empty() || has_overlay(&question.traces),
    };
    let mut found = if overlay { findings(&runtime.block_on(gather(&question))) } else { Vec::new() };
    if args.only != Some(Part::Overlay) {
        found.extend(services);
    }
    if found.is_empty() {
        eprintln!("no proxy runs on this host, and none has left anything");
    }
    match args.output.output {
        Form::Json => print(&format!("{}\n", serde_json::to_string_pretty(&found)?))?,
        Form::Table => print(&report(&found, colours(&std::io::stdout())))?,
    }
    let sound = found.iter().all(|finding| finding.severity != Severity::Problem);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Whether the overlay's daemon has been here.
fn has_overlay(traces: &Traces) -> bool {
    let network = traces.network.as_str();
    [&traces.run_dir, &traces.state_dir].into_iter().any(|dir| dir.join(network).exists())
}

/// Grouped, the worst first; closes with how many there are of each.
fn report(found: &[Finding], colours: bool) -> String {
    let mut text = String::new();
    let mut counts = Vec::new();
    for (severity, word, words, colour) in [
        (Severity::Problem, "problem", "problems", "31"),
        (Severity::Warning, "warning", "warnings", "33"),
        (Severity::Ok, "ok", "ok", "32"),
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
        counts.push(format!("{} {}", group.len(), if group.len() == 1 { word } else { words }));
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
             1 problem, 0 warnings, 1 ok\n"
        );
        assert!(report(&found, true).starts_with("\x1b[31mproblem\x1b[0m: "));
    }
}
