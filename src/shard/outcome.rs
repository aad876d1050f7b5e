//! The outcome of a push, for callers that ask: counts gathered over the shards that the push reached.
//!
//! Invariant: a [`OutcomeCollector`] is settled exactly once, when the last part of the push has been.

use crate::admission::HeapBytes;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The fate of one push, counted in channels. The sum of all counts but `queued_bytes` and those of the fleet is the
/// size of the audience on this broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// The frame is in the kernel's socket buffer, whole.
    pub sent: usize,
    /// The socket was full; the frame waits.
    pub queued: usize,
    /// How many bytes wait for those channels, this frame included.
    pub queued_bytes: usize,
    /// The frame took the place of an older one of its key.
    pub conflated: usize,
    /// The policy dropped this frame.
    pub dropped: usize,
    /// The policy closed the channel, or it was closing already.
    pub closed: usize,
    /// No such channel.
    pub not_found: usize,
    /// The channel belongs to another process.
    pub not_owner: usize,
    /// 1: other nodes of the fleet are not reached, because the queue to NATS is full or there is no memory for more.
    pub fleet_full: usize,
    /// 1: other nodes of the fleet are not reached, because NATS is not.
    pub fleet_down: usize,
    /// 1: other nodes of the fleet are not reached, because NATS takes no message of that size.
    pub fleet_too_large: usize,
}

impl Outcome {
    /// Adds the counts of another part of the same push.
    pub fn add(&mut self, other: &Outcome) {
        self.sent += other.sent;
        self.queued += other.queued;
        self.queued_bytes += other.queued_bytes;
        self.conflated += other.conflated;
        self.dropped += other.dropped;
        self.closed += other.closed;
        self.not_found += other.not_found;
        self.not_owner += other.not_owner;
        self.fleet_full += other.fleet_full;
        self.fleet_down += other.fleet_down;
        self.fleet_too_large += other.fleet_too_large;
    }
}

/// The approximate memory of a ticket's callback.
const CALLBACK_BYTES: usize = 64;

/// Gathers the outcome of one push from every shard it went to, then calls back. Each shard holds it by a
/// [`OutcomePart`].
pub struct OutcomeCollector {
    counts: Mutex<Outcome>,
    parts: AtomicUsize,
    settled: Box<dyn Fn(Outcome) + Send + Sync>,
}

impl OutcomeCollector {
    /// A ticket of `parts` parts; `settled` is called on the thread that settles the last one.
    pub fn split(parts: usize, settled: impl Fn(Outcome) + Send + Sync + 'static) -> Vec<OutcomePart> {
        assert!(parts > 0);
        let ticket =
            Arc::new(Self { counts: Mutex::default(), parts: AtomicUsize::new(parts), settled: Box::new(settled) });
        (0..parts).map(|_| OutcomePart { ticket: ticket.clone(), counts: Outcome::default() }).collect()
    }
}

/// The share of one shard in a [`OutcomeCollector`]. Dropping it settles it, with what was counted so far: a push that
/// is thrown away still answers.
pub struct OutcomePart {
    ticket: Arc<OutcomeCollector>,
    /// The counts of this shard.
    pub counts: Outcome,
}

impl HeapBytes for OutcomePart {
    /// With its share of the ticket.
    fn heap_bytes(&self) -> usize {
        size_of::<OutcomeCollector>() + CALLBACK_BYTES
    }
}

impl Drop for OutcomePart {
    fn drop(&mut self) {
        let mut counts = self.ticket.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.add(&self.counts);
        // AcqRel: the last shard sees what all others have added. The lock orders it too; the count decides which is
        // last.
        if self.ticket.parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            let outcome = *counts;
            drop(counts);
            (self.ticket.settled)(outcome);
        }
    }
}

impl std::fmt::Debug for OutcomePart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("counts", &self.counts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_settled_once_by_its_last_part() {
        let (tx, rx) = crossbeam_channel::unbounded();
        let mut parts = OutcomeCollector::split(2, move |outcome| tx.send(outcome).unwrap());
        parts[0].counts.sent = 3;
        parts[1].counts.not_found = 1;
        parts.pop();
        assert!(rx.try_recv().is_err());
        parts.pop();
        assert_eq!(rx.try_recv().unwrap(), Outcome { sent: 3, not_found: 1, ..Outcome::default() });
        assert!(rx.try_recv().is_err());
    }
}
