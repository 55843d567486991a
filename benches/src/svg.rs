//! Charts that a person understands at a glance: a section per regime, a bar chart per metric. Pure.

use std::fmt::Write as _;

use crate::report::{Report, Series, distinct, number};

/// The picture's width and the charts beside each other in it, in pixels.
const WIDTH: usize = 1000;
const COLUMNS: usize = 2;
const MARGIN: usize = 16;
const COLUMN: usize = (WIDTH - MARGIN) / COLUMNS;
/// Room for names left of the bars and for figures right of them.
const LABEL: usize = 110;
const FIGURE: usize = 70;
const BAR: usize = 18;
const GAP: usize = 6;
/// From a chart's top to its first bar, and a section's to its first chart.
const TITLE: usize = 34;
const SECTION: usize = 44;
/// From the picture's top to the first section.
const HEAD: usize = 92;

const OURS: &str = "#2563eb";
const OTHERS: &str = "#9ca3af";
const INK: &str = "#111827";
const FAINT: &str = "#6b7280";

/// The report's charts. Bars are medians; the thin line spans all rounds.
pub fn render(report: &Report) -> String {
    let mut body = String::new();
    let mut top = HEAD;
    for regime in distinct(report.results.iter().map(|series| series.regime.as_str())) {
        text(&mut body, (MARGIN, top + 24), "font-size=\"16\" font-weight=\"bold\"", &heading(regime));
        top += SECTION;
        let here = report.results.iter().filter(|series| series.regime == regime);
        let metrics = distinct(here.clone().map(|series| series.metric.as_str()));
        let charts: Vec<Vec<&Series>> = metrics
            .iter()
            .map(|metric| here.clone().filter(|series| series.metric == *metric).collect())
            .collect();
        for row in charts.chunks(COLUMNS) {
            for (column, chart) in row.iter().enumerate() {
                draw(&mut body, (MARGIN + column * COLUMN, top), chart);
            }
            let bars = row.iter().map(Vec::len).max().unwrap_or(0);
            top += TITLE + bars * (BAR + GAP) + GAP;
        }
    }
    let height = top + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    head(&mut svg, report);
    svg + &body + "</svg>\n"
}

fn head(svg: &mut String, report: &Report) {
    let machine = &report.machine;
    let rounds = report.results.iter().map(|series| series.samples.len()).max().unwrap_or(0);
    let about = format!(
        "{}, {} processors, kernel {}; weft {}, {}, {rounds} rounds",
        machine.cpu_model, machine.cpus, machine.kernel, report.commit, report.date
    );
    let title = format!("weft bench {}", report.bench);
    text(svg, (MARGIN, 30), "font-size=\"20\" font-weight=\"bold\"", &title);
    text(svg, (MARGIN, 50), &format!("fill=\"{FAINT}\""), &about);
    bar(svg, (MARGIN, 62), 12.0, OURS);
    text(svg, (MARGIN + 20, 75), "", "weft");
    bar(svg, (MARGIN + 70, 62), 12.0, OTHERS);
    text(svg, (MARGIN + 90, 75), "", "what it is compared with; bars are medians, lines span all rounds");
}

