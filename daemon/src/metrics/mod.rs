//! Numbers for Prometheus: a registry of counters, gauges and histograms, with labels.
//!
//! Own code instead of a crate, for three things that the overlay needs together: the text format
//! 0.0.4 that every scraper reads (`prometheus-client` writes OpenMetrics only, its series in hash
//! order), labels whose number the compiler checks (the `prometheus` crate panics), and counters that
//! mirror the kernel's and whose series go when their peer does.

mod process;
mod text;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// `Content-Type` of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds for durations of work that takes from half a millisecond to ten seconds, in seconds.
pub const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The registry: a cheap handle, every clone of which is the same registry.
#[derive(Clone, Default)]
pub struct Metrics {
    families: Arc<Mutex<BTreeMap<&'static str, Registered>>>,
    hooks: Arc<Mutex<Vec<Hook>>>,
}

type Hook = Arc<dyn Fn() + Send + Sync>;

struct Registered {
    /// The family again, in its own type, for who asks for the same name a second time.
    any: Box<dyn Any + Send + Sync>,
    render: Box<dyn Fn(&mut String) + Send + Sync>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// A registry that holds what Prometheus expects of every process: memory, CPU, open files, start.
    pub fn of_process() -> Self {
        let metrics = Self::new();
        process::register(&metrics);
        metrics
    }

    /// A number that only grows. Its name ends in `_total`.
    ///
    /// Asking for a name again gives the same metric.
    ///
    /// # Panics
    /// This and the next methods panic if `name` or a label breaks Prometheus' rules for names, or if
    /// the name belongs to a metric of another kind: both are mistakes in our own text.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.counters(name, help, []).with([])
    }

    /// A family of counters, told apart by labels.
    pub fn counters<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Family<Counter, N> {
        self.family(name, help, labels, &[])
    }

    /// A number that goes up and down.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.gauges(name, help, []).with([])
    }

    /// A family of gauges, told apart by labels.
    pub fn gauges<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Family<Gauge, N> {
        self.family(name, help, labels, &[])
    }

    /// How values are distributed over buckets with these upper bounds, which ascend.
    pub fn histogram(&self, name: &'static str, help: &'static str, bounds: &'static [f64]) -> Histogram {
        self.histograms(name, help, [], bounds).with([])
    }

    /// A family of histograms, told apart by labels.
    pub fn histograms<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        bounds: &'static [f64],
    ) -> Family<Histogram, N> {
        assert!(bounds.is_sorted(), "the bounds of `{name}` ascend");
        self.family(name, help, labels, bounds)
    }

    /// Runs before each scrape: the place to refresh what is only worth knowing then. It must be quick.
    pub fn before_scrape(&self, hook: impl Fn() + Send + Sync + 'static) {
        lock(&self.hooks).push(Arc::new(hook));
    }

    /// Everything in the text format 0.0.4: families by name, series by label values.
    pub fn render(&self) -> String {
        // The hooks may register, so they run with no lock held.
        let hooks = lock(&self.hooks).clone();
        hooks.iter().for_each(|hook| hook());
        let mut out = String::new();
        for family in lock(&self.families).values() {
            (family.render)(&mut out);
        }
        out
    }

    fn family<M: Metric, const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        bounds: &'static [f64],
    ) -> Family<M, N> {
        assert!(text::is_metric_name(name), "`{name}` is no metric name");
        for label in labels {
            assert!(text::is_label_name(label), "`{label}` is no label name");
        }
        let mut families = lock(&self.families);
        let registered = families.entry(name).or_insert_with(|| {
            let family = Family::<M, N> { labels, bounds, series: Arc::default() };
            Registered {
                any: Box::new(family.clone()),
                render: Box::new(move |out| family.render(name, help, out)),
            }
        });
        let family = registered.any.downcast_ref::<Family<M, N>>();
        let family = family.filter(|family| family.labels == labels && family.bounds == bounds);
        family.unwrap_or_else(|| panic!("`{name}` is a metric of another shape already")).clone()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.families).keys()).finish()
    }
}

/// Metrics of one name, one for each combination of label values that was asked for.
pub struct Family<M, const N: usize> {
    labels: [&'static str; N],
    bounds: &'static [f64],
    series: Arc<Mutex<BTreeMap<[String; N], M>>>,
}

impl<M: Metric, const N: usize> Family<M, N> {
    /// The metric with these label values, in the order of the label names.
    pub fn with(&self, values: [&str; N]) -> M {
        let values = values.map(str::to_owned);
        lock(&self.series).entry(values).or_insert_with(|| M::new(self.bounds)).clone()
    }

    /// Drops the series for which `keep` says no: of peers that left, so that the scrape does not grow.
    pub fn retain(&self, mut keep: impl FnMut(&[String; N]) -> bool) {
        lock(&self.series).retain(|values, _| keep(values));
    }

