//! Clients that come back for their channels: checked on the shard of the channel, wherever their sockets were
//! accepted.
//!
//! The shard that accepted the socket has checked host, login, Origin, handshake and the token's MAC. If another shard
//! has the channel, it passes the socket there with all that it knows ([`Arrival`]), as plain data.
//!
//! Invariants: each answer brings a new token, and the previous one stays valid until the client has shown that it
//! received the new one; a client that may come back finds its channel whether it is detached or its old connection
//! seems alive, which is then dropped without an event to the owner; a client that may not gets a new channel and the
//! reason. A connection is counted once on its way from shard to shard.

use super::arrival::{Arrival, CountedConnection, Handover, ResumeRequest, Upgraded};
use super::detaching::{ENDS_FOR_GOOD, OF_CHANNEL};
use super::slot::Slot;
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::proto::deflate::Agreed;
use crate::proto::{self, Opcode, close, server_header};
use crate::resume::text::{self, ResumeAnswer};
use crate::resume::{MalformedElement, ResumeAsk, ResumeRefusal, ResumeToken, TokenMismatch};
use crate::shard::command::CloseFrame;
use crate::shard::core::{Effect, Shard};
use crate::shard::event::{ClosedBy, Event};
use crate::shard::flush::SocketId;
use crate::shard::out::kept_channels::{KeptChannel, ResumeHolder};
use crate::shard::owners::directory::Owner;
use crate::shard::table::connection::{Connection, ConnectionPhase, Flag, Registering};
use crate::shard::table::opening::{Kept, Opening};
use crate::shard::work;
use std::sync::Arc;

impl Shard {
    /// The channel that a client may come back for, as far as this shard can tell: its token is of this broker.
    pub(super) fn returns_to(&self, wish: &ResumeRequest) -> Option<ChannelId> {
        let ask = wish.ask?.ok()?;
        self.keys.verify(ask.channel, &ask.token).is_ok().then_some(ask.channel)
    }

    /// An upgraded connection whose channel is to outlive it: it takes up an old one, goes on to its shard, or opens
    /// one.
    pub(in crate::shard) fn begin_kept(&mut self, slot: Slot, upgraded: Upgraded) {
        match self.goes_to(&upgraded.wish) {
            Some(to) if to != self.index() => self.hand_over(slot, to, upgraded),
            _ => self.take_up_or_open(slot, upgraded),
        }
    }

    /// The shard that holds what a client comes back for, if any does: then it is counted there.
    pub(in crate::shard) fn goes_to(&self, wish: &ResumeRequest) -> Option<u32> {
        match wish.stream {
            Some(stream) => self.shard_of_last(stream),
            None => self.returns_to(wish).map(|channel| channel.shard(self.shards)),
        }
    }

    fn hand_over(&mut self, slot: Slot, to: u32, upgraded: Upgraded) {
        let mut connection = self.take_out(slot);
        debug_assert_eq!(connection.outbound.offerable_bytes(), 0, "what was asked before has been answered");
        let (tls, sealed) = (connection.tls.take(), connection.outbound.sealed().to_vec());
        let (socket, peer) = (connection.socket, connection.peer.into());
        let counted = CountedConnection::new(&self.table.admission, connection.client.take(), self.now_ms);
        let arrival = Box::new(Arrival { peer, counted, tls, sealed, upgraded });
        self.handovers.push(Handover { socket, to, arrival });
    }

    /// Takes a connection out of the table; its socket lives on.
    fn take_out(&mut self, slot: Slot) -> Connection {
        self.forget_asked(slot);
        let mut connection = self.table.connections.remove(slot.index());
        let outbound = std::mem::take(&mut connection.outbound);
        self.out.forget(&mut connection, slot);
        self.table.over_tls -= usize::from(connection.tls.is_some());
        if connection.flags.has(Flag::Holds) {
            self.memory.forget(slot);
        }
        Connection { outbound, ..connection }
    }

    /// A connection that another shard has accepted. It is to be watched as soon as the turn's effects are carried out.
    pub fn handle_arrival(&mut self, socket: SocketId, arrival: Arrival, now_ms: u64) {
        self.now_ms = now_ms;
        self.work.spend(work::ACCEPT_NS);
        let Arrival { peer, counted, tls, sealed, upgraded } = arrival;
        if self.is_stopping() {
            return self.effects.push(Effect::Close(socket));
        }
        let slot = self.insert(socket, peer, counted.arrived(), false, tls);
        self.effects.push(Effect::Watch(socket, self.table.token(slot)));
        self.send_records(slot, &sealed);
        let token = self.table.token(slot);
        self.take_up_or_open(slot, upgraded);
        if self.table.is_alive(slot, token.generation) {
            // The beginning of a record may have come with it.
            if self.table[slot].incoming_bytes() > 0 {
                self.weigh(slot);
            }
            self.end_records(slot);
        }
    }

