//! Whole brokers in a fleet, in memory: each node is a member and real shards, with clients whose channels outlive
//! their connections, over a bus that loses, delays and partitions. Clients are cut at any byte and come back; a node
//! begins anew, and its clients come to another one. One seed is one world.
//!
//! Oracle: the clients themselves. Each hears the messages of a source and audience once and in order; and once the bus
//! has worked for some seconds, what a client has heard and what it was told to be missing is all that was sent to its
//! audiences while it was there, to the message. One that comes to another node is told that it begins anew.

use super::Options;
use super::member::Member;
use super::names::Name;
use super::roster::Announcement;
use super::simulation_tests::{Rng, arrives_ms, worlds};
use super::subject::{NamedAudience, Target};
use super::traffic::{Channels, FleetNews, OutboundPush, OutboundTo, Publish};
use crate::admission::Budget;
use crate::gateway::WebSocketRule;
use crate::proto::MessageKind;
use crate::shard::command::{Command, LostMessages, PushFrame, PushKind, PushMany, ShardAudience};
use crate::shard::two_shards::{PROCESS_OWNER, SHARDS, TwoShards};
use crate::shard::{Resume, ShardConfig};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const NODES: usize = 3;
const PROCESS: &str = "p:sim:sys";
const PATHS: [&str; 2] = ["/a", "/b"];
/// Of a node, as it begins.
const CLIENTS: usize = 3;

/// The sender: node and life.
type Source = (usize, u64);

struct Client {
    path: &'static str,
    /// Where it is, and through what.
    node: usize,
    socket: Option<i32>,
    partial: Vec<u8>,
    is_upgraded: bool,
    knows_hello: bool,
    channel: Option<(u64, String)>,
    received: u64,
    /// The messages received on this channel, by source and audience.
    heard: BTreeMap<(Source, String), Vec<u64>>,
    missing: u64,
    /// It was there before anything was sent.
    is_first: bool,
    began_anew: u64,
}

struct Node {
    member: Member,
    net: TwoShards,
    life: u64,
    is_cut: bool,
    on_the_way: BTreeMap<(usize, String), VecDeque<(u64, Publish)>>,
    /// Sources and audiences of which it does not know how many are lost.
    unknown: BTreeSet<(usize, String)>,
}

struct World {
    rng: Rng,
    now_ms: u64,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    sent: BTreeMap<(Source, String), u64>,
    /// Of a hundred messages.
    lost: u64,
}

fn name(node: usize) -> Name {
    Name::new(&format!("n{node}")).unwrap()
}

fn targets() -> Vec<NamedAudience> {
    PATHS.iter().map(|&path| NamedAudience::Path(path.into())).chain([NamedAudience::Process]).collect()
}

fn target(to: NamedAudience) -> Target {
    Target { process: PROCESS.parse().unwrap(), to }
}

fn words(to: &NamedAudience) -> String {
    match to {
        NamedAudience::Path(path) => path.to_string(),
        _ => "all".to_owned(),
    }
}

fn born(node: usize, life: u64, now_ms: u64) -> Node {
    let mut member = Member::new(&Options::new(name(node)), life, now_ms);
    for to in targets() {
        member.listen(&target(to), now_ms);
    }
    let config = ShardConfig { resume: Resume { window_ms: 600_000, ..Resume::default() }, ..ShardConfig::default() };
    let rule = WebSocketRule { resume: true, ..WebSocketRule::default() };
    let run = [node as u8 + 1, life as u8].repeat(16).try_into().unwrap();
    let net = TwoShards::of_run(&run, config, Budget::default(), |gateway, process| {
        for path in PATHS {
            gateway.bind_websocket(PROCESS_OWNER, process, path, rule).unwrap();
        }
    });
    Node { member, net, life, is_cut: false, on_the_way: BTreeMap::new(), unknown: BTreeSet::new() }
}

impl Node {
    /// Has both shards do it.
    fn order(&mut self, to: &NamedAudience, command: impl Fn(ShardAudience) -> Command) {
        let audience = match to {
            NamedAudience::Path(path) => ShardAudience::Path(path.clone()),
            _ => ShardAudience::Process,
        };
        for shard in 0..SHARDS as usize {
            let now_ms = self.net.now_ms;
            self.net.shards[shard].handle_command(command(audience.clone()), now_ms);
            self.net.carry_out(shard);
        }
    }

    fn push(&mut self, to: &NamedAudience, payload: &Bytes) {
        self.order(to, |audience| {
            Command::PushMany(Box::new(PushMany {
                audience,
                except: Arc::from([]),
                owner: PROCESS_OWNER,
                frame: PushFrame { kind: PushKind::Message(MessageKind::Text), payload: payload.clone() },
                compressed: None,
                policy: None,
                part: None,
            }))
        });
    }

