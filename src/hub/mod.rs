//! The hub: a process of the broker's own, whose clients subscribe and publish by themselves, as far as their tokens
//! allow.
//!
//! Clients connect to `/hub` with the subprotocol `pushring.1` and send their requests in control texts ([`grammar`]);
//! their permissions were determined when they connected ([`Grant`]) and are enforced here. Backends publish to it over
//! HTTP (`push_api`). The protocol is specified in `docs/PROTOCOL.md`.
//!
//! Invariants: no client is subscribed to a topic that its grant does not allow, nor publishes there; a channel whose
//! grant has ended is closed with 4401; each order of a client is answered, and the last answers are sent again to a
//! client that comes back; no published message can be taken for an answer, since answers are control texts. A topic
//! with an envelope is a topic of its own, whose name no client can send. The hub never waits for the receiver of its
//! clients' events ([`WebhookQueue`]). The orders of one client that hold up its thread are limited, so that no client
//! holds up the others ([`slow_orders`]). A client's rights are those of the token that it has shown last, whether by
//! an order or by coming back with it, and none once that has ended.

mod answers;
mod calls;
pub mod grammar;
mod slow_orders;
mod turns;

pub use calls::{CallLimits, TakenEvents, WebhookEvent, WebhookQueue};

use self::answers::Answers;
use self::calls::Said;
use self::grammar::{HubOrder, NumberedOrder, PublishedPayload, RefusedOrder};
use self::slow_orders::SlowOrderLimit;
use self::turns::ClientTurns;
use crate::admission::{Charge, HeapBytes, HeldAs, ProcessMemory};
use crate::broker::{
    AttachOptions, Audience, BrokerHandle, ControlKind, Event, Message, Opened, Outcome, Process, ProcessHandle,
    PushError, ServiceError, Ticket,
};
use crate::channel::ChannelId;
use crate::driver::clock;
use crate::gateway::{Grant, TokenError, WebSocketRule};
use crate::proto::MessageKind;
use crate::shard::operating::ChannelFilter;
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Its name.
pub const PROCESS: &str = "hub:pushring:sys";

/// Where its clients connect.
pub const PATH: &str = "/hub";

/// With what a channel is closed whose client does not wait for answers.
const TOO_MANY_ORDERS: (u16, &str) = (1008, "more orders wait than may");

/// Events that are heard before it is looked for more: a few milliseconds of work, so that little waits where clients
/// have no turns.
const EVENTS_AT_A_TIME: usize = 128;

/// With what a channel is closed whose token has ended.
const TOKEN_ENDED: (u16, &str) = (4401, "the token has ended");

/// With what a channel is closed whose client came back with another token, which the hub cannot obey now.
const TOO_MANY_TOKENS: (u16, &str) = (1013, "its token is another, and the broker is busy");

/// With what a channel is closed that cannot be subscribed to a topic of its token.
const NO_ROOM_FOR_TOPICS: (u16, &str) = (1013, "there is no room for a topic of its token");

/// How long a shard is waited for, which answers within a turn or two.
const SHARD_WITHIN: Duration = Duration::from_secs(5);

/// How often it is looked whether other nodes know of a subscription, while one waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long a wait for events lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Starts the hub of a broker whose settings have a [`HubAccess`](crate::gateway::HubAccess). Ends when the broker
/// stops.
///
/// # Errors
/// See [`ServiceError`].
pub fn start(broker: &BrokerHandle) -> Result<JoinHandle<()>, ServiceError> {
    start_telling(broker, None)
}

/// The same, and tells `calls` what its clients do.
///
/// # Errors
/// See [`ServiceError`].
pub fn start_telling(broker: &BrokerHandle, calls: Option<WebhookQueue>) -> Result<JoinHandle<()>, ServiceError> {
    start_with(broker, calls, false)
}

