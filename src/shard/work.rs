//! The cost of a turn, in one unit: nanoseconds of a shard's core, from costs that were measured once.
//!
//! Everything that a turn does is spent from one budget, so that no kind of work is free: commands and channels, frames
//! and bytes, clients that resume. Counted, not timed: the same calls cost the same, so the simulation sees the same
//! turns. `Calibration` has the present ratio of real time to counted work.
//!
//! Invariant: the amount spent only grows within a turn. It must not depend on the kind of work.

/// Letting a client in.
pub(super) const ACCEPT_NS: u64 = 10_000;
/// One read of a socket, bytes apart.
pub(super) const READ_NS: u64 = 2_000;
/// One frame of a client, and what it comes to: an event, a pong, a part of a message.
pub(super) const FRAME_NS: u64 = 130;
/// One frame that is neither the last of its message nor a control frame.
pub(super) const FRAGMENT_NS: u64 = 25;
/// One HTTP request, checked and answered or passed on.
pub(super) const REQUEST_NS: u64 = 10_000;
/// One byte of the framing of a chunked body: of chunks of one byte, most of them are.
pub(super) const CHUNK_FRAMING_NS: u64 = 5;
/// Checking a signature by a public key: the dearest of those that are accepted, RSA of 4,096 bits or Ed25519.
pub(super) const SIGNATURE_NS: u64 = 100_000;
/// Going on with one client that was paused.
pub(super) const RESUME_NS: u64 = 300;
/// Looking whether the queue of one process has room again.
pub(super) const LOOK_AT_OWNER_NS: u64 = 100;
/// One order, whatever it says.
pub(super) const COMMAND_NS: u64 = 100;
/// One frame put behind what waits for a channel.
pub(super) const OFFER_NS: u64 = 15;
/// The same where the socket is full: kept apart, counted, and weighed.
pub(super) const OFFER_BEHIND_NS: u64 = 150;
/// One value that a newer one might have replaced, and that joins the queue.
pub(super) const LET_GO_NS: u64 = 60;
/// Letting go of one value that others may share: its count lies in memory that nobody has looked at for long.
pub(super) const RELEASE_NS: u64 = 80;
/// Waking one process that sleeps, to take its events.
pub(super) const WAKE_NS: u64 = 2_000;
/// One channel ended, or looked for in vain.
pub(super) const END_NS: u64 = 500;
/// One channel subscribed to a topic, or out of it.
pub(super) const SUBSCRIBE_NS: u64 = 150;
/// One connection whose time has come.
pub(super) const LOOK_NS: u64 = 60;
/// Passing over one place of a list.
pub(super) const PASS_NS: u64 = 20;
/// One send of a KiB or less: a place in the batch, and what the system does for it.
pub(super) const SEND_NS: u64 = 3_500;
/// Shutting or closing one socket.
pub(super) const EFFECT_NS: u64 = 5_000;
/// One field of a response's head.
pub(super) const FIELD_NS: u64 = 150;
/// The time that a handler on the shard may take at once and in a turn: a slower one is reported.
pub(super) const HANDLER_NS: u64 = 250_000;
/// Giving a connection one range of its channel's log.
pub(super) const FEED_NS: u64 = 40;
/// Telling an operator of one channel or process: what is known of it is copied.
pub(super) const TELL_NS: u64 = 200;
/// Compressing one byte.
pub(super) const DEFLATE_BYTE_NS: u64 = 15;

/// Moving bytes: unmasked, checked, copied.
pub(super) const fn copy_ns(bytes: usize) -> u64 {
    bytes as u64 / 4
}

/// Allocating so many bytes and touching them for the first time: each page may be one that the system has to find.
pub(super) const fn alloc_ns(bytes: usize) -> u64 {
    bytes as u64
}

/// Freeing so many bytes, allocated in chunks of some KiB.
pub(super) const fn free_ns(bytes: usize) -> u64 {
    bytes as u64 / 64
}

/// Dropping so many frames of so many bytes together: of small ones a whole chunk at a time, and its rest one by one.
pub(super) const fn drop_ns(frames: usize, bytes: usize) -> u64 {
    let one_by_one = if frames < DROPPED_ONE_BY_ONE_MAX { frames } else { DROPPED_ONE_BY_ONE_MAX };
    one_by_one as u64 * PASS_NS + free_ns(bytes)
}

