//! `weft proxy`: kube-proxy's flags and ours, as text, and how they and kube-proxy's file become the
//! daemon's typed options.

mod dry_run;
mod kube_proxy;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args as _, FromArgMatches as _};
use ipnetwork::IpNetwork;
use weft_daemon::Env;
use weft_daemon::log::Format;
use weft_proxy::api::Access;
use weft_proxy::config::{Bind, Config, Conntrack, DetectLocalMode, Given, Mode, OfMode, file};
use weft_proxy::host::NodePortAddresses;
use weft_proxy::model::NodeName;
use weft_proxy::run::{Options, SourceOptions};

use super::error::CliError;
use super::flags::Sources;
use super::output::OutputArgs;
use super::values::{Switch, cidr, go_duration, log_format, number, own};
use kube_proxy::OnlyKubeProxy;

/// Make services work on this host
///
/// Reads Services, EndpointSlices and Nodes, and has the kernel lead connections to services to their
/// endpoints, until it is stopped; traffic goes on after that.
///
/// kube-proxy's flags and its configuration file are understood. Flags may be written with one dash or
/// two. Each may also be set in the environment: --node-name as WEFT_PROXY_NODE_NAME. A flag beats the
/// environment, which beats the file; an empty value counts as not given.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true, mut_args = Switch::as_in_go, after_long_help = AFTER_HELP)]
pub struct Args {
    /// Read objects from the YAML and JSON files of this folder, and follow it
    #[arg(long, value_name = "DIR", help_heading = SOURCE)]
    manifests: Option<PathBuf>,
    /// Read them from the Kubernetes API that this file names, as kubectl's; in a pod, by default from
    /// its own cluster
    #[arg(long, value_name = "FILE", conflicts_with = "manifests", help_heading = SOURCE)]
    kubeconfig: Option<PathBuf>,
    /// Also take what this file says, a KubeProxyConfiguration as kube-proxy reads it
    #[arg(long, value_name = "FILE", help_heading = SOURCE)]
    config: Option<PathBuf>,
    /// Print in words what would be programmed, and what is wrong with the objects; change nothing
    #[arg(long, value_name = "BOOL", default_value = "false", help_heading = SOURCE)]
    dry_run: Switch,
    #[command(flatten)]
    output: OutputArgs,

    /// This host's name in the cluster: endpoints on the node of that name are local; by default the
    /// host's own name
    #[arg(long, value_name = "NAME", visible_alias = "hostname-override", help_heading = HOST)]
    node_name: Option<String>,
    /// Where the daemon's socket is
    #[arg(long, value_name = "DIR", default_value = "/run/weft", help_heading = HOST)]
    run_dir: PathBuf,
    /// What must outlive a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft", help_heading = HOST)]
    state_dir: PathBuf,
    /// How likely the kernel is to end this process when memory is short, from -1000 to 1000
    #[arg(long, value_name = "NUMBER", value_parser = oom_score_adj, allow_negative_numbers = true, help_heading = HOST)]
    oom_score_adj: Option<i16>,

    /// How connections get to endpoints: by the kernel, with `nftables` (the default) or `iptables`; or
    /// with `userspace`, where weft carries those over TCP itself, and nftables leads the rest
    #[arg(long, value_name = "MODE", visible_alias = "proxy-mode", value_parser = own::<Mode>, help_heading = TRAFFIC)]
    mode: Option<Mode>,
    /// At which of the host's addresses node ports are served: `primary`, `localhost`, `all` or ranges;
    /// several with commas or repeated; by default `primary` with nftables, `all` with iptables, `primary,localhost` with userspace
    #[arg(long, value_name = "PLACE", value_delimiter = ',', help_heading = TRAFFIC)]
    nodeport_addresses: Vec<String>,
    /// With iptables, serve node ports at 127.0.0.1 too, if --nodeport-addresses says nothing
    #[arg(long, value_name = "BOOL", help_heading = TRAFFIC)]
    iptables_localhost_nodeports: Option<Switch>,
    /// Masquerade everything that is sent to cluster addresses
    #[arg(long, value_name = "BOOL", help_heading = TRAFFIC)]
    masquerade_all: Option<Switch>,
    /// How packets of local pods are told from others: ClusterCIDR, NodeCIDR, BridgeInterface or
    /// InterfaceNamePrefix
    #[arg(long, value_name = "HOW", value_parser = own::<DetectLocalMode>, help_heading = TRAFFIC)]
    detect_local_mode: Option<DetectLocalMode>,
    /// The range of all pods; of both families with a comma between
    #[arg(long, value_name = "CIDR", value_parser = cluster_cidrs, help_heading = TRAFFIC)]
    cluster_cidr: Option<Cidrs>,
    /// The bridge of local pods, for BridgeInterface
    #[arg(long, value_name = "LINK", help_heading = TRAFFIC)]
    pod_bridge_interface: Option<String>,
    /// How the names of local pods' links begin, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", help_heading = TRAFFIC)]
    pod_interface_name_prefix: Option<String>,
    /// The ranges of cluster addresses: packets to addresses in them that no service has are dropped;
    /// several with commas or repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr, help_heading = TRAFFIC)]
    service_cidrs: Vec<IpNetwork>,
    /// Compare everything with the kernel this often, even if no event told of a change; by default
    /// every 10m
    #[arg(long, value_name = "TIME", visible_alias = "iptables-sync-period", value_parser = go_duration, help_heading = TRAFFIC)]
    resync: Option<Duration>,

