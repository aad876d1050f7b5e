//! Which connections have something to send, and sending it in batches.
//!
//! Two lists: `urgent` for what concerns one connection (unicasts, replies, control frames), `bulk` for the audiences of
//! broadcasts. A batch takes the urgent ones first, so a broadcast to 20,000 channels delays nobody else by more than a
//! batch.
//!
//! Invariants: the bulk list is in the order in which its connections were first touched, so the segment noted at its
//! head is the oldest that any of them needs; the urgent list is empty whenever segments are released.

use crate::shard::core::Shard;
use crate::shard::flush::{Outgoing, PARTS_MAX, Parts, Short};
use crate::shard::outcome::Part;
use crate::shard::table::connection::{Connection, Flags};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

/// The most sends of one batch: at the measured 3.5 to 5 µs each, about a millisecond without looking up.
const BATCH_SENDS_MAX: usize = 256;

/// The most bytes of one batch. A loopback socket takes 4 MB at once; a batch should not take that from each.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// The most bytes that one connection is offered at a time, so that one large blob does not hold up a batch.
const OFFER_BYTES_MAX: usize = 256 * 1024;

/// With so many bytes waiting for their first send, they go out before more pushes are taken in.
pub(in crate::shard) const WINDOW_BYTES_MAX: usize = 1024 * 1024;

/// Connections that have something to send.
#[derive(Default)]
pub(in crate::shard) struct Waiting {
    urgent: VecDeque<u32>,
    bulk: VecDeque<Bulk>,
    short: Vec<Short>,
}

struct Bulk {
    slot: u32,
    /// No range of this connection, or of those behind it, lies before this segment.
    segment: u32,
}

/// Frames whose outcome someone waits for, by connection.
pub(in crate::shard) type Watches = FxHashMap<u32, SmallVec<[Watch; 1]>>;

/// One such frame.
pub(in crate::shard) struct Watch {
    /// Where the frame ends, counted from the front of the connection's queue.
    pub end: usize,
    /// Where its outcome is counted. The last to let go of it answers.
    pub part: SharedPart,
}

/// A part of a ticket, shared by the frames of one push on this shard.
pub(in crate::shard) type SharedPart = Rc<RefCell<Box<Part>>>;

impl Shard {
    /// This connection has something to send that concerns it alone.
    pub(in crate::shard) fn mark_urgent(&mut self, slot: u32) {
        let flags = &mut self.connections[slot as usize].flags;
        if !flags.has(Flags::URGENT) {
            flags.set(Flags::URGENT);
            self.waiting.urgent.push_back(slot);
        }
    }

    /// This connection has something to send that many others have too, at `segment` or later.
    pub(in crate::shard) fn mark_bulk(connection: &mut Connection, waiting: &mut Waiting, slot: u32, segment: u32) {
        if !connection.flags.has(Flags::BULK) {
            connection.flags.set(Flags::BULK);
            waiting.bulk.push_back(Bulk { slot, segment });
        }
    }

    /// Sends one batch. Answers whether more is waiting.
    pub fn flush(&mut self) -> bool {
        if self.opened_untold {
            // Before the client can hear of its channel: what it then says elsewhere must not overtake this.
            self.hand_over();
        }
        let batch = self.take_batch();
        if !batch.is_empty() {
            self.send_batch(&batch);
        }
        if self.waiting.urgent.is_empty() {
            match self.waiting.bulk.front() {
                Some(first) => self.window.release_before(first.segment),
                None => self.window.release_all(),
            }
        }
        let goes_on = self.wants_flush();
        if !goes_on {
            // Whoever waits until all have been told of a stop is answered by the drop.
            self.stop_told = None;
        }
        goes_on
    }

    /// Whether anything waits that a socket may take.
    pub fn wants_flush(&self) -> bool {
        !self.waiting.urgent.is_empty() || !self.waiting.bulk.is_empty()
    }

    /// Offers one connection what waits for it, ahead of all others: a policy is applied only to what the socket
    /// itself has refused.
    pub(in crate::shard) fn flush_one(&mut self, slot: u32) {
        if self.enter_batch(slot) {
            // What the socket was not offered goes on with the urgent ones: the push in progress may yet put others
            // on the bulk list, for a segment before the tail.
            self.mark_urgent(slot);
            self.send_batch(&[slot]);
        }
    }

    /// Takes connections off the lists, urgent ones first.
    fn take_batch(&mut self) -> Vec<u32> {
        let expected = BATCH_SENDS_MAX.min(self.waiting.urgent.len() + self.waiting.bulk.len());
        let mut batch = Vec::with_capacity(expected);
        let mut bytes = 0;
        while batch.len() < BATCH_SENDS_MAX && bytes < BATCH_BYTES_MAX {
            let (slot, list) = match self.waiting.urgent.pop_front() {
                Some(slot) => (slot, Flags::URGENT),
                None => match self.waiting.bulk.pop_front() {
                    Some(bulk) => (bulk.slot, Flags::BULK),
                    None => break,
                },
            };
            // The connection may be gone, and its place even taken by another.
            let Some(connection) = self.connections.get_mut(slot as usize) else { continue };
            if connection.flags.take(list) && self.enter_batch(slot) {
                bytes += self.connections[slot as usize].outbound.queued_bytes().min(OFFER_BYTES_MAX);
                batch.push(slot);
            }
        }
        batch
    }

