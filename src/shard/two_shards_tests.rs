//! Two shards with one process, stepped by hand, over sockets in memory: connections may be handed from one to the
//! other, as when a client resumes on another shard than its channel's. This file acts as the driver; clients and
//! oracles are those of the tests.

use super::command::{CarriedSocket, Command};
use super::flush::SocketId;
use super::stage::OWNER;
use super::wires::{Wire, Wires};
use super::{Common, ConnectionToken, Directory, Effect, ListenerKind, Owner, Shard, ShardConfig, SocketEnd, Wishes};
use crate::admission::{Budget, Ledger};
use crate::gateway::{Settings, Snapshot, SubdomainTokens};
use crate::process_id::ProcessId;
use crate::queue::events::{ProcessReceiver, QueueLimits, process_queue};
use crate::tls::{ReceiveEnd, Records, TlsState};
use std::io::IoSlice;
use std::sync::Arc;

pub(crate) const SHARDS: u32 = 2;

/// The owner of all channels, for tests above the shard.
#[cfg(feature = "fleet")]
pub(crate) const PROCESS_OWNER: crate::gateway::OwnerId = OWNER;

/// See the module.
pub(crate) struct TwoShards {
    /// The process.
    #[cfg_attr(not(feature = "fleet"), expect(dead_code, reason = "the tests of a fleet look at its topics"))]
    pub owner: Arc<Owner>,
    pub shards: Vec<Shard>,
    pub events: ProcessReceiver,
    pub now_ms: u64,
    /// How many sockets there were: the number of the next one.
    pub sockets: i32,
    wires: Wires,
}

impl TwoShards {
    /// `bind` makes the paths of the process `p:sim:sys`.
    pub(crate) fn new(config: ShardConfig, memory: Budget, bind: impl FnOnce(&mut Snapshot, &ProcessId)) -> Self {
        Self::of_run(&[7; 32], config, memory, bind)
    }

    /// The same, whose tokens are signed with this secret.
    pub(crate) fn of_run(
        secret: &[u8; 32],
        config: ShardConfig,
        memory: Budget,
        bind: impl FnOnce(&mut Snapshot, &ProcessId),
    ) -> Self {
        let process = "p:sim:sys".parse().unwrap();
        let mut gateway = Snapshot::new(Settings::of_a_node("sim.os", SubdomainTokens::Own));
        bind(&mut gateway, &process);
        let ledger = Ledger::new(memory);
        let (queue, events) = process_queue(SHARDS as usize, QueueLimits::default(), &ledger, |_| {});
        let mut directory = Directory::new(gateway);
        let owner = Arc::new(Owner::new(OWNER, process, queue, Wishes::of(config.policy)));
        directory.attach(owner.clone());
        let wires = Wires::default();
        let common = Common {
            config: Arc::new(config),
            directory: Arc::new(directory),
            admission: Arc::default(),
            memory: ledger,
            resume: crate::resume::Keys::new(secret),
        };
        let shard = |index| Shard::new(index, SHARDS, common.clone(), Box::new(wires.clone()), u64::from(index) + 3, 0);
        Self { owner, shards: (0..SHARDS).map(shard).collect(), events, now_ms: 0, sockets: 0, wires }
    }

    pub(crate) fn wire<T>(&self, socket: i32, look: impl FnOnce(&mut Wire) -> T) -> T {
        self.wires.look(socket, look)
    }

    /// A new socket that takes `room` bytes, and the shard's token of it, if the shard takes it in.
    pub(crate) fn accept(&mut self, shard: usize, room: usize) -> Option<(i32, ConnectionToken)> {
        self.accept_at(ListenerKind::Plain, shard, room)
    }

    /// The same at one of the listeners.
    pub(crate) fn accept_at(
        &mut self,
        listener: ListenerKind,
        shard: usize,
        room: usize,
    ) -> Option<(i32, ConnectionToken)> {
        let socket = self.sockets;
        self.sockets += 1;
        self.wires.add(socket, room);
        let peer = ([127, 0, 0, 1], 1).into();
        let token = self.shards[shard].handle_accept_at(listener, SocketId(socket), peer, self.now_ms)?;
        self.wire(socket, |wire| wire.watched = Some((shard, token)));
        Some((socket, token))
    }

