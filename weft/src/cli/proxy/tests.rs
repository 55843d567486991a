//! From flags, environment and kube-proxy's file to options: the golden help, and tables of what is
//! accepted, named and refused.

use std::ffi::OsString;

use weft_proxy::around::settings::{self, Wishes};
use weft_proxy::config::unused::UNUSED;
use weft_proxy::host::{DetectLocal, Strict};

use super::*;
use crate::cli::prepared;

fn settings(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, CliError> {
    let args = ["weft", "proxy"].iter().chain(args).map(OsString::from).collect();
    let (args, sources) = prepared(args, &Env::of(env.iter().copied()));
    let parsed = command().try_get_matches_from(&args[1..]).and_then(|m| Args::from_arg_matches(&m));
    parsed.map_err(|error| CliError::of_clap(&error, &sources))?.settings(&sources)
}

/// With a folder, and a name that does not depend on the machine.
fn of(args: &[&str]) -> Settings {
    settings(&[&["--manifests=/m", "--node-name=ash"], args].concat(), &[])
        .unwrap_or_else(|error| panic!("{args:?}: {}", error.render()))
}

fn refused(args: &[&str]) -> String {
    settings(&[&["--manifests=/m"], args].concat(), &[]).unwrap_err().render()
}

/// Rewrite with `BLESS=1 cargo test -p weft help`.
#[test]
fn the_help_is_golden() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/proxy-help.txt");
    let help = command().term_width(100).bin_name("weft proxy").render_long_help().to_string();
    let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &help).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(help, golden, "the help changed; look at it and rewrite {path}");
}

