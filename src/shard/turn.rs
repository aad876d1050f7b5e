//! The turns of a shard's thread: readiness of the network goes into the shard, its bytes and actions go to the
//! network.
//!
//! A turn takes in a bounded number of readiness events, clients, commands and reads, sends one batch, passes events on
//! and carries out the shard's actions on its sockets, as far as it has room. Clients are accepted first, when every
//! close of the turn before has been carried out. Under load one turn follows the other, so input that arrives
//! meanwhile is handled and merged in the next; each part is bounded, so none starves another.
//!
//! [`Sockets`] is the only interface to the network: the driver implements it with descriptors, the simulation with a
//! network in memory, and both run these turns and no others.
//!
//! Invariants: readiness is edge-triggered, so a connection that was ready and not read until nothing was left is in
//! the list of those to read, or the shard remembers it and asks with [`Effect::Read`]; a connection is in that list
//! once. It must not depend on descriptors, clocks or how a thread sleeps.

use super::command::{CarriedSocket, Command, Handover};
use super::core::{Effect, RelayedOrder, Shard};
use super::durations::Timings;
use super::flush::SocketId;
use super::handshake_queue::HandshakeQueue;
use super::intake::receive::{READ_BYTES_MAX, READ_SLICE_BYTES};
use super::read_queue::ReadQueue;
use super::table::connection::{ConnectionToken, ListenerKind, SocketEnd};
use super::table::wheel::TICK_MS;
use super::unfinished::Unfinished;
use super::work::{Calibration, EFFECT_NS, LOOK_NS, PASS_NS, READ_NS, WorkLimits};
use crate::queue::fair::{OrderOrRest, OrderServer, Producers};
use crate::queue::orders::{Account, Inbox, InboxSender};
use crate::tls::RECORD_BYTES_MAX;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// How long a listener is left alone that has no descriptor for its next client, unless a socket is closed.
const NO_ROOM_PAUSE_MS: u64 = 200;

/// The sockets of one shard, as its turns see them: nothing here waits.
pub trait Sockets {
    /// Why the shard cannot go on.
    type Error;

    /// Appends what has happened since it was last reported, each edge once. Returns whether there may be more at once.
    ///
    /// # Errors
    /// Readiness is told no more.
    fn poll(&mut self, news: &mut Vec<Readiness>) -> Result<bool, Self::Error>;

    /// Accepts one client. Its socket is [watched](Self::watch) or [closed](Self::close) next.
    ///
    /// # Errors
    /// The listener is broken.
    fn accept(&mut self) -> Result<Accepted, Self::Error>;

    /// Reports under `token` from now on what happens to `socket`; what is ready already is reported by the next poll.
    /// Returns whether that can be done.
    fn watch(&mut self, socket: SocketId, token: ConnectionToken) -> bool;

    /// Reads into `buffer`, which is not empty.
    fn read(&mut self, socket: SocketId, buffer: &mut [u8]) -> SocketRead;

    /// The peer sees the end of our bytes. One that has gone already is found out by the next read.
    fn shutdown_write(&mut self, socket: SocketId);

    /// As [`watch`](Self::watch), for a socket that may be watched under another token.
    fn watch_anew(&mut self, socket: SocketId, token: ConnectionToken) -> bool;

    /// Closes the socket; the id may be given to another from now on.
    fn close(&mut self, socket: SocketId);

    /// Lets go of a socket, open, for another shard to adopt.
    fn release(&mut self, socket: SocketId) -> Option<CarriedSocket>;

    /// Takes in a socket that another shard has released. `None`: it is none of this kind.
    fn adopt(&mut self, carried: CarriedSocket) -> Option<SocketId>;

    /// Closes the listener, if it is open: clients that were not accepted are refused.
    fn stop_listening(&mut self);
}

/// An event of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Clients wait to be accepted.
    Listener,
    /// Something happened to a connection.
    Connection {
        /// Which; it may be gone by now.
        token: ConnectionToken,
        /// Bytes, an end or an error wait to be read.
        readable: bool,
        /// It takes bytes (again).
        writable: bool,
        /// That it ends: read on until the end is found.
        end: Option<SocketEnd>,
    },
}

