//! `weft up`: a cluster on this machine, out of network namespaces.

use std::process::ExitCode;

use weft_lab::Lab;

use super::error::CliError;
use super::output::print;

/// Raise a cluster on this machine: hosts in network namespaces, a real etcd, an overlay daemon each
///
/// It stays until `weft down`. Labs of different names stand side by side. Needs root.
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
    /// The network's configuration, as it stands in etcd: flannel's JSON
    #[arg(
        long,
        value_name = "JSON",
        default_value = r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#
    )]
    network_config: String,
}

/// Hosts with names are easier to talk about than numbers.
const NAMES: &[&str] =
    &["ash", "birch", "cedar", "elm", "fir", "hazel", "juniper", "larch", "maple", "oak", "pine", "rowan"];

/// Raises the lab and says what to do with it.
///
/// # Errors
/// When it could not be raised; what was begun is removed.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let weft = std::env::current_exe()
        .map_err(|error| CliError::failed(format!("cannot find this program's own file: {error}")))?;
    let name = &args.lab.name;
    let hosts = names(args.hosts.into());
    eprintln!("raising lab `{name}`: {}", hosts.join(", "));
    let lab = Lab::named(name).weft(weft).hosts(&hosts).network(&args.network_config).up()?;
    for host in lab.hosts() {
        for _ in 0..args.pods {
            host.new_pod()?;
        }
    }
    let pods = lab.pods()?;
    let mut next = vec![format!("weft ps --name {name}")];
    if let [first, .., last] = &pods[..] {
        let place = format!("{}/{}", first.host().name(), first.name());
        next.push(format!("weft exec --name {name} {place} -- ping -c 3 {}", last.ip()));
    }
    next.push(format!("weft down --name {name}"));
    print(&format!("lab `{name}` is up; now try\n  {}\n", next.join("\n  ")))?;
    Ok(ExitCode::SUCCESS)
}

fn names(count: usize) -> Vec<String> {
    let named = NAMES.iter().map(|name| (*name).to_owned());
    named.chain((NAMES.len() + 1..).map(|number| format!("host{number}"))).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_has_a_name_of_its_own() {
        assert_eq!(names(2), ["ash", "birch"]);
        let mut all = names(100);
        assert_eq!(all[12], "host13");
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 100);
    }
}
