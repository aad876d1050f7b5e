//! A process' code, as it is run on the threads of shards: its panics go no further.
//!
//! Invariant: no panic leaves here, also none of what the code has panicked with, or leaves behind. What becomes of the
//! process is the caller's to know.

use crate::process_id::ProcessId;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code of a process. None: it has panicked, which goes no further. What it has panicked with is its own too, and
/// may panic as it is dropped.
pub(super) fn contained<T>(code: impl FnOnce() -> T) -> Option<T> {
    let panic = match catch_unwind(AssertUnwindSafe(code)) {
        Ok(done) => return Some(done),
        Err(panic) => panic,
    };
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
    None
}

/// What makes the handlers: a process' code, of which the last may be let go of on a shard.
pub(super) struct HandlerMaker<F> {
    process: ProcessId,
    /// Gone only within `drop`.
    make: Option<F>,
}

impl<F> HandlerMaker<F> {
    /// Of this process.
    pub(super) fn new(process: ProcessId, make: F) -> Self {
        Self { process, make: Some(make) }
    }

    /// The handler of a shard. None: it has panicked.
    pub(super) fn make<H>(&self, shard: usize) -> Option<H>
    where
        F: Fn(usize) -> H,
    {
        contained(|| self.make.as_ref().map(|make| make(shard))).flatten()
    }
}

impl<F> Drop for HandlerMaker<F> {
    fn drop(&mut self) {
        let make = self.make.take();
        if contained(|| drop(make)).is_none() {
            tracing::error!(process = %self.process, "what makes handlers panicked as it was dropped");
        }
    }
}
