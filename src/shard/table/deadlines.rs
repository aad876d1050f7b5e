//! Deadlines: the effect on a connection when one passes, and the time of its next check.
//!
//! Invariants: every connection has exactly one valid entry in the wheel (`wheel_tick`); deadlines that move are
//! checked lazily; received bytes move no deadline of a phase; silence of a connection that *the shard* does not read
//! has no consequence; silence of a client that does not take what it is sent has, since it is the reason for not
//! reading.

use crate::proto::{Opcode, close};
use crate::shard::command::CloseFrame;
use crate::shard::core::Shard;
use crate::shard::event::ClosedBy;
use crate::shard::out::outbound::ControlLane;
use crate::shard::table::cohort::Cutting;
use crate::shard::table::connection::{Connection, ConnectionPhase, Flag};
use crate::shard::table::slot::Slot;
use crate::shard::table::wheel::{TICK_MS, WheelEntry};
use crate::shard::unfinished::LongOrder;
use crate::shard::work;
use crate::sse;
use crate::words::close_reason;

/// A tick that comes so much after the one before is our own fault: the process was stopped, or starved.
const LATE_MS: u64 = 1000;

/// Silence is measured in 32 bits of milliseconds.
const PING_INTERVAL_MS_MAX: u64 = 24 * 3_600_000;

/// A connection with one of these is not read, whatever its client sends; the client is not to blame.
const UNHEARD: u32 = Flag::WaitsForOwner.bit() | Flag::WaitsForMemory.bit() | Flag::Resumes.bit() | Flag::Failing.bit();

impl Shard {
    /// Looks at everything whose time has come. Call it about every [`TICK_MS`].
    pub fn handle_tick(&mut self, now_ms: u64) {
        self.tick_within(now_ms, u64::MAX);
    }

    /// The same until the turn has cost so much; the rest is for [`look_at_due`](Self::look_at_due).
    pub(in crate::shard) fn tick_within(&mut self, now_ms: u64, until_ns: u64) {
        self.now_ms = now_ms;
        // The shard did not read meanwhile: bytes that clients sent in time are still in their sockets, and are read
        // before a deadline is applied. Once: on a machine that is always late, none ever would be.
        let passed_ms = now_ms.saturating_sub(self.table.ticked_ms);
        let late_ms = if passed_ms > LATE_MS { passed_ms } else { 0 };
        let reprieved = late_ms > 0 && self.table.late_ms == 0;
        (self.table.ticked_ms, self.table.late_ms) = (now_ms, late_ms);
        self.table.reprieves = reprieved;
        let table = &mut self.table;
        table.wheel.take_due(now_ms, &mut table.due);
        self.begin_draining_on();
        // Memory may have come free for whom none was.
        self.owners.look_at_full();
        self.trim_history();
        if self.table.stop_at_ms.is_some_and(|stop_at_ms| now_ms >= stop_at_ms) {
            self.begin_cutting();
        }
        self.look_at_due(until_ns);
        self.tell_overdue_notices();
    }

    /// Looks at those whose time has come, and goes on with chores, until the turn has cost so much.
    pub(in crate::shard) fn look_at_due(&mut self, until_ns: u64) {
        while self.work.spent_ns() < until_ns
            && let Some(entry) = self.table.due.pop_front()
        {
            self.work.spend(work::LOOK_NS);
            self.look_at(entry, self.now_ms, self.table.reprieves);
            self.spend_wakes();
        }
        self.drain_on(until_ns);
        self.do_chores(until_ns);
    }

    /// Has the connection looked at no later than `deadline_ms`.
    pub(in crate::shard) fn schedule(&mut self, slot: Slot, deadline_ms: u64) {
        let connection = &mut self.table.connections[slot.index()];
        if deadline_ms.div_ceil(TICK_MS) < u64::from(connection.wheel_tick) {
            let entry = WheelEntry { slot, generation: connection.generation };
            connection.wheel_tick = self.table.wheel.insert(entry, deadline_ms) as u32;
        }
    }

    /// The tick at which `ms` is over.
    pub(in crate::shard) fn tick_of(ms: u64) -> u32 {
        u32::try_from(ms.div_ceil(TICK_MS)).unwrap_or(Connection::NO_TICK)
    }

    /// Sets when the current phase must have ended.
    pub(in crate::shard) fn set_deadline(&mut self, slot: Slot, deadline_ms: u64) {
        self.table[slot].deadline_tick = Self::tick_of(deadline_ms);
        self.schedule(slot, deadline_ms);
    }

