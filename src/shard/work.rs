//! The cost of a turn, in one unit: nanoseconds of a shard's core, from costs that were measured once.
//!
//! Everything that a turn does is spent from one budget, so that no kind of work is free: commands and channels, frames
//! and bytes, clients that resume. Counted, not timed: the same calls cost the same, so the simulation sees the same
//! turns. Sends are bounded by their batch, and counted.
//!
//! Invariant: the amount spent only grows within a turn. Must not depend on what the work is for.

/// Letting a client in.
pub(super) const ACCEPT_NS: u64 = 10_000;
/// One read of a socket, bytes apart.
pub(super) const READ_NS: u64 = 2_000;
/// One frame of a client, and what it comes to: an event, a pong, a part of a message.
pub(super) const FRAME_NS: u64 = 130;
/// One HTTP request, judged and answered or handed on.
pub(super) const REQUEST_NS: u64 = 10_000;
/// Checking a signature by a public key: the dearest of those that are accepted, RSA of 4,096 bits or Ed25519.
pub(super) const SIGNATURE_NS: u64 = 100_000;
/// Going on with one client that was paused.
pub(super) const RESUME_NS: u64 = 300;
/// One order, whatever it says.
pub(super) const COMMAND_NS: u64 = 100;
/// One frame put behind what waits for a channel.
pub(super) const OFFER_NS: u64 = 15;
/// The same where the socket is full: kept apart, counted, and weighed.
pub(super) const OFFER_BEHIND_NS: u64 = 150;
/// One channel ended, or looked for in vain.
pub(super) const END_NS: u64 = 500;
/// One channel subscribed to a topic, or out of it.
pub(super) const SUBSCRIBE_NS: u64 = 150;
/// One connection whose time has come.
pub(super) const LOOK_NS: u64 = 60;
/// Passing over one place of a list.
pub(super) const PASS_NS: u64 = 20;
/// One send: a place in the batch, and what the system does for it.
pub(super) const SEND_NS: u64 = 3_500;
/// Shutting or closing one socket.
pub(super) const EFFECT_NS: u64 = 5_000;
/// One field of a response's head.
pub(super) const FIELD_NS: u64 = 150;
/// What a handler on the shard may take at a time, and of a turn: a slower one is told of.
pub(super) const HANDLER_NS: u64 = 250_000;
/// Compressing one byte.
pub(super) const DEFLATE_BYTE_NS: u64 = 15;

/// Moving bytes: unmasked, checked, copied.
pub(super) const fn copy_ns(bytes: usize) -> u64 {
    bytes as u64 / 4
}

/// Opening records of so many bytes together.
pub(super) const fn open_ns(bytes: usize) -> u64 {
    300 + bytes as u64 / 5
}

/// What inflating so many bytes costs.
pub(super) const fn inflate_ns(bytes: usize) -> u64 {
    bytes as u64
}

/// How much of a turn each part may use, in this order: what one leaves over is the next one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkLimits {
    /// Letting clients in, and looking at those whose time has come.
    pub begin_ns: u64,
    /// Obeying orders.
    pub orders_ns: u64,
    /// Reading.
    pub reads_ns: u64,
    /// Processes that run on the shards.
    pub handlers_ns: u64,
    /// Clients that go on.
    pub resumes_ns: u64,
    /// Shutting and closing sockets.
    pub effects_ns: u64,
}

impl Default for WorkLimits {
    /// 0.4 ms for orders, or 26,000 channels of a broadcast. With the sends of a batch (0.9 ms), some two milliseconds.
    fn default() -> Self {
        Self {
            begin_ns: 150_000,
            orders_ns: 400_000,
            reads_ns: 200_000,
            handlers_ns: HANDLER_NS,
            resumes_ns: 100_000,
            effects_ns: 100_000,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Work {
    spent_ns: u64,
    /// What of it was inflating.
    inflated_ns: u64,
    slice_end_ns: u64,
}

impl Work {
    /// A new turn begins.
    pub fn begin_turn(&mut self) {
        *self = Self::default();
    }

    /// So much was done.
    pub fn spend(&mut self, ns: u64) {
        self.spent_ns += ns;
    }

    /// So much was inflated.
    pub fn inflate(&mut self, ns: u64) {
        self.spent_ns += ns;
        self.inflated_ns += ns;
    }

    /// What inflating has cost in this turn.
    pub fn inflated_ns(&self) -> u64 {
        self.inflated_ns
    }

    /// What this turn has cost so far.
    pub fn spent_ns(&self) -> u64 {
        self.spent_ns
    }

    /// What follows may cost about so much, then it is to be put down.
    pub fn begin_slice(&mut self, slice_ns: u64) {
        self.slice_end_ns = self.spent_ns.saturating_add(slice_ns);
    }

    /// What the turn will have cost then.
    pub fn slice_end_ns(&self) -> u64 {
        self.slice_end_ns
    }

    /// Returns whether it has.
    pub fn is_slice_over(&self) -> bool {
        self.spent_ns >= self.slice_end_ns
    }
}