    /// In userspace mode, the most connections that one client address may have at once, over IPv6 one
    /// /64; 0 is any number [default: 0]
    #[arg(long, value_name = "COUNT", value_parser = number::<MOST>, help_heading = USERSPACE)]
    connections_per_source: Option<u32>,
    /// In userspace mode, how long connections may go on after the daemon is told to stop; meanwhile the
    /// kernel leads new ones to endpoints [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = go_duration, help_heading = USERSPACE)]
    drain_timeout: Option<Duration>,

    /// Tracked connections for each CPU; 0 leaves the kernel's limit as it is [default: 32768]
    #[arg(long, value_name = "COUNT", value_parser = number::<MOST>, help_heading = TRACKING)]
    conntrack_max_per_core: Option<u32>,
    /// At least so many, however few CPUs there are [default: 131072]
    #[arg(long, value_name = "COUNT", value_parser = number::<MOST>, help_heading = TRACKING)]
    conntrack_min: Option<u32>,
    /// How long an established TCP connection may be idle; 0 leaves it as it is [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = go_duration, help_heading = TRACKING)]
    conntrack_tcp_timeout_established: Option<Duration>,
    /// How long a half closed TCP connection is remembered; 0 leaves it as it is [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = go_duration, help_heading = TRACKING)]
    conntrack_tcp_timeout_close_wait: Option<Duration>,
    /// Take TCP packets outside of the window for valid
    #[arg(long, value_name = "BOOL", help_heading = TRACKING)]
    conntrack_tcp_be_liberal: Option<Switch>,
    /// How long a UDP packet without an answer is remembered; 0 leaves it as it is [default: 0]
    #[arg(long, value_name = "TIME", value_parser = go_duration, help_heading = TRACKING)]
    conntrack_udp_timeout: Option<Duration>,
    /// How long a UDP exchange is remembered; 0 leaves it as it is [default: 0]
    #[arg(long, value_name = "TIME", value_parser = go_duration, help_heading = TRACKING)]
    conntrack_udp_timeout_stream: Option<Duration>,
    /// Count packets and bytes of each service and endpoint, for /metrics, by connection tracking's own
    /// accounting (net.netfilter.nf_conntrack_acct)
    #[arg(long, value_name = "BOOL", help_heading = TRACKING)]
    conntrack_accounting: Option<Switch>,

    /// Where /healthz and /livez are; port 0 serves them on the daemon's own socket only
    /// [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT", value_parser = own::<Bind>, help_heading = SEEN)]
    healthz_bind_address: Option<Bind>,
    /// Where /metrics is; port 0 serves it on the daemon's own socket only [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT", value_parser = own::<Bind>, help_heading = SEEN)]
    metrics_bind_address: Option<Bind>,
    /// Count new connections of each service and endpoint, for /metrics; it makes loading all services
    /// anew take longer
    #[arg(long, value_name = "BOOL", help_heading = SEEN)]
    connection_metrics: Option<Switch>,
    /// How the log looks: `human` (the default) or `json`
    #[arg(long, value_name = "FORM", alias = "logging-format", value_parser = either_log_format, help_heading = SEEN)]
    log_format: Option<Format>,
    /// How much is logged: 0, or 4 with decisions, or 6 with everything; WEFT_LOG=weft_proxy=debug and
    /// the like choose in detail
    #[arg(long, value_name = "LEVEL", value_parser = number::<255>, help_heading = SEEN)]
    v: Option<u32>,

    #[command(flatten)]
    kube_proxy: OnlyKubeProxy,
}

