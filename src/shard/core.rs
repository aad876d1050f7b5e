//! The shard itself: its tables, and the doors through which the driver calls it.
//!
//! The driver calls `handle_*` with what happened, then [`Shard::flush`] until it answers that nothing waits, then
//! [`Shard::end_turn`], and carries out the [`Effect`]s. All of it is synchronous; `now_ms` is an argument.
//!
//! Invariants:
//! - only this shard changes its connections and channels;
//! - every channel gives its owner exactly one Opened and one Closed;
//! - nothing here waits for a client.

use super::command::{Acknowledge, Command};
use super::config::Config;
use super::disconnects::Disconnects;
use super::event::Event;
use super::flush::{Flush, SocketId};
use super::memory::Memory;
use super::operating::Draining;
use super::stats::Stats;
use crate::admission;
use crate::channel::{ChannelId, ChannelIdMint};
use crate::gateway::OwnerId;
use crate::http::Date;
use crate::proto::Scratch;
use crate::proto::deflate::Deflater;
use crate::queue::events::Batch;
use crate::shard::out::deflate::Contexts;
use crate::shard::out::outbound::Spares;
use crate::shard::out::sending::{Waiting, Watches};
use crate::shard::out::window::Window;
use crate::shard::owners::directory::{Directory, Owner};
use crate::shard::owners::grants::Grants;
use crate::shard::owners::owner::LocalOwner;
use crate::shard::table::connection::{Connection, Flags, Token};
use crate::shard::table::wheel::{Entry, Wheel};
use bytes::BytesMut;
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;

/// Frames that are put behind what waits for a channel in one turn, at some 15 ns each: half as long as a batch of sends.
const TURN_OFFERS_MAX: usize = 32 * 1024;

/// Events for which a batch has room before there are any, at 80 bytes each.
const EVENTS_EXPECTED_MAX: usize = 4096;

/// What the driver must do for the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Shut the writing side of this socket: the client sees the end of our bytes.
    ShutdownWrite(SocketId),
    /// Close this socket. Nothing of the connection is left here.
    Close(SocketId),
    /// Read this connection again: the driver held its readiness back, or the shard did.
    Read(Token),
}

/// What all shards of a broker begin with.
#[derive(Debug, Clone)]
pub struct Common {
    /// The numbers that they obey.
    pub config: Arc<Config>,
    /// Who is attached.
    pub directory: Arc<Directory>,
    /// How many have connected to all of them.
    pub admission: Arc<admission::Connections>,
    /// How much memory their clients and processes may take.
    pub memory: admission::Budget,
}

