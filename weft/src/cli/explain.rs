//! `weft explain`: where a connection goes, why, and what in the kernel does it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use weft_proxy::explain::{self, Explanation, words};
use weft_proxy::model::Protocol;
use weft_proxy::run::read_once;
use weft_proxy::simulate::Packet;

use super::error::CliError;
use super::output::{Form, OutputArgs, print};
use super::proxy::offline;
use super::services::ProxyArgs;
use super::values::address;

/// Tell where a connection goes and why: which service, which endpoints, what in the kernel does it
///
/// Asks this host's proxy, which looks into the kernel too: exits with 1 if the kernel is not as it
/// should be for this connection. With --manifests, no proxy and no kernel is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Who asks
    #[arg(value_name = "SOURCE", value_parser = address::<IpAddr>)]
    source: IpAddr,
    /// What it asks for, as 10.96.0.10:80 or [fd00::10]:80
    #[arg(value_name = "DESTINATION", value_parser = destination)]
    destination: SocketAddr,
    /// How: `tcp`, `udp` or `sctp`
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", value_parser = protocol)]
    protocol: Protocol,
    /// The link that the packet comes in on, if a process of this host does not send it
    #[arg(long, value_name = "LINK")]
    input: Option<String>,
    /// Answer from the manifests in this folder, without a proxy
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// As a host of this name sees it, with --manifests; by default this one
    #[arg(long, value_name = "NAME", requires = "manifests")]
    node_name: Option<String>,
    /// As a proxy with this configuration file sees it, with --manifests
    #[arg(long, value_name = "FILE", requires = "manifests")]
    config: Option<PathBuf>,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Asks and prints.
///
/// # Errors
/// When no proxy runs on this host, or what the question is about cannot be read.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let Args { source, destination, protocol, input, .. } = args;
    let packet = Packet { source, destination, protocol, input };
    let explanation = match args.manifests {
        None => args.proxy.ask(&question(&packet))?,
        Some(folder) => from_manifests(&packet, folder, args.node_name, args.config)?,
    };
    match args.output.output {
        Form::Json => print(&format!("{}\n", serde_json::to_string_pretty(&explanation)?))?,
        Form::Table => print(&words::explanation(&explanation))?,
    }
    let agrees = explanation.objects.iter().all(|object| object.wrong.is_none());
    Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn question(packet: &Packet) -> String {
    let Packet { source, destination, protocol, input } = packet;
    let input = input.as_ref().map(|link| format!("&input={link}")).unwrap_or_default();
    format!("/explain?source={source}&destination={destination}&protocol={protocol}{input}")
}

fn from_manifests(
    packet: &Packet,
    folder: PathBuf,
    node_name: Option<String>,
    config: Option<PathBuf>,
) -> Result<Explanation, CliError> {
    let options = offline(folder, node_name, config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let once = runtime.block_on(read_once(&options))?;
    for problem in &once.problems {
        eprintln!("wrong: {problem}");
    }
    Ok(explain::explain(&once.world.model, &once.world.host, packet, |_| None).0)
}

fn destination(raw: &str) -> Result<SocketAddr, String> {
    raw.parse()
        .map_err(|_| format!("`{raw}` is no address with a port, such as 10.96.0.10:80 or [fd00::10]:80"))
}

fn protocol(raw: &str) -> Result<Protocol, String> {
    let found = Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == raw);
    found.ok_or_else(|| format!("`{raw}` is none of tcp, udp, sctp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFESTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints: [{addresses: [10.1.0.5], nodeName: birch}]
---
apiVersion: v1
kind: Node
metadata: {name: birch}
status: {addresses: [{type: InternalIP, address: 192.0.2.77}]}
";

    #[test]
    fn a_folder_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), MANIFESTS).unwrap();
        let packet = |destination: &str| Packet {
            source: "10.1.0.9".parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: Protocol::Tcp,
            input: None,
        };
        let explain = |destination: &str| {
            let name = Some("Birch".to_owned());
            from_manifests(&packet(destination), dir.path().to_owned(), name, None).unwrap()
        };
        let text = words::explanation(&explain("10.96.0.10:80"));
        assert!(
            text.contains("as node birch sees it") && text.contains("to        10.1.0.5:8080 (100.0 %)"),
            "{text}"
        );
        // The Node's address, which is not this machine's, is the host's.
        let text = words::explanation(&explain("192.0.2.77:80"));
        assert!(text.contains("left alone"), "{text}");
        let packet = Packet { input: Some("cni0".into()), ..packet("10.96.0.10:80") };
        assert_eq!(
            question(&packet),
            "/explain?source=10.1.0.9&destination=10.96.0.10:80&protocol=tcp&input=cni0"
        );
    }

    #[test]
    fn words_that_are_none_are_named() {
        let expected = "`10.96.0.10` is no address with a port, such as 10.96.0.10:80 or [fd00::10]:80";
        assert_eq!(destination("10.96.0.10"), Err(expected.into()));
        assert_eq!(protocol("icmp"), Err("`icmp` is none of tcp, udp, sctp".into()));
    }
}
