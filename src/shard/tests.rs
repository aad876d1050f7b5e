//! Regression tests, each with one shard and sockets that take as much as they are told to.

use super::command::{CloseFrame, Command, Policy, PushCommand, PushFrame, PushKind, ReportTo, RespondCommand};
use super::event::Event;
use super::flush::{Flush, OutgoingBytes, SendParts, ShortSend, SocketId};
use super::outcome::{Outcome, OutcomeCollector};
use super::{Common, ConnectionToken, Directory, Effect, Owner, Shard, ShardConfig, SocketEnd, TICK_MS, Wishes};
use crate::admission::Ledger;
use crate::channel::ChannelId;
use crate::gateway::{
    Claims, HttpRule, HubAccess, OwnerId, PublicKeys, Secret, Settings, Snapshot, SubdomainTokens, TokenAuthority,
    TokenError, WebSocketRule, mint,
};
use crate::http::PreparedResponse;
use crate::process_id::ProcessId;
use crate::proto::MessageKind;
use crate::proto::client::{FIN, append_frame, append_message};
use crate::queue::events::{ProcessReceiver, QueueLimits, process_queue};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

#[path = "deadlines_tests.rs"]
mod deadlines;

const OWNER: OwnerId = OwnerId(1);
const SECRET: &[u8] = b"a secret that only this test knows";

/// The one socket: what has left, and how much more it takes.
#[derive(Default)]
struct Wire {
    left: Vec<u8>,
    room: usize,
    /// The last that it took was said to be the last.
    end_is_due: bool,
}

#[derive(Clone, Default)]
struct Memory(Rc<RefCell<Wire>>);

impl Flush for Memory {
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>) {
        let mut wire = self.0.borrow_mut();
        for (index, entry) in batch.iter().enumerate() {
            let bytes = match entry.parts {
                SendParts::One(bytes) => bytes.to_vec(),
                SendParts::Many(parts) => parts.iter().flat_map(|part| part.iter().copied()).collect(),
            };
            let taken = bytes.len().min(wire.room);
            wire.room -= taken;
            wire.left.extend_from_slice(&bytes[..taken]);
            wire.end_is_due = entry.is_last && taken == bytes.len();
            if taken < bytes.len() {
                short.push(ShortSend { index, sent: Ok(taken) });
            }
        }
    }
}

struct Scene {
    shard: Shard,
    wire: Memory,
    events: ProcessReceiver,
    client: ConnectionToken,
    now_ms: u64,
}

impl Scene {
    /// A client of a socket that takes `room` bytes has connected.
    fn new(room: usize) -> Self {
        Self::with(room, None)
    }

    /// The same, where the hub is served.
    fn with(room: usize, hub: Option<HubAccess>) -> Self {
        let process: ProcessId = "p:sim:sys".parse().unwrap();
        let mut settings = Settings::of_a_node("sim.os", SubdomainTokens::Own);
        settings.secret = Some(Secret::new(SECRET).unwrap());
        settings.hub = hub.map(Arc::new);
        let mut gateway = Snapshot::new(settings);
        gateway.bind_websocket(OWNER, &process, "/ws", WebSocketRule::default()).unwrap();
        let of_hub = WebSocketRule { hub: true, ..WebSocketRule::default() };
        gateway.bind_websocket(OWNER, &process, "/hub", of_hub).unwrap();
        gateway.bind_http(OWNER, &process, "/http", HttpRule::default()).unwrap();
        let (queue, events) = process_queue(1, QueueLimits::default(), &Ledger::default(), |_| {});
        let owner = Owner::new(OWNER, process, queue, Wishes::of(Policy::Close));
        let mut directory = Directory::new(gateway);
        directory.attach(Arc::new(owner));
        let wire = Memory::default();
        wire.0.borrow_mut().room = room;
        let config = Arc::new(ShardConfig { outbound_bytes_max: 1000, ..ShardConfig::default() });
        let common = Common {
            config,
            directory: Arc::new(directory),
            admission: Arc::default(),
            memory: Ledger::default(),
            resume: crate::resume::Keys::new(&[7; 32]),
        };
        let mut shard = Shard::new(0, 1, common, Box::new(wire.clone()), 1, 0);
        shard.set_unix_ms(1_000_000_000, 0);
        let client = shard.handle_accept(SocketId(0), ([127, 0, 0, 1], 1).into(), 0).unwrap();
        Self { shard, wire, events, client, now_ms: 0 }
    }