/// The most that kube-proxy's numbers hold.
const MOST: u32 = i32::MAX as u32;

const SOURCE: &str = "Source of services";
const HOST: &str = "This host";
const TRAFFIC: &str = "Traffic";
const USERSPACE: &str = "Userspace mode";
const TRACKING: &str = "Connection tracking";
const SEEN: &str = "Health, metrics and logs";

const AFTER_HELP: &str = "\
Flags and fields of kube-proxy that have no meaning here are accepted, and named in the log with the
reason. Refused are those that would do something else than was meant: ipvs mode, another masquerade
bit than 14, init-only, write-config-to, cleanup (`weft cleanup --only proxy` does that).";

/// How often everything is compared with the kernel, if nothing says so.
const RESYNC: Duration = Duration::from_secs(600);

/// Ranges of both families: clap takes a list of values for several arguments.
#[derive(Clone, Debug)]
struct Cidrs(Vec<IpNetwork>);

/// The command without the daemon: its flags and its help.
pub fn command() -> clap::Command {
    Args::augment_args(clap::Command::new("proxy"))
}

/// What the variables that a flag is read from begin with.
pub fn prefixes(_flag: &str) -> &'static [&'static str] {
    &["WEFT_PROXY_"]
}

/// All that `weft proxy` was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the daemon shall do.
    pub options: Options,
    /// How its log looks.
    pub log_format: Format,
    /// kube-proxy's `-v`.
    pub verbosity: u8,
    /// What the kernel is told of this process.
    pub oom_score_adj: Option<i16>,
    /// What was told and has no effect, or less than one may think, to be said in the log.
    pub notes: Vec<String>,
}

/// Runs the daemon until it is told to stop, or says what it would do.
///
/// # Errors
/// When what it was told cannot be used, or it cannot start.
pub fn run(args: Args, sources: &Sources, env: &Env) -> Result<ExitCode, CliError> {
    let (dry_run, output) = (args.dry_run.0, args.output);
    let Settings { options, log_format, verbosity, oom_score_adj, notes } = args.settings(sources)?;
    if dry_run {
        return dry_run::run(&options, output, &notes);
    }
    weft_daemon::log::init(log_format, verbosity, env).map_err(CliError::usage)?;
    for note in notes {
        tracing::warn!("{note}");
    }
    if let Some(score) = oom_score_adj
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::warn!(%error, score, "oomScoreAdj cannot be set");
    }
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
    /// One line that names the flag (or the variable that `sources` knows) or the file's field, the
    /// value and the rule.
    pub fn settings(self, sources: &Sources) -> Result<Settings, CliError> {
        self.kube_proxy.refuse(sources)?;
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let mut notes: Vec<String> = file.notes;
        notes.extend(self.kube_proxy.notes(sources));
        let config = self.given(sources)?.over(file.given).settle().map_err(CliError::usage)?;
        notes.extend(config.notes.iter().cloned());
        let (source, note) = declared(self.manifests, self.kubeconfig, config.kubeconfig.clone())?;
        notes.extend(note);
        let node = config.node_name.clone().map_or_else(host_name, Ok)?;
        let Config {
            mode, settings, service_cidrs, sync_period, healthz, metrics, wishes, userspace, ..
        } = config;
        let options = Options {
            source,
            mode,
            node,
            settings,
            service_cidrs,
            userspace,
            wishes,
            run_dir: self.run_dir,
            state_dir: self.state_dir,
            resync: sync_period.unwrap_or(RESYNC),
            healthz,
            metrics,
        };
        Ok(Settings {
            options,
            log_format: if config.log_json { Format::Json } else { Format::Human },
            verbosity: config.verbosity,
            oom_score_adj: config.oom_score_adj,
            notes,
        })
    }

    /// What the flags say.
    fn given(&self, sources: &Sources) -> Result<Given, CliError> {
        let places = self.nodeport_addresses.iter().map(String::as_str);
        let node_ports = NodePortAddresses::parse(places)
            .map_err(|error| CliError::usage(format!("{}: {error}", sources.name("nodeport-addresses"))))?;
        let switch = |given: Option<Switch>| given.map(|switch| switch.0);
        let of_mode = OfMode { masquerade_all: switch(self.masquerade_all), sync_period: self.resync };
        Ok(Given {
            mode: self.mode,
            node_name: self.node_name.as_deref().map(node_name),
            kubeconfig: None,
            healthz: self.kube_proxy.healthz(self.healthz_bind_address),
            metrics: self.kube_proxy.metrics(self.metrics_bind_address),
            iptables: of_mode,
            localhost_node_ports: switch(self.iptables_localhost_nodeports),
            nftables: of_mode,
            detect_local: self.detect_local_mode,
            pod_bridge: self.pod_bridge_interface.clone(),
            pod_link_prefix: self.pod_interface_name_prefix.clone(),
            cluster_cidrs: self.cluster_cidr.clone().map(|Cidrs(ranges)| ranges),
            node_ports: (!self.nodeport_addresses.is_empty()).then_some(node_ports),
            service_cidrs: (!self.service_cidrs.is_empty()).then(|| self.service_cidrs.clone()),
            conntrack: Conntrack {
                max_per_core: self.conntrack_max_per_core,
                min: self.conntrack_min,
                tcp_established: self.conntrack_tcp_timeout_established,
                tcp_close_wait: self.conntrack_tcp_timeout_close_wait,
                tcp_be_liberal: switch(self.conntrack_tcp_be_liberal),
                udp: self.conntrack_udp_timeout,
                udp_stream: self.conntrack_udp_timeout_stream,
            },
            accounting: switch(self.conntrack_accounting),
            connection_metrics: switch(self.connection_metrics),
            connections_per_source: self.connections_per_source,
            drain: self.drain_timeout,
            oom_score_adj: self.oom_score_adj,
            log_json: self.log_format.map(|format| format == Format::Json),
            verbosity: self.v.map(|level| u8::try_from(level).unwrap_or(u8::MAX)),
        })
    }
}

