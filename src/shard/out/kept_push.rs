//! Pushes to channels that outlive their connections: into the log first, and to the connection as far as it takes
//! them.
//!
//! Invariants: a message has a position from the moment it is accepted, dropped ones too; messages after a full socket,
//! or without a connection, wait in the log and nowhere else, and go to the connection in order; a gap is reported
//! before the next message. A policy applies to messages not given to the connection.

use crate::proto::{Opcode, server_header};
use crate::resume::text;
use crate::shard::command::{Policy, ShardAudience, WhenFull};
use crate::shard::core::Shard;
use crate::shard::out::broadcast::{Encoding, Forms};
use crate::shard::out::kept::FRAME_BYTES_MAX;
use crate::shard::out::push::{BroadcastTo, FrameResult, fits};
use crate::shard::out::range::{Range, RangeBytes};
use crate::shard::out::window::Cast;
use crate::shard::table::connection::{ConnectionPhase, Flag};
use crate::shard::table::slot::Slot;
use crate::shard::work::{self, copy_ns};
use bytes::Bytes;

/// A connection that takes up its log is given so much at a time, or as much as may wait for it.
const FEED_BYTES: usize = 256 * 1024;

/// And of so many ranges: giving it these costs about as much as sending them. Where others are pushed to in between,
/// each frame is one.
const FEED_RANGES_MAX: usize = 128;

/// So many places of the table are looked at in a tick for logs of which history has let go, and for so much work.
const LOGS_TRIMMED_MAX: usize = 1024;
const TRIM_LOGS_NS: u64 = 100_000;

/// Connections to which a frame that is kept is not simply given, too.
const NOT_AT_ONCE: u32 = Flag::CloseSent.bit() | Flag::Detached.bit() | Flag::Lags.bit() | Flag::Sse.bit();

impl Shard {
    /// The short way of most of a broadcast's frames to channels that outlive their connections: as it is kept already,
    /// to a channel that has nothing in the way of it. Returns whether it was that; if not, nothing has happened.
    #[inline]
    pub(super) fn keep_at_once(
        &mut self,
        slot: Slot,
        forms: &mut Forms,
        BroadcastTo { policy, part, .. }: BroadcastTo<'_>,
        since: u32,
    ) -> bool {
        let Some(range) = forms.only().and_then(|plain| plain.kept()).filter(|_| part.is_none()) else { return false };
        let (Some(connection), Some(kept_channel)) = (self.table.get_mut(slot), self.out.kept_channels.get_mut(&slot))
        else {
            return false;
        };
        let is_free = matches!(connection.phase, ConnectionPhase::Open(_))
            && !connection.flags.has_any(NOT_AT_ONCE)
            && !connection.outbound.is_blocked()
            && fits(connection.outbound.queued_bytes(), range.len(), self.config.outbound_bytes_max)
            && connection.outbound.extend(range, &self.out.window);
        if is_free {
            connection.policy = policy.map(Policy::when_full);
            let may_have_grown =
                kept_channel.log.append_sent(range, &self.out.window.kept, self.config.resume.bytes_max);
            self.out.mark_bulk(connection, slot, since);
            self.out.need(range);
            self.stats.pushed += 1;
            self.work.spend(work::OFFER_NS);
            if may_have_grown {
                self.count_log(slot);
            }
        }
        is_free
    }

    /// Puts a frame into the log of a kept channel that is open, and on its way if the connection takes it.
    pub(in crate::shard) fn offer_kept(
        &mut self,
        slot: Slot,
        encoding: &mut Encoding,
        policy: Option<Policy>,
        since: Option<u32>,
    ) -> FrameResult {
        if encoding.parts.is_control() || encoding.control_text_to.is_some() {
            return self.offer_control_to_kept(slot, encoding, since);
        }
        let len = encoding.kept_len();
        if len > FRAME_BYTES_MAX {
            return self.over_budget(slot);
        }
        while let Some(connection) = self.table.get(slot)
            && let ConnectionPhase::Open(channel) = &connection.phase
            && !connection.flags.has(Flag::CloseSent)
        {
            let waits = connection.flags.has(Flag::Detached)
                || connection.flags.has(Flag::Lags)
                || connection.outbound.is_blocked();
            if waits {
                return self.offer_to_log(slot, encoding, policy, len);
            }
            if fits(connection.outbound.queued_bytes(), len, self.config.outbound_bytes_max) {
                let gets_compressed = encoding.is_better_compressed() && channel.ws.deflate().is_some();
                return self.offer_and_keep(slot, encoding, (policy, since), gets_compressed);
            }
            self.flush_one(slot);
        }
        FrameResult::Closed
    }