    fn miss(&mut self, to: &NamedAudience, count: u64) {
        let count = u32::try_from(count).unwrap();
        self.order(to, |audience| {
            Command::LostMessages(Box::new(LostMessages { audience, owner: PROCESS_OWNER, count }))
        });
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let now_ms = 1_000_000;
        let nodes = (0..NODES).map(|node| born(node, 1, now_ms)).collect();
        let (clients, sent) = Default::default();
        let mut world = Self { rng: Rng(seed), now_ms, nodes, clients, sent, lost: 10 };
        world.exchange();
        for node in 0..NODES {
            (0..CLIENTS).for_each(|_| world.add_client(node));
        }
        world
    }

    /// All say how far they are to those that have begun to listen, before anything else happens.
    fn exchange(&mut self) {
        for node in 0..NODES {
            for asked in self.nodes[node].member.ask_standing(self.now_ms) {
                for to in (0..NODES).filter(|to| *to != node) {
                    let heard = self.nodes[to].member.receive(&asked.subject, &asked.bytes, self.now_ms);
                    let said = heard.answer.expect("it says how far it is");
                    let heard = self.nodes[node].member.receive(&said.subject, &said.bytes, self.now_ms);
                    self.tell(node, heard.told);
                }
            }
        }
    }

    fn add_client(&mut self, node: usize) {
        let path = PATHS[self.rng.below(2) as usize];
        self.clients.push(Client {
            path,
            node,
            socket: None,
            partial: Vec::new(),
            is_upgraded: false,
            knows_hello: false,
            channel: None,
            received: 0,
            heard: BTreeMap::new(),
            missing: 0,
            is_first: self.sent.is_empty(),
            began_anew: 0,
        });
        self.connect(self.clients.len() - 1, node);
        self.read(self.clients.len() - 1, usize::MAX);
    }

    /// A client comes to a node, for its channel if it has one.
    fn connect(&mut self, at: usize, node: usize) {
        let shard = self.rng.below(u64::from(SHARDS)) as usize;
        let net = &mut self.nodes[node].net;
        let (socket, token) = net.accept(shard, usize::MAX).expect("there is room");
        let client = &mut self.clients[at];
        let resume = client.channel.as_ref();
        let resume = resume.map_or(String::new(), |(id, token)| format!(", resume.{id}.{token}.{}", client.received));
        let head = format!(
            "GET /{PROCESS}{} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: pushring.1{resume}\r\n\r\n",
            client.path
        );
        (client.node, client.socket, client.is_upgraded, client.knows_hello) = (node, Some(socket), false, false);
        client.partial.clear();
        net.shards[shard].handle_read(token, &mut head.into_bytes(), net.now_ms);
        net.carry_out(shard);
        net.turn();
    }

    /// Its connection is gone; its node hears of that or does not.
    fn cut_client(&mut self, at: usize, is_noticed: bool) {
        let client = &mut self.clients[at];
        let Some(socket) = client.socket.take() else { return };
        let net = &mut self.nodes[client.node].net;
        net.wire(socket, |wire| wire.is_cut = is_noticed);
        if is_noticed {
            net.break_off(socket);
        }
    }

    /// At most so many bytes reach a client.
    fn read(&mut self, at: usize, bytes: usize) {
        let Some(socket) = self.clients[at].socket else { return };
        let net = &mut self.nodes[self.clients[at].node].net;
        let came = net.take(socket, bytes);
        net.let_write(socket);
        self.clients[at].partial.extend_from_slice(&came);
        while self.understand(at) {}
    }

    fn understand(&mut self, at: usize) -> bool {
        let client = &mut self.clients[at];
        if !client.is_upgraded {
            let Some(end) = client.partial.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
            let head = String::from_utf8(client.partial.drain(..end + 4).collect()).unwrap();
            assert!(head.starts_with("HTTP/1.1 101"), "{head}");
            client.is_upgraded = true;
            return true;
        }
        let len = crate::proto::server_frame_len(&client.partial).filter(|&len| len <= client.partial.len());
        let Some(len) = len else { return false };
        let frame: Vec<u8> = client.partial.drain(..len).collect();
        let header = if frame[1] == 126 { 4 } else { 2 };
        let text = &frame[header..];
        match (frame[0] & 0x0f, text) {
            (1, text) if !client.knows_hello => self.greeted(at, text),
            (1, [0x1e, control @ ..]) => {
                let control: serde_json::Value = serde_json::from_slice(control).unwrap();
                let count = control["dropped"].as_u64().unwrap();
                (client.received, client.missing) = (client.received + count, client.missing + count);
            }
            (1, text) => {
                client.received += 1;
                let text = std::str::from_utf8(text).unwrap();
                let [node, life, audience, number]: [&str; 4] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
                let source = (node.parse().unwrap(), life.parse().unwrap());
                assert!(audience == "all" || audience == client.path, "{text} is not for {}", client.path);
                let heard = client.heard.entry((source, audience.to_owned())).or_default();
                let number = number.parse().unwrap();
                assert!(heard.last().is_none_or(|last| *last < number), "once and in order: {text} behind {heard:?}");
                heard.push(number);
            }
            (8, _) => panic!("nobody is closed here: {text:?}"),
            _ => {}
        }
        true
    }