    fn read(&mut self, mut bytes: Vec<u8>) {
        self.shard.handle_read(self.client, &mut bytes, self.now_ms);
    }

    fn upgrade(&mut self, path: &str) {
        self.ask_upgrade(path);
        self.turn();
    }

    fn ask_upgrade(&mut self, path: &str) {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        self.read(head.into_bytes());
    }

    /// Lets time pass, as the driver does: a tick and a turn each 100 ms. Returns what it should do, and when.
    fn pass(&mut self, ms: u64) -> Vec<(u64, Effect)> {
        let until_ms = self.now_ms + ms;
        let mut done = Vec::new();
        while self.now_ms < until_ms {
            self.now_ms += TICK_MS;
            self.shard.handle_tick(self.now_ms);
            let now_ms = self.now_ms;
            done.extend(self.turn().into_iter().map(|effect| (now_ms, effect)));
        }
        done
    }

    /// One batch, then what the driver should do.
    fn turn(&mut self) -> Vec<Effect> {
        self.shard.flush();
        self.shard.end_turn();
        let mut effects = Vec::new();
        self.shard.take_effects(&mut effects);
        if std::mem::take(&mut self.wire.0.borrow_mut().end_is_due) {
            let ends = |effect: &Effect| matches!(effect, Effect::ShutdownWrite(_) | Effect::Close(_));
            assert!(effects.iter().any(ends), "what was the last waits for an end that does not come: {effects:?}");
        }
        effects
    }

    fn give_room(&mut self, room: usize) {
        self.wire.0.borrow_mut().room = room;
        self.shard.handle_writable(self.client);
    }

    fn left(&self) -> Vec<u8> {
        self.wire.0.borrow().left.clone()
    }

    fn opened(&mut self) -> ChannelId {
        match &self.events.try_recv().unwrap().events[..] {
            [Event::Opened(opened)] => opened.channel,
            other => panic!("{other:?}"),
        }
    }

    /// Pushes a Binary message of so many bytes; the receiver tells what became of it.
    fn push(&mut self, channel: ChannelId, len: usize) -> crossbeam_channel::Receiver<Outcome> {
        self.push_by(None, PushKind::Message(MessageKind::Binary), channel, len)
    }

    fn push_by(
        &mut self,
        policy: Option<Policy>,
        kind: PushKind,
        channel: ChannelId,
        len: usize,
    ) -> crossbeam_channel::Receiver<Outcome> {
        let (settled, outcome) = crossbeam_channel::unbounded();
        // Not every scene asks.
        let settle = move |outcome| {
            let _ = settled.send(outcome);
        };
        let asked = OutcomeCollector::split(1, settle).pop().map(Box::new).map_or(ReportTo::Nobody, ReportTo::Outcome);
        let frame = PushFrame { kind, payload: vec![7; len].into() };
        let push = PushCommand { channel, owner: Some(OWNER), frame, policy, asked };
        self.shard.handle_command(Command::Push(push), self.now_ms);
        outcome
    }
}

#[test]
fn a_process_hears_of_a_channel_no_later_than_its_client() {
    let mut scene = Scene::new(usize::MAX);
    scene.ask_upgrade("/p:sim:sys/ws");
    assert!(scene.events.try_recv().is_err() && scene.left().is_empty());
    // The turn is not over when the client has its 101 and may speak to others of it.
    scene.shard.flush();
    assert!(scene.left().starts_with(b"HTTP/1.1 101 "));
    scene.opened();
}

/// Who sends no more may still read: what it was refused for is told, and then its connection ends at once.
#[test]
fn a_refusal_reaches_a_client_that_has_ended_its_side() {
    let mut no_registration = Vec::new();
    append_message(&mut no_registration, MessageKind::Text, [1, 2, 3, 4], b"{}");
    let not_masked = vec![0x81, 1, b'x'];
    let mut behind_a_close = Vec::new();
    append_frame(&mut behind_a_close, FIN | 8, [1, 2, 3, 4], &1000_u16.to_be_bytes());
    behind_a_close.extend_from_slice(&not_masked);
    for (path, said, code) in
        [("/", no_registration, 4400_u16), ("/p:sim:sys/ws", not_masked, 1002), ("/p:sim:sys/ws", behind_a_close, 1000)]
    {
        let mut scene = Scene::new(usize::MAX);
        scene.upgrade(path);
        scene.wire.0.borrow_mut().left.clear();
        scene.read(said);
        scene.shard.handle_end(scene.client, SocketEnd::Finished, scene.now_ms);
        let effects = scene.turn();
        let told = scene.wire.0.borrow().left.clone();
        assert_eq!(told.get(2..4), Some(&code.to_be_bytes()[..]), "{told:?}");
        assert!(matches!(effects[..], [Effect::Close(_)]), "{code}: {effects:?}");
    }
}

