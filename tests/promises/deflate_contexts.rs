//! Whatever is dropped, replaced, broadcast or pushed on its own while sockets fill and drain: each client inflates
//! what it gets to messages that were pushed to it, in order, whether our messages may refer to earlier ones or not.

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress};
use proptest::prelude::*;
use pushring::ChannelId;
use pushring::ProcessId;
use pushring::internals::admission::Ledger;
use pushring::internals::gateway::{OwnerId, Snapshot, WebSocketRule};
use pushring::internals::proto::deflate::Deflater;
use pushring::internals::proto::{MessageKind, server_frame_len};
use pushring::internals::shard::command::{
    Command, Policy, PushCommand, PushFrame, PushKind, PushMany, ReportTo, ShardAudience,
};
use pushring::internals::shard::deflate::Compressed;
use pushring::internals::shard::event::Event;
use pushring::internals::shard::flush::{Flush, OutgoingBytes, SendParts, ShortSend, SocketId};
use pushring::internals::shard::process_queue::{ProcessReceiver, QueueLimits, process_queue};
use pushring::internals::shard::{Common, ConnectionToken, Directory, Owner, Shard, ShardConfig, Wishes};
use pushring::node::Dialect;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

const OWNER: OwnerId = OwnerId(1);
const BUDGET: usize = 1_000;

/// One channel that takes context over, one with less of it, one without, and one without compression.
const OFFERS: [&str; 4] = [
    "permessage-deflate",
    "permessage-deflate; server_max_window_bits=9",
    "permessage-deflate; server_no_context_takeover",
    "none",
];

/// The bytes that a socket took, and how many more it takes.
#[derive(Default)]
struct Wire {
    left: Vec<u8>,
    room: usize,
}

#[derive(Clone)]
struct Memory(Rc<RefCell<Vec<Wire>>>);

