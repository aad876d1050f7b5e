//! Whether a figure stays flat over time.

use serde::Serialize;

/// Looks at resident memory.
#[derive(Debug, Default)]
pub(super) struct Trend {
    looks: Vec<(f64, f64)>,
}

/// The straight line through the looks of the measured part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Flatness {
    /// The average, in KiB.
    pub mean_kib: f64,
    /// How much the line rises over the measured part, in KiB.
    pub growth_kib: f64,
}

/// Fewer looks than this tell nothing.
const LOOKS_MIN: usize = 8;

impl Trend {
    /// Notes `bytes` at `seconds`.
    pub(super) fn add(&mut self, seconds: f64, bytes: u64) {
        self.looks.push((seconds, bytes as f64 / 1024.0));
    }

    /// The least-squares line through all but the first third, in which a server may still be filling its caches.
    pub(super) fn flatness(&self) -> Option<Flatness> {
        let looks = &self.looks[self.looks.len() / 3..];
        if looks.len() < LOOKS_MIN {
            return None;
        }
        let count = looks.len() as f64;
        let mean_time = looks.iter().map(|look| look.0).sum::<f64>() / count;
        let mean_kib = looks.iter().map(|look| look.1).sum::<f64>() / count;
        let covariance: f64 = looks.iter().map(|look| (look.0 - mean_time) * (look.1 - mean_kib)).sum();
        let variance: f64 = looks.iter().map(|look| (look.0 - mean_time).powi(2)).sum();
        let slope = if variance > 0.0 { covariance / variance } else { 0.0 };
        let length = looks.last()?.0 - looks.first()?.0;
        Some(Flatness { mean_kib, growth_kib: slope * length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(kib: impl Fn(usize) -> u64) -> Option<Flatness> {
        let mut trend = Trend::default();
        for step in 0..30 {
            trend.add(step as f64, kib(step) * 1024);
        }
        trend.flatness()
    }

    #[test]
    fn growth_is_seen_and_the_first_third_is_not() {
        let rising = trend(|step| 1000 + 10 * step as u64).unwrap();
        assert!((rising.growth_kib - 190.0).abs() < 0.01, "{rising:?}");
        let filled = trend(|step| if step < 10 { 100 * step as u64 } else { 1000 }).unwrap();
        assert!(filled.growth_kib.abs() < 0.01 && filled.mean_kib == 1000.0, "{filled:?}");
        assert!(Trend::default().flatness().is_none());
    }
}
