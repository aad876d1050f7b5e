//! Frames whose outcome was asked for and that wait for their first send, by connection.
//!
//! Invariant: what they take of memory is known without a look at them: a broadcast makes one for each of its channels.

use crate::admission::table_bytes;
use crate::shard::outcome::OutcomePart;
use crate::shard::table::slot::Slot;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::rc::Rc;

/// Room for so many connections is kept when there are none.
const KEPT_PLACES: usize = 1024;

/// See the module.
#[derive(Default)]
pub(super) struct Watches {
    of: FxHashMap<Slot, OfConnection>,
    /// The places of those connections that have more than one.
    spilled: usize,
}

/// One is usual.
type OfConnection = SmallVec<[Watch; 1]>;

/// One such frame.
pub(super) struct Watch {
    /// Where the frame ends, counted from the front of the connection's queue.
    pub end: usize,
    /// Where its outcome is counted. The last to let go of it answers.
    pub part: SharedPart,
}

/// A part of a ticket, shared by the frames of one push on this shard.
pub(super) type SharedPart = Rc<RefCell<Box<OutcomePart>>>;

impl Watches {
    pub(super) fn add(&mut self, slot: Slot, watch: Watch) {
        let of = self.of.entry(slot).or_default();
        let before = spilled(of);
        of.push(watch);
        self.spilled += spilled(of) - before;
    }

    /// Forgets those of a connection that `waits` says have nothing to wait for. Returns whether none is left.
    pub(super) fn retain(&mut self, slot: Slot, waits: impl FnMut(&mut Watch) -> bool) -> bool {
        let Some(of) = self.of.get_mut(&slot) else { return true };
        of.retain(waits);
        let is_empty = of.is_empty();
        if is_empty {
            drop(self.take(slot));
        }
        is_empty
    }

    /// Takes all of a connection.
    pub(super) fn take(&mut self, slot: Slot) -> impl Iterator<Item = Watch> + use<> {
        let of = self.of.remove(&slot).unwrap_or_default();
        self.spilled -= spilled(&of);
        if self.of.is_empty() && self.of.capacity() > KEPT_PLACES {
            self.of = FxHashMap::default();
        }
        of.into_iter()
    }

    /// The memory that they take. A table in which there are none is kept for the next.
    pub(super) fn heap_bytes(&self) -> usize {
        if self.of.is_empty() {
            return 0;
        }
        table_bytes::<Slot, OfConnection>(self.of.capacity()) + self.spilled * size_of::<Watch>()
    }
}

fn spilled(of: &OfConnection) -> usize {
    if of.spilled() { of.capacity() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::outcome::OutcomeCollector;

    #[test]
    fn what_they_take_is_counted_and_comes_back() {
        let part: SharedPart = Rc::new(RefCell::new(Box::new(
            OutcomeCollector::split(1, drop).into_iter().next().expect("there is one part"),
        )));
        let mut watches = Watches::default();
        for end in 0..100 {
            (0..2000).for_each(|slot| watches.add(Slot::new(slot), Watch { end, part: part.clone() }));
        }
        let bytes = watches.heap_bytes();
        assert!((2000 * 100 * size_of::<Watch>()..2000 * 200 * size_of::<Watch>()).contains(&bytes), "{bytes}");
        for slot in 0..1000 {
            assert!(!watches.retain(Slot::new(slot), |watch| watch.end > 50));
            assert!(watches.retain(Slot::new(slot), |_| false));
        }
        assert_eq!(watches.take(Slot::new(1000)).count(), 100);
        assert!(watches.heap_bytes() < bytes * 3 / 5);
        (0..2000).for_each(|slot| drop(watches.take(Slot::new(slot))));
        assert_eq!((watches.heap_bytes(), Rc::strong_count(&part)), (0, 1));
    }
}
