//! Producers that wait for room in a full inbox.
//!
//! Invariant: a producer that registers and then still finds no room is woken by the next announcement. As with the
//! wake flag, both sides store, fence, and then look at what the other stored.
//! Without waiters an announcement takes no lock.

use super::sync::{AtomicBool, Mutex, Ordering, fence};

/// A waiter that can be woken once.
pub(super) trait Waiter {
    /// Returns whether waking either wakes the same.
    fn is(&self, other: &Self) -> bool;
    /// Wakes.
    fn wake(self);
}

pub(super) struct Room<W> {
    waiting: AtomicBool,
    waiters: Mutex<Vec<W>>,
}

impl<W: Waiter> Room<W> {
    pub(super) fn new() -> Self {
        Self { waiting: AtomicBool::new(false), waiters: Mutex::new(Vec::new()) }
    }

    /// Asks for the next announcement. Look for room again afterwards, then wait.
    pub(super) fn register(&self, waiter: W) {
        {
            let mut waiters = self.waiters.lock().expect("nothing panics under this lock");
            if !waiters.iter().any(|other| other.is(&waiter)) {
                waiters.push(waiter);
            }
            self.waiting.store(true, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Announces room.
    pub(super) fn announce(&self) {
        fence(Ordering::SeqCst);
        if !self.waiting.load(Ordering::Relaxed) {
            return;
        }
        let waiters = {
            let mut waiters = self.waiters.lock().expect("nothing panics under this lock");
            self.waiting.store(false, Ordering::Relaxed);
            std::mem::take(&mut *waiters)
        };
        waiters.into_iter().for_each(Waiter::wake);
    }
}
