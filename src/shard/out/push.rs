//! Pushes: finding the channel, checking the frame against its budget, and putting it where it will be sent from.
//!
//! Invariants: a frame is encoded once per push, whatever the size of the audience; a policy is applied only after the
//! socket has refused bytes; the budget is kept at the granularity of frames.

use crate::admission::Notice;
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::proto::{MessageKind, ServerHeader, close, server_header};
use crate::resume::text;
use crate::shard::command::{
    CloseFrame, Policy, PushCommand, PushEach, PushFrame, PushKind, PushMany, ReportTo, ShardAudience, WhenFull,
};
use crate::shard::core::Shard;
use crate::shard::event::{ClosedBy, Event};
use crate::shard::memory::SharedCharge;
use crate::shard::out::broadcast::{Encoding, Forms, PushTargets, UnfinishedBroadcast, opcode};
use crate::shard::out::frame::FrameParts;
use crate::shard::out::listener_audience::ListenerAudience;
use crate::shard::out::watches::{SharedPart, Watch};
use crate::shard::out::window::{Cast, Range};
use crate::shard::outcome::Outcome;
use crate::shard::owners::directory::Owner;
use crate::shard::owners::owner::LocalOwner;
use crate::shard::table::connection::{ConnectionPhase, Flag};
use crate::shard::table::slot::Slot;
use crate::shard::unfinished::LongOrder;
use crate::shard::work::{self, copy_ns};
use bytes::Bytes;
use std::cell::RefCell;
use std::rc::Rc;

/// Connections that a frame is not simply put behind: they are closing, or their channels are kept.
const ASIDE: u32 = Flag::CloseSent.bit() | Flag::Kept.bit();

/// Those that get something else than the frame as it is.
const NOT_AT_ONCE: u32 = ASIDE | Flag::Sse.bit();

/// The audience and options of a broadcast.
#[derive(Clone, Copy)]
pub(super) struct BroadcastTo<'a> {
    owner: OwnerId,
    /// The audience of its listeners of event streams.
    heard_by: Option<&'a ListenerAudience>,
    pub policy: Option<Policy>,
    pub part: Option<&'a SharedPart>,
}

/// The fate of one frame at one channel, as far as is known before the socket was offered it.
pub(in crate::shard) enum FrameResult {
    /// It waits for the next send.
    Waits,
    /// It waits behind a full socket.
    Queued,
    Conflated,
    Dropped,
    Closed,
}

/// A frame is admitted if nothing is queued, or if it fits behind what is.
pub(super) fn fits(queued: usize, len: usize, budget: usize) -> bool {
    queued == 0 || queued + len <= budget
}

impl Shard {
    #[inline]
    pub(in crate::shard) fn push(&mut self, push: PushCommand) {
        let slot = match self.pushable(push.channel, push.owner) {
            Ok(slot) => slot,
            Err(why) => return self.answer_failed(push.owner, push.asked, why),
        };
        if matches!(push.asked, ReportTo::Outcome(_))
            || !self.push_at_once(slot, push.frame.kind, &push.frame.payload, push.policy)
        {
            self.push_encoded(slot, push);
        }
    }

    /// The way of all pushes that cannot take the short one.
    #[inline(never)]
    fn push_encoded(&mut self, slot: Slot, push: PushCommand) {
        let PushCommand { owner, frame, policy, asked, .. } = push;
        let mut encoding = self.encode_for(slot, frame, policy);
        let (part, asked) = match asked {
            ReportTo::Outcome(part) => (Some(Rc::new(RefCell::new(part))), ReportTo::Nobody),
            asked => (None, asked),
        };
        let fate = self.offer_counted(slot, &mut encoding, policy, part.as_ref(), None);
        if matches!(fate, FrameResult::Closed) {
            self.answer_failed(owner, asked, Outcome { closed: 1, ..Outcome::default() });
        }
    }

