//! The subscriptions of one process' channels to its topics, on one shard.
//!
//! Invariants: a channel stands in a topic's list once, and knows its position; so it leaves for the same cost however
//! many others are there. A topic has a place here as long as it has subscribers. The heap use of all of it is charged
//! to the process, by capacity. Knows connections by their place in the shard's table alone.

use super::topics::{Topic, TopicClaim, Topics};
use crate::admission::{Charge, HeldAs, ProcessMemory, table_bytes};
use crate::shard::table::slot::Slot;
use crate::words::topic;
use rustc_hash::FxHashMap;
use slab::Slab;
use std::sync::Arc;

/// See the module.
#[derive(Default)]
pub(in crate::shard) struct Subscriptions {
    lists: Slab<TopicSubscribers>,
    of_channel: FxHashMap<Slot, Vec<TopicPlace>>,
    /// The memory of lists and places beside the two tables.
    listed_bytes: usize,
    charge: Option<Charge>,
    count: usize,
}

/// The subscribers of one topic.
struct TopicSubscribers {
    topic: Arc<Topic>,
    slots: Vec<Slot>,
    /// For each of them, which of its own topics this is.
    nths: Vec<u16>,
}

/// Where a channel stands in a topic's list.
#[derive(Clone, Copy)]
struct TopicPlace {
    list: u32,
    at: u32,
}

/// The result of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum Subscribed {
    New,
    /// It was subscribed before.
    Already,
    /// It has as many topics as it may have.
    TooMany,
    /// The memory budget has no room for it.
    NoMemory,
}

impl TopicSubscribers {
    fn heap_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + self.nths.capacity() * size_of::<u16>()
    }
}

fn places_bytes(places: &Vec<TopicPlace>) -> usize {
    places.capacity() * size_of::<TopicPlace>()
}

impl Subscriptions {
    /// Subscribes a channel of `shard`, which may have `topics_max` topics.
    pub(crate) fn subscribe(
        &mut self,
        shard: u32,
        slot: Slot,
        claim: TopicClaim,
        topics_max: usize,
        memory: &ProcessMemory,
    ) -> Subscribed {
        if self.has(shard, slot, claim.topic()) {
            return Subscribed::Already;
        }
        let list = claim.topic().place(shard);
        let is_full = self.of_channel.get(&slot).is_some_and(|places| places.len() >= topics_max);
        if is_full && self.asked_for(slot) >= topics_max {
            return Subscribed::TooMany;
        }
        let topic = claim.topic().clone();
        let list = list.unwrap_or_else(|| {
            let list = self.lists.insert(TopicSubscribers { topic: topic.clone(), slots: Vec::new(), nths: Vec::new() })
                as u32;
            topic.set_place(shard, Some(list));
            list
        });
        self.push(list, slot);
        if !self.is_charged(memory) {
            // With the claim, the count.
            self.take_out(shard, slot, self.nth(slot, list).expect("it was put there"));
            self.shrink();
            return Subscribed::NoMemory;
        }
        self.count += 1;
        claim.take_over();
        Subscribed::New
    }

    /// Takes a channel of `shard` out of a topic. Returns whether it was subscribed to it.
    pub(crate) fn unsubscribe(&mut self, shard: u32, slot: Slot, topic: &Arc<Topic>, topics: &Topics) -> bool {
        let Some(nth) = topic.place(shard).and_then(|list| self.nth(slot, list)) else { return false };
        self.leave(shard, slot, nth, topics);
        true
    }

    /// Takes a channel of `shard` out of the last of its topics, if there is one.
    pub(crate) fn leave_last(&mut self, shard: u32, slot: Slot, topics: &Topics) -> Option<Arc<Topic>> {
        let nth = self.of_channel.get(&slot)?.len() - 1;
        Some(self.leave(shard, slot, nth, topics))
    }

    fn leave(&mut self, shard: u32, slot: Slot, nth: usize, topics: &Topics) -> Arc<Topic> {
        let topic = self.take_out(shard, slot, nth);
        self.count -= 1;
        topics.leave(&topic, shard);
        self.shrink();
        topic
    }

    /// Returns whether a channel of `shard` is subscribed to a topic.
    pub(crate) fn has(&self, shard: u32, slot: Slot, topic: &Topic) -> bool {
        topic.place(shard).is_some_and(|list| self.nth(slot, list).is_some())
    }

    /// The subscribers of a topic.
    pub(crate) fn of(&self, shard: u32, topic: &Topic) -> &[Slot] {
        topic.place(shard).map_or(&[], |list| &self.lists[list as usize].slots)
    }

    /// The topics of a channel, by name.
    pub(crate) fn topics_of(&self, slot: Slot) -> Vec<Arc<str>> {
        let places = self.of_channel.get(&slot).into_iter().flatten();
        let mut topics: Vec<_> = places.map(|place| self.lists[place.list as usize].topic.name().clone()).collect();
        topics.sort_unstable();
        topics
    }

    /// The topics of a channel.
    pub(crate) fn listed(&self, slot: Slot) -> Vec<Arc<Topic>> {
        let places = self.of_channel.get(&slot).into_iter().flatten();
        places.map(|place| self.lists[place.list as usize].topic.clone()).collect()
    }

