//! Every way in which a channel or a connection ends.
//!
//! Invariants: [`Shard::end_channel`] is the only place that gives Closed, and it takes the channel out of the tables
//! first, so it gives it once; a connection that is ended gracefully sends its last frame, shuts its writing side, and
//! reads on until the client has seen it (a plain close would become a reset that destroys the close frame), unless the
//! client has said that it sends nothing more: by its own close frame, with nothing behind it.

use crate::gateway::OwnerId;
use crate::proto::{CloseReceived, Opcode, close, close::ClosePayload, server_header};
use crate::shard::command::{Acknowledge, CloseCommand, CloseFrame, Command, ReportTo};
use crate::shard::core::{Effect, Shard};
use crate::shard::disconnects::WebSocketEnd;
use crate::shard::event::{Closed, ClosedBy, Event};
use crate::shard::outcome::Outcome;
use crate::shard::table::cohort::{Closing, Cutting, Stopping};
use crate::shard::table::connection::{ConnectionPhase, Flag, Linger};
use crate::shard::table::slot::Slot;
use crate::shard::table::stopping;
use crate::shard::table::wheel::TICK_MS;
use crate::shard::unfinished::LongOrder;
use crate::shard::work;
use crate::sse;

/// The codes that stand for an end without a close frame (RFC 6455 7.1.5). They are never sent.
const NO_CODE: u16 = 1005;
const NO_CLOSE_FRAME: u16 = 1006;

impl CloseFrame {
    /// The payload. A code that must not travel is not sent: the maker of the command has checked it.
    fn payload(&self) -> ClosePayload {
        match self.code {
            Some(code) if close::code_may_travel(code) => ClosePayload::new(code, &self.reason),
            _ => ClosePayload::empty(),
        }
    }
}

impl Shard {
    /// A process, or the operator, closes a channel behind what is queued for it.
    pub(in crate::shard) fn close_by_process(&mut self, close: CloseCommand) {
        let CloseCommand { channel, owner, why, abruptly, asked } = close;
        match self.pushable(channel, owner) {
            Ok(slot) => {
                if let ReportTo::Outcome(mut part) = asked {
                    part.counts.closed += 1;
                }
                match abruptly {
                    true => self.disconnect(slot),
                    false => self.close_behind(slot, &why),
                }
            }
            // Closed already, as requested.
            Err(Outcome { not_owner: 0, .. }) if matches!(asked, ReportTo::Failure(_)) => {}
            Err(why) => self.answer_failed(owner, asked, why),
        }
    }

    /// Ends the connection of a channel as if it had failed: one that outlives its connection waits for its client.
    fn disconnect(&mut self, slot: Slot) {
        if !self.table[slot].flags.has(Flag::Detached) {
            self.connection_failed_for(slot, "its process has cut the connection");
        }
    }

    /// Sends a close frame behind what is queued; the channel lives on until the client has answered.
    pub(in crate::shard) fn close_behind(&mut self, slot: Slot, why: &CloseFrame) {
        if self.table[slot].flags.has(Flag::Detached) {
            let by = if self.is_stopping() { ClosedBy::Broker } else { ClosedBy::Process };
            return self.end_detached(slot, why.code.unwrap_or(NO_CODE), &why.reason, by);
        }
        if self.table[slot].flags.has(Flag::CloseSent) {
            return;
        }
        self.append_close(slot, &why.payload());
        if self.table[slot].flags.has(Flag::Sse) {
            // It cannot answer.
            self.settle_as_queued(slot);
            let by = if self.is_stopping() || self.is_draining() { ClosedBy::Broker } else { ClosedBy::Process };
            self.end_channel(slot, why.code.unwrap_or(NO_CODE), &why.reason, by, 0);
            return self.end_connection(slot);
        }
        self.set_deadline(slot, self.answer_due_ms());
    }