    /// The short way of most pushes: a small frame, as it is, to a channel that has nothing in the way of it. Returns
    /// whether it was that; if not, nothing has happened.
    #[inline]
    fn push_at_once(&mut self, slot: Slot, kind: PushKind, payload: &[u8], policy: Option<Policy>) -> bool {
        let connection = &mut self.table[slot];
        let ConnectionPhase::Open(channel) = &connection.phase else { return false };
        let header = server_header(opcode(kind), false, payload.len());
        let len = header.as_slice().len() + payload.len();
        let is_free = payload.len() <= self.config.copy_bytes_max
            && channel.ws.deflate().is_none()
            && !connection.flags.has_any(NOT_AT_ONCE)
            && !connection.outbound.is_blocked()
            && !connection.outbound.is_scattered()
            && fits(connection.outbound.queued_bytes(), len, self.config.outbound_bytes_max);
        if is_free {
            connection.policy = policy.map(Policy::when_full);
            let grew = self.out.append(connection, slot, &header, payload, self.config.copy_bytes_max);
            self.stats.pushed += 1;
            self.work.spend(work::OFFER_NS);
            if let Some(bytes) = grew {
                self.has_grown(slot, bytes);
            }
        }
        is_free
    }

    /// The short way for bytes that are not an order: a message of `owner` to a channel of its own. Returns whether
    /// it was that; if not, nothing has happened.
    pub(in crate::shard) fn push_slice_at_once(
        &mut self,
        channel: ChannelId,
        owner: OwnerId,
        kind: MessageKind,
        payload: &[u8],
    ) -> bool {
        let slot = self.table.slot_of(channel).filter(|&slot| self.owner_of(slot) == Some(owner));
        let is_done = slot.is_some_and(|slot| self.push_at_once(slot, PushKind::Message(kind), payload, None));
        if is_done {
            self.stats.commands += 1;
            self.work.spend(work::COMMAND_NS / 2 + copy_ns(payload.len()));
        }
        is_done
    }

    /// Pushes small messages, each to its channel, until the slice is over. Returns what is left of them.
    pub(in crate::shard) fn push_each(&mut self, mut each: Box<PushEach>) -> Option<LongOrder> {
        while !each.is_done() {
            if self.work.is_slice_over() || self.out.is_window_full() {
                return Some(LongOrder::Each(each));
            }
            each.next(|owner, channel, kind, payload, asked| {
                if self.push_slice_at_once(channel, owner, kind, payload) {
                    return;
                }
                self.stats.commands += 1;
                self.work.spend(work::COMMAND_NS + copy_ns(payload.len()));
                let frame = PushFrame { kind: PushKind::Message(kind), payload: Bytes::copy_from_slice(payload) };
                self.push(PushCommand { channel, owner: Some(owner), frame, policy: None, asked });
            });
        }
        None
    }

    /// Puts a small frame behind what waits for a channel whose socket takes bytes.
    pub(in crate::shard) fn append(&mut self, slot: Slot, header: &ServerHeader, payload: &[u8]) {
        let grew = self.out.append(&mut self.table[slot], slot, header, payload, self.config.copy_bytes_max);
        if let Some(bytes) = grew {
            self.has_grown(slot, bytes);
        }
    }

    /// The same for what lies at `range` already; `since` is for broadcasts, as in
    /// [`offer_counted`](Self::offer_counted).
    #[inline]
    pub(in crate::shard) fn append_range(&mut self, slot: Slot, range: Range, since: Option<u32>) {
        let (connection, out) = (&mut self.table[slot], &mut self.out);
        let copy_bytes_max = self.config.copy_bytes_max;
        let grew = connection.outbound.push_range(range, copy_bytes_max, &out.window, &mut out.spares);
        match since {
            Some(segment) => out.mark_bulk(connection, slot, segment),
            None => out.mark_urgent(connection, slot),
        }
        out.need(range);
        if let Some(bytes) = grew {
            self.has_grown(slot, bytes);
        }
    }

    /// A queue takes more of the heap, of which so many bytes had to be allocated.
    #[cold]
    fn has_grown(&mut self, slot: Slot, bytes: usize) {
        self.work.spend(work::alloc_ns(bytes));
        self.weigh(slot);
    }