    fn look_at(&mut self, entry: WheelEntry, now_ms: u64, reprieved: bool) {
        let Some(connection) = self.table.get_mut(entry.slot) else { return };
        // An entry that a sooner one has replaced, or of a connection that is gone.
        if connection.generation != entry.generation || u64::from(connection.wheel_tick) > now_ms / TICK_MS {
            return;
        }
        connection.wheel_tick = Connection::NO_TICK;
        if reprieved {
            return self.schedule(entry.slot, now_ms + LATE_MS);
        }
        if u64::from(connection.deadline_tick) <= now_ms / TICK_MS {
            self.expired(entry.slot);
        } else if self.probe_in_ms(entry.slot) == 0 {
            self.probe(entry.slot);
        }
        let still_there = self.table.is_alive(entry.slot, entry.generation);
        if still_there {
            let deadline_tick = u64::from(self.table[entry.slot].deadline_tick);
            self.schedule(entry.slot, deadline_tick * TICK_MS);
            self.schedule_probe(entry.slot);
        }
    }

    /// Has the connection looked at when it has been silent for so long that it is pinged, or gone.
    pub(in crate::shard) fn schedule_probe(&mut self, slot: Slot) {
        self.schedule(slot, self.now_ms.saturating_add(self.probe_in_ms(slot)));
    }

    /// How long the client may still be silent.
    fn probe_in_ms(&self, slot: Slot) -> u64 {
        let connection = &self.table[slot];
        let interval_ms = self.config.ping_interval_ms.min(PING_INTERVAL_MS_MAX);
        let is_aside = Flag::CloseSent.bit() | Flag::Detached.bit();
        if interval_ms == 0 || connection.channel().is_none() || connection.flags.has_any(is_aside) {
            return u64::MAX;
        }
        // Between 80 and 95 % of the interval, evenly (by the golden ratio) for connections that come one after
        // another.
        let share = u64::from(connection.generation.wrapping_mul(0x9e37_79b9));
        let period_ms = interval_ms * 4 / 5 + ((interval_ms * 3 / 20 * share) >> 32);
        let since_ms = if connection.pings_unanswered == 0 { connection.heard_ms } else { connection.pinged_ms };
        period_ms.saturating_sub(u64::from((self.now_ms as u32).wrapping_sub(since_ms)))
    }

    /// The time of the current phase is up.
    fn expired(&mut self, slot: Slot) {
        let connection = &mut self.table[slot];
        connection.deadline_tick = Connection::NO_TICK;
        match &connection.phase {
            ConnectionPhase::Http(_) => self.http_expired(slot),
            ConnectionPhase::Registering(_) if connection.flags.has(Flag::HangsUp) => self.connection_failed(slot),
            ConnectionPhase::Registering(_) => {
                let why = CloseFrame {
                    code: Some(close_reason::code::REGISTRATION_TIMEOUT),
                    reason: "no WsRegister message came in time".into(),
                };
                self.close_now(slot, &why, ClosedBy::Timeout);
            }
            ConnectionPhase::Open(_) if connection.flags.has(Flag::Detached) => self.window_over(slot),
            ConnectionPhase::Open(channel) => match channel.violation {
                Some(violation) => self.fail_for(slot, violation),
                None if !connection.flags.has(Flag::CloseSent) => self.end_unread(slot),
                // Our close frame was not answered, as far as we have read.
                None => self.end_unanswered(slot),
            },
            ConnectionPhase::Ending(_) => self.ending_expired(slot),
        }
    }

    /// Asks a silent client whether it is still there, and lets go of one that did not answer.
    fn probe(&mut self, slot: Slot) {
        let connection = &mut self.table[slot];
        if connection.flags.has(Flag::Sse) {
            // It has nothing to say. That it has vanished, the system finds out by what is sent.
            connection.heard(self.now_ms);
            if !connection.outbound.is_blocked() {
                self.append_event(slot, sse::COMMENT);
            }
            return;
        }
        // If it is the shard that does not read, silence means nothing. A ping is sent all the same: it lets the system
        // detect a client that has vanished.
        let is_unheard = connection.flags.has_any(UNHEARD);
        if is_unheard || connection.pings_unanswered < self.config.pings_unanswered_max {
            connection.pings_unanswered = if is_unheard { 1 } else { connection.pings_unanswered + 1 };
            connection.pinged_ms = self.now_ms as u32;
            // The pong brings it back, and with it how long the way was.
            let sent_ms = connection.pinged_ms.to_be_bytes();
            return self.send_control(slot, Opcode::Ping, ControlLane::Ping, &sent_ms);
        }
        self.stats.timed_out += 1;
        if self.detach(slot) {
            return;
        }
        self.table[slot].flags.set(Flag::Silent);
        self.fail(slot, close::code::GOING_AWAY, "no answer to pings", ClosedBy::Timeout);
        // The close frame is for a client that is there against all appearance; the server does not wait for an answer.
        if self.table.contains(slot) {
            self.set_deadline(slot, self.now_ms + TICK_MS);
        }
    }

    /// The time that a stop gives is over.
    fn begin_cutting(&mut self) {
        if self.chores.iter().any(|chore| matches!(chore, LongOrder::Cutting(_))) {
            return;
        }
        // Clients that are still to be told are cut off, too; and waiting for that ends.
        self.chores.retain(|chore| !matches!(chore, LongOrder::Stopping(_)));
        let everybody = self.table.everybody();
        self.chores.push_back(LongOrder::Cutting(Box::new(Cutting { everybody })));
    }
}