#[test]
fn a_close_frame_that_lay_unparsed_is_answered_before_the_socket_is_shut() {
    let mut scene = Scene::new(1000);
    scene.upgrade("/p:sim:sys/ws");
    let channel = scene.opened();
    scene.wire.0.borrow_mut().room = 0;
    scene.push(channel, 800);
    scene.turn();
    // Its own queue is over half full, so the client's close frame is read, but not parsed.
    let mut close = Vec::new();
    append_frame(&mut close, FIN | 8, [1, 2, 3, 4], &1000u16.to_be_bytes());
    scene.read(close);
    scene.give_room(usize::MAX);
    assert_eq!(scene.turn(), [], "the answer has not left yet");
    scene.shard.flush();
    assert!(scene.wire.0.borrow().end_is_due, "the close frame may leave with the end of the stream");
    assert_eq!(scene.turn(), [Effect::Close(SocketId(0))], "it sends nothing more, so nothing is waited for");
    assert!(scene.left().ends_with(&[0x88, 2, 0x03, 0xe8]));
}

#[test]
fn a_client_that_registers_before_it_took_the_101_gets_its_reply() {
    let mut scene = Scene::new(20);
    scene.upgrade("/");
    let claims = Claims { username: "sim.os".into(), subdomain: None, expiration: 2_000_000 };
    let token = mint(&Secret::new(SECRET).unwrap(), &claims);
    let mut register = Vec::new();
    let text = format!("{{\"auth_token\":\"{token}\",\"target_process\":\"p:sim:sys\"}}");
    append_message(&mut register, MessageKind::Text, [1, 2, 3, 4], text.as_bytes());
    scene.read(register);
    scene.turn();
    let channel = scene.opened();
    scene.give_room(usize::MAX);
    scene.turn();
    let reply = format!("{{\"channel_id\":{channel}}}");
    assert!(scene.left().starts_with(b"HTTP/1.1 101 ") && scene.left().ends_with(reply.as_bytes()));
}

#[test]
fn a_response_waits_behind_a_100_that_the_client_has_not_taken() {
    let mut scene = Scene::new(5);
    let head = "POST /p:sim:sys/http HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    scene.read(head.into());
    scene.turn();
    assert_eq!(scene.left(), b"HTTP/");
    // The body does not come.
    scene.pass(11_000);
    scene.give_room(usize::MAX);
    scene.turn();
    let left = String::from_utf8(scene.left()).unwrap();
    assert!(left.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 408 "), "{left}");
}

/// Of an authority that has signed nothing.
#[derive(Debug)]
struct NoKeys;

impl PublicKeys for NoKeys {
    fn payload<'t>(&self, _: &'t str) -> Result<&'t str, TokenError> {
        Err(TokenError::Signature)
    }
}

#[test]
fn a_signature_counts_as_work_where_it_was_checked_and_nowhere_else() {
    let work_ns = |path: &str| {
        let authority = TokenAuthority { issuer: "i".into(), audience: "a".into(), keys: Arc::new(NoKeys) };
        let mut scene = Scene::with(usize::MAX, Some(HubAccess { authority: Some(authority), ..HubAccess::default() }));
        let before_ns = scene.shard.spent_ns();
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a.b.c\r\n{upgrade}\r\n");
        scene.read(head.into_bytes());
        scene.shard.spent_ns() - before_ns
    };
    assert!(work_ns("/p:sim:sys/hub") >= super::work::SIGNATURE_NS);
    for path in ["/p:sim:sys/ws", "/p:sim:sys/http"] {
        assert!(work_ns(path) < super::work::SIGNATURE_NS, "{path}");
    }
}

#[test]
fn a_frame_that_a_gone_process_left_behind_counts_as_queued_for_it_still_arrives() {
    let mut scene = Scene::new(usize::MAX);
    scene.upgrade("/p:sim:sys/ws");
    let channel = scene.opened();
    let outcome = scene.push(channel, 10);
    let why = CloseFrame { code: Some(1001), reason: "".into() };
    scene.shard.handle_command(Command::OwnerGone { owner: OWNER, why }, 0);
    scene.turn();
    let settled = outcome.try_recv().unwrap();
    assert_eq!((settled.queued, settled.closed), (1, 0));
    assert!(scene.left().ends_with(&[0x82, 10, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0x88, 2, 0x03, 0xe9]));
}

