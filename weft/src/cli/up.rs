//! `weft up`: a cluster on this machine, out of network namespaces.

use std::process::ExitCode;

use serde_json::json;
use weft_lab::layout::default_hosts;
use weft_lab::{HostStatus, Lab};
use weft_overlay::config::NetworkConfig;

use super::error::CliError;
use super::output::{Form, OutputArgs};
use super::ps;

/// Raise a cluster on this machine: hosts in network namespaces, a real etcd, an overlay daemon each
///
/// It stays until `weft down`. Clusters of different names stand side by side; nothing of the
/// machine's own network is touched. Needs root.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    lab: super::LabArgs,
    /// How many hosts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    hosts: u8,
    /// How many pods on each host
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=100))]
    pods: u8,
    /// How packets travel between hosts
    #[arg(long, value_name = "TYPE", default_value = "vxlan", value_parser = ["vxlan", "host-gw", "udp"])]
    backend: String,
    /// The network's whole configuration, as it stands in etcd: flannel's JSON
    #[arg(long, value_name = "JSON", conflicts_with = "backend", value_parser = network_config)]
    network_config: Option<String>,
    /// Start no daemons, and so no pods: bare hosts and an etcd to try things on
    #[arg(long, conflicts_with = "pods")]
    without_daemons: bool,
    /// How many members etcd has
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    etcd_members: u8,
}

/// Raises the lab, shows it and says what to do with it.
///
/// # Errors
/// When it could not be raised; what was begun is removed.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let weft = std::env::current_exe()
        .map_err(|error| CliError::failed(format!("cannot find this program's own file: {error}")))?;
    let name = &args.lab.name;
    let hosts = default_hosts(args.hosts.into());
    eprintln!("raising lab `{name}`: {}", hosts.join(", "));
    let config = args.network_config.unwrap_or_else(|| {
        json!({ "Network": "10.42.0.0/16", "Backend": { "Type": args.backend } }).to_string()
    });
    let lab = Lab::named(name)
        .weft(weft)
        .hosts(hosts)
        .etcd_members(args.etcd_members)
        .network(config)
        .overlay_args(["--ip-masq"]);
    let lab = if args.without_daemons { lab.without_daemons() } else { lab }.up()?;
    let pods = if args.without_daemons { 0 } else { args.pods };
    for host in lab.hosts() {
        (0..pods).try_for_each(|_| host.new_pod().map(drop))?;
    }
    let hosts = lab.status()?;
    OutputArgs { output: Form::Table }.print(&hosts, ps::table)?;
    eprintln!("now try\n  {}", next_steps(name, &hosts).join("\n  "));
    Ok(ExitCode::SUCCESS)
}

/// Read as the daemons will read it: they would only wait for a better one.
fn network_config(raw: &str) -> Result<String, String> {
    NetworkConfig::parse(raw.as_bytes()).map(|_| raw.to_owned()).map_err(|bad| bad.to_string())
}

/// From the first pod to the last; a look at the daemon and at etcd; the end.
fn next_steps(name: &str, hosts: &[HostStatus]) -> Vec<String> {
    let flag = if name == "lab" { String::new() } else { format!(" --name {name}") };
    let mut steps = vec![];
    let pods: Vec<_> = hosts.iter().flat_map(|host| &host.pods).collect();
    match (pods.as_slice(), hosts) {
        ([first, .., last], _) => {
            let address = last.addresses.first().map(ToString::to_string).unwrap_or_default();
            steps.push(format!("weft exec{flag} {}/{} -- ping -c 3 {address}", first.host, first.name));
        }
        (_, [first, .., last]) => {
            steps.push(format!("weft exec{flag} {} -- ping -c 3 {}", first.host, last.ipv4));
        }
        _ => {}
    }
    steps.push(format!("weft exec{flag} etcd -- etcdctl get --prefix /"));
    steps.push(format!("weft ps{flag}"));
    steps.push(format!("weft down{flag}"));
    steps
}
