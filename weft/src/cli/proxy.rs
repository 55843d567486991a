//! `weft proxy`: kube-proxy's flags and ours, as text, and how they become the daemon's typed options.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args as _;
use ipnetwork::IpNetwork;
use weft_daemon::Env;
use weft_daemon::log::Format;
use weft_proxy::api::Access;
use weft_proxy::around::settings::Wishes;
use weft_proxy::host::{NodePortAddresses, Settings as HostSettings, Strict};
use weft_proxy::model::NodeName;
use weft_proxy::run::{Mode, Options, SourceOptions};

use super::error::CliError;
use super::flags::Sources;
use super::values::{Switch, cidr, log_format, number};

/// Make services work on this host
///
/// Reads Services, EndpointSlices and Nodes, and has the kernel lead connections to services to their
/// endpoints, until it is stopped; traffic goes on after that.
///
/// Flags may be written with one dash or two. Each may also be set in the environment: --node-name as
/// WEFT_PROXY_NODE_NAME. A flag beats the environment; an empty value counts as not given.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true, mut_args = Switch::as_in_go)]
pub struct Args {
    /// Read objects from the YAML and JSON files of this folder, and follow it
    #[arg(long, value_name = "DIR", help_heading = SOURCE)]
    manifests: Option<PathBuf>,
    /// Read objects from the Kubernetes API that this file leads to, and follow it
    #[arg(long, value_name = "FILE", conflicts_with = "manifests", help_heading = SOURCE)]
    kubeconfig: Option<PathBuf>,

    /// This host's name in the cluster: endpoints on the node of that name are local
    #[arg(long, value_name = "NAME", alias = "hostname-override", help_heading = HOST)]
    node_name: Option<String>,
    /// Where the daemon's socket is
    #[arg(long, value_name = "DIR", default_value = "/run/weft", help_heading = HOST)]
    run_dir: PathBuf,
    /// What must outlive a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft", help_heading = HOST)]
    state_dir: PathBuf,

    /// How the kernel is told: `nftables` or `iptables`
    #[arg(long, value_name = "MODE", default_value = "nftables", value_parser = mode, help_heading = TRAFFIC)]
    mode: Mode,
    /// At which of the host's addresses node ports are served: `primary`, `localhost`, `all` or ranges;
    /// several with commas or repeated
    #[arg(long, value_name = "PLACE", value_delimiter = ',', help_heading = TRAFFIC)]
    nodeport_addresses: Vec<String>,
    /// Masquerade everything that is sent to cluster addresses
    #[arg(long, value_name = "BOOL", default_value = "false", help_heading = TRAFFIC)]
    masquerade_all: Switch,
    /// The ranges of cluster addresses: packets to addresses in them that no service has are dropped;
    /// several with commas or repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr, help_heading = TRAFFIC)]
    service_cidrs: Vec<IpNetwork>,
    /// Compare everything with the kernel this often, in seconds, even if no event told of a change
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = number::<86_400>, help_heading = TRAFFIC)]
    resync: u32,

    /// Count new connections of each service and endpoint, for /metrics; it makes loading all services
    /// anew take longer
    #[arg(long, value_name = "BOOL", default_value = "false", help_heading = SEEN)]
    connection_metrics: Switch,
    /// How the log looks: `human` or `json`
    #[arg(long, value_name = "FORM", default_value = "human", value_parser = log_format, help_heading = SEEN)]
    log_format: Format,
    /// How much is logged: 0, or 4 with decisions, or 6 with everything
    #[arg(long, value_name = "LEVEL", default_value = "0", value_parser = number::<255>, help_heading = SEEN)]
    v: u32,
}

const SOURCE: &str = "Source of services";
const HOST: &str = "This host";
const TRAFFIC: &str = "Traffic";
const SEEN: &str = "What is seen";

/// The command without the daemon: its flags and its help.
pub fn command() -> clap::Command {
    Args::augment_args(clap::Command::new("proxy"))
}

/// What the variables that a flag is read from begin with.
pub fn prefixes(_flag: &str) -> &'static [&'static str] {
    &["WEFT_PROXY_"]
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When what it was told cannot be used, or it cannot start.
pub fn run(args: Args, sources: &Sources, env: &Env) -> Result<ExitCode, CliError> {
    let verbosity = u8::try_from(args.v).expect("its parser allows no more");
    weft_daemon::log::init(args.log_format, verbosity, env).map_err(CliError::usage)?;
    let options = args.options(sources)?;
    tracing::info!(version = super::VERSION, node = %options.node, "weft proxy");
    // The loop has the main thread to itself; these answer requests and listen to the kernel.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(weft_proxy::run::run(options, env))?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The typed form.
    ///
    /// # Errors
    /// One line that names the flag (or the variable that `sources` knows), the value and the rule.
    pub fn options(self, sources: &Sources) -> Result<Options, CliError> {
        let source = match (self.manifests, self.kubeconfig) {
            (Some(folder), _) => SourceOptions::Manifests(folder),
            (None, Some(file)) => SourceOptions::Api(Access::Kubeconfig(file)),
            (None, None) => {
                return Err(CliError::usage("nothing says where services are declared")
                    .hint("use --kubeconfig FILE or --manifests DIR"));
            }
        };
        let node = match self.node_name {
            Some(name) => name,
            None => host_name()?,
        };
        let places = self.nodeport_addresses.iter().map(String::as_str);
        let node_ports = NodePortAddresses::parse(places)
            .map_err(|error| CliError::usage(format!("{}: {error}", sources.name("nodeport-addresses"))))?;
        Ok(Options {
            source,
            mode: self.mode,
            node: NodeName::new(&node),
            settings: HostSettings {
                node_ports,
                masquerade_all: self.masquerade_all.0,
                count_connections: self.connection_metrics.0,
                strict: Some(Strict { service_cidrs: self.service_cidrs.clone() }),
                ..HostSettings::default()
            },
            service_cidrs: self.service_cidrs,
            // kube-proxy's defaults.
            healthz: Some((Ipv4Addr::UNSPECIFIED, 10256).into()),
            metrics: Some((Ipv4Addr::LOCALHOST, 10249).into()),
            wishes: Wishes::default(),
            run_dir: self.run_dir,
            state_dir: self.state_dir,
            resync: Duration::from_secs(u64::from(self.resync).max(1)),
        })
    }
}

/// kube-proxy's rule: the kernel's name of the host, in small letters.
fn host_name() -> Result<String, CliError> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    Ok(name.trim().to_lowercase())
}

fn mode(raw: &str) -> Result<Mode, String> {
    match raw {
        "nftables" => Ok(Mode::Nftables),
        "iptables" => Ok(Mode::Iptables),
        _ => Err(format!("`{raw}` is no mode; use nftables or iptables")),
    }
}
