//! Pushes: finding the channel, judging the frame against its budget, and putting it where it will be sent from.
//!
//! Invariants: a frame is encoded once per push, whatever the size of the audience; a policy is applied only after the
//! socket has refused bytes; the budget is kept at the granularity of frames.

use super::command::{CloseFrame, Policy, Push, PushFrame, PushKind, PushMany, ShardAudience};
use super::connection::{Flags, Phase};
use super::core::Shard;
use super::event::ClosedBy;
use super::outbound::FrameParts;
use super::sending::{SharedPart, Watch};
use super::window::{Range, Window};
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::proto::{Opcode, close, server_header};
use std::cell::RefCell;
use std::rc::Rc;

/// What became of one frame at one channel, as far as is known before the socket was offered it.
enum Fate {
    /// It waits for the next send.
    Waits,
    /// It waits behind a full socket.
    Queued,
    Conflated,
    Dropped,
    Closed,
}

/// A frame of one push: encoded when the first channel needs it, then shared by all.
struct Encoding {
    parts: FrameParts,
    copy_bytes_max: usize,
    range: Option<Range>,
}

impl Encoding {
    fn new(frame: PushFrame, copy_bytes_max: usize) -> Self {
        let header = server_header(opcode(frame.kind), false, frame.payload.len());
        Self { parts: FrameParts { header, payload: frame.payload }, copy_bytes_max, range: None }
    }

    fn range(&mut self, window: &mut Window) -> Range {
        *self.range.get_or_insert_with(|| {
            if self.parts.payload.len() <= self.copy_bytes_max {
                window.append_joined(self.parts.header.as_slice(), &self.parts.payload)
            } else {
                window.append_blob(Some(self.parts.header), self.parts.payload.clone())
            }
        })
    }
}

fn opcode(kind: PushKind) -> Opcode {
    match kind {
        PushKind::Message(kind) => kind.into(),
        PushKind::Ping => Opcode::Ping,
        PushKind::Pong => Opcode::Pong,
    }
}

impl Shard {
    pub(super) fn push(&mut self, push: Push) {
        let part = push.part.map(|part| Rc::new(RefCell::new(part)));
        let Some(slot) = self.pushable(push.channel, push.owner, part.as_ref()) else { return };
        let mut encoding = Encoding::new(push.frame, self.config.copy_bytes_max);
        self.offer_counted(slot, &mut encoding, push.policy, part.as_ref(), false);
    }

    pub(super) fn push_many(&mut self, many: PushMany) {
        let PushMany { audience, except, owner, frame, policy, part } = many;
        let part = part.map(|part| Rc::new(RefCell::new(part)));
        let mut encoding = Encoding::new(frame, self.config.copy_shared_bytes_max);
        let is_left_out = |id: ChannelId| !except.is_empty() && except.binary_search(&id).is_ok();
        let path = match &audience {
            ShardAudience::Channels(channels) => {
                for &id in channels.iter().filter(|&&id| !is_left_out(id)) {
                    if let Some(slot) = self.pushable(id, Some(owner), part.as_ref()) {
                        self.offer_counted(slot, &mut encoding, policy, part.as_ref(), true);
                    }
                }
                return;
            }
            ShardAudience::Path(path) => Some(path),
            ShardAudience::Process => None,
        };
        let Some(&place) = self.owner_places.get(&owner) else { return };
        // Backwards: a channel that is closed on the way is replaced in the list by one that had its turn.
        let mut at = self.owners[place as usize].slots.len();
        while at > 0 {
            at -= 1;
            let slot = self.owners[place as usize].slots[at];
            let Some(channel) = self.connections[slot as usize].channel() else { continue };
            if path.is_some_and(|path| channel.path != *path) || is_left_out(channel.id) {
                continue;
            }
            self.offer_counted(slot, &mut encoding, policy, part.as_ref(), true);
        }
    }

    /// The connection behind a channel id, if this owner may push to it; if not, that is counted.
    pub(super) fn pushable(&mut self, id: ChannelId, owner: Option<OwnerId>, part: Option<&SharedPart>) -> Option<u32> {
        let slot = self.channels.get(&id).copied();
        let is_owner = slot.is_some_and(|slot| owner.is_none_or(|owner| self.owner_of(slot) == Some(owner)));
        if is_owner {
            return slot;
        }
        self.stats.pushes_unknown += 1;
        if let Some(part) = part {
            let counts = &mut part.borrow_mut().counts;
            match slot {
                Some(_) => counts.not_owner += 1,
                None => counts.not_found += 1,
            }
        }
        None
    }

    /// The owner of the channel at this place.
    pub(super) fn owner_of(&self, slot: u32) -> Option<OwnerId> {
        let channel = self.connections[slot as usize].channel()?;
        Some(self.owners[channel.owner as usize].owner.id)
    }

