//! A limit on orders of one client that hold up the hub's thread: it waits a turn of the client's shard for each
//! subscription, and checks a signature for each renewal, while all others wait for it.
//!
//! Invariant: a client causes no more of such work than [`FULL`] at once and [`PER_S`] in each later second; refused
//! orders cost nothing of it.

use super::grammar::HubOrder;
use std::time::{Duration, Instant};

/// A client's initial allowance, and its allowance after a silence: all topics that a channel may have, in both forms.
const FULL: u32 = 256;

/// The allowance regained in a second.
const PER_S: u32 = 64;

/// The cost of a renewal; a subscription costs 1. Verifying the slowest of signatures and comparing the channel's
/// topics takes some hundred microseconds.
const OF_RENEWAL: u32 = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct SlowOrderLimit {
    left: u32,
    /// When what had come back was last counted.
    counted: Instant,
}

impl SlowOrderLimit {
    /// That of a client that has ordered nothing.
    pub(super) fn new(now: Instant) -> Self {
        Self { left: FULL, counted: now }
    }

    /// Returns whether this order is executed now.
    pub(super) fn is_left_for(&mut self, order: &HubOrder, now: Instant) -> bool {
        match order {
            HubOrder::Subscribe { .. } => self.is_left(1, now),
            HubOrder::Renew { .. } => self.is_left_for_renewal(now),
            HubOrder::Unsubscribe { .. } | HubOrder::Publish { .. } => true,
        }
    }

    /// Returns whether a renewal, by an order or by coming back with another token, is executed now.
    pub(super) fn is_left_for_renewal(&mut self, now: Instant) -> bool {
        self.is_left(OF_RENEWAL, now)
    }

    fn is_left(&mut self, takes: u32, now: Instant) -> bool {
        let one = Duration::from_secs(1) / PER_S;
        let back = now.saturating_duration_since(self.counted).as_nanos() / one.as_nanos();
        match u32::try_from(back).ok().filter(|back| self.left + back.min(&FULL) < FULL) {
            Some(back) => (self.left, self.counted) = (self.left + back, self.counted + one * back),
            None => (self.left, self.counted) = (FULL, now),
        }
        let is_left = self.left >= takes;
        self.left -= if is_left { takes } else { 0 };
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewal() -> HubOrder {
        HubOrder::Renew { token: String::new() }
    }

    fn subscription() -> HubOrder {
        HubOrder::Subscribe { topic: "x".into(), envelope: false }
    }

    #[test]
    fn a_flood_is_executed_as_often_as_a_second_allows() {
        let begin = Instant::now();
        let mut limit = SlowOrderLimit::new(begin);
        let executed = (0..10_000).filter(|_| limit.is_left_for(&renewal(), begin)).count();
        assert_eq!(executed as u32, FULL / OF_RENEWAL);
        assert!(!limit.is_left_for(&subscription(), begin));
        assert!(limit.is_left_for(&HubOrder::Unsubscribe { topic: "x".into() }, begin), "which takes nothing");
        // Ten seconds of a flood, an order each millisecond.
        let second = |ms| begin + Duration::from_millis(ms);
        let executed = (1..=10_000).filter(|&ms| limit.is_left_for(&renewal(), second(ms))).count();
        assert_eq!(executed as u32, 10 * PER_S / OF_RENEWAL);
        // A silent client regains its whole allowance, and no more.
        let later = second(100_000);
        let executed = (0..10_000).filter(|_| limit.is_left_for(&subscription(), later)).count();
        assert_eq!(executed as u32, FULL);
    }
}
