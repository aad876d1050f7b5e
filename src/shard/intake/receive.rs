//! The inbound path of a WebSocket: the bytes of a read become frames, and frames become events.
//!
//! Invariants: all frames of one read are parsed in one pass; nothing is parsed that its owner has no room for, the
//! rest is kept and reading stops; a client whose own queue is over half full is not read either, so one that sends
//! without reading slows only itself.

use crate::channel::ChannelId;
use crate::gateway::REGISTRATION_BYTES_MAX;
use crate::proto::{MessageKind, MessageLimits, Opcode, Payload, Received, Violation, server_header};
use crate::resume::text;
use crate::shard::core::{Effect, Shard};
use crate::shard::event::{ClientMessage, ClosedBy, ControlKind, Event};
use crate::shard::intake::records::TRUNCATED;
use crate::shard::out::outbound::{ControlFrame, ControlLane};
use crate::shard::table::connection::{
    Channel, Connection, ConnectionPhase, ConnectionToken, Flag, SocketEnd, Unparsed,
};
use crate::shard::table::slot::Slot;
use crate::shard::table::wheel::TICK_MS;
use crate::shard::work::{self, copy_ns, inflate_ns};
use crate::tls::INCOMING_BYTES_MAX;

/// A client that breaks the protocol so soon after a message is told so this much later: what was valid is still
/// answered. A process answers within microseconds; a tick is the least that can be waited for.
pub(in crate::shard) const ANSWER_GRACE_MS: u32 = TICK_MS as u32;

/// A client whose compressed messages come to so much goes on behind others, in the middle of one perhaps.
const INFLATE_SLICE_NS: u64 = 100_000;

/// After so much inflating in a turn, clients that may send compressed messages wait for the next turn; others do not.
const TURN_INFLATE_NS: u64 = 200_000;

/// So many frames of six bytes are work for a third of a millisecond.
pub(in crate::shard) const READ_SLICE_BYTES: usize = 16 * 1024;

/// The most of one read.
pub(in crate::shard) const READ_BYTES_MAX: usize = 64 * 1024;

/// The limits of a client before it has registered.
const REGISTRATION_LIMITS: MessageLimits = MessageLimits::for_messages(REGISTRATION_BYTES_MAX);

