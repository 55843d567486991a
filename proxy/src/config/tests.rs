//! kube-proxy's file, field by field, and what comes of it.

use proptest::prelude::*;

use super::file::{BadFile, Read, read};
use super::unused::{UNUSED, Unused};
use super::*;

fn file(fields: &str) -> Result<Read, BadFile> {
    read(&format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}"))
}

fn given(fields: &str) -> Given {
    let Read { given, notes } = file(fields).unwrap_or_else(|error| panic!("{fields}: {error}"));
    assert_eq!(notes, Vec::<String>::new(), "{fields}");
    given
}

fn settled(fields: &str) -> Config {
    given(fields).settle().unwrap()
}

/// What kubeadm writes: everything, mostly empty.
const KUBEADM: &str = r#"
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json: {infoBufferSize: "0"}
    text: {infoBufferSize: "0"}
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

#[test]
fn what_kubeadm_writes_is_understood_without_a_word() {
    let config = settled(KUBEADM);
    assert_eq!(config.mode, Mode::Nftables);
    assert_eq!(config.kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
    assert_eq!(
        config.settings.detect_local,
        DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()])
    );
    assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!((config.node_name, config.oom_score_adj, config.sync_period), (None, None, None));
    assert_eq!(config.wishes, Wishes::default(), "kube-proxy's defaults");
    assert_eq!(config.notes, Vec::<String>::new());
}

/// kube-proxy refuses at cluster addresses in nftables mode only; weft in both, whoever chose the mode and
/// whether or not it knows the ranges.
#[test]
fn both_modes_are_strict_about_cluster_addresses() {
    let ranges: Vec<IpNetwork> = vec!["10.96.0.0/12".parse().unwrap()];
    for mode in ["nftables", "iptables"] {
        let of_file = given(&format!("mode: {mode}"));
        let of_flag = Given { mode: Some(mode.parse().unwrap()), ..Given::default() };
        for given in [of_file, of_flag] {
            let strict = |given: Given| given.settle().unwrap().settings.strict.unwrap().service_cidrs;
            assert_eq!(strict(given.clone()), [], "{mode}");
            let told = Given { service_cidrs: Some(ranges.clone()), ..given };
            assert_eq!(strict(told), ranges, "{mode}");
        }
    }
}

#[test]
fn json_and_an_empty_configuration_are_files_too() {
    assert_eq!(given(""), Given::default());
    let json = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "iptables"}"#;
    assert_eq!(read(json).unwrap().given.mode, Some(Mode::Iptables));
    assert_eq!(read(&format!("---\n{json}\n")).unwrap().given.mode, Some(Mode::Iptables));
}

