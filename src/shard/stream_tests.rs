//! Event streams, simulated: two shards, listeners of two paths that are cut at any byte and come back on any shard
//! with the last id that they heard, slow ones that are closed, history that is trimmed by time and bytes. The oracle
//! is what was pushed: a listener hears each message for it once and in order, or is told of a gap before what follows,
//! however often it is cut, and nothing that was for another path.

use super::command::{Carried, Command, PushCommand, PushFrame, PushKind, PushMany, ReportTo, ShardAudience};
use super::flush::{Flush, OutgoingBytes, SendParts, ShortSend, SocketId};
use super::stage::{OWNER, ask};
use super::{Common, ConnectionToken, Directory, Effect, Owner, Resume, Shard, ShardConfig, SocketEnd};
use crate::admission::Ledger;
use crate::channel::ChannelId;
use crate::gateway::{Settings, Snapshot, SubdomainTokens, WebSocketRule};
use crate::proto::MessageKind;
use crate::queue::events::{ProcessReceiver, QueueLimits, process_queue};
use bytes::Bytes;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

const SHARDS: u32 = 2;
const PATHS: [&str; 2] = ["/a", "/b"];

#[derive(Default)]
struct Wire {
    to_client: Vec<u8>,
    room: usize,
    is_full: bool,
    is_closed: bool,
    watched: Option<(usize, ConnectionToken)>,
}

#[derive(Clone, Default)]
struct Wires(Rc<RefCell<BTreeMap<i32, Wire>>>);

impl Flush for Wires {
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>) {
        let mut wires = self.0.borrow_mut();
        for (index, entry) in batch.iter().enumerate() {
            let wire = wires.get_mut(&entry.socket.0).expect("a socket that there is");
            let bytes = match entry.parts {
                SendParts::One(bytes) => bytes.to_vec(),
                SendParts::Many(parts) => parts.iter().flat_map(|part| part.to_vec()).collect(),
            };
            let taken = bytes.len().min(wire.room);
            wire.room -= taken;
            wire.to_client.extend_from_slice(&bytes[..taken]);
            if taken < bytes.len() {
                wire.is_full = true;
                short.push(ShortSend { index, sent: Ok(taken) });
            }
        }
    }
}

/// One who listens, as a browser does.
#[derive(Default)]
struct Listener {
    path: usize,
    socket: Option<i32>,
    partial: Vec<u8>,
    has_head: bool,
    last: Option<String>,
    channel: Option<ChannelId>,
    /// It has come once, and what is pushed from then on is for it.
    is_there: bool,
    /// The numbers of what was for it and it has not heard, in order.
    expected: Vec<u64>,
    /// A gap was told: the next may be any of them.
    may_skip: bool,
    heard: usize,
    gaps: usize,
}

struct World {
    shards: Vec<Shard>,
    events: ProcessReceiver,
    wires: Wires,
    now_ms: u64,
    sockets: i32,
    number: u64,
    listeners: Vec<Listener>,
}

impl World {
    fn new(config: ShardConfig) -> Self {
        let process = "p:sim:sys".parse().unwrap();
        let mut gateway = Snapshot::new(Settings::of_a_node("sim.os", SubdomainTokens::Own));
        for path in PATHS {
            let rule = WebSocketRule { sse: true, ..WebSocketRule::default() };
            gateway.bind_websocket(OWNER, &process, path, rule).unwrap();
        }
        let ledger = Ledger::default();
        let (queue, events) = process_queue(SHARDS as usize, QueueLimits::default(), &ledger, |_| {});
        let mut directory = Directory::new(gateway);
        directory.attach(Arc::new(Owner::new(OWNER, process, queue, config.policy, false)));
        let wires = Wires::default();
        let common = Common {
            config: Arc::new(config),
            directory: Arc::new(directory),
            admission: Arc::default(),
            memory: ledger,
            resume: crate::resume::Keys::new(&[7; 32]),
        };
        let shard = |index| Shard::new(index, SHARDS, common.clone(), Box::new(wires.clone()), u64::from(index) + 3, 0);
        let shards = (0..SHARDS).map(shard).collect();
        Self { shards, events, wires, now_ms: 0, sockets: 0, number: 0, listeners: Vec::new() }
    }