    /// When a client must have taken what we still send and have answered our close frame. A broker that stops says
    /// itself how long it waits.
    fn answer_due_ms(&self) -> u64 {
        let due_ms = self.now_ms + self.config.close_timeout_ms;
        self.table.stop_at_ms.map_or(due_ms, |stop_at_ms| stop_at_ms.max(due_ms))
    }

    /// Drops what is queued behind the frame in progress, sends a close frame, and ends the channel now.
    pub(in crate::shard) fn close_now(&mut self, slot: Slot, why: &CloseFrame, by: ClosedBy) {
        if self.table[slot].flags.has(Flag::Detached) {
            return self.end_detached(slot, why.code.unwrap_or(NO_CODE), &why.reason, by);
        }
        let dropped = self.drop_queue(slot);
        if !self.table[slot].flags.has(Flag::CloseSent) {
            self.append_close(slot, &why.payload());
        }
        self.end_channel(slot, why.code.unwrap_or(NO_CODE), &why.reason, by, dropped);
        self.end_connection(slot);
    }

    /// Ends the channel now, but sends its queue, then a close frame: the process that would receive answers is gone.
    /// Returns false where the slice is over before all of its log is in the queue: it is to be called again.
    fn close_for_good(&mut self, slot: Slot, why: &CloseFrame) -> bool {
        if self.table[slot].flags.has(Flag::Detached) {
            self.end_detached(slot, why.code.unwrap_or(NO_CODE), &why.reason, ClosedBy::Process);
            return true;
        }
        // Its log ends with it.
        if self.table[slot].flags.has(Flag::Lags) && !self.pour(slot) {
            return false;
        }
        if let Some(payload) = self.take_pending_close(slot) {
            self.append_close_frame(slot, &payload);
        } else if !self.table[slot].flags.has(Flag::CloseSent) {
            self.append_close(slot, &why.payload());
        }
        self.settle_as_queued(slot);
        self.end_channel(slot, why.code.unwrap_or(NO_CODE), &why.reason, ClosedBy::Process, 0);
        self.end_connection(slot);
        true
    }

    /// Fails a WebSocket connection with a code and a reason of our own.
    pub(in crate::shard) fn fail(&mut self, slot: Slot, code: u16, reason: &str, by: ClosedBy) {
        let why = CloseFrame { code: Some(code), reason: reason.into() };
        self.close_now(slot, &why, by);
    }

    /// The client's close frame: answer it, unless it is the answer to ours (RFC 6455 5.5.1).
    pub(in crate::shard) fn closed_by_client(&mut self, slot: Slot, received: &CloseReceived<'_>) {
        let dropped = self.drop_queue_unless_closing(slot);
        let by = if self.table[slot].flags.has(Flag::CloseSent) {
            self.settle_as_queued(slot);
            self.closer()
        } else {
            self.append_close(slot, &received.echo());
            ClosedBy::Client
        };
        self.end_channel(slot, received.code.unwrap_or(NO_CODE), received.reason, by, dropped);
        self.end_connection(slot);
    }

    /// The connection is broken, or the client has left without a close frame. After a close frame of ours it need not
    /// send one: the end is then the closing side's.
    pub(in crate::shard) fn connection_failed(&mut self, slot: Slot) {
        if self.detach(slot) {
            return;
        }
        let lost = self.unsent_bytes(slot);
        let connection = &self.table[slot];
        if connection.flags.has(Flag::CloseSent) {
            let (code, by) = (connection.close_code, self.closer());
            self.end_channel(slot, code, "the client ended its connection instead of answering", by, lost);
        } else {
            self.end_channel(slot, NO_CLOSE_FRAME, "", ClosedBy::Connection, lost);
        }
        if !self.answer_goodbye(slot) {
            self.remove(slot);
        }
    }

