//! What is measured in which regime, and how long that takes. Pure.
//!
//! The costs are those of a two-core machine; a run corrects them by its own pace as it goes on.

use std::time::Duration;

use super::Options;
use crate::regime::Regime;
use crate::session::{count, rounds};

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    Tcp(u8),
    Udp,
    Packets,
    Connections,
    RoundTrips,
}

impl Metric {
    /// Its name in results; that of the first, if it gives two.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcp(1) => "tcp_1_gbps",
            Self::Tcp(_) => "tcp_8_gbps",
            Self::Udp => "udp_gbps",
            Self::Packets => "pps",
            Self::Connections => "cps",
            Self::RoundTrips => "rr_p50_us",
        }
    }

    /// What is measured in a regime. Offloads and shaping leave round trips and connections as they
    /// are, and a full link says all in one figure, its cost.
    pub(super) const fn of(regime: Regime, quick: bool) -> &'static [Self] {
        match (regime, quick) {
            (Regime::Default, false) => {
                &[Self::Tcp(1), Self::Tcp(8), Self::Udp, Self::Packets, Self::Connections, Self::RoundTrips]
            }
            (Regime::Default, true) => &[Self::Tcp(1), Self::Packets, Self::Connections, Self::RoundTrips],
            (Regime::NoOffload | Regime::NoTso, false) => &[Self::Tcp(1), Self::Tcp(8), Self::Packets],
            (Regime::Shaped, _) | (Regime::NoOffload | Regime::NoTso, true) => &[Self::Tcp(1)],
        }
    }

    /// For how long the small tools count.
    pub(super) const fn short(quick: bool) -> Duration {
        Duration::from_millis(if quick { 250 } else { 400 })
    }

    /// How long one measurement takes, starting up and warming included.
    fn cost(self, quick: bool) -> Duration {
        match self {
            Self::Tcp(_) | Self::Udp => IPERF,
            Self::Packets | Self::Connections | Self::RoundTrips => Self::short(quick).mul_f64(1.1),
        }
    }
}

/// One second of traffic by iperf3, its start and its farewell.
const IPERF: Duration = Duration::from_millis(1150);
/// Raising the lab, and a path in it.
const LAB: Duration = Duration::from_secs(4);
const PATH: Duration = Duration::from_millis(1500);
/// The control plane, see `control`.
const CONTROL: Duration = Duration::from_secs(210);
const QUICK_CONTROL: Duration = Duration::from_secs(20);

/// How long a round of a regime takes.
pub(super) fn round(regime: Regime, paths: usize, quick: bool) -> Duration {
    let once: Duration = Metric::of(regime, quick).iter().map(|metric| metric.cost(quick)).sum();
    once * count(paths)
}

/// How long everything takes.
pub(super) fn all(options: &Options, paths: usize) -> Duration {
    let of_regime = |regime: &Regime| round(*regime, paths, options.quick) * count(rounds(options.quick));
    let raising = if options.regimes.is_empty() { Duration::ZERO } else { LAB + PATH * count(paths) };
    raising + options.regimes.iter().map(of_regime).sum::<Duration>() + control(options)
}

fn control(options: &Options) -> Duration {
    match (options.control, options.quick) {
        (false, _) => Duration::ZERO,
        (true, true) => QUICK_CONTROL,
        (true, false) => CONTROL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(quick: bool) -> Options {
        Options {
            weft: "weft".into(),
            commit: "abc".into(),
            quick,
            only: vec![],
            regimes: Regime::ALL.to_vec(),
            control: true,
        }
    }

    /// What `weft bench overlay --help` promises: seven paths can always be had.
    #[test]
    fn a_run_takes_as_long_as_is_promised() {
        let minutes = |quick| all(&options(quick), 7).as_secs_f64() / 60.0;
        assert!((15.0..=25.0).contains(&minutes(false)), "{}", minutes(false));
        assert!(minutes(true) <= 4.0, "{}", minutes(true));
    }
}
