//! A shard with several clients in memory, each with a socket that takes as much as it is told to: the basis of the
//! tests of policies and of memory.

use super::command::{Command, Policy, PushCommand, PushFrame, PushKind, ReportTo};
use super::event::{Closed, Event};
use super::flush::SocketId;
use super::outcome::{Outcome, OutcomeCollector, OutcomePart};
use super::wires::{Wire, Wires};
use super::{Common, ConnectionToken, Directory, Effect, Owner, Shard, ShardConfig, Wishes};
use crate::admission::{Budget, Ledger};
use crate::channel::ChannelId;
use crate::gateway::{HttpRule, OwnerId, Settings, Snapshot, SubdomainTokens, WebSocketRule};
use crate::process_id::ProcessId;
use crate::proto::{MessageKind, server_frame_len};
use crate::queue::events::{ProcessReceiver, QueueLimits, process_queue};
use bytes::Bytes;
use std::sync::Arc;

pub(super) const OWNER: OwnerId = OwnerId(1);
pub(super) const BINARY: PushKind = PushKind::Message(MessageKind::Binary);

pub(super) struct Stage {
    pub shard: Shard,
    pub events: ProcessReceiver,
    pub budget: Budget,
    pub now_ms: u64,
    /// Connections that the shard wants read.
    pub to_read: Vec<ConnectionToken>,
    wires: Wires,
    sockets: i32,
}

/// A client and its channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub token: ConnectionToken,
    pub socket: i32,
    pub channel: ChannelId,
}

impl Stage {
    pub(super) fn new(config: ShardConfig, budget: Budget) -> Self {
        Self::beside(config, &Ledger::new(budget))
    }

    /// A shard of its own, with a process of its own, whose memory is the same as that of others.
    pub(super) fn beside(config: ShardConfig, ledger: &Ledger) -> Self {
        let process: ProcessId = "p:sim:sys".parse().unwrap();
        let mut gateway = Snapshot::new(Settings::of_a_node("sim.os", SubdomainTokens::Own));
        gateway.bind_websocket(OWNER, &process, "/ws", WebSocketRule::default()).unwrap();
        gateway.bind_http(OWNER, &process, "/http", HttpRule::default()).unwrap();
        let (queue, events) = process_queue(1, QueueLimits::default(), ledger, |_| {});
        let owner = Owner::new(OWNER, process, queue, Wishes::of(config.policy));
        let mut directory = Directory::new(gateway);
        directory.attach(Arc::new(owner));
        let wires = Wires::default();
        let common = Common {
            config: Arc::new(config),
            directory: Arc::new(directory),
            admission: Arc::default(),
            memory: ledger.clone(),
            resume: crate::resume::Keys::new(&[7; 32]),
        };
        let shard = Shard::new(0, 1, common, Box::new(wires.clone()), 1, 0);
        let budget = ledger.budget().clone();
        Self { shard, events, budget, now_ms: 0, to_read: Vec::new(), wires, sockets: 0 }
    }

    /// A connection that has said nothing; its socket takes everything.
    pub(super) fn connect(&mut self) -> (ConnectionToken, i32) {
        let socket = self.sockets;
        self.sockets += 1;
        self.wires.add(socket, usize::MAX);
        let token = self.shard.handle_accept(SocketId(socket), ([127, 0, 0, 1], 1).into(), self.now_ms).unwrap();
        (token, socket)
    }

    /// An open channel whose socket takes `room` bytes more.
    pub(super) fn open(&mut self, room: usize) -> Client {
        let (token, socket) = self.connect();
        let head = "GET /p:sim:sys/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        self.read(token, head.as_bytes());
        self.turn();
        let opened = self.heard().into_iter().find_map(|event| match event {
            Event::Opened(opened) => Some(opened.channel),
            _ => None,
        });
        self.wire(socket, |wire| {
            wire.to_client.clear();
            wire.room = room;
        });
        Client { token, socket, channel: opened.unwrap() }
    }