    fn greeted(&mut self, at: usize, text: &[u8]) {
        let hello: serde_json::Value = serde_json::from_slice(text).unwrap();
        let channel = (hello["channel_id"].as_u64().unwrap(), hello["resume"].as_str().unwrap().to_owned());
        let client = &mut self.clients[at];
        client.knows_hello = true;
        let is_same = client.channel.replace(channel).is_some() && hello["resumed"] == true;
        if !is_same {
            if hello.get("resumed").is_some() {
                assert_eq!((&hello["resumed"], &hello["reason"]), (&false.into(), &"elsewhere".into()), "{hello}");
                client.began_anew += 1;
            }
            client.heard.clear();
            (client.received, client.missing) = (0, 0);
        }
    }

    fn send(&mut self, from: usize) {
        let to = targets().swap_remove(self.rng.below(3) as usize);
        let source = (from, self.nodes[from].life);
        let number = self.sent.entry((source, words(&to))).or_default();
        *number += 1;
        let payload = Bytes::from(format!("{} {} {} {number}", source.0, source.1, words(&to)));
        self.nodes[from].push(&to, &payload);
        let frame = PushFrame { kind: PushKind::Message(MessageKind::Text), payload };
        let process = target(NamedAudience::Process).process;
        let outbound = OutboundPush { process, to: OutboundTo::All(to), frame, policy: None, asks: false };
        let publish = self.nodes[from].member.publish(outbound, self.now_ms).unwrap().push;
        self.publish(from, &publish);
    }

    fn publish(&mut self, from: usize, publish: &Publish) {
        for to in (0..NODES).filter(|to| *to != from) {
            let is_cut = self.nodes[from].is_cut || self.nodes[to].is_cut;
            let Some(arrives_ms) = arrives_ms(&mut self.rng, self.lost, is_cut, self.now_ms) else { continue };
            let queue = self.nodes[to].on_the_way.entry((from, publish.subject.clone())).or_default();
            queue.push_back((arrives_ms, publish.clone()));
        }
    }

    fn deliver(&mut self) {
        for to in (0..NODES).filter(|to| !self.nodes[*to].is_cut).collect::<Vec<_>>() {
            let mut ways: Vec<_> = self.nodes[to].on_the_way.keys().cloned().collect();
            while !ways.is_empty() {
                // Subscriptions have no order among each other.
                let way = ways.swap_remove(self.rng.below(ways.len() as u64) as usize);
                let now_ms = self.now_ms;
                while let Some((_, publish)) =
                    self.nodes[to].on_the_way.get_mut(&way).and_then(|queue| queue.pop_front_if(|one| one.0 <= now_ms))
                {
                    let received = self.nodes[to].member.receive(&publish.subject, &publish.bytes, now_ms);
                    // Losses are reported before the next message.
                    self.tell(to, received.told);
                    if let Some(delivery) = received.delivery {
                        let Channels::Of(audience) = delivery.channels else { panic!("there are no lists") };
                        self.nodes[to].push(&audience, delivery.message.payload());
                    }
                }
            }
        }
    }

