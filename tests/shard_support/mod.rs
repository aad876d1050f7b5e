//! A shard in memory, with open channels and sockets that take everything: what the allocation test and the benchmark of
//! the fan-out share.
#![allow(dead_code, missing_docs)]

use pushring::channel::ChannelId;
use pushring::gateway::{Dialect, OwnerId, Settings, Snapshot};
use pushring::process_id::ProcessId;
use pushring::proto::MessageKind;
use pushring::shard::command::{Command, Policy, PushFrame, PushKind, PushMany, ShardAudience};
use pushring::shard::event::Event;
use pushring::shard::flush::{Flush, Outgoing, Parts, Short, SocketId};
use pushring::shard::process_queue::{ProcessReceiver, QueueLimits, process_queue};
use pushring::shard::{Common, Config, Directory, Owner, Shard};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

const OWNER: OwnerId = OwnerId(1);
const UPGRADE: &[u8] =
    b"GET /fan:bench:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// What the sockets took.
#[derive(Debug, Default)]
pub struct Taken {
    pub sends: AtomicUsize,
    pub bytes: AtomicUsize,
    /// Where the last slice of the last send lay.
    pub last: AtomicPtr<u8>,
}

/// Takes everything and looks at nothing.
struct NullFlush(Arc<Taken>);

impl Flush for NullFlush {
    fn send_all(&mut self, batch: &[Outgoing<'_>], _: &mut Vec<Short>) {
        self.0.sends.fetch_add(batch.len(), Ordering::Relaxed);
        for outgoing in batch {
            let (bytes, last) = match outgoing.parts {
                Parts::One(bytes) => (bytes.len(), bytes.as_ptr()),
                Parts::Many(parts) => (parts.iter().map(|p| p.len()).sum(), parts[parts.len() - 1].as_ptr()),
            };
            self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.0.last.store(last.cast_mut(), Ordering::Relaxed);
        }
    }
}

/// See the module.
pub struct Fan {
    pub shard: Shard,
    pub taken: Arc<Taken>,
    pub channels: Vec<ChannelId>,
    receiver: ProcessReceiver,
}

impl Fan {
    /// A shard with so many open channels, all of one process, and nothing waiting.
    pub fn new(channels: usize) -> Self {
        let process: ProcessId = "fan:bench:sys".parse().unwrap();
        let (queue, receiver) = process_queue(1, QueueLimits::default(), &Default::default(), |_| {});
        let mut directory = Directory::new(Snapshot::new(Settings::new("local.os", Dialect::Kinode)));
        let owner = Owner::new(OWNER, process.clone(), queue, Policy::Close, false);
        directory.gateway.bind_websocket(OWNER, &process, "/", Default::default()).unwrap();
        directory.owners.insert(OWNER, Arc::new(owner));
        directory.processes.insert(process, OWNER);
        let taken = Arc::new(Taken::default());
        let config = Arc::new(Config::default());
        let flusher = Box::new(NullFlush(taken.clone()));
        let common =
            Common { config, directory: Arc::new(directory), admission: Arc::default(), memory: Default::default() };
        let shard = Shard::new(0, 1, common, flusher, 7, 0);
        let mut fan = Self { shard, taken, channels: Vec::with_capacity(channels), receiver };
        for at in 0..channels {
            fan.open(SocketId(at as i32));
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

    fn open(&mut self, socket: SocketId) {
        let token = self.shard.handle_accept(socket, ([127, 0, 0, 1], 1).into(), 0).unwrap();
        self.shard.handle_read(token, &mut UPGRADE.to_vec(), 0);
    }

    /// Flushes until nothing waits, then ends the turn.
    pub fn turn(&mut self) {
        while self.shard.flush() {}
        self.shard.end_turn();
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
