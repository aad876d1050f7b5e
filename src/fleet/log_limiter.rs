//! Lines of the log that would come at the rate of messages: one in a while, with how many were left out.

/// The least time between two log lines of one kind; others are counted instead.
const LOG_INTERVAL_MS: u64 = 5000;

/// The time of the last log line of each kind, and the count since.
#[derive(Default)]
pub(super) struct LogLimiter([(Option<u64>, u64); 3]);

impl LogLimiter {
    /// Whether to log something now, and how often that was not done before.
    pub(super) fn may(&mut self, what: usize, now_ms: u64) -> Option<u64> {
        let (last_ms, skipped) = &mut self.0[what];
        if last_ms.is_some_and(|last_ms| last_ms + LOG_INTERVAL_MS > now_ms) {
            *skipped += 1;
            return None;
        }
        *last_ms = Some(now_ms);
        Some(std::mem::take(skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_again_and_again_is_counted() {
        let mut limiter = LogLimiter::default();
        assert_eq!(
            [limiter.may(0, 0), limiter.may(0, 1), limiter.may(1, 1), limiter.may(0, 2)],
            [Some(0), None, Some(0), None]
        );
        assert_eq!(limiter.may(0, LOG_INTERVAL_MS), Some(2));
    }
}
