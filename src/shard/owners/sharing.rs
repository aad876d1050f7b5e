//! The part that each client may add to its process' queue while that is high.
//!
//! A queue is one list, and events in it are ahead of all later ones. A client that sends as fast as it is read would
//! fill it, and every message of the process' other clients would wait behind all of that. So from a height on
//! ([`QueueLevel::High`]) and until it is low again, which is a round, each client may add its share and then waits for
//! the next round. A client that sends less than that never waits for room, until the queue is full.
//!
//! Invariants: a round ends only when the queue is low; the events ahead of a message are bounded by the height and a
//! share of each client that sends, whatever each of them sends. While the process keeps up, nothing is counted.

use crate::queue::events::{QueueLevel, QueueLimits};

/// The units that a client has added in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::shard) struct SharedRound {
    round: u16,
    units: u16,
}

/// See the module. Of one process on one shard.
#[derive(Debug, Default)]
pub(super) struct QueueSharing {
    round: u16,
    /// There is a round.
    is_open: bool,
    /// Clients wait that have had their share.
    pub is_waited_for: bool,
    /// How many waited in the round before.
    clients: usize,
}

impl QueueSharing {
    /// The queue is low.
    pub(super) fn close(&mut self) {
        if self.is_open {
            (self.is_open, self.clients) = (false, 0);
            self.round = self.round.wrapping_add(1);
        }
    }

    /// The queue is low, and so many clients go on that waited for that.
    pub(super) fn begin_next(&mut self, clients: usize) {
        self.close();
        (self.is_waited_for, self.clients) = (false, clients);
    }

    /// Returns whether a client that has added `had` may add to a queue that is not low, where `waiting` clients wait.
    pub(super) fn may_add(&mut self, level: QueueLevel, limits: QueueLimits, had: SharedRound, waiting: usize) -> bool {
        self.is_open |= level == QueueLevel::High;
        if !self.is_open {
            return true;
        }
        let units = if had.round == self.round { usize::from(had.units) } else { 0 };
        units < limits.share(waiting.max(self.clients))
    }

    /// Returns whether there is a round, and what clients add is to be counted.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Counts a message of a client in this round.
    pub(super) fn count(&self, limits: QueueLimits, had: &mut SharedRound, message_bytes: usize) {
        let before = if had.round == self.round { had.units } else { 0 };
        let units = u16::try_from(limits.units(message_bytes)).unwrap_or(u16::MAX);
        *had = SharedRound { round: self.round, units: before.saturating_add(units) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { messages_max: 64 * 1024, bytes_max: 16 * 1024 * 1024 };

    /// How many messages a client may add in this round.
    fn adds(sharing: &mut QueueSharing, had: &mut SharedRound, level: QueueLevel, bytes: usize) -> usize {
        let may_add = |sharing: &mut QueueSharing, had: SharedRound| sharing.may_add(level, LIMITS, had, 0);
        let mut added = 0;
        while added < 10_000 && may_add(sharing, *had) {
            if sharing.is_open() {
                sharing.count(LIMITS, had, bytes);
            }
            added += 1;
        }
        added
    }

    #[test]
    fn each_client_has_its_share_of_a_round_and_a_new_one_in_the_next() {
        let mut sharing = QueueSharing::default();
        let [mut small, mut large, mut other] = [SharedRound::default(); 3];
        assert_eq!(adds(&mut sharing, &mut small, QueueLevel::Middle, 0), 10_000, "it was not high");
        assert_eq!(adds(&mut sharing, &mut small, QueueLevel::High, 0), 256);
        assert_eq!(adds(&mut sharing, &mut small, QueueLevel::Middle, 0), 0, "the round goes on");
        assert_eq!(adds(&mut sharing, &mut large, QueueLevel::High, 60 * 1024), 2, "bytes count");
        assert_eq!(adds(&mut sharing, &mut other, QueueLevel::High, 0), 256);
        sharing.begin_next(1000);
        assert_eq!(adds(&mut sharing, &mut small, QueueLevel::High, 0), 16, "many share it");
        sharing.close();
        assert_eq!(adds(&mut sharing, &mut small, QueueLevel::High, 0), 256, "nobody waited");
    }
}
