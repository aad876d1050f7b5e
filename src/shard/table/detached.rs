//! Which channels have no connection, in the order in which they lost it, and which of those have ended.
//!
//! Invariants: a detached channel has one valid entry in that order; the number of ended channels that are remembered
//! is bounded. It must not know connections except by their place in the table.

use super::slot::Slot;
use crate::channel::ChannelId;
use crate::shard::out::keeping::{ResumeHolder, ResumeTokens};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Channels that ended while detached, some 150 bytes each.
const ENDED_MAX: usize = 4096;

/// Entries of those that were taken up again which are let be in the order.
const STALE_MAX: usize = 64;

/// What is remembered of a channel that ended while detached.
pub(in crate::shard) struct EndedChannel {
    pub tokens: ResumeTokens,
    pub holder: ResumeHolder,
    /// How many messages it was pushed.
    pub position: u64,
}

/// See the module.
#[derive(Default)]
pub(in crate::shard) struct Detached {
    /// In the order in which they were left, each with a number that counts up; those that were taken up since are
    /// among them.
    order: VecDeque<(Slot, u64)>,
    /// The number of each.
    left: FxHashMap<Slot, u64>,
    lefts: u64,
    ended: FxHashMap<ChannelId, EndedChannel>,
    ended_order: VecDeque<ChannelId>,
}

impl Detached {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.left.len()
    }

    /// The channel at this place has no connection any more.
    pub(super) fn enter(&mut self, slot: Slot) {
        self.lefts += 1;
        self.order.push_back((slot, self.lefts));
        self.left.insert(slot, self.lefts);
        if self.order.len() > STALE_MAX + 2 * self.left.len() {
            let left = &self.left;
            self.order.retain(|(slot, number)| left.get(slot) == Some(number));
        }
    }

    /// It has one again, or has ended.
    pub(super) fn leave(&mut self, slot: Slot) {
        self.left.remove(&slot);
    }

    /// Those that have none, the first that was left first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> {
        let is_left = |(slot, number): &&(Slot, u64)| self.left.get(slot) == Some(number);
        self.order.iter().filter(is_left).map(|entry| entry.0)
    }

    /// A channel has ended while detached.
    pub(super) fn remember(&mut self, channel: ChannelId, ended: EndedChannel) {
        self.ended.insert(channel, ended);
        self.ended_order.push_back(channel);
        if self.ended_order.len() > ENDED_MAX
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }

    /// The channel of that id that ended while detached, if that is remembered.
    pub(super) fn ended(&self, channel: ChannelId) -> Option<&EndedChannel> {
        self.ended.get(&channel)
    }
}