    /// Takes up the channel that is asked for, or opens a new one and says why.
    fn take_up_or_open(&mut self, slot: Slot, upgraded: Upgraded) {
        if let Some(stream) = upgraded.wish.stream {
            return self.open_stream(slot, upgraded, stream);
        }
        let holder = ResumeHolder::of(&upgraded.path, upgraded.wish.user.as_deref());
        let answer = match upgraded.wish.ask {
            None => ResumeAnswer::New,
            Some(Err(MalformedElement)) => ResumeAnswer::Anew { why: ResumeRefusal::Unknown, lost: None, at: None },
            Some(Ok(ask)) => match self.check_return(&ask, upgraded.owner, holder) {
                Ok(old) if self.end_wait(old) => return self.take_up(old, slot, &ask, upgraded),
                refused => {
                    // Another has its place: it is as if its client had come behind its end.
                    let (why, lost) = match refused {
                        Ok(old) => {
                            let position =
                                self.out.kept_channels.get(&old).map(|kept_channel| kept_channel.log.position());
                            self.end_let_go(old);
                            let lost = position.and_then(|position| position.checked_sub(ask.received));
                            (ResumeRefusal::Expired, lost)
                        }
                        Err(refused) => refused,
                    };
                    self.stats.resumes_refused += 1;
                    let at = if why == ResumeRefusal::Elsewhere { self.keys.maker_of(&ask.token) } else { None };
                    ResumeAnswer::Anew { why, lost, at }
                }
            },
        };
        self.open_kept(slot, upgraded, holder, answer);
    }

    /// Whether a client may take up the channel that it asks for: its place, or why not.
    fn check_return(
        &self,
        ask: &ResumeAsk,
        owner: OwnerId,
        holder: ResumeHolder,
    ) -> Result<Slot, (ResumeRefusal, Option<u64>)> {
        self.keys.verify(ask.channel, &ask.token).map_err(|mismatch| match mismatch {
            TokenMismatch::Elsewhere => (ResumeRefusal::Elsewhere, None),
            TokenMismatch::Foreign => (ResumeRefusal::Foreign, None),
        })?;
        let unknown = (ResumeRefusal::Unknown, None);
        let Some(slot) = self.table.slot_of(ask.channel) else {
            let ended = self.table.detached.ended(ask.channel).filter(|ended| ended.tokens.are_good(&ask.token));
            return Err(match ended {
                Some(ended) if ended.holder != holder => (ResumeRefusal::Foreign, None),
                Some(ended) => (ResumeRefusal::Expired, ended.position.checked_sub(ask.received)),
                None => unknown,
            });
        };
        let kept_channel = self.out.kept_channels.get(&slot).ok_or(unknown)?;
        if !kept_channel.tokens.are_good(&ask.token) || self.table[slot].flags.has_any(ENDS_FOR_GOOD) {
            return Err(unknown);
        }
        if kept_channel.holder != holder || self.owner_of(slot) != Some(owner) {
            return Err((ResumeRefusal::Foreign, None));
        }
        if ask.received > kept_channel.log.told() { Err(unknown) } else { Ok(slot) }
    }

    /// The channel at `old` goes on with the connection at `slot`.
    fn take_up(&mut self, old: Slot, slot: Slot, ask: &ResumeAsk, upgraded: Upgraded) {
        let mut connection = self.take_out(slot);
        if !self.table[old].flags.has(Flag::Detached) {
            // It looked alive, but its client is here.
            self.effects.push(Effect::Abandon(self.table[old].socket));
            self.stats.taken_over += 1;
            self.let_go_of_socket(old);
        }
        self.uncount(&self.table[old]);
        let place = &mut self.table[old];
        place.flags.keep_only(OF_CHANNEL);
        (place.socket, place.peer, place.client) = (connection.socket, connection.peer, connection.client);
        place.tls = connection.tls.take();
        let over_tls = usize::from(place.tls.is_some());
        place.outbound = std::mem::take(&mut connection.outbound);
        place.deadline_tick = Connection::NO_TICK;
        place.heard(self.now_ms);
        self.table.over_tls += over_tls;
        self.effects.push(Effect::Watch(connection.socket, self.table.token(old)));
        self.speak_to(old, &upgraded.response, upgraded.agreed);
        let entries = self.out.kept_channels.get(&old).map_or(0, |kept_channel| kept_channel.log.entries());
        self.work.spend(entries as u64 * work::PASS_NS / 4);
        let lost = self.out.rewind(old, ask.received).unwrap_or_default();
        let Some(kept_channel) = self.out.kept_channels.get_mut(&old) else { return };
        let token = self.keys.mint(ask.channel, kept_channel.tokens.replace(ask.token));
        kept_channel.returns = kept_channel.returns.wrapping_add(1);
        let received = kept_channel.received;
        if kept_channel.log.lags() {
            self.table[old].flags.set(Flag::Lags);
        }
        self.stats.resumed += 1;
        let answer = if lost == 0 {
            ResumeAnswer::Resumed { received }
        } else {
            self.stats.resumed_with_gap += 1;
            ResumeAnswer::Gap { lost, received }
        };
        self.say_hello(old, ask.channel, token, answer);
        self.count_log(old);
        self.feed(old);
        self.schedule_probe(old);
        let Upgraded { wish, mut leftover, .. } = upgraded;
        self.tell_holder(old, |channel| Event::Resumed { channel, lost, grant: wish.grant });
        // Empty or not: it may bring the beginning of a record, which is weighed there.
        let token = self.table.token(old);
        self.receive(old, &mut leftover);
        if self.table.is_alive(old, token.generation) {
            self.end_records(old);
        }
    }