    /// Puts a small frame of our own behind what waits, whether or not the socket takes bytes.
    pub(in crate::shard) fn append_own(&mut self, slot: Slot, header: ServerHeader, payload: &[u8]) {
        let outbound = &mut self.table[slot].outbound;
        if !outbound.is_blocked() {
            return self.append(slot, &header, payload);
        }
        let frame = FrameParts { header, payload: Bytes::copy_from_slice(payload), charge: SharedCharge::default() };
        outbound.push_behind(&frame, self.config.copy_bytes_max);
        self.weigh(slot);
    }

    /// Reports to a caller that asked for the outcome that an order reached no channel.
    pub(in crate::shard) fn answer_failed(&mut self, owner: Option<OwnerId>, asked: ReportTo, outcome: Outcome) {
        match (asked, owner) {
            (ReportTo::Outcome(mut part), _) => part.counts.add(&outcome),
            (ReportTo::Failure(ticket), Some(owner)) => self.owners.tell(owner, Event::Failed { ticket, outcome }),
            (ReportTo::Failure(_), None) | (ReportTo::Nobody, _) => {}
        }
    }

    pub(in crate::shard) fn push_many(&mut self, many: PushMany) -> Option<LongOrder> {
        let PushMany { audience, except, owner, frame, compressed, policy, part } = many;
        let part = part.map(|part| Rc::new(RefCell::new(part)));
        let message = (!self.out.contexts.is_empty()).then(|| frame.payload.clone());
        let copy_bytes_max = self.config.copy_shared_bytes_max;
        self.work.spend(copy_ns(frame.payload.len().min(copy_bytes_max)));
        let of = self.local_owner(owner).map(|local| local.owner.clone());
        let forms = Forms::new(
            frame,
            compressed.as_deref(),
            message,
            |payload| self.charge(payload, policy, of.as_deref()),
            copy_bytes_max,
        )
        .kept_in(self.kept_lane(&audience));
        let heard_by = self.out.journals.contains_key(&owner).then(|| match &audience {
            ShardAudience::Channels(channels) => match channels[..] {
                [only] => self.table.slot_of(only).map_or(ListenerAudience::Listed, |slot| self.audience_of(slot)),
                _ => ListenerAudience::Listed,
            },
            ShardAudience::Path(path) => ListenerAudience::Path(path.as_ref().into()),
            ShardAudience::Topic(topic) => ListenerAudience::Topic(topic.name().clone()),
            ShardAudience::Process => ListenerAudience::Process,
        });
        let hides = heard_by.is_some() && self.leaves_out_a_listener(&except);
        let reached = match audience {
            ShardAudience::Channels(channels) => PushTargets::Named(channels.into_iter()),
            audience => PushTargets::All(self.cohort_of(owner, &audience)),
        };
        let mut broadcast = UnfinishedBroadcast { forms, reached, heard_by, hides, except, owner, policy, part };
        self.keep_for_those_who_left(&mut broadcast);
        if self.push_slice(&mut broadcast) {
            self.end_broadcast(broadcast);
            return None;
        }
        Some(LongOrder::Broadcast(Box::new(broadcast)))
    }

    /// Whether one of these is, or was, a listener of event streams here: it cannot be told later which of the
    /// returning ones it was.
    fn leaves_out_a_listener(&mut self, except: &[ChannelId]) -> bool {
        self.work.spend(except.len() as u64 * work::PASS_NS);
        except.iter().any(|&id| self.may_have_listened(id))
    }

    /// Goes on with a broadcast, for one slice.
    pub(in crate::shard) fn go_on_pushing(&mut self, mut broadcast: Box<UnfinishedBroadcast>) -> Option<LongOrder> {
        let window = &self.out.window;
        broadcast.forms.keep_ranges(|range| window.is_at_end(range));
        if self.push_slice(&mut broadcast) {
            self.end_broadcast(*broadcast);
            return None;
        }
        Some(LongOrder::Broadcast(broadcast))
    }