    /// The same, and why is known.
    pub(in crate::shard) fn connection_failed_for(&mut self, slot: Slot, reason: &str) {
        if self.table[slot].flags.has(Flag::CloseSent) {
            return self.connection_failed(slot);
        }
        if self.detach(slot) {
            return;
        }
        self.break_off(slot, reason, ClosedBy::Connection);
        self.remove(slot);
    }

    /// Ends the channel, if it is one, without a close frame.
    pub(in crate::shard) fn break_off(&mut self, slot: Slot, reason: &str, by: ClosedBy) {
        let lost = self.unsent_bytes(slot);
        self.end_channel(slot, NO_CLOSE_FRAME, reason, by, lost);
    }

    /// The client has ended its connection, and its process was too slow to take what it had sent before.
    pub(in crate::shard) fn end_unread(&mut self, slot: Slot) {
        if self.detach(slot) {
            return;
        }
        let lost = self.unsent_bytes(slot);
        let reason = "the client has left, and what it had sent was not read in time";
        self.end_channel(slot, NO_CLOSE_FRAME, reason, ClosedBy::Connection, lost);
        self.remove(slot);
    }

    /// The client did not answer our close frame in time, or its process was slow to take what stands before the
    /// answer.
    pub(in crate::shard) fn end_unanswered(&mut self, slot: Slot) {
        let lost = self.unsent_bytes(slot);
        let is_unread = self.table[slot].flags.has(Flag::HasWaited);
        let reason =
            if is_unread { "the process does not read its events" } else { "the close frame was not answered" };
        self.end_channel(slot, NO_CLOSE_FRAME, reason, self.closer(), lost);
        self.remove(slot);
    }

    /// The side that closes channels with a close frame which their clients answer.
    fn closer(&self) -> ClosedBy {
        if self.is_stopping() { ClosedBy::Broker } else { ClosedBy::Process }
    }

    /// Ends a connection without a word.
    pub(in crate::shard) fn cut(&mut self, slot: Slot) {
        if self.table[slot].flags.has(Flag::Detached) {
            return self.end_detached(slot, close::code::GOING_AWAY, "the broker stopped", ClosedBy::Broker);
        }
        self.cut_for(slot, close::code::GOING_AWAY, "the broker stopped");
    }

    /// Ends a connection at once, with what was queued for it. Its process is told this code and reason, its client
    /// nothing.
    pub(in crate::shard) fn cut_for(&mut self, slot: Slot, code: u16, why: &str) {
        let lost = self.unsent_bytes(slot);
        self.end_channel(slot, code, why, ClosedBy::Broker, lost);
        self.remove(slot);
    }

    /// Takes the channel, if this is one, out of the tables and tells its owner. Every WebSocket ends here.
    pub(super) fn end_channel(&mut self, slot: Slot, code: u16, reason: &str, by: ClosedBy, lost_bytes: usize) {
        self.drop_watches(slot);
        self.note_disconnect(slot, &WebSocketEnd { code, reason, by, lost_bytes });
        if let Some((owner, id)) = self.table[slot].channel().map(|channel| (channel.owner, channel.id)) {
            self.leave_topics(owner, slot, id);
        }
        let place = self.table[slot].channel().map(|channel| (channel.owner, channel.place));
        if let Some((owner, place)) = place.filter(|_| self.table[slot].flags.has(Flag::Sse)) {
            let path = self.owners[owner].path(place).clone();
            self.listener_left(slot, owner, path);
        }
        let ConnectionPhase::Open(channel) = self.begin_ending(slot) else { return };
        let flags = &mut self.table[slot].flags;
        let is_counted = !flags.has(Flag::Uncounted);
        if flags.take(Flag::Kept) {
            flags.take(Flag::Lags);
            self.out.kept_channels.remove(&slot);
        }
        self.table.channels.remove(&channel.id);
        self.owners.forget_guests(channel.id);
        let local = &mut self.owners[channel.owner];
        let moved = local.remove(channel.place);
        if is_counted {
            local.owner.connections.leave();
        }
        if let Some(agreed) = channel.ws.deflate() {
            local.owner.windows.leave(agreed.server_window_bits());
        }
        if self.table[slot].flags.take(Flag::WaitsForOwner) {
            self.stop_waiting_for_owner(channel.owner);
        }
        if let Some(moved) = moved
            && let ConnectionPhase::Open(moved) = &mut self.table[moved].phase
        {
            moved.place = channel.place;
        }
        self.stats.closed[by as usize] += 1;
        self.work.spend(work::END_NS);
        let closed = Closed { channel: channel.id, code, reason: reason.into(), by, lost_bytes };
        self.owners.emit(channel.owner, Event::Closed(Box::new(closed)));
    }

