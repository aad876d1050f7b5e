//! Channels that outlive their connections, simulated: two shards, clients that are cut at any byte and come back on
//! any shard, policies, memory pressure and drains. The oracle is the protocol itself: a client counts, and message
//! number N of its channel must be the Nth that it receives, both ways; missing messages must have been reported, to
//! the message.

use super::command::{
    CloseCommand, CloseFrame, Command, Policy, PushCommand, PushFrame, PushKind, PushMany, ReportTo, ShardAudience,
};
use super::event::Event;
use super::stage::OWNER;
use super::two_shards::{SHARDS, SealedClient, TwoShards};
use super::{ListenerKind, Resume, ShardConfig};
use crate::admission::Budget;
use crate::channel::ChannelId;
use crate::gateway::WebSocketRule;
use crate::proto::MessageKind;
use crate::proto::client::append_message;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

#[path = "resume_limits_tests.rs"]
mod limits;

/// splitmix64
#[derive(Clone)]
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A client that counts as the protocol says.
struct Client {
    socket: Option<i32>,
    /// Its end of TLS, if it came over that.
    sealed: Option<SealedClient>,
    /// Received and not yet parsed.
    partial: Vec<u8>,
    is_upgraded: bool,
    knows_hello: bool,
    channel: Option<u32>,
    token: String,
    received: u64,
    sent: u64,
    /// The sum of its reported losses.
    missing: u64,
    /// For which returns the process' answers were.
    answered: Vec<u64>,
    /// The numbers of the last ping and the last pong.
    pinged: u64,
    ponged: u64,
    /// A close frame came.
    is_closed: bool,
    /// How many came in all.
    closes: usize,
}

/// The state of a channel as seen from outside.
#[derive(Default)]
struct Known {
    pushed: u64,
    /// Messages of its client that its owner was told.
    told: u64,
    is_closed: bool,
    is_detached: bool,
}

struct World {
    net: TwoShards,
    memory: Budget,
    /// Clients come over TLS.
    over_tls: bool,
    clients: Vec<Client>,
    known: BTreeMap<u32, Known>,
    resumed: u64,
    gaps: u64,
    refused: u64,
    /// Channels whose clients were given another.
    left: Vec<u32>,
}

/// The longest payload.
const LONGEST: usize = 600;

fn payload(number: u64, len: usize) -> Bytes {
    // Every fifth looks like a control text.
    let mark = if number.is_multiple_of(5) { "\u{1e}" } else { "" };
    format!("{mark}{number}:{}", "x".repeat(len)).into()
}

fn number_of(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).unwrap();
    let text = text.strip_prefix('\u{1e}').unwrap_or(text);
    text.split(':').next().unwrap().parse().unwrap()
}

impl World {
    fn new(config: ShardConfig, memory: Budget, deflate: bool) -> Self {
        let rule = WebSocketRule { resume: true, resume_events: true, deflate, ..WebSocketRule::default() };
        let net = TwoShards::new(config, memory.clone(), |gateway, process| {
            gateway.bind_websocket(OWNER, process, "/ws", rule).unwrap();
        });
        let (clients, known, left) = Default::default();
        let (resumed, gaps, refused) = Default::default();
        Self { net, memory, over_tls: false, clients, known, resumed, gaps, refused, left }
    }

    /// A client connects to `shard`, for a new channel or its old one.
    fn connect(&mut self, at: usize, shard: usize, room: usize, deflate: bool) {
        self.connect_with(at, shard, room, deflate, |request| request);
    }

