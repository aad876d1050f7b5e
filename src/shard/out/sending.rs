//! Which connections have something to send, and sending it in batches.
//!
//! Two lists: `urgent` for traffic of one connection (unicasts, replies, control frames), `bulk` for the audiences of
//! broadcasts. A batch takes the urgent ones first, so a broadcast to 20,000 channels delays other clients by at most
//! one batch.
//!
//! Invariants: the bulk list is in the order in which its connections were first touched, so the segment noted at its
//! head is the oldest that any of them needs; the urgent list is empty whenever segments are released.

use crate::shard::core::Shard;
use crate::shard::flush::{OutgoingBytes, PARTS_MAX, SendParts, ShortSend};
use crate::shard::out::sealing::Sealing;
use crate::shard::table::connection::{Connection, ConnectionPhase, Flag};
use crate::shard::table::slot::Slot;
use crate::shard::work::{self, WorkLimits};
use smallvec::SmallVec;
use std::io::IoSlice;

/// The most bytes of one batch. A loopback socket takes 4 MB at once; a batch should not take that from each.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// The most bytes that one connection is offered at a time, so that one large blob does not hold up a batch.
const OFFER_BYTES_MAX: usize = 256 * 1024;

/// Connections of which more is to be seen to when all that waited has left.
const FOLLOWED_UP: u32 =
    Flag::Watched.bit() | Flag::Holds.bit() | Flag::WaitsForClient.bit() | Flag::Lags.bit() | Flag::Shutdown.bit();

impl Connection {
    /// Readies it for a batch. Returns false if it has nothing to send, or cannot.
    #[inline]
    fn enter_batch(&mut self, copy_bytes_max: usize) -> bool {
        let is_ready =
            !self.flags.has(Flag::InBatch) && !self.outbound.is_blocked() && self.outbound.prepare(copy_bytes_max);
        if is_ready {
            self.flags.set(Flag::InBatch);
        }
        is_ready
    }
}

impl Shard {
    /// Sends one batch of the usual size. Returns whether more is waiting.
    pub fn flush(&mut self) -> bool {
        self.flush_within(WorkLimits::default().sends_ns)
    }

    /// Sends one batch, which may cost so much: at least one send. Returns whether more is waiting.
    pub(in crate::shard) fn flush_within(&mut self, sends_ns: u64) -> bool {
        // Before the client can hear of its channel: what it then says elsewhere must not overtake this.
        self.owners.hand_over_opened();
        let batch = self.take_batch(sends_ns);
        if !batch.is_empty() {
            self.send_batch(&batch);
        }
        if self.out.waiting.urgent.is_empty() {
            match self.out.waiting.bulk.front() {
                Some(first) => {
                    self.out.window.release_to_one();
                    self.out.window.release_to_many_before(first.segment);
                }
                None => self.out.window.release_all(),
            }
        }
        let goes_on = self.wants_flush();
        if !goes_on {
            self.table.all_told();
        }
        goes_on
    }

    /// Offers one connection its waiting bytes, ahead of all others: a policy applies only to bytes that the socket
    /// itself has refused.
    pub(in crate::shard) fn flush_one(&mut self, slot: Slot) {
        if self.table[slot].enter_batch(self.config.copy_bytes_max) {
            // Bytes that the socket was not offered go on with the urgent ones: the push in progress may yet put others
            // on the bulk list, for a segment before the tail.
            self.out.mark_urgent(&mut self.table[slot], slot);
            self.send_batch(&[slot]);
        }
    }

    /// Takes connections off the lists, urgent ones first.
    fn take_batch(&mut self, sends_ns: u64) -> SmallVec<[Slot; 16]> {
        let sends_max = sends_ns.div_ceil(work::SEND_NS) as usize;
        let expected = sends_max.min(self.out.waiting.urgent.len() + self.out.waiting.bulk.len());
        let mut batch = SmallVec::with_capacity(expected);
        let (mut bytes, mut cost_ns) = (0, 0);
        while cost_ns < sends_ns
            && bytes < BATCH_BYTES_MAX
            && let Some((slot, list)) = self.out.waiting.pop_front()
        {
            // The connection may be gone, and its place even taken by another.
            let Some(connection) = self.table.get_mut(slot) else { continue };
            let let_go_ns = connection.outbound.held_values() as u64 * work::LET_GO_NS;
            if connection.flags.take(list) && connection.enter_batch(self.config.copy_bytes_max) {
                let offered = connection.outbound.queued_bytes().min(OFFER_BYTES_MAX);
                bytes += offered;
                // With the last bytes of a stream goes its end.
                let ends = connection.flags.has(Flag::Shutdown);
                cost_ns += let_go_ns + work::send_ns(offered) + if ends { work::EFFECT_NS } else { 0 };
                self.work.spend(let_go_ns);
                batch.push(slot);
            }
        }
        batch
    }

