//! The channels without a connection, and those of them that have ended.
//!
//! Invariants: a detached channel has one entry at admission, which knows those of all shards in the order in which
//! they lost their connections; the number of ended channels that are remembered is bounded. It must not know
//! connections except by their place in the table.

use super::slot::Slot;
use crate::channel::ChannelId;
use crate::shard::out::kept_channels::{ResumeHolder, ResumeTokens};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Channels that ended while detached, some 150 bytes each.
const ENDED_MAX: usize = 4096;

/// The record of a channel that ended while detached.
pub(in crate::shard) struct EndedChannel {
    pub tokens: ResumeTokens,
    pub holder: ResumeHolder,
    /// How many messages it was pushed.
    pub position: u64,
}

/// See the module.
#[derive(Default)]
pub(in crate::shard) struct Detached {
    /// The entry of each at admission.
    left: FxHashMap<Slot, u64>,
    ended: FxHashMap<ChannelId, EndedChannel>,
    ended_order: VecDeque<ChannelId>,
}

impl Detached {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.left.len()
    }

    /// The channel at this place has no connection any more.
    pub(super) fn enter(&mut self, slot: Slot, entry: u64) {
        self.left.insert(slot, entry);
    }

    /// It has one again, or has ended: its entry.
    pub(super) fn leave(&mut self, slot: Slot) -> Option<u64> {
        self.left.remove(&slot)
    }

    /// The entry of the channel at this place, if it has no connection.
    pub(super) fn entry(&self, slot: Slot) -> Option<u64> {
        self.left.get(&slot).copied()
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