    /// The connection takes it now, and the log remembers it.
    #[inline]
    fn offer_and_keep(
        &mut self,
        slot: Slot,
        encoding: &mut Encoding,
        (policy, since): (Option<Policy>, Option<u32>),
        gets_compressed: bool,
    ) -> FrameResult {
        let range = match encoding.kept() {
            Some(range) => range,
            None => self.kept_range(slot, encoding),
        };
        let Some(kept_channel) = self.out.kept_channels.get_mut(&slot) else { return FrameResult::Closed };
        let may_have_grown = kept_channel.log.append_sent(range, &self.out.window.kept, self.config.resume.bytes_max);
        let sent = if gets_compressed { encoding.range(Cast::of(since), &mut self.out.window) } else { range };
        self.table[slot].policy = policy.map(Policy::when_full);
        self.append_range(slot, sent, since);
        if may_have_grown {
            self.count_log(slot);
        }
        FrameResult::Waits
    }

    /// The connection takes nothing now, or there is none: the log does, as the policy says.
    fn offer_to_log(&mut self, slot: Slot, encoding: &mut Encoding, policy: Option<Policy>, len: usize) -> FrameResult {
        let Some(channel) = self.table[slot].channel() else { return FrameResult::Closed };
        let owner = self.owners[channel.owner].owner.clone();
        self.table[slot].policy = policy.map(Policy::when_full);
        let policy = policy.unwrap_or(owner.policy());
        let (outbound, budget) = (&self.table[slot].outbound, self.config.outbound_bytes_max);
        let Some(kept_channel) = self.out.kept_channels.get_mut(&slot) else { return FrameResult::Closed };
        let log = &mut kept_channel.log;
        let key = policy.key();
        let replaced = key.map_or(0, |key| log.queued_len_of(key));
        let given = if log.gives_again() { 0 } else { outbound.queued_bytes() };
        let rest = given + log.queued_bytes() - replaced;
        if !fits(rest, len, budget) || (replaced == 0 && !log.has_places(budget)) {
            match policy.when_full() {
                WhenFull::Close => return self.over_budget(slot),
                WhenFull::DropNewest => return self.drop_from_log(slot),
                WhenFull::DropOldest => {
                    // Nothing is dropped for a frame that would not fit even so.
                    let excess = (rest + len).saturating_sub(budget).max(1);
                    if len > budget || log.queued_bytes() - replaced < excess {
                        return self.drop_from_log(slot);
                    }
                    let (messages, bytes) = log.drop_oldest(excess, &self.out.window.kept);
                    self.work.spend(work::drop_ns(messages, bytes));
                    self.stats.dropped += messages as u64;
                }
            }
        }
        // One that is kept already takes no more.
        let has_memory = self.has_memory_for(if encoding.kept().is_some() { 0 } else { len }, &owner);
        // The fullest channel has made room; it may have been this one.
        if self.table.get(slot).is_none_or(|connection| connection.channel().is_none()) {
            return FrameResult::Closed;
        }
        if !has_memory {
            return match policy.when_full() {
                WhenFull::Close => self.out_of_memory(slot, policy),
                WhenFull::DropNewest | WhenFull::DropOldest => self.drop_from_log(slot),
            };
        }
        let range = self.kept_range(slot, encoding);
        let Some(kept_channel) = self.out.kept_channels.get_mut(&slot) else { return FrameResult::Closed };
        let is_replaced = key.is_some_and(|key| kept_channel.log.take_out(key));
        kept_channel.log.append_unsent(range, key);
        self.count_log(slot);
        self.table[slot].flags.set(Flag::Lags);
        if is_replaced { FrameResult::Conflated } else { FrameResult::Queued }
    }

    /// A message that does not fit: its client is told.
    fn drop_from_log(&mut self, slot: Slot) -> FrameResult {
        if let Some(kept_channel) = self.out.kept_channels.get_mut(&slot) {
            kept_channel.log.append_missing(1);
        }
        self.table[slot].flags.set(Flag::Lags);
        FrameResult::Dropped
    }