    fn end_broadcast(&mut self, broadcast: UnfinishedBroadcast) {
        self.note_unheard(&broadcast);
        if let PushTargets::All(cohort) = broadcast.reached {
            self.out.audience = cohort.into_slots();
            self.out.audience.clear();
        }
    }

    /// Offers the frame to channels until the slice is over. Returns whether all were reached.
    fn push_slice(&mut self, broadcast: &mut UnfinishedBroadcast) -> bool {
        let UnfinishedBroadcast { forms, reached, heard_by, hides, except, owner, policy, part } = broadcast;
        let heard_by = heard_by.as_ref().map(|audience| if *hides { &ListenerAudience::Listed } else { audience });
        let to = BroadcastTo { owner: *owner, heard_by, policy: *policy, part: part.as_ref() };
        // Its forms are encoded when they are first needed, in any order, but none in an earlier segment.
        let since = self.out.window.tail();
        let is_left_out = |id: ChannelId| !except.is_empty() && except.binary_search(&id).is_ok();
        match reached {
            PushTargets::Named(channels) => {
                while let Some(&id) = channels.as_slice().first() {
                    if self.work.is_slice_over() {
                        return false;
                    }
                    channels.next();
                    if is_left_out(id) {
                        continue;
                    }
                    match self.pushable(id, Some(*owner)) {
                        Ok(slot) => self.offer_form(slot, forms, to, since),
                        Err(why) => {
                            self.work.spend(work::OFFER_NS);
                            if let Some(part) = to.part {
                                part.borrow_mut().counts.add(&why);
                            }
                        }
                    }
                }
            }
            PushTargets::All(cohort) => {
                while !cohort.is_done() {
                    if self.work.is_slice_over() {
                        return false;
                    }
                    let Some(slot) = cohort.next() else { break };
                    if !self.table.is_of(cohort, slot) {
                        // It has ended meanwhile.
                        self.offer_to_nobody(to.part);
                        continue;
                    }
                    let id =
                        (!except.is_empty()).then(|| self.table[slot].channel().map(|channel| channel.id)).flatten();
                    if !id.is_some_and(is_left_out) {
                        self.offer_form(slot, forms, to, since);
                    }
                }
            }
        }
        true
    }

    #[inline]
    fn offer_form(&mut self, slot: Slot, forms: &mut Forms, to: BroadcastTo<'_>, since: u32) {
        if !self.offer_at_once(slot, forms, to, since) && !self.keep_at_once(slot, forms, to, since) {
            self.offer_any_form(slot, forms, to, since);
        }
    }

    /// The short way of most of a broadcast's frames: as it is, where it lies, to a channel that has nothing in the way
    /// of it. Returns whether it was that; if not, nothing has happened.
    #[inline]
    fn offer_at_once(&mut self, slot: Slot, forms: &mut Forms, to: BroadcastTo<'_>, since: u32) -> bool {
        if to.part.is_some() {
            return false;
        }
        let (Some(plain), Some(connection)) = (forms.only(), self.table.get_mut(slot)) else { return false };
        let is_free = matches!(connection.phase, ConnectionPhase::Open(_))
            && !connection.flags.has_any(NOT_AT_ONCE)
            && !connection.outbound.is_blocked()
            && fits(connection.outbound.queued_bytes(), plain.parts.len(), self.config.outbound_bytes_max)
            && connection.outbound.extend(plain.range(Cast::Many, &mut self.out.window), &self.out.window);
        if is_free {
            connection.policy = to.policy.map(Policy::when_full);
            self.out.mark_bulk(connection, slot, since);
            self.stats.pushed += 1;
            self.work.spend(work::OFFER_NS);
        }
        is_free
    }

