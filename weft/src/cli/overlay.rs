//! `weft overlay`: flannel's flags and ours, as text, and how they become the daemon's typed options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args as _;
use ipnetwork::IpNetwork;
use weft_daemon::Env;
use weft_daemon::log::Format;
use weft_overlay::attach::range::Range;
use weft_overlay::attach::site::Mode;
use weft_overlay::model::NodeId;
use weft_overlay::options::{LinkPattern, LinkRef, NetworkName, Options, UnderlayChoice};
use weft_overlay::run::RunError;

use super::error::CliError;
use super::etcd::EtcdArgs;
use super::flags::Sources;
use super::values::{Switch, address, cidr, duration, log_format, number, own};

/// Give this host's pods a flat network with all other hosts
///
/// Leases a subnet for this host from etcd, carries pod traffic to the other hosts' subnets, and
/// keeps the kernel so until it is stopped; traffic goes on after that. flannel's hosts may be part
/// of the same network.
///
/// Flags may be written with one dash or two. Each may also be set in the environment: --public-ip
/// as WEFT_PUBLIC_IP, and flannel's flags as FLANNELD_PUBLIC_IP too. A flag beats WEFT_, which beats
/// FLANNELD_; an empty value counts as not given.
// No Debug: one of these is a password.
#[derive(clap::Args)]
#[command(args_override_self = true, mut_args = Switch::as_in_go, after_long_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    etcd: EtcdArgs,

    /// The link to other hosts, by name or address; repeated: the first that exists
    #[arg(long, value_name = "NAME|IP", value_parser = own::<LinkRef>, help_heading = HOST)]
    iface: Vec<LinkRef>,
    /// Else a link whose address or name matches; repeated: the first expression that finds one
    #[arg(long, value_name = "REGEX", value_parser = own::<LinkPattern>, help_heading = HOST)]
    iface_regex: Vec<LinkPattern>,
    /// Else the link by which the kernel would send to this address
    #[arg(long, value_name = "IP", value_parser = address::<IpAddr>, help_heading = HOST)]
    iface_can_reach: Option<IpAddr>,
    /// The address other hosts reach this one at, if it is not the link's own
    #[arg(long, value_name = "IP", value_parser = address::<Ipv4Addr>, help_heading = HOST)]
    public_ip: Option<Ipv4Addr>,
    /// The same in IPv6
    #[arg(long, value_name = "IP", value_parser = address::<Ipv6Addr>, help_heading = HOST)]
    public_ipv6: Option<Ipv6Addr>,
    /// Who this host is, for good; by default its machine id, or one made and kept in the state
    /// directory
    #[arg(long, value_name = "ID", value_parser = own_node_id, help_heading = HOST)]
    node_id: Option<NodeId>,
    /// What the network is called on this host; a second daemon on it needs another name
    #[arg(long, value_name = "NAME", default_value = "weft", value_parser = own::<NetworkName>, help_heading = HOST)]
    network: NetworkName,
    /// Where the host's subnet is written for other programs
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env", help_heading = HOST)]
    subnet_file: PathBuf,
    /// Where the daemon's socket is
    #[arg(long, value_name = "DIR", default_value = "/run/weft", help_heading = HOST)]
    run_dir: PathBuf,
    /// What must outlive a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft", help_heading = HOST)]
    state_dir: PathBuf,

    /// After so long without a sign of life, others drop this host if it does not answer them either
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = LEASE)]
    liveness_ttl: Duration,
    /// How long the subnet stays in etcd when its host is silent
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration, help_heading = LEASE)]
    lease_ttl: Duration,
    /// How long a silent host's subnet is not given to another, unless no other is left
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration, help_heading = LEASE)]
    reclaim_after: Duration,
    /// Give the subnet back when the daemon stops
    #[arg(long, value_name = "BOOL", default_value = "false", help_heading = LEASE)]
    release_on_exit: Switch,

    /// Masquerade what pods send out of the network: it leaves with this host's address
    #[arg(long, value_name = "BOOL", default_value = "false", help_heading = TRAFFIC)]
    ip_masq: Switch,
    /// Masquerade with the next free port instead of a random one
    #[arg(long, value_name = "BOOL", default_value = "false", help_heading = TRAFFIC)]
    ip_masq_fully_random_disable: Switch,
    /// Destinations that see pods' own addresses all the same; several with commas or repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr, help_heading = TRAFFIC)]
    non_masquerade_cidr: Vec<IpNetwork>,
    /// Accept forwarded pod traffic where a firewall would drop it
    #[arg(long, value_name = "BOOL", default_value = "true", help_heading = TRAFFIC)]
    iptables_forward_rules: Switch,
    /// Compare everything with the kernel this often, in seconds, even if no event told of a change
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = number::<86_400>, help_heading = TRAFFIC)]
    iptables_resync: u32,
    /// Drop tunnel packets whose inner source does not belong to the host that sent them
    #[arg(long, value_name = "BOOL", default_value = "true", help_heading = TRAFFIC)]
    anti_spoofing: Switch,
    /// Inner sources that every host may send from; several with commas or repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr, help_heading = TRAFFIC)]
    extra_source_cidr: Vec<IpNetwork>,
    /// Drop packets to addresses of this host's subnet that no pod has, without a word to the sender
    #[arg(long, value_name = "BOOL", default_value = "false", help_heading = TRAFFIC)]
    ip_blackhole_route: Switch,

    /// How a pod is wired: `routed`, by a link of its own, or `bridge`, as flannel's plugin does
    #[arg(long, value_name = "MODE", default_value = "routed", value_parser = attach_mode, help_heading = PODS)]
    attach: Mode,
    /// Give pods only these addresses (FIRST-LAST or a CIDR, one of each family), because somebody
    /// else gives out the rest of the subnet; several with commas or repeated
    #[arg(long, value_name = "RANGE", value_delimiter = ',', value_parser = own::<Range>, help_heading = PODS)]
    attach_range: Vec<Range>,

    /// Take over a stopped flanneld's link, address and rules without an interruption
    #[arg(long, value_name = "BOOL", default_value = "false", help_heading = FLANNEL)]
    take_over_flannel: Switch,

    /// The address to serve /healthz, /readyz and /metrics on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", value_parser = address::<IpAddr>, help_heading = SEEN)]
    healthz_ip: IpAddr,
    /// The port of that address; 0 serves them only on the daemon's own socket
    #[arg(long, value_name = "PORT", default_value = "0", value_parser = number::<65_535>, help_heading = SEEN)]
    healthz_port: u32,
    /// How the log looks: `human` or `json`
    #[arg(long, value_name = "FORM", default_value = "human", value_parser = log_format, help_heading = SEEN)]
    log_format: Format,
    /// How much is logged: 0, or 4 with decisions, or 6 with everything; WEFT_LOG=weft_store=debug
    /// and the like choose in detail
    #[arg(long, value_name = "LEVEL", default_value = "0", value_parser = number::<255>, help_heading = SEEN)]
    v: u32,

    #[command(flatten)]
    flannel: OnlyFlannel,
}