    fn render(&self, name: &str, help: &str, out: &mut String) {
        text::header(out, name, help, M::KIND);
        for (values, metric) in lock(&self.series).iter() {
            let labels: Vec<_> = self.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            metric.render(name, &labels, out);
        }
    }
}

impl<M, const N: usize> Clone for Family<M, N> {
    fn clone(&self) -> Self {
        Self { labels: self.labels, bounds: self.bounds, series: self.series.clone() }
    }
}

impl<M, const N: usize> fmt::Debug for Family<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Family").field(&self.labels).finish()
    }
}

/// One of [`Counter`], [`Gauge`], [`Histogram`].
pub trait Metric: sealed::Metric {}

mod sealed {
    /// What a family needs of its members.
    pub trait Metric: Clone + Send + Sync + 'static {
        /// The word after `# TYPE name`.
        const KIND: &'static str;
        /// A metric that has seen nothing.
        fn new(bounds: &'static [f64]) -> Self;
        /// Its lines.
        fn render(&self, name: &str, labels: &[(&str, &str)], out: &mut String);
    }
}

/// A number that only grows.
#[derive(Clone, Debug)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Takes over the total of a counter kept elsewhere, such as the kernel's.
    pub fn mirror(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The total.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metric for Counter {}
impl sealed::Metric for Counter {
    const KIND: &'static str = "counter";
    fn new(_: &'static [f64]) -> Self {
        Self(Arc::default())
    }
    fn render(&self, name: &str, labels: &[(&str, &str)], out: &mut String) {
        text::sample(out, name, "", labels, self.total());
    }
}

/// Time that only grows: a counter with a fraction.
#[derive(Clone, Debug)]
struct Seconds(Arc<AtomicU64>);

impl Seconds {
    /// Takes over a total kept elsewhere.
    fn mirror(&self, total: Duration) {
        // 2^64 nanoseconds are 584 years.
        self.0.store(total.as_nanos().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Metric for Seconds {}
impl sealed::Metric for Seconds {
    const KIND: &'static str = "counter";
    fn new(_: &'static [f64]) -> Self {
        Self(Arc::default())
    }
    fn render(&self, name: &str, labels: &[(&str, &str)], out: &mut String) {
        let total = Duration::from_nanos(self.0.load(Ordering::Relaxed));
        text::sample(out, name, "", labels, text::Number(total.as_secs_f64()));
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// It is now this.
    pub fn set(&self, value: impl Into<f64>) {
        self.0.store(value.into().to_bits(), Ordering::Relaxed);
    }

    /// It is now this many. Exact up to 2^53, as all numbers in Prometheus.
    pub fn set_count(&self, count: usize) {
        self.set(count as f64);
    }

    /// What it is.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Metric for Gauge {}
impl sealed::Metric for Gauge {
    const KIND: &'static str = "gauge";
    fn new(_: &'static [f64]) -> Self {
        Self(Arc::new(AtomicU64::new(0f64.to_bits())))
    }
    fn render(&self, name: &str, labels: &[(&str, &str)], out: &mut String) {
        text::sample(out, name, "", labels, text::Number(self.value()));
    }
}

/// How values are distributed.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<Mutex<Distribution>>);

#[derive(Debug)]
struct Distribution {
    bounds: &'static [f64],
    /// How many values were in each bucket alone; the last one is for what is above every bound.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// One value more.
    pub fn observe(&self, value: f64) {
        let mut inner = lock(&self.0);
        let bucket = inner.bounds.partition_point(|bound| *bound < value);
        inner.counts[bucket] += 1;
        inner.sum += value;
    }

    /// One duration more, in seconds.
    pub fn observe_duration(&self, took: Duration) {
        self.observe(took.as_secs_f64());
    }

    /// How many values it has seen.
    pub fn count(&self) -> u64 {
        lock(&self.0).counts.iter().sum()
    }
}

impl Metric for Histogram {}
impl sealed::Metric for Histogram {
    const KIND: &'static str = "histogram";
    fn new(bounds: &'static [f64]) -> Self {
        let counts = vec![0; bounds.len() + 1];
        Self(Arc::new(Mutex::new(Distribution { bounds, counts, sum: 0.0 })))
    }
    fn render(&self, name: &str, labels: &[(&str, &str)], out: &mut String) {
        let inner = lock(&self.0);
        let bounds = inner.bounds.iter().copied().chain([f64::INFINITY]);
        let mut so_far = 0;
        for (bound, count) in bounds.zip(&inner.counts) {
            so_far += count;
            let bound = text::Number(bound).to_string();
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            text::sample(out, name, "_bucket", &labels, so_far);
        }
        text::sample(out, name, "_sum", labels, text::Number(inner.sum));
        text::sample(out, name, "_count", labels, so_far);
    }
}

/// Every holder of these locks leaves the numbers whole, so a panic elsewhere is no reason to stop counting.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
