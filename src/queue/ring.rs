//! A bounded queue of many producers and one consumer, neither of which ever waits for another thread.
//!
//! A producer may be stopped by the scheduler at any point, also between claiming a place and filling it. Queues of
//! general use let the consumer spin until it goes on, which is a time slice or more where both run on one CPU: a shard
//! would stand still for it, and all its clients with it. Here a place that is claimed and not filled is the end of
//! what there is.
//!
//! Invariants: values come out in the order in which their places were claimed, so those of one producer in the order
//! of its calls; a place is filled by the one producer that has claimed it and emptied by the consumer, so its lock is
//! never contended: it is there to let two threads have the value in turn. A producer that finds its place filled has
//! met a full queue.
//!
//! The consumer that finds nothing may go to sleep: whoever fills a place wakes it afterwards.

use super::sync::{AtomicUsize, Mutex, Ordering};
use std::sync::{Arc, PoisonError};

/// See the module.
pub(super) struct Ring<T> {
    places: Box<[RingPlace<T>]>,
    /// The number of the next place to be claimed. Numbers go on for ever; the place is the remainder.
    claimed: OwnLine<AtomicUsize>,
}

/// What producers write does not share a cache line with what the consumer reads.
#[repr(align(128))]
struct OwnLine<T>(T);

struct RingPlace<T> {
    /// [`empty`] or [`filled`].
    state: AtomicUsize,
    value: Mutex<Option<T>>,
}

/// The state of a place that is to be claimed under this number.
fn empty(number: usize) -> usize {
    2 * number
}

/// The state of a place that was claimed under this number, and has its value.
fn filled(number: usize) -> usize {
    2 * number + 1
}

impl<T> RingPlace<T> {
    fn replace(&self, value: Option<T>) -> Option<T> {
        // No code of others runs under the lock.
        std::mem::replace(&mut *self.value.lock().unwrap_or_else(PoisonError::into_inner), value)
    }
}

/// A ring with so many places, and its only consumer.
pub(super) fn ring<T>(places: usize) -> (Arc<Ring<T>>, Consumer<T>) {
    assert!(places > 0);
    let places = (0..places).map(|at| RingPlace { state: AtomicUsize::new(empty(at)), value: Mutex::new(None) });
    let ring = Arc::new(Ring { places: places.collect(), claimed: OwnLine(AtomicUsize::new(0)) });
    (ring.clone(), Consumer { ring, next: 0 })
}

impl<T> Ring<T> {
    fn place(&self, number: usize) -> &RingPlace<T> {
        &self.places[number % self.places.len()]
    }

    /// Puts `value` behind all others, or gives it back: there is no empty place.
    pub(super) fn try_push(&self, value: T) -> Result<(), T> {
        match self.claim() {
            Some(number) => {
                self.fill(number, value);
                Ok(())
            }
            None => Err(value),
        }
    }

    /// Claims the next place, which has to be [filled](Self::fill): nothing behind it is taken out before.
    pub(super) fn claim(&self) -> Option<usize> {
        let mut number = self.claimed.0.load(Ordering::Acquire);
        loop {
            let place = self.place(number);
            let state = place.state.load(Ordering::Acquire);
            if state == empty(number) {
                // Whoever claims a place knows all that those before it knew: that others were emptied, above all.
                match self.claimed.0.compare_exchange_weak(number, number + 1, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Some(number),
                    Err(now) => number = now,
                }
            } else if state < empty(number) {
                return None;
            } else {
                number = self.claimed.0.load(Ordering::Acquire);
            }
        }
    }

    /// Fills the place that was claimed under this number.
    pub(super) fn fill(&self, number: usize, value: T) {
        let place = self.place(number);
        place.replace(Some(value));
        place.state.store(filled(number), Ordering::Release);
    }
}

/// The side that takes values out.
pub(super) struct Consumer<T> {
    ring: Arc<Ring<T>>,
    /// The number of the oldest place that is claimed or to be claimed.
    next: usize,
}

impl<T> Consumer<T> {
    /// Takes the oldest value out. `None`: there is none, or it is still on its way, and with it all behind it.
    pub(super) fn pop(&mut self) -> Option<T> {
        let place = self.ring.place(self.next);
        if place.state.load(Ordering::Acquire) != filled(self.next) {
            return None;
        }
        let value = place.replace(None);
        place.state.store(empty(self.next + self.ring.places.len()), Ordering::Release);
        self.next += 1;
        value
    }

    /// Returns whether [`pop`](Self::pop) would find nothing now.
    pub(super) fn is_empty(&self) -> bool {
        self.ring.place(self.next).state.load(Ordering::Acquire) != filled(self.next)
    }

    /// How many places are claimed; not all of them may be filled yet.
    pub(super) fn len(&self) -> usize {
        self.ring.claimed.0.load(Ordering::Relaxed).saturating_sub(self.next)
    }
}
