//! One shard's thread at work: what the kernel reports goes into the shard, what the shard wants goes to the kernel.
//!
//! The pump works in turns: take in a bounded number of commands, readiness events, clients and reads; send one batch;
//! hand events on. Under load it goes from turn to turn without a pause, so what arrives meanwhile is handled and merged in
//! the next; each part of a turn is bounded, so none starves another. With nothing to do it arms the inbox's wake flag
//! and sleeps in monoio until its ready set reports: the eventfd of the inbox, the listener and all connections are in
//! that one set, so there is one place to wait and no task per connection.
//!
//! Invariants: descriptors are owned here and closed here; a connection that we do not read is remembered by the shard;
//! the clock is read here and nowhere below.

use super::clock::Clock;
use super::epoll::{Events, ReadySet};
use super::listen::BACKLOG;
use super::sys::{self, Accepted, Received};
use super::wake::WakeFd;
use crate::queue::orders::{Inbox, Wake};
use crate::shard::command::Command;
use crate::shard::flush::SocketId;
use crate::shard::{Effect, Shard, TICK_MS, Token};
use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Commands and payload bytes taken in per turn: about as much as one window holds.
const TURN_COMMANDS_MAX: usize = 1024;
const TURN_COMMAND_BYTES_MAX: u64 = 1024 * 1024;

/// Reads per turn: at about 2 µs each, as long as half a batch of sends.
const TURN_READS_MAX: usize = 256;

/// Clients accepted per turn, at some 10 µs each.
const TURN_ACCEPTS_MAX: usize = 64;

/// Readiness events taken from the kernel at a time.
const TURN_EVENTS_MAX: usize = 512;

/// One read. What does not fit is read in the next turn, after everybody else.
const READ_BYTES_MAX: usize = 64 * 1024;

/// How long to let a full descriptor table be, unless we close something ourselves.
const NO_ROOM_PAUSE_MS: u64 = 200;

/// How often that is said: clients that come and go at the limit could fill the log.
const NO_ROOM_SAID_EVERY_MS: u64 = 60_000;

/// Tokens of what is no connection: generations start at 1.
const TOKEN_WAKE: u64 = 0;
const TOKEN_LISTENER: u64 = 1;

/// See the module.
pub struct Pump {
    shard: Shard,
    inbox: Inbox<Command>,
    listener: Option<TcpListener>,
    wake: Arc<WakeFd>,
    ready: ReadySet,
    events: Events,
    /// By number: what the kernel counts up from 0, so this is dense.
    sockets: Vec<Option<Watched>>,
    /// Connections to read in this turn or the next ones; each stands here once.
    readable: VecDeque<Token>,
    accept_pending: bool,
    accept_pause_until_ms: u64,
    /// When there was last said to be no descriptor for a client.
    no_room_said_ms: Option<u64>,
    buffer: Vec<u8>,
    effects: Vec<Effect>,
    clock: Clock,
    ticked_ms: u64,
}

/// A socket and what its readiness asks for.
struct Watched {
    socket: OwnedFd,
    /// It stands in the list of those to read.
    queued: bool,
    /// Go on until there is nothing left, however short a read is: an end may wait behind the bytes.
    to_the_end: bool,
}

