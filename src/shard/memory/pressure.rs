//! Short of memory: which connections make room, and which wait.
//!
//! The shard leases what it holds ([`crate::shard::memory`]). When too little is left of the budget, owners that hold
//! more than their share of it give back, the fullest connection first, whichever shard it is on: a channel that is
//! behind meets the policy of what was pushed to it (its oldest or newest frames are dropped, or it is closed with
//! 1013); a client whose own message fills the memory is refused (1013, or 503). A process within its share gives only
//! for itself, or where no owner holds more than a share. If reading made memory short, clients in the middle of a
//! message or request are first not read for a while: queues that drain by themselves may make room. What these clients
//! hold does not drain by waiting, so after [`PATIENCE_MS`] the fullest of them is refused, and the next, until there
//! is room: no two clients wait for each other for ever.
//!
//! Invariants: queued output exceeds the lease for as long as giving back takes, which is a bounded part of each turn;
//! including data that is being read, the total exceeds it by a quarter at most; each step frees something or skips a
//! holder, so relieving ends.

use crate::admission::Notice;
use crate::http::PreparedResponse;
use crate::proto::close;
use crate::shard::command::CloseFrame;
use crate::shard::core::Shard;
use crate::shard::event::ClosedBy;
use crate::shard::memory::{HolderList, Memory, MemoryReport, Shortage};
use crate::shard::owners::directory::Owner;
use crate::shard::table::connection::{ConnectionPhase, Flag};
use crate::shard::table::slot::Slot;
use crate::shard::work::{self, free_ns};
use crate::words::policy::WhenFull;

/// How long clients in the middle of a message wait for memory: long enough for a client that was merely behind to take
/// a megabyte, short beside every timeout.
const PATIENCE_MS: u64 = 1000;

/// The bytes that one read may add to a message that has begun: those read at a time, and those reserved ahead of it.
/// Twice that, since an outgrown reservation is copied.
const READ_BYTES: usize = 256 * 1024;

/// For how much work those over their share give back in a turn, and for how much the shard's memory is brought below
/// its lease.
const GIVE_NS: u64 = 100_000;

/// For how much work others make room for one frame; then it meets its own policy.
const MAKE_ROOM_NS: u64 = 200_000;

/// Of so many owners it is published in one turn what they hold.
const PUBLISHED_MAX: usize = 256;

/// So much of one queue is dropped at a time: of the smallest frames, some 20,000.
const DROPPED_BYTES_MAX: usize = 64 * 1024;

/// The reason for clients.
const SHORT: &str = "the server is short of memory";

impl Shard {
    /// Takes note of what this connection holds now.
    pub(in crate::shard) fn weigh(&mut self, slot: Slot) {
        let connection = &mut self.table[slot];
        let owner = connection.channel().map(|channel| &*self.owners[channel.owner].owner);
        if self.memory.note(slot, owner, connection.held()) {
            connection.flags.set(Flag::Holds);
        } else {
            connection.flags.take(Flag::Holds);
        }
    }

    /// Returns whether `bytes` more may wait for `owner`, once owners above their share have made room.
    pub(in crate::shard) fn has_memory_for(&mut self, bytes: usize, owner: &Owner) -> bool {
        let until_ns = self.work.spent_ns() + MAKE_ROOM_NS;
        loop {
            if self.memory.cover_for(bytes, owner) {
                return true;
            }
            if self.work.spent_ns() >= until_ns {
                return false;
            }
            if self.shed_history() {
                continue;
            }
            // All owners are looked at who hold something.
            self.work.spend(work::LOOK_NS + self.memory.owners() as u64 * work::PASS_NS);
            let Some((kind, slot)) = self.memory.first_to_give(owner.id) else { return false };
            self.give(kind, slot);
        }
    }