/// One chart, its upper left corner at `left`, `top`.
fn draw(svg: &mut String, (left, top): (usize, usize), chart: &[&Series]) {
    let Some(first) = chart.first() else { return };
    let better = if higher_is_better(&first.metric) { "more is better" } else { "less is better" };
    let title = format!("{}, {}", words(&first.metric), first.unit);
    text(svg, (left, top + 22), "font-weight=\"bold\"", &title);
    let right = left + COLUMN - MARGIN;
    text(svg, (right, top + 22), &format!("fill=\"{FAINT}\" text-anchor=\"end\""), better);
    let samples = chart.iter().flat_map(|series| series.samples.iter().copied());
    let largest = samples.filter(|sample| sample.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let scale = pixels(COLUMN - LABEL - FIGURE - MARGIN) / largest;
    let axis = left + LABEL;
    for (row, series) in chart.iter().enumerate() {
        let y = top + TITLE + row * (BAR + GAP);
        let name =
            if series.scale > 1 { format!("{}, {}", series.path, series.scale) } else { series.path.clone() };
        text(svg, (axis - 8, y + 14), "text-anchor=\"end\"", &name);
        bar(svg, (axis, y), series.median * scale, if is_ours(&series.path) { OURS } else { OTHERS });
        let low = series.samples.iter().copied().fold(f64::INFINITY, f64::min) * scale;
        let high = series.samples.iter().copied().fold(0.0, f64::max) * scale;
        writeln!(
            svg,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"{INK}\"/>",
            pixels(axis) + low,
            pixels(axis) + high,
            middle = y + BAR / 2
        )
        .expect("a String takes every write");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // inside the picture
        let end = axis + (high as usize) + 6;
        text(svg, (end, y + 14), "", &number(series.median));
    }
}

/// What a regime means.
fn heading(regime: &str) -> String {
    let meaning = match regime {
        "default" => "as virtual links come: packets of 64 KiB cross in one piece",
        "no-offload" => "at most 1500 bytes a packet on every link, joined by nobody",
        "no-tso" => "at most 1500 bytes a packet, joined by the receiver",
        "shaped" => "a link of limited rate: what matters is the cost",
        "control" => "leases programmed by one daemon",
        _ => return regime.to_owned(),
    };
    format!("{regime}: {meaning}")
}

/// A metric in words; the unit is said beside it.
fn words(metric: &str) -> &str {
    match metric {
        "tcp_1_gbps" => "TCP, one connection",
        "tcp_8_gbps" => "TCP, eight connections",
        "udp_gbps" => "UDP, datagrams of 1400 bytes",
        "pps" => "UDP, datagrams of 64 bytes",
        "cps" => "TCP connections opened and closed",
        "rr_p50_us" => "Round trip of one byte, median",
        "rr_p99_us" => "Round trip of one byte, 99th percentile",
        "cpu_s_per_gb" => "Processor time per GB, both ends",
        "program_all_ms" => "From start to all programmed",
        "change_p50_ms" => "One change, etcd's answer to kernel, median",
        "change_p99_ms" => "One change, 99th percentile",
        "put_to_kernel_p50_ms" => "One change, etcd's write included, median",
        "rss_mb" => "Resident memory",
        "idle_cpu_percent" => "Of a processor when idle",
        other => other,
    }
}

/// Rates are better high; times, costs and sizes are better low.
fn higher_is_better(metric: &str) -> bool {
    metric.ends_with("gbps") || metric == "pps" || metric == "cps"
}

fn is_ours(path: &str) -> bool {
    matches!(path, "vxlan" | "vxlan-fast" | "udp" | "host-gw" | "nftables" | "userspace")
}

fn bar(svg: &mut String, (x, y): (usize, usize), width: f64, colour: &str) {
    writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>")
        .expect("a String takes every write");
}

fn text(svg: &mut String, (x, y): (usize, usize), attributes: &str, content: &str) {
    let escaped = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(svg, "<text x=\"{x}\" y=\"{y}\" {attributes}>{escaped}</text>")
        .expect("a String takes every write");
}

#[expect(clippy::cast_precision_loss)] // pictures are far smaller than 2^53
fn pixels(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_a_bar_and_names_are_escaped() {
        let report = crate::report::example();
        let svg = render(&report);
        let (background, legend) = (1, 2);
        assert_eq!(svg.matches("<rect").count(), background + legend + report.results.len());
        assert!(svg.contains("Example &lt;1&gt;"));
        assert!(svg.contains("more is better") && svg.contains("less is better"));
        assert!(svg.contains(">vxlan, 1000<"));
    }

    /// Nothing is drawn outside the picture: the widest bar's figure ends before the next column.
    #[test]
    fn everything_is_inside() {
        let svg = render(&crate::report::example());
        let coordinates = svg.split(" x=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok());
        let furthest = coordinates.max().unwrap_or(0usize);
        assert!((1..=WIDTH - MARGIN).contains(&furthest), "{furthest}");
    }
}
