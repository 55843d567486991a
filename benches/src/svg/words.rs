//! What the names in a report mean, in the words of a chart. Pure.

/// Whose a path is: it decides the colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// No overlay at all: what there is to lose.
    Reference,
    /// weft.
    Ours,
    /// Whom weft is compared with.
    Theirs,
}

impl Side {
    pub(super) const ALL: [Self; 3] = [Self::Reference, Self::Ours, Self::Theirs];

    pub(super) fn of(path: &str) -> Self {
        match path {
            "bare" | "direct" => Self::Reference,
            "host-gw" | "vxlan" | "vxlan-fast" | "udp" => Self::Ours,
            "nftables" | "nftables-acct" | "iptables" | "userspace" => Self::Ours,
            _ => Self::Theirs,
        }
    }

    pub(super) const fn colour(self) -> &'static str {
        match self {
            Self::Reference => "#9aa4b2",
            Self::Ours => "#2f6fde",
            Self::Theirs => "#dd8a1f",
        }
    }

    pub(super) fn name(self, bench: &str) -> &'static str {
        match self {
            Self::Reference if bench == "proxy" => "no service",
            Self::Reference => "no overlay",
            Self::Ours => "weft",
            Self::Theirs => "what it is compared with",
        }
    }
}

/// Whether a path begins another comparison than the one above it.
pub(super) fn begins_group(path: &str) -> bool {
    matches!(path, "vxlan" | "udp")
}

/// What a path is, where its name does not say so.
pub(super) fn path(bench: &str, name: &str) -> &'static str {
    match name {
        "direct" if bench == "proxy" => "to the endpoint's own address, past weft's rules",
        "nftables" => "to a cluster address, by weft proxy",
        "nftables-acct" => "the same, while conntrack counts bytes",
        "iptables" => "to a cluster address, by weft proxy --mode iptables",
        "kube-proxy-layout" => "kube-proxy's nftables rules, loaded by nft",
        "kube-proxy" => "kube-proxy itself, nftables mode",
        "userspace" => "weft proxy --mode userspace: carried by the daemon",
        "haproxy" => "haproxy in TCP mode at the cluster address",
        "bare" => "host to host, no pods",
        "direct" => "pods over plain routes set by hand, no firewall rules",
        "host-gw" => "pods over plain routes that weft keeps",
        "vxlan" => "weft's VXLAN, with masquerade and anti-spoofing rules",
        "vxlan-fast" => "weft's VXLAN with the eBPF fast path",
        "flannel-layout" => "flannel's VXLAN: its links, routes and iptables rules",
        "udp" => "weft's tunnel in user space",
        "udp-single" => "the same tunnel, one packet per system call",
        "flanneld-vxlan" => "flanneld itself, VXLAN",
        "flanneld-udp" => "flanneld itself, udp",
        _ => "",
    }
}

/// What a regime means.
pub(super) fn regime(bench: &str, name: &str, scaled: bool) -> &'static str {
    match name {
        "control" if bench == "proxy" => {
            "services that one daemon programs into its kernel; for the layout, nft"
        }
        "default" if scaled => "a connection's first packet, by the number of services on the host",
        "default" => "links as they come: 64 KiB packets cross in one piece",
        "no-offload" => "1500-byte packets on every link, joined by nobody",
        "no-tso" => "1500-byte packets on every link, joined by the receiver (GRO)",
        "shaped" => "links of 5 Gbit/s, which every path but the slowest fills: the cost tells them apart",
        "control" => "leases that one daemon programs into its kernel",
        _ => "",
    }
}

/// What is scaled.
pub(super) fn things(bench: &str) -> &'static str {
    if bench == "proxy" { "services" } else { "leases" }
}

/// A metric; its unit is said beside it.
pub(super) fn metric<'a>(bench: &str, name: &'a str) -> &'a str {
    match name {
        "tcp_1_gbps" => "TCP, one connection",
        "tcp_8_gbps" => "TCP, eight connections",
        "udp_gbps" => "UDP, 1400-byte datagrams",
        "pps" => "UDP, 64-byte datagrams",
        "cps" => "TCP connections",
        "rr_p50_us" => "Round trip, median",
        "rr_p99_us" => "Round trip, 99th percentile",
        "cpu_s_per_gb" => "CPU time per GB, both ends",
        "first_p50_us" => "First packet, median",
        "first_p99_us" => "First packet, 99th percentile",
        "program_all_ms" if bench == "proxy" => "All programmed",
        "program_all_ms" | "start_ms" => "From start to all programmed",
        "restart_ms" => "The same after a restart",
        "write_to_kernel_p50_ms" => "One change, file to kernel",
        "change_p50_ms" => "One change, median",
        "change_p99_ms" => "One change, 99th percentile",
        "put_to_kernel_p50_ms" => "One change, write included",
        "rss_mb" => "Resident memory",
        "idle_cpu_percent" => "CPU when idle",
        other => other,
    }
}

/// A unit, in words where the report has a formula.
pub(super) fn unit<'a>(metric: &str, unit: &'a str) -> &'a str {
    match (metric, unit) {
        ("pps" | "cps", "1/s") => "a second",
        (_, "us") => "\u{b5}s",
        (_, unit) => unit,
    }
}

/// Rates are better high; times, costs and sizes are better low.
pub(super) fn higher_is_better(metric: &str) -> bool {
    metric.ends_with("gbps") || metric == "pps" || metric == "cps"
}

/// Three digits at most, so that figures stand beside narrow bars: 41.1, 0.345, 118k.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 99_950.0 => format!("{:.0}k", value / 1e3),
        v if v >= 9_995.0 => format!("{:.1}k", value / 1e3),
        v if v >= 1_000.0 => format!("{:.2}k", value / 1e3),
        v if (0.1..1.0).contains(&v) => format!("{value:.2}"),
        _ => crate::report::number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::path::Path;
    use crate::regime::Regime;

    #[test]
    fn every_path_and_regime_is_explained() {
        let overlay = Path::ALL.map(|path| ("overlay", path.name()));
        let proxy = crate::proxy::path::Path::ALL.map(|path| ("proxy", path.name()));
        for (bench, name) in overlay.into_iter().chain(proxy) {
            assert_ne!(path(bench, name), "", "{bench} {name}");
        }
        for name in Regime::ALL.map(Regime::name) {
            assert_ne!(regime("overlay", name, false), "", "{name}");
        }
        assert_ne!(path("overlay", "direct"), path("proxy", "direct"));
    }

    #[test]
    fn figures_are_short() {
        let table = [
            (0.0, "0"),
            (0.0449, "0.045"),
            (0.6, "0.60"),
            (9.87, "9.87"),
            (999.0, "999"),
            (7337.0, "7.34k"),
            (71_258.0, "71.3k"),
            (117_756.0, "118k"),
        ];
        for (value, said) in table {
            assert_eq!(figure(value), said);
        }
    }
}
