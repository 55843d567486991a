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
            "host-gw" | "vxlan" | "vxlan-fast" | "udp" | "nftables" | "iptables" | "userspace" => Self::Ours,
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

    pub(super) const fn name(self) -> &'static str {
        match self {
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
pub(super) fn path(name: &str) -> &'static str {
    match name {
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
pub(super) fn regime(name: &str) -> &'static str {
    match name {
        "default" => "links as they come: 64 KiB packets cross in one piece",
        "no-offload" => "1500-byte packets on every link, joined by nobody",
        "no-tso" => "1500-byte packets on every link, joined by the receiver (GRO)",
        "shaped" => "links of 5 Gbit/s, which every path but the slowest fills: the cost tells them apart",
        "control" => "leases that one daemon programs into its kernel",
        _ => "",
    }
}

/// A metric; its unit is said beside it.
pub(super) fn metric(name: &str) -> &str {
    match name {
        "tcp_1_gbps" => "TCP, one connection",
        "tcp_8_gbps" => "TCP, eight connections",
        "udp_gbps" => "UDP, 1400-byte datagrams",
        "pps" => "UDP, 64-byte datagrams",
        "cps" => "TCP connections",
        "rr_p50_us" => "Round trip, median",
        "rr_p99_us" => "Round trip, 99th percentile",
        "cpu_s_per_gb" => "CPU time per GB, both ends",
        "program_all_ms" => "From start to all programmed",
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
        for name in Path::ALL.map(Path::name) {
            assert_ne!(path(name), "", "{name}");
        }
        for name in Regime::ALL.map(Regime::name) {
            assert_ne!(regime(name), "", "{name}");
        }
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
