//! Which ratios and limits were reached, in words. Pure.
//!
//! A ratio is the median of the rounds' ratios. It counts as reached when the upper end of the 95 %
//! interval of that median reaches the bar; a claim also needs [`ROUNDS`](super::ROUNDS) rounds and,
//! against a rival that does the same work in the same place, processor time per GB of at most
//! [`CPU_BAR`] times its. (A tunnel in user space costs more than one in the kernel; how much is told.)

use std::fmt::Write as _;

use crate::report::{Report, number};
use crate::session::ROUNDS;
use crate::stats::Ratio;
use crate::svg::Headline;

/// How much more processor time per GB a path may take than its rival.
pub const CPU_BAR: f64 = 1.03;

/// A ratio that is promised.
struct Bar {
    regime: &'static str,
    ours: &'static str,
    theirs: &'static str,
    at_least: f64,
    /// Both do the same work in the same place, so that one may not cost more than the other.
    alike: bool,
}

const BARS: [Bar; 3] = [
    Bar { regime: "default", ours: "vxlan", theirs: "flannel-layout", at_least: 1.0, alike: true },
    Bar { regime: "no-offload", ours: "udp", theirs: "vxlan", at_least: 0.5, alike: false },
    Bar { regime: "default", ours: "udp", theirs: "udp-single", at_least: 5.0, alike: true },
];

/// What else is told of each pair, as far as it was measured.
const ALSO: [&str; 6] = ["tcp_8_gbps", "udp_gbps", "pps", "cps", "rr_p50_us", "rr_p99_us"];

/// A limit of the control plane: at this many leases, at most so much.
struct Limit {
    metric: &'static str,
    what: &'static str,
    at_most: f64,
}

/// At how many leases the limits are promised.
const SCALE: u64 = 1000;
const LIMITS: [Limit; 4] = [
    Limit { metric: "program_all_ms", what: "ms from start to all programmed", at_most: 2000.0 },
    Limit { metric: "change_p99_ms", what: "ms for one change, 99 of 100 times", at_most: 10.0 },
    Limit { metric: "rss_mb", what: "MiB resident", at_most: 40.0 },
    Limit { metric: "idle_cpu_percent", what: "% of a processor when idle", at_most: 1.0 },
];

/// A paragraph for each ratio and a line for each limit, as far as they were measured.
pub fn words(report: &Report) -> String {
    let ratios = BARS.iter().filter_map(|bar| ratio(report, bar));
    let limits = LIMITS.iter().filter_map(|bar| limit(report, bar));
    ratios.chain(limits).collect()
}

/// The same as figures for the top of a picture.
pub fn headlines(report: &Report) -> Vec<Headline> {
    let ratios = BARS.iter().filter_map(|bar| {
        let ratio = report.ratio(bar.regime, "tcp_1_gbps", bar.ours, bar.theirs)?;
        Some(Headline {
            figure: format!("{:.2} \u{d7}", ratio.median),
            what: format!("TCP: {} / {}", bar.ours, bar.theirs),
            detail: format!("{}, 95 %: {:.2} to {:.2}", bar.regime, ratio.low, ratio.high),
        })
    });
    let programmed = report.results.iter().find(|s| s.metric == "program_all_ms" && s.scale == SCALE);
    let programmed = programmed.map(|series| Headline {
        figure: format!("{} ms", number(series.median)),
        what: format!("{SCALE} leases in the kernel"),
        detail: "from the daemon's start".into(),
    });
    ratios.chain(programmed).collect()
}

fn ratio(report: &Report, bar: &Bar) -> Option<String> {
    let of = |metric| report.ratio(bar.regime, metric, bar.ours, bar.theirs);
    let throughput = of("tcp_1_gbps")?;
    let mut text = format!(
        "{} / {}, {}: TCP {}; the bar is {:.2}: {}\n",
        bar.ours,
        bar.theirs,
        bar.regime,
        shown(throughput),
        bar.at_least,
        reached(throughput.high >= bar.at_least)
    );
    if let Some(cost) = of("cpu_s_per_gb") {
        let limit = match bar.alike {
            true => format!("; at most {CPU_BAR}: {}", reached(cost.median <= CPU_BAR)),
            false => String::new(),
        };
        writeln!(text, "  CPU per GB {}{limit}", shown(cost)).expect("a String takes every write");
    }
    let also = ALSO.iter().filter_map(|metric| Some(format!("{metric} {:.2}", of(metric)?.median)));
    let also = also.collect::<Vec<_>>().join(", ");
    if !also.is_empty() {
        writeln!(text, "  also: {also}").expect("a String takes every write");
    }
    if throughput.rounds < ROUNDS {
        writeln!(text, "  {} rounds are an impression; a claim needs {ROUNDS}", throughput.rounds)
            .expect("a String takes every write");
    }
    Some(text)
}

fn limit(report: &Report, limit: &Limit) -> Option<String> {
    let same = |metric: &str, scale: u64| metric == limit.metric && scale == SCALE;
    let series = report.results.iter().find(|series| same(&series.metric, series.scale))?;
    let well = reached(series.median <= limit.at_most);
    Some(format!("{SCALE} leases: {:.1} {}; at most {}: {well}\n", series.median, limit.what, limit.at_most))
}

fn shown(ratio: Ratio) -> String {
    format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high)
}

fn reached(well: bool) -> &'static str {
    if well { "reached" } else { "MISSED" }
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