    fn wire<T>(&self, socket: i32, look: impl FnOnce(&mut Wire) -> T) -> T {
        look(self.wires.0.borrow_mut().get_mut(&socket).unwrap())
    }

    /// It comes, for the first time or again; where its event was sent is where it is taken to.
    fn connect(&mut self, at: usize, shard: usize, room: usize) {
        self.cut(at, 0);
        let socket = self.sockets;
        self.sockets += 1;
        self.wires.0.borrow_mut().insert(socket, Wire { room, ..Wire::default() });
        let peer = ([127, 0, 0, 1], 1).into();
        let Some(token) = self.shards[shard].handle_accept(SocketId(socket), peer, self.now_ms) else { return };
        self.wire(socket, |wire| wire.watched = Some((shard, token)));
        let listener = &mut self.listeners[at];
        (listener.socket, listener.has_head, listener.channel) = (Some(socket), false, None);
        let last = listener.last.as_ref().map(|last| format!("Last-Event-ID: {last}\r\n")).unwrap_or_default();
        let path = PATHS[listener.path];
        let head =
            format!("GET /p:sim:sys{path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{last}\r\n");
        if listener.last.is_none() {
            // It has heard nothing by which it could be known again.
            listener.expected.clear();
        }
        listener.is_there = true;
        self.shards[shard].handle_read(token, &mut head.into_bytes(), self.now_ms);
        self.turn();
        self.turn();
    }

    fn turn(&mut self) {
        for at in 0..self.shards.len() {
            self.shards[at].begin_turn(self.now_ms);
            self.shards[at].flush();
            self.shards[at].end_turn();
            self.carry_out(at);
        }
        while self.events.try_recv().is_ok() {}
    }

    fn carry_out(&mut self, at: usize) {
        for handover in self.shards[at].take_handovers() {
            self.wire(handover.socket.0, |wire| wire.watched = None);
            let carried = Carried(Box::new(handover.socket));
            let to = handover.to as usize;
            self.shards[to].handle_command(Command::Arrive(carried, handover.arrival), self.now_ms);
            for (carried, arrival) in self.shards[to].take_arrivals() {
                let socket: Box<SocketId> = carried.0.downcast().unwrap();
                self.shards[to].handle_arrival(*socket, *arrival, self.now_ms);
            }
            self.carry_out(to);
        }
        let mut effects = Vec::new();
        self.shards[at].take_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Close(socket) | Effect::Abandon(socket) => self.wire(socket.0, |wire| wire.is_closed = true),
                Effect::Watch(socket, token) => self.wire(socket.0, |wire| wire.watched = Some((at, token))),
                Effect::Read(_) | Effect::ShutdownWrite(_) => {}
            }
        }
    }

    fn frame(&mut self, len: usize) -> PushFrame {
        self.number += 1;
        // Some are of lines, some are base64.
        let (kind, between) = match self.number % 3 {
            0 => (MessageKind::Binary, ""),
            1 => (MessageKind::Text, "\n"),
            _ => (MessageKind::Text, "\r"),
        };
        let payload = Bytes::from(format!("{}:{between}{}", self.number, "x".repeat(len)));
        PushFrame { kind: PushKind::Message(kind), payload }
    }

    /// To all of the process, or of a path: each shard is told, as by a broker.
    fn broadcast(&mut self, path: Option<usize>, len: usize) {
        let frame = self.frame(len);
        for listener in &mut self.listeners {
            if path.is_none_or(|path| path == listener.path) && listener.is_there {
                listener.expected.push(self.number);
            }
        }
        for shard in &mut self.shards {
            let audience = path.map_or(ShardAudience::Process, |path| ShardAudience::Path(PATHS[path].into()));
            let except = Arc::default();
            let (compressed, policy, part) = (None, None, None);
            let push = PushMany { audience, except, owner: OWNER, frame: frame.clone(), compressed, policy, part };
            shard.handle_command(Command::PushMany(Box::new(push)), self.now_ms);
        }
    }

    /// To one alone, while its channel is there.
    fn push(&mut self, at: usize, len: usize) {
        let Some(channel) = self.listeners[at].channel else { return };
        let frame = self.frame(len);
        let (part, settled) = ask();
        let asked = part.map_or(ReportTo::Nobody, ReportTo::Outcome);
        let push = PushCommand { channel, owner: Some(OWNER), frame, policy: None, asked };
        self.shards[channel.shard(SHARDS) as usize].handle_command(Command::Push(push), self.now_ms);
        self.turn();
        let outcome = settled.try_recv().unwrap_or_default();
        if outcome.sent + outcome.queued == 1 {
            self.listeners[at].expected.push(self.number);
        }
    }

    /// So many bytes reach it, then nothing more: and its shard hears of that.
    fn cut(&mut self, at: usize, bytes: usize) {
        let Some(socket) = self.listeners[at].socket else { return };
        self.receive(at, bytes);
        let listener = &mut self.listeners[at];
        (listener.socket, listener.channel) = (None, None);
        listener.partial.clear();
        let watched = self.wire(socket, |wire| wire.watched.filter(|_| !wire.is_closed));
        if let Some((shard, token)) = watched {
            self.shards[shard].handle_end(token, SocketEnd::Broken, self.now_ms);
            self.carry_out(shard);
        }
        self.turn();
    }

    fn receive(&mut self, at: usize, bytes: usize) {
        let Some(socket) = self.listeners[at].socket else { return };
        let (came, was_full, watched) = self.wire(socket, |wire| {
            let count = wire.to_client.len().min(bytes);
            let came: Vec<u8> = wire.to_client.drain(..count).collect();
            wire.room = wire.room.saturating_add(count);
            (came, std::mem::take(&mut wire.is_full), wire.watched.filter(|_| !wire.is_closed))
        });
        self.listeners[at].take(&came);
        if was_full && let Some((shard, token)) = watched {
            self.shards[shard].handle_writable(token);
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            for shard in &mut self.shards {
                shard.handle_tick(self.now_ms);
            }
            self.turn();
        }
    }
}

