//! The lists of connections that have something to send.

use crate::shard::flush::ShortSend;
use crate::shard::table::connection::Flag;
use crate::shard::table::slot::Slot;
use std::collections::VecDeque;

/// Connections that have something to send.
#[derive(Default)]
pub(super) struct SendQueues {
    pub urgent: Urgent,
    pub bulk: VecDeque<Bulk>,
    /// How many were taken off `bulk`.
    pub offered: u64,
    pub short: Vec<ShortSend>,
}

impl SendQueues {
    /// The connection that is to be offered something next, and the list in which it stood.
    #[inline]
    pub(super) fn pop_front(&mut self) -> Option<(Slot, Flag)> {
        if !self.urgent.is_empty()
            && let Some(slot) = self.urgent.pop_front()
        {
            return Some((slot, Flag::Urgent));
        }
        let bulk = self.bulk.pop_front()?;
        self.offered += 1;
        Some((bulk.slot, Flag::Bulk))
    }
}

/// Connections with traffic of their own, in lanes by owner: owners take turns at being sent for, so that one that
/// pushes to thousands of channels does not delay one that pushes to one.
///
/// Invariant: a lane is the front one or stands in the round, once, exactly while a connection is in it.
#[derive(Default)]
pub(super) struct Urgent {
    /// The lane that is being served, and how many of it still are before the next one's turn.
    front: VecDeque<Slot>,
    front_lane: u32,
    left: usize,
    /// The others, by number.
    lanes: Vec<VecDeque<Slot>>,
    round: VecDeque<u32>,
}

impl Urgent {
    /// So many of one lane are taken before the next one's turn.
    const TURN: usize = 16;

    /// Puts a connection behind the others of its lane. Lanes are dense numbers.
    #[inline]
    pub(super) fn push_back(&mut self, lane: u32, slot: Slot) {
        if lane == self.front_lane {
            self.front.push_back(slot);
        } else {
            self.push_aside(lane, slot);
        }
    }

    fn push_aside(&mut self, lane: u32, slot: Slot) {
        if self.is_empty() {
            (self.front_lane, self.left) = (lane, Self::TURN);
            return self.front.push_back(slot);
        }
        let aside = self.lane(lane);
        aside.push_back(slot);
        if aside.len() == 1 {
            self.round.push_back(lane);
        }
    }

    fn lane(&mut self, lane: u32) -> &mut VecDeque<Slot> {
        let place = lane as usize;
        if self.lanes.len() <= place {
            self.lanes.resize_with(place + 1, VecDeque::new);
        }
        &mut self.lanes[place]
    }

    /// The connection whose turn it is.
    #[inline]
    pub(super) fn pop_front(&mut self) -> Option<Slot> {
        if self.left > 0
            && let Some(slot) = self.front.pop_front()
        {
            self.left -= 1;
            return Some(slot);
        }
        self.pop_of_next()
    }

    /// The turn of the front lane is over, or it is empty.
    fn pop_of_next(&mut self) -> Option<Slot> {
        if let Some(next) = self.round.pop_front() {
            let next_front = std::mem::take(self.lane(next));
            let before = std::mem::replace(&mut self.front, next_front);
            let before_lane = std::mem::replace(&mut self.front_lane, next);
            if !before.is_empty() {
                *self.lane(before_lane) = before;
                self.round.push_back(before_lane);
            }
        }
        let slot = self.front.pop_front()?;
        self.left = Self::TURN - 1;
        Some(slot)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.front.len() + self.round.iter().map(|&lane| self.lanes[lane as usize].len()).sum::<usize>()
    }

    /// Returns whether no connection waits.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.front.is_empty() && self.round.is_empty()
    }
}

/// A connection that waits for a broadcast.
pub(super) struct Bulk {
    pub slot: Slot,
    /// No range of this connection, or of those behind it, lies before this segment.
    pub segment: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_has_one_waits_for_a_turn_of_the_others_and_no_more() {
        let mut urgent = Urgent::default();
        (0..1000).for_each(|slot| urgent.push_back(1, Slot::new(slot)));
        urgent.push_back(7, Slot::new(5000));
        let before = std::iter::from_fn(|| urgent.pop_front()).take_while(|slot| slot.get() != 5000).count();
        assert_eq!(before, Urgent::TURN);
        assert_eq!(urgent.len(), 1000 - Urgent::TURN);
    }

    proptest! {
        #[test]
        fn each_lane_keeps_its_order_and_nobody_is_lost(
            steps in proptest::collection::vec((any::<bool>(), 0..5u32), 0..400),
        ) {
            let mut urgent = Urgent::default();
            let mut twin = vec![VecDeque::new(); 5];
            for (number, (pops, lane)) in steps.into_iter().enumerate() {
                if !pops {
                    let slot = Slot::new(number as u32 * 5 + lane);
                    urgent.push_back(lane, slot);
                    twin[lane as usize].push_back(slot);
                } else if let Some(slot) = urgent.pop_front() {
                    prop_assert_eq!(twin[slot.get() as usize % 5].pop_front(), Some(slot));
                }
                prop_assert_eq!(urgent.len(), twin.iter().map(VecDeque::len).sum::<usize>());
                let lanes = twin.iter().filter(|lane| !lane.is_empty()).count();
                prop_assert_eq!(urgent.round.len() + usize::from(!urgent.front.is_empty()), lanes);
            }
        }
    }
}
