//! What a scraper reads: golden text, and a reader of the format that shares no code with the writer.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn the_text_is_sorted_and_says_what_everything_is() {
    let metrics = Metrics::new();
    let took = metrics.histograms("weft_run_seconds", "How long a run took.", ["loop"], &[0.1, 1.0]);
    let heals = metrics.counters("weft_heals_total", "Objects put back.", ["kind", "family"]);
    metrics.gauge("weft_peers", "Hosts in the data path.").set_count(3);
    heals.with(["route", "v6"]).inc();
    heals.with(["fdb", "v4"]).add(2);
    for seconds in [0.05, 0.1, 0.5, 7.0] {
        took.with(["kernel"]).observe(seconds);
    }
    assert_eq!(
        metrics.render(),
        "\
# HELP weft_heals_total Objects put back.
# TYPE weft_heals_total counter
weft_heals_total{kind=\"fdb\",family=\"v4\"} 2
weft_heals_total{kind=\"route\",family=\"v6\"} 1
# HELP weft_peers Hosts in the data path.
# TYPE weft_peers gauge
weft_peers 3
# HELP weft_run_seconds How long a run took.
# TYPE weft_run_seconds histogram
weft_run_seconds_bucket{loop=\"kernel\",le=\"0.1\"} 2
weft_run_seconds_bucket{loop=\"kernel\",le=\"1\"} 3
weft_run_seconds_bucket{loop=\"kernel\",le=\"+Inf\"} 4
weft_run_seconds_sum{loop=\"kernel\"} 7.65
weft_run_seconds_count{loop=\"kernel\"} 4
"
    );
}

#[test]
fn floats_are_written_as_go_reads_them() {
    let metrics = Metrics::new();
    let gauge = metrics.gauge("weft_x", "");
    for (value, text) in [
        (0.0, "0"),
        (-1.5, "-1.5"),
        (f64::INFINITY, "+Inf"),
        (f64::NEG_INFINITY, "-Inf"),
        (f64::NAN, "NaN"),
        (1e21, "1000000000000000000000"),
    ] {
        gauge.set(value);
        assert_eq!(metrics.render().lines().last(), Some(format!("weft_x {text}").as_str()));
    }
}

#[test]
fn the_same_name_is_the_same_metric() {
    let metrics = Metrics::new();
    metrics.counter("weft_runs_total", "Runs.").inc();
    metrics.clone().counter("weft_runs_total", "Runs.").inc();
    assert_eq!(metrics.counter("weft_runs_total", "Runs.").total(), 2);
}

#[test]
#[should_panic(expected = "another shape")]
fn a_name_cannot_mean_two_things() {
    let metrics = Metrics::new();
    metrics.counter("weft_runs_total", "Runs.");
    metrics.gauge("weft_runs_total", "Runs.");
}

#[test]
fn names_follow_the_rules_of_prometheus() {
    for (name, metric, label) in [
        ("weft_peers", true, true),
        ("_x9", true, true),
        ("weft:rate", true, false),
        ("__x", true, false),
        ("le", true, false),
        ("9x", false, false),
        ("weft-peers", false, false),
        ("größe", false, false),
        ("", false, false),
    ] {
        assert_eq!(text::is_metric_name(name), metric, "{name}");
        assert_eq!(text::is_label_name(name), label, "{name}");
    }
}

#[test]
fn series_of_who_left_go() {
    let metrics = Metrics::new();
    let bytes = metrics.counters("weft_peer_rx_bytes_total", "Bytes.", ["peer"]);
    bytes.with(["ash"]).mirror(7);
    bytes.with(["birch"]).mirror(9);
    bytes.retain(|[peer]| peer == "birch");
    let text = metrics.render();
    assert!(text.contains("{peer=\"birch\"} 9") && !text.contains("ash"), "{text}");
}

#[test]
fn hooks_run_at_each_scrape_and_may_register() {
    let metrics = Metrics::new();
    let inner = metrics.clone();
    metrics.before_scrape(move || inner.counter("weft_scrapes_total", "Scrapes.").inc());
    metrics.render();
    assert!(metrics.render().ends_with("weft_scrapes_total 2\n"));
}

proptest! {
    /// Whatever is in a label, a reader gets it back, and no line breaks out of its series.
    #[test]
    fn labels_read_back(values in proptest::collection::btree_map("(?s).{0,12}", 0u64..1000, 0..6)) {
        let metrics = Metrics::new();
        let family = metrics.counters("weft_x_total", "A \\ help\nof two lines.", ["who"]);
        for (value, total) in &values {
            family.with([value]).mirror(*total);
        }
        prop_assert_eq!(read(&metrics.render()), values);
    }
}

/// Reads samples `name{label="value"} number` of one label, by the format's own words.
fn read(text: &str) -> BTreeMap<String, u64> {
    let mut samples = BTreeMap::new();
    for line in text.split('\n').filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        let mut rest = line.strip_prefix("weft_x_total{who=\"").expect("a series opens so").chars();
        let mut value = String::new();
        loop {
            match rest.next().expect("the value is closed") {
                '"' => break,
                '\\' => match rest.next().expect("an escape has a second character") {
                    'n' => value.push('\n'),
                    plain => value.push(plain),
                },
                plain => value.push(plain),
            }
        }
        let number = rest.as_str().strip_prefix("} ").expect("a space before the number");
        samples.insert(value, number.parse().expect("a number"));
    }
    samples
}
