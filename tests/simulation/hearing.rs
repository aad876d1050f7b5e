//! Receipts of clients and processes, and their checks.

use super::client::{Ask, Client, Left, Manners, State};
use super::oracle::{Channel, Ended, Fate, Pushed};
use super::orders::CLOSE_CODE;
use super::payload;
use super::process::{CONTENT, Phase};
use super::wire::Heard;
use super::world::World;
use pushring::internals::shard::command::Policy;
use pushring::internals::shard::event::{Closed, ClosedBy, ControlKind, Event, HttpAsk, HttpRequest, Opened};
use pushring::internals::shard::outcome::Outcome;
use pushring::internals::shard::process_queue::EventBatch;
use pushring::{ChannelId, Drain};

/// The close codes of registration: no process, a bad token, too late.
const NO_PROCESS: u16 = 4404;
const BAD_TOKEN: u16 = 4401;
const TOO_LATE: u16 = 4408;

/// Control frames of our own are not charged to the budget.
const CONTROL_BYTES_MAX: usize = 8 * 1024;

/// A broadcast may lie in an inbox for so long that a channel opens meanwhile.
const IN_INBOXES_MAX: u64 = 5_000;

impl World {
    pub fn note_heard(&mut self, number: usize, at_ms: u64, heard: Heard) -> Result<(), String> {
        self.trace.number(number as u64);
        self.trace.number(self.step);
        self.trace.number(at_ms);
        if let Heard::Frame { opcode, payload } = &heard {
            // Control frames of the server's own depend on time, and so on when others were looked at.
            self.trace.add(payload);
            if matches!(opcode, 1 | 2) && !payload.starts_with(b"{") {
                self.traces[number].number(self.step);
                self.traces[number].add(&payload[16.min(payload.len())..]);
            }
        }
        self.judge_client(number, at_ms, &heard).map_err(|why| format!("client {number}: {why}"))?;
        self.clients[number].answer(&heard, self.now_ms);
        match self.channel_of.get(&number) {
            Some(&id) => self.judge_channel(id, &heard),
            None => {
                self.early[number].push((at_ms, heard));
                Ok(())
            }
        }
    }

