//! `weft bench proxy`: its flags.

use std::path::PathBuf;
use std::process::ExitCode;

use weft_benches::proxy::path::{Path as Way, UnknownPath};
use weft_benches::proxy::{self, Options, REGIMES, verdict};
use weft_benches::regime::Regime;

use super::{Output, own_binary, own_commit};
use crate::cli::error::CliError;

/// Compare the ways to a service's endpoints, and time how fast services are programmed
///
/// Hosts and pods are network namespaces. All paths stand side by side and are measured in turn, in 15
/// rounds: under 25 minutes; with --quick in 5 short ones, under 4 minutes. What cannot be measured is
/// said and the rest goes on; the exit status is then 1. Everything is removed at the end, and by Ctrl-C
/// too. Needs root, and a machine that has nothing else to do.
#[derive(Debug, clap::Args)]
pub(super) struct ProxyArgs {
    /// Five short rounds: an impression, not a claim
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
    /// Only these paths: direct, nftables, nftables-acct, iptables, userspace, kube-proxy-layout,
    /// kube-proxy, haproxy
    #[arg(long, value_name = "PATH", value_delimiter = ',', value_parser = way)]
    only: Vec<Way>,
    /// Only these regimes of bulk traffic: default, no-offload, no-tso; or first, the first packets of
    /// connections; or control, the programming of services
    #[arg(long, value_name = "REGIME", value_delimiter = ',', value_parser = part)]
    regime: Vec<Part>,
    /// Leave out first packets and programming with more services than this
    #[arg(long, value_name = "SERVICES")]
    up_to: Option<u32>,
}

/// What `--regime` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Traffic(Regime),
    First,
    Control,
}

/// Measures, and writes down what came of it.
pub(super) fn run(args: &ProxyArgs) -> Result<ExitCode, CliError> {
    let weft = own_binary()?;
    args.output.write(|console| proxy::run(&options(args, weft), console), verdict::words, verdict::headlines)
}

fn options(args: &ProxyArgs, weft: PathBuf) -> Options {
    let named: Vec<Regime> = args
        .regime
        .iter()
        .filter_map(|part| match part {
            Part::Traffic(regime) => Some(*regime),
            Part::First | Part::Control => None,
        })
        .collect();
    let everything = args.regime.is_empty();
    Options {
        weft,
        commit: own_commit(),
        quick: args.quick,
        only: args.only.clone(),
        regimes: if everything { vec![Regime::Default, Regime::NoOffload] } else { named },
        first: everything || args.regime.contains(&Part::First),
        control: everything || args.regime.contains(&Part::Control),
        up_to: args.up_to,
    }
}

fn way(raw: &str) -> Result<Way, String> {
    raw.parse().map_err(|error: UnknownPath| error.to_string())
}

fn part(raw: &str) -> Result<Part, String> {
    match (raw, raw.parse()) {
        ("first", _) => Ok(Part::First),
        ("control", _) => Ok(Part::Control),
        (_, Ok(regime)) if REGIMES.contains(&regime) => Ok(Part::Traffic(regime)),
        _ => Err(format!(
            "no regime `{raw}`; there are {}, first, control",
            REGIMES.map(Regime::name).join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn parsed(args: &[&str]) -> Result<Options, clap::Error> {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: ProxyArgs,
        }
        let cli = Cli::try_parse_from(["proxy"].iter().chain(args))?;
        Ok(options(&cli.args, "weft".into()))
    }

    #[test]
    fn what_is_measured_follows_from_the_flags() {
        let usual: &[Regime] = &[Regime::Default, Regime::NoOffload];
        let table: [(&[&str], &[Regime], bool, bool); 6] = [
            (&[], usual, true, true),
            (&["--only", "nftables,direct"], usual, true, true),
            (&["--regime", "first"], &[], true, false),
            (&["--regime", "control"], &[], false, true),
            (&["--regime", "no-tso,default"], &[Regime::NoTso, Regime::Default], false, false),
            (&["--quick", "--regime", "default,control"], &[Regime::Default], false, true),
        ];
        for (args, regimes, first, control) in table {
            let options = parsed(args).unwrap();
            assert_eq!(
                (&options.regimes[..], options.first, options.control),
                (regimes, first, control),
                "{args:?}"
            );
        }
        assert_eq!(parsed(&["--only", "direct"]).unwrap().only, [Way::Direct]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_what_can() {
        for (args, said) in [
            (
                ["--regime", "shaped"],
                "no regime `shaped`; there are default, no-offload, no-tso, first, control",
            ),
            (["--only", "vxlan"], "no path `vxlan`; there are direct, nftables"),
        ] {
            let error = parsed(&args).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
