//! Medians and ratios of noisy samples. Pure.

/// The middle sample, or the mean of the two middle ones; NaN for none.
pub fn median(samples: &[f64]) -> f64 {
    let sorted = sorted(samples);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The sample below which a share `p` (0 to 1) of all samples lies, by nearest rank; NaN for none.
pub fn percentile(samples: &[f64], p: f64) -> f64 {
    let sorted = sorted(samples);
    if sorted.is_empty() {
        return f64::NAN;
    }
    // A rank of 1 to n: in range for any length a Vec can have.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// How one path compares with another, round by round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Median of the rounds' ratios.
    pub median: f64,
    /// Lower end of the median's 95 % interval.
    pub low: f64,
    /// Upper end of the median's 95 % interval.
    pub high: f64,
    /// Rounds compared.
    pub rounds: usize,
}

/// Ratio of `ours` to `theirs`, sample by sample: both lists come from the same interleaved
/// rounds, so that the machine's drift cancels. `None` when there is no common round.
pub fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    let pairs = ours.iter().zip(theirs);
    let ratios: Vec<f64> = pairs.map(|(a, b)| a / b).filter(|ratio| ratio.is_finite()).collect();
    let sorted = sorted(&ratios);
    let skip = outside(sorted.len());
    let (low, high) = (*sorted.get(skip)?, *sorted.get(sorted.len().checked_sub(skip + 1)?)?);
    Some(Ratio { median: median(&sorted), low, high, rounds: sorted.len() })
}

/// How many samples to leave out at each end so that the rest covers the median with at least
/// 95 %: the distribution-free interval by order statistics (the number of samples below the
/// median is binomial, n, 1/2). Fewer than six samples give no such interval: all are kept.
fn outside(n: usize) -> usize {
    let mut tail = 0.0;
    let mut chance = 0.5f64.powi(i32::try_from(n).unwrap_or(i32::MAX)); // of 0 below
    for k in 0..n {
        tail += chance;
        if tail > 0.025 {
            return k.saturating_sub(1);
        }
        #[expect(clippy::cast_precision_loss)] // counts of rounds
        let next = (n - k) as f64 / (k + 1) as f64;
        chance *= next;
    }
    0
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn percentiles_are_samples() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }

    /// From tables of the sign test: with 15 rounds the interval runs from the 4th to the 12th
    /// value, with 6 from the 1st to the 6th, with 20 from the 6th to the 15th.
    #[test]
    fn the_interval_is_the_sign_tests() {
        for (n, skip) in [(5, 0), (6, 0), (9, 1), (15, 3), (20, 5)] {
            assert_eq!(outside(n), skip, "{n} rounds");
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ours: Vec<f64> = (1..=15).map(|n| f64::from(n) * 2.0).collect();
        let theirs: Vec<f64> = (1..=15).map(f64::from).collect();
        let ratio = ratio(&ours, &theirs).unwrap();
        assert_eq!((ratio.median, ratio.low, ratio.high, ratio.rounds), (2.0, 2.0, 2.0, 15));
    }
}
