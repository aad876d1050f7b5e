//! Time: what happens to a connection when its time is up, and when it should be looked at again.
//!
//! Invariants: every connection has exactly one entry in the wheel that counts (`wheel_tick`); deadlines that move are
//! looked at lazily; a connection that *we* do not read is not judged by its silence.

use super::command::CloseFrame;
use super::connection::{Connection, Flags, Phase};
use super::core::Shard;
use super::event::ClosedBy;
use super::outbound::Lane;
use super::wheel::{Entry, TICK_MS};
use crate::proto::{Opcode, close};

/// The close codes of the registration (node contract, section 4).
pub(super) const CLOSE_REGISTRATION_TIMEOUT: u16 = 4408;

impl Shard {
    /// Looks at everything whose time has come. Call it about every [`TICK_MS`].
    pub fn handle_tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.take_due(now_ms, &mut due);
        for entry in due.drain(..) {
            self.look_at(entry, now_ms);
        }
        self.due = due;
        if self.stop_at_ms.is_some_and(|stop_at_ms| now_ms >= stop_at_ms) {
            self.cut_all();
        }
    }

    /// Has the connection looked at no later than `deadline_ms`.
    pub(super) fn schedule(&mut self, slot: u32, deadline_ms: u64) {
        let connection = &mut self.connections[slot as usize];
        if deadline_ms.div_ceil(TICK_MS) < u64::from(connection.wheel_tick) {
            let entry = Entry { slot, generation: connection.generation };
            connection.wheel_tick = self.wheel.insert(entry, deadline_ms) as u32;
        }
    }

    /// Sets when the current phase must have ended.
    pub(super) fn set_deadline(&mut self, slot: u32, deadline_ms: u64) {
        self.connections[slot as usize].deadline_ms = deadline_ms;
        self.schedule(slot, deadline_ms);
    }

    fn look_at(&mut self, entry: Entry, now_ms: u64) {
        let Some(connection) = self.connections.get_mut(entry.slot as usize) else { return };
        // An entry that a sooner one has replaced, or of a connection that is gone.
        if connection.generation != entry.generation || u64::from(connection.wheel_tick) > now_ms / TICK_MS {
            return;
        }
        connection.wheel_tick = Connection::NO_TICK;
        if connection.deadline_ms <= now_ms {
            self.expired(entry.slot);
        } else {
            self.probe(entry.slot, now_ms);
        }
        let next_ms = self.next_look_ms(entry.slot, entry.generation);
        if let Some(next_ms) = next_ms {
            self.schedule(entry.slot, next_ms);
        }
    }

    /// When the connection should be looked at next, if it is still there.
    fn next_look_ms(&self, slot: u32, generation: u32) -> Option<u64> {
        let connection = self.connections.get(slot as usize).filter(|c| c.generation == generation)?;
        let is_probed = connection.channel().is_some() && self.config.ping_interval_ms > 0;
        let probe_ms = if is_probed { self.now_ms + self.config.ping_interval_ms / 4 } else { u64::MAX };
        Some(connection.deadline_ms.min(probe_ms))
    }

    /// The time of the current phase is up.
    fn expired(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        connection.deadline_ms = u64::MAX;
        match &connection.phase {
            Phase::Http(_) => self.http_expired(slot),
            Phase::Registering(_) => {
                let why = CloseFrame {
                    code: Some(CLOSE_REGISTRATION_TIMEOUT),
                    reason: "no WsRegister message came in time".into(),
                };
                self.close_now(slot, &why, ClosedBy::Timeout);
            }
            Phase::Open(channel) => match channel.violation {
                Some(violation) => self.fail_for(slot, violation),
                // The client has not answered our close frame.
                None => self.end_unanswered(slot),
            },
            Phase::Ending { .. } => self.remove(slot),
        }
    }

    /// Asks a silent client whether it is still there, and lets go of one that did not answer.
    fn probe(&mut self, slot: u32, now_ms: u64) {
        let interval_ms = self.config.ping_interval_ms;
        let unanswered_max = self.config.pings_unanswered_max;
        let connection = &mut self.connections[slot as usize];
        if interval_ms == 0
            || connection.channel().is_none()
            || connection.is_paused()
            || connection.flags.has(Flags::CLOSE_SENT)
        {
            return;
        }
        // One interval for each ping that is unanswered, and one before the first.
        let silent_ms = now_ms.saturating_sub(connection.heard_ms);
        if silent_ms < interval_ms * (u64::from(connection.pings_unanswered) + 1) {
            return;
        }
        if connection.pings_unanswered >= unanswered_max {
            self.stats.timed_out += 1;
            self.fail(slot, close::code::GOING_AWAY, "no answer to pings", ClosedBy::Timeout);
            return;
        }
        connection.pings_unanswered += 1;
        // The pong brings it back, and with it how long the way was.
        let sent_ms = now_ms as u32;
        self.send_control(slot, Opcode::Ping, Lane::Ping, &sent_ms.to_be_bytes());
    }

    /// The end of the time that a stop gives: whoever is left is cut off.
    fn cut_all(&mut self) {
        let slots: Vec<u32> = self.connections.iter().map(|(slot, _)| slot as u32).collect();
        for slot in slots {
            if self.connections.contains(slot as usize) {
                self.cut(slot);
            }
        }
    }
}
