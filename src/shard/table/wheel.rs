//! Coarse deadlines for many connections: each connection stands once in a ring of ticks.
//!
//! A deadline that moves (every message moves some) is not moved here: when its old tick comes, the shard checks the
//! connection and, if it is not due, puts it back for later. So a message costs nothing here.

use crate::shard::table::slot::Slot;

/// The length of a tick. Deadlines are seconds; a tenth of one is near enough.
pub const TICK_MS: u64 = 100;

/// The ring's length: deadlines further away than its 51.2 s are looked at once on the way.
const SLOTS: usize = 512;

/// One connection, of one generation, so that an entry of a dead one is not mistaken for its successor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WheelEntry {
    /// Its place in the shard's table.
    pub slot: Slot,
    /// The generation of that place.
    pub generation: u32,
}

/// See the module.
pub(crate) struct Wheel {
    slots: Vec<Vec<WheelEntry>>,
    /// The tick up to which (not including it) everything has been taken out.
    tick: u64,
}

impl Wheel {
    /// An empty wheel whose time begins now.
    pub(crate) fn new(now_ms: u64) -> Self {
        Self { slots: vec![Vec::new(); SLOTS], tick: now_ms / TICK_MS }
    }

    /// Looks at `entry` again at `deadline_ms` or a little later; at the latest after one turn of the ring. Returns the
    /// tick at which it will come out.
    pub(crate) fn insert(&mut self, entry: WheelEntry, deadline_ms: u64) -> u64 {
        let due = deadline_ms.div_ceil(TICK_MS).clamp(self.tick, self.tick + SLOTS as u64 - 1);
        self.slots[due as usize % SLOTS].push(entry);
        due
    }

    /// Takes out every entry whose tick has come.
    pub(crate) fn take_due(&mut self, now_ms: u64, due: &mut impl Extend<WheelEntry>) {
        let now = now_ms / TICK_MS;
        // After a jump of more than a turn (a stopped machine) every slot is due once.
        let first = self.tick.max((now + 1).saturating_sub(SLOTS as u64));
        for tick in first..=now {
            due.extend(self.slots[tick as usize % SLOTS].drain(..));
        }
        self.tick = self.tick.max(now + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(wheel: &mut Wheel, now_ms: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.take_due(now_ms, &mut due);
        due.iter().map(|entry| entry.slot.get()).collect()
    }

    #[test]
    fn entries_come_at_their_tick_and_far_ones_at_the_end_of_a_turn() {
        let mut wheel = Wheel::new(1_000);
        for (slot, deadline) in [(1, 1_500), (2, 1_501), (3, 10_000_000), (4, 0)] {
            wheel.insert(WheelEntry { slot: Slot::new(slot), generation: 0 }, deadline);
        }
        assert_eq!(take(&mut wheel, 1_100), [4]);
        assert_eq!(take(&mut wheel, 1_499), Vec::<u32>::new());
        assert_eq!(take(&mut wheel, 1_500), [1]);
        assert_eq!(take(&mut wheel, 1_600), [2]);
        assert_eq!(take(&mut wheel, 60_000), [3]);
    }

    #[test]
    fn a_jump_of_the_clock_takes_everything_out_once() {
        let mut wheel = Wheel::new(0);
        for slot in 0..100 {
            wheel.insert(WheelEntry { slot: Slot::new(slot), generation: 0 }, u64::from(slot) * 500);
        }
        assert_eq!(take(&mut wheel, 100_000_000).len(), 100);
        assert_eq!(take(&mut wheel, 100_000_000).len(), 0);
        wheel.insert(WheelEntry { slot: Slot::new(1), generation: 0 }, 0);
        assert_eq!(take(&mut wheel, 100_000_100), [1]);
    }
}