/// The same; with `sse`, clients that only receive may open event streams.
///
/// # Errors
/// See [`ServiceError`].
pub fn start_with(
    broker: &BrokerHandle,
    calls: Option<WebhookQueue>,
    sse: bool,
) -> Result<JoinHandle<()>, ServiceError> {
    let process = broker.process(PROCESS, AttachOptions { wants_control: true, ..AttachOptions::default() })?;
    let rule = WebSocketRule { hub: true, resume: true, resume_events: true, sse, ..WebSocketRule::default() };
    process.bind_at_with(PATH, rule)?;
    let memory = process.handle().memory().clone();
    let (sessions, ends, unheard) = Default::default();
    let turns = ClientTurns::new(&memory);
    let hub = Hub { process, memory, broker: broker.clone(), calls, turns, sessions, ends, unheard };
    Ok(thread::Builder::new().name("hub".to_owned()).spawn(move || hub.run())?)
}

struct Hub {
    process: Process,
    memory: ProcessMemory,
    broker: BrokerHandle,
    calls: Option<WebhookQueue>,
    turns: ClientTurns,
    sessions: HashMap<ChannelId, HubSession>,
    /// When grants end, in order.
    ends: BTreeSet<(u64, ChannelId)>,
    /// Answers that wait until the fleet's other nodes know of a subscription, in order: for a second or two at most,
    /// and charged, so that no client has another's given too early.
    unheard: Vec<PendingAnswer>,
}

/// An answer that is given once what any node publishes reaches the channel, or NATS has had its time.
struct PendingAnswer {
    channel: ChannelId,
    heard: Ticket,
    answer: String,
    is_kept: bool,
    _charge: Charge,
}

/// A channel's client.
struct HubSession {
    grant: Arc<Grant>,
    /// How often it has come back, as far as the hub was told.
    returns: u32,
    answers: Answers,
    slow_orders: SlowOrderLimit,
    charge: Charge,
}

/// The memory of a session in the hub's tables, with the room that a hash map keeps free.
const SESSION_BYTES: usize = 2 * size_of::<(ChannelId, HubSession)>() + 2 * size_of::<(u64, ChannelId)>();

type HubResult = Result<(), PushError>;

/// An order's effect and its object, or the reason for its refusal.
type OrderEffect = Result<(&'static str, serde_json::Value), &'static str>;

/// The delivering thread ends with the hub.
impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(calls) = &self.calls {
            calls.close();
        }
    }
}

impl Hub {
    fn run(mut self) {
        let mut events = Vec::new();
        loop {
            // Behind many orders the others wait in the process' queue, and then in their sockets.
            if self.turns.has_room() && self.process.recv_batch(&mut events, self.wait_max()).is_err() {
                return;
            }
            // The only error is that the broker has stopped.
            let done = events.drain(..).try_for_each(|event| self.enter(event)).and_then(|()| self.hear());
            // What a burst needed is not kept for the next.
            if events.capacity() > 8 * EVENTS_AT_A_TIME {
                events.shrink_to(EVENTS_AT_A_TIME);
            }
            if done.and_then(|()| self.end_grants()).and_then(|()| self.answer_heard()).is_err() {
                return;
            }
        }
    }

    /// Something has happened, and waits for its turn.
    fn enter(&mut self, event: Event) -> HubResult {
        let (channel, (code, reason)) = match event {
            // Only subscriptions at the opening say so, by the number of the channel; one that is gone is no failure.
            Event::Failed { ticket, outcome } if outcome.dropped > 0 => {
                let Ok(channel) = u32::try_from(ticket) else { return Ok(()) };
                (ChannelId::new(channel), NO_ROOM_FOR_TOPICS)
            }
            event => match self.turns.enter(event) {
                Some(channel) => (channel, TOO_MANY_ORDERS),
                None => return Ok(()),
            },
        };
        self.process.close(channel, code, reason).send()
    }

    /// Hears clients in turn, for a while.
    fn hear(&mut self) -> HubResult {
        for _ in 0..EVENTS_AT_A_TIME {
            let Some(event) = self.turns.next() else { break };
            self.on_event(event)?;
        }
        self.turns.count();
        Ok(())
    }