impl Listener {
    fn take(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.windows(2).position(|two| two == b"\n\n" || two == b"\n\r") {
            // The head ends with \r\n\r\n.
            let end = end + if self.has_head { 2 } else { 3 };
            if self.partial.len() < end {
                return;
            }
            let part = String::from_utf8(self.partial.drain(..end).collect()).unwrap();
            match std::mem::replace(&mut self.has_head, true) {
                false => assert!(part.starts_with("HTTP/1.1 200 OK\r\n"), "{part}"),
                true => self.hear(&part),
            }
        }
    }

    fn hear(&mut self, event: &str) {
        let value = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let Some(data) = value("data") else { return };
        if let Some(id) = value("id") {
            self.last = Some(id.to_owned());
        }
        match value("event") {
            Some("channel") => {
                let said: serde_json::Value = serde_json::from_str(data).unwrap();
                self.channel = Some(ChannelId::new(said["channel_id"].as_u64().unwrap() as u32));
            }
            Some("gap") => {
                self.may_skip = true;
                self.gaps += 1;
            }
            Some("close") => self.channel = None,
            name => {
                let text = match name {
                    None => data.to_owned(),
                    Some(_) => String::from_utf8(base64_of(data)).unwrap(),
                };
                let number = text.split(':').next().unwrap().parse().unwrap();
                self.hear_message(number);
            }
        }
    }

    fn hear_message(&mut self, number: u64) {
        let Some(at) = self.expected.iter().position(|&expected| expected == number) else {
            panic!("{number} was not for it, or came twice: it waits for {:?}", self.expected);
        };
        assert!(
            at == 0 || self.may_skip,
            "{:?} are missing before {number}, and no gap was told",
            &self.expected[..at]
        );
        self.expected.drain(..=at);
        self.may_skip = false;
        self.heard += 1;
    }
}

fn base64_of(data: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(data).unwrap()
}

/// What happens.
#[derive(Debug, Clone)]
enum Step {
    Connect { at: usize, shard: usize, room: usize },
    Cut { at: usize, bytes: usize },
    Receive { at: usize, bytes: usize },
    Broadcast { path: Option<usize>, len: usize },
    Push { at: usize, len: usize },
    Pass { ms: u64 },
}

