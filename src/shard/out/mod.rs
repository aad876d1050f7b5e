//! The outbound path: pushes, the queues in which they wait, and sends.
//!
//! Invariants: the bulk list is in the order in which its connections were first touched, so the segment noted at its
//! head is the oldest that any of them needs; the urgent list is empty whenever segments are released; a connection
//! stands in a list at most once, and its flag says so.
//!
//! It must not depend on owners, and takes a connection as an argument: the table is another part.

pub(super) mod broadcast;
mod conflation;
pub mod deflate;
mod departed;
pub(super) mod frame;
pub(in crate::shard) mod journal;
mod kept;
pub(super) mod kept_channels;
mod kept_push;
pub(in crate::shard) mod listener_audience;
pub(in crate::shard) mod listeners;
mod log;
mod missing;
pub(super) mod outbound;
mod pieces;
pub(super) mod push;
mod range;
mod sealing;
mod sending;
mod waiting;
mod watches;
mod window;

use self::deflate::Contexts;
use self::journal::{Journal, Replay, ReturningAudiences};
use self::kept_channels::{KeptChannel, KeptChannels, Listener};
use self::outbound::Spares;
use self::range::Range;
use self::waiting::{Bulk, SendQueues};
use self::watches::Watches;
use self::window::{Cast, WINDOW_BYTES_MAX, Window};
use crate::gateway::OwnerId;
use crate::proto::ServerHeader;
use crate::proto::deflate::Deflater;
use crate::shard::flush::Flush;
use crate::shard::memory::SharedCharge;
use crate::shard::table::connection::{Connection, Flag};
use crate::shard::table::slot::Slot;
use bytes::Bytes;
use rustc_hash::FxHashMap;

/// See the module.
pub(super) struct Out {
    window: Window,
    /// The sealed records of one batch.
    records: Vec<u8>,
    spares: Spares,
    waiting: SendQueues,
    watches: Watches,
    /// The channels that the broadcast in progress reaches; empty between broadcasts.
    audience: Vec<Slot>,
    deflater: Deflater,
    contexts: Contexts,
    /// Channels that outlive their connections.
    pub(in crate::shard) kept_channels: KeptChannels,
    /// The place of the table at which looking for their logs goes on: see `trim_history`.
    logs_trimmed: usize,
    /// Channels that only receive, and what their processes have pushed to such.
    pub(in crate::shard) listeners: FxHashMap<Slot, Listener>,
    pub(in crate::shard) journals: FxHashMap<OwnerId, Journal>,
    flusher: Box<dyn Flush>,
}

impl Out {
    /// Nothing waits yet; messages to one channel are compressed as hard as `level` says. History is divided by
    /// `seed`.
    pub(super) fn new(flusher: Box<dyn Flush>, level: u32, seed: u64) -> Self {
        let mut window = Window::default();
        window.kept.set_seed(seed);
        Self {
            window,
            records: Vec::new(),
            spares: Spares::default(),
            waiting: SendQueues::default(),
            watches: Watches::default(),
            audience: Vec::new(),
            deflater: Deflater::new(level),
            contexts: Contexts::default(),
            kept_channels: KeptChannels::default(),
            logs_trimmed: 0,
            listeners: FxHashMap::default(),
            journals: FxHashMap::default(),
            flusher,
        }
    }

    /// Compresses messages to one channel as hard as `level` says from now on.
    pub(super) fn set_level(&mut self, level: u32) {
        self.deflater = Deflater::new(level);
    }

    /// Returns whether what waits should be sent before more is taken in.
    pub(super) fn is_window_full(&self) -> bool {
        self.window.bytes() >= WINDOW_BYTES_MAX
    }

    /// All that waits for its first send.
    pub(super) fn window_bytes(&self) -> usize {
        self.window.bytes()
    }

    /// The window's own memory in it, and that of outcomes that are awaited.
    pub(super) fn window_own_bytes(&self) -> usize {
        self.window.heap_bytes() + self.watches.heap_bytes()
    }

    /// The memory of spare queues.
    pub(super) fn spare_bytes(&self) -> usize {
        self.spares.heap_bytes()
    }

    /// Lets go of spare queues. Returns their number, and the bytes that they took.
    pub(super) fn drop_spares(&mut self) -> (usize, usize) {
        let spares = std::mem::take(&mut self.spares);
        (spares.len(), spares.heap_bytes())
    }

    /// Returns whether anything waits that a socket may take.
    pub(super) fn wants_flush(&self) -> bool {
        !self.waiting.urgent.is_empty() || !self.waiting.bulk.is_empty()
    }

    /// This connection has something to send that concerns it alone.
    #[inline]
    pub(super) fn mark_urgent(&mut self, connection: &mut Connection, slot: Slot) {
        if connection.flags.set_new(Flag::Urgent) {
            // By its owner's place; the first lane is for connections without one.
            let lane = connection.channel().map_or(0, |channel| channel.owner + 1);
            self.waiting.urgent.push_back(lane, slot);
        }
    }

    /// This connection has something to send that many others have too, at `segment` or later.
    #[inline]
    fn mark_bulk(&mut self, connection: &mut Connection, slot: Slot, segment: u32) {
        if connection.flags.set_new(Flag::Bulk) {
            debug_assert!(
                self.waiting.bulk.back().is_none_or(|last| last.segment.wrapping_sub(segment) as i32 <= 0),
                "the bulk list is in the order of first touch"
            );
            self.waiting.bulk.push_back(Bulk { slot, segment });
        }
    }

