//! What kube-proxy's file and flags have and weft has no use for, each with its reason: one table, so
//! that a setting that does nothing is never silent.

/// A setting of kube-proxy's that changes nothing here, or must not be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unused {
    /// Its path in the file; empty if there is none. One that ends in a dot stands for all below it.
    pub field: &'static str,
    /// The flag; empty if there is none.
    pub flag: &'static str,
    /// Whether the flag takes a value.
    pub takes_value: bool,
    /// What becomes of it.
    pub effect: Effect,
}

/// What becomes of such a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It has no effect, for this reason.
    None(&'static str),
    /// weft does not start with it, because it would do something else than was meant; what to do.
    Refused(&'static str),
}

const fn ignored(field: &'static str, flag: &'static str, why: &'static str) -> Unused {
    Unused { field, flag, takes_value: true, effect: Effect::None(why) }
}

const fn switch(field: &'static str, flag: &'static str, why: &'static str) -> Unused {
    Unused { field, flag, takes_value: false, effect: Effect::None(why) }
}

const IPVS: &str = "weft has no IPVS mode";
const WINDOWS: &str = "that is for Windows";
const AT_ONCE: &str = "a change costs what it changes, so every one is made at once";
const WATCHED: &str = "the API is watched; nothing is asked again at intervals";
const JSON: &str = "weft asks for JSON";
const QPS: &str = "weft lists once and watches; there is nothing to slow down";
const PRIMARY: &str = "the Node says which addresses are its primary ones, else the route out does";
const LOGS: &str = "weft logs to stderr; WEFT_LOG chooses in detail";

/// All of them.
pub const UNUSED: &[Unused] = &[
    Unused {
        field: "iptables.snatNodeInternalIP",
        flag: "",
        takes_value: false,
        effect: Effect::Refused("weft masquerades with the address of the link that a packet leaves by"),
    },
    Unused {
        field: "",
        flag: "init-only",
        takes_value: false,
        effect: Effect::Refused("weft needs the same rights all the time; leave it out"),
    },
    Unused {
        field: "",
        flag: "write-config-to",
        takes_value: true,
        effect: Effect::Refused("weft writes no configuration; --dry-run says what the one given means"),
    },
    Unused {
        field: "",
        flag: "master",
        takes_value: true,
        effect: Effect::Refused("write the API server's address into the kubeconfig"),
    },
    Unused {
        field: "",
        flag: "cleanup",
        takes_value: false,
        effect: Effect::Refused("run `weft cleanup --only proxy`"),
    },
    ignored("featureGates.", "feature-gates", "weft has no feature gates"),
    ignored("clientConnection.acceptContentTypes", "", JSON),
    ignored("clientConnection.contentType", "kube-api-content-type", JSON),
    ignored("clientConnection.qps", "kube-api-qps", QPS),
    ignored("clientConnection.burst", "kube-api-burst", QPS),
    ignored("bindAddress", "bind-address", PRIMARY),
    switch(
        "bindAddressHardFail",
        "bind-address-hard-fail",
        "an address that is taken is told and tried again",
    ),
    switch("enableProfiling", "profiling", "weft serves no profiles"),
    ignored("showHiddenMetricsForVersion", "show-hidden-metrics-for-version", "weft hides no metrics"),
    ignored("iptables.minSyncPeriod", "iptables-min-sync-period", AT_ONCE),
    ignored("nftables.minSyncPeriod", "", AT_ONCE),
    ignored("ipvs.syncPeriod", "ipvs-sync-period", IPVS),
    ignored("ipvs.minSyncPeriod", "ipvs-min-sync-period", IPVS),
    ignored("ipvs.scheduler", "ipvs-scheduler", IPVS),
    ignored("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", IPVS),
    switch("ipvs.strictARP", "ipvs-strict-arp", IPVS),
    ignored("ipvs.tcpTimeout", "ipvs-tcp-timeout", IPVS),
    ignored("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", IPVS),
    ignored("ipvs.udpTimeout", "ipvs-udp-timeout", IPVS),
    ignored("winkernel.", "", WINDOWS),
    switch("windowsRunAsService", "windows-service", WINDOWS),
    ignored("configSyncPeriod", "config-sync-period", WATCHED),
    ignored("portRange", "proxy-port-range", "nothing has opened ports for services since userspace mode"),
    ignored("udpIdleTimeout", "udp-timeout", "only userspace mode had it; see conntrack.udpTimeout"),
    ignored("resourceContainer", "resource-container", "the service manager decides about control groups"),
    ignored(
        "conntrack.max",
        "conntrack-max",
        "kube-proxy gave it up for conntrack.maxPerCore and conntrack.min",
    ),
    ignored("logging.flushFrequency", "log-flush-frequency", LOGS),
    ignored("logging.vmodule", "vmodule", LOGS),
    ignored("logging.options.", "", LOGS),
    switch("", "log-text-split-stream", LOGS),
    ignored("", "log-text-info-buffer-size", LOGS),
    switch("", "log-json-split-stream", LOGS),
    ignored("", "log-json-info-buffer-size", LOGS),
    switch("", "logtostderr", LOGS),
    switch("", "alsologtostderr", LOGS),
    ignored("", "stderrthreshold", LOGS),
    ignored("", "log-dir", LOGS),
    ignored("", "log-file", LOGS),
];

impl Unused {
    /// The field of that path, if it has no meaning here.
    pub fn field(path: &str) -> Option<&'static Self> {
        UNUSED.iter().find(|unused| match unused.field.strip_suffix('.') {
            Some(all_below) => {
                path == all_below || path.strip_prefix(all_below).is_some_and(|rest| rest.starts_with('.'))
            }
            None => !unused.field.is_empty() && unused.field == path,
        })
    }

    /// The flag of that name, likewise.
    pub fn flag(name: &str) -> Option<&'static Self> {
        UNUSED.iter().find(|unused| !unused.flag.is_empty() && unused.flag == name)
    }
}