/// As many empty frames as there are in two chunks of 4 KiB.
const DROPPED_ONE_BY_ONE_MAX: usize = 4096;

/// One send of so many bytes.
pub(super) const fn send_ns(bytes: usize) -> u64 {
    SEND_NS + copy_ns(bytes.saturating_sub(1024))
}

/// Looking at so many bytes of a handshake: each record of it costs some 35, and may bring a byte.
pub(super) const fn shake_ns(bytes: usize) -> u64 {
    bytes as u64 * 6
}

/// Opening so many records, of so many bytes together: a cipher is set up for each.
pub(super) const fn open_ns(records: usize, bytes: usize) -> u64 {
    250 * records as u64 + bytes as u64 / 5
}

/// The work of inflating so many bytes.
pub(super) const fn inflate_ns(bytes: usize) -> u64 {
    bytes as u64
}

/// How much of a turn each part may use, in this order.
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
    /// Sending a batch: as much where the parts before took little, and a third of it whatever they took.
    pub sends_ns: u64,
    /// The most work of a turn once its batch has been sent.
    pub until_sent_ns: u64,
    /// Clients that go on.
    pub resumes_ns: u64,
    /// Shutting and closing sockets.
    pub effects_ns: u64,
}

impl WorkLimits {
    /// Where orders end in a turn that has done so much before them. They have what the beginning leaves over: the more
    /// orders are obeyed before a batch, the more of their messages leave in one send.
    pub(super) fn orders_until_ns(&self, spent_ns: u64) -> u64 {
        spent_ns.max(self.begin_ns) + self.orders_ns
    }

    /// The most work of a batch in a turn that has done so much before it.
    pub(super) fn batch_ns(&self, spent_ns: u64) -> u64 {
        self.sends_ns.min(self.until_sent_ns.saturating_sub(spent_ns)).max(self.least_batch_ns())
    }

    /// The work that a batch may always do, whatever the turn has done before it.
    fn least_batch_ns(&self) -> u64 {
        self.sends_ns.div_ceil(3)
    }

    /// The most work of a turn, but for the last step of each of its parts.
    pub fn turn_ns(&self) -> u64 {
        let before_ns = self.begin_ns + self.orders_ns + self.reads_ns + self.handlers_ns;
        let sent_ns = (before_ns + self.sends_ns).min(self.until_sent_ns).max(before_ns + self.least_batch_ns());
        sent_ns + self.resumes_ns + self.effects_ns
    }
}

impl Default for WorkLimits {
    /// 0.33 to 0.48 ms for orders, or 22,000 channels of a broadcast and more; 256 sends of a batch, 0.9 ms. A turn in
    /// which everything comes together is 1.4 ms, one of orders and sends 0.93 ms: turns are meant to take 2 ms at
    /// most, and what a send costs the system, and what memory that others have displaced from the caches costs, varies
    /// by as much.
    fn default() -> Self {
        Self {
            begin_ns: 150_000,
            orders_ns: 330_000,
            reads_ns: 200_000,
            handlers_ns: HANDLER_NS,
            sends_ns: 256 * SEND_NS,
            until_sent_ns: 930_000,
            resumes_ns: 100_000,
            effects_ns: 100_000,
        }
    }
}

/// How much dearer work is here and now than where its costs were measured, in sixteenths: on a slower machine, or
/// where others use the same caches, a turn takes in less, and so takes no longer.
///
/// The shard counts the same whatever this is. Only the driver has a clock, so in the simulation it stays at one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Calibration(u64);

impl Calibration {
    const ONE: u64 = 16;
    const MAX: u64 = 8 * Self::ONE;

    /// Turns of less work are mostly what a turn costs by itself.
    const WORK_NS_MIN: u64 = 100_000;

    /// A turn that was counted as `spent_ns` took `cpu_ns`. One that was dear counts at once, and for some ten turns.
    pub(super) fn note(&mut self, spent_ns: u64, cpu_ns: u64) {
        if spent_ns >= Self::WORK_NS_MIN {
            let now = (cpu_ns * Self::ONE / spent_ns).clamp(Self::ONE, Self::MAX);
            let weight = if now > self.0 { 2 } else { 8 };
            self.0 = (self.0 * (weight - 1) + now) / weight;
        }
    }

