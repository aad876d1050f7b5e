//! The connections that existed at one moment, processed in slices: those that come between two slices are not
//! included.
//!
//! Invariant: a place whose connection came after that moment is skipped, though the place is the same.

use super::ConnectionTable;
use super::slot::Slot;
use crate::gateway::OwnerId;
use crate::shard::command::{Acknowledge, CloseFrame};

/// See the module.
pub(in crate::shard) struct Cohort {
    slots: Vec<Slot>,
    at: usize,
    /// The generation of the youngest connection that belongs to it.
    youngest: u32,
}

impl Cohort {
    /// The next place, perhaps of a connection that came later or of none.
    pub(crate) fn next(&mut self) -> Option<Slot> {
        let slot = self.slots.get(self.at).copied();
        self.at += 1;
        slot
    }

    /// The last one is the next again: there is more to do with it.
    pub(crate) fn again(&mut self) {
        self.at -= 1;
    }

    /// Returns whether none is left.
    pub(crate) fn is_done(&self) -> bool {
        self.at >= self.slots.len()
    }

    /// The memory of the list, to be used again.
    pub(crate) fn into_slots(self) -> Vec<Slot> {
        self.slots
    }
}

/// All clients connected at one moment.
pub(in crate::shard) struct AllConnected {
    at: usize,
    end: usize,
    youngest: u32,
}

/// The end of a process: requests that wait for its answer, then its channels, as far as they are still to be told.
pub(in crate::shard) struct Closing {
    pub owner: OwnerId,
    pub asked: Cohort,
    pub channels: Cohort,
    /// Why, for the clients.
    pub why: CloseFrame,
}

/// A stop, and the clients still to be told.
pub(in crate::shard) struct Stopping {
    pub everybody: AllConnected,
    pub why: CloseFrame,
    pub within_ms: u64,
    /// Acknowledged when all have been told.
    pub told: Acknowledge,
}

/// The end of a stop, and the clients still to be cut off.
pub(in crate::shard) struct Cutting {
    pub everybody: AllConnected,
}

impl ConnectionTable {
    /// The connections at these places, as of now.
    pub(crate) fn cohort(&self, slots: Vec<Slot>) -> Cohort {
        Cohort { slots, at: 0, youngest: self.next_generation }
    }

    /// Returns whether the connection at a place is there, and of this cohort.
    pub(crate) fn is_of(&self, cohort: &Cohort, slot: Slot) -> bool {
        self.is_older(slot, cohort.youngest)
    }

    /// All clients connected now.
    pub(crate) fn everybody(&self) -> AllConnected {
        AllConnected { at: 0, end: self.connections.capacity(), youngest: self.next_generation }
    }

    /// The next of them that is still there.
    pub(crate) fn next_of(&self, everybody: &mut AllConnected) -> Option<Slot> {
        while everybody.at < everybody.end {
            let slot = Slot::new(everybody.at as u32);
            everybody.at += 1;
            if self.is_older(slot, everybody.youngest) {
                return Some(slot);
            }
        }
        None
    }

    fn is_older(&self, slot: Slot, youngest: u32) -> bool {
        // Generations go round after 2^32 connections: older is what lies within half of that.
        self.get(slot).is_some_and(|connection| youngest.wrapping_sub(connection.generation) < 1 << 31)
    }
}