    #[inline(never)]
    fn offer_any_form(&mut self, slot: Slot, forms: &mut Forms, to: BroadcastTo<'_>, since: u32) {
        let shed = self.stats.history_shed;
        let connection = self.table.get(slot);
        let audience = to.heard_by.filter(|_| connection.is_some_and(|connection| connection.flags.has(Flag::Sse)));
        if let Some(audience) = audience {
            self.make_event(forms, to.owner, audience, to.policy);
        }
        let form = match &mut forms.event {
            Some(event) if audience.is_some() => event,
            _ => forms.of(&self.table, slot),
        };
        self.offer_counted(slot, form, to.policy, to.part, Some(since));
        if self.stats.history_shed != shed {
            // Memory was short, and the frame itself may have gone with the rest of history.
            let kept = &self.out.window.kept;
            forms.keep_ranges(|range| !range.is_kept() || kept.has(range));
        }
    }

    fn offer_to_nobody(&mut self, part: Option<&SharedPart>) {
        self.stats.pushed += 1;
        self.stats.refused_closing += 1;
        self.work.spend(work::OFFER_NS);
        if let Some(part) = part {
            part.borrow_mut().counts.closed += 1;
        }
    }

    /// The frame for one channel, compressed if that was agreed and pays.
    pub(in crate::shard) fn encode_for(&mut self, slot: Slot, frame: PushFrame, policy: Option<Policy>) -> Encoding {
        let PushFrame { kind, payload } = frame;
        if self.table[slot].flags.has(Flag::Sse)
            && let Some(owner) = self.owner_of(slot)
        {
            return self.event_for(owner, self.audience_of(slot), (kind, &payload), policy);
        }
        let compressed = self.compressed_for(slot, kind, &payload);
        let is_compressed = compressed.is_some();
        let message = (is_compressed && self.out.contexts.has(slot)).then(|| payload.clone());
        let original = is_compressed.then(|| payload.clone());
        let payload = compressed.unwrap_or(payload);
        let owner = self.table[slot].channel().map(|channel| self.owners[channel.owner].owner.clone());
        let charge = self.charge(&payload, policy, owner.as_deref());
        let mut encoding = Encoding::new(kind, is_compressed, payload, charge, self.config.copy_bytes_max);
        encoding.message = message;
        match original {
            Some(original) => encoding.of(original),
            None => encoding,
        }
    }

    fn compressed_for(&mut self, slot: Slot, kind: PushKind, message: &Bytes) -> Option<Bytes> {
        let connection = &self.table[slot];
        let window_bits = connection.channel()?.ws.deflate()?.server_window_bits();
        let sizes = self.config.deflate.bytes_min..=self.config.deflate.shard_bytes_max;
        if !matches!(kind, PushKind::Message(_)) || !sizes.contains(&message.len()) {
            return None;
        }
        let is_escaped = || kind == PushKind::Message(MessageKind::Text) && text::is_marked(message);
        if connection.flags.has(Flag::Lags) || (connection.flags.has(Flag::Kept) && is_escaped()) {
            return None;
        }
        // Sure to be sent after all earlier ones: it fits uncompressed, so it fits compressed, too.
        let plain_len = server_header(opcode(kind), false, message.len()).as_slice().len() + message.len();
        let is_sure = !connection.outbound.is_blocked()
            && fits(connection.outbound.queued_bytes(), plain_len, self.config.outbound_bytes_max);
        self.stats.compressed += 1;
        self.work.spend(work::DEFLATE_BYTE_NS * message.len() as u64);
        let compressed = match self.out.contexts.get(slot) {
            Some(context) if is_sure => self.out.deflater.compress_in(window_bits, context, message),
            _ => self.out.deflater.compress(window_bits, message),
        };
        compressed.map(Bytes::copy_from_slice)
    }

    /// The claim of a payload that may come to wait by reference: a large one, and one that newer values may replace.
    pub(super) fn charge(&mut self, payload: &Bytes, policy: Option<Policy>, owner: Option<&Owner>) -> SharedCharge {
        let policy = policy.or(owner.map(|owner| owner.policy()));
        let waits = payload.len() > self.config.copy_bytes_max || policy.is_some_and(|policy| policy.key().is_some());
        if waits { self.memory.charge(payload.len(), owner) } else { SharedCharge::default() }
    }

