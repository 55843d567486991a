//! The one form of every measurement: the JSON schema and the table for people.

use std::fmt::Write as _;

use serde::Serialize;

use crate::stats::{self, Ratio};

/// One run of one bench.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which bench.
    pub bench: String,
    /// Where it ran.
    pub machine: Machine,
    /// Which weft.
    pub commit: String,
    /// When, as YYYY-MM-DD.
    pub date: String,
    /// What was measured.
    pub results: Vec<Series>,
}

/// Where a bench ran: a figure means nothing without it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// Processors online.
    pub cpus: usize,
    /// Their model.
    pub cpu_model: String,
    /// Memory, in MiB.
    pub memory_mb: u64,
}

/// The samples of one metric on one path in one regime.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// `default`, `no-offload`, `no-tso`, `shaped`, or `control`.
    pub regime: String,
    /// `bare`, `vxlan`, `udp`, ...
    pub path: String,
    /// `tcp_1_gbps`, `rr_p50_us`, ...
    pub metric: String,
    /// Of the samples.
    pub unit: String,
    /// How many of what was scaled (leases); 1 otherwise.
    pub scale: u64,
    /// One per round, in order.
    pub samples: Vec<f64>,
    /// Of the samples.
    pub median: f64,
}

impl Machine {
    /// This machine, as /proc describes it.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory_kb = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.split(' ').next().and_then(|kb| kb.parse::<u64>().ok()));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_model: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_mb: memory_kb.unwrap_or(0) / 1024,
        }
    }
}

impl Report {
    /// Adds one sample to its series.
    pub fn sample(&mut self, (regime, path, metric, unit): (&str, &str, &str, &str), scale: u64, value: f64) {
        let same = |series: &&mut Series| {
            (series.regime.as_str(), series.path.as_str(), series.metric.as_str(), series.scale)
                == (regime, path, metric, scale)
        };
        if let Some(series) = self.results.iter_mut().find(same) {
            series.samples.push(value);
            series.median = stats::median(&series.samples);
        } else {
            self.results.push(Series {
                regime: regime.to_owned(),
                path: path.to_owned(),
                metric: metric.to_owned(),
                unit: unit.to_owned(),
                scale,
                samples: vec![value],
                median: value,
            });
        }
    }

    /// A series, if it was measured.
    pub fn series(&self, regime: &str, path: &str, metric: &str, scale: u64) -> Option<&Series> {
        let wanted = (regime, path, metric, scale);
        let name = |s: &&Series| (s.regime.as_str(), s.path.as_str(), s.metric.as_str(), s.scale) == wanted;
        self.results.iter().find(name)
    }

    /// The samples of a series in which nothing is scaled; none when it was not measured.
    pub fn samples(&self, regime: &str, path: &str, metric: &str) -> &[f64] {
        self.series(regime, path, metric, 1).map_or(&[], |series| &series.samples)
    }

    /// How path `ours` compares with path `theirs`.
    pub fn ratio(&self, regime: &str, metric: &str, ours: &str, theirs: &str) -> Option<Ratio> {
        stats::ratio(self.samples(regime, ours, metric), self.samples(regime, theirs, metric))
    }

    /// The series by regime, those that tell how something grows apart from those that do not.
    pub(crate) fn blocks(&self) -> Vec<(&str, Vec<&Series>)> {
        let keys = distinct(self.results.iter().map(|s| (s.regime.as_str(), s.scale > 1)));
        let of = |(regime, scaled): (&str, bool)| {
            self.results.iter().filter(|s| s.regime == regime && (s.scale > 1) == scaled).collect()
        };
        keys.into_iter().map(|key| (key.0, of(key))).collect()
    }

