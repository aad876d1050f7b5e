//! The synchronisation that `gauge`, `room`, `wake_flag` and `sleep` use: the standard library's here, loom's in the
//! model.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};

use std::time::Duration;

/// Waits while `waits`, which is asked first and then after each notice; for `timeout` at most.
pub(super) fn wait_timeout_while<T>(
    condvar: &Condvar,
    guard: MutexGuard<'_, T>,
    timeout: Duration,
    mut waits: impl FnMut() -> bool,
) {
    drop(condvar.wait_timeout_while(guard, timeout, |_| waits()));
}