    fn wait_max(&self) -> Duration {
        if !self.turns.is_empty() {
            return Duration::ZERO;
        }
        if !self.unheard.is_empty() {
            return LOOK_INTERVAL;
        }
        let first = self.ends.first().map(|(end_s, _)| Duration::from_secs(end_s.saturating_sub(clock::unix_s())));
        first.map_or(WAIT_MAX, |first| first.clamp(Duration::from_millis(100), WAIT_MAX))
    }

    fn on_event(&mut self, event: Event) -> HubResult {
        match event {
            Event::Opened(opened) => self.opened(*opened),
            Event::Closed(closed) => {
                let grant = self.forget(closed.channel);
                let user = grant.as_ref().and_then(|grant| grant.user.as_deref());
                let who = (closed.channel, user);
                self.tell(WebhookEvent::Closed, who, None, || calls::closed(&closed, user, clock::unix_ms()))?;
                Ok(())
            }
            Event::Control { channel, kind: ControlKind::Text, payload } => self.said(channel, &payload),
            Event::Message { channel, kind, payload } => self.message(channel, kind, &payload),
            Event::Resumed { channel, grant, .. } => self.resumed(channel, grant),
            _ => Ok(()),
        }
    }

    /// Passes an event of a channel and its user, with what its client said, to the backend. Returns whether it was
    /// queued. Those whose messages gave way to it are told so.
    fn tell(
        &self,
        what: WebhookEvent,
        who: (ChannelId, Option<&str>),
        said: Option<Said<'_>>,
        event: impl FnOnce() -> serde_json::Value,
    ) -> Result<bool, PushError> {
        let Some(calls) = self.calls.as_ref().filter(|calls| calls.tells(what)) else { return Ok(false) };
        let mut event = event();
        if let Some(node) = self.process.handle().fleet_node() {
            // As it is addressed from any node.
            event["at"] = format!("{node}/{}", event["channel"]).into();
        }
        let told = calls.tell(who, &self.memory, &event, said);
        told.displaced.into_iter().try_for_each(|channel| self.answer(channel, &grammar::error("busy", None)))?;
        Ok(told.is_queued)
    }

    fn user_of(&self, channel: ChannelId) -> Option<&str> {
        self.sessions.get(&channel)?.grant.user.as_deref()
    }

    /// A message that is no order: it goes to the backend; without one, the client is told that it was not taken.
    fn message(&mut self, channel: ChannelId, kind: MessageKind, payload: &Bytes) -> HubResult {
        if self.sessions.get(&channel).is_some_and(|session| session.grant.has_ended(clock::unix_s())) {
            // As with orders: it is being closed, or about to be.
            return Ok(());
        }
        let (user, is_text) = (self.user_of(channel), kind == MessageKind::Text);
        let said = Some(Said { payload, is_text });
        let event = || calls::message(channel, user, clock::unix_ms());
        if self.tell(WebhookEvent::Message, (channel, user), said, event)? {
            return Ok(());
        }
        let is_told = self.calls.as_ref().is_some_and(|calls| calls.tells(WebhookEvent::Message));
        self.answer(channel, &grammar::error(if is_told { "busy" } else { "unheard" }, None))
    }

    /// A client has come back, with a token that takes the place of the one before.
    fn resumed(&mut self, channel: ChannelId, grant: Option<Arc<Grant>>) -> HubResult {
        self.say_again(channel)?;
        let (Some(session), Some(grant)) = (self.sessions.get_mut(&channel), grant) else { return Ok(()) };
        let before = session.grant.clone();
        if !before.allows_the_same(&grant) {
            let is_left = session.slow_orders.is_left_for_renewal(Instant::now());
            if !is_left || !self.end_forbidden(channel, &before, &grant)? {
                return self.process.close(channel, TOO_MANY_TOKENS.0, TOO_MANY_TOKENS.1).send();
            }
        }
        self.hold(channel, grant);
        Ok(())
    }

