//! A process as one shard knows it: its channels here, by the path on which they were opened, and its pending events.
//!
//! Invariants: a channel stands in one list, at the [`OwnerPlace`] that it was given; a path is listed as long as it
//! has a channel, so there are never more lists than channels. Adding, removing and finding a path cost the same
//! however many channels there are. Knows a connection only by its place in the shard's table.

use crate::queue::events::{EventBatch, QueueLevel, QueueLimits, RoomWanted};
use crate::shard::owners::arena::Arena;
use crate::shard::owners::directory::Owner;
use crate::shard::owners::line::Line;
use crate::shard::owners::sharing::QueueSharing;
use crate::shard::owners::subscriptions::Subscriptions;
use crate::shard::owners::unread::Unread;
use crate::shard::table::slot::Slot;
use rustc_hash::FxHashSet;
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;

/// A process that has channels or events on this shard.
pub(in crate::shard) struct LocalOwner {
    pub owner: Arc<Owner>,
    lists: Slab<PathChannels>,
    by_path: HashMap<Arc<str>, u32>,
    /// Connections that wait for room in its queue, in the order in which they will go on; some do no more.
    pub(super) waiting: Line<Slot>,
    /// How many of them do no more, at most.
    gone: usize,
    /// It stands in the list of those with connections that wait.
    pub is_full: bool,
    /// The units that clients may add to a high queue.
    pub(super) sharing: QueueSharing,
    /// Connections whose HTTP request waits for its answer.
    pub asked: FxHashSet<Slot>,
    /// The subscriptions of its channels, by topic.
    pub subscriptions: Subscriptions,
    /// Events of this turn.
    pub batch: Option<EventBatch>,
    /// Where their messages lie.
    pub(super) arena: Arena,
    /// Of a process that runs here, instead of those: what its handler has not taken.
    pub unread: Option<Unread>,
    /// About as many as there were in the batch before.
    pub events_expected: usize,
}

/// The channels of one path.
struct PathChannels {
    path: Arc<str>,
    /// Their places in the shard's table.
    slots: Vec<Slot>,
}

/// Where a channel stands in its owner's lists.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) struct OwnerPlace {
    list: u32,
    at: u32,
}

impl LocalOwner {
    pub(crate) fn new(owner: Arc<Owner>) -> Self {
        Self {
            owner,
            lists: Slab::new(),
            by_path: HashMap::new(),
            waiting: Line::default(),
            gone: 0,
            is_full: false,
            sharing: QueueSharing::default(),
            asked: FxHashSet::default(),
            subscriptions: Subscriptions::default(),
            batch: None,
            arena: Arena::default(),
            unread: None,
            events_expected: 0,
        }
    }

    /// Has what its handler has not taken charged, and the messages that come next lie apart from it.
    pub(crate) fn settle_unread(&mut self) {
        if let Some(unread) = &mut self.unread {
            unread.settle(self.arena.end_batch());
        }
    }

    /// How full its queue is for one more message.
    pub(super) fn level(&self) -> QueueLevel {
        match &self.unread {
            Some(unread) => unread.level(&self.owner.memory),
            None => self.owner.level(self.batch.as_ref()),
        }
    }

    /// The limits of its queue.
    pub(super) fn limits(&self) -> QueueLimits {
        self.unread.as_ref().map_or_else(|| self.owner.queue.limits(), Unread::limits)
    }

    /// The room for which the waiting clients wait.
    pub(super) fn wanted(&self) -> RoomWanted {
        if self.sharing.is_waited_for { RoomWanted::Low } else { RoomWanted::Half }
    }

    /// Returns whether nothing here needs it any more. One that stands in the line of those with connections that wait
    /// goes when it is looked at: out of the middle, it would cost as much as that line is long.
    pub(crate) fn is_idle(&self) -> bool {
        self.lists.is_empty() && !self.is_full && self.asked.is_empty() && self.batch.is_none() && self.unread.is_none()
    }

    /// Lists a new channel.
    pub(crate) fn add(&mut self, path: Arc<str>, slot: Slot) -> OwnerPlace {
        let list = match self.by_path.get(&path) {
            Some(&list) => list,
            None => {
                let list = self.lists.insert(PathChannels { path: path.clone(), slots: Vec::new() }) as u32;
                self.by_path.insert(path, list);
                list
            }
        };
        let slots = &mut self.lists[list as usize].slots;
        slots.push(slot);
        OwnerPlace { list, at: slots.len() as u32 - 1 }
    }

    /// Forgets a channel. Returns which other one stands at its place now, if any.
    #[must_use]
    pub(crate) fn remove(&mut self, place: OwnerPlace) -> Option<Slot> {
        let list = &mut self.lists[place.list as usize];
        list.slots.swap_remove(place.at as usize);
        let moved = list.slots.get(place.at as usize).copied();
        if list.slots.is_empty() {
            let PathChannels { path, .. } = self.lists.remove(place.list as usize);
            self.by_path.remove(&path);
        }
        if self.lists.is_empty() {
            // Only its channels wait for room, and the last of them has gone.
            (self.waiting, self.gone) = (Line::default(), 0);
        }
        moved
    }

    /// One connection no longer waits for room. `waits` returns whether one does: called for all once half no longer
    /// wait.
    pub(crate) fn stop_waiting(&mut self, waits: impl Fn(Slot) -> bool) {
        self.gone += 1;
        if self.gone > self.waiting.len() / 2 {
            self.waiting.retain(waits);
            self.gone = 0;
        }
    }

    /// The path of a channel.
    pub(crate) fn path(&self, place: OwnerPlace) -> &Arc<str> {
        &self.lists[place.list as usize].path
    }

    /// All its channels.
    pub(crate) fn channels(&self) -> impl Iterator<Item = &[Slot]> {
        self.lists.iter().map(|(_, list)| list.slots.as_slice())
    }

    /// Its channels on one path.
    pub(crate) fn channels_on(&self, path: &str) -> &[Slot] {
        self.by_path.get(path).map_or(&[], |&list| &self.lists[list as usize].slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Ledger;
    use crate::gateway::OwnerId;
    use crate::queue::events::process_queue;
    use crate::shard::command::Policy;
    use crate::shard::owners::directory::Wishes;

    fn local() -> LocalOwner {
        let (queue, _) = process_queue(1, QueueLimits::default(), &Ledger::default(), |_| {});
        let process = "p:p:t.os".parse().unwrap();
        let owner = Owner::new(OwnerId(1), process, queue, Wishes::of(Policy::Close));
        LocalOwner::new(Arc::new(owner))
    }

    #[test]
    fn a_channel_is_found_by_its_path_until_it_is_removed() {
        let mut local = local();
        let [first, second, other] =
            [("/a", 10), ("/a", 11), ("/b", 12)].map(|(path, slot)| local.add(path.into(), Slot::new(slot)));
        assert_eq!(
            (local.channels_on("/a"), local.channels_on("/b")),
            (&[10, 11].map(Slot::new)[..], &[12].map(Slot::new)[..])
        );
        assert_eq!(local.remove(first), Some(Slot::new(11)), "the last one takes the place");
        assert_eq!((second.list, second.at), (first.list, 1));
        assert_eq!(local.remove(first), None);
        assert!(local.channels_on("/a").is_empty() && local.by_path.len() == 1);
        assert_eq!(local.channels().collect::<Vec<_>>(), [[Slot::new(12)]]);
        assert_eq!(local.remove(other), None);
        assert!(local.is_idle() && local.by_path.is_empty());
    }
}