const LISTENERS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let room = prop_oneof![3 => Just(usize::MAX), 1 => 200..2_000_usize];
    prop_oneof![
        3 => (0..LISTENERS, 0..SHARDS as usize, room).prop_map(|(at, shard, room)| Step::Connect { at, shard, room }),
        3 => (0..LISTENERS, 0..1_500_usize).prop_map(|(at, bytes)| Step::Cut { at, bytes }),
        3 => (0..LISTENERS, 0..3_000_usize).prop_map(|(at, bytes)| Step::Receive { at, bytes }),
        8 => (proptest::option::of(0..PATHS.len()), 0..300_usize).prop_map(|(path, len)| Step::Broadcast { path, len }),
        1 => (0..LISTENERS, 0..300_usize).prop_map(|(at, len)| Step::Push { at, len }),
        1 => (1..40_u64).prop_map(|tens| Step::Pass { ms: 100 * tens }),
    ]
}

fn run(config: ShardConfig, steps: &[Step]) -> World {
    let mut world = World::new(config);
    world.listeners = (0..LISTENERS).map(|at| Listener { path: at % PATHS.len(), ..Listener::default() }).collect();
    for step in steps {
        match *step {
            Step::Connect { at, shard, room } => world.connect(at, shard, room),
            Step::Cut { at, bytes } => world.cut(at, bytes),
            Step::Receive { at, bytes } => world.receive(at, bytes),
            Step::Broadcast { path, len } => world.broadcast(path, len),
            Step::Push { at, len } => world.push(at, len),
            Step::Pass { ms } => world.pass(ms),
        }
        world.turn();
    }
    // All come back and read: nothing that was for them is missing untold.
    for at in 0..LISTENERS {
        world.connect(at, at % SHARDS as usize, usize::MAX);
    }
    world.broadcast(None, 1);
    for _ in 0..20 {
        world.turn();
        for at in 0..LISTENERS {
            world.receive(at, usize::MAX);
        }
    }
    for listener in &world.listeners {
        let is_told = listener.expected.is_empty() || listener.last.is_none();
        assert!(is_told, "{:?} never came", listener.expected);
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn each_message_is_heard_once_and_in_order_or_a_gap_is_told(
        steps in proptest::collection::vec(step(), 1..80),
        bytes_max in prop_oneof![Just(1 << 20), 500..3_000_usize],
        window_ms in prop_oneof![Just(30_000_u64), 300..2_000_u64],
    ) {
        let resume = Resume { window_ms, bytes_max, shard_bytes_max: 64 << 10 };
        let ping_interval_ms = if window_ms < 30_000 { 1_000 } else { 25_000 };
        run(ShardConfig { resume, ping_interval_ms, outbound_bytes_max: 4_000, ..ShardConfig::default() }, &steps);
    }
}

#[test]
fn whatever_byte_is_the_last_to_come_nothing_is_missing_and_a_gap_is_told() {
    for bytes in 0..900 {
        let come = |shard| Step::Connect { at: 0, shard, room: usize::MAX };
        let news = Step::Broadcast { path: None, len: 20 };
        let of_other = Step::Broadcast { path: Some(1), len: 20 };
        let all = Step::Receive { at: 0, bytes: usize::MAX };
        let steps = [
            come(0),
            all,
            news.clone(),
            of_other,
            news.clone(),
            news.clone(),
            Step::Cut { at: 0, bytes },
            news,
            come(1),
        ];
        let world = run(ShardConfig::default(), &steps);
        assert_eq!((world.listeners[0].heard, world.listeners[0].gaps), (5, 0), "cut at {bytes}");
        // What was for it alone cannot be sent again: a gap, told however often it is cut on the way to it.
        let one = Step::Push { at: 0, len: 20 };
        let steps = [
            come(0),
            Step::Receive { at: 0, bytes: usize::MAX },
            one,
            Step::Cut { at: 0, bytes: 0 },
            come(1),
            Step::Cut { at: 0, bytes },
        ];
        let world = run(ShardConfig::default(), &steps);
        assert_eq!((world.listeners[0].heard, world.listeners[0].gaps > 0), (1, true), "cut at {bytes}");
    }
}