    /// The channel's connection speaks its new client's agreed terms from now on, after the 101.
    fn speak_to(&mut self, slot: Slot, response: &[u8], agreed: Option<Agreed>) {
        *self.responses.entry(101).or_default() += 1;
        self.send_opaque(slot, response, bytes::Bytes::new());
        let ConnectionPhase::Open(channel) = &mut self.table[slot].phase else { return };
        channel.ws = proto::WebSocketConnection::new(agreed);
        if let Some(agreed) = agreed {
            self.owners[channel.owner].owner.windows.enter(agreed.server_window_bits());
            if agreed.server_takes_context_over() {
                self.out.take_context_over(slot, agreed.server_window_bits());
            }
        }
    }

    /// A new channel that outlives its connection.
    fn open_kept(&mut self, slot: Slot, upgraded: Upgraded, holder: ResumeHolder, answer: ResumeAnswer) {
        let Upgraded { response, agreed, owner, bound_path, path, forwarded_for, extension, wish, mut leftover } =
            upgraded;
        *self.responses.entry(101).or_default() += 1;
        self.send_opaque(slot, &response, bytes::Bytes::new());
        let ws = proto::WebSocketConnection::new(agreed);
        // A client of an old channel was not counted as a new one yet.
        let is_counted = self.returns_to(&wish).is_none();
        let owner = self.owners.directory().owners.get(&owner).cloned();
        let Some(owner) = owner.filter(|owner| is_counted || self.has_room_for_kept(owner, &path)) else {
            return self.turn_away(slot, ws);
        };
        if let Some(agreed) = ws.deflate().filter(|agreed| agreed.server_takes_context_over()) {
            self.out.take_context_over(slot, agreed.server_window_bits());
        }
        let keeps = Some(Kept { holder, tells: wish.tells, answer });
        let (registered, grant) = (false, wish.grant);
        let of_hub = grant.clone();
        let opening = Opening { ws, owner, bound_path, path, forwarded_for, registered, extension, keeps, grant };
        self.open_channel(slot, opening);
        if let Some(grant) = of_hub {
            self.join_own_topics(slot, &grant);
        }
        if !leftover.is_empty() {
            self.receive(slot, &mut leftover);
        }
    }

    pub(super) fn has_room_for_kept(&mut self, owner: &Arc<Owner>, path: &Arc<str>) -> bool {
        let opened_bytes = size_of::<crate::shard::event::Opened>() + path.len();
        self.owners.has_room_to_open(owner, opened_bytes) && self.count_of_process(owner)
    }

    /// It came for a channel that is not there, and its process takes no other.
    fn turn_away(&mut self, slot: Slot, ws: proto::WebSocketConnection) {
        self.stats.turned_away += 1;
        let registering = Registering { ws, forwarded_for: None };
        self.table[slot].phase = ConnectionPhase::Registering(Box::new(registering));
        let why = CloseFrame {
            code: Some(close::code::TRY_AGAIN_LATER),
            reason: "the process has as many connections as it may have".into(),
        };
        self.close_now(slot, &why, ClosedBy::Broker);
    }

    /// From now on the channel at `slot` is kept.
    pub(super) fn keep(&mut self, slot: Slot, channel: ChannelId, keeps: Kept) {
        let Kept { holder, tells, answer } = keeps;
        let token = self.new_token(channel);
        self.out.keep(slot, KeptChannel::new(token, holder, tells));
        self.table[slot].flags.set(Flag::Kept);
        self.count_log(slot);
        self.say_hello(slot, channel, token, answer);
    }

    pub(super) fn new_token(&mut self, channel: ChannelId) -> ResumeToken {
        let random = (self.intake.random() >> 32) as u32;
        self.keys.mint(channel, random)
    }

    fn say_hello(&mut self, slot: Slot, channel: ChannelId, token: ResumeToken, answer: ResumeAnswer) {
        let hello = text::hello(channel, token, self.config.resume.window_ms, answer);
        self.append_own(slot, server_header(Opcode::Text, false, hello.len()), hello.as_bytes());
    }
}