const BINARY: PushKind = PushKind::Message(MessageKind::Binary);

/// A channel whose socket takes `room` bytes more.
fn behind(room: usize) -> (Scene, ChannelId) {
    let mut scene = Scene::new(usize::MAX);
    scene.upgrade("/p:sim:sys/ws");
    let channel = scene.opened();
    scene.wire.0.borrow_mut().left.clear();
    scene.wire.0.borrow_mut().room = room;
    (scene, channel)
}

/// How long each frame is of what has left; they must be whole, and small.
fn frames_left(scene: &Scene) -> Vec<usize> {
    let left = scene.left();
    let (mut lens, mut at) = (Vec::new(), 0);
    while at < left.len() {
        lens.push(crate::proto::server_frame_len(&left[at..]).unwrap());
        at += lens[lens.len() - 1];
    }
    assert_eq!(at, left.len());
    lens
}

#[test]
fn nothing_is_dropped_for_a_frame_that_can_never_fit() {
    // Larger than the budget; or than what the frame in progress leaves of it.
    for (room, len) in [(0, 997), (10, 700)] {
        let (mut scene, channel) = behind(room);
        for _ in 0..2 {
            scene.push(channel, 400);
        }
        scene.turn();
        let outcome = scene.push_by(Some(Policy::DropOldest), BINARY, channel, len).try_recv().unwrap();
        assert_eq!(outcome, Outcome { dropped: 1, ..Outcome::default() });
        scene.give_room(usize::MAX);
        scene.turn();
        assert_eq!(frames_left(&scene), [404, 404]);
    }
}

#[test]
fn a_frame_that_fits_exactly_waits_and_one_byte_more_meets_the_policy() {
    let (mut scene, channel) = behind(0);
    scene.push(channel, 400);
    scene.turn();
    let exact = scene.push_by(Some(Policy::DropNewest), BINARY, channel, 1000 - 404 - 4).try_recv().unwrap();
    assert_eq!((exact.queued, exact.queued_bytes), (1, 1000));
    let more = scene.push_by(Some(Policy::DropNewest), BINARY, channel, 0).try_recv().unwrap();
    assert_eq!(more, Outcome { dropped: 1, ..Outcome::default() });
    let value = scene.push_by(Some(Policy::Conflate { key: 1 }), BINARY, channel, 0).try_recv().unwrap();
    assert_eq!(value, Outcome { closed: 1, ..Outcome::default() });
}

#[test]
fn a_control_frame_is_no_value_of_a_key() {
    let (mut scene, channel) = behind(0);
    scene.push(channel, 10);
    scene.turn();
    let conflate = Some(Policy::Conflate { key: 1 });
    scene.push_by(conflate, BINARY, channel, 20);
    assert_eq!(scene.push_by(conflate, PushKind::Ping, channel, 1).try_recv().unwrap().queued, 1);
    assert_eq!(scene.push_by(conflate, BINARY, channel, 30).try_recv().unwrap().queued, 1);
    scene.give_room(usize::MAX);
    scene.turn();
    scene.turn();
    assert_eq!(frames_left(&scene), [12, 22, 3, 32]);
}

#[test]
fn a_frame_that_takes_several_sends_counts_as_sent_when_all_of_it_has_left() {
    let (mut scene, channel) = behind(usize::MAX);
    let large = scene.push(channel, 600 * 1024);
    let mut turns = 0;
    let outcome = loop {
        scene.turn();
        turns += 1;
        if let Ok(outcome) = large.try_recv() {
            break outcome;
        }
    };
    assert_eq!((outcome.sent, outcome.queued), (1, 0));
    assert_eq!(turns, 3, "256 KiB at a time");
}

#[test]
fn a_frame_in_progress_leaves_and_counts_as_waiting_though_its_channel_ends() {
    let (mut scene, channel) = behind(usize::MAX);
    let begun = scene.push(channel, 600 * 1024);
    scene.turn();
    assert!(begun.try_recv().is_err(), "256 KiB at a time");
    // RFC 6455 5.2: RSV1 without an extension fails the connection.
    scene.read(vec![0xc1, 0x80, 1, 2, 3, 4]);
    let begun = begun.try_recv().unwrap();
    assert_eq!((begun.queued, begun.closed), (1, 0));
    assert_eq!(begun.queued_bytes, 600 * 1024 + 10 - 256 * 1024);
    (0..3).for_each(|_| _ = scene.turn());
    let frames = frames_left(&scene);
    assert_eq!(frames[0], 600 * 1024 + 10);
    assert_eq!(frames.len(), 2, "a close frame follows");
}

