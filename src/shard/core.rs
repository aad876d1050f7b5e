//! The shard itself: its tables, and the entry points that the driver calls.
//!
//! The driver calls `handle_*` with what happened, then [`Shard::flush`] until it reports that nothing waits, then
//! [`Shard::end_turn`], and carries out the [`Effect`]s. All of it is synchronous; `now_ms` is an argument.
//!
//! Invariants:
//! - only this shard changes its connections and channels;
//! - every channel gives its owner exactly one Opened and one Closed;
//! - nothing here waits for a client.

use super::command::Command;
use super::config::ShardConfig;
use super::durations::Timings;
use super::event::RequestId;
use super::flush::{Flush, SocketId};
use super::handlers::Handlers;
use super::intake::Intake;
use super::memory::{Held, Memory};
use super::out::Out;
use super::owners::Owners;
use super::owners::directory::Directory;
use super::stats::{Report, Stats};
use super::table::ConnectionTable;
use super::table::arrival::{Arrival, CarriedSocket, Handover};
use super::table::connection::{ConnectionToken, Flag};
use super::tls_counts::TlsCounts;
use super::unfinished::{LongOrder, Unfinished};
use super::work::{self, Work, WorkLimits};
use crate::admission::{self, EvictedChannel};
use crate::channel::ChannelIdMint;
use crate::gateway::OwnerId;
use crate::http::Date;
use crate::queue::fair::OrderOrRest;
use crate::resume;
use crate::sse::EventId;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// An action that the driver must carry out for the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Shut the writing side of this socket: the client sees the end of our bytes.
    ShutdownWrite(SocketId),
    /// Close this socket. Nothing of the connection is left here.
    Close(SocketId),
    /// Close this socket now, before anything more is told of it: its channel lives on, under the same token.
    Abandon(SocketId),
    /// Read this connection again: the driver held its readiness back, or the shard did.
    Read(ConnectionToken),
    /// Watch this socket under another token, or for the first time here: what is ready already is to be reported.
    Watch(SocketId, ConnectionToken),
}

/// The common start of all shards of a broker.
#[derive(Debug, Clone)]
pub struct Common {
    /// Their settings.
    pub config: Arc<ShardConfig>,
    /// The attached processes.
    pub directory: Arc<Directory>,
    /// How many have connected to all of them.
    pub admission: Arc<admission::Connections>,
    /// How much memory their clients and processes may take.
    pub memory: admission::Ledger,
    /// Makes and verifies the tokens of channels that outlive their connections.
    pub resume: resume::Keys,
}

/// The time of day as it was last told, for tokens and dates; deadlines do not know it.
pub(super) struct TimeOfDay {
    /// Seconds since 1970.
    pub unix_s: u64,
    /// The time of day less the shard's own time, in milliseconds.
    pub ahead_ms: u64,
    /// The same as HTTP writes it.
    pub date: Date,
}

/// One shard. See the module.
///
/// A part keeps its own state in private fields; these are the parts, and the state that all of them read.
pub struct Shard {
    pub(super) config: Arc<ShardConfig>,
    pub(super) now_ms: u64,
    pub(super) time_of_day: TimeOfDay,
    pub(super) table: ConnectionTable,
    pub(super) out: Out,
    pub(super) intake: Intake,
    pub(super) owners: Owners,
    pub(super) handlers: Handlers,
    pub(super) memory: Memory,
    pub(super) stats: Stats,
    pub(super) tls_counts: TlsCounts,
    /// By status: some hundreds at most, for a status has three digits.
    pub(super) responses: BTreeMap<u16, u64>,
    /// The work of this turn.
    pub(super) work: Work,
    /// How long turns and pushes took.
    pub(super) timings: Timings,
    pub(super) effects: Vec<Effect>,
    /// Connections that go on on other shards.
    pub(super) handovers: Vec<Handover>,
    /// Channels of other shards whose places are needed.
    pub(super) evicted: Vec<(u32, EvictedChannel)>,
    /// Connections that other shards have accepted, whose sockets are not here yet.
    pub(super) arrivals: Vec<(CarriedSocket, Box<Arrival>)>,
    /// Orders to other shards.
    pub(super) relayed: Vec<RelayedOrder>,
    pub(super) keys: resume::Keys,
    index: u32,
    /// How many shards there are.
    pub(super) shards: u32,
    /// Orders that did not fit the turn in which they came.
    put_off: VecDeque<OrderOrRest<Command, Unfinished>>,
    /// Work on many connections that no process ordered, one slice a turn.
    pub(super) chores: VecDeque<LongOrder>,
    /// Clients that were paused have gone on in this turn, and may have filled their process' queue again: the room
    /// that is left there is to be looked at in the next.
    goes_on: bool,
    /// Whether clients are accepted; until then they wait in the listener's backlog.
    pub(super) is_open: bool,
}