    /// Tells a node's clients of losses.
    fn tell(&mut self, node: usize, told: Vec<FleetNews>) {
        for told in told {
            match told {
                FleetNews::Lost { to: Some(Target { to, .. }), count: Some(count), .. } => {
                    self.nodes[node].miss(&to, count);
                }
                FleetNews::Lost { source, to, .. } => {
                    let from = (0..NODES).find(|from| name(*from).as_str() == &*source).unwrap();
                    // Channels of a node are not pushed to here.
                    if let Some(target) = to {
                        self.nodes[node].unknown.insert((from, words(&target.to)));
                    }
                }
                FleetNews::Refused { why, .. } => panic!("nobody here is hostile: {why}"),
                FleetNews::Node { .. } | FleetNews::Gone { .. } => {}
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        let before_ms = self.now_ms;
        self.now_ms += ms;
        if before_ms / 1000 != self.now_ms / 1000 {
            for node in (0..NODES).filter(|node| !self.nodes[*node].is_cut).collect::<Vec<_>>() {
                let (said, told) = self.nodes[node].member.tick(self.now_ms, Announcement::default());
                self.tell(node, told);
                said.iter().for_each(|said| self.publish(node, said));
            }
        }
        self.deliver();
        for node in &mut self.nodes {
            node.net.tick(ms);
            node.net.turn();
            while node.net.events.try_recv().is_ok() {}
        }
    }

    fn cut(&mut self, node: usize, is_cut: bool) {
        self.nodes[node].is_cut = is_cut;
        if is_cut {
            self.nodes[node].on_the_way.clear();
        } else {
            let told = self.nodes[node].member.reconnected(self.now_ms);
            self.tell(node, told);
        }
    }

    fn step(&mut self) {
        let (node, at) = (self.rng.below(NODES as u64) as usize, self.rng.below(self.clients.len() as u64) as usize);
        match self.rng.below(100) {
            0..=54 => self.send(node),
            55 => self.cut(node, !self.nodes[node].is_cut),
            56..=60 => {
                let is_noticed = self.rng.below(2) == 0;
                self.cut_client(at, is_noticed);
            }
            61..=70 if self.clients[at].socket.is_none() => self.connect(at, self.clients[at].node),
            _ => {
                let bytes = self.rng.below(300) as usize;
                self.read(at, bytes);
            }
        }
        let ms = self.rng.below(40);
        self.pass(ms);
    }

    /// A node begins anew: its clients come to another, and others later to it.
    fn restart(&mut self, node: usize) {
        for at in (0..self.clients.len()).filter(|at| self.clients[*at].node == node).collect::<Vec<_>>() {
            // Messages sent to it were sent; it will read those that arrive.
            self.clients[at].socket = None;
            self.connect(at, (node + 1) % NODES);
            self.read(at, usize::MAX);
        }
        (0..NODES).filter(|node| self.nodes[*node].is_cut).collect::<Vec<_>>().into_iter().for_each(|node| {
            self.cut(node, false);
        });
        let life = self.nodes[node].life + 1;
        self.nodes[node] = born(node, life, self.now_ms);
        self.exchange();
        (0..CLIENTS).for_each(|_| self.add_client(node));
    }

    fn settle(&mut self) {
        self.lost = 0;
        for node in 0..NODES {
            if self.nodes[node].is_cut {
                self.cut(node, false);
            }
        }
        (0..300).for_each(|_| self.pass(50));
        for at in 0..self.clients.len() {
            if self.clients[at].socket.is_none() {
                self.connect(at, self.clients[at].node);
            }
        }
        for _ in 0..20 {
            self.pass(1);
            (0..self.clients.len()).for_each(|at| self.read(at, usize::MAX));
        }
    }

    /// Every message sent during a client's presence is accounted for by the clients that stayed where they were, as
    /// long as all nodes stayed. Returns the number of messages received.
    fn judge(&self, seed: u64) -> usize {
        let mut judged = 0;
        for (at, client) in self.clients.iter().enumerate().filter(|(_, client)| client.is_first) {
            let is_its = |audience: &str| audience == "all" || audience == client.path;
            let is_unknown = self.nodes[client.node].unknown.iter().any(|(_, audience)| is_its(audience));
            if is_unknown || client.began_anew > 0 {
                continue;
            }
            let expected: u64 = self.sent.iter().filter(|(key, _)| is_its(&key.1)).map(|(_, sent)| sent).sum();
            let heard: usize = client.heard.values().map(Vec::len).sum();
            let missing = client.missing;
            assert_eq!(
                heard as u64 + missing,
                expected,
                "seed {seed}, client {at}: it heard {heard} and misses {missing}"
            );
            judged += heard;
        }
        judged
    }
}

#[test]
fn every_client_of_every_node_hears_each_message_once_or_is_told_how_many_are_missing() {
    for seed in worlds() {
        let mut world = World::new(seed);
        (0..300).for_each(|_| world.step());
        world.settle();
        assert!(world.judge(seed) > 0, "seed {seed}: nothing was judged");
    }
}

#[test]
fn clients_of_a_node_that_begins_anew_are_told_so_elsewhere_and_hear_nothing_twice() {
    for seed in worlds() {
        let mut world = World::new(seed);
        for node in 0..NODES {
            (0..80).for_each(|_| world.step());
            world.restart(node);
        }
        let before = world.clients.iter().map(|client| client.began_anew).sum::<u64>();
        (0..80).for_each(|_| world.step());
        world.settle();
        assert!(before >= (NODES * CLIENTS) as u64, "seed {seed}: {before} were told");
    }
}
