//! The outbound path through TLS: data for a client is plaintext until it is offered to its socket, and is sealed then.
//!
//! A batch seals into one buffer of the shard's, whose records leave with the plaintext of other clients. A sealed
//! record has its number, so it must leave before anything that is sealed later: where a socket has not taken all, the
//! rest of the records stays at the front of the queue ([`Outbound::sealed`]), out of the reach of policies. That is at
//! most [`SEALED_OFFER_BYTES_MAX`] of a client's bytes, and one record as long as its socket is full again and again.
//!
//! Invariants: a client is offered either records that wait, or newly sealed ones when none wait; the last record is
//! close_notify, and the writing side is shut behind it only.

use crate::shard::core::Shard;
use crate::shard::out::outbound::Outbound;
use crate::shard::table::connection::{Flag, Tls};
use crate::shard::table::slot::Slot;
use crate::tls::{Alert, OVERHEAD_BYTES, PLAIN_BYTES_MAX};
use std::io::IoSlice;
use std::ops::Range;

/// The bytes of its queue that one client is offered at a time: four records.
const SEALED_OFFER_BYTES_MAX: usize = 4 * PLAIN_BYTES_MAX;

/// The buffer for records kept between batches; more is given back.
const RECORDS_KEPT_BYTES: usize = 2 * 1024 * 1024;

/// The sealed bytes that one connection of a batch is offered.
pub(super) struct Sealing {
    /// Its place in the batch.
    pub index: usize,
    /// Newly sealed records; `None` where those are offered that wait.
    new: Option<SealedRecords>,
}

struct SealedRecords {
    /// Where they lie in the shard's buffer.
    records: Range<usize>,
    /// The part of it before the first record of data: the answer to a KeyUpdate.
    before_bytes: usize,
    /// How much of the queue they hold.
    plain_bytes: usize,
}

impl SealedRecords {
    /// How much of the queue a socket has that took so many bytes: of whole records, for part of one says nothing.
    fn plain_of(&self, taken: usize) -> usize {
        let whole = taken.saturating_sub(self.before_bytes) / (PLAIN_BYTES_MAX + OVERHEAD_BYTES);
        (whole * PLAIN_BYTES_MAX).min(self.plain_bytes)
    }
}

impl Sealing {
    /// The bytes to send.
    pub(super) fn bytes<'a>(&self, outbound: &'a Outbound, records: &'a [u8]) -> &'a [u8] {
        match &self.new {
            Some(new) => &records[new.records.clone()],
            None => outbound.sealed(),
        }
    }
}

impl Shard {
    /// Seals what the clients of a batch are offered that came over TLS. In the order of the batch.
    pub(super) fn seal_batch(&mut self, batch: &[Slot]) -> Vec<Sealing> {
        let mut sealings = Vec::new();
        if self.table.over_tls() == 0 {
            return sealings;
        }
        self.out.records.clear();
        self.out.records.shrink_to(RECORDS_KEPT_BYTES);
        for (index, &slot) in batch.iter().enumerate() {
            if self.table[slot].tls.is_some() {
                let new = self.seal(slot);
                sealings.push(Sealing { index, new });
            }
        }
        sealings
    }

    fn seal(&mut self, slot: Slot) -> Option<SealedRecords> {
        let (connection, out) = (&mut self.table[slot], &mut self.out);
        let outbound = &connection.outbound;
        let Some(Tls::Open(open)) = connection.tls.as_deref_mut() else { return None };
        if !outbound.sealed().is_empty() {
            return None;
        }
        let bytes_max = if open.is_short { PLAIN_BYTES_MAX } else { SEALED_OFFER_BYTES_MAX };
        let start = out.records.len();
        open.records.seal_due(&mut out.records);
        let before_bytes = out.records.len() - start;
        let plain_bytes = match outbound.as_slice(&out.window) {
            Some(slice) => {
                let slice = &slice[..slice.len().min(bytes_max)];
                open.records.seal(&[IoSlice::new(slice)], &mut out.records);
                slice.len()
            }
            None => {
                let mut slices = Vec::new();
                let bytes = outbound.gather(&out.window, bytes_max, usize::MAX, &mut slices);
                open.records.seal(&slices, &mut out.records);
                bytes
            }
        };
        if connection.flags.has(Flag::Shutdown) && plain_bytes == outbound.queued_bytes() && !open.has_said_goodbye {
            // RFC 8446 6.1: before the writing side is shut.
            open.has_said_goodbye = true;
            open.records.seal_alert(Alert::CLOSE_NOTIFY, &mut out.records);
        }
        Some(SealedRecords { records: start..out.records.len(), before_bytes, plain_bytes })
    }

    /// Takes note of what became of one send of records: `None` is all of it.
    pub(super) fn apply_sealed(
        &mut self,
        slot: Slot,
        sealing: &Sealing,
        offered: usize,
        result: Option<Result<usize, i32>>,
    ) {
        let (connection, out) = (&mut self.table[slot], &mut self.out);
        connection.flags.take(Flag::InBatch);
        let taken = match result {
            None => offered,
            Some(Ok(taken)) => taken,
            Some(Err(_)) => return self.connection_failed(slot),
        };
        self.stats.sent_bytes += taken as u64;
        let full = taken < offered;
        let outbound = &mut connection.outbound;
        let sent = match &sealing.new {
            None => {
                outbound.sent_sealed(taken, full, &out.window, &mut out.spares);
                taken
            }
            Some(new) => {
                if new.plain_bytes == outbound.offerable_bytes() {
                    outbound.sent_all(&mut out.spares);
                } else {
                    outbound.sent_some(new.plain_bytes, full, &out.window, &mut out.spares);
                }
                let rest = &out.records[new.records.start + taken..new.records.end];
                if full {
                    outbound.keep_sealed(rest, &mut out.spares);
                }
                if let Some(Tls::Open(open)) = connection.tls.as_deref_mut() {
                    open.is_short = full;
                }
                if full { new.plain_of(taken) } else { new.plain_bytes }
            }
        };
        if full && out.contexts.has(slot) {
            connection.outbound.pin();
        }
        if sealing.new.is_none() && !full && !connection.outbound.is_empty() {
            // Bytes after the records were not offered, and may be ranges still.
            out.mark_urgent(connection, slot);
        }
        self.after_offer(slot, sent, full);
    }

    /// Seals the close_notify of a connection that has nothing else to send; returns whether it is still to be sent.
    pub(in crate::shard) fn say_goodbye(&mut self, slot: Slot) -> bool {
        let Some(Tls::Open(open)) = self.table[slot].tls.as_deref_mut() else { return false };
        if std::mem::replace(&mut open.has_said_goodbye, true) {
            return false;
        }
        let mut record = Vec::new();
        open.records.seal_alert(Alert::CLOSE_NOTIFY, &mut record);
        self.send_records(slot, &record);
        true
    }

    /// Sends records, or what is said before there are any, ahead of everything that waits.
    pub(in crate::shard) fn send_records(&mut self, slot: Slot, records: &[u8]) {
        let (connection, out) = (&mut self.table[slot], &mut self.out);
        connection.outbound.push_sealed(records, &mut out.spares);
        if connection.outbound.is_blocked() {
            return self.weigh(slot);
        }
        out.mark_urgent(connection, slot);
    }

    /// Forgets what waits but for records: the last of them says why there is no more.
    pub(in crate::shard) fn send_only_records(&mut self, slot: Slot, records: &[u8]) {
        let (connection, out) = (&mut self.table[slot], &mut self.out);
        connection.outbound.keep_only_sealed(&mut out.spares);
        self.send_records(slot, records);
    }
}