    /// The checks that hold whatever its channel, if it has one.
    fn judge_client(&mut self, number: usize, at_ms: u64, heard: &Heard) -> Result<(), String> {
        match heard {
            Heard::Response { status: 100, .. } => Ok(()),
            Heard::Response { status, body, .. } => {
                *self.report.answered.entry(*status).or_default() += 1;
                let asked = self.clients[number].asked.pop_front();
                self.judge_response(number, at_ms, asked, *status, body)
            }
            Heard::Upgraded { .. } if self.clients[number].is_turned_away => Err("let in over the limit".into()),
            Heard::Upgraded { .. } if self.clients[number].plan.manners == Manners::HalfHead => {
                Err("upgraded by half a request".into())
            }
            Heard::Frame { opcode: 8, payload } => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                self.judge_code(&self.clients[number], at_ms, code)
            }
            Heard::Upgraded { .. } | Heard::Frame { .. } => Ok(()),
            Heard::End => self.judge_end(&self.clients[number]),
        }
    }

    fn judge_end(&self, client: &Client) -> Result<(), String> {
        let (config, network) = (&self.settings.config, self.network.borrow());
        let socket = &network.sockets[client.plan.socket.0 as usize];
        let idle_ms = socket.ended_ms.unwrap_or(self.now_ms).saturating_sub(socket.whole_ms.max(client.accepted_ms));
        let is_explained = client.was_refused
            || client.was_stalled
            || self.settings.memory_bytes.is_some()
            || self.stopped_ms.is_some()
            || client.asked.is_empty()
            // The request came too late: the connection was idle for too long, counted from when the last response had
            // left, which the client may have read much later.
            || self.has_jumped()
            || idle_ms >= config.head_timeout_ms.min(config.http_idle_timeout_ms);
        if is_explained { Ok(()) } else { Err(format!("{} requests were not answered", client.asked.len())) }
    }

    /// A time that began then and lasts `timeout_ms` was over at `at_ms`, and not much earlier.
    fn judge_time(&self, what: &str, since_ms: u64, at_ms: u64, timeout_ms: u64) -> Result<(), String> {
        let (took_ms, slack_ms) = (at_ms.saturating_sub(since_ms), self.slack_ms(since_ms));
        if (timeout_ms..=timeout_ms + slack_ms).contains(&took_ms) {
            return Ok(());
        }
        Err(format!("{what} ended after {took_ms} ms, not {timeout_ms} and at most {slack_ms} more"))
    }

    fn judge_response(
        &self,
        number: usize,
        at_ms: u64,
        asked: Option<(u64, Ask)>,
        status: u16,
        body: &[u8],
    ) -> Result<(), String> {
        let client = &self.clients[number];
        if client.is_turned_away {
            return if status == 503 { Ok(()) } else { Err(format!("over the limit, and answered {status}")) };
        }
        let was_ended = self.was_ended[client.plan.name];
        let may_be_short = self.settings.memory_bytes.is_some();
        let is_half_head = client.plan.path.is_some() && client.plan.manners == Manners::HalfHead;
        let is_fine = match (status, asked) {
            (408, None) => {
                let timeout_ms = self.settings.config.head_timeout_ms;
                return match is_half_head {
                    true => self.judge_time("the head", client.accepted_ms, at_ms, timeout_ms),
                    false if at_ms >= client.accepted_ms + timeout_ms && self.has_jumped() => Ok(()),
                    false => Err("408, though its request came".into()),
                };
            }
            // The first bytes of its first request came late.
            (408, Some((0, _))) if at_ms >= client.accepted_ms + self.settings.config.head_timeout_ms => true,
            (408, Some((_, Ask::Half | Ask::Process))) => at_ms >= client.accepted_ms + 1_000,
            (408, Some(_)) => self.has_jumped(),
            (503, _) if may_be_short || was_ended => true,
            // Its process leaves so much unread that it would not hear of the channel, or has too many, or there were
            // too many handshakes.
            (503, None) if body == b"the process has too much to do" => true,
            // Its request, or the rest of it, came when the broker had stopped, or behind the grace of a drain.
            (503, _) if body == b"the server is going away" => self.stopped_ms.is_some(),
            (503, None) => self.settings.crowd.is_some(),
            // The process has too much to do.
            (503, Some((_, Ask::Process | Ask::Half))) => true,
            (404, None) => was_ended,
            (404, Some((_, ask))) => was_ended || ask == Ask::Nowhere,
            (500, Some((_, Ask::Process | Ask::Half))) => was_ended,
            (200, Some((_, Ask::Content))) => body == CONTENT,
            (200, Some((sequence, Ask::Process))) => {
                let token = payload::token(number, sequence);
                let rest = body.strip_prefix(token.as_bytes());
                rest.is_some_and(|rest| rest.len() >= 16 && rest == payload::of_push(0, rest.len() - 16))
            }
            _ => false,
        };
        if is_fine { Ok(()) } else { Err(format!("asked {asked:?} and got {status} of {} bytes", body.len())) }
    }

    fn judge_code(&self, client: &Client, at_ms: u64, code: u16) -> Result<(), String> {
        let is_fine = match code {
            TOO_LATE => {
                let timeout_ms = self.settings.config.register_timeout_ms;
                return match client.plan.manners {
                    // When it was upgraded we know by what it heard, which may be later.
                    Manners::NeverRegisters if client.accepted_ms + timeout_ms <= at_ms => {
                        let latest_ms = client.upgraded_ms + timeout_ms + self.slack_ms(client.accepted_ms);
                        if at_ms <= latest_ms { Ok(()) } else { Err(format!("refused {} ms late", at_ms - latest_ms)) }
                    }
                    _ if self.has_jumped() => Ok(()),
                    manners => Err(format!("4408 for a client whose manners are {manners:?}")),
                };
            }
            BAD_TOKEN => client.plan.manners == Manners::BadToken,
            NO_PROCESS => self.was_ended[client.plan.name],
            1002 | 1007..=1009 => client.violated == Some(code),
            1000 | 1005 | 4001 => client.sent_close == Some(code),
            _ => true,
        };
        if is_fine { Ok(()) } else { Err(format!("closed with {code}, without a cause")) }
    }

    fn judge_channel(&mut self, id: u32, heard: &Heard) -> Result<(), String> {
        let number = self.channels[&id].client;
        let socket = self.clients[number].plan.socket;
        let was_full = self.network.borrow_mut().socket(socket).was_full;
        let phase = self.processes[self.channels[&id].owner].phase;
        let (is_stopping, is_limited) = (self.stopped_ms.is_some(), self.settings.memory_bytes.is_some());
        let since_drained = self.drain.zip(self.stopped_ms).map(|(drain, at_ms)| (drain, self.now_ms - at_ms));
        let channel = self.channel(id);
        channel.was_full = was_full;
        let Heard::Frame { opcode, payload } = heard else { return Ok(()) };
        if *opcode != 8 {
            let heard = channel.heard(*opcode, payload);
            self.report.heard += 1;
            return heard;
        }
        let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
        if let Some(reason) = payload.get(2..).filter(|reason| code == 1012 && reason.starts_with(b"{\"retry_ms\":")) {
            return judge_drained(since_drained, reason).map_err(|why| channel.complain(&why));
        }
        match (code, channel.closed_at, phase) {
            // It stands behind everything that was pushed before it.
            (CLOSE_CODE, Some(at), _) => channel.all_have_come(0, at),
            (CLOSE_CODE, None, _) => Err(channel.complain("closed, though its process did not ask")),
            (1001, _, Phase::Ended(_)) if is_stopping => Ok(()),
            (1001 | 1011 | 1012, _, Phase::Ended(ended)) if ended == code => {
                channel.all_have_come(0, channel.pushed.len())
            }
            (1011 | 1012, _, _) => Err(channel.complain("closed, though its process has not ended")),
            (1013, _, _) if !was_full && !is_limited => {
                Err(channel.complain("too slow, though its socket was never full"))
            }
            _ => Ok(()),
        }
    }

    pub fn note_batch(&mut self, index: usize, batch: EventBatch) -> Result<(), String> {
        if batch.owner != self.processes[index].owner.id {
            return Err(format!("process {index} got the events of another"));
        }
        let told = &mut self.processes[index].told;
        for event in self.options.plant.events(batch.events, told) {
            match event {
                Event::Opened(opened) => self.note_opened(index, &opened)?,
                Event::Message { channel, payload, .. } => {
                    self.trace.add(&payload);
                    self.report.messages += 1;
                    self.live_channel(index, channel)?.message(&payload)?;
                }
                Event::Closed(closed) => self.note_closed(index, &closed)?,
                Event::Failed { ticket, outcome } => self.note_failed(ticket, &outcome)?,
                Event::Control { channel, kind, payload } if self.settings.wants_control => {
                    // Pongs answer the broker's pings, for ever.
                    self.report.pings += u64::from(kind == ControlKind::Ping);
                    let channel = self.live_channel(index, channel)?;
                    // A pong may also answer a ping of the broker, or of a process.
                    if kind == ControlKind::Ping && !payload.starts_with(b"c-") {
                        return Err(channel.complain("a ping that its client did not send"));
                    }
                }
                Event::Http(request) => self.note_request(index, &request)?,
                // Control and Outcome, and events unknown here.
                event => {
                    return Err(format!("process {index} did not ask for {event:?}"));
                }
            }
        }
        Ok(())
    }

    fn note_opened(&mut self, index: usize, opened: &Opened) -> Result<(), String> {
        let number = usize::from(opened.source.port() - 1000);
        let (client, id, shards) = (&self.clients[number], opened.channel, self.pumps.len());
        self.trace.number(u64::from(id.get()));
        let shard = number % shards;
        let path = client.plan.path.clone().unwrap_or_default();
        let is_expected = client.plan.name == self.processes[index].name
            && id.shard(shards as u32) as usize == shard
            && path.ends_with(&*opened.path)
            && client.may_become_a_channel()
            && !client.is_turned_away;
        if !is_expected {
            return Err(format!("client {number} became channel {id} of process {index}"));
        }
        let meets_pressure = self.settings.memory_bytes.is_some();
        let mut channel = Channel::new(id.get(), number, index, opened.registered, meets_pressure);
        let first = self.first_push[number];
        for (only, pushed) in &self.processes[index].broadcasts[shard] {
            if pushed.id + IN_INBOXES_MAX >= first && only.is_none_or(|only| only == &*opened.path) {
                channel.push(Pushed { is_unsure: true, ..pushed.clone() });
            }
        }
        if self.channels.insert(id.get(), channel).is_some() || self.channel_of.insert(number, id.get()).is_some() {
            return Err(format!("channel {id} of client {number} was opened twice"));
        }
        self.report.opened += 1;
        for (_, heard) in std::mem::take(&mut self.early[number]) {
            self.judge_channel(id.get(), &heard)?;
        }
        Ok(())
    }

    fn live_channel(&mut self, index: usize, id: ChannelId) -> Result<&mut Channel, String> {
        match self.channels.get_mut(&id.get()) {
            Some(channel) if channel.owner == index && channel.ended.is_none() => Ok(channel),
            Some(channel) => Err(channel.complain(&format!("an event for process {index}, or after Closed"))),
            None => Err(format!("an event of channel {id} before its Opened")),
        }
    }

    fn note_closed(&mut self, index: usize, closed: &Closed) -> Result<(), String> {
        self.trace.number(u64::from(closed.channel.get()) << 16 | u64::from(closed.code));
        *self.report.closed.entry(closed.by).or_default() += 1;
        let ended = Ended { code: closed.code, by: closed.by, lost_bytes: closed.lost_bytes };
        let channel = self.live_channel(index, closed.channel)?;
        channel.ended = Some(ended);
        let (number, id) = (channel.client, channel.id);
        let socket = self.clients[number].plan.socket;
        let was_full = self.network.borrow_mut().socket(socket).was_full;
        self.channel(id).was_full = was_full;
        let lost_max = self.settings.config.outbound_bytes_max.max(self.largest_order) + CONTROL_BYTES_MAX;
        let channel = &self.channels[&id];
        if closed.lost_bytes > lost_max {
            return Err(channel.complain(&format!("lost {} bytes, more than may wait", closed.lost_bytes)));
        }
        match self.cause_of(channel, &self.clients[number], closed) {
            true => Ok(()),
            false => Err(channel.complain(&format!("ended without a cause: {closed:?}"))),
        }
    }

    /// Returns whether a channel may have ended so.
    fn cause_of(&self, channel: &Channel, client: &Client, closed: &Closed) -> bool {
        let (code, is_stopping) = (closed.code, self.stopped_ms.is_some());
        // The time for the answer to a close frame begins when the frame is queued, whatever waits before it.
        let was_slow = client.left.is_some()
            || client.was_stalled
            || matches!(client.state, State::Unlawful | State::Gone)
            || matches!(client.plan.manners, Manners::IgnoresClose)
            || self.has_jumped()
            || self.settings.piece_bytes_max < 1_000
            || self.settings.message_bytes_max > 3_000
            || self.network.borrow().sockets[client.plan.socket.0 as usize].is_narrow();
        let is_unread = &*closed.reason == "the process does not read its events";
        let closes = Policy::closes;
        match closed.by {
            ClosedBy::Client => client.sent_close == Some(code) && channel.messages == client.sent,
            // After a close frame of ours, the end is the closing side's.
            ClosedBy::Connection => {
                code == 1006 && matches!(client.left, Some(Left::Fin | Left::Reset)) && client.received_close.is_none()
            }
            ClosedBy::Violation => client.violated == Some(code),
            ClosedBy::Backpressure => {
                code == 1013 && channel.was_full && channel.pushed.iter().any(|pushed| closes(pushed.policy))
            }
            ClosedBy::Timeout => code == 1001 && was_slow,
            ClosedBy::Broker if code == 1013 => self.settings.memory_bytes.is_some(),
            ClosedBy::Broker => is_stopping,
            ClosedBy::Process => {
                let phase = self.processes[channel.owner].phase;
                let is_ended = phase == Phase::Ended(code);
                let was_closed = channel.closed_at.is_some();
                is_ended
                    || (was_closed && code == CLOSE_CODE)
                    || (was_closed && code == 1006 && (was_slow || is_unread))
                    // Both have closed at the same time.
                    || (was_closed && client.sent_close == Some(code))
            }
            // No other end is known.
            _ => false,
        }
    }

    fn note_failed(&mut self, ticket: u64, outcome: &Outcome) -> Result<(), String> {
        let Outcome { closed, not_found, not_owner, .. } = outcome;
        if closed + not_found + not_owner != 1 {
            return Err(format!("push {ticket} is said to have failed: {outcome:?}"));
        }
        if self.network.borrow().left.contains_key(&ticket) {
            return Err(format!("push {ticket} left, and is said to have failed"));
        }
        self.channels.values_mut().try_for_each(|channel| channel.settle(ticket, Fate::Refused))
    }

    fn note_request(&mut self, index: usize, request: &HttpRequest) -> Result<(), String> {
        let HttpAsk::Path(asked) = &request.ask else { return Err(format!("{request:?} is for the system")) };
        let token = asked.headers.get("x-token").cloned().unwrap_or_default();
        let Some((number, sequence)) = payload::of_token(&token) else { return Err(format!("no token: {request:?}")) };
        self.trace.add(token.as_bytes());
        let client = &self.clients[number];
        let body = match asked.method.as_str() {
            "GET" => Vec::new(),
            _ => payload::of_client(number, sequence, request.body.len().saturating_sub(16)),
        };
        let is_expected = client.plan.name == self.processes[index].name
            && request.body == body
            && asked.source == (client.plan.ip, 1000 + number as u16).into();
        if !is_expected {
            return Err(format!("process {index} was asked {token} of client {number}, with other bytes"));
        }
        self.processes[index].requests.push((request.id, token));
        Ok(())
    }

    /// Takes in the outcomes of pushes.
    pub fn settle(&mut self) -> Result<(), String> {
        while let Ok((id, outcome)) = self.outcomes.try_recv() {
            // Made, and never submitted: no outcome is expected.
            let Some(awaited) = self.awaited.get_mut(&id) else { continue };
            if awaited.outcome.replace(outcome).is_some() {
                return Err(format!("push {id} was settled twice"));
            }
            let awaited = *awaited;
            let Outcome { sent, queued, queued_bytes, conflated, dropped, closed, not_found, not_owner, .. } = outcome;
            self.trace.number(id << 16 | (sent as u64) << 8 | queued as u64);
            let total = sent + queued + conflated + dropped + closed + not_found + not_owner;
            let why = |what: &str| Err(format!("push {id}, {awaited:?}: {what}"));
            // Orders left in the inbox of a stopped shard are never counted.
            let is_stopped = self.pumps.iter().any(super::pump::Pump::is_over);
            let is_whole = match awaited.audience {
                Some(audience) if awaited.refused == 0 && !is_stopped => total == audience,
                Some(audience) => total <= audience,
                None => true,
            };
            if !is_whole || (awaited.refused == awaited.parts && total > 0) {
                return why("the counts are not the audience");
            }
            let most =
                self.settings.config.outbound_bytes_max.max(awaited.bytes).max(self.settings.push_bytes_max + 26);
            if queued_bytes > (most + CONTROL_BYTES_MAX) * queued {
                return why("it waits in too long a queue");
            }
            if awaited.bytes == 0 {
                continue;
            }
            let left = self.network.borrow().left.get(&id).copied().unwrap_or(0);
            if left < sent || (awaited.parts == 1 && queued + conflated == 0 && left != sent) {
                return why(&format!("it has left {left} times"));
            }
            if let Some(channel) = awaited.channel.filter(|_| total == 1) {
                let fate = if sent + queued + conflated > 0 { Fate::Taken } else { Fate::Refused };
                self.channel(channel).settle(id, fate)?;
            }
        }
        Ok(())
    }
}

/// The client's notice of a drain that began so long ago, in milliseconds.
fn judge_drained(drained: Option<(Drain, u64)>, reason: &[u8]) -> Result<(), String> {
    let told: serde_json::Value = serde_json::from_slice(reason).map_err(|error| format!("{error}: {reason:?}"))?;
    let is_spread = told["retry_ms"].as_u64().is_some_and(|retry_ms| retry_ms < 1_000);
    match drained {
        Some((drain, since_ms)) if is_spread && since_ms >= drain.grace_ms => Ok(()),
        _ => Err(format!("told {told} of the drain {drained:?}")),
    }
}
