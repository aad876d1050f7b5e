//! A fleet in memory: several nodes and a bus that loses, delays, disconnects and restarts, but keeps the order of what
//! one source sends to one subject, as NATS does. The product's own code runs; one seed is one world.
//!
//! Oracle: a node receives, of an audience that it listens to, each source's messages, once and in order; and once the
//! bus has worked again for some seconds, what did not arrive is counted as lost, exactly, except where the node
//! reports a gap of unknown size.

use super::Options;
use super::member::Member;
use super::names::Name;
use super::roster::Announcement;
use super::subject::{NamedAudience, Target};
use super::traffic::{Channels, FleetNews, OutboundPush, OutboundTo, Publish};
use crate::channel::ChannelId;
use crate::proto::MessageKind;
use crate::shard::command::{PushFrame, PushKind};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// SplitMix64.
pub(super) struct Rng(pub u64);

impl Rng {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}

const TOPICS: u64 = 3;

/// The messages sent while a receiver listened, and those that arrived, for a source's life, an audience and a
/// receiver's life.
#[derive(Default)]
struct Stream {
    sent: Vec<u64>,
    came: Vec<u64>,
    lost: u64,
    is_unknown: bool,
}

/// Source and its life, receiver and its life, audience.
type Key = (usize, u64, usize, u64, String);

struct Node {
    member: Member,
    life: u64,
    /// Cut off: nothing leaves, nothing arrives.
    is_cut: bool,
    /// Of each source and subject what is on its way, with when it may arrive.
    on_the_way: BTreeMap<(usize, String), VecDeque<(u64, Publish)>>,
}

struct World {
    rng: Rng,
    now_ms: u64,
    nodes: Vec<Node>,
    streams: BTreeMap<Key, Stream>,
    next: u64,
    /// Of a hundred messages.
    lost: u64,
}

fn name(node: usize) -> Name {
    Name::new(&format!("n{node}")).unwrap()
}

fn target(topic: u64) -> Target {
    Target { process: "chat:demo:sys".parse().unwrap(), to: NamedAudience::Topic(format!("t{topic}").into()) }
}

