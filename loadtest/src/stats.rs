//! Latency percentiles, medians and spreads.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Latencies up to this long are told apart; longer ones count as this.
const LATENCY_MAX_NS: u64 = 600 * 1_000_000_000;

/// A record of latencies, three significant digits.
#[derive(Debug, Clone)]
pub(crate) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are constants and valid"))
    }
}

impl Latency {
    /// Records one.
    pub(crate) fn record(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns.max(1));
    }

    /// Everything recorded, as pairs of value and count, to hand to another process.
    pub(crate) fn pairs(&self) -> Vec<(u64, u64)> {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    /// Adds what another process recorded.
    pub(crate) fn add_pairs(&mut self, pairs: &[(u64, u64)]) {
        for &(value, count) in pairs {
            self.0.saturating_record_n(value.max(1), count);
        }
    }

    /// The percentiles, if anything was recorded.
    pub(crate) fn summary(&self) -> Option<LatencySummary> {
        if self.0.is_empty() {
            return None;
        }
        let at = |quantile: f64| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        Some(LatencySummary {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max() as f64 / 1000.0,
            mean_us: self.0.mean() / 1000.0,
        })
    }
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct LatencySummary {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub mean_us: f64,
}

/// The middle and the ends of several runs of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Half of the runs are below.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`, if there are any. NaN counts as largest.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_back_within_three_digits_and_survive_the_pairs() {
        let mut latency = Latency::default();
        assert_eq!(latency.summary(), None);
        for step in 1..=1000u64 {
            latency.record(step * 1000);
        }
        let summary = latency.summary().unwrap();
        assert!((summary.p50_us - 500.0).abs() < 1.0, "{summary:?}");
        assert!((summary.p99_us - 990.0).abs() < 2.0, "{summary:?}");
        assert!((summary.max_us - 1000.0).abs() < 2.0, "{summary:?}");
        let mut copy = Latency::default();
        copy.add_pairs(&latency.pairs());
        let copied = copy.summary().unwrap();
        assert!((copied.p50_us - summary.p50_us).abs() < 1.0 && (copied.mean_us - summary.mean_us).abs() < 1.0);
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }
}