    /// Answers that were on their way when the connection of a client was lost may have been lost with it.
    fn say_again(&mut self, channel: ChannelId) -> HubResult {
        if let Some(session) = self.sessions.get_mut(&channel) {
            session.returns = session.returns.wrapping_add(1);
        }
        // They confirm orders that were executed, so none may follow this.
        for one in self.unheard.extract_if(.., |one| one.channel == channel).collect::<Vec<_>>() {
            self.answer_and_keep(channel, one.answer, one.is_kept)?;
        }
        let Some(session) = self.sessions.get(&channel) else { return Ok(()) };
        self.answer(channel, &grammar::again(session.answers.len()))?;
        session.answers.iter().try_for_each(|answer| self.answer(channel, answer))
    }

    fn opened(&mut self, opened: Opened) -> HubResult {
        let (channel, grant) = (opened.channel, opened.grant.unwrap_or_default());
        // Its shard has done so already, as far as it had room; here it is made sure of, and the fleet is told.
        for name in grant.own_topics() {
            self.process.subscribe(channel, name).ask_failure(u64::from(channel.get())).send()?;
        }
        let who = (channel, grant.user.as_deref());
        self.tell(WebhookEvent::Opened, who, None, || calls::opened(channel, &grant, clock::unix_ms()))?;
        self.hold(channel, grant);
        Ok(())
    }

    /// A channel may do this from now on.
    fn hold(&mut self, channel: ChannelId, grant: Arc<Grant>) {
        if let Some(end_s) = grant.expires_unix_s {
            self.ends.insert((end_s, channel));
        }
        let session = self.sessions.entry(channel).or_insert_with(|| HubSession {
            grant: grant.clone(),
            returns: 0,
            answers: Answers::default(),
            slow_orders: SlowOrderLimit::new(Instant::now()),
            charge: self.memory.charge_anyway(HeldAs::Topics, 0),
        });
        session.charge.resize(SESSION_BYTES + grant.heap_bytes());
        let before = std::mem::replace(&mut session.grant, grant.clone());
        if let Some(end_s) = before.expires_unix_s
            && before.expires_unix_s != grant.expires_unix_s
        {
            self.ends.remove(&(end_s, channel));
        }
    }

    fn forget(&mut self, channel: ChannelId) -> Option<Arc<Grant>> {
        let grant = self.sessions.remove(&channel)?.grant;
        if let Some(end_s) = grant.expires_unix_s {
            self.ends.remove(&(end_s, channel));
        }
        Some(grant)
    }

    /// Closes the channels whose grants have ended.
    fn end_grants(&mut self) -> HubResult {
        let now_s = clock::unix_s();
        while let Some(&(end_s, channel)) = self.ends.first()
            && end_s <= now_s
        {
            self.ends.pop_first();
            self.process.close(channel, TOKEN_ENDED.0, TOKEN_ENDED.1).send()?;
        }
        Ok(())
    }

    fn said(&mut self, channel: ChannelId, text: &[u8]) -> HubResult {
        let Some(grant) = self.sessions.get(&channel).map(|session| session.grant.clone()) else { return Ok(()) };
        if grant.has_ended(clock::unix_s()) {
            // It is being closed, or about to be: orders that it gave in time have waited for too long.
            return Ok(());
        }
        let NumberedOrder { order, id } = match grammar::read(text) {
            Ok(Some(said)) => said,
            // An acknowledgement, which the shard has executed.
            Ok(None) => return Ok(()),
            Err(RefusedOrder { why, id }) => {
                return self.answer_and_keep(channel, grammar::error(why, id), id.is_some());
            }
        };
        let session = self.sessions.get_mut(&channel);
        if session.is_some_and(|session| !session.slow_orders.is_left_for(&order, Instant::now())) {
            return self.answer_and_keep(channel, grammar::error("later", id), id.is_some());
        }
        let mut heard = None;
        let executed = match order {
            HubOrder::Subscribe { topic, envelope } => self.subscribe(channel, &grant, &topic, envelope, &mut heard)?,
            HubOrder::Unsubscribe { topic } => {
                self.unsubscribe(channel, &grant, &topic)?;
                Ok(("unsubscribed", topic.into()))
            }
            HubOrder::Publish { topic, payload } if grant.may_publish(&topic) => {
                publish(&self.process, &topic, payload)?;
                Ok(("published", topic.into()))
            }
            HubOrder::Publish { .. } => Err("forbidden"),
            HubOrder::Renew { token } => self.renew(channel, &grant, &token)?,
        };
        let answer = match executed {
            Ok((done, what)) => grammar::done(done, &what, id),
            Err(why) => grammar::error(why, id),
        };
        match heard.filter(|heard| !heard.is_known()) {
            Some(heard) => self.answer_later(channel, answer, id.is_some(), heard),
            None => self.answer_and_keep(channel, answer, id.is_some()),
        }
    }