#[test]
fn by_default_kube_proxys_defaults_hold() {
    let Settings { options, log_format, verbosity, oom_score_adj, notes } = of(&[]);
    assert_eq!(options.source, SourceOptions::Manifests("/m".into()));
    assert_eq!((options.mode, options.node), (Mode::Nftables, NodeName::new("ash")));
    assert_eq!(options.resync, RESYNC);
    assert_eq!(options.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(options.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(options.wishes, Wishes::default());
    assert_eq!(options.service_cidrs, []);
    let host = weft_proxy::host::Settings { strict: Some(Strict::default()), ..Default::default() };
    assert_eq!(options.settings, host);
    assert_eq!((log_format, verbosity, oom_score_adj), (Format::Human, 0, None));
    assert_eq!(notes, Vec::<String>::new());
}

#[test]
fn every_flag_has_its_place() {
    let all = of(&[
        "-hostname-override",
        "Birch",
        "-proxy-mode=iptables",
        "-masquerade-all",
        "-cluster-cidr=10.1.0.0/16,fd00::/48",
        "-nodeport-addresses=primary,192.0.2.0/24",
        "-iptables-sync-period",
        "1m30s",
        "-healthz-bind-address=127.0.0.1",
        "-metrics-bind-address=[::]:9",
        "-oom-score-adj=-999",
        "-v=4",
        "-log-format=json",
        "-conntrack-max-per-core=0",
        "-conntrack-min=1",
        "-conntrack-tcp-timeout-established=2h",
        "-conntrack-tcp-timeout-close-wait=1m",
        "-conntrack-tcp-be-liberal",
        "-conntrack-udp-timeout=30s",
        "-conntrack-udp-timeout-stream=120s",
        "-conntrack-accounting",
        "-iptables-masquerade-bit=14",
    ]);
    let Options { node, mode, settings, resync, healthz, metrics, wishes, .. } = all.options;
    assert_eq!((node, mode), (NodeName::new("birch"), Mode::Iptables));
    assert!(settings.masquerade_all);
    let ranges = ["10.1.0.0/16", "fd00::/48"].map(|range| range.parse().unwrap());
    assert_eq!(settings.detect_local, DetectLocal::ClusterCidr(ranges.to_vec()));
    assert_eq!(settings.node_ports, NodePortAddresses::parse(["primary", "192.0.2.0/24"]).unwrap());
    assert_eq!(resync, Duration::from_secs(90));
    assert_eq!(healthz, Some("127.0.0.1:10256".parse().unwrap()));
    assert_eq!(metrics, Some("[::]:9".parse().unwrap()));
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let conntrack = settings::Conntrack {
        max_per_core: 0,
        min: 1,
        tcp_established: seconds(7200),
        tcp_close_wait: seconds(60),
        tcp_be_liberal: true,
        udp: seconds(30),
        udp_stream: seconds(120),
    };
    assert_eq!(wishes, Wishes { conntrack, accounting: true });
    assert_eq!((all.log_format, all.verbosity, all.oom_score_adj), (Format::Json, 4, Some(-999)));
    assert_eq!(all.notes, Vec::<String>::new());

    let options = of(&["--service-cidrs", "10.96.0.0/12"]).options;
    assert_eq!(options.service_cidrs, ["10.96.0.0/12".parse().unwrap()]);
    assert_eq!(options.settings.strict.unwrap().service_cidrs, options.service_cidrs);
    let bridge = of(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"]);
    assert_eq!(bridge.options.settings.detect_local, DetectLocal::Bridge("cni0".into()));
    let prefix = of(&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth"]);
    assert_eq!(prefix.options.settings.detect_local, DetectLocal::InterfacePrefix("veth".into()));
    let localhost = of(&["--mode=iptables", "--iptables-localhost-nodeports"]);
    let places = NodePortAddresses::parse(["all", "localhost"]).unwrap();
    assert_eq!(localhost.options.settings.node_ports, places);
    let userspace = of(&["--mode=userspace", "--connections-per-source=9", "--drain-timeout=1m"]).options;
    assert_eq!((userspace.mode, userspace.userspace.per_source), (Mode::Userspace, Some(9)));
    assert_eq!(userspace.userspace.drain, Duration::from_secs(60));
    assert_eq!(of(&["--resync", "5"]).options.resync, Duration::from_secs(5));
    assert_eq!(of(&["--healthz-bind-address=0.0.0.0:0"]).options.healthz, None);
    assert_eq!(
        of(&["--healthz-port=0", "--metrics-port=7"]).options.metrics,
        Some("127.0.0.1:7".parse().unwrap())
    );
    assert_eq!(of(&["--logging-format=text"]).log_format, Format::Human);
}

#[test]
fn where_objects_are_declared() {
    let source = |args: &[&str]| settings(args, &[]).map(|settings| settings.options.source);
    let api = SourceOptions::Api(Access::Kubeconfig("/k".into()));
    assert_eq!(source(&["--kubeconfig=/k"]).unwrap(), api);
    assert!(source(&["--kubeconfig=/k", "--manifests=/m"]).is_err());
    let folder = || Some(PathBuf::from("/m"));
    let file = || Some(PathBuf::from("/k"));
    assert_eq!(declared(None, None, file()).unwrap(), (api, None));
    let (source, note) = declared(folder(), None, file()).unwrap();
    assert_eq!(source, SourceOptions::Manifests("/m".into()));
    assert!(note.unwrap().starts_with("clientConnection.kubeconfig has no effect: "));
}

#[test]
fn what_has_no_effect_is_named() {
    for unused in UNUSED.iter().filter(|unused| !unused.flag.is_empty()) {
        let flag = format!("-{}", unused.flag);
        let args = if unused.takes_value { vec![flag.as_str(), "1"] } else { vec![flag.as_str()] };
        match settings(&[&["--manifests=/m"], args.as_slice()].concat(), &[]) {
            Ok(settings) => {
                let [note] = settings.notes.as_slice() else { panic!("{flag}: {:?}", settings.notes) };
                assert!(note.starts_with(&format!("-{flag} has no effect: ")), "{note}");
            }
            Err(error) => {
                assert!(error.render().starts_with(&format!("error: -{flag} is not for weft\nhint: ")));
            }
        }
        if !unused.takes_value {
            assert_eq!(of(&[&format!("{flag}=false")]).notes, Vec::<String>::new(), "{flag}");
        }
    }
}

#[test]
fn what_is_refused_says_what_to_do() {
    for (args, expected) in [
        (
            &["--proxy-mode=ipvs"][..],
            "error: --mode: `ipvs`: weft has no IPVS mode, and Kubernetes gives its own up; use `nftables`, or leave it out\n",
        ),
        (
            "--cleanup".split(' ').collect::<Vec<_>>().as_slice(),
            "error: --cleanup is not for weft\nhint: run `weft cleanup --only proxy`\n",
        ),
        (
            &["--iptables-masquerade-bit=7"],
            "error: --iptables-masquerade-bit: 7: weft marks with bit 14; see that nobody else does, and leave it out\n",
        ),
        (
            &["--nodeport-addresses=everywhere"],
            "error: --nodeport-addresses: `everywhere` is no place for node ports; use `primary`, `localhost`, `all` or a range such as 192.0.2.0/24\n",
        ),
        (
            &["--detect-local-mode=BridgeInterface"],
            "error: detectLocalMode BridgeInterface needs detectLocal.bridgeInterface (--pod-bridge-interface)\n",
        ),
        (
            &["--conntrack-udp-timeout=1d"],
            "error: --conntrack-udp-timeout: `1d` is no duration of zero or more; write 30s, 5m, 1h30m or 250ms\n",
        ),
        (&["--oom-score-adj=2000"], "error: --oom-score-adj: 2000 is not from -1000 to 1000\n"),
        (&["--resnyc=5"], "error: there is no `--resnyc` here\nhint: did you mean `--resync`?\n"),
        (
            &["--config=/nonexistent"],
            "error: --config: cannot read /nonexistent: No such file or directory (os error 2)\n",
        ),
    ] {
        assert_eq!(refused(args), expected);
    }
    let error = settings(&[], &[]).unwrap_err().render();
    assert_eq!(
        error,
        "error: nothing says where services are declared\nhint: use --kubeconfig FILE or --manifests DIR\n"
    );
    let error = settings(&["--manifests=/m"], &[("WEFT_PROXY_MODE", "x")]).unwrap_err().render();
    assert_eq!(error, "error: WEFT_PROXY_MODE: `x` is no mode; use `nftables`, `iptables` or `userspace`\n");
}

#[test]
fn a_flag_beats_the_environment_and_that_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.conf");
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let fields =
        "hostnameOverride: file\nmode: iptables\nipvs: {strictARP: true}\niptables: {masqueradeAll: true}\n";
    std::fs::write(&path, format!("{head}{fields}")).unwrap();
    let config = format!("--config={}", path.display());
    let name = |args: &[&str], env: &[(&str, &str)]| {
        settings(&[&["--manifests=/m", &config], args].concat(), env).unwrap().options.node.to_string()
    };
    let env = [("WEFT_PROXY_NODE_NAME", "variable")];
    assert_eq!(name(&[], &[]), "file");
    assert_eq!(name(&[], &env), "variable");
    assert_eq!(name(&["--hostname-override=flag"], &env), "flag");
    let settings = of(&[&config]);
    assert_eq!(settings.options.mode, Mode::Iptables);
    assert!(settings.options.settings.masquerade_all);
    assert_eq!(settings.notes, ["ipvs.strictARP has no effect: weft has no IPVS mode"]);
    assert!(!of(&[&config, "--masquerade-all=false"]).options.settings.masquerade_all);
    std::fs::write(&path, format!("{head}mode: ipvs\n")).unwrap();
    let error = refused(&[&config]);
    assert!(error.contains("config.conf: mode: `ipvs`: weft has no IPVS mode"), "{error}");
}