    /// A connection does not wait any more for room in its owner's queue, and its flag is cleared.
    pub(super) fn stop_waiting_for_owner(&mut self, owner: u32) {
        let connections = &self.table.connections;
        self.owners[owner].stop_waiting(|slot| {
            connections.get(slot.index()).is_some_and(|other| {
                let is_ours = other.channel().is_some_and(|other| other.owner == owner);
                is_ours && other.flags.has(Flag::WaitsForOwner)
            })
        });
    }

    /// Nothing more will be queued: once all has left, shut the writing side and read on for a while.
    pub(in crate::shard) fn end_connection(&mut self, slot: Slot) {
        if !matches!(self.table[slot].phase, ConnectionPhase::Ending(_)) {
            self.begin_ending(slot);
        }
        let connection = &mut self.table[slot];
        connection.flags.take(Flag::WaitsForClient);
        connection.flags.take(Flag::WaitsForMemory);
        connection.flags.take(Flag::Failing);
        connection.flags.take(Flag::Resumes);
        let token = self.table.token(slot);
        let connection = &mut self.table[slot];
        if connection.flags.take(Flag::Readable) {
            self.effects.push(Effect::Read(token));
        }
        connection.flags.set(Flag::Shutdown);
        self.linger(slot, self.answer_due_ms() - self.now_ms);
        if self.table[slot].flags.has(Flag::Holds) {
            self.weigh(slot);
        }
        if self.table[slot].outbound.is_empty() {
            self.shut_down(slot);
        }
    }

    /// Bytes have left; `left` still wait.
    pub(in crate::shard) fn after_sent(&mut self, slot: Slot, left: usize) {
        let connection = &mut self.table[slot];
        if left <= self.config.outbound_bytes_max / 4 && connection.flags.take(Flag::WaitsForClient) {
            self.intake.resume(connection, slot);
        }
        if connection.flags.has(Flag::Lags) {
            return self.feed(slot);
        }
        if left > 0 || !connection.outbound.is_empty() {
            return;
        }
        if connection.flags.has(Flag::Shutdown) {
            self.shut_down(slot);
        } else if matches!(connection.phase, ConnectionPhase::Http(_)) {
            self.response_left(slot);
        }
    }

    /// From now on the connection only sends its rest, and drops the bytes it reads: the one place where it leaves its
    /// former phase, which is returned.
    fn begin_ending(&mut self, slot: Slot) -> ConnectionPhase {
        self.forget_asked(slot);
        let ending = ConnectionPhase::Ending(self.ending(slot));
        let connection = &mut self.table[slot];
        connection.forget_incoming();
        std::mem::replace(&mut connection.phase, ending)
    }

    /// Forgets the connection and has its socket closed.
    pub(in crate::shard) fn remove(&mut self, slot: Slot) {
        if !matches!(self.table[slot].phase, ConnectionPhase::Ending(_)) {
            self.begin_ending(slot);
        }
        let mut connection = self.table.connections.remove(slot.index());
        debug_assert!(connection.channel().is_none(), "a channel ends before its connection");
        self.out.forget(&mut connection, slot);
        self.table.over_tls -= usize::from(connection.tls.is_some());
        self.uncount(&connection);
        if connection.flags.has(Flag::Holds) {
            self.memory.forget(slot);
        }
        if !connection.flags.has(Flag::Detached) {
            self.effects.push(Effect::Close(connection.socket));
        }
    }

