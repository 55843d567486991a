//! The report as one picture: what it comes to on top, then a section per regime with a small chart
//! per metric. Pure.
//!
//! Bars are medians, dots are rounds. Charts beside each other share the names at the left, so that
//! a path is one line across them. The background is part of the picture: it reads the same on a
//! light page and on a dark one.

mod words;

use std::fmt::Write as _;

use crate::report::{Report, Series, distinct};
use words::{Side, figure};

/// One result that the whole is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headline {
    /// In large type: `1.06 x`.
    pub figure: String,
    /// Of what.
    pub what: String,
    /// How sure, and under which conditions.
    pub detail: String,
}

/// The picture's width, in pixels: that of a README's column.
const WIDTH: usize = 960;
const MARGIN: usize = 28;
/// Room for the names left of the charts.
const NAMES: usize = 124;
/// Charts beside each other, and how wide one is, with the gap to the next.
const COLUMNS: usize = 4;
const COLUMN: usize = (WIDTH - 2 * MARGIN - NAMES) / COLUMNS;
/// Room for a figure right of the longest bar, and between columns.
const FIGURE: usize = 62;
/// From one bar to the next, and a bar's height.
const LINE: usize = 21;
const BAR: usize = 13;
/// What a chart's title and a section's heading take.
const TITLE: usize = 46;
const HEADING: usize = 46;
/// Between rows that are not compared with each other.
const GROUP: usize = 7;
/// What stands above the headlines; their cards; the key of colours below them.
const HEAD: usize = 80;
const CARD: usize = 92;
const CARD_GAP: usize = 14;
const COLOURS: usize = 34;
/// How far beyond the longest median the scale goes. Rounds beyond are drawn at its end.
const HEADROOM: f64 = 1.25;
/// A bar so many times as long as all others is cut short, or they would all look alike.
const CUT: f64 = 4.0;

const INK: &str = "#1f2933";
const FAINT: &str = "#66717f";
const RULE: &str = "#d5dae1";
const CARD_FILL: &str = "#f4f6f9";

/// Draws the report.
pub fn render(report: &Report, headlines: &[Headline]) -> String {
    let mut canvas = Canvas::default();
    head(&mut canvas, report);
    let mut top = HEAD;
    if !headlines.is_empty() {
        cards(&mut canvas, top, headlines);
        top += CARD;
    }
    colours(&mut canvas, top, report);
    top += COLOURS;
    for (regime, here) in report.blocks() {
        top = section(&mut canvas, top, &report.bench, regime, &here);
    }
    top = paths(&mut canvas, top, report);
    canvas.finish(top)
}

fn head(canvas: &mut Canvas, report: &Report) {
    let (title, about) = match report.bench.as_str() {
        "overlay" => (
            "Between pods on two hosts: weft, flannel's layout, and no overlay".to_owned(),
            "hosts and pods are network namespaces on one machine",
        ),
        "proxy" => (
            "Through a service: weft, kube-proxy's layout, and straight to the endpoint".to_owned(),
            "a host with its pods is a few network namespaces",
        ),
        other => (format!("weft bench {other}"), "measured on one machine"),
    };
    canvas.text((MARGIN, 38), Style::Title, &title);
    let machine = &report.machine;
    let about = format!(
        "{}, {} processors, Linux {}; {about}; weft {}, {}",
        machine.cpu_model, machine.cpus, machine.kernel, report.commit, report.date
    );
    canvas.text((MARGIN, 60), Style::Faint, &about);
}

fn cards(canvas: &mut Canvas, top: usize, headlines: &[Headline]) {
    let count = headlines.len();
    let width = (WIDTH - 2 * MARGIN - (count - 1) * CARD_GAP) / count;
    for (number, headline) in headlines.iter().enumerate() {
        let left = MARGIN + number * (width + CARD_GAP);
        canvas.card(left, top, width, CARD);
        canvas.text((left + 14, top + 36), Style::Figure, &headline.figure);
        canvas.text((left + 14, top + 58), Style::Bold, &headline.what);
        canvas.text((left + 14, top + 77), Style::Faint, &headline.detail);
    }
}