    pub(in crate::shard::out) fn local_owner(&self, owner: OwnerId) -> Option<&LocalOwner> {
        Some(&self.owners[self.owners.find(owner)?])
    }

    /// The connection behind a channel id, if this owner may order anything there; else which count tells why not.
    pub(in crate::shard) fn pushable(&mut self, id: ChannelId, owner: Option<OwnerId>) -> Result<Slot, Outcome> {
        let slot = self.table.slot_of(id);
        match slot {
            Some(slot) if owner.is_none_or(|owner| self.owner_of(slot) == Some(owner)) => return Ok(slot),
            _ => self.stats.pushes_unknown += 1,
        }
        Err(match slot {
            Some(_) => Outcome { not_owner: 1, ..Outcome::default() },
            None => Outcome { not_found: 1, ..Outcome::default() },
        })
    }

    /// The owner of the channel at this place.
    pub(in crate::shard) fn owner_of(&self, slot: Slot) -> Option<OwnerId> {
        let channel = self.table[slot].channel()?;
        Some(self.owners[channel.owner].owner.id)
    }

    /// Offers a frame and counts what becomes of it. `since` is for broadcasts: no form of the frame lies before this
    /// segment of the window.
    pub(in crate::shard) fn offer_counted(
        &mut self,
        slot: Slot,
        encoding: &mut Encoding,
        policy: Option<Policy>,
        part: Option<&SharedPart>,
        since: Option<u32>,
    ) -> FrameResult {
        let fate = self.offer(slot, encoding, policy, since);
        if let Some(message) = &encoding.message {
            match fate {
                FrameResult::Waits if self.is_escaped_for(slot, encoding) => {}
                FrameResult::Waits => self.out.contexts.sent(slot, message),
                FrameResult::Queued | FrameResult::Conflated => self.out.contexts.unsure(slot),
                FrameResult::Dropped | FrameResult::Closed => {}
            }
        }
        self.stats.pushed += 1;
        self.work.spend(work::OFFER_NS);
        match fate {
            FrameResult::Waits => {}
            FrameResult::Queued => self.stats.queued += 1,
            FrameResult::Conflated => self.stats.conflated += 1,
            FrameResult::Dropped => self.stats.dropped += 1,
            FrameResult::Closed => self.stats.refused_closing += 1,
        }
        let Some(part) = part else { return fate };
        let queued_bytes = if matches!(fate, FrameResult::Queued) { self.queued_bytes(slot) } else { 0 };
        let counts = &mut part.borrow_mut().counts;
        match fate {
            FrameResult::Waits => self.watch(slot, part),
            FrameResult::Queued => {
                counts.queued += 1;
                counts.queued_bytes += queued_bytes;
            }
            FrameResult::Conflated => counts.conflated += 1,
            FrameResult::Dropped => counts.dropped += 1,
            FrameResult::Closed => counts.closed += 1,
        }
        fate
    }

    fn watch(&mut self, slot: Slot, part: &SharedPart) {
        let connection = &mut self.table[slot];
        connection.flags.set(Flag::Watched);
        let end = connection.outbound.queued_bytes();
        self.out.watches.add(slot, Watch { end, part: part.clone() });
    }

    /// Puts a frame behind what waits for an open channel, or applies the policy.
    fn offer(
        &mut self,
        slot: Slot,
        encoding: &mut Encoding,
        policy: Option<Policy>,
        since: Option<u32>,
    ) -> FrameResult {
        let (len, budget) = (encoding.parts.len(), self.config.outbound_bytes_max);
        loop {
            // Its socket may turn out to be broken on the way.
            let Some(connection) = self.table.get_mut(slot) else { return FrameResult::Closed };
            let ConnectionPhase::Open(channel) = &connection.phase else { return FrameResult::Closed };
            if connection.flags.has_any(ASIDE) {
                // RFC 6455 5.5.1: nothing may follow a close frame.
                let is_closing = connection.flags.has(Flag::CloseSent);
                return if is_closing { FrameResult::Closed } else { self.offer_kept(slot, encoding, policy, since) };
            }
            if connection.outbound.is_blocked() {
                let said = policy.map(Policy::when_full);
                let owner = self.owners[channel.owner].owner.clone();
                connection.policy = said;
                return self.offer_behind(slot, &encoding.parts, policy.unwrap_or(owner.policy()), &owner);
            }
            if fits(connection.outbound.queued_bytes(), len, budget) && !connection.outbound.is_scattered() {
                connection.policy = policy.map(Policy::when_full);
                let range = encoding.range(Cast::of(since), &mut self.out.window);
                self.append_range(slot, range, since);
                return FrameResult::Waits;
            }
            self.flush_one(slot);
        }
    }

