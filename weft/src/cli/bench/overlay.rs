//! `weft bench overlay`: its flags, and the hidden program that one of its paths is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use ipnetwork::Ipv4Network;
use weft_benches::overlay::path::{Path as Way, UnknownPath};
use weft_benches::overlay::{self, Options, verdict};
use weft_benches::regime::{Regime, UnknownRegime};
use weft_overlay::model::Subnet;
use weft_overlay::udp::single::SingleTunnel;
use weft_overlay::udp::{PeerEnd, PeerTable};

use super::{Output, own_binary, own_commit};
use crate::cli::error::CliError;

/// Compare the ways between pods, and time how fast leases are programmed
///
/// Hosts are network namespaces and etcd is real. All paths stand side by side and are measured in
/// turn, in 15 rounds: about 25 minutes; with --quick in 5 short ones, under 4 minutes. What cannot be
/// measured is said and the rest goes on; the exit status is then 1. Everything is removed at the end,
/// and by Ctrl-C too. Needs root, and a machine that has nothing else to do.
#[derive(Debug, clap::Args)]
pub(super) struct OverlayArgs {
    /// Five short rounds: an impression, not a claim
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
    /// Only these paths: bare, direct, host-gw, vxlan, udp, udp-single, flannel-layout,
    /// flanneld-vxlan, flanneld-udp
    #[arg(long, value_name = "PATH", value_delimiter = ',', value_parser = way)]
    only: Vec<Way>,
    /// Only these regimes: default, no-offload, no-tso, shaped; or control, the control plane
    #[arg(long, value_name = "REGIME", value_delimiter = ',', value_parser = part)]
    regime: Vec<Part>,
}

/// One end of a tunnel that moves one packet per system call.
#[derive(Debug, clap::Args)]
pub(super) struct SingleArgs {
    #[arg(long)]
    tun: String,
    #[arg(long)]
    local: Ipv4Addr,
    #[arg(long)]
    subnet: Ipv4Network,
    #[arg(long)]
    peer: Ipv4Addr,
    #[arg(long)]
    peer_subnet: Ipv4Network,
}

/// What `--regime` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Traffic(Regime),
    Control,
}

/// flannel's port for raw IP in UDP.
const UDP_PORT: u16 = 8285;

/// Measures, and writes down what came of it.
pub(super) fn run(args: &OverlayArgs) -> Result<ExitCode, CliError> {
    let weft = own_binary()?;
    args.output.write(
        |console| overlay::run(&options(args, weft), console),
        verdict::words,
        verdict::headlines,
    )
}

fn options(args: &OverlayArgs, weft: PathBuf) -> Options {
    let named: Vec<Regime> = args
        .regime
        .iter()
        .filter_map(|part| match part {
            Part::Traffic(regime) => Some(*regime),
            Part::Control => None,
        })
        .collect();
    Options {
        weft,
        commit: own_commit(),
        quick: args.quick,
        only: args.only.clone(),
        regimes: if args.regime.is_empty() { Regime::usual(args.quick).to_vec() } else { named },
        // The control plane is that of `vxlan`.
        control: match args.regime.is_empty() {
            true => args.only.is_empty() || args.only.contains(&Way::Vxlan),
            false => args.regime.contains(&Part::Control),
        },
    }
}

fn way(raw: &str) -> Result<Way, String> {
    raw.parse().map_err(|error: UnknownPath| error.to_string())
}

fn part(raw: &str) -> Result<Part, String> {
    if raw == "control" {
        return Ok(Part::Control);
    }
    let unknown = |error: UnknownRegime| format!("{error}, and control");
    raw.parse().map(Part::Traffic).map_err(unknown)
}

/// Runs until it is killed.
pub(super) fn run_single(args: &SingleArgs) -> Result<ExitCode, CliError> {
    let subnet = |v4| Subnet { v4: Some(v4), v6: None };
    let end = PeerEnd {
        v4_by: Some((args.peer, UDP_PORT).into()),
        v6_by: None,
        addresses: BTreeSet::from([args.peer.into()]),
    };
    let peers = PeerTable {
        own: subnet(args.subnet),
        networks: BTreeSet::from([args.subnet.into(), args.peer_subnet.into()]),
        peers: BTreeMap::from([(subnet(args.peer_subnet), end)]),
        anti_spoofing: true,
        extra_sources: BTreeSet::new(),
    };
    let _tunnel = SingleTunnel::open(&args.tun, args.local, UDP_PORT, &peers)?;
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn parsed(args: &[&str]) -> Options {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: OverlayArgs,
        }
        options(&Cli::try_parse_from(["overlay"].iter().chain(args)).unwrap().args, "weft".into())
    }

    #[test]
    fn what_is_measured_follows_from_the_flags() {
        let everything = parsed(&[]);
        assert_eq!((everything.regimes, everything.control), (Regime::ALL.to_vec(), true));
        let table: [(&[&str], &[Regime], bool); 6] = [
            (&["--quick"], Regime::usual(true), true),
            (&["--only", "bare,udp"], &Regime::ALL, false),
            (&["--only", "vxlan"], &Regime::ALL, true),
            (&["--regime", "control"], &[], true),
            (&["--regime", "no-tso,shaped"], &[Regime::NoTso, Regime::Shaped], false),
            (&["--regime", "default", "--regime", "control"], &[Regime::Default], true),
        ];
        for (args, regimes, control) in table {
            let options = parsed(args);
            assert_eq!((&options.regimes[..], options.control), (regimes, control), "{args:?}");
        }
        assert_eq!(parsed(&["--only", "bare,udp"]).only, [Way::Bare, Way::Udp]);
    }
}