/// The result of polling the listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// A client, where it comes from, and to which listener.
    Client(SocketId, SocketAddr, ListenerKind),
    /// A client that had gone before it was accepted; look again.
    Gone,
    /// No client is waiting.
    Nobody,
    /// There is no descriptor for it; it waits on.
    NoRoom,
}

/// The result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketRead {
    /// This many bytes, at least one, now at the start of the buffer.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The peer has ended its side, and everything before was read; or nothing can be read any more.
    End(SocketEnd),
}

/// The limits of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnLimits {
    /// The work it may do.
    pub work: WorkLimits,
    /// Orders.
    pub commands_max: usize,
    /// Bytes of payload that they stand for: about as many as one window holds.
    pub command_bytes_max: u64,
    /// Reads.
    pub reads_max: usize,
}

impl Default for TurnLimits {
    fn default() -> Self {
        Self { work: WorkLimits::default(), commands_max: 1024, command_bytes_max: 1024 * 1024, reads_max: 256 }
    }
}

/// The work that a client may cause by one turn of reading while others wait: some reads of a few frames each.
const READ_CREDIT_NS: i64 = 10_000;

/// See the module.
pub struct Turns<S> {
    shard: Shard,
    orders: Producers<Command, Unfinished>,
    sockets: S,
    limits: TurnLimits,
    calibration: Calibration,
    /// By place in the shard's table, which is dense.
    marks: Vec<ReadMark>,
    /// Connections to read in this turn or the next ones; each stands here once.
    readable: ReadQueue,
    /// Those of them that shake hands, apart from others.
    handshake_queue: HandshakeQueue,
    accept_pending: bool,
    accept_pause_until_ms: u64,
    /// The last poll may not have told all.
    news_left: bool,
    /// The shard was called by another thread in this turn.
    called: bool,
    ticked_ms: u64,
    news: Vec<Readiness>,
    /// Actions just taken from the shard, and those that are put off.
    effects: Vec<Effect>,
    put_off: VecDeque<Effect>,
    buffer: Vec<u8>,
    peers: PeerShards,
}

/// The inboxes of all shards, by number; empty until all have started.
pub type Inboxes = Arc<OnceLock<Vec<InboxSender<Command>>>>;

/// The other shards, as one hands connections to them.
#[derive(Default)]
struct PeerShards {
    inboxes: Inboxes,
    accounts: Vec<Account>,
}

impl PeerShards {
    /// Returns whether shard `to` has taken it; else the connection is lost, and its client comes again.
    fn send(&mut self, to: u32, command: Command) -> bool {
        let Some(inboxes) = self.inboxes.get() else { return false };
        if self.accounts.is_empty() {
            self.accounts = inboxes.iter().map(InboxSender::account).collect();
        }
        let bytes = command.payload_bytes();
        let to = to as usize;
        inboxes.get(to).is_some_and(|inbox| inbox.try_send(command, bytes, &self.accounts[to]).is_ok())
    }
}

/// The pending read of the connection at one place.
#[derive(Clone, Copy, Default)]
struct ReadMark {
    /// The connection that this is about.
    generation: u32,
    /// It stands in the list of those to read.
    is_queued: bool,
    /// Go on until there is nothing left, however short a read is: an end may wait behind the bytes.
    to_the_end: bool,
    /// The work that reading it may still cause before others are read; below zero, its excess. A client with nothing
    /// to read saves no credit, and keeps its debt.
    credit_ns: i64,
}

/// A shard that executes orders within a turn, and takes in the connections that they bring from other shards.
struct ShardOrderServer<'a, S> {
    shard: &'a mut Shard,
    sockets: &'a mut S,
    now_ms: u64,
    until_ns: u64,
}

