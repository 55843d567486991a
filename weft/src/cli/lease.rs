//! `weft lease`: who has which subnet, and what an operator may do about it.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use ipnetwork::IpNetwork;
use weft_overlay::admin::{self, AdminError, For, Row, State, Store};
use weft_overlay::key::Prefix;
use weft_overlay::model::{NodeId, Subnet};

use super::error::CliError;
use super::etcd::{self, EtcdArgs};
use super::output::{OutputArgs, Table, print};
use super::values::address;

/// List, reserve, release or drain the subnets that hosts lease
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Ls(Ls),
    Reserve(Reserve),
    Release(Release),
    Drain(Drain),
}

/// List every subnet that is leased, reserved or kept for somebody
#[derive(clap::Args)]
#[command(after_help = etcd::AFTER_HELP)]
struct Ls {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// Keep a subnet for a host for ever; without --for-..., for whoever has it now, or for nobody
#[derive(clap::Args)]
#[command(after_help = etcd::AFTER_HELP)]
struct Reserve {
    /// The subnet, such as 10.42.7.0/24; in two families 10.42.7.0/24,fd00:42:0:7::/64
    #[arg(value_name = "SUBNET", value_parser = subnet)]
    subnet: Subnet,
    /// For the weft host with this id
    #[arg(long, value_name = "ID", value_parser = node, conflicts_with = "for_address")]
    for_node: Option<NodeId>,
    /// For the host with this public address, whether weft or flanneld runs on it
    #[arg(long, value_name = "IP", value_parser = address::<IpAddr>)]
    for_address: Option<IpAddr>,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// Take a subnet, or a reservation, away from whoever has it
///
/// A weft host notices at once and takes another subnet; its pods in the old one are cut off.
#[derive(clap::Args)]
#[command(after_help = etcd::AFTER_HELP)]
struct Release {
    /// The subnet
    #[arg(value_name = "SUBNET", value_parser = subnet)]
    subnet: Subnet,
    /// Release a flanneld's lease too, which a running flanneld does not notice
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// Let a host take no new pods, and give its subnet up when it has none left
#[derive(clap::Args)]
#[command(after_help = etcd::AFTER_HELP)]
struct Drain {
    /// The weft host, by the id that `weft lease ls` shows
    #[arg(value_name = "NODE", value_parser = node)]
    node: NodeId,
    /// Take that back
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// Asks or tells etcd.
///
/// # Errors
/// When etcd cannot be reached, or the wish goes against what stands there.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(act(args.verb))?;
    Ok(ExitCode::SUCCESS)
}

async fn act(verb: Verb) -> Result<(), CliError> {
    match verb {
        Verb::Ls(Ls { output, etcd }) => {
            let (store, prefix) = reach(etcd)?;
            let rows = admin::list(&store, &prefix).await?;
            if rows.is_empty() {
                eprintln!("no subnet is leased under {prefix}");
            }
            output.print(&rows, table)
        }
        Verb::Reserve(Reserve { subnet, for_node, for_address, etcd }) => {
            let (store, prefix) = reach(etcd)?;
            let whom = match (for_node, for_address) {
                (Some(node), _) => For::Node(node),
                (None, Some(address)) => For::Address(address),
                (None, None) => For::Holder,
            };
            admin::reserve(&store, &prefix, subnet, &whom).await?;
            let whom = match whom {
                For::Node(node) => format!(" for node {node}"),
                For::Address(address) => format!(" for the host at {address}"),
                For::Holder => String::new(),
            };
            print(&format!("{subnet} is reserved{whom}\n"))
        }
        Verb::Release(Release { subnet, force, etcd }) => {
            let (store, prefix) = reach(etcd)?;
            admin::release(&store, &prefix, subnet, force).await.map_err(hinted)?;
            print(&format!("{subnet} is released\n"))
        }
        Verb::Drain(Drain { node, undo, etcd }) => {
            let (store, prefix) = reach(etcd)?;
            admin::drain(&store, &prefix, &node, !undo).await?;
            let said = if undo { "is no longer drained" } else { "takes no new pods" };
            print(&format!("node {node} {said}\n"))
        }
    }
}

fn reach(etcd: EtcdArgs) -> Result<(Store, Prefix), CliError> {
    let prefix = Prefix::new(&etcd.etcd_prefix);
    Ok((Store::connect(etcd.connect_options())?, prefix))
}

fn hinted(error: AdminError) -> CliError {
    let hint = matches!(error, AdminError::Foreign { .. }).then_some("--force");
    let error = CliError::from(error);
    hint.into_iter().fold(error, |error, hint| error.hint(hint))
}

/// One row for each subnet.
fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(["SUBNET", "NODE", "ADDRESS", "BACKEND", "STATE", "EXPIRES"]);
    for row in rows {
        let addresses: Vec<String> = row.addresses.iter().map(IpAddr::to_string).collect();
        table.row([
            row.subnet.to_string(),
            row.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            addresses.join(","),
            row.backend.clone(),
            state(row),
            row.expires_in.map_or_else(|| "never".to_owned(), |left| time(Duration::from_secs(left))),
        ]);
    }
    table
}

fn state(row: &Row) -> String {
    let state = match row.state {
        State::Live => "live",
        State::Silent => "silent",
        State::Expired => "expired",
        State::Reserved => "reserved",
        State::Foreign => "foreign",
        State::Released => "released",
        State::Unreadable => "unreadable",
    };
    if row.draining { format!("{state},draining") } else { state.to_owned() }
}

/// The two largest units: `6d23h`, `23h59m`, `9s`.
fn time(left: Duration) -> String {
    let seconds = left.as_secs();
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let Some(first) = units.iter().position(|(_, size)| seconds >= *size) else { return "0s".to_owned() };
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, size) in units.iter().skip(first).take(2) {
        if rest >= *size {
            text.push_str(&format!("{}{unit}", rest / size));
        }
        rest %= size;
    }
    text
}

/// `10.42.7.0/24`, `fd00:42:0:7::/64`, or both with a comma.
fn subnet(raw: &str) -> Result<Subnet, String> {
    let wrong = || format!("`{raw}` is no subnet; write 10.42.7.0/24 or 10.42.7.0/24,fd00:42:0:7::/64");
    let mut subnet = Subnet { v4: None, v6: None };
    for part in raw.split(',') {
        match part.split_once('/').and_then(|_| part.parse().ok()) {
            Some(IpNetwork::V4(net)) if subnet.v4.is_none() && net.network() == net.ip() => {
                subnet.v4 = Some(net);
            }
            Some(IpNetwork::V6(net)) if subnet.v6.is_none() && net.network() == net.ip() => {
                subnet.v6 = Some(net);
            }
            _ => return Err(wrong()),
        }
    }
    Ok(subnet)
}

fn node(raw: &str) -> Result<NodeId, String> {
    NodeId::try_from(raw.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |subnet: &str, state, expires_in| Row {
            subnet: super::subnet(subnet).unwrap(),
            node: Some(node("ash").unwrap()),
            addresses: vec!["192.0.2.11".parse().unwrap()],
            backend: "vxlan".to_owned(),
            expires_in,
            state,
            draining: false,
        };
        let (nobody, nowhere, nothing) = (None, vec![], String::new());
        vec![
            row("10.42.7.0/24,fd00:42:0:7::/64", State::Live, Some(86_399)),
            Row { draining: true, ..row("10.42.8.0/24", State::Silent, Some(59)) },
            Row { node: None, ..row("10.42.9.0/24", State::Foreign, Some(3600)) },
            Row { addresses: vec![], ..row("10.42.10.0/24", State::Expired, Some(604_799)) },
            Row {
                node: nobody,
                addresses: nowhere,
                backend: nothing,
                ..row("10.42.11.0/24", State::Reserved, None)
            },
        ]
    }

    #[test]
    fn the_list_as_people_read_it() {
        assert_eq!(
            table(&rows()).render(false),
            "\
SUBNET                         NODE  ADDRESS     BACKEND  STATE            EXPIRES
10.42.7.0/24,fd00:42:0:7::/64  ash   192.0.2.11  vxlan    live             23h59m
10.42.8.0/24                   ash   192.0.2.11  vxlan    silent,draining  59s
10.42.9.0/24                   -     192.0.2.11  vxlan    foreign          1h
10.42.10.0/24                  ash   -           vxlan    expired          6d23h
10.42.11.0/24                  -     -           -        reserved         never
"
        );
    }

    #[test]
    fn the_list_as_programs_read_it() {
        assert_eq!(
            serde_json::to_string(&rows()[0]).unwrap(),
            r#"{"subnet":"10.42.7.0/24,fd00:42:0:7::/64","node":"ash","addresses":["192.0.2.11"],"backend":"vxlan","expires_in":86399,"state":"live","draining":false}"#
        );
    }

    #[test]
    fn subnets_are_whole() {
        assert!(subnet("10.42.7.0/24").is_ok() && subnet("fd00::/64").is_ok());
        assert!(subnet("fd00::/64,10.42.7.0/24").unwrap().v4.is_some());
        for raw in ["", "10.42.7.0", "10.42.7.1/24", "10.42.7.0/33", "10.42.7.0/24,10.42.8.0/24", "x/24"] {
            let said = format!("`{raw}` is no subnet; write 10.42.7.0/24 or 10.42.7.0/24,fd00:42:0:7::/64");
            assert_eq!(subnet(raw), Err(said));
        }
    }

    #[test]
    fn times_in_two_units() {
        let times = [(0, "0s"), (9, "9s"), (60, "1m"), (61, "1m1s"), (3600, "1h"), (90_000, "1d1h")];
        for (seconds, text) in times {
            assert_eq!(time(Duration::from_secs(seconds)), text);
        }
    }
}
