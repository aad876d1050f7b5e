//! The order in which connections are read: those that have just become readable and have no debt come first, in turn
//! with the others.
//!
//! A client that sends now and then should not wait for a round of hundreds that always have more to send. So a
//! connection whose socket was empty is read before those that are read over and over. While there are both, every
//! second read is of the others, so that neither can starve them.
//!
//! Invariant: order is kept within each of the two. The caller knows debts and the cost of reads.

use super::table::connection::ConnectionToken;
use std::collections::VecDeque;

/// See the module.
#[derive(Default)]
pub(super) struct ReadQueue {
    fresh: VecDeque<ConnectionToken>,
    round: VecDeque<ConnectionToken>,
    /// The last one was a fresh one.
    took_fresh: bool,
}

impl ReadQueue {
    /// A connection whose socket was empty, and that owes nothing.
    pub(super) fn push_fresh(&mut self, token: ConnectionToken) {
        self.fresh.push_back(token);
    }

    /// Any other, behind all that are there.
    pub(super) fn push(&mut self, token: ConnectionToken) {
        self.round.push_back(token);
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<ConnectionToken> {
        let is_fresh = self.round.is_empty() || (!self.took_fresh && !self.fresh.is_empty());
        self.took_fresh = is_fresh;
        if is_fresh { self.fresh.pop_front() } else { self.round.pop_front() }
    }

    /// Returns whether no connection is to be read.
    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.round.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(slot: u32) -> ConnectionToken {
        ConnectionToken { slot, generation: 1 }
    }

    fn take(queue: &mut ReadQueue, count: usize) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).take(count).map(|token| token.slot).collect()
    }

    #[test]
    fn who_is_fresh_does_not_wait_for_a_round_of_the_others() {
        let mut queue = ReadQueue::default();
        (0..300).for_each(|slot| queue.push(token(slot)));
        queue.push_fresh(token(1000));
        let first = take(&mut queue, 2);
        assert!(first.contains(&1000), "{first:?}");
    }

    #[test]
    fn neither_starves_the_other_and_each_keeps_its_order() {
        let mut queue = ReadQueue::default();
        (0..4).for_each(|slot| queue.push(token(slot)));
        (10..16).for_each(|slot| queue.push_fresh(token(slot)));
        assert_eq!(take(&mut queue, 7), [10, 0, 11, 1, 12, 2, 13]);
        // Fresh ones that come without end.
        queue.push_fresh(token(16));
        assert_eq!(take(&mut queue, 9), [3, 14, 15, 16]);
        assert!(queue.is_empty());
    }
}