    /// One turn of each shard, with what the driver does.
    pub(crate) fn turn(&mut self) {
        for at in 0..self.shards.len() {
            self.shards[at].begin_turn(self.now_ms);
            self.shards[at].flush();
            self.shards[at].end_turn();
            self.carry_out(at);
        }
    }

    pub(crate) fn carry_out(&mut self, at: usize) {
        for handover in self.shards[at].take_handovers() {
            self.wire(handover.socket.0, |wire| wire.watched = None);
            let carried = CarriedSocket(Box::new(handover.socket));
            let to = handover.to as usize;
            self.shards[to].handle_command(Command::Arrive(carried, handover.arrival), self.now_ms);
            for (carried, arrival) in self.shards[to].take_arrivals() {
                let socket: Box<SocketId> = carried.0.downcast().unwrap();
                self.shards[to].handle_arrival(*socket, *arrival, self.now_ms);
            }
            self.carry_out(to);
        }
        for (to, gone) in self.shards[at].take_evicted() {
            self.shards[to as usize].handle_command(Command::Evict(gone), self.now_ms);
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

    /// Time passes.
    pub(crate) fn tick(&mut self, passed_ms: u64) {
        self.now_ms += passed_ms;
        for shard in &mut self.shards {
            shard.handle_tick(self.now_ms);
        }
    }

    /// At most so many of the bytes that are on their way to the client.
    pub(crate) fn take(&self, socket: i32, bytes: usize) -> Vec<u8> {
        self.wire(socket, |wire| {
            let count = wire.to_client.len().min(bytes);
            wire.to_client.drain(..count).collect()
        })
    }

    /// A socket that was full takes bytes again, and its shard hears of that.
    pub(crate) fn let_write(&mut self, socket: i32) {
        let was_full = self.wire(socket, |wire| std::mem::take(&mut wire.is_full));
        let watched = self.wire(socket, |wire| wire.watched.filter(|_| !wire.is_closed && !wire.is_cut));
        if was_full && let Some((shard, token)) = watched {
            self.shards[shard].handle_writable(token);
        }
    }

    /// The shard hears that the network is gone.
    pub(crate) fn break_off(&mut self, socket: i32) {
        if let Some((shard, token)) = self.wire(socket, |wire| wire.watched.filter(|_| !wire.is_closed)) {
            self.shards[shard].handle_end(token, SocketEnd::Broken, self.now_ms);
            self.carry_out(shard);
        }
    }
}

/// A client's end of a connection over TLS that was established before it connects.
pub(crate) struct SealedClient {
    records: Records,
    of_the_shard: TlsState,
    /// The beginning of a record.
    carried: Vec<u8>,
}

impl SealedClient {
    /// `None`: there is no TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn new(socket: i32) -> Option<Self> {
        use crate::tls::{RecordDirection, Suite, TrafficSecret};
        let direction = |fill: u8| {
            let secret = [[fill; 28].as_slice(), &socket.to_be_bytes()].concat();
            RecordDirection { secret: TrafficSecret::new(&secret).expect("of 32 bytes"), sequence: 1 }
        };
        let (down, up) = (direction(1), direction(2));
        let suite = Suite::Aes128Gcm;
        let of_the_shard = TlsState { suite, send: down.clone(), receive: up.clone() };
        Some(Self { records: Records::new(TlsState { suite, send: up, receive: down }), of_the_shard, carried: vec![] })
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) fn new(_: i32) -> Option<Self> {
        None
    }

    pub(crate) fn listener(&self) -> ListenerKind {
        ListenerKind::Established(Box::new(self.of_the_shard.clone()))
    }

    pub(crate) fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.records.seal(&[IoSlice::new(bytes)], &mut out);
        out
    }

    pub(crate) fn open(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.carried.extend_from_slice(bytes);
        let opened = self.records.open(&mut self.carried, 0);
        assert!(matches!(opened.ended, None | Some(ReceiveEnd::CloseNotify)), "{opened:?}");
        let plain = self.carried[..opened.plain].to_vec();
        self.carried.drain(..self.carried.len() - opened.rest);
        plain
    }
}
