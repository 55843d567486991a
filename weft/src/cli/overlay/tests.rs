//! From flags and environment to options: the golden help, and tables of what is accepted and refused.

use std::ffi::OsString;

use clap::FromArgMatches as _;
use weft_daemon::Env;

use super::*;
use crate::cli::prepared;

/// `weft overlay` with these arguments and this environment, up to the typed options.
fn settings(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, CliError> {
    let args = ["weft", "overlay"].iter().chain(args).map(OsString::from).collect();
    let (args, sources) = prepared(args, &Env::of(env.iter().copied()));
    let parsed = command().try_get_matches_from(&args[1..]).and_then(|m| Args::from_arg_matches(&m));
    parsed.map_err(|error| CliError::of_clap(&error, &sources))?.settings(&sources)
}

fn options(args: &[&str]) -> Options {
    settings(args, &[]).unwrap_or_else(|error| panic!("{args:?}: {}", error.render())).options
}

/// Rewrite with `BLESS=1 cargo test -p weft help`.
#[test]
fn the_help_is_golden() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/overlay-help.txt");
    let help = command().term_width(100).bin_name("weft overlay").render_long_help().to_string();
    let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &help).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(help, golden, "the help changed; look at it and rewrite {path}");
}

#[test]
fn nothing_given_is_flannels_defaults() {
    assert_eq!(format!("{:?}", options(&[])), format!("{:?}", Options::default()));
}

/// Every flag sets its own option: one that is forgotten leaves the default, and the row fails.
#[test]
fn each_flag_sets_its_option() {
    type Change = fn(&mut Options);
    let table: &[(&[&str], Change)] = &[
        (&["-etcd-endpoints=https://a:1, https://b:2,"], |o| {
            o.etcd.endpoints = vec!["https://a:1".into(), "https://b:2".into()]
        }),
        (&["--etcd-endpoints", "192.0.2.1:2379"], |o| {
            o.etcd.endpoints = vec!["http://192.0.2.1:2379".into()]
        }),
        (&["-etcd-endpoints=a:1", "-etcd-cafile=/ca"], |o| {
            (o.etcd.endpoints, o.etcd.ca_file) = (vec!["https://a:1".into()], Some("/ca".into()))
        }),
        (&["-etcd-prefix", "/blue/network"], |o| o.etcd_prefix = "/blue/network".into()),
        (&["-etcd-certfile=/c", "-etcd-keyfile=/k"], |o| {
            (o.etcd.cert_file, o.etcd.key_file) = (Some("/c".into()), Some("/k".into()))
        }),
        (&["-etcd-username=root", "-etcd-password=-x="], |o| {
            (o.etcd.username, o.etcd.password) = (Some("root".into()), Some("-x=".into()))
        }),
        (&["-etcd-username=root", "--etcd-password-file=/secret"], |o| {
            (o.etcd.username, o.etcd.password_file) = (Some("root".into()), Some("/secret".into()))
        }),
        (&["-iface=eth0", "-iface", "192.0.2.7"], |o| {
            o.underlay.links = vec!["eth0".parse().unwrap(), "192.0.2.7".parse().unwrap()]
        }),
        (&["-iface-regex=eth{1,2}", "-iface-regex", "ens.*"], |o| {
            o.underlay.patterns = vec!["eth{1,2}".parse().unwrap(), "ens.*".parse().unwrap()]
        }),
        (&["-iface-can-reach=192.0.2.1"], |o| o.underlay.can_reach = Some([192, 0, 2, 1].into())),
        (&["-public-ip=192.0.2.7"], |o| o.public_v4 = Some([192, 0, 2, 7].into())),
        (&["-public-ipv6=2001:db8::7"], |o| o.public_v6 = Some("2001:db8::7".parse().unwrap())),
        (&["--node-id=ash"], |o| o.node_id = Some(NodeId::try_from("ash".to_owned()).unwrap())),
        (&["--network=blue"], |o| o.network = "blue".parse().unwrap()),
        (&["-subnet-file=/tmp/env"], |o| o.subnet_file = "/tmp/env".into()),
        (&["--run-dir=/r"], |o| o.run_dir = "/r".into()),
        (&["--state-dir=/s"], |o| o.state_dir = "/s".into()),
        (&["--liveness-ttl=30s"], |o| o.liveness_ttl = Duration::from_secs(30)),
        (&["--lease-ttl=1h30m"], |o| o.lease_ttl = Duration::from_secs(5400)),
        (&["--reclaim-after=1d"], |o| o.reclaim_after = Duration::from_secs(86_400)),
        (&["--release-on-exit"], |o| o.release_on_exit = true),
        (&["-ip-masq"], |o| o.masquerade = true),
        (&["--ip-masq=1"], |o| o.masquerade = true),
        (&["-ip-masq=true", "-ip-masq=false"], |o| o.masquerade = false),
        (&["-ip-masq-fully-random-disable"], |o| o.masquerade_random = false),
        (&["--non-masquerade-cidr=10.0.0.0/8,2001:db8::/32", "--non-masquerade-cidr", "192.0.2.0/24"], |o| {
            let cidrs = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.0/24"];
            o.non_masquerade = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()
        }),
        (&["-iptables-forward-rules=false"], |o| o.forward_accept = false),
        (&["-iptables-resync=30"], |o| o.resync = Duration::from_secs(30)),
        (&["--anti-spoofing=false"], |o| o.anti_spoofing = false),
        (&["--extra-source-cidr=192.0.2.0/24"], |o| {
            o.extra_sources = ["192.0.2.0/24".parse().unwrap()].into()
        }),
        (&["-ip-blackhole-route"], |o| o.blackhole = true),
        (&["--attach=bridge"], |o| o.attach = Mode::Bridge),
        (&["--attach-range=10.42.7.64/26,fd00::10-fd00::ff"], |o| {
            o.attach_ranges = vec!["10.42.7.64/26".parse().unwrap(), "fd00::10-fd00::ff".parse().unwrap()]
        }),
        (&["--take-over-flannel"], |o| o.take_over_flannel = true),
        (&["-healthz-port=8080"], |o| o.healthz = Some("0.0.0.0:8080".parse().unwrap())),
        (&["-healthz-ip=::1", "-healthz-port", "8080"], |o| o.healthz = Some("[::1]:8080".parse().unwrap())),
        (&["-healthz-ip=::1"], |_| {}),
        (&["-public-ip=", "-iface", ""], |_| {}),
        (&["-kube-subnet-mgr=false", "-kube-api-url="], |_| {}),
    ];
    for (args, change) in table {
        let mut expected = Options::default();
        change(&mut expected);
        let got = options(args);
        assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{args:?}");
        assert_eq!(got.etcd.password, expected.etcd.password, "{args:?}");
    }
    // Each flag that does something has a row.
    let rows: Vec<_> =
        table.iter().flat_map(|(args, _)| *args).map(|arg| arg.trim_start_matches('-')).collect();
    for argument in command().get_arguments().filter(|argument| !argument.is_hide_set()) {
        let name = argument.get_long().unwrap();
        let tested = |row: &&str| row.split('=').next() == Some(name);
        assert!(["v", "log-format"].contains(&name) || rows.iter().any(tested), "--{name} has no row");
    }
}

