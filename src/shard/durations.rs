//! Times that a shard records for operators: the length of its turns, and how long pushes waited for them.

use serde::{Deserialize, Serialize};

/// How long something took each time, in buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// How often it took at most [`bound_us`](Self::bound_us) and more than the bound before it.
    pub counts: [u64; Self::BUCKETS],
    /// All together, in microseconds.
    pub sum_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

impl Durations {
    /// The last one has no bound.
    pub const BUCKETS: usize = 14;

    /// The bound of a bucket: powers of two from 16 µs to 64 ms; none of the last.
    pub fn bound_us(bucket: usize) -> Option<u64> {
        (bucket + 1 < Self::BUCKETS).then(|| 16 << bucket)
    }

    /// It took `us` once more.
    pub fn add(&mut self, us: u64) {
        let bucket = (us.max(1).next_power_of_two().ilog2() as usize).saturating_sub(4).min(Self::BUCKETS - 1);
        self.counts[bucket] += 1;
        self.sum_us += us;
        self.max_us = self.max_us.max(us);
    }

    /// How often it was timed.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Durations on a shard. The driver, which has a clock, measures them.
#[derive(Default)]
pub struct Timings {
    turns: Durations,
    push_delays: Durations,
    /// When a push of this turn was asked for that is to be timed.
    probe_us: Option<u64>,
}

impl Timings {
    /// The last turn took so much time on its thread's processor.
    pub fn note_turn(&mut self, cpu_ns: u64) {
        self.turns.add(cpu_ns.div_ceil(1000));
    }

    /// A push of this turn, asked for at `asked_us`, is to be timed. Of several the oldest is: it waited the longest.
    pub fn probe(&mut self, asked_us: u64) {
        self.probe_us.get_or_insert(asked_us);
    }

    /// Times the push that is to be timed, now that the kernel has been offered it; `passed_us` tells how long ago a
    /// time was.
    pub fn note_push_delay(&mut self, passed_us: impl FnOnce(u64) -> u64) {
        if let Some(asked_us) = self.probe_us.take() {
            self.push_delays.add(passed_us(asked_us));
        }
    }

    /// How long turns were, and what pushes took.
    pub fn durations(&self) -> (Durations, Durations) {
        (self.turns, self.push_delays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_a_time_is_counted_in_the_first_bucket_that_holds_it() {
        let mut durations = Durations::default();
        for (us, bucket) in [(0, 0), (16, 0), (17, 1), (2_000, 7), (65_536, 12), (65_537, 13)] {
            let before = durations.counts[bucket];
            durations.add(us);
            assert_eq!(durations.counts[bucket], before + 1, "{us}");
            assert!(Durations::bound_us(bucket).is_none_or(|bound_us| us <= bound_us), "{us}");
        }
        assert_eq!((durations.count(), durations.max_us), (6, 65_537));
    }

    #[test]
    fn the_oldest_probe_of_a_turn_is_timed_once() {
        let mut timings = Timings::default();
        timings.note_push_delay(|_| panic!("there is none"));
        timings.probe(100);
        timings.probe(700);
        timings.note_push_delay(|asked_us| 1000 - asked_us);
        timings.note_push_delay(|_| panic!("it has been timed"));
        assert_eq!((timings.durations().1.count(), timings.durations().1.max_us), (1, 900));
    }
}