    /// A process is gone: so are its channels.
    pub(in crate::shard) fn owner_gone(&mut self, owner: OwnerId, why: CloseFrame) -> Option<LongOrder> {
        let place = self.owners.find(owner)?;
        if self.retires(place, || Command::OwnerGone { owner, why: why.clone() }) {
            return None;
        }
        self.dismiss(place);
        // Dismissed, it may have had nothing else here.
        let place = self.owners.find(owner)?;
        let local = &self.owners[place];
        let (asked, lists) = (local.asked.iter().copied().collect::<Vec<_>>(), local.channels().collect::<Vec<_>>());
        let looked_at = asked.len() + lists.len();
        let (asked, channels) = (self.table.cohort(asked), self.table.cohort(lists.concat()));
        self.work.spend(looked_at as u64 * work::PASS_NS);
        self.go_on_closing(Box::new(Closing { owner, asked, channels, why }))
    }

    /// Closes channels of a process that is gone, one slice of them.
    pub(in crate::shard) fn go_on_closing(&mut self, mut closing: Box<Closing>) -> Option<LongOrder> {
        while let Some(slot) = closing.asked.next() {
            if self.table.is_of(&closing.asked, slot) {
                self.refuse_request_of(closing.owner, slot);
            }
            if self.work.is_slice_over() {
                return Some(LongOrder::Closing(closing));
            }
        }
        while let Some(slot) = closing.channels.next() {
            let is_open = self.table.is_of(&closing.channels, slot) && self.table[slot].channel().is_some();
            if is_open && !self.close_for_good(slot, &closing.why) {
                closing.channels.again();
                return Some(LongOrder::Closing(closing));
            }
            if self.work.is_slice_over() && !closing.channels.is_done() {
                return Some(LongOrder::Closing(closing));
            }
        }
        // Nobody reads its queue any more, who would have it looked at whether it still stands among the full ones.
        self.owners.look_at_full();
        None
    }

    /// The broker stops: every client is told, and has `within_ms` to answer; told again, whichever time is over first.
    /// Requests that came before are answered within half of that, by their processes or with 503.
    pub(in crate::shard) fn stop(&mut self, within_ms: u64, told: Acknowledge) -> Option<LongOrder> {
        let stop_at_ms = self.now_ms.saturating_add(within_ms);
        let before_ms = self.table.stop_at_ms;
        self.table.stop_at_ms = Some(stop_at_ms.min(before_ms.unwrap_or(u64::MAX)));
        if before_ms.is_some_and(|before_ms| before_ms <= stop_at_ms) {
            self.table.stop_told = told;
            return None;
        }
        let why = CloseFrame { code: Some(close::code::GOING_AWAY), reason: "the server is going away".into() };
        let everybody = self.table.everybody();
        self.go_on_stopping(Box::new(Stopping { everybody, why, within_ms, told }))
    }

    /// Tells clients of a stop, one slice of them.
    pub(in crate::shard) fn go_on_stopping(&mut self, mut stopping: Box<Stopping>) -> Option<LongOrder> {
        while let Some(slot) = self.table.next_of(&mut stopping.everybody) {
            self.tell_of_stop(slot, &stopping.why, stopping.within_ms);
            self.work.spend(work::END_NS);
            if self.work.is_slice_over() {
                return Some(LongOrder::Stopping(stopping));
            }
        }
        self.table.stop_told = stopping.told;
        None
    }