/// What of one regime belongs together. Returns where the next begins.
fn section(canvas: &mut Canvas, top: usize, bench: &str, regime: &str, here: &[&Series]) -> usize {
    canvas.rule(top + 8);
    canvas.text((MARGIN, top + 34), Style::Section, regime);
    let scaled = here.iter().any(|series| series.scale > 1);
    canvas.text((MARGIN + NAMES, top + 34), Style::Faint, words::regime(bench, regime, scaled));
    let keys = distinct(here.iter().map(|series| (series.path.as_str(), series.scale)));
    let metrics = distinct(here.iter().map(|series| series.metric.as_str()));
    let (rows, below) = rows(bench, &keys);
    let mut top = top + HEADING;
    for band in metrics.chunks(COLUMNS) {
        let bars = top + TITLE;
        for row in &rows {
            canvas.text((MARGIN + NAMES - 10, bars + row.place + 11), row.style, &row.label);
        }
        for (column, metric) in band.iter().enumerate() {
            let of = |row: &Row| {
                let (path, scale) = row.key?;
                let found =
                    here.iter().find(|s| (s.path.as_str(), s.scale) == (path, scale) && s.metric == *metric);
                Some((row.place, found.copied()))
            };
            let chart: Vec<(usize, Option<&Series>)> = rows.iter().filter_map(of).collect();
            draw(canvas, (MARGIN + NAMES + column * COLUMN, top), bench, &chart);
        }
        top = bars + below;
    }
    top + 12
}

/// A line across the charts.
struct Row<'a> {
    /// How far below the first one it stands.
    place: usize,
    label: String,
    style: Style,
    /// Whose figures; none for the name of what follows.
    key: Option<(&'a str, u64)>,
}

/// The lines of a section, and what they take together: what is compared stands together. Where several
/// paths are told at several scales, each path is named once, above its scales.
fn rows<'a>(bench: &str, keys: &[(&'a str, u64)]) -> (Vec<Row<'a>>, usize) {
    let scaled = keys.iter().any(|(_, scale)| *scale > 1);
    let several = distinct(keys.iter().map(|(path, _)| *path)).len() > 1;
    let (mut rows, mut next, mut last) = (vec![], 0, "");
    for (path, scale) in keys {
        let is_new = last != *path;
        let apart = if scaled { is_new && several } else { words::begins_group(path) && keys.len() > 4 };
        next += if apart && next > 0 { GROUP } else { 0 };
        if scaled && several && is_new {
            rows.push(Row { place: next, label: (*path).to_owned(), style: Style::BoldName, key: None });
            next += LINE;
        }
        let label = match (scaled, several) {
            (false, _) => (*path).to_owned(),
            (true, false) => format!("{scale} {}", words::things(bench)),
            (true, true) => scale.to_string(),
        };
        rows.push(Row { place: next, label, style: Style::Name, key: Some((*path, *scale)) });
        next += LINE;
        last = path;
    }
    (rows, next)
}

/// One chart, its upper left corner at `left`, `top`; a line for each row, measured or not.
fn draw(canvas: &mut Canvas, (left, top): (usize, usize), bench: &str, chart: &[(usize, Option<&Series>)]) {
    let measured = || chart.iter().filter_map(|(_, series)| *series);
    let Some(first) = measured().next() else { return };
    canvas.text((left, top + 18), Style::Bold, words::metric(bench, &first.metric));
    let better = if words::higher_is_better(&first.metric) { "more is better" } else { "less is better" };
    let unit = words::unit(&first.metric, &first.unit);
    canvas.text((left, top + 34), Style::Faint, &format!("{unit}, {better}"));
    let room = pixels(COLUMN - FIGURE);
    let scale = room / reach(measured());
    for (place, series) in chart {
        let y = top + TITLE + place;
        let Some(series) = series else {
            canvas.text((left, y + 11), Style::Faint, "not measured");
            continue;
        };
        let length = (series.median * scale).min(room);
        canvas.bar((left, y), length, Side::of(&series.path).colour());
        let mut end = length;
        if series.median * scale > room {
            canvas.cut(pixels(left) + room - 22.0, y);
        } else {
            for sample in series.samples.iter().filter(|sample| sample.is_finite()) {
                let x = (sample * scale).min(room);
                canvas.dot(pixels(left) + x, y + BAR / 2);
                end = end.max(x);
            }
        }
        canvas.text_at(pixels(left) + end + 8.0, y + 11, Style::Plain, &figure(series.median));
    }
}