    /// Returns whether a client in the middle of a message or request must wait for memory.
    pub(in crate::shard) fn must_wait_for_memory(&mut self, slot: Slot) -> bool {
        let connection = &mut self.table[slot];
        if connection.incoming_bytes() == 0 {
            return false;
        }
        let has_room = match connection.channel() {
            Some(channel) => self.memory.cover_for(READ_BYTES, &self.owners[channel.owner].owner),
            None => self.memory.cover_beside_reserve(READ_BYTES),
        };
        if has_room {
            return false;
        }
        if !connection.flags.has(Flag::WaitsForMemory) {
            connection.flags.set(Flag::WaitsForMemory);
            self.memory.waiting.push(slot);
        }
        true
    }

    /// Brings the held memory below the leased, once a turn.
    pub(in crate::shard) fn balance_memory(&mut self) {
        self.memory.note_window(self.out.window_own_bytes(), self.out.spare_bytes());
        self.memory.begin_turn();
        let published = self.memory.publish(PUBLISHED_MAX);
        self.work.spend(published as u64 * work::LOOK_AT_OWNER_NS);
        if self.memory.is_pressed() {
            let (dropped, bytes) = self.out.drop_spares();
            self.work.spend(work::drop_ns(dropped, bytes));
            self.memory.note_window(self.out.window_own_bytes(), self.out.spare_bytes());
        }
        // History goes first; then owners above their share make room for the others, whichever shard they are on, for
        // a part of the turn.
        let until_ns = self.work.spent_ns() + GIVE_NS;
        while self.memory.is_pressed() {
            if self.work.spent_ns() >= until_ns {
                self.memory.gives_on = true;
                break;
            }
            if !self.shed_history() {
                let Some((kind, slot)) = self.memory.first_over_share() else { break };
                self.give(kind, slot);
            }
            self.memory.trim();
        }
        // Those for whom the reserve is do not wait.
        let is_covered = |memory: &Memory| {
            memory.covers_all() && (memory.waiting.is_empty() || memory.cover_beside_reserve(READ_BYTES))
        };
        let until_ns = self.work.spent_ns() + GIVE_NS;
        while !is_covered(&self.memory) {
            if self.work.spent_ns() >= until_ns {
                self.memory.gives_on = true;
                return;
            }
            if self.shed_history() {
                continue;
            }
            // All owners are looked at who hold something, once for each kind.
            self.work.spend(work::LOOK_NS + 2 * self.memory.owners() as u64 * work::PASS_NS);
            let is_patient = self.short_for_ms() < PATIENCE_MS && !self.memory.is_overdrawn();
            let [queued, incoming] =
                [HolderList::Queued, HolderList::Incoming].map(|kind| self.memory.fullest_class(kind));
            // Connections that are only being read wait first.
            let waits = is_patient && queued < incoming;
            // Otherwise the rest drains by itself: the window, the inbox, and connections that were passed over.
            let first =
                if waits { None } else { self.memory.first_over_share().or_else(|| self.memory.fullest_of_all()) };
            let Some((kind, slot)) = first else { return };
            self.give(kind, slot);
        }
        self.memory.trim();
        self.read_on();
    }

    /// How long memory has been short. If it was short a moment ago, it still is: each refusal makes room for the next
    /// message.
    fn short_for_ms(&mut self) -> u64 {
        let now_ms = self.now_ms;
        let since_ms = match self.memory.short {
            Some(Shortage { since_ms, last_ms }) if now_ms <= last_ms + PATIENCE_MS => since_ms,
            _ => now_ms,
        };
        self.memory.short = Some(Shortage { since_ms, last_ms: now_ms });
        now_ms - since_ms
    }