#[test]
fn fields_that_are_used() {
    let nothing = Given::default;
    let bind = |text: &str| Some(text.parse().unwrap());
    let of_mode = |all, period| OfMode { masquerade_all: all, sync_period: period };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let conntrack = |conntrack| Given { conntrack, ..nothing() };
    let none = Conntrack::default;
    for (fields, expected) in [
        ("mode: nftables", Given { mode: Some(Mode::Nftables), ..nothing() }),
        ("mode: iptables", Given { mode: Some(Mode::Iptables), ..nothing() }),
        ("mode: ''", nothing()),
        ("hostnameOverride: Ash", Given { node_name: Some(NodeName::new("ash")), ..nothing() }),
        ("clientConnection: {kubeconfig: /etc/k}", Given { kubeconfig: Some("/etc/k".into()), ..nothing() }),
        ("healthzBindAddress: 192.0.2.1", Given { healthz: bind("192.0.2.1"), ..nothing() }),
        ("metricsBindAddress: '[::]:1'", Given { metrics: bind("[::]:1"), ..nothing() }),
        ("iptables: {masqueradeAll: true}", Given { iptables: of_mode(Some(true), None), ..nothing() }),
        ("nftables: {masqueradeAll: true}", Given { nftables: of_mode(Some(true), None), ..nothing() }),
        ("iptables: {syncPeriod: 1m}", Given { iptables: of_mode(None, seconds(60)), ..nothing() }),
        ("nftables: {syncPeriod: 1h}", Given { nftables: of_mode(None, seconds(3600)), ..nothing() }),
        ("iptables: {masqueradeBit: 14}", nothing()),
        ("nftables: {masqueradeBit: 14}", nothing()),
        ("iptables: {localhostNodePorts: true}", Given { localhost_node_ports: Some(true), ..nothing() }),
        ("detectLocalMode: NodeCIDR", Given { detect_local: Some(DetectLocalMode::NodeCidr), ..nothing() }),
        ("detectLocal: {bridgeInterface: cni0}", Given { pod_bridge: Some("cni0".into()), ..nothing() }),
        (
            "detectLocal: {interfaceNamePrefix: veth}",
            Given { pod_link_prefix: Some("veth".into()), ..nothing() },
        ),
        (
            "clusterCIDR: '10.1.2.3/16,fd00::/48'",
            Given {
                cluster_cidrs: Some(vec!["10.1.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()]),
                ..nothing()
            },
        ),
        (
            "nodePortAddresses: [primary, 192.0.2.0/24]",
            Given {
                node_ports: Some(NodePortAddresses::parse(["primary", "192.0.2.0/24"]).unwrap()),
                ..nothing()
            },
        ),
        ("nodePortAddresses: []", nothing()),
        ("oomScoreAdj: -999", Given { oom_score_adj: Some(-999), ..nothing() }),
        ("conntrack: {maxPerCore: 0}", conntrack(Conntrack { max_per_core: Some(0), ..none() })),
        ("conntrack: {min: 131072}", conntrack(Conntrack { min: Some(131_072), ..none() })),
        (
            "conntrack: {tcpEstablishedTimeout: 24h}",
            conntrack(Conntrack { tcp_established: seconds(86_400), ..none() }),
        ),
        (
            "conntrack: {tcpCloseWaitTimeout: 1h}",
            conntrack(Conntrack { tcp_close_wait: seconds(3600), ..none() }),
        ),
        ("conntrack: {tcpBeLiberal: true}", conntrack(Conntrack { tcp_be_liberal: Some(true), ..none() })),
        ("conntrack: {udpTimeout: 30s}", conntrack(Conntrack { udp: seconds(30), ..none() })),
        ("conntrack: {udpStreamTimeout: 120s}", conntrack(Conntrack { udp_stream: seconds(120), ..none() })),
        ("logging: {format: json}", Given { log_json: Some(true), ..nothing() }),
        ("logging: {format: text}", Given { log_json: Some(false), ..nothing() }),
        ("logging: {verbosity: 4}", Given { verbosity: Some(4), ..nothing() }),
    ] {
        assert_eq!(given(fields), expected, "{fields}");
    }
}

#[test]
fn fields_that_are_named() {
    for (fields, expected) in [
        ("ipvs: {strictARP: true}", "ipvs.strictARP has no effect: weft has no IPVS mode"),
        ("ipvs: {scheduler: rr}", "ipvs.scheduler has no effect: weft has no IPVS mode"),
        ("featureGates: {A: true}", "featureGates.A has no effect: weft has no feature gates"),
        ("winkernel: {networkName: x}", "winkernel.networkName has no effect: that is for Windows"),
        (
            "bindAddress: 192.0.2.1",
            "bindAddress has no effect: the Node says which addresses are its primary ones, else the route out does",
        ),
        (
            "iptables: {minSyncPeriod: 10s}",
            "iptables.minSyncPeriod has no effect: a change costs what it changes, so every one is made at once",
        ),
        (
            "logging: {options: {json: {infoBufferSize: 1Mi}}}",
            "logging.options.json.infoBufferSize has no effect: weft logs to stderr; WEFT_LOG chooses in detail",
        ),
        ("modes: nftables", "modes is not known, and has no effect"),
        ("iptables: {masqAll: true}", "iptables.masqAll is not known, and has no effect"),
    ] {
        let read = file(fields).unwrap();
        assert_eq!(read.notes, [expected], "{fields}");
        assert_eq!(read.given, Given::default(), "{fields}");
    }
}

#[test]
fn fields_that_are_refused() {
    for (fields, expected) in [
        (
            "mode: ipvs",
            "mode: `ipvs`: weft has no IPVS mode, and Kubernetes gives its own up; use `nftables`, or leave it out",
        ),
        ("mode: kernelspace", "mode: `kernelspace`: that is for Windows; use `nftables`, or leave it out"),
        ("mode: fast", "mode: `fast` is no mode; use `nftables`, `iptables` or `userspace`"),
        ("mode: [nftables]", "mode: [\"nftables\"] must be a string"),
        (
            "detectLocalMode: cluster",
            "detectLocalMode: `cluster` is none of `ClusterCIDR`, `NodeCIDR`, `BridgeInterface`, `InterfaceNamePrefix`",
        ),
        ("clusterCIDR: 10.0.0.1", "clusterCIDR: `10.0.0.1` is no range such as 10.42.0.0/16"),
        (
            "clusterCIDR: 10.0.0.0/8,11.0.0.0/8",
            "clusterCIDR: 10.0.0.0/8 and 11.0.0.0/8 are of one family; give at most one of each",
        ),
        (
            "nodePortAddresses: [192.0.2.1]",
            "nodePortAddresses: `192.0.2.1` is no place for node ports; use `primary`, `localhost`, `all` or a range such as 192.0.2.0/24",
        ),
        ("nodePortAddresses: primary", "nodePortAddresses: \"primary\" must be a list"),
        (
            "iptables: {masqueradeBit: 15}",
            "iptables.masqueradeBit: 15: weft marks with bit 14; see that nobody else does, and leave it out",
        ),
        ("iptables: {masqueradeAll: 'yes'}", "iptables.masqueradeAll: \"yes\" is neither true nor false"),
        ("iptables: {syncPeriod: 30}", "iptables.syncPeriod: 30 must be a string"),
        (
            "conntrack: {udpTimeout: 1d}",
            "conntrack.udpTimeout: `1d` is no duration of zero or more; write 30s, 5m, 1h30m or 250ms",
        ),
        ("conntrack: {min: -1}", "conntrack.min: -1 is not from 0 to 2147483647"),
        ("oomScoreAdj: 1001", "oomScoreAdj: 1001 is not from -1000 to 1000"),
        (
            "healthzBindAddress: host:80",
            "healthzBindAddress: `host:80` is no address to serve at, such as 0.0.0.0:10256, [::]:10256 or 127.0.0.1",
        ),
        ("logging: {format: xml}", "logging.format: `xml` is neither `text` nor `json`"),
        (
            "iptables: {snatNodeInternalIP: true}",
            "iptables.snatNodeInternalIP: weft masquerades with the address of the link that a packet leaves by",
        ),
    ] {
        assert_eq!(file(fields).unwrap_err().to_string(), expected, "{fields}");
    }
    let both = file("mode: ipvs\noomScoreAdj: x").unwrap_err();
    assert_eq!(both.0.len(), 2, "all mistakes at once: {both}");
}

#[test]
fn another_kind_of_file_is_none() {
    for (contents, expected) in [
        ("kind: Service\napiVersion: v1", "kind: `Service` is not `KubeProxyConfiguration`"),
        (
            "kind: KubeProxyConfiguration\napiVersion: componentconfig/v1alpha1",
            "apiVersion: `componentconfig/v1alpha1` is not `kubeproxy.config.k8s.io/v1alpha1`",
        ),
        ("", "it has no fields; expected a KubeProxyConfiguration"),
        ("- a", "it has no fields; expected a KubeProxyConfiguration"),
    ] {
        assert_eq!(read(contents).unwrap_err().to_string(), expected, "{contents}");
    }
    let error = read("kind: [").unwrap_err().to_string();
    assert!(error.starts_with("it cannot be read: ") && !error.contains('\n'), "{error}");
}

#[test]
fn flags_beat_the_file_field_by_field() {
    let file = given(
        "mode: iptables\nhostnameOverride: ash\niptables: {masqueradeAll: true, syncPeriod: 1m}\nconntrack: {min: 1, maxPerCore: 2}",
    );
    let flags = Given {
        node_name: Some(NodeName::new("birch")),
        iptables: OfMode { masquerade_all: Some(false), sync_period: None },
        conntrack: Conntrack { min: Some(7), ..Conntrack::default() },
        ..Given::default()
    };
    let both = flags.over(file).settle().unwrap();
    assert_eq!(both.mode, Mode::Iptables);
    assert_eq!(both.node_name, Some(NodeName::new("birch")));
    assert!(!both.settings.masquerade_all);
    assert_eq!(both.sync_period, Some(Duration::from_secs(60)));
    assert_eq!((both.wishes.conntrack.min, both.wishes.conntrack.max_per_core), (7, 2));
}

#[test]
fn zero_leaves_the_kernels_timeouts_alone() {
    let conntrack =
        settled("conntrack: {tcpEstablishedTimeout: 0s, udpTimeout: 7s, maxPerCore: 0}").wishes.conntrack;
    assert_eq!((conntrack.tcp_established, conntrack.udp), (None, Some(Duration::from_secs(7))));
    assert_eq!((conntrack.max_per_core, conntrack.min), (0, 131_072));
    assert_eq!(conntrack.tcp_close_wait, Some(Duration::from_secs(3600)));
}

#[test]
fn what_belongs_to_the_other_mode_does_not_count() {
    let fields = "iptables: {masqueradeAll: true, syncPeriod: 1m}";
    let nftables = settled(fields);
    assert!(!nftables.settings.masquerade_all && nftables.sync_period.is_none());
    let iptables = settled(&format!("{fields}\nmode: iptables"));
    assert!(iptables.settings.masquerade_all && iptables.sync_period.is_some());
}

#[test]
fn where_node_ports_are_served() {
    let words = |list: &[&str]| NodePortAddresses::parse(list.iter().copied()).unwrap();
    for (fields, expected) in [
        ("mode: nftables", words(&["primary"])),
        ("mode: iptables", words(&["all"])),
        ("mode: iptables\niptables: {localhostNodePorts: true}", words(&["all", "localhost"])),
        ("mode: nftables\niptables: {localhostNodePorts: true}", words(&["primary"])),
        (
            "mode: iptables\nnodePortAddresses: [primary]\niptables: {localhostNodePorts: true}",
            words(&["primary"]),
        ),
        ("nodePortAddresses: [all, localhost]", words(&["all", "localhost"])),
        ("mode: userspace", words(&["primary", "localhost"])),
        ("mode: userspace\nnodePortAddresses: [all]", words(&["all"])),
    ] {
        assert_eq!(settled(fields).settings.node_ports, expected, "{fields}");
    }
}

/// The rules are nftables' there, so its part of the file counts; the connections have numbers of their own.
#[test]
fn the_userspace_mode_takes_what_nftables_takes() {
    let fields = "mode: userspace\nnftables: {masqueradeAll: true}\niptables: {syncPeriod: 7s}";
    let Config { mode, settings, sync_period, userspace, .. } = settled(fields);
    assert_eq!((mode, settings.client_hash), (Mode::Userspace, ClientHash::Jhash));
    assert!(settings.userspace && settings.masquerade_all && sync_period.is_none());
    assert_eq!(userspace, userspace::Options { per_source: None, drain: Duration::from_secs(30) });
    let given = Given {
        mode: Some(Mode::Userspace),
        connection_metrics: Some(true),
        connections_per_source: Some(0),
        drain: Some(Duration::ZERO),
        ..Given::default()
    };
    let Config { settings, userspace, .. } = given.settle().unwrap();
    assert!(!settings.count_connections);
    assert_eq!(userspace, userspace::Options { per_source: None, drain: Duration::ZERO });
    assert!(!settled("mode: nftables").settings.userspace);
}

#[test]
fn how_local_pods_are_told() {
    let range: IpNetwork = "10.1.0.0/16".parse().unwrap();
    for (fields, expected) in [
        ("mode: nftables", DetectLocal::Off),
        ("clusterCIDR: 10.1.0.0/16", DetectLocal::ClusterCidr(vec![range])),
        ("clusterCIDR: 10.1.0.0/16\ndetectLocalMode: ClusterCIDR", DetectLocal::ClusterCidr(vec![range])),
        ("clusterCIDR: 10.1.0.0/16\ndetectLocalMode: NodeCIDR", DetectLocal::NodeCidr),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            DetectLocal::Bridge("cni0".into()),
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
            DetectLocal::InterfacePrefix("veth".into()),
        ),
    ] {
        assert_eq!(settled(fields).settings.detect_local, expected, "{fields}");
    }
    let off = settled("detectLocalMode: ClusterCIDR");
    assert_eq!(off.settings.detect_local, DetectLocal::Off);
    assert_eq!(
        off.notes,
        [
            "detectLocalMode ClusterCIDR without clusterCIDR (--cluster-cidr): no packet counts as a local pod's"
        ]
    );
    for (mode, expected) in [
        (
            "BridgeInterface",
            "detectLocalMode BridgeInterface needs detectLocal.bridgeInterface (--pod-bridge-interface)",
        ),
        (
            "InterfaceNamePrefix",
            "detectLocalMode InterfaceNamePrefix needs detectLocal.interfaceNamePrefix (--pod-interface-name-prefix)",
        ),
    ] {
        let error = given(&format!("detectLocalMode: {mode}")).settle().unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn where_things_are_served() {
    let at = |text: &str| Bind::or_default(Some(text.parse().unwrap()), Ipv4Addr::LOCALHOST, 7);
    for (text, expected) in [
        ("192.0.2.1:80", Some("192.0.2.1:80")),
        ("192.0.2.1", Some("192.0.2.1:7")),
        ("[2001:db8::1]:80", Some("[2001:db8::1]:80")),
        ("[2001:db8::1]", Some("[2001:db8::1]:7")),
        ("2001:db8::1", Some("[2001:db8::1]:7")),
        ("::", Some("[::]:7")),
        (":80", Some("0.0.0.0:80")),
        ("0.0.0.0:0", None),
    ] {
        assert_eq!(at(text), expected.map(|text| text.parse().unwrap()), "{text}");
    }
    for text in ["", "localhost:80", "192.0.2.1:", "192.0.2.1:65536", ":", ":x", "1:2:3"] {
        assert_eq!(text.parse::<Bind>(), Err(BadBind(text.to_owned())));
    }
    assert_eq!(Bind::or_default(None, Ipv4Addr::LOCALHOST, 7), Some("127.0.0.1:7".parse().unwrap()));
}

#[test]
fn the_table_of_what_is_unused_is_sound() {
    for unused in UNUSED {
        assert!(!(unused.field.is_empty() && unused.flag.is_empty()), "{unused:?}");
        if !unused.flag.is_empty() {
            assert_eq!(Unused::flag(unused.flag), Some(unused), "twice");
        }
        if !unused.field.is_empty() {
            let path =
                unused.field.strip_suffix('.').map_or(unused.field.to_owned(), |all| format!("{all}.x"));
            assert_eq!(Unused::field(&path), Some(unused), "twice");
        }
    }
    assert_eq!(Unused::field("mode"), None);
    assert_eq!(Unused::field(""), None);
    assert_eq!(Unused::field("winkernelx"), None);
    assert_eq!(Unused::flag(""), None);
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(fields in "(mode|oomScoreAdj|conntrack|iptables|clusterCIDR|nodePortAddresses|logging): ?\\PC{0,20}\n") {
        let _ = file(&fields);
    }

    #[test]
    fn no_file_at_all_makes_it_panic(contents in "\\PC{0,60}") {
        let _ = read(&contents);
    }
}
