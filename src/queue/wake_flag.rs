//! The flag by which a consumer that is about to sleep asks to be woken.
//!
//! Invariant: of a consumer that sets the flag and then looks for work, and a producer that adds work and then looks
//! at the flag, at least one sees the other. Both need the full fence in between: without it either load may be
//! answered before the own store is visible, and a shard sleeps over a command. Every write is a swap, so the flag's
//! history is a single chain and an old `false` cannot pass for a newer one.

use super::sync::{AtomicBool, Ordering, fence};

pub(super) struct WakeFlag {
    asleep: AtomicBool,
}

impl WakeFlag {
    pub(super) fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }

    /// Consumer: asks to be woken, unless `has_work`. Returns whether it may sleep.
    pub(super) fn prepare_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.asleep.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if has_work() {
            self.awake();
            return false;
        }
        true
    }

    /// Consumer: is awake, and wants no more wakes.
    pub(super) fn awake(&self) {
        self.asleep.swap(false, Ordering::AcqRel);
    }

    /// Producer, after it has added work: returns whether it has to wake the consumer.
    pub(super) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
    }
}