    /// Puts a small frame behind what waits for a connection whose socket takes bytes. Returns whether that takes more
    /// of the heap now, as [`push_range`](outbound::Outbound::push_range) does.
    #[inline]
    pub(super) fn append(
        &mut self,
        connection: &mut Connection,
        slot: Slot,
        header: &ServerHeader,
        payload: &[u8],
        copy_bytes_max: usize,
    ) -> Option<usize> {
        let range = self.window.append_frame(header, payload);
        let grew = connection.outbound.push_range(range, copy_bytes_max, &self.window, &mut self.spares);
        self.mark_urgent(connection, slot);
        grew
    }

    /// Appends bytes that are not frames: a head and a body, by reference if `charge` names a tenant.
    pub(super) fn push_opaque(
        &mut self,
        connection: &mut Connection,
        slot: Slot,
        head: &[u8],
        body: Bytes,
        charge: Option<SharedCharge>,
    ) {
        match charge {
            None => {
                let range = self.window.append_joined(Cast::One, head, &body);
                connection.outbound.push_opaque(range, &self.window, &mut self.spares);
            }
            Some(charge) => {
                let head = self.window.append_joined(Cast::One, head, b"");
                let body = self.window.append_blob(Cast::One, None, body, charge);
                connection.outbound.push_opaque(head, &self.window, &mut self.spares);
                connection.outbound.push_opaque(body, &self.window, &mut self.spares);
            }
        }
        self.mark_urgent(connection, slot);
    }

    /// Drops everything behind the frame in progress; returns how many bytes that were.
    pub(super) fn drop_behind_boundary(&mut self, connection: &mut Connection) -> usize {
        connection.outbound.drop_behind_boundary(&self.window, &mut self.spares)
    }

    /// Drops the oldest data frames until `bytes` are gone; returns how many frames went.
    pub(super) fn drop_oldest(&self, connection: &mut Connection, bytes: usize) -> usize {
        connection.outbound.drop_oldest(bytes, &self.window).0
    }

    /// Drops the newest data frames until `bytes` are gone; returns how many frames went.
    pub(super) fn drop_newest(&self, connection: &mut Connection, bytes: usize) -> usize {
        connection.outbound.drop_newest(bytes, &self.window)
    }

    /// A channel-to-be agreed that its messages may refer to earlier ones.
    pub(super) fn take_context_over(&mut self, slot: Slot, window_bits: u8) {
        self.contexts.add(slot, window_bits);
    }

    /// The bytes that the contexts of all channels may take.
    pub(super) fn context_bytes(&self) -> usize {
        self.contexts.bytes()
    }

    /// A connection whose place in a list was just seen to has this range, which may be of what is kept.
    fn need(&mut self, range: Range) {
        if range.is_kept() {
            let until = self.waiting.offered + 1 + self.waiting.bulk.len() as u64;
            self.window.kept.needed(range, until);
        }
    }

    /// How many connections have been taken off the bulk list, and one; as long as the urgent list is not empty, none:
    /// what any of them needs may not go.
    fn offered(&self) -> u64 {
        if self.waiting.urgent.is_empty() { self.waiting.offered + 1 } else { 0 }
    }

    /// The bytes kept beyond the window, by all channels together.
    pub(super) fn history_bytes(&self) -> usize {
        self.window.kept.bytes()
    }

    /// The frames that a client missed wait again; see [`log::Log::rewind`].
    pub(super) fn rewind(&mut self, slot: Slot, received: u64) -> Option<u64> {
        self.kept_channels.get_mut(&slot)?.log.rewind(received, &self.window.kept)
    }

    /// The events that a listener which received event `last` of a process has missed; see [`Journal::since`].
    pub(crate) fn missed_since(
        &self,
        owner: OwnerId,
        last: u64,
        bytes_max: usize,
        belongs: &ReturningAudiences,
    ) -> Option<Replay> {
        Some(self.journals.get(&owner)?.since(last, bytes_max, &self.window.kept, belongs))
    }

    /// A channel outlives its connections from now on.
    pub(super) fn keep(&mut self, slot: Slot, kept_channel: KeptChannel) {
        self.kept_channels.insert(slot, Box::new(kept_channel));
    }

    /// The connection is gone, but not its channel: nothing waits for it but what is in the log.
    pub(super) fn let_go_of_connection(&mut self, connection: &mut Connection, slot: Slot) {
        connection.outbound.clear(&mut self.spares);
        self.contexts.remove(slot);
    }

    /// This connection ends: nothing of it waits any more.
    pub(super) fn forget(&mut self, connection: &mut Connection, slot: Slot) {
        connection.outbound.clear(&mut self.spares);
        drop(self.watches.take(slot));
        self.contexts.remove(slot);
        self.kept_channels.remove(&slot);
        self.listeners.remove(&slot);
    }

    /// Asserts what the module promises, as far as this part knows it.
    pub(super) fn check(&self) {
        assert!(self.audience.is_empty(), "no broadcast is in progress between turns");
        let mut order = self.waiting.bulk.iter().map(|bulk| bulk.segment);
        let first = order.next();
        let is_ordered = first.is_none_or(|mut last| {
            order.all(|segment| segment.wrapping_sub(std::mem::replace(&mut last, segment)) as i32 >= 0)
        });
        assert!(is_ordered, "the bulk list is in the order of first touch");
        if !self.wants_flush() {
            assert_eq!(self.window.bytes(), 0, "an unneeded window is empty");
        }
        self.window.kept.check();
        self.journals.values().for_each(Journal::check);
        self.kept_channels.values().for_each(|kept_channel| kept_channel.log.check());
    }
}