    fn tell_of_stop(&mut self, slot: Slot, why: &CloseFrame, within_ms: u64) {
        match &self.table[slot].phase {
            ConnectionPhase::Open(_) => self.close_behind(slot, why),
            ConnectionPhase::Registering(_) => {
                self.append_close(slot, &why.payload());
                self.end_channel(slot, close::code::GOING_AWAY, &why.reason, ClosedBy::Broker, 0);
                self.end_connection(slot);
            }
            ConnectionPhase::Http(exchange) if exchange.is_idle() => self.end_connection(slot),
            ConnectionPhase::Http(exchange) if exchange.responding() => {}
            // Its process may still answer, or the rest of it come; then it is told that we have gone.
            ConnectionPhase::Http(_) if within_ms >= 2 * TICK_MS => {
                self.set_deadline(slot, self.now_ms + within_ms / 2)
            }
            ConnectionPhase::Http(_) => self.answer(slot, stopping()),
            ConnectionPhase::Ending(_) => {}
        }
    }

    /// The end of the time that a stop gives: remaining clients are cut off, one slice of them.
    pub(in crate::shard) fn go_on_cutting(&mut self, mut cutting: Box<Cutting>) -> Option<LongOrder> {
        while let Some(slot) = self.table.next_of(&mut cutting.everybody) {
            self.cut(slot);
            self.work.spend(work::END_NS);
            if self.work.is_slice_over() {
                return Some(LongOrder::Cutting(cutting));
            }
        }
        None
    }

    /// Puts a close frame behind what is queued: nothing more is queued from now on. Where a channel lags, it follows
    /// what waits in the log, which is not copied for that, however many are closed.
    fn append_close(&mut self, slot: Slot, payload: &ClosePayload) {
        let code = payload.as_slice().first_chunk().map_or(NO_CODE, |code| u16::from_be_bytes(*code));
        let connection = &mut self.table[slot];
        connection.flags.set(Flag::CloseSent);
        connection.close_code = code;
        if connection.flags.has(Flag::Lags)
            && let Some(kept_channel) = self.out.kept_channels.get_mut(&slot)
        {
            kept_channel.close = Some(Box::new(*payload));
            return self.feed(slot);
        }
        self.append_close_frame(slot, payload);
    }

    /// A close frame that waits behind what a log still has.
    fn take_pending_close(&mut self, slot: Slot) -> Option<Box<ClosePayload>> {
        self.out.kept_channels.get_mut(&slot)?.close.take()
    }

    /// Puts the close frame into the queue.
    pub(in crate::shard) fn append_close_frame(&mut self, slot: Slot, payload: &ClosePayload) {
        let connection = &mut self.table[slot];
        let code = connection.close_code;
        if connection.flags.has(Flag::Sse) {
            let reason = std::str::from_utf8(payload.as_slice().get(2..).unwrap_or_default());
            let event = sse::close(code, reason.unwrap_or_default());
            connection.close_bytes = u8::try_from(event.len()).unwrap_or(u8::MAX);
            return self.append_event(slot, &event);
        }
        let header = server_header(Opcode::Close, false, payload.as_slice().len());
        let connection = &mut self.table[slot];
        if !connection.flags.has(Flag::WaitsForOwner) {
            connection.flags.take(Flag::HasWaited);
        }
        connection.close_bytes = (header.as_slice().len() + payload.as_slice().len()) as u8;
        self.append_own(slot, header, payload.as_slice());
    }

    /// A close frame of ours that is queued already is not dropped: it is the last thing there.
    fn drop_queue_unless_closing(&mut self, slot: Slot) -> usize {
        if self.take_pending_close(slot).is_some() {
            self.table[slot].flags.take(Flag::CloseSent);
        }
        if self.table[slot].flags.has(Flag::CloseSent) { 0 } else { self.drop_queue(slot) }
    }