#[test]
fn refusals_name_flag_value_and_rule() {
    for (args, expected) in [
        (&["-public-ip=::1"][..], "error: --public-ip: `::1` is no IPv4 address\n"),
        (&["-public-ipv6", "1.2.3.4"], "error: --public-ipv6: `1.2.3.4` is no IPv6 address\n"),
        (&["-iface-can-reach=x"], "error: --iface-can-reach: `x` is no IP address\n"),
        (&["-iface=a b"], "error: --iface: `a b` is neither an IP address nor an interface name\n"),
        (&["-iface-regex=("], "error: --iface-regex: `(` is no regular expression: unclosed group\n"),
        (
            &["--node-id=a/b"],
            "error: --node-id: `a/b` is no node id: 1 to 64 of the characters A-Z a-z 0-9 . _ -\n",
        ),
        (
            &["--network=.."],
            "error: --network: `..` is no network name: 1 to 32 of the characters a-z 0-9 -, not `-` first\n",
        ),
        (&["--lease-ttl=1"], "error: --lease-ttl: `1` is no duration; write 10s, 90m, 24h, 7d or 1h30m\n"),
        (
            &["--lease-ttl=5s"],
            "error: --lease-ttl: `5s` is shorter than --liveness-ttl, `10s`: the subnet must outlive the host\n",
        ),
        (&["-ip-masq=yes"], "error: --ip-masq: `yes` is neither true nor false\n"),
        (&["-ip-masq", "false"], "error: there is no `false` here\n"),
        (
            &["--non-masquerade-cidr=10.1.2.3/8"],
            "error: --non-masquerade-cidr: `10.1.2.3/8` has host bits; write 10.0.0.0/8\n",
        ),
        (&["--attach=ipvlan"], "error: --attach: `ipvlan` is neither routed nor bridge\n"),
        (
            &["--attach-range=x"],
            "error: --attach-range: `x` is no range: write FIRST-LAST or a CIDR, such as 10.42.7.64-10.42.7.127 or 10.42.7.64/26\n",
        ),
        (&["-healthz-port=65536"], "error: --healthz-port: `65536` is no whole number from 0 to 65535\n"),
        (
            &["-iptables-resync=0"],
            "error: --iptables-resync: `0s` is too short: at least 1s, as a full comparison costs CPU\n",
        ),
        (
            &["-subnet-lease-renew-margin=1440"],
            "error: --subnet-lease-renew-margin: `1440` is no whole number of minutes from 1 to 1439\n",
        ),
        (&["--log-format=xml"], "error: --log-format: `xml` is neither human nor json\n"),
        (&["-v=high"], "error: --v: `high` is no whole number from 0 to 255\n"),
        (&["-public-ip"], "error: --public-ip needs a value\n"),
        (&["-ifacee=eth0"], "error: there is no `--ifacee` here\nhint: did you mean `--iface`?\n"),
        (&["stray"], "error: there is no `stray` here\n"),
        (
            &["-kube-subnet-mgr"],
            "error: --kube-subnet-mgr: weft leases subnets from etcd, not from the Kubernetes API\nhint: leave it out, and set --etcd-endpoints\n",
        ),
        (
            &["--kubeconfig-file=/root/.kube/config"],
            "error: --kubeconfig-file: weft leases subnets from etcd, not from the Kubernetes API\nhint: leave it out, and set --etcd-endpoints\n",
        ),
    ] {
        let error = settings(args, &[]).err().unwrap_or_else(|| panic!("{args:?} is accepted"));
        assert_eq!(error.render(), expected);
        assert_eq!(error.exit_code(), std::process::ExitCode::from(2));
    }
}

