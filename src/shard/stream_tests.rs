//! Event streams, simulated: two shards, listeners of two paths that are cut at any byte and return on any shard with
//! their last event id, slow ones that are closed, history that is trimmed by time and bytes. The oracle is the list of
//! pushes: a listener gets each message for it once and in order, or is told of a gap before the next one, however
//! often it is cut, and no message for another path.

use super::command::{Command, PushCommand, PushFrame, PushKind, PushMany, ReportTo, ShardAudience};
use super::stage::{OWNER, ask};
use super::two_shards::{SHARDS, TwoShards};
use super::{ConnectionToken, Resume, ShardConfig};
use crate::admission::Budget;
use crate::channel::ChannelId;
use crate::gateway::WebSocketRule;
use crate::proto::MessageKind;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;

const PATHS: [&str; 2] = ["/a", "/b"];

/// A listener, as in a browser.
#[derive(Default)]
struct Listener {
    path: usize,
    socket: Option<i32>,
    partial: Vec<u8>,
    has_head: bool,
    last: Option<String>,
    channel: Option<ChannelId>,
    token: String,
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
    net: TwoShards,
    number: u64,
    listeners: Vec<Listener>,
}

impl World {
    fn new(config: ShardConfig) -> Self {
        Self::within(config, Budget::default())
    }

    fn within(config: ShardConfig, memory: Budget) -> Self {
        let net = TwoShards::new(config, memory, |gateway, process| {
            for path in PATHS {
                let rule = WebSocketRule { sse: true, ..WebSocketRule::default() };
                gateway.bind_websocket(OWNER, process, path, rule).unwrap();
            }
        });
        Self { net, number: 0, listeners: Vec::new() }
    }

    /// It comes, for the first time or again; where its event was sent is where it is taken to.
    fn connect(&mut self, at: usize, shard: usize, room: usize) {
        self.cut(at, 0);
        let Some((socket, token)) = self.net.accept(shard, room) else { return };
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
        self.net.shards[shard].handle_read(token, &mut head.into_bytes(), self.net.now_ms);
        self.turn();
        self.turn();
    }

    fn turn(&mut self) {
        self.net.turn();
        while self.net.events.try_recv().is_ok() {}
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
        for shard in &mut self.net.shards {
            let audience = path.map_or(ShardAudience::Process, |path| ShardAudience::Path(PATHS[path].into()));
            let except = Arc::default();
            let (compressed, policy, part) = (None, None, None);
            let push = PushMany { audience, except, owner: OWNER, frame: frame.clone(), compressed, policy, part };
            shard.handle_command(Command::PushMany(Box::new(push)), self.net.now_ms);
        }
    }

    /// To one alone, while its channel is there.
    fn push(&mut self, at: usize, len: usize) {
        let Some(channel) = self.listeners[at].channel else { return };
        let frame = self.frame(len);
        let (part, settled) = ask();
        let asked = part.map_or(ReportTo::Nobody, ReportTo::Outcome);
        let push = PushCommand { channel, owner: Some(OWNER), frame, policy: None, asked };
        self.net.shards[channel.shard(SHARDS) as usize].handle_command(Command::Push(push), self.net.now_ms);
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
        self.net.break_off(socket);
        self.turn();
    }

    fn receive(&mut self, at: usize, bytes: usize) {
        let Some(socket) = self.listeners[at].socket else { return };
        let came = self.net.take(socket, bytes);
        self.net.wire(socket, |wire| wire.room = wire.room.saturating_add(came.len()));
        self.listeners[at].take(&came);
        self.net.let_write(socket);
    }

    /// The client of a stream sends this by a request of its own, and is answered.
    fn say(&mut self, at: usize, token: &str, (socket, connection): (i32, ConnectionToken), text: &str) {
        let (path, channel) = (PATHS[self.listeners[at].path], self.listeners[at].channel.unwrap());
        let request = format!(
            "POST /p:sim:sys{path} HTTP/1.1\r\nHost: localhost\r\nSSE-Channel: {channel}.{token}\r\n\
             Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        let now_ms = self.net.now_ms;
        self.net.shards[0].handle_read(connection, &mut request.into_bytes(), now_ms);
        self.turn();
        self.turn();
        let answer = String::from_utf8(self.net.take(socket, usize::MAX)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.net.tick(100);
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
                self.token = said["token"].as_str().unwrap().to_owned();
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

/// A step of the test.
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
        // A message for it alone cannot be sent again: a gap, reported however often it is cut on the way to it.
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

#[test]
fn a_stream_that_is_not_read_holds_no_more_answers_to_its_own_pings_than_may_wait() {
    const BUDGET: usize = 4_000;
    let mut world = World::new(ShardConfig { outbound_bytes_max: BUDGET, ..ShardConfig::default() });
    world.listeners.push(Listener::default());
    world.connect(0, 0, usize::MAX);
    world.receive(0, usize::MAX);
    let (stream, token) = (world.listeners[0].socket.unwrap(), world.listeners[0].token.clone());
    world.net.wire(stream, |wire| wire.room = 10);
    let beside = world.net.accept(0, usize::MAX).unwrap();
    for number in 0..1_000 {
        world.say(0, &token, beside, &format!("\u{1e}{{\"ping\":{number}}}"));
    }
    let held = world.net.shards[0].report().memory.queued_bytes;
    assert!((BUDGET / 2..2 * BUDGET).contains(&held), "{held}");
    // It is read again: those that had room are there, and the next one is answered.
    world.net.wire(stream, |wire| wire.room = usize::MAX);
    world.receive(0, usize::MAX);
    world.turn();
    world.say(0, &token, beside, "\u{1e}{\"ping\":1000}");
    let came = String::from_utf8(world.net.take(stream, usize::MAX)).unwrap();
    assert!(came.contains(r#"{"pong":1}"#) && came.contains(r#"{"pong":1000}"#), "{came}");
}

#[test]
fn an_event_that_memory_takes_back_amid_its_broadcast_reaches_the_others_all_the_same() {
    let budget = Budget::of(3 << 20);
    let mut world = World::within(ShardConfig::default(), budget.clone());
    for at in 0..3 {
        world.listeners.push(Listener::default());
        world.connect(at, 0, usize::MAX);
        world.receive(at, usize::MAX);
    }
    let stuck = world.listeners[0].socket.unwrap();
    world.net.wire(stuck, |wire| wire.room = 10);
    world.broadcast(None, 10);
    world.turn();
    // Its event is kept, and for what it is behind by there is no memory unless history goes.
    let shard = &mut world.net.shards[0];
    let memory = shard.report().memory;
    let most = memory.leased_bytes + (3 << 20) - budget.leased_bytes();
    shard.note_inbox(most - memory.used_bytes() - 4_000);
    world.broadcast(None, 3_000);
    assert!(world.net.shards[0].report().stats.history_shed > 0);
    world.net.shards[0].note_inbox(0);
    world.turn();
    for at in [1, 2] {
        world.receive(at, usize::MAX);
        assert!(world.listeners[at].expected.is_empty(), "{at} waits for {:?}", world.listeners[at].expected);
    }
}
