//! Event streams: channels that only receive, from their request on, and the requests with which their clients send.
//!
//! Invariants: a stream counts against all limits as any channel does; its first event gives the channel, and the point
//! from which the stream is complete; a client that names the event that it received last is passed to the shard that
//! sent it, and given what it missed and is entitled to, or a gap is reported first. A message from the client needs
//! the stream's own token, and is passed to the process once, in the order of the shard.

use super::arrival::{StreamRequest, Upgraded};
use super::relayed_message::{RelayedMessage, no_such_stream};
use super::slot::Slot;
use crate::channel::ChannelId;
use crate::gateway::{Grant, OwnerId};
use crate::http::PreparedResponse;
use crate::proto::{self, MessageKind, Payload};
use crate::resume::MARK;
use crate::resume::text::{self, Control};
use crate::shard::command::{Command, RespondCommand};
use crate::shard::core::{RelayedOrder, Shard};
use crate::shard::event::{ControlKind, Event, RequestId};
use crate::shard::out::journal::{Journal, Replay, ReturningAudiences};
use crate::shard::out::kept_channels::{Listener, ResumeHolder};
use crate::shard::out::listener_audience::ListenerAudience;
use crate::shard::table::connection::Flag;
use crate::shard::table::opening::Opening;
use crate::shard::work;
use crate::sse;
use bytes::Bytes;
use std::sync::Arc;

/// Browsers come back after so long, each after another: thousands that were lost together do not come together.
const RETRY_MS: std::ops::Range<u64> = 1_000..5_000;

/// The process has as many connections as it may have, or is gone.
const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

impl Shard {
    /// The shard that sent the event which a client heard last, if this broker did.
    pub(in crate::shard) fn shard_of_last(&self, stream: StreamRequest) -> Option<u32> {
        let last = stream.last?.ok()?;
        (last.run == self.keys.run_number() && last.shard < self.shards).then_some(last.shard)
    }

    /// Opens a channel that only receives.
    pub(super) fn open_stream(&mut self, slot: Slot, upgraded: Upgraded, stream: StreamRequest) {
        let Upgraded { response, owner, bound_path, path, forwarded_for, wish, .. } = upgraded;
        // A client of an old stream was not counted where it was accepted.
        let is_counted = self.shard_of_last(stream).is_none();
        let owner = self.owners.directory().owners.get(&owner).cloned();
        let Some(owner) = owner.filter(|owner| is_counted || self.has_room_for_kept(owner, &path)) else {
            *self.responses.entry(503).or_default() += 1;
            self.send_opaque(slot, NO_ROOM, Bytes::new());
            return self.end_connection(slot);
        };
        *self.responses.entry(200).or_default() += 1;
        self.send_opaque(slot, &response, Bytes::new());
        let holder = ResumeHolder::of(&path, wish.user.as_deref());
        let grant = wish.grant;
        let opening = Opening {
            ws: proto::WebSocketConnection::new(None),
            owner: owner.clone(),
            bound_path: bound_path.clone(),
            path,
            forwarded_for,
            registered: false,
            extension: false,
            keeps: None,
            grant: grant.clone(),
        };
        self.table[slot].flags.set(Flag::Sse);
        self.open_channel(slot, opening);
        let Some(id) = self.table[slot].channel().map(|channel| channel.id) else { return };
        let token = self.new_token(id);
        let now_ms = self.now_ms;
        self.out.journals.entry(owner.id).or_insert_with(|| Journal::new(now_ms));
        let replay = self.missed(owner.id, &bound_path, holder, grant.as_deref(), stream);
        if let Some(journal) = self.out.journals.get_mut(&owner.id) {
            journal.enter([ListenerAudience::Process, ListenerAudience::Path(bound_path)]);
        }
        self.out.listeners.insert(slot, Listener { holder, token });
        if let Some(grant) = &grant {
            self.join_own_topics(slot, grant);
        }
        let from = self.event_id(replay.from);
        let retry_ms = RETRY_MS.start + self.intake.random() % (RETRY_MS.end - RETRY_MS.start);
        self.append_event(slot, &sse::hello(id, &token.text(), (!replay.has_gap).then_some(from), retry_ms));
        if replay.has_gap {
            let reason = match self.shard_of_last(stream) {
                Some(_) => "trimmed",
                None => "elsewhere",
            };
            self.append_event(slot, &sse::gap(reason, from));
        }
        for range in replay.ranges {
            self.append_range(slot, range, None);
        }
    }