    /// A ping, pong or control text of its process: for the connection there is.
    fn offer_control_to_kept(&mut self, slot: Slot, encoding: &mut Encoding, since: Option<u32>) -> FrameResult {
        let connection = &self.table[slot];
        let ConnectionPhase::Open(channel) = &connection.phase else { return FrameResult::Closed };
        let returns = self.out.kept_channels.get(&slot).map_or(0, |kept_channel| kept_channel.returns);
        let is_for_another = encoding.control_text_to.is_some_and(|to_return| to_return != returns);
        if is_for_another || connection.flags.has(Flag::Detached) {
            return FrameResult::Dropped;
        }
        if connection.outbound.is_blocked() {
            let owner = self.owners[channel.owner].owner.clone();
            return self.offer_behind(slot, &encoding.parts, Policy::DropNewest, &owner);
        }
        let range = encoding.range(Cast::of(since), &mut self.out.window);
        self.append_range(slot, range, since);
        FrameResult::Waits
    }

    /// The frame as it is kept for this channel's owner.
    fn kept_range(&mut self, slot: Slot, encoding: &mut Encoding) -> Range {
        let channel = self.table[slot].channel().expect("only open channels are offered frames");
        let owner = &self.owners[channel.owner].owner;
        let (memory, of) = (&mut self.memory, (owner.id, channel.id));
        encoding.kept_range(&mut self.out.window.kept, of, self.now_ms, |bytes| memory.charge(bytes, Some(owner)))
    }

    /// The lane of history for what an audience is sent, if any channel here outlives its connection.
    pub(super) fn kept_lane(&self, audience: &ShardAudience) -> Option<u8> {
        let kept = (!self.out.kept_channels.is_empty()).then_some(&self.out.window.kept)?;
        Some(match audience {
            ShardAudience::Topic(topic) => kept.lane_of(topic.name()),
            ShardAudience::Path(path) => kept.lane_of(&**path),
            ShardAudience::Process | ShardAudience::Channels(_) => 0,
        })
    }

    /// Counts the memory of this channel's log for its owner.
    pub(in crate::shard) fn count_log(&mut self, slot: Slot) {
        let Some(kept_channel) = self.out.kept_channels.get_mut(&slot) else { return };
        let owner = self.table[slot].channel().map(|channel| &*self.owners[channel.owner].owner);
        let memory = &mut self.memory;
        kept_channel.count(|bytes| memory.charge(bytes, owner));
    }

    /// Gives the connection of a channel that lags what comes next in its log, as much as it may take at a time.
    pub(in crate::shard) fn feed(&mut self, slot: Slot) {
        // What is next is given where nothing waits, whatever may.
        let bytes_max = FEED_BYTES.min(self.config.outbound_bytes_max).max(1);
        for _ in 0..FEED_RANGES_MAX {
            let connection = &mut self.table[slot];
            let queued = connection.outbound.queued_bytes();
            let is_ready =
                !connection.flags.has(Flag::Detached) && !connection.outbound.is_blocked() && queued < bytes_max;
            let Some(kept_channel) = self.out.kept_channels.get_mut(&slot).filter(|_| is_ready) else {
                return self.count_log(slot);
            };
            if kept_channel.log.has_given_again() {
                // What is sent again does not count against the budget, and what follows does: they are not mixed.
                if queued > 0 {
                    return self.count_log(slot);
                }
                kept_channel.log.end_again();
            }
            let Some(next) = kept_channel.log.next(&self.out.window.kept, self.config.resume.bytes_max) else {
                connection.flags.take(Flag::Lags);
                let close = kept_channel.close.take();
                self.count_log(slot);
                if let Some(payload) = close {
                    self.append_close_frame(slot, &payload);
                }
                return;
            };
            self.work.spend(work::FEED_NS);
            if next.missing > 0 {
                self.append_dropped(slot, next.missing);
            }
            if let Some(range) = next.range {
                self.append_range(slot, range, None);
            }
        }
        self.count_log(slot);
    }

    /// Puts all that its log still has behind what waits for a channel's connection: it ends, and its log with it. What
    /// its socket does not take has to be copied, so where there is no memory for that its client is told how much it
    /// has missed. Returns false where the slice is over before that is done: it is to be called again.
    pub(in crate::shard) fn pour(&mut self, slot: Slot) -> bool {
        let Some(kept_channel) = self.out.kept_channels.get_mut(&slot) else { return true };
        let bytes = kept_channel.log.unsent_bytes();
        // Of the chunks that frames are copied to at most a quarter stays empty.
        if !self.memory.cover_beside_reserve(bytes + bytes / 3) {
            let missing = kept_channel.log.position() - kept_channel.log.told();
            self.stats.dropped += missing;
            self.stats.dropped_for_memory += missing;
            self.forget_unsent(slot);
            self.append_dropped(slot, missing);
            return true;
        }
        while let Some(kept_channel) = self.out.kept_channels.get_mut(&slot)
            && let Some(next) = kept_channel.log.next(&self.out.window.kept, 0)
        {
            if next.missing > 0 {
                self.append_dropped(slot, next.missing);
            }
            if let Some(range) = next.range {
                self.pour_frames(slot, range);
                if self.work.is_slice_over() {
                    self.count_log(slot);
                    self.weigh(slot);
                    return false;
                }
            }
        }
        self.table[slot].flags.take(Flag::Lags);
        self.weigh(slot);
        true
    }