    /// Of how many topics a channel is a subscriber.
    pub(crate) fn count_of(&self, slot: Slot) -> usize {
        self.of_channel.get(&slot).map_or(0, Vec::len)
    }

    /// How many subscriptions there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The topics of a channel without that of its user, which the broker subscribes it to by itself. It is one: of
    /// others that are called so there may be no more than of any.
    fn asked_for(&self, slot: Slot) -> usize {
        let Some(places) = self.of_channel.get(&slot) else { return 0 };
        let is_of_user = |place: &TopicPlace| topic::is_of_user(self.lists[place.list as usize].topic.name());
        places.len() - usize::from(places.iter().any(is_of_user))
    }

    fn nth(&self, slot: Slot, list: u32) -> Option<usize> {
        self.of_channel.get(&slot)?.iter().position(|place| place.list == list)
    }

    fn push(&mut self, list: u32, slot: Slot) {
        let places = self.of_channel.entry(slot).or_default();
        let members = &mut self.lists[list as usize];
        let before = members.heap_bytes() + places_bytes(places);
        places.push(TopicPlace { list, at: members.slots.len() as u32 });
        members.slots.push(slot);
        members.nths.push((places.len() - 1) as u16);
        self.listed_bytes += members.heap_bytes() + places_bytes(places) - before;
    }

    /// Takes a channel out of the lists. The topic still counts it.
    fn take_out(&mut self, shard: u32, slot: Slot, nth: usize) -> Arc<Topic> {
        let places = self.of_channel.get_mut(&slot).expect("a leaver was subscribed");
        let TopicPlace { list, at } = places.swap_remove(nth);
        // Another of its topics has this number now.
        if let Some(moved) = places.get(nth) {
            self.lists[moved.list as usize].nths[moved.at as usize] = nth as u16;
        }
        if places.is_empty() {
            self.listed_bytes -= places_bytes(places);
            self.of_channel.remove(&slot);
        }
        let members = &mut self.lists[list as usize];
        members.slots.swap_remove(at as usize);
        members.nths.swap_remove(at as usize);
        // Another channel stands at this place now.
        if let Some((moved, nth)) = members.slots.get(at as usize).zip(members.nths.get(at as usize)) {
            let places = self.of_channel.get_mut(moved).expect("a listed channel has its place");
            places[usize::from(*nth)].at = at;
        }
        let topic = members.topic.clone();
        if members.slots.is_empty() {
            self.listed_bytes -= members.heap_bytes();
            self.lists.remove(list as usize);
            topic.set_place(shard, None);
        } else if members.slots.len() < members.slots.capacity() / 4 {
            let before = members.heap_bytes();
            let capacity = members.slots.len() * 2;
            members.slots.shrink_to(capacity);
            members.nths.shrink_to(capacity);
            self.listed_bytes -= before - members.heap_bytes();
        }
        topic
    }

    fn heap_bytes(&self) -> usize {
        // A slab keeps a word with each entry.
        self.listed_bytes
            + self.lists.capacity() * (size_of::<TopicSubscribers>() + size_of::<usize>())
            + table_bytes::<Slot, Vec<TopicPlace>>(self.of_channel.capacity())
    }

    /// Charges what was added. Returns whether there was room.
    fn is_charged(&mut self, memory: &ProcessMemory) -> bool {
        let bytes = self.heap_bytes();
        let charge = self.charge.get_or_insert_with(|| memory.charge_anyway(HeldAs::Topics, 0));
        bytes.checked_sub(charge.bytes()).is_none_or(|more| more == 0 || charge.grow(more).is_ok())
    }

    /// Gives back the tables once they are mostly empty, and charges what is left.
    fn shrink(&mut self) {
        if self.count == 0 {
            *self = Self::default();
            return;
        }
        if self.of_channel.len() < self.of_channel.capacity() / 8 {
            self.of_channel.shrink_to(self.of_channel.len() * 2);
        }
        let bytes = self.heap_bytes();
        if let Some(charge) = self.charge.as_mut().filter(|charge| bytes < charge.bytes()) {
            charge.resize(bytes);
        }
    }

    /// Asserts what the module promises.
    pub(crate) fn check(&self, shard: u32) {
        let places = self.of_channel.values().map(Vec::len).sum::<usize>();
        let listed = self.lists.iter().map(|(_, list)| list.slots.len()).sum::<usize>();
        assert_eq!((places, listed), (self.count, self.count), "every subscription is listed at both ends");
        for (at, list) in &self.lists {
            assert!(!list.slots.is_empty(), "a topic without subscribers is forgotten");
            assert_eq!(list.topic.place(shard), Some(at as u32), "a topic is where it says");
            assert!(list.topic.counted(shard) >= list.slots.len(), "subscribers are counted");
            for (member, (slot, nth)) in std::iter::zip(&list.slots, &list.nths).enumerate() {
                let place = self.of_channel[slot][usize::from(*nth)];
                assert_eq!(
                    (place.list as usize, place.at as usize),
                    (at, member),
                    "a subscriber knows where it stands"
                );
            }
        }
        let lists = self.lists.iter().map(|(_, list)| list.heap_bytes()).sum::<usize>();
        let places = self.of_channel.values().map(places_bytes).sum::<usize>();
        assert_eq!(self.listed_bytes, lists + places, "what lists take is counted");
    }
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