/// An order to another shard, for a request that waits.
pub struct RelayedOrder {
    /// The shard.
    pub to: u32,
    /// The request, and the process that it is for.
    pub request: (RequestId, OwnerId),
    /// The order.
    pub command: Command,
}

impl Shard {
    /// Shard `index` of `shards`. `seed` decides where channel ids start and how pings are spread.
    pub fn new(index: u32, shards: u32, common: Common, flusher: Box<dyn Flush>, seed: u64, now_ms: u64) -> Self {
        let mint = ChannelIdMint::new(index, shards, seed as u32);
        Self {
            now_ms,
            time_of_day: TimeOfDay { unix_s: 0, ahead_ms: 0, date: Date::at(0) },
            table: ConnectionTable::new(mint, common.admission, now_ms),
            out: Out::new(flusher, common.config.deflate.push_level.into(), seed),
            intake: Intake::new(index, seed),
            owners: Owners::new(index, common.directory),
            handlers: Handlers::default(),
            memory: Memory::new(common.memory),
            stats: Stats::default(),
            tls_counts: TlsCounts::default(),
            responses: BTreeMap::new(),
            work: Work::default(),
            timings: Timings::default(),
            effects: Vec::new(),
            handovers: Vec::new(),
            evicted: Vec::new(),
            arrivals: Vec::new(),
            relayed: Vec::new(),
            keys: common.resume,
            config: common.config,
            index,
            shards,
            put_off: VecDeque::new(),
            chores: VecDeque::new(),
            goes_on: false,
            is_open: true,
        }
    }

    /// The same, which accepts no client before it is told to ([`Command::Open`]).
    #[must_use]
    pub fn closed(self) -> Self {
        Self { is_open: false, ..self }
    }

    /// Returns whether it accepts clients.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Sets the time of day, for tokens and dates; deadlines do not know it.
    pub fn set_unix_ms(&mut self, unix_ms: u64, now_ms: u64) {
        let time = &mut self.time_of_day;
        time.unix_s = unix_ms / 1000;
        time.ahead_ms = unix_ms.wrapping_sub(now_ms);
        time.date.advance(time.unix_s);
        if let Some(server) = &self.config.tls {
            server.set_unix_s(time.unix_s);
        }
    }

