//! The amount held of something that is limited in commands and in bytes, counted in one word.
//!
//! Invariants: never more than the limits, except that a single command of any size passes when nothing is held, so
//! that no command is refused for ever. A take that fails changes nothing.

use super::sync::{AtomicU64, Ordering};

/// The upper bits of the word count commands, the lower ones bytes.
const BYTES_BITS: u32 = 40;
/// Half of what the lower bits hold: what is held (at most this) and one more command (at most this) do not overflow.
const BYTES_COUNTABLE: u64 = 1 << (BYTES_BITS - 1);
const COMMANDS_COUNTABLE: u32 = (1 << (u64::BITS - BYTES_BITS)) - 1;

/// The limits of an inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboxLimits {
    /// Commands, at least 1, at most 2^24 − 1. Their slots are allocated at once.
    pub commands_max: u32,
    /// Bytes of payload that the commands stand for, at most 2^39 − 1.
    pub bytes_max: u64,
}

/// The most of the memory budget that inboxes hold together: orders cannot be made to give memory back.
#[cfg(any(feature = "driver", test))]
const PART_OF_BUDGET: usize = 4;

impl InboxLimits {
    /// Those of one of `inboxes` inboxes under a memory budget of so many bytes, and of what can be counted.
    #[cfg(any(feature = "driver", test))]
    pub(crate) fn within_budget(self, budget_bytes: Option<usize>, inboxes: usize) -> Self {
        let part = budget_bytes.map_or(usize::MAX, |bytes| bytes / PART_OF_BUDGET / inboxes) as u64;
        Self {
            commands_max: self.commands_max.clamp(1, COMMANDS_COUNTABLE),
            bytes_max: self.bytes_max.min(part).min(BYTES_COUNTABLE - 1),
        }
    }

    /// One part of `parts`, at least one command.
    pub(super) fn share(self, parts: u64) -> Self {
        let commands_max = u64::from(self.commands_max) / parts;
        Self { commands_max: commands_max.max(1) as u32, bytes_max: self.bytes_max / parts }
    }
}

/// `bytes` as far as a gauge can count.
pub(super) fn countable(bytes: usize) -> u64 {
    (bytes as u64).min(BYTES_COUNTABLE)
}

// A cache line of its own: producers and the shard both write it.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Gauge {
    held: AtomicU64,
    limits: InboxLimits,
}

impl Gauge {
    pub(super) fn new(limits: InboxLimits) -> Self {
        assert!((1..=COMMANDS_COUNTABLE).contains(&limits.commands_max));
        assert!(limits.bytes_max < BYTES_COUNTABLE);
        Self { held: AtomicU64::new(0), limits }
    }

    pub(super) fn limits(&self) -> InboxLimits {
        self.limits
    }

    /// Commands and bytes held.
    pub(super) fn held(&self) -> (u64, u64) {
        unpack(self.held.load(Ordering::Relaxed))
    }

    /// Takes room for one command of `bytes` (countable) bytes.
    pub(super) fn try_take(&self, bytes: u64) -> bool {
        debug_assert!(bytes <= BYTES_COUNTABLE);
        let mut held = self.held.load(Ordering::Relaxed);
        loop {
            let (commands, held_bytes) = unpack(held);
            let fits = commands < u64::from(self.limits.commands_max) && held_bytes + bytes <= self.limits.bytes_max;
            if !fits && commands > 0 {
                return false;
            }
            let more = held + pack(1, bytes);
            match self.held.compare_exchange_weak(held, more, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => held = now,
            }
        }
    }

    /// Gives back what was taken for `commands` commands of together `bytes` bytes.
    pub(super) fn release(&self, commands: u64, bytes: u64) {
        let before = self.held.fetch_sub(pack(commands, bytes), Ordering::Release);
        debug_assert!(unpack(before).0 >= commands && unpack(before).1 >= bytes, "released more than was taken");
    }
}

fn pack(commands: u64, bytes: u64) -> u64 {
    commands << BYTES_BITS | bytes
}

fn unpack(held: u64) -> (u64, u64) {
    (held >> BYTES_BITS, held & ((1 << BYTES_BITS) - 1))
}