impl Flush for Memory {
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>) {
        for (index, entry) in batch.iter().enumerate() {
            let bytes: Vec<u8> = match entry.parts {
                SendParts::One(bytes) => bytes.to_vec(),
                SendParts::Many(parts) => parts.iter().flat_map(|part| part.iter().copied()).collect(),
            };
            let wire = &mut self.0.borrow_mut()[entry.socket.0 as usize];
            let taken = bytes.len().min(wire.room);
            wire.room -= taken;
            wire.left.extend_from_slice(&bytes[..taken]);
            if taken < bytes.len() {
                short.push(ShortSend { index, sent: Ok(taken) });
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// So many messages in a row.
    Push {
        to: usize,
        message: usize,
        times: usize,
        policy: Policy,
    },
    Broadcast {
        message: usize,
        policy: Policy,
    },
    Room {
        of: usize,
        bytes: usize,
    },
    Turn,
}

fn any_step() -> impl Strategy<Value = Step> {
    let policy = || {
        prop_oneof![
            4 => Just(Policy::DropOldest),
            1 => Just(Policy::DropNewest),
            2 => (0u64..3).prop_map(|key| Policy::Conflate { key }),
        ]
    };
    prop_oneof![
        6 => (0..OFFERS.len(), 0usize..200, 1usize..6, policy())
            .prop_map(|(to, message, times, policy)| Step::Push { to, message, times, policy }),
        2 => (0usize..200, policy()).prop_map(|(message, policy)| Step::Broadcast { message, policy }),
        3 => (0..OFFERS.len(), 0usize..500).prop_map(|(of, bytes)| Step::Room { of, bytes }),
        4 => Just(Step::Turn),
    ]
}

/// Messages of many sizes, some too small to be compressed. Alone each compresses a little; it has much in common with
/// every fourth. Each begins with its serial number and name.
fn message(name: usize, serial: usize) -> Vec<u8> {
    let mut message = (serial as u32).to_le_bytes().to_vec();
    message.push(name as u8);
    let mut state = (name % 4 + 1) as u32;
    for _ in 0..(name * 7) % 60 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        message.extend_from_slice(&[b'p', b'r', (state >> 24) as u8, (state >> 16) as u8]);
    }
    message
}

struct Scene {
    shard: Shard,
    wires: Rc<RefCell<Vec<Wire>>>,
    clients: Vec<ConnectionToken>,
    channels: Vec<ChannelId>,
    owner: Arc<Owner>,
    deflater: Deflater,
    _events: ProcessReceiver,
}

impl Scene {
    fn new() -> Self {
        let process: ProcessId = "p:deflate:sys".parse().unwrap();
        let mut gateway = Snapshot::new(pushring::node::settings("local.os", Dialect::Kinode));
        let rule = WebSocketRule { deflate: true, ..WebSocketRule::default() };
        gateway.bind_websocket(OWNER, &process, "/", rule).unwrap();
        let (queue, events) = process_queue(1, QueueLimits::default(), &Ledger::default(), |_| {});
        let owner = Arc::new(Owner::new(OWNER, process, queue, Wishes::of(Policy::Close)));
        let mut directory = Directory::new(gateway);
        directory.attach(owner.clone());
        let mut config = ShardConfig { outbound_bytes_max: BUDGET, copy_bytes_max: 200, ..ShardConfig::default() };
        config.deflate.bytes_min = 64;
        config.deflate.push_level = 6;
        config.deflate.takeover_bytes_max = 1 << 20;
        let wires = Rc::new(RefCell::new(Vec::new()));
        let common = Common {
            config: Arc::new(config),
            directory: Arc::new(directory),
            admission: Arc::default(),
            memory: Ledger::default(),
            resume: pushring::internals::resume::Keys::new(&[7; 32]),
        };
        let shard = Shard::new(0, 1, common, Box::new(Memory(wires.clone())), 1, 0);
        let mut scene = Self {
            shard,
            wires,
            clients: Vec::new(),
            channels: Vec::new(),
            owner,
            deflater: Deflater::new(6),
            _events: events,
        };
        for (socket, offer) in OFFERS.into_iter().enumerate() {
            scene.wires.borrow_mut().push(Wire { left: Vec::new(), room: 1_000 });
            let client = scene.shard.handle_accept(SocketId(socket as i32), ([127, 0, 0, 1], 1).into(), 0).unwrap();
            let head = format!(
                "GET /p:deflate:sys HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Sec-WebSocket-Extensions: {offer}\r\n\r\n"
            );
            scene.shard.handle_read(client, &mut head.into_bytes(), 0);
            scene.turn();
            match &scene._events.try_recv().unwrap().events[..] {
                [Event::Opened(opened)] => scene.channels.push(opened.channel),
                other => panic!("{other:?}"),
            }
            scene.clients.push(client);
        }
        scene
    }

    fn turn(&mut self) {
        while self.shard.flush() {}
        self.shard.end_turn();
    }

    fn give_room(&mut self, of: usize, bytes: usize) {
        self.wires.borrow_mut()[of].room += bytes;
        self.shard.handle_writable(self.clients[of]);
    }

    fn go(&mut self, step: &Step, serial: usize) {
        let frame = |name| PushFrame {
            kind: PushKind::Message(MessageKind::Binary),
            payload: Bytes::from(message(name, serial)),
        };
        match *step {
            Step::Push { to, message, times, policy } => {
                for name in message..message + times {
                    let (channel, policy, frame) = (self.channels[to], Some(policy), frame(name));
                    let push = PushCommand { channel, owner: Some(OWNER), frame, policy, asked: ReportTo::Nobody };
                    self.shard.handle_command(Command::Push(push), 1);
                }
            }
            Step::Broadcast { message, policy } => {
                let frame = frame(message);
                let compressed = Compressed::new(&mut self.deflater, &frame.payload, self.owner.windows.in_use());
                let many = PushMany {
                    audience: ShardAudience::Process,
                    except: Arc::new([]),
                    owner: OWNER,
                    frame,
                    compressed: compressed.map(Arc::new),
                    policy: Some(policy),
                    part: None,
                };
                self.shard.handle_command(Command::PushMany(Box::new(many)), 1);
            }
            Step::Room { of, bytes } => self.give_room(of, bytes),
            Step::Turn => self.turn(),
        }
    }

    /// The messages that a client got, and how many of them were compressed.
    fn received(&self, of: usize) -> (Vec<Vec<u8>>, usize) {
        let wires = self.wires.borrow();
        let bytes = &wires[of].left;
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the answer to the upgrade") + 4;
        let takes_over = !String::from_utf8_lossy(&bytes[..head]).contains("server_no_context_takeover");
        let window_bits = if OFFERS[of].ends_with("=9") { 9 } else { 15 };
        let mut inflate = Decompress::new_with_window_bits(false, window_bits);
        let mut rest = &bytes[head..];
        let (mut messages, mut compressed) = (Vec::new(), 0);
        while let Some(len) = server_frame_len(rest) {
            let header = if rest[1] < 126 { 2 } else { 4 };
            let (frame, behind) = rest.split_at(len);
            rest = behind;
            if frame[0] == 0x88 {
                // Values that are kept past the budget close the channel.
                assert_eq!(frame[2..4], 1013u16.to_be_bytes());
                break;
            }
            if frame[0] & 0x40 == 0 {
                assert_eq!(frame[0], 0x82);
                messages.push(frame[header..].to_vec());
                continue;
            }
            if !takes_over {
                inflate.reset(false);
            }
            let mut out = Vec::with_capacity(4_096);
            let whole = [&frame[header..], &[0, 0, 0xff, 0xff]].concat();
            inflate.decompress_vec(&whole, &mut out, FlushDecompress::Sync).expect("it inflates");
            messages.push(out);
            compressed += 1;
        }
        assert!(rest.is_empty(), "half a frame at the end");
        (messages, compressed)
    }
}

fn serial(message: &[u8]) -> usize {
    u32::from_le_bytes(*message.first_chunk().expect("a serial number")) as usize
}

/// Returns whether its value may stand in the place of an older one.
fn is_conflated(step: &Step) -> bool {
    matches!(
        step,
        Step::Push { policy: Policy::Conflate { .. }, .. } | Step::Broadcast { policy: Policy::Conflate { .. }, .. }
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_client_gets_whole_messages_in_order(steps in prop::collection::vec(any_step(), 20..150)) {
        let mut scene = Scene::new();
        for (number, step) in steps.iter().enumerate() {
            scene.go(step, number);
        }
        for of in 0..OFFERS.len() {
            scene.give_room(of, usize::MAX / 2);
        }
        scene.turn();
        for (of, offer) in OFFERS.into_iter().enumerate() {
            let (messages, compressed) = scene.received(of);
            for received in &messages {
                let pushed = match steps[serial(received)] {
                    Step::Push { to, message, times, .. } if to == of => message..message + times,
                    Step::Broadcast { message, .. } => message..message + 1,
                    ref other => panic!("{other:?} gave a message to {of}"),
                };
                let name = received[4].into();
                prop_assert!(pushed.contains(&name), "a message of another name");
                prop_assert!(*received == message(name, serial(received)), "message {} of {of}", serial(received));
            }
            prop_assert!(offer != "none" || compressed == 0);
            let unkeyed = messages.iter().map(|message| (serial(message), message[4])).filter(|&(serial, _)| !is_conflated(&steps[serial]));
            prop_assert!(unkeyed.is_sorted_by(|a, b| a < b), "once each, in order");
        }
    }
}
