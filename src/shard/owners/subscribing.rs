//! Subscribing channels to topics and taking them out ([`subscriptions`](super::subscriptions)).
//!
//! Invariants: only its owner subscribes a channel, and only while it is open and not closing; a channel that ends has
//! left its topics before its owner is told of the end. Presence events about joining channels need room in the queue
//! of the process first, so a process that does not read is told of no more joins than it has room for; events about
//! leaving channels are never refused, and bounded by those that have joined.

use crate::channel::ChannelId;
use crate::shard::command::{Membership, ReportTo, SubscribeCommand};
use crate::shard::core::Shard;
use crate::shard::event::Event;
use crate::shard::outcome::Outcome;
use crate::shard::owners::subscriptions::Subscribed;
use crate::shard::owners::topics::{Topic, TopicClaim};
use crate::shard::table::connection::Flag;
use crate::shard::table::slot::Slot;
use crate::shard::work;
use std::sync::Arc;

impl Shard {
    /// Subscribes a channel to a topic, or takes it out of it.
    pub(in crate::shard) fn subscribe(&mut self, subscribe: SubscribeCommand) {
        let SubscribeCommand { channel, owner, change, asked } = subscribe;
        self.work.spend(work::SUBSCRIBE_NS);
        let slot = match self.pushable(channel, Some(owner)) {
            Ok(slot) => slot,
            Err(why) => return self.answer_failed(Some(owner), asked, why),
        };
        let counts = match change {
            // As nothing may follow a close frame, it is as good as gone.
            Membership::In(_) if self.table[slot].flags.has(Flag::CloseSent) => {
                return self.answer_failed(Some(owner), asked, Outcome { closed: 1, ..Outcome::default() });
            }
            Membership::In(claim) => match claim.is_some_and(|claim| self.join(channel, slot, claim)) {
                true => Outcome { sent: 1, ..Outcome::default() },
                false => {
                    self.stats.subscriptions_refused += 1;
                    let counts = Outcome { dropped: 1, ..Outcome::default() };
                    return self.answer_failed(Some(owner), asked, counts);
                }
            },
            Membership::Out(topic) => {
                if let Some(topic) = topic {
                    self.leave_topic(channel, slot, &topic);
                }
                Outcome { sent: 1, ..Outcome::default() }
            }
        };
        if let ReportTo::Outcome(mut part) = asked {
            part.counts.add(&counts);
        }
    }

    /// Returns whether the channel is subscribed now.
    pub(in crate::shard) fn join(&mut self, channel: ChannelId, slot: Slot, claim: TopicClaim) -> bool {
        let Some(place) = self.table[slot].channel().map(|channel| channel.owner) else { return false };
        if self.owners[place].subscriptions.has(self.owners.shard(), slot, claim.topic()) {
            // It needs no room.
            return true;
        }
        let owner = self.owners[place].owner.clone();
        let name = claim.topic().name().clone();
        let told_bytes = size_of::<Event>() + name.len();
        if owner.wants_topics() && !self.owners.has_room_to_open(&owner, told_bytes) {
            return false;
        }
        let processes = self.owners.directory().owners.size();
        if !self.table.admission().enter_subscription(owner.topics.subscriptions(), processes) {
            return false;
        }
        let (shard, topics_max) = (self.owners.shard(), self.config.topics_per_channel_max);
        let local = &mut self.owners[place];
        let subscribed = local.subscriptions.subscribe(shard, slot, claim, topics_max, &owner.memory);
        if subscribed != Subscribed::New {
            self.table.admission().leave_subscription(owner.topics.subscriptions());
            return false;
        }
        self.stats.subscribed += 1;
        if self.table[slot].flags.has(Flag::Sse) {
            self.listens_to_topic(place, name.clone());
        }
        if owner.wants_topics() {
            self.owners.emit(place, Event::Joined { channel, topic: name });
        }
        true
    }

    fn leave_topic(&mut self, channel: ChannelId, slot: Slot, topic: &Arc<Topic>) {
        let Some(place) = self.table[slot].channel().map(|channel| channel.owner) else { return };
        let owner = self.owners[place].owner.clone();
        let shard = self.owners.shard();
        if self.owners[place].subscriptions.unsubscribe(shard, slot, topic, &owner.topics) {
            if self.table[slot].flags.has(Flag::Sse) {
                self.listens_no_longer(slot, place, topic.name(), None);
            }
            self.has_left(place, channel, topic);
        }
    }

    /// A channel of the owner at `place` ends: it leaves its topics.
    pub(in crate::shard) fn leave_topics(&mut self, place: u32, slot: Slot, channel: ChannelId) {
        let shard = self.owners.shard();
        let owner = self.owners[place].owner.clone();
        if self.table[slot].flags.has(Flag::Sse) {
            // It may come back: what is published meanwhile has to come here.
            for topic in self.owners[place].subscriptions.listed(slot) {
                self.work.spend(work::SUBSCRIBE_NS);
                let claim = owner.topics.hold(&topic, shard);
                self.listens_no_longer(slot, place, topic.name(), Some(claim));
            }
        }
        while let Some(topic) = self.owners[place].subscriptions.leave_last(shard, slot, &owner.topics) {
            self.work.spend(work::SUBSCRIBE_NS);
            self.has_left(place, channel, &topic);
        }
    }

    fn has_left(&mut self, place: u32, channel: ChannelId, topic: &Topic) {
        self.stats.unsubscribed += 1;
        let owner = &self.owners[place].owner;
        self.table.admission().leave_subscription(owner.topics.subscriptions());
        let id = owner.id;
        if owner.wants_topics() {
            self.owners.emit(place, Event::Left { channel, topic: topic.name().clone() });
        }
        self.topic_left(id, topic);
    }
}