/// The value at a chart's right end.
fn reach<'a>(chart: impl Iterator<Item = &'a Series> + Clone) -> f64 {
    let mut medians: Vec<f64> = chart.clone().map(|s| s.median).filter(|m| m.is_finite()).collect();
    medians.sort_by(f64::total_cmp);
    let longest = match medians[..] {
        [.., second, longest] if second > 0.0 && longest > CUT * second => second,
        [.., longest] => longest.max(f64::MIN_POSITIVE),
        [] => 1.0,
    };
    let shown = chart.filter(|series| series.median <= longest);
    let furthest = shown.flat_map(|s| &s.samples).copied().fold(longest, f64::max);
    furthest.min(longest * HEADROOM)
}

/// What colours and dots mean.
fn colours(canvas: &mut Canvas, top: usize, report: &Report) {
    let y = top + 22;
    let mut left = MARGIN;
    for side in Side::ALL {
        if report.results.iter().any(|series| Side::of(&series.path) == side) {
            canvas.bar((left, y - 11), 16.0, side.colour());
            let name = side.name(&report.bench);
            canvas.text((left + 23, y), Style::Plain, name);
            left += 40 + name.len() * 7;
        }
    }
    let rounds = report.results.iter().map(|series| series.samples.len()).max().unwrap_or(0);
    canvas.dot(pixels(left) + 8.0, y - 5);
    let marks = format!("one of {rounds} interleaved rounds; bars and figures are medians");
    canvas.text((left + 18, y), Style::Plain, &marks);
}

/// What the paths' names mean. Returns the picture's height.
fn paths(canvas: &mut Canvas, top: usize, report: &Report) -> usize {
    canvas.rule(top + 8);
    let y = top + 34;
    let paths = distinct(report.results.iter().map(|series| series.path.as_str()));
    let explained: Vec<&str> =
        paths.into_iter().filter(|path| !words::path(&report.bench, path).is_empty()).collect();
    let lines = explained.len().div_ceil(2).max(1);
    for (number, path) in explained.iter().enumerate() {
        let (x, y) = (MARGIN + number / lines * (WIDTH / 2 - MARGIN), y + number % lines * 19);
        canvas.text((x, y), Style::Bold, path);
        canvas.text((x + NAMES - 4, y), Style::Faint, words::path(&report.bench, path));
    }
    y + (lines - 1) * 19 + MARGIN
}

/// How a text looks.
#[derive(Clone, Copy)]
enum Style {
    Title,
    Section,
    Figure,
    Bold,
    Plain,
    Faint,
    /// Ends at its place.
    Name,
    BoldName,
}

impl Style {
    fn attributes(self) -> String {
        match self {
            Self::Title => "font-size=\"21\" font-weight=\"bold\"".to_owned(),
            Self::Section => "font-size=\"16\" font-weight=\"bold\"".to_owned(),
            Self::Figure => "font-size=\"25\" font-weight=\"bold\"".to_owned(),
            Self::Bold => "font-weight=\"bold\"".to_owned(),
            Self::Plain => String::new(),
            Self::Faint => format!("fill=\"{FAINT}\""),
            Self::Name => "text-anchor=\"end\"".to_owned(),
            Self::BoldName => "text-anchor=\"end\" font-weight=\"bold\"".to_owned(),
        }
    }
}

/// The picture so far.
#[derive(Default)]
struct Canvas {
    body: String,
}

impl Canvas {
    fn text(&mut self, (x, y): (usize, usize), style: Style, content: &str) {
        self.text_at(pixels(x), y, style, content);
    }

    fn text_at(&mut self, x: f64, y: usize, style: Style, content: &str) {
        let escaped = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let attributes = style.attributes();
        self.add(format_args!("<text x=\"{x:.0}\" y=\"{y}\" {attributes}>{escaped}</text>"));
    }