    /// Reads the clients again that waited for memory.
    fn read_on(&mut self) {
        if self.memory.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.memory.waiting);
        self.work.spend(waiting.len() as u64 * work::PASS_NS);
        for slot in waiting.drain(..) {
            if let Some(connection) = self.table.get_mut(slot)
                && connection.flags.take(Flag::WaitsForMemory)
            {
                self.intake.resume(connection, slot);
            }
        }
        self.memory.waiting = waiting;
    }

    /// A connection gives something up, or is passed over.
    fn give(&mut self, kind: HolderList, slot: Slot) {
        let held = self.memory.of(slot);
        let values = self.table[slot].outbound.held_values() as u64 * work::RELEASE_NS;
        self.work.spend(work::END_NS + free_ns(held.own + held.incoming) + values);
        match kind {
            HolderList::Queued => self.relieve(slot),
            HolderList::Incoming => self.refuse_incoming(slot),
        }
    }

    /// A connection that is behind makes room.
    fn relieve(&mut self, slot: Slot) {
        let connection = &mut self.table[slot];
        let outbound = &mut connection.outbound;
        if !outbound.is_blocked() {
            // Bytes that the socket is ready to take are on their way out.
            return self.memory.pass_over(slot, HolderList::Queued);
        }
        let ConnectionPhase::Open(_) = &connection.phase else {
            // It has had its last word, or takes its response too slowly.
            self.count_closed_for_memory(slot);
            return self.cut(slot);
        };
        if self.detach(slot) {
            // Nothing is lost by that: its client comes back.
            return self.count_closed_for_memory(slot);
        }
        let connection = &mut self.table[slot];
        let ConnectionPhase::Open(channel) = &connection.phase else { return };
        // Half of it, so that the same one is not asked again for every frame.
        let half = connection.outbound.queued_bytes().div_ceil(2).min(DROPPED_BYTES_MAX);
        let dropped = match connection.policy.unwrap_or(self.owners[channel.owner].owner.policy().when_full()) {
            WhenFull::Close => return self.close_for_memory(slot),
            WhenFull::DropOldest => self.out.drop_oldest(connection, half),
            WhenFull::DropNewest => self.out.drop_newest(connection, half),
        };
        self.work.spend(work::drop_ns(dropped, half));
        self.stats.dropped += dropped as u64;
        self.stats.dropped_for_memory += dropped as u64;
        self.weigh(slot);
        if dropped == 0 && self.memory.is_overdrawn() {
            // Only a frame in progress is left, and too many have one.
            self.count_closed_for_memory(slot);
            self.cut_for(slot, close::code::TRY_AGAIN_LATER, SHORT);
        } else if dropped == 0 {
            self.memory.pass_over(slot, HolderList::Queued);
        }
    }

    pub(in crate::shard) fn close_for_memory(&mut self, slot: Slot) {
        self.count_closed_for_memory(slot);
        let why = CloseFrame { code: Some(close::code::TRY_AGAIN_LATER), reason: SHORT.into() };
        self.close_now(slot, &why, ClosedBy::Broker);
    }

    fn count_closed_for_memory(&mut self, slot: Slot) {
        self.stats.closed_for_memory += 1;
        self.notice(Notice::Memory, || self.peer_for_log(slot));
    }

    /// A client in the middle of a message or request is told to come again.
    fn refuse_incoming(&mut self, slot: Slot) {
        match &self.table[slot].phase {
            ConnectionPhase::Open(_) | ConnectionPhase::Registering(_) => self.close_for_memory(slot),
            // A response is on its way; what waits behind it is bounded.
            ConnectionPhase::Http(exchange) if exchange.is_answering() => {
                self.memory.pass_over(slot, HolderList::Incoming)
            }
            ConnectionPhase::Http(_) => {
                self.count_closed_for_memory(slot);
                self.table[slot].flags.take(Flag::WaitsForMemory);
                self.answer(slot, PreparedResponse::text(503, SHORT).with("retry-after", "1").closing());
                self.weigh(slot);
            }
            ConnectionPhase::Ending(_) => self.weigh(slot),
        }
    }

    /// The memory that the shard holds, by kind; memory outside of shards only on request, since it belongs to all of
    /// them.
    pub(in crate::shard) fn memory_report(&self, with_kept: bool) -> MemoryReport {
        if with_kept { self.memory.report_all() } else { self.memory.report() }
    }
}

#[cfg(test)]
#[path = "pressure_tests.rs"]
mod tests;
