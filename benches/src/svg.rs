//! Charts that a person understands at a glance: one bar chart per regime and metric, as one SVG. Pure.

use std::fmt::Write as _;

use crate::report::{Report, Series, distinct};

const WIDTH: usize = 900;
const LABEL: usize = 150;
const BAR: usize = 22;
const GAP: usize = 8;
const HEAD: usize = 46;

/// The report's charts, top to bottom. Bars are medians; the thin line spans all rounds.
pub fn render(report: &Report) -> String {
    let charts: Vec<Vec<&Series>> = distinct(report.results.iter().map(|s| (&s.regime, &s.metric)))
        .into_iter()
        .map(|key| report.results.iter().filter(|s| (&s.regime, &s.metric) == key).collect())
        .collect();
    let height = 60 + charts.iter().map(|chart| chart_height(chart)).sum::<usize>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let machine = &report.machine;
    let where_ = format!(
        "{}, {} cores, kernel {}, {} rounds, {}",
        machine.cpu_model,
        machine.cpus,
        machine.kernel,
        report.results.iter().map(|s| s.samples.len()).max().unwrap_or(0),
        report.date
    );
    text(
        &mut svg,
        (16, 26),
        "font-size=\"18\" font-weight=\"bold\"",
        &format!("weft bench {}", report.bench),
    );
    text(&mut svg, (16, 46), "fill=\"#666666\"", &where_);
    let mut top = 60;
    for chart in charts {
        draw(&mut svg, top, &chart);
        top += chart_height(&chart);
    }
    svg.push_str("</svg>\n");
    svg
}

fn chart_height(chart: &[&Series]) -> usize {
    HEAD + chart.len() * (BAR + GAP) + GAP
}

fn draw(svg: &mut String, top: usize, chart: &[&Series]) {
    let Some(first) = chart.first() else { return };
    let better = if higher_is_better(&first.metric) { "more is better" } else { "less is better" };
    let title = format!("{}: {} ({}), {better}", first.regime, first.metric, first.unit);
    text(svg, (16, top + 28), "font-weight=\"bold\"", &title);
    let largest =
        chart.iter().flat_map(|s| s.samples.iter().copied()).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    #[expect(clippy::cast_precision_loss)] // pixels
    let scale = (WIDTH - LABEL - 110) as f64 / largest;
    for (row, series) in chart.iter().enumerate() {
        let y = top + HEAD + row * (BAR + GAP);
        let colour = if is_ours(&series.path) { "#2563eb" } else { "#9ca3af" };
        let name =
            if series.scale > 1 { format!("{} x{}", series.path, series.scale) } else { series.path.clone() };
        text(svg, (LABEL - 8, y + 16), "text-anchor=\"end\"", &name);
        let width = series.median * scale;
        writeln!(
            svg,
            "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
        )
        .expect("a String takes every write");
        let low = series.samples.iter().copied().fold(f64::INFINITY, f64::min) * scale;
        let high = series.samples.iter().copied().fold(0.0, f64::max) * scale;
        #[expect(clippy::cast_precision_loss)] // pixels
        let (left, middle) = (LABEL as f64, (y + BAR / 2) as f64);
        writeln!(
            svg,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#111827\"/>",
            left + low,
            left + high
        )
        .expect("a String takes every write");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // inside the picture
        let end = LABEL + (high.max(width) as usize) + 6;
        text(svg, (end, y + 16), "", &format!("{:.3}", series.median));
    }
}

/// Rates are better high; times, costs and sizes are better low.
fn higher_is_better(metric: &str) -> bool {
    metric.ends_with("gbps") || metric == "pps" || metric == "cps"
}

fn is_ours(path: &str) -> bool {
    matches!(path, "vxlan" | "vxlan-fast" | "udp" | "host-gw" | "nftables" | "userspace")
}

fn text(svg: &mut String, (x, y): (usize, usize), attributes: &str, content: &str) {
    let escaped = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(svg, "<text x=\"{x}\" y=\"{y}\" {attributes}>{escaped}</text>")
        .expect("a String takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_a_bar_and_names_are_escaped() {
        let report = crate::report::example();
        let svg = render(&report);
        assert_eq!(svg.matches("<rect").count(), 1 + report.results.len(), "the background and the bars");
        assert!(svg.contains("Example &lt;1&gt;"));
        assert!(svg.contains("more is better") && svg.contains("less is better"));
    }
}