/// What a daemon would be told that reads manifests and has no flags but these.
pub(super) fn offline(
    manifests: PathBuf,
    name: Option<String>,
    config: Option<PathBuf>,
) -> Result<Options, CliError> {
    let mut flags = vec!["proxy".into(), "--manifests".into(), manifests.into_os_string()];
    flags.extend(name.into_iter().flat_map(|name| ["--node-name".into(), name.into()]));
    flags.extend(config.into_iter().flat_map(|path| ["--config".into(), path.into_os_string()]));
    let sources = Sources::default();
    let parsed = command().try_get_matches_from(flags).and_then(|m| Args::from_arg_matches(&m));
    let args = parsed.map_err(|error| CliError::of_clap(&error, &sources))?;
    Ok(args.settings(&sources)?.options)
}

/// Where objects are declared. The file's word about the API counts if no flag says anything.
fn declared(
    manifests: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    in_file: Option<PathBuf>,
) -> Result<(SourceOptions, Option<String>), CliError> {
    // What kubelet sets in every pod.
    let in_pod = || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    match (manifests, kubeconfig.or(in_file.clone())) {
        (Some(folder), _) => {
            let note = "clientConnection.kubeconfig has no effect: --manifests says where objects are";
            Ok((SourceOptions::Manifests(folder), in_file.map(|_| note.to_owned())))
        }
        (None, Some(kubeconfig)) => Ok((SourceOptions::Api(Access::Kubeconfig(kubeconfig)), None)),
        (None, None) if in_pod() => Ok((SourceOptions::Api(Access::InCluster), None)),
        (None, None) => Err(CliError::usage("nothing says where services are declared")
            .hint("use --kubeconfig FILE or --manifests DIR")),
    }
}

fn read_file(path: &Path) -> Result<file::Read, CliError> {
    let shown = path.display();
    let contents = std::fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("--config: cannot read {shown}: {error}")))?;
    file::read(&contents).map_err(|error| CliError::usage(format!("{shown}: {error}")))
}

/// kube-proxy's rule for a name that is given, as for the host's own: in small letters.
fn node_name(name: &str) -> NodeName {
    NodeName::new(&name.trim().to_lowercase())
}

/// The kernel's name of the host.
pub(super) fn host_name() -> Result<NodeName, CliError> {
    Ok(node_name(&std::fs::read_to_string("/proc/sys/kernel/hostname")?))
}

fn cluster_cidrs(raw: &str) -> Result<Cidrs, String> {
    weft_proxy::config::cluster_cidrs(raw).map(Cidrs)
}

fn oom_score_adj(raw: &str) -> Result<i16, String> {
    let number = raw.parse().map_err(|_| format!("`{raw}` is no whole number"))?;
    file::oom_score_adj(number)
}

/// Kubernetes' word for what people read is `text`.
fn either_log_format(raw: &str) -> Result<Format, String> {
    if raw == "text" { Ok(Format::Human) } else { log_format(raw) }
}