    /// The events that a stream's client has missed.
    fn missed(
        &mut self,
        owner: OwnerId,
        bound_path: &Arc<str>,
        holder: ResumeHolder,
        grant: Option<&Grant>,
        stream: StreamRequest,
    ) -> Replay {
        let is_ours = self.shard_of_last(stream) == Some(self.index());
        let newest = self.out.journals.get(&owner).map_or(0, |journal| journal.next() - 1);
        let nothing = Replay { ranges: Vec::new(), from: newest, has_gap: stream.last.is_some(), looked_at: 0 };
        let last = stream.last.and_then(Result::ok).filter(|_| is_ours);
        let Some(count) = last.and_then(|last| self.keys.open_place(self.index(), &last.place)) else { return nothing };
        let topics = grant.into_iter().flat_map(Grant::own_topics);
        // Events to a single anonymous client cannot be attributed, and are a gap for each of them.
        let own =
            [ListenerAudience::Process, ListenerAudience::Path(bound_path.clone()), ListenerAudience::One(holder)];
        let to = own.into_iter().chain(topics.map(ListenerAudience::Topic)).collect();
        let belongs = ReturningAudiences { to, has_all_topics: grant.is_some() };
        let bytes_max = self.config.resume.bytes_max.min(self.config.outbound_bytes_max);
        let replay = self.out.missed_since(owner, count, bytes_max, &belongs).unwrap_or(nothing);
        let looked_at = replay.looked_at + belongs.to.len();
        self.work.spend(looked_at as u64 * work::PASS_NS + replay.ranges.len() as u64 * work::OFFER_NS);
        replay
    }

    /// Whether this is a channel of this shard that only receives, or one that is gone and may have been.
    pub(in crate::shard) fn may_have_listened(&self, id: ChannelId) -> bool {
        let is_here = id.shard(self.shards) == self.index();
        is_here && self.table.slot_of(id).is_none_or(|slot| self.table[slot].flags.has(Flag::Sse))
    }

    /// A message of the client of a stream, whose token is of this broker: it goes to the shard of its channel, and the
    /// request waits.
    pub(in crate::shard) fn say(&mut self, message: RelayedMessage) {
        let to = message.channel.shard(self.shards);
        if to == self.index() {
            return self.hear(message);
        }
        let request = (message.request, message.owner);
        self.relayed.push(RelayedOrder { to, request, command: Command::Said(Box::new(message)) });
    }

    /// The message has come to the shard of its channel.
    pub(in crate::shard) fn hear(&mut self, message: RelayedMessage) {
        self.work.spend(work::FRAME_NS);
        let RelayedMessage { request, owner, channel, token, holder, kind, payload } = message;
        let is_its = |listener: &Listener| listener.token == token && listener.holder == holder;
        let slot = self.table.slot_of(channel);
        let slot = slot.filter(|slot| self.out.listeners.get(slot).is_some_and(is_its));
        let slot = slot.filter(|&slot| self.owner_of(slot) == Some(owner));
        let of = slot.and_then(|slot| self.table[slot].channel_mut());
        let response = match of {
            None => no_such_stream(),
            Some(of) if self.owners.may_add(of.owner, of.added).is_err() => {
                PreparedResponse::text(503, "the process has too much to do").with("retry-after", "1")
            }
            Some(of) => {
                let place = of.owner;
                self.stats.received += 1;
                self.owners.count_added(place, &mut of.added, payload.len());
                let control = payload.strip_prefix(&[MARK]).filter(|_| kind == MessageKind::Text);
                let said = control.and_then(|control| text::control(control).ok());
                if let (Some(slot), Some(number)) = (slot, said.and_then(|said| said.ping)) {
                    self.answer_listener(slot, &sse::control(&text::pong(number).as_bytes()[1..]));
                }
                let is_for_owner = self.owners[place].owner.wants_control() && said.is_none_or(Control::is_for_others);
                match control {
                    Some(control) if is_for_owner => {
                        let payload = self.owners.keep(place, Payload::Borrowed(control));
                        self.owners.emit(place, Event::Control { channel, kind: ControlKind::Text, payload });
                    }
                    Some(_) => {}
                    None => self.owners.emit(place, Event::Message { channel, kind, payload }),
                }
                PreparedResponse::new(202)
            }
        };
        self.tell_sayer(request, owner, response);
    }

    fn tell_sayer(&mut self, request: RequestId, owner: OwnerId, response: PreparedResponse) {
        let respond = RespondCommand { request, owner, response };
        let to = request.shard();
        if to == self.index() {
            return self.respond(respond);
        }
        let command = Command::Respond(Box::new(respond));
        self.relayed.push(RelayedOrder { to, request: (request, owner), command });
    }

    /// The other shard takes no more: the client that waits here is told so. One that waits there is told when its time
    /// is up.
    pub fn relay_failed(&mut self, (request, owner): (RequestId, OwnerId)) {
        if request.shard() == self.index() {
            let response = PreparedResponse::text(503, "the broker has too much to do").with("retry-after", "1");
            self.respond(RespondCommand { request, owner, response });
        }
    }
}
