//! `weft services`: what this host's proxy has programmed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use weft_daemon::http::client::{Client, ClientError};
use weft_proxy::explain::Overview;
use weft_proxy::explain::service::{FrontendReport, PathReport, PortReport, ServiceReport};
use weft_proxy::explain::words;

use super::error::CliError;
use super::output::{Form, OutputArgs, Table, print};

/// Where this host's proxy is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct ProxyArgs {
    /// The daemon's directory, as in `weft proxy --run-dir`
    #[arg(long, value_name = "DIR", default_value = "/run/weft", env = "WEFT_PROXY_RUN_DIR")]
    pub(super) run_dir: PathBuf,
}

impl ProxyArgs {
    /// Asks the daemon.
    pub(super) fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let socket = socket(&self.run_dir);
        let answer = ask_if_running(&socket, path)?;
        answer.ok_or_else(|| {
            let line = format!("no proxy runs on this host: nobody listens on {}", socket.display());
            CliError::failed(line).hint("start `weft proxy`, or say where it is with --run-dir")
        })
    }
}

/// The proxy's socket below that directory.
pub(super) fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("proxy").join("proxy.sock")
}

/// Asks a daemon; None if none runs there.
pub(super) fn ask_if_running<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<Option<T>, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(Client::new(socket).get_json(path)) {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// List services: where each is reached, how many endpoints it has, what is wrong
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this one, with who gets which endpoints: NAMESPACE/NAME
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints a row for each service port and family.
///
/// # Errors
/// When no proxy runs on this host, or it knows no such service.
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let query = args.service.as_ref().map(|name| format!("?service={name}")).unwrap_or_default();
    let of: Overview = args.proxy.ask(&format!("/services{query}"))?;
    if let (Some(name), true) = (&args.service, of.services.is_empty()) {
        let error = CliError::failed(format!("there is no service `{name}`"));
        return Err(error.hint("write NAMESPACE/NAME; `weft services` lists them"));
    }
    match args.output.output {
        Form::Json => print(&format!("{}\n", serde_json::to_string_pretty(&of)?))?,
        Form::Table if args.service.is_some() => print(&words::overview(&of))?,
        Form::Table => {
            eprintln!("node {}, mode {}, node ports at {}", of.node, of.mode, of.node_ports.join(", "));
            args.output.print(&of.services, table)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(services: &[ServiceReport]) -> Table {
    let mut table = Table::new([
        "SERVICE",
        "PROTOCOL",
        "FAMILY",
        "FRONTENDS",
        "ENDPOINTS",
        "LOCAL",
        "CLIENTS",
        "PROBLEMS",
    ]);
    for service in services {
        let contested: Vec<String> =
            service.contested.iter().map(|it| format!("{} is {}'s", it.at, it.holder)).collect();
        for port in &service.ports {
            let frontends: Vec<String> = port.frontends.iter().map(frontend).collect();
            table.row([
                port.port.clone(),
                port.protocol.clone(),
                port.family.clone(),
                frontends.join(" "),
                port.cluster.len().to_string(),
                port.local.len().to_string(),
                clients(port),
                [problems(port), contested.clone()].concat().join("; "),
            ]);
        }
        if let Some(why) = &service.ignored {
            let empty = String::new;
            let why = format!("no rules: it {why}");
            table.row([service.service.clone(), empty(), empty(), empty(), empty(), empty(), empty(), why]);
        }
    }
    table
}

/// `10.96.0.10:80`, `*:30080` for a node port. The protocol has a column.
fn frontend(of: &FrontendReport) -> String {
    let at = of.at.rsplit_once('/').map_or(of.at.as_str(), |(at, _)| at);
    match at.rsplit_once("node port ") {
        Some((_, port)) => format!("*:{port}"),
        None => at.to_owned(),
    }
}

/// How clients are spread.
fn clients(port: &PortReport) -> String {
    match port.affinity_seconds {
        Some(seconds) => format!("{}, kept {}", port.balance, words::time(seconds)),
        None => port.balance.clone(),
    }
}

fn problems(port: &PortReport) -> Vec<String> {
    let paths = || port.frontends.iter().flat_map(|it| [it.pods, it.host, it.others]);
    let mut problems = Vec::new();
    if port.frontends.is_empty() {
        problems.push("no frontend is its own".to_owned());
    } else if paths().any(|path| path == PathReport::Rejected) {
        problems.push("no endpoint anywhere: rejected".to_owned());
    } else if paths().any(|path| path == PathReport::Dropped) {
        problems.push("no endpoint on this host: some are dropped".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proxy::explain::service::Contested;

    #[test]
    fn a_row_tells_how_a_service_is_reached_and_what_is_wrong() {
        let to = PathReport::To { local: false, endpoints: 2, masquerade: false };
        let frontend = |at: &str, path| FrontendReport {
            at: at.into(),
            pods: path,
            host: path,
            others: path,
            ..FrontendReport::default()
        };
        let port = |name: &str, frontends: Vec<FrontendReport>| PortReport {
            port: name.into(),
            protocol: "tcp".into(),
            family: "IPv4".into(),
            frontends,
            balance: "random".into(),
            ..PortReport::default()
        };
        let web = ServiceReport {
            service: "shop/web".into(),
            ports: vec![
                PortReport {
                    cluster: vec!["10.1.0.5:80".parse().unwrap(), "10.1.1.5:80".parse().unwrap()],
                    local: vec!["10.1.0.5:80".parse().unwrap()],
                    affinity_seconds: Some(10_800),
                    ..port(
                        "shop/web:http",
                        vec![frontend("10.96.0.10:80/tcp", to), frontend("IPv4 node port 30080/tcp", to)],
                    )
                },
                port("shop/web:x", vec![frontend("[fd00::1]:81/tcp", PathReport::Rejected)]),
            ],
            ..ServiceReport::default()
        };
        let late = ServiceReport {
            service: "shop/late".into(),
            ports: vec![
                port("shop/late", vec![]),
                port("shop/late:y", vec![frontend("10.96.0.12:81/tcp", PathReport::Dropped)]),
            ],
            contested: vec![Contested { at: "198.51.100.1:80/tcp".into(), holder: "shop/web".into() }],
            ..ServiceReport::default()
        };
        let quiet = ServiceReport {
            service: "shop/quiet".into(),
            ignored: Some("is headless: DNS answers for it".into()),
            ..ServiceReport::default()
        };
        let expected = "\
SERVICE        PROTOCOL  FAMILY  FRONTENDS              ENDPOINTS  LOCAL  CLIENTS          PROBLEMS
shop/web:http  tcp       IPv4    10.96.0.10:80 *:30080  2          1      random, kept 3h  -
shop/web:x     tcp       IPv4    [fd00::1]:81           0          0      random           no endpoint anywhere: rejected
shop/late      tcp       IPv4    -                      0          0      random           no frontend is its own; 198.51.100.1:80/tcp is shop/web's
shop/late:y    tcp       IPv4    10.96.0.12:81          0          0      random           no endpoint on this host: some are dropped; 198.51.100.1:80/tcp is shop/web's
shop/quiet     -         -       -                      -          -      -                no rules: it is headless: DNS answers for it
";
        assert_eq!(table(&[web, late, quiet]).render(false), expected);
    }
}
