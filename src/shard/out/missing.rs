//! Messages lost on their way to this broker: channels that outlive their connections count them as dropped, and their
//! clients are told the number.
//!
//! Invariants: the gap is reported before what follows it, where it was detected; other channels count nothing, and are
//! told nothing.

use crate::gateway::OwnerId;
use crate::shard::command::{LostMessages, ShardAudience};
use crate::shard::core::Shard;
use crate::shard::out::broadcast::UncountedLoss;
use crate::shard::owners::owner::LocalOwner;
use crate::shard::table::cohort::Cohort;
use crate::shard::table::connection::{ConnectionPhase, Flag};
use crate::shard::table::slot::Slot;
use crate::shard::unfinished::LongOrder;
use crate::shard::work::{self, copy_ns};

impl Shard {
    /// Has the channels of an audience count messages that were lost.
    pub(in crate::shard) fn miss(&mut self, miss: LostMessages) -> Option<LongOrder> {
        let LostMessages { audience, owner, count } = miss;
        let channels = self.cohort_of(owner, &audience);
        self.go_on_missing(Box::new(UncountedLoss { channels, count }))
    }

    /// Goes on with that, for one slice.
    pub(in crate::shard) fn go_on_missing(&mut self, mut missing: Box<UncountedLoss>) -> Option<LongOrder> {
        while !missing.channels.is_done() {
            if self.work.is_slice_over() || self.out.is_window_full() {
                return Some(LongOrder::UncountedLoss(missing));
            }
            let Some(slot) = missing.channels.next() else { break };
            self.work.spend(work::OFFER_NS);
            if self.table.is_of(&missing.channels, slot) {
                self.miss_at(slot, missing.count);
            }
        }
        self.out.audience = missing.channels.into_slots();
        self.out.audience.clear();
        None
    }

    fn miss_at(&mut self, slot: Slot, count: u32) {
        let connection = &mut self.table[slot];
        let is_open = matches!(connection.phase, ConnectionPhase::Open(_)) && !connection.flags.has(Flag::CloseSent);
        let Some(kept_channel) = self.out.kept_channels.get_mut(&slot).filter(|_| is_open) else { return };
        kept_channel.log.append_missing(count);
        connection.flags.set(Flag::Lags);
        self.count_log(slot);
        self.feed(slot);
    }

    /// The channels of an audience that is no list, as of now.
    pub(in crate::shard) fn cohort_of(&mut self, owner: OwnerId, audience: &ShardAudience) -> Cohort {
        // A copy: a channel that is closed on the way changes the lists.
        let mut slots = std::mem::take(&mut self.out.audience);
        let shard = self.owners.shard();
        let local = self.local_owner(owner);
        let mut lists = 1;
        match audience {
            ShardAudience::Channels(_) => unreachable!("lists are gone through as they are"),
            ShardAudience::Path(path) => slots.extend(local.map_or(&[][..], |local| local.channels_on(path))),
            ShardAudience::Topic(topic) => {
                slots.extend(local.map_or(&[][..], |local| local.subscriptions.of(shard, topic)));
            }
            ShardAudience::Process => {
                for list in local.into_iter().flat_map(LocalOwner::channels) {
                    slots.extend(list);
                    lists += 1;
                }
            }
        }
        // A straight copy, a few bytes for each.
        self.work.spend(lists * work::PASS_NS + copy_ns(slots.len()));
        self.table.cohort(slots)
    }
}