    fn bar(&mut self, (x, y): (usize, usize), width: f64, colour: &str) {
        let width = width.max(1.0);
        self.add(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>"
        ));
    }

    fn dot(&mut self, x: f64, y: usize) {
        self.add(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y}\" r=\"2\" fill=\"{INK}\" fill-opacity=\"0.5\"/>"
        ));
    }

    /// A slanted gap in a bar: it is longer than it looks.
    fn cut(&mut self, x: f64, y: usize) {
        let (top, bottom) = (y - 2, y + BAR + 2);
        self.add(format_args!(
            "<path d=\"M{x:.0} {bottom}L{:.0} {top}h5L{:.0} {bottom}z\" fill=\"#ffffff\"/>",
            x + 6.0,
            x + 5.0
        ));
    }

    fn rule(&mut self, y: usize) {
        let right = WIDTH - MARGIN;
        self.add(format_args!("<path d=\"M{MARGIN} {y}H{right}\" stroke=\"{RULE}\"/>"));
    }

    fn card(&mut self, x: usize, y: usize, width: usize, height: usize) {
        self.add(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{CARD_FILL}\"/>"
        ));
    }

    fn finish(self, height: usize) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"system-ui, 'Segoe UI', 'Liberation Sans', Helvetica, Arial, sans-serif\" \
             font-size=\"12.5\" fill=\"{INK}\">\n\
             <rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"#ffffff\" stroke=\"{RULE}\"/>\n\
             {}</svg>\n",
            WIDTH - 1,
            height - 1,
            self.body
        )
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("a String takes every write");
    }
}

#[expect(clippy::cast_precision_loss)] // pictures are far smaller than 2^53
fn pixels(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn() -> (Report, String) {
        let report = crate::report::example();
        let headline = Headline { figure: "1.06 x".into(), what: "a / b".into(), detail: "sure".into() };
        let svg = render(&report, &[headline]);
        (report, svg)
    }

    #[test]
    fn every_series_has_a_bar_a_figure_and_its_rounds() {
        let (report, svg) = drawn();
        let (background, cards, sides) = (1, 1, 2);
        assert_eq!(svg.matches("<rect").count(), background + cards + sides + report.results.len());
        let samples: usize = report.results.iter().map(|series| series.samples.len()).sum();
        let explained = 1;
        assert_eq!(svg.matches("<circle").count(), samples + explained);
        for series in &report.results {
            assert!(svg.contains(&format!(">{}<", figure(series.median))), "{series:?}");
        }
        assert!(svg.contains("Example &lt;1&gt;"));
        assert!(svg.contains("more is better") && svg.contains("less is better"));
        assert!(svg.contains(">1000 leases<") && svg.contains(">1.06 x<"));
    }

    /// Nothing is drawn outside the picture, not even a round that was twenty times as slow.
    #[test]
    fn everything_is_inside() {
        let mut report = crate::report::example();
        report.sample(("default", "vxlan", "cpu_s_per_gb", "s"), 1, 20.0);
        let svg = render(&report, &[]);
        for attribute in [" x=\"", " cx=\""] {
            let numbers =
                svg.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok());
            let furthest = numbers.fold(0.0, f64::max);
            assert!((1.0..=pixels(WIDTH - MARGIN)).contains(&furthest), "{attribute}: {furthest}");
        }
    }

    /// One path that is far from all others must not make them look alike.
    #[test]
    fn a_bar_far_longer_than_all_others_is_cut() {
        let mut report = crate::report::example();
        assert!(!render(&report, &[]).contains("fill=\"#ffffff\"/>\n<text"));
        report.sample(("default", "udp-single", "cpu_s_per_gb", "s"), 1, 22.5);
        assert_eq!(reach(report.results.iter().filter(|s| s.metric == "cpu_s_per_gb")), 10.0 / 12.0);
        let svg = render(&report, &[]);
        assert_eq!(svg.matches("fill=\"#ffffff\"/>").count(), 1);
        assert!(svg.contains(">22.5<"));
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let mut report = crate::report::example();
        report.sample(("default", "udp", "pps", "1/s"), 1, 20.0);
        assert!(render(&report, &[]).contains(">not measured<"));
    }
}