    /// Sets the time of all that follows to `now_ms`.
    pub fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.work.begin_turn();
        // Those of the turn before are awake.
        self.owners.take_touched();
    }

    /// An order from elsewhere. What is more than this turn's work is gone on with at its end.
    pub fn handle_command(&mut self, command: Command, now_ms: u64) {
        self.now_ms = now_ms;
        if !self.put_off.is_empty() {
            // Order holds whatever waits.
            return self.put_off.push_back(OrderOrRest::New(command));
        }
        if let Some(rest) = self.execute(OrderOrRest::New(command), self.slice_ns()) {
            self.put_off.push_back(OrderOrRest::Rest(rest));
        }
    }

    fn slice_ns(&self) -> u64 {
        WorkLimits::default().orders_ns.saturating_sub(self.work.spent_ns())
    }

    fn execute_put_off(&mut self) {
        while !self.is_out_of_room()
            && let Some(order) = self.put_off.pop_front()
        {
            if let Some(rest) = self.execute(order, self.slice_ns()) {
                self.put_off.push_front(OrderOrRest::Rest(rest));
            }
        }
    }

    /// The time that it goes by, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Its number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Connections that go on on other shards.
    pub fn take_handovers(&mut self) -> Vec<Handover> {
        std::mem::take(&mut self.handovers)
    }

    /// Channels of other shards that are to be let go of, and where they are.
    pub fn take_evicted(&mut self) -> Vec<(u32, EvictedChannel)> {
        std::mem::take(&mut self.evicted)
    }

    /// The id of a process' event `count` here.
    pub(super) fn event_id(&self, count: u64) -> EventId {
        EventId { run: self.keys.run_number(), shard: self.index, place: self.keys.seal_place(self.index, count) }
    }

    /// Orders to other shards. What is not taken there is told to [`relay_failed`](Self::relay_failed).
    pub fn take_relayed(&mut self) -> Vec<RelayedOrder> {
        std::mem::take(&mut self.relayed)
    }

    /// Connections that other shards have accepted: each is to be given a socket here ([`Shard::handle_arrival`]).
    pub fn take_arrivals(&mut self) -> Vec<(CarriedSocket, Box<Arrival>)> {
        std::mem::take(&mut self.arrivals)
    }

    /// The work of this turn so far, in nanoseconds as `work` counts them.
    pub fn spent_ns(&self) -> u64 {
        self.work.spent_ns()
    }

    /// Times to measure, by a caller that has a clock.
    pub fn timings(&mut self) -> &mut Timings {
        &mut self.timings
    }

    /// The work of inflating in this turn: a few packets can cause so much that it must not keep others from being
    /// read.
    pub(super) fn inflated_ns(&self) -> u64 {
        self.work.inflated_ns()
    }

    /// Something was done for it elsewhere.
    pub(super) fn spend(&mut self, ns: u64) {
        self.work.spend(ns);
    }

    /// What was just done has events for owners that had none in this turn: waking each is work, too.
    pub(super) fn spend_wakes(&mut self) {
        let woken = self.owners.take_touched();
        self.work.spend(woken * work::WAKE_NS);
    }

    /// Returns whether one more order may be executed in a turn that may cost so much.
    pub(super) fn has_room(&self, until_ns: u64) -> bool {
        self.work.spent_ns() < until_ns && !self.out.is_window_full()
    }

    /// Returns whether what was taken in should be sent before more is.
    fn is_out_of_room(&self) -> bool {
        self.out.is_window_full() || self.slice_ns() == 0
    }

    /// The shard was called: something that it waits for may have happened.
    pub fn handle_call(&mut self) {
        self.owners.look_at_full();
    }

    /// The socket takes bytes again.
    pub fn handle_writable(&mut self, token: ConnectionToken) {
        let Some(slot) = self.table.resolve(token) else { return };
        let connection = &mut self.table[slot];
        if connection.outbound.is_blocked() {
            // Its client has taken bytes, so it lives, however far behind it is: a ping may stand behind all of them.
            connection.heard(self.now_ms);
            connection.outbound.unblock();
            self.out.mark_urgent(connection, slot);
            if self.table[slot].flags.has(Flag::Lags) {
                self.feed(slot);
            }
            // Control frames that stood beside the queue are in it now.
            self.weigh(slot);
        }
    }

    /// Hands the events of this turn to their processes and lets clients go on that waited for room. Call it once a
    /// turn, after what came in was handled.
    pub fn end_turn(&mut self) {
        self.end_turn_within(self.work.spent_ns() + WorkLimits::default().resumes_ns);
        self.work.begin_turn();
        self.execute_put_off();
    }

    /// The same; clients that resume may do so until the turn's work reaches `until_ns`.
    pub(super) fn end_turn_within(&mut self, until_ns: u64) {
        self.owners.hand_over();
        // Data of clients that resume is handed over too. Once: with a process that takes it at once, clients whose few
        // bytes inflate to many could otherwise keep the turn from ending.
        self.goes_on = self.resume(until_ns);
        if self.goes_on {
            self.owners.hand_over();
        }
        self.balance_memory();
        self.goes_on |=
            self.intake.wants_resume() || self.has_chores() || self.memory.gives_on() || self.wants_handlers();
        self.goes_on |= self.owners.looks_on();
        if cfg!(debug_assertions) {
            self.check();
        }
    }

    /// Returns whether connections are due, by their deadline or for a chore.
    fn has_chores(&self) -> bool {
        self.table.has_due() || self.table.drain_goes_on() || !self.chores.is_empty()
    }

    /// Asserts between turns what the parts promise. It looks at everything, so it is for debug builds and tests.
    pub fn check(&self) {
        self.table.check();
        self.out.check();
        self.intake.check();
        self.owners.check();
        self.memory.check();
        let held = self.table.iter().filter(|(_, connection)| connection.flags.has(Flag::Holds)).count();
        assert_eq!(held, self.memory.holders(), "holders of memory are counted");
        for (slot, connection) in self.table.iter() {
            // Bytes that wait for their first send count as the window's, until that has been tried.
            if connection.flags.has(Flag::Urgent) || connection.flags.has(Flag::Bulk) {
                continue;
            }
            let held = connection.held();
            assert!(connection.flags.has(Flag::Holds) || held == Held::default(), "{slot:?} holds what is not counted");
            assert_eq!(self.memory.of(slot), held, "{slot:?} holds what is counted");
            assert!(!connection.flags.has(Flag::InBatch), "{slot:?} is in no batch between turns");
            let kept_channel = self.out.kept_channels.get(&slot);
            assert!(kept_channel.is_none_or(|kept_channel| kept_channel.is_counted()), "{slot:?} has a counted log");
            assert_eq!(connection.flags.has(Flag::Kept), kept_channel.is_some(), "{slot:?} is kept if it says so");
            let lags = kept_channel.is_some_and(|kept_channel| kept_channel.log.lags());
            assert!(!lags || connection.flags.has(Flag::Lags), "{slot:?} lags if its log does");
        }
    }

    /// Returns whether there is something for the driver to do.
    pub(super) fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Returns whether there is something for other shards.
    pub(super) fn hands_over(&self) -> bool {
        !(self.handovers.is_empty() && self.evicted.is_empty() && self.relayed.is_empty())
    }

    /// The driver's next actions, in order.
    pub fn take_effects(&mut self, into: &mut Vec<Effect>) {
        into.append(&mut self.effects);
    }

    /// Returns whether a next turn is wanted at once, though nothing may have come for it.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// Returns whether what was taken in should be sent before more is: the window is full, this turn's orders have
    /// been work enough, or one is not done.
    pub fn is_turn_full(&self) -> bool {
        self.is_out_of_room() || !self.put_off.is_empty()
    }

    /// Returns whether anything waits that a socket may take.
    pub fn wants_flush(&self) -> bool {
        self.out.wants_flush()
    }

    /// Returns whether the shard was told to stop and has nothing left.
    pub fn is_stopped(&self) -> bool {
        self.table.is_stopping() && self.table.len() == 0
    }

    /// Returns whether the shard closes its channels, by a stop or at the end of a drain, and accepts no client.
    pub fn is_stopping(&self) -> bool {
        self.table.is_stopping() || self.drain_closes()
    }

    /// The socket of a live connection.
    pub fn socket(&self, token: ConnectionToken) -> Option<SocketId> {
        let slot = self.table.resolve(token).filter(|&slot| !self.table[slot].flags.has(Flag::Detached))?;
        Some(self.table[slot].socket)
    }

    /// Live connections, channels among them.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Takes note of the payloads of orders that were not executed, those that were begun among them. Call it once a
    /// turn.
    pub fn note_inbox(&mut self, bytes: usize) {
        self.memory.note_inbox(bytes);
    }

    /// The shard is over: withdraws the memory that it has published as held, and forgets the processes for whose room
    /// its last clients have waited.
    pub(super) fn withdraw(&mut self) {
        self.owners.look_at_full();
        while self.owners.looks_on() {
            self.owners.take_resumable(|_| {});
        }
        self.memory.publish(usize::MAX);
    }

    fn tls_report(&self) -> Option<TlsCounts> {
        let server = self.config.tls.as_ref()?;
        let ends = server.certificates().iter().map(|certificate| certificate.not_after_unix_s());
        let connections = self.table.over_tls();
        Some(TlsCounts { connections, certificates_end_unix_s: ends.min(), ..self.tls_counts.clone() })
    }

    /// The shard as it is now.
    pub fn report(&self) -> Report {
        let (turns, push_delays) = self.timings.durations();
        Report {
            shard: self.index,
            connections: self.table.len(),
            channels: self.table.channels(),
            subscriptions: self.owners.iter().map(|local| local.subscriptions.count()).sum(),
            detached: self.table.detached(),
            window_bytes: self.out.window_bytes(),
            turns,
            push_delays,
            history_bytes: self.out.history_bytes(),
            memory: self.memory_report(self.index == 0),
            stats: self.stats,
            tls: self.tls_report(),
            responses: self.responses.clone(),
        }
    }
}
