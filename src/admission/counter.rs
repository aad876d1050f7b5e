//! Counters that all shards share.
//!
//! Invariant: a counter never goes below 0, nor above the limit with which it is counted up.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many connections, or subscriptions, one process has on all shards.
#[derive(Debug, Default)]
pub struct ProcessCount(AtomicUsize);

impl ProcessCount {
    /// How many there are now.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more, unless there are `max` already. Returns whether it is counted.
    pub(super) fn enter(&self, max: usize) -> bool {
        count_up(&self.0, max).is_some()
    }

    /// One that was counted has ended.
    pub fn leave(&self) {
        count_down(&self.0);
    }
}

/// Adds one unless there are `max` already.
pub(super) fn count_up(counter: &AtomicUsize, max: usize) -> Option<usize> {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < max).then_some(count + 1)).ok()
}

/// Takes one off.
pub(super) fn count_down(counter: &AtomicUsize) {
    let before = counter.fetch_sub(1, Ordering::Relaxed);
    assert!(before > 0, "a leaver was counted");
}