    pub(super) fn wire<T>(&mut self, socket: i32, look: impl FnOnce(&mut Wire) -> T) -> T {
        self.wires.look(socket, look)
    }

    /// Gives bytes to the shard, as long as it wants to read. Returns whether it did.
    pub(super) fn read(&mut self, token: ConnectionToken, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(64 * 1024) {
            if !self.shard.wants_read(token) {
                return false;
            }
            self.shard.handle_read(token, &mut chunk.to_vec(), self.now_ms);
        }
        true
    }

    pub(super) fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.shard.handle_tick(now_ms);
    }

    /// One batch, then what the driver should do.
    pub(super) fn turn(&mut self) {
        self.shard.flush();
        self.shard.end_turn();
        let mut effects = Vec::new();
        self.shard.take_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Close(socket) | Effect::Abandon(socket) => self.wire(socket.0, |wire| wire.is_closed = true),
                Effect::Read(token) => self.to_read.push(token),
                Effect::ShutdownWrite(_) | Effect::Watch(..) => {}
            }
        }
        self.check();
    }

    /// Turns until nothing waits that a socket takes.
    pub(super) fn settle(&mut self) {
        self.turn();
        while self.shard.wants_flush() {
            self.turn();
        }
    }

    pub(super) fn give_room(&mut self, client: Client, room: usize) {
        let was_full = self.wire(client.socket, |wire| {
            wire.room = room;
            std::mem::take(&mut wire.is_full)
        });
        if was_full {
            self.shard.handle_writable(client.token);
        }
    }

    pub(super) fn push(
        &mut self,
        channel: ChannelId,
        kind: PushKind,
        payload: Bytes,
        policy: Option<Policy>,
    ) -> Settled {
        let (part, outcome) = ask();
        self.push_as(channel, kind, payload, policy, part.map_or(ReportTo::Nobody, ReportTo::Outcome));
        outcome
    }

    /// The same with a report.
    pub(super) fn push_as(
        &mut self,
        channel: ChannelId,
        kind: PushKind,
        payload: Bytes,
        policy: Option<Policy>,
        asked: ReportTo,
    ) {
        let push = PushCommand { channel, owner: Some(OWNER), frame: PushFrame { kind, payload }, policy, asked };
        self.shard.handle_command(Command::Push(push), self.now_ms);
    }

    /// All that the process has been told.
    pub(super) fn heard(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(mut batch) = self.events.try_recv() {
            events.append(&mut batch.events);
        }
        events
    }

    /// The channels that have ended.
    pub(super) fn closed(&mut self) -> Vec<Closed> {
        let closed = |event| if let Event::Closed(closed) = event { Some(*closed) } else { None };
        self.heard().into_iter().filter_map(closed).collect()
    }

    /// Counts equal the actual memory; nothing is over the lease that could have made room.
    pub(super) fn check(&self) {
        let held = self.shard.table.iter().map(|(_, connection)| connection.held());
        let (mut own, mut incoming) = (0, 0);
        for held in held {
            (own, incoming) = (own + held.own, incoming + held.incoming);
        }
        let report = self.shard.report().memory;
        assert_eq!((report.queued_bytes, report.incoming_bytes), (own, incoming));
        if let Some(budget) = report.budget_bytes {
            assert!(report.leased_bytes <= budget && self.budget.leased_bytes() <= budget);
        }
    }
}

/// The outcome of a push, once it is known.
pub(super) type Settled = crossbeam_channel::Receiver<Outcome>;

pub(super) fn ask() -> (Option<Box<OutcomePart>>, Settled) {
    let (settled, outcome) = crossbeam_channel::unbounded();
    // Not every test listens.
    let settle = move |outcome| {
        let _ = settled.send(outcome);
    };
    (OutcomeCollector::split(1, settle).pop().map(Box::new), outcome)
}

/// The whole frames in `bytes`.
pub(super) fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let len = server_frame_len(bytes).filter(|&len| len <= bytes.len()).expect("whole frames");
        frames.push(bytes[..len].to_vec());
        bytes = &bytes[len..];
    }
    frames
}