/// Flags that flannel has and that are of no use here: some are refused, some change nothing.
#[derive(clap::Args)]
struct OnlyFlannel {
    #[arg(long, hide = true)]
    kube_subnet_mgr: Option<Switch>,
    #[arg(long, hide = true)]
    kube_api_url: Option<String>,
    #[arg(long, hide = true)]
    kubeconfig_file: Option<String>,
    #[arg(long, hide = true)]
    kube_annotation_prefix: Option<String>,
    #[arg(long, hide = true)]
    net_config_path: Option<String>,
    #[arg(long, hide = true)]
    set_node_network_unavailable: Option<Switch>,
    #[arg(long, hide = true, value_parser = renew_margin)]
    subnet_lease_renew_margin: Option<u32>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    #[arg(long = "log_backtrace_at", hide = true)]
    log_backtrace_at: Option<String>,
    #[arg(long = "log_dir", hide = true)]
    log_dir: Option<String>,
    #[arg(long, hide = true)]
    stderrthreshold: Option<String>,
    #[arg(long, hide = true)]
    logtostderr: Option<Switch>,
    #[arg(long, hide = true)]
    alsologtostderr: Option<Switch>,
}

const HOST: &str = "This host";
const LEASE: &str = "Its subnet";
const TRAFFIC: &str = "Traffic";
const PODS: &str = "Pods";
const FLANNEL: &str = "Coming from flannel";
const SEEN: &str = "Health, metrics and logs";

const AFTER_HELP: &str = "\
What kind of network it is (addresses, vxlan, host-gw or udp) stands in etcd, in flannel's form:
  etcdctl put /coreos.com/network/config '{\"Network\": \"10.42.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}'

Accepted for the sake of flannel's unit files, without effect: subnet-lease-renew-margin,
net-config-path, set-node-network-unavailable, vmodule, log_backtrace_at, log_dir, logtostderr,
alsologtostderr, stderrthreshold. Refused: kube-subnet-mgr, kube-api-url, kubeconfig-file,
kube-annotation-prefix; weft leases subnets from etcd.";

/// The flags that flannel does not have; they are not read from `FLANNELD_*`.
const OURS: &[&str] = &[
    "anti-spoofing",
    "attach",
    "attach-range",
    "etcd-password-file",
    "extra-source-cidr",
    "lease-ttl",
    "liveness-ttl",
    "log-format",
    "network",
    "node-id",
    "non-masquerade-cidr",
    "reclaim-after",
    "release-on-exit",
    "run-dir",
    "state-dir",
    "take-over-flannel",
];

/// The command without the daemon: its flags and its help.
pub fn command() -> clap::Command {
    Args::augment_args(clap::Command::new("overlay"))
}

/// What the variables that a flag is read from begin with; the first that is set wins.
pub fn prefixes(flag: &str) -> &'static [&'static str] {
    if OURS.contains(&flag) { &["WEFT_"] } else { &["WEFT_", "FLANNELD_"] }
}

/// All that `weft overlay` was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the daemon shall do.
    pub options: Options,
    /// How its log looks.
    pub log_format: Format,
    /// flannel's `-v`.
    pub verbosity: u8,
    /// Flags that were given and change nothing, to be said in the log.
    pub ignored: Vec<String>,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When what it was told cannot be used, or it cannot start.
