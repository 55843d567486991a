//! What the proxy's bench comes to in words: which promises were kept, and whether that counts. Pure.
//!
//! [`crate::claims`] says when it does. Rivals are told of without a bar.

use crate::claims::{Bar, Growth, Limit};
use crate::report::{Report, number};
use crate::svg::Headline;

/// What is scaled.
const THINGS: &str = "services";
/// How fast a connection through a service is beside one to its endpoint.
const THROUGHPUT: f64 = 0.97;
/// How fast a connection carried by weft is beside one carried by haproxy.
const AS_HAPROXY: f64 = 1.0;
/// How much longer a first packet may take among many services: flat, as far as caches let it be.
const FLAT: f64 = 1.1;
/// How much longer a change may take among many services.
const CHANGE: f64 = 1.5;

const BARS: [Bar; 11] = [
    bar("default", "nftables", "direct", Some(THROUGHPUT)),
    bar("no-offload", "nftables", "direct", Some(THROUGHPUT)),
    bar("default", "nftables", "kube-proxy-layout", None),
    bar("default", "nftables", "kube-proxy", None),
    bar("default", "nftables-acct", "nftables", None),
    bar("no-offload", "nftables-acct", "nftables", None),
    bar("default", "iptables", "direct", None),
    bar("default", "haproxy", "direct", None),
    bar("default", "userspace", "direct", None),
    bar("default", "userspace", "haproxy", Some(AS_HAPROXY)),
    bar("no-offload", "userspace", "haproxy", Some(AS_HAPROXY)),
];

const GROWTHS: [Growth; 7] = [
    first("nftables", "first_p50_us", "first packet, median", 45_000, Some(FLAT)),
    first("nftables", "first_p99_us", "first packet, 99th percentile", 45_000, None),
    first("kube-proxy-layout", "first_p50_us", "first packet, median", 5000, None),
    first("iptables", "first_p50_us", "first packet, median", 10_000, None),
    change("nftables", "change_p99_ms", "one change, 99 of 100 times", 45_000, Some(CHANGE)),
    change("nftables", "change_p50_ms", "one change, median", 45_000, None),
    change("kube-proxy-layout", "change_p50_ms", "one change by nft, median", 5000, None),
];

const LIMITS: [Limit; 4] = [
    limit(10_000, "program_all_ms", "ms from a complete model to all in the kernel", 500.0),
    limit(45_000, "program_all_ms", "ms from a complete model to all in the kernel", 2000.0),
    limit(45_000, "change_p99_ms", "ms for one change, 99 of 100 times", 1.0),
    limit(45_000, "rss_mb", "MiB resident", 200.0),
];

const fn bar(regime: &'static str, ours: &'static str, theirs: &'static str, at_least: Option<f64>) -> Bar {
    Bar { regime, ours, theirs, at_least, alike: at_least.is_some() }
}

const fn first(
    path: &'static str,
    metric: &'static str,
    what: &'static str,
    to: u64,
    at_most: Option<f64>,
) -> Growth {
    Growth { regime: "default", path, metric, what, from: 100, to, at_most }
}

const fn change(
    path: &'static str,
    metric: &'static str,
    what: &'static str,
    to: u64,
    at_most: Option<f64>,
) -> Growth {
    Growth { regime: "control", path, metric, what, from: 100, to, at_most }
}

const fn limit(scale: u64, metric: &'static str, what: &'static str, at_most: f64) -> Limit {
    Limit { path: "nftables", scale, metric, what, at_most }
}

/// A paragraph for each ratio and a line for each limit, as far as they were measured.
pub fn words(report: &Report) -> String {
    let ratios = BARS.iter().filter_map(|bar| bar.words(report));
    let growths = GROWTHS.iter().filter_map(|growth| growth.words(report, THINGS));
    let limits = LIMITS.iter().filter_map(|limit| limit.words(report, THINGS));
    ratios.chain(growths).chain(limits).collect()
}

/// The same as figures for the top of a picture.
pub fn headlines(report: &Report) -> Vec<Headline> {
    let ratio = BARS.iter().take(1).filter_map(|bar| bar.headline(report));
    let flat = GROWTHS.iter().take(1).filter_map(|growth| {
        let ratio = growth.ratio(report)?;
        Some(Headline {
            figure: format!("{:.2} \u{d7}", ratio.median),
            what: "first packet at 45,000 / 100".into(),
            detail: format!("services, 95 %: {:.2} to {:.2}", ratio.low, ratio.high),
        })
    });
    let of = |metric, what: &str, detail: &str| {
        let series = report.series("control", "nftables", metric, 45_000)?;
        let (figure, what, detail) = (format!("{} ms", number(series.median)), what.into(), detail.into());
        Some(Headline { figure, what, detail })
    };
    let programmed = of("program_all_ms", "45,000 services in the kernel", "once the model is complete");
    let changed = of("change_p99_ms", "one endpoint changed, p99", "among 45,000 services");
    ratio.chain(flat).chain(programmed).chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every promise, kept and broken, by the figures that decide it.
    #[test]
    fn every_promise_is_judged() {
        let mut report = crate::report::example();
        report.results.clear();
        assert_eq!(words(&report), "");
        for round in 0..15 {
            let drift = 1.0 + f64::from(round % 3) / 10.0;
            for (path, gbps, cpu) in
                [("direct", 50.0, 0.2), ("nftables", 49.0, 0.21), ("nftables-acct", 45.0, 0.22)]
            {
                report.sample(("default", path, "tcp_1_gbps", "Gbit/s"), 1, gbps * drift);
                report.sample(("default", path, "cpu_s_per_gb", "s"), 1, cpu);
            }
            for (scale, time) in [(100, 20.0), (45_000, 21.0)] {
                report.sample(("default", "nftables", "first_p50_us", "us"), scale, time * drift);
            }
        }
        for (scale, all, change) in [(100, 4.0, 0.2), (10_000, 600.0, 0.21), (45_000, 1500.0, 0.4)] {
            report.sample(("control", "nftables", "program_all_ms", "ms"), scale, all);
            report.sample(("control", "nftables", "change_p99_ms", "ms"), scale, change);
        }
        let expected = "\
nftables / direct, default: TCP 0.98 (0.98 to 0.98); the bar is 0.97: reached
  CPU per GB 1.05 (1.05 to 1.05); at most 1.03: MISSED
nftables-acct / nftables, default: TCP 0.92 (0.92 to 0.92)
  CPU per GB 1.05 (1.05 to 1.05)
nftables, first packet, median, 45000 services / 100: 1.05 (1.05 to 1.05); at most 1.10: reached
nftables, one change, 99 of 100 times, 45000 services / 100: 2.00 (2.00 to 2.00); at most 1.50: MISSED
10000 services: 600.0 ms from a complete model to all in the kernel; at most 500: MISSED
45000 services: 1500.0 ms from a complete model to all in the kernel; at most 2000: reached
45000 services: 0.400 ms for one change, 99 of 100 times; at most 1: reached
";
        assert_eq!(words(&report), expected);
        let figures: Vec<String> = headlines(&report).into_iter().map(|headline| headline.figure).collect();
        assert_eq!(figures, ["0.98 \u{d7}", "1.05 \u{d7}", "1500 ms", "0.400 ms"]);
    }
}