    /// Gives an answer once this is known; at once, where memory is too short to keep it.
    fn answer_later(&mut self, channel: ChannelId, answer: String, is_kept: bool, heard: Ticket) -> HubResult {
        let bytes = answer.capacity() + size_of::<PendingAnswer>() + Ticket::<Outcome>::HEAP_BYTES;
        match self.memory.charge(HeldAs::Content, bytes) {
            Ok(charge) => self.unheard.push(PendingAnswer { channel, heard, answer, is_kept, _charge: charge }),
            Err(_) => self.answer_and_keep(channel, answer, is_kept)?,
        }
        Ok(())
    }

    fn answer_and_keep(&mut self, channel: ChannelId, answer: String, is_kept: bool) -> HubResult {
        self.answer(channel, &answer)?;
        if is_kept && let Some(session) = self.sessions.get_mut(&channel) {
            session.answers.keep(answer, &self.memory);
        }
        Ok(())
    }

    /// Gives the answers that waited for other nodes.
    fn answer_heard(&mut self) -> HubResult {
        // The first to be asked is the first to be known, so that those behind it need not be looked at.
        let known = self.unheard.iter().take_while(|one| one.heard.is_known()).count();
        let heard: Vec<_> = self.unheard.drain(..known).collect();
        if self.unheard.is_empty() {
            self.unheard = Vec::new();
        }
        heard.into_iter().try_for_each(|one| self.answer_and_keep(one.channel, one.answer, one.is_kept))
    }

    fn subscribe(
        &self,
        channel: ChannelId,
        grant: &Grant,
        name: &str,
        envelope: bool,
        heard: &mut Option<Ticket>,
    ) -> Result<OrderEffect, PushError> {
        if !grant.may_subscribe(name) {
            return Ok(Err("forbidden"));
        }
        let twin = grammar::twin(name);
        let (into, out_of) = match (envelope, twin) {
            (true, None) => return Ok(Err("topic")),
            (true, Some(twin)) => (twin, Some(name.to_owned())),
            (false, twin) => (name.to_owned(), twin),
        };
        // In one form at a time: the answer is the last word.
        let (here, by_others) = self.process.subscribe(channel, into).send_apart()?;
        if !here.wait(SHARD_WITHIN).is_ok_and(|outcome| outcome.sent == 1) {
            return Ok(Err("too_many"));
        }
        *heard = Some(by_others);
        if let Some(out_of) = out_of {
            self.process.unsubscribe(channel, out_of).send()?;
        }
        let user = grant.user.as_deref();
        let event = || calls::subscribed(channel, user, name, true, clock::unix_ms());
        self.tell(WebhookEvent::Subscribed, (channel, user), None, event)?;
        Ok(Ok(("subscribed", name.into())))
    }

    /// Out of a topic, in either form.
    fn unsubscribe(&self, channel: ChannelId, grant: &Grant, name: &str) -> HubResult {
        self.process.unsubscribe(channel, name).send()?;
        if let Some(twin) = grammar::twin(name) {
            self.process.unsubscribe(channel, twin).send()?;
        }
        let user = grant.user.as_deref();
        let event = || calls::subscribed(channel, user, name, false, clock::unix_ms());
        self.tell(WebhookEvent::Subscribed, (channel, user), None, event)?;
        Ok(())
    }