    fn append_dropped(&mut self, slot: Slot, count: u64) {
        let told = text::dropped(count);
        self.append_own(slot, server_header(Opcode::Text, false, told.len()), told.as_bytes());
    }

    fn pour_frames(&mut self, slot: Slot, range: Range) {
        self.work.spend(work::FEED_NS);
        let connection = &mut self.table[slot];
        if !connection.outbound.is_blocked() {
            return self.append_range(slot, range, None);
        }
        match self.out.window.get(range) {
            RangeBytes::Joined(bytes) => {
                self.work.spend(copy_ns(bytes.len()) + work::alloc_ns(bytes.len()));
                connection.outbound.push_copied_behind(bytes);
            }
            RangeBytes::Blob { header, blob, skip, len, charge } => {
                let payload: Bytes = blob.slice(skip..skip + len);
                connection.outbound.push_blob_behind(header, payload, charge.clone());
            }
        }
    }

    /// Returns whether a kept channel gets this compressed frame as it is: it is a Text that must be escaped.
    pub(super) fn is_escaped_for(&self, slot: Slot, encoding: &Encoding) -> bool {
        self.table[slot].flags.has(Flag::Kept) && !encoding.is_better_compressed()
    }

    /// The bytes that wait for a channel, its log included.
    pub(in crate::shard) fn queued_bytes(&self, slot: Slot) -> usize {
        let connection = &self.table[slot];
        let in_log = || self.out.kept_channels.get(&slot).map_or(0, |kept_channel| kept_channel.log.unsent_bytes());
        connection.outbound.queued_bytes() + if connection.flags.has(Flag::Lags) { in_log() } else { 0 }
    }

    /// Removes the unsent part of a channel's log. Returns its bytes.
    pub(in crate::shard) fn forget_unsent(&mut self, slot: Slot) -> usize {
        self.table[slot].flags.take(Flag::Lags);
        self.out.kept_channels.get_mut(&slot).map_or(0, |kept_channel| kept_channel.log.forget_unsent())
    }

    /// Releases history that no client can resume from any more, and what exceeds a shard's limit. Once a tick.
    pub(in crate::shard) fn trim_history(&mut self) {
        let resume = &self.config.resume;
        let reach_ms = resume.reach_ms(self.config.dead_after_ms());
        let offered = self.out.offered();
        let kept = &mut self.out.window.kept;
        kept.end_tails(self.now_ms.saturating_sub(reach_ms / 4));
        let before_ms = self.now_ms.saturating_sub(reach_ms);
        kept.let_go_of_old(before_ms, offered);
        while kept.bytes() > resume.shard_bytes_max && kept.shed(offered) {
            self.stats.history_shed += 1;
        }
        let memory = &mut self.memory;
        kept.count_places(|bytes| memory.charge(bytes, None));
        self.trim_journals(before_ms);
        self.trim_logs();
    }

    /// Has logs forget what history has let go of, some of them a tick: one to which nothing more is pushed would keep
    /// it as long as its channel lives.
    fn trim_logs(&mut self) {
        let (places, until_ns) = (self.table.places(), self.work.spent_ns() + TRIM_LOGS_NS);
        for _ in 0..places.min(if self.out.kept_channels.is_empty() { 0 } else { LOGS_TRIMMED_MAX }) {
            if self.work.spent_ns() >= until_ns {
                break;
            }
            let slot = Slot::new((self.out.logs_trimmed % places) as u32);
            self.out.logs_trimmed = slot.index() + 1;
            if let Some(kept_channel) = self.out.kept_channels.get_mut(&slot) {
                let gone = kept_channel.log.forget_gone(&self.out.window.kept);
                self.work.spend((1 + gone as u64) * work::PASS_NS);
                self.count_log(slot);
            }
        }
    }

    /// Memory is short: history goes first. Returns whether some went.
    pub(in crate::shard) fn shed_history(&mut self) -> bool {
        let offered = self.out.offered();
        let went = self.out.window.kept.shed(offered);
        self.stats.history_shed += u64::from(went);
        self.work.spend(work::LOOK_NS + if went { work::END_NS } else { 0 });
        went
    }
}