    /// The same; over TLS, if the world is. `sends` says which of the bytes that say so come first, and at once.
    fn connect_with(
        &mut self,
        at: usize,
        shard: usize,
        room: usize,
        deflate: bool,
        sends: impl FnOnce(Vec<u8>) -> Vec<u8>,
    ) {
        let mut sealed = if self.over_tls { SealedClient::new(self.net.sockets) } else { None };
        let listener = sealed.as_ref().map_or(ListenerKind::Plain, SealedClient::listener);
        let Some((socket, token)) = self.net.accept_at(listener, shard, room) else { return };
        let client = &mut self.clients[at];
        let resume = client.channel.map(|id| format!(", resume.{id}.{}.{}", client.token, client.received));
        let resume = resume.unwrap_or_default();
        let offer = if deflate { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        let head = format!(
            "GET /p:sim:sys/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{offer}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: pushring.1{resume}\r\n\r\n"
        );
        (client.socket, client.is_upgraded, client.knows_hello) = (Some(socket), false, false);
        client.partial.clear();
        client.is_closed = false;
        let request = match &mut sealed {
            Some(sealed) => sealed.seal(head.as_bytes()),
            None => head.into_bytes(),
        };
        client.sealed = sealed;
        self.net.shards[shard].handle_read(token, &mut sends(request), self.net.now_ms);
    }

    fn add_client(&mut self) -> usize {
        self.clients.push(Client {
            socket: None,
            sealed: None,
            partial: Vec::new(),
            is_upgraded: false,
            knows_hello: false,
            channel: None,
            token: String::new(),
            received: 0,
            sent: 0,
            missing: 0,
            answered: Vec::new(),
            pinged: 0,
            ponged: 0,
            is_closed: false,
            closes: 0,
        });
        self.clients.len() - 1
    }

    fn turn(&mut self) {
        self.net.turn();
        self.hear();
        for at in 0..self.clients.len() {
            if let Some(socket) = self.clients[at].socket {
                self.deliver(socket);
            }
        }
    }

    /// Takes the process' events.
    fn hear(&mut self) {
        while let Ok(batch) = self.net.events.try_recv() {
            for event in batch.events {
                match event {
                    Event::Opened(opened) => {
                        assert!(self.known.insert(opened.channel.get(), Known::default()).is_none(), "opened once");
                    }
                    Event::Message { channel, payload, .. } => {
                        let known = self.known.get_mut(&channel.get()).unwrap();
                        assert!(!known.is_closed && !known.is_detached);
                        assert_eq!(number_of(&payload), known.told, "messages of a client come once and in order");
                        known.told += 1;
                    }
                    Event::Closed(closed) => {
                        let known = self.known.get_mut(&closed.channel.get()).unwrap();
                        assert!(!std::mem::replace(&mut known.is_closed, true), "closed once");
                    }
                    Event::Detached { channel } => {
                        let known = self.known.get_mut(&channel.get()).unwrap();
                        assert!(!known.is_closed && !std::mem::replace(&mut known.is_detached, true));
                    }
                    Event::Resumed { channel, .. } => {
                        let known = self.known.get_mut(&channel.get()).unwrap();
                        assert!(!known.is_closed);
                        known.is_detached = false;
                    }
                    Event::Outcome { .. } | Event::Failed { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// What waits in a shard's inbox leaves so much of the memory that it could lease, or takes none.
    fn leave_room(&mut self, shard: usize, room: Option<isize>) {
        let shard = &mut self.net.shards[shard];
        shard.note_inbox(0);
        if let (Some(room), Some(budget)) = (room, self.memory.bytes()) {
            let memory = shard.report().memory;
            let most = memory.leased_bytes + budget - self.memory.leased_bytes();
            shard.note_inbox(most.saturating_sub(memory.used_bytes()).saturating_add_signed(-room));
        }
    }

    fn is_there(&self, id: u32) -> bool {
        let channel = ChannelId::new(id);
        self.net.shards[channel.shard(SHARDS) as usize].table.slot_of(channel).is_some()
    }

    /// A push that ends its channel is not accepted.
    fn take_back_refused(&mut self, id: u32) {
        if !self.is_there(id) {
            self.known.get_mut(&id).unwrap().pushed -= 1;
        }
    }

    /// Pushes the next message to a channel, if it is there.
    fn push(&mut self, id: u32, len: usize, policy: Option<Policy>) {
        if !self.is_there(id) {
            return;
        }
        let known = self.known.get_mut(&id).unwrap();
        let frame = PushFrame { kind: PushKind::Message(MessageKind::Text), payload: payload(known.pushed, len) };
        known.pushed += 1;
        let shard = ChannelId::new(id).shard(SHARDS) as usize;
        let push =
            PushCommand { channel: ChannelId::new(id), owner: Some(OWNER), frame, policy, asked: ReportTo::Nobody };
        self.net.shards[shard].handle_command(Command::Push(push), self.net.now_ms);
        self.take_back_refused(id);
        self.net.carry_out(shard);
        self.hear();
    }

    /// The process' answer to the client that has come back so often.
    fn answer(&mut self, id: u32, to_return: u32) {
        let payload = format!("\u{1e}{{\"dropped\":0,\"to\":{to_return}}}").into_bytes().into();
        let frame = PushFrame { kind: PushKind::ControlText { to_return }, payload };
        let shard = ChannelId::new(id).shard(SHARDS) as usize;
        let (channel, owner) = (ChannelId::new(id), Some(OWNER));
        let push = PushCommand { channel, owner, frame, policy: None, asked: ReportTo::Nobody };
        self.net.shards[shard].handle_command(Command::Push(push), self.net.now_ms);
        self.net.carry_out(shard);
    }

    /// The same message to all channels for which it is the next one.
    fn broadcast(&mut self, shard: usize, len: usize, policy: Option<Policy>) {
        let of_shard = |id: &u32| ChannelId::new(*id).shard(SHARDS) as usize == shard;
        let open: Vec<u32> = self.known.keys().copied().filter(of_shard).filter(|&id| self.is_there(id)).collect();
        let Some(number) = open.first().map(|id| self.known[id].pushed) else { return };
        let channels: Vec<_> = open.into_iter().filter(|id| self.known[id].pushed == number).collect();
        channels.iter().for_each(|id| self.known.get_mut(id).unwrap().pushed += 1);
        let many = PushMany {
            audience: ShardAudience::Channels(channels.iter().copied().map(ChannelId::new).collect()),
            except: Arc::from([]),
            owner: OWNER,
            frame: PushFrame { kind: PushKind::Message(MessageKind::Text), payload: payload(number, len) },
            compressed: None,
            policy,
            part: None,
        };
        self.net.shards[shard].handle_command(Command::PushMany(Box::new(many)), self.net.now_ms);
        channels.into_iter().for_each(|id| self.take_back_refused(id));
        self.net.carry_out(shard);
        self.hear();
    }

    /// The process closes a channel.
    fn close(&mut self, id: u32) {
        let (channel, why) = (ChannelId::new(id), CloseFrame { code: Some(4000), reason: "enough".into() });
        let shard = channel.shard(SHARDS) as usize;
        let close = CloseCommand { channel, owner: Some(OWNER), why, abruptly: false, asked: ReportTo::Nobody };
        self.net.shards[shard].handle_command(Command::Close(Box::new(close)), self.net.now_ms);
        self.net.carry_out(shard);
        self.hear();
    }

    /// The client sends its next message, if it has a channel.
    fn say(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if client.knows_hello && !client.is_closed && client.socket.is_some() {
            let text = payload(client.sent, 3);
            client.sent += 1;
            self.write(at, &escaped(&text));
        }
    }

    fn write(&mut self, at: usize, text: &[u8]) {
        let mut bytes = Vec::new();
        append_message(&mut bytes, MessageKind::Text, [1, 2, 3, 4], text);
        self.send(at, &bytes);
    }

    fn send(&mut self, at: usize, bytes: &[u8]) {
        let Some(socket) = self.clients[at].socket else { return };
        let mut bytes = bytes.to_vec();
        if let Some(sealed) = &mut self.clients[at].sealed {
            bytes = sealed.seal(&bytes);
        }
        self.net.wire(socket, |wire| wire.to_server.extend_from_slice(&bytes));
        self.deliver(socket);
    }

    /// Gives a shard what a client has sent, if it wants to read.
    fn deliver(&mut self, socket: i32) {
        let watched = self.net.wire(socket, |wire| wire.watched.filter(|_| !wire.is_cut && !wire.is_closed));
        let Some((shard, token)) = watched.filter(|_| self.net.wire(socket, |wire| !wire.to_server.is_empty())) else {
            return;
        };
        if self.net.shards[shard].wants_read(token) {
            let mut carried = vec![0; crate::tls::RECORD_BYTES_MAX];
            let carried_bytes = self.net.shards[shard].carried(token, &mut carried);
            carried.truncate(carried_bytes);
            let came = self.net.wire(socket, |wire| std::mem::take(&mut wire.to_server));
            let mut bytes = [carried, came].concat();
            self.net.shards[shard].handle_read(token, &mut bytes, self.net.now_ms);
            self.net.carry_out(shard);
            self.hear();
        }
    }

    /// At most so many bytes reach the client.
    fn receive(&mut self, at: usize, bytes: usize) {
        let Some(socket) = self.clients[at].socket else { return };
        let came = self.net.take(socket, bytes);
        let client = &mut self.clients[at];
        let plain = client.sealed.as_mut().map_or(came.clone(), |sealed| sealed.open(&came));
        client.partial.extend_from_slice(&plain);
        while self.understand(at) {}
        self.net.let_write(socket);
        // Where memory was short, or after its end, its connection is gone.
        if self.net.wire(socket, |wire| wire.is_closed && wire.to_client.is_empty()) {
            self.clients[at].socket = None;
        }
    }

    /// Takes one whole thing out of what came. Returns whether there was one.
    fn understand(&mut self, at: usize) -> bool {
        let client = &mut self.clients[at];
        if !client.is_upgraded {
            let Some(end) = client.partial.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
            let head = String::from_utf8(client.partial.drain(..end + 4).collect()).unwrap();
            assert!(head.starts_with("HTTP/1.1 101") && !head.contains("resume."), "{head}");
            client.is_upgraded = true;
            return true;
        }
        let Some(len) = crate::proto::server_frame_len(&client.partial).filter(|&len| len <= client.partial.len())
        else {
            return false;
        };
        let frame: Vec<u8> = client.partial.drain(..len).collect();
        let header = 2 + match frame[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let payload = inflated(frame[0], &frame[header..]);
        match frame[0] & 0x0f {
            1 => self.understand_text(at, &payload),
            8 => {
                self.clients[at].is_closed = true;
                self.clients[at].closes += 1;
            }
            _ => {}
        }
        true
    }

    fn understand_text(&mut self, at: usize, text: &[u8]) {
        if !self.clients[at].knows_hello {
            return self.understand_hello(at, text);
        }
        let client = &mut self.clients[at];
        let text = match text {
            [0x1e, 0x1e, ..] => &text[1..],
            [0x1e, control @ ..] => {
                let control: serde_json::Value = serde_json::from_slice(control).unwrap();
                if let Some(number) = control["pong"].as_u64() {
                    // Of several that wait, the newest is answered, and before what waits.
                    assert!((1..=client.pinged).contains(&number) && number != client.ponged, "{number}");
                    client.ponged = number;
                    return;
                }
                client.answered.extend(control["to"].as_u64());
                let count = control["dropped"].as_u64().unwrap();
                client.received += count;
                client.missing += count;
                return;
            }
            text => text,
        };
        let channel = client.channel.unwrap();
        assert_eq!(number_of(text), client.received, "client {at} of {channel} hears each message once and in order");
        client.received += 1;
        assert!(client.received <= self.known[&channel].pushed);
    }

    fn understand_hello(&mut self, at: usize, text: &[u8]) {
        let hello: serde_json::Value = serde_json::from_slice(text).unwrap();
        let client = &mut self.clients[at];
        let id = u32::try_from(hello["channel_id"].as_u64().unwrap()).unwrap();
        client.knows_hello = true;
        client.token = hello["resume"].as_str().unwrap().to_owned();
        let is_the_same = client.channel == Some(id);
        let before = client.channel.replace(id);
        match (hello["resumed"].as_bool(), hello["lost"].as_u64(), hello["received"].as_u64()) {
            (None, None, None) => assert!(before.is_none()),
            (Some(true), None, Some(received)) => {
                assert!(is_the_same && received <= client.sent);
                self.resumed += 1;
                self.say_again(at, received);
            }
            (Some(false), Some(lost), Some(received)) => {
                assert!(is_the_same && hello["reason"] == "trimmed");
                client.received += lost;
                client.missing += lost;
                self.gaps += 1;
                self.say_again(at, received);
            }
            (Some(false), lost, None) => {
                assert!(!is_the_same);
                if let Some(lost) = lost {
                    assert_eq!(hello["reason"], "expired");
                    assert_eq!(client.received + lost, self.known[&before.unwrap()].pushed, "what is lost is counted");
                }
                (client.received, client.sent, client.missing) = (0, 0, 0);
                self.refused += 1;
                self.left.extend(before);
            }
            other => panic!("{other:?}"),
        }
    }

    fn say_again(&mut self, at: usize, received: u64) {
        for number in received..self.clients[at].sent {
            let text = payload(number, 3);
            self.write(at, &escaped(&text));
        }
    }

    /// The network is gone; the shard hears of it if `is_noticed`.
    fn cut(&mut self, at: usize, is_noticed: bool) {
        let Some(socket) = self.clients[at].socket.take() else { return };
        self.net.wire(socket, |wire| wire.is_cut = is_noticed);
        if is_noticed {
            self.net.break_off(socket);
            self.hear();
        }
    }

    fn tick(&mut self, passed_ms: u64) {
        self.net.tick(passed_ms);
        self.turn();
    }

    /// All clients read all of their data.
    fn drain(&mut self) {
        for _ in 0..400 {
            self.turn();
            for at in 0..self.clients.len() {
                if let Some(socket) = self.clients[at].socket {
                    self.net.wire(socket, |wire| wire.room = 1 << 20);
                }
                self.receive(at, usize::MAX);
            }
        }
    }

    fn channel(&self, at: usize) -> u32 {
        self.clients[at].channel.expect("it knows its channel")
    }
}

fn escaped(text: &[u8]) -> Vec<u8> {
    let mark: &[u8] = if text.first() == Some(&0x1e) { &[0x1e] } else { &[] };
    [mark, text].concat()
}

/// RFC 7692 7.2.2, without context.
fn inflated(first: u8, payload: &[u8]) -> Vec<u8> {
    if first & 0x40 == 0 {
        return payload.to_vec();
    }
    let mut out = Vec::with_capacity(4096);
    let whole = [payload, &[0, 0, 0xff, 0xff]].concat();
    flate2::Decompress::new(false).decompress_vec(&whole, &mut out, flate2::FlushDecompress::Sync).unwrap();
    out
}

#[test]
fn whatever_byte_is_the_last_to_come_the_stream_goes_on_behind_it() {
    for deflate in [false, true] {
        for cut in 0.. {
            let config = ShardConfig {
                deflate: super::Deflate { bytes_min: 16, ..Default::default() },
                ..ShardConfig::default()
            };
            let mut world = World::new(config, Budget::default(), deflate);
            let at = world.add_client();
            world.connect(at, 0, usize::MAX, deflate);
            world.turn();
            let hello = world.net.wire(0, |wire| wire.to_client.len());
            world.receive(at, hello);
            let id = world.channel(at);
            for step in 0..6 {
                world.push(id, step * 7, None);
                world.broadcast(0, step * 11, None);
                world.say(at);
            }
            world.turn();
            let is_over = cut > world.net.wire(0, |wire| wire.to_client.len());
            world.receive(at, cut);
            world.cut(at, cut % 3 != 0);
            world.push(id, 5, None);
            world.tick(100);
            world.broadcast(0, 0, None);
            world.connect(at, 1, usize::MAX, deflate);
            world.drain();
            assert_eq!((world.resumed, world.gaps, world.refused), (1, 0, 0), "cut at {cut}");
            assert_eq!((world.clients[at].received, world.clients[at].missing), (14, 0), "cut at {cut}");
            assert_eq!(world.known[&id].told, 6);
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn an_answer_that_was_lost_costs_nobody_the_channel() {
    for cut in 0.. {
        let mut world = World::new(ShardConfig::default(), Budget::default(), false);
        let at = world.add_client();
        world.connect(at, 0, usize::MAX, false);
        world.turn();
        world.receive(at, usize::MAX);
        let id = world.channel(at);
        world.say(at);
        let mut is_over = false;
        // It comes back, and again with the same or the next token, and each time the answer breaks off.
        for is_noticed in [true, false, true] {
            world.cut(at, is_noticed);
            world.push(id, 5, None);
            let socket = world.net.sockets;
            world.connect(at, 1, usize::MAX, false);
            world.turn();
            world.turn();
            is_over = cut > world.net.wire(socket, |wire| wire.to_client.len());
            world.receive(at, cut);
        }
        world.cut(at, true);
        world.connect(at, 0, usize::MAX, false);
        world.drain();
        let client = &world.clients[at];
        assert_eq!((world.gaps, world.refused, world.channel(at)), (0, 0, id), "cut at {cut}");
        assert_eq!((client.received, client.missing, world.known[&id].told), (3, 0, client.sent), "cut at {cut}");
        if is_over {
            break;
        }
    }
}

/// The answers of one connection come over no other: what was lost with it is said again behind the event that the
/// client came back, and an older list of answers must not be taken for that one.
#[test]
fn an_answer_goes_to_the_connection_that_it_is_for() {
    let mut world = World::new(ShardConfig::default(), Budget::default(), false);
    let at = world.add_client();
    world.connect(at, 0, usize::MAX, false);
    world.turn();
    world.receive(at, usize::MAX);
    let id = world.channel(at);
    world.answer(id, 0);
    world.drain();
    for (number, is_noticed) in [(1, true), (2, false), (3, true)] {
        world.cut(at, is_noticed);
        world.answer(id, number - 1);
        world.answer(id, number);
        world.connect(at, 1, usize::MAX, false);
        world.turn();
        world.turn();
        // The process has not been told yet that its client is back, and then it is.
        world.answer(id, number - 1);
        world.answer(id, number);
        world.drain();
    }
    assert_eq!((world.clients[at].answered.as_slice(), world.resumed), (&[0, 1, 2, 3][..], 3));
}

/// The choices of a seed.
struct Plan {
    rng: Rng,
    config: ShardConfig,
    memory: Budget,
    deflate: bool,
    over_tls: bool,
    /// Nothing may be missing.
    is_strict: bool,
    piece: usize,
}

fn plan(seed: u64) -> Plan {
    let mut rng = Rng(seed);
    let is_strict = rng.chance(40);
    let small = |rng: &mut Rng, usual: usize| if rng.chance(50) { usual } else { 2_000 + rng.below(4_000) };
    let resume = Resume {
        window_ms: if is_strict { 1_000_000 } else { [300, 5_000, 30_000][rng.below(3)] },
        bytes_max: if is_strict { 1 << 20 } else { small(&mut rng, 1 << 20) },
        shard_bytes_max: if is_strict { 1 << 26 } else { [1 << 26, 40_000][rng.below(2)] },
    };
    let outbound_bytes_max = if is_strict { 1 << 20 } else { small(&mut rng, 1 << 20) };
    let deflate = super::Deflate { bytes_min: 64, ..Default::default() };
    let copy_bytes_max = [64, 4_096][rng.below(2)];
    let config = ShardConfig { resume, outbound_bytes_max, deflate, copy_bytes_max, ..ShardConfig::default() };
    let memory = if !is_strict && rng.chance(30) { Budget::of(3 << 20) } else { Budget::default() };
    let (deflate, piece) = (rng.chance(30), [40, 3_000][rng.below(2)]);
    let over_tls = rng.chance(30);
    Plan { rng, config, memory, deflate, over_tls, is_strict, piece }
}

fn policy(rng: &mut Rng, is_strict: bool) -> Option<Policy> {
    let drawn = rng.below(if is_strict { 2 } else { Policy::EACH.len() + 1 }).checked_sub(1);
    let policy = Policy::EACH[drawn?];
    Some(if policy.key().is_some() { policy.with_key(rng.below(3) as u64) } else { policy })
}

fn act(world: &mut World, plan: &mut Plan) {
    let rng = &mut plan.rng;
    let at = rng.below(world.clients.len());
    let len = rng.below(LONGEST);
    match rng.below(22) {
        20.. => {
            // Other data takes all memory but a little, or some more, or nothing.
            let (shard, room) = (rng.below(2), rng.below(60_000) as isize - 20_000);
            let room = rng.chance(60).then_some(room);
            world.leave_room(shard, room);
        }
        0..6 => {
            if let Some(id) = world.clients[at].channel.filter(|id| !world.known[id].is_closed) {
                let policy = policy(rng, plan.is_strict);
                world.push(id, len, policy);
            }
        }
        6..9 => {
            let policy = policy(rng, plan.is_strict);
            world.broadcast(rng.below(2), len, policy);
        }
        9..12 => world.turn(),
        12..15 => {
            let bytes = rng.below(plan.piece) + 1;
            if let Some(socket) = world.clients[at].socket {
                world.net.wire(socket, |wire| wire.room = wire.room.max(bytes));
            }
            world.receive(at, bytes);
        }
        15 => world.say(at),
        16 if world.clients[at].knows_hello => {
            // Sometimes it says what it has received, or asks.
            let client = &mut world.clients[at];
            let control = if rng.chance(50) {
                format!("\u{1e}{{\"ack\":{}}}", client.received)
            } else {
                client.pinged += 1;
                format!("\u{1e}{{\"ping\":{}}}", client.pinged)
            };
            world.write(at, control.as_bytes());
        }
        17 => {
            let is_noticed = rng.chance(60);
            world.cut(at, is_noticed);
        }
        18 => world.tick([100, 400, 2_000][rng.below(3)]),
        _ => {
            let (shard, room) = (rng.below(2), if rng.chance(50) { usize::MAX } else { rng.below(5_000) });
            let client = &world.clients[at];
            // A client that is told to go away does; one whose answer was lost comes again with what it has.
            let wants = client.socket.is_none() || client.is_closed;
            if wants {
                world.clients[at].socket = None;
                world.connect(at, shard, room, plan.deflate);
            }
        }
    }
}

#[test]
fn every_seed_tells_each_client_what_it_missed_to_the_message() {
    let (mut resumed, mut gaps, mut refused, mut missing) = (0, 0, 0, 0);
    for seed in 0..200 {
        let mut plan = plan(seed);
        let mut world = World::new(plan.config.clone(), plan.memory.clone(), plan.deflate);
        world.over_tls = plan.over_tls;
        for _ in 0..3 {
            let at = world.add_client();
            world.connect(at, at % 2, usize::MAX, plan.deflate);
            world.turn();
            world.receive(at, usize::MAX);
        }
        for _ in 0..250 {
            act(&mut world, &mut plan);
        }
        (0..2).for_each(|shard| world.leave_room(shard, None));
        // After the faults all clients resume and read on.
        for at in 0..world.clients.len() {
            if world.clients[at].socket.is_none() || world.clients[at].is_closed {
                world.clients[at].socket = None;
                world.connect(at, at % 2, usize::MAX, plan.deflate);
            }
        }
        world.drain();
        for (at, client) in world.clients.iter().enumerate() {
            let known = &world.known[&client.channel.unwrap()];
            if client.is_closed || client.socket.is_none() || known.is_closed {
                continue;
            }
            assert_eq!(client.received, known.pushed, "seed {seed}: client {at} has heard of everything");
            assert_eq!(client.sent, known.told, "seed {seed}: and so has its process");
            assert!(!plan.is_strict || client.missing == 0, "seed {seed}: {} are missing", client.missing);
            missing += client.missing;
        }
        for channel in &world.left {
            assert!(
                world.known[channel].is_closed,
                "seed {seed}: nobody was given another channel while {channel} is there"
            );
        }
        (resumed, gaps, refused) = (resumed + world.resumed, gaps + world.gaps, refused + world.refused);
    }
    assert!(resumed > 100 && gaps > 4 && refused > 4 && missing > 20, "{resumed} {gaps} {refused} {missing}");
}