    /// A new token of the same user takes the place of the one before. What it does not allow cannot be asked for any
    /// more, and what it does not allow and is subscribed to ends.
    fn renew(&mut self, channel: ChannelId, before: &Grant, token: &str) -> Result<OrderEffect, PushError> {
        let settings = self.broker.settings();
        let Some(access) = settings.hub.as_ref() else { return Ok(Err("forbidden")) };
        let grant = match access.open(token, clock::unix_s()) {
            Ok(grant) => grant,
            Err(TokenError::KeysPending) => return Ok(Err("later")),
            Err(_) => return Ok(Err("token")),
        };
        if grant.user != before.user {
            return Ok(Err("user"));
        }
        if !self.end_forbidden(channel, before, &grant)? {
            return Ok(Err("later"));
        }
        let expires = grant.expires_unix_s;
        self.hold(channel, Arc::new(Grant { is_fixed: before.is_fixed, ..grant }));
        Ok(Ok(("renewed", expires.into())))
    }

    /// Ends the subscriptions that a channel had by one grant and may not have by another. Returns false, and ends
    /// none, where the shard does not say in time what they are.
    fn end_forbidden(&self, channel: ChannelId, before: &Grant, grant: &Grant) -> Result<bool, PushError> {
        let filter = ChannelFilter { channel: Some(channel), ..ChannelFilter::default() };
        let Some(report) = self.broker.channels(&filter, 0, 1).0.pop() else { return Ok(false) };
        let subscribed = report.topics.iter().filter_map(|topic| grammar::name_of(topic));
        for name in subscribed.filter(|name| !grant.may_subscribe(name)).collect::<BTreeSet<_>>() {
            self.unsubscribe(channel, before, name)?;
            self.answer(channel, &grammar::done("unsubscribed", &name.into(), None))?;
        }
        Ok(true)
    }

    fn answer(&self, channel: ChannelId, text: &str) -> HubResult {
        let returns = self.sessions.get(&channel).map_or(0, |session| session.returns);
        self.process.push(channel, Message::control_text(text, returns)).send()
    }
}

/// Publishes to a topic of the hub, in both forms in which it may be subscribed to.
fn publish(process: &Process, name: &str, payload: PublishedPayload) -> HubResult {
    if let Some(enveloped) = envelope(process.handle(), name, &payload) {
        let broadcast = process.broadcast(Message::text(enveloped.1)).to(Audience::Topic(enveloped.0.into()));
        broadcast.everywhere().send()?;
    }
    let message = match payload {
        PublishedPayload::Text(text) | PublishedPayload::Json(text) => Message::text(text),
        PublishedPayload::Binary(bytes) => Message::binary(bytes),
    };
    process.broadcast(message).to(Audience::Topic(name.into())).everywhere().send()
}

/// The topic and text of a message for subscribers with an envelope, if there are any; in a fleet, other nodes may have
/// some.
pub(crate) fn envelope(process: &ProcessHandle, name: &str, payload: &PublishedPayload) -> Option<(String, String)> {
    let twin = grammar::twin(name).filter(|twin| process.is_in_fleet() || process.subscribers(twin) > 0)?;
    let text = grammar::enveloped(name, payload);
    Some((twin, text))
}

/// The payload of a message, for an envelope.
pub(crate) fn payload_of(message: &Message) -> PublishedPayload {
    let bytes: &Bytes = message.payload();
    match std::str::from_utf8(bytes) {
        Ok(text) if message.is_text() => PublishedPayload::Text(text.to_owned()),
        _ => PublishedPayload::Binary(bytes.clone()),
    }
}

/// The same of a message that is JSON.
pub(crate) fn json_of(message: &Message) -> PublishedPayload {
    match std::str::from_utf8(message.payload()) {
        Ok(json) => PublishedPayload::Json(json.to_owned()),
        Err(_) => payload_of(message),
    }
}

#[cfg(test)]
mod tests;