/// A Text that its client has escaped, as it was.
fn without_mark(payload: Payload<'_>) -> Payload<'_> {
    match payload {
        Payload::Borrowed(bytes) => Payload::Borrowed(&bytes[1..]),
        Payload::Owned(mut bytes) => {
            bytes.remove(0);
            Payload::Owned(bytes)
        }
    }
}

/// The next step after one frame.
enum ReceiveStep {
    Next,
    /// The connection is not a WebSocket that reads any more, or is gone.
    Over,
}

impl Shard {
    /// Returns whether this is an open channel over plain TCP of which nothing was read in part, and that may be read
    /// now, as most are: then it is read for a slice, and nothing was [`carried`](Self::carried).
    #[inline]
    pub(in crate::shard) fn is_read_plainly(&self, token: ConnectionToken) -> bool {
        let Some(slot) = self.table.resolve(token) else { return false };
        let connection = &self.table[slot];
        matches!(&connection.phase, ConnectionPhase::Open(channel) if channel.ws.is_between_messages())
            && !connection.is_paused()
            && connection.tls.is_none()
            && connection.unparsed.is_none()
    }

    /// Returns whether this connection may be read now. If not, its readiness is remembered, and [`Effect::Read`]
    /// follows when it may.
    pub fn wants_read(&mut self, token: ConnectionToken) -> bool {
        let Some(slot) = self.table.resolve(token) else { return false };
        let connection = &mut self.table[slot];
        let wants = !connection.is_paused()
            && match &connection.phase {
                ConnectionPhase::Http(exchange) => exchange.wants_read(),
                _ => true,
            }
            && !self.must_wait_for_memory(slot);
        if !wants {
            self.table[slot].flags.set(Flag::Readable);
            self.hurry_end(slot);
        }
        wants
    }

    /// Its socket says that the client ends. What it sent before is still to be read: then its end is found behind it.
    pub fn handle_hangup(&mut self, token: ConnectionToken, end: SocketEnd) {
        let Some(slot) = self.table.resolve(token) else { return };
        let flags = &mut self.table[slot].flags;
        flags.set(Flag::HangsUp);
        if end == SocketEnd::Broken {
            flags.set(Flag::Broken);
        }
    }

    /// This connection is not to be read now. Where its client is known to have left, it is not kept for long, whatever
    /// it waits for.
    pub(in crate::shard) fn hurry_end(&mut self, slot: Slot) {
        let connection = &self.table[slot];
        if !connection.flags.has(Flag::HangsUp) {
            return;
        }
        match &connection.phase {
            // There is no client left to receive the answer.
            ConnectionPhase::Http(_) if connection.flags.has(Flag::Broken) => self.connection_failed(slot),
            ConnectionPhase::Http(exchange) if exchange.is_answering() => self.hurry_deadline(slot),
            ConnectionPhase::Open(_) | ConnectionPhase::Registering(_) => self.hurry_deadline(slot),
            ConnectionPhase::Http(_) | ConnectionPhase::Ending { .. } => {}
        }
    }

    pub(super) fn hurry_deadline(&mut self, slot: Slot) {
        let latest_ms = self.now_ms + self.config.close_timeout_ms;
        if self.table[slot].deadline_tick > Self::tick_of(latest_ms) {
            self.set_deadline(slot, latest_ms);
        }
    }

    /// Returns whether this client is to be read after all others, in the next turn: it may send compressed messages,
    /// and enough of those were inflated in this one.
    pub fn must_wait_to_inflate(&self, token: ConnectionToken) -> bool {
        self.work.inflated_ns() >= TURN_INFLATE_NS
            && self.table.resolve(token).is_some_and(|slot| match &self.table[slot].phase {
                ConnectionPhase::Open(channel) => channel.ws.deflate().is_some(),
                ConnectionPhase::Registering(_) | ConnectionPhase::Http(_) | ConnectionPhase::Ending(_) => false,
            })
    }

    /// How much of a client is read at a time: as many of the smallest frames as are work for a slice, and the whole
    /// rest of a frame or a body that is on its way.
    pub fn read_bytes_max(&self, token: ConnectionToken) -> usize {
        let Some(slot) = self.table.resolve(token) else { return READ_BYTES_MAX };
        if self.table[slot].is_shaking() {
            return INCOMING_BYTES_MAX;
        }
        self.slice_bytes(slot).min(READ_BYTES_MAX)
    }

    fn slice_bytes(&self, slot: Slot) -> usize {
        match &self.table[slot].phase {
            ConnectionPhase::Open(channel) => READ_SLICE_BYTES + channel.ws.awaited_bytes(),
            ConnectionPhase::Registering(_) => READ_SLICE_BYTES,
            ConnectionPhase::Http(_) | ConnectionPhase::Ending { .. } => READ_BYTES_MAX,
        }
    }

    /// Bytes of a client, behind those that were [`carried`](Self::carried). They are opened and unmasked in place.
    pub fn handle_read(&mut self, token: ConnectionToken, bytes: &mut [u8], now_ms: u64) {
        self.now_ms = now_ms;
        let Some(slot) = self.table.resolve(token) else { return };
        let carried = self.table[slot].carried_bytes();
        self.stats.received_bytes += (bytes.len() - carried) as u64;
        self.work.spend(work::READ_NS + copy_ns(bytes.len()));
        let late_ms = self.table.late_ms();
        let connection = &mut self.table[slot];
        if late_ms > 0 {
            connection.excuse_control(now_ms, late_ms, self.config.control_frames_per_s_max);
        }
        connection.heard(now_ms);
        let is_sealed = connection.tls.is_some() && !matches!(connection.phase, ConnectionPhase::Ending(_));
        if let Some(bytes) = self.behind_proxy_header(slot, bytes) {
            if is_sealed {
                return self.receive_records(slot, bytes);
            }
            self.receive(slot, bytes);
        }
    }

    /// All that the client has sent was read, and there is an end behind it; or nothing can be read any more.
    pub fn handle_end(&mut self, token: ConnectionToken, end: SocketEnd, now_ms: u64) {
        self.now_ms = now_ms;
        let Some(slot) = self.table.resolve(token) else { return };
        let connection = &mut self.table[slot];
        match &connection.phase {
            // A client may shut its sending side behind a request and still read the response. One that has left does
            // the same, so the response is not waited for as long as it may take.
            ConnectionPhase::Http(exchange) if exchange.is_answering() && end == SocketEnd::Finished => {
                connection.flags.set(Flag::HalfClosed);
                if !exchange.responding() {
                    self.hurry_deadline(slot);
                }
            }
            ConnectionPhase::Open(_) | ConnectionPhase::Http(_) | ConnectionPhase::Registering(_)
                if end == SocketEnd::Finished && connection.is_truncated() =>
            {
                self.tls_counts.truncated += 1;
                self.connection_failed_for(slot, TRUNCATED);
            }
            // Why it was refused, or our goodbye, leaves first.
            ConnectionPhase::Ending(_) if end == SocketEnd::Finished && !connection.outbound.is_empty() => {
                connection.flags.set(Flag::HalfClosed);
            }
            phase => {
                // What we have refused is counted already, and its client's end is the answer to that.
                let is_refused = matches!(phase, ConnectionPhase::Ending(_));
                self.tls_counts.given_up += u64::from(connection.is_shaking() && !is_refused);
                self.connection_failed(slot);
            }
        }
    }

    /// Bytes for whatever the connection is at.
    pub(in crate::shard) fn receive(&mut self, slot: Slot, bytes: &mut [u8]) {
        self.parse(slot, bytes);
        self.weigh_incoming(slot);
    }

    /// Charges what a connection holds of what its client sends, if it is still there and that is anything, or was.
    pub(super) fn weigh_incoming(&mut self, slot: Slot) {
        let Some(connection) = self.table.get(slot) else { return };
        if connection.flags.has(Flag::Holds) || connection.incoming_bytes() > 0 {
            self.weigh(slot);
        }
    }

    fn parse(&mut self, slot: Slot, bytes: &mut [u8]) {
        match &self.table[slot].phase {
            ConnectionPhase::Http(_) => self.receive_http(slot, bytes),
            // It has asked for a stream without an end: nothing can follow that.
            ConnectionPhase::Open(_) if self.table[slot].flags.has(Flag::Sse) => self.connection_failed(slot),
            ConnectionPhase::Registering(_) | ConnectionPhase::Open(_) => self.receive_frames(slot, bytes),
            ConnectionPhase::Ending(_) => self.drop_unread(slot, bytes.len()),
        }
    }

    /// Parses frames until the input is used up, or may not be parsed yet.
    pub(in crate::shard) fn receive_frames(&mut self, slot: Slot, mut input: &mut [u8]) {
        let mut scratch = self.intake.scratch.take().unwrap_or_default();
        let until_ns = self.work.inflated_ns() + INFLATE_SLICE_NS;
        // What came with an upgrade, or has waited, may be more than is read of a client at a time.
        let left_bytes = input.len().saturating_sub(self.slice_bytes(slot));
        while !input.is_empty() || self.table.get(slot).is_some_and(Connection::is_inflating) {
            match self.hear_at_once(slot, input) {
                Ok(0) => {}
                Ok(heard_bytes) if self.table.contains(slot) => {
                    input = &mut std::mem::take(&mut input)[heard_bytes..];
                    continue;
                }
                // Its handler has ended it.
                Ok(_) => break,
                Err(violation) => {
                    self.violated(slot, violation);
                    break;
                }
            }
            let is_long = self.work.inflated_ns() >= until_ns || input.len() < left_bytes;
            if is_long || self.must_pause(slot, false) {
                let connection = &mut self.table[slot];
                connection.unparsed = Some(Box::new(Unparsed(Box::from(&*input))));
                if is_long {
                    self.intake.resume(connection, slot);
                }
                break;
            }
            let connection = &mut self.table[slot];
            let (ws, channel) = match &mut connection.phase {
                ConnectionPhase::Open(channel) => (&mut channel.ws, Some((channel.id, channel.owner))),
                ConnectionPhase::Registering(registering) => (&mut registering.ws, None),
                ConnectionPhase::Http(_) | ConnectionPhase::Ending(_) => break,
            };
            // A client that has not registered cannot make the broker hold more than a registration.
            let limits = if channel.is_some() { &self.config.limits } else { &REGISTRATION_LIMITS };
            let available = input.len();
            self.work.spend(work::FRAME_NS);
            let received = ws.receive(input, limits, &mut scratch);
            let (consumed, step) = match received {
                Ok((consumed, None)) => (consumed, ReceiveStep::Next),
                Ok((consumed, Some(event))) => {
                    (consumed, self.handle_event(slot, channel, event, consumed == available))
                }
                Err(violation) => (0, self.violated(slot, violation)),
            };
            self.work.inflate(inflate_ns(scratch.take_inflated_bytes()));
            self.work.spend(work::FRAGMENT_NS * scratch.take_fragments() as u64);
            if matches!(step, ReceiveStep::Over) {
                break;
            }
            input = &mut std::mem::take(&mut input)[consumed..];
        }
        self.intake.scratch = Some(scratch);
    }

    /// Gives the messages at the front of `input` to the handler of their process as they lie, without making them
    /// events, where the process runs here and nothing stands before them: those that are of one frame, whole and not
    /// compressed. Returns how many bytes they had.
    fn hear_at_once(&mut self, slot: Slot, input: &mut [u8]) -> Result<usize, Violation> {
        if self.handlers.at_once_left_ns() == 0 {
            return Ok(0);
        }
        let Some(owner) = self.table.get(slot).and_then(Connection::channel).map(|channel| channel.owner) else {
            return Ok(0);
        };
        let Some(mut hears) = self.begin_at_once(owner) else { return Ok(0) };
        let (mut rest, mut goes_on, mut result) = (&mut *input, true, Ok(()));
        while goes_on {
            // Its handler may have ended the connection, or the channel.
            let Some(connection) = self.table.get_mut(slot) else { break };
            let ConnectionPhase::Open(channel) = &mut connection.phase else { break };
            if connection.flags.has(Flag::Kept) || connection.outbound.is_blocked() {
                break;
            }
            let whole = match channel.ws.receive_whole(&mut *rest, &self.config.limits) {
                Some(Ok(whole)) => whole,
                Some(Err(violation)) => {
                    result = Err(violation);
                    break;
                }
                None => break,
            };
            channel.message_ms = self.now_ms as u32;
            let message = ClientMessage::borrowed(channel.id, whole.kind, whole.payload);
            let frame_bytes = whole.frame_bytes;
            self.stats.received += 1;
            self.work.spend(work::FRAME_NS);
            goes_on = self.give_at_once(&mut hears, message);
            rest = &mut std::mem::take(&mut rest)[frame_bytes..];
        }
        let left_bytes = rest.len();
        self.end_at_once(hears);
        result.map(|()| input.len() - left_bytes)
    }

    /// A message of a channel that stands before others, or is more than a whole frame.
    fn hear_message(
        &mut self,
        slot: Slot,
        (channel, owner): (ChannelId, u32),
        kind: MessageKind,
        payload: Payload<'_>,
    ) -> ReceiveStep {
        if let Payload::Borrowed(bytes) = payload
            && let Some(mut hears) = self.begin_at_once(owner)
        {
            self.give_at_once(&mut hears, ClientMessage::borrowed(channel, kind, bytes));
            self.end_at_once(hears);
            // Its handler may have ended it.
            return if self.table.get(slot).is_some() { ReceiveStep::Next } else { ReceiveStep::Over };
        }
        let payload = self.owners.keep(owner, payload);
        self.owners.emit(owner, Event::Message { channel, kind, payload });
        ReceiveStep::Next
    }

    /// `is_last` tells that nothing was read behind it.
    fn handle_event(
        &mut self,
        slot: Slot,
        channel: Option<(ChannelId, u32)>,
        event: Received<'_>,
        is_last: bool,
    ) -> ReceiveStep {
        match (event, channel) {
            (Received::Message { kind, payload }, Some((channel, owner))) => {
                self.stats.received += 1;
                let connection = &mut self.table[slot];
                if let ConnectionPhase::Open(channel) = &mut connection.phase {
                    channel.message_ms = self.now_ms as u32;
                    self.owners.count_added(owner, &mut channel.added, payload.len());
                }
                if connection.flags.has(Flag::Kept) {
                    return self.receive_kept(slot, kind, payload);
                }
                self.hear_message(slot, (channel, owner), kind, payload)
            }
            (Received::Unfinished, _) => ReceiveStep::Next,
            (Received::Message { payload, .. }, None) => {
                self.register(slot, &payload);
                ReceiveStep::Next
            }
            (Received::Ping(_) | Received::Pong(_), _) if !self.may_send_control(slot) => {
                self.violated(slot, Violation::TooManyControlFrames)
            }
            (Received::Ping(payload), _) => {
                self.send_control(slot, Opcode::Pong, ControlLane::Pong, payload);
                self.emit_control(channel, ControlKind::Ping, payload);
                ReceiveStep::Next
            }
            (Received::Pong(payload), _) => {
                self.note_pong(slot, payload);
                self.emit_control(channel, ControlKind::Pong, payload);
                ReceiveStep::Next
            }
            (Received::Close(received), _) => {
                self.emit_control(channel, ControlKind::Close, received.reason.as_bytes());
                if is_last {
                    // RFC 6455 5.5.1: a client sends nothing behind its close frame, and this one has not.
                    self.table[slot].flags.set(Flag::HalfClosed);
                }
                self.closed_by_client(slot, &received);
                ReceiveStep::Over
            }
        }
    }

    /// A message of a client whose channel is kept: counted, or a control text.
    fn receive_kept(&mut self, slot: Slot, kind: MessageKind, payload: Payload<'_>) -> ReceiveStep {
        let is_text = kind == MessageKind::Text;
        let payload = match payload.first_chunk() {
            Some([text::MARK, text::MARK]) if is_text => without_mark(payload),
            _ if is_text && text::is_marked(&payload) => return self.execute_client(slot, &payload[1..]),
            _ => payload,
        };
        let Some((id, owner)) = self.table[slot].channel().map(|channel| (channel.id, channel.owner)) else {
            return ReceiveStep::Over;
        };
        if let Some(kept_channel) = self.out.kept_channels.get_mut(&slot) {
            kept_channel.received += 1;
            // It goes on from where the hello has told it to, so the hello has come.
            kept_channel.tokens.settle();
        }
        let payload = self.owners.keep(owner, payload);
        self.owners.emit(owner, Event::Message { channel: id, kind, payload });
        ReceiveStep::Next
    }

    /// A control text of a client.
    fn execute_client(&mut self, slot: Slot, control: &[u8]) -> ReceiveStep {
        let Ok(said) = text::control(control) else { return self.violated(slot, Violation::NoControlText) };
        if let (Some(received), Some(kept_channel)) = (said.ack, self.out.kept_channels.get_mut(&slot)) {
            kept_channel.tokens.settle();
            if !kept_channel.log.acknowledged(received) {
                return self.violated(slot, Violation::NoControlText);
            }
        }
        if let Some(number) = said.ping {
            // It costs what a ping of RFC 6455 does, and has the same limit.
            if !self.may_send_control(slot) {
                return self.violated(slot, Violation::TooManyControlFrames);
            }
            self.send_control(slot, Opcode::Text, ControlLane::TextPong, text::pong(number).as_bytes());
        }
        if said.is_for_others() {
            let named = self.table[slot].channel().map(|channel| (channel.id, channel.owner));
            self.emit_control(named, ControlKind::Text, control);
        }
        ReceiveStep::Next
    }

    /// Our pings carry their time. What a client makes of it, it makes of its own record.
    fn note_pong(&mut self, slot: Slot, payload: &[u8]) {
        let ConnectionPhase::Open(channel) = &mut self.table[slot].phase else { return };
        if let Ok(sent_ms) = payload.try_into().map(u32::from_be_bytes) {
            let took_ms = (self.now_ms as u32).wrapping_sub(sent_ms);
            channel.ping_ms = u16::try_from(took_ms).unwrap_or(Channel::NO_PING);
        }
    }

    fn may_send_control(&mut self, slot: Slot) -> bool {
        self.table[slot].may_send_control(self.now_ms, self.config.control_frames_per_s_max)
    }

    /// Fails the connection (RFC 6455 7.1.7).
    fn violated(&mut self, slot: Slot, violation: Violation) -> ReceiveStep {
        self.stats.violations += 1;
        if let (Violation::CloseCodeInvalid(_), Some(channel)) = (violation, self.table[slot].channel()) {
            // A node's process is told of this violation as of a close (node contract, section 2).
            let named = Some((channel.id, channel.owner));
            self.emit_control(named, ControlKind::Close, b"Protocol violation");
        }
        let now_ms = self.now_ms;
        match &mut self.table[slot].phase {
            // Its process is still to answer what came before, in this very read perhaps.
            ConnectionPhase::Open(channel) if (now_ms as u32).wrapping_sub(channel.message_ms) < ANSWER_GRACE_MS => {
                channel.violation = Some(violation);
                self.table[slot].flags.set(Flag::Failing);
                self.set_deadline(slot, now_ms + u64::from(ANSWER_GRACE_MS));
            }
            _ => self.fail_for(slot, violation),
        }
        ReceiveStep::Over
    }

    /// Tells the client its violation, and ends the connection.
    pub(in crate::shard) fn fail_for(&mut self, slot: Slot, violation: Violation) {
        self.fail(slot, violation.close_code(), violation.reason(), ClosedBy::Violation);
    }

    fn emit_control(&mut self, channel: Option<(ChannelId, u32)>, kind: ControlKind, payload: &[u8]) {
        let Some((channel, owner)) = channel else { return };
        if self.owners[owner].owner.wants_control() {
            let payload = self.owners.keep(owner, Payload::Borrowed(payload));
            self.owners.emit(owner, Event::Control { channel, kind, payload });
        }
    }

    /// Sends a control frame of our own: like any frame while the socket takes them, else in its lane.
    pub(in crate::shard) fn send_control(&mut self, slot: Slot, opcode: Opcode, lane: ControlLane, payload: &[u8]) {
        let header = server_header(opcode, false, payload.len());
        let connection = &mut self.table[slot];
        // RFC 6455 5.5.1: nothing may follow a close frame.
        if connection.flags.has(Flag::CloseSent) {
            return;
        }
        if connection.outbound.is_blocked() {
            let mut frame = ControlFrame::from_slice(header.as_slice());
            frame.extend_from_slice(payload);
            connection.outbound.set_lane(lane, frame);
        } else {
            self.append(slot, &header, payload);
        }
    }

    /// Returns whether the next frame of this connection must wait; if so its wait has been noted. `goes_on` tells that
    /// it has waited, and parsed nothing since.
    #[inline]
    fn must_pause(&mut self, slot: Slot, goes_on: bool) -> bool {
        let connection = &self.table[slot];
        if connection.outbound.is_blocked() && self.pauses_for_client(slot) {
            return true;
        }
        let ConnectionPhase::Open(channel) = &self.table[slot].phase else { return false };
        let place = channel.owner;
        let Err(wanted) = self.owners.may_add(place, channel.added) else { return false };
        let flags = &mut self.table[slot].flags;
        flags.set(Flag::WaitsForOwner);
        flags.set(Flag::HasWaited);
        self.owners.wait_for_room(place, slot, wanted, goes_on);
        true
    }

    #[cold]
    fn pauses_for_client(&mut self, slot: Slot) -> bool {
        let pauses = self.queued_bytes(slot) > self.config.outbound_bytes_max / 2;
        if pauses {
            self.table[slot].flags.set(Flag::WaitsForClient);
        }
        pauses
    }

    /// Lets those go on that may: clients whose process has room again, and those that a send, a response or memory has
    /// held up. Returns whether there were any.
    pub(in crate::shard) fn resume(&mut self, until_ns: u64) -> bool {
        self.look_at_full_owners(until_ns);
        // Clients that may resume because these have resumed are served in the next turn, like those for whom this one
        // is over.
        let resumed = self.intake.resume.len();
        for number in 0..resumed {
            if number > 0 && self.work.spent_ns() >= until_ns {
                break;
            }
            self.work.spend(work::RESUME_NS);
            if let Some(slot) = self.intake.resume.pop_front()
                && let Some(connection) = self.table.get_mut(slot)
                && connection.flags.take(Flag::Resumes)
            {
                self.go_on(slot);
                self.spend_wakes();
            }
        }
        resumed > 0
    }

    /// Looks at owners whose queues had no room, for half of what is left of the turn at most: there may be as many as
    /// channels.
    fn look_at_full_owners(&mut self, until_ns: u64) {
        let spent_ns = self.work.spent_ns();
        let looks_until_ns = spent_ns + until_ns.saturating_sub(spent_ns) / 2;
        for number in 0..self.owners.full() {
            if number > 0 && self.work.spent_ns() >= looks_until_ns {
                break;
            }
            let (table, intake, work) = (&mut self.table, &mut self.intake, &mut self.work);
            work.spend(work::LOOK_AT_OWNER_NS);
            self.owners.take_resumable(|slot| {
                work.spend(work::PASS_NS);
                if let Some(connection) = table.get_mut(slot)
                    && connection.flags.take(Flag::WaitsForOwner)
                {
                    intake.resume(connection, slot);
                }
            });
        }
    }

    fn go_on(&mut self, slot: Slot) {
        let generation = self.table[slot].generation;
        if self.is_request_waiting(slot) {
            self.receive(slot, &mut []);
        }
        if self.table.is_alive(slot, generation) {
            self.resume_reading(slot);
        }
    }

    /// Goes on with a connection that was paused: first with what was read but not parsed, then with the socket.
    pub(in crate::shard) fn resume_reading(&mut self, slot: Slot) {
        let connection = &mut self.table[slot];
        if connection.is_paused() {
            return;
        }
        // Those before it may have filled the queue again: then it is still before them.
        if connection.unparsed.is_some() && self.must_pause(slot, true) {
            return;
        }
        let token = self.table.token(slot);
        let connection = &mut self.table[slot];
        // The silence was ours: the client was not read.
        connection.excuse_control(self.now_ms, u64::MAX, self.config.control_frames_per_s_max);
        connection.heard(self.now_ms);
        if let Some(mut unparsed) = connection.unparsed.take() {
            self.work.spend(copy_ns(unparsed.0.len()));
            self.receive(slot, &mut unparsed.0);
        }
        if self.table.is_alive(slot, token.generation) {
            self.end_records(slot);
        }
        if self.table.is_alive(slot, token.generation)
            && let connection = &mut self.table[slot]
            && !connection.is_paused()
            && connection.flags.take(Flag::Readable)
        {
            self.effects.push(Effect::Read(token));
        }
    }
}
