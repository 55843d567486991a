//! Flags that kube-proxy has and that are of no use here: hidden from the help, accepted, and named in
//! the log or refused. They come from one table ([`UNUSED`]), and so does each reason.

use clap::{Arg, ArgMatches, Command, FromArgMatches};
use weft_proxy::config::Bind;
use weft_proxy::config::file::masquerade_bit;
use weft_proxy::config::unused::{Effect, UNUSED, Unused};

use crate::cli::error::CliError;
use crate::cli::flags::Sources;
use crate::cli::values::{Switch, number};

/// Which of them were given.
#[derive(Clone, Debug, Default)]
pub(super) struct OnlyKubeProxy {
    unused: Vec<&'static Unused>,
    masquerade_bit: Option<u32>,
    healthz_port: Option<u16>,
    metrics_port: Option<u16>,
}

const MASQUERADE_BIT: &str = "iptables-masquerade-bit";
const HEALTHZ_PORT: &str = "healthz-port";
const METRICS_PORT: &str = "metrics-port";

impl OnlyKubeProxy {
    /// What would be something else than meant, if we went on without it.
    pub(super) fn refuse(&self, sources: &Sources) -> Result<(), CliError> {
        for unused in &self.unused {
            if let Effect::Refused(what_to_do) = unused.effect {
                let line = format!("{} is not for weft", sources.name(unused.flag));
                return Err(CliError::usage(line).hint(what_to_do));
            }
        }
        match self.masquerade_bit.map(|bit| masquerade_bit(bit.into())) {
            Some(Err(rule)) => Err(CliError::usage(format!("{}: {rule}", sources.name(MASQUERADE_BIT)))),
            _ => Ok(()),
        }
    }

    /// What has no effect, one line each.
    pub(super) fn notes(&self, sources: &Sources) -> Vec<String> {
        let ignored = self.unused.iter().filter_map(|unused| match unused.effect {
            Effect::None(why) => Some(format!("{} has no effect: {why}", sources.name(unused.flag))),
            Effect::Refused(_) => None,
        });
        ignored.collect()
    }

    /// The port of health, as kube-proxy was told it before there was an address.
    pub(super) fn healthz(&self, given: Option<Bind>) -> Option<Bind> {
        given.or(self.healthz_port.map(Bind::any))
    }

    /// The same for metrics.
    pub(super) fn metrics(&self, given: Option<Bind>) -> Option<Bind> {
        given.or(self.metrics_port.map(Bind::local))
    }
}

fn hidden(flag: &'static str) -> Arg {
    Arg::new(flag).long(flag).hide(true)
}

impl clap::Args for OnlyKubeProxy {
    fn augment_args(command: Command) -> Command {
        let unused = UNUSED.iter().filter(|unused| !unused.flag.is_empty()).map(|unused| {
            if unused.takes_value {
                hidden(unused.flag)
            } else {
                hidden(unused.flag).value_parser(|raw: &str| raw.parse::<Switch>())
            }
        });
        command
            .args(unused)
            .arg(hidden(MASQUERADE_BIT).value_parser(number::<31>))
            .arg(hidden(HEALTHZ_PORT).value_parser(number::<65_535>))
            .arg(hidden(METRICS_PORT).value_parser(number::<65_535>))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OnlyKubeProxy {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |unused: &&Unused| {
            let off = || matches.get_one::<Switch>(unused.flag) == Some(&Switch(false));
            matches.value_source(unused.flag).is_some() && (unused.takes_value || !off())
        };
        let flags = UNUSED.iter().filter(|unused| !unused.flag.is_empty());
        let port = |flag| matches.get_one::<u32>(flag).map(|port| u16::try_from(*port).unwrap_or(0));
        Ok(Self {
            unused: flags.filter(given).collect(),
            masquerade_bit: matches.get_one(MASQUERADE_BIT).copied(),
            healthz_port: port(HEALTHZ_PORT),
            metrics_port: port(METRICS_PORT),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