    fn offer_counted(
        &mut self,
        slot: u32,
        encoding: &mut Encoding,
        policy: Option<Policy>,
        part: Option<&SharedPart>,
        is_bulk: bool,
    ) {
        let fate = self.offer(slot, encoding, policy, is_bulk);
        self.stats.pushed += 1;
        match fate {
            Fate::Waits => {}
            Fate::Queued => self.stats.queued += 1,
            Fate::Conflated => self.stats.conflated += 1,
            Fate::Dropped => self.stats.dropped += 1,
            Fate::Closed => self.stats.refused_closing += 1,
        }
        let Some(part) = part else { return };
        let counts = &mut part.borrow_mut().counts;
        match fate {
            Fate::Waits => self.watch(slot, part),
            Fate::Queued => {
                counts.queued += 1;
                counts.queued_bytes += self.connections[slot as usize].outbound.queued_bytes();
            }
            Fate::Conflated => counts.conflated += 1,
            Fate::Dropped => counts.dropped += 1,
            Fate::Closed => counts.closed += 1,
        }
    }

    fn watch(&mut self, slot: u32, part: &SharedPart) {
        let connection = &mut self.connections[slot as usize];
        connection.flags.set(Flags::WATCHED);
        let end = connection.outbound.queued_bytes();
        self.watches.entry(slot).or_default().push(Watch { end, part: part.clone() });
    }

    /// Puts a frame behind what waits for an open channel, or applies the policy.
    fn offer(&mut self, slot: u32, encoding: &mut Encoding, policy: Option<Policy>, is_bulk: bool) -> Fate {
        let len = encoding.parts.len();
        while !self.connections[slot as usize].outbound.is_blocked() {
            if self.fits(slot, len) {
                return self.offer_range(slot, encoding, is_bulk);
            }
            self.flush_one(slot);
            // The socket may have turned out to be broken.
            if self.connections.get(slot as usize).is_none_or(|connection| connection.channel().is_none()) {
                return Fate::Closed;
            }
        }
        let connection = &self.connections[slot as usize];
        let Phase::Open(channel) = &connection.phase else { return Fate::Closed };
        // RFC 6455 5.5.1: nothing may follow a close frame.
        if connection.flags.has(Flags::CLOSE_SENT) {
            return Fate::Closed;
        }
        let policy = policy.unwrap_or(self.owners[channel.owner as usize].owner.policy);
        self.offer_behind(slot, &encoding.parts, policy)
    }

    /// A frame is admitted if nothing is queued, or if it fits behind what is.
    fn fits(&self, slot: u32, len: usize) -> bool {
        let queued = self.connections[slot as usize].outbound.queued_bytes();
        queued == 0 || queued + len <= self.config.outbound_bytes_max
    }

    fn offer_range(&mut self, slot: u32, encoding: &mut Encoding, is_bulk: bool) -> Fate {
        let connection = &mut self.connections[slot as usize];
        if connection.flags.has(Flags::CLOSE_SENT) {
            return Fate::Closed;
        }
        let range = encoding.range(&mut self.window);
        connection.outbound.push_range(range, self.config.copy_bytes_max, &mut self.spares);
        if is_bulk {
            Self::mark_bulk(connection, &mut self.waiting, slot, range.segment());
        } else {
            self.mark_urgent(slot);
        }
        Fate::Waits
    }

    /// The socket is full: queue behind it what fits the budget.
    fn offer_behind(&mut self, slot: u32, frame: &FrameParts, policy: Policy) -> Fate {
        let budget = self.config.outbound_bytes_max;
        let copy_bytes_max = self.config.copy_bytes_max;
        if let Policy::Conflate { key } = policy {
            let outbound = &mut self.connections[slot as usize].outbound;
            if outbound.queued_bytes() - outbound.held_len(key) + frame.len() > budget {
                return self.over_budget(slot);
            }
            return if outbound.conflate(key, frame.clone()) { Fate::Conflated } else { Fate::Queued };
        }
        if !self.fits(slot, frame.len()) {
            match policy {
                Policy::DropNewest => return Fate::Dropped,
                Policy::DropOldest => {
                    let outbound = &mut self.connections[slot as usize].outbound;
                    let excess = (outbound.queued_bytes() + frame.len()).saturating_sub(budget);
                    let (frames, _) = outbound.drop_oldest(excess, &self.window);
                    self.stats.dropped += frames as u64;
                    if !self.fits(slot, frame.len()) {
                        return Fate::Dropped;
                    }
                }
                Policy::Close | Policy::Conflate { .. } => return self.over_budget(slot),
            }
        }
        self.connections[slot as usize].outbound.push_behind(frame, copy_bytes_max);
        Fate::Queued
    }

    fn over_budget(&mut self, slot: u32) -> Fate {
        self.stats.closed_over_budget += 1;
        let why = CloseFrame {
            code: Some(close::code::TRY_AGAIN_LATER),
            reason: "too slow: the limit of queued bytes is reached".into(),
        };
        self.close_now(slot, &why, ClosedBy::Backpressure);
        Fate::Closed
    }
}