#[test]
fn what_a_client_did_not_take_is_counted_to_the_byte() {
    let lost = |scene: &mut Scene| match &scene.events.try_recv().unwrap().events[..] {
        [Event::Closed(closed)] => closed.lost_bytes,
        other => panic!("{other:?}"),
    };
    // 100 bytes of the first frame have left; a value is held, and a close frame of ours stands behind all.
    let fill = || {
        let (mut scene, channel) = behind(100);
        scene.push(channel, 400);
        scene.turn();
        scene.push(channel, 200);
        scene.push_by(Some(Policy::Conflate { key: 1 }), BINARY, channel, 50);
        let why = CloseFrame { code: Some(1000), reason: "enough".into() };
        let close =
            super::command::CloseCommand { channel, owner: Some(OWNER), why, abruptly: false, asked: ReportTo::Nobody };
        (scene, channel, Command::Close(Box::new(close)))
    };
    let (mut scene, _, close) = fill();
    scene.shard.handle_command(close, 0);
    scene.shard.handle_end(scene.client, crate::shard::SocketEnd::Broken, 0);
    scene.turn();
    assert_eq!(lost(&mut scene), 304 + 204 + 52);
    // Over its budget: the frame in progress is still sent.
    let (mut scene, channel, _) = fill();
    scene.push(channel, 900);
    scene.turn();
    assert_eq!(lost(&mut scene), 204 + 52);
    scene.give_room(usize::MAX);
    scene.turn();
    assert_eq!(scene.left()[404], 0x88);
}

/// An upgrade, and behind it so many messages of their numbers.
fn upgrade_with_messages(messages: u16) -> Vec<u8> {
    let mut bytes = b"GET /p:sim:sys/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    for number in 0..messages {
        append_message(&mut bytes, MessageKind::Binary, [1, 2, 3, 4], &number.to_be_bytes());
    }
    bytes
}

impl Scene {
    /// Lets the client go on, and its process take what there is, until the shard has nothing to do. Returns what was
    /// ordered, and the numbers of the messages.
    fn go_on(&mut self) -> (Vec<Effect>, Vec<u16>) {
        let (mut effects, mut numbers) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            effects.extend(self.turn());
            while let Ok(batch) = self.events.try_recv() {
                numbers.extend(batch.events.iter().filter_map(|event| match event {
                    Event::Message { payload, .. } => Some(u16::from_be_bytes(payload[..].try_into().unwrap())),
                    _ => None,
                }));
            }
        }
        (effects, numbers)
    }
}

#[test]
fn messages_that_came_with_the_upgrade_are_parsed_a_slice_at_a_time() {
    let mut scene = Scene::new(usize::MAX);
    let (bytes, before_ns) = (upgrade_with_messages(8000), scene.shard.spent_ns());
    scene.read(bytes);
    let spent_ns = scene.shard.spent_ns() - before_ns;
    assert!(spent_ns < 400_000, "{spent_ns} ns in one step: other clients wait");
    assert_eq!(scene.go_on().1, (0..8000).collect::<Vec<_>>());
}

#[test]
fn the_end_of_a_client_stands_behind_all_that_it_sent_with_the_upgrade() {
    let mut scene = Scene::new(usize::MAX);
    let request = b"GET /p:sim:sys/http HTTP/1.1\r\nHost: localhost\r\n\r\n";
    scene.read([&request[..], &upgrade_with_messages(5000)].concat());
    scene.turn();
    let asked = match &scene.events.try_recv().unwrap().events[..] {
        [Event::Http(request)] => request.id,
        other => panic!("{other:?}"),
    };
    // Found while it is answered, and the socket does not say it again.
    scene.shard.handle_end(scene.client, SocketEnd::Finished, 0);
    let respond = RespondCommand { request: asked, owner: OWNER, response: PreparedResponse::text(200, "") };
    scene.shard.handle_command(Command::Respond(Box::new(respond)), 0);
    let (effects, numbers) = scene.go_on();
    assert_eq!(numbers, (0..5000).collect::<Vec<_>>());
    assert_eq!(effects, [Effect::Read(scene.client)], "there its end is found");
    scene.shard.handle_end(scene.client, SocketEnd::Finished, 0);
    assert!(scene.go_on().0.contains(&Effect::Close(SocketId(0))));
}
