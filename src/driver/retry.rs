//! How long to wait before another attempt: longer with each failure, up to a limit, and different for each waiter.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Pauses between attempts: the first of `least`, each twice as long as the one before, none longer than `most`;
/// randomly between half of that and all of it, so that peers that failed together do not retry together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPauses {
    /// The whole of the first pause.
    pub least: Duration,
    /// The whole of the longest.
    pub most: Duration,
}

impl RetryPauses {
    /// The pause after so many failures.
    pub fn after(self, failures: u32) -> Duration {
        // Each has a key of its own; guessing it would be of no use.
        self.drawn(failures, RandomState::new().hash_one(failures))
    }

    fn drawn(self, failures: u32, lot: u64) -> Duration {
        let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let half = self.least.saturating_mul(doubled).min(self.most) / 2;
        half + Duration::from_nanos(lot % (half.as_nanos() as u64 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_differ() {
        let pauses = RetryPauses { least: Duration::from_millis(100), most: Duration::from_secs(2) };
        for failures in 0..100 {
            let (shortest, longest) = (pauses.drawn(failures, 0), pauses.drawn(failures, u64::MAX));
            assert!(shortest <= longest && shortest >= pauses.least / 2 && longest <= pauses.most, "{failures}");
            let drawn = pauses.after(failures);
            assert!(drawn >= shortest && drawn <= pauses.most, "{drawn:?}");
        }
        assert_eq!(pauses.drawn(1, 0), Duration::from_millis(50));
        assert_eq!(pauses.drawn(2, 0), Duration::from_millis(100));
        assert_eq!((pauses.drawn(9, 0), pauses.drawn(u32::MAX, 0)), (pauses.most / 2, pauses.most / 2));
        let lots: std::collections::HashSet<_> = (0..20).map(|_| pauses.after(8)).collect();
        assert!(lots.len() > 5);
    }
}
