//! Processes subscribe channels to topics and publish: the oracle's twin is a set of names for each channel.

use super::oracle::{Fate, Pushed};
use super::orders::{Note, Order};
use super::payload;
use super::world::{Awaited, World};
use bytes::Bytes;
use pushring::internals::channel::ChannelId;
use pushring::internals::shard::command::{
    Command, Membership, PushFrame, PushMany, ReportTo, ShardAudience, SubscribeCommand,
};
use std::sync::Arc;

/// The topics.
const TOPICS: [&str; 3] = ["a", "room/1", "room/2"];

impl World {
    pub fn subscribe(&mut self, index: usize) -> Option<Order> {
        let drawn = self.draw_channel(index);
        let name = self.processes[index].rng.pick(&TOPICS);
        let is_out = self.processes[index].rng.chance(25);
        let Some(channel) = drawn else {
            self.next_push += 1;
            return None;
        };
        let is_ours = self.channels[&channel].owner == index;
        let (id, mut parts) = self.awaits(1, Awaited { audience: Some(1), ..Awaited::new(0) });
        let owner = &self.processes[index].owner;
        let (shard, shards) = (self.shard_of(channel), self.pumps.len());
        let change = match is_out {
            true => Membership::Out(owner.topics.find(name)),
            false => Membership::In(owner.topics.claim(&name.into(), shard as u32, shards, &owner.memory)),
        };
        let asked = ReportTo::Outcome(Box::new(parts.pop().expect("one part")));
        let subscribe = SubscribeCommand { channel: ChannelId::new(channel), owner: owner.id, change, asked };
        let command = Command::Subscribe(Box::new(subscribe));
        let note = if is_ours { Note::Membership { channel, name, is_out } } else { Note::Nothing };
        Some(Order { shard, command, note, awaits: Some(id) })
    }

    pub fn publish(&mut self, index: usize) -> Vec<Order> {
        let (opcode, kind, len) = self.draw_frame(index);
        let name = self.processes[index].rng.pick(&TOPICS);
        let except: Arc<[ChannelId]> = self.draw_channel(index).into_iter().map(ChannelId::new).collect();
        let policy = self.draw_policy(index, opcode).filter(|_| self.processes[index].rng.chance(30));
        let owner = self.processes[index].owner.clone();
        // Shards without subscribers, present or about to be, are not told.
        let topic = owner.topics.find(name);
        let shards: Vec<usize> = topic.iter().flat_map(|topic| topic.shards()).collect();
        let Some(topic) = topic.filter(|_| !shards.is_empty()) else {
            self.next_push += 1;
            return Vec::new();
        };
        let (id, mut parts) = self.awaits(shards.len(), Awaited { parts: shards.len(), ..Awaited::new(len + 26) });
        let bytes: Bytes = payload::of_push(id, len).into();
        // Where memory runs short, subscriptions are refused.
        let is_unsure = self.settings.memory_bytes.is_some();
        let policy_in_force = policy.unwrap_or(owner.policy());
        let pushed =
            Pushed { id, opcode, len, policy: policy_in_force, fate: Fate::Unknown, is_unsure, is_guests: false };
        let order = |shard: usize| {
            let many = PushMany {
                audience: ShardAudience::Topic(topic.clone()),
                except: except.clone(),
                owner: owner.id,
                frame: PushFrame { kind, payload: bytes.clone() },
                compressed: None,
                policy,
                part: parts.pop().map(Box::new),
            };
            let note = Note::Topic { name, except: except.clone(), pushed: pushed.clone() };
            Order { shard, command: Command::PushMany(Box::new(many)), note, awaits: Some(id) }
        };
        shards.into_iter().map(order).collect()
    }

    pub fn note_published(&mut self, index: usize, shard: usize, name: &str, except: &[ChannelId], pushed: &Pushed) {
        let shards = self.pumps.len() as u32;
        for channel in self.channels.values_mut().filter(|channel| channel.owner == index && channel.ended.is_none()) {
            let id = ChannelId::new(channel.id);
            if channel.topics.contains(name) && id.shard(shards) as usize == shard && !except.contains(&id) {
                channel.push(pushed.clone());
            }
        }
    }
}