impl Pump {
    /// A pump for `shard`, which has just been made on `clock`.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(
        shard: Shard,
        inbox: Inbox<Command>,
        listener: TcpListener,
        wake: Arc<WakeFd>,
        clock: Clock,
    ) -> io::Result<Self> {
        let ready = ReadySet::new()?;
        ready.add_source(&*wake, TOKEN_WAKE)?;
        ready.add_source(&listener, TOKEN_LISTENER)?;
        let mut pump = Self {
            shard,
            inbox,
            listener: Some(listener),
            wake,
            ready,
            events: Events::with_capacity(TURN_EVENTS_MAX),
            sockets: Vec::new(),
            readable: VecDeque::new(),
            accept_pending: false,
            accept_pause_until_ms: 0,
            no_room_said_ms: None,
            buffer: vec![0; READ_BYTES_MAX],
            effects: Vec::new(),
            clock,
            ticked_ms: 0,
        };
        pump.tick(clock.now_ms());
        Ok(pump)
    }

    /// Runs until the shard has been told to stop and has let go of its last connection. Inside a monoio runtime.
    ///
    /// # Errors
    /// The kernel refused what a healthy process never is: the shard cannot go on.
    pub async fn run(mut self) -> io::Result<()> {
        let waiter = self.ready.waiter()?;
        let wake = self.wake.clone();
        // While the pump sleeps, this is its clock.
        let ticker = async move {
            loop {
                monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
                wake.wake();
            }
        };
        monoio::spawn(ticker);
        loop {
            let busy = self.turn()?;
            if self.shard.is_stopped() {
                self.inbox.stop();
                return Ok(());
            }
            if !busy && self.inbox.prepare_sleep() {
                waiter.ready().await?;
                self.inbox.awake();
            }
        }
    }

    /// One turn. Answers whether there is more to do at once.
    fn turn(&mut self) -> io::Result<bool> {
        let now_ms = self.clock.now_ms();
        if now_ms >= self.ticked_ms + TICK_MS {
            self.tick(now_ms);
        }
        self.take_commands(now_ms);
        self.take_events()?;
        self.accept(now_ms)?;
        self.read(now_ms);
        self.shard.flush();
        self.shard.end_turn();
        self.carry_out();
        let accepts = self.accept_pending && now_ms >= self.accept_pause_until_ms;
        Ok(self.shard.wants_flush()
            || self.shard.is_turn_full()
            || self.shard.goes_on()
            || !self.readable.is_empty()
            || accepts
            || self.events.is_full()
            || !self.inbox.is_empty())
    }

    fn tick(&mut self, now_ms: u64) {
        self.ticked_ms = now_ms;
        // A clock before 1970 only makes tokens look valid that expired long ago; it is the operator's to set.
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.shard.set_unix_ms(unix.as_millis() as u64, now_ms);
        self.shard.handle_tick(now_ms);
    }

    fn take_commands(&mut self, now_ms: u64) {
        let shard = &mut self.shard;
        self.inbox.take_kick();
        shard.note_inbox(self.inbox.bytes());
        // What waits for its first send goes out before more is taken in.
        if !shard.is_turn_full() {
            self.inbox.drain_while(TURN_COMMANDS_MAX, TURN_COMMAND_BYTES_MAX, |command| {
                shard.handle_command(command, now_ms);
                !shard.is_turn_full()
            });
        }
        if shard.is_stopping() {
            self.listener = None;
        }
    }

    fn take_events(&mut self) -> io::Result<()> {
        self.ready.poll(&mut self.events)?;
        for event in self.events.iter() {
            match event.token {
                TOKEN_WAKE => {}
                TOKEN_LISTENER => self.accept_pending = true,
                token => {
                    let token = Token::from_u64(token);
                    if event.writable {
                        self.shard.handle_writable(token);
                    }
                    if event.readable || event.hangup || event.error {
                        let to_the_end = event.hangup || event.error;
                        queue_read(&self.shard, &mut self.sockets, &mut self.readable, token, to_the_end);
                    }
                }
            }
        }
        self.accept_pending &= self.listener.is_some();
        Ok(())
    }

    fn accept(&mut self, now_ms: u64) -> io::Result<()> {
        if !self.accept_pending || now_ms < self.accept_pause_until_ms {
            return Ok(());
        }
        let Some(listener) = &self.listener else { return Ok(()) };
        for _ in 0..TURN_ACCEPTS_MAX {
            match sys::accept(listener)? {
                Accepted::Client(socket, peer) => {
                    let id = sys::socket_id(&socket);
                    // Dropped: let go without a word.
                    let Some(token) = self.shard.handle_accept(id, peer, now_ms) else { continue };
                    let watched = self.ready.add(&socket, token.to_u64());
                    let place = id.0 as usize;
                    if self.sockets.len() <= place {
                        self.sockets.resize_with(place + 1, || None);
                    }
                    self.sockets[place] = Some(Watched { socket, queued: false, to_the_end: false });
                    if let Err(error) = watched {
                        tracing::warn!(%error, "a client was let go: its socket cannot be watched");
                        self.shard.handle_end(token, now_ms);
                    }
                }
                Accepted::Gone => {}
                Accepted::Nobody => {
                    self.accept_pending = false;
                    break;
                }
                Accepted::NoRoom(error) => {
                    let is_said = |said_ms| now_ms < said_ms + NO_ROOM_SAID_EVERY_MS;
                    if !self.no_room_said_ms.is_some_and(is_said) {
                        self.no_room_said_ms = Some(now_ms);
                        tracing::warn!(%error, backlog = BACKLOG, "no room for more clients; they wait in the backlog");
                    }
                    self.accept_pause_until_ms = now_ms + NO_ROOM_PAUSE_MS;
                    break;
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, now_ms: u64) {
        for _ in 0..TURN_READS_MAX.min(self.readable.len()) {
            let Some(token) = self.readable.pop_front() else { break };
            if self.shard.must_wait_to_inflate(token) {
                self.readable.push_back(token);
                continue;
            }
            let Some(watched) = self.shard.socket(token).and_then(|id| self.sockets[id.0 as usize].as_mut()) else {
                continue;
            };
            watched.queued = false;
            if !self.shard.wants_read(token) {
                continue;
            }
            match sys::receive(&watched.socket, &mut self.buffer) {
                Ok(Received::Bytes(count)) => {
                    let to_the_end = watched.to_the_end;
                    self.shard.handle_read(token, &mut self.buffer[..count], now_ms);
                    // Edge-triggered: what is left now is reported by nobody. A short read has emptied the socket,
                    // but does not tell of an end behind the bytes.
                    if count == self.buffer.len() || to_the_end {
                        queue_read(&self.shard, &mut self.sockets, &mut self.readable, token, to_the_end);
                    }
                }
                Ok(Received::Nothing) => watched.to_the_end = false,
                Ok(Received::End) | Err(_) => self.shard.handle_end(token, now_ms),
            }
        }
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        self.shard.take_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Read(token) => {
                    queue_read(&self.shard, &mut self.sockets, &mut self.readable, token, true);
                }
                Effect::ShutdownWrite(socket) => {
                    if let Some(socket) = self.socket(socket) {
                        // The peer may have gone already; the next read finds that out.
                        let _ = sys::shutdown_write(socket);
                    }
                }
                Effect::Close(SocketId(number)) => {
                    drop(self.sockets[number as usize].take());
                    // There is room for one of those that wait.
                    self.accept_pause_until_ms = 0;
                }
            }
        }
        self.effects = effects;
    }

    fn socket(&self, id: SocketId) -> Option<&OwnedFd> {
        Some(&self.sockets.get(id.0 as usize)?.as_ref()?.socket)
    }
}

/// Puts a connection into the list of those to read, unless it stands there already.
fn queue_read(
    shard: &Shard,
    sockets: &mut [Option<Watched>],
    readable: &mut VecDeque<Token>,
    token: Token,
    to_the_end: bool,
) {
    let Some(watched) = shard.socket(token).and_then(|id| sockets[id.0 as usize].as_mut()) else { return };
    watched.to_the_end |= to_the_end;
    if !std::mem::replace(&mut watched.queued, true) {
        readable.push_back(token);
    }
}