fn born(node: usize, life: u64, now_ms: u64, subjects_max: usize) -> Node {
    let options = Options { subjects_max, ..Options::new(name(node)) };
    let mut member = Member::new(&options, life, now_ms);
    for topic in 0..TOPICS {
        member.listen(&target(topic), now_ms);
    }
    Node { member, life, is_cut: false, on_the_way: BTreeMap::new() }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let (count, now_ms) = (2 + rng.below(3) as usize, 1_000_000);
        let nodes = (0..count).map(|node| born(node, 1, now_ms, 64)).collect();
        Self { rng, now_ms, nodes, streams: BTreeMap::new(), next: 0, lost: 10 }
    }

    fn listens(subject: &str, to: usize) -> bool {
        let parts: Vec<&str> = subject.split('.').collect();
        parts[4] != "channels" || parts[5] == name(to).as_str()
    }

    fn publish(&mut self, from: usize, publish: &Publish) {
        for to in (0..self.nodes.len()).filter(|to| *to != from && Self::listens(&publish.subject, *to)) {
            let is_cut = self.nodes[from].is_cut || self.nodes[to].is_cut;
            let Some(arrives_ms) = arrives_ms(&mut self.rng, self.lost, is_cut, self.now_ms) else { continue };
            let queue = self.nodes[to].on_the_way.entry((from, publish.subject.clone())).or_default();
            queue.push_back((arrives_ms, publish.clone()));
        }
    }

    fn send(&mut self, from: usize) {
        self.next += 1;
        let payload = Bytes::from(self.next.to_string());
        let frame = PushFrame { kind: PushKind::Message(MessageKind::Text), payload };
        let (to, audience, receivers) = match self.rng.below(4) {
            0 => {
                let to = self.rng.below(self.nodes.len() as u64) as usize;
                if to == from {
                    return;
                }
                (OutboundTo::Channels(name(to), vec![ChannelId::new(1)]), "channels".to_owned(), vec![to])
            }
            _ => {
                let topic = self.rng.below(TOPICS);
                let others = (0..self.nodes.len()).filter(|to| *to != from).collect();
                (OutboundTo::All(target(topic).to), format!("t{topic}"), others)
            }
        };
        let outbound = OutboundPush { process: target(0).process, to, frame, policy: None, asks: false };
        let publish = self.nodes[from].member.publish(outbound, self.now_ms).unwrap().push;
        for to in receivers {
            let key = (from, self.nodes[from].life, to, self.nodes[to].life, audience.clone());
            self.streams.entry(key).or_default().sent.push(self.next);
        }
        self.publish(from, &publish);
    }

    fn hear(&mut self, to: usize, from: usize, subject: &str, publish: &Publish) {
        let received = self.nodes[to].member.receive(subject, &publish.bytes, self.now_ms);
        self.note(to, &received.told);
        let Some(delivery) = received.delivery else { return };
        let audience = match delivery.channels {
            Channels::Of(NamedAudience::Topic(topic)) => topic.to_string(),
            Channels::List(_) => "channels".to_owned(),
            other => panic!("{other:?}"),
        };
        let number: u64 = std::str::from_utf8(delivery.message.payload()).unwrap().parse().unwrap();
        // Of which life of the source it is, what was sent says.
        let life = self.nodes[to].life;
        let mut of = self.streams.iter_mut().filter(|(key, stream)| {
            (key.0, key.2, key.3, &key.4) == (from, to, life, &audience) && stream.sent.contains(&number)
        });
        let (_, stream) = of.next().expect("what arrives was sent to this node as it lives now");
        assert!(stream.came.last().is_none_or(|last| *last < number), "once and in order");
        stream.came.push(number);
    }

    /// Notes what a node tells of losses.
    fn note(&mut self, to: usize, told: &[FleetNews]) {
        for told in told {
            match told {
                FleetNews::Lost { source, to: target, count } => {
                    let from = (0..self.nodes.len()).find(|node| name(*node).as_str() == &**source).unwrap();
                    let audience = match target {
                        Some(target) => target.name().to_owned(),
                        None => "channels".to_owned(),
                    };
                    let (from_life, life) = (self.nodes[from].life, self.nodes[to].life);
                    let stream = self.streams.entry((from, from_life, to, life, audience)).or_default();
                    match count {
                        Some(count) => stream.lost += count,
                        None => stream.is_unknown = true,
                    }
                }
                FleetNews::Refused { why, .. } => panic!("nobody here is hostile: {why}"),
                FleetNews::Node { .. } | FleetNews::Gone { .. } => {}
            }
        }
    }

    fn deliver(&mut self) {
        for to in 0..self.nodes.len() {
            if self.nodes[to].is_cut {
                continue;
            }
            let mut ways: Vec<_> = self.nodes[to].on_the_way.keys().cloned().collect();
            // Subscriptions have no order among each other.
            while !ways.is_empty() {
                let at = self.rng.below(ways.len() as u64) as usize;
                let (from, subject) = ways.swap_remove(at);
                loop {
                    let now_ms = self.now_ms;
                    let queue = self.nodes[to].on_the_way.get_mut(&(from, subject.clone())).unwrap();
                    let Some((_, publish)) = queue.pop_front_if(|(at_ms, _)| *at_ms <= now_ms) else { break };
                    self.hear(to, from, &subject, &publish);
                }
            }
        }
    }

    fn tick(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_cut {
                // It knows that it has no connection.
                continue;
            }
            let (said, told) = self.nodes[node].member.tick(self.now_ms, Announcement::default());
            self.note(node, &told);
            said.iter().for_each(|said| self.publish(node, said));
        }
    }

    fn step(&mut self) {
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        match self.rng.below(200) {
            0..=119 => self.send(node),
            120..=121 => {
                let is_cut = !self.nodes[node].is_cut;
                self.cut(node, is_cut);
            }
            _ => {}
        }
        let before_ms = self.now_ms;
        self.now_ms += self.rng.below(60);
        if before_ms / 1000 != self.now_ms / 1000 {
            self.tick();
        }
        self.deliver();
    }

    fn cut(&mut self, node: usize, is_cut: bool) {
        self.nodes[node].is_cut = is_cut;
        if is_cut {
            // Messages in flight to it are lost with its connection.
            self.nodes[node].on_the_way.clear();
        } else {
            let told = self.nodes[node].member.reconnected(self.now_ms);
            self.note(node, &told);
        }
    }

    /// Connects all nodes.
    fn connect_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_cut {
                self.cut(node, false);
            }
        }
    }

    /// All say how far they are to those that have begun to listen, before anything else happens.
    fn exchange(&mut self) {
        self.connect_all();
        for node in 0..self.nodes.len() {
            for asked in self.nodes[node].member.ask_standing(self.now_ms) {
                for to in (0..self.nodes.len()).filter(|to| *to != node) {
                    let heard = self.nodes[to].member.receive(&asked.subject, &asked.bytes, self.now_ms);
                    self.note(to, &heard.told);
                    let said = heard.answer.expect("it says how far it is");
                    let heard = self.nodes[node].member.receive(&said.subject, &said.bytes, self.now_ms);
                    self.note(node, &heard.told);
                }
            }
        }
    }

    /// Repairs the bus and gives all nodes time to announce their counts.
    fn settle(&mut self) {
        self.lost = 0;
        self.connect_all();
        for _ in 0..(15_000 / 50) {
            let before_ms = self.now_ms;
            self.now_ms += 50;
            if before_ms / 1000 != self.now_ms / 1000 {
                self.tick();
            }
            self.deliver();
        }
    }

    fn judge(&self, seed: u64) {
        let mut judged = 0;
        for (key, stream) in &self.streams {
            let is_alive = self.nodes[key.0].life == key.1 && self.nodes[key.2].life == key.3;
            if !is_alive || stream.is_unknown {
                continue;
            }
            judged += stream.sent.len();
            let accounted = stream.came.len() as u64 + stream.lost;
            let known = stream.sent.len() as u64;
            assert_eq!(accounted, known, "seed {seed}, {key:?}: came {}, lost {}", stream.came.len(), stream.lost);
        }
        assert!(judged > 0 || self.next == 0, "seed {seed}: nothing was judged");
    }
}