    /// The socket is full: queue behind it what fits the channel's budget and the shard's memory.
    pub(super) fn offer_behind(
        &mut self,
        slot: Slot,
        frame: &FrameParts,
        policy: Policy,
        owner: &Owner,
    ) -> FrameResult {
        let (len, budget) = (frame.len(), self.config.outbound_bytes_max);
        self.work.spend(work::OFFER_BEHIND_NS + copy_ns(len - frame.shared_len()));
        let outbound = &mut self.table[slot].outbound;
        let queued = outbound.queued_bytes();
        // RFC 6455 5.5: a control frame is not a value that a newer one could stand for.
        let key = policy.key().filter(|_| !frame.is_control());
        let replaced = key.map_or(0, |key| outbound.held_len(key));
        if !fits(queued - replaced, len, budget) {
            match policy.when_full() {
                WhenFull::DropNewest => return FrameResult::Dropped,
                WhenFull::DropOldest => {
                    // Nothing is dropped for a frame that would not fit even so.
                    let excess = queued - replaced + len - budget;
                    if len > budget || !outbound.can_drop(excess) {
                        return FrameResult::Dropped;
                    }
                    let (dropped, bytes) = outbound.drop_oldest(excess, &self.out.window);
                    self.work.spend(work::drop_ns(dropped, bytes));
                    self.stats.dropped += dropped as u64;
                    self.weigh(slot);
                    if bytes < excess {
                        return FrameResult::Dropped;
                    }
                }
                WhenFull::Close => return self.over_budget(slot),
            }
        }
        let growth = self.table[slot].outbound.growth(frame, key, self.config.copy_bytes_max);
        let has_memory = self.has_memory_for(growth, owner);
        // The fullest channel has made room; it may have been this one.
        if self.table.get(slot).is_none_or(|connection| connection.channel().is_none()) {
            return FrameResult::Closed;
        }
        if !has_memory {
            return self.out_of_memory(slot, policy);
        }
        self.work.spend(work::alloc_ns(growth));
        let outbound = &mut self.table[slot].outbound;
        let copy_bytes_max = self.config.copy_bytes_max;
        let replaced = key.is_some_and(|key| outbound.conflate(key, frame.clone(), copy_bytes_max));
        if key.is_none() {
            self.work.spend(outbound.held_values() as u64 * work::LET_GO_NS);
            outbound.push_behind(frame, copy_bytes_max);
        }
        self.weigh(slot);
        if replaced { FrameResult::Conflated } else { FrameResult::Queued }
    }

    /// There is no memory for this frame, and no holder that could make room.
    pub(super) fn out_of_memory(&mut self, slot: Slot, policy: Policy) -> FrameResult {
        match policy.when_full() {
            WhenFull::DropNewest | WhenFull::DropOldest => FrameResult::Dropped,
            WhenFull::Close => {
                self.close_for_memory(slot);
                FrameResult::Closed
            }
        }
    }

    pub(super) fn over_budget(&mut self, slot: Slot) -> FrameResult {
        self.stats.closed_over_budget += 1;
        self.notice(Notice::Backpressure, || self.peer_for_log(slot));
        let why = CloseFrame {
            code: Some(close::code::TRY_AGAIN_LATER),
            reason: "too slow: the limit of queued bytes is reached".into(),
        };
        self.close_now(slot, &why, ClosedBy::Backpressure);
        FrameResult::Closed
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