    fn send_batch(&mut self, batch: &[Slot]) {
        let mut short = std::mem::take(&mut self.out.waiting.short);
        let sealed = self.seal_batch(batch);
        let offered = self.offer_batch(batch, &sealed, &mut short);
        self.stats.sends += batch.len() as u64;
        if short.is_empty() && sealed.is_empty() {
            for (&slot, &bytes) in std::iter::zip(batch, &offered) {
                self.work.spend(work::send_ns(bytes as usize));
                if !self.apply_whole(slot, bytes as usize) {
                    self.apply_sent(slot, bytes as usize, None);
                }
            }
        } else {
            self.apply_each(batch, &offered, sealed, &mut short);
        }
        self.out.waiting.short = short;
    }

    /// Offers each connection of a batch what waits for it. Returns how many bytes that were; `short` gets those of
    /// which not all were taken.
    fn offer_batch(&mut self, batch: &[Slot], sealed: &[Sealing], short: &mut Vec<ShortSend>) -> SmallVec<[u32; 8]> {
        let mut offered = SmallVec::with_capacity(batch.len());
        // Of those for whom more than one slice waits: their places in the batch, and where their slices end.
        let (mut slices, mut gathered): (Vec<IoSlice<'_>>, Vec<(usize, usize)>) = Default::default();
        let mut outgoing: SmallVec<[OutgoingBytes<'_>; 8]> = SmallVec::with_capacity(batch.len());
        let mut sealings = sealed.iter().peekable();
        for (index, &slot) in batch.iter().enumerate() {
            let connection = &self.table[slot];
            let outbound = &connection.outbound;
            let slice = match sealings.next_if(|sealing| sealing.index == index) {
                Some(sealing) => Some(sealing.bytes(outbound, &self.out.records)),
                None => outbound.as_slice(&self.out.window),
            };
            let (parts, bytes) = match slice {
                Some(slice) => (SendParts::One(slice), slice.len()),
                None => {
                    let bytes = outbound.gather(&self.out.window, OFFER_BYTES_MAX, PARTS_MAX, &mut slices);
                    gathered.push((index, slices.len()));
                    // Its slices stay where they are only when all are gathered.
                    (SendParts::Many(&[]), bytes)
                }
            };
            let is_last = connection.flags.has(Flag::Shutdown)
                && bytes == connection.outbound.queued_bytes()
                && connection.tls.is_none();
            outgoing.push(OutgoingBytes { socket: connection.socket, parts, is_last });
            offered.push(bytes as u32);
        }
        let mut from = 0;
        for (index, end) in gathered {
            let parts = &slices[std::mem::replace(&mut from, end)..end];
            outgoing[index].parts = if let [only] = parts { SendParts::One(only) } else { SendParts::Many(parts) };
        }
        self.out.flusher.send_all(&outgoing, short);
        offered
    }

    /// Takes note of what became of each send, some of which were cut short, or sealed.
    fn apply_each(&mut self, batch: &[Slot], offered: &[u32], sealed: Vec<Sealing>, short: &mut Vec<ShortSend>) {
        self.work.spend(offered.iter().map(|&bytes| work::send_ns(bytes as usize)).sum());
        short.sort_unstable_by_key(|short| short.index);
        let mut shorts = short.drain(..).peekable();
        let mut sealings = sealed.into_iter().peekable();
        for (index, &slot) in batch.iter().enumerate() {
            let result = shorts.next_if(|short| short.index == index).map(|short| short.sent);
            match sealings.next_if(|sealing| sealing.index == index) {
                None => self.apply_sent(slot, offered[index] as usize, result),
                Some(sealing) => self.apply_sealed(slot, &sealing, offered[index] as usize, result),
            }
        }
    }

    /// The short way of most sends: all that waited has left, and nothing follows from that. Returns whether it was
    /// that; if not, nothing has happened.
    #[inline]
    fn apply_whole(&mut self, slot: Slot, bytes: usize) -> bool {
        let connection = &mut self.table[slot];
        let is_whole = !connection.flags.has_any(FOLLOWED_UP)
            && matches!(connection.phase, ConnectionPhase::Open(_))
            && connection.outbound.sent_only_range(bytes);
        if is_whole {
            connection.flags.take(Flag::InBatch);
            self.stats.sent_bytes += bytes as u64;
        }
        is_whole
    }

    /// Takes note of what became of one send: `None` is all of it.
    fn apply_sent(&mut self, slot: Slot, offered: usize, result: Option<Result<usize, i32>>) {
        let connection = &mut self.table[slot];
        connection.flags.take(Flag::InBatch);
        let sent = match result {
            None => offered,
            Some(Ok(sent)) => sent,
            Some(Err(_)) => return self.connection_failed(slot),
        };
        self.stats.sent_bytes += sent as u64;
        let full = sent < offered;
        if sent == connection.outbound.offerable_bytes() {
            connection.outbound.sent_all(&mut self.out.spares);
        } else {
            connection.outbound.sent_some(sent, full, &self.out.window, &mut self.out.spares);
            if full && self.out.contexts.has(slot) {
                connection.outbound.pin();
            }
        }
        self.after_offer(slot, sent, full);
    }

    /// So much of what waited has left, and its outcome is told.
    pub(super) fn after_offer(&mut self, slot: Slot, sent: usize, full: bool) {
        let connection = &mut self.table[slot];
        let left = connection.outbound.queued_bytes();
        if full {
            self.stats.short_sends += 1;
        } else if left > 0 && !connection.flags.has(Flag::Urgent) {
            // After all others, which had no turn yet. Its bytes are its own now; later ones come at the tail.
            let segment = self.out.window.tail();
            self.out.mark_bulk(connection, slot, segment);
        }
        if connection.flags.has(Flag::Watched) {
            self.settle_watches(slot, sent, left, full);
        }
        if left > 0 || self.table[slot].flags.has(Flag::Holds) {
            self.weigh(slot);
        }
        self.after_sent(slot, left);
    }

    /// Counts the outcome of watched frames, now that `sent` bytes have left. The others wait, for good if `full`; else
    /// they are still to be offered.
    fn settle_watches(&mut self, slot: Slot, sent: usize, left: usize, full: bool) {
        let is_settled = self.out.watches.retain(slot, |watch| {
            let counts = &mut watch.part.borrow_mut().counts;
            if watch.end <= sent {
                counts.sent += 1;
            } else if full {
                counts.queued += 1;
                counts.queued_bytes += left;
            } else {
                watch.end -= sent;
                return true;
            }
            false
        });
        if is_settled {
            self.table[slot].flags.take(Flag::Watched);
        }
    }

    /// The channel ends, but what is queued for it is still sent.
    pub(in crate::shard) fn settle_as_queued(&mut self, slot: Slot) {
        let connection = &self.table[slot];
        if connection.flags.has(Flag::Watched) {
            self.settle_watches(slot, 0, connection.outbound.queued_bytes(), true);
        }
    }

    /// What is queued for a channel was dropped behind its first bytes, which still leave.
    pub(in crate::shard) fn settle_as_dropped_behind(&mut self, slot: Slot, bytes: usize) {
        if self.table[slot].flags.has(Flag::Watched) {
            let is_settled = self.out.watches.retain(slot, |watch| {
                let leaves = watch.end <= bytes;
                if !leaves {
                    watch.part.borrow_mut().counts.closed += 1;
                }
                leaves
            });
            if is_settled {
                self.table[slot].flags.take(Flag::Watched);
            }
            self.settle_as_queued(slot);
        }
    }

    /// The watched frames of a connection will never leave.
    pub(in crate::shard) fn drop_watches(&mut self, slot: Slot) {
        if self.table[slot].flags.take(Flag::Watched) {
            for watch in self.out.watches.take(slot) {
                watch.part.borrow_mut().counts.closed += 1;
            }
        }
    }
}
