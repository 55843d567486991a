//! What was promised against what was measured, in words. Pure.
//!
//! A ratio counts as reached when the upper end of the median ratio's 95 % interval reaches the bar,
//! over at least [`ROUNDS`] interleaved rounds (pairs scatter by 10 to 20 % on a shared machine), and,
//! against a rival that does the same work in the same place, processor time per GB of at most
//! [`CPU_BAR`] times its.

use std::fmt::Write as _;

use crate::report::{Report, number};
use crate::session::ROUNDS;
use crate::stats::{self, Ratio};
use crate::svg::Headline;

/// How much more processor time per GB a path may take than its rival.
pub(crate) const CPU_BAR: f64 = 1.03;

/// Two paths of which one is said to be so fast beside the other.
pub(crate) struct Bar {
    pub(crate) regime: &'static str,
    pub(crate) ours: &'static str,
    pub(crate) theirs: &'static str,
    /// What is promised of the ratio of one TCP connection's throughput; None if it is only told.
    pub(crate) at_least: Option<f64>,
    /// Both do the same work in the same place, so that one may not cost more than the other.
    pub(crate) alike: bool,
}

/// What is told of each pair beside one connection's throughput, as far as it was measured.
const ALSO: [&str; 6] = ["tcp_8_gbps", "udp_gbps", "pps", "cps", "rr_p50_us", "rr_p99_us"];

/// A limit of the control plane: with so many of what is scaled, at most so much.
pub(crate) struct Limit {
    pub(crate) path: &'static str,
    pub(crate) scale: u64,
    pub(crate) metric: &'static str,
    pub(crate) what: &'static str,
    pub(crate) at_most: f64,
}

/// How a figure may grow from one scale to another.
pub(crate) struct Growth {
    pub(crate) regime: &'static str,
    pub(crate) path: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) what: &'static str,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// What is promised; None if it is only told.
    pub(crate) at_most: Option<f64>,
}

impl Bar {
    /// A paragraph, if both paths were measured.
    pub(crate) fn words(&self, report: &Report) -> Option<String> {
        let of = |metric| report.ratio(self.regime, metric, self.ours, self.theirs);
        let throughput = of("tcp_1_gbps")?;
        let (ours, theirs, regime) = (self.ours, self.theirs, self.regime);
        let bar =
            self.at_least.map(|bar| format!("; the bar is {bar:.2}: {}", reached(throughput.high >= bar)));
        let bar = bar.unwrap_or_default();
        let mut text = format!("{ours} / {theirs}, {regime}: TCP {}{bar}\n", shown(throughput));
        if let Some(cost) = of("cpu_s_per_gb") {
            let limit = match self.alike {
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
        if self.at_least.is_some() && throughput.rounds < ROUNDS {
            writeln!(text, "  {} rounds are an impression; a claim needs {ROUNDS}", throughput.rounds)
                .expect("a String takes every write");
        }
        Some(text)
    }

    /// The same as a figure for the top of a picture.
    pub(crate) fn headline(&self, report: &Report) -> Option<Headline> {
        let ratio = report.ratio(self.regime, "tcp_1_gbps", self.ours, self.theirs)?;
        Some(Headline {
            figure: format!("{:.2} \u{d7}", ratio.median),
            what: format!("TCP: {} / {}", self.ours, self.theirs),
            detail: format!("{}, 95 %: {:.2} to {:.2}", self.regime, ratio.low, ratio.high),
        })
    }
}

impl Limit {
    /// A line, if it was measured; `things` are what is scaled.
    pub(crate) fn words(&self, report: &Report, things: &str) -> Option<String> {
        let series = report.series("control", self.path, self.metric, self.scale)?;
        let (scale, what, at_most) = (self.scale, self.what, self.at_most);
        let figure = match series.median < 1.0 {
            true => number(series.median),
            false => format!("{:.1}", series.median),
        };
        let well = reached(series.median <= at_most);
        Some(format!("{scale} {things}: {figure} {what}; at most {at_most}: {well}\n"))
    }
}

impl Growth {
    /// Round by round.
    pub(crate) fn ratio(&self, report: &Report) -> Option<Ratio> {
        let of = |scale| report.series(self.regime, self.path, self.metric, scale);
        stats::ratio(&of(self.to)?.samples, &of(self.from)?.samples)
    }

    /// A line, if both scales were measured. Less is better here, so it is the lower end of the interval
    /// that has to reach the limit.
    pub(crate) fn words(&self, report: &Report, things: &str) -> Option<String> {
        let ratio = self.ratio(report)?;
        let limit = self.at_most.map(|most| format!("; at most {most:.2}: {}", reached(ratio.low <= most)));
        let (path, what, from, to) = (self.path, self.what, self.from, self.to);
        let limit = limit.unwrap_or_default();
        Some(format!("{path}, {what}, {to} {things} / {from}: {}{limit}\n", shown(ratio)))
    }
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

    const GROWTH: Growth = Growth {
        regime: "default",
        path: "nftables",
        metric: "first_p50_us",
        what: "first packet, median",
        from: 100,
        to: 45_000,
        at_most: Some(1.1),
    };

    fn report(small: f64, large: f64) -> Report {
        let mut report = crate::report::example();
        for round in 0..15 {
            let drift = 1.0 + f64::from(round % 3) / 10.0;
            for (scale, time) in [(100, small), (45_000, large)] {
                report.sample(("default", "nftables", "first_p50_us", "us"), scale, time * drift);
            }
        }
        report
    }

    #[test]
    fn growth_is_taken_round_by_round_and_held_to_its_limit() {
        let table = [
            ((20.0, 21.0), "1.05 (1.05 to 1.05); at most 1.10: reached"),
            ((20.0, 30.0), "1.50 (1.50 to 1.50); at most 1.10: MISSED"),
        ];
        for ((small, large), expected) in table {
            let said = GROWTH.words(&report(small, large), "services").unwrap();
            assert_eq!(said, format!("nftables, first packet, median, 45000 services / 100: {expected}\n"));
        }
        let told = Growth { at_most: None, ..GROWTH };
        let said = told.words(&report(20.0, 30.0), "services").unwrap();
        assert!(said.ends_with(": 1.50 (1.50 to 1.50)\n"), "{said}");
        assert_eq!(Growth { to: 1000, ..GROWTH }.words(&report(1.0, 1.0), "services"), None);
    }
}