    /// The same limits, in time as it passes here.
    pub(super) fn within(self, limits: WorkLimits) -> WorkLimits {
        let here = |ns: u64| if self.0 <= Self::ONE { ns } else { ns * Self::ONE / self.0 };
        WorkLimits {
            begin_ns: here(limits.begin_ns),
            orders_ns: here(limits.orders_ns),
            reads_ns: here(limits.reads_ns),
            // Their own time is the clock's, but what they order is counted, and is most of it where they broadcast.
            handlers_ns: here(limits.handlers_ns),
            sends_ns: here(limits.sends_ns),
            until_sent_ns: here(limits.until_sent_ns),
            resumes_ns: here(limits.resumes_ns),
            effects_ns: here(limits.effects_ns),
        }
    }
}

impl Default for Calibration {
    fn default() -> Self {
        Self(Self::ONE)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Work {
    spent_ns: u64,
    /// The part of it that was inflating.
    inflated_ns: u64,
    slice_end_ns: u64,
}

impl Work {
    /// A new turn begins.
    pub(super) fn begin_turn(&mut self) {
        *self = Self::default();
    }

    /// So much was done.
    pub(super) fn spend(&mut self, ns: u64) {
        self.spent_ns += ns;
    }

    /// So much was inflated.
    pub(super) fn inflate(&mut self, ns: u64) {
        self.spent_ns += ns;
        self.inflated_ns += ns;
    }

    /// The work of inflating in this turn.
    pub(super) fn inflated_ns(&self) -> u64 {
        self.inflated_ns
    }

    /// The work of this turn so far.
    pub(super) fn spent_ns(&self) -> u64 {
        self.spent_ns
    }

    /// Begins a slice: the work that follows is to be suspended after about so much.
    pub(super) fn begin_slice(&mut self, slice_ns: u64) {
        self.slice_end_ns = self.spent_ns.saturating_add(slice_ns);
    }

    /// The turn's work at the end of the slice.
    pub(super) fn slice_end_ns(&self) -> u64 {
        self.slice_end_ns
    }

    /// Returns whether it has.
    pub(super) fn is_slice_over(&self) -> bool {
        self.spent_ns >= self.slice_end_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_have_what_the_beginning_leaves_over_and_never_less_than_their_part() {
        let usual = WorkLimits::default();
        for (spent_ns, orders_ns) in [(0, usual.begin_ns + usual.orders_ns), (10 * usual.begin_ns, usual.orders_ns)] {
            assert_eq!(usual.orders_until_ns(spent_ns), spent_ns + orders_ns);
        }
    }

    #[test]
    fn a_batch_is_what_is_left_of_a_turn_and_never_nothing() {
        let usual = WorkLimits::default();
        assert_eq!(usual.batch_ns(0), usual.sends_ns);
        assert_eq!(usual.batch_ns(usual.orders_ns), usual.until_sent_ns - usual.orders_ns);
        assert_eq!(usual.batch_ns(u64::MAX), usual.sends_ns.div_ceil(3));
        assert_eq!(WorkLimits { sends_ns: 1, ..usual }.batch_ns(u64::MAX), 1);
        assert!(usual.turn_ns() < 1_500_000, "{}", usual.turn_ns());
    }

    #[test]
    fn where_work_is_dearer_a_turn_takes_in_less() {
        let (usual, mut here) = (WorkLimits::default(), Calibration::default());
        assert_eq!(here.within(usual), usual);
        // As cheap as it was measured, cheaper, and turns that say nothing.
        for (spent_ns, cpu_ns) in [(1_000_000, 1_000_000), (1_000_000, 10_000), (99_999, 10_000_000)] {
            here.note(spent_ns, cpu_ns);
        }
        assert_eq!(here.within(usual), usual);
        (0..10).for_each(|_| here.note(1_000_000, 4_000_000));
        let sends_ns = here.within(usual).sends_ns;
        assert!((usual.sends_ns / 5..usual.sends_ns / 3).contains(&sends_ns), "{sends_ns}");
        // Every part takes in less: one that did not would leave the others nothing of the turn.
        assert!(here.within(usual).turn_ns() < usual.turn_ns() / 3, "{:?}", here.within(usual));
        // However dear, something is done; and it becomes cheap again.
        (0..100).for_each(|_| here.note(1_000_000, u64::MAX / 16));
        assert!(here.within(usual).reads_ns >= usual.reads_ns / 8);
        (0..100).for_each(|_| here.note(1_000_000, 1_000_000));
        assert!(here.within(usual).sends_ns > usual.sends_ns / 2);
    }
}