    /// Drops all behind the frame in progress. A close frame of ours that was dropped with the rest is no longer sent.
    fn drop_queue(&mut self, slot: Slot) -> usize {
        let unsent = if self.table[slot].flags.has(Flag::Lags) { self.forget_unsent(slot) } else { 0 };
        let is_pending = self.take_pending_close(slot).is_some();
        let connection = &mut self.table[slot];
        if is_pending {
            connection.flags.take(Flag::CloseSent);
        }
        let mut dropped = unsent + self.out.drop_behind_boundary(connection);
        if dropped > 0 && connection.flags.take(Flag::CloseSent) {
            dropped -= usize::from(std::mem::take(&mut connection.close_bytes));
        }
        let in_progress = connection.outbound.queued_bytes();
        self.settle_as_dropped_behind(slot, in_progress);
        dropped
    }

    /// The waiting bytes, without a close frame of ours.
    fn unsent_bytes(&self, slot: Slot) -> usize {
        let close_bytes = self.table[slot].close_bytes.into();
        self.queued_bytes(slot).saturating_sub(close_bytes)
    }

    fn shut_down(&mut self, slot: Slot) {
        if self.say_goodbye(slot) {
            // It is sent, and then we come here again.
            return;
        }
        let connection = &self.table[slot];
        if connection.flags.has(Flag::HalfClosed) {
            // The client has nothing more to send that could turn the close into a reset: close at once, as RFC 6455
            // 7.1.1 wants it of the server. That shuts the writing side, too.
            return self.remove(slot);
        }
        self.effects.push(Effect::ShutdownWrite(connection.socket));
        if connection.flags.has(Flag::Silent) {
            return self.remove(slot);
        }
        // The rest of a body or message is given the time of one.
        let has_more = matches!(&connection.phase, ConnectionPhase::Ending(ending) if ending.unread_bytes > 0);
        let linger_ms = self.config.linger_ms;
        self.linger(slot, if has_more { linger_ms.max(self.config.body_timeout_ms) } else { linger_ms });
    }

    /// The linger of the connection, by its phase.
    fn ending(&self, slot: Slot) -> Linger {
        let connection = &self.table[slot];
        let unread_bytes = match &connection.phase {
            // A client that was never let in is not waited for.
            _ if connection.flags.has(Flag::TurnedAway) => 0,
            ConnectionPhase::Http(exchange) => exchange.unread_bytes(),
            ConnectionPhase::Registering(registering) => registering.ws.unread_bytes(),
            ConnectionPhase::Open(channel) => channel.ws.unread_bytes(),
            ConnectionPhase::Ending(ending) => ending.unread_bytes,
        };
        Linger { unread_bytes, spare_bytes: self.config.linger_bytes_max, ..Linger::default() }
    }

    /// Bytes of a client that is not listened to any more.
    pub(in crate::shard) fn drop_unread(&mut self, slot: Slot, bytes: usize) {
        let connection = &mut self.table[slot];
        let ConnectionPhase::Ending(ending) = &mut connection.phase else { return };
        let had_more = ending.unread_bytes > 0;
        if !ending.take(bytes) {
            return self.remove(slot);
        }
        if had_more && ending.unread_bytes == 0 && connection.outbound.is_empty() {
            // All has come; now it may read what it was told, and close.
            self.linger(slot, self.config.linger_ms);
        }
    }

    /// Reads on for so long.
    fn linger(&mut self, slot: Slot, window_ms: u64) {
        if let ConnectionPhase::Ending(ending) = &mut self.table[slot].phase {
            (ending.came_bytes, ending.window_ms) = (0, window_ms);
        }
        self.set_deadline(slot, self.now_ms + window_ms);
    }

    /// The time to read on is up: the client is cut, unless more of what it was refused for still comes, and not too
    /// slowly. A stop waits for no upload.
    pub(in crate::shard) fn ending_expired(&mut self, slot: Slot) {
        let ConnectionPhase::Ending(ending) = &self.table[slot].phase else { return };
        let least_bytes = self.config.least_bytes(ending.window_ms.max(TICK_MS)).max(1);
        if ending.unread_bytes > 0 && ending.came_bytes >= least_bytes && !self.is_stopping() {
            return self.linger(slot, self.config.body_timeout_ms);
        }
        self.remove(slot);
    }
}
