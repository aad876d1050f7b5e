//! A shard in memory, with open channels and sockets that take everything: what tests of counts and the benchmarks of
//! the fan-out share.
#![allow(dead_code, missing_docs)]

pub mod hosted;

use pushring::ChannelId;
use pushring::ProcessId;
use pushring::internals::gateway::{OwnerId, Snapshot, WebSocketRule};
use pushring::internals::proto::MessageKind;
use pushring::internals::shard::command::{
    Command, Policy, PushCommand, PushFrame, PushKind, PushMany, ReportTo, ShardAudience,
};
use pushring::internals::shard::event::Event;
use pushring::internals::shard::flush::{Flush, OutgoingBytes, SendParts, ShortSend, SocketId};
use pushring::internals::shard::process_queue::{ProcessReceiver, QueueLimits, process_queue};
use pushring::internals::shard::{Common, ConnectionToken, Directory, Owner, Shard, ShardConfig, Wishes};
use pushring::node::Dialect;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub const OWNER: OwnerId = OwnerId(1);
const UPGRADE: &[u8] =
    b"GET /fan:bench:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// The bytes that sockets took.
#[derive(Debug, Default)]
pub struct Taken {
    pub sends: AtomicUsize,
    pub bytes: AtomicUsize,
    /// Where the last slice of the last send lay.
    pub last: AtomicPtr<u8>,
    /// One socket's number, and the sends to it.
    watched: AtomicUsize,
    pub watched_sends: AtomicUsize,
    /// All sockets are full from now on.
    pub is_full: AtomicBool,
    /// Whether sent bytes are kept in `record`.
    is_recorded: AtomicBool,
    record: Mutex<Vec<u8>>,
}

impl Taken {
    /// Records what is sent until `until` returns, and answers it.
    pub fn record(&self, until: impl FnOnce()) -> String {
        self.is_recorded.store(true, Ordering::Relaxed);
        until();
        self.is_recorded.store(false, Ordering::Relaxed);
        String::from_utf8_lossy(&std::mem::take(&mut *self.record.lock().unwrap())).into_owned()
    }

    fn keep(&self, batch: &[OutgoingBytes<'_>]) {
        let mut record = self.record.lock().unwrap();
        for outgoing in batch {
            match outgoing.parts {
                SendParts::One(bytes) => record.extend_from_slice(bytes),
                SendParts::Many(parts) => parts.iter().for_each(|part| record.extend_from_slice(part)),
            }
        }
    }

    /// Counts the sends to this socket from now on.
    pub fn watch(&self, socket: usize) {
        self.watched.store(socket, Ordering::Relaxed);
        self.watched_sends.store(0, Ordering::Relaxed);
    }
}

/// Takes everything, or nothing, and looks at nothing.
struct NullFlush(Arc<Taken>);

impl Flush for NullFlush {
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>) {
        if self.0.is_full.load(Ordering::Relaxed) {
            return short.extend((0..batch.len()).map(|index| ShortSend { index, sent: Ok(0) }));
        }
        if self.0.is_recorded.load(Ordering::Relaxed) {
            self.0.keep(batch);
        }
        self.0.sends.fetch_add(batch.len(), Ordering::Relaxed);
        for outgoing in batch {
            let (bytes, last) = match outgoing.parts {
                SendParts::One(bytes) => (bytes.len(), bytes.as_ptr()),
                SendParts::Many(parts) => (parts.iter().map(|p| p.len()).sum(), parts[parts.len() - 1].as_ptr()),
            };
            self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
            let is_watched = outgoing.socket.0 as usize == self.0.watched.load(Ordering::Relaxed);
            self.0.watched_sends.fetch_add(usize::from(is_watched), Ordering::Relaxed);
            self.0.last.store(last.cast_mut(), Ordering::Relaxed);
        }
    }
}

/// See the module.
pub struct Fan {
    pub shard: Shard,
    pub taken: Arc<Taken>,
    pub channels: Vec<ChannelId>,
    /// By socket.
    pub tokens: Vec<ConnectionToken>,
    pub owner: Arc<Owner>,
    receiver: ProcessReceiver,
}