impl<S: Sockets> OrderServer<Command, Unfinished> for ShardOrderServer<'_, S> {
    fn has_room(&self) -> bool {
        self.shard.has_room(self.until_ns)
    }

    fn execute(&mut self, order: OrderOrRest<Command, Unfinished>, slice_ns: u64) -> (u64, Option<Unfinished>) {
        let before_ns = self.shard.spent_ns();
        let rest = self.shard.execute(order, slice_ns.min(self.until_ns.saturating_sub(before_ns)));
        for (carried, arrival) in self.shard.take_arrivals() {
            if let Some(socket) = self.sockets.adopt(carried) {
                self.shard.handle_arrival(socket, *arrival, self.now_ms);
            }
        }
        self.shard.spend_wakes();
        (self.shard.spent_ns() - before_ns, rest)
    }
}

impl<S: Sockets> Turns<S> {
    /// The turns of `shard`, which has just been made at `now_ms` of its clock and `unix_ms` of the day's.
    pub fn new(
        mut shard: Shard,
        inbox: Inbox<Command>,
        sockets: S,
        limits: TurnLimits,
        now_ms: u64,
        unix_ms: u64,
    ) -> Self {
        shard.set_unix_ms(unix_ms, now_ms);
        Self {
            shard,
            orders: Producers::new(inbox),
            sockets,
            limits,
            calibration: Calibration::default(),
            marks: Vec::new(),
            readable: ReadQueue::default(),
            handshake_queue: HandshakeQueue::default(),
            accept_pending: false,
            accept_pause_until_ms: 0,
            news_left: false,
            called: false,
            ticked_ms: now_ms,
            news: Vec::new(),
            effects: Vec::new(),
            put_off: VecDeque::new(),
            buffer: vec![0; READ_BYTES_MAX + RECORD_BYTES_MAX],
            peers: PeerShards::default(),
        }
    }

    /// These are the inboxes of all shards, once there are any: clients come back on any shard for channels of others.
    #[must_use]
    pub fn among(self, inboxes: Inboxes) -> Self {
        Self { peers: PeerShards { inboxes, accounts: Vec::new() }, ..self }
    }

    /// One turn, at `now_ms` of the shard's clock; the time of day in milliseconds is asked for once a tick. Returns
    /// whether there is more to do at once.
    ///
    /// # Errors
    /// The shard cannot go on without its sockets.
    pub fn turn(&mut self, now_ms: u64, unix_ms: impl FnOnce() -> u64) -> Result<bool, S::Error> {
        let work = self.calibration.within(self.limits.work);
        self.shard.begin_turn(now_ms);
        self.take_news()?;
        self.accept(now_ms, work.begin_ns / 2)?;
        self.tick(now_ms, work.begin_ns, unix_ms);
        self.take_orders(now_ms, work.orders_until_ns(self.shard.spent_ns()));
        self.shard.begin_reads(work.handlers_ns);
        self.read(now_ms, self.shard.spent_ns() + work.reads_ns);
        self.shake_hands(now_ms);
        let at_once_ns = self.shard.end_reads();
        let handlers_ns = work.handlers_ns.saturating_sub(at_once_ns);
        self.shard.run_handlers(self.shard.spent_ns() + handlers_ns, self.called);
        self.put_off_effects();
        self.shard.flush_within(work.batch_ns(self.shard.spent_ns()));
        self.carry_out_effects();
        self.shard.end_turn_within(self.shard.spent_ns() + work.resumes_ns);
        self.put_off_effects();
        self.carry_out_put_off(self.shard.spent_ns() + work.effects_ns);
        Ok(self.has_more(now_ms))
    }

    /// The last turn took so much time on its thread's processor. Where that is more than the turn was counted as, the
    /// next ones take in less.
    pub fn note_turn(&mut self, cpu_ns: u64) {
        self.calibration.note(self.shard.spent_ns(), cpu_ns);
        self.shard.timings().note_turn(cpu_ns);
    }

    /// The shard's timings of the last turn.
    pub fn timings(&mut self) -> &mut Timings {
        self.shard.timings()
    }