/// One shard. See the module.
pub struct Shard {
    pub(super) index: u32,
    pub(super) config: Arc<Config>,
    pub(super) directory: Arc<Directory>,
    pub(super) admission: Arc<admission::Connections>,
    pub(super) now_ms: u64,
    pub(super) connections: Slab<Connection>,
    pub(super) next_generation: u32,
    pub(super) channels: FxHashMap<ChannelId, u32>,
    pub(super) mint: ChannelIdMint,
    pub(super) owners: Slab<LocalOwner>,
    pub(super) owner_places: FxHashMap<OwnerId, u32>,
    /// Owners with a batch that has not been handed over.
    pub(super) owners_touched: Vec<u32>,
    /// Whether there is an Opened in those batches.
    pub(super) opened_untold: bool,
    /// Owners with connections that wait for room in their queue.
    pub(super) owners_full: Vec<u32>,
    /// Orders of a batch that did not fit the turn.
    pub(super) put_off: VecDeque<Command>,
    /// Frames offered to channels in this turn.
    pub(super) turn_offers: usize,
    /// What compressed messages of this turn came to.
    pub(super) turn_inflated_bytes: usize,
    /// Clients that were paused have gone on in this turn, and may have filled their process' queue again: the room that
    /// is left there is to be looked at in the next.
    goes_on: bool,
    pub(super) window: Window,
    pub(super) spares: Spares,
    pub(super) memory: Memory,
    pub(super) waiting: Waiting,
    pub(super) watches: Watches,
    pub(super) grants: Grants,
    /// The channels that the broadcast in progress reaches; empty between broadcasts.
    pub(super) audience: Vec<u32>,
    pub(super) deflater: Deflater,
    pub(super) contexts: Contexts,
    pub(super) flusher: Box<dyn Flush>,
    pub(super) effects: Vec<Effect>,
    pub(super) wheel: Wheel,
    pub(super) ticked_ms: u64,
    /// How much the last tick came after the one before, if that was too much ([`crate::shard::table::deadlines`]); else 0.
    pub(super) late_ms: u64,
    pub(super) due: Vec<Entry>,
    pub(super) scratch: Option<Box<Scratch>>,
    /// Small messages of one turn lie here side by side until their processes have read them.
    pub(super) arena: BytesMut,
    pub(super) stats: Stats,
    pub(super) disconnects: Disconnects,
    pub(super) rng: u64,
    /// Seconds since 1970, for tokens and dates.
    pub(super) unix_s: u64,
    /// The time of day less the shard's own time, in milliseconds.
    pub(super) unix_ahead_ms: u64,
    pub(super) date: Date,
    /// Set once the broker stops: when everything must be closed.
    pub(super) stop_at_ms: Option<u64>,
    /// Set while a drain goes on, until it stops the shard.
    pub(super) draining: Option<Draining>,
    /// Who waits until every client has been told so.
    pub(super) stop_told: Acknowledge,
}

impl Shard {
    /// Shard `index` of `shards`. `seed` decides where channel ids start and how pings are spread.
    pub fn new(index: u32, shards: u32, common: Common, flusher: Box<dyn Flush>, seed: u64, now_ms: u64) -> Self {
        Self {
            index,
            deflater: Deflater::new(common.config.deflate.level.into()),
            contexts: Contexts::default(),
            config: common.config,
            directory: common.directory,
            admission: common.admission,
            now_ms,
            connections: Slab::new(),
            next_generation: 0,
            channels: FxHashMap::default(),
            mint: ChannelIdMint::new(index, shards, seed as u32),
            owners: Slab::new(),
            owner_places: FxHashMap::default(),
            owners_touched: Vec::new(),
            opened_untold: false,
            owners_full: Vec::new(),
            put_off: VecDeque::new(),
            turn_offers: 0,
            turn_inflated_bytes: 0,
            goes_on: false,
            window: Window::default(),
            spares: Spares::default(),
            memory: Memory::new(common.memory),
            waiting: Waiting::default(),
            watches: Watches::default(),
            grants: Grants::default(),
            audience: Vec::new(),
            flusher,
            effects: Vec::new(),
            wheel: Wheel::new(now_ms),
            ticked_ms: now_ms,
            late_ms: 0,
            due: Vec::new(),
            scratch: Some(Box::default()),
            arena: BytesMut::new(),
            stats: Stats::default(),
            disconnects: Disconnects::default(),
            rng: seed | 1,
            unix_s: 0,
            unix_ahead_ms: 0,
            date: Date::at(0),
            stop_at_ms: None,
            draining: None,
            stop_told: None,
        }
    }

    /// Sets the time of day, for tokens and dates; deadlines do not know it.
    pub fn set_unix_ms(&mut self, unix_ms: u64, now_ms: u64) {
        self.unix_s = unix_ms / 1000;
        self.unix_ahead_ms = unix_ms.wrapping_sub(now_ms);
        self.date.advance(self.unix_s);
    }

    /// What happens from now on happens at `now_ms`.
    pub fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// An order from elsewhere.
    pub fn handle_command(&mut self, command: Command, now_ms: u64) {
        self.now_ms = now_ms;
        match command {
            Command::Batch(commands) => {
                // Whoever calls again in a full turn wants more done; order holds all the same.
                if self.put_off.is_empty() {
                    self.put_off = commands.into();
                } else {
                    self.put_off.extend(commands);
                }
                self.obey_put_off();
            }
            command => {
                while let Some(before) = self.put_off.pop_front() {
                    self.obey(before);
                }
                self.obey(command);
            }
        }
    }