/// When what is sent now arrives at another node, unless it is lost, as `lost` of a hundred messages are.
pub(super) fn arrives_ms(rng: &mut Rng, lost: u64, is_cut: bool, now_ms: u64) -> Option<u64> {
    let is_lost = rng.below(100) < lost;
    // Less than it takes until an announcement is believed.
    (!is_lost && !is_cut).then(|| now_ms + rng.below(if lost > 0 { 900 } else { 50 }))
}

/// The seeds: a few, or as many as `PUSHRING_FLEET_WORLDS` says, from the one that `PUSHRING_FLEET_FIRST` says.
pub(super) fn worlds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let (first, worlds) = (number("PUSHRING_FLEET_FIRST").unwrap_or(0), number("PUSHRING_FLEET_WORLDS").unwrap_or(12));
    first..first + worlds
}

/// A source forgets counts while no node listens: a node that listens later is told.
#[test]
fn what_was_forgotten_before_the_first_word_is_told() {
    let mut world = World::new(0);
    let now_ms = world.now_ms;
    for (node, place) in world.nodes.iter_mut().enumerate() {
        *place = born(node, 1, now_ms, 3);
    }
    world.cut(0, true);
    world.now_ms += 2500;
    let outbound = |topic: u64| OutboundPush {
        process: target(0).process,
        to: OutboundTo::All(target(topic).to),
        frame: PushFrame { kind: PushKind::Message(MessageKind::Text), payload: Bytes::from_static(b"x") },
        policy: None,
        asks: false,
    };
    for topic in 0..9 {
        drop(world.nodes[0].member.publish(outbound(topic), world.now_ms));
    }
    world.settle();
    let told: Vec<u64> = world.nodes.iter().map(|node| node.member.counts.gaps_unknown).collect();
    assert!(told[0] == 0 && told[1..].iter().all(|gaps| *gaps > 0), "{told:?}");
}

#[test]
fn every_message_comes_once_and_in_order_or_is_told_lost() {
    for seed in worlds() {
        let mut world = World::new(seed);
        // All nodes listen for longer than announcements may be late.
        world.now_ms += 2500;
        for _ in 0..300 {
            world.step();
        }
        world.settle();
        world.judge(seed);
    }
}

/// From the first message behind a subscription on, whatever of them is lost.
#[test]
fn what_is_lost_as_soon_as_a_node_listens_is_told() {
    for seed in worlds() {
        let mut world = World::new(seed);
        world.exchange();
        for step in 0..300 {
            world.lost = if step < 40 { 100 } else { 10 };
            world.step();
        }
        world.settle();
        world.judge(seed);
    }
}

/// The same of a node that comes when others have counted far.
#[test]
fn a_node_that_comes_later_is_told_from_its_first_moment_on() {
    for seed in worlds() {
        let mut world = World::new(seed);
        world.exchange();
        (0..150).for_each(|_| world.step());
        let node = world.rng.below(world.nodes.len() as u64) as usize;
        world.connect_all();
        world.nodes[node] = born(node, 2, world.now_ms, 64);
        world.exchange();
        for step in 0..150 {
            world.lost = if step < 30 { 100 } else { 10 };
            world.step();
        }
        world.settle();
        // Losses of its former life are reported to it, too.
        world.streams.retain(|key, _| key.0 != node);
        world.judge(seed);
    }
}

#[test]
fn a_node_that_begins_anew_doubles_nothing() {
    for seed in worlds() {
        let mut world = World::new(seed);
        for step in 0..300 {
            world.step();
            if step % 100 == 99 {
                let node = world.rng.below(world.nodes.len() as u64) as usize;
                let life = world.nodes[node].life + 1;
                world.nodes[node] = born(node, life, world.now_ms, 64);
            }
        }
        world.settle();
        // Once and in order is asserted at each arrival; what is lost of a life that is over is not known exactly.
    }
}

#[test]
fn counts_that_were_forgotten_are_told() {
    for seed in worlds() {
        let mut world = World::new(seed);
        let now_ms = world.now_ms;
        for (node, place) in world.nodes.iter_mut().enumerate() {
            *place = born(node, 1, now_ms, 3);
        }
        world.now_ms += 2500;
        for _ in 0..300 {
            world.step();
        }
        world.settle();
        let is_told = world.nodes.iter().any(|node| node.member.counts.gaps_unknown > 0);
        assert!(is_told, "seed {seed}: more audiences and sources than places, and nobody says so");
    }
}