    /// The shard, to look at.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Its sockets.
    pub fn sockets(&mut self) -> &mut S {
        &mut self.sockets
    }

    /// Returns whether the shard was told to stop and has let go of its last connection. Then its inbox takes no more.
    pub fn is_over(&mut self) -> bool {
        let is_over = self.shard.is_stopped() && self.put_off.is_empty();
        if is_over {
            self.shard.run_handlers_last();
            self.orders.inbox().stop();
        }
        is_over
    }

    /// The sockets whose connections are gone, and which a later turn closes.
    pub fn closes_put_off(&self) -> impl Iterator<Item = SocketId> {
        self.put_off.iter().filter_map(|effect| match effect {
            Effect::Close(socket) => Some(*socket),
            _ => None,
        })
    }

    /// The shard, for callers that still need it; its sockets and its inbox are dropped.
    pub fn into_shard(self) -> Shard {
        let Self { mut shard, orders, .. } = self;
        // The rest of a begun order releases its payload first.
        drop(orders);
        shard.note_inbox(0);
        shard.withdraw();
        shard
    }

    /// To be called before the thread waits for news or a wake; false: go on instead, something has come in.
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        self.orders.inbox().prepare_sleep()
    }

    /// To be called when the thread is awake again.
    pub fn awake(&mut self) {
        self.orders.inbox().awake();
    }

    fn has_more(&self, now_ms: u64) -> bool {
        self.shard.wants_flush()
            || self.shard.goes_on()
            || !self.readable.is_empty()
            || !self.handshake_queue.is_empty()
            || (self.accept_pending && self.may_accept(now_ms))
            || self.news_left
            || !self.put_off.is_empty()
            || self.orders.has_orders()
    }

    fn tick(&mut self, now_ms: u64, until_ns: u64, unix_ms: impl FnOnce() -> u64) {
        if now_ms >= self.ticked_ms + TICK_MS {
            self.ticked_ms = now_ms;
            self.shard.set_unix_ms(unix_ms(), now_ms);
            self.shard.tick_within(now_ms, until_ns);
        } else {
            self.shard.look_at_due(until_ns);
        }
    }

    fn take_news(&mut self) -> Result<(), S::Error> {
        self.news.clear();
        self.news_left = self.sockets.poll(&mut self.news)?;
        for at in 0..self.news.len() {
            match self.news[at] {
                Readiness::Listener => self.accept_pending = true,
                Readiness::Connection { token, readable, writable, end } => {
                    if writable {
                        self.shard.spend(LOOK_NS);
                        self.shard.handle_writable(token);
                    }
                    if let Some(end) = end {
                        self.shard.handle_hangup(token, end);
                    }
                    if readable || end.is_some() {
                        self.queue_read(token, end.is_some(), true);
                    }
                }
            }
        }
        Ok(())
    }

    fn may_accept(&self, now_ms: u64) -> bool {
        self.shard.is_open() && now_ms >= self.accept_pause_until_ms
    }

    fn accept(&mut self, now_ms: u64, until_ns: u64) -> Result<(), S::Error> {
        if !self.may_accept(now_ms) {
            return Ok(());
        }
        while self.accept_pending && self.shard.spent_ns() < until_ns {
            match self.sockets.accept()? {
                Accepted::Client(socket, peer, listener) => {
                    match self.shard.handle_accept_at(listener, socket, peer, now_ms) {
                        Some(token) => {
                            if !self.sockets.watch(socket, token) {
                                self.shard.handle_end(token, SocketEnd::Broken, now_ms);
                            }
                        }
                        // Let go without a word.
                        None => self.sockets.close(socket),
                    }
                }
                Accepted::Gone => {}
                Accepted::Nobody => self.accept_pending = false,
                Accepted::NoRoom => {
                    self.accept_pause_until_ms = now_ms + NO_ROOM_PAUSE_MS;
                    break;
                }
            }
        }
        Ok(())
    }

    fn take_orders(&mut self, now_ms: u64, until_ns: u64) {
        self.called = self.orders.inbox().take_kick();
        if self.called {
            self.shard.handle_call();
        }
        self.shard.note_inbox(self.orders.bytes());
        // What comes from now on is the next turn's: before it sleeps, the shard looks again.
        if self.orders.has_orders() {
            let Self { shard, sockets, .. } = self;
            let mut server = ShardOrderServer { shard, sockets, now_ms, until_ns };
            self.orders.serve(self.limits.commands_max, self.limits.command_bytes_max, &mut server);
            self.shard.note_inbox(self.orders.bytes());
        }
        if self.shard.is_stopping() {
            self.sockets.stop_listening();
            self.accept_pending = false;
        }
        if cfg!(debug_assertions) {
            self.orders.check();
        }
    }

    /// Connections that go on on other shards.
    fn hand_over(&mut self) {
        if !self.shard.hands_over() {
            return;
        }
        for Handover { socket, to, arrival } in self.shard.take_handovers() {
            if let Some(carried) = self.sockets.release(socket) {
                // A client that is not taken sees its connection end, and returns with the same token.
                self.peers.send(to, Command::Arrive(carried, arrival));
            }
        }
        for (to, gone) in self.shard.take_evicted() {
            // Where it is not told it waits on, counted no more, until its window ends: it has no connection.
            self.peers.send(to, Command::Evict(gone));
        }
        for RelayedOrder { to, request, command } in self.shard.take_relayed() {
            if !self.peers.send(to, command) {
                self.shard.relay_failed(request);
            }
        }
    }

    /// Reads those that are ready, each for as much work as any other.
    fn read(&mut self, now_ms: u64, until_ns: u64) {
        let mut reads = 0;
        while reads < self.limits.reads_max
            && self.shard.spent_ns() - self.shard.inflated_ns() - self.shard.at_once_ns() < until_ns
            && let Some(token) = self.readable.pop()
        {
            let Some(socket) = self.shard.socket(token) else { continue };
            let mark = mark_of(&mut self.marks, token);
            let must_wait = self.shard.must_wait_to_inflate(token);
            if !must_wait {
                mark.credit_ns += READ_CREDIT_NS;
            }
            if must_wait || mark.credit_ns <= 0 {
                self.readable.push(token);
                self.shard.spend(PASS_NS);
                continue;
            }
            mark.is_queued = false;
            reads += 1;
            // A handler's work for its messages is charged to the handler.
            let before_ns = self.shard.spent_ns() - self.shard.at_once_ns();
            self.read_one(token, socket, now_ms);
            self.shard.spend_wakes();
            let cost_ns =
                i64::try_from(self.shard.spent_ns() - self.shard.at_once_ns() - before_ns).unwrap_or(i64::MAX / 2);
            let mark = mark_of(&mut self.marks, token);
            mark.credit_ns = (mark.credit_ns - cost_ns).min(if mark.is_queued { READ_CREDIT_NS } else { 0 });
        }
    }

    /// Reads those that shake hands, an address after another, for as much work as handshakes of one turn may be.
    fn shake_hands(&mut self, now_ms: u64) {
        let until_ns = self.shard.spent_ns() + self.shard.handshakes_ns();
        while self.shard.spent_ns() < until_ns
            && let Some(token) = self.handshake_queue.pop()
        {
            let Some(socket) = self.shard.socket(token) else { continue };
            mark_of(&mut self.marks, token).is_queued = false;
            self.read_one(token, socket, now_ms);
            self.shard.shake_on(token);
        }
    }

    fn read_one(&mut self, token: ConnectionToken, socket: SocketId, now_ms: u64) {
        let (carried, bytes_max) = if self.shard.is_read_plainly(token) {
            (0, READ_SLICE_BYTES)
        } else if self.shard.wants_read(token) {
            (self.shard.carried(token, &mut self.buffer), self.shard.read_bytes_max(token).min(READ_BYTES_MAX))
        } else {
            return;
        };
        match self.sockets.read(socket, &mut self.buffer[carried..carried + bytes_max]) {
            SocketRead::Bytes(count) => {
                let to_the_end = mark_of(&mut self.marks, token).to_the_end;
                self.shard.handle_read(token, &mut self.buffer[..carried + count], now_ms);
                // Edge-triggered: epoll reports remaining bytes no more. A short read has emptied the socket, but does
                // not show an end after the bytes.
                if count == bytes_max || to_the_end {
                    self.queue_read(token, to_the_end, false);
                }
            }
            SocketRead::Nothing => {
                self.shard.spend(READ_NS);
                mark_of(&mut self.marks, token).to_the_end = false;
            }
            SocketRead::End(end) => {
                self.shard.spend(READ_NS);
                self.shard.handle_end(token, end, now_ms);
            }
        }
    }

    /// Does what the shard wants done to its sockets now that a batch has been sent: with the last bytes of a stream
    /// goes its end. It is as much as the batch is.
    fn carry_out_effects(&mut self) {
        if !self.shard.has_effects() {
            return;
        }
        let mut effects = std::mem::take(&mut self.effects);
        self.shard.take_effects(&mut effects);
        effects.drain(..).for_each(|effect| self.carry_out(effect));
        self.effects = effects;
    }

    /// Notes what the shard wants done to its sockets otherwise. Of one socket it stays in order: of those with
    /// something to do here none has anything more to send.
    fn put_off_effects(&mut self) {
        self.hand_over();
        if !self.shard.has_effects() {
            return;
        }
        let mut effects = std::mem::take(&mut self.effects);
        self.shard.take_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Read(_) | Effect::Watch(..) | Effect::Abandon(_) => self.carry_out(effect),
                Effect::ShutdownWrite(_) | Effect::Close(_) => self.put_off.push_back(effect),
            }
        }
        self.effects = effects;
    }

    /// Does what was put off, until the turn has cost so much.
    fn carry_out_put_off(&mut self, until_ns: u64) {
        while self.shard.spent_ns() < until_ns
            && let Some(effect) = self.put_off.pop_front()
        {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Read(token) => return self.queue_read(token, true, false),
            Effect::Watch(socket, token) => {
                if !self.sockets.watch_anew(socket, token) {
                    self.shard.handle_end(token, SocketEnd::Broken, self.shard.now_ms());
                }
            }
            Effect::ShutdownWrite(socket) => self.sockets.shutdown_write(socket),
            Effect::Close(socket) | Effect::Abandon(socket) => {
                self.sockets.close(socket);
                // There is room for one of those that wait.
                self.accept_pause_until_ms = 0;
            }
        }
        self.shard.spend(EFFECT_NS);
    }

    /// Puts a connection into the list of those to read, unless it stands there already or is gone. It is news where
    /// its socket was empty.
    fn queue_read(&mut self, token: ConnectionToken, to_the_end: bool, is_news: bool) {
        if self.shard.socket(token).is_none() {
            return;
        }
        let mark = mark_of(&mut self.marks, token);
        mark.to_the_end |= to_the_end;
        if std::mem::replace(&mut mark.is_queued, true) {
            return;
        }
        let is_fresh = is_news && mark.credit_ns >= 0;
        match self.shard.shaking_client(token) {
            Some(client) => self.handshake_queue.push(client, token),
            None if is_fresh => self.readable.push_fresh(token),
            None => self.readable.push(token),
        }
    }
}

/// The mark of a live connection; a new one starts with a blank one.
fn mark_of(marks: &mut Vec<ReadMark>, token: ConnectionToken) -> &mut ReadMark {
    let place = token.slot as usize;
    if marks.len() <= place {
        marks.resize_with(place + 1, ReadMark::default);
    }
    let mark = &mut marks[place];
    if mark.generation != token.generation {
        *mark = ReadMark { generation: token.generation, ..ReadMark::default() };
    }
    mark
}

#[cfg(test)]
#[path = "turn_tests.rs"]
mod tests;
