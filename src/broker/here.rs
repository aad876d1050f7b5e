//! Whether the current thread runs a handler on a shard right now.
//!
//! A handler's own types offer nothing that waits, but it may hold a handle that does. Waiting for a shard on that
//! shard's own thread would never end, so the call panics instead, which ends the process.

use std::cell::Cell;

thread_local! {
    static IS_ON_A_SHARD: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread runs a handler.
pub(super) struct HandlerThread {
    was: bool,
}

impl HandlerThread {
    pub(super) fn enter() -> Self {
        Self { was: IS_ON_A_SHARD.replace(true) }
    }
}

impl Drop for HandlerThread {
    fn drop(&mut self) {
        IS_ON_A_SHARD.set(self.was);
    }
}

fn is_on_a_shard() -> bool {
    IS_ON_A_SHARD.get()
}

/// Runs `work`, which waits for shards: on this thread, or on one of its own where this is a shard's.
pub(super) fn away_from_shards(what: &'static str, work: impl FnOnce() + Send + 'static) {
    if !is_on_a_shard() {
        return work();
    }
    if let Err(error) = std::thread::Builder::new().name(what.to_owned()).spawn(work) {
        tracing::error!(%error, "no thread could be started for the {what}: it was not carried out");
    }
}

/// To be called by what waits for shards.
///
/// # Panics
/// A handler on a shard calls it.
#[track_caller]
pub(super) fn must_not_be_on_a_shard() {
    assert!(
        !is_on_a_shard(),
        "a handler on a shard called something that waits for shards: use what its `Here` offers, or a process of its own \
         thread"
    );
}