impl Fan {
    /// A shard with so many open channels, all of one process, and nothing waiting.
    pub fn new(channels: usize) -> Self {
        Self::with(channels, ShardConfig::default())
    }

    /// The same, with other limits.
    pub fn with(channels: usize, config: ShardConfig) -> Self {
        let process: ProcessId = "fan:bench:sys".parse().unwrap();
        let (queue, receiver) = process_queue(1, QueueLimits::default(), &Default::default(), |_| {});
        let mut directory = Directory::new(Snapshot::new(pushring::node::settings("local.os", Dialect::Kinode)));
        let owner = Arc::new(Owner::new(OWNER, process.clone(), queue, Wishes::of(Policy::Close)));
        directory.gateway.bind_websocket(OWNER, &process, "/", Default::default()).unwrap();
        directory.gateway.bind_http(OWNER, &process, "/http", Default::default()).unwrap();
        let mut rule = WebSocketRule::default();
        (rule.sse, rule.resume) = (true, true);
        directory.gateway.bind_websocket(OWNER, &process, "/kept", rule).unwrap();
        directory.attach(owner.clone());
        let taken = Arc::new(Taken::default());
        let config = Arc::new(config);
        let flusher = Box::new(NullFlush(taken.clone()));
        let common = Common {
            config,
            directory: Arc::new(directory),
            admission: Arc::default(),
            memory: Default::default(),
            resume: pushring::internals::resume::Keys::new(&[7; 32]),
        };
        let shard = Shard::new(0, 1, common, flusher, 7, 0);
        let mut fan =
            Self { shard, taken, channels: Vec::with_capacity(channels), tokens: Vec::new(), owner, receiver };
        for at in 0..channels {
            fan.open(at);
        }
        fan.turn();
        while let Ok(batch) = fan.receiver.try_recv() {
            fan.channels.extend(batch.events.iter().map(|event| match event {
                Event::Opened(opened) => opened.channel,
                other => panic!("expected Opened, got {other:?}"),
            }));
        }
        assert_eq!(fan.channels.len(), channels);
        fan
    }

    /// A client comes on this socket and is upgraded; its 101 waits for the next flush.
    pub fn open(&mut self, socket: usize) {
        self.open_with(socket, UPGRADE);
    }

    /// The same with another request. `/kept` is a path of channels that outlive their connections, and of event
    /// streams.
    pub fn open_with(&mut self, socket: usize, request: &[u8]) {
        let peer = ([127, 0, 0, 1], 1).into();
        let token = self.shard.handle_accept(SocketId(socket as i32), peer, 0).unwrap();
        self.shard.handle_read(token, &mut request.to_vec(), 0);
        self.tokens.push(token);
    }

    /// Sends every message that the process was given back to its channel, and answers how many there were.
    pub fn answer_messages(&mut self) -> usize {
        let mut orders = Vec::new();
        while let Ok(batch) = self.receiver.try_recv() {
            orders.extend(batch.events.into_iter().filter_map(|event| match event {
                Event::Message { channel, payload, .. } => Some(Self::unicast(channel, payload)),
                _ => None,
            }));
        }
        let count = orders.len();
        self.shard.handle_command(Command::Batch(orders), 1);
        count
    }

    /// Flushes until nothing waits, then ends the turn.
    pub fn turn(&mut self) {
        while self.shard.flush() {}
        self.shard.end_turn();
    }

    /// The order to push a message to one channel.
    pub fn unicast(channel: ChannelId, payload: bytes::Bytes) -> Command {
        let frame = PushFrame { kind: PushKind::Message(MessageKind::Binary), payload };
        Command::Push(PushCommand { channel, owner: Some(OWNER), frame, policy: None, asked: ReportTo::Nobody })
    }

    /// The order to push a message to all channels.
    pub fn broadcast(payload: bytes::Bytes) -> Command {
        Command::PushMany(Box::new(PushMany {
            audience: ShardAudience::Process,
            except: Arc::new([]),
            owner: OWNER,
            frame: PushFrame { kind: PushKind::Message(MessageKind::Binary), payload },
            compressed: None,
            policy: None,
            part: None,
        }))
    }
}
