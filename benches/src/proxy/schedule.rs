//! What is measured in which regime, and how long that takes. Pure.
//!
//! The costs are those of a two-core machine; a run corrects them by its own pace as it goes on.

use std::time::Duration;

use super::path::Path;
use super::{Options, control, stage};
use crate::regime::Regime;
use crate::session::{count, rounds};

/// One thing to measure on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    Tcp(u8),
    Connections,
    RoundTrips,
}

impl Metric {
    /// Its name in results; that of the first, if it gives two.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcp(1) => "tcp_1_gbps",
            Self::Tcp(_) => "tcp_8_gbps",
            Self::Connections => "cps",
            Self::RoundTrips => "rr_p50_us",
        }
    }

    /// What is measured in a regime. Offloads leave round trips and connections as they are.
    pub(super) const fn of(regime: Regime, quick: bool) -> &'static [Self] {
        match (regime, quick) {
            (Regime::Default, false) => &[Self::Tcp(1), Self::Tcp(8), Self::Connections, Self::RoundTrips],
            (Regime::Default, true) => &[Self::Tcp(1), Self::Connections, Self::RoundTrips],
            (_, false) => &[Self::Tcp(1), Self::Tcp(8)],
            (_, true) => &[Self::Tcp(1)],
        }
    }

    /// How long one measurement takes, starting up and warming included.
    fn cost(self, quick: bool) -> Duration {
        match self {
            Self::Tcp(_) => IPERF,
            Self::Connections | Self::RoundTrips => short(quick).mul_f64(1.1),
        }
    }
}

/// For how long the small tools count.
pub(super) const fn short(quick: bool) -> Duration {
    Duration::from_millis(if quick { 250 } else { 400 })
}

/// One second of traffic by iperf3, its start and its farewell.
const IPERF: Duration = Duration::from_millis(1150);
/// Raising the lab, and a host in it.
const LAB: Duration = Duration::from_secs(3);
const HOST: Duration = Duration::from_millis(1000);
/// What a host takes for each thousand of its services: weft's daemon reads them first.
const THOUSAND: Duration = Duration::from_millis(120);
/// What `nft` takes to load the layout with five thousand services.
const LAYOUT: Duration = Duration::from_secs(25);

/// How long a round of a regime takes.
pub(super) fn round(regime: Regime, paths: usize, quick: bool) -> Duration {
    let once: Duration = Metric::of(regime, quick).iter().map(|metric| metric.cost(quick)).sum();
    once * count(paths)
}

/// How long a round of first packets takes.
pub(super) fn first_round(contestants: usize, quick: bool) -> Duration {
    short(quick).mul_f64(1.1) * count(contestants)
}

/// How long everything takes.
pub(super) fn all(options: &Options, paths: &[Path]) -> Duration {
    let hosts = stage::hosts(options, paths);
    let of_host = |(path, services): &(Path, u32)| HOST + programming(*path, *services);
    let raising: Duration = hosts.iter().map(of_host).sum();
    let firsts = paths.iter().map(|path| options.first_at(*path).count()).sum();
    let of_first = first_round(firsts, options.quick);
    let of_regimes = options.regimes.iter().map(|regime| round(*regime, paths.len(), options.quick));
    let once = of_first + of_regimes.sum::<Duration>();
    let lab = if hosts.is_empty() { Duration::ZERO } else { LAB };
    lab + raising + once * count(rounds(options.quick)) + control::takes(options, paths)
}

/// How long it takes to have so many services in a kernel.
pub(super) fn programming(path: Path, services: u32) -> Duration {
    match path {
        // It grows with the square.
        Path::KubeProxyLayout | Path::KubeProxy => LAYOUT.mul_f64((f64::from(services) / 5000.0).powi(2)),
        Path::Haproxy => Duration::ZERO,
        _ => THOUSAND.mul_f64(f64::from(services) / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::REGIMES;

    fn options(quick: bool) -> Options {
        Options {
            weft: "weft".into(),
            commit: "abc".into(),
            quick,
            only: vec![],
            regimes: REGIMES[..2].to_vec(),
            first: true,
            control: true,
            up_to: None,
        }
    }

    /// What `weft bench proxy --help` promises.
    #[test]
    fn a_run_takes_as_long_as_is_promised() {
        let minutes = |quick| all(&options(quick), &Path::ALL).as_secs_f64() / 60.0;
        assert!((12.0..=25.0).contains(&minutes(false)), "{}", minutes(false));
        assert!((1.0..=4.0).contains(&minutes(true)), "{}", minutes(true));
    }

    #[test]
    fn what_is_not_asked_for_takes_no_time() {
        let nothing = Options { regimes: vec![], first: false, control: false, ..options(false) };
        assert_eq!(all(&nothing, &Path::ALL), Duration::ZERO);
    }
}
