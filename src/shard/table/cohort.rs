//! Connections that were there at one moment, gone through in slices: what comes between two slices is not of them.
//!
//! Invariant: a place whose connection came after that moment is passed over, though the place is the same.

use super::Table;
use super::slot::Slot;
use crate::shard::command::CloseFrame;

/// See the module.
pub(in crate::shard) struct Cohort {
    slots: Vec<Slot>,
    at: usize,
    /// The generation of the youngest connection that belongs to it.
    youngest: u32,
}

impl Cohort {
    /// The next place, perhaps of a connection that came later or of none.
    pub fn next(&mut self) -> Option<Slot> {
        let slot = self.slots.get(self.at).copied();
        self.at += 1;
        slot
    }

    /// Whether none is left.
    pub fn is_done(&self) -> bool {
        self.at >= self.slots.len()
    }

    /// The memory of the list, to be used again.
    pub fn into_slots(self) -> Vec<Slot> {
        self.slots
    }
}

/// The channels of a process that is gone, as far as they are to be closed yet.
pub(in crate::shard) struct Closing {
    pub cohort: Cohort,
    /// Why, for the clients.
    pub why: CloseFrame,
}

impl Table {
    /// The connections at these places, as of now.
    pub fn cohort(&self, slots: Vec<Slot>) -> Cohort {
        Cohort { slots, at: 0, youngest: self.next_generation }
    }

    /// Whether the connection at a place is there, and of this cohort.
    pub fn is_of(&self, cohort: &Cohort, slot: Slot) -> bool {
        // Generations go round after 2^32 connections: older is what lies within half of that.
        self.get(slot).is_some_and(|connection| cohort.youngest.wrapping_sub(connection.generation) < 1 << 31)
    }
}
