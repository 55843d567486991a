//! What the overlay's bench comes to in words: which ratio was reached, and whether that counts. Pure.
//!
//! [`crate::claims`] says when it does. A tunnel in user space costs more than one in the kernel; how
//! much is told.

use crate::claims::{Bar, Limit};
use crate::report::{Report, number};
use crate::svg::Headline;

const BARS: [Bar; 3] = [
    bar("default", "vxlan", "flannel-layout", 1.0, true),
    bar("no-offload", "udp", "vxlan", 0.5, false),
    bar("default", "udp", "udp-single", 5.0, true),
];

/// At how many leases the limits are promised.
const SCALE: u64 = 1000;
const LIMITS: [Limit; 4] = [
    limit("program_all_ms", "ms from start to all programmed", 2000.0),
    limit("change_p99_ms", "ms for one change, 99 of 100 times", 10.0),
    limit("rss_mb", "MiB resident", 40.0),
    limit("idle_cpu_percent", "% of a processor when idle", 1.0),
];

const fn bar(
    regime: &'static str,
    ours: &'static str,
    theirs: &'static str,
    at_least: f64,
    alike: bool,
) -> Bar {
    Bar { regime, ours, theirs, at_least: Some(at_least), alike }
}

const fn limit(metric: &'static str, what: &'static str, at_most: f64) -> Limit {
    Limit { path: "vxlan", scale: SCALE, metric, what, at_most }
}

/// A paragraph for each ratio and a line for each limit, as far as they were measured.
pub fn words(report: &Report) -> String {
    let ratios = BARS.iter().filter_map(|bar| bar.words(report));
    let limits = LIMITS.iter().filter_map(|limit| limit.words(report, "leases"));
    ratios.chain(limits).collect()
}

/// The same as figures for the top of a picture.
pub fn headlines(report: &Report) -> Vec<Headline> {
    let ratios = BARS.iter().filter_map(|bar| bar.headline(report));
    let programmed = report.series("control", "vxlan", "program_all_ms", SCALE).map(|series| Headline {
        figure: format!("{} ms", number(series.median)),
        what: format!("{SCALE} leases in the kernel"),
        detail: "from the daemon's start".into(),
    });
    ratios.chain(programmed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rounds: u32, vxlan: f64, cpu: f64) -> Report {
        let mut report = crate::report::example();
        report.results.clear();
        for round in 0..rounds {
            let drift = 1.0 + f64::from(round % 3) / 10.0;
            for (path, gbps, cost) in [("vxlan", vxlan, cpu), ("flannel-layout", 10.0, 1.0)] {
                report.sample(("default", path, "tcp_1_gbps", "Gbit/s"), 1, gbps * drift);
                report.sample(("default", path, "cpu_s_per_gb", "s"), 1, cost / drift);
            }
        }
        report
    }

    #[test]
    fn a_claim_needs_the_ratio_the_rounds_and_the_cost() {
        let table = [
            (
                report(15, 10.5, 1.0),
                "vxlan / flannel-layout, default: TCP 1.05 (1.05 to 1.05); the bar is 1.00: reached\n  \
                 CPU per GB 1.00 (1.00 to 1.00); at most 1.03: reached\n",
            ),
            (
                report(5, 9.0, 1.2),
                "vxlan / flannel-layout, default: TCP 0.90 (0.90 to 0.90); the bar is 1.00: MISSED\n  \
                 CPU per GB 1.20 (1.20 to 1.20); at most 1.03: MISSED\n  \
                 5 rounds are an impression; a claim needs 15\n",
            ),
        ];
        for (report, expected) in table {
            assert_eq!(words(&report), expected);
        }
    }

    #[test]
    fn what_runs_in_user_space_is_not_held_to_the_kernels_cost() {
        let mut report = report(0, 0.0, 0.0);
        for round in 0..15 {
            for (path, gbps, cost) in [("udp", 3.0, 2.5), ("vxlan", 4.0, 2.0)] {
                let drift = 1.0 + f64::from(round) / 10.0;
                report.sample(("no-offload", path, "tcp_1_gbps", "Gbit/s"), 1, gbps * drift);
                report.sample(("no-offload", path, "cpu_s_per_gb", "s"), 1, cost);
            }
        }
        let expected = "udp / vxlan, no-offload: TCP 0.75 (0.75 to 0.75); the bar is 0.50: reached\n  \
                        CPU per GB 1.25 (1.25 to 1.25)\n";
        assert_eq!(words(&report), expected);
        let headline = &headlines(&report)[0];
        assert_eq!((&*headline.figure, &*headline.what), ("0.75 \u{d7}", "TCP: udp / vxlan"));
    }

    #[test]
    fn limits_hold_at_their_scale_only() {
        let mut report = report(0, 0.0, 0.0);
        report.sample(("control", "vxlan", "program_all_ms", "ms"), 100, 3000.0);
        assert_eq!(words(&report), "");
        report.sample(("control", "vxlan", "program_all_ms", "ms"), 1000, 812.0);
        report.sample(("control", "vxlan", "rss_mb", "MiB"), 1000, 41.0);
        let expected = "1000 leases: 812.0 ms from start to all programmed; at most 2000: reached\n\
                        1000 leases: 41.0 MiB resident; at most 40: MISSED\n";
        assert_eq!(words(&report), expected);
    }
}