pub fn run(args: Args, sources: &Sources, env: &Env) -> Result<ExitCode, CliError> {
    let Settings { options, log_format, verbosity, ignored } = args.settings(sources)?;
    weft_daemon::log::init(log_format, verbosity, env).map_err(CliError::usage)?;
    for name in ignored {
        tracing::warn!("{name} has no effect here");
    }
    tracing::info!(version = super::VERSION, network = %options.network, "weft overlay");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match runtime.block_on(weft_overlay::run::run(options, env)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ (RunError::Options(_) | RunError::Store(_))) => {
            Err(CliError::usage(weft_daemon::log::chain(&error)))
        }
        Err(error) => Err(error.into()),
    }
}

impl Args {
    /// The typed form.
    ///
    /// # Errors
    /// One line that names the flag (or the variable that `sources` knows), the value and the rule.
    pub fn settings(self, sources: &Sources) -> Result<Settings, CliError> {
        self.flannel.refuse(sources)?;
        let ignored = self.flannel.ignored(sources);
        let etcd_prefix = self.etcd.etcd_prefix.clone();
        let port = u16::try_from(self.healthz_port).expect("its parser allows no more");
        let options = Options {
            etcd: self.etcd.connect_options(),
            etcd_prefix,
            network: self.network,
            underlay: UnderlayChoice {
                links: self.iface,
                patterns: self.iface_regex,
                can_reach: self.iface_can_reach,
            },
            public_v4: self.public_ip,
            public_v6: self.public_ipv6,
            subnet_file: self.subnet_file,
            run_dir: self.run_dir,
            state_dir: self.state_dir,
            node_id: self.node_id,
            liveness_ttl: self.liveness_ttl,
            lease_ttl: self.lease_ttl,
            reclaim_after: self.reclaim_after,
            masquerade: self.ip_masq.0,
            masquerade_random: !self.ip_masq_fully_random_disable.0,
            non_masquerade: self.non_masquerade_cidr.into_iter().collect(),
            forward_accept: self.iptables_forward_rules.0,
            blackhole: self.ip_blackhole_route.0,
            resync: Duration::from_secs(self.iptables_resync.into()),
            anti_spoofing: self.anti_spoofing.0,
            extra_sources: self.extra_source_cidr.into_iter().collect(),
            attach: self.attach,
            attach_ranges: self.attach_range,
            take_over_flannel: self.take_over_flannel.0,
            release_on_exit: self.release_on_exit.0,
            healthz: (port != 0).then(|| SocketAddr::new(self.healthz_ip, port)),
        };
        options.check().map_err(CliError::usage)?;
        let verbosity = u8::try_from(self.v).expect("its parser allows no more");
        Ok(Settings { options, log_format: self.log_format, verbosity, ignored })
    }
}

impl OnlyFlannel {
    /// What would be another network than the one meant, if we went on without it.
    fn refuse(&self, sources: &Sources) -> Result<(), CliError> {
        let refused = [
            ("kube-subnet-mgr", self.kube_subnet_mgr == Some(Switch(true))),
            ("kube-api-url", self.kube_api_url.is_some()),
            ("kubeconfig-file", self.kubeconfig_file.is_some()),
            ("kube-annotation-prefix", self.kube_annotation_prefix.is_some()),
        ];
        match refused.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => {
                let name = sources.name(flag);
                let line = format!("{name}: weft leases subnets from etcd, not from the Kubernetes API");
                Err(CliError::usage(line).hint("leave it out, and set --etcd-endpoints"))
            }
        }
    }

    fn ignored(&self, sources: &Sources) -> Vec<String> {
        let table = [
            ("subnet-lease-renew-margin", self.subnet_lease_renew_margin.is_some()),
            ("net-config-path", self.net_config_path.is_some()),
            ("set-node-network-unavailable", self.set_node_network_unavailable.is_some()),
            ("vmodule", self.vmodule.is_some()),
            ("log_backtrace_at", self.log_backtrace_at.is_some()),
            ("log_dir", self.log_dir.is_some()),
            ("stderrthreshold", self.stderrthreshold.is_some()),
            ("logtostderr", self.logtostderr == Some(Switch(false))),
        ];
        let given = table.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| sources.name(flag)).collect()
    }
}

fn own_node_id(raw: &str) -> Result<NodeId, String> {
    NodeId::try_from(raw.to_owned()).map_err(|error| error.to_string())
}

fn attach_mode(raw: &str) -> Result<Mode, String> {
    match raw {
        "routed" => Ok(Mode::Routed),
        "bridge" => Ok(Mode::Bridge),
        _ => Err(format!("`{raw}` is neither routed nor bridge")),
    }
}

/// flannel's rule: more than nothing and less than its lease of 24 hours.
fn renew_margin(raw: &str) -> Result<u32, String> {
    let minutes = raw.parse().ok().filter(|minutes| (1..1440).contains(minutes));
    minutes.ok_or_else(|| format!("`{raw}` is no whole number of minutes from 1 to 1439"))
}

#[cfg(test)]
mod tests;
