//! Connections and channels from beginning to end, and their deadlines.
//!
//! Invariants: a channel id leads to the open connection that carries it, and every open connection is found by its id;
//! admission's counts for a connection end with it. It must not know of data for a connection in any queue but the
//! connection's own.

mod accept;
pub(super) mod arrival;
mod closing;
pub(super) mod cohort;
pub(super) mod connection;
pub(super) mod deadlines;
mod detached;
mod detaching;
mod ends;
mod listening;
mod notices;
pub(super) mod opening;
mod operate;
pub(super) mod relayed_message;
mod returning;
pub(super) mod slot;
pub(super) mod wheel;

use self::connection::{Connection, ConnectionPhase, ConnectionToken, Flag};
use self::detached::Detached;
use self::slot::Slot;
use self::wheel::{Wheel, WheelEntry};
use crate::admission;
use crate::channel::{ChannelId, ChannelIdMint};
use crate::http::PreparedResponse;
use crate::shard::command::Acknowledge;
use crate::shard::disconnects::{Disconnect, Disconnects};
use crate::shard::operating::Draining;
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// Why a request is not answered that came before the broker began to stop.
pub(super) fn stopping() -> PreparedResponse {
    PreparedResponse::text(503, "the server is going away").with("retry-after", "1").closing()
}

/// See the module.
pub(super) struct ConnectionTable {
    connections: Slab<Connection>,
    next_generation: u32,
    channels: FxHashMap<ChannelId, Slot>,
    mint: ChannelIdMint,
    admission: Arc<admission::Connections>,
    wheel: Wheel,
    /// Entries whose time has come, and that were not looked at yet.
    due: VecDeque<WheelEntry>,
    /// Those get another second instead.
    reprieves: bool,
    ticked_ms: u64,
    /// How much the last tick came after the one before, if that was too much ([`deadlines`]); else 0.
    late_ms: u64,
    /// Set once the broker stops: when everything must be closed.
    stop_at_ms: Option<u64>,
    /// Set while a drain goes on, until it stops the shard.
    draining: Option<Draining>,
    /// Acknowledged when every client has been told of the stop.
    stop_told: Acknowledge,
    disconnects: Disconnects,
    /// Channels that wait for their clients to come back.
    detached: Detached,
    /// How many came over TLS.
    over_tls: usize,
}

impl ConnectionTable {
    /// An empty table that mints its channel ids with `mint`.
    pub(super) fn new(mint: ChannelIdMint, admission: Arc<admission::Connections>, now_ms: u64) -> Self {
        Self {
            connections: Slab::new(),
            next_generation: 0,
            channels: FxHashMap::default(),
            mint,
            admission,
            wheel: Wheel::new(now_ms),
            due: VecDeque::new(),
            reprieves: false,
            ticked_ms: now_ms,
            late_ms: 0,
            stop_at_ms: None,
            draining: None,
            stop_told: None,
            disconnects: Disconnects::default(),
            detached: Detached::default(),
            over_tls: 0,
        }
    }

    /// How many have connected, and what else all shards count together.
    pub(super) fn admission(&self) -> &admission::Connections {
        &self.admission
    }

    /// Live connections, channels among them.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// How many places there are, with or without a connection.
    pub(super) fn places(&self) -> usize {
        self.connections.capacity()
    }

    /// Those that came over TLS.
    pub(super) fn over_tls(&self) -> usize {
        self.over_tls
    }

    /// Open channels.
    pub(super) fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Open channels that wait for their clients to come back.
    pub(super) fn detached(&self) -> usize {
        self.detached.len()
    }

    /// The connection at a place, if there is one.
    pub(super) fn get(&self, slot: Slot) -> Option<&Connection> {
        self.connections.get(slot.index())
    }

    /// The connection at a place, if there is one.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Connection> {
        self.connections.get_mut(slot.index())
    }

    /// Returns whether there is a connection at a place.
    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.connections.contains(slot.index())
    }

    /// Returns whether the connection of this generation is still there.
    pub(super) fn is_alive(&self, slot: Slot, generation: u32) -> bool {
        self.get(slot).is_some_and(|connection| connection.generation == generation)
    }

    /// Every connection.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Connection)> {
        self.connections.iter().map(|(slot, connection)| (Slot::new(slot as u32), connection))
    }

    /// The connection of a channel.
    pub(super) fn slot_of(&self, channel: ChannelId) -> Option<Slot> {
        self.channels.get(&channel).copied()
    }

    /// The place of a live connection.
    pub(super) fn resolve(&self, token: ConnectionToken) -> Option<Slot> {
        let slot = Slot::new(token.slot);
        self.is_alive(slot, token.generation).then_some(slot)
    }

    /// The driver's name for this connection.
    pub(super) fn token(&self, slot: Slot) -> ConnectionToken {
        ConnectionToken { slot: slot.get(), generation: self[slot].generation }
    }

    /// How long the shard did not listen before the last tick, if that was too long; else 0.
    pub(super) fn late_ms(&self) -> u64 {
        self.late_ms
    }

    /// Returns whether there are connections whose time has come.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Returns whether a drain has channels to look for before the next tick.
    pub(super) fn drain_goes_on(&self) -> bool {
        let progress = self.draining.as_ref().and_then(|draining| draining.progress);
        progress.is_some_and(|progress| progress.places > 0)
    }

    /// Returns whether everything is to be closed.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop_at_ms.is_some()
    }

    /// All closes have been offered to sockets: acknowledges a stop.
    pub(super) fn all_told(&mut self) {
        // By the drop.
        self.stop_told = None;
    }

    /// The last channels that ended, in order.
    pub(super) fn disconnects(&self) -> Vec<Disconnect> {
        self.disconnects.to_vec()
    }

    /// Asserts what the module promises, as far as the table knows it.
    pub(super) fn check(&self) {
        let over_tls = self.connections.iter().filter(|(_, connection)| connection.tls.is_some()).count();
        assert_eq!(over_tls, self.over_tls, "connections over TLS are counted");
        let open = self.connections.iter().filter(|(_, connection)| connection.channel().is_some()).count();
        assert_eq!(open, self.channels.len(), "every open connection is found by its channel's id");
        for (id, &slot) in &self.channels {
            let channel =
                self.get(slot).and_then(Connection::channel).expect("a channel id leads to an open connection");
            assert_eq!(channel.id, *id, "a channel is where its id says");
        }
        let detached = self.iter().filter(|(_, connection)| connection.flags.has(Flag::Detached)).count();
        assert_eq!(detached, self.detached.len(), "detached channels are listed");
        for (slot, connection) in self.iter() {
            assert_ne!(connection.generation, 0, "no connection has generation 0");
            assert!(
                !connection.is_shaking() || connection.outbound.offerable_bytes() == 0,
                "nothing is said before TLS is"
            );
            let is_due = connection.deadline_tick != Connection::NO_TICK;
            assert!(!is_due || connection.wheel_tick != Connection::NO_TICK, "{slot:?} is in the wheel");
            if let ConnectionPhase::Ending(_) = connection.phase {
                assert!(
                    connection.unparsed.is_none() && !connection.is_paused(),
                    "an ending connection waits for nothing"
                );
            }
        }
    }
}

impl Index<Slot> for ConnectionTable {
    type Output = Connection;

    fn index(&self, slot: Slot) -> &Connection {
        &self.connections[slot.index()]
    }
}

impl IndexMut<Slot> for ConnectionTable {
    fn index_mut(&mut self, slot: Slot) -> &mut Connection {
        &mut self.connections[slot.index()]
    }
}