#[test]
fn the_environment_migrates_with_the_unit_file() {
    let settings = settings(
        &["-v=4", "-logtostderr", "-iface=eth1"],
        &[
            ("FLANNELD_ETCD_ENDPOINTS", "http://192.0.2.1:2379"),
            ("FLANNELD_IP_MASQ", "true"),
            ("FLANNELD_IFACE", "eth0"),
            ("FLANNELD_PUBLIC_IP", "192.0.2.7"),
            ("WEFT_PUBLIC_IP", "192.0.2.8"),
            ("FLANNELD_SUBNET_FILE", ""),
            ("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "30"),
            ("WEFT_NON_MASQUERADE_CIDR", "10.0.0.0/8,192.0.2.0/24"),
            ("WEFT_LOG_FORMAT", "json"),
        ],
    )
    .unwrap();
    let options = settings.options;
    assert_eq!(options.etcd.endpoints, ["http://192.0.2.1:2379"]);
    assert!(options.masquerade);
    assert_eq!(options.underlay.links, ["eth1".parse().unwrap()]);
    assert_eq!(options.public_v4, Some([192, 0, 2, 8].into()));
    assert_eq!(options.subnet_file, Options::default().subnet_file);
    assert_eq!(options.non_masquerade.len(), 2);
    assert_eq!((settings.verbosity, settings.log_format), (4, Format::Json));
    assert_eq!(settings.ignored, ["FLANNELD_SUBNET_LEASE_RENEW_MARGIN"]);
}

#[test]
fn a_bad_variable_is_blamed_by_its_own_name() {
    for (variable, value, expected) in [
        ("FLANNELD_PUBLIC_IP", "x", "error: FLANNELD_PUBLIC_IP: `x` is no IPv4 address\n"),
        ("WEFT_IP_MASQ", "maybe", "error: WEFT_IP_MASQ: `maybe` is neither true nor false\n"),
        (
            "FLANNELD_KUBE_SUBNET_MGR",
            "true",
            "error: FLANNELD_KUBE_SUBNET_MGR: weft leases subnets from etcd, not from the Kubernetes API\nhint: leave it out, and set --etcd-endpoints\n",
        ),
    ] {
        assert_eq!(settings(&[], &[(variable, value)]).err().unwrap().render(), expected);
    }
}

#[test]
fn glog_flags_are_harmless() {
    let args =
        ["-v", "2", "-vmodule=x=1", "-log_backtrace_at=a:1", "-alsologtostderr", "-stderrthreshold=INFO"];
    let settings = settings(&args, &[]).unwrap();
    assert_eq!(settings.verbosity, 2);
    assert_eq!(settings.ignored, ["--vmodule", "--log_backtrace_at", "--stderrthreshold"]);
}

#[test]
fn a_secret_is_in_no_message() {
    let secret = "hunter2";
    for args in [
        vec!["-etcd-username=root", "-etcd-password=hunter2"],
        vec!["-etcd-password=hunter2", "-public-ip=x"],
        vec!["-etcd-password", "hunter2", "-ifacee=x"],
    ] {
        let shown = match settings(&args, &[]) {
            Ok(settings) => format!("{settings:?}"),
            Err(error) => format!("{error:?}"),
        };
        assert!(!shown.contains(secret), "{shown}");
    }
}