    /// Medians as tables, one per regime and, where something grows, one more: a row per path and scale,
    /// a column per metric.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (regime, here) in self.blocks() {
            let metrics = distinct(here.iter().map(|s| s.metric.as_str()));
            let rows = distinct(here.iter().map(|s| (s.path.as_str(), s.scale)));
            let mut cells = vec![
                [vec![regime], metrics.clone()].concat().iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
            ];
            for (path, scale) in rows {
                let name = if scale > 1 { format!("{path} x{scale}") } else { path.to_owned() };
                let cell = |metric: &&str| {
                    let series = here
                        .iter()
                        .find(|s| (s.path.as_str(), s.scale, s.metric.as_str()) == (path, scale, metric));
                    series.map_or_else(|| "-".to_owned(), |series| number(series.median))
                };
                cells.push([name].into_iter().chain(metrics.iter().map(cell)).collect());
            }
            write_columns(&mut text, &cells);
            text.push('\n');
        }
        text
    }
}

/// Today in UTC, as YYYY-MM-DD.
pub fn today() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil(since.as_secs() / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The date of a day counted from 1970-01-01: whole years off, then whole months.
fn civil(mut day: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut month) = (1970, 1);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// Three digits that matter: 41.1, 0.345, 118000.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "-".to_owned(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn write_columns(text: &mut String, cells: &[Vec<String>]) {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |column: usize| {
        cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.len()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in cells {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                write!(line, "{cell:<width$}").expect("a String takes every write");
            } else {
                write!(line, "  {cell:>width$}").expect("a String takes every write");
            }
        }
        writeln!(text, "{}", line.trim_end()).expect("a String takes every write");
    }
}

/// Each value once, in the order of first appearance.
pub(crate) fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut seen, value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
        seen
    })
}

#[cfg(test)]
pub(crate) fn example() -> Report {
    let machine =
        Machine { kernel: "6.18".into(), cpus: 2, cpu_model: "Example <1>".into(), memory_mb: 24000 };
    let mut report = Report {
        bench: "overlay".into(),
        machine,
        commit: "abc".into(),
        date: "2026-01-01".into(),
        results: vec![],
    };
    for (path, values) in [("bare", [40.0, 42.0, 41.0]), ("vxlan", [12.0, 12.6, 12.3])] {
        for value in values {
            report.sample(("default", path, "tcp_1_gbps", "Gbit/s"), 1, value);
            report.sample(("default", path, "cpu_s_per_gb", "s"), 1, 10.0 / value);
        }
    }
    report.sample(("control", "vxlan", "program_all_ms", "ms"), 1000, 180.0);
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_per_path_and_a_column_per_metric() {
        let expected = "\
default  tcp_1_gbps  cpu_s_per_gb
bare           41.0         0.244
vxlan          12.3         0.813

control      program_all_ms
vxlan x1000             180

";
        assert_eq!(example().table(), expected);
    }

    #[test]
    fn what_grows_has_a_table_of_its_own() {
        let mut report = example();
        report.results.truncate(1);
        report.sample(("default", "nftables", "first_p50_us", "us"), 100, 21.0);
        report.sample(("default", "nftables", "first_p50_us", "us"), 45_000, 22.0);
        let expected = "\
default  tcp_1_gbps
bare           41.0

default          first_p50_us
nftables x100            21.0
nftables x45000          22.0

";
        assert_eq!(report.table(), expected);
    }

    #[test]
    fn the_json_has_the_agreed_keys() {
        let json = serde_json::to_value(example()).unwrap();
        assert_eq!(json["results"][0]["samples"], serde_json::json!([40.0, 42.0, 41.0]));
        assert_eq!(json["results"][0]["median"], 41.0);
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut top = keys(&json);
        top.sort();
        assert_eq!(top, ["bench", "commit", "date", "machine", "results"]);
        let mut series = keys(&json["results"][0]);
        series.sort();
        assert_eq!(series, ["median", "metric", "path", "regime", "samples", "scale", "unit"]);
    }

    #[test]
    fn days_have_dates() {
        let table = [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (19_722, (2023, 12, 31)),
            (20_780, (2026, 11, 23)),
        ];
        for (day, date) in table {
            assert_eq!(civil(day), date, "day {day}");
        }
    }

    #[test]
    fn ratios_come_from_the_rounds() {
        let ratio = example().ratio("default", "tcp_1_gbps", "vxlan", "bare").unwrap();
        assert!((ratio.median - 0.3).abs() < 1e-9);
        assert!(example().ratio("default", "tcp_1_gbps", "udp", "bare").is_none());
    }
}