    /// Obeys the orders of a batch as long as the turn has room.
    fn obey_put_off(&mut self) {
        while (self.turn_offers < TURN_OFFERS_MAX && !self.is_window_full())
            && let Some(command) = self.put_off.pop_front()
        {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        self.stats.commands += 1;
        match command {
            Command::Batch(_) => unreachable!("batches hold no batches"),
            Command::Push(push) => self.push(push),
            Command::PushMany(many) => self.push_many(*many),
            Command::PushAsGuest(push) => self.push_as_guest(*push),
            Command::Grant(grant) => self.grant(*grant),
            Command::Close(close) => self.close_by_process(*close),
            Command::Respond(respond) => self.respond(*respond),
            Command::Adopt(directory, acknowledge) => self.adopt(directory, acknowledge),
            Command::OwnerGone { owner, why } => self.owner_gone(owner, &why),
            // Whoever asked may have gone meanwhile.
            Command::Report(to) => drop(to.send(self.report())),
            Command::Disconnects(to) => drop(to.send(self.disconnects.to_vec())),
            Command::Channels { filter, from, limit, to } => {
                drop(to.send(self.channel_page(&filter, from, limit)));
            }
            Command::Processes(to) => drop(to.send(self.channels_by_process())),
            Command::Reconfigure(config) => self.reconfigure(config),
            Command::Drain(drain) => self.drain(*drain),
            Command::Stop { within_ms, told } => self.stop(within_ms, told),
        }
    }

    /// The socket takes bytes again.
    pub fn handle_writable(&mut self, token: Token) {
        let Some(slot) = self.resolve(token) else { return };
        let connection = &mut self.connections[slot as usize];
        if connection.outbound.is_blocked() {
            // Its client has taken bytes, so it lives, however far behind it is: a ping may stand behind all of them.
            connection.heard(self.now_ms);
            connection.outbound.unblock();
            self.mark_urgent(slot);
        }
    }

    /// Hands the events of this turn to their processes and lets clients go on that waited for room. Call it once a
    /// turn, after what came in was handled.
    pub fn end_turn(&mut self) {
        self.turn_offers = 0;
        self.turn_inflated_bytes = 0;
        self.obey_put_off();
        self.hand_over();
        // What clients that go on have sent is handed over too. Once: with a process that takes it at once, clients whose
        // few bytes mean many (compression) could keep us here.
        self.goes_on = self.resume_owners();
        if self.goes_on {
            self.hand_over();
        }
        self.balance_memory();
    }

    pub(super) fn hand_over(&mut self) {
        self.opened_untold = false;
        while let Some(place) = self.owners_touched.pop() {
            let local = &mut self.owners[place as usize];
            if let Some(batch) = local.batch.take() {
                local.events_expected = batch.events.len().min(EVENTS_EXPECTED_MAX);
                // A process that is gone has an OwnerGone on its way to us, which closes its channels.
                local.owner.queue.send(batch);
            }
            self.forget_owner_if_idle(place);
        }
    }

    /// What the driver must do now, in order.
    pub fn take_effects(&mut self, into: &mut Vec<Effect>) {
        into.append(&mut self.effects);
    }

    /// Whether a next turn is wanted at once, though nothing may have come for it.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// Whether what was taken in should be sent before more is: the window is full, the pushes of this turn have reached
    /// so many channels that others have waited long enough, or a batch is not done.
    pub fn is_turn_full(&self) -> bool {
        self.turn_offers >= TURN_OFFERS_MAX || self.is_window_full() || !self.put_off.is_empty()
    }

    fn is_window_full(&self) -> bool {
        self.window.bytes() >= crate::shard::out::sending::WINDOW_BYTES_MAX
    }

    /// Whether the shard was told to stop and has nothing left.
    pub fn is_stopped(&self) -> bool {
        self.stop_at_ms.is_some() && self.connections.is_empty()
    }

    /// Whether the shard closes its channels, by a stop or at the end of a drain: accept nobody any more.
    pub fn is_stopping(&self) -> bool {
        self.stop_at_ms.is_some() || self.drain_closes()
    }

    /// The socket of a live connection.
    pub fn socket(&self, token: Token) -> Option<SocketId> {
        self.resolve(token).map(|slot| self.connections[slot as usize].socket)
    }

    /// Live connections, channels among them.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The place of a live connection.
    pub(super) fn resolve(&self, token: Token) -> Option<u32> {
        let connection = self.connections.get(token.slot as usize)?;
        (connection.generation == token.generation).then_some(token.slot)
    }

    pub(super) fn token(&self, slot: u32) -> Token {
        Token { slot, generation: self.connections[slot as usize].generation }
    }

    /// A number that nobody outside can foresee if the seed was random (xorshift64*).
    pub(super) fn random(&mut self) -> u64 {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        self.rng.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// The owner's place on this shard, made if it has none.
    pub(super) fn owner_place(&mut self, owner: &Arc<Owner>) -> u32 {
        *self.owner_places.entry(owner.id).or_insert_with(|| self.owners.insert(LocalOwner::new(owner.clone())) as u32)
    }

    /// Appends an event to the owner's batch of this turn.
    pub(super) fn emit(&mut self, place: u32, event: Event) {
        let local = &mut self.owners[place as usize];
        let batch = local.batch.get_or_insert_with(|| {
            self.owners_touched.push(place);
            Batch::with_room(local.owner.id, local.events_expected)
        });
        batch.push(event);
    }

    /// Gives an event to an owner that may have no channel here. One that has gone does not hear of it.
    pub(super) fn tell(&mut self, owner: OwnerId, event: Event) {
        if let Some(&place) = self.owner_places.get(&owner) {
            return self.emit(place, event);
        }
        // An owner that a kernel made and that has bound nothing is not in the directory, but shares its system's queue.
        let owners = &self.directory.owners;
        let found = owners.get(&owner).or_else(|| owners.get(&self.directory.system?));
        if let Some(found) = found {
            let mut batch = Batch::new(owner);
            batch.push(event);
            found.queue.send(batch);
        }
    }

    /// Whether one more message may be given to the owner.
    pub(super) fn owner_has_room(&self, place: u32) -> bool {
        let local = &self.owners[place as usize];
        local.owner.queue.has_room(local.batch.as_ref())
    }

    fn adopt(&mut self, directory: Arc<Directory>, acknowledge: Acknowledge) {
        self.directory = directory;
        // Dropping our share is the answer.
        drop(acknowledge);
    }

    pub(super) fn forget_owner_if_idle(&mut self, place: u32) {
        let local = &self.owners[place as usize];
        if local.is_idle() {
            self.owner_places.remove(&local.owner.id);
            self.owners.remove(place as usize);
            // Its last connection may have ended while it waited for room.
            self.owners_full.retain(|&full| full != place);
        }
    }

    /// Lets connections go on whose owner's queue has been half emptied, in turn. Answers whether there were any.
    fn resume_owners(&mut self) -> bool {
        let mut resumed = false;
        // A connection that fills the queue again puts its owner into the list anew, for the next time.
        for place in std::mem::take(&mut self.owners_full) {
            let local = &mut self.owners[place as usize];
            if !local.owner.queue.is_half_empty() && !local.owner.queue.wait_for_room(self.index as usize) {
                self.owners_full.push(place);
                continue;
            }
            resumed = true;
            for slot in std::mem::take(&mut local.waiting) {
                if let Some(connection) = self.connections.get_mut(slot as usize)
                    && connection.flags.take(Flags::WAITS_FOR_OWNER)
                {
                    self.resume_reading(slot);
                }
            }
            self.forget_owner_if_idle(place);
        }
        resumed
    }
}