    /// Readies a connection for a batch; false if it has nothing to send or cannot.
    fn enter_batch(&mut self, slot: u32) -> bool {
        let connection = &mut self.connections[slot as usize];
        let ready = !connection.flags.has(Flags::IN_BATCH)
            && !connection.outbound.is_blocked()
            && connection.outbound.prepare(self.config.copy_bytes_max);
        if ready {
            connection.flags.set(Flags::IN_BATCH);
        }
        ready
    }

    fn send_batch(&mut self, batch: &[u32]) {
        let mut short = std::mem::take(&mut self.waiting.short);
        let mut offered: SmallVec<[u32; 8]> = SmallVec::with_capacity(batch.len());
        {
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(batch.len());
            let mut ends: SmallVec<[u32; 8]> = SmallVec::with_capacity(batch.len());
            for &slot in batch {
                let outbound = &self.connections[slot as usize].outbound;
                let bytes = match outbound.as_slice(&self.window) {
                    Some(slice) => {
                        slices.push(IoSlice::new(slice));
                        slice.len()
                    }
                    None => outbound.gather(&self.window, OFFER_BYTES_MAX, PARTS_MAX, &mut slices),
                };
                offered.push(bytes as u32);
                ends.push(slices.len() as u32);
            }
            let mut from = 0;
            let outgoing: Vec<Outgoing<'_>> = std::iter::zip(batch, &ends)
                .zip(&offered)
                .map(|((&slot, &end), &bytes)| {
                    let connection = &self.connections[slot as usize];
                    let is_last =
                        connection.flags.has(Flags::SHUTDOWN) && bytes as usize == connection.outbound.queued_bytes();
                    let parts = &slices[std::mem::replace(&mut from, end as usize)..end as usize];
                    let parts = if let [only] = parts { Parts::One(only) } else { Parts::Many(parts) };
                    Outgoing { socket: connection.socket, parts, is_last }
                })
                .collect();
            self.flusher.send_all(&outgoing, &mut short);
        }
        self.stats.sends += batch.len() as u64;
        short.sort_unstable_by_key(|short| short.index);
        let mut shorts = short.drain(..).peekable();
        for (index, &slot) in batch.iter().enumerate() {
            let result = shorts.next_if(|short| short.index == index).map(|short| short.sent);
            self.apply_sent(slot, offered[index] as usize, result);
        }
        drop(shorts);
        self.waiting.short = short;
    }

    /// Takes note of what became of one send: `None` is all of it.
    fn apply_sent(&mut self, slot: u32, offered: usize, result: Option<Result<usize, i32>>) {
        let connection = &mut self.connections[slot as usize];
        connection.flags.take(Flags::IN_BATCH);
        let sent = match result {
            None => offered,
            Some(Ok(sent)) => sent,
            Some(Err(_)) => return self.connection_failed(slot),
        };
        self.stats.sent_bytes += sent as u64;
        let full = sent < offered;
        if sent == connection.outbound.offerable_bytes() {
            connection.outbound.sent_all(&mut self.spares);
        } else {
            connection.outbound.sent_some(sent, full, &self.window, &mut self.spares);
            if full && self.contexts.has(slot) {
                connection.outbound.pin();
            }
        }
        let left = connection.outbound.queued_bytes();
        if full {
            self.stats.short_sends += 1;
        } else if left > 0 && !connection.flags.has(Flags::URGENT) {
            // Behind everybody else: others had no turn yet. Its bytes are its own now; what follows comes at the tail.
            let segment = self.window.tail();
            Self::mark_bulk(connection, &mut self.waiting, slot, segment);
        }
        if connection.flags.has(Flags::WATCHED) {
            self.settle_watches(slot, sent, left, full);
        }
        if left > 0 || self.connections[slot as usize].flags.has(Flags::HOLDS) {
            self.weigh(slot);
        }
        self.after_sent(slot, left);
    }

    /// Counts the outcome of watched frames, now that `sent` bytes have left. The others wait, for good if `full`; else
    /// they are still to be offered.
    fn settle_watches(&mut self, slot: u32, sent: usize, left: usize, full: bool) {
        let Some(watches) = self.watches.get_mut(&slot) else { return };
        watches.retain(|watch| {
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
        if watches.is_empty() {
            self.watches.remove(&slot);
            self.connections[slot as usize].flags.take(Flags::WATCHED);
        }
    }

    /// The channel ends, but what is queued for it is still sent.
    pub(in crate::shard) fn settle_as_queued(&mut self, slot: u32) {
        let connection = &self.connections[slot as usize];
        if connection.flags.has(Flags::WATCHED) {
            self.settle_watches(slot, 0, connection.outbound.queued_bytes(), true);
        }
    }

    /// The watched frames of a connection will never leave.
    pub(in crate::shard) fn drop_watches(&mut self, slot: u32) {
        if self.connections[slot as usize].flags.take(Flags::WATCHED) {
            for watch in self.watches.remove(&slot).into_iter().flatten() {
                watch.part.borrow_mut().counts.closed += 1;
            }
        }
    }
}
