//! The sleep of a process whose queue is empty: at once. The channel's own wait first spins for some microseconds and
//! yields its core several times, which costs as much as the event it waits for, and where the two share a core, delays
//! the shard.
//!
//! Invariant: the sleeper counts itself before it looks once more, and the sender looks at the count after it has
//! sent, so a batch that comes in between is seen by one of the two. Modelled with loom by `cargo test --test
//! loom_inbox`.

use super::room::Waiter;
use super::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, fence, wait_timeout_while};
use std::time::Duration;

pub(super) struct Sleep<W> {
    /// Threads that sleep, and the task that waits.
    sleepers: AtomicUsize,
    task: Mutex<Option<W>>,
    sent: Condvar,
}

impl<W: Waiter> Sleep<W> {
    pub(super) fn new() -> Self {
        Self { sleepers: AtomicUsize::new(0), task: Mutex::new(None), sent: Condvar::new() }
    }

    /// Sleeps until `is_over`, which is asked first and then after each wake; for `timeout` at most.
    pub(super) fn until(&self, timeout: Duration, mut is_over: impl FnMut() -> bool) {
        let guard = self.task();
        // In order with the fence: a thread that does not see this count was seen by `is_over`.
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // How it ended is what `is_over` has found.
        wait_timeout_while(&self.sent, guard, timeout, || !is_over());
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    /// To be called after something was sent.
    pub(super) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            // A thread that holds the lock has looked already and is not asleep yet.
            let task = self.task().take();
            self.sent.notify_all();
            if let Some(task) = task {
                self.sleepers.fetch_sub(1, Ordering::Relaxed);
                task.wake();
            }
        }
    }

    /// Has a task woken by the next batch. It must look once more then: what came before is not told.
    pub(super) fn register(&self, task: W) {
        let before = self.task().replace(task);
        if before.is_none() {
            self.sleepers.fetch_add(1, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    fn task(&self) -> MutexGuard<'_, Option<W>> {
        self.task.lock().expect("nothing panics under this lock")
    }
}
